"""Recurrent layers: rnn, lstm and gru, as ONNX's newest operator set defines them.

Inputs (T steps, N sequences, I inputs, H hidden, D directions, G gates)
  x (T, N, I), w (D, G H, I), r (D, G H, H), b (D, 2 G H)?, sequence_lens (N) int32?, initial_h (D, N, H)?,
  lstm also initial_c (D, N, H)?, p (D, 3 H)? (peepholes in the order i, o, f)
Outputs
  y (T, D, N, H), y_h (D, N, H), lstm also y_c (D, N, H)
  rnn_training, lstm_training and gru_training, the same layers, also give what their gradients are computed from:
  sums (T, D, N, S H), the arguments of f and g before peepholes and clip, gate by gate; 0 from step s on. S = G, but 4
  for gru with linear_before_reset: z, r, Wh x + bwh, Rh h + brh.

Gate order is ONNX's: lstm i, o, f, c; gru z, r, h. With batch = N, s = sequence_lens[n] (T when absent):

  rnn    h' = f(W x + R h + bw + br)
  lstm   i = f(Wi x + Ri h + Pi c + b), f = f(Wf x + Rf h + Pf c + b) or 1 - i with input_forget,
         c~ = g(Wc x + Rc h + b), c' = f c + i c~, o = f(Wo x + Ro h + Po c' + b), h' = o h(c')
  gru    z = f(Wz x + Rz h + b), r = f(Wr x + Rr h + b),
         h~ = g(Wh x + (r h) Rh + bwh + brh), or with linear_before_reset g(Wh x + r (Rh h + brh) + bwh),
         h' = (1 - z) h~ + z h

``clip`` bounds the argument of f and g (the gates), as ONNX Runtime does; the cell on its way through lstm's h is
not clipped. The reverse direction runs over the s valid steps backwards. Steps from s on give y = 0; y_h and y_c are
the states after the last valid step (the initial states for s = 0).

Canonical attributes: direction, hidden_size, activations (D * count, parameters settled), clip (0.0 = none), layout,
and linear_before_reset (gru), input_forget (lstm). Kernels see layout 0 alone: dispatch turns layout 1 (batch first)
into it with transposed views (``without_layout``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

from quatrefoil.errors import OperatorError
from quatrefoil.ops.activations import FUNCTIONS, Activation, activation
from quatrefoil.ops.spec import Attributes, Case, Fill, OperatorSpec, tensor_bytes
from quatrefoil.ops.windows import flag_attribute, float_attribute, int_attribute
from quatrefoil.problem import AttributeValue, Problem, Tensor, Tolerance, Work

FLOATS = ("float32", "float64", "float16")
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
REVERSE = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
"""For each direction, whether each of its passes runs backwards."""

DIRECTIONS = tuple(REVERSE)
TRAINING = "_training"
"""What the names of the forms end in that also give the sums."""

DEFAULT_ACTIVATIONS = {"rnn": ("Tanh",), "lstm": ("Sigmoid", "Tanh", "Tanh"), "gru": ("Sigmoid", "Tanh")}

X, W, R, B, LENGTHS, INITIAL_H, INITIAL_C, P = range(8)
NAMES = ("x", "w", "r", "b", "sequence_lens", "initial_h", "initial_c", "p")


def layer(op: str) -> str:
    """rnn, lstm or gru: of a form that also gives the sums, the layer that it is a form of."""
    return op.removesuffix(TRAINING)


@dataclass(frozen=True, slots=True)
class RecurrentSizes:
    """The sizes of a recurrent problem, in floating or fixed point."""

    steps: int
    batch: int
    inputs: int
    hidden: int
    gates: int
    reverse: tuple[bool, ...]
    """For each direction, whether it runs backwards: (False,), (True,) or (False, True)."""
    linear_before_reset: bool

    @property
    def directions(self) -> int:
        return len(self.reverse)

    @property
    def slots(self) -> int:
        """Sums of a hidden unit."""
        return self.gates + self.linear_before_reset


def sizes(problem: Problem, kind: str) -> tuple[int, int, int, int, int, tuple[bool, ...], bool]:
    """The members of RecurrentSizes, of a canonical problem whose steps come first. kind: rnn, lstm or gru."""
    steps, batch, inputs = problem.input(X).shape
    linear = kind == "gru" and problem.integer("linear_before_reset") == 1
    reverse = REVERSE[problem.string("direction")]
    return steps, batch, inputs, problem.integer("hidden_size"), GATES[kind], reverse, linear


Function = TypeVar("Function")


def by_direction(functions: Sequence[Function], kind: str) -> tuple[tuple[Function, ...], ...]:
    """The functions f, g, h of each direction, out of all of them."""
    count = len(DEFAULT_ACTIVATIONS[kind])
    return tuple(tuple(functions[first : first + count]) for first in range(0, len(functions), count))


@dataclass(frozen=True, slots=True)
class RecurrentGeometry(RecurrentSizes):
    """The sizes of a problem in floating point, and its settled options."""

    activations: tuple[tuple[Activation, ...], ...]
    """For each direction its functions f, g, h."""
    clip: float
    """Bound of the gates' arguments; infinity when there is none."""
    input_forget: bool


