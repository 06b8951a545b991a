"""Suites: TOML files that list problems by their text form, grouped and named.

title = "Convolutions of ResNet-50"
[[problem]]
name = "3x3 64@56"
text = "conv float32[1x64x56x56],float32[64x64x3x3] pads=1x1x1x1"
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from quatrefoil import ops
from quatrefoil.errors import QuatrefoilError
from quatrefoil.problem import Problem


@dataclass(frozen=True, slots=True)
class Entry:
    """One problem of a suite."""

    name: str
    problem: Problem


@dataclass(frozen=True, slots=True)
class Suite:
    """A list of problems with a title."""

    title: str
    entries: tuple[Entry, ...]


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
    problems = data.get("problem")
    if not isinstance(problems, list) or not problems:
        raise QuatrefoilError(f"the suite {str(source)!r} lists no problems; write [[problem]] with name and text")
    entries = []
    for number, item in enumerate(problems, 1):
        line = item.get("text") if isinstance(item, dict) else None
        if not isinstance(line, str):
            raise QuatrefoilError(f"problem {number} of the suite {str(source)!r} has no text")
        try:
            problem = ops.parse(line)
        except QuatrefoilError as error:
            raise QuatrefoilError(f"problem {number} of the suite {str(source)!r}: {error}") from None
        entries.append(Entry(str(item.get("name", problem.text)), problem))
    return Suite(str(data.get("title", source)), tuple(entries))
