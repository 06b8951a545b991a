"""PyTorch in three forms, each called as its users would call it.

torch      eager, plain NCHW tensors; convolutions repack their weights in each call
torch_cl   eager, channels-last tensors and weights; quantised convolutions through its quantised operators
torch_pre  oneDNN's operators with weights packed once, ReLU and sums fused, channels-last: what its compiler emits for
           frozen models

A channels-last form gets its input and gives its output in that layout and pays for no change of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from quatrefoil.bench.peers import Package, Prepared, contiguous, first_line, on_planes
from quatrefoil.bench.peers.layers import Layer, Layers, layers_of, symmetric
from quatrefoil.bench.tasks import Task
from quatrefoil.models.passes.matching import attributes_of
from quatrefoil.ops import conv, rnn
from quatrefoil.ops.activations import IDENTITY, Activation
from quatrefoil.problem import Problem
from quatrefoil.registry import Availability, Reject

TORCH_GATES = {"rnn": (0,), "lstm": (0, 2, 3, 1), "gru": (1, 0, 2)}
"""The places of torch's gates in ONNX's order: LSTM i f c o, GRU r z h."""

Step = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class PyTorch:
    """One of the three forms."""

    name: str
    title: str
    channels_last: bool = False
    prepacked: bool = False
    timed: ClassVar = "the operators alone, on tensors in its layout; outputs newly allocated"

    def probe(self) -> Availability:
        return Package("torch").probe()

    @on_planes
    def prepare(self, task: Task, threads: int) -> Prepared | Reject:
        import torch

        torch.set_num_threads(threads)
        layers = layers_of(task)
        if isinstance(layers, Reject):
            return layers
        refused = self._refused(task, layers)
        if refused is not None:
            return refused
        _without_gradients()
        builder = _Builder(self, layers)
        steps = []
        for layer in layers.layers:
            step = builder.step(layer)
            if isinstance(step, Reject):
                return step
            steps.append(
                (step, [name for name in layer.node.inputs if name and name not in layers.constants],
                 [name for name in layer.node.outputs if name])
            )  # fmt: skip
        quantised = task.problem is not None and task.problem.op == "qlinear_conv"

        def tensor(array: np.ndarray) -> Any:
            x = builder.brought(torch.from_numpy(contiguous(array)))
            return builder.quantised_input(layers.layers[0], x) if quantised else x

        inputs = {name: tensor(array) for name, array in task.feeds.items()}

        def refill(arrays: Sequence[np.ndarray]) -> None:
            for x, array in zip(inputs.values(), arrays, strict=True):
                x.copy_(tensor(array))

        run = _program(steps, inputs, layers.outputs)
        try:
            run()
        except RuntimeError as error:
            return Reject(f"torch refuses it: {first_line(error)}")
        recurrent = task.problem if task.problem is not None and task.problem.op in rnn.GATES else None
        return Prepared(self.probe().detail, run, lambda results: _arrays(results, recurrent), refill=refill)

    def _refused(self, task: Task, layers: Layers) -> Reject | None:
        ops = [layer.problem.op for layer in layers.layers if layer.problem is not None]
        if self.prepacked and "conv" not in ops:
            return Reject("it differs from torch_cl in convolutions alone")
        if self.channels_last and any(op in rnn.GATES for op in ops):
            return Reject("recurrent layers have no channels; measured as torch")
        if self.channels_last and next(iter(task.feeds.values())).ndim == 3:
            return Reject("1-d tensors have no channels-last form; measured as torch")
        if "qlinear_conv" in ops and (self.prepacked or not self.channels_last):
            return Reject("quantised convolutions are measured as torch_cl")
        return None


@cache
def _without_gradients() -> Any:
    """Inference mode for the rest of this process; it ends when what is returned is forgotten."""
    import torch

    mode = torch.inference_mode()
    mode.__enter__()
    return mode


def _program(
    steps: Sequence[tuple[Step, list[str], list[str]]], inputs: Mapping[str, Any], wanted: Sequence[str]
) -> Callable[[], list[Any]]:
    """Runs the steps on the inputs; a value goes when nobody reads it again."""
    if len(steps) == 1:
        [(only, sources, _)] = steps
        given = [inputs[name] for name in sources]

        def run_one() -> list[Any]:
            result = only(*given)
            return list(result) if isinstance(result, tuple) else [result]

        return run_one
    last = {name: number for number, (_, sources, _) in enumerate(steps) for name in sources}
    ends = [[name for name in set(sources) if last[name] == number] for number, (_, sources, _) in enumerate(steps)]

    def run() -> list[Any]:
        values = dict(inputs)
        for (step, sources, targets), done in zip(steps, ends):
            values[targets[0]] = step(*[values[name] for name in sources])
            for name in done:
                del values[name]
        return [values[name] for name in wanted]

    return run


def _arrays(results: Any, recurrent: Problem | None) -> list[np.ndarray | None]:
    """Torch's tensors as the model's outputs; a recurrent layer's directions get an axis of their own."""
    if recurrent is None:
        return [(y.int_repr() if y.is_quantized else y).contiguous().numpy() for y in results]
    y, state = results
    steps, directions, batch, hidden = recurrent.outputs[0].shape
    arranged = y.reshape(steps, batch, directions, hidden).permute(0, 2, 1, 3)
    states = state if isinstance(state, tuple) else (state,)
    return [value.contiguous().numpy() for value in (arranged, *states)]


