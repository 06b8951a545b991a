"""Streams: operators in a row as one launch, pixels of all channels passing from stage to stage without touching memory.

A stage takes pixels and gives pixels (src/conv_line_buffer.h, src/pool_line_buffer.h); what it remembers of them is a
line buffer. ``text`` writes a stream in two forms of which the compiler's macros choose: every stage a kernel of its own
with channels (QF_CHANNELS, Intel) or pipes (QF_PIPES, AMD) between them, or, without either, one kernel of a single
work-item in which the last stage draws pixels through those before it. The stages' text is the same in both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from quatrefoil.fpga import opencl
from quatrefoil.ops.windows import Window
from quatrefoil.problem import Tensor

ATTRIBUTES = "__kernel __attribute__((reqd_work_group_size(1, 1, 1)))"

_DEFINED = re.compile(r"^ *#define (\w+)", re.MULTILINE)
_NAMED = re.compile(r"^static inline [^(]*?(\w+)\(|^typedef [^;{]*?(\w+);|^} (\w+);", re.MULTILINE)
_ENUMERATED = re.compile(r"^enum {([^}]*)}", re.MULTILINE)


@dataclass(frozen=True)
class Stage:
    """One operator of a stream. ``#`` in its texts stands for what tells it from the others.

    source      the text of the stage: types, ``begin``, ``wants``, ``take``
    defines     what the text wants to be defined
    x_type, channels, y_type, out_channels   of the pixels that it takes and gives, in OpenCL C
    steps, outputs   pixels of a padded plane, and of an output's plane
    parameters  of the kernel, declared; arguments: what they get: arrays, scalars, None for a null pointer
    residual    the place among the arguments that a run fills; None where there is none
    setup       statements that end with ``begin_#(&stage_#, ...)``
    indices     it also gives the place of each value, a long
    """

    source: str
    defines: Mapping[str, opencl.Define]
    x_type: str
    channels: int
    y_type: str
    out_channels: int
    steps: int
    outputs: int
    setup: str
    parameters: tuple[str, ...] = ()
    arguments: tuple[object, ...] = ()
    residual: int | None = None
    indices: bool = False


@lru_cache
def _names(source: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The macros that a text defines, and its functions, types and enumerators; the house's own (qf_…) are shared, and
    left out."""

    def kept(name: str) -> bool:
        return not name.lower().startswith(("qf_", "quatrefoil"))

    macros = dict.fromkeys(filter(kept, _DEFINED.findall(source)))
    enumerated = (word for found in _ENUMERATED.findall(source) for word in re.findall(r"[A-Z]\w+", found))
    names = dict.fromkeys(filter(kept, (*("".join(found) for found in _NAMED.findall(source)), *enumerated)))
    return tuple(macros), tuple(names)


def instance(source: str, given: Mapping[str, opencl.Define], suffix: str) -> str:
    """A text with these macros defined, its functions and types ending in the suffix, all macros gone at the end."""
    macros, names = _names(source)
    defines = {**{name: f"{name}_{suffix}" for name in names}, **given}
    return "\n".join([
        *(f"#define {name} {value}" for name, value in defines.items()),
        source,
        *(f"#undef {name}" for name in dict.fromkeys((*defines, *macros))),
    ])  # fmt: skip


def text(stages: Sequence[Stage], name: str, planar: bool = False, batch: int | None = None) -> str:
    """The program of a stream: kernel ``name`` (x, batch, parameters of each stage, y, indices), or in its other form
    kernels ``name``_0 and so on, each with its own stage's parameters, the first with x, the last with y.

    planar: arrays in memory hold plane after plane; otherwise pixel after pixel. batch: known, and no parameter. It wants
    src/stream.h before it."""
    suffixes = [f"{name}_{number}" for number in range(len(stages))]
    parts = [instance(stage.source, stage.defines, suffix) for stage, suffix in zip(stages, suffixes)]
    parts += ["#if defined(QF_CHANNELS) || defined(QF_PIPES)", *_kernels(stages, suffixes, planar, batch)]
    parts += ["#else", *_one_kernel(stages, name, suffixes, planar, batch), "#endif"]
    return "\n".join(parts) + "\n"


def _place(planar: bool, channels: int, places: int, pixel: str) -> str:
    """Where channel c of a pixel lies."""
    if planar:
        return f"({pixel} / {places} * {channels} + c) * {places} + {pixel} % {places}"
    return f"{pixel} * {channels} + c"


