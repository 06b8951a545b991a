"""Gradients of pooling: what a gradient dy of a pool's output says about its input.

Canonical attributes are those of the pool that is differentiated (ops/pool.py), and

  average_pool_gradient   input_shape, of x with N and C, which dy does not tell
  max_unpool_gradient     indexed_shape, with N and C; dy has max_unpool's output_shape

max_pool_gradient (dy, x): each window gives its dy to the tap that won it, the same that max_pool's indices name: NaN over
everything, then the greatest, the first of those that are equal. A window on padding alone gives it to nobody. Taps are found
again in x, so that a forward pass that trains needs no indices and is as fast as any other.

average_pool_gradient (dy): each window spreads dy / (what average_pool divides by) over its taps inside x. A window with no tap
that counts has none.

lp_pool_gradient (dy, x, y): each window gives dy sign(x) (|x| / y)^(p - 1) to its taps inside x, y being what lp_pool gave. At
y = 0, where the norm has no derivative, it gives 0, as torch does; with p = 1 it gives dy sign(x), 0 at x = 0.

max_unpool_gradient (dy, indices): each element takes dy at the place that it was put to. Of elements that share an index all but
the last were overwritten, and take 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quatrefoil.errors import OperatorError
from quatrefoil.ops import pool
from quatrefoil.ops.pool import FLOATS, PoolGeometry, Settled, UnpoolGeometry
from quatrefoil.ops.spec import Attributes, Case, Fill, OperatorSpec, tensor_bytes
from quatrefoil.ops.windows import flag_attribute, int_attribute, int_list, spatial_rank, triple, window
from quatrefoil.problem import Problem, Tensor, Tolerance, Work

DY, X, Y = range(3)
INDICES = 1

WINDOW_OPS = {
    "max_pool_gradient": ("dy", "x"),
    "average_pool_gradient": ("dy",),
    "lp_pool_gradient": ("dy", "x", "y"),
}
"""The gradients of pools with a window, and their inputs."""


def geometry(problem: Problem) -> PoolGeometry:
    """The geometry of the pool whose gradient this is: its window reads dx and gives dy."""
    dx, dy, kernel = problem.outputs[0], problem.input(DY), problem.ints("kernel_shape")
    return PoolGeometry(
        planes=dx.shape[0] * dx.shape[1],
        window=window(problem, kernel, dx.shape[2:], dy.shape[2:]),
        pads_end=triple(problem.ints("pads")[len(kernel) :], 0),
    )


def unpool_geometry(problem: Problem) -> UnpoolGeometry:
    dx, dy = problem.outputs[0], problem.input(DY)
    return UnpoolGeometry(
        planes=dx.shape[0] * dx.shape[1],
        input_size=Tensor(dx.dtype, dx.shape[2:]).size,
        indexed=triple(problem.ints("indexed_shape")[2:], 1),
        output=triple(dy.shape[2:], 1),
    )


def overlap(problem: Problem) -> bool:
    """Whether a place may lie in several windows."""
    w = geometry(problem).window
    return any((k - 1) * d >= s for k, d, s in zip(w.kernel, w.dilations, w.strides))


def _given(op: str, names: Sequence[str], inputs: Sequence[Tensor | None]) -> list[Tensor]:
    if len(inputs) > len(names):
        raise OperatorError(op, "the number of inputs", len(inputs), f"it takes {len(names)}")
    given = []
    for position, name in enumerate(names):
        tensor = inputs[position] if position < len(inputs) else None
        if tensor is None:
            raise OperatorError(op, name, "missing", "give an array")
        given.append(tensor)
    if given[DY].dtype not in FLOATS:
        raise OperatorError(op, "the dtype of dy", given[DY].dtype, f"it has to be {' or '.join(FLOATS)}")
    spatial_rank(op, given[DY])
    return given


def _expect(op: str, name: str, tensor: Tensor, dtype: str, shape: tuple[int, ...]) -> None:
    if tensor != Tensor(dtype, shape):
        raise OperatorError(op, name, tensor, f"it has to be {Tensor(dtype, shape)}")


def _settled(op: str, x: Tensor, given: Sequence[Tensor], attributes: Attributes) -> Settled:
    """The window's attributes; dy, and y where there is one, have to be of the shape that it gives."""
    spatial_rank(op, x)
    if len(x.shape) != given[DY].rank:
        raise OperatorError(op, "the rank of dy", given[DY].rank, f"x has {x.rank} axes")
    settled, shape = pool.window_attributes(op, x, attributes)
    for name, tensor in zip(WINDOW_OPS[op], given):
        if name != "x":
            _expect(op, name, tensor, x.dtype, shape)
    return settled


