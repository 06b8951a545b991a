"""The OpenCL device of the backend: platform, context, queue, compiled programs, and calls of a kernel.

pyopencl is loaded on first use. PoCL, which runs OpenCL C on the processor, is the platform by default;
QUATREFOIL_OPENCL="platform:device" names another one by parts of its names (``Intel(R) FPGA``, ``:xilinx_u250``).

A call copies its host arrays into device buffers, enqueues the kernel, as one work-item unless it wants more, and reads
the outputs back.
Programs are built once per device, source and options. Setting arguments and enqueueing happen under one lock,
because OpenCL kernel objects are not thread-safe; waiting happens outside it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from quatrefoil.errors import BackendUnavailable, QuatrefoilError
from quatrefoil.problem import Tensor
from quatrefoil.registry import Availability

DEVICE_VARIABLE = "QUATREFOIL_OPENCL"
DEFAULT_PLATFORM = "Portable Computing Language"
REMEDY = "pip install 'quatrefoil[fpga]'"

SOURCE_FOLDERS = (Path(__file__).parent / "src", Path(str(files("quatrefoil"))) / "include")
_INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)

Define = int | str


class OpenCLBuildError(QuatrefoilError, RuntimeError):
    """The device's compiler refused a program; the message ends with its log."""


@lru_cache
def source(name: str) -> str:
    """A file of ``src/`` with its includes written out, since compilers for FPGAs are given one file."""
    for folder in SOURCE_FOLDERS:
        path = folder / name
        if path.is_file():
            return _INCLUDE.sub(lambda match: source(match[1]), path.read_text(encoding="utf-8"))
    raise QuatrefoilError(f"the OpenCL source {name} is not in {' or '.join(map(str, SOURCE_FOLDERS))}")


GROUP = 64
"""Work-items in a group: a GPU's one or two waves. One size for all, since PoCL compiles a kernel for each size."""