class _Builder:
    """Turns layers into functions of tensors."""

    def __init__(self, form: PyTorch, layers: Layers) -> None:
        self.form = form
        self.layers = layers

    def step(self, layer: Layer) -> Step | Reject:
        problem = layer.problem
        if problem is None:
            return self._of_onnx(layer)
        if problem.op in ("conv", "conv_transpose"):
            return self._convolution(layer, problem)
        if problem.op == "qlinear_conv":
            return self._quantised(layer, problem)
        if problem.op in ("max_pool", "average_pool"):
            return _pool(problem)
        if problem.op in rnn.GATES:
            return self._recurrent(layer, problem)
        return Reject(f"{problem.op} is not measured in torch")

    def tensor(self, layer: Layer, position: int) -> Any:
        import torch

        array = self.layers.constant(layer.node, position)
        return None if array is None else torch.from_numpy(contiguous(array))

    def brought(self, x: Any) -> Any:
        """The tensor in the form's layout."""
        import torch

        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return x.contiguous(memory_format=formats[x.dim()]) if self.form.channels_last and x.dim() in formats else x

    def quantised_input(self, layer: Layer, x: Any) -> Any:
        import torch

        scale, zero = (self.layers.constant(layer.node, i) for i in (conv.Q_X_SCALE, conv.Q_X_ZERO))
        assert scale is not None and zero is not None
        return torch._make_per_tensor_quantized_tensor(x, float(scale), int(zero))

    def _convolution(self, layer: Layer, problem: Problem) -> Step | Reject:
        import torch.nn.functional as F

        w, bias, activation = self.tensor(layer, conv.W), self.tensor(layer, conv.BIAS), layer.activation
        rank, strides, dilations = problem.input(0).rank - 2, problem.ints("strides"), problem.ints("dilations")
        begin, end = problem.ints("pads")[:rank], problem.ints("pads")[rank:]
        around = [pad for axis in reversed(range(rank)) for pad in (begin[axis], end[axis])]
        pads = begin if symmetric(problem) else (0,) * rank
        group = problem.integer("group")
        residual = len(layer.node.inputs) > conv.RESIDUAL and bool(layer.node.inputs[conv.RESIDUAL])
        if problem.op == "conv_transpose":
            if not symmetric(problem):
                return Reject("torch pads a transposed convolution alike on both sides")
            f: Step = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
            full = [(n - 1) * s + (k - 1) * d + 1 - 2 * p for n, s, k, d, p in
                    zip(problem.input(0).shape[2:], strides, w.shape[2:], dilations, pads)]  # fmt: skip
            more = [y - have for y, have in zip(problem.outputs[0].shape[2:], full)]
            w = self.brought(w)
            return _followed(lambda x: f(x, w, bias, strides, pads, more, group, dilations), activation, residual)
        if self.form.prepacked and activation.name in POINTWISE:
            shape = list(problem.input(0).shape)
            if not symmetric(problem):
                shape[2:] = [n + b + e for n, b, e in zip(shape[2:], begin, end)]
            step: Step | Reject = _prepacked(w, bias, shape, pads, strides, dilations, group, activation, residual)
        else:
            f = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
            w = self.brought(w)
            step = _followed(lambda x: f(x, w, bias, strides, pads, dilations, group), activation, residual)
        if symmetric(problem) or isinstance(step, Reject):
            return step
        inner = step
        return lambda x, *more: inner(F.pad(x, around), *more)

    def _quantised(self, layer: Layer, problem: Problem) -> Step | Reject:
        import torch

        values = [self.layers.constant(layer.node, position) for position in range(len(layer.node.inputs))]
        x_scale, y_scale, y_zero = values[conv.Q_X_SCALE], values[conv.Q_Y_SCALE], values[conv.Q_Y_ZERO]
        w, w_scale, w_zero = values[conv.Q_W], values[conv.Q_W_SCALE], values[conv.Q_W_ZERO]
        assert x_scale is not None and y_scale is not None and w is not None and w_scale is not None
        if problem.dtype != "uint8" or problem.outputs[0].dtype != "uint8" or w.dtype != np.int8:
            return Reject("torch's quantised convolution takes uint8 activations and int8 weights")
        if not symmetric(problem) or problem.input(0).rank != 4:
            return Reject("torch's quantised convolution is 2-d and pads alike on both sides")
        torch.backends.quantized.engine = "x86"
        channels = w.shape[0]
        scales = np.broadcast_to(w_scale.reshape(-1), channels).astype(np.float64)
        zeros = np.broadcast_to(np.zeros(1) if w_zero is None else w_zero.reshape(-1), channels).astype(np.int64)
        packed = torch._make_per_channel_quantized_tensor(
            torch.from_numpy(contiguous(w)), torch.from_numpy(scales), torch.from_numpy(zeros), 0
        )
        bias = values[conv.Q_BIAS] if len(values) > conv.Q_BIAS else None
        real = None if bias is None else torch.from_numpy((bias * (x_scale * scales)).astype(np.float32))
        strides, pads, dilations = (list(problem.ints(name)) for name in ("strides", "pads", "dilations"))
        packed = torch.ops.quantized.conv2d_prepack(
            packed, real, strides, pads[:2], dilations, problem.integer("group")
        )
        scale, zero, f = float(y_scale), 0 if y_zero is None else int(y_zero), torch.ops.quantized.conv2d
        return lambda x: f(x, packed, scale, zero)

    def _recurrent(self, layer: Layer, problem: Problem) -> Step | Reject:
        import torch

        geometry = rnn.geometry(problem)
        plain = tuple(name for name in rnn.DEFAULT_ACTIVATIONS[problem.op])
        if any(tuple(f.name for f in functions) != plain for functions in geometry.activations):
            return Reject("torch's recurrent layers have sigmoid and tanh alone")
        if problem.has(rnn.LENGTHS) or problem.has(rnn.P) or problem.number("clip") or geometry.reverse[0]:
            return Reject("torch's recurrent layers know no lengths, peepholes, clip or lone reverse direction")
        if geometry.input_forget or (problem.op == "gru" and not geometry.linear_before_reset):
            return Reject("torch's gates are coupled otherwise")
        kinds = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
        module = kinds[problem.op](geometry.inputs, geometry.hidden, bidirectional=geometry.directions == 2).eval()
        w, r, b = (self.layers.constant(layer.node, position) for position in (rnn.W, rnn.R, rnn.B))
        assert w is not None and r is not None
        rows = w.shape[1]
        for direction in range(geometry.directions):
            halves = np.zeros((2, rows), np.float32) if b is None else b[direction].reshape(2, rows)
            parts = {"weight_ih": w[direction], "weight_hh": r[direction], "bias_ih": halves[0], "bias_hh": halves[1]}
            for name, array in parts.items():
                gates = np.split(array, geometry.gates)
                ordered = np.concatenate([gates[place] for place in TORCH_GATES[problem.op]])
                target = getattr(module, f"{name}_l0{'_reverse' if direction else ''}")
                target.data.copy_(torch.from_numpy(ordered))
        return lambda x, *states: module(x, (states if len(states) > 1 else states[0]) if states else None)

    def _of_onnx(self, layer: Layer) -> Step | Reject:
        """What networks have between convolutions and pools, by its ONNX name."""
        import torch
        import torch.nn.functional as F

        node, given = layer.node, attributes_of(layer.node)
        constants = [self.tensor(layer, position) for position in range(len(node.inputs))]
        kind = node.kind
        if kind in ("Add", "Sum", "Mul"):
            f = torch.mul if kind == "Mul" else torch.add
            fixed = next((constant for constant in constants if constant is not None), None)
            if fixed is None:
                return f
            if given.get("axis") == 1:  # an old operator set's way of aligning a vector with the channels
                fixed = fixed.reshape(-1, 1, 1)
            return lambda x: f(x, fixed)
        if kind == "BatchNormalization":
            scale, offset, mean, variance = constants[1:5]
            factor = (scale / torch.sqrt(variance + given.get("epsilon", 1e-5))).reshape(1, -1, 1, 1)
            shift = (offset - mean * factor.reshape(-1)).reshape(1, -1, 1, 1)
            return lambda x: torch.addcmul(shift, x, factor)
        if kind == "Gemm":
            w = constants[1] if given.get("transB") else constants[1].t()
            return lambda x: F.linear(x, w, constants[2])
        if kind == "Concat":
            return lambda *parts: torch.cat(parts, given["axis"])
        if kind == "Reshape":
            shape = constants[1].tolist()
            return lambda x: x.reshape([x.shape[i] if extent == 0 else extent for i, extent in enumerate(shape)])
        if kind == "Transpose":
            return lambda x: x.permute(*given["perm"])
        if kind == "LRN":
            size, alpha, beta, bias = given["size"], given["alpha"], given["beta"], given.get("bias", 1.0)
            return lambda x: F.local_response_norm(x, size, alpha, beta, bias)
        simple: dict[str, Step] = {
            "Relu": torch.relu,
            "Flatten": lambda x: x.flatten(given.get("axis", 1)),
            "Dropout": lambda x: x,
            "Softmax": lambda x: torch.softmax(x, given.get("axis", -1)),
        }
        return simple[kind] if kind in simple else Reject(f"ONNX's {kind} has no counterpart here")


