"""The HLS project itself: hls4ml's configuration, the generated files, and whether every layer is in them."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quatrefoil.fpga.hls4ml_export.layers import ExportError, Format, Layer, Options
from quatrefoil.fpga.hls4ml_export.lowering import Lowered
from quatrefoil.fpga.hls4ml_export.report import ExportedLayer

PRECISION: Final = re.compile(r"(u?)fixed<(\d+),(-?\d+)((?:,[A-Z_]+){0,2})>")
CALL: Final = re.compile(r"^\s*nnet::(\w+)<.*;\s*//\s*(\w+)\s*$", re.MULTILINE)
TRACED_CALL: Final = re.compile(
    r'^\s*nnet::(\w+)<.*;\n#if.*\n\s*nnet::save_layer_output<.*?>\(\w.*?, "(\w+)"', re.MULTILINE
)
"""Quartus's calls have no comment; where layers are traced, the trace that follows names them."""


@dataclass(frozen=True, slots=True)
class Project:
    """A written project. library: where build_lib.sh puts the C simulation, relative to the folder."""

    folder: Path
    name: str
    part: str
    library: str
    layers: tuple[ExportedLayer, ...]


def write(lowered: Lowered, folder: Path, name: str, options: Options) -> Project:
    """Write the project. Raises ExportError when hls4ml is missing or has left a layer out."""
    try:
        from hls4ml.model.graph import ModelGraph
        from hls4ml.utils.config import create_config
    except ImportError as error:
        raise ExportError(f"hls4ml does not load ({error}); pip install 'quatrefoil[hls]'") from error
    part = {} if options.part is None else {"part": options.part}
    config = create_config(str(folder), name, options.backend, io_type=f"io_{options.io}", **part)
    config["HLSConfig"] = _settings(lowered, options)
    outputs = [feature.layer for feature in lowered.outputs.values()]
    # hls4ml tells of every layer on standard output
    with contextlib.redirect_stdout(io.StringIO()):
        design = ModelGraph.from_layer_list(config, list(map(_typed, lowered.layers)), [lowered.input.layer], outputs)
        design.write()
    library = f"firmware/{name}-{design.config.get_config_value('Stamp')}.so"
    called = called_layers(folder / "firmware" / f"{name}.cpp", lowered)
    return Project(folder, name, str(config["Part"]), library, called)


def _settings(lowered: Lowered, options: Options) -> dict[str, Any]:
    """Weights are constants: rounding them to nearest costs nothing in hardware, and truncation would bias every sum.
    Sums are as wide as their terms and number need, so that none wraps around."""
    match = PRECISION.fullmatch(options.precision)
    assert match is not None
    unsigned, width, integer, modes = match.groups()
    weights = options.precision if modes else f"{unsigned}fixed<{width},{integer},RND,SAT>"
    names: dict[str, Any] = {}
    for layer in lowered.layers:
        if "formats" in layer:
            continue
        sums = "auto"
        if layer["class_name"].startswith("GlobalAverage"):  # the one sum whose width hls4ml does not find
            carry = (layer.get("in_height", 1) * layer.get("in_width", layer.get("n_in", 1)) - 1).bit_length()
            sums = f"{unsigned}fixed<{int(width) + carry},{int(integer) + carry}>"
        names[layer["name"]] = {"Precision": {"accum": sums, "weight": weights, "bias": weights}}
    model = {
        "Precision": {"default": options.precision},
        "ReuseFactor": options.reuse_factor,
        "Strategy": options.strategy.capitalize(),
    }
    return {"Model": model, "LayerName": names}


def _typed(layer: Layer) -> Layer:
    """The layer with its own formats as hls4ml's types."""
    from hls4ml.model.types import FixedPrecisionType, NamedType, RoundingMode, SaturationMode

    formats: dict[str, Format] = layer.get("formats", {})
    types = {
        key: NamedType(
            f"{layer['name']}_{key}",
            FixedPrecisionType(f.width, f.integer, f.signed, RoundingMode.RND, SaturationMode.SAT),
        )
        for key, f in formats.items()
    }
    return {key: value for key, value in layer.items() if key != "formats"} | types


def called_layers(top: Path, lowered: Lowered) -> tuple[ExportedLayer, ...]:
    """The function that computes each layer in the generated top function; a layer without one is an error."""
    calls = calls_in(top, lowered.computing, lowered.titles)
    return tuple(ExportedLayer(name, lowered.titles[name], calls[name]) for name in lowered.computing)


def calls_in(top: Path, computing: Sequence[str], titles: Mapping[str, str] | None = None) -> dict[str, str]:
    """By layer, the function that computes it in the generated top function. Raises ExportError where one is missing."""
    text = top.read_text(encoding="utf-8")
    calls = {name: function for pattern in (CALL, TRACED_CALL) for function, name in pattern.findall(text)}
    missing = [name for name in computing if name not in calls]
    if missing:
        nodes = ", ".join((titles or {}).get(name, name) for name in missing)
        raise ExportError(f"hls4ml left out {nodes}: {top} does not call {', '.join(missing)}")
    return {name: calls[name] for name in computing}
