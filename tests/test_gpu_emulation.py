"""The CUDA emulator itself: it has to catch what it is there to catch, and give the same numbers in every order."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quatrefoil import ops
from quatrefoil.gpu import compiler
from quatrefoil.gpu.emulation import EmulatedBackend, EmulatedDevice, host
from quatrefoil.gpu.launch import KernelFault
from quatrefoil.ops.spec import Case
from quatrefoil.problem import Tensor

pytestmark = pytest.mark.skipif(host.gxx() is None, reason="emulating CUDA needs g++")


def case_named(op: str, name: str) -> Case:
    return next(case for case in ops.SPECS[op].cases() if case.name == name)


def outputs(device: EmulatedDevice, kernel_id: str, case: Case) -> tuple[np.ndarray, ...]:
    """What one kernel gives for a case."""
    [kernel] = [kernel for kernel in EmulatedBackend(device).kernels() if kernel.id == kernel_id]
    problem = ops.canonical(case.op, case.inputs, case.attributes, case.outputs)
    assert kernel.accepts(problem) is None
    arrays = [None if array is None else np.ascontiguousarray(array) for array in case.arrays()]
    constant = ops.SPECS[case.op].parameters
    parameters = {i: array for i, array in enumerate(arrays) if i in constant and array is not None}
    return kernel.prepare(problem, parameters)(arrays)


def same(left: tuple[np.ndarray, ...], right: tuple[np.ndarray, ...]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(left, right, strict=True))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the kernels' sources to plant mistakes in, and a cache of its own."""
    monkeypatch.setenv("QUATREFOIL_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(compiler.SOURCES, tmp_path / "src"))


def without(text: str, what: str, occurrence: int) -> str:
    """``text`` without one occurrence of ``what``."""
    pieces = text.split(what)
    return what.join(pieces[: occurrence + 1]) + what.join(["", *pieces[occurrence + 1 :]])[len(what) :]


# Deep enough for several tiles of each loop: 630 products a sum, 66 channels in two passes, 260 hidden units.
GEMM = ("conv_gemm128_nchw_f32_cuda", case_named("conv", "3x3_deep"))
LSTM = (
    "lstm_steps_tnc_f32_cuda",
    Case("lstm", "deep", tuple(Tensor("float32", shape) for shape in ((2, 2, 3), (1, 1040, 3), (1, 1040, 260)))),
)
FIXED_GRU = ("fixed_gru_sequence_tnc_fixed_cuda", case_named("fixed_gru", "lengths_bidirectional"))


@pytest.mark.parametrize(
    ("file", "kernel_id", "case", "occurrence"),
    [("implicit_gemm.cuh", *GEMM, n) for n in range(4)]
    + [("recurrent.cuh", *LSTM, n) for n in range(4)]
    + [("fixed_recurrent.cu", *FIXED_GRU, n) for n in range(4)],
)
def test_a_missing_barrier_shows(sources: Path, file: str, kernel_id: str, case: Case, occurrence: int) -> None:
    """Each __syncthreads() of the tiled kernels is needed, and leaving out any one of them changes the result."""
    text = (sources / file).read_text()
    assert text.count("__syncthreads();") == 4, "the parameters of this test name each barrier"
    (sources / file).write_text(without(text, "__syncthreads();", occurrence))
    planted = outputs(EmulatedDevice(sources=sources), kernel_id, case)
    assert not same(planted, outputs(EmulatedDevice(), kernel_id, case))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (threadIdx.x < 16) __syncthreads();", "16 of 32 threads .* left the kernel while others wait"),
        ("if (threadIdx.x < 16)\n __syncthreads();\n else\n __syncthreads();", "wait at different barriers, on lines"),
    ],
)
def test_a_barrier_that_not_all_reach_is_an_error(sources: Path, body: str, message: str) -> None:
    (sources / "odd.cu").write_text(
        f'extern "C" __global__ void odd(float* y) {{\n{body}\ny[threadIdx.x] = 1.0f;\n}}\n'
    )
    device = EmulatedDevice(sources=sources)
    launch, y = device.load("odd.cu", "odd", {}), device.empty(Tensor("float32", (32,)))
    with pytest.raises(KernelFault, match=message):
        launch((1,), (32,), y)
    with pytest.raises(KernelFault, match=message):  # and the emulator is still usable
        launch((1,), (32,), y)


def test_a_wrong_launch_is_an_error() -> None:
    launch = EmulatedDevice().load("rnn.cu", "rnn_step", {"BATCH_TILE": 1})
    with pytest.raises(KernelFault, match="takes 11 arguments, 1 are given"):
        launch((1,), (256,), np.int32(0))
    with pytest.raises(KernelFault, match="argument 0 is 4 bytes"):
        launch((1,), (256,), *[np.int32(0)] * 11)
    with pytest.raises(KernelFault, match="give a contiguous array"):
        launch((1,), (256,), 3)


