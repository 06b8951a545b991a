"""Rules of differentiation: held to central differences of the forward oracle, to kernels, and to torch where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

import quatrefoil as qf
from quatrefoil import gradients, ops, reference
from quatrefoil.errors import OperatorError
from quatrefoil.ops.spec import Case

STEP = 1e-6
MOST_VALUES = 4000  # of a forward call, so that oracles in plain loops take little time
MOST_MACS = 50_000


def differentiable(case: Case) -> bool:
    problem = ops.canonical(case.op, case.inputs, case.attributes, case.outputs)
    values = sum(tensor.size for tensor in (*problem.inputs, *problem.outputs) if tensor is not None)
    small = problem.outputs[0].size > 0 and values <= MOST_VALUES and ops.SPECS[case.op].work(problem).macs <= MOST_MACS
    # at infinities and, for maxima, where values are equal there is no derivative
    smooth = all(fill.kind != "special" for fill in case.fills.values()) and not (case.op == "max_pool" and case.fills)
    return small and smooth and gradients.is_float(problem.input(0))


CASES = [
    case
    for op in gradients.RULES
    if not ops.SPECS[op].training
    for case in ops.SPECS[op].cases()
    if differentiable(case)
]


def double(case: Case) -> list[np.ndarray | None]:
    """A case's inputs in float64; integers stay."""
    return [
        None if array is None else array.astype(np.float64) if array.dtype.kind == "f" else array
        for array in case.arrays()
    ]


def by_oracle(
    problem: qf.Problem, arrays: list[np.ndarray | None], dys: list[np.ndarray | None]
) -> dict[int, np.ndarray]:
    """The gradients of all inputs by the operator's rule, every operator in it computed by its oracle."""
    rule = gradients.RULES[problem.op]
    wanted = tuple(i for i in rule.inputs if problem.has(i) and gradients.is_float(problem.input(i)))
    ys = reference.evaluate(problem, arrays)
    given = tuple(dy is not None for dy in dys)
    return gradients.steps(problem, given, wanted).run([*arrays, *ys, *dys], reference.evaluate)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rules_meet_central_differences(case: Case) -> None:
    """Along a random direction in each input: (f(x + h v) - f(x - h v)) / 2h is v times the gradient."""
    problem = ops.canonical(case.op, case.inputs, case.attributes, case.outputs)
    arrays = double(case)[: len(problem.inputs)]
    rng = np.random.default_rng([1, *case.name.encode()])
    dys = [rng.standard_normal(y.shape) if gradients.is_float(y) else None for y in problem.outputs]

    def weighted(changed: list[np.ndarray | None]) -> float:
        ys = reference.evaluate(problem, changed)
        return sum(float((dy * y)[np.isfinite(y)].sum()) for dy, y in zip(dys, ys) if dy is not None)

    for position, gradient in by_oracle(problem, arrays, dys).items():
        array = arrays[position]
        assert gradient.shape == array.shape
        direction = rng.standard_normal(array.shape)
        ends = []
        for sign in (1, -1):
            changed = list(arrays)
            changed[position] = array + sign * STEP * direction
            ends.append(weighted(changed))
        slope = (ends[0] - ends[1]) / (2 * STEP)
        scale = float(np.abs(gradient * direction).sum())
        assert abs(slope - float((gradient * direction).sum())) <= 1e-7 * scale + 1e-7, (
            f"input {position} of {problem.text}"
        )


def test_every_operator_that_trains_is_reached() -> None:
    """An operator of training that no rule calls is of no use; one that a rule calls has to be marked as such."""
    called = set()
    for case in CASES:
        problem = ops.canonical(case.op, case.inputs, case.attributes, case.outputs)
        rule = gradients.RULES[case.op]
        wanted = tuple(i for i in rule.inputs if problem.has(i) and gradients.is_float(problem.input(i)))
        given = tuple(map(gradients.is_float, problem.outputs))
        called |= {asked.op for asked in gradients.steps(problem, given, wanted).problems}
    assert {op for op, spec in ops.SPECS.items() if spec.training} <= called


def arrays_for(op: str, name: str, dtype: str) -> tuple[qf.Problem, list[np.ndarray | None]]:
    case = next(case for case in ops.SPECS[op].cases() if case.name == name)
    inputs = tuple(None if tensor is None else qf.Tensor(dtype, tensor.shape) for tensor in case.inputs)
    problem = ops.canonical(op, inputs, case.attributes, case.outputs)
    arrays = case.arrays()[: len(problem.inputs)]
    return problem, [None if a is None else np.ascontiguousarray(a.astype(dtype)) for a in arrays]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("conv", "3x3_stride2"),
        ("conv", "same_upper"),
        ("conv", "bias_residual_relu"),
        ("conv", "3d_stride_dilation"),
        ("conv_transpose", "stride2"),
        ("conv_transpose", "output_shape"),
        ("conv_transpose", "fused"),
        ("conv_transpose", "1d"),
    ],
)
def test_kernels_meet_the_rules(op: str, name: str, dtype: str) -> None:
    problem, arrays = arrays_for(op, name, dtype)
    dy = np.random.default_rng(3).standard_normal(problem.outputs[0].shape).astype(dtype)
    expected = by_oracle(problem, arrays, [dy])
    found = gradients.vjp(problem, arrays, (), [dy])
    tolerance = ops.SPECS[op].tolerance(problem)
    for position, want in expected.items():
        got = found[position]
        assert got.dtype == np.dtype(dtype)
        assert tolerance.violations(got, want) == 0, f"input {position}: {tolerance.error(got, want):.3g}"


