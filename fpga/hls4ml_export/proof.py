"""Random small layers in hls4ml's C simulation against the oracle, to the last bit.

    python -m quatrefoil.fpga.hls4ml_export.proof [--backend Vitis] [--io parallel] [--layer dense] [--samples 1000]
    python -m quatrefoil.fpga.hls4ml_export.proof --backend Vitis Vivado Quartus Catapult --keep proof.jsonl

Each layer of ``TRIALS`` makes chains of one or a few layers with random formats and shapes; the chains of a layer are
compiled into one project, each with an input of its own. Most of the time is g++'s, so that projects are compiled side by
side (--jobs). With --keep, a run that was stopped goes on where it was,
as long as the exporter is the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from quatrefoil.fpga.hls4ml_export import fixed_layers as layers
from quatrefoil.fpga.hls4ml_export.fixed_layers import FixedLayer, Target
from quatrefoil.fpga.hls4ml_export.fixed_lowering import element
from quatrefoil.fpga.hls4ml_export.fixed_project import Design, check_casts, first_difference, simulate, write
from quatrefoil.fpga.hls4ml_export.layers import ExportError
from quatrefoil.fpga.hls4ml_export.support import VITIS_LIKE
from quatrefoil.models.fixed.elements import operator_of
from quatrefoil.models.graph import Node
from quatrefoil.numerics import OVERFLOWS, ROUNDINGS, TABLE_REACH, Fixed, function_table, table_index
from quatrefoil.ops import canonical, rnn
from quatrefoil.ops import fixed as ops
from quatrefoil.problem import Problem, Tensor
from quatrefoil.reference.fixed import evaluate


@dataclass
class Chain:
    """One input and the layers behind it. wanted: integers by layer's name, in the design's order of elements."""

    rng: np.random.Generator
    target: Target
    samples: int
    start: str
    layers: list[FixedLayer] = field(default_factory=list)
    given: dict[str, np.ndarray] = field(default_factory=dict)
    wanted: dict[str, np.ndarray] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)

    def name(self, kind: str) -> str:
        return f"{self.start}_{kind}{len(self.layers)}"

    def input(self, form: Fixed, shape: Sequence[int], reach: float = 1.0) -> tuple[str, np.ndarray]:
        """shape: without the batch, channels first. Gives integers in ONNX's layout."""
        x = self.integers(form, (self.samples, *shape), reach)
        name = self.name("in")
        rows = _last(x)
        self.layers.append(layers.input_layer(name, rows.shape[1:], form))
        self.given[name] = rows.reshape(len(x), -1)
        return name, x

    def integers(self, form: Fixed, shape: Sequence[int], reach: float = 1.0) -> np.ndarray:
        """Any integers of a format; reach: the part of its range that is used."""
        high = max(int(form.high * reach), 1) if form.high else 0
        low = max(form.low, -high) if reach < 1 else form.low
        return self.rng.integers(low, high, shape, endpoint=True).astype(form.dtype)

    def node(self, kind: str, source: str, values: np.ndarray, attributes: dict[str, Any]) -> None:
        """A node of models/fixed/elements.py behind one input."""
        texts = {key: value.text if isinstance(value, Fixed) else value for key, value in attributes.items()}
        node = Node(self.name("element"), kind, (), (), attributes=texts)
        found = operator_of(node)
        assert found is not None
        self.add(element(node, node.name, source, self.target), found.compute([values])[0])

    def add(self, layer: FixedLayer, wanted: np.ndarray) -> str:
        """wanted: in ONNX's layout."""
        self.layers.append(layer)
        self.wanted[layer.name] = _last(wanted).reshape(len(wanted), -1).astype(np.int64)
        self.outputs = [name for name in self.outputs if name not in layer.description["inputs"]] + [layer.name]
        return layer.name


def _last(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1) if array.ndim > 2 else array


def _format(rng: np.random.Generator, low: int, high: int, integer: tuple[int, int], **modes: Any) -> Fixed:
    """A random format of low to high bits, its integer bits in a range."""
    settled: dict[str, Any] = {
        "rounding": str(rng.choice(ROUNDINGS)),
        "overflow": str(rng.choice(OVERFLOWS)),
        "signed": bool(rng.random() < 0.85),
    }
    width, whole = int(rng.integers(low, high + 1)), int(rng.integers(integer[0], integer[1] + 1))
    return Fixed(width, whole, **(settled | modes))