@lru_cache(maxsize=1024)
def geometry(problem: Problem) -> RecurrentGeometry:
    """The geometry of a canonical problem of layout 0. Kept, because training asks for it in each step."""
    assert problem.integer("layout") == 0
    kind = layer(problem.op)
    functions = [Activation.parse(str(text)) for text in problem["activations"]]  # type: ignore[union-attr]
    clip = problem.number("clip")
    return RecurrentGeometry(
        *sizes(problem, kind),
        activations=by_direction(functions, kind),
        clip=clip if clip > 0 else float("inf"),
        input_forget=kind == "lstm" and problem.integer("input_forget") == 1,
    )


def _settled_activations(op: str, attributes: Attributes, directions: int) -> tuple[str, ...]:
    """ONNX consumes activation_alpha and activation_beta in order, by the functions that have such a parameter."""
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in attributes.get("activations") or ()]
    defaults = DEFAULT_ACTIVATIONS[layer(op)]
    expected = len(defaults) * directions
    if not names:
        names = list(defaults) * directions
    if len(names) != expected:
        raise OperatorError(op, "activations", names, f"give {expected} for {directions} direction(s)")
    try:
        alphas = [float(v) for v in attributes.get("activation_alpha") or ()]
        betas = [float(v) for v in attributes.get("activation_beta") or ()]
    except (TypeError, ValueError):
        raise OperatorError(
            op, "activation_alpha and activation_beta", "not numbers", "give lists of numbers"
        ) from None
    settled = []
    for name in names:
        function = activation(name, op=op)
        entry = FUNCTIONS[function.name]
        if not entry.recurrent:
            known = ", ".join(key for key, value in FUNCTIONS.items() if value.recurrent)
            raise OperatorError(op, "activations", repr(name), f"recurrent layers take {known}")
        parameters = list(entry.defaults)
        for index, values in ((0, alphas), (1, betas)):
            if index < len(parameters) and values:
                parameters[index] = values.pop(0)
        settled.append(activation(name, *parameters, op=op).text)
    if alphas or betas:
        left = "activation_alpha" if alphas else "activation_beta"
        raise OperatorError(op, left, f"longer than needed by {len(alphas or betas)}", f"the functions are {names}")
    return tuple(settled)


def input_shapes(
    gates: int, directions: int, batch: int, width: int, hidden: int, state: tuple[int, ...]
) -> dict[int, tuple[int, ...]]:
    """The shape that each input but x has to have, by its position."""
    return {
        W: (directions, gates * hidden, width),
        R: (directions, gates * hidden, hidden),
        B: (directions, 2 * gates * hidden),
        LENGTHS: (batch,),
        INITIAL_H: state,
        INITIAL_C: state,
        P: (directions, 3 * hidden),
    }


def direction_of(op: str, attributes: Attributes) -> tuple[str, int]:
    """The direction, and how many directions that are."""
    direction = attributes.get("direction") or "forward"
    if isinstance(direction, bytes):
        direction = direction.decode("ascii", "replace")
    if direction not in DIRECTIONS:
        raise OperatorError(op, "direction", repr(direction), f"known are {', '.join(DIRECTIONS)}")
    return direction, len(REVERSE[direction])


