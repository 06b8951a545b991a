"""ncnn in float32, on a network written in its own parameter and weight format; batch 1, layers one after the other.

The format is a line a layer (kind, name, counts, blobs, numbered parameters) and the weights in the same order, each
convolution's led by a tag of four zero bytes for "float32".
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quatrefoil.bench.peers import Package, Prepared, contiguous, into, on_planes
from quatrefoil.bench.peers.layers import Layer, Layers, in_line, layers_of, symmetric
from quatrefoil.bench.tasks import Task
from quatrefoil.ops import conv, rnn
from quatrefoil.problem import Problem
from quatrefoil.registry import Availability, Reject

MAGIC = 7767517
FLOAT32 = bytes(4)
HALF_PRECISION = (
    "use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage", "use_int8_inference",
)  # fmt: skip
LSTM_GATES = (0, 2, 1, 3)
"""The places of ncnn's gates i f o c in ONNX's order."""
ACTIVATIONS = {"Identity": {}, "Relu": {9: "1"}}


class _Network:
    """Lines and weights as they come together."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.weights: list[bytes] = []
        self.blobs = 0

    def add(self, kind: str, sources: Sequence[str], targets: Sequence[str], parameters: dict[int, object]) -> None:
        blobs = " ".join((*sources, *targets))
        given = " ".join(f"{key}={value}" for key, value in parameters.items())
        self.blobs += len(targets)
        self.lines.append(f"{kind} layer{len(self.lines)} {len(sources)} {len(targets)} {blobs} {given}")

    def store(self, array: np.ndarray, tagged: bool = True) -> None:
        self.weights.append((FLOAT32 if tagged else b"") + np.ascontiguousarray(array, np.float32).tobytes())

    def text(self) -> str:
        return f"{MAGIC}\n{len(self.lines)} {self.blobs}\n" + "\n".join(self.lines) + "\n"


class Ncnn:
    """Winograd, packed layouts and so many threads."""

    name = "ncnn"
    title = "ncnn, float32, NCHW in its own matrices, batch 1"
    timed = "a new extractor, its run, and the conversion of the outputs from packed channels; inputs are shared"
    _package = Package("ncnn")

    def probe(self) -> Availability:
        return self._package.probe()

    @on_planes
    def prepare(self, task: Task, threads: int) -> Prepared | Reject:
        import ncnn

        layers = layers_of(task)
        if isinstance(layers, Reject):
            return layers
        first = layers.layers[0].problem
        if first is None or any(layer.problem is None for layer in layers.layers):
            return Reject("ncnn reads no ONNX: single operators and chains alone are written for it")
        recurrent = first.op in rnn.GATES
        if first.input(0).shape[1 if recurrent else 0] != 1:
            return Reject("ncnn computes batch 1")
        if not recurrent and not in_line(layers):
            return Reject("ncnn reads no ONNX: single operators and chains alone are written for it")
        network = _Network()
        if recurrent:
            wanted = _recurrent(network, layers, layers.layers[0], first)
            if isinstance(wanted, Reject):
                return wanted
            sources, targets = wanted
        else:
            network.add("Input", [], ["x0"], {})
            for number, layer in enumerate(layers.layers):
                refused = _layer(network, layers, layer, f"x{number}", f"x{number + 1}")
                if refused is not None:
                    return refused
            sources, targets = ["x0"], [f"x{len(layers.layers)}"]
        net = ncnn.Net()
        net.opt.num_threads = threads
        net.opt.use_vulkan_compute = False
        for option in HALF_PRECISION:
            setattr(net.opt, option, False)
        with tempfile.TemporaryDirectory() as folder:
            parameters, weights = Path(folder, "net.param"), Path(folder, "net.bin")
            parameters.write_text(network.text())
            weights.write_bytes(b"".join(network.weights))
            if net.load_param(str(parameters)) or net.load_model(str(weights)):
                return Reject("ncnn does not load it")
        # Matrices over arrays of ours: they keep no reference, and batch 1 has no axis.
        arrays = [contiguous(array[:, 0] if recurrent else array[0]) for array in task.feeds.values()]
        given = [(name, ncnn.Mat(array)) for name, array in zip(sources, arrays)]
        refill = into(array[:, np.newaxis] if recurrent else array[np.newaxis] for array in arrays)

        def run() -> list[Any]:
            extractor = net.create_extractor()
            for name, matrix in given:
                extractor.input(name, matrix)
            return [extractor.extract(name)[1] for name in targets]

        last = layers.layers[-1].problem
        assert last is not None

        def outputs(results: Any, kept: object = arrays) -> list[np.ndarray | None]:
            found = [np.array(matrix) for matrix in results]
            if recurrent:  # (T, D H) becomes (T, D, 1, H), which for one sequence needs no transposition
                return [array.reshape(tensor.shape) for array, tensor in zip(found, last.outputs)]
            return [found[0].reshape(last.outputs[0].shape)]

        return Prepared(self._package.probe().detail, run, outputs, refill=refill)


def _layer(network: _Network, layers: Layers, layer: Layer, source: str, target: str) -> Reject | None:
    problem = layer.problem
    assert problem is not None
    kinds: dict[str, Callable[..., Reject | None]] = {
        "conv": _convolution, "conv_transpose": _convolution, "max_pool": _pool, "average_pool": _pool,
    }  # fmt: skip
    if problem.op not in kinds:
        return Reject(f"{problem.op} is not measured in ncnn")
    if not symmetric(problem):
        return Reject("paddings that differ from side to side are not measured in ncnn")
    return kinds[problem.op](network, layers, layer, problem, source, target)