def _load(stage: Stage, planar: bool, pixel: str, into: str) -> str:
    places = _taken(stage)
    return f"for (int c = 0; c < {stage.channels}; c++) {into}[c] = x[{_place(planar, stage.channels, places, pixel)}];"


def _store(stage: Stage, planar: bool, pixel: str) -> str:
    place = _place(planar, stage.out_channels, stage.outputs, pixel)
    kept = f" indices[{place}] = to_indices[c];" if stage.indices else ""
    return f"for (int c = 0; c < {stage.out_channels}; c++) {{ y[{place}] = to[c];{kept} }}"


def _taken(stage: Stage) -> int:
    """Pixels that a stage takes of a plane."""
    return int(stage.defines.get("HEIGHT", 1)) * int(stage.defines.get("WIDTH", stage.outputs))


def _array(kind: str, name: str, channels: int) -> str:
    """A pixel, in whole words of a stream."""
    return f"{kind} {name}[QF_WORDS({channels}) * QF_WORD] = {{0}};"


def _outputs(stage: Stage) -> list[str]:
    """The kernel's parameters for what the last stage gives."""
    indices = ["__global long* restrict indices"] if stage.indices else []
    return [f"__global {stage.y_type}* restrict y", *indices]


def _results(stage: Stage) -> tuple[str, str]:
    """The declaration of what a stage gives, and what ``take`` is called with for it."""
    declared = _array(stage.y_type, "to", stage.out_channels)
    if stage.indices:
        return f"{declared}\n    {_array('long', 'to_indices', stage.out_channels)}", "to, to_indices"
    return declared, "to"


def _begun(stage: Stage, suffix: str) -> str:
    return f"  stage_t_{suffix} stage_{suffix};\n  {stage.setup.replace('#', suffix)}"


def _declared(stage: Stage, suffix: str) -> list[str]:
    return [parameter.replace("#", suffix) for parameter in stage.parameters]


def _kernels(stages: Sequence[Stage], suffixes: Sequence[str], planar: bool, batch: int | None) -> list[str]:
    """A kernel for each stage, and what runs between them."""
    parts = [f"QF_STREAM({stage.y_type}8, stream_{suffix})" for stage, suffix in zip(stages[:-1], suffixes)]
    for number, (stage, suffix) in enumerate(zip(stages, suffixes)):
        first, last = number == 0, number == len(stages) - 1
        parameters = [
            *([f"__global const {stage.x_type}* restrict x"] if first else []),
            *_given_batch(batch), *_declared(stage, suffix), *(_outputs(stage) if last else []),
        ]  # fmt: skip
        taken = (
            _load(stage, planar, "taken", "from") + " taken++;" if first else
            _words(f"QF_READ(stream_{suffixes[number - 1]}, word); vstore8(word, i, from);", stage.x_type, stage.channels)
        )  # fmt: skip
        given = (
            _store(stage, planar, "given") + " given++;" if last else
            _words(f"word = vload8(i, to); QF_WRITE(stream_{suffix}, word);", stage.y_type, stage.out_channels)
        )  # fmt: skip
        declared, results = _results(stage)
        counters = [*(["taken = 0"] if first else []), *(["given = 0"] if last else [])]
        parts.append(
            f"{ATTRIBUTES} void {suffix}({', '.join(parameters) or 'void'}) {{\n"
            f"{_begun(stage, suffix)}\n"
            + (f"  int {', '.join(counters)};\n" if counters else "")
            + f"  for (long pixel = 0; pixel < (long){batch or 'batch'} * {stage.steps}; pixel++) {{\n"
            f"    {_array(stage.x_type, 'from', stage.channels)}\n    {declared}\n"
            f"    if (wants_{suffix}(&stage_{suffix})) {{ {taken} }}\n"
            f"    if (take_{suffix}(&stage_{suffix}, from, {results})) {{ {given} }}\n"
            f"  }}\n}}"
        )
    return parts


def _given_batch(batch: int | None) -> list[str]:
    return ["int batch"] if batch is None else []


def _words(statement: str, kind: str, channels: int) -> str:
    return f"for (int i = 0; i < QF_WORDS({channels}); i++) {{ {kind}8 word; {statement} }}"


