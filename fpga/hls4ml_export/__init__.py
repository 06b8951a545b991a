"""Export of a feed-forward model to an HLS project through hls4ml, proven by the project's C simulation.

The graph goes straight to hls4ml's list of layers, without Keras, PyTorch or QONNX in between (Fahim et al., hls4ml:
an open-source codesign workflow, 2021). Everything unsupported is refused by name before anything is written. Then
every computing layer has to be a call in the generated top function, and on given samples the C simulation is
compared with the float model.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from onnx import ModelProto

from quatrefoil.fpga.hls4ml_export.layers import ExportError, Options
from quatrefoil.fpga.hls4ml_export.lowering import lower
from quatrefoil.fpga.hls4ml_export.project import PRECISION, write
from quatrefoil.fpga.hls4ml_export.report import ExportedLayer, ExportReport, OutputCheck
from quatrefoil.fpga.hls4ml_export.simulation import simulate
from quatrefoil.models import Model, load

BACKENDS: Final = ("Vitis", "Vivado")
IO: Final = ("parallel", "stream")
STRATEGIES: Final = ("latency", "resource")
MARKER: Final = "hls4ml_config.yml"
"""The file by which an earlier export is known, which may be written over."""


def export(
    model: Model | ModelProto | bytes | str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    backend: str = "Vitis",
    io: str = "parallel",
    part: str | None = None,
    reuse_factor: int = 1,
    precision: str = "fixed<16,6>",
    strategy: str = "latency",
    check: Mapping[str, np.ndarray] | np.ndarray | None = None,
    limit_s: float = 600.0,
) -> ExportReport:
    """Write an HLS project for a feed-forward CNN.

    model: a loaded model, or what ``quatrefoil.load`` takes. directory: new, empty, or an earlier export's.
    backend: "Vitis" or "Vivado". io: "parallel" keeps every value in registers, "stream" passes pixels through FIFOs.
    part: the device, hls4ml's default when None. reuse_factor: multiplications that share one multiplier.
    precision: of weights and activations, "fixed<total bits,integer bits>"; sums are as wide as they need to be.
    strategy: "latency" unrolls, "resource" keeps weights in block RAM (take it beyond some 4096 weights a layer).
    check: samples (batch first) for the C simulation, as an array or by the input's name; it needs g++.
    limit_s: seconds that compiling and running the simulation may take.

    Raises ExportError, in a sentence that names the node, for what cannot be exported.
    """
    options = Options(backend, io, part, reuse_factor, precision, strategy)
    _check_options(options)
    folder = _check_directory(Path(directory))
    loaded = model if isinstance(model, Model) else load(model)
    lowered = lower(loaded.graph, options)
    samples = None if check is None else _samples(loaded, check)
    name = "qf_" + re.sub(r"\W+", "_", loaded.graph.name or "model", flags=re.ASCII).strip("_")
    project = write(lowered, folder, name, options)
    outputs: tuple[OutputCheck, ...] = ()
    seconds = None
    if samples is not None:
        start = time.perf_counter()
        wanted = loaded.run(samples, backend="cpu")
        rows = {key: feature.in_design_order(wanted[key]) for key, feature in lowered.outputs.items()}
        sizes = {key: row.shape[1] for key, row in rows.items()}
        inputs = lowered.input.in_design_order(samples)
        simulated = simulate(folder, name, project.library, inputs, sizes, limit_s)
        outputs = tuple(OutputCheck.of(key, simulated[key], row) for key, row in rows.items())
        seconds = time.perf_counter() - start
    return ExportReport(
        folder, name, backend, project.part, io, precision, reuse_factor, project.layers, outputs, seconds
    )


def _check_options(options: Options) -> None:
    for name, given, known in (
        ("backend", options.backend, BACKENDS),
        ("io", options.io, IO),
        ("strategy", options.strategy, STRATEGIES),
    ):
        if given not in known:
            raise ExportError(f"{name} is {given!r}; known are {', '.join(known)}")
    reuse = options.reuse_factor
    if isinstance(reuse, bool) or not isinstance(reuse, int) or reuse < 1:
        raise ExportError(f"reuse_factor is {reuse!r}; give a whole number from 1")
    if not PRECISION.fullmatch(options.precision):
        raise ExportError(
            f"precision is {options.precision!r}; write fixed<total bits,integer bits>, for example fixed<16,6>"
        )


def _check_directory(directory: Path) -> Path:
    directory = directory.absolute()
    if directory.exists():
        if not directory.is_dir():
            raise ExportError(f"{directory} is a file; give a folder to write the project into")
        if any(directory.iterdir()) and not (directory / MARKER).exists():
            raise ExportError(f"{directory} holds other files; give a new or an empty folder, or an earlier export's")
    return directory


def _samples(model: Model, check: Mapping[str, np.ndarray] | np.ndarray) -> np.ndarray:
    [value] = model.inputs
    if isinstance(check, Mapping):
        if set(check) != {value.name}:
            raise ExportError(f"check names {', '.join(map(str, check))}; the model's input is {value.name!r}")
        check = check[value.name]
    samples = np.ascontiguousarray(check, np.float32)
    if samples.ndim != len(value.shape or ()) or samples.shape[1:] != tuple(value.shape or ())[1:] or len(samples) == 0:
        raise ExportError(f"check has shape {list(samples.shape)}; give at least one sample of {value}")
    return samples


__all__ = ["ExportError", "ExportReport", "ExportedLayer", "OutputCheck", "export"]
