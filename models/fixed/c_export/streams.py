"""The network's steps as OpenCL kernels: layers in a row that slide windows become streams, or kernels of many work-items.

A stream (quatrefoil/fpga/streams.py) takes in convolutions and pools whose line buffers and weights fit on the chip
together, and functions and casts between and behind them, as long as nothing else reads what is between. Weights and
biases are constants of the kernels. Arrays in memory keep ONNX's order; the first stage gathers its pixels.

Of the form "ndrange" every convolution, dense layer and pool is a kernel with a work-item for each place (and few output
channels), as fpga/src/conv_ndrange.cl and pool_ndrange.cl are.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

from quatrefoil.fpga import conv, fixed, opencl, pool, streams
from quatrefoil.fpga.limits import LINE_BUFFER_WORDS, WEIGHT_WORDS, line_buffer_words
from quatrefoil.models.fixed.c_export import Writing
from quatrefoil.models.fixed.c_export.functions import Step, c_type, value_of
from quatrefoil.models.fixed.network import FixedNetwork
from quatrefoil.models.graph import Node
from quatrefoil.numerics import Fixed
from quatrefoil.ops import conv as conv_semantics
from quatrefoil.ops import pool as pool_semantics

POOLS = ("fixed_max_pool", "fixed_average_pool")
BETWEEN = ("FixedActivation", "FixedCast")

STREAM, NDRANGE = "stream", "ndrange"

SHARED = ("quatrefoil/fixed.h", "quatrefoil/activation.h")
"""What every stage's text includes, and the file has once, or not at all."""

POINTWISE = """typedef struct {
  int unused;
} stage_t;

static inline void begin(stage_t* s) { s->unused = 0; }

static inline int wants(const stage_t* s) { return 1; }

static inline int take(stage_t* s, const X_T* x, Y_T* y) {
  for (int c = 0; c < CHANNELS; c++) {
    const qf_int64 v = x[c];
    y[c] = VALUE;
  }
  return 1;
}
"""
"""A stage that makes a value of each value."""


def element_type(form: Fixed) -> str:
    """OpenCL's own name of a format's type in memory, which vectors are named by."""
    kind = c_type(form)
    names = {"8": "char", "16": "short", "32": "int", "64": "long"}
    return ("u" if kind.startswith("u") else "") + names[kind.strip("uint_")]


@dataclass(frozen=True)
class _Layer:
    """A node of a stream, and what it takes of the chip: values in its line buffer, weights."""

    node: Node
    words: int
    weights: int


