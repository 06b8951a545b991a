"""Every kernel of every backend on every case that it accepts, against the float64 or exact-integer oracle.

The suite runs over kernels, not over what dispatch would pick, so that no shadowed kernel hides. Kernels of the gpu
backend run under emulation where there is no GPU.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from quatrefoil import backends, ops, reference
from quatrefoil.ops import layouts
from quatrefoil.ops.spec import Case
from quatrefoil.problem import Problem
from quatrefoil.registry import Backend, Kernel, collect_costs

CASES = {op: spec.cases() for op, spec in ops.SPECS.items()}

# What a backend may leave out, in words; every other case has to be taken by one of its kernels.
OPTIONAL_DTYPES = {
    "cpu": {},
    "gpu": {"float64": "not what a GPU's matrix products are for"},
    "fpga": {"float64": "FPGA datapaths are 32 bits and below"},
    "asic": {"float64": "the designs have no double-precision array"},
}

# Networks are trained on CPU and GPU; FPGAs and the simulated chip run what came of it.
INFERENCE_ONLY = ("fpga", "asic")


@cache
def house(name: str) -> Backend:
    """The backend, or the GPU's emulation where no GPU is present."""
    backend = backends.get(name)
    if name == "gpu" and not backend.probe().ready:
        from quatrefoil.gpu.emulation import emulated_backend

        return emulated_backend()
    return backend


def problem_of(case: Case) -> Problem:
    """The case as kernels see it, in their own layout."""
    return layouts.plain(ops.canonical(case.op, case.inputs, case.attributes, case.outputs))


@cache
def arrays_and_oracle(op: str, name: str) -> tuple[Problem, list[np.ndarray | None], tuple[np.ndarray, ...]]:
    case = next(case for case in CASES[op] if case.name == name)
    problem = problem_of(case)
    arrays = case.arrays()
    turned = ops.canonical(case.op, case.inputs, case.attributes, case.outputs)
    if layouts.turned(turned):
        arrays = layouts.views(turned, arrays)
    arrays = [None if array is None else np.ascontiguousarray(array).reshape(array.shape) for array in arrays]
    for array in arrays:
        if array is not None:
            array.flags.writeable = False  # kernels may be given read-only arrays and never write to inputs
    arrays = arrays[: len(problem.inputs)]
    return problem, arrays, reference.evaluate(problem, arrays)


def kernels() -> list[tuple[str, Kernel]]:
    return [(name, kernel) for name in backends.NAMES for kernel in backends.get(name).kernels()]


def accepted() -> list:
    return [
        pytest.param(name, kernel, case, id=f"{name}-{kernel.id}-{case.name}")
        for name, kernel in kernels()
        for case in CASES[kernel.op]
        if kernel.accepts(problem_of(case)) is None
    ]


def require(name: str) -> Backend:
    backend = house(name)
    state = backend.probe()
    if not state.ready:
        pytest.skip(f"{name}: {state.detail} ({state.remedy})")
    return backend


@pytest.mark.parametrize(("name", "kernel", "case"), accepted())
def test_kernel_meets_the_oracle(name: str, kernel: Kernel, case: Case) -> None:
    backend = require(name)
    [kernel] = [k for k in backend.kernels() if k.id == kernel.id]  # the emulation's own declaration of it
    problem, arrays, expected = arrays_and_oracle(case.op, case.name)
    spec = ops.SPECS[case.op]
    native = [None if array is None else backend.put(array) for array in arrays]
    parameters = {i: native[i] for i in spec.parameters if i < len(native) and native[i] is not None}
    run = kernel.prepare(problem, parameters)
    varying = [None if i in parameters else array for i, array in enumerate(native)]
    with collect_costs() as costs:
        outputs = [backend.get(array) for array in run(varying)]
    again = [backend.get(array) for array in run(varying)]
    assert len(outputs) == len(problem.outputs)
    if backend.simulated:
        assert len(costs) == 1, "a simulated run reports its cost exactly once"
        assert costs[0].cycles >= 0
    tolerance = spec.tolerance(problem)
    for index, (output, repeated, want, tensor) in enumerate(zip(outputs, again, expected, problem.outputs)):
        assert output.dtype == tensor.numpy_dtype
        assert output.shape == tensor.shape
        wrong = tolerance.violations(output, want)
        assert wrong == 0, (
            f"output {index}: {wrong} of {output.size} values out of tolerance, error {tolerance.error(output, want):.3g}"
            f"\n{problem.text}"
        )
        np.testing.assert_array_equal(output, repeated, err_msg="a second run gave other numbers")


@pytest.mark.parametrize(("name", "kernel"), [pytest.param(n, k, id=f"{n}-{k.id}") for n, k in kernels()])
def test_kernel_is_reached_by_a_case(name: str, kernel: Kernel) -> None:
    """A kernel that no case executes is unproven; the reasons of all its rejections are shown."""
    verdicts = [(case, kernel.accepts(problem_of(case))) for case in CASES[kernel.op]]
    reasons = "\n".join(f"{case}: {reject}" for case, reject in verdicts)
    lacking = {str(reject) for _, reject in verdicts if "instruction set in use" in str(reject)}
    if len(lacking) == 1 and all(reject is not None for _, reject in verdicts):
        pytest.skip(f"{kernel.id}: {lacking.pop()}")
    assert any(reject is None for _, reject in verdicts), f"{kernel.id} accepts no case:\n{reasons}"
    for case, reject in verdicts:
        assert reject is None or len(str(reject).split()) >= 3, f"{kernel.id} on {case}: {reject!s} is no sentence"


def coverage() -> list:
    return [
        pytest.param(name, case, id=f"{name}-{case.op}-{case.name}")
        for name in backends.NAMES
        for cases in CASES.values()
        for case in cases
        if case.inputs[0] is not None and case.inputs[0].dtype not in OPTIONAL_DTYPES[name]
        if not (ops.SPECS[case.op].training and name in INFERENCE_ONLY)
    ]


@pytest.mark.parametrize(("name", "case"), coverage())
def test_backend_takes_every_case(name: str, case: Case) -> None:
    """Every operator option is right everywhere: each backend has a kernel for each case."""
    problem = problem_of(case)
    rejects = [(kernel.id, kernel.accepts(problem)) for kernel in backends.get(name).kernels() if kernel.op == case.op]
    assert any(reject is None for _, reject in rejects), f"no {name} kernel takes {problem.text}: {rejects}"


def test_kernel_ids_are_unique() -> None:
    ids = [kernel.id for _, kernel in kernels()]
    assert sorted(set(ids)) == sorted(ids)
    for _, kernel in kernels():
        assert kernel.id.startswith(f"{kernel.op}_"), f"{kernel.id} does not begin with its operator {kernel.op}"