def _in_groups(size: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The global and the local size."""
    return (-(-size[0] // GROUP) * GROUP, *size[1:]), (GROUP, *(1,) * (len(size) - 1))


class Program:
    """One kernel function, built for one device."""

    def __init__(self, runtime: Runtime, kernel: Any) -> None:
        self._runtime = runtime
        self._kernel = kernel

    def __call__(
        self, arguments: Sequence[object], outputs: Sequence[Tensor], size: tuple[int, ...] | None = None
    ) -> tuple[np.ndarray, ...]:
        """Run it. ``arguments`` are host arrays (copied in), buffers from ``Runtime.upload``, NumPy scalars, or None
        for a null pointer; the outputs' buffers follow them in the kernel's signature. No array may be empty.

        size: the work-items along each axis, in groups of GROUP along the first, which is rounded up to whole groups;
        None is a single one."""
        import pyopencl as cl

        runtime = self._runtime
        results = tuple(np.empty(tensor.shape, tensor.numpy_dtype) for tensor in outputs)
        try:
            inputs = [runtime.upload(item) if isinstance(item, np.ndarray) else item for item in arguments]
            buffers = [cl.Buffer(runtime.context, cl.mem_flags.WRITE_ONLY, result.nbytes) for result in results]
            with runtime.lock:
                self._kernel.set_args(*inputs, *buffers)
                extents = ((1,), (1,)) if size is None else _in_groups(size)
                done = [cl.enqueue_nd_range_kernel(runtime.queue, self._kernel, *extents)]
                for result, buffer in zip(results, buffers):
                    done.append(cl.enqueue_copy(runtime.queue, result, buffer, is_blocking=False))
            cl.wait_for_events(done)
        except cl.Error as error:
            raise QuatrefoilError(f"OpenCL kernel {self._kernel.function_name} on {runtime.name}: {error}") from error
        return results


class Runtime:
    """A device with its context, its in-order queue and the programs built for it."""

    def __init__(self, platform: Any, device: Any) -> None:
        import pyopencl as cl

        self.name = f"{platform.name.strip()}: {device.name.strip()}"
        self.is_fpga = bool(device.type & cl.device_type.ACCELERATOR)
        self.context = cl.Context([device])
        self.queue = cl.CommandQueue(self.context)
        self.lock = threading.Lock()
        self._programs: dict[tuple[str, str, str], Program] = {}

    def upload(self, array: np.ndarray) -> Any:
        """A read-only device buffer with the array's contents."""
        import pyopencl as cl

        flags = cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR
        try:
            return cl.Buffer(self.context, flags, hostbuf=np.ascontiguousarray(array))
        except cl.Error as error:
            raise QuatrefoilError(f"{Tensor.of(array)} does not go to {self.name}: {error}") from error

    def program(self, name: str, defines: Mapping[str, Define]) -> Program:
        """The kernel function ``name`` of ``src/<name>.cl`` built with ``-D`` for each of ``defines``."""
        return self.build(name, source(f"{name}.cl"), defines)

    def build(self, name: str, text: str, defines: Mapping[str, Define]) -> Program:
        """The kernel function ``name`` of an OpenCL C text. Raises OpenCLBuildError with the compiler's log."""
        import pyopencl as cl

        # An FPGA's compiler makes hardware from unrolled loops; for a processor they only make long programs.
        unroll = {"UNROLL_LOOPS": 1} if self.is_fpga else {}
        options = " ".join(f"-D{key}={value}" for key, value in (unroll | dict(defines)).items())
        with self.lock:
            program = self._programs.get((name, text, options))
            if program is None:
                try:
                    built = cl.Program(self.context, text).build(options)
                    program = Program(self, cl.Kernel(built, name))
                except cl.Error as error:
                    given = f"with {options}" if options else "without options"
                    raise OpenCLBuildError(
                        f"the OpenCL program {name} does not build on {self.name} {given}:\n{error}"
                    ) from error
                self._programs[name, text, options] = program
        return program


_opening = threading.Lock()
_runtimes: dict[str, Runtime | Availability] = {}


def _found() -> list[tuple[Any, Any]] | Availability:
    """Every platform with each of its devices, or why there is none."""
    try:
        import pyopencl as cl
    except ImportError as error:
        return Availability(False, f"pyopencl does not load ({error})", REMEDY)
    try:
        return [(platform, device) for platform in cl.get_platforms() for device in platform.get_devices()]
    except cl.Error as error:
        return Availability(False, f"no OpenCL platform ({error})", REMEDY)


def devices() -> str:
    """The names of the OpenCL devices, for people."""
    found = _found()
    if isinstance(found, Availability):
        return f"none: {found.detail}"
    return "; ".join(f"{platform.name}: {device.name}" for platform, device in found) or "none"


def _open(wanted: str) -> Runtime | Availability:
    found = _found()
    if isinstance(found, Availability):
        return found
    import pyopencl as cl

    platform_part, _, device_part = (wanted or DEFAULT_PLATFORM).partition(":")
    for platform, device in found:
        if platform_part.lower() in platform.name.lower() and device_part.lower() in device.name.lower():
            try:
                return Runtime(platform, device)
            except cl.Error as error:
                return Availability(False, f"the OpenCL device {device.name} does not open ({error})")
    if wanted:
        return Availability(
            False,
            f"{DEVICE_VARIABLE}={wanted!r} names no OpenCL device; found: {devices()}",
            f"unset {DEVICE_VARIABLE}",
        )
    return Availability(False, f"PoCL is missing; found: {devices()} (name one in {DEVICE_VARIABLE})", REMEDY)


def _opened() -> Runtime | Availability:
    wanted = os.environ.get(DEVICE_VARIABLE, "")
    with _opening:
        if wanted not in _runtimes:
            _runtimes[wanted] = _open(wanted)
        return _runtimes[wanted]


def availability() -> Availability:
    """Whether a device could be opened, and which."""
    opened = _opened()
    return opened if isinstance(opened, Availability) else Availability(True, opened.name)


def runtime() -> Runtime:
    """The device that QUATREFOIL_OPENCL names now. Raises BackendUnavailable where there is none."""
    opened = _opened()
    if isinstance(opened, Availability):
        raise BackendUnavailable("; ".join(filter(None, (f"fpga: {opened.detail}", opened.remedy))))
    return opened