class StreamWriting(Writing):
    """As ``Writing``, with streams, or kernels of many work-items, in place of their layers.

    streams: how many kernels a stream has in its other form, by the name that calls it. items: the work-items of a kernel
    along two axes; one where it is not named.
    """

    def __init__(self, network: FixedNetwork, name: str, form: str) -> None:
        self.form = form
        self.streams: dict[str, int] = {}
        self.items: dict[str, tuple[int, int]] = {}
        self._ends: dict[str, list[_Layer]] | None = None
        self._written: set[str] = set()
        """The texts of stages that the file has; further ones need no comments."""
        super().__init__(network, name)

    def node(self, node: Node) -> None:
        if self.form == NDRANGE:
            if node.op in ("fixed_conv", *POOLS):
                self._work_items(self.step(node))
            else:
                super().node(node)
            return
        if self._ends is None:
            self._ends = self._planned()
        inside = {layer.node.name for stream in self._ends.values() for layer in stream}
        if node.name in self._ends:
            self._stream([layer.node for layer in self._ends[node.name]])
        elif node.name not in inside:
            super().node(node)

    def _planned(self) -> dict[str, list[_Layer]]:
        """The streams by the names of their last nodes."""
        nodes = self.graph.nodes
        reads = Counter(name for node in nodes for name in node.inputs)
        growing: dict[str, list[_Layer]] = {}
        ends: dict[str, list[_Layer]] = {}
        for node in nodes:
            before = growing.get(node.inputs[0]) if node.inputs and reads[node.inputs[0]] == 1 else None
            layer = self._layer(node, before is not None)
            if layer is None:
                continue
            grown = [*(before or []), layer]
            if sum(one.words for one in grown) > LINE_BUFFER_WORDS or sum(one.weights for one in grown) > WEIGHT_WORDS:
                before, grown = None, [layer]
            if before is not None:
                del ends[before[-1].node.name]
            growing[node.outputs[0]] = ends[node.name] = grown
        return ends

    def _layer(self, node: Node, behind: bool) -> _Layer | None:
        """A node as a layer of a stream; None where it is none. behind: behind another one."""
        if node.kind in BETWEEN:
            return _Layer(node, 0, 0) if behind else None
        if node.op not in ("fixed_conv", *POOLS):
            return None
        problem = self.step(node).problem
        if node.op == "fixed_conv":
            g = conv_semantics.geometry(problem)
            dense = g.window.input_size == 1  # nothing to slide over: a loop over the weights is all there is
            if dense or conv.accepts_line_buffer(problem) is not None:
                return None
            return _Layer(node, line_buffer_words(g.window, g.in_channels), problem.input(conv_semantics.W).size)
        channels = problem.input(0).shape[1]
        words = line_buffer_words(pool_semantics.geometry(problem).window, channels)
        if words > LINE_BUFFER_WORDS or pool.accepts_line_buffer(problem) is not None:
            return None
        return _Layer(node, words, 0)

    def _stream(self, nodes: list[Node]) -> None:
        steps = [self.step(node) for node in nodes]
        name = steps[-1].name
        stages: list[streams.Stage] = []
        for step in steps:
            stages.append(self._pointwise(step) if step.node.op is None else self._windowed(step))
        self.source.functions.append(streams.text(stages, name, planar=True, batch=1).rstrip())
        self.streams[name] = len(stages)
        self.calls.append((name, [nodes[0].inputs[0], nodes[-1].outputs[0]]))

    def _windowed(self, step: Step) -> streams.Stage:
        problem = step.problem
        x, y = (element_type(step.form(name)) for name in ("x_format", "y_format"))
        types = {"X_T": x, "Y_T": y}
        if problem.op != "fixed_conv":
            stage = fixed.streamed_pool(problem, {})
            setup = f"begin_#(&stage_#, {', '.join(str(int(scalar)) for scalar in pool.scalars(problem))});"
        else:
            weights = {place: step.constants[name] for place, name in enumerate(step.node.inputs) if place and name}
            stage = fixed.streamed_conv(problem, weights)
            packed, bias, *_ = stage.arguments
            form = step.form("w_format")
            table = self.source.array(f"{step.name}_weight", packed, c_type(form))  # type: ignore[arg-type]
            start = "0" if bias is None else self.source.array(f"{step.name}_bias", bias, "int64_t")  # type: ignore[arg-type]
            types |= {"W_T": element_type(form), "WEIGHT_SPACE": "__constant", "BIAS_SPACE": "__constant"}
            setup = f"begin_#(&stage_#, {table}, {start}, 0, 0, 0, 0, 0, 0.0f, 0.0f);"
        return replace(
            stage, source=self._text(stage.source), defines={**stage.defines, **types}, x_type=x, y_type=y, setup=setup,
            parameters=(), arguments=(), residual=None,
        )  # fmt: skip

    def _work_items(self, step: Step) -> None:
        problem, name = step.problem, step.name
        x, y = (element_type(step.form(form)) for form in ("x_format", "y_format"))
        types = {"X_T": x, "Y_T": y}
        if problem.op == "fixed_conv":
            g = conv_semantics.geometry(problem)
            weights = {place: step.constants[given] for place, given in enumerate(step.node.inputs) if place and given}
            constants = fixed.constants_of(problem, weights)
            lanes, packed = conv.place_weights(constants.weight, g)
            form = step.form("w_format")
            table = self.source.array(f"{name}_weight", packed, c_type(form))
            start = "0" if constants.bias is None else self.source.array(f"{name}_bias", constants.bias, "int64_t")
            spaces: dict[str, opencl.Define] = {
                "WEIGHT_SPACE": "__constant",
                "BIAS_SPACE": "__constant",
                "W_T": element_type(form),
                "LANES": lanes,
            }
            text = streams.instance(
                self._text(opencl.source("conv_place.h")), {**constants.defines, **types, **spaces}, name
            )
            sizes = self.source.array(f"{name}_sizes", conv.direct_sizes(problem, g), "int32_t")
            call = (
                f"conv_place_{name}(x, {table}, {start}, 0, 0, {sizes}, 0, 0, 0, 0.0f, 0.0f, y, get_global_id(0), "
                "get_global_id(1), 0);"
            )
            self.items[name] = g.window.output_size, packed.shape[0]
        else:
            w = pool_semantics.geometry(problem).window
            text = streams.instance(
                self._text(opencl.source("pool_place.h")), {**fixed.pool_defines(problem), **types}, name
            )
            sizes = self.source.array(f"{name}_sizes", pool.place_sizes(problem), "int32_t")
            _, height, width = w.output
            scalars = ", ".join(str(int(scalar)) for scalar in pool.scalars(problem))
            call = (
                f"const int place = get_global_id(0);\n  pool_place_{name}(x, {sizes}, {scalars}, y, 0, get_global_id(1), "
                f"place / {height * width}, place / {width} % {height}, place % {width});"
            )
            self.items[name] = w.output_size, pool_semantics.geometry(problem).planes
        kernel = f"__kernel void {name}(__global const {x}* restrict x, __global {y}* restrict y) {{\n  {call}\n}}"
        self.source.functions.append(f"{text}\n{kernel}")
        self.calls.append((name, [step.node.inputs[0], *step.node.outputs[:1]]))

    def _text(self, source: str) -> str:
        for shared in SHARED:
            source = source.replace(opencl.source(shared), "")
        if source in self._written:
            return re.sub(r"\n{2,}", "\n", re.sub(r" */\*.*?\*/", "", source, flags=re.DOTALL))
        self._written.add(source)
        return source

    def _pointwise(self, step: Step) -> streams.Stage:
        tensor = step.outputs[0]
        assert tensor is not None
        channels, places = tensor.shape[1], tensor.size // tensor.shape[1]
        x, y = (element_type(step.form(name)) for name in ("x_format", "y_format"))
        defines: dict[str, opencl.Define] = {
            "X_T": x,
            "Y_T": y,
            "CHANNELS": channels,
            "VALUE": f"({y})({value_of(step, self.source)})",
        }
        return streams.Stage(
            POINTWISE, defines, x, channels, y, channels, places, places, "begin_#(&stage_#);"
        )  # fmt: skip
