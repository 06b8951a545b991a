"""The GPU backend: what it says where there is no GPU, which kernel takes what, and details beyond the conformance cases."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from quatrefoil import ops, reference
from quatrefoil.errors import OperatorError
from quatrefoil.gpu import GpuBackend, compiler, conv, rnn
from quatrefoil.gpu.emulation import EmulatedBackend, EmulatedDevice, emulated_backend, host
from quatrefoil.gpu.launch import CupyDevice, KernelFault
from quatrefoil.problem import Problem, Tensor

needs_gxx = pytest.mark.skipif(host.gxx() is None, reason="emulating CUDA needs g++")


def problem(op: str, *inputs: str | None, outputs: int = 1, **attributes: object) -> Problem:
    tensors = [None if text is None else Tensor.parse(text) for text in inputs]
    return ops.canonical(op, tensors, attributes, outputs)


def verdicts(of: Problem) -> dict[str, str | None]:
    """Each kernel's reason to reject, None where it accepts; in order of priority."""
    results = {kernel.id: kernel.accepts(of) for kernel in GpuBackend().kernels() if kernel.op == of.op}
    return {name: None if reject is None else str(reject) for name, reject in results.items()}


def first(of: Problem) -> str:
    return next(name for name, reject in verdicts(of).items() if reject is None)