def test_a_pullback_is_the_gradient_of_what_was_called() -> None:
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape) for shape in ((2, 3, 8, 9), (4, 3, 3, 3), (4,)))
    y, back = gradients.pullback(qf.conv2d, x, w, b, stride=2, padding=1, activation="Tanh")
    np.testing.assert_array_equal(y, qf.conv2d(x, w, b, stride=2, padding=1, activation="Tanh"))
    dy = rng.standard_normal(y.shape)
    dx, dw, db = back(dy)
    step = 1e-6
    for array, gradient in ((x, dx), (w, dw), (b, db)):
        array.flat[1] += step
        above = (dy * qf.conv2d(x, w, b, stride=2, padding=1, activation="Tanh")).sum()
        array.flat[1] -= 2 * step
        below = (dy * qf.conv2d(x, w, b, stride=2, padding=1, activation="Tanh")).sum()
        array.flat[1] += step
        assert gradient.flat[1] == pytest.approx((above - below) / (2 * step), rel=1e-6, abs=1e-6)


def test_gradients_are_explained_without_being_computed() -> None:
    x, w = qf.Tensor("float32", (2, 16, 9, 9)), qf.Tensor("float32", (8, 16, 3, 3))
    selections = gradients.explain(qf.conv2d, x, w, stride=2, file=None)
    assert [selection.problem.op for selection in selections] == ["conv_transpose", "conv_weight_gradient"]
    assert all(selection.runnable for selection in selections)
    [alone] = gradients.explain(qf.conv2d, x, w, wanted=(1,), file=None)
    assert "chosen" in str(alone)
    dy = qf.Tensor("float32", (2, 8, 7, 7))
    assert qf.explain(gradients.conv_weight_gradient, x, dy, (3, 3), file=None).problem == alone.problem


@pytest.mark.parametrize("backend", ["fpga", "asic"])
def test_backends_that_only_infer_say_so(backend: str) -> None:
    selection = qf.explain(gradients.conv_bias_gradient, qf.Tensor("float32", (1, 2, 3)), backend=backend, file=None)
    assert not selection.runnable
    assert "no kernel for conv_bias_gradient" in str(selection)


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    x, w = np.ones((1, 2, 5, 5), np.float32), np.ones((3, 2, 3, 3), np.float32)
    problem = qf.gradients.conv_weight_gradient  # a function like any other
    with pytest.raises(OperatorError, match=r"the shape of dy is \[1, 3, 4, 4\]; a convolution of x"):
        problem(x, np.ones((1, 3, 4, 4), np.float32), (3, 3))
    with pytest.raises(OperatorError, match="kernel_shape is missing"):
        ops.canonical("conv_weight_gradient", [qf.Tensor.of(x), qf.Tensor.of(x)], {})
    call = qf.conv2d.call(x, w).problem()
    dy = np.ones((1, 3, 3, 3), np.float32)
    with pytest.raises(OperatorError, match="output gradient 0"):
        gradients.vjp(call, (x, w), (), (dy[..., :2],))
    with pytest.raises(OperatorError, match="at least one"):
        gradients.vjp(call, (x, w), (), (None,))
    with pytest.raises(OperatorError, match=r"a wanted input is 2; inputs with gradients here are 0 \(x\), 1 \(w\)"):
        gradients.vjp(call, (x, w), (), (dy,), (2,))
    with pytest.raises(OperatorError, match="operators with gradients are"):
        gradients.pullback(qf.conv_integer, np.ones((1, 1, 3), np.uint8), np.ones((1, 1, 1), np.uint8))


@pytest.mark.parametrize(("channels", "kernel"), [(24, 3), (1030, 1)])
def test_threads_do_not_change_a_weight_gradient(channels: int, kernel: int) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((3, 40, 14, 14)).astype(np.float32)
    dy = rng.standard_normal((3, channels, 14, 14)).astype(np.float32)
    before = qf.num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            qf.set_num_threads(threads)
            results.append(gradients.conv_weight_gradient(x, dy, (kernel, kernel), padding=kernel // 2))
    finally:
        qf.set_num_threads(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
