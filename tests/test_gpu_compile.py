"""Every GPU kernel becomes machine code here, where there is no GPU: CUDA C++ by NVRTC, Numba kernels by NVVM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quatrefoil import ops
from quatrefoil.gpu import compiler, conv, conv_gradient, conv_integer, fixed, rnn, rnn_gradient, sparse
from quatrefoil.ops import layouts
from quatrefoil.problem import Tensor

ARCHITECTURES = ("sm_80", "sm_90")

Build = tuple[str, tuple[tuple[str, int | str], ...]]


class RecordingDevice:
    """Remembers which sources were asked for, with which constants, and runs nothing."""

    def __init__(self) -> None:
        self.builds: dict[Build, set[str]] = {}

    def load(self, source: str, name: str, constants: Mapping[str, int | str]) -> Callable[..., None]:
        self.builds.setdefault((source, tuple(sorted(constants.items()))), set()).add(name)
        return lambda *arguments: None

    def jit(self, function: Callable[..., None]) -> Callable[..., None]:
        raise AssertionError("a Numba kernel among the CUDA C++ kernels")

    def empty(self, tensor: Tensor) -> np.ndarray:
        return np.empty(tensor.shape, tensor.numpy_dtype)

    def put(self, array: np.ndarray) -> np.ndarray:
        return array

    def get(self, array: np.ndarray) -> np.ndarray:
        return array


@cache
def builds() -> dict[Build, set[str]]:
    """Every source and set of constants that the conformance cases load, with the kernels taken from it."""
    device = RecordingDevice()
    families = (conv, conv_integer, rnn, rnn_gradient, fixed, conv_gradient, sparse)
    for kernel in (kernel for family in families for kernel in family.kernels(device)):
        spec = ops.SPECS[kernel.op]
        for case in spec.cases():
            problem = layouts.plain(ops.canonical(case.op, case.inputs, case.attributes, case.outputs))
            if kernel.accepts(problem) is None:
                present = {i: t for i, t in enumerate(problem.inputs) if t is not None and i in spec.parameters}
                parameters = {i: np.ones(t.shape, t.numpy_dtype) for i, t in present.items()}
                if case.op in ops.FAMILIES["sparse"]:  # whose places are checked
                    parameters |= {
                        i: array for i, array in enumerate(case.arrays()) if i in present and array is not None
                    }
                kernel.prepare(problem, parameters)
    return device.builds


def build_id(build: Build) -> str:
    source, constants = build
    return "-".join([source, *(f"{name}={value}" for name, value in constants)]).replace(" ", "_")


@pytest.fixture(scope="module")
def nvrtc() -> tuple[int, int]:
    try:
        return compiler.nvrtc_version()
    except compiler.CompileError as error:
        pytest.skip(str(error))


def test_every_source_is_compiled() -> None:
    assert {source for source, _ in builds()} == {path.name for path in compiler.SOURCES.glob("*.cu")}


@pytest.mark.parametrize("build", builds(), ids=build_id)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles_it(nvrtc: tuple[int, int], build: Build, architecture: str) -> None:
    source, constants = build
    cubin = compiler.compile_cubin(source, dict(constants), architecture)
    assert cubin.code.startswith(b"\x7fELF")
    for name in builds()[build]:
        assert f"Compiling entry function '{name}' for '{architecture}'" in cubin.log
    assert cubin.local_bytes == 0, f"registers spill or arrays live in local memory:\n{cubin.log}"
    assert 0 < cubin.registers <= 128, "more than two blocks of 256 threads would not fit a multiprocessor"


def test_machine_code_is_kept(nvrtc: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUATREFOIL_CACHE", str(tmp_path))
    first = compiler.compile_cubin("rnn.cu", {"BATCH_TILE": 1}, "sm_90")

    def refuse(*arguments: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiler, "_compile", refuse)
    assert compiler.compile_cubin("rnn.cu", {"BATCH_TILE": 1}, "sm_90") == first
    with pytest.raises(AssertionError, match="compiled again"):
        compiler.compile_cubin("rnn.cu", {"BATCH_TILE": 1}, "sm_80")
    with pytest.raises(AssertionError, match="compiled again"):
        compiler.compile_cubin("rnn.cu", {"BATCH_TILE": 4}, "sm_90")


def test_a_refused_source_shows_the_log(
    nvrtc: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUATREFOIL_CACHE", str(tmp_path))
    with pytest.raises(compiler.CompileError, match="BATCH_TILE"):
        compiler.compile_cubin("rnn.cu", {}, "sm_90")


def numba_signatures() -> list[Any]:
    from numba.core import types

    from quatrefoil.gpu import pool_kernels

    def array(dtype: Any) -> Any:
        return types.Array(dtype, 1, "C")

    number, window, triple = types.int64, types.UniTuple(types.int64, 18), types.UniTuple(types.int64, 3)
    f32, i64, winners = array(types.float32), array(types.int64), array(types.int32)
    lowest = {types.float32: types.float32, types.float64: types.float64, types.uint8: number, types.int8: number}
    return [
        *(
            (pool_kernels.max_pool, (array(dtype), array(dtype), i64, low, number, number, window))
            for dtype, low in lowest.items()
        ),
        (pool_kernels.average_pool, (f32, f32, triple, number, window)),
        (pool_kernels.average_pool_plane, (f32, f32, number)),
        (pool_kernels.lp_pool, (f32, f32, number, window)),
        (pool_kernels.unpool_clear, (winners,)),
        (pool_kernels.unpool_claim, (i64, winners, triple, triple)),
        *((pool_kernels.unpool_gather, (array(dtype), winners, array(dtype))) for dtype in lowest),
        *(signature for dtype in (types.float32, types.float64) for signature in gradient_signatures(array(dtype))),
    ]


def gradient_signatures(floats: Any) -> list[Any]:
    from numba.core import types

    from quatrefoil.gpu import pool_gradient_kernels as kernels

    number, window, triple = types.int64, types.UniTuple(types.int64, 18), types.UniTuple(types.int64, 3)
    i64, winners = types.Array(types.int64, 1, "C"), types.Array(types.int32, 1, "C")
    return [
        (kernels.choose, (floats, winners, window)),
        (kernels.gather_won, (floats, winners, floats, window)),
        (kernels.gather_average, (floats, floats, triple, number, window)),
        (kernels.gather_lp, (floats, floats, floats, floats, number, window)),
        (kernels.unpool_take, (floats, i64, winners, floats, triple, triple)),
    ]


def test_numba_compiles_the_pooling_kernels() -> None:
    pytest.importorskip("numba.cuda", reason="numba-cuda is not installed; pip install 'quatrefoil[cuda13]' adds it")
    from cuda import pathfinder
    from numba import cuda

    try:
        pathfinder.load_nvidia_dynamic_lib("nvvm")
    except pathfinder.DynamicLibNotFoundError:
        pytest.skip("NVVM is not installed; pip install nvidia-nvvm adds it")
    for function, signature in numba_signatures():
        ptx, _ = cuda.compile_ptx(function, signature, cc=(9, 0))
        assert ".target sm_90" in ptx
        assert ".local" not in ptx, f"{function.__name__} keeps an array in local memory"
        if "float64" not in str(signature):
            assert ".f64" not in ptx, f"{function.__name__} computes in double precision"