def _modeless(form: Fixed) -> Fixed:
    """Of what is never cast to."""
    return Fixed(form.width, form.integer, signed=form.signed)


def _accumulator(rng: np.random.Generator, x: Fixed, w: Fixed, taps: int, overflow: str | None = None) -> Fixed:
    """Sometimes wide enough for every sum, sometimes not."""
    need = x.integer + w.integer + taps.bit_length()
    whole = need + int(rng.integers(-4, 2))
    fraction = max(x.fraction + w.fraction - int(rng.integers(0, 6)), 1 - whole)
    width = min(max(whole + fraction, 2), 48)
    return Fixed(width, whole, str(rng.choice(ROUNDINGS)), overflow or str(rng.choice(OVERFLOWS)))


def _convolution(chain: Chain, x_shape: Sequence[int], w_shape: Sequence[int], **attributes: Any) -> None:
    rng = chain.rng
    x, w, b = (_modeless(_format(rng, *bits)) for bits in ((3, 18, (-1, 7)), (2, 16, (-1, 4)), (4, 16, (0, 6))))
    taps = int(np.prod(w_shape[1:]))
    order = attributes.pop("reuse", chain.target.reuse_factor if chain.target.strategy == "resource" else 1)
    accumulator = _accumulator(rng, x, w, taps, attributes.pop("overflow", None))
    y = _format(rng, 4, 20, (accumulator.integer - 4, accumulator.integer + 1))
    name, values = chain.input(x, x_shape)
    weight, bias = chain.integers(w, w_shape), chain.integers(b, w_shape[:1])
    given: list[np.ndarray] = [values, weight] + ([bias] if rng.random() < 0.8 else [])
    formats = {
        "x_format": x,
        "w_format": w,
        "bias_format": b,
        "accumulator": accumulator,
        "y_format": y,
        "reuse": order,
    }
    texts = {key: form.text if isinstance(form, Fixed) else form for key, form in formats.items()}
    problem = canonical("fixed_conv", [Tensor.of(a) for a in given], texts | attributes, 1)
    layer = layers.convolution(
        chain.name("conv"), name, problem, weight, bias if len(given) > 2 else None, chain.target
    )
    chain.add(layer, evaluate(problem, given)[0])


def _dense(chain: Chain) -> None:
    n = _reusable(chain, 12)
    _convolution(chain, (n,), (int(chain.rng.integers(1, 9)), n))