def _convolution(
    network: _Network, layers: Layers, layer: Layer, problem: Problem, source: str, target: str
) -> Reject | None:
    w, bias = layers.constant(layer.node, conv.W), layers.constant(layer.node, conv.BIAS)
    assert w is not None
    rank, group, transposed = w.ndim - 2, problem.integer("group"), problem.op == "conv_transpose"
    if layer.activation.name not in ACTIVATIONS or problem.has(conv.RESIDUAL):
        return Reject("activations other than ReLU and residuals are not measured in ncnn")
    if transposed:
        if group > 1:
            return Reject("grouped transposed convolutions are not measured in ncnn")
        w = np.swapaxes(w, 0, 1)
        full = [(n - 1) * s + (k - 1) * d + 1 - 2 * p for n, s, k, d, p in zip(
            problem.input(0).shape[2:], problem.ints("strides"), w.shape[2:], problem.ints("dilations"),
            problem.ints("pads"))]  # fmt: skip
        if tuple(full) != problem.outputs[0].shape[2:]:
            return Reject("output paddings are not measured in ncnn")
    kind = ("Deconvolution" if transposed else "Convolution") + ("DepthWise" if group > 1 else "")
    parameters: dict[int, object] = {0: w.shape[0], 5: int(bias is not None), 6: w.size}
    pads = problem.ints("pads")[:rank]
    for base, values in ((1, w.shape[2:]), (2, problem.ints("dilations")), (3, problem.ints("strides")), (4, pads)):
        for axis, value in enumerate(reversed(values)):  # width, then height at 10 more, then depth at 20 more
            parameters[base + 10 * axis] = value
    if group > 1:
        parameters[7] = group
    network.store(w)
    if bias is not None:
        network.store(bias, tagged=False)
    network.add(
        kind + {1: "1D", 2: "", 3: "3D"}[rank], [source], [target], parameters | ACTIVATIONS[layer.activation.name]
    )
    return None


def _pool(network: _Network, layers: Layers, layer: Layer, problem: Problem, source: str, target: str) -> Reject | None:
    rank = problem.input(0).rank - 2
    if len(problem.outputs) > 1 or max(problem.ints("dilations")) > 1:
        return Reject("indices and dilated pools are not measured in ncnn")
    if problem.integer("ceil_mode"):
        return Reject("pools whose size is rounded up are not measured in ncnn")
    mean = problem.op == "average_pool"
    parameters: dict[int, object] = {0: int(mean)}
    if problem.ints("kernel_shape") == problem.input(0).shape[2:] and not any(problem.ints("pads")):
        parameters[4] = 1
    else:
        for base, name in ((1, "kernel_shape"), (2, "strides"), (3, "pads")):
            for axis, value in enumerate(reversed(problem.ints(name)[:rank])):
                parameters[base + 10 * axis] = value
        if not mean or problem.integer("count_include_pad"):
            parameters[6] = 1
        parameters[5] = 1  # as many windows as fit
    network.add("Pooling" + {1: "1D", 2: "", 3: "3D"}[rank], [source], [target], parameters)
    return None


def _recurrent(
    network: _Network, layers: Layers, layer: Layer, problem: Problem
) -> tuple[list[str], list[str]] | Reject:
    geometry = rnn.geometry(problem)
    plain = rnn.DEFAULT_ACTIVATIONS[problem.op]
    if any(tuple(f.name for f in functions) != plain for functions in geometry.activations):
        return Reject("ncnn's recurrent layers have sigmoid and tanh alone")
    if problem.has(rnn.LENGTHS) or problem.has(rnn.P) or problem.number("clip") or geometry.reverse[0]:
        return Reject("ncnn's recurrent layers know no lengths, peepholes or clip")
    if geometry.input_forget or (problem.op == "gru" and not geometry.linear_before_reset):
        return Reject("ncnn's gates are coupled otherwise")
    w, r, b = (layers.constant(layer.node, position) for position in (rnn.W, rnn.R, rnn.B))
    assert w is not None and r is not None
    hidden, directions = geometry.hidden, geometry.directions
    both = np.zeros((directions, 2, w.shape[1]), np.float32) if b is None else b.reshape(directions, 2, -1)
    order = {"rnn": (0,), "lstm": LSTM_GATES, "gru": (1, 0, 2)}[problem.op]

    def ordered(array: np.ndarray) -> np.ndarray:
        gates = array.reshape(directions, geometry.gates, hidden, *array.shape[2:])
        return gates[:, list(order)].reshape(array.shape)

    inner, outer = ordered(both[:, 0]), ordered(both[:, 1])
    if problem.op == "gru":  # r and z have one bias, the candidate two
        biases = np.concatenate([(inner + outer)[:, : 2 * hidden], inner[:, 2 * hidden :], outer[:, 2 * hidden :]], 1)
    else:
        biases = inner + outer
    for array in (ordered(w), biases, ordered(r)):
        network.store(array)
    states = [i for i in (rnn.INITIAL_H, rnn.INITIAL_C) if problem.has(i)]
    sources = [f"x{number}" for number in range(1 + len(states))]
    targets = [f"y{number}" for number in range(len(sources))]
    for source in sources:
        network.add("Input", [], [source], {})
    network.add(problem.op.upper(), sources, targets, {0: hidden, 1: w.size, 2: 2 if directions == 2 else 0})
    return sources, targets


PEERS = (Ncnn(),)
