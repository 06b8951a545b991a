"""A float model as an ONNX model in 8-bit integers, whose scales choose themselves on sample data.

    made = quantize_int8("model.onnx", samples)
    made.save("model.int8.onnx")

Convolutions, Gemm and MatMul with constant weights get QuantizeLinear and DequantizeLinear around them (QDQ), which runtimes
turn into integer kernels: weights int8, symmetric, with a scale for each output channel; values uint8 with a zero point, one
scale for each; biases int32 with the scale of the products. A value that pools and reshapes only pass on keeps its scale. Of
the ranges that are tried, from all of it to half, each scale's has the least squared error, as in ``calibration``.

The scheme is that of Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only
inference (2018), with a scale for each channel as in Krishnamoorthi, Quantizing deep convolutional networks for efficient
inference (2018).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper, version_converter

from quatrefoil.models.fixed.calibration import DIVERGED, SAMPLED, agreement, relative
from quatrefoil.models.fixed.quantized import has_quantizers
from quatrefoil.models.graph import ModelError, Value
from quatrefoil.models.host.normalization import folded
from quatrefoil.models.importing import load_graph, read_model
from quatrefoil.models.model import Model, load
from quatrefoil.models.passes import fold_constants

OPSET: Final = 13
"""From which on QuantizeLinear and DequantizeLinear have a scale for each channel."""

PASSING: Final = ("MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity")
"""What values go through without being computed anew."""

SHARES: Final = np.linspace(1.0, 0.5, 11)
"""Of the range, which are tried."""

LARGEST_BIAS: Final = 2**30


@dataclass(frozen=True, slots=True)
class Int8Layer:
    """What a layer got, and what that does on the samples.

    scales        of the weights: least and greatest; channels: how many there are
    low, high     that the layer's results can have as bytes; None where they stay floats
    cut_off       results of the float model beyond these, of ``values``
    error         of its results, root mean square over the float model's, everything before it quantized too
    weight_error  of its weights alone
    """

    name: str
    operator: str
    channels: int
    scales: tuple[float, float]
    low: float | None
    high: float | None
    cut_off: int
    values: int
    error: float
    weight_error: float


@dataclass(frozen=True)
class Int8Quantization:
    """A model in 8-bit integers.

    proto       as ONNX; layers: those that are quantized; left: nodes with weights that stay in floating point, and why
    error       of the outputs, root mean square over the float model's
    agreement   the share of samples whose greatest output is the same, None where outputs are no scores
    """

    proto: ModelProto
    layers: tuple[Int8Layer, ...]
    left: Mapping[str, str]
    error: float
    agreement: float | None

    @cached_property
    def model(self) -> Model:
        return load(self.proto)

    @property
    def first_diverging(self) -> Int8Layer | None:
        """The first layer whose error is more than a tenth of its values."""
        return next((layer for layer in self.layers if layer.error > DIVERGED), None)

    def save(self, path: str | os.PathLike[str]) -> None:
        onnx.save(self.proto, os.fspath(path))

    @property
    def summary(self) -> str:
        """In a sentence or two."""
        text = f"{len(self.layers)} layers in 8 bits, error {self.error:.3%}"
        if self.agreement is not None:
            text += f", same greatest output on {self.agreement:.2%} of the samples"
        if self.first_diverging is not None:
            text += f"; {self.first_diverging.name} is the first layer that is more than {DIVERGED:.0%} off"
        return text + "".join(f"; {name} stays in floating point: {why}" for name, why in self.left.items())


@dataclass(frozen=True, slots=True)
class Scale:
    """Of values: bytes are value / scale + zero."""

    scale: np.float32
    zero: int

    def ends(self) -> tuple[float, float]:
        return (0 - self.zero) * float(self.scale), (255 - self.zero) * float(self.scale)


@dataclass(frozen=True, slots=True)
class Scales:
    """Of a model: those of values by the values' names, those of weights by the layers' names."""

    values: Mapping[str, Scale]
    weights: Mapping[str, np.ndarray]


def quantize_int8(
    model: str | os.PathLike[str] | bytes | ModelProto,
    samples: Mapping[str, Any] | Any,
    *,
    per_channel: bool = True,
    scales: Scales | None = None,
) -> Int8Quantization:
    """An ONNX model in 8-bit integers, its scales chosen on samples.

    model: a path, or what ``load`` takes. samples: inputs as for ``Model.run``, batch first; some hundred do. per_channel:
    a scale for each output channel of the weights, else one for all; weights by a codebook (``Gather``) have one for all, and
    stay so, with a codebook of bytes. scales: in place of those chosen.

    Raises ModelError for a model that is quantized already, that has no layer to quantize, or whose values are not finite
    on the samples.
    """
    proto = recent(read_model(model))
    if has_quantizers(proto):
        raise ModelError("the model is quantized already (QuantizeLinear or Quant nodes); give its float version")
    # scales that were trained are those of weights as they are
    writer = _Writer(proto if scales is not None else normalized(proto), samples, per_channel, given=scales)
    writer.write()
    return writer.result()


def normalized(proto: ModelProto) -> ModelProto:
    """The model with each BatchNormalization that alone reads a convolution in the convolution's weights and bias, computed in
    float64 and rounded once."""
    made = ModelProto()
    made.CopyFrom(proto)
    graph = made.graph
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    makers = {node.output[0]: node for node in graph.node if node.op_type == "Conv"}
    gone = []
    for node in graph.node:
        conv = makers.get(node.input[0]) if node.op_type == "BatchNormalization" and len(node.output) == 1 else None
        if (
            conv is None
            or uses[node.input[0]] > 1
            or any(name not in constants for name in (*conv.input[1:], *node.input[1:]))
        ):
            continue
        training = any(item.name == "training_mode" and item.i for item in node.attribute)
        weight, *bias = (constants[name] for name in conv.input[1:])
        if training or weight.dtype != np.float32:
            continue
        epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5)
        factor, offset = folded([constants[name].astype(np.float64) for name in node.input[1:]], epsilon)
        moved = weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), offset + factor * (bias[0] if bias else 0)
        names = [f"{conv.output[0]}.normalized.{part}" for part in ("weight", "bias")]
        graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for a, n in zip(moved, names))
        del conv.input[1:]
        conv.input.extend(names)
        conv.output[0] = node.output[0]
        gone.append(node)
    for node in gone:
        graph.node.remove(node)
    return made


FACTOR: Final = ".factor"


def rounded(proto: ModelProto, samples: Mapping[str, Any] | Any, per_channel: bool = True) -> tuple[ModelProto, Scales]:
    """A model to train for 8-bit integers, and the scales that it begins with: what ``quantize_int8`` would write by these scales,
    but that weights are floating-point constants of their own names which are rounded in each run, that biases are not, and
    that each scale is multiplied by a constant of 1, whose name ends in FACTOR."""
    writer = _Writer(recent(proto), samples, per_channel, training=True)
    writer.write()
    weights = {layer.node.name: layer.scales for layer in writer.layers}
    return writer.proto, Scales(writer.scales, weights)


def trained(scales: Scales, factors: Mapping[str, np.ndarray]) -> Scales:
    """The scales after training, from the constants of ``rounded`` that end in FACTOR."""

    def factor(name: str) -> np.ndarray:
        return factors.get(f"{name}.scale{FACTOR}", np.ones(1, np.float32))

    values = {name: Scale(np.float32(each.scale * factor(name)[0]), each.zero) for name, each in scales.values.items()}
    weights = {name: (each * factor(f"{name}.weight")).astype(np.float32) for name, each in scales.weights.items()}
    return Scales(values, weights)


def recent(proto: ModelProto, opset: int = OPSET) -> ModelProto:
    """The model itself, or where its operator set is older, in this one. Raises ModelError where onnx cannot convert it."""
    version = next((item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")), 1)
    if version >= opset:
        return proto
    try:
        return version_converter.convert_version(proto, opset)
    except (RuntimeError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"the model has operator set {version}, and onnx cannot convert it to {opset}: {error}"
        ) from None


@dataclass
class _Layer:
    node: NodeProto
    weight: np.ndarray
    axis: int
    """Of the weights' output channels."""
    result: str
    book: NodeProto | None = None
    """The Gather that makes the weights of a codebook."""
    scales: np.ndarray = field(default_factory=lambda: np.ones(1, np.float32))
    weight_error: float = 0.0


