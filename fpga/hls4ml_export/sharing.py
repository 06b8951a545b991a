"""How many products share a multiplier, and where weights lie, layer by layer.

    sharing = Sharing.of({"conv1": 4, "dense*": 128}, {"dense*": "resource"})
    sharing = Sharing.parse("conv1=4,dense*=128", "resource")      # or "16", or a file of sharing.toml's form

A key is the name of a node of the model, or a pattern of names (``*`` for any letters); a name goes before patterns, of which
the first that matches is taken. A TOML or JSON file has the tables ``reuse`` and ``strategy`` of such keys.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from quatrefoil.fpga.hls4ml_export.fixed_layers import Target
from quatrefoil.fpga.hls4ml_export.layers import ExportError
from quatrefoil.models.fixed.network import FixedNetwork, fixed
from quatrefoil.models.fixed.precision import LayerPrecision

AUTO: Final = "auto"
STRATEGIES: Final = ("latency", "resource")
SHARED: Final = ("fixed_conv", "fixed_rnn", "fixed_lstm", "fixed_gru")
"""Operators that multiply by weights."""


@dataclass(frozen=True)
class Sharing:
    """Reuse factors and strategies by name or pattern; 1 and "latency" where nothing matches (Quartus: "resource")."""

    reuse: Mapping[str, int] = field(default_factory=dict)
    strategy: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, reuse: int | Mapping[str, int] | str, strategy: str | Mapping[str, str] | None = None) -> Sharing:
        """One value for every layer, or values by name. reuse: text is read by ``parse``. Raises ExportError."""
        if isinstance(reuse, str):
            return cls.parse(reuse, strategy)
        return cls(_checked("reuse", _by_name(reuse)), _checked("strategy", _by_name(strategy)))

    @classmethod
    def parse(cls, text: str, strategy: str | Mapping[str, str] | None = None) -> Sharing:
        """From "16", "conv1=4,dense=128", or the name of a .toml or .json file; ``strategy`` goes before the file's."""
        if text.endswith((".toml", ".json")):
            found = _read(Path(text))
            by_name = {**found.get("strategy", {}), **_by_name(strategy)}
            return cls(_checked("reuse", found.get("reuse", {})), _checked("strategy", by_name))
        return cls.of(_whole_numbers(_pairs(text, "reuse")), strategy)

    def target(self, name: str, target: Target) -> Target:
        """What a layer of this name is exported to."""
        reuse = _of(self.reuse, name) or 1
        # hls4ml's Quartus shares with strategy resource alone
        default = "resource" if target.backend == "Quartus" and reuse > 1 else "latency"
        return replace(target, strategy=_of(self.strategy, name) or default, reuse_factor=reuse)

    def names(self, name: str) -> bool:
        """Whether a layer has a reuse factor of its own, not one of a pattern."""
        return name in self.reuse

    def check(self, network: FixedNetwork) -> None:
        """Raises ExportError for a key that no layer with weights has."""
        names = [node.name for node in network.graph.nodes if node.op in SHARED]
        for what, given in (("reuse", self.reuse), ("strategy", self.strategy)):
            for key in given:
                if key != "*" and not any(name == key or fnmatchcase(name, key) for name in names):
                    near = difflib.get_close_matches(key, names, 3, 0.4) or names
                    raise ExportError(
                        f"{what} names {key!r}; the model has no layer of that name that multiplies by weights, but "
                        f"{', '.join(near) or 'none at all'}"
                    )

    def ordered(self, network: FixedNetwork, target: Target) -> FixedNetwork:
        """The network with the additions of each layer in the order in which the design makes them, where its precision
        names none; the order shows only where an accumulator saturates."""
        orders: dict[str, int] = {}
        for node in network.graph.nodes:
            own = self.target(node.name, target)
            told = network.precision.layer(node.name).reuse or network.precision.reuse
            if node.op in SHARED and own.strategy == "resource" and own.reuse_factor > 1 and told == 1:
                orders[node.name] = own.reuse_factor
        if not orders:
            return network
        layers: dict[str, LayerPrecision] = dict(network.precision.layers)
        layers |= {name: replace(network.precision.layer(name), reuse=reuse) for name, reuse in orders.items()}
        return fixed(network.source, replace(network.precision, layers=layers))


def _of(given: Mapping[str, Any], name: str) -> Any:
    if name in given:
        return given[name]
    return next((value for key, value in given.items() if fnmatchcase(name, key)), None)


def _by_name(given: Any) -> Mapping[str, Any]:
    return {} if given is None else given if isinstance(given, Mapping) else {"*": given}


def _pairs(text: str, what: str) -> Mapping[str, str]:
    if "=" not in text:
        return {"*": text.strip()}
    pairs = {}
    for item in text.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and value):
            raise ExportError(f"{what} is {text!r}; write a value for all, or layer=value,layer=value")
        pairs[key] = value
    return pairs


def strategies(text: str | None) -> Mapping[str, str] | None:
    """From "resource" or "conv1=latency,*=resource"."""
    return None if text is None else _checked("strategy", _pairs(text, "strategy"))


def _whole_numbers(pairs: Mapping[str, str]) -> Mapping[str, int]:
    made = {}
    for key, value in pairs.items():
        if not value.isdecimal():
            raise ExportError(
                f"reuse of {key!r} is {value!r}; give a whole number from 1, layer=number pairs, {AUTO}, or a .toml or "
                ".json file"
            )
        made[key] = int(value)
    return made


def _checked(what: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    for key, value in given.items():
        if what == "reuse" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ExportError(f"reuse of {key!r} is {value!r}; give a whole number from 1")
        if what == "strategy" and value not in STRATEGIES:
            raise ExportError(f"strategy of {key!r} is {value!r}; known are {', '.join(STRATEGIES)}")
    return dict(given)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise ExportError(f"{path} is no {path.suffix[1:].upper()} file: {error}") from None
    if not isinstance(found, dict) or not set(found) <= {"reuse", "strategy"}:
        raise ExportError(f"{path}: it has to hold the tables reuse and strategy, and nothing else")
    for key, table in found.items():
        if not isinstance(table, dict):
            raise ExportError(f"{path}: {key} has to be a table of layers; write '*' for all of them")
    return found


def sharing_text(reuse: Mapping[str, int], strategy: Mapping[str, str]) -> str:
    """A TOML file that ``Sharing.parse`` reads."""
    lines = ["[reuse]", *(f"{json.dumps(name)} = {factor}" for name, factor in reuse.items()), "", "[strategy]"]
    return "\n".join([*lines, *(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in strategy.items()), ""])
