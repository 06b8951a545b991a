"""The same network as OpenCL kernels and a host program: a folder that a vendor's tools can compile, without quatrefoil.

    report = export_opencl(network, "build/net", check=samples)

``name``.cl holds kernels of a single work-item each (reqd_work_group_size 1, 1, 1), which is what compilers for FPGAs make
pipelines of; weights and tables are constants of the kernels. Convolutions, pools and functions in a row are streams
through line buffers (streams.py): one kernel each, or, with -DQF_CHANNELS (Intel) or -DQF_PIPES (AMD), a kernel for each
layer with channels or pipes between them. ``name``_host.c, in C99 with OpenCL 1.2, builds them (or takes a vendor's
binary), keeps the other values on the device and runs samples from a file.
``check`` runs the kernels here, with PoCL unless QUATREFOIL_OPENCL names another device: that proves what they compute, not
how fast they will be.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from quatrefoil.fpga import opencl
from quatrefoil.models.fixed.c_export import (
    HELPERS,
    MARKER,
    CExportError,
    casts,
    chosen_name,
    rows,
    writable,
)
from quatrefoil.models.fixed.c_export.functions import c_bytes, c_type
from quatrefoil.models.fixed.c_export.streams import NDRANGE, STREAM, StreamWriting
from quatrefoil.models.fixed.network import FixedNetwork

MEASURED: Final = "measured"
FORMS: Final = (STREAM, NDRANGE, MEASURED)

IN_OPENCL: Final = """typedef char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
#define QF_TABLE __constant
#define QF_TABLE_POINTER __constant
#define QF_GLOBAL __global
#define QF_STEP __kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
#define QF_64(number) number##L
#if (defined(QF_CHANNELS) || defined(QF_PIPES)) && !defined(UNROLL_LOOPS)
#define UNROLL_LOOPS /* an FPGA's compiler makes hardware of unrolled loops; for a processor they only make long programs */
#endif"""