def test_a_source_that_does_not_compile_says_why(sources: Path) -> None:
    (sources / "broken.cu").write_text('extern "C" __global__ void broken(float* y) { y[0] = nonsense; }\n')
    with pytest.raises(KernelFault, match="nonsense"):
        EmulatedDevice(sources=sources).load("broken.cu", "broken", {})


@pytest.mark.parametrize(
    ("kernel_id", "case"),
    [
        ("conv_gemm16_nchw_f32_cuda", case_named("conv", "3x3_ragged")),
        ("conv_gemm64_nchw_f32_cuda", case_named("conv", "1x1_large")),
        GEMM,
        ("conv_depthwise_nchw_f32_cuda", case_named("conv", "depthwise_residual")),
        ("qlinear_conv_dp4a_nchw_i8_cuda", case_named("qlinear_conv", "u8s8u8_per_channel")),
        ("lstm_steps_tnc_f32_cuda", case_named("lstm", "peepholes_bidirectional")),
        ("gru_steps_tnc_f32_cuda", case_named("gru", "lengths_bidirectional")),
        FIXED_GRU,
    ],
)
def test_every_order_of_threads_gives_the_same_numbers(kernel_id: str, case: Case) -> None:
    in_order = outputs(EmulatedDevice(), kernel_id, case)
    for seed in (1, 2, 12345):
        assert same(outputs(EmulatedDevice(seed=seed), kernel_id, case), in_order)


SANITIZED = [
    ("conv_gemm64_nchw_f32_cuda", "conv", "3x3_wide"),
    ("conv_gemm128_nchw_f32_cuda", "conv", "grouped"),
    ("conv_direct_nchw_f32_cuda", "conv", "3d_stride_dilation"),
    ("conv_depthwise_nchw_f32_cuda", "conv", "depthwise_stride2"),
    ("conv_transpose_gather_nchw_f32_cuda", "conv_transpose", "asymmetric_pads"),
    ("conv_integer_dp4a_nchw_i8_cuda", "conv_integer", "s8s8_per_channel"),
    ("qlinear_conv_direct_nchw_i8_cuda", "qlinear_conv", "s8s8s8"),
    ("lstm_steps_tnc_f32_cuda", "lstm", "peepholes_bidirectional"),
    ("sparse_rnn_rows_tnc_f32_cuda", "sparse_rnn", "batch_19"),
    ("fixed_conv_dp4a_nchw_fixed_cuda", "fixed_conv", "8_bits"),
    ("fixed_conv_direct_nchw_fixed_cuda", "fixed_conv", "asymmetric_pads"),
    ("fixed_average_pool_direct_nchw_fixed_cuda", "fixed_average_pool", "3d"),
    ("fixed_gru_sequence_tnc_fixed_cuda", "fixed_gru", "lengths_bidirectional"),
]

SANITIZED_RUN = """
import sys
from pathlib import Path
from quatrefoil.gpu.emulation import EmulatedDevice
sys.path.insert(0, {tests!r})
from test_gpu_emulation import case_named, outputs
device = EmulatedDevice(sanitize=True, sources=Path({sources!r}))
for kernel_id, op, name in {cases!r}:
    outputs(device, kernel_id, case_named(op, name))
    print("clean", kernel_id, name)
"""


def run_sanitized(sources: Path, cases: list[tuple[str, str, str]]) -> subprocess.CompletedProcess[str]:
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    path = library.stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip("g++ has no libasan here; its package adds it (Debian: libgcc-12-dev)")
    # leaks are the interpreter's own; its allocator is bypassed so that every array has its red zones
    environment = {**os.environ, "LD_PRELOAD": path, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    script = SANITIZED_RUN.format(tests=str(Path(__file__).parent), sources=str(sources), cases=cases)
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)


def test_kernels_are_clean_under_the_sanitizers() -> None:
    """AddressSanitizer and UBSan on ragged shapes: nothing outside an array, no misaligned or undefined access."""
    result = run_sanitized(compiler.SOURCES, SANITIZED)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.count("clean") == len(SANITIZED)


def test_the_sanitizer_sees_a_write_out_of_bounds(sources: Path) -> None:
    text = (sources / "conv_direct.cu").read_text()
    check = "if (index >= volume * channels * g.batch) return;"
    assert check in text
    (sources / "conv_direct.cu").write_text(text.replace(check, ""))
    result = run_sanitized(sources, [("conv_direct_nchw_f32_cuda", "conv", "3x3_ragged")])
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
