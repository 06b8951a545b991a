"""The CPU's convolution kernels: every instruction set, threads, the shapes at which blocking changes, bad weights."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from quatrefoil import cpu, ops, reference, settings
from quatrefoil.cpu import conv, instruction_set
from quatrefoil.cpu.layouts import BlockedOperation, blocked_array
from quatrefoil.cpu.sequence import PreparedPlan
from quatrefoil.errors import BackendUnavailable
from quatrefoil.ops import layouts
from quatrefoil.ops.spec import Case
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Kernel
from quatrefoil.sequences import Operation, Plan, Step

CASES = [case for op in ops.FAMILIES["conv"] for case in ops.SPECS[op].cases()]
KERNELS = {kernel.id: kernel for kernel in conv.KERNELS}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = settings.num_threads()
    yield
    settings.set_num_threads(before)


def _problem(case: Case) -> tuple[Problem, list[np.ndarray | None]]:
    arrays = case.arrays()
    problem = ops.canonical(case.op, [None if array is None else Tensor.of(array) for array in arrays], case.attributes)
    given = layouts.views(problem, arrays) if layouts.turned(problem) else arrays
    return layouts.plain(problem), [None if array is None else np.ascontiguousarray(array) for array in given]


@cache
def _expected(case_name: str) -> np.ndarray:
    problem, arrays = _problem(next(case for case in CASES if str(case) == case_name))
    return reference.evaluate(problem, arrays)[0]


def _parameters(problem: Problem, arrays: list[np.ndarray | None]) -> dict[int, np.ndarray]:
    given = {position: arrays[position] for position in ops.SPECS[problem.op].parameters if problem.has(position)}
    return {position: array for position, array in given.items() if array is not None}


@pytest.mark.parametrize("kernel", conv.KERNELS, ids=lambda kernel: kernel.id)
@pytest.mark.parametrize("isa", range(6), ids=["portable", "v2", "v3", "v4", "v4_vnni", "v4_amx"])
def test_every_instruction_set(isa: int, kernel: object, monkeypatch: pytest.MonkeyPatch) -> None:
    if isa >= len(instruction_set.supported()):
        pytest.skip(f"this processor and build have {', '.join(instruction_set.supported())} alone")
    monkeypatch.setattr(instruction_set, "index", lambda: isa)
    settings.set_num_threads(1 + isa % 3)
    reached, lacking = 0, ""
    for case in CASES:
        problem, arrays = _problem(case)
        if kernel.op != case.op:
            continue
        if (reject := kernel.accepts(problem)) is not None:
            lacking = str(reject) if "instruction set in use" in str(reject) else lacking
            continue
        [y] = kernel.prepare(problem, _parameters(problem, arrays))(arrays)
        wrong = ops.SPECS[case.op].tolerance(problem).violations(y, _expected(str(case)))
        assert wrong == 0, f"{case}: {wrong} of {y.size} values"
        reached += 1
    if not reached and lacking:
        pytest.skip(f"{kernel.id}: {lacking}")
    assert reached


BLOCKED = [
    # products on planes: several blocks of places and slices of the depth, a ragged last tile, steps of three
    ("1x48x90x91", "40x48x3x3", {"pads": [1, 1, 1, 1]}),
    ("1x24x57x59", "100x24x1x1", {}),
    ("1x3x130x131", "17x3x7x7", {"strides": [2, 2], "pads": [3, 3, 3, 3]}),
    ("2x20x33x47", "6x20x3x3", {"strides": [3, 3], "dilations": [2, 1]}),
    ("1x500x12x13", "40x500x1x1", {}),
    ("1x40x3000", "12x40x4", {"strides": [3], "pads": [2, 3]}),
    # a few places
    ("1x96x7x7", "200x96x1x1", {}),
    ("1x520x8x9", "130x520x3x3", {"pads": [1, 1, 1, 1]}),
    ("1x300x1x1", "123x300x1x1", {}),
    # small images of a batch as one row of pixels
    ("33x12x5x6", "20x12x3x3", {"pads": [1, 0, 1, 0]}),
    ("70x40x1x1", "33x40x1x1", {}),
    ("5x16x3x3", "70x8x2x2", {"group": 2}),
    # minimal filtering: pieces of a row of tiles, blocks over several images, groups, borders wider than the kernel
    ("1x24x10x230", "17x24x3x3", {"pads": [1, 1, 1, 1]}),
    ("7x16x9x10", "24x16x3x3", {"pads": [1, 0, 1, 2]}),
    ("2x34x13x29", "38x17x3x3", {"group": 2, "pads": [3, 2, 0, 4]}),
    ("1x9x23x75", "11x9x5x5", {"pads": [2, 2, 2, 2]}),
    ("3x16x6x5", "20x16x5x5", {"pads": [4, 0, 4, 1]}),
    # longer, strided and dilated kernels, one axis and volumes, brought to minimal filters; images beyond one room
    ("1x48x31x33", "56x48x3x3", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("2x24x20x23", "24x24x3x3", {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    ("13x64x40x41", "16x64x3x3", {"dilations": [2, 1]}),
    ("2x32x33x37", "32x32x5x5", {"strides": [2, 1], "pads": [2, 2, 2, 2]}),
    ("1x32x22x25", "40x32x4x4", {"pads": [1, 2, 2, 1]}),
    ("1x16x22x25", "20x16x7x7", {"pads": [3, 3, 3, 3]}),
    ("1x64x15x17", "64x32x3x3", {"group": 2, "dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    ("1x24x301", "30x24x3", {"pads": [1, 1]}),
    ("2x20x97", "24x20x5", {"dilations": [8], "pads": [16, 16]}),
    ("1x32x40x13", "32x32x9x1", {"pads": [4, 0, 4, 0]}),
    ("2x18x6x13x14", "24x18x3x3x3", {"pads": [1, 1, 1, 1, 1, 1]}),
    ("1x24x9x13x14", "24x24x2x3x3", {"strides": [2, 1, 1], "pads": [1, 1, 1, 0, 1, 1]}),
    # blocks of channels: several slices of the depth and blocks of pixels, ragged channels, volumes
    ("1x300x21x23", "41x300x1x1", {}),
    ("2x70x19x18", "50x70x3x3", {"strides": [2, 1], "pads": [1, 1, 1, 1], "dilations": [2, 1]}),
    ("2x18x5x6x7", "20x18x2x3x3", {"strides": [1, 2, 1], "pads": [1, 1, 1, 1, 1, 1]}),
    # depthwise tiles: several bands, ragged last tiles, rows narrower than a vector
    ("2x5x20x71", "5x1x3x3", {"group": 5, "pads": [1, 1, 1, 1]}),
    ("1x7x21x90", "7x1x5x5", {"group": 7, "strides": [2, 2], "pads": [2, 2, 2, 2]}),
    ("1x3x40x100", "3x1x3x3", {"group": 3, "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    ("1x4x9x66", "4x1x5x5", {"group": 4, "pads": [3, 4, 3, 4]}),
    ("1x5x30x49", "5x1x5x5", {"group": 5, "strides": [2, 1], "pads": [2, 2, 2, 2]}),
    ("3x5x7x7", "5x1x3x3", {"group": 5, "pads": [1, 1, 1, 1]}),
    ("2x3x1x3", "3x1x3x3", {"group": 3, "pads": [1, 1, 1, 1]}),
    ("1x3x130x33", "3x1x7x7", {"group": 3, "strides": [2, 2], "pads": [3, 3, 3, 3]}),
    # depthwise by taps: one axis, dilation, strides from 3 on, volumes
    ("2x3x300", "3x1x9", {"group": 3, "pads": [4, 4]}),
    ("2x3x19x25", "3x1x3x4", {"group": 3, "dilations": [2, 3], "pads": [2, 0, 2, 4]}),
    ("1x3x20x41", "3x1x3x5", {"group": 3, "strides": [1, 3], "pads": [1, 2, 1, 2]}),
    ("2x2x5x6x9", "2x1x3x3x3", {"group": 2, "strides": [1, 2, 1], "pads": [1, 1, 1, 1, 1, 1]}),
    # padded rows: several bands, blocks of channels of two sizes, rows narrower than a vector, strides, volumes
    ("1x20x95x90", "5x20x3x3", {"pads": [1, 0, 1, 0]}),
    ("2x3x41x67", "20x3x3x3", {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
    ("3x8x6x5", "14x4x3x3", {"group": 2, "pads": [1, 1, 1, 1]}),
    ("2x2x23x40", "3x2x3x5", {"strides": [2, 3], "dilations": [2, 1], "pads": [2, 2, 2, 2]}),
    ("2x3x6x7x9", "7x3x3x3x3", {"strides": [2, 1, 2], "pads": [1, 1, 1, 1, 1, 1]}),
    ("2x3x4x7x9", "7x3x1x3x3", {"pads": [1, 0, 1, 2, 1, 0]}),
]


def _random(
    x_shape: str,
    w_shape: str,
    attributes: dict,
    residual: bool = True,
    dtype: type = np.float64,
    op: str = "conv",
) -> tuple[Problem, list[np.ndarray]]:
    rng = np.random.default_rng(7)
    x, w = (rng.standard_normal([int(n) for n in shape.split("x")]) for shape in (x_shape, w_shape))
    plain = ops.canonical(op, [Tensor.of(x), Tensor.of(w)], attributes)
    [y] = plain.outputs
    w /= np.sqrt(
        w[0].size if op == "conv" else w[:, 0].size
    )  # sums of about 1, so that a clip does not narrow the tolerance
    arrays = [x, w, rng.standard_normal(y.shape[1])]
    if residual:
        arrays.append(rng.standard_normal(y.shape))
    arrays = [array.astype(dtype) for array in arrays]
    return ops.canonical(op, [Tensor.of(array) for array in arrays], attributes), arrays


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("activation", ["Identity", "Clip(-1.0,1.5)", "HardSwish"])
@pytest.mark.parametrize(("x", "w", "attributes"), BLOCKED, ids=lambda value: value if isinstance(value, str) else "")
def test_blocks_agree_with_double(x: str, w: str, attributes: dict, activation: str, threads: int) -> None:
    settings.set_num_threads(threads)
    exact, arrays = _random(x, w, {**attributes, "activation": activation})
    [expected] = KERNELS["conv_direct_nchw_f64_simd"].prepare(exact, _parameters(exact, arrays))(arrays)
    singles = [array.astype(np.float32) for array in arrays]
    problem = ops.canonical("conv", [Tensor.of(array) for array in singles], {**attributes, "activation": activation})
    taken = [kernel for kernel in conv.KERNELS if kernel.op == "conv" and kernel.accepts(problem) is None]
    assert len(taken) > 1
    for kernel in taken:
        [y] = kernel.prepare(problem, _parameters(problem, singles))(singles)
        assert ops.SPECS["conv"].tolerance(problem).violations(y, expected) == 0, kernel.id


@pytest.mark.parametrize(
    "kernel", [k for k in conv.KERNELS if k.blocked and k.op == "conv"], ids=lambda kernel: kernel.id
)
@pytest.mark.parametrize("infinite", [False, True], ids=["finite", "infinite"])
def test_channel_blocks_give_the_same(kernel: Kernel, infinite: bool) -> None:
    """Whole blocks on every instruction set; test_sequence.py has channels that leave lanes empty."""
    weights, group = ("32x1x3x3", 32) if "depthwise" in kernel.id else ("48x32x3x3", 1)
    attributes = {"pads": [1, 1, 1, 1], "activation": "HardSwish", "group": group}
    problem, arrays = _random("2x32x19x23", weights, attributes, dtype=np.float32)
    if infinite:
        arrays[1][0, 0, 0, 0] = np.inf
    assert kernel.accepts(problem) is None
    assert kernel.blocked is not None
    [plain] = kernel.prepare(problem, _parameters(problem, arrays))(arrays)
    lanes = instruction_set.lanes()
    x, w, bias, residual = arrays
    given = [blocked_array(x, lanes), w, bias, blocked_array(residual, lanes)]
    [y] = kernel.blocked(problem, _parameters(problem, arrays), True, True)(given)
    np.testing.assert_array_equal(y.reshape(-1), blocked_array(plain, lanes).reshape(-1))


def _require_tiles() -> None:
    if instruction_set.name() != "v4_amx":
        pytest.skip(f"tile registers are not in the instruction set in use, {instruction_set.name()}")


@pytest.mark.parametrize("algorithm", ["winograd_nchwc_f32_simd", "tiles_nchw_f32_amx"])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_values_that_transforms_would_spoil(kernel_size: int, algorithm: str) -> None:
    """Infinities and NaN spread over a tile, and its transforms (or rounding to bfloat16) overflow, where the sums
    themselves do not."""
    if "tiles" in algorithm:
        _require_tiles()
    problem, arrays = _random(
        "1x16x21x22", f"16x16x{kernel_size}x{kernel_size}", {"pads": [1, 1, 1, 1]}, dtype=np.float32
    )
    x = arrays[0]
    x[0, 3, 2, 2], x[0, 4, 9, 20], x[0, 5, 20, 0] = np.inf, -np.inf, np.nan
    x[0, 1, 12:16, 6:12] = 3e38 * np.sign(x[0, 1, 12:16, 6:12])
    arrays[1][:, 1] *= 0.01
    kernel = KERNELS[f"conv_{algorithm}"]
    [y] = kernel.prepare(problem, _parameters(problem, arrays))(arrays)
    [expected] = KERNELS["conv_direct_nchw_f32_simd"].prepare(problem, _parameters(problem, arrays))(arrays)
    assert 0 < np.count_nonzero(~np.isfinite(expected)) < expected.size // 4
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("x_scale", "w_scale"), [(1e-36, 1.0), (1.0, 1e-36), (1e-18, 1e-18), (0.0, 1.0), (1e30, 1e5)])
def test_tiles_keep_small_and_large_values(x_scale: float, w_scale: float) -> None:
    """Tiles take denormal values for zero, and parts of small values are denormal."""
    _require_tiles()
    problem, arrays = _random("2x40x9x11", "24x40x3x3", {"pads": [1, 1, 1, 1]}, dtype=np.float32)
    problem = ops.canonical("conv", [Tensor.of(array) for array in arrays[:2]], {"pads": [1, 1, 1, 1]})
    scaled = [arrays[0] * np.float32(x_scale), arrays[1] * np.float32(w_scale)]
    [y] = KERNELS["conv_tiles_nchw_f32_amx"].prepare(problem, _parameters(problem, scaled))(scaled)
    [expected] = KERNELS["conv_direct_nchw_f32_simd"].prepare(problem, _parameters(problem, scaled))(scaled)
    error = np.abs(y.astype(np.float64) - expected).max()
    assert error <= 1e-5 * np.abs(expected.astype(np.float64)).max()


@pytest.mark.parametrize("zero_point", [0, -16, 127], ids=lambda zero: f"zero {zero}")
@pytest.mark.parametrize("algorithm", ["tiles_nchw_i8_amx", "gemm_nchw_i8_vnni"])
def test_products_of_bytes_are_exact(algorithm: str, zero_point: int) -> None:
    """Whatever the signs and zero points: weights that are no bytes without theirs are multiplied as int16."""
    kernel = KERNELS[f"conv_integer_{algorithm}"]
    rng = np.random.default_rng(3)
    for dtype in (np.uint8, np.int8):
        x = rng.choice([np.iinfo(dtype).min, np.iinfo(dtype).max], (2, 70, 7, 9)).astype(dtype)
        w = rng.choice([-128, 127], (19, 70, 3, 2)).astype(np.int8)
        arrays = [x, w, np.array(100, dtype), np.array(zero_point, np.int8)]
        attributes = {"pads": [1, 1, 2, 0], "strides": [2, 1]}
        problem = ops.canonical("conv_integer", [Tensor.of(array) for array in arrays], attributes)
        if (lack := kernel.accepts(problem)) is not None:
            pytest.skip(str(lack))
        [y] = kernel.prepare(problem, _parameters(problem, arrays))(arrays)
        np.testing.assert_array_equal(y, reference.evaluate(problem, arrays)[0])


@pytest.mark.parametrize(
    ("channels", "algorithm"),
    [
        (115, "conv_winograd4_integer"),  # 115 * 9 * 127 * 255 is just below 2^25
        (116, "conv_winograd2_integer"),
        (1841, "conv_winograd2_integer"),  # just below 2^29
        (1842, "conv_gemm_integer"),
    ],
)
def test_minimal_filters_take_the_sums_that_they_get_back(channels: int, algorithm: str) -> None:
    kernel = KERNELS["conv_integer_winograd_nchw_i8_simd"]
    for weight, zero_point in ((127, 0), (-127, 255)):
        x = np.full((1, channels, 16, 16), 255 - zero_point, np.uint8)
        x[0, :, 4, 5] = zero_point
        arrays = [x, np.full((8, channels, 3, 3), weight, np.int8), np.array(zero_point, np.uint8)]
        attributes = {"pads": [1, 1, 1, 1]}
        problem = ops.canonical("conv_integer", [Tensor.of(array) for array in arrays], attributes)
        if (lack := kernel.accepts(problem)) is not None:
            pytest.skip(str(lack))
        geometry = conv.semantics.geometry(problem)
        assert conv._minimal(problem, geometry, arrays[1].astype(np.int16), zero_point) == algorithm
        [y] = kernel.prepare(problem, _parameters(problem, arrays))(arrays)
        [expected] = KERNELS["conv_integer_direct_nchw_i8_simd"].prepare(problem, _parameters(problem, arrays))(arrays)
        assert expected.max() == 9 * 127 * 255 * channels
        np.testing.assert_array_equal(y, expected)


TRANSPOSED = [
    ("1x24x13x15", "24x20x4x4", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),  # four phases of the same length
    ("2x9x14x11", "9x7x3x3", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),  # of different lengths and taps
    ("1x300x9x8", "300x40x2x2", {"strides": [2, 2]}),  # several slices of the depth
    ("1x16x30x41", "16x48x5x5", {"pads": [2, 2, 2, 2]}),  # one phase, several blocks of places
    ("2x6x9x10", "6x5x2x3", {"strides": [3, 4], "group": 2}),  # phases that no tap meets
    ("1x8x7x9", "8x6x3x3", {"strides": [3, 2], "dilations": [2, 3], "output_padding": [1, 1]}),
    ("2x10x70", "10x6x8", {"strides": [4], "pads": [2, 2]}),
    ("1x7x3x5x6", "7x9x3x3x3", {"strides": [2, 1, 2], "pads": [1, 1, 1, 1, 1, 1]}),
]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("activation", ["Identity", "Clip(-1.0,1.5)", "HardSwish"])
@pytest.mark.parametrize(
    ("x", "w", "attributes"), TRANSPOSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_transposed_phases_agree_with_double(x: str, w: str, attributes: dict, activation: str, threads: int) -> None:
    settings.set_num_threads(threads)
    attributes = {**attributes, "activation": activation}
    exact, arrays = _random(x, w, attributes, op="conv_transpose")
    [expected] = KERNELS["conv_transpose_direct_nchw_f64_simd"].prepare(exact, _parameters(exact, arrays))(arrays)
    singles = [array.astype(np.float32) for array in arrays]
    problem = ops.canonical("conv_transpose", [Tensor.of(array) for array in singles], attributes)
    for kernel in conv.KERNELS:
        if kernel.op == "conv_transpose" and kernel.accepts(problem) is None:
            [y] = kernel.prepare(problem, _parameters(problem, singles))(singles)
            assert ops.SPECS["conv_transpose"].tolerance(problem).violations(y, expected) == 0, kernel.id


INTEGER_BLOCKED = [
    ("1x130x40x33", "20x130x3x3", {"pads": [1, 1, 1, 1]}),  # bands of rows
    ("1x9x20x23", "33x9x3x3", {"pads": [1, 0, 0, 1]}),  # more pixels than one pass, ragged blocks of channels
    ("1x700x5x6", "9x700x2x3", {}),  # runs in pieces
    ("1x300x6x6", "70x300x3x3", {"pads": [1, 1, 1, 1]}),  # depth in blocks
    ("9x24x5x3", "37x24x3x3", {"pads": [1, 1, 1, 1]}),  # several images in a slab
    ("70x40x1x1", "33x40x1x1", {}),
    ("2x20x13x15", "18x20x1x1", {"strides": [2, 2]}),
    ("1x17x11x9", "24x17x1x1", {"pads": [1, 0, 2, 0]}),  # rows joined between padding
    ("1x3x33x35", "17x3x7x7", {"strides": [2, 2], "pads": [3, 3, 3, 3]}),
    ("2x5x6x7x8", "10x5x3x2x3", {"dilations": [2, 1, 2], "pads": [2, 0, 1, 2, 1, 0], "strides": [1, 2, 1]}),
    ("3x12x9x9", "18x4x3x3", {"group": 3, "dilations": [1, 3], "pads": [0, 2, 0, 2]}),
    ("1x1x12x13", "20x1x3x3", {}),
    # minimal filtering: bands of tiles, several images in one, groups, borders wider than the kernel, the depth in pieces
    ("1x72x50x46", "40x72x3x3", {"pads": [1, 1, 1, 1]}),
    ("9x24x9x10", "37x24x3x3", {"pads": [1, 1, 1, 1]}),
    ("2x34x13x29", "38x17x3x3", {"group": 2, "pads": [3, 2, 0, 4]}),
    ("1x520x9x8", "9x520x3x3", {"pads": [1, 1, 1, 1]}),
    ("1x16x3x12x11", "24x16x1x3x3", {"strides": [2, 1, 1], "pads": [1, 0, 0, 0, 0, 0]}),
    ("2x5x20x71", "5x1x3x3", {"group": 5, "pads": [1, 1, 1, 1]}),  # depthwise, by kernel and stride
    ("1x3x17x33", "6x1x3x3", {"group": 3, "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    ("1x4x9x66", "4x1x5x5", {"group": 4, "pads": [3, 4, 3, 4]}),
    ("1x7x15x90", "7x1x5x5", {"group": 7, "strides": [2, 2], "pads": [2, 2, 2, 2]}),
    ("1x3x4x5", "3x1x3x3", {"group": 3, "pads": [3, 3, 3, 3]}),
    ("2x3x9x40", "3x1x2x4", {"group": 3, "strides": [1, 3], "dilations": [3, 2]}),
    ("1x144x7x9", "144x1x3x3", {"group": 144, "pads": [1, 1, 1, 1]}),  # whole vectors of channels, and neighbours
    ("1x100x9x14", "100x1x3x3", {"group": 100, "strides": [2, 2], "pads": [0, 0, 1, 1]}),
]


def _integers(
    op: str, x_shape: str, w_shape: str, attributes: dict, values_are: str
) -> tuple[Problem, list, np.ndarray]:
    """A problem, its inputs and the oracle's result. values_are: ``any``; ``extreme``, zero points too at an end of their
    range; or extreme ``bytes``, whose weights have 0 as zero point, so that products of bytes do."""
    rng = np.random.default_rng(5)

    def values(dtype: str, *shape: int) -> np.ndarray:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        return (rng.choice([low, high], shape) if values_are != "any" else rng.integers(low, high + 1, shape)).astype(
            dtype
        )

    x, w = (values(dtype, *map(int, shape.split("x"))) for dtype, shape in (("uint8", x_shape), ("int8", w_shape)))
    channels = len(w)
    w_zero = values("int8", channels) if values_are != "bytes" else np.zeros(channels, np.int8)
    if op == "conv_integer":
        x = x.view(np.int8)
        arrays = [x, w, values("int8"), w_zero]
    else:
        # multipliers that saturate, and powers of two, of which odd sums make halves
        scale = rng.choice(np.float32([2.0**-9, 2.0**-1, 0.0037, 0.0001]), channels)
        arrays = [x, np.float32(1), values("uint8"), w, scale, w_zero, np.float32(1), values("int8")]
        arrays.append(rng.integers(-20000, 20000, channels).astype(np.int32))
    problem = ops.canonical(op, [Tensor.of(array) for array in arrays], attributes)
    return problem, arrays, reference.evaluate(problem, arrays)[0]


@pytest.mark.parametrize("values_are", ["any", "extreme", "bytes"])
@pytest.mark.parametrize("op", ["conv_integer", "qlinear_conv"])
@pytest.mark.parametrize(
    ("x", "w", "attributes"), INTEGER_BLOCKED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_integer_blocks_are_exact(
    x: str, w: str, attributes: dict, op: str, values_are: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, arrays, expected = _integers(op, x, w, attributes, values_are)
    for isa in range(len(instruction_set.supported())):
        monkeypatch.setattr(instruction_set, "index", lambda isa=isa: isa)
        taken = [kernel for kernel in conv.KERNELS if kernel.op == op and kernel.accepts(problem) is None]
        assert len(taken) > 1
        for kernel in taken:
            for threads in (1, 3):
                settings.set_num_threads(threads)
                said = f"{kernel.id}, {threads} threads, instruction set {isa}"
                [y] = kernel.prepare(problem, _parameters(problem, arrays))(arrays)
                np.testing.assert_array_equal(y, expected, said)
                for x_last, y_last in ((True, True), (True, False), (False, True)) if kernel.blocked else ():
                    given = [np.moveaxis(arrays[0], 1, -1).copy() if x_last else arrays[0], *arrays[1:]]
                    [y] = kernel.blocked(problem, _parameters(problem, arrays), x_last, y_last)(given)
                    wanted = np.moveaxis(expected, 1, -1) if y_last else expected
                    np.testing.assert_array_equal(y, wanted, f"{said}, channels last: x {x_last}, y {y_last}")


def test_integer_kernels_are_native_steps() -> None:
    """From planes through channels last to planes, in one call."""
    rng = np.random.default_rng(4)
    shape = {"strides": [1, 1], "pads": [1, 1, 1, 1]}
    x, *ws = (rng.integers(-9, 9, size).astype(np.int8) for size in ((1, 20, 6, 7), (20, 20, 3, 3), (5, 20, 3, 3)))
    zero, one = np.zeros((), np.int8), np.float32(1)
    first = [x, one, zero, ws[0], np.float32(0.05), zero, one, zero]
    problem = ops.canonical("qlinear_conv", [Tensor.of(array) for array in first], shape)
    [between] = reference.evaluate(problem, first)
    second = [between, ws[1]]
    summing = ops.canonical("conv_integer", [Tensor.of(array) for array in second], shape)
    [expected] = reference.evaluate(summing, second)
    steps = []
    for of, arrays, sides, places in (
        (problem, first, (False, True), (0, 1)),
        (summing, second, (True, False), (1, 2)),
    ):
        kernel = next(kernel for kernel in conv.KERNELS if kernel.op == of.op and kernel.accepts(of) is None)
        operation = BlockedOperation(Operation(of, kernel, _parameters(of, arrays)), *sides)
        steps.append(Step(operation, (places[0], *(None,) * (len(arrays) - 1)), (places[1],), ""))
    types = {0: Tensor.of(x), 1: Tensor("int8", (1, 6, 7, 20)), 2: Tensor.of(expected.astype(np.int32))}
    results = PreparedPlan(Plan(steps, types, {}, (0,), (2,)))([x])
    assert results is not None
    np.testing.assert_array_equal(results[0], expected)


def test_infinite_weights_leave_padding_out() -> None:
    x, w = np.ones((1, 2, 5, 6), np.float32), np.ones((3, 2, 3, 3), np.float32)
    w[1, 0, 0, 0] = np.inf
    problem = ops.canonical("conv", [Tensor.of(x), Tensor.of(w)], {"pads": [1, 1, 1, 1]})
    [expected] = reference.evaluate(problem, [x, w])
    for kernel in conv.KERNELS:
        if kernel.op == "conv" and kernel.accepts(problem) is None:
            np.testing.assert_array_equal(kernel.prepare(problem, {1: w})([x, w])[0], expected, kernel.id)


def test_one_run_from_several_threads() -> None:
    _, arrays = _random("1x16x30x31", "24x16x3x3", {"pads": [1, 1, 1, 1]}, residual=False)
    singles = [array.astype(np.float32) for array in arrays]
    problem = ops.canonical("conv", [Tensor.of(array) for array in singles], {"pads": [1, 1, 1, 1]})
    run = KERNELS["conv_gemm_nchw_f32_simd"].prepare(problem, _parameters(problem, singles))
    inputs = [(singles[0] * scale).astype(np.float32) for scale in range(1, 9)]
    alone = [run([x])[0] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: run([x])[0], inputs * 5))
    for index, y in enumerate(together):
        np.testing.assert_array_equal(y, alone[index % len(inputs)])


def test_a_forced_instruction_set_is_known_or_an_error() -> None:
    assert instruction_set.choose("portable") == 0
    assert instruction_set.choose(None) == len(instruction_set.supported()) - 1
    for wrong in ("", "v9", "V4", "avx512"):
        with pytest.raises(BackendUnavailable, match="can run portable"):
            instruction_set.choose(wrong)


def test_the_environment_forces_the_instruction_set() -> None:
    script = (
        "from quatrefoil.cpu import BACKEND, instruction_set as i; print(BACKEND.probe().ready, BACKEND.probe().detail)"
    )

    def told(value: str) -> str:
        environment = {"QUATREFOIL_CPU_ISA": value, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert re.search(r"^True .*instruction set portable", told("portable"))
    assert told("sse9").startswith("False QUATREFOIL_CPU_ISA is 'sse9'")


@pytest.mark.parametrize("module", ["_conv", "_pool", "_rnn", "_shared"])
def test_no_code_is_shared_between_instruction_sets(module: str) -> None:
    """An inline function outside the anonymous namespace would be merged across the builds of a source, and the
    portable kernels could end up in its AVX-512 version. What is left in the module's table of symbols must therefore
    be anonymous, static, plain C, or one of the doors that pick by instruction set."""
    [built] = Path(cpu.__file__).parent.glob(f"{module}.*.so")
    symbols = subprocess.run(["nm", "--defined-only", str(built)], capture_output=True, text=True, check=True).stdout
    assert "_v4" in symbols or "_portable" in symbols, "the module has lost its symbols"
    names = [line.split()[2] for line in symbols.splitlines() if line.split()[1] in "tTwWu"]
    mangled = [name for name in names if name.startswith("_Z") and "_GLOBAL__N_1" not in name]
    mangled = [name for name in mangled if not name.startswith("_ZL")]  # static
    mangled = [
        name for name in mangled if not re.match(r"_ZZ\d+\w+_(portable|v\d)E", name)
    ]  # inside an exported kernel
    doors = re.compile(r"_Z\d+\w+i$")
    assert [name for name in mangled if not doors.match(name)] == []
