"""Which fixed-point formats a network is computed in: a default for everything, and what single layers have of their own.

Kept as JSON: formats by their text (``numerics.Fixed``), layers and inputs by their names in the model.

    {"value": "fixed<16,6,RND,SAT>", "weight": "fixed<16,2,RND,SAT>", "accumulator": "exact",
     "table": "fixed<18,2,RND,SAT>", "table_size": 1024,
     "inputs": {"image": "ufixed<8,0,RND,SAT>"},
     "layers": {"conv1": {"weight": "fixed<8,1,RND,SAT>", "result": "fixed<10,4,RND,SAT>"}}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from quatrefoil.errors import OperatorError
from quatrefoil.models.graph import ModelError
from quatrefoil.numerics import Fixed

EXACT: Final = "exact"
"""An accumulator that keeps every bit of the products and cannot overflow, as far as 62 bits allow."""

Accumulator = Fixed | str

SIXTEEN: Final = Fixed(16, 6, "RND", "SAT")
EIGHTEEN: Final = Fixed(18, 2, "RND", "SAT")


@dataclass(frozen=True, slots=True)
class LayerPrecision:
    """What a layer has of its own; None: the network's default.

    weight       of w, and of r in recurrent layers
    bias         left out by the network too: the format of the weights with as many integer bits as the biases need
    accumulator  a format, or "exact"
    result       of what the layer gives
    sum          of what goes into the layer's activation, where that is one of its own; left out: ``result``
    table        of the functions that it looks up, of ``table_size`` entries
    reuse        the order of additions (ops/fixed.py)
    """

    weight: Fixed | None = None
    bias: Fixed | None = None
    accumulator: Accumulator | None = None
    result: Fixed | None = None
    sum: Fixed | None = None
    table: Fixed | None = None
    table_size: int | None = None
    reuse: int | None = None


NOTHING: Final = LayerPrecision()


@dataclass(frozen=True)
class Precision:
    """The formats of a network. ``value``: of inputs and results that name none."""

    value: Fixed = SIXTEEN
    weight: Fixed = SIXTEEN
    bias: Fixed | None = None
    accumulator: Accumulator = EXACT
    table: Fixed = EIGHTEEN
    table_size: int = 1024
    reuse: int = 1
    inputs: Mapping[str, Fixed] = field(default_factory=dict)
    layers: Mapping[str, LayerPrecision] = field(default_factory=dict)

    @classmethod
    def of(cls, form: Fixed | str) -> Precision:
        """One format for everything but exact sums and tables; weights are rounded to nearest and saturate."""
        value = form if isinstance(form, Fixed) else Fixed.parse(form)
        return cls(value, replace(value, rounding="RND", overflow="SAT"))

    def layer(self, name: str) -> LayerPrecision:
        return self.layers.get(name, NOTHING)

    def text(self) -> str:
        """As JSON."""
        found = {key: _plain(getattr(self, key)) for key in _DEFAULTS if getattr(self, key) is not None}
        found["inputs"] = {name: form.text for name, form in self.inputs.items()}
        found["layers"] = {
            name: {
                item.name: _plain(value) for item in fields(layer) if (value := getattr(layer, item.name)) is not None
            }
            for name, layer in self.layers.items()
        }
        return json.dumps(found, indent=2) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        Path(path).write_text(self.text(), "utf-8")

    @classmethod
    def parse(cls, text: str, source: str) -> Precision:
        """From JSON; ``source`` names it in errors. Raises ModelError that names the key."""
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise ModelError(f"{source} is no JSON file: {error}") from None
        if not isinstance(found, dict):
            raise ModelError(f"{source}: it holds {type(found).__name__}; write an object of formats")
        defaults = _read(found, (*_DEFAULTS, "inputs", "layers"), source)
        inputs = _read(found.get("inputs") or {}, None, f"{source}: inputs")
        layers = found.get("layers") or {}
        if not isinstance(layers, dict) or not all(isinstance(layer, dict) for layer in layers.values()):
            raise ModelError(f"{source}: layers has to be an object of objects")
        known = tuple(item.name for item in fields(LayerPrecision))
        made = {
            name: LayerPrecision(**_read(layer, known, f"{source}: layer {name!r}")) for name, layer in layers.items()
        }
        return cls(**{k: v for k, v in defaults.items() if k in _DEFAULTS}, inputs=inputs, layers=made)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Precision:
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from None
        return cls.parse(text, str(path))


_DEFAULTS: Final = ("value", "weight", "bias", "accumulator", "table", "table_size", "reuse")
_COUNTS: Final = ("table_size", "reuse")


def _plain(value: Any) -> Any:
    return value.text if isinstance(value, Fixed) else value


def _read(found: Mapping[str, Any], known: tuple[str, ...] | None, source: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in found.items():
        if known is not None and key not in known:
            raise ModelError(f"{source}: unknown key {key!r}; known are {', '.join(known)}")
        if key in ("inputs", "layers") and known is not None:
            continue
        if known is not None and key in _COUNTS:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ModelError(f"{source}: {key} is {value!r}; give a whole number from 1")
            made[key] = value
        elif known is not None and key == "accumulator" and value == EXACT:
            made[key] = EXACT
        else:
            try:
                made[key] = Fixed.parse(value)
            except OperatorError as error:
                raise ModelError(f"{source}: {key}: {error}") from None
    return made