@dataclass
class _Writer:
    source: ModelProto
    samples: Mapping[str, Any] | Any
    per_channel: bool
    given: Scales | None = None
    training: bool = False
    left: dict[str, str] = field(default_factory=dict)
    scales: dict[str, Scale] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.proto = ModelProto()
        self.proto.CopyFrom(self.source)
        graph = self.proto.graph
        for number, node in enumerate(graph.node):
            node.name = node.name or f"{node.op_type}_{number}"
        self.constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        self.constants |= {
            node.output[0]: numpy_helper.to_array(attribute.t)
            for node in graph.node if node.op_type == "Constant"
            for attribute in node.attribute if attribute.name == "value"
        }  # fmt: skip
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.folded = fold_constants(load_graph(self.proto)).constants
        self.layers = [layer for node in graph.node if (layer := self.layer(node)) is not None]
        if not self.layers:
            raise ModelError(
                "the model has no Conv, Gemm or MatMul with constant weights, which are what is quantized"
                + "".join(f"; {name}: {why}" for name, why in self.left.items())
            )
        self.values = {name: made for layer in self.layers for name in (layer.node.input[0], layer.result)
                       if (made := self.root(name)) not in self.constants}  # fmt: skip
        self.floats = Model(load_graph(self.proto), optimized=False)
        wanted = {*self.values.values(), *(layer.result for layer in self.layers)}
        self.expected = _finite(self.floats.run(self.samples, backend="cpu"))
        self.exact = _traced(self.floats, wanted, self.samples)

    def layer(self, node: NodeProto) -> _Layer | None:
        if node.op_type not in ("Conv", "Gemm", "MatMul", "ConvTranspose") or node.domain not in ("", "ai.onnx"):
            return None
        name = node.input[1] if len(node.input) > 1 else ""
        book = self.book(name)
        weight = self.constants.get(name) if book is None else self.folded[name]
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        why = ""
        if node.op_type == "ConvTranspose":
            why = "a ConvTranspose has no integer kernel"
        elif weight is None:
            why = "its weights are computed"
        elif weight.dtype != np.float32 or (node.op_type == "MatMul" and weight.ndim != 2):
            why = f"its weights are {weight.dtype} {weight.shape}"
        elif attributes.get("transA") or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
            why = "it multiplies by alpha or beta, or transposes its input"
        elif not np.isfinite(weight).all():
            why = "its weights are not finite"
        if why:
            if weight is not None or node.op_type != "MatMul":
                self.left[node.name] = why
            return None
        assert weight is not None
        axis = 0 if node.op_type == "Conv" or attributes.get("transB") else 1
        [result] = node.output
        after = self.readers.get(result, [])
        if len(after) == 1 and after[0].op_type in ("Relu", "Clip") and result not in self.outputs:
            result = after[0].output[0]
        return _Layer(node, weight, axis, result, book)

    def book(self, name: str) -> NodeProto | None:
        """What makes a weight of a codebook that nothing else reads."""
        maker = self.makers.get(name)
        if maker is None or maker.op_type != "Gather" or name not in self.folded or len(self.readers[name]) > 1:
            return None
        values = self.constants.get(maker.input[0])
        return maker if values is not None and values.ndim == 1 and len(self.readers[maker.input[0]]) == 1 else None

    @cached_property
    def outputs(self) -> set[str]:
        return {value.name for value in self.proto.graph.output}

    def root(self, name: str) -> str:
        """The value whose scale a value has."""
        maker = self.makers.get(name)
        return self.root(maker.input[0]) if maker is not None and maker.op_type in PASSING else name

    def write(self) -> None:
        chosen = {} if self.given is None else self.given.values
        self.scales = {
            root: chosen.get(root) or _value_scale(self.exact[root]) for root in dict.fromkeys(self.values.values())
        }
        for layer in self.layers:
            self.quantize_weights(layer)
        # each value that is read as bytes, and those that it passed through on the way
        pairs = {}
        for name in self.values:
            while True:
                pairs[name] = self.scales[self.root(name)]
                maker = self.makers.get(name)
                if maker is None or maker.op_type not in PASSING:
                    break
                name = maker.input[0]
        renamed = {name: self.pair(name, scale) for name, scale in pairs.items() if self.readers.get(name)}
        inside = {id(layer.node) for layer in self.layers}
        for node in self.source_nodes:
            for place, name in enumerate(node.input):
                if name in renamed and (place == 0 or id(node) not in inside):
                    node.input[place] = renamed[name]
        self.sort()

    @cached_property
    def source_nodes(self) -> list[NodeProto]:
        return list(self.proto.graph.node)

    @cached_property
    def made(self) -> set[str]:
        return set()

    @cached_property
    def added(self) -> list[NodeProto]:
        return []

    def constant(self, name: str, array: np.ndarray) -> str:
        if name not in self.made:
            self.made.add(name)
            self.proto.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def scale(self, name: str, array: np.ndarray) -> str:
        """A scale, which training multiplies."""
        if not self.training:
            return self.constant(name, array)
        if name not in self.made:
            factors = [
                self.constant(f"{name}.first", array),
                self.constant(name + FACTOR, np.ones(max(array.size, 1), np.float32)),
            ]
            if not array.ndim:
                factors[1] = f"{name}.once"
                self.added.append(helper.make_node("Squeeze", [name + FACTOR], [factors[1]], f"{name}.squeeze"))
            self.made.add(name)
            self.added.append(helper.make_node("Mul", factors, [name], f"{name}.multiply"))
        return name

    def pair(self, name: str, scale: Scale) -> str:
        """Nodes that turn a value into bytes and back."""
        root = self.root(name)
        given = [self.scale(f"{root}.scale", np.array(scale.scale, np.float32)),
                 self.constant(f"{root}.zero", np.array(scale.zero, np.uint8))]  # fmt: skip
        as_bytes, back = f"{name}.bytes", f"{name}.dequantized"
        self.added.append(helper.make_node("QuantizeLinear", [name, *given], [as_bytes], f"{name}.quantize"))
        self.added.append(helper.make_node("DequantizeLinear", [as_bytes, *given], [back], f"{name}.dequantize"))
        return back

    def quantize_weights(self, layer: _Layer) -> None:
        node, weight, axis = layer.node, layer.weight, layer.axis
        rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        split = self.per_channel and layer.book is None
        source = weight if layer.book is None else self.constants[layer.book.input[0]]
        if self.given is not None and node.name in self.given.weights:
            scales = self.given.weights[node.name].astype(np.float64)
        else:
            scales = np.array([_weight_scale(row) for row in (rows if split else source.reshape(1, -1))])
        x = self.scales[self.root(node.input[0])]
        bias = self.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if bias is not None and bias.shape == (len(rows),):
            # no sum may leave 32 bits by its bias
            least = np.abs(bias.astype(np.float64)) / (float(x.scale) * LARGEST_BIAS)
            scales = np.maximum(scales, least if split else least.max())
        layer.scales = scales.astype(np.float32)
        whole = layer.scales.astype(np.float64)
        along = whole.reshape(-1, *[1] * (source.ndim - 1)) if layer.book is None else whole
        moved = source if layer.book is not None else np.moveaxis(source, axis, 0)
        integers = np.clip(np.rint(moved / along), -127, 127).astype(np.int8)
        layer.weight_error = relative(integers * along, moved)
        made = integers if layer.book is not None else np.ascontiguousarray(np.moveaxis(integers, 0, axis))
        name = f"{node.name}.weight"
        scale = self.scale(f"{name}.scale", layer.scales if split else layer.scales.reshape(()))
        if self.training:
            back = self.constant_pair(name, source, scale, np.zeros(layer.scales.shape if split else (), np.int8), axis)
            if layer.book is None:
                node.input[1] = back
            else:
                layer.book.input[0] = back
            return
        zero = np.zeros(layer.scales.shape if split else (), np.int8)
        if layer.book is None:
            given = self.constant(f"{name}.integers", made)
        else:
            layer.book.input[0] = self.constant(f"{name}.book.integers", made)
            given = layer.book.output[0]
        node.input[1] = self.dequantized(name, given, scale, zero, axis)
        if bias is not None and bias.shape == (len(rows),):
            products = (layer.scales * x.scale).astype(np.float32)
            counts = np.rint(bias / np.broadcast_to(products, bias.shape).astype(np.float64)).astype(np.int32)
            name = f"{node.name}.bias"
            scale = self.constant(f"{name}.scale", products if split else products.reshape(()))
            zero = np.zeros(products.shape if split else (), np.int32)
            node.input[2] = self.dequantized(name, self.constant(f"{name}.integers", counts), scale, zero, 0)

    def constant_pair(self, name: str, array: np.ndarray, scale: str, zero: np.ndarray, axis: int) -> str:
        """Weights of floating point that are rounded in each run."""
        own = next(key for key, value in self.constants.items() if value is array)
        inputs = [own, scale, self.constant(f"{name}.zero", zero)]
        node = helper.make_node("QuantizeLinear", inputs, [f"{name}.integers"], f"{name}.quantize")
        if zero.ndim:
            node.attribute.append(helper.make_attribute("axis", axis))
        self.added.append(node)
        return self.dequantized(name, f"{name}.integers", scale, zero, axis)

    def dequantized(self, name: str, integers: str, scale: str, zero: np.ndarray, axis: int) -> str:
        inputs, output = [integers, scale, self.constant(f"{name}.zero", zero)], f"{name}.dequantized"
        node = helper.make_node("DequantizeLinear", inputs, [output], f"{name}.dequantize")
        if zero.ndim:
            node.attribute.append(helper.make_attribute("axis", axis))
        self.added.append(node)
        return output

    def sort(self) -> None:
        """Nodes in an order that can run, and no constants that nobody reads."""
        graph = self.proto.graph
        known = {value.name for value in (*graph.input, *graph.initializer)} | {""}
        waiting, ordered = [*self.added, *self.source_nodes], []
        own = {name for node in waiting for name in node.output}
        while waiting:
            ready = [node for node in waiting if all(name in known or name not in own for name in _reads(node))]
            assert ready, "a cycle"
            taken = set(map(id, ready))
            known |= {name for node in ready for name in node.output}
            waiting = [node for node in waiting if id(node) not in taken]
            ordered += ready
        made = [NodeProto() for _ in ordered]
        for copy, node in zip(made, ordered):
            copy.CopyFrom(node)
        del graph.node[:]
        graph.node.extend(made)
        read = {name for node in made for name in _reads(node)} | self.outputs
        kept = [item for item in graph.initializer if item.name in read]
        inputs = [value for value in graph.input if value.name in read or value.name not in self.constants]
        del graph.initializer[:], graph.input[:], graph.value_info[:]
        graph.initializer.extend(kept)
        graph.input.extend(inputs)

    def result(self) -> Int8Quantization:
        made = Model(load_graph(self.proto), optimized=False)
        outputs = made.run(self.samples, backend="cpu")
        results = {layer.result: f"{layer.result}.dequantized" if layer.result in self.values and self.readers.get(layer.result)
                   else layer.result for layer in self.layers}  # fmt: skip
        found = _traced(made, set(results.values()), self.samples)
        layers = []
        for layer in self.layers:
            exact, name = self.exact[layer.result], results[layer.result]
            low, high = self.scales[self.root(layer.result)].ends() if name != layer.result else (None, None)
            beyond = 0 if low is None or high is None else int(((exact < low) | (exact > high)).sum())
            layers.append(
                Int8Layer(
                    layer.node.name, layer.node.op_type, layer.weight.shape[layer.axis],
                    (float(layer.scales.min()), float(layer.scales.max())), low, high, beyond, exact.size,
                    relative(found[name], exact), layer.weight_error,
                )
            )  # fmt: skip
        error = max(relative(outputs[name], want) for name, want in self.expected.items())
        return Int8Quantization(self.proto, tuple(layers), self.left, error, agreement(outputs, self.expected))


