"""Runs on the simulated array: its numbers, and the one report that each run makes. (The conformance suite runs every
case on the default design.)"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from quatrefoil import asic_sim, ops, reference
from quatrefoil.asic_sim import backend
from quatrefoil.errors import QuatrefoilError
from quatrefoil.ops import rnn
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Kernel, Run, collect_costs

FORMATS = (("int8", 1), ("float32", 1))
WIDE = dataclasses.replace(asic_sim.load("tpu_like"), name="wide", formats=FORMATS)
ODD = dataclasses.replace(
    asic_sim.load("edge"), name="odd", array_rows=3, array_columns=5, accumulator_entries=14, activation_sram_kib=1
)


def kernel_for(problem: Problem) -> Kernel:
    return next(k for k in asic_sim.BACKEND.kernels() if k.op == problem.op and k.accepts(problem) is None)


def prepared(problem: Problem, arrays: list[np.ndarray | None]) -> Run:
    parameters = {i: arrays[i] for i in ops.SPECS[problem.op].parameters if problem.has(i)}
    return kernel_for(problem).prepare(problem, parameters)


CASES = {
    "conv": ("3x3_ragged", "7x7_stride2", "grouped", "depthwise_multiplier", "3d_stride_dilation", "special_values"),
    "conv_transpose": ("stride2", "stride_beyond_kernel", "dilated", "output_shape_crops", "3d"),
    "conv_integer": ("s8s8_per_channel", "grouped", "3d"),
    "qlinear_conv": ("s8s8s8", "depthwise", "1d"),
    "max_pool": ("ceil_mode_padded", "indices_3d_column_major"),
    "lstm": ("peepholes_bidirectional", "hidden_33"),
    "gru": ("lengths_bidirectional", "linear_before_reset_bidirectional"),
    "rnn": ("lengths_zero_reverse",),
    "sparse_rnn": ("leaky", "nan_batch"),
    "fixed_conv": ("saturates_in_order", "grouped"),
    "fixed_average_pool": ("saturates",),
    "fixed_gru": ("saturates_in_order", "lengths_bidirectional"),
}


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, names in CASES.items() for name in names])
@pytest.mark.parametrize(
    "design",
    [ODD, dataclasses.replace(ODD, name="odd_output", dataflow="output"), WIDE],
    ids=lambda design: design.name,
)
def test_other_designs_give_the_oracles_numbers(op: str, name: str, design: asic_sim.Hardware) -> None:
    case = next(case for case in ops.SPECS[op].cases() if case.name == name)
    problem = ops.canonical(op, case.inputs, case.attributes, case.outputs)
    arrays = case.arrays()[: len(problem.inputs)]
    with asic_sim.use_design(design):
        outputs = prepared(problem, arrays)(arrays)
    tolerance = ops.SPECS[op].tolerance(problem)
    for got, want, tensor in zip(outputs, reference.evaluate(problem, arrays), problem.outputs):
        assert Tensor.of(got) == tensor
        assert tolerance.violations(got, want) == 0


@pytest.mark.parametrize("rows", [1, 3, 16, 256])
def test_sums_are_taken_in_the_order_of_the_array(rows: int) -> None:
    """Bit for bit: down a column in float32, slice by slice of `rows` (the taps, and channels innermost)."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1, 7, 4, 5)).astype(np.float32)
    w = rng.standard_normal((18, 7, 2, 3)).astype(np.float32)
    problem = ops.canonical("conv", [Tensor.of(x), Tensor.of(w)], {})
    with asic_sim.use_design(dataclasses.replace(asic_sim.load("edge"), array_rows=rows)):
        (y,) = prepared(problem, [x, w])([x, w])
    expected = np.zeros_like(y)
    depth = [(i, j, c) for i in range(2) for j in range(3) for c in range(7)]
    for start in range(0, len(depth), rows):
        column = np.zeros_like(y)
        for i, j, c in depth[start : start + rows]:
            column += x[:, c : c + 1, i : i + 3, j : j + 3] * w[:, c, i, j].reshape(1, -1, 1, 1)
        expected += column
    np.testing.assert_array_equal(y, expected)


def test_padding_is_gated() -> None:
    """An infinite weight on padding adds nothing; on a zero that is there it gives NaN."""
    x, w = np.zeros((1, 1, 2), np.float32), np.array([[[np.inf, 1]]], np.float32)
    problem = ops.canonical("conv", [Tensor.of(x), Tensor.of(w)], {"pads": [1, 0]})
    (y,) = prepared(problem, [x, w])([x, w])
    np.testing.assert_array_equal(y, [[[0, np.nan]]])


LSTM_CASE = next(case for case in ops.SPECS["lstm"].cases() if case.name == "lengths")


