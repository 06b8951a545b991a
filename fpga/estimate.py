"""What a fixed-point layer takes of an FPGA, and how long it takes, before any synthesis.

The architecture is that of hls4ml (Fahim et al., 2021; Duarte et al., 2018): ``reuse`` products share a multiplier. An
``Estimate`` says what the C synthesis of Vivado or Vitis HLS would report; docs/fpga_estimates.md states each formula, where
its constants come from, and how far it was off published designs. Every figure but the interval is a ``Band``.

    layer = describe(problem, {"w": integers}, name="dense", strategy="latency", reuse=1)
    estimate_layer(layer, Target(find_part("xcvu9p-flgb2104-2-i"), clock_ns=5.0))
    estimate([layer, softmax("softmax", 5, 16)], target).text()
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from quatrefoil.errors import OperatorError
from quatrefoil.fpga.parts import Family, Part
from quatrefoil.ops import conv, fixed, pool
from quatrefoil.problem import Problem

STRATEGIES = ("latency", "resource")
IO_TYPES = ("parallel", "stream")

CLOCK_UNCERTAINTY = {"Vivado": 0.125, "Vitis": 0.27}
"""The share of a clock period that a tool keeps free for routing, as hls4ml sets it up; other backends as Vitis."""

DSP_FROM = 11
"""Bits of the wider operand from which a product goes to a DSP block; narrower ones become logic. Vitis HLS 2024.1
drew the line there (10 x 8 bits: logic; 11 x 7: DSP)."""

MULTIPLIER_LUT = 0.62
"""LUTs of a product in logic, over the square of its wider operand: 33, 40, 49, 62 LUTs for 7 to 10 bits in Vitis HLS."""

ADDER_LUT = 4
"""LUTs of an addition beyond its width: Vivado HLS counts 7, and Vitis HLS 7 or, where it merges two additions, 0."""

SHIFTED_LUT = 8
"""The same for a product by a constant of two signed digits: one addition, shifted."""

UNROLL_LIMIT = 4096
"""Products of a layer in latency strategy beyond which HLS stops to unroll or to balance its additions."""

SMALL_ROM = 1024
SMALL_FIFO = 512
"""Bits up to which a memory or a FIFO is logic."""

FIFO_LUT = 12
FIFO_FF = (5, 42)
"""Of a FIFO that is logic, and of one in block memory; each lane has one."""

GATE_CYCLES = (7, 10)
"""Cycles of a time step beside its matrix products (two tables, two products, the state's turn), with products of gates in
logic and in DSP blocks."""

LOOP_FILL = 3
"""Cycles by which a loop over pixels is longer than its pixels."""

SOFTMAX_CYCLES = 5
TABLE_BITS = 18
"""Of hls4ml's softmax tables."""


@dataclass(frozen=True, slots=True)
class Band:
    """An estimate and the range in which the tool's figure is expected."""

    low: int
    value: int
    high: int

    @classmethod
    def around(cls, value: float, below: float, above: float) -> Band:
        """``value`` with a range from ``below`` times it to ``above`` times it."""
        return cls(math.floor(value * below), round(value), math.ceil(value * above))

    @classmethod
    def exact(cls, value: int) -> Band:
        return cls(value, value, value)

    def __add__(self, other: Band) -> Band:
        return Band(self.low + other.low, self.value + other.value, self.high + other.high)

    def __contains__(self, figure: float) -> bool:
        return self.low <= figure <= self.high

    def __str__(self) -> str:
        return f"{self.value:,}" if self.low == self.high else f"{self.value:,} ({self.low:,}-{self.high:,})"


NOTHING = Band.exact(0)


@dataclass(frozen=True, slots=True)
class Target:
    """The part, its clock and how values travel: io "parallel" (registers) or "stream" (FIFOs of pixels)."""

    part: Part
    clock_ns: float = 5.0
    io: str = "parallel"
    backend: str = "Vitis"

    def __post_init__(self) -> None:
        if not 0.5 <= self.clock_ns <= 1000:
            raise OperatorError("estimate", "clock_ns", self.clock_ns, "give a period of 0.5 to 1000 ns")
        if self.io not in IO_TYPES:
            raise OperatorError("estimate", "io", repr(self.io), f"known are {', '.join(IO_TYPES)}")

    @property
    def usable_ns(self) -> float:
        return self.clock_ns * (1 - CLOCK_UNCERTAINTY.get(self.backend, CLOCK_UNCERTAINTY["Vitis"]))


@dataclass(frozen=True, slots=True)
class WeightCounts:
    """What constant weights cost where HLS sees them (``count_weights``).

    weights      all of them
    nonzero      the products that are added
    multiplied   (bits, how many): distinct constants of an input with three or more signed digits, by their width
    shifted      distinct constants of an input with two signed digits: an addition instead of a multiplier
    terms        products of the output that has the most
    """

    weights: int
    nonzero: int
    multiplied: tuple[tuple[int, int], ...]
    shifted: int
    terms: int

    @property
    def multipliers(self) -> int:
        return sum(count for _, count in self.multiplied)


@lru_cache(maxsize=2**17)
def signed_digits(constant: int) -> int:
    """Digits other than zero in the canonical signed-digit form: 0 for 0, 1 for a power of two, 2 for 7 = 8 - 1."""
    rest, digits = abs(constant), 0
    while rest:
        if rest & 1:
            digits += 1
            rest -= 2 - (rest & 3)
        rest >>= 1
    return digits


def count_weights(w: np.ndarray, groups: int = 1) -> WeightCounts:
    """Counts of integer weights (outputs, ...), of which all axes but the first are a group's inputs."""
    matrix = np.asarray(w).reshape(len(w), -1)
    multiplied: Counter[int] = Counter()
    shifted = 0
    for outputs in matrix.reshape(groups, -1, matrix.shape[1]):
        for of_input in outputs.T:
            for constant in np.unique(of_input).tolist():
                digits = signed_digits(constant)
                if digits > 2:
                    multiplied[abs(constant).bit_length() + 1] += 1
                shifted += digits == 2
    terms = np.count_nonzero(matrix, axis=1)
    return WeightCounts(
        weights=matrix.size,
        nonzero=int(terms.sum()),
        multiplied=tuple(sorted(multiplied.items())),
        shifted=shifted,
        terms=int(terms.max(initial=0)),
    )


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix of weights by which vectors are multiplied; ``copies`` of it stand side by side (groups, directions).

    x_width, w_width, sum_width   bits of inputs, weights and sums; product_width those of a product that reach the sum
    counts                        of all copies; None: the weights are not known, and all are taken to need a multiplier
    """

    inputs: int
    outputs: int
    x_width: int
    w_width: int
    sum_width: int
    product_width: int
    copies: int = 1
    counts: WeightCounts | None = None

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs * self.copies

    @property
    def known(self) -> WeightCounts:
        if self.counts is not None:
            return self.counts
        everything = ((self.w_width, self.weights),)
        return WeightCounts(self.weights, self.weights, everything, 0, self.inputs)

    def reuse_factors(self) -> list[int]:
        """What hls4ml takes for the resource strategy: divisors that leave each output whole multipliers."""
        most = self.inputs * self.outputs
        return [
            reuse
            for low in range(1, math.isqrt(most) + 1)
            if most % low == 0
            for reuse in {low, most // low}
            if (reuse >= self.inputs and reuse % self.inputs == 0)
            or (reuse < self.inputs and (-(-most // reuse)) % self.outputs == 0)
        ]


@dataclass(frozen=True, slots=True)
class Layer:
    """What the estimate needs to know of a layer.

    kind        "product", "recurrent", "pool", "relu", "table", "softmax", "add" or "copy"
    matrices    of a product one; of a recurrent layer the input's and the state's
    positions   output pixels, for each of which the matrices are used; arriving: input pixels of a stream
    parallel    positions that are computed at once (io parallel)
    window      values under the window; line: values of the rows that a stream's window spans beyond it
    elements    outputs of a pixel; width: their bits
    lookups     table reads at the same time; table_size, table_width: entries and bits of a table
    steps       time steps; static: one step's hardware serves all of them
    gates       products of gates and states in a step, of which ``fused`` are added to another
    sharing     whether products may share multipliers (``fit``)
    """

    name: str
    kind: str
    strategy: str = "latency"
    reuse: int = 1
    matrices: tuple[Matrix, ...] = ()
    positions: int = 1
    arriving: int = 1
    parallel: int = 1
    window: int = 0
    line: int = 0
    elements: int = 0
    width: int = 16
    lookups: tuple[int, ...] = ()
    table_size: int = 1024
    table_width: int = TABLE_BITS
    steps: int = 1
    static: bool = True
    gates: int = 0
    fused: int = 0
    average: bool = False
    sharing: bool = True

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise OperatorError("estimate", "strategy", repr(self.strategy), f"known are {', '.join(STRATEGIES)}")
        if self.reuse < 1:
            raise OperatorError("estimate", "reuse", self.reuse, "it has to be at least 1")

    def reuse_factors(self) -> list[int]:
        """What ``reuse`` may be in resource strategy: what each matrix may take, as hls4ml gives one of two the nearest."""
        if not self.matrices or not self.sharing:
            return [1]
        return sorted(set.intersection(*(set(matrix.reuse_factors()) for matrix in self.matrices)))


def describe(
    problem: Problem,
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    name: str = "",
    strategy: str = "latency",
    reuse: int = 1,
    parallel: int = 1,
    static: bool = True,
) -> Layer:
    """The layer of a fixed-point problem (ops/fixed.py), of one sample. Raises OperatorError for other operators.

    constants   integer weights by input name: "w" of fixed_conv; "w" and "r" of recurrent layers, ONNX's shapes
    parallel    output positions that a convolution in io parallel computes at once (hls4ml's ParallelizationFactor)
    static      whether the hardware of one time step serves all steps; else each step has its own
    """
    given, name = constants or {}, name or problem.op
    if problem.op == "fixed_conv":
        layer = _describe_conv(problem, given.get("w"))
    elif problem.op in ("fixed_max_pool", "fixed_average_pool"):
        layer = _describe_pool(problem)
    elif problem.op in ("fixed_rnn", "fixed_lstm", "fixed_gru"):
        layer = _describe_recurrent(problem, given)
    else:
        raise OperatorError("estimate", "the operator", problem.op, "describe takes the operators of ops/fixed.py")
    return replace(layer, name=name, strategy=strategy, reuse=reuse, parallel=parallel, static=static)


def _matrix(
    problem: Problem, inputs: int, outputs: int, x: str, w: str, counts: WeightCounts | None, copies: int
) -> Matrix:
    x_format, w_format, total = (fixed.format_of(problem, attribute) for attribute in (x, w, "accumulator"))
    full = x_format.width + w_format.width
    dropped = max(0, x_format.fraction + w_format.fraction - total.fraction)
    reaching = min(full, total.width + dropped)
    return Matrix(inputs, outputs, x_format.width, w_format.width, total.width, reaching, copies, counts)


def _describe_conv(problem: Problem, w: np.ndarray | None) -> Layer:
    g = conv.geometry(problem)
    window = g.window
    counts = None if w is None else count_weights(w, g.groups)
    matrix = _matrix(problem, g.in_per_group * window.taps, g.out_per_group, "x_format", "w_format", counts, g.groups)
    return Layer(
        "",
        "product",
        matrices=(matrix,),
        positions=window.output_size,
        arriving=window.input_size,
        window=g.in_channels * window.taps if window.taps > 1 else 0,
        line=(window.kernel[1] - 1) * window.input[2] * g.in_channels,
        elements=g.out_channels,
        width=fixed.format_of(problem, "y_format").width,
    )


def _describe_pool(problem: Problem) -> Layer:
    window, channels = pool.geometry(problem).window, problem.input(0).shape[1]
    return Layer(
        "",
        "pool",
        positions=window.output_size,
        arriving=window.input_size,
        window=channels * window.taps,
        line=(window.kernel[1] - 1) * window.input[2] * channels,
        elements=channels,
        width=fixed.format_of(problem, "x_format").width,
        average=problem.op == "fixed_average_pool",
    )


def _describe_recurrent(problem: Problem, constants: Mapping[str, np.ndarray]) -> Layer:
    r = fixed.recurrent_geometry(problem)
    matrices = []
    for name, inputs, x in (("w", r.inputs, "x_format"), ("r", r.hidden, "y_format")):
        given = constants.get(name)
        counts = None if given is None else count_weights(given.reshape(-1, inputs), r.directions)
        matrices.append(_matrix(problem, inputs, r.gates * r.hidden, x, f"{name}_format", counts, r.directions))
    # of n tables' readers two share a memory's ports, but functions do not share memories
    reading = Counter(
        {f: reads * r.hidden for f, reads in _gate_reads(problem.op, r.activations[0]).items() if f != "Relu"}
    )
    return Layer(
        "",
        "recurrent",
        matrices=tuple(matrices),
        elements=r.hidden * r.directions,
        width=fixed.format_of(problem, "accumulator").width,
        lookups=tuple(reading.values()) * r.directions,
        table_size=problem.integer("table_size"),
        table_width=fixed.format_of(problem, "table_format").width,
        steps=max(1, r.steps),
        gates=0 if problem.op == "fixed_rnn" else 3 * r.hidden * r.directions,
        fused=0 if problem.op == "fixed_rnn" else r.hidden * r.directions,
    )


def _gate_reads(op: str, functions: Sequence[str]) -> Counter[str]:
    """How often a hidden unit reads each function's table in a step."""
    if op == "fixed_rnn":
        return Counter(functions[:1])
    if op == "fixed_gru":
        return Counter({functions[0]: 2}) + Counter({functions[1]: 1})
    return Counter({functions[0]: 3}) + Counter({functions[1]: 1}) + Counter({functions[2]: 1})


def relu(name: str, elements: int, width: int, positions: int = 1) -> Layer:
    """Of ``positions`` pixels of ``elements`` values."""
    return Layer(name, "relu", elements=elements, width=width, positions=positions, arriving=positions)


def add(name: str, elements: int, width: int, positions: int = 1) -> Layer:
    """An element-wise sum of two values of ``width`` bits."""
    return Layer(name, "add", elements=elements, width=width, positions=positions, arriving=positions)


def copy(name: str, elements: int, width: int, positions: int = 1) -> Layer:
    """What moves values alone: in io stream a concatenation, a change of shape, an upsampling to ``positions``."""
    return Layer(name, "copy", elements=elements, width=width, positions=positions, arriving=positions)


def table(name: str, elements: int, width: int, table_size: int, table_width: int, positions: int = 1) -> Layer:
    """A function that is looked up: sigmoid, tanh, softplus, softsign, …"""
    return Layer(
        name, "table", elements=elements, width=width, positions=positions, arriving=positions,
        lookups=(elements,), table_size=table_size, table_width=table_width,
    )  # fmt: skip


def softmax(name: str, classes: int, width: int, table_size: int = 1024, table_width: int = TABLE_BITS) -> Layer:
    """hls4ml's stable softmax: a table of exponentials for each class, one of inverses, and a product for each class."""
    return Layer(
        name, "softmax", elements=classes, width=width, lookups=(classes, 1), table_size=table_size, table_width=table_width,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Estimate:
    """A layer's, or a whole design's, figures. dsp, lut, ff, bram: the part's blocks (Part says which); latency and
    interval in clock cycles. ``multipliers`` work at the same time, in DSP blocks or in logic."""

    name: str
    multipliers: int
    dsp: Band
    lut: Band
    ff: Band
    bram: Band
    latency: Band
    interval: int
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Bill:
    """What is added up of a layer; fractions of blocks are rounded at the end."""

    multipliers: float = 0.0
    dsp: float = 0.0
    lut: float = 0.0
    ff: float = 0.0
    bram: float = 0.0

    def times(self, factor: float) -> _Bill:
        return _Bill(*(factor * value for value in (self.multipliers, self.dsp, self.lut, self.ff, self.bram)))

    def add(self, other: _Bill) -> None:
        self.multipliers += other.multipliers
        self.dsp += other.dsp
        self.lut += other.lut
        self.ff += other.ff
        self.bram += other.bram


def adder_tree(terms: int, target: Target) -> tuple[int, list[int]]:
    """States of a product and the balanced sum of ``terms`` behind it, and how many levels of the sum are done at each
    register between them. What does not fit into the clock's usable part starts a state anew."""
    family, usable = target.part.family, target.usable_ns
    levels = math.ceil(math.log2(terms + 1))  # the bias is one more
    # a product longer than a cycle is pipelined inside its DSP block
    states = max(1, math.ceil(family.multiplier_ns / usable))
    spent = family.multiplier_ns if states == 1 else usable
    cuts: list[int] = []
    for level in range(levels):
        if spent + family.adder_ns > usable:
            states, spent = states + max(1, math.ceil(family.adder_ns / usable)), 0.0
            cuts.append(level)
        spent += min(family.adder_ns, usable)
    return states, cuts


def _products(count: int, a: int, b: int, family: Family, fused: bool = False) -> _Bill:
    """``count`` multipliers of a by b bits; fused with an addition they take a DSP block whatever their width."""
    if fused or max(a, b) >= DSP_FROM:
        return _Bill(multipliers=count, dsp=count * family.dsp_blocks(a, b))
    return _Bill(multipliers=count, lut=count * MULTIPLIER_LUT * max(a, b) ** 2)


def _latency_matrix(matrix: Matrix, reuse: int, target: Target) -> tuple[_Bill, int, int]:
    """Bill, cycles and interval of a matrix whose weights are constants in the logic."""
    counts, family = matrix.known, target.part.family
    limit = max(1, -(-counts.weights // reuse) - (counts.weights - counts.nonzero) // reuse)
    shared = min(1.0, limit / counts.multipliers) if counts.multipliers else 1.0
    bill = _Bill()
    for bits, count in counts.multiplied:
        bill.add(_products(count, matrix.x_width, bits, family).times(shared))
    bill.lut += counts.nonzero * (matrix.sum_width + ADDER_LUT)
    bill.lut += counts.shifted * (matrix.x_width + matrix.w_width / 2 + SHIFTED_LUT)
    states, cuts = adder_tree(counts.terms, target)
    for levels in cuts:
        bill.ff += counts.nonzero / 2**levels * (matrix.sum_width if levels else matrix.product_width)
    rounds = math.ceil(counts.multipliers / limit) if counts.multipliers else 1
    cycles = states + rounds - 1
    return bill, cycles, max(1, min(reuse, cycles))


def _resource_matrix(matrix: Matrix, reuse: int, family: Family) -> tuple[_Bill, int, int]:
    """Bill, cycles and interval of a matrix whose weights are read from memory, ``reuse`` rows of them."""
    rows = min(reuse, matrix.inputs * matrix.outputs)
    multipliers = -(-matrix.inputs * matrix.outputs // rows) * matrix.copies
    bill = _products(multipliers, matrix.x_width, matrix.w_width, family)
    bill.lut += multipliers * matrix.sum_width
    if rows not in (1, matrix.inputs):
        # each multiplier picks its input, or its output's sum, in every cycle
        bill.lut += multipliers * (matrix.x_width**2 + matrix.x_width + 1)
    bill.lut += matrix.copies * (2.2 * matrix.inputs * matrix.x_width + 1.1 * matrix.outputs * matrix.sum_width)
    bill.ff += multipliers * matrix.product_width
    bill.ff += matrix.copies * (matrix.outputs * matrix.sum_width + matrix.inputs * matrix.x_width)
    bits = multipliers * matrix.w_width
    if rows > 1 and bits * rows > SMALL_ROM:
        bill.bram += family.memory_blocks(rows, bits)
    return bill, rows + 1, rows


def _tables(layer: Layer, family: Family) -> _Bill:
    """Memories of tables, two readers at each, and what computes their places."""
    bill = _Bill(lut=8.0 * layer.width * sum(layer.lookups))
    bits = layer.table_size * layer.table_width
    for readers in layer.lookups:
        memories = math.ceil(readers / 2)
        if bits > SMALL_ROM:
            bill.bram += memories * family.memory_blocks(layer.table_size, layer.table_width)
        else:
            bill.lut += memories * bits / 64
    return bill


def _nearest(wanted: int, possible: Sequence[int]) -> int:
    """As hls4ml chooses: the nearest, of two the smaller."""
    return min(possible, key=lambda reuse: (abs(reuse - wanted), reuse))


def _matrix_reuse(matrix: Matrix, layer: Layer) -> int:
    """The reuse factor that hls4ml gives a matrix in resource strategy."""
    return _nearest(layer.reuse, matrix.reuse_factors())


def _unrolled(matrix: Matrix, layer: Layer) -> bool:
    """Whether the weights are constants in the logic; without reuse they are so in resource strategy too."""
    return layer.strategy == "latency" or _matrix_reuse(matrix, layer) == 1


def _matrix_cost(matrix: Matrix, layer: Layer, target: Target) -> tuple[_Bill, int, int]:
    if _unrolled(matrix, layer):
        return _latency_matrix(matrix, layer.reuse if layer.strategy == "latency" else 1, target)
    return _resource_matrix(matrix, _matrix_reuse(matrix, layer), target.part.family)


def _product_layer(layer: Layer, target: Target) -> tuple[_Bill, int, int]:
    [matrix] = layer.matrices
    bill, cycles, interval = _matrix_cost(matrix, layer, target)
    if target.io == "stream":
        bill.add(_stream_window(layer, matrix.x_width))
        if layer.positions == layer.arriving == 1:
            return bill, cycles, interval
        if layer.strategy == "latency":
            over = layer.arriving * interval + LOOP_FILL
        else:
            # the loop over pixels is not pipelined around the products
            over = layer.positions * (cycles + LOOP_FILL) + (layer.arriving - layer.positions) * 2
        return bill, over + cycles, over
    at_once = min(layer.parallel, layer.positions)
    turns = -(-layer.positions // at_once)
    if at_once > 1 and layer.strategy == "latency":
        bill = bill.times(at_once)
    elif at_once > 1:
        memory, bill = bill.bram, bill.times(at_once)
        bill.bram = memory  # all positions read the same weights
    if turns > 1:
        # a window's value comes from any of the turns' places
        bill.lut += layer.window * at_once * matrix.x_width * turns / 3
    return bill, cycles + (turns - 1) * interval, turns * interval


def _stream_window(layer: Layer, width: int) -> _Bill:
    """The shift registers of a window over a stream of pixels, 32 places of a row in a LUT."""
    return _Bill(lut=4.0 * layer.window * width + layer.line * width / 32, ff=2.0 * layer.window * width)


def _pool_layer(layer: Layer, target: Target) -> tuple[_Bill, int, int]:
    taps = layer.window // layer.elements
    at_once = layer.elements if target.io == "stream" else layer.elements * layer.positions
    step = layer.width + ADDER_LUT if layer.average else 3 * layer.width
    bill = _Bill(lut=float(at_once * (taps - 1) * step), ff=float(at_once * layer.width))
    if layer.average and taps & (taps - 1):
        bill.lut += at_once * (layer.width + 4) ** 2  # a divider
    states, _ = adder_tree(taps, target)
    if target.io == "stream":
        bill.add(_stream_window(layer, layer.width))
        return bill, layer.arriving + LOOP_FILL, layer.arriving + LOOP_FILL
    return bill, states, 1


def _recurrent_layer(layer: Layer, target: Target) -> tuple[_Bill, int, int]:
    family, step = target.part.family, _Bill()
    cycles = interval = 1
    for matrix in layer.matrices:
        bill, own, pace = _matrix_cost(matrix, layer, target)
        step.add(bill)
        cycles = max(cycles, own if _unrolled(matrix, layer) else pace)
        interval = max(interval, pace)
    step.add(_tables(layer, family))
    for each, fused in ((layer.gates - layer.fused, False), (layer.fused, True)):
        step.add(_products(each, layer.width, layer.width, family, fused))
    step.lut += 5.0 * layer.width * layer.elements
    step.ff += 11.6 * layer.width * layer.elements
    over = layer.steps * (cycles + GATE_CYCLES[layer.width >= DSP_FROM]) + 1
    if not layer.static:
        return step.times(layer.steps), over, interval
    if target.io == "parallel":
        step.lut += 14.0 * layer.steps * layer.matrices[0].inputs * layer.matrices[0].x_width
    return step, over, over


def _element_layer(layer: Layer, target: Target) -> tuple[_Bill, int, int]:
    stream = target.io == "stream"
    count = layer.elements if stream else layer.elements * layer.positions
    cycles = {"relu": 0, "table": 2, "softmax": SOFTMAX_CYCLES, "add": 1, "copy": 0}[layer.kind]
    if layer.kind in ("table", "softmax"):
        bill = _tables(
            layer if stream else replace(layer, lookups=tuple(n * layer.positions for n in layer.lookups)),
            target.part.family,
        )
    else:
        lut = {"relu": 2.5 * layer.width, "add": layer.width + ADDER_LUT, "copy": 0.0}[layer.kind]
        bill = _Bill(lut=count * lut)
    if layer.kind == "softmax":
        bill.add(_products(layer.elements, layer.table_width, layer.table_width, target.part.family))
        bill.ff += 3.0 * layer.width * layer.elements
    if stream and layer.positions > 1:
        return bill, layer.positions + 2 + cycles, layer.positions + 2
    return bill, cycles, 1


BANDS = {
    # strategy: DSP, LUT, FF, BRAM, latency; below and above the estimate
    "latency": ((0.95, 1.05), (0.4, 1.4), (0.5, 1.8), (0.8, 2.1), (0.75, 1.35)),
    "resource": ((1.0, 1.0), (0.08, 1.5), (0.5, 1.5), (0.6, 1.05), (0.95, 1.15)),
}
"""How far figures lay from the estimates: upwards those of C synthesis, downwards (LUT, BRAM) also those after logic synthesis,
which takes out most of the multiplexers that C synthesis counts."""


def estimate_layer(layer: Layer, target: Target) -> Estimate:
    """What a layer takes. Intel's ALMs are counted as two LUTs each."""
    bill, cycles, interval = {
        "product": _product_layer,
        "recurrent": _recurrent_layer,
        "pool": _pool_layer,
    }.get(layer.kind, _element_layer)(layer, target)
    bill.ff += layer.elements * layer.width * (1 if target.io == "stream" else layer.positions)
    if target.io == "stream":
        bill.add(_fifo(layer, target.part.family))
    family, notes = target.part.family, _notes(layer, target)
    if family.logic == "ALM":
        bill.lut /= 2
    dsp, lut, ff, bram, latency = BANDS[layer.strategy]
    if any(matrix.counts is None and _unrolled(matrix, layer) for matrix in layer.matrices):
        dsp, lut = (0.2, 1.0), (0.1, 1.0)
    late = Band.around(cycles, *latency)
    if unbalanced(layer):
        late = replace(late, high=max(late.high, cycles + max(matrix.known.terms for matrix in layer.matrices) // 2))
    return Estimate(
        layer.name,
        math.ceil(bill.multipliers),
        Band.around(math.ceil(bill.dsp), *dsp),
        Band.around(bill.lut, *lut),
        Band.around(bill.ff, *ff),
        Band.around(bill.bram, *bram),
        late,
        interval,
        notes,
    )


def _fifo(layer: Layer, family: Family) -> _Bill:
    """The FIFO behind a layer: a lane for each value of a pixel, as deep as there are pixels."""
    small, deep = FIFO_FF
    if layer.positions * layer.width <= SMALL_FIFO:
        return _Bill(lut=float(layer.elements * (FIFO_LUT + layer.width)), ff=float(layer.elements * small))
    blocks = layer.elements * family.memory_blocks(layer.positions, layer.width)
    return _Bill(lut=float(layer.elements * (FIFO_LUT + layer.width)), ff=float(layer.elements * deep), bram=blocks)


def unbalanced(layer: Layer) -> bool:
    """Whether a layer has more products in parallel than HLS balances."""
    return any(matrix.weights > UNROLL_LIMIT and _unrolled(matrix, layer) for matrix in layer.matrices)


def _notes(layer: Layer, target: Target) -> tuple[str, ...]:
    notes = []
    if unbalanced(layer):
        most = max(matrix.weights for matrix in layer.matrices)
        notes.append(
            f"{most:,} products side by side: beyond {UNROLL_LIMIT:,} HLS may refuse to unroll them or adds them in a "
            "chain; take the resource strategy and a larger reuse"
        )
    if any(matrix.counts is None and _unrolled(matrix, layer) for matrix in layer.matrices):
        notes.append("the weights are not known: each is taken to need a multiplier")
    if layer.strategy == "resource":
        for matrix in layer.matrices:
            nearest = _matrix_reuse(matrix, layer)
            if nearest != layer.reuse:
                notes.append(
                    f"reuse {layer.reuse} does not suit {matrix.inputs} x {matrix.outputs} weights; hls4ml takes {nearest}"
                )
    return tuple(notes)


@dataclass(frozen=True, slots=True)
class EstimateReport:
    """A design's layers and their sum, on a part. ``dataclasses.asdict`` makes plain numbers of it."""

    target: Target
    layers: tuple[Estimate, ...]
    total: Estimate

    @property
    def latency_ns(self) -> Band:
        cycles, period = self.total.latency, self.target.clock_ns
        return Band(round(cycles.low * period), round(cycles.value * period), round(cycles.high * period))

    def shares(self) -> dict[str, float]:
        """What share of the part the estimate takes, by resource; above 1 it cannot fit."""
        part, total = self.target.part, self.total
        return {
            "DSP": total.dsp.value / part.dsp,
            part.family.logic: total.lut.value / part.lut,
            "FF": total.ff.value / part.ff,
            "BRAM": total.bram.value / part.bram,
        }

    def warnings(self) -> list[str]:
        """Why the design will not fit the part or pass the tool; empty when nothing speaks against it."""
        total, part = self.total, self.target.part
        bands = (total.dsp, total.lut, total.ff, total.bram)
        lines = [
            f"{band.value:,} {name} {'do' if band.low > held else 'may'} not fit {part.name}, which has {held:,}"
            for name, band, held in zip(self.shares(), bands, (part.dsp, part.lut, part.ff, part.bram))
            if band.value > held
        ]
        if lines and total.multipliers > part.dsp:
            lines.append(
                f"{total.multipliers:,} products are computed at the same time; a larger reuse shares multipliers"
            )
        return [*lines, *(f"{layer.name}: {note}" for layer in self.layers for note in layer.notes)]

    def text(self) -> str:
        """A table for a terminal. BRAM are the part's blocks; cycles of the target's clock."""
        part, period = self.target.part, self.target.clock_ns
        rows: list[Sequence[str]] = [
            ("layer", "multipliers", "DSP", part.family.logic, "FF", "BRAM", "latency", "interval")
        ]
        rows += [_row(layer) for layer in (*self.layers, self.total)]
        lines = [
            f"Estimate before synthesis: {part.name} ({part.family.name}), {1000 / period:.0f} MHz, io {self.target.io}, "
            f"{self.target.backend}; in brackets the range to expect",
            *aligned(rows),
            "of the part: " + ", ".join(f"{name} {share:.1%}" for name, share in self.shares().items()),
            f"latency {self.latency_ns} ns, a new input every {self.total.interval * period:,.0f} ns",
        ]
        return "\n".join(lines + [f"warning: {line}" for line in self.warnings()])


def _row(one: Estimate) -> tuple[str, ...]:
    bands = (one.dsp, one.lut, one.ff, one.bram, one.latency)
    return (one.name, f"{one.multipliers:,}", *map(str, bands), f"{one.interval:,}")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, its first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width) for i, (text, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]


def estimate(layers: Iterable[Layer], target: Target) -> EstimateReport:
    """The layers of a design in the order of its data, and their sum.

    Resources add up. The interval is the slowest layer's; a dataflow region starts one cycle after a part of it that is
    a loop has ended. In io parallel latencies add up; in a stream all layers work at once, behind the slowest.
    """
    described = tuple(layers)
    return summed(described, tuple(estimate_layer(layer, target) for layer in described), target)


def summed(layers: Sequence[Layer], each: tuple[Estimate, ...], target: Target) -> EstimateReport:
    """``estimate``, of layers whose estimates are known."""
    latency = sum((one.latency for one in each), NOTHING)
    interval = max((one.interval for one in each), default=1)
    looping = any(
        one.interval == interval
        and interval > 1
        and (target.io == "stream" or (layer.kind == "recurrent" and layer.static))
        for layer, one in zip(layers, each)
    )
    if target.io == "stream" and each:
        slowest = max(each, key=lambda one: one.latency.value)
        filling = sum(
            (Band.around(max(0, one.latency.value - one.interval), 0.5, 2.0) for one in each if one is not slowest),
            NOTHING,
        )
        latency = slowest.latency + filling
    total = Estimate(
        "total",
        sum(one.multipliers for one in each),
        sum((one.dsp for one in each), NOTHING),
        sum((one.lut for one in each), NOTHING),
        sum((one.ff for one in each), NOTHING),
        sum((one.bram for one in each), NOTHING),
        latency,
        interval + looping,
    )
    return EstimateReport(target, each, total)
