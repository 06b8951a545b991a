"""The OpenCL device of the FPGA backend: what is found, which device is taken, how a bad program is reported, threads,
and that a line buffer gives what the direct kernel gives."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from quatrefoil import fpga, ops
from quatrefoil.errors import BackendUnavailable
from quatrefoil.fpga import conv, limits, opencl, pool
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Kernel


@pytest.fixture(autouse=True)
def _device() -> None:
    state = fpga.BACKEND.probe()
    if not state.ready:
        pytest.skip(f"fpga: {state.detail} ({state.remedy})")


def float_conv(x: str, w: str, **attributes: object) -> Problem:
    return ops.canonical("conv", (Tensor.parse(x), Tensor.parse(w)), attributes)


def kernel(kernel_id: str) -> Kernel:
    return next(k for k in fpga.BACKEND.kernels() if k.id == kernel_id)


def test_probe_names_the_device_and_says_what_its_time_means() -> None:
    state = fpga.BACKEND.probe()
    assert state.detail == fpga.BACKEND.device()
    assert state.remedy == ""
    if not opencl.runtime().is_fpga:
        assert "not an FPGA's time" in fpga.BACKEND.timing_note


def test_importing_the_backend_loads_no_opencl() -> None:
    code = "import sys, quatrefoil.fpga as f; assert f.BACKEND.kernels(); sys.exit('pyopencl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_pyopencl_names_the_command_that_adds_it() -> None:
    code = (
        "import sys; sys.modules['pyopencl'] = None\n"
        "from quatrefoil.fpga import BACKEND\n"
        "state = BACKEND.probe(); assert not state.ready; print(state.remedy)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "pip install 'quatrefoil[fpga]'"


def test_device_is_selected_by_parts_of_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    platform, device = fpga.BACKEND.device().split(": ", 1)
    monkeypatch.setenv(opencl.DEVICE_VARIABLE, f"{platform[:8].upper()}:{device[:7].upper()}")
    assert fpga.BACKEND.device() == f"{platform}: {device}"
    monkeypatch.setenv(opencl.DEVICE_VARIABLE, f"{platform}:no such card")
    state = fpga.BACKEND.probe()
    assert not state.ready
    assert "no such card" in state.detail
    assert platform in state.detail  # what is there instead
    with pytest.raises(BackendUnavailable, match="no such card"):
        fpga.BACKEND.device()


def test_build_error_carries_the_compilers_log() -> None:
    text = "__kernel void broken(__global float* y) { y[0] = undeclared_name; }"
    with pytest.raises(opencl.OpenCLBuildError, match=r"broken does not build on .*(\n.*)*undeclared_name"):
        opencl.runtime().build("broken", text, {"N": 3})


def test_programs_are_built_once() -> None:
    runtime = opencl.runtime()
    assert runtime.program("max_unpool", {"WORD_T": "uint"}) is runtime.program("max_unpool", {"WORD_T": "uint"})
    assert runtime.program("max_unpool", {"WORD_T": "uint"}) is not runtime.program("max_unpool", {"WORD_T": "uchar"})


def test_devices_are_listed_by_name() -> None:
    assert fpga.BACKEND.device() in opencl.devices()


def test_sources_come_as_one_file() -> None:
    text = opencl.source("conv_direct.cl")
    assert "#include" not in text
    assert "float qf_activation(" in text


def test_a_run_may_be_called_from_many_threads() -> None:
    problem = float_conv("float32[1x4x9x9]", "float32[6x4x3x3]")
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((6, 4, 3, 3)).astype(np.float32)
    run = kernel("conv_line_buffer_nhwc_f32_opencl").prepare(problem, {1: weight})
    images = [rng.standard_normal((1, 4, 9, 9)).astype(np.float32) for _ in range(32)]
    expected = [run([image, None])[0] for image in images]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads do meet between setting arguments and enqueueing
    try:
        with ThreadPoolExecutor(8) as threads:
            results = list(threads.map(lambda image: run([image, None])[0], images * 8))
    finally:
        sys.setswitchinterval(interval)
    for result, want in zip(results, expected * 8):
        np.testing.assert_array_equal(result, want)


@pytest.mark.parametrize(
    ("op", "x", "w", "attributes"),
    [
        ("conv", "float32[2x5x13x11]", "float32[6x5x3x3]", {"strides": [2, 1], "pads": [1, 0, 2, 1]}),
        ("conv", "float32[1x11x9x10]", "float32[11x1x3x3]", {"group": 11, "dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        ("conv", "float32[1x6x40]", "float32[9x2x5]", {"group": 3, "strides": [2]}),
        ("conv_integer", "uint8[1x5x8x9]", "int8[12x5x3x2]", {"strides": [1, 2], "pads": [1, 1, 1, 1]}),
    ],
)
def test_line_buffer_equals_the_direct_kernel(op: str, x: str, w: str, attributes: dict[str, object]) -> None:
    problem = ops.canonical(op, (Tensor.parse(x), Tensor.parse(w)), attributes)
    rng = np.random.default_rng(5)
    image, weight = (
        (rng.standard_normal(t.shape) * 40).astype(t.numpy_dtype) for t in (problem.input(0), problem.input(1))
    )
    assert conv.accepts_line_buffer(problem) is None
    (streamed,) = conv.prepare_line_buffer(problem, {1: weight})([image, None])
    (direct,) = conv.prepare_direct(problem, {1: weight})([image, None])
    if op == "conv":
        np.testing.assert_allclose(streamed, direct, rtol=1e-4, atol=1e-2)
    else:
        np.testing.assert_array_equal(streamed, direct)


def test_pooling_line_buffer_equals_the_direct_kernel() -> None:
    x = Tensor.parse("float32[3x7x14x15]")
    attributes = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 0, 1], "storage_order": 1}
    problem = ops.canonical("max_pool", (x,), attributes, 2)
    image = np.random.default_rng(7).integers(-3, 3, x.shape).astype(np.float32)
    for streamed, direct in zip(
        pool.prepare_line_buffer(problem, {})([image]), pool.prepare_direct(problem, {})([image])
    ):
        np.testing.assert_array_equal(streamed, direct)


@pytest.mark.parametrize(("x", "places"), [("int16[3x4x5x13]", 65), ("int16[2x4x1x64]", 64)])
def test_work_items_beyond_the_output_write_nothing(x: str, places: int) -> None:
    """Groups are filled up; a plane that is no multiple of them borders on the next one, which has to stay whole."""
    formats = {"x_format": "fixed<16,6>", "w_format": "fixed<8,2>", "accumulator": "fixed<24,10,RND,SAT>"}
    attributes = {**formats, "y_format": "fixed<16,6>"}
    problem = ops.canonical("fixed_conv", (Tensor.parse(x), Tensor.parse("int16[5x4x1x1]")), attributes)
    assert problem.outputs[0].shape[2] * problem.outputs[0].shape[3] == places
    rng = np.random.default_rng(11)
    image, weight = (rng.integers(-100, 100, t.shape, t.numpy_dtype) for t in (problem.input(0), problem.input(1)))
    results = [
        kernel(f"fixed_conv_{algorithm}_fixed_opencl").prepare(problem, {1: weight})([image])[0]
        for algorithm in ("ndrange_nchw", "direct_nchw", "line_buffer_nhwc")
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_line_buffer_refuses_what_does_not_fit_on_the_chip() -> None:
    wide = float_conv(f"float32[1x64x8x{limits.LINE_BUFFER_WORDS // 64}]", "float32[8x64x3x3]")
    assert "the line buffer holds" in str(conv.accepts_line_buffer(wide))
    heavy = float_conv("float32[1x256x4x4]", "float32[256x256x1x1]")
    assert "on the chip" in str(conv.accepts_line_buffer(heavy))
    deep = float_conv("float32[1x1x4x4x4]", "float32[1x1x2x2x2]")
    assert "not three" in str(conv.accepts_line_buffer(deep))
    # one plane before and one behind the only one, of which stride 3 takes the first: the output is all padding
    padded = float_conv("float32[1x1x1x4x4]", "float32[1x1x1x2x2]", pads=[1, 0, 0, 1, 0, 0], strides=[3, 1, 1])
    assert "not three" in str(conv.accepts_line_buffer(padded))


def test_a_plane_that_is_mostly_padding_is_not_streamed() -> None:
    """Strides of a million over padding: the direct kernel has 121 windows to look at, a stream 10^14 pixels."""
    far = {"strides": [10**6] * 2, "pads": [5 * 10**6] * 4}
    problem = float_conv("float32[1x1x4x4]", "float32[1x1x1x1]", **far)
    assert "mostly padding" in str(conv.accepts_line_buffer(problem))
    image = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4) + 1
    (result,) = conv.prepare_direct(problem, {1: np.full((1, 1, 1, 1), 2, np.float32)})([image, None])
    assert result[0, 0, 5, 5] == 2.0
    assert np.count_nonzero(result) == 1
    attributes = {"kernel_shape": [10**6] * 2, "pads": [10**6] * 4, "strides": [10**5] * 2}
    wide = ops.canonical("average_pool", (Tensor.parse("float32[1x1x4x4]"),), attributes)
    assert pool.accepts_line_buffer(wide) is not None
    (mean,) = pool.prepare_direct(wide, {})([image])
    assert np.nanmax(mean) == image.mean()
    beyond = float_conv("float32[1x1x4x4]", "float32[1x1x1x1]", strides=[2**31 - 1] * 2)
    assert all("32-bit" in str(k.accepts(beyond)) for k in conv.KERNELS if k.op == "conv")


def test_line_buffer_at_its_limits() -> None:
    """The largest register and the largest weights that are accepted do run."""
    full = float_conv(f"float32[1x4x3x{limits.LINE_BUFFER_WORDS // 8 - 3}]", "float32[4x4x3x3]")
    heavy = float_conv("float32[1x128x1x3]", f"float32[{limits.WEIGHT_WORDS // 128}x128x1x1]")
    for problem in (full, heavy):
        assert conv.accepts_line_buffer(problem) is None
        image, weight = (np.full(t.shape, 0.5, np.float32) for t in (problem.input(0), problem.input(1)))
        (result,) = conv.prepare_line_buffer(problem, {1: weight})([image, None])
        assert np.all(result == 0.25 * weight[0].size)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats_are_refused_in_a_sentence(dtype: str) -> None:
    problem = float_conv(f"{dtype}[1x1x4x4]", f"{dtype}[1x1x2x2]")
    for each in conv.KERNELS:
        if each.op == "conv":
            assert "cast to float32" in str(each.accepts(problem))


def test_half_precision_is_widened_by_name() -> None:
    problem = float_conv("float16[1x1x4x4]", "float16[1x1x2x2]")
    taking = [each.id for each in fpga.BACKEND.kernels() if each.op == "conv" and each.accepts(problem) is None]
    assert taking == ["conv_widened_any_f16_opencl"]