POINTWISE = {"Identity": "none", "Relu": "relu", "Clip": "hardtanh"}
"""oneDNN's names of the activations that its fused convolution takes."""


def _prepacked(
    w: Any, bias: Any, shape: Sequence[int], pads: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    group: int, activation: Activation, residual: bool,
) -> Step:  # fmt: skip
    import torch

    packed = torch.ops.mkldnn._reorder_convolution_weight(w, pads, strides, dilations, group, shape)
    name = POINTWISE[activation.name]
    scalars = [activation.alpha, activation.beta] if name == "hardtanh" else []
    f = torch.ops.mkldnn._convolution_pointwise
    if not residual:
        return lambda x: f(x, packed, bias, pads, strides, dilations, group, name, scalars, "")
    fused = None if name == "none" else name
    return lambda x, other: f.binary(
        x, other, packed, bias, pads, strides, dilations, group, "add", 1.0, fused, scalars, ""
    )


def _followed(step: Step, activation: Activation, residual: bool) -> Step | Reject:
    """The step, then the addition of a residual, then the activation, in place."""

    low, high = activation.alpha, activation.beta
    functions: dict[str, Step] = {"Relu": lambda y: y.relu_(), "Clip": lambda y: y.clamp_(low, high)}
    if activation != IDENTITY and activation.name not in functions:
        return Reject(f"{activation.name} is not measured in torch")
    act: Step = functions.get(activation.name, lambda y: y)
    if residual:
        return lambda x, other: act(step(x).add_(other))
    return step if activation == IDENTITY else lambda x: act(step(x))