@dataclass(frozen=True, slots=True)
class OpenCLExport:
    """A folder that was written. checked: samples on which every output equalled the network's, None where none were
    given; device: on what; seconds: of a sample there, by form; form: the one that was written."""

    kernels: Path
    host: Path
    makefile: Path
    name: str
    steps: int
    checked: int | None
    device: str | None
    form: str
    seconds: Mapping[str, float]

    def __str__(self) -> str:
        proof = "not run: no samples were given"
        if self.checked is not None:
            proof = f"equal to the last bit on {self.checked} samples, on {self.device}"
        measured = ""
        if len(self.seconds) > 1:
            times = ", ".join(f"{form} {took * 1e3:.3g} ms" for form, took in self.seconds.items())
            measured = f"; a sample there takes {times}: {self.form} was written"
        return f"{self.kernels}: {self.steps} kernels; {self.host}; {proof}{measured}"


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Memory on the device: bytes of a value, and what it begins with."""

    name: str
    bytes: int
    given: np.ndarray | None = None


class _Folder:
    """The network's steps with the buffers that they are called with."""

    def __init__(self, network: FixedNetwork, name: str, form: str) -> None:
        self.writing = StreamWriting(network, name, form)
        self.buffers: dict[str, _Buffer] = {}
        self.calls: list[tuple[str, list[str]]] = []
        for step, names in self.writing.calls:
            self.calls.append((step, [self.buffer(value) for value in names]))
        for port in (*self.writing.inputs, *self.writing.outputs):
            self.buffer(port.integer)

    def buffer(self, value: str) -> str:
        """The buffer of a value; "" for one that is not wanted."""
        if not value:
            return ""
        writing = self.writing
        root = writing.root(value)
        if root not in self.buffers:
            if root in writing.given:
                given = writing.given[root]
                kind = np.dtype(given.kind.removesuffix("_t"))
                self.buffers[root] = _Buffer(root, given.values.size * kind.itemsize, given.values.astype(kind))
            else:
                size = int(np.prod(writing.shapes[root])) * c_bytes(c_type(writing.formats[root]))
                self.buffers[root] = _Buffer(root, max(size, 1))
        return root

    def kernels(self) -> str:
        source = self.writing.source
        parts = [MARKER, IN_OPENCL, casts(), HELPERS, opencl.source("stream.h"), *source.texts, *source.functions]
        return "\n\n".join(parts) + "\n"

    def host(self) -> str:
        writing, numbers = self.writing, {root: place for place, root in enumerate(self.buffers)}
        arrays, starts = [], []
        for root, buffer in self.buffers.items():
            if buffer.given is None:
                starts.append("0")
            else:
                arrays.append(writing.given[root].text)
                starts.append(writing.given[root].name)
        most = max((len(names) for _, names in self.calls), default=1)

        def row(kernel: str, names: Sequence[str], queue: int) -> str:
            places = ", ".join(str(numbers[root]) if root else "-1" for root in names) or "0"
            items = ", ".join(map(str, writing.items.get(kernel, (0, 0))))
            return f'{{"{kernel}", {{{items}}}, {queue}, {len(names)}, {{{places}}}}}'

        calls = [row(step, names, 0) for step, names in self.calls]
        apart = []
        for step, names in self.calls:
            count = writing.streams.get(step, 0)
            # of a stream's kernels the first reads memory, and the last writes it
            ends = {0: names[:1], count - 1: names[1:]} if count > 1 else {0: names}
            kernels = [f"{step}_{number}" for number in range(count)] if count else [step]
            apart += [row(kernel, ends.get(number, []), number) for number, kernel in enumerate(kernels)]
        ports = {
            word: ", ".join(str(numbers[writing.root(port.integer)]) for port in found)
            for word, found in (("inputs", writing.inputs), ("outputs", writing.outputs))
        }
        values = {
            "NAME": writing.name,
            "MOST": str(most),
            "ARRAYS": "\n".join(arrays),
            "BYTES": ", ".join(str(buffer.bytes) for buffer in self.buffers.values()),
            "STARTS": ", ".join(starts),
            "CALLS": ",\n  ".join(calls),
            "CALLS_APART": ",\n  ".join(apart),
            "QUEUES": str(max(writing.streams.values(), default=1)),
            "INPUTS": ports["inputs"],
            "OUTPUTS": ports["outputs"],
        }
        return re.sub(r"@(\w+)@", lambda match: values[match[1]], HOST)


def export_opencl(
    network: FixedNetwork,
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    check: Mapping[str, Any] | Any | None = None,
    form: str = STREAM,
) -> OpenCLExport:
    """Write a fixed-point network as OpenCL kernels, a host program and a Makefile.

    directory: made if it is not there; files of other origin are not written over. name: a C identifier, the model's name
    when left out. check: inputs, batch first, on which the kernels are held to the network. form: "stream" (a single
    work-item a kernel, for FPGAs), "ndrange" (convolutions, dense layers and pools of many work-items, for processors and
    GPUs), or "measured": both are run on ``check``, and the faster one on that device is written.

    Raises CExportError, in a sentence, for what cannot be written, does not build or gives other numbers, and
    BackendUnavailable where there is no OpenCL device to check on.
    """
    chosen = chosen_name(network, name)
    folder = Path(directory)
    kernels, host, makefile = folder / f"{chosen}.cl", folder / f"{chosen}_host.c", folder / "Makefile"
    writable(folder, {kernels: MARKER, host: MARKER, makefile: MAKE_MARKER})
    if form not in FORMS:
        raise CExportError(f"form is {form!r}; known are {', '.join(FORMS)}")
    if form == MEASURED and check is None:
        raise CExportError(f"form {MEASURED!r} runs the kernels on samples; give some with check")
    made = {each: _Folder(network, chosen, each) for each in (FORMS[:2] if form == MEASURED else (form,))}
    checked = device = None
    seconds: dict[str, float] = {}
    if check is not None:
        want = network.integers(check)
        for each, one in made.items():
            checked, device, seconds[each] = _checked(one, want)
    written = min(seconds, key=lambda each: seconds[each]) if form == MEASURED else form
    folder.mkdir(parents=True, exist_ok=True)
    kernels.write_text(made[written].kernels(), "utf-8")
    host.write_text(made[written].host(), "utf-8")
    makefile.write_text(MAKEFILE.replace("@NAME@", chosen), "utf-8")
    return OpenCLExport(
        kernels, host, makefile, chosen, len(made[written].calls), checked, device, written, seconds
    )  # fmt: skip


