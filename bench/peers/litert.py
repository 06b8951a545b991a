"""LiteRT with its default XNNPACK delegate, on a flat buffer written here: NHWC in and out, 2-d, layers in a line.

TensorFlow pads by scheme: VALID is none, SAME puts the odd element behind. Where a problem's padding is neither, a pad
operator stands before (XNNPACK merges it into a convolution).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quatrefoil.bench.peers import Package, Prepared, contiguous, first_line, on_planes
from quatrefoil.bench.peers.layers import Layer, Layers, in_line, layers_of
from quatrefoil.bench.tasks import Task
from quatrefoil.ops import conv
from quatrefoil.problem import Problem
from quatrefoil.registry import Availability, Reject

OPERATORS = ("conv", "qlinear_conv", "conv_transpose", "max_pool", "average_pool")
FUSED = {"Identity": 0, "Relu": 1}
TO_INT8 = 128
"""LiteRT's quantised activations are int8: uint8 values and zero points move down by this."""


class LiteRt:
    """The interpreter with so many threads."""

    name = "litert"
    title = "LiteRT with XNNPACK, NHWC"
    timed = "the invocation alone, on tensors of its own in NHWC"
    _package = Package("ai-edge-litert", ("ai_edge_litert", "flatbuffers"))

    def probe(self) -> Availability:
        return self._package.probe()

    @on_planes
    def prepare(self, task: Task, threads: int) -> Prepared | Reject:
        from ai_edge_litert import interpreter

        layers = layers_of(task)
        if isinstance(layers, Reject):
            return layers
        problems = [layer.problem for layer in layers.layers]
        if not all(p is not None and p.op in OPERATORS and p.input(0).rank == 4 for p in problems) or not in_line(
            layers
        ):
            return Reject("2-d convolutions, pools and chains of them alone are written for LiteRT")
        [x] = task.feeds.values()
        last = problems[-1]
        assert last is not None
        quantised = last.op == "qlinear_conv"
        if quantised and (x.dtype != np.uint8 or last.outputs[0].dtype != "uint8"):
            return Reject("quantised convolutions are measured with uint8 activations")
        flat = _FlatBuffer(x.shape, layers)
        for layer in layers.layers:
            refused = flat.add(layer)
            if refused is not None:
                return refused
        try:
            made = interpreter.Interpreter(model_content=flat.finished(), num_threads=threads)
            made.allocate_tensors()
            source = made.get_input_details()[0]["index"]

            def refill(inputs: Sequence[np.ndarray]) -> None:
                [values] = inputs
                nhwc = values.transpose(0, 2, 3, 1)
                given = (nhwc.astype(np.int16) - TO_INT8).astype(np.int8) if quantised else nhwc
                made.set_tensor(source, contiguous(given))

            refill([x])
            made.invoke()
        except (RuntimeError, ValueError) as error:
            return Reject(f"LiteRT refuses it: {first_line(error)}")
        index = made.get_output_details()[0]["index"]

        def outputs(_: object) -> list[np.ndarray | None]:
            y = made.get_tensor(index).transpose(0, 3, 1, 2)
            return [(y.astype(np.int16) + TO_INT8).astype(np.uint8) if quantised else np.ascontiguousarray(y)]

        return Prepared(self._package.probe().detail, made.invoke, outputs, refill=refill)