def _canonical(op: str, inputs: Sequence[Tensor | None], attributes: Attributes) -> Problem:
    kind = layer(op)
    names = NAMES if kind == "lstm" else NAMES[:6]
    if len(inputs) > len(names):
        raise OperatorError(op, "the number of inputs", len(inputs), f"it takes {', '.join(names)}")
    given = list(inputs) + [None] * (len(names) - len(inputs))
    for position in (X, W, R):
        if given[position] is None:
            raise OperatorError(op, names[position], "missing", "give an array")
    x, w, r = given[X], given[W], given[R]
    assert x is not None and w is not None and r is not None
    for position, rank in ((X, 3), (W, 3), (R, 3)):
        tensor = given[position]
        assert tensor is not None
        if tensor.rank != rank:
            raise OperatorError(
                op, f"the rank of {names[position]}", f"{tensor.rank} ({tensor})", f"it has to be {rank}"
            )
    direction, directions = direction_of(op, attributes)
    hidden = int_attribute(op, attributes, "hidden_size", r.shape[2])
    if hidden != r.shape[2] or hidden < 1:
        raise OperatorError(op, "hidden_size", hidden, f"r's last axis is {r.shape[2]}, at least 1")
    layout = flag_attribute(op, attributes, "layout")
    steps, batch, width = (x.shape[1], x.shape[0], x.shape[2]) if layout else x.shape
    if width < 1:
        raise OperatorError(op, "x's last axis", width, "a step has to hold at least 1 value")
    state = (batch, directions, hidden) if layout else (directions, batch, hidden)
    shapes = input_shapes(GATES[kind], directions, batch, width, hidden, state)
    if x.dtype not in FLOATS:
        raise OperatorError(op, "the dtype of x", x.dtype, f"it has to be {' or '.join(FLOATS)}")
    for position, shape in shapes.items():
        tensor = given[position] if position < len(given) else None
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise OperatorError(
                op, f"the shape of {names[position]}", list(tensor.shape), f"it has to be {list(shape)}"
            )
        dtype = "int32" if position == LENGTHS else x.dtype
        if tensor.dtype != dtype:
            raise OperatorError(op, f"the dtype of {names[position]}", tensor.dtype, f"it has to be {dtype}")
    clip = float_attribute(op, attributes, "clip", 0.0)
    if not clip >= 0.0:
        raise OperatorError(op, "clip", clip, "give a positive bound, or leave it out")
    settled: list[tuple[str, AttributeValue]] = [
        ("direction", direction),
        ("hidden_size", hidden),
        ("activations", _settled_activations(op, attributes, directions)),
        ("clip", 0.0 if clip == float("inf") else clip),
        ("layout", layout),
    ]
    slots = GATES[kind]
    if kind == "gru":
        value = int_attribute(op, attributes, "linear_before_reset", 0)
        settled.append(("linear_before_reset", int(value != 0)))
        slots += int(value != 0)
    if kind == "lstm":
        settled.append(("input_forget", flag_attribute(op, attributes, "input_forget")))
    while given[-1] is None:
        given.pop()
    sequence = (batch, steps, directions, hidden) if layout else (steps, directions, batch, hidden)
    outputs = [Tensor(x.dtype, sequence), *(Tensor(x.dtype, state),) * (2 if kind == "lstm" else 1)]
    if op != kind:
        outputs.append(Tensor(x.dtype, (*sequence[:-1], slots * hidden)))
    return Problem(op, tuple(given), tuple(outputs), tuple(settled))


@lru_cache(maxsize=1024)
def training(problem: Problem) -> Problem:
    """The form of a layer's problem that also gives the sums, as its last output."""
    return _canonical(layer(problem.op) + TRAINING, problem.inputs, onnx_attributes(problem))


