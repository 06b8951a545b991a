"""Export of a feed-forward model to an HLS project through hls4ml, proven by the project's C simulation.

The graph goes straight to hls4ml's list of layers, without Keras, PyTorch or QONNX in between (Fahim et al., hls4ml:
an open-source codesign workflow, 2021). Everything unsupported is refused by name before anything is written. Then
every computing layer has to be a call in the generated top function, and on given samples the C simulation is
compared with the float model.
"""

from __future__ import annotations

import contextlib
import io as text_io
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from onnx import ModelProto

from quatrefoil.fpga.hls4ml_export.layers import ExportError
from quatrefoil.fpga.hls4ml_export.lowering import Lowered, lower
from quatrefoil.fpga.hls4ml_export.report import ExportedLayer, ExportReport, OutputCheck
from quatrefoil.fpga.hls4ml_export.simulation import simulate
from quatrefoil.models import Model, load

BACKENDS: Final = ("Vitis", "Vivado")
IO: Final = {"parallel": "io_parallel", "stream": "io_stream"}
STRATEGIES: Final = ("latency", "resource")
PRECISION: Final = re.compile(r"u?fixed<\d+,-?\d+(,[A-Z_]+){0,2}>")
CALL: Final = re.compile(r"^\s*nnet::(\w+)<.*;\s*//\s*(\w+)\s*$", re.MULTILINE)
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
    _check_options(backend, io, reuse_factor, precision, strategy)
    target = _check_directory(Path(directory))
    loaded = model if isinstance(model, Model) else load(model)
    lowered = lower(loaded.graph, io == "stream")
    samples = None if check is None else _samples(loaded, check)
    project = "qf_" + re.sub(r"\W+", "_", loaded.graph.name or "model", flags=re.ASCII).strip("_")
    settings = {
        "Model": {"Precision": {"default": precision}, "ReuseFactor": reuse_factor, "Strategy": strategy.capitalize()},
        "LayerName": {name: {"Precision": {"accum": "auto"}} for name in lowered.computing},
    }
    design, config = _write(lowered, target, project, backend, IO[io], part, settings)
    exported = _called_layers(target / "firmware" / f"{project}.cpp", lowered)
    outputs: tuple[OutputCheck, ...] = ()
    seconds = None
    if samples is not None:
        start = time.perf_counter()
        wanted = loaded.run(samples, backend="cpu")
        rows = {name: feature.in_design_order(wanted[name]) for name, feature in lowered.outputs.items()}
        library = f"firmware/{project}-{design.config.get_config_value('Stamp')}.so"
        inputs = lowered.input.in_design_order(samples)
        sizes = {name: row.shape[1] for name, row in rows.items()}
        simulated = simulate(target, project, library, inputs, sizes, limit_s)
        outputs = tuple(OutputCheck.of(name, simulated[name], row) for name, row in rows.items())
        seconds = time.perf_counter() - start
    return ExportReport(
        target, project, backend, str(config["Part"]), io, precision, reuse_factor, exported, outputs, seconds
    )


def _check_options(backend: str, io: str, reuse_factor: int, precision: str, strategy: str) -> None:
    for name, given, known in (
        ("backend", backend, BACKENDS),
        ("io", io, tuple(IO)),
        ("strategy", strategy, STRATEGIES),
    ):
        if given not in known:
            raise ExportError(f"{name} is {given!r}; known are {', '.join(known)}")
    if isinstance(reuse_factor, bool) or not isinstance(reuse_factor, int) or reuse_factor < 1:
        raise ExportError(f"reuse_factor is {reuse_factor!r}; give a whole number from 1")
    if not PRECISION.fullmatch(precision):
        raise ExportError(f"precision is {precision!r}; write fixed<total bits,integer bits>, for example fixed<16,6>")


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


def _write(
    lowered: Lowered, target: Path, project: str, backend: str, io_type: str, part: str | None, settings: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    try:
        from hls4ml.model.graph import ModelGraph
        from hls4ml.utils.config import create_config
    except ImportError as error:
        raise ExportError(f"hls4ml does not load ({error}); pip install 'quatrefoil[hls]'") from error
    options = {} if part is None else {"part": part}
    config = create_config(str(target), project, backend, io_type=io_type, **options)
    config["HLSConfig"] = settings
    # hls4ml tells of every layer on standard output
    with contextlib.redirect_stdout(text_io.StringIO()):
        design = ModelGraph.from_layer_list(
            config, lowered.layers, [lowered.input.layer], [feature.layer for feature in lowered.outputs.values()]
        )
        design.write()
    return design, config


def _called_layers(top: Path, lowered: Lowered) -> tuple[ExportedLayer, ...]:
    """The function that computes each layer in the generated top function; a layer without one is an error."""
    calls = {name: function for function, name in CALL.findall(top.read_text(encoding="utf-8"))}
    missing = [name for name in lowered.computing if name not in calls]
    if missing:
        nodes = ", ".join(lowered.titles[name] for name in missing)
        raise ExportError(f"hls4ml left out {nodes}: {top} does not call {', '.join(missing)}")
    return tuple(ExportedLayer(name, lowered.titles[name], calls[name]) for name in lowered.computing)


__all__ = ["ExportError", "ExportReport", "ExportedLayer", "OutputCheck", "export"]
