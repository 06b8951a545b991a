"""What a benchmark found out, as plain data: one record for each problem and contender, and JSON of it.

Measured time and simulated cycles live in different fields, so that they cannot be mistaken for each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quatrefoil import ops
from quatrefoil.bench.page import write_text
from quatrefoil.bench.timing import Timing
from quatrefoil.settings import CACHE_VARIABLE

FORMAT = 2
A_PATH = "a path"


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a simulated run took on its design."""

    design: str
    cycles: int
    clock_mhz: float
    dram_bytes: int
    counters: Mapping[str, int] = field(default_factory=dict)

    @property
    def microseconds(self) -> float:
        return self.cycles / self.clock_mhz


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which kernel of ours ran, as dispatch says.

    why              it comes first: its priority, a measured time, or force
    instruction_set  the instruction set or device code in use
    layout           nchw, nchwc (channels in blocks), tnc, as the kernel's name says
    beyond           why it may take less time than a direct evaluation in float32 at the peak, as it declares
    flags            settings that are not the usual ones, as ``flags_of`` tells them
    """

    kernel: str
    version: int
    why: str
    layout: str
    instruction_set: str
    beyond: str
    flags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """One contender on one problem.

    name       the problem's name in its suite, else its text
    contender  a backend of ours (cpu, gpu, fpga, asic) or a peer
    kernel     the kernel's id, or what the peer ran
    checked    what the result was compared with: "oracle", the name of another contender, or "" when it was not
    error      the largest difference from that, as a share of the largest value; None when it was not compared
    accurate   whether that error is below 2e-5, or within one step of quantisation; None when it was not compared
    wrong      whether the result failed that comparison
    refused    why there is no figure, in a sentence; empty when there is one
    note       what the figure means, where that is not plain
    cache      hot: calls follow each other; cold: caches are flushed before each
    fresh      whether it was given fresh inputs before every round and held to the oracle on them afterwards
    chosen     of ours: which kernel ran and why
    limit_seconds, limit_by   the least time of a direct evaluation by the machine's ceilings, and what bounds it
    beats_limit   measured below that limit by a kernel that does not declare why it may be: not to be believed
    """

    name: str
    problem: str
    op: str
    contender: str
    ours: bool
    kernel: str = ""
    device: str = ""
    threads: int = 1
    macs: int = 0
    bytes: int = 0
    measured: Timing | None = None
    simulated: Simulated | None = None
    checked: str = ""
    error: float | None = None
    accurate: bool | None = None
    wrong: bool = False
    refused: str = ""
    note: str = ""
    cache: str = "hot"
    fresh: bool = False
    chosen: Chosen | None = None
    limit_seconds: float | None = None
    limit_by: str = ""
    beats_limit: bool = False

    @property
    def share(self) -> float | None:
        """The limit's share of the measured time: 1 is as fast as a direct evaluation can be."""
        if self.measured is None or self.limit_seconds is None or not self.measured.median:
            return None
        return self.limit_seconds / self.measured.median

    @property
    def gmacs(self) -> float | None:
        """Multiply-accumulates of a direct evaluation in a second of measured time, in 10^9."""
        if self.measured is None or not self.macs or self.op in ops.FAMILIES["pool"]:
            return None  # pooling multiplies nothing
        return self.macs / self.measured.median / 1e9

    def as_dict(self) -> dict[str, Any]:
        """Plain data; an error that is infinite becomes the text "infinite", which JSON can carry."""
        data = asdict(self)
        if self.error is not None and not math.isfinite(self.error):
            data["error"] = "infinite"
        if self.simulated is not None:
            data["simulated"]["microseconds"] = self.simulated.microseconds
        data["share"] = self.share
        return data


def flags_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the house that are set, as they were set; of paths, which are a machine's own business, that they
    are."""
    house = {name: value for name, value in environment.items() if name.startswith("QUATREFOIL_")}
    return {
        name: A_PATH if name == CACHE_VARIABLE or "/" in value or "\\" in value else value
        for name, value in house.items()
    }


def threads_said(count: int) -> str:
    """A number of threads in words."""
    return "one thread" if count == 1 else f"{count} threads"


def restored(row: Mapping[str, Any]) -> Record:
    """The inverse of ``Record.as_dict``."""
    data = {each.name: row[each.name] for each in fields(Record) if each.name in row}
    if data.get("error") == "infinite":
        data["error"] = math.inf
    if data.get("measured"):
        timing = dict(data["measured"])
        timing["samples"] = tuple(timing["samples"])
        timing["confidence"] = timing["confidence"] and tuple(timing["confidence"])
        data["measured"] = Timing(**timing)
    if data.get("simulated"):
        cost = dict(data["simulated"])
        cost.pop("microseconds")
        data["simulated"] = Simulated(**cost)
    if data.get("chosen"):
        data["chosen"] = Chosen(**data["chosen"])
    return Record(**data)


def flat(records: Iterable[Record]) -> list[dict[str, Any]]:
    """A row for each record with plain columns alone, as ``pandas.DataFrame`` reads them: fields of ``measured``,
    ``simulated`` and ``chosen`` become columns like ``measured_median`` (seconds), the interval ``measured_from`` and
    ``measured_to``."""
    rows = []
    for record in records:
        row: dict[str, Any] = {}
        for name, value in record.as_dict().items():
            if isinstance(value, dict):
                row |= {f"{name}_{inner}": each for inner, each in value.items() if not isinstance(each, (dict, tuple))}
            elif value is not None or name not in ("measured", "simulated", "chosen"):
                row[name] = value
        if record.measured is not None and record.measured.confidence is not None:
            row["measured_from"], row["measured_to"] = record.measured.confidence
        rows.append(row)
    return rows


def document(
    records: Sequence[Record], machine: Mapping[str, str], conditions: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that a report needs, as plain data; ``conditions`` are those of a comparison with goals."""
    return {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": dict(machine),
        **(conditions or {}),
        "records": [record.as_dict() for record in records],
    }


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """A ``document`` as a file. Raises QuatrefoilError where it cannot be written."""
    write_text(path, json.dumps(data, indent=1) + "\n")