def _reusable(chain: Chain, most: int) -> int:
    """A number of products that the target's reuse factor divides."""
    reuse = chain.target.reuse_factor if chain.target.strategy == "resource" else 1
    return reuse * int(chain.rng.integers(1, max(most // reuse, 1) + 1))


def _conv1d(chain: Chain) -> None:
    rng = chain.rng
    channels, k = _reusable(chain, 4), int(rng.integers(1, 5))
    stride = int(rng.integers(1, k + 1))
    pads = [int(n) for n in rng.integers(0, k, 2)]
    _convolution(
        chain,
        (channels, int(rng.integers(k + 2, 12))),
        (int(rng.integers(1, 6)), channels, k),
        strides=[stride],
        pads=pads,
    )


def _conv2d(chain: Chain) -> None:
    rng = chain.rng
    channels = _reusable(chain, 3)
    kernel = [int(n) for n in rng.integers(1, 4, 2)]
    strides = [int(rng.integers(1, k + 1)) for k in kernel]
    pads = [int(rng.integers(0, k)) for k in (*kernel, *kernel)]
    size = [int(n) for n in rng.integers(4, 8, 2)]
    _convolution(chain, (channels, *size), (int(rng.integers(1, 5)), channels, *kernel), strides=strides, pads=pads)


def _pointwise(chain: Chain) -> None:
    rng, channels = chain.rng, _reusable(chain, 5)
    rank = int(rng.integers(1, 3))
    strides = [1] * rank
    _convolution(
        chain, (channels, *map(int, rng.integers(2, 5, rank))), (int(rng.integers(1, 5)), channels, *[1] * rank),
        strides=strides,
    )  # fmt: skip


def _strided(chain: Chain) -> None:
    k = int(chain.rng.integers(1, 3))
    channels = _reusable(chain, 3)
    _convolution(chain, (channels, 7, 8), (3, channels, k, k), strides=[k + 1, k + 2])


def _depthwise(rank: int) -> Callable[[Chain], None]:
    def make(chain: Chain) -> None:
        rng = chain.rng
        channels, k = int(rng.integers(2, 6)), int(rng.integers(2, 4))
        pads = [int(n) for n in rng.integers(0, k, 2 * rank)]
        _convolution(
            chain, (channels, *map(int, rng.integers(4, 7, rank))), (channels, 1, *[k] * rank), group=channels,
            strides=[int(rng.integers(1, k + 1))] * rank, pads=pads, reuse=1,
        )  # fmt: skip

    return make


def _grouped(chain: Chain) -> None:
    rng = chain.rng
    groups, inner, outer = 2, int(rng.integers(1, 3)), int(rng.integers(2, 4))
    _convolution(chain, (groups * inner, 5, 6), (groups * outer, inner, 3, 3), group=groups, pads=[1, 1, 1, 1])


def _dilated(chain: Chain) -> None:
    d = int(chain.rng.integers(2, 4))
    _convolution(chain, (2, 9, 8), (3, 2, 2, 2), dilations=[d, d], pads=[1, 0, 0, 1])


def _pool(chain: Chain, op: str, shape: Sequence[int], **attributes: Any) -> None:
    rng = chain.rng
    padded = any(attributes.get("pads", ())) or attributes.get("ceil_mode")
    x = _modeless(_format(rng, 3, 18, (-1, 7), **({"signed": True} if padded and op == "fixed_max_pool" else {})))
    y = _format(rng, 3, 20, (x.integer - 2, x.integer + 2))
    formats = {"x_format": x.text, "y_format": y.text}
    if op == "fixed_average_pool":
        taps = int(np.prod(attributes["kernel_shape"]))
        carry = int(rng.integers(0, taps.bit_length() + 1))
        fraction = x.fraction + int(rng.integers(0, 4))
        whole = x.integer + (not x.signed) + carry
        overflow = str(rng.choice(OVERFLOWS)) if carry == taps.bit_length() or chain.target.io == "parallel" else "WRAP"
        formats["accumulator"] = Fixed(whole + fraction, whole, str(rng.choice(ROUNDINGS)), overflow).text
    name, values = chain.input(x, shape)
    problem = canonical(op, [Tensor.of(values)], formats | attributes, 1)
    layer = layers.pooling(chain.name("pool"), name, problem, chain.target)
    chain.add(layer, evaluate(problem, [values])[0])


def _windows(
    op: str, axes: int | None = None, *, padded: bool = False, strided: bool = False, whole: bool = False
) -> Callable[[Chain], None]:
    def make(chain: Chain) -> None:
        rng, rank = chain.rng, axes or int(chain.rng.integers(1, 3))
        kernel = [int(n) for n in rng.integers(2, 4, rank)]
        size = [int(rng.integers(k + 1, 9)) for k in kernel]
        attributes: dict[str, Any] = {"kernel_shape": size if whole else kernel}
        if not whole:
            strides = [int(rng.integers(1, k + 2)) for k in kernel] if strided else kernel
            attributes["strides"] = [k - 1 for k in kernel] if strided and strides == kernel else strides
        if padded:
            attributes["pads"] = [1, *(int(rng.integers(0, k)) for k in (*kernel, *kernel)[1:])]
            if op == "fixed_average_pool":
                attributes["count_include_pad"] = int(rng.integers(0, 2))
        _pool(chain, op, (int(rng.integers(1, 4)), *size), **attributes)

    return make


def _relu(chain: Chain) -> None:
    x = _modeless(_format(chain.rng, 3, 20, (-1, 8)))
    y = _format(chain.rng, 3, 20, (x.integer - 2, x.integer + 2))
    name, values = chain.input(x, (5, 3))
    wanted = y.cast(np.maximum(values.astype(np.int64), 0), x.fraction)
    chain.add(layers.relu(chain.name("relu"), name, y, chain.target), wanted)


def _cast(chain: Chain) -> None:
    x = _modeless(_format(chain.rng, 3, 24, (-1, 8)))
    y = _format(chain.rng, 3, 20, (x.integer - 3, x.integer + 2))
    name, values = chain.input(x, (7,))
    chain.add(layers.cast(chain.name("cast"), name, y, chain.target), y.cast(values, x.fraction))


def _table(function: str) -> Callable[[Chain], None]:
    def make(chain: Chain) -> None:
        rng = chain.rng
        x = _modeless(_format(rng, 5, 20, (1, 6)))
        table = _format(rng, 8, 18, (1, 5), signed=True)
        y = _format(rng, 4, 18, (0, 4))
        size = 2 ** int(rng.integers(6, 12))
        name, values = chain.input(x, (8,))
        layer = layers.table_activation(chain.name(function.lower()), name, function, x, table, size, y, chain.target)
        entries = function_table(function, size, table)
        found = entries[table_index(values.astype(np.int64), x.fraction, function, size)]
        chain.add(layer, y.cast(found, table.fraction))

    return make


def _elements(kind: str, **given: Any) -> Callable[[Chain], None]:
    """A node of models/fixed/elements.py with one input, by the function of the graph walk that writes it."""

    def make(chain: Chain) -> None:
        rng = chain.rng
        x = given.get("x_format") or _modeless(_format(rng, 5, 16, (1, 5), signed=True))
        y = _format(rng, 5, 18, (1, 5))
        constant = _modeless(_format(rng, 6, 14, (1, 3), signed=True))
        table = _format(rng, 8, 18, (1, 3), signed=True)
        attributes: dict[str, Any] = {
            "x_format": x, "y_format": y, "constant_format": constant, "table_format": table,
            "table_size": 2 ** int(rng.integers(6, 12)),
        }  # fmt: skip
        name, values = chain.input(x, (9,))
        chain.node(kind, name, values, attributes | given)

    return make


def _softmax(chain: Chain) -> None:
    rng, classes = chain.rng, int(chain.rng.integers(2, 9))
    bits, size = classes.bit_length(), 2 ** int(rng.integers(8, 13))
    x = _modeless(_format(rng, 8, 16, (3, 6), signed=True))
    attributes = {
        "x_format": x, "y_format": _format(rng, 8, 18, (1, 2), signed=True), "table_size": size,
        "difference_format": Fixed(size.bit_length() - 1, 4, "RND", "SAT", signed=False),
        "exponential_format": Fixed(18, 2, "RND", "SAT"), "accumulator": Fixed(18 + bits, 2 + bits, "RND", "SAT"),
        "sum_format": Fixed(18, bits, "RND", "SAT", signed=False), "inverse_format": Fixed(18, 2, "RND", "SAT"),
    }  # fmt: skip
    name, values = chain.input(x, (classes,))
    chain.node("FixedSoftmax", name, values, attributes)


def _pair(kind: str) -> Callable[[Chain], None]:
    def make(chain: Chain) -> None:
        rng = chain.rng
        shape = (3,) if rng.random() < 0.5 else (2, 3, 4)
        a, b = (_modeless(_format(rng, 3, 18, (-1, 7))) for _ in range(2))
        given = [chain.input(form, shape) for form in (a, b)]
        y = _format(rng, 4, 20, (a.integer - 2, a.integer + 3))
        node = Node("n", kind, (), (), attributes={"a_format": a.text, "b_format": b.text, "y_format": y.text})
        found = operator_of(node)
        assert found is not None
        [wanted] = found.compute([values for _, values in given])
        operation = layers.MERGES[kind]
        layer = layers.merge(chain.name(operation), given[0][0], given[1][0], operation, y, chain.target)
        chain.add(layer, wanted)

    return make


def _with_constant(chain: Chain) -> None:
    """Any of the three, the constant on either side; one for each channel or for each element."""
    rng = chain.rng
    kind, first = str(rng.choice(list(layers.MERGES))), bool(rng.random() < 0.5)
    shape = (3,) if rng.random() < 0.5 else (2, 3, 4)
    x, c = (_modeless(_format(rng, 3, 16, (-1, 6))) for _ in range(2))
    y = _format(rng, 4, 20, (x.integer - 2, x.integer + 3))
    name, values = chain.input(x, shape)
    constant = chain.integers(c, shape if rng.random() < 0.5 else (shape[0], *[1] * (len(shape) - 1)))
    given, forms = [values, constant[None]], [x, c]
    if first:
        given, forms = given[::-1], forms[::-1]
    texts = {"a_format": forms[0].text, "b_format": forms[1].text, "y_format": y.text}
    found = operator_of(Node("n", kind, (), (), attributes=texts))
    assert found is not None
    full = _last(np.broadcast_to(constant, (1, *shape))).reshape(-1).astype(np.int64)
    layer = layers.scaling(
        chain.name("constant"), name, layers.MERGES[kind], full, c, y, shape[0], chain.target, constant_first=first
    )
    chain.add(layer, found.compute(given)[0])


def _concat(axis: int) -> Callable[[Chain], None]:
    """axis: in the design's order."""

    def make(chain: Chain) -> None:
        rng = chain.rng
        rank = int(rng.integers(1 if axis else 2, 4))
        forms = [_modeless(_format(rng, 3, 18, (-1, 7))) for _ in range(2)]
        where = axis % rank
        # channels come first in ONNX and last in the design
        onnx = 0 if where == rank - 1 else where + 1
        shape = [int(n) for n in rng.integers(2, 4, rank)]
        given = []
        for form in forms:
            shape[onnx] = int(rng.integers(1, 4))
            given.append(chain.input(form, shape))
        y = _format(rng, 4, 20, (forms[0].integer - 2, forms[0].integer + 3))
        joined = [y.cast(values, form.fraction) for (_, values), form in zip(given, forms)]
        layer = layers.concatenation(chain.name("concat"), given[0][0], given[1][0], where, rank, y, chain.target)
        chain.add(layer, np.concatenate(joined, axis=onnx + 1))

    return make


def _reshape(chain: Chain) -> None:
    """A flattened map, then a dense layer whose rows are in the map's order."""
    rng = chain.rng
    x, w = (_modeless(_format(rng, 4, 14, (0, 4))) for _ in range(2))
    accumulator = Fixed(30, 14, "RND", "WRAP")
    y = _format(rng, 6, 18, (2, 9))
    shape = (2, 3, 4)
    name, values = chain.input(x, shape)
    flat = chain.name("flat")
    chain.layers.append(layers.reshape(flat, name, (24,), x))
    weight = chain.integers(w, (3, 24))
    formats = {"x_format": x.text, "w_format": w.text, "accumulator": accumulator.text, "y_format": y.text}
    vectors = values.reshape(len(values), -1)
    problem = canonical("fixed_conv", [Tensor.of(vectors), Tensor.of(weight)], formats, 1)
    rows = np.moveaxis(np.arange(24).reshape(shape), 0, -1).reshape(-1)
    target = Target(chain.target.backend, chain.target.io)
    layer = layers.convolution(chain.name("dense"), flat, problem, weight, None, target, rows=rows)
    chain.add(layer, evaluate(problem, [vectors, weight])[0])


def _move(chain: Chain) -> None:
    """Elements in any order, some twice, some 0."""
    x = _modeless(_format(chain.rng, 4, 14, (0, 4)))
    name, values = chain.input(x, (3, 4, 2))
    rows = _last(values).reshape(len(values), -1)
    places = chain.rng.integers(-1, 24, 12)
    layer = layers.move(chain.name("move"), name, places, (4, 3), x, chain.target)
    wanted = np.where(places < 0, 0, rows[:, places]).reshape(-1, 4, 3).transpose(0, 2, 1)
    chain.add(layer, wanted)


def _upsample(chain: Chain) -> None:
    x = _modeless(_format(chain.rng, 4, 14, (0, 4)))
    name, values = chain.input(x, (2, 3, 4))
    layer = layers.upsampling(chain.name("up"), name, (3, 4, 2), (2, 3), x, chain.target)
    chain.add(layer, values.repeat(2, axis=2).repeat(3, axis=3))


def _recurrent_problem(
    chain: Chain,
    op: str,
    values: np.ndarray,
    x: Fixed,
    hidden: int,
    states: str = "",
    alike: bool = False,
    **attributes: Any,
) -> tuple[Problem, list[np.ndarray | None]]:
    """values: (samples, steps, inputs)."""
    rng = chain.rng
    plain = op.removeprefix("fixed_")
    w, r, b = (_modeless(_format(rng, 6, 14, (0, 2), signed=True)) for _ in range(3))
    accumulator = _format(rng, 14, 22, (5, 7), signed=True)
    y = _format(rng, 8, 18, (1, 4), signed=True)
    table = _format(rng, 10, 18, (1, 3), signed=True)
    if alike:
        accumulator = y = x
    order = chain.target.reuse_factor if chain.target.strategy == "resource" else 1
    settled: dict[str, Any] = {
        "x_format": x, "w_format": w, "r_format": r, "b_format": b, "accumulator": accumulator, "y_format": y,
        "table_format": table,
    }  # fmt: skip
    settled = {key: form.text for key, form in settled.items()}
    settled |= {"hidden_size": hidden, "table_size": 2 ** int(rng.integers(6, 12)), "reuse": order}
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = rnn.GATES[plain] * hidden
    batch, _, inputs = values.shape
    given: list[np.ndarray | None] = [
        np.ascontiguousarray(values.transpose(1, 0, 2)),
        chain.integers(w, (directions, rows, inputs), 0.7),
        chain.integers(r, (directions, rows, hidden), 0.7),
        chain.integers(b, (directions, 2 * rows)),
    ]
    if states:
        state = [chain.integers(y, (directions, 1, hidden)).repeat(batch, axis=1) for _ in states]
        given += [None, *state]
    problem = canonical(op, [None if a is None else Tensor.of(a) for a in given], settled | attributes, 1)
    return problem, given


def _recurrent(
    op: str, *, states: str = "", output: str | None = None, alike: bool = False, **attributes: Any
) -> Callable[[Chain], None]:
    def make(chain: Chain) -> None:
        rng = chain.rng
        x = _modeless(_format(rng, 6, 16, (1, 4), signed=True))
        if alike:
            x = _format(rng, 14, 20, (4, 6), signed=True)
        inputs, hidden = _reusable(chain, 4), _reusable(chain, 5)
        steps = int(rng.integers(2, 5))
        # (samples, inputs, steps) is (steps, inputs) in the design
        name, values = chain.input(x, (inputs, steps))
        sequence = values.transpose(0, 2, 1)
        problem, given = _recurrent_problem(chain, op, sequence, x, hidden, states, alike, **attributes)
        wanted = evaluate(problem, given)
        made = []
        for direction in range(len(ops.recurrent_geometry(problem).reverse)):
            kind = output or str(
                rng.choice(["sequence", "h"]) if problem.string("direction") == "forward" else "sequence"
            )
            layer = layers.recurrent(
                chain.name("rnn"), name, problem, layers.recurrent_constants(problem, given, direction), chain.target,
                direction=direction, output=kind,
            )  # fmt: skip
            if kind == "sequence":
                result = wanted[0][:, direction].transpose(1, 2, 0)
            else:
                result = wanted[1 if kind == "h" else 2][direction]
            made.append((chain.add(layer, result), result))
        if len(made) == 2:
            y = ops.format_of(problem, "y_format")
            rank = 2
            layer = layers.concatenation(chain.name("both"), made[0][0], made[1][0], rank - 1, rank, y, chain.target)
            chain.add(layer, np.concatenate([result for _, result in made], axis=1))

    return make


def _stacked(chain: Chain) -> None:
    x = _modeless(_format(chain.rng, 6, 16, (1, 4), signed=True))
    name, values = chain.input(x, (_reusable(chain, 4), 3))
    sequence = values.transpose(0, 2, 1)
    rest: dict[str, Any]
    for op, rest in (("fixed_lstm", {}), ("fixed_gru", {"linear_before_reset": 1})):
        problem, given = _recurrent_problem(chain, op, sequence, x, _reusable(chain, 4), "", False, **rest)
        constants = layers.recurrent_constants(problem, given, 0)
        layer = layers.recurrent(chain.name("rnn"), name, problem, constants, chain.target)
        wanted = evaluate(problem, given)[0][:, 0].transpose(1, 2, 0)
        name, x = chain.add(layer, wanted), ops.format_of(problem, "y_format")
        sequence = wanted.transpose(0, 2, 1)


TRIALS: Final[dict[str, Callable[[Chain], None]]] = {
    "dense": _dense,
    "conv1d": _conv1d,
    "conv2d": _conv2d,
    "conv_1x1": _pointwise,
    "conv1d_depthwise": _depthwise(1),
    "conv2d_depthwise": _depthwise(2),
    "conv_strided_beyond": _strided,
    "conv_grouped": _grouped,
    "conv_dilated": _dilated,
    "max_pool": _windows("fixed_max_pool"),
    "max_pool1d_strided": _windows("fixed_max_pool", 1, strided=True),
    "max_pool2d_strided": _windows("fixed_max_pool", 2, strided=True),
    "max_pool_padded": _windows("fixed_max_pool", padded=True),
    "max_pool_global": _windows("fixed_max_pool", whole=True),
    "average_pool": _windows("fixed_average_pool"),
    "average_pool1d_strided": _windows("fixed_average_pool", 1, strided=True),
    "average_pool2d_strided": _windows("fixed_average_pool", 2, strided=True),
    "average_pool_padded": _windows("fixed_average_pool", padded=True),
    "average_pool_global": _windows("fixed_average_pool", whole=True),
    "relu": _relu,
    "cast": _cast,
    **{function.lower(): _table(function) for function in TABLE_REACH},
    "leaky_relu": _elements("FixedActivation", function="LeakyRelu(0.3)"),
    "elu": _elements("FixedActivation", function="Elu(0.7)"),
    "hard_sigmoid": _elements("FixedActivation", function="HardSigmoid(0.2,0.5)"),
    "relu6": _elements("FixedActivation", function="Clip(0,6)", x_format=Fixed(12, 5)),
    "softmax": _softmax,
    "add": _pair("FixedAdd"),
    "subtract": _pair("FixedSub"),
    "multiply": _pair("FixedMul"),
    "constant": _with_constant,
    "concat": _concat(-1),
    "concat_elsewhere": _concat(0),
    "flatten": _reshape,
    "move": _move,
    "upsample": _upsample,
    "lstm": _recurrent("fixed_lstm"),
    "lstm_one_format": _recurrent("fixed_lstm", alike=True),
    "lstm_reverse": _recurrent("fixed_lstm", direction="reverse"),
    "lstm_bidirectional": _recurrent("fixed_lstm", direction="bidirectional"),
    "lstm_initial_state": _recurrent("fixed_lstm", states="hc"),
    "lstm_cell_state": _recurrent("fixed_lstm", output="c"),
    "lstm_functions": _recurrent("fixed_lstm", activations=("Tanh", "Relu", "Sigmoid")),
    "gru": _recurrent("fixed_gru", linear_before_reset=1),
    "gru_reverse": _recurrent("fixed_gru", linear_before_reset=1, direction="reverse"),
    "gru_initial_state": _recurrent("fixed_gru", linear_before_reset=1, states="h"),
    "gru_reset_before": _recurrent("fixed_gru", linear_before_reset=0),
    "gru_reset_before_bidirectional": _recurrent("fixed_gru", linear_before_reset=0, direction="bidirectional"),
    "rnn": _recurrent("fixed_rnn"),
    "rnn_bidirectional_initial_state": _recurrent("fixed_rnn", direction="bidirectional", states="h"),
    "recurrent_stacked": _stacked,
}
"""What makes a random chain of each layer of the support table."""


MULTIPLYING: Final = ("dense", "conv", "flatten", "lstm", "gru", "rnn", "recurrent")
"""How rows begin that multiply by weights; strategy and reuse say nothing of the others."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """integers: compared; difference: a sentence where one differs; refusals: of chains that were not exported."""

    layer: str
    target: Target
    chains: int
    integers: int
    seconds: float
    difference: str | None
    refusals: tuple[str, ...]


def prove(names: Sequence[str], target: Target, *, samples: int, chains: int, seed: int = 0) -> Outcome:
    """Compile ``chains`` random chains of each named layer as one project, and compare ``samples`` samples."""
    start, refusals = time.monotonic(), []
    made: list[Chain] = []
    for name in names:
        kept = 0
        for attempt in range(4 * chains):
            # the same nets for every backend
            key = zlib.crc32(f"{name} {target.io} {target.strategy} {target.reuse_factor} {seed} {attempt}".encode())
            chain = Chain(np.random.default_rng(key), target, samples, f"c{len(made)}")
            try:
                TRIALS[name](chain)
                if target.backend in VITIS_LIKE:
                    check_casts(chain.layers)
            except ExportError as error:
                refusals.append(str(error))
                continue
            made.append(chain)
            kept += 1
            if kept == chains:
                break
    label = ", ".join(names)
    if not made:
        return Outcome(label, target, 0, 0, time.monotonic() - start, None, tuple(refusals))
    design = Design(
        tuple(layer for chain in made for layer in chain.layers),
        tuple(name for chain in made for name in chain.outputs),
    )
    given = {name: rows for chain in made for name, rows in chain.given.items()}
    wanted = {name: rows for chain in made for name, rows in chain.wanted.items()}
    try:
        with tempfile.TemporaryDirectory() as folder:
            project = write(design, Path(folder) / "project", "proof", target)
            found = simulate(project, design, given, 600.0)
    except ExportError as error:
        return Outcome(label, target, len(made), 0, time.monotonic() - start, str(error), tuple(refusals))
    order = [layer.name for layer in design.layers]
    missing = set(design.outputs) - set(found)
    difference = f"no values of {', '.join(sorted(missing))}" if missing else first_difference(found, wanted, order)
    compared = sum(found[name].size for name in wanted if name in found)
    if difference is not None:
        for chain in made:
            if first_difference(found, chain.wanted, order):
                described = "\n    ".join(
                    f"{layer.description['class_name']} {_shown(layer)}" for layer in chain.layers
                )
                difference += f"\n    {described}"
    return Outcome(label, target, len(made), compared, time.monotonic() - start, difference, tuple(refusals))


def _shown(layer: FixedLayer) -> str:
    numbers = {key: value for key, value in layer.description.items() if isinstance(value, (int, str, list))}
    formats = " ".join(f"{key}={form}" for key, form in (layer.formats | layer.own_formats).items())
    return f"{numbers} {formats} {layer.strategy} {layer.reuse_factor}"


def targets(backends: Sequence[str], ios: Sequence[str]) -> Iterator[Target]:
    for backend in backends:
        for io in ios:
            yield Target(backend, io)
            yield Target(backend, io, "resource", 2)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a trial found, in lines of text."""

    key: str
    text: str
    failed: bool


@dataclass(frozen=True, slots=True)
class Trial:
    """Layers to prove together, and how."""

    names: tuple[str, ...]
    target: Target
    samples: int
    chains: int
    seed: int

    @property
    def key(self) -> str:
        """By which a finding is kept: this trial, with the exporter as it is."""
        return f"{','.join(self.names)} {self.target} {self.samples} {self.chains} {self.seed} {_exporter()}"

    def run(self) -> Finding:
        found = prove(self.names, self.target, samples=self.samples, chains=self.chains, seed=self.seed)
        told = found.difference or ("equal" if found.chains else "refused")
        lines = [
            f"{self.target.backend} {self.target.io} {self.target.strategy} {found.layer}: {found.chains} nets, "
            f"{found.integers} integers, {found.seconds:.0f} s: {told}",
            *(f"    refused: {refusal}" for refusal in sorted(set(found.refusals))[:3]),
        ]
        return Finding(self.key, "\n".join(lines), found.difference is not None)


@cache
def _exporter() -> str:
    """Of the exporter's sources."""
    digest = hashlib.sha256(version("hls4ml").encode())
    for path in sorted(Path(__file__).parent.glob("*.*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _kept(path: Path | None) -> dict[str, Finding]:
    if path is None or not path.exists():
        return {}
    found = [Finding(**json.loads(line)) for line in path.read_text("utf-8").splitlines() if line.endswith("}")]
    return {one.key: one for one in found}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", nargs="*", default=["Vitis", "Vivado"])
    parser.add_argument("--io", nargs="*", default=["parallel", "stream"])
    parser.add_argument("--strategy", nargs="*", default=["latency", "resource"])
    parser.add_argument("--layer", nargs="*", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--chains", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", action="store_true", help="one project for all layers")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes side by side")
    parser.add_argument("--keep", type=Path, help="a file that keeps what was found, from which a stopped run goes on")
    given = parser.parse_args(arguments)
    rows = [tuple(given.layer)] if given.together else [(name,) for name in given.layer]
    trials = [
        Trial(names, target, given.samples, given.chains, given.seed)
        for target in targets(given.backend, given.io)
        if target.strategy in given.strategy
        for names in rows
        if target.strategy == "latency" or any(name.startswith(MULTIPLYING) for name in names)
    ]
    kept, start = _kept(given.keep), time.monotonic()
    left = [trial for trial in trials if trial.key not in kept]
    done = [kept[trial.key] for trial in trials if trial.key in kept]
    print(
        f"{len(trials)} trials, {len(done)} of them from {given.keep}" if done else f"{len(trials)} trials", flush=True
    )
    with ProcessPoolExecutor(max(given.jobs, 1), multiprocessing.get_context("spawn")) as pool:
        for pending in as_completed([pool.submit(trial.run) for trial in left]):
            one = pending.result()
            done.append(one)
            print(one.text, flush=True)
            if given.keep is not None:
                with open(given.keep, "a", encoding="utf-8") as file:
                    file.write(f"{json.dumps(asdict(one))}\n")
    failed = [one for one in done if one.failed]
    proven, refused = (sum(one.text.splitlines()[0].endswith(end) for one in done) for end in (": equal", ": refused"))
    print(f"{proven} equal, {refused} refused, {len(failed)} different, {time.monotonic() - start:.0f} s")
    for one in failed if len(left) < len(trials) else ():
        print(one.text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