def test_a_run_reports_its_cost_once() -> None:
    problem = ops.canonical("lstm", LSTM_CASE.inputs, LSTM_CASE.attributes, 3)
    arrays = LSTM_CASE.arrays()
    run = prepared(problem, arrays)
    with collect_costs() as costs:
        run(arrays)
        with asic_sim.use_design("gemmini_like"):
            run(arrays)
        with (
            asic_sim.use_design("tpu_like"),
            pytest.raises(QuatrefoilError, match=r"asic: lstm: the array of tpu_like multiplies int8, .*, not float32"),
        ):
            run(arrays)
    for cost, name in zip(costs, ("edge", "gemmini_like"), strict=True):
        design, report = asic_sim.load(name), asic_sim.simulate(problem, name)
        assert cost.kernel == "lstm_systolic_tnc_f32_asic"
        assert cost.design == str(design)
        assert (cost.cycles, cost.clock_mhz) == (report.cycles, design.clock_mhz)
        assert (cost.macs, cost.dram_bytes) == (report.macs, report.dram_bytes)
        assert cost.counters == report.counters
    run(arrays)  # nobody listens


def test_runs_from_several_threads_agree() -> None:
    case = next(case for case in ops.SPECS["conv"].cases() if case.name == "3x3_wide")
    problem = ops.canonical("conv", case.inputs, case.attributes, 1)
    arrays = case.arrays()
    run = prepared(problem, arrays)
    (expected,) = run(arrays)
    with ThreadPoolExecutor(4) as pool:
        for (y,) in pool.map(lambda _: run(arrays), range(12)):
            np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_other_floats_are_rejected_in_a_sentence(dtype: str) -> None:
    problem = ops.canonical("conv", [Tensor(dtype, (1, 1, 4)), Tensor(dtype, (1, 1, 2))], {})
    array, widened = (k for k in asic_sim.BACKEND.kernels() if k.op == "conv")
    assert str(array.accepts(problem)) == f"the array computes float32, not {dtype}"
    assert (widened.accepts(problem) is None) == (dtype == "float16")


def test_kernel_ids_are_unique_and_every_operator_has_one() -> None:
    kernels = asic_sim.BACKEND.kernels()
    assert len({kernel.id for kernel in kernels}) == len(kernels)
    assert {kernel.op for kernel in kernels} == {op for op, spec in ops.SPECS.items() if not spec.training}
    assert all(kernel.id.startswith(kernel.op) and kernel.id.endswith("_asic") for kernel in kernels)


def test_simulate_refuses_what_is_no_operator() -> None:
    with pytest.raises(QuatrefoilError, match="there is no kernel for softmax"):
        asic_sim.simulate(Problem("softmax", (Tensor("float32", (1,)),), ()))


def test_a_backend_that_is_not_built_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("No module named 'quatrefoil.asic_sim._native'")

    monkeypatch.setattr(backend, "native", missing)
    state = asic_sim.BACKEND.probe()
    assert not state.ready
    assert "is not built" in state.detail
    assert "build_ext" in state.remedy


def test_importing_the_backend_loads_nothing_compiled() -> None:
    code = (
        "import sys; from quatrefoil.asic_sim import BACKEND; BACKEND.kernels(); "
        "sys.exit('quatrefoil.asic_sim._native' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_sequence_without_sequences_ends_at_once() -> None:
    """2^31 - 1 steps of an empty batch."""
    x = np.zeros((2**31 - 1, 0, 3), np.float32)
    w, r = np.zeros((1, 2, 3), np.float32), np.zeros((1, 2, 2), np.float32)
    problem = ops.canonical("rnn", [Tensor.of(x), Tensor.of(w), Tensor.of(r)], {})
    y, h = prepared(problem, [x, w, r])([x, w, r])
    assert (y.shape, h.shape) == ((2**31 - 1, 1, 0, 2), (1, 0, 2))


def test_the_native_door_checks_what_it_is_given() -> None:
    native = backend.native()
    axes = [native.Axis(), native.Axis(), native.Axis(4, 4)]
    layer = native.Convolution(batch=1, groups=1, channels=1, columns=1, axes=axes, plane=[1, 1, 4])
    x, y, function = np.zeros(4, np.float32), np.zeros(3, np.float32), native.Function(0, 0.0, 0.0)
    with pytest.raises(ValueError, match="the size of y"):
        native.convolve_float(layer, 16, x, np.zeros(1, np.float32), None, None, function, y)
    with pytest.raises(ValueError, match="places outside y"):
        native.Convolution(batch=1, groups=1, channels=1, columns=1, axes=axes, plane=[1, 1, 3])
    with pytest.raises(ValueError, match="an index outside y"):
        native.max_unpool(1, [1, 1, 4], [1, 1, 4], x[:1], np.array([4]), x)


def test_layout_1_is_left_to_dispatch() -> None:
    case = next(case for case in ops.SPECS["gru"].cases() if case.name == "layout_1")
    problem = ops.canonical("gru", case.inputs, case.attributes, 2)
    kernel, _ = (k for k in asic_sim.BACKEND.kernels() if k.op == "gru")
    assert "layout" in str(kernel.accepts(problem))
    assert kernel.accepts(rnn.without_layout(problem)) is None