class _FlatBuffer:
    """A TensorFlow Lite model of one subgraph as it comes together."""

    def __init__(self, shape: Sequence[int], layers: Layers) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.layers = layers
        self.buffers = [schema.BufferT()]
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: list[Any] = []
        n, channels, height, width = shape
        first = layers.layers[0]
        self.quantised = first.problem is not None and first.problem.op == "qlinear_conv"
        self.scale: Any = self._value(first, conv.Q_X_SCALE) if self.quantised else 0
        self.zero: Any = self._value(first, conv.Q_X_ZERO) if self.quantised else 0
        self.current = self._activation((n, height, width, channels), self.scale, self.zero)

    def _value(self, layer: Layer, position: int) -> Any:
        array = self.layers.constant(layer.node, position)
        return 0 if array is None else array.reshape(-1)[0]

    def add(self, layer: Layer) -> Reject | None:
        problem = layer.problem
        assert problem is not None
        if layer.activation.name not in FUSED or (len(layer.node.inputs) == 4 and problem.op == "conv"):
            return Reject("activations other than ReLU and residuals are not measured in LiteRT")
        if problem.op == "conv_transpose":
            return self._transposed(layer, problem)
        if problem.op in ("max_pool", "average_pool"):
            return self._pool(problem)
        return self._convolution(layer, problem)

    def _tensor(self, shape: Sequence[int], data: np.ndarray | None, kind: str, scales: Any = None, zero: int = 0,
                axis: int = 0) -> int:  # fmt: skip
        tensor = self.schema.TensorT()
        tensor.shape, tensor.name = list(shape), f"t{len(self.tensors)}"
        tensor.type = getattr(self.schema.TensorType, kind)
        if scales is not None:
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale = [float(scale) for scale in np.reshape(scales, -1)]
            tensor.quantization.zeroPoint = [zero] * len(tensor.quantization.scale)
            tensor.quantization.quantizedDimension = axis
        if data is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.buffers.append(buffer)
            tensor.buffer = len(self.buffers) - 1
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _activation(self, shape: Sequence[int], scale: Any = 0, zero: Any = 0) -> int:
        if self.quantised:
            return self._tensor(shape, None, "INT8", scale, int(zero) - TO_INT8)
        return self._tensor(shape, None, "FLOAT32")

    def _emit(self, kind: str, inputs: list[int], output: int, options: Any, version: int = 1) -> None:
        code = self.schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(self.schema.BuiltinOperator, kind)
        code.version = version
        self.codes.append(code)
        operator = self.schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = len(self.codes) - 1, inputs, [output]
        name = type(options).__name__.removesuffix("T")
        operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, name)
        operator.builtinOptions = options
        self.operators.append(operator)
        self.current = output

    def _padded(
        self, problem: Problem, window: Sequence[int], lowest: float = 0.0, excluded: bool = False
    ) -> int | Reject:
        """The padding scheme; where it takes one, a pad operator is emitted first. ``excluded``: the padding is no
        part of an average, which SAME alone can say."""
        padding, pads = self.schema.Padding, problem.ints("pads")
        if not any(pads):
            return int(padding.VALID)
        x, y = problem.input(0).shape[2:], problem.outputs[0].shape[2:]
        same = True
        for axis in range(2):
            reach = (window[axis] - 1) * problem.ints("dilations")[axis] + 1
            total = max((y[axis] - 1) * problem.ints("strides")[axis] + reach - x[axis], 0)
            rounds = y[axis] == -(-x[axis] // problem.ints("strides")[axis])
            same &= rounds and (pads[axis], pads[axis + 2]) == (total // 2, total - total // 2)
        if same and (excluded or problem.op != "average_pool"):
            return int(padding.SAME)
        if excluded:
            return Reject("LiteRT cannot say this padding of an average that leaves the padding out")
        n, height, width, channels = self.tensors[self.current].shape
        widths = np.array([[0, 0], [pads[0], pads[2]], [pads[1], pads[3]], [0, 0]], np.int32)
        shape = (n, height + pads[0] + pads[2], width + pads[1] + pads[3], channels)
        amounts = self._tensor((4, 2), widths, "INT32")
        target = self._activation(shape, self.scale, self.zero)
        if lowest:
            value = self._tensor((), np.array(lowest, np.float32), "FLOAT32")
            self._emit("PADV2", [self.current, amounts, value], target, self.schema.PadV2OptionsT())
        else:
            self._emit("PAD", [self.current, amounts], target, self.schema.PadOptionsT(), 2 if self.quantised else 1)
        return int(padding.VALID)

    def _convolution(self, layer: Layer, problem: Problem) -> Reject | None:
        w = self.layers.constant(layer.node, conv.Q_W if self.quantised else conv.W)
        bias = self.layers.constant(layer.node, conv.Q_BIAS if self.quantised else conv.BIAS)
        assert w is not None
        channels, group = problem.input(0).shape[1], problem.integer("group")
        depthwise = group == channels == w.shape[0] and group > 1
        window = w.shape[2:]
        padding = self._padded(problem, window)
        if isinstance(padding, Reject):
            return padding
        n, m, height, width = problem.outputs[0].shape
        arranged = w[:, 0].transpose(1, 2, 0)[np.newaxis] if depthwise else w.transpose(0, 2, 3, 1)
        if self.quantised:
            scales = np.broadcast_to(np.reshape(self.layers.constant(layer.node, conv.Q_W_SCALE), -1), m)  # type: ignore[arg-type]
            zeros = self.layers.constant(layer.node, conv.Q_W_ZERO)
            if zeros is not None and zeros.any():
                return Reject("LiteRT's weights have no zero point")
            weight = self._tensor(arranged.shape, arranged, "INT8", scales, 0, 3 if depthwise else 0)
            offsets = np.zeros(m, np.int32) if bias is None else bias
            offset = self._tensor((m,), offsets, "INT32", self.scale * scales)
            self.scale, self.zero = (self._value(layer, i) for i in (conv.Q_Y_SCALE, conv.Q_Y_ZERO))
        else:
            weight = self._tensor(arranged.shape, arranged, "FLOAT32")
            offset = self._tensor((m,), np.zeros(m, np.float32) if bias is None else bias, "FLOAT32")
        options = self.schema.DepthwiseConv2DOptionsT() if depthwise else self.schema.Conv2DOptionsT()
        options.padding = padding
        options.strideH, options.strideW = problem.ints("strides")
        options.dilationHFactor, options.dilationWFactor = problem.ints("dilations")
        options.fusedActivationFunction = FUSED[layer.activation.name]
        if depthwise:
            options.depthMultiplier = 1
        target = self._activation((n, height, width, m), self.scale, self.zero)
        kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        self._emit(kind, [self.current, weight, offset], target, options, 3 if self.quantised else 1)
        return None

    def _pool(self, problem: Problem) -> Reject | None:
        mean = problem.op == "average_pool"
        if len(problem.outputs) > 1 or max(problem.ints("dilations")) > 1:
            return Reject("LiteRT's pools give no indices and have no dilation")
        if problem.integer("ceil_mode"):
            return Reject("pools whose size is rounded up are not measured in LiteRT")
        excluded = mean and not problem.integer("count_include_pad")
        padding = self._padded(problem, problem.ints("kernel_shape"), 0.0 if mean else -np.inf, excluded)
        if isinstance(padding, Reject):
            return padding
        options = self.schema.Pool2DOptionsT()
        options.padding = padding
        options.strideH, options.strideW = problem.ints("strides")
        options.filterHeight, options.filterWidth = problem.ints("kernel_shape")
        n, channels, height, width = problem.outputs[0].shape
        kind = "AVERAGE_POOL_2D" if mean else "MAX_POOL_2D"
        self._emit(kind, [self.current], self._activation((n, height, width, channels)), options)
        return None

    def _transposed(self, layer: Layer, problem: Problem) -> Reject | None:
        w, bias = self.layers.constant(layer.node, conv.W), self.layers.constant(layer.node, conv.BIAS)
        assert w is not None
        strides, pads = problem.ints("strides"), problem.ints("pads")
        x, (n, m, *y) = problem.input(0).shape[2:], problem.outputs[0].shape
        same = all(
            out == size * stride and pad == end == (kernel - stride) / 2
            for out, size, stride, pad, end, kernel in zip(y, x, strides, pads[:2], pads[2:], w.shape[2:])
        )
        if problem.integer("group") > 1 or max(problem.ints("dilations")) > 1 or (any(pads) and not same):
            return Reject("LiteRT cannot say this transposed convolution")
        options = self.schema.TransposeConvOptionsT()
        options.padding = self.schema.Padding.SAME if any(pads) else self.schema.Padding.VALID
        options.strideH, options.strideW = strides
        arranged = w.transpose(1, 2, 3, 0)
        shape = (n, *y, m)
        inputs = [
            self._tensor((4,), np.array(shape, np.int32), "INT32"),
            self._tensor(arranged.shape, arranged, "FLOAT32"),
            self.current,
            self._tensor((m,), np.zeros(m, np.float32) if bias is None else bias, "FLOAT32"),
        ]
        self._emit("TRANSPOSE_CONV", inputs, self._activation(shape), options, 3)
        return None

    def finished(self) -> bytes:
        import flatbuffers

        graph = self.schema.SubGraphT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = self.tensors, self.operators, [0], [self.current]
        model = self.schema.ModelT()
        model.version, model.subgraphs, model.buffers = 3, [graph], self.buffers
        model.operatorCodes, model.description = self.codes, "benchmark"
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


PEERS = (LiteRt(),)
