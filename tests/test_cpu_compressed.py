"""The CPU's kernels on compressed weights: every instruction set, sizes around vectors and units, what is not stored, threads."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from quatrefoil import ops, reference, settings
from quatrefoil.cpu import compressed_limits, compressed_rnn, instruction_set, shared_conv
from quatrefoil.cpu.sequence import PreparedPlan
from quatrefoil.ops import compressed
from quatrefoil.ops import rnn as semantics
from quatrefoil.ops.spec import Case
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Kernel, Run
from quatrefoil.sequences import Operation, Plan, Step

LAYERS = ("rnn", "lstm", "gru")
KINDS = (compressed.SHARED, compressed.SPARSE)
[CONV] = shared_conv.KERNELS
Arrays = list[np.ndarray | None]


def rows(rng: np.random.Generator, shape: tuple[int, ...], row_axes: int, density: float) -> tuple[np.ndarray, ...]:
    weight = rng.standard_normal(shape).astype(np.float32) / np.sqrt(shape[-1])
    weight[rng.random(shape) >= density] = 0
    return compressed.rows_of(weight, row_axes)


def layer(kind: str, op: str, steps: int, batch: int, inputs: int, hidden: int, *, density: float = 0.3, entries: int = 16,
          seed: int = 0, **attributes: Any) -> tuple[Problem, Arrays]:  # fmt: skip
    rng = np.random.default_rng(seed)
    gates, directions = semantics.GATES[op], 2 if attributes.get("direction") == "bidirectional" else 1
    arrays: Arrays = [rng.standard_normal((steps, batch, inputs)).astype(np.float32)]
    for name, depth in (("w", inputs), ("r", hidden)):
        shape = (directions, gates * hidden, depth)
        if kind == compressed.SPARSE:
            attributes[f"{name}_shape"] = shape
            arrays += rows(rng, shape, 2, density)
        else:
            arrays.append(rng.integers(0, entries, shape).astype(np.uint8))
            arrays.append((rng.standard_normal(entries) / np.sqrt(depth)).astype(np.float32))
    arrays.append(rng.standard_normal((directions, 2 * gates * hidden)).astype(np.float32) / 8)
    arrays += [None, rng.standard_normal((directions, batch, hidden)).astype(np.float32)]
    tensors = [None if array is None else Tensor.of(array) for array in arrays]
    name = compressed.OPS[kind, op]
    return ops.canonical(name, tensors, {"hidden_size": hidden, **attributes}, 1), arrays


def prepared(problem: Problem, arrays: Arrays) -> Run:
    """By the kernel that reads what is stored, whatever is faster."""
    [kernel] = [kernel for kernel in (CONV, *compressed_rnn.KERNELS) if kernel.op == problem.op]
    parameters = ops.SPECS[problem.op].parameters
    return kernel.prepare(problem, {i: a for i, a in enumerate(arrays) if i in parameters and a is not None})


def check(problem: Problem, arrays: Arrays) -> None:
    tolerance = ops.SPECS[problem.op].tolerance(problem)
    for output, want in zip(prepared(problem, arrays)(arrays), reference.evaluate(problem, arrays), strict=True):
        wrong = tolerance.violations(output, want)
        assert wrong == 0, f"{wrong} of {want.size} wrong, error {tolerance.error(output, want):.2g}\n{problem}"


def cases() -> list[Case]:
    return [case for kernel in (CONV, *compressed_rnn.KERNELS) for case in ops.SPECS[kernel.op].cases()]


@pytest.mark.parametrize("case", cases(), ids=str)
def test_every_case_whatever_is_faster(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels leave to others what these do faster; they compute it all the same, on every instruction set."""
    problem = ops.canonical(case.op, case.inputs, case.attributes, case.outputs)
    arrays = [None if array is None else np.ascontiguousarray(array) for array in case.arrays()[: len(problem.inputs)]]
    want = reference.evaluate(problem, arrays)
    tolerance = ops.SPECS[problem.op].tolerance(problem)
    for number, name in enumerate(instruction_set.supported()):
        monkeypatch.setattr(instruction_set, "index", lambda number=number: number)
        for output, wanted in zip(prepared(problem, arrays)(arrays), want, strict=True):
            assert tolerance.violations(output, wanted) == 0, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", LAYERS)
def test_sizes_around_vectors_units_and_rows(isa: str, kind: str, op: str) -> None:
    """Depths that leave every remainder of a unit of codes; rows below and above those that are looked up or decoded one by
    one, and that fill groups; a chunk of steps and more."""
    for steps, batch, inputs, hidden in (
        (3, 1, 5, 1),
        (2, 2, 9, 15),
        (2, 3, 8, 17),
        (1, 5, 13, 20),
        (70, 1, 3, 5),
        (2, 17, 4, 33),
    ):
        check(*layer(kind, op, steps, batch, inputs, hidden))
    if op == "gru":
        check(*layer(kind, op, 2, 9, 4, 12, linear_before_reset=1, direction="bidirectional"))