def _one_kernel(
    stages: Sequence[Stage], name: str, suffixes: Sequence[str], planar: bool, batch: int | None
) -> list[str]:
    """A function for each stage that draws its next pixel, and the kernel that draws from the last one."""
    parts, held, passed = [], [f"__global const {stages[0].x_type}* x", "int* taken"], ["x", "&taken"]
    for number, (stage, suffix) in enumerate(zip(stages, suffixes)):
        before = ", ".join(["x", "taken", *(f"stage_{each}" for each in suffixes[:number])])
        held.append(f"stage_t_{suffix}* stage_{suffix}")
        passed.append(f"&stage_{suffix}")
        drawn = (
            f"{_load(stage, planar, '*taken', 'from')} ++*taken;" if number == 0 else
            f"next_{suffixes[number - 1]}({before}, from);"
        )  # fmt: skip
        results = [f"{stage.y_type}* to", *(["long* to_indices"] if stage.indices else [])]
        parts.append(
            f"static inline void next_{suffix}({', '.join([*held, *results])}) {{\n"
            f"  {_array(stage.x_type, 'from', stage.channels)}\n"
            f"  do {{\n    if (wants_{suffix}(stage_{suffix})) {{ {drawn} }}\n"
            f"  }} while (!take_{suffix}(stage_{suffix}, from, {_results(stage)[1]}));\n}}"
        )
    last = stages[-1]
    parameters = [f"__global const {stages[0].x_type}* restrict x", *_given_batch(batch)]
    for stage, suffix in zip(stages, suffixes):
        parameters += _declared(stage, suffix)
    declared, results_passed = _results(last)
    parts.append(
        f"{ATTRIBUTES} void {name}({', '.join([*parameters, *_outputs(last)])}) {{\n"
        + "\n".join(_begun(stage, suffix) for stage, suffix in zip(stages, suffixes))
        + f"\n  int taken = 0;\n  for (int given = 0; given < {batch or 'batch'} * {last.outputs}; given++) {{\n    {declared}\n"
        f"    next_{suffixes[-1]}({', '.join([*passed, results_passed])});\n    {_store(last, planar, 'given')}\n  }}\n}}"
    )
    return parts


class Stream:
    """Stages made ready for the device."""

    def __init__(self, stages: Sequence[Stage], name: str = "stream") -> None:
        runtime = opencl.runtime()
        self._program = runtime.build(name, opencl.source("stream.h") + text(stages, name), {})
        self._stages = stages
        self._arguments = [
            [runtime.upload(given) if isinstance(given, np.ndarray) else given for given in stage.arguments]
            for stage in stages
        ]

    def __call__(
        self, x: np.ndarray, residuals: Sequence[np.ndarray | None], outputs: Sequence[Tensor]
    ) -> tuple[np.ndarray, ...]:
        """x: (batch, ..., channels), the residual of each stage likewise; gives the last stage's outputs likewise, of
        the types of ``outputs``."""
        arguments: list[object] = [x, np.int32(x.shape[0])]
        for stage, constants, residual in zip(self._stages, self._arguments, residuals):
            given = list(constants)
            if stage.residual is not None:
                given[stage.residual] = residual
            arguments += given
        return self._program(arguments, outputs)


def in_pixels(array: np.ndarray) -> np.ndarray:
    """(N, C, ...) to (N, ..., C)."""
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


def in_planes(array: np.ndarray) -> np.ndarray:
    """(N, ..., C) to (N, C, ...)."""
    return np.ascontiguousarray(np.moveaxis(array, -1, 1))


def pixels_type(tensor: Tensor) -> Tensor:
    return Tensor(tensor.dtype, (tensor.shape[0], *tensor.shape[2:], tensor.shape[1]))


def window_defines(window: Window) -> dict[str, opencl.Define]:
    """The sizes that line_buffer.h wants."""
    defines: dict[str, opencl.Define] = {}
    for axis, letter, extent in ((1, "H", "HEIGHT"), (2, "W", "WIDTH")):
        defines |= {
            extent: window.input[axis],
            f"OUT_{letter}": window.output[axis],
            f"KERNEL_{letter}": window.kernel[axis],
            f"STRIDE_{letter}": window.strides[axis],
            f"DILATION_{letter}": window.dilations[axis],
            f"PAD_{letter}": window.pads[axis],
        }
    return defines


def pixel_counts(window: Window) -> tuple[int, int]:
    """The pixels of a padded plane, as line_buffer.h walks through it, and of an output's plane."""
    walked = 1
    for axis in (1, 2):
        last = (window.output[axis] - 1) * window.strides[axis] + (window.kernel[axis] - 1) * window.dilations[axis]
        walked *= max(last + 1, window.pads[axis] + window.input[axis])
    return walked, window.output_size
