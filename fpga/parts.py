"""FPGA parts by name: what they hold, and what their fabric can do.

Counts follow the vendors' product tables: AMD DS180 (7 series), DS190 (Zynq-7000), DS890 (UltraScale and
UltraScale+), DS891 (Zynq UltraScale+), DS950 (Versal), DS965, DS962, DS978 (Alveo); Intel's device overviews of
Cyclone V, Arria 10, Stratix 10 and Agilex 7; Microchip's PolarFire product overview. Compared with other
public lists and reports were xc7z020, xczu9eg, xczu28dr, xcu50, xcu200 and xcu250; look the others up before you buy.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from quatrefoil.errors import OperatorError


@dataclass(frozen=True, slots=True)
class Family:
    """A fabric.

    multiplier_ns   a product in a DSP block without registers
    adder_ns        a 16-bit addition in logic
    dsp_wide, dsp_narrow   the largest signed operands of one DSP block's multiplier, bits
    dsp_share       blocks that such a product takes: 0.5 where a block holds two
    dsp_whole       the largest signed operands that one block multiplies if it does nothing else; 0: no larger ones
    memory          (words, bits) of one memory block, for each shape that it can take
    logic           what a row of ``Part.lut`` counts
    """

    name: str
    vendor: str
    multiplier_ns: float
    adder_ns: float
    dsp_wide: int
    dsp_narrow: int
    memory: tuple[tuple[int, int], ...]
    dsp_share: float = 1.0
    dsp_whole: int = 0
    logic: str = "LUT"

    def dsp_blocks(self, a: int, b: int) -> float:
        """DSP blocks of one product of signed operands of a and b bits."""
        wide, narrow = max(a, b), min(a, b)
        if wide <= self.dsp_wide and narrow <= self.dsp_narrow:
            return self.dsp_share
        if wide <= self.dsp_whole:
            return 1.0
        # pieces but the last are unsigned, one bit shorter; wide products use whole blocks
        across = max(1, math.ceil((wide - 1) / (self.dsp_wide - 1)))
        return float(across * max(1, math.ceil((narrow - 1) / (self.dsp_narrow - 1))))

    def memory_blocks(self, words: int, bits: int) -> int:
        """Blocks of a memory of ``words`` words of ``bits`` bits: the cheapest shape."""
        return min(math.ceil(words / deep) * math.ceil(bits / wide) for deep, wide in self.memory)


_RAMB18 = ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1))
_M20K = ((512, 40), (1024, 20), (2048, 10))
_M10K = ((256, 40), (512, 20), (1024, 10), (2048, 5))

SERIES_7 = Family("7 series", "AMD", 2.45, 1.53, 25, 18, _RAMB18)
ULTRASCALE = Family("UltraScale", "AMD", 2.2, 0.95, 27, 18, _RAMB18)
ULTRASCALE_PLUS = Family("UltraScale+", "AMD", 1.94, 0.78, 27, 18, _RAMB18)
VERSAL = Family("Versal", "AMD", 1.8, 0.7, 27, 24, _RAMB18)
CYCLONE_V = Family("Cyclone V", "Intel", 3.0, 1.6, 19, 18, _M10K, 0.5, 27, "ALM")
ARRIA_10 = Family("Arria 10", "Intel", 2.4, 0.9, 19, 18, _M20K, 0.5, 27, "ALM")
STRATIX_10 = Family("Stratix 10", "Intel", 2.0, 0.7, 19, 18, _M20K, 0.5, 27, "ALM")
AGILEX_7 = Family("Agilex 7", "Intel", 1.7, 0.6, 19, 18, _M20K, 0.5, 27, "ALM")
POLARFIRE = Family("PolarFire", "Microchip", 2.6, 1.2, 18, 18, _M20K)
"""Delays: those of 7 series and UltraScale+ stand in Vitis HLS's schedules (2021.1, 2024.1); the others' are set between or
beside these by the age of their process, and were checked against nothing."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a device holds: DSP blocks, logic (6-input LUTs, or Intel's ALMs), flip-flops, memory blocks (18 Kb of AMD, M20K
    or M10K of Intel, 20 Kb of Microchip), UltraRAM. ``prefixes``: how its full order numbers begin."""

    name: str
    family: Family
    dsp: int
    lut: int
    ff: int
    bram: int
    uram: int
    prefixes: tuple[str, ...]


def _amd(name: str, family: Family, lut: int, dsp: int, ramb36: int, uram: int = 0, *prefixes: str) -> Part:
    return Part(name, family, dsp, lut, 2 * lut, 2 * ramb36, uram, prefixes or (f"xc{name.lower()}",))


def _intel(name: str, family: Family, alm: int, dsp: int, memory: int, *prefixes: str) -> Part:
    return Part(name, family, dsp, alm, 4 * alm, memory, 0, prefixes)


PARTS = (
    _amd("7A35T", SERIES_7, 20_800, 90, 50),
    _amd("7A50T", SERIES_7, 32_600, 120, 75),
    _amd("7A100T", SERIES_7, 63_400, 240, 135),
    _amd("7A200T", SERIES_7, 134_600, 740, 365),
    _amd("7K325T", SERIES_7, 203_800, 840, 445),
    _amd("7K410T", SERIES_7, 254_200, 1540, 795),
    _amd("7VX485T", SERIES_7, 303_600, 2800, 1030),
    _amd("7VX690T", SERIES_7, 433_200, 3600, 1470),
    _amd("7Z007S", SERIES_7, 14_400, 66, 50),
    _amd("7Z010", SERIES_7, 17_600, 80, 60),
    _amd("7Z020", SERIES_7, 53_200, 220, 140),
    _amd("7Z030", SERIES_7, 78_600, 400, 265),
    _amd("7Z045", SERIES_7, 218_600, 900, 545),
    _amd("7Z100", SERIES_7, 277_400, 2020, 755),
    _amd("KU040", ULTRASCALE, 242_400, 1920, 600),
    _amd("KU060", ULTRASCALE, 331_680, 2760, 1080),
    _amd("KU115", ULTRASCALE, 663_360, 5520, 2160),
    _amd("VU095", ULTRASCALE, 537_600, 768, 1728),
    _amd("KU3P", ULTRASCALE_PLUS, 162_720, 1368, 360, 48),
    _amd("KU5P", ULTRASCALE_PLUS, 216_960, 1824, 480, 64),
    _amd("KU15P", ULTRASCALE_PLUS, 522_720, 1968, 984, 128),
    _amd("VU3P", ULTRASCALE_PLUS, 394_080, 2280, 720, 320),
    _amd("VU9P", ULTRASCALE_PLUS, 1_182_240, 6840, 2160, 960),
    _amd("VU11P", ULTRASCALE_PLUS, 1_296_000, 9216, 2016, 960),
    _amd("VU13P", ULTRASCALE_PLUS, 1_728_000, 12_288, 2688, 1280),
    _amd("VU35P", ULTRASCALE_PLUS, 871_680, 5952, 1344, 640),
    _amd("VU37P", ULTRASCALE_PLUS, 1_303_680, 9024, 2016, 960),
    _amd("U50", ULTRASCALE_PLUS, 871_680, 5952, 1344, 640),
    _amd("U55C", ULTRASCALE_PLUS, 1_303_680, 9024, 2016, 960),
    _amd("U200", ULTRASCALE_PLUS, 1_182_240, 6840, 2160, 960),
    _amd("U250", ULTRASCALE_PLUS, 1_728_000, 12_288, 2688, 1280),
    _amd("U280", ULTRASCALE_PLUS, 1_303_680, 9024, 2016, 960),
    _amd("ZU2EG", ULTRASCALE_PLUS, 47_232, 240, 150, 0, "xczu2eg", "xczu2cg"),
    _amd("ZU3EG", ULTRASCALE_PLUS, 70_560, 360, 216, 0, "xczu3eg", "xczu3cg"),
    _amd("ZU5EV", ULTRASCALE_PLUS, 117_120, 1248, 144, 64, "xczu5ev", "xczu5eg", "xck26"),
    _amd("ZU7EV", ULTRASCALE_PLUS, 230_400, 1728, 312, 96, "xczu7ev", "xczu7eg", "xczu7cg"),
    _amd("ZU9EG", ULTRASCALE_PLUS, 274_080, 2520, 912, 0, "xczu9eg", "xczu9cg"),
    _amd("ZU15EG", ULTRASCALE_PLUS, 341_280, 3528, 744, 112),
    _amd("ZU19EG", ULTRASCALE_PLUS, 522_720, 1968, 984, 128),
    _amd("ZU28DR", ULTRASCALE_PLUS, 425_280, 4272, 1080, 80),
    _amd("ZU48DR", ULTRASCALE_PLUS, 425_280, 4272, 1080, 80),
    _amd("VC1902", VERSAL, 899_840, 1968, 967, 463, "xcvc1902"),
    _intel("Cyclone V SE A6", CYCLONE_V, 41_910, 112, 553, "5cseba6", "5csema6", "cyclonev"),
    _intel("Arria 10 GX 1150", ARRIA_10, 427_200, 1518, 2713, "10ax115", "arria10"),
    _intel("Stratix 10 GX 2800", STRATIX_10, 933_120, 5760, 11_721, "1sg280", "1sx280", "stratix10"),
    _intel("Agilex 7 AGF 014", AGILEX_7, 487_200, 4510, 7110, "agfb014", "agfa014", "agilex7"),
    _intel("Agilex 7 AGF 027", AGILEX_7, 912_800, 8528, 13_272, "agfb027", "agfa027"),
    Part("MPF300T", POLARFIRE, 924, 299_544, 299_544, 952, 0, ("mpf300t",)),
)


def find_part(name: str) -> Part:
    """The part of a name (``VU9P``, ``Arria10``) or of a full order number (``xcvu9p-flgb2104-2-i``); letters' case,
    spaces and hyphens do not matter. Raises OperatorError with the nearest names."""
    asked, number = _plain(name), name.strip().lower()
    for part in PARTS:
        if asked == _plain(part.name):
            return part
    for part in PARTS:
        for prefix in part.prefixes:
            # an order number goes on with a package or, behind a hyphen, a speed; xcu50 does not begin xcu500
            if asked == prefix or (number.startswith(prefix) and not number[len(prefix)].isdigit()):
                return part
    names = {_plain(text): part.name for part in PARTS for text in (part.name, *part.prefixes)}
    near = difflib.get_close_matches(asked, names, n=6, cutoff=0.5)
    suggestion = ", ".join(dict.fromkeys(names[text] for text in near)) or ", ".join(part.name for part in PARTS)
    raise OperatorError("estimate", "the part", repr(name), f"known names near it are {suggestion}")


def _plain(name: str) -> str:
    return name.lower().replace(" ", "").replace("-", "").replace("_", "")