@pytest.mark.parametrize("entries", [2, 16, 17, 256])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_long_panels_of_codes(isa: str, entries: int, batch: int) -> None:
    """More than one part of a panel, with a rest."""
    check(*layer(compressed.SHARED, "gru", 2, batch, 300, 131, entries=entries))


def test_wide_columns(isa: str) -> None:
    """Columns beyond 16 bits."""
    check(*layer(compressed.SPARSE, "rnn", 2, 1, (1 << 16) + 5, 6, density=0.001))
    check(*layer(compressed.SPARSE, "rnn", 2, 8, (1 << 16) + 5, 6, density=0.001))


@pytest.mark.parametrize("batch", [1, 9])
def test_what_is_not_stored_is_a_zero_that_multiplies(isa: str, batch: int) -> None:
    """An infinite input makes NaN of all sums but those of rows that store every column: there it stays infinite."""
    arrays: Arrays = [np.ones((1, batch, 3), np.float32)]
    w = np.array([[[1, 2, 3], [1, 0, 3], [0, 0, 0], [1, 1, 1]]], np.float32)
    arrays += [*compressed.rows_of(w, 2), *compressed.rows_of(np.zeros((1, 4, 4), np.float32), 2)]
    attributes = {"hidden_size": 4, "w_shape": w.shape, "r_shape": (1, 4, 4), "activations": ["Relu"]}
    problem = ops.canonical("sparse_elman", [Tensor.of(a) for a in arrays if a is not None], attributes, 1)
    arrays[0][0, batch - 1, 1] = np.inf  # type: ignore[index]
    y = prepared(problem, arrays)(arrays)[0][0, 0]
    np.testing.assert_array_equal(y[batch - 1], [np.inf, np.nan, np.nan, np.inf])
    np.testing.assert_array_equal(y[: batch - 1], np.tile(np.float32([6, 4, 0, 3]), (batch - 1, 1)))
    check(problem, arrays)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", LAYERS)
def test_threads_do_not_change_a_bit(threads: None, kind: str, op: str) -> None:
    for batch, direction in ((1, "forward"), (8, "bidirectional")):
        problem, arrays = layer(kind, op, 6, batch, 10, 300, direction=direction)
        run = prepared(problem, arrays)
        settings.set_num_threads(1)
        one = run(arrays)
        settings.set_num_threads(4)
        for several, single in zip(run(arrays), one, strict=True):
            np.testing.assert_array_equal(several, single)


def convolution(x: tuple[int, ...], codes: tuple[int, ...], entries: int, **attributes: Any) -> tuple[Problem, Arrays]:
    rng = np.random.default_rng(1)
    book = rng.standard_normal(entries).astype(np.float32)
    arrays: Arrays = [
        rng.standard_normal(x).astype(np.float32), rng.integers(0, entries, codes).astype(np.uint8), book,
        rng.standard_normal(codes[0]).astype(np.float32),
    ]  # fmt: skip
    return ops.canonical("shared_conv", [Tensor.of(a) for a in arrays if a is not None], attributes, 1), arrays


@pytest.mark.parametrize("entries", [16, 200])
def test_rows_and_slices_of_convolutions(isa: str, entries: int) -> None:
    """Blocks of rows across images, slices of a depth that is no whole unit, panels with fewer vectors, groups."""
    check(*convolution((3, 6, 11, 13), (70, 6, 3, 3), entries, pads=(1, 2, 0, 1)))
    check(*convolution((1, 150, 7, 9), (9, 150, 3, 3), entries, pads=(1, 1, 1, 1), activation="Swish"))
    check(*convolution((2, 24, 5), (40, 12, 2), entries, group=2, strides=(2,)))
    for batch in (1, 2, 5):
        check(*convolution((batch, 333, 1), (75, 333, 1), entries, activation="Relu"))


def test_threads_share_a_convolution(threads: None) -> None:
    for shape, codes in (((1, 700, 1), (700, 700, 1)), ((4, 40, 9, 9), (64, 40, 3, 3))):
        problem, arrays = convolution(shape, codes, 16)
        run = prepared(problem, arrays)
        settings.set_num_threads(1)
        one = run(arrays)[0]
        settings.set_num_threads(4)
        np.testing.assert_array_equal(run(arrays)[0], one)


def test_an_infinite_entry_leaves_padding_out(isa: str) -> None:
    problem, arrays = convolution((1, 8, 4, 4), (8, 8, 3, 3), 4, pads=(1, 1, 1, 1))
    arrays[2][1] = np.inf  # type: ignore[index]
    arrays[1][0] = 1  # type: ignore[index]
    arrays[0] = np.abs(arrays[0])  # type: ignore[arg-type]
    assert np.isposinf(prepared(problem, arrays)(arrays)[0][0, 0]).all()
    check(problem, arrays)


