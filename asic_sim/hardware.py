"""The one description of a chip: a TOML file, read into a frozen ``Hardware``.

Units are in the names. Unknown and missing keys, wrong types and values out of range are errors that name the key. A
number of the hardware appears nowhere else; ``digest`` goes into every report. Shipped designs lie in ``designs/``.
"""

from __future__ import annotations

import hashlib
import math
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, fields
from functools import cache, cached_property
from pathlib import Path

from quatrefoil.asic_sim import formats
from quatrefoil.errors import QuatrefoilError

DESIGN_VARIABLE = "QUATREFOIL_ASIC_DESIGN"
DEFAULT_DESIGN = "edge"
FOLDER = Path(__file__).parent / "designs"


Formats = tuple[tuple[str, int], ...]


class DesignError(QuatrefoilError, ValueError):
    """A design that cannot be read; the message names the file, the key, what it says and what would do."""


@dataclass(frozen=True)
class Hardware:
    """A systolic array with its memories and its vector unit (docs/asic.md says how they work).

    dataflow                      what rests in the array: weight, output (the sums) or input (the activations)
    weight_load                   how a resting tile comes into it: double_buffered, skewed, serial or broadcast
    array_rows, array_columns     processing elements; a multiply-accumulate each in every cycle
    formats                       what they multiply (asic_sim/formats.py), and in how many parts, a cycle each, an
                                  operand enters: (name, cycles), or a mapping of them
    weight_fifo_tiles             weight tiles (rows x columns) requested ahead of the array
    whole_weight_tiles            resting weights come as whole tiles, however few of them are used
    accumulator_entries           32-bit sums below each column, in two banks
    activation_sram_kib           memory for activations, in two buffers
    activations_stay              results that are read again soon stay in that memory, as far as half of it holds them
    weight_sram_kib               memory for weights that are used again; 0 for none
    ..._sram_banks                banks of such a memory; half of them, at least one, hold each buffer
    ..._sram_ports                1: a bank reads or writes in a cycle, 2: both
    ..._sram_bytes_per_cycle      what a port of a bank passes in a cycle; 0: the memory is never a limit
    dram_bytes_per_cycle          bandwidth of the one port to DRAM, all channels together
    dram_latency_cycles           from the end of a transfer on the port until its data can be used
    dram_channels, dram_banks     channels that bursts take in turn, and banks of each of them
    dram_burst_bytes              the least that a channel moves
    dram_row_bytes                of a row of a bank
    dram_row_miss_cycles          to close a row and open another one; 0: rows are not looked at
    dram_refresh_interval_cycles  from a refresh of all channels to the next one
    dram_refresh_cycles           that each of them takes, until the rows are open again; 0: there is none
    vector_lanes                  elements that the vector unit works on at once
    vector_function_cycles        cycles of a lane for an exponential, a hyperbolic tangent, a power or a root
    technology_nm                 of the process, for energy and area
    dram                          kind of memory off the chip, for its energy: ddr, hbm2 or gddr6
    weights_ahead                 the first weights of an operator are fetched while the one before it is at work
    cores                         each with all of the above but DRAM, which they share
    divide                        how an operator is divided among them: channels, rows (of pixels) or batch
    codebook_entries              of the table in which codes of weights are looked up; 0: there is none
    index_bits                    of a stored weight's distance from the one before it; 0: zeros are stored too
    decoded_weights_per_cycle     that pass the table and the index on their way into the array
    zero_gating                   a product with a weight that is zero takes no energy
    skip_block_rows               rows of the depth among which an element chooses its activation, so that those of a block
                                  without weights take no row of the array; 1: no choice, empty rows are skipped; 0: none
    """

    name: str
    clock_mhz: float
    dataflow: str
    weight_load: str
    array_rows: int
    array_columns: int
    formats: Formats
    weight_fifo_tiles: int
    whole_weight_tiles: bool
    accumulator_entries: int
    activation_sram_kib: int
    activations_stay: bool
    weight_sram_kib: int
    activation_sram_banks: int
    activation_sram_ports: int
    activation_sram_bytes_per_cycle: int
    weight_sram_banks: int
    weight_sram_ports: int
    weight_sram_bytes_per_cycle: int
    dram_bytes_per_cycle: int
    dram_latency_cycles: int
    dram_channels: int
    dram_banks: int
    dram_burst_bytes: int
    dram_row_bytes: int
    dram_row_miss_cycles: int
    dram_refresh_interval_cycles: int
    dram_refresh_cycles: int
    vector_lanes: int
    vector_function_cycles: int
    technology_nm: float
    dram: str
    weights_ahead: bool = False
    cores: int = 1
    divide: str = "channels"
    codebook_entries: int = 0
    index_bits: int = 0
    decoded_weights_per_cycle: int = 1
    zero_gating: bool = False
    skip_block_rows: int = 0

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise DesignError(f"design: name is {self.name!r}; give a text that is not empty")
        for key, kind in _KINDS.items():
            value = getattr(self, key)
            if key in CHOICES and (not isinstance(value, str) or value not in CHOICES[key]):
                raise self._error(key, f"{value!r}", f"write one of {', '.join(CHOICES[key])}")
            if kind == "bool" and not isinstance(value, bool):
                raise self._error(key, f"{value!r}", "write true or false")
            if kind == "float":
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise self._error(key, f"{value!r}", "give a number")
                if not (value > 0 and math.isfinite(value)):
                    raise self._error(key, value, "it has to be positive and finite")
                if key == "technology_nm" and not 5 <= value <= 180:
                    raise self._error(key, value, "energy and area are scaled between 5 and 180 nm")
                object.__setattr__(self, key, float(value))
            elif kind == "int":
                if isinstance(value, bool) or not isinstance(value, int):
                    raise self._error(key, f"{value!r}", "give a whole number")
                low, high = LIMITS.get(key, (1, MOST))
                if not low <= value <= high:
                    raise self._error(key, value, f"it has to lie in {low} to {high}")
        object.__setattr__(self, "formats", self._formats())
        least = 2 * 4 * self.array_rows
        if self.activation_sram_kib * 1024 < least:
            raise self._error(
                "activation_sram_kib",
                self.activation_sram_kib,
                f"it has to hold two buffers of at least one 4-byte activation for each of the {self.array_rows} rows",
            )

        if self.dataflow == "output" and self.accumulator_entries < 2 * self.array_rows:
            raise self._error(
                "accumulator_entries",
                self.accumulator_entries,
                f"with dataflow output its two banks have to take the sums of all {self.array_rows} rows, so at least "
                f"{2 * self.array_rows}",
            )

        if self.cores > 1 and self.activations_stay:
            raise self._error(
                "activations_stay",
                "true",
                f"what stays is in the memory of one core, and another one needs it; with {self.cores} cores write false",
            )

        self._check_dram()
        self._check_compression()

    def _check_compression(self) -> None:
        if self.cores > 1 and self.divide == "channels" and (self.index_bits or self.zero_gating):
            raise self._error(
                "divide",
                "channels",
                "with index_bits or zero_gating a core's strips of weights are those of the whole operator; write rows or batch",
            )
        if self.skip_block_rows and not self.index_bits:
            raise self._error(
                "skip_block_rows",
                self.skip_block_rows,
                "rows are skipped by the index of the weights; give it index_bits, or write 0",
            )
        if self.index_bits and self.dataflow == "input":
            raise self._error(
                "index_bits",
                self.index_bits,
                "with dataflow input weights stream, in strips of any width, and have no index here; write 0",
            )

    def _check_dram(self) -> None:
        if self.dram_row_bytes < self.dram_burst_bytes:
            raise self._error(
                "dram_row_bytes", self.dram_row_bytes, f"a row has to hold a burst of {self.dram_burst_bytes} bytes"
            )
        if self.dram_refresh_cycles and self.dram_refresh_cycles >= self.dram_refresh_interval_cycles:
            raise self._error(
                "dram_refresh_cycles",
                self.dram_refresh_cycles,
                f"it has to be less than dram_refresh_interval_cycles, {self.dram_refresh_interval_cycles}, or 0 for "
                "a memory that is not refreshed",
            )

    def _formats(self) -> Formats:
        given = self.formats
        if isinstance(given, Mapping):
            given = tuple(given.items())
        wanted = "give a table of formats with the cycles that an operand takes, as { int8 = 1, int16 = 2 }"
        pairs = isinstance(given, tuple) and all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in given)
        if not pairs or not given:
            raise self._error("formats", f"{self.formats!r}", wanted)
        for name, cycles in given:
            try:
                formats.parse(str(name))
            except QuatrefoilError as error:
                raise DesignError(f"design {self.name}: formats: {error}") from None
            if isinstance(cycles, bool) or not isinstance(cycles, int) or not 1 <= cycles <= MOST_PARTS:
                raise self._error("formats", f"{name} = {cycles!r}", f"cycles lie in 1 to {MOST_PARTS}")
        return tuple((str(name), cycles) for name, cycles in given)

    @property
    def room_for_activations(self) -> int:
        """Bytes of the activation memory for what stays from one operation to the next: half, and never what the two
        buffers need at least."""
        whole = self.activation_sram_kib * 1024
        return min(whole // 2, whole - 2 * 4 * self.array_rows)

    def operand_cycles(self, name: str) -> int | None:
        """Cycles that an operand of a format takes to enter the array; None where the array does not have it."""
        return dict(self.formats).get(name)

    def _error(self, key: str, value: object, wanted: str) -> DesignError:
        return DesignError(f"design {self.name}: {key} is {value}; {wanted}")

    @property
    def compresses(self) -> bool:
        """What an operator costs depends on its weights' numbers."""
        return bool(self.codebook_entries or self.index_bits or self.zero_gating)

    @property
    def rows_summed(self) -> int:
        """How many products a column adds up before the sum goes to the accumulator below: the array's height, or
        any number where sums rest in the array."""
        return 2**62 if self.dataflow == "output" else self.array_rows

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits that stand for all of the figures."""
        text = "\n".join(f"{key} = {getattr(self, key)!r}" for key in _KINDS)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def elements(self) -> int:
        """Processing elements of all cores."""
        return self.cores * self.array_rows * self.array_columns

    def __str__(self) -> str:
        cores = f"{self.cores} cores of " if self.cores > 1 else ""
        array = f"{cores}{self.array_rows}x{self.array_columns} {self.dataflow} stationary"
        return f"{self.name} ({array} at {self.clock_mhz:g} MHz, {self.digest})"


_KINDS = {field.name: str(field.type) for field in fields(Hardware)}
_NEEDED = [field.name for field in fields(Hardware) if field.default is MISSING]

CHOICES = {
    "dataflow": ("weight", "output", "input"),
    "weight_load": ("double_buffered", "skewed", "serial", "broadcast"),
    "dram": ("ddr", "hbm2", "gddr6"),
    "divide": ("channels", "rows", "batch"),
}
"""What a key of words may say; dataflow and weight_load in the order of asic_sim/src/design.h, divide of division.h."""

CORES = "cores"
_CORES = {"count": "cores", "divide": "divide"}
"""The table of a TOML file, its keys and what they are called here."""

COMPRESSION = "compression"
COMPRESSION_KEYS = (
    "codebook_entries", "index_bits", "decoded_weights_per_cycle", "zero_gating", "skip_block_rows",
)  # fmt: skip
"""A table of the TOML file, which may be absent, and its keys."""

MOST = 2**20
MOST_PARTS = 16
LIMITS = {
    "accumulator_entries": (2, MOST),
    "weight_sram_kib": (0, MOST),
    "activation_sram_banks": (1, 1024),
    "activation_sram_ports": (1, 2),
    "activation_sram_bytes_per_cycle": (0, MOST),
    "weight_sram_banks": (1, 1024),
    "weight_sram_ports": (1, 2),
    "weight_sram_bytes_per_cycle": (0, MOST),
    "dram_latency_cycles": (0, MOST),
    "dram_channels": (1, 256),
    "dram_banks": (1, 1024),
    "dram_row_miss_cycles": (0, MOST),
    "dram_refresh_cycles": (0, MOST),
    "array_rows": (1, 4096),
    "array_columns": (1, 4096),
    "weight_fifo_tiles": (1, 1024),
    "cores": (1, 64),
    "codebook_entries": (0, 256),
    "index_bits": (0, 16),
    "skip_block_rows": (0, 64),
}
"""The least and the greatest value of a key; 1 and MOST where it is not listed."""


def shipped() -> tuple[str, ...]:
    """The names of the designs that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def parse(text: str, source: str) -> Hardware:
    """A design from the text of a TOML file; ``source`` names it in errors."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DesignError(f"{source} is no TOML file: {error}") from None
    tables = {CORES: _CORES, COMPRESSION: {key: key for key in COMPRESSION_KEYS}}
    inside = [name for keys in tables.values() for name in keys.values()]
    known = [key for key in _KINDS if key not in inside]
    unknown = [key for key in values if key not in known and key not in tables]
    if unknown:
        raise DesignError(
            f"{source}: unknown key {unknown[0]!r}; known are {', '.join(known)} and the tables [{'], ['.join(tables)}]"
        )
    missing = [key for key in _NEEDED if key not in values]
    if missing:
        raise DesignError(f"{source}: the key {missing[0]!r} is missing; a design gives {', '.join(_NEEDED)}")
    for name, keys in tables.items():
        if name in values:
            table = values.pop(name)
            if not isinstance(table, dict) or set(table) != set(keys):
                raise DesignError(f"{source}: [{name}] is {table!r}; it is a table of {' and '.join(keys)}")
            values |= {keys[key]: value for key, value in table.items()}
    return Hardware(**values)


def load(name_or_path: str | os.PathLike[str]) -> Hardware:
    """A shipped design by its name, or any other by the path of its TOML file."""
    if str(name_or_path) in shipped():
        return _shipped(str(name_or_path))
    path = Path(name_or_path)
    if not path.is_file():
        raise DesignError(
            f"there is no design {str(name_or_path)!r}; shipped are {', '.join(shipped())}, "
            "or give the path of a TOML file"
        )
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DesignError(f"{path} cannot be read: {error}") from None
    return parse(text, str(path))


@cache
def _shipped(name: str) -> Hardware:
    return parse((FOLDER / f"{name}.toml").read_text("utf-8"), f"{name}.toml")


_in_use: ContextVar[Hardware | None] = ContextVar("quatrefoil_asic_design", default=None)


def current() -> Hardware:
    """The design in use: of the innermost ``use_design``, else QUATREFOIL_ASIC_DESIGN, else ``edge``."""
    return _in_use.get() or load(os.environ.get(DESIGN_VARIABLE) or DEFAULT_DESIGN)


@contextmanager
def use_design(design: str | os.PathLike[str] | Hardware) -> Iterator[Hardware]:
    """Inside the block the simulator is this design (a name, a path or a ``Hardware``)."""
    hardware = design if isinstance(design, Hardware) else load(design)
    token = _in_use.set(hardware)
    try:
        yield hardware
    finally:
        _in_use.reset(token)
