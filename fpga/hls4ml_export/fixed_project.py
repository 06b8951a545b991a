"""A fixed-point design as an HLS project, and its C simulation to the last bit.

Every format is the design's own (``FixedLayer``). The simulation gives each layer's trace, not the outputs alone, so
that the first layer that differs can be named. Its library is kept by the content of the generated sources, in the
cache folder of kernels/settings.py: compiling takes seconds, running milliseconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import re
import shutil
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from quatrefoil.fpga.hls4ml_export.fixed_layers import FixedLayer, Target
from quatrefoil.fpga.hls4ml_export.layers import ExportError
from quatrefoil.fpga.hls4ml_export.project import calls_in
from quatrefoil.fpga.hls4ml_export.simulation import FLAGS, compile_library, run
from quatrefoil.fpga.hls4ml_export.support import VITIS_LIKE
from quatrefoil.numerics import Fixed
from quatrefoil.settings import cache_folder

NOT_COMPUTING: Final = ("InputLayer", "Reshape")
EXACT_BITS: Final = 53
"""Numbers enter and leave the simulation as doubles."""


@dataclass(frozen=True, slots=True)
class Design:
    """hls4ml's layers in order (inputs first), and the names of the layers whose values the design gives."""

    layers: tuple[FixedLayer, ...]
    outputs: tuple[str, ...]

    @property
    def inputs(self) -> tuple[FixedLayer, ...]:
        return tuple(layer for layer in self.layers if layer.description["class_name"] == "InputLayer")

    @property
    def computing(self) -> tuple[FixedLayer, ...]:
        return tuple(layer for layer in self.layers if layer.description["class_name"] not in NOT_COMPUTING)


@dataclass(frozen=True, slots=True)
class FixedProject:
    """A written project. calls: by layer, the function of the generated top function that computes it. sizes: elements
    of each traced layer's value; results: of each output."""

    folder: Path
    name: str
    part: str
    calls: dict[str, str]
    sizes: dict[str, int]
    results: dict[str, int]


def write(
    design: Design, folder: Path, name: str, target: Target, part: str | None = None, clock_ns: float = 5.0
) -> FixedProject:
    """Write the project. Raises ExportError when hls4ml is missing, or has left a layer out."""
    try:
        from hls4ml.model.graph import ModelGraph
        from hls4ml.utils.config import create_config
    except ImportError as error:
        raise ExportError(f"hls4ml does not load ({error}); pip install 'quatrefoil[hls]'") from error
    kinds = {str(layer.description["class_name"]) for layer in design.layers}
    if {"DepthwiseConv1D", "DepthwiseConv2D"} <= kinds:
        raise ExportError(
            "depthwise convolutions over one axis and over two: hls4ml's headers of the two exclude each other (their include "
            "guards are the same); give those over one axis a second one of length 1"
        )
    if target.backend in VITIS_LIKE:
        check_casts(design.layers)
        from quatrefoil.fpga.hls4ml_export import extension

        extension.register(target.backend)
    wanted = {"clock_period": clock_ns} | ({} if part is None else {"part": part})
    # hls4ml tells of every layer on standard output, and warns of what it sets itself
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = create_config(str(folder), name, target.backend, io_type=f"io_{target.io}", **wanted)
        config["HLSConfig"] = _settings(design)
        config["TraceOutput"] = True
        described = [_described(layer) for layer in design.layers]
        try:
            graph = ModelGraph.from_layer_list(
                config, described, [layer.name for layer in design.inputs], list(design.outputs)
            )
            _check_formats(graph, design)
            graph.write()
        except ExportError:
            raise
        except Exception as error:  # hls4ml raises Exception itself, and asserts
            raise ExportError(f"hls4ml does not write the project: {type(error).__name__}: {error}") from error
        if target.backend == "Quartus" and target.io == "stream":
            _trace_streams(folder / "firmware" / f"{name}.cpp", graph)
        traced = [layer for layer in graph.get_layers() if layer.get_attr("function_cpp") and layer.get_attr("trace")]
        sizes = {layer.name: int(np.prod(layer.get_output_variable().shape)) for layer in traced}
        results = {
            wanted: int(np.prod(variable.shape))
            for wanted, variable in zip(design.outputs, graph.get_output_variables())
        }
    calls = calls_in(folder / "firmware" / f"{name}.cpp", [layer.name for layer in design.computing])
    return FixedProject(folder, name, str(config.get("Part")), calls, sizes, results)


_TRACE: Final = re.compile(r'nnet::save_layer_output<\w+>\(\w+, "(\w+)", [^;]*\);')


def _trace_streams(top: Path, graph: Any) -> None:
    """hls4ml's writer for Quartus traces one and the same stream for every layer, and not its own: name each one's own."""
    made = {layer.name: layer.get_output_variable() for layer in graph.get_layers()}

    def own(found: re.Match[str]) -> str:
        name = found[1]
        return f'nnet::save_layer_output<{made[name].type.name}>({made[name].name}, "{name}", {made[name].size_cpp()});'

    top.write_text(_TRACE.sub(own, top.read_text(encoding="utf-8")), encoding="utf-8")