@pytest.mark.parametrize(("entries", "share"), [(16, 8), (17, 4)])
def test_codes_take_a_part_of_the_memory(entries: int, share: int) -> None:
    problem, arrays = convolution((1, 512, 1), (512, 512, 1), entries)
    run: Any = prepared(problem, arrays)
    assert run.__self__.packed_bytes == 4 * 512 * 512 // share


DENSE_256 = "shared_conv float32[1x1024x1],uint8[1024x1024x1],float32[256]"
LSTM_17 = "shared_lstm float32[9x1x64],uint8[1x8192x64],float32[16],uint8[1x8192x2048],float32[17] hidden_size=2048"


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (DENSE_256, "256 entries take longer to decode than 4096 KiB"),
        ("shared_conv float32[1x2048x7x7],uint8[512x2048x1x1],float32[99]", "^$"),
        ("shared_conv float32[1x2048x6x7],uint8[512x2048x1x1],float32[99]", "99 entries take longer to decode than 42 places"),
        ("shared_conv float32[1x64x56x56],uint8[64x64x3x3],float32[16] pads=1x1x1x1", "144 KiB stay in a cache"),
        ("shared_conv float32[1x256x14x14],uint8[256x256x3x3],float32[16] pads=1x1x1x1", "minimal filters multiply less"),
        ("shared_conv float32[1x3x99x99],uint8[64x3x7x7],float32[16]", "stay empty with 3 channels"),
        (LSTM_17, "17 entries take longer to decode than 65536 KiB of dense weights to read for 1 sequences"),
        ("sparse_lstm float32[9x1x8],float32[999],int32[999],int32[257],float32[9999],int32[9999],int32[257] hidden_size=64 "
         "w_shape=1x256x8 r_shape=1x256x64", "60% of the weights are stored, and from 15% on"),
    ],
)  # fmt: skip
def test_what_others_do_faster_is_left_to_them(monkeypatch: pytest.MonkeyPatch, problem: str, says: str) -> None:
    monkeypatch.setattr(compressed_limits, "limits", lambda: compressed_limits.AVX2)
    parsed = ops.parse(problem)
    [kernel] = [kernel for kernel in (CONV, *compressed_rnn.KERNELS) if kernel.op == parsed.op]
    refused = kernel.accepts(parsed)
    assert re.search(says, "" if refused is None else refused.why)


def test_long_codebooks_are_taken_where_bytes_are_permuted(monkeypatch: pytest.MonkeyPatch) -> None:
    for known, taken in ((compressed_limits.AVX512, False), (compressed_limits.BYTES_PERMUTED, True)):
        monkeypatch.setattr(compressed_limits, "limits", lambda known=known: known)
        for problem, op in ((DENSE_256, "shared_conv"), (LSTM_17, "shared_lstm")):
            [kernel] = [kernel for kernel in (CONV, *compressed_rnn.KERNELS) if kernel.op == op]
            assert (kernel.accepts(ops.parse(problem)) is None) == taken


@pytest.mark.parametrize("op", ["shared_conv", "shared_gru", "sparse_lstm"])
def test_steps_of_a_sequence_find_their_inputs(op: str) -> None:
    """The places of the residual, the lengths and the states, whose parameters are in parts."""
    cases = {case.name: case for case in ops.SPECS[op].cases()}
    for name in ("bias_residual_relu",) if op == "shared_conv" else ("initial_state", "lengths_zero_reverse"):
        case = cases[name]
        problem = ops.canonical(case.op, case.inputs, case.attributes, case.outputs)
        arrays = case.arrays()[: len(problem.inputs)]
        places = ops.SPECS[op].parameters
        parameters = {i: a for i, a in enumerate(arrays) if i in places and a is not None}
        kernel: Kernel
        [kernel] = [kernel for kernel in (CONV, *compressed_rnn.KERNELS) if kernel.op == op]
        varying = tuple(i for i, a in enumerate(arrays) if a is not None and i not in places)
        made = tuple(range(100, 100 + len(problem.outputs)))
        types = {i: problem.input(i) for i in varying} | dict(zip(made, problem.outputs, strict=True))
        step = Step(
            Operation(problem, kernel, parameters),
            tuple(i if i in varying else None for i in range(len(problem.inputs))), made, kernel.id,
        )  # fmt: skip
        outputs = PreparedPlan(Plan([step], types, {}, varying, made))([arrays[i] for i in varying])  # type: ignore[misc]
        assert outputs is not None
        for output, want in zip(outputs, kernel.prepare(problem, parameters)(arrays), strict=True):
            np.testing.assert_array_equal(output, want)
