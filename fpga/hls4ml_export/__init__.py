"""Export of a model to an HLS project through hls4ml, bit-true or refused.

The model becomes a fixed-point network, and this goes straight to hls4ml's list of layers, without Keras, PyTorch or QONNX
in between (Fahim et al., hls4ml: an open-source codesign workflow, 2021). Everything unsupported is refused by name before
anything is written. Then every computing layer has to be a call in the generated top function, and on given samples every
layer of the project's C simulation has to give the network's integers, to the last bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from onnx import ModelProto

from quatrefoil.fpga import estimate as before_synthesis
from quatrefoil.fpga.fit import Candidate, fit
from quatrefoil.fpga.hls4ml_export.estimating import describe
from quatrefoil.fpga.hls4ml_export.fixed_export import export_fixed, precision_text
from quatrefoil.fpga.hls4ml_export.fixed_layers import Target
from quatrefoil.fpga.hls4ml_export.fixed_project import default_part
from quatrefoil.fpga.hls4ml_export.layers import ExportError
from quatrefoil.fpga.hls4ml_export.report import ExportedLayer, ExportReport, OutputCheck
from quatrefoil.fpga.hls4ml_export.sharing import AUTO, Sharing
from quatrefoil.fpga.hls4ml_export.support import BACKENDS, IO
from quatrefoil.fpga.hls4ml_export.synthesis import Synthesis, check_part, find_tool
from quatrefoil.fpga.hls4ml_export.synthesis import synthesize as run_synthesis
from quatrefoil.fpga.parts import find_part
from quatrefoil.models import Model, load
from quatrefoil.models.fixed.network import FixedNetwork, fixed
from quatrefoil.models.fixed.precision import Precision
from quatrefoil.numerics import Fixed

MARKER: Final = "hls4ml_config.yml"
"""The file by which an earlier export is known, which may be written over."""


def export(
    model: FixedNetwork | Model | ModelProto | bytes | str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    backend: str = "Vitis",
    io: str = "parallel",
    part: str | None = None,
    reuse: int | Mapping[str, int] | str = 1,
    strategy: str | Mapping[str, str] | None = None,
    precision: Precision | Fixed | str | None = None,
    check: Mapping[str, np.ndarray] | np.ndarray | None = None,
    estimate: bool = False,
    synthesize: bool = False,
    clock_ns: float = 5.0,
    limit_s: float = 600.0,
    synthesis_limit_s: float = 14400.0,
    show: Callable[[str], None] | None = None,
) -> ExportReport:
    """Write an HLS project for a model, and hold its C simulation to the model in fixed point, to the last bit.

    model: a fixed-point network (``quatrefoil.fixed``), a loaded model, or what ``quatrefoil.load`` takes. directory: new,
    empty, or an earlier export's. backend: "Vitis", "Vivado", "Quartus", "Catapult", "oneAPI" or "Libero"
    (``support.table`` says for which layers). io: "parallel" keeps every value in registers, "stream" passes pixels
    through FIFOs. part: the device, hls4ml's default when None. reuse: multiplications that share one multiplier, for
    every layer or by the names of nodes (``sharing``: patterns, text, files); "auto" takes what fits the part best
    (``fpga.fit``). strategy: "latency" unrolls (the default), "resource" keeps weights in block RAM (take it beyond some
    4096 weights a layer). precision: of a model that is no fixed-point network yet, a format for everything or a ``Precision``
    (fixed<16,6> when left out); sums are exact unless it says otherwise. check: samples (batch first) for the C
    simulation, as an array or by the inputs' names; it needs g++. estimate: also say what the design takes of the part,
    and where it does not fit, with which reuse factors it would. clock_ns: the design's clock period. limit_s: seconds that
    compiling and running the simulation may take. synthesize: run the vendor's tool too (``synthesis``), for up to
    ``synthesis_limit_s`` seconds, and set its report beside the estimate; ``show`` gets each line that it prints.
    The report is kept in the project, as quatrefoil_report.txt and .json.

    Raises ExportError, in a sentence that names the node, for what cannot be exported and for a layer whose simulation
    gives other integers; ModelError for what has no fixed-point form.
    """
    target = _target(backend, io)
    sharing = Sharing() if reuse == AUTO else Sharing.of(reuse, strategy)
    folder = _check_directory(Path(directory))
    if isinstance(model, FixedNetwork):
        if precision is not None:
            raise ExportError(f"precision is {str(precision)!r}; a fixed-point network has its own, leave it out")
        network = model
    else:
        network = fixed(model if isinstance(model, Model) else load(model), precision or "fixed<16,6>")
    aim = None
    tool = find_tool(backend) if synthesize else ""
    if tool and part is not None:
        check_part(backend, tool, part)
    if estimate or synthesize or reuse == AUTO:
        # an unknown part is told before anything is written
        aim = before_synthesis.Target(find_part(part or default_part(backend)), clock_ns, io, backend)
    if reuse == AUTO:
        if strategy is not None:
            raise ExportError(f"strategy is {strategy!r}; reuse='auto' chooses strategies too, leave it out")
        assert aim is not None
        sharing = _fitting(network, target, aim)
    sharing.check(network)
    if not isinstance(model, FixedNetwork):
        network = sharing.ordered(network, target)
    samples = None if check is None else _samples(network.source, check)
    report = export_fixed(network, folder, target, sharing, part, samples, limit_s, clock_ns)
    if estimate or synthesize:
        assert aim is not None
        layers = describe(network, sharing, target)
        estimated = before_synthesis.estimate(layers, aim)
        proposal = None
        if max(estimated.shares().values()) > 1:
            proposal = fit([Candidate(report.precision, 0.0, tuple(layers))], aim)
        report = replace(report, estimate=estimated, proposal=proposal)
    if synthesize:
        ran = run_synthesis(report.directory, report.project, backend, tool, synthesis_limit_s, show)
        report = replace(report, synthesis=ran)
    report.save()
    return report


def _fitting(network: FixedNetwork, target: Target, aim: before_synthesis.Target) -> Sharing:
    """What ``fit`` proposes for the part. Raises ExportError where nothing fits."""
    found = fit([Candidate(precision_text(network), 0.0, tuple(describe(network, Sharing(), target)))], aim)
    if found.proposal is None:
        raise ExportError(f"reuse='auto': no reuse factors make it fit {aim.part.name}\n{found.text()}")
    return Sharing(found.proposal.reuse, found.proposal.strategies)


def _target(backend: str, io: str) -> Target:
    for name, given, known in (("backend", backend, BACKENDS), ("io", io, IO)):
        if given not in known:
            raise ExportError(f"{name} is {given!r}; known are {', '.join(known)}")
    return Target(backend, io)


def _check_directory(directory: Path) -> Path:
    directory = directory.absolute()
    if directory.exists():
        if not directory.is_dir():
            raise ExportError(f"{directory} is a file; give a folder to write the project into")
        if any(directory.iterdir()) and not (directory / MARKER).exists():
            raise ExportError(f"{directory} holds other files; give a new or an empty folder, or an earlier export's")
    return directory


def _samples(model: Model, check: Mapping[str, np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
    """The samples by the inputs' names, of the shapes that the model declares."""
    if not isinstance(check, Mapping):
        if len(model.inputs) != 1:
            names = ", ".join(value.name for value in model.inputs)
            raise ExportError(f"the model has {len(model.inputs)} inputs ({names}); give check by their names")
        check = {model.inputs[0].name: check}
    if set(check) != {value.name for value in model.inputs}:
        names = ", ".join(repr(value.name) for value in model.inputs)
        raise ExportError(f"check names {', '.join(map(str, check))}; the model's input is {names}")
    found: dict[str, np.ndarray] = {}
    for value in model.inputs:
        samples = np.ascontiguousarray(check[value.name], np.float32)
        shape = tuple(value.shape or ())
        if samples.ndim != len(shape) or samples.shape[1:] != shape[1:] or len(samples) == 0:
            raise ExportError(f"check has shape {list(samples.shape)}; give at least one sample of {value}")
        found[value.name] = samples
    return found


__all__ = ["ExportError", "ExportReport", "ExportedLayer", "OutputCheck", "Synthesis", "export"]