def canonical_max_pool_gradient(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    op = "max_pool_gradient"
    given = _given(op, WINDOW_OPS[op], inputs)
    return Problem(op, tuple(given), (given[X],), _settled(op, given[X], given, attributes))


def canonical_average_pool_gradient(
    inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1
) -> Problem:
    op = "average_pool_gradient"
    given = _given(op, WINDOW_OPS[op], inputs)
    shape = int_list(op, attributes, "input_shape", given[DY].rank, None, 0)
    if shape is None:
        raise OperatorError(op, "input_shape", "missing", "give the shape of average_pool's input")
    x = Tensor(given[DY].dtype, shape)
    more = (("count_include_pad", flag_attribute(op, attributes, "count_include_pad")), ("input_shape", shape))
    return Problem(op, tuple(given), (x,), _settled(op, x, given, attributes) + more)


def canonical_lp_pool_gradient(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    op = "lp_pool_gradient"
    given = _given(op, WINDOW_OPS[op], inputs)
    p = int_attribute(op, attributes, "p", 2)
    if p < 1:
        raise OperatorError(op, "p", p, "it has to be at least 1")
    return Problem(op, tuple(given), (given[X],), (*_settled(op, given[X], given, attributes), ("p", p)))


def canonical_max_unpool_gradient(inputs: Sequence[Tensor | None], attributes: Attributes, outputs: int = 1) -> Problem:
    op = "max_unpool_gradient"
    dy, indices = _given(op, ("dy", "indices"), inputs)
    _expect(op, "indices", indices, "int64", indices.shape)
    indexed = int_list(op, attributes, "indexed_shape", dy.rank, None, 0) or dy.shape
    if indices.rank != dy.rank or indices.shape[:2] != dy.shape[:2]:
        raise OperatorError(
            op, "the shape of indices", list(indices.shape), f"it has to begin as dy's, {list(dy.shape)}"
        )
    if indexed[:2] != dy.shape[:2] or any(i < 1 or i > extent for i, extent in zip(indexed[2:], dy.shape[2:])):
        raise OperatorError(op, "indexed_shape", list(indexed), f"it has to lie in dy's shape {list(dy.shape)}")
    return Problem(op, (dy, indices), (Tensor(dy.dtype, indices.shape),), (("indexed_shape", indexed),))


def validate_max_unpool_gradient(problem: Problem, inputs: Sequence[Any]) -> None:
    pool.check_indices(problem, inputs[INDICES])


def work(problem: Problem) -> Work:
    """One operation a tap, as the pool has it."""
    if problem.op == "max_unpool_gradient":
        return Work(problem.input(INDICES).size, tensor_bytes(problem))
    g = geometry(problem)
    return Work(g.planes * g.window.output_size * g.window.taps, tensor_bytes(problem))


def tolerance(problem: Problem) -> Tolerance:
    """What is only moved is exact; the rest is sums and quotients, as in pooling."""
    moved = problem.op == "max_unpool_gradient" or (problem.op == "max_pool_gradient" and not overlap(problem))
    return Tolerance() if moved else pool.SUM_TOLERANCES[problem.outputs[0].dtype]


MOST_CASE_VALUES = 600


def _window_cases(op: str, forward: Sequence[Case]) -> list[Case]:
    """The smaller cases of the pool, from its other side: what its larger ones try is of its own kernels."""
    made = []
    for case in forward:
        x = case.inputs[0]
        assert x is not None
        if x.dtype not in FLOATS or x.size > MOST_CASE_VALUES:
            continue
        attributes = {name: value for name, value in case.attributes.items() if name != "storage_order"}
        settled = pool.window_attributes(op, x, attributes)
        dy = Tensor(x.dtype, settled[1])
        fills = {WINDOW_OPS[op].index("x") if "x" in WINDOW_OPS[op] else DY: fill for fill in case.fills.values()}
        if "y" in WINDOW_OPS[op]:
            infinite = any(fill.kind == "special" for fill in case.fills.values())  # so is the norm of what x holds
            fills[Y] = Fill("value", float("inf")) if infinite else Fill("uniform", 0.25, 2.0)
        if op == "average_pool_gradient":
            attributes["input_shape"] = list(x.shape)
        inputs = {"dy": dy, "x": x, "y": dy}
        made.append(Case(op, case.name, tuple(inputs[name] for name in WINDOW_OPS[op]), attributes, fills))
    return made


def _wider(op: str) -> list[Case]:
    """Windows that only the way back makes hard: planes of many lines and vectors, gaps that no window reaches, lines that
    several windows open at once."""
    x = "float32[1x1x7x83]"
    shapes: dict[str, tuple[str, dict[str, Any]]] = {
        "wide_2x2": (x, {"kernel_shape": [2, 2], "strides": [2, 2]}),
        "wide_3x3_stride2": (x, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        "wide_3x3_stride1": (x, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        "gaps": (x, {"kernel_shape": [2, 2], "strides": [5, 4], "pads": [0, 1, 1, 0]}),
        "dilated_by_3_stride2": (x, {"kernel_shape": [3, 3], "strides": [2, 2], "dilations": [3, 3]}),
        "many_lines": ("float32[1x1x75x5]", {"kernel_shape": [5, 3], "strides": [2, 1], "pads": [3, 1, 0, 1]}),
        "special_values": ("float32[1x2x9x21]", {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 1, 1, 1]}),
        "3d_dilated_depth": ("float32[1x1x9x6x7]", {"kernel_shape": [3, 2, 3], "dilations": [2, 1, 1], "strides": [3, 1, 2],
                                                    "pads": [2, 0, 1, 2, 1, 1]}),
        "3d_stride1": ("float32[1x2x5x6x21]", {"kernel_shape": [3, 3, 3], "pads": [1] * 6}),
    }  # fmt: skip
    ties = {0: Fill("integers", -2, 2)} if op == "max_pool_gradient" else {}
    return [
        Case(op.removesuffix("_gradient"), name, (Tensor.parse(text),), attributes,
             {0: Fill("special")} if name == "special_values" else ties)
        for name, (text, attributes) in shapes.items()
    ]  # fmt: skip


def cases_max_pool_gradient() -> list[Case]:
    return _window_cases("max_pool_gradient", [*pool.cases_max_pool(), *_wider("max_pool_gradient")])


def cases_average_pool_gradient() -> list[Case]:
    op = "average_pool_gradient"
    return _window_cases(op, [*pool.cases_average_pool(), *_wider(op)])


def cases_lp_pool_gradient() -> list[Case]:
    op = "lp_pool_gradient"
    zero = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}
    types = tuple(Tensor.parse(f"float32[1x3x{plane}]") for plane in ("5x10", "9x10", "5x10"))
    return [
        *_window_cases(op, [*pool.cases_lp_pool(), *_wider(op)]),
        *(
            Case(op, f"zeros_p{p}", types, {**zero, "p": p}, {X: Fill("value", 0.0), Y: Fill("value", 0.0)})
            for p in (1, 2, 3)
        ),
    ]


def cases_max_unpool_gradient() -> list[Case]:
    op = "max_unpool_gradient"
    made = []
    for case in pool.cases_max_unpool():
        problem = pool.canonical_max_unpool(case.inputs, case.attributes)
        if problem.dtype in FLOATS:
            attributes = {"indexed_shape": list(problem.ints("indexed_shape"))}
            made.append(Case(op, case.name, (problem.outputs[0], case.inputs[1]), attributes, case.fills))
    types = (Tensor.parse("float32[2x3x6x7]"), Tensor.parse("int64[2x3x5x6]"))
    return [*made, Case(op, "shared", types, {}, {INDICES: Fill("integers", 0, 2 * 3 * 6 * 7 - 1)})]


SPECS = (
    OperatorSpec(
        "max_pool_gradient", ("dy", "x"), canonical_max_pool_gradient, work, tolerance, cases_max_pool_gradient,
        training=True,
    ),
    OperatorSpec(
        "average_pool_gradient", ("dy",), canonical_average_pool_gradient, work, tolerance, cases_average_pool_gradient,
        training=True,
    ),
    OperatorSpec(
        "lp_pool_gradient", ("dy", "x", "y"), canonical_lp_pool_gradient, work, tolerance, cases_lp_pool_gradient,
        training=True,
    ),
    OperatorSpec(
        "max_unpool_gradient", ("dy", "indices"), canonical_max_unpool_gradient, work, tolerance,
        cases_max_unpool_gradient, validate=validate_max_unpool_gradient, training=True,
    ),
)  # fmt: skip
