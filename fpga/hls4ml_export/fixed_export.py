"""Export of a fixed-point network: the project, and every layer of its C simulation held to the network's integers."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quatrefoil.fpga.hls4ml_export.fixed_layers import Target
from quatrefoil.fpga.hls4ml_export.fixed_lowering import FixedDesign, lower
from quatrefoil.fpga.hls4ml_export.fixed_project import first_difference, simulate, write
from quatrefoil.fpga.hls4ml_export.layers import ExportError
from quatrefoil.fpga.hls4ml_export.report import ExportedLayer, ExportReport, OutputCheck
from quatrefoil.fpga.hls4ml_export.sharing import Sharing
from quatrefoil.models.fixed.network import FixedNetwork, batch_rows, value_shapes


def export_fixed(
    network: FixedNetwork,
    folder: Path,
    target: Target,
    sharing: Sharing,
    part: str | None = None,
    check: Mapping[str, np.ndarray] | None = None,
    limit_s: float = 600.0,
    clock_ns: float = 5.0,
) -> ExportReport:
    """Write the project and, on samples (batch first, by the inputs' names), hold it to the network.

    Raises ExportError, in a sentence that names the node: for what cannot be exported, and for the first layer whose C
    simulation gives other integers.
    """
    lowered = lower(network, target, sharing)
    name = "qf_" + re.sub(r"\W+", "_", network.graph.name or "model", flags=re.ASCII).strip("_")
    project = write(lowered.design, folder, name, target, part, clock_ns)
    shared = {layer.name: layer for layer in lowered.design.layers if layer.multiplies}
    exported = tuple(
        ExportedLayer(
            layer, lowered.titles[layer], function,
            *((shared[layer].strategy, shared[layer].reuse_factor) if layer in shared else ()),
        )
        for layer, function in project.calls.items()
    )  # fmt: skip
    report = ExportReport(folder, name, target.backend, project.part, target.io, precision_text(network), exported)
    if check is None:
        return report
    start = time.perf_counter()
    integers, shapes = network.integers(check), value_shapes(network.model)
    rows = {value: batch_rows(array, shapes[value]).astype(np.int64) for value, array in integers.items()}
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
    return replace(
        report, checked=checked, samples=count, integers=sum(found[name].size for name in checked), outputs=outputs,
        simulation_seconds=time.perf_counter() - start,
    )  # fmt: skip


def precision_text(network: FixedNetwork) -> str:
    """The widths of a network's values, in words: one format where all have it."""
    texts = sorted({form.text for form in network.formats.values()})
    widths = sorted({form.width for form in network.formats.values()})
    return texts[0] if len(texts) == 1 else f"values of {widths[0]} to {widths[-1]} bits" if len(widths) > 1 else (
        f"values of {widths[0]} bits"
    )  # fmt: skip


def _against_float(
    network: FixedNetwork, lowered: FixedDesign, found: Mapping[str, np.ndarray], check: Any
) -> tuple[OutputCheck, ...]:
    wanted = network.source.run(check, backend="cpu")
    shapes = value_shapes(network.source)
    formats = {layer.name: layer.formats["result"] for layer in lowered.design.layers}
    checks = []
    for port in lowered.outputs:
        real = formats[port.layer].dequantize(found[port.layer][:, port.places])
        checks.append(OutputCheck.of(port.name, real, batch_rows(np.asarray(wanted[port.name]), shapes[port.name])))
    return tuple(checks)