def default_part(backend: str) -> str:
    """The part that hls4ml takes where none is named."""
    from hls4ml.utils.config import create_config

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return str(create_config("project", "project", backend).get("Part"))
        except subprocess.CalledProcessError as error:  # Libero asks for its tool first
            raise ExportError(f"hls4ml knows no part for {backend}: {error}; name one with part=") from error


def check_casts(layers: Sequence[FixedLayer]) -> None:
    """ap_fixed's C simulation breaks off where a cast that rounds drops more bits than there are (ap_fixed_base.h reads
    the highest of the dropped bits)."""
    made: dict[str, Fixed] = {}
    for layer in layers:
        forms = layer.formats | {key.removesuffix("_t"): form for key, form in layer.own_formats.items()}
        given = [made[name] for name in layer.description.get("inputs", ())]
        casts = [(source.width, source.fraction, "result") for source in given]
        if "scale" in forms:
            scale = forms["scale"]
            casts = [(source.width + scale.width, source.fraction + scale.fraction, "result") for source in given]
        for kind, values in (("weight", given[:1]), ("recurrent_weight", [forms["result"]])):
            if kind in forms and "accum" in forms:
                casts = casts if kind == "recurrent_weight" else []
                w = forms[kind]
                casts += [(x.width + w.width, x.fraction + w.fraction, "accum") for x in values]
        for source, goal in (
            ("bias", "accum"), ("recurrent_bias", "accum"), ("accum", "result"), ("table", "accum"), ("table", "result"),
        ):  # fmt: skip
            if source in forms and goal in forms:
                casts.append((forms[source].width, forms[source].fraction, goal))
        for width, fraction, goal in casts:
            form = forms[goal]
            if form.rounding != "TRN" and fraction - form.fraction > width:
                raise ExportError(
                    f"{layer.name}: a cast to its {goal} format {form} drops {fraction - form.fraction} bits of numbers of "
                    f"{width}, at which the C simulation of hls4ml's ap_fixed breaks off; round with TRN, or keep more bits"
                )
        made[layer.name] = forms["result"]


def _settings(design: Design) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for layer in design.layers:
        names[layer.name] = {
            "Precision": {key: form.text for key, form in layer.formats.items()},
            "ReuseFactor": layer.reuse_factor,
            "Strategy": layer.strategy.capitalize(),
            "Trace": layer.description["class_name"] not in NOT_COMPUTING,
        }
    # nothing of a design takes the default, and what hls4ml makes itself takes the format of what it copies
    # (_check_formats); "auto" here leaves hls4ml's passes no end where a stream is copied
    return {
        "Model": {"Precision": {"default": "fixed<16,6>"}, "ReuseFactor": 1, "Strategy": "Latency"},
        "LayerName": names,
    }


def _described(layer: FixedLayer) -> dict[str, Any]:
    from hls4ml.model.types import FixedPrecisionType, NamedType

    own: dict[str, Any] = {}
    for key, form in layer.own_formats.items():
        made = FixedPrecisionType(form.width, form.integer, form.signed, form.rounding, form.overflow)
        own[key] = made if key.endswith("_prec") else NamedType(f"{layer.name}_{key}", made)
    # hls4ml changes the lists that it is given
    kept = {key: list(value) if isinstance(value, list) else value for key, value in layer.description.items()}
    return kept | own


def _check_formats(graph: Any, design: Design) -> None:
    """Whether hls4ml kept every layer and its formats: its passes may fuse layers and change types."""
    made = {layer.name: layer for layer in graph.get_layers()}
    for name in made.keys() - {layer.name for layer in design.layers}:
        # copies and paddings of streams
        node = made[name]
        given = _format_of(node.get_input_variable().type.precision)
        if any(_format_of(variable.type.precision) != given for variable in node.get_variables()):
            raise ExportError(f"hls4ml adds {name} ({node.class_name}) and gives it another format than {given}")
    for layer in design.computing:
        if layer.name not in made:
            raise ExportError(f"hls4ml left out {layer.name} ({layer.description['class_name']})")
        node = made[layer.name]
        types: dict[str, Any] = {"result": node.get_output_variable().type.precision}
        types |= {key: node.types[f"{key}_t"].precision for key in layer.formats if f"{key}_t" in node.types}
        for key, form in layer.formats.items():
            if key == "accum" and "MaxPool" in str(layer.description["class_name"]):
                continue  # a maximum is in no sum
            if key in types and _format_of(types[key]) != form:
                raise ExportError(f"{layer.name}: hls4ml made {types[key]} of the {key} format {form}")
        if layer.multiplies:
            _check_sharing(node, layer)


