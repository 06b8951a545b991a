"""Networks written down once, as a chain of steps: trained as torch modules on our kernels, exported as ONNX nodes.

A step reads the value before it; ``also`` names an earlier step whose value it reads too (a residual, the places of a pool).
A step's name is the name of its value and of its parameters. Rows of a batch lie (count, units), and a dense step is a
convolution of width 1 over the batch, as in products.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from quatrefoil.models.gallery.entry import Graph, Weights
from quatrefoil.random import Generator

INPUT = "pixels"
GATES = {"RNN": (0,), "LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
"""Where ONNX's gates stand among torch's."""
PLAIN = ("Relu", "Sigmoid", "Tanh")
LEAK = 0.2
"""The slope of a LeakyRelu below 0 (Radford, Metz and Chintala 2016)."""


class Step(NamedTuple):
    """kind is ONNX's operator; sizes are inputs and outputs of a step with weights, or the shape of a Reshape; axes are
    those of a convolution."""

    kind: str
    name: str
    sizes: tuple[int, ...] = ()
    kernel: int = 1
    stride: int = 1
    pad: int = 0
    group: int = 1
    also: str = ""
    both_ways: bool = False
    axes: int = 2


def build(steps: Sequence[Step], rng: Generator) -> Any:
    """The chain as a torch module, which gives the values of all steps by name; its weights drawn uniformly
    with a variance of 1 / fan in (LeCun et al. 1998), biases 0. Raises BackendUnavailable where torch is missing."""
    import torch

    import quatrefoil.torch as qft

    def layer(step: Step) -> Any:
        window = {"stride": step.stride, "padding": step.pad}
        match step.kind:
            case "Gemm":
                return qft.Conv1d(*step.sizes, 1)
            case "Conv":
                kind = qft.Conv1d if step.axes == 1 else qft.Conv2d
                return kind(*step.sizes, step.kernel, groups=step.group, **window)
            case "ConvTranspose":
                return qft.ConvTranspose2d(*step.sizes, step.kernel, **window)
            case "MaxPool":
                return qft.MaxPool2d(step.kernel, return_indices=True)
            case "MaxUnpool":
                return qft.MaxUnpool2d(step.kernel)
            case "RNN" | "LSTM" | "GRU":
                return getattr(qft, step.kind)(*step.sizes, bidirectional=step.both_ways)
            case "BatchNormalization":
                return torch.nn.BatchNorm2d(*step.sizes)
            case "LeakyRelu":
                return torch.nn.LeakyReLU(LEAK)
        return None

    class Chain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleDict({s.name: made for s in steps if (made := layer(s)) is not None})

        def forward(self, x: Any) -> dict[str, Any]:
            values, places = {INPUT: x}, {}
            for step in steps:
                match step.kind:
                    case "Gemm":
                        x = self.layers[step.name](x.T.contiguous()[None])[0].T
                    case "MaxPool":
                        x, places[step.name] = self.layers[step.name](x)
                    case "MaxUnpool":
                        x = self.layers[step.name](x, places[step.also])
                    case "RNN" | "LSTM" | "GRU":
                        _, last = self.layers[step.name](x.transpose(0, 1))
                        last = last[0] if step.kind == "LSTM" else last
                        x = last.transpose(0, 1).reshape(last.shape[1], -1)
                    case "Add":
                        x = x + values[step.also]
                    case "Reshape":
                        x = x.reshape(-1, *step.sizes)
                    case "GlobalAveragePool":
                        x = x.flatten(2).mean(2)
                    case kind if kind in PLAIN:
                        x = getattr(torch, kind.lower())(x)
                    case _:
                        x = self.layers[step.name](x)
                values[step.name] = x
            return values

    chain = Chain()
    for step in steps:
        if step.name in chain.layers:
            draw(step, chain.layers[step.name], rng)
    return chain


def draw(step: Step, layer: Any, rng: Generator) -> None:
    """Draw a step's weights; those of a batch normalisation stay 1."""
    import torch

    if step.kind == "BatchNormalization":
        return
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            fan = step.sizes[1] if step.kind in GATES else prod(parameter.shape[1:])
            if step.kind == "ConvTranspose":  # what meets in one output
                fan = max(1, step.sizes[0] * step.kernel**2 // step.stride**2)
            drawn = (2 * rng.uniform(tuple(parameter.shape)) - 1) * np.sqrt(3 / fan)
            parameter.copy_(
                torch.zeros_like(parameter) if "bias" in name else torch.from_numpy(drawn.astype(np.float32))
            )


def weights_of(chain: Any) -> Weights:
    """A chain's weights by step: "conv1.weight"."""
    return {name.removeprefix("layers."): value.detach().numpy().copy() for name, value in chain.state_dict().items()}


def write(graph: Graph, steps: Sequence[Step], weights: Weights) -> str:
    """Add the chain's nodes to a graph whose input is INPUT, and give the name of the last value."""
    value = INPUT
    for step in steps:
        name = step.name
        window: dict[str, Any] = {
            "kernel_shape": [step.kernel] * step.axes,
            "strides": [step.stride] * step.axes,
            "pads": [step.pad] * (2 * step.axes),
        }
        match step.kind:
            case "Gemm":
                parameters = [
                    graph.weight(f"{name}.weight", weights[f"{name}.weight"][:, :, 0]),
                    _bias(graph, name, weights),
                ]
                graph.add("Gemm", value, *parameters, name=name, transB=1)
            case "Conv" | "ConvTranspose":
                parameters = [graph.weight(f"{name}.weight", weights[f"{name}.weight"]), _bias(graph, name, weights)]
                graph.add(step.kind, value, *parameters, name=name, group=step.group, **window)
            case "MaxPool":
                graph.add("MaxPool", value, name=name, outputs=[name, f"{name}.places"],
                          kernel_shape=[step.kernel] * 2, strides=[step.kernel] * 2)  # fmt: skip
            case "MaxUnpool":
                graph.add("MaxUnpool", value, f"{step.also}.places", name=name,
                          kernel_shape=[step.kernel] * 2, strides=[step.kernel] * 2)  # fmt: skip
            case "RNN" | "LSTM" | "GRU":
                _write_recurrent(graph, step, value, weights)
            case "BatchNormalization":
                held = ("weight", "bias", "running_mean", "running_var")
                parameters = [graph.weight(f"{name}.{part}", weights[f"{name}.{part}"]) for part in held]
                graph.add("BatchNormalization", value, *parameters, name=name)
            case "LeakyRelu":
                graph.add("LeakyRelu", value, name=name, alpha=LEAK)
            case "Add":
                graph.add("Add", value, step.also, name=name)
            case "Reshape":
                graph.add("Reshape", value, graph.weight(f"{name}.shape", np.array([-1, *step.sizes])), name=name)
            case "GlobalAveragePool":
                graph.add(step.kind, value, name=f"{name}.mean")
                graph.add("Flatten", f"{name}.mean", name=name)
            case _:
                graph.add(step.kind, value, name=name)
        value = name
    return value


def _bias(graph: Graph, name: str, weights: Weights) -> str:
    return graph.weight(f"{name}.bias", weights[f"{name}.bias"])


def recurrent_weights(graph: Graph, step: Step, weights: Weights) -> list[str]:
    """The names of W, R and B, their gates in ONNX's order."""

    def ordered(kind: str, ending: str) -> np.ndarray:
        parts = np.split(weights[f"{step.name}.{kind}_l0{ending}"], len(GATES[step.kind]))
        return np.concatenate([parts[gate] for gate in GATES[step.kind]])

    ways = ["", "_reverse"] if step.both_ways else [""]
    w = np.stack([ordered("weight_ih", way) for way in ways])
    r = np.stack([ordered("weight_hh", way) for way in ways])
    b = np.stack([np.concatenate([ordered("bias_ih", way), ordered("bias_hh", way)]) for way in ways])
    return [graph.weight(f"{step.name}.{key}", array) for key, array in (("W", w), ("R", r), ("B", b))]


def _write_recurrent(graph: Graph, step: Step, value: str, weights: Weights) -> None:
    """Rows (batch, steps, inputs) to the last state of each direction, side by side."""
    attributes: dict[str, Any] = {"hidden_size": step.sizes[1]}
    if step.both_ways:
        attributes["direction"] = "bidirectional"
    if step.kind == "GRU":
        attributes["linear_before_reset"] = 1
    rows = graph.add("Transpose", value, name=f"{step.name}.steps", perm=[1, 0, 2])
    last = f"{step.name}.last"
    graph.add(step.kind, rows, *recurrent_weights(graph, step, weights), name=last, outputs=["", last], **attributes)
    graph.add("Transpose", last, name=f"{step.name}.ways", perm=[1, 0, 2])
    flat = graph.weight(f"{step.name}.flat", np.array([-1, (1 + step.both_ways) * step.sizes[1]]))
    graph.add("Reshape", f"{step.name}.ways", flat, name=step.name)
