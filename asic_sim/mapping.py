"""How a layer's work is cut for the array: by a search over exact costs, or as somebody says.

    activations = "streamed"      # every layer, where nothing else is said

    [layers.conv1]
    activations = "resident"
    places = 98
    outer = "strips"

is such a file. What is left open is searched. A name of a layer is a node's in the model.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping as Dictionary
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from quatrefoil.errors import QuatrefoilError

RESIDENT, STREAMED = "resident", "streamed"
BLOCKS, STRIPS = "blocks", "strips"
CHOICES = {"activations": (RESIDENT, STREAMED), "outer": (BLOCKS, STRIPS)}
LAYERS = "layers"


class MappingError(QuatrefoilError, ValueError):
    """A mapping that is none, or that a layer cannot have; the message says what would do."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """What is said of a cut; None where it is left open.

    activations   ``resident``: they come from DRAM once for a block, as the box that its windows touch, or
                  ``streamed``: fold by fold, gathered
    places        output places of a block at most
    outer         the outer loop: ``blocks``: all strips of columns for a block, or ``strips``: all blocks for a strip
    """

    activations: str | None = None
    places: int | None = None
    outer: str | None = None

    def __post_init__(self) -> None:
        for key, choices in CHOICES.items():
            value = getattr(self, key)
            if value is not None and (not isinstance(value, str) or value not in choices):
                raise MappingError(f"mapping: {key} is {value!r}; write {' or '.join(choices)}, or leave it out")
        count = self.places
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or not 1 <= count < 2**31):
            raise MappingError(f"mapping: places is {count!r}; give a whole number from 1 on, or leave it out")

    def wish(self, native: Any) -> Any:
        """As the native search takes it."""
        return native.Wish(
            None if self.activations is None else self.activations == RESIDENT,
            self.places,
            None if self.outer is None else self.outer == STRIPS,
        )


ANY = Mapping()


@dataclass(frozen=True, slots=True)
class Mappings:
    """A mapping for every layer, and others by the layers' names."""

    everywhere: Mapping = ANY
    layers: Dictionary[str, Mapping] = field(default_factory=dict)

    def of(self, layer: str) -> Mapping:
        return self.layers.get(layer, self.everywhere)


@dataclass(frozen=True, slots=True)
class Cut:
    """How the stages of a part were cut.

    mapping   nothing is left open in it
    stages    for each: output places of a block along batch and space, blocks along each, strips of columns and slices
              of the depth
    """

    mapping: Mapping
    stages: tuple[tuple[tuple[int, ...], tuple[int, ...], int, int], ...]

    @property
    def text(self) -> str:
        """In a few words."""
        first = "x".join(map(str, self.stages[0][0])) if self.stages else "nothing"
        return f"{self.mapping.activations}, {self.mapping.outer} outside, blocks of {first}"


def mappings(given: Mappings | Mapping | Dictionary[str, Mapping] | str | os.PathLike[str] | None) -> Mappings:
    """From what ``simulate`` takes: one for all layers, some by name, or a TOML file's path. Raises MappingError."""
    if isinstance(given, Mappings):
        return given
    if given is None or isinstance(given, Mapping):
        return Mappings(given or ANY)
    if isinstance(given, Dictionary):
        return Mappings(layers=given)
    return _read(Path(given))


def _read(path: Path) -> Mappings:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise MappingError(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise MappingError(f"{path} is no TOML file: {error}") from None
    layers = values.pop(LAYERS, {})
    if not isinstance(layers, dict) or not all(isinstance(said, dict) for said in layers.values()):
        raise MappingError(f'{path}: {LAYERS} holds no tables; write [{LAYERS}."name"] and the keys below it')
    return Mappings(_mapping(values, path), {name: _mapping(said, path) for name, said in layers.items()})


def _mapping(values: Dictionary[str, Any], path: Path) -> Mapping:
    known = [each.name for each in fields(Mapping)]
    unknown = next((key for key in values if key not in known), None)
    if unknown is not None:
        raise MappingError(f"{path}: unknown key {unknown!r}; known are {', '.join(known)}, and [{LAYERS}.NAME]")
    try:
        return Mapping(**values)
    except MappingError as error:
        raise MappingError(f"{path}: {error}") from None