def _checked(made: _Folder, want: Mapping[str, np.ndarray]) -> tuple[int, str, float]:
    """Runs the kernels on every sample; gives the number of samples, the device, and the least seconds that the kernels of
    a sample took."""
    runtime = opencl.runtime()
    import pyopencl as cl

    writing = made.writing
    given = [rows(writing, port, want[port.integer]) for port in writing.inputs]
    expected = [rows(writing, port, want[port.integer]) for port in writing.outputs]
    try:
        program = cl.Program(runtime.context, made.kernels()).build()
        flags = cl.mem_flags
        memory = {
            root: cl.Buffer(runtime.context, flags.READ_WRITE, buffer.bytes) for root, buffer in made.buffers.items()
        }
        for root, buffer in made.buffers.items():
            if buffer.given is not None:
                cl.enqueue_copy(runtime.queue, memory[root], np.ascontiguousarray(buffer.given))
        steps = []
        for step, names in made.calls:
            kernel = cl.Kernel(program, step)
            kernel.set_args(*(memory[root] if root else None for root in names))
            items = writing.items.get(step)
            steps.append((kernel, ((1,), (1,)) if items is None else (items, None)))
        least = math.inf
        got = [np.zeros_like(array) for array in expected]
        for number in range(len(given[0])):
            for port, array in zip(writing.inputs, given):
                cl.enqueue_copy(runtime.queue, memory[writing.root(port.integer)], array[number])
            start = time.perf_counter()
            for kernel, extents in steps:
                cl.enqueue_nd_range_kernel(runtime.queue, kernel, *extents)
            runtime.queue.finish()
            least = min(least, time.perf_counter() - start)
            for port, array in zip(writing.outputs, got):
                cl.enqueue_copy(runtime.queue, array[number], memory[writing.root(port.integer)])
    except cl.Error as error:
        raise CExportError(f"the {writing.form} kernels do not build or run on {runtime.name}: {error}") from None
    for port, array, right in zip(writing.outputs, got, expected):
        wrong = int((array != right).sum())
        if wrong:
            raise CExportError(
                f"the kernels' {port.real!r} differs in {wrong} of {right.size} integers from the network"
            )
    return len(given[0]), runtime.name, least


MAKE_MARKER: Final = "# made by quatrefoil: a fixed-point network"

MAKEFILE: Final = f"""{MAKE_MARKER}
# make            builds the host program (it needs OpenCL's headers and loader)
# make run        runs it: inputs and outputs are raw files of the integers, sample after sample
# STREAMS=1       for a binary whose layers are kernels of their own: aoc -DQF_CHANNELS @NAME@.cl (Intel), or
#                 v++ -c -DQF_PIPES @NAME@.cl, then v++ -l (AMD, of versions that take OpenCL C)
CC ?= cc
ifdef STREAMS
CFLAGS += -DQF_STREAMS
endif
@NAME@: @NAME@_host.c
\t$(CC) -std=c99 -O2 -Wall -Wextra $(CFLAGS) $< -o $@ $(LDFLAGS) -lOpenCL

run: @NAME@
\t./@NAME@ @NAME@.cl $(FILES)

.PHONY: run
"""