def test_importing_the_backend_loads_no_cuda() -> None:
    script = (
        "import sys; from quatrefoil.gpu import BACKEND; BACKEND.kernels(); "
        "print([m for m in ('cupy', 'numba', 'cuda', 'llvmlite') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_without_cupy_the_remedy_is_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    state = GpuBackend().probe()
    assert not state.ready
    assert "CuPy cannot be imported" in state.detail
    assert state.remedy in ("pip install 'quatrefoil[cuda12]'", "pip install 'quatrefoil[cuda13]'")


class NoDriver(RuntimeError):
    """As CuPy's CUDARuntimeError where there is no driver."""


@pytest.fixture
def fake_cupy(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for CuPy on a machine without a driver."""

    def device_count() -> int:
        raise NoDriver("cudaErrorInsufficientDriver")

    cupy = types.ModuleType("cupy")
    runtime = types.SimpleNamespace(getDeviceCount=device_count, CUDARuntimeError=NoDriver)
    cupy.__dict__.update(__version__="0", cuda=types.SimpleNamespace(runtime=runtime), ndarray=type("ndarray", (), {}))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


def test_without_a_driver_it_says_so(fake_cupy: types.ModuleType) -> None:
    state = GpuBackend().probe()
    assert not state.ready
    assert "finds no NVIDIA GPU (cudaErrorInsufficientDriver)" in state.detail


def test_without_a_card_it_says_so(fake_cupy: types.ModuleType) -> None:
    fake_cupy.cuda.runtime.getDeviceCount = lambda: 0
    assert GpuBackend().probe().detail == "CuPy 0 finds no NVIDIA GPU"


def test_it_owns_cupy_arrays_alone(fake_cupy: types.ModuleType) -> None:
    backend = GpuBackend()
    assert backend.owns(fake_cupy.ndarray())
    assert not backend.owns(np.zeros(3))


def test_cupy_is_handed_what_it_takes(fake_cupy: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel is compiled for the current device once, loaded as machine code, and launched with tuples."""
    compiled: list[tuple[object, ...]] = []
    launched: list[tuple[object, ...]] = []

    class Module:
        def load(self, code: bytes) -> None:
            assert code == b"machine code"

        def get_function(self, name: str) -> Callable[..., None]:
            return lambda *call: launched.append((name, *call))

    def compile_cubin(*build: object) -> compiler.Cubin:
        compiled.append(build)
        return compiler.Cubin(b"machine code", "")

    fake_cupy.cuda.Device = lambda: types.SimpleNamespace(id=0, compute_capability="90")
    fake_cupy.cuda.function = types.SimpleNamespace(Module=Module)
    monkeypatch.setattr(compiler, "compile_cubin", compile_cubin)
    device = CupyDevice()
    for _ in range(2):
        device.load("rnn.cu", "rnn_step", {"BATCH_TILE": 4})((2, 3), (256,), None, np.int32(7))
    assert compiled == [("rnn.cu", {"BATCH_TILE": 4}, "sm_90")]
    assert launched == [("rnn_step", (2, 3), (256,), (None, np.int32(7)))] * 2


def test_structs_are_not_put_on_the_device() -> None:
    """CuPy refuses structured dtypes, and so does the emulation."""
    with pytest.raises(KernelFault, match="CuPy holds numbers alone"):
        EmulatedDevice().put(np.zeros(3, rnn.FUNCTION))


def test_the_emulation_declares_the_same_kernels() -> None:
    assert [k.id for k in emulated_backend().kernels()] == [k.id for k in GpuBackend().kernels()]


@pytest.mark.parametrize(
    ("x", "w", "group", "expected"),
    [
        ("1x64x56x56", "64x64x3x3", 1, "conv_gemm64_nchw_f32_cuda"),
        ("32x64x56x56", "256x64x1x1", 1, "conv_gemm128_nchw_f32_cuda"),
        ("1x3x224x224", "16x3x3x3", 1, "conv_gemm16_nchw_f32_cuda"),
        ("1x32x112x112", "32x1x3x3", 32, "conv_depthwise_nchw_f32_cuda"),
        ("1x1x224x224", "64x1x7x7", 1, "conv_gemm64_nchw_f32_cuda"),
        ("1024x64x256x256", "8x64x1x1", 1, "conv_direct_nchw_f32_cuda"),
    ],
)
def test_the_first_choice_fits_the_problem(x: str, w: str, group: int, expected: str) -> None:
    assert first(problem("conv", f"float32[{x}]", f"float32[{w}]", group=group)) == expected


def test_other_dtypes_are_refused_in_words() -> None:
    for dtype in ("float16", "float64"):
        for of in (
            problem("conv", f"{dtype}[1x3x8x8]", f"{dtype}[4x3x3x3]"),
            problem("average_pool", f"{dtype}[1x3x8x8]", kernel_shape=[2, 2]),
            problem("lstm", f"{dtype}[2x1x3]", f"{dtype}[1x16x3]", f"{dtype}[1x16x4]", outputs=3),
        ):
            for kernel, reason in verdicts(of).items():
                if "_widened_" in kernel:
                    assert (reason is None) == (dtype == "float16")
                    continue
                assert reason is not None
                assert f"x is {dtype}" in reason


def test_packed_gates_lie_where_the_kernels_look() -> None:
    for gates, hidden in ((1, 40), (2, 17), (3, 11), (4, 9)):
        values = np.arange(gates * hidden * 2, dtype=np.float32).reshape(gates, hidden, 2)
        packed, units = rnn.packed_columns(values), 32 // gates
        for gate in range(gates):
            for unit in range(hidden):
                column = unit // units * 32 + unit % units * gates + gate
                np.testing.assert_array_equal(packed[:, column], values[gate, unit])
        assert np.count_nonzero(packed) == np.count_nonzero(values)


def test_packed_weights_are_rounded_up_with_zeros() -> None:
    w = np.arange(1, 6 * 2 * 3 + 1, dtype=np.float32).reshape(6, 2, 3)
    packed = conv.packed_weights(w, 2, conv.SMALL_TILE)
    assert packed.shape == (2, conv.SMALL_TILE.k, conv.SMALL_TILE.m)
    np.testing.assert_array_equal(packed[1, :6, :3], w[3:].reshape(3, 6).T)
    assert np.count_nonzero(packed) == w.size


@pytest.fixture(scope="module")
def emulated() -> EmulatedBackend:
    return emulated_backend()


def run(backend: EmulatedBackend, kernel_id: str, of: Problem, *arrays: np.ndarray | None) -> tuple[np.ndarray, ...]:
    [kernel] = [kernel for kernel in backend.kernels() if kernel.id == kernel_id]
    assert kernel.accepts(of) is None
    constant = ops.SPECS[of.op].parameters
    return kernel.prepare(of, {i: a for i, a in enumerate(arrays) if i in constant and a is not None})(arrays)


def test_of_values_for_one_place_the_last_wins(emulated: EmulatedBackend) -> None:
    of = problem("max_unpool", "float32[1x1x2x200]", "int64[1x1x2x200]", kernel_shape=[1, 2], strides=[1, 2])
    x = np.arange(1, 401, dtype=np.float32).reshape(1, 1, 2, 200)
    indices = np.random.default_rng(0).integers(0, 7, x.shape)
    [y] = run(emulated, "max_unpool_claim_nchw_any_numba", of, x, indices)
    np.testing.assert_array_equal(y, reference.evaluate(of, [x, indices])[0])
    for place in range(7):
        assert y.flat[place] == x[indices == place][-1]


@needs_gxx
@pytest.mark.parametrize(
    "kernel_id", ["conv_gemm16_nchw_f32_cuda", "conv_gemm64_nchw_f32_cuda", "conv_gemm128_nchw_f32_cuda"]
)
@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Clip(-0.5,0.5)"])
def test_tiles_end_in_bias_residual_and_activation(emulated: EmulatedBackend, kernel_id: str, activation: str) -> None:
    shapes = ("1x5x7x9", "13x5x3x3", "13", "1x13x7x9")
    of = problem("conv", *(f"float32[{shape}]" for shape in shapes), pads=[1, 1, 1, 1], activation=activation)
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(tensor.shape, np.float32) for tensor in of.inputs if tensor is not None]
    [y] = run(emulated, kernel_id, of, *arrays)
    assert ops.SPECS["conv"].tolerance(of).violations(y, reference.evaluate(of, arrays)[0]) == 0


@needs_gxx
@pytest.mark.parametrize("algorithm", ["dp4a", "direct"])
def test_integer_sums_wrap(emulated: EmulatedBackend, algorithm: str) -> None:
    """70,000 products of -255 and 128 leave 32 bits; both kernels give the sum modulo 2^32."""
    of = problem("conv_integer", "uint8[1x70000x1x1]", "int8[2x70000x1x1]", "uint8[]", "int8[]")
    arrays = [np.zeros((1, 70000, 1, 1), np.uint8), np.full((2, 70000, 1, 1), 127, np.int8), np.array(255, np.uint8),
              np.array(-1, np.int8)]  # fmt: skip
    [y] = run(emulated, f"conv_integer_{algorithm}_nchw_i8_cuda", of, *arrays)
    assert 70000 * 255 * 128 > 2**31
    np.testing.assert_array_equal(y.ravel(), [-70000 * 255 * 128 + 2**32] * 2)


@needs_gxx
@pytest.mark.parametrize("algorithm", ["dp4a", "direct"])
def test_requantisation_rounds_halves_to_even_and_saturates(emulated: EmulatedBackend, algorithm: str) -> None:
    """Sums that come to 0.5, 1, … 3.5 after scaling, and one beyond the output's range."""
    of = problem(
        "qlinear_conv", "uint8[1x1x1x9]", "float32[]", "uint8[]", "int8[2x1x1x1]", "float32[]", "int8[]", "float32[]",
        "int8[]", "int32[2]",
    )  # fmt: skip
    x = np.array([1, 2, 3, 4, 5, 6, 7, 250, 0], np.uint8).reshape(1, 1, 1, 9)
    half, zero = np.array(0.5, np.float32), np.array(0, np.int8)
    one = np.array(1, np.float32)
    arrays = [x, half, np.array(0, np.uint8), np.full((2, 1, 1, 1), 2, np.int8), half, zero, one, np.array(10, np.int8),
              np.zeros(2, np.int32)]  # fmt: skip
    [y] = run(emulated, f"qlinear_conv_{algorithm}_nchw_i8_cuda", of, *arrays)
    np.testing.assert_array_equal(y[0].reshape(2, 9), [[10, 11, 12, 12, 12, 13, 14, 127, 10]] * 2)
    np.testing.assert_array_equal(y, reference.evaluate(of, arrays)[0])


@st.composite
def convolutions(draw: st.DrawFn) -> Problem:
    """Small convolutions of any rank, group, stride, dilation and padding, plain or transposed, float or integer."""
    rank, op = draw(st.integers(1, 3)), draw(st.sampled_from(["conv", "conv_transpose", "conv_integer"]))
    group, inner, outer = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 6))

    def each_axis(low: int, high: int, count: int = rank) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    spatial, kernel = each_axis(1, 9 if rank < 3 else 5), each_axis(1, 3)
    attributes = {"strides": each_axis(1, 3), "dilations": each_axis(1, 3), "pads": each_axis(0, 3, 2 * rank)}
    x, channels = [draw(st.integers(1, 2)), group * inner, *spatial], group * outer
    w = [group * inner, outer, *kernel] if op == "conv_transpose" else [channels, inner, *kernel]
    types = ("int8", "uint8") if op == "conv_integer" else ("float32", "float32")
    tensors: list[Tensor | None] = [Tensor(types[0], tuple(x)), Tensor(types[1], tuple(w))]
    if draw(st.booleans()):
        tensors += [None, Tensor("uint8", (channels,))] if op == "conv_integer" else [Tensor("float32", (channels,))]
    try:
        return ops.canonical(op, tensors, {**attributes, "group": group})
    except OperatorError:
        return reject()  # the window does not fit the input


@needs_gxx
@settings(max_examples=60, deadline=None)
@given(of=convolutions())
def test_any_small_convolution_is_right_by_every_kernel(of: Problem) -> None:
    rng = np.random.default_rng(0)
    arrays = [
        None
        if tensor is None
        else rng.standard_normal(tensor.shape, np.float32)
        if tensor.dtype == "float32"
        else rng.integers(-128 if tensor.dtype == "int8" else 0, 128, tensor.shape).astype(tensor.dtype)
        for tensor in of.inputs
    ]
    [expected] = reference.evaluate(of, arrays)
    accepting = [name for name, reason in verdicts(of).items() if reason is None]
    assert accepting
    for kernel_id in accepting:
        [y] = run(emulated_backend(seed=1), kernel_id, of, *arrays)
        assert ops.SPECS[of.op].tolerance(of).violations(y, expected) == 0, kernel_id