def _reads(node: NodeProto) -> Iterable[str]:
    """What a node reads, its bodies included."""
    yield from node.input
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                yield from _reads(inner)


def _traced(model: Model, names: set[str], samples: Mapping[str, Any] | Any) -> dict[str, np.ndarray]:
    """Values of a graph, by name."""
    inputs = {value.name for value in model.inputs}
    outputs = tuple(Value(name, None, None) for name in sorted(names - inputs))
    found = Model(replace(model.graph, outputs=outputs), optimized=False).run(samples, backend="cpu")
    given = samples if isinstance(samples, Mapping) else {model.inputs[0].name: samples}
    return _finite({**found, **{name: np.asarray(given[name]) for name in names & inputs}})


def _finite(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    for name, array in arrays.items():
        if array.size == 0 or not np.isfinite(array).all():
            raise ModelError(f"quantize: the float model gives no or no finite numbers for {name!r} on the samples")
    return {name: np.asarray(array) for name, array in arrays.items()}


def _value_scale(values: np.ndarray) -> Scale:
    """For uint8, zero being one of the values: of the shares of the range the one with the least squared error."""
    values = values.reshape(-1).astype(np.float64)
    values = values[:: max(values.size // SAMPLED, 1)]
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if low == high:
        return Scale(np.float32(1 / 255), 0)

    def missed(found: Scale) -> float:
        scale = float(found.scale)
        taken = (np.clip(np.rint(values / scale) + found.zero, 0, 255) - found.zero) * scale
        return float(np.square(taken - values).mean())

    return min((_affine(low * share, high * share) for share in SHARES), key=missed)


def _affine(low: float, high: float) -> Scale:
    scale = max(np.float32((high - low) / 255), np.finfo(np.float32).tiny)
    return Scale(np.float32(scale), int(np.clip(np.rint(-low / float(scale)), 0, 255)))


def _weight_scale(row: np.ndarray) -> float:
    """For int8 without a zero point; as _value_scale."""
    most = float(np.abs(row).max(initial=0.0))
    if most == 0.0:
        return 1 / 127
    scales = most * SHARES / 127
    return float(min(scales, key=lambda s: float(np.square(np.clip(np.rint(row / s), -127, 127) * s - row).sum())))


__all__ = ["Int8Layer", "Int8Quantization", "quantize_int8"]