HOST: Final = (
    MARKER
    + """
/* Runs the network on an OpenCL device: @NAME@ KERNELS INPUT... OUTPUT...
 *
 * KERNELS is @NAME@.cl, or a binary that a vendor's compiler made of it. Each input is a raw file of the integers of as
 * many samples as it holds; each output is written likewise. QF_DEVICE names a part of the platform's name. */
#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

@ARRAYS@

static const size_t sizes[] = {@BYTES@}; /* of the buffers, in bytes */
static const void *const starts[] = {@STARTS@}; /* what they begin with */
static const int inputs[] = {@INPUTS@}, outputs[] = {@OUTPUTS@};
static const struct {
  const char *kernel;
  size_t items[2]; /* work-items along two axes, none for a kernel of a single one */
  int queue, count, buffers[@MOST@];
} calls[] = {
#ifdef QF_STREAMS /* kernels of a stream run at the same time, each in a queue of its own */
  @CALLS_APART@
#else
  @CALLS@
#endif
};
#ifdef QF_STREAMS
enum { QUEUES = @QUEUES@ };
#else
enum { QUEUES = 1 };
#endif

#define COUNT(array) (int)(sizeof(array) / sizeof((array)[0]))

static void check(cl_int status, const char *what) {
  if (status == CL_SUCCESS) return;
  fprintf(stderr, "@NAME@: %s failed with OpenCL error %d\\n", what, status);
  exit(1);
}

static void wait(const cl_command_queue *queues, int count) {
  for (int i = 0; i < count; i++) check(clFinish(queues[i]), "waiting");
}

static char *contents(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  char *text = 0;
  *size = 0;
  if (file && fseek(file, 0, SEEK_END) == 0) {
    long end = ftell(file);
    rewind(file);
    if (end >= 0 && (text = malloc((size_t)end + 1)) != 0) *size = fread(text, 1, (size_t)end, file);
  }
  if (file) fclose(file);
  if (!text) {
    fprintf(stderr, "@NAME@: %s cannot be read\\n", path);
    exit(1);
  }
  text[*size] = 0;
  return text;
}

static cl_device_id device_of(cl_platform_id *platform) {
  const char *wanted = getenv("QF_DEVICE");
  cl_platform_id platforms[16];
  cl_uint count = 0;
  check(clGetPlatformIDs(16, platforms, &count), "asking for platforms");
  for (cl_uint i = 0; i < count && i < 16; i++) {
    char name[256] = "";
    cl_device_id device;
    clGetPlatformInfo(platforms[i], CL_PLATFORM_NAME, sizeof(name) - 1, name, 0);
    if (wanted && !strstr(name, wanted)) continue;
    if (clGetDeviceIDs(platforms[i], CL_DEVICE_TYPE_ALL, 1, &device, 0) == CL_SUCCESS) {
      *platform = platforms[i];
      return device;
    }
  }
  fprintf(stderr, "@NAME@: no OpenCL device; QF_DEVICE names a part of a platform's name\\n");
  exit(1);
}

int main(int argc, char **argv) {
  enum { BUFFERS = COUNT(sizes), CALLS = COUNT(calls), INPUTS = COUNT(inputs), OUTPUTS = COUNT(outputs) };
  if (argc != 2 + INPUTS + OUTPUTS) {
    fprintf(stderr, "usage: %s KERNELS, %d input files, %d output files\\n", argv[0], INPUTS, OUTPUTS);
    return 2;
  }
  cl_int status;
  cl_platform_id platform;
  cl_device_id device = device_of(&platform);
  cl_context_properties properties[] = {CL_CONTEXT_PLATFORM, (cl_context_properties)platform, 0};
  cl_context context = clCreateContext(properties, 1, &device, 0, 0, &status);
  check(status, "making a context");
  cl_command_queue queues[QUEUES], queue;
  for (int i = 0; i < QUEUES; i++) {
    queues[i] = clCreateCommandQueue(context, device, 0, &status);
    check(status, "making a queue");
  }
  queue = queues[0];
  size_t size, end = strlen(argv[1]);
  const char *text = contents(argv[1], &size);
  int source = end > 3 && strcmp(argv[1] + end - 3, ".cl") == 0;
  cl_program program = source ? clCreateProgramWithSource(context, 1, &text, &size, &status)
                              : clCreateProgramWithBinary(context, 1, &device, &size, (const unsigned char **)&text, 0, &status);
  check(status, "loading the kernels");
  status = clBuildProgram(program, 1, &device, "", 0, 0);
  if (status != CL_SUCCESS) {
    static char log[65536];
    clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, sizeof(log) - 1, log, 0);
    fputs(log, stderr);
    check(status, "building the kernels");
  }
  cl_mem buffers[BUFFERS];
  for (int i = 0; i < BUFFERS; i++) {
    buffers[i] = clCreateBuffer(context, CL_MEM_READ_WRITE, sizes[i], 0, &status);
    check(status, "making a buffer");
    if (starts[i])
      check(clEnqueueWriteBuffer(queue, buffers[i], CL_TRUE, 0, sizes[i], starts[i], 0, 0, 0), "filling a buffer");
  }
  cl_kernel kernels[CALLS];
  for (int i = 0; i < CALLS; i++) {
    kernels[i] = clCreateKernel(program, calls[i].kernel, &status);
    check(status, calls[i].kernel);
    for (int k = 0; k < calls[i].count; k++) {
      int place = calls[i].buffers[k];
      check(clSetKernelArg(kernels[i], (cl_uint)k, sizeof(cl_mem), place < 0 ? 0 : &buffers[place]), calls[i].kernel);
    }
  }
  char *given[INPUTS];
  size_t samples = 0;
  for (int i = 0; i < INPUTS; i++) {
    given[i] = contents(argv[2 + i], &size);
    size_t found = size / sizes[inputs[i]];
    if (found * sizes[inputs[i]] != size || (i && found != samples)) {
      fprintf(stderr, "@NAME@: %s does not hold whole samples of %zu bytes, as many as the others\\n", argv[2 + i],
              sizes[inputs[i]]);
      return 1;
    }
    samples = found;
  }
  FILE *files[OUTPUTS];
  for (int i = 0; i < OUTPUTS; i++) {
    files[i] = fopen(argv[2 + INPUTS + i], "wb");
    if (!files[i]) {
      fprintf(stderr, "@NAME@: %s cannot be written\\n", argv[2 + INPUTS + i]);
      return 1;
    }
  }
  for (size_t sample = 0; sample < samples; sample++) {
    for (int i = 0; i < INPUTS; i++) {
      size_t bytes = sizes[inputs[i]];
      check(clEnqueueWriteBuffer(queue, buffers[inputs[i]], CL_TRUE, 0, bytes, given[i] + sample * bytes, 0, 0, 0), "writing");
    }
    for (int i = 0; i < CALLS; i++) {
      static const size_t one[2] = {1, 1};
      int single = calls[i].items[0] == 0;
      if (calls[i].queue == 0 && QUEUES > 1) wait(queues, QUEUES); /* what it reads is there */
      check(clEnqueueNDRangeKernel(queues[calls[i].queue], kernels[i], single ? 1 : 2, 0,
                                   single ? one : calls[i].items, single ? one : 0, 0, 0, 0), calls[i].kernel);
      clFlush(queues[calls[i].queue]);
    }
    wait(queues, QUEUES);
    for (int i = 0; i < OUTPUTS; i++) {
      size_t bytes = sizes[outputs[i]];
      char *result = malloc(bytes);
      if (!result) return 1;
      check(clEnqueueReadBuffer(queue, buffers[outputs[i]], CL_TRUE, 0, bytes, result, 0, 0, 0), "reading");
      if (fwrite(result, 1, bytes, files[i]) != bytes) return 1;
      free(result);
    }
  }
  for (int i = 0; i < OUTPUTS; i++) {
    if (fclose(files[i])) return 1;
  }
  return 0;
}
"""
)

__all__ = ["OpenCLExport", "export_opencl"]
