"""What an export made and how near its C simulation came to the float model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from quatrefoil.fpga.estimate import EstimateReport
from quatrefoil.fpga.fit import Fit
from quatrefoil.fpga.hls4ml_export.synthesis import Synthesis
from quatrefoil.fpga.vendor_reports import beside, compared

REPORT: Final = "quatrefoil_report"
"""The name, without its ending, of the report's files in the project."""


@dataclass(frozen=True, slots=True)
class ExportedLayer:
    """One layer of the design: its name there, the model's node behind it, and the C++ function that is called.

    strategy, reuse_factor: of a layer that multiplies by weights, else None
    """

    name: str
    node: str
    function: str
    strategy: str | None = None
    reuse_factor: int | None = None


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """One output of the C simulation against the float model, over all samples.

    max_error   the largest absolute difference
    scale       the largest absolute value of the float model's output
    agreement   the share of samples whose largest element is at the same place; None for a single element
    """

    name: str
    samples: int
    max_error: float
    scale: float
    agreement: float | None

    @classmethod
    def of(cls, name: str, simulated: np.ndarray, wanted: np.ndarray) -> OutputCheck:
        """Both (samples, elements)."""
        agreement = None
        if wanted.shape[1] > 1:
            agreement = float(np.mean(simulated.argmax(1) == wanted.argmax(1)))
        difference = np.abs(simulated.astype(np.float64) - wanted)
        return cls(name, len(wanted), float(difference.max()), float(np.abs(wanted).max()), agreement)

    def __str__(self) -> str:
        text = f"{self.name}: max error {self.max_error:.4g} (values up to {self.scale:.4g})"
        return (
            text if self.agreement is None else f"{text}, same argmax on {self.agreement:.1%} of {self.samples} samples"
        )


@dataclass(frozen=True, slots=True)
class ExportReport:
    """An exported HLS project. The design takes and gives feature maps with channels last.

    precision   of values and weights, in words
    checked     layers whose every integer was compared with the network's, in order; empty when no samples were given
    samples     that were compared, and ``integers``, all layers together
    outputs     of the C simulation against the float model
    estimate    what the design takes, before synthesis; None where it was not asked for
    proposal    reuse factors with which it would fit; None where it does
    synthesis   what the vendor's tool reported; None where it did not run
    """

    directory: Path
    project: str
    backend: str
    part: str
    io: str
    precision: str
    layers: tuple[ExportedLayer, ...]
    checked: tuple[str, ...] = ()
    samples: int = 0
    integers: int = 0
    outputs: tuple[OutputCheck, ...] = ()
    simulation_seconds: float | None = None
    estimate: EstimateReport | None = None
    proposal: Fit | None = None
    synthesis: Synthesis | None = None

    def plain(self) -> dict[str, Any]:
        """As plain values for JSON."""
        found = {**asdict(self), "top_function": self.top_function}
        if self.estimate is not None and self.synthesis is not None and self.synthesis.reported is not None:
            found["compared"] = [asdict(figure) for figure in compared(self.estimate, self.synthesis.reported)]
        return found

    def save(self) -> None:
        """Into the project: REPORT.txt and REPORT.json."""
        text = json.dumps(self.plain(), indent=2, default=str)
        (self.directory / f"{REPORT}.json").write_text(f"{text}\n", "utf-8")
        (self.directory / f"{REPORT}.txt").write_text(f"{self}\n", "utf-8")

    @property
    def top_function(self) -> Path:
        """The generated C++ file of the top function."""
        return self.directory / "firmware" / f"{self.project}.cpp"

    def __str__(self) -> str:
        lines = [
            f"{self.backend} project {self.project} in {_shown(self.directory)}",
            f"part {self.part}, {self.io}, {self.precision}",
        ]
        rows = [("layer", "function", "sharing", "", "node")]
        for layer in self.layers:
            shared = "" if layer.strategy is None else f"{layer.strategy} reuse {layer.reuse_factor}"
            told = "equal" if layer.name in self.checked else ""
            rows.append((layer.name, layer.function, shared, told, layer.node))
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines += ["  " + "  ".join(text.ljust(n) for text, n in zip(row, widths)).rstrip() for row in rows]
        if self.samples:
            lines.append(
                f"C simulation equal to the last bit: {self.integers:,} integers of {len(self.checked)} layers on "
                f"{self.samples} samples ({self.simulation_seconds:.1f} s); against the float model:"
            )
            lines += [f"  {output}" for output in self.outputs]
        else:
            lines.append("not simulated: no samples were given")
        if self.estimate is not None:
            lines.append(self.estimate.text())
        if self.proposal is not None:
            lines += [
                "It does not fit. Reuse factors by layer, with intervals and latencies in cycles:",
                self.proposal.text(),
            ]
        if self.synthesis is not None:
            ran = self.synthesis
            lines.append(
                f"{ran.tool} ran for {ran.seconds:.1f} s; its report is {ran.reports}, what it printed {ran.log}"
            )
            if ran.reported is not None and self.estimate is not None:
                lines.append(beside(self.estimate, ran.reported))
        return "\n".join(lines)


def _shown(path: Path) -> Path:
    """From the current folder, where it lies in that."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