def _check_sharing(node: Any, layer: FixedLayer) -> None:
    """Whether hls4ml kept the strategy and the reuse factors."""
    wanted = {
        "reuse_factor": layer.reuse_factor,
        "recurrent_reuse_factor": layer.reuse_factor,
        "strategy": layer.strategy,
    }
    for key, value in wanted.items():
        made = node.get_attr(key)
        if key == "strategy" and layer.reuse_factor == 1:
            continue  # both unroll
        if made is not None and str(made).lower() != str(value):
            raise ExportError(
                f"{layer.name}: hls4ml makes {key} {str(made).lower()} of {value} there; give it that one"
            )


def _format_of(precision: Any) -> Fixed:
    """Of an hls4ml type."""
    rounding, overflow = (str(getattr(precision, f"{kind}_mode", None) or "") for kind in ("rounding", "saturation"))
    integer = getattr(precision, "integer", precision.width)
    return Fixed(precision.width, integer, rounding or "TRN", overflow or "WRAP", bool(precision.signed))


def simulate(
    project: FixedProject, design: Design, inputs: Mapping[str, np.ndarray], limit_s: float
) -> dict[str, np.ndarray]:
    """Run the C simulation on integers (count, elements) by input's name, in the design's order of elements.

    Gives int64 (count, elements) of every traced layer and output, by name. Raises ExportError in a sentence when it
    does not compile, or breaks off, or takes longer than limit_s seconds.
    """
    formats = {layer.name: layer.formats["result"] for layer in design.layers}
    for layer in design.layers:
        if layer.formats["result"].width > EXACT_BITS:
            raise ExportError(
                f"{layer.name}: {layer.formats['result']} is wider than the {EXACT_BITS} bits that the C simulation tells"
            )
    rows = [formats[layer.name].dequantize(inputs[layer.name]) for layer in design.inputs]
    found = run(_library(project, limit_s), f"{project.name}_double", rows, project.results, project.sizes, limit_s)
    integers = {}
    for name, real in found.items():
        scaled = np.ldexp(real, formats[name].fraction)
        integers[name] = np.rint(scaled).astype(np.int64)
        if not np.array_equal(integers[name], scaled):
            raise ExportError(f"{name}: the C simulation gives numbers that {formats[name]} does not hold")
    return integers


_STAMP: Final = re.compile(r"^LIB_STAMP=.*$", re.MULTILINE)


def _library(project: FixedProject, limit_s: float) -> Path:
    """The compiled simulation of a project, from the cache where its sources were compiled before."""
    kept = cache_folder() / "hls4ml" / _digest(project)
    kept.mkdir(parents=True, exist_ok=True)
    library = kept / "simulation.so"
    with open(kept / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            sources = kept / "project"
            shutil.rmtree(sources, ignore_errors=True)
            shutil.copytree(project.folder, sources)
            compile_library(sources, project.name, kept / "made.so", limit_s)
            for path in list(sources.rglob("*")):
                if path.is_file() and path.suffix != ".txt":
                    path.unlink()
            (kept / "made.so").rename(library)
    return library


_INCLUDE: Final = re.compile(r'^\s*#include\s+"([^"]+)"', re.MULTILINE)


def _digest(project: FixedProject) -> str:
    """Of what the compiler and the simulation read: the generated sources and every header of the project that they include,
    which differ between backends; the headers of ap_types and ac_types by hls4ml's version."""
    folder = project.folder
    digest = hashlib.sha256(" ".join((version("hls4ml"), *FLAGS)).encode())
    read: dict[Path, str] = {}
    left = [folder / "firmware" / f"{project.name}.cpp", folder / f"{project.name}_bridge.cpp"]
    while left:
        path = left.pop()
        if path in read or not path.is_file():
            continue
        read[path] = path.read_text(encoding="utf-8")
        for name in _INCLUDE.findall(read[path]):
            left += [(base / name).resolve() for base in (path.parent, folder / "firmware", folder)]
    for path in (folder / "build_lib.sh", *(folder / "firmware" / "weights").glob("*")):
        read[path] = path.read_text(encoding="utf-8")
    for path, text in sorted(read.items()):
        digest.update(f"{path.relative_to(folder)}\0{_STAMP.sub('', text)}\0".encode())
    return digest.hexdigest()[:32]


def first_difference(
    simulated: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], order: Sequence[str]
) -> str | None:
    """A sentence on the first layer in order whose integers differ, None where none does."""
    for name in order:
        if name in simulated and name in wanted:
            apart = simulated[name] != wanted[name]
            if apart.any():
                sample, element = map(int, np.argwhere(apart)[0])
                return (
                    f"{name}: {int(apart.sum())} of {apart.size} integers differ, the first at sample {sample}, element "
                    f"{element}: C simulation {simulated[name][sample, element]}, ours {wanted[name][sample, element]}"
                )
    return None
