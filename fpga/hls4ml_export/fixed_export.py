"""Export of a fixed-point network: the project, and every layer of its C simulation held to the network's integers."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quatrefoil.fpga.hls4ml_export.fixed_layers import Target
from quatrefoil.fpga.hls4ml_export.fixed_lowering import FixedDesign, lower
from quatrefoil.fpga.hls4ml_export.fixed_project import first_difference, simulate, write
from quatrefoil.fpga.hls4ml_export.layers import ExportError
from quatrefoil.fpga.hls4ml_export.report import ExportedLayer, OutputCheck
from quatrefoil.models.fixed.network import FixedNetwork, value_shapes


@dataclass(frozen=True, slots=True)
class FixedExportReport:
    """An exported HLS project of a fixed-point network.

    checked  layers whose every integer was compared, in order; empty when no samples were given
    samples  that were compared
    outputs  against the float model
    """

    directory: Path
    project: str
    target: Target
    part: str
    layers: tuple[ExportedLayer, ...]
    checked: tuple[str, ...] = ()
    samples: int = 0
    integers: int = 0
    outputs: tuple[OutputCheck, ...] = ()
    simulation_seconds: float | None = None

    @property
    def top_function(self) -> Path:
        """The generated C++ file of the top function."""
        return self.directory / "firmware" / f"{self.project}.cpp"

    def __str__(self) -> str:
        target = self.target
        lines = [
            f"{target.backend} project {self.project} in {self.directory}",
            f"part {self.part}, io {target.io}, strategy {target.strategy}, reuse factor {target.reuse_factor}",
        ]
        width = max(len(layer.name) for layer in self.layers)
        for layer in self.layers:
            told = "  equal" if layer.name in self.checked else ""
            lines.append(f"  {layer.name:<{width}}  {layer.function}  {layer.node}{told}")
        if self.samples:
            lines.append(
                f"C simulation equal to the last bit: {self.integers:,} integers of {len(self.checked)} layers on "
                f"{self.samples} samples ({self.simulation_seconds:.1f} s); against the float model:"
            )
            lines += [f"  {output}" for output in self.outputs]
        else:
            lines.append("not simulated: no samples were given")
        return "\n".join(lines)


def export_fixed(
    network: FixedNetwork,
    folder: Path,
    target: Target,
    part: str | None = None,
    check: Mapping[str, np.ndarray] | None = None,
    limit_s: float = 600.0,
) -> FixedExportReport:
    """Write the project and, on samples (batch first, by the inputs' names), hold it to the network.

    Raises ExportError, in a sentence that names the node: for what cannot be exported, and for the first layer whose C
    simulation gives other integers.
    """
    lowered = lower(network, target)
    name = "qf_" + re.sub(r"\W+", "_", network.graph.name or "model", flags=re.ASCII).strip("_")
    project = write(lowered.design, folder, name, target, part)
    exported = tuple(ExportedLayer(layer, lowered.titles[layer], function) for layer, function in project.calls.items())
    if check is None:
        return FixedExportReport(folder, name, target, project.part, exported)
    start = time.perf_counter()
    integers, shapes = network.integers(check), value_shapes(network.model)
    rows = {value: _rows(array, shapes[value]) for value, array in integers.items()}
    given = {port.layer: rows[f"{port.name}.fixed"][:, port.places] for port in lowered.inputs}
    found = simulate(project, lowered.design, given, limit_s)
    wanted = {layer: rows[value][:, order] for layer, (value, order) in lowered.traced.items()}
    order = [layer.name for layer in lowered.design.layers]
    difference = first_difference(found, wanted, order)
    if difference is not None:
        layer = difference.split(":")[0]
        raise ExportError(f"{lowered.titles[layer]}: the C simulation of {difference}")
    count = len(next(iter(given.values())))
    checked = tuple(name for name in order if name in found and name in wanted)
    outputs = _against_float(network, lowered, found, check)
    return FixedExportReport(
        folder, name, target, project.part, exported, checked, count, sum(found[n].size for n in checked), outputs,
        time.perf_counter() - start,
    )  # fmt: skip


def _rows(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Integers of a batch as a row for each sample; shape: of a batch of one. The batch is the axis that is longer."""
    longer = [axis for axis, (one, all_) in enumerate(zip(shape, array.shape)) if one != all_]
    axis = longer[0] if longer else 0
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.int64)


def _against_float(
    network: FixedNetwork, lowered: FixedDesign, found: Mapping[str, np.ndarray], check: Any
) -> tuple[OutputCheck, ...]:
    wanted = network.source.run(check, backend="cpu")
    shapes = value_shapes(network.source)
    formats = {layer.name: layer.formats["result"] for layer in lowered.design.layers}
    checks = []
    for port in lowered.outputs:
        real = formats[port.layer].dequantize(found[port.layer][:, port.places])
        array = np.asarray(wanted[port.name])
        longer = [axis for axis, (one, all_) in enumerate(zip(shapes[port.name], array.shape)) if one != all_]
        axis = longer[0] if longer else 0
        checks.append(OutputCheck.of(port.name, real, np.moveaxis(array, axis, 0).reshape(len(real), -1)))
    return tuple(checks)