def _pool(problem: Problem) -> Step | Reject:
    import torch
    import torch.nn.functional as F

    rank = problem.input(0).rank - 2
    kernel, strides, dilations = (problem.ints(name) for name in ("kernel_shape", "strides", "dilations"))
    begin, end = problem.ints("pads")[:rank], problem.ints("pads")[rank:]
    if len(problem.outputs) > 1:
        return Reject("indices are not measured in torch")
    mean = problem.op == "average_pool"
    if mean and kernel == problem.input(0).shape[2:] and not any(problem.ints("pads")):
        f = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[rank - 1]
        return lambda x: f(x, 1)
    if mean and max(dilations) > 1:
        return Reject("torch's average pool has no dilation")
    include = mean and bool(problem.integer("count_include_pad"))
    if mean:
        average: Step = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]

        def pool(x: Any, pads: Sequence[int], ceil: bool) -> Any:
            return average(x, kernel, strides, pads, ceil, include)
    else:
        largest: Step = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]

        def pool(x: Any, pads: Sequence[int], ceil: bool) -> Any:
            return largest(x, kernel, strides, pads, dilations, ceil)

    # a window that reaches further over the end than over the beginning is torch's ceil_mode too, where shapes agree
    ceil = not symmetric(problem) or bool(problem.integer("ceil_mode"))
    sizes = zip(problem.input(0).shape[2:], kernel, strides, dilations, begin)
    shape = tuple(_pooled(n, k, s, d, pad, ceil) for n, k, s, d, pad in sizes)
    if shape == problem.outputs[0].shape[2:] and not (ceil and include):
        return lambda x: pool(x, begin, ceil)
    if problem.integer("ceil_mode"):
        return Reject("torch cannot say this padding")
    around = [pad for axis in reversed(range(rank)) for pad in (begin[axis], end[axis])]
    unpadded = (0,) * rank
    if mean and not include:
        ones = torch.ones((1, 1, *problem.input(0).shape[2:]))
        correction = 1 / pool(F.pad(ones, around), unpadded, False)  # of the whole window to what of it is no padding
        return lambda x: pool(F.pad(x, around), unpadded, False) * correction
    value = 0.0 if mean else -np.inf
    return lambda x: pool(F.pad(x, around, value=value), unpadded, False)


def _pooled(size: int, kernel: int, stride: int, dilation: int, pad: int, ceil: bool) -> int | None:
    """The size that torch's pools give; None where they refuse."""
    free = size + 2 * pad - dilation * (kernel - 1) - 1
    if free < 0 or 2 * pad > kernel:
        return None
    steps = -(-free // stride) if ceil else free // stride
    return steps + 1 - (ceil and steps * stride >= size + pad)  # no window begins behind the input


PEERS = (
    PyTorch("torch", "PyTorch eager, NCHW, weights repacked in each call"),
    PyTorch("torch_cl", "PyTorch eager, channels-last", channels_last=True),
    PyTorch("torch_pre", "PyTorch's oneDNN operators, channels-last, weights packed once, ReLU fused", True, True),
)
