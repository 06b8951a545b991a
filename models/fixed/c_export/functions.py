"""The C text of a network's steps: one function each, its sizes and formats written in as constants.

Arrays are in ONNX's order, a batch of one. The text is C99 and OpenCL C alike, by way of a few names that begin with QF_
(c_export/__init__.py and opencl.py define them). Casts are those of include/quatrefoil/fixed.h, whose arguments are constants,
so that a compiler leaves of each cast a shift, an addition and what the overflow needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from quatrefoil import ops
from quatrefoil.models.fixed import elements
from quatrefoil.models.fixed.c_export.moves import NOWHERE, Nest
from quatrefoil.models.graph import Node
from quatrefoil.numerics import TABLE_REACH, Fixed, function_table
from quatrefoil.ops import conv, pool, rnn
from quatrefoil.ops import fixed as fixed_ops
from quatrefoil.ops.activations import Activation
from quatrefoil.ops.windows import Window
from quatrefoil.problem import Problem, Tensor

Shape = tuple[int, ...]


def c_type(form: Fixed) -> str:
    """The narrowest integer type of C that holds every integer of a format."""
    for bits in (8, 16, 32, 64):
        if form.width <= bits:
            return f"{'' if form.signed else 'u'}int{bits}_t"
    raise AssertionError(form)


def type_of(values: np.ndarray) -> str:
    """The narrowest signed integer type that holds the values."""
    reach = max(int(values.max(initial=0)), -int(values.min(initial=0)) - 1)
    return next(f"int{bits}_t" for bits in (8, 16, 32, 64) if reach < 1 << (bits - 1))


def c_bytes(kind: str) -> int:
    return int(kind.strip("uint_")) // 8


def literal(form: Fixed) -> str:
    """A qf_format."""
    return f"(qf_format){{{form.initializer}}}"


def wide(number: int) -> str:
    """A constant of 64 bits."""
    return f"QF_64({number})"


def cast(value: str, fraction: int, form: Fixed) -> str:
    return f"qf_cast({value}, {fraction - form.fraction}, {literal(form)})"


@dataclass
class Source:
    """A C file in the making: constants, of which equal ones are kept once, and functions."""

    constants: dict[tuple[str, bytes], str] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    constant_bytes: int = 0

    def function(self, name: str, text: str) -> str:
        """The name under which a function is known: of functions that differ in their names alone one is kept."""
        key = text.replace(f"{name}(", "@(")
        if key not in self.named:
            self.named[key] = name
            self.functions.append(text)
        return self.named[key]

    def array(self, name: str, values: np.ndarray, kind: str | None = None) -> str:
        """The name under which a constant array is known."""
        values = np.asarray(values, np.int64)
        kind = kind or type_of(values)
        key = kind, values.tobytes()
        if key not in self.constants:
            taken = set(self.constants.values())
            unique = name
            while unique in taken:
                unique += "_"
            self.constants[key] = unique
            numbers = [wide(number) if kind.endswith("64_t") else str(number) for number in values.reshape(-1).tolist()]
            rows = [", ".join(numbers[start : start + 16]) for start in range(0, len(numbers), 16)]
            body = ",\n  ".join(rows) or "0"
            self.texts.append(f"QF_TABLE {kind} {unique}[{max(len(numbers), 1)}] = {{\n  {body}\n}};")
            self.constant_bytes += values.size * c_bytes(kind)
        return self.constants[key]


@dataclass(frozen=True)
class Step:
    """A node about to be written: its name in C, and the types of what it takes and gives."""

    name: str
    node: Node
    inputs: Sequence[Tensor | None]
    outputs: Sequence[Tensor | None]
    formats: Mapping[str, Fixed]
    constants: Mapping[str, np.ndarray]

    def form(self, attribute: str) -> Fixed:
        return fixed_ops.parse_format(str(self.node.attributes[attribute]))

    def kind(self, name: str) -> str:
        return c_type(self.formats[name])

    @property
    def problem(self) -> Problem:
        assert self.node.op is not None
        attributes: Mapping[str, Any] = self.node.attributes
        if self.node.whole_plane:
            first = self.inputs[0]
            assert first is not None
            attributes = pool.global_attributes(first, attributes)
        return ops.canonical(self.node.op, self.inputs, attributes)


@dataclass(frozen=True)
class Sum:
    """How products are added: ``start`` (int64, in the accumulator's format), ``kind`` of the C accumulator."""

    accumulator: Fixed
    fraction: int
    kind: str
    exact: bool
    wraps: bool

    @classmethod
    def of(cls, accumulator: Fixed, x: Fixed, w: Fixed, weights: np.ndarray, start: np.ndarray) -> Sum:
        """weights: integers (outputs, …), start: (outputs)."""
        fraction = x.fraction + w.fraction
        most = fixed_ops.largest_sum(x, weights.reshape(len(weights), -1), fraction, start, accumulator)
        exact = accumulator.fraction >= fraction and most <= accumulator.high
        narrow = exact and most < 1 << 31 and x.width + w.width <= 32
        return cls(accumulator, fraction, "int32_t" if narrow else "qf_int64", exact, accumulator.overflow == "WRAP")

    def add(self, product: str, other: str) -> str:
        """The statement that adds a product to ``sum``."""
        up = self.accumulator.fraction - self.fraction
        if self.exact:
            scaled = f" * {1 << up}" if up else ""
            return f"sum += ({self.kind}){product} * {other}{scaled};"
        term = cast(f"(qf_int64){product} * {other}", self.fraction, self.accumulator)
        if self.wraps:
            return f"sum = (qf_int64)((qf_uint64)sum + (qf_uint64){term});"
        return f"sum = qf_fitted(sum + {term}, {literal(self.accumulator)});"

    def total(self) -> str:
        return "sum" if self.exact or not self.wraps else f"qf_fitted(sum, {literal(self.accumulator)})"


def indented(text: str, by: int) -> str:
    return "\n".join("  " * by + line if line else line for line in text.splitlines())


def loops(heads: Sequence[str], body: str, by: int = 1) -> str:
    """Nested loops around a body."""
    lines = [f"{'  ' * (by + depth)}{head} {{" for depth, head in enumerate(heads)]
    lines.append(indented(body, by + len(heads)))
    lines += [f"{'  ' * (by + depth)}}}" for depth in reversed(range(len(heads)))]
    return "\n".join(lines)


def counted(name: str, end: int) -> str:
    return f"for (int {name} = 0; {name} < {end}; {name}++)"


AXES: Final = "dhw"


def _places(window: Window) -> tuple[list[str], list[str], str]:
    """Loops over output places, over taps (those on padding left out), and the place in x that a tap reads."""
    places: list[str] = []
    taps: list[str] = []
    terms: list[str] = []
    stride = 1
    for axis in reversed(range(3)):
        name = AXES[axis]
        if window.output[axis] > 1:
            places.insert(0, counted(f"o{name}", window.output[axis]))
        out = f"o{name}" if window.output[axis] > 1 else "0"
        if window.kernel[axis] > 1 or window.pads[axis] or window.output[axis] > 1:
            position = f"{out} * {window.strides[axis]} + k{name} * {window.dilations[axis]} - {window.pads[axis]}"
            last = (window.output[axis] - 1) * window.strides[axis] - window.pads[axis]
            last += (window.kernel[axis] - 1) * window.dilations[axis]
            outside = []
            if window.pads[axis]:
                outside.append(f"i{name} < 0")
            if last >= window.input[axis]:
                outside.append(f"i{name} >= {window.input[axis]}")
            check = f"\nif ({' || '.join(outside)}) continue;" if outside else ""
            taps.insert(0, f"{counted(f'k{name}', window.kernel[axis])} {{\nconst int i{name} = {position};{check}")
            terms.insert(0, f"i{name} * {stride}")
        stride *= window.input[axis]
    return places, taps, " + ".join(terms) or "0"


def _within_taps(taps: Sequence[str], body: str) -> str:
    """A body inside the tap loops, each of which is opened by its text."""
    return "\n".join([*taps, body, *["}"] * len(taps)])


def convolution(step: Step, source: Source) -> str:
    problem = step.problem
    g = conv.geometry(problem)
    x, w, accumulator, y = (step.form(name) for name in ("x_format", "w_format", "accumulator", "y_format"))
    weights = step.constants[step.node.inputs[1]]
    start = np.zeros(g.out_channels, np.int64)
    if problem.has(conv.BIAS):
        start = accumulator.cast(step.constants[step.node.inputs[2]], step.form("bias_format").fraction)
    adding = Sum.of(accumulator, x, w, weights, start)
    window = g.window
    # taps, channels innermost, as products are added
    packed = weights.reshape(g.out_channels, g.in_per_group, window.taps).swapaxes(1, 2)
    table = source.array(f"{step.name}_weight", packed, c_type(w))
    bias = source.array(f"{step.name}_bias", start) if start.any() else ""
    places, taps, place = _places(window)
    tap = " + ".join(
        f"k{name} * {int(np.prod(window.kernel[axis + 1 :]))}"
        for axis, name in enumerate(AXES) if any(head.startswith(f"for (int k{name} ") for head in taps)
    ) or "0"  # fmt: skip
    first = f"m / {g.out_per_group} * {g.in_per_group}" if g.groups > 1 else "0"
    body = adding.add(f"x[(c0 + c) * {window.input_size} + place]", f"w[tap * {g.in_per_group} + c]")
    reuse = problem.integer("reuse")
    if reuse > 1:
        count = window.taps * g.in_per_group
        decode = [f"const int tap = i / {g.in_per_group}, c = i % {g.in_per_group};"]
        for axis, name in enumerate(AXES):
            inner = int(np.prod(window.kernel[axis + 1 :]))
            decode.append(f"const int k{name} = tap / {inner} % {window.kernel[axis]};")
        for axis, name in enumerate(AXES):
            out = f"o{name}" if window.output[axis] > 1 else "0"
            decode.append(
                f"const int i{name} = {out} * {window.strides[axis]} + k{name} * {window.dilations[axis]} - "
                f"{window.pads[axis]};"
            )
        inside = " && ".join(f"i{name} >= 0 && i{name} < {n}" for name, n in zip(AXES, window.input))
        index = f"(id * {window.input[1]} + ih) * {window.input[2]} + iw"
        decode += [f"if ({inside}) {{", f"  const int place = {index};", f"  {body}", "}"]
        summed = "\n".join([
            f"for (int first = 0; first < {reuse}; first++) {{", f"for (int i = first; i < {count}; i += {reuse}) {{",
            *decode, "}", "}",
        ])  # fmt: skip
    else:
        nested = "\n".join([
            f"const int place = {place}, tap = {tap};", f"{counted('c', g.in_per_group)} {{", f"  {body}", "}",
        ])  # fmt: skip
        summed = _within_taps(taps, nested) if taps else f"{{\n{nested}\n}}"
    result = cast(adding.total(), accumulator.fraction, y)
    if any(name == "activation" for name, _ in problem.attributes):
        result = f"qf_relu({result})"
    lines = [
        f"QF_TABLE_POINTER {c_type(w)} *w = {table} + m * {window.taps * g.in_per_group};",
        f"const int c0 = {first};",
        f"{adding.kind} sum = {f'{bias}[m]' if bias else '0'};",
        summed,
        f"*y++ = ({c_type(y)}){result};",
    ]
    body = loops([counted("m", g.out_channels), *places], "\n".join(lines))
    return f"QF_STEP {step.name}(QF_GLOBAL const {c_type(x)} *x, QF_GLOBAL {c_type(y)} *y) {{\n{body}\n}}"


def pooling(step: Step, source: Source) -> str:
    problem = step.problem
    g = pool.geometry(problem)
    x, y = step.form("x_format"), step.form("y_format")
    places, taps, place = _places(g.window)
    lines = []
    if problem.op == "fixed_max_pool":
        lines.append("qf_int64 best = 0;\nint found = 0;")
        inner = (
            f"const qf_int64 v = x[p * {g.window.input_size} + {place}];\nif (!found || v > best) best = v;\nfound = 1;"
        )
        result = cast("best", x.fraction, y)
    else:
        accumulator = step.form("accumulator")
        counts = fixed_ops.divisors(problem)
        lines.append("qf_int64 sum = 0;")
        value = cast(f"x[p * {g.window.input_size} + {place}]", x.fraction, accumulator)
        inner = f"sum = qf_fitted(sum + {value}, {literal(accumulator)});"
        if len(np.unique(counts)) == 1:
            divisor = str(int(counts.flat[0]))
        else:
            index = " + ".join(
                f"o{name} * {int(np.prod(g.window.output[axis + 1 :]))}"
                for axis, name in enumerate(AXES) if g.window.output[axis] > 1
            )  # fmt: skip
            divisor = f"{source.array(f'{step.name}_divisors', counts)}[{index}]"
        result = cast(f"sum / {divisor}", accumulator.fraction, y)
    lines += [_within_taps(taps, inner) if taps else f"{{\n{inner}\n}}", f"*y++ = ({c_type(y)}){result};"]
    body = loops([counted("p", g.planes), *places], "\n".join(lines))
    return f"QF_STEP {step.name}(QF_GLOBAL const {c_type(x)} *x, QF_GLOBAL {c_type(y)} *y) {{\n{body}\n}}"


def recurrent(step: Step, source: Source) -> str:
    """One function for each direction, and one that calls them; what a gate does is a function that gates share."""
    problem = step.problem
    g = fixed_ops.recurrent_geometry(problem)
    x, y, accumulator = (step.form(name) for name in ("x_format", "y_format", "accumulator"))
    w_form, r_form, table_form = (step.form(name) for name in ("w_format", "r_format", "table_format"))
    names = list(step.node.inputs) + [""] * (len(fixed_ops.RECURRENT_NAMES) - len(step.node.inputs))
    w, r = step.constants[names[rnn.W]], step.constants[names[rnn.R]]
    bias = np.zeros((g.directions, 2 * g.gates * g.hidden), np.int64)
    if names[rnn.B]:
        bias = accumulator.cast(step.constants[names[rnn.B]], step.form("b_format").fraction)
    rows = g.gates * g.hidden
    reuse = problem.integer("reuse")
    kind, states = c_type(y), [names[rnn.INITIAL_H], names[rnn.INITIAL_C]]
    lstm = problem.op == "fixed_lstm"
    parts = []
    for direction, backwards in enumerate(g.reverse):
        own = f"{step.name}_{direction}"
        for what, form, weights, of, values in (("w", w_form, w, x, "x"), ("r", r_form, r, y, "h")):
            start = bias[direction][:rows] if what == "w" else bias[direction][rows:]
            adding = Sum.of(accumulator, of, form, weights[direction], start)
            table = source.array(f"{own}_{what}", weights[direction], c_type(form))
            begin = f"{source.array(f'{own}_{what}b', start)}[j]" if start.any() else "0"
            count = weights.shape[2]
            add = adding.add(f"{values}[i]", f"{table}[j * {count} + i]")
            order = (
                f"for (int i = 0; i < {count}; i++) {add}" if reuse == 1 else
                f"for (int first = 0; first < {reuse}; first++) for (int i = first; i < {count}; i += {reuse}) {add}"
            )  # fmt: skip
            parts.append(
                f"static qf_int64 {own}_{what}sum({'QF_GLOBAL ' if what == 'w' else ''}const {c_type(of)} *{values}, int j) {{\n"
                f"  {adding.kind} sum = {begin};\n  {order}\n  return {adding.total()};\n}}"
            )
        gates: list[str] = []
        for position, function in enumerate(g.activations[direction]):
            of = y if lstm and position == 2 else accumulator
            gates.append(_gate(f"{own}_f{position}", function, of, accumulator, table_form, step, source))
        parts.append(_step(step, own, gates, problem, g, accumulator, y))
        order = f"{g.steps - 1} - s" if backwards else "s"
        kept = ("h", "c")[: 1 + lstm]
        first = direction * g.hidden
        fill = [f"{s}[i] = {f'{s}0[{first} + i]' if start else '0'};" for s, start in zip(kept, states)]
        arguments = ", ".join(kept)
        finals = [f"y_{s}[{first} + i] = {s}[i];" for s in kept]
        parts.append(
            f"static void {own}({_signature(x, kind, states, lstm)}) {{\n"
            f"  {kind} h[{g.hidden}]{f', c[{g.hidden}]' if lstm else ''};\n"
            f"  for (int i = 0; i < {g.hidden}; i++) {{ {' '.join(fill)} }}\n"
            f"  {counted('s', g.steps)} {{\n    const int t = {order};\n"
            f"    {own}_step(x + t * {g.inputs}, {arguments});\n"
            f"    if (y) for (int i = 0; i < {g.hidden}; i++) y[(t * {g.directions} + {direction}) * {g.hidden} + i] = h[i];\n"
            f"  }}\n"
            + "".join(
                f"  if (y_{state}) for (int i = 0; i < {g.hidden}; i++) {final}\n" for state, final in zip(kept, finals)
            )
            + "}"
        )
    given = [name for name, there in zip(("h0", "c0"), states) if there]
    passed = ", ".join(["x", *given, *("y", "y_h", "y_c")[: 2 + lstm]])
    calls = "\n".join(f"  {step.name}_{direction}({passed});" for direction in range(g.directions))
    parts.append(f"QF_STEP {step.name}({_signature(x, kind, states, lstm)}) {{\n{calls}\n}}")
    return "\n\n".join(parts)


def _signature(x: Fixed, kind: str, states: Sequence[str], lstm: bool) -> str:
    given = [f"QF_GLOBAL const {kind} *{name}" for name, there in zip(("h0", "c0"), states) if there]
    outputs = [f"QF_GLOBAL {kind} *{name}" for name in ("y", "y_h", "y_c")[: 2 + lstm]]
    return ", ".join([f"QF_GLOBAL const {c_type(x)} *x", *given, *outputs])


def _gate(name: str, function: str, of: Fixed, accumulator: Fixed, kept: Fixed, step: Step, source: Source) -> str:
    if function not in TABLE_REACH:
        result = cast("qf_relu(v)", of.fraction, accumulator)
    else:
        size = int(step.node.attributes["table_size"])
        result = cast(lookup(function, size, kept, of.fraction, source), kept.fraction, accumulator)
    return source.function(name, f"static qf_int64 {name}(qf_int64 v) {{ return {result}; }}")


def lookup(function: str, size: int, kept: Fixed, fraction: int, source: Source) -> str:
    """A function's table at the place of v."""
    table = source.array(f"{function.lower()}_table", function_table(function, size, kept))
    bits = (2 * TABLE_REACH[function]).bit_length() - 1 + fraction - (size.bit_length() - 1)
    return f"{table}[qf_table_index(v, {bits}, {size})]"


def _step(
    step: Step,
    own: str,
    gates: Sequence[str],
    problem: Problem,
    g: fixed_ops.RecurrentGeometry,
    accumulator: Fixed,
    y: Fixed,
) -> str:
    """One step: new states of old ones."""
    hidden, fraction = g.hidden, accumulator.fraction
    most = max(fraction, y.fraction)
    kind, fitted = c_type(y), literal(accumulator)

    def blend(a: str, b: str, state: str, gate: str) -> str:
        of_sums, of_state = 1 << (most - fraction), 1 << (most - y.fraction)
        return cast(f"{a} * {b} * {wide(of_sums)} + {state} * {gate} * {wide(of_state)}", most + fraction, y)

    def total(row: str) -> str:
        return f"qf_fitted({own}_wsum(x, {row}) + {own}_rsum(h, {row}), {fitted})"

    arguments = f"QF_GLOBAL const {c_type(step.form('x_format'))} *x, {kind} *h"
    lines = [f"{kind} next[{hidden}];"]
    if problem.op == "fixed_rnn":
        fresh = cast(f"{gates[0]}({total('i')})", fraction, y)
        lines += [counted("i", hidden), f"  next[i] = ({kind}){fresh};"]
    elif problem.op == "fixed_lstm":
        arguments += f", {kind} *c"
        lines += [
            f"{counted('i', hidden)} {{",
            f"  const qf_int64 in = {gates[0]}({total('i')});",
            f"  const qf_int64 out = {gates[0]}({total(f'{hidden} + i')});",
            f"  const qf_int64 forget = {gates[0]}({total(f'{2 * hidden} + i')});",
            f"  const qf_int64 cell = {gates[1]}({total(f'{3 * hidden} + i')});",
            f"  c[i] = ({kind}){blend('cell', 'in', 'c[i]', 'forget')};",
            f"  next[i] = ({kind}){cast(f'out * {gates[2]}(c[i])', 2 * fraction, y)};",
            "}",
        ]
    else:
        update, reset = (f"{gates[0]}({total(row)})" for row in ("i", f"{hidden} + i"))
        row = f"{2 * hidden} + i"
        if g.linear_before_reset:
            kept = cast(f"{reset} * {own}_rsum(h, {row})", 2 * fraction, accumulator)
            before, t = [], f"const qf_int64 t = {kept};"
        else:
            kept = cast(f"{reset} * h[i]", fraction + y.fraction, y)
            before = [f"{kind} kept[{hidden}];", f"{counted('i', hidden)} kept[i] = ({kind}){kept};"]
            t = f"const qf_int64 t = {own}_rsum(kept, {row});"
        mixed = blend("fresh", f"({wide(1 << fraction)} - z)", "h[i]", "z")
        candidate = f"{gates[1]}(qf_fitted({own}_wsum(x, {row}) + t, {fitted}))"
        lines += [
            *before,
            f"{counted('i', hidden)} {{",
            f"  {t}",
            f"  const qf_int64 z = {update};",
            f"  const qf_int64 fresh = {candidate};",
            f"  next[i] = ({kind}){mixed};",
            "}",
        ]
    lines.append(f"{counted('i', hidden)} h[i] = next[i];")
    return f"static void {own}_step({arguments}) {{\n{indented(chr(10).join(lines), 1)}\n}}"


def element(step: Step, source: Source) -> str:
    """An element-wise node: ``v`` of one input, or a and b of two that may have to be broadcast."""
    y = step.form("y_format")
    out = step.outputs[0]
    assert out is not None
    if step.node.kind in ("FixedAdd", "FixedSub", "FixedMul"):
        a, b = step.form("a_format"), step.form("b_format")
        indices = [_broadcast(tensor.shape if tensor else (), out.shape) for tensor in step.inputs]
        first, second = (f"(qf_int64){name}[{index}]" for name, index in zip("ab", indices))
        if step.node.kind == "FixedMul":
            value, fraction = f"{first} * {second}", a.fraction + b.fraction
        else:
            fraction = max(a.fraction, b.fraction)
            sign = "+" if step.node.kind == "FixedAdd" else "-"
            value = f"{first} * {1 << (fraction - a.fraction)} {sign} {second} * {1 << (fraction - b.fraction)}"
        statement = f"y[i] = ({c_type(y)}){cast(value, fraction, y)};"
        signature = f"QF_GLOBAL const {c_type(a)} *a, QF_GLOBAL const {c_type(b)} *b, QF_GLOBAL {c_type(y)} *y"
    else:
        x = step.form("x_format")
        statement = f"const qf_int64 v = x[i];\ny[i] = ({c_type(y)})({value_of(step, source)});"
        signature = f"QF_GLOBAL const {c_type(x)} *x, QF_GLOBAL {c_type(y)} *y"
    return f"QF_STEP {step.name}({signature}) {{\n{loops([counted('i', out.size)], statement)}\n}}"


def value_of(step: Step, source: Source) -> str:
    """What a cast or a function makes of ``v``."""
    x, y = step.form("x_format"), step.form("y_format")
    return _function(step, x, y, source) if step.node.kind == "FixedActivation" else cast("v", x.fraction, y)


def _broadcast(shape: Shape, out: Shape) -> str:
    """The flat place in an array of ``shape`` that stands for the flat place i of the output."""
    if shape == out:
        return "i"
    padded = (1,) * (len(out) - len(shape)) + shape
    terms: list[str] = []
    stride = 1
    for axis in reversed(range(len(out))):
        if padded[axis] > 1:
            inner = int(np.prod(out[axis + 1 :]))
            terms.insert(0, f"i / {inner} % {out[axis]} * {stride}")
        stride *= padded[axis]
    return " + ".join(terms) or "0"


def _function(step: Step, x: Fixed, y: Fixed, source: Source) -> str:
    attributes = step.node.attributes
    function = Activation.parse(str(attributes["function"]))
    if function.name == "Relu":
        return cast("qf_relu(v)", x.fraction, y)
    if function.name in TABLE_REACH:
        kept = step.form("table_format")
        return cast(lookup(function.name, int(attributes["table_size"]), kept, x.fraction, source), kept.fraction, y)
    _, (alpha, beta) = elements.constants(attributes)
    if function.name == "Clip":
        return cast(f"v < {alpha} ? {alpha} : v > {beta} ? {beta} : v", x.fraction, y)
    scale = step.form("constant_format")
    if function.name == "LeakyRelu":
        return f"v > 0 ? {cast('v', x.fraction, y)} : {cast(f'{wide(alpha)} * v', x.fraction + scale.fraction, y)}"
    above = max(x.fraction, 0)
    lift = wide(1 << (above - x.fraction))
    if function.name == "HardSigmoid":
        fraction = above + scale.fraction
        line = f"{wide(alpha)} * v * {lift} + {wide(beta)} * {wide(1 << above)}"
        return cast(f"qf_between({line}, 0, {wide(1 << fraction)})", fraction, y)
    kept, size = step.form("table_format"), int(attributes["table_size"])
    table = source.array("elu_table", elements.elu_table(size, kept))
    index = f"qf_between((-v * {size // elements.ELU_REACH} * {lift}) >> {above}, 0, {size - 1})"
    below = cast(f"{wide(alpha)} * {table}[{index}]", scale.fraction + kept.fraction, y)
    return f"v >= 0 ? {cast('v', x.fraction, y)} : {below}"


def softmax(step: Step, source: Source) -> str:
    x, y = step.form("x_format"), step.form("y_format")
    difference, power, accumulator, total, inverse = (step.form(name) for name in elements.SOFTMAX_FORMATS)
    size = int(step.node.attributes["table_size"])
    bits = size.bit_length() - 1
    powers = accumulator.cast(elements.exponential_table(size, difference, power), power.fraction)
    exponentials = source.array("exponential_table", powers)
    inverses = source.array("inverse_table", elements.inverse_table(size, total, inverse))
    tensor = step.inputs[0]
    assert tensor is not None
    classes = tensor.shape[-1]
    entry = f"{exponentials}[{cast('best - x[i]', x.fraction, difference)} >> {difference.width - bits}]"
    summed = cast(f"qf_fitted(sum, {literal(accumulator)})", accumulator.fraction, total)
    body = "\n".join([
        "qf_int64 best = x[0], sum = 0;",
        f"for (int i = 1; i < {classes}; i++) if (x[i] > best) best = x[i];",
        f"{counted('i', classes)} sum += {entry};",
        f"const qf_int64 factor = {inverses}[{summed} >> {total.width - bits}];",
        f"{counted('i', classes)} *y++ = ({c_type(y)}){cast(f'{entry} * factor', accumulator.fraction + inverse.fraction, y)};",
        f"x += {classes};",
    ])  # fmt: skip
    rows = loops([counted("row", tensor.size // classes)], body)
    return f"QF_STEP {step.name}(QF_GLOBAL const {c_type(x)} *x, QF_GLOBAL {c_type(y)} *y) {{\n{rows}\n}}"


def move(name: str, kind: str, found: Nest | None, places: np.ndarray, source: Source, start: int, into: Shape) -> str:
    """A function that fills a box of an array of shape ``into``, whose first element lies at ``start``, from x.

    places: where in x each element of the box comes from; found: the same as loops, None where it is no nest.
    """
    out = places.shape
    strides = [int(np.prod(into[axis + 1 :])) for axis in range(len(into))]
    heads = [counted(f"i{axis}", length) for axis, length in enumerate(out)]
    target = " + ".join([str(start), *(f"i{axis} * {stride}" for axis, stride in enumerate(strides))])
    if found is None:
        table = source.array(f"{name}_places", places)
        flat = " + ".join(f"i{axis} * {int(np.prod(out[axis + 1 :]))}" for axis in range(len(out))) or "0"
        body = f"const int place = {table}[{flat}];\ny[{target}] = place < 0 ? 0 : x[place];"
    else:
        terms, lines, empty = [str(found.start)], [], []
        for axis, loop in enumerate(found.axes):
            if loop.table is not None:
                table = source.array(f"{name}_axis{axis}", np.array(loop.table))
                lines.append(f"const int t{axis} = {table}[i{axis}];")
                terms.append(f"t{axis}")
                if NOWHERE in loop.table:
                    empty.append(f"t{axis} < 0")
            elif loop.stride:
                terms.append(f"i{axis} * {loop.stride}")
        value = f"x[{' + '.join(terms)}]"
        if empty:
            value = f"{' || '.join(empty)} ? 0 : {value}"
        body = "\n".join([*lines, f"y[{target}] = {value};"])
    nested = loops(heads, body) if heads else indented(body, 1)
    return f"QF_STEP {name}(QF_GLOBAL const {kind} *x, QF_GLOBAL {kind} *y) {{\n{nested}\n}}"


WRITERS: Final[dict[str, Callable[[Step, Source], str]]] = {
    "fixed_conv": convolution,
    "fixed_max_pool": pooling,
    "fixed_average_pool": pooling,
    "fixed_rnn": recurrent,
    "fixed_lstm": recurrent,
    "fixed_gru": recurrent,
    "FixedCast": element,
    "FixedActivation": element,
    "FixedAdd": element,
    "FixedSub": element,
    "FixedMul": element,
    "FixedSoftmax": softmax,
}
"""What writes a node, by its operator of the house or its kind."""
