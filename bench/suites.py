"""Suites: TOML files that list tasks by their text form, named, and in families where there is a goal to meet.

title = "Convolutions of ResNet-50"
[[problem]]
name = "3x3 64@56"
text = "conv float32[1x64x56x56],float32[64x64x3x3] pads=1x1x1x1"

[[family]]
name = "3x3 stride 1"
goal = 1.15               # the best accurate peer's time / ours, geometric mean over the family's tasks
goal_major = 2.3          # the same against the best of torch, ONNX Runtime and OpenVINO
most_microseconds = 1.0   # in place of goal: no call of ours takes longer

[[family.problem]]
name = "3x3 64@56"
text = "conv float32[1x64x56x56],float32[64x64x3x3] pads=1x1x1x1"
quick = true              # one of the few that stand for the family
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from quatrefoil.bench.tasks import read
from quatrefoil.errors import QuatrefoilError


@dataclass(frozen=True, slots=True)
class Entry:
    """One task of a suite, in canonical text."""

    name: str
    text: str
    family: str = ""
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """Tasks that have a goal together; see the module."""

    name: str
    goal: float | None
    goal_major: float | None
    most_microseconds: float | None


@dataclass(frozen=True, slots=True)
class Suite:
    """A list of tasks with a title, and the families that they belong to, if any."""

    title: str
    entries: tuple[Entry, ...]
    families: tuple[Family, ...] = ()


def names() -> list[str]:
    """The suites that come with quatrefoil."""
    folder = resources.files("quatrefoil.bench") / "suites"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load(source: str | Path) -> Suite:
    """A suite by its name (one of ``names()``) or from a file. Raises QuatrefoilError that names the faulty entry."""
    if isinstance(source, str) and source in names():
        text = (resources.files("quatrefoil.bench") / "suites" / f"{source}.toml").read_text()
    else:
        try:
            text = Path(source).read_text()
        except (OSError, UnicodeDecodeError) as error:
            known = ", ".join(names())
            raise QuatrefoilError(f"the suite {str(source)!r} cannot be read ({error}); known are {known}") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise QuatrefoilError(f"the suite {str(source)!r} is no TOML: {error}") from None
    families, entries = [], list(_entries(data, f"the suite {str(source)!r}"))
    for section in data.get("family", []):
        family = _family(section, f"the suite {str(source)!r}")
        families.append(family)
        entries += _entries(section, f"the family {family.name!r} of the suite {str(source)!r}", family.name)
    if not entries:
        raise QuatrefoilError(f"the suite {str(source)!r} lists no problems; write [[problem]] with name and text")
    return Suite(str(data.get("title", source)), tuple(entries), tuple(families))


def _family(section: Mapping[str, Any], where: str) -> Family:
    goals = {key: section.get(key) for key in ("goal", "goal_major", "most_microseconds")}
    for key, value in goals.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0):
            raise QuatrefoilError(f"{key} in {where} is {value!r}; write a number above 0")
    unknown = section.keys() - goals.keys() - {"name", "problem"}
    if unknown or not isinstance(section.get("name"), str):
        raise QuatrefoilError(f"a family of {where} has no name or unknown keys ({', '.join(sorted(unknown))})")
    return Family(section["name"], **goals)


def _entries(section: Mapping[str, Any], where: str, family: str = "") -> Iterator[Entry]:
    problems = section.get("problem", [])
    if not isinstance(problems, list):
        raise QuatrefoilError(f"{where} lists no problems; write [[problem]] with name and text")
    for number, item in enumerate(problems, 1):
        line = item.get("text") if isinstance(item, dict) else None
        if not isinstance(line, str):
            raise QuatrefoilError(f"problem {number} of {where} has no text")
        try:
            text = read(line).text
        except QuatrefoilError as error:
            raise QuatrefoilError(f"problem {number} of {where}: {error}") from None
        yield Entry(str(item.get("name", text)), text, family, item.get("quick") is True)
