"""Energy and area of what the simulator counted, each figure from a published table, as a band from low to high.

Energies in picojoules:

- 45 nm: M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014.
- 7 nm: N. Jouppi et al., "Ten lessons from three generations shaped Google's TPUv4i", ISCA 2021, table 2, which sets
  the 45 nm figures beside it. DRAM of 64 bits there: DDR 1,300; HBM2 250 to 450; GDDR6 350 to 480. Horowitz gives 1.3
  to 2.6 nJ for DRAM. Others quote the same figures from that table for the operations, 8 KiB, 1 MiB and DDR (Hennessy
  and Patterson among them); 32 KiB, HBM2 and GDDR6 stand here without such a second witness.
- Registers: a register file access takes about as much as a 16-bit multiply-accumulate (Y.-H. Chen, J. Emer, V. Sze,
  "Eyeriss: a spatial architecture for energy-efficient dataflow", ISCA 2016, table IV): the high end of the band adds
  one for each multiply-accumulate, the low end none.

- Widths of integers and of fixed point between and beyond the tables' 8 and 32 bits follow the power law through both;
  a product of operands of different widths counts as one of their geometric mean. bfloat16 has no figure at 45 nm: its
  product is taken to grow from 7 nm as float16's does.

Between and beyond the two processes an energy follows the power law through both points (log energy is linear in log
size); DRAM's does not scale with the chip's process. Memories between the sizes of the tables likewise, and beyond
them along the nearest slope, never below the smallest one's energy per byte.

Area in square micrometres at 45 nm: multipliers and adders from Horowitz as V. Sze et al., "Efficient processing of
deep neural networks", Proc. IEEE 2017, section III, give them; other widths by the same rules; a product of bfloat16 by
the square of its 8 bits of mantissa beside float16's 11. Where an operand enters in n parts, the multiplier is an n-th of
the whole one. An array with several formats is as large as the dearest of those asked for. A bit of memory is a cell of
0.346 um2 (K. Mistry et al., IEDM 2007) of which cells fill from 40 to 80 per cent of the macro. Area scales with the
square of the process, the rule of thumb that flatters small ones most. Control, multiplexers in front of activations,
wires, pads and the clock are in neither figure; nor is leakage.

A weight that is looked up in a codebook costs its bytes in the smallest memory of the tables, which is larger than a
codebook.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

from quatrefoil.asic_sim import formats
from quatrefoil.asic_sim.formats import Format
from quatrefoil.asic_sim.hardware import Hardware

OLD_NM, NEW_NM = 45.0, 7.0

OPERATIONS = {
    "add int8": (0.03, 0.007),
    "add int32": (0.1, 0.03),
    "add float32": (0.9, 0.38),
    "multiply int8": (0.2, 0.07),
    "multiply int32": (3.1, 1.48),
    "multiply float16": (1.1, 0.34),
    "multiply bfloat16": (0.21 * 1.1 / 0.34, 0.21),
    "multiply float32": (3.7, 1.31),
}
"""Picojoules at 45 and at 7 nm."""

MEMORIES = {8: (10.0, 7.5), 32: (20.0, 8.5), 1024: (100.0, 14.0)}
"""KiB: picojoules for 64 bits at 45 and at 7 nm."""

DRAM = {"ddr": (1300.0, 2600.0), "hbm2": (250.0, 450.0), "gddr6": (350.0, 480.0)}
"""Picojoules for 64 bits, from low to high."""

AREAS = {
    "add int8": 36.0,
    "add int32": 137.0,
    "add float32": 4184.0,
    "multiply int8": 282.0,
    "multiply int32": 3495.0,
    "multiply float16": 1640.0,
    "multiply bfloat16": 1640.0 * (8 / 11) ** 2,
    "multiply float32": 7700.0,
}
"""Square micrometres at 45 nm."""

BIT_UM2 = 0.346
FILLED = (0.8, 0.4)
"""Share of a memory macro that its cells fill, for the low and the high end of the area."""

WORD_BYTES = 8  # of the tables' accesses


@dataclass(frozen=True, slots=True)
class Band:
    """A figure that is known from ``low`` to ``high``."""

    low: float
    high: float

    def __add__(self, other: Band) -> Band:
        return Band(self.low + other.low, self.high + other.high)

    def __mul__(self, count: float) -> Band:
        return Band(self.low * count, self.high * count)

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2


NOTHING = Band(0.0, 0.0)


def operation_pj(name: str, technology_nm: float) -> float:
    """Energy of one operation of ``OPERATIONS``."""
    return _scaled(OPERATIONS[name], technology_nm)


def memory_pj_per_byte(kib: float, technology_nm: float) -> float:
    """Energy of a byte read from or written to a memory of this size."""
    sizes = sorted(MEMORIES)
    energies = [_scaled(MEMORIES[size], technology_nm) for size in sizes]
    if kib <= sizes[0]:
        return energies[0] / WORD_BYTES
    place = next((i for i, size in enumerate(sizes) if kib <= size), len(sizes) - 1)
    return _power_law(kib, sizes[place - 1], energies[place - 1], sizes[place], energies[place]) / WORD_BYTES


def _scaled(energies: tuple[float, float], technology_nm: float) -> float:
    return _power_law(technology_nm, OLD_NM, energies[0], NEW_NM, energies[1])


def _power_law(x: float, x0: float, y0: float, x1: float, y1: float) -> float:
    return y0 * (x / x0) ** (math.log(y1 / y0) / math.log(x1 / x0))


def multiply_pj(operands: Format, technology_nm: float) -> float:
    """Energy of a product of two operands."""
    if operands.kind == formats.FLOAT:
        return operation_pj(f"multiply {operands.name}", technology_nm)
    bits = math.sqrt(operands.activation_bits * operands.weight_bits)
    eight, thirty_two = (operation_pj(f"multiply int{width}", technology_nm) for width in (8, 32))
    return _power_law(bits, 8, eight, 32, thirty_two)


def add_pj(operands: Format, technology_nm: float) -> float:
    """Energy of an addition to a sum."""
    if operands.kind == formats.FLOAT:
        return operation_pj("add float32", technology_nm)
    eight, thirty_two = (operation_pj(f"add int{width}", technology_nm) for width in (8, 32))
    return _power_law(operands.sum_bits, 8, eight, 32, thirty_two)


def element_um2(operands: Format, parts: int) -> float:
    """Area at 45 nm of a multiplier, for operands that enter in so many parts, and an adder."""
    if operands.kind == formats.FLOAT:
        return AREAS[f"multiply {operands.name}"] / parts + AREAS["add float32"]
    bits = math.sqrt(operands.activation_bits * operands.weight_bits)
    product = _power_law(bits, 8, AREAS["multiply int8"], 32, AREAS["multiply int32"])
    return product / parts + _power_law(operands.sum_bits, 8, AREAS["add int8"], 32, AREAS["add int32"])


def energy(design: Hardware, name: str, counters: Mapping[str, int]) -> dict[str, Band]:
    """Picojoules by component, for operands in the format of this name."""
    figures = _figures(design, name)
    dram_bytes = sum(counters[name] for name in ("weight_bytes", "activation_bytes", "output_bytes"))
    found = {
        "array": figures.mac * (counters["macs"] - counters["gated_macs"]),
        # written once as it comes from DRAM, read as often as the array asks
        "weight memory": figures.weight_byte * (counters["weight_bytes"] + counters["weight_reads"]),
        "activation memory": figures.activation_byte
        * (counters["activation_bytes"] + counters["activation_reads"] + counters["activation_writes"]),
        "accumulators": figures.accumulator * counters["accumulator_accesses"],
        "vector unit": figures.lane * counters["lane_operations"],
        "DRAM": figures.dram_byte * dram_bytes,
    }
    if design.codebook_entries:
        found["decoder"] = figures.lookup * counters["lookups"]
    return found


@dataclass(frozen=True, slots=True)
class _Figures:
    mac: Band
    weight_byte: Band
    activation_byte: Band
    accumulator: Band
    lane: Band
    lookup: Band
    dram_byte: Band


@lru_cache(maxsize=256)
def _figures(design: Hardware, name: str) -> _Figures:
    nm = design.technology_nm
    operands = formats.parse(name)
    lane = add_pj(operands, nm)
    mac = multiply_pj(operands, nm) + lane
    low, high = DRAM[design.dram]

    def exact(value: float) -> Band:
        return Band(value, value)

    return _Figures(
        mac=Band(mac, 2 * mac),
        weight_byte=exact(memory_pj_per_byte(weight_kib(design), nm)),
        activation_byte=exact(memory_pj_per_byte(design.activation_sram_kib, nm)),
        # each column has a memory of its own
        accumulator=exact(
            operands.sum_bytes * memory_pj_per_byte(operands.sum_bytes * design.accumulator_entries / 1024, nm)
        ),
        # at least an addition, at most a multiplication and an addition
        lane=Band(lane, lane + operation_pj("multiply float32", nm)),
        lookup=exact(operands.weight_bytes * memory_pj_per_byte(min(MEMORIES), nm)),
        dram_byte=Band(low / WORD_BYTES, high / WORD_BYTES),
    )


def weight_kib(design: Hardware) -> float:
    """The weight memory, or the FIFO of tiles (of bytes) where there is none."""
    return design.weight_sram_kib or design.weight_fifo_tiles * design.array_rows * design.array_columns / 1024


def area_mm2(design: Hardware, names: Collection[str] = ("int8",)) -> dict[str, Band]:
    """Square millimetres by component, of all cores, for arrays that multiply the formats of these names."""
    needed = [formats.parse(name) for name in names]
    scale = design.cores * (design.technology_nm / OLD_NM) ** 2 * 1e-6
    element = max(element_um2(operands, design.operand_cycles(operands.name) or 1) for operands in needed)
    lane = AREAS["multiply float32"] + AREAS["add float32"]
    tiles = design.weight_fifo_tiles * design.array_rows * design.array_columns / 1024
    sums = max(operands.sum_bytes for operands in needed)
    kib = {
        "weight memory": design.weight_sram_kib
        + max(operands.weight_bytes for operands in needed) * (tiles + design.codebook_entries / 1024),
        "activation memory": design.activation_sram_kib,
        "accumulators": sums * design.accumulator_entries * design.array_columns / 1024,
    }
    found = {
        "array": Band(element, element) * (scale * design.array_rows * design.array_columns),
        "vector unit": Band(lane, lane) * (scale * design.vector_lanes),
    }
    for name, size in kib.items():
        cells = size * 1024 * 8 * BIT_UM2 * scale
        found[name] = Band(cells / FILLED[0], cells / FILLED[1])
    return found


def total(bands: Mapping[str, Band]) -> Band:
    """The sum of all components."""
    return sum(bands.values(), NOTHING)