def canonical_rnn(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    return _canonical("rnn", inputs, attributes)


def canonical_lstm(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    return _canonical("lstm", inputs, attributes)


def canonical_gru(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    return _canonical("gru", inputs, attributes)


def canonical_rnn_training(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    return _canonical("rnn_training", inputs, attributes)


def canonical_lstm_training(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    return _canonical("lstm_training", inputs, attributes)


def canonical_gru_training(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    return _canonical("gru_training", inputs, attributes)


BATCH_FIRST_INPUTS = (X, INITIAL_H, INITIAL_C)


def without_layout(problem: Problem) -> Problem:
    """The same problem with layout 0: x, the states and y_h, y_c have their first two axes swapped, and y
    (N, T, D, H) becomes (T, D, N, H)."""
    if problem.integer("layout") == 0:
        return problem
    tensors: list[Tensor | None] = [
        Tensor(t.dtype, (t.shape[1], t.shape[0], *t.shape[2:])) if t is not None and i in BATCH_FIRST_INPUTS else t
        for i, t in enumerate(problem.inputs)
    ]
    return _canonical(problem.op, tensors, {**onnx_attributes(problem), "layout": 0})


def onnx_attributes(problem: Problem) -> dict[str, Any]:
    """A problem's attributes as a call gives them: the parameters that are settled inside the activations' texts are
    written out again."""
    attributes: dict[str, Any] = dict(problem.attributes)
    functions = [Activation.parse(str(text)) for text in problem["activations"]]  # type: ignore[union-attr]
    attributes["activations"] = [function.name for function in functions]
    alphas, betas = [], []
    for function in functions:
        count = len(FUNCTIONS[function.name].defaults)
        alphas += [function.alpha][:count]
        betas += [function.beta] if count > 1 else []
    return {**attributes, "activation_alpha": alphas, "activation_beta": betas}


def batch_second(inputs: Sequence[Any]) -> list[Any]:
    """Inputs of layout 1 as views of layout 0."""
    return [
        array.swapaxes(0, 1) if array is not None and position in BATCH_FIRST_INPUTS else array
        for position, array in enumerate(inputs)
    ]


def batch_first(outputs: Sequence[Any]) -> tuple[Any, ...]:
    """Outputs of layout 0 (sequences of four axes, states of three) as views of layout 1."""
    return tuple(array.transpose(2, 0, 1, 3) if array.ndim == 4 else array.swapaxes(0, 1) for array in outputs)


def validate(problem: Problem, inputs: Sequence[Any]) -> None:
    """sequence_lens have to lie in 0 to T."""
    validate_lengths(problem, inputs, problem.input(X).shape[1 if problem.integer("layout") else 0])


def validate_lengths(problem: Problem, inputs: Sequence[Any], steps: int) -> None:
    if not problem.has(LENGTHS) or problem.input(LENGTHS).size == 0:
        return
    lengths = inputs[LENGTHS]
    if int(lengths.min()) < 0 or int(lengths.max()) > steps:
        raise OperatorError(
            problem.op,
            "sequence_lens",
            f"{int(lengths.min())} to {int(lengths.max())}",
            f"they have to lie in 0 to {steps}",
        )


def work(problem: Problem) -> Work:
    """The matrix products; all T steps counted for every sequence."""
    g = geometry(without_layout(problem))
    macs = g.steps * g.batch * g.directions * g.gates * g.hidden * (g.inputs + g.hidden)
    return Work(macs, tensor_bytes(problem))


def tolerance(problem: Problem) -> Tolerance:
    """Errors of fast exponentials and of sums enter each step and mostly fade; bounds for bounded activations and
    for short sequences of unbounded ones."""
    return {
        "float16": Tolerance(relative=5e-3, scaled=5e-3),
        "float32": Tolerance(relative=2e-5, scaled=1e-5),
        "float64": Tolerance(relative=1e-11, scaled=1e-12),
    }[problem.outputs[0].dtype]


def _case(
    op: str,
    name: str,
    sizes: tuple[int, int, int, int],
    options: str = "b",
    dtype: str = "float32",
    fills: dict[int, Fill] | None = None,
    **attributes: Any,
) -> Case:
    """``options`` names the optional inputs: b bias, l lengths, h initial_h, c initial_c, p peepholes."""
    steps, batch, width, hidden = sizes
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    gates = GATES[op]
    batch_first_layout = attributes.get("layout", 0)
    state = (batch, directions, hidden) if batch_first_layout else (directions, batch, hidden)
    optional = {
        "b": (B, (directions, 2 * gates * hidden)),
        "l": (LENGTHS, (batch,)),
        "h": (INITIAL_H, state),
        "c": (INITIAL_C, state),
        "p": (P, (directions, 3 * hidden)),
    }
    tensors: list[Tensor | None] = [None] * (8 if op == "lstm" else 6)
    tensors[X] = Tensor(dtype, (batch, steps, width) if batch_first_layout else (steps, batch, width))
    tensors[W] = Tensor(dtype, (directions, gates * hidden, width))
    tensors[R] = Tensor(dtype, (directions, gates * hidden, hidden))
    for letter in options:
        position, shape = optional[letter]
        tensors[position] = Tensor("int32" if position == LENGTHS else dtype, shape)
    bound = 1.0 / max(hidden, 1) ** 0.5
    scaled = {
        W: Fill("uniform", -bound, bound),
        R: Fill("uniform", -bound, bound),
        LENGTHS: Fill("lengths", 0 if "zero" in name else 1, steps),
        **(fills or {}),
    }
    while tensors[-1] is None:
        tensors.pop()
    return Case(
        op, name, tuple(tensors), {"hidden_size": hidden, **attributes}, scaled, outputs=3 if op == "lstm" else 2
    )


def cases(op: str) -> list[Case]:
    def make(name: str, sizes: tuple[int, int, int, int], options: str = "b", **more: Any) -> Case:
        return _case(op, name, sizes, options, **more)

    count = len(DEFAULT_ACTIVATIONS[op])
    every = ["Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu",
             "Softsign", "Softplus"]  # fmt: skip
    cell = "c" if op == "lstm" else ""
    cases = [
        make("forward", (5, 3, 4, 6)),
        make("no_bias", (4, 2, 3, 5), ""),
        make("one_step", (1, 1, 16, 16)),
        make("hidden_33", (3, 2, 17, 33)),
        make("hidden_64", (7, 1, 40, 64)),
        make("hidden_1", (3, 2, 2, 1)),
        make("batch_9", (3, 9, 5, 20)),
        make("reverse", (5, 3, 4, 6), direction="reverse"),
        make("bidirectional", (5, 3, 4, 6), direction="bidirectional"),
        make("initial_state", (4, 3, 4, 7), "bh" + cell),
        make("initial_h_alone", (4, 3, 4, 7), "bh"),
        make("lengths", (6, 5, 4, 7), "bl"),
        make("lengths_zero_reverse", (6, 5, 4, 7), "blh" + cell, direction="reverse"),
        make("lengths_bidirectional", (6, 5, 4, 7), "blh" + cell, direction="bidirectional"),
        make("clip", (5, 3, 4, 6), clip=0.3),
        make("layout_1", (4, 3, 5, 6), "bh" + cell, layout=1),
        make("layout_1_lengths_bidirectional", (4, 3, 5, 6), "bl", layout=1, direction="bidirectional"),
        make("empty_batch", (3, 0, 4, 5)),
        make("no_steps", (0, 2, 4, 5), "bh" + cell),
        make("nan", (4, 2, 3, 5), fills={X: Fill("special")}),
        make("non_contiguous", (4, 2, 3, 5), fills={X: Fill(contiguous=False)}),
        make("float64", (4, 2, 3, 5), "bh", dtype="float64"),
        make("float16", (4, 2, 3, 5), "bh", dtype="float16"),
        make("activations_bidirectional", (3, 2, 3, 4), direction="bidirectional",
             activations=(every[2:2 + count] + every[6:6 + count]),
             activation_alpha=[0.4, 0.2, 0.6][: 3]
             if op == "gru" else ([0.4, 1.5, 0.3, 0.8] if op == "lstm" else [1.5]),
             activation_beta={"rnn": [0.7], "gru": [0.1, 0.7], "lstm": [0.1, 0.7, 0.4]}[op]),
    ]  # fmt: skip
    for name in every:
        alphas = len(FUNCTIONS[name].defaults) > 0
        betas = len(FUNCTIONS[name].defaults) > 1
        parameters: dict[str, Any] = {"activations": [name] * count}
        if alphas:
            parameters["activation_alpha"] = [0.3] * count
        if betas:
            parameters["activation_beta"] = [0.6] * count
        cases.append(make(f"activation_{name.lower()}", (3, 2, 3, 4), **parameters))
    if op == "gru":
        cases += [
            make("linear_before_reset", (5, 3, 4, 6), linear_before_reset=1),
            make("linear_before_reset_bidirectional", (4, 2, 5, 33), "bhl", linear_before_reset=1,
                 direction="bidirectional"),
            make("linear_before_reset_clip", (4, 2, 3, 5), linear_before_reset=1, clip=0.2),
        ]  # fmt: skip
    if op == "lstm":
        cases += [
            make("peepholes", (5, 3, 4, 6), "bp"),
            make("peepholes_bidirectional", (4, 2, 4, 35), "blhcp", direction="bidirectional"),
            make("peepholes_clip", (4, 2, 4, 6), "bhcp", clip=0.25),
            make("input_forget", (5, 3, 4, 6), input_forget=1),
            make("input_forget_peepholes", (4, 2, 4, 6), "bp", input_forget=1),
        ]
    return cases


def _training_cases(op: str) -> list[Case]:
    """The layer's own cases; a few activations stand for all, which the layer's cases try."""
    few = ("activation_relu", "activation_affine", "activation_softsign")
    return [
        replace(case, op=op + TRAINING, outputs=case.outputs + 1)
        for case in cases(op)
        if not case.name.startswith("activation_") or case.name in few
    ]


def _spec(op: str, canonical: Callable[..., Problem], cases: Callable[[], list[Case]]) -> OperatorSpec:
    kind = layer(op)
    return OperatorSpec(
        op, NAMES if kind == "lstm" else NAMES[:6], canonical, work, tolerance, cases,
        parameters=(W, R, B) + ((P,) if kind == "lstm" else ()), validate=validate, training=op != kind,
    )  # fmt: skip


SPECS = (
    _spec("rnn", canonical_rnn, lambda: cases("rnn")),
    _spec("lstm", canonical_lstm, lambda: cases("lstm")),
    _spec("gru", canonical_gru, lambda: cases("gru")),
    _spec("rnn_training", canonical_rnn_training, lambda: _training_cases("rnn")),
    _spec("lstm_training", canonical_lstm_training, lambda: _training_cases("lstm")),
    _spec("gru_training", canonical_gru_training, lambda: _training_cases("gru")),
)
