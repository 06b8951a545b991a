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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from quatrefoil import ops
from quatrefoil.bench.networks import INT8
from quatrefoil.bench.tasks import CHAIN, NETWORK, chain, read
from quatrefoil.errors import OperatorError, QuatrefoilError
from quatrefoil.ops.text import read_call

ALL = "all"
BYTES = frozenset({"int8", "uint8"})


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
    """A list of tasks with a title, and the families that they belong to, if any.

    parts: of several suites in one, each one's name and the names of its tasks here; a task may be in several
    """

    title: str
    entries: tuple[Entry, ...]
    families: tuple[Family, ...] = ()
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def only(self, entries: Sequence[Entry]) -> Suite:
        """The same with these of its tasks alone."""
        names = {entry.name for entry in entries}
        parts = {part: tuple(name for name in those if name in names) for part, those in self.parts.items()}
        return replace(self, entries=tuple(entries), parts={part: those for part, those in parts.items() if those})

    def sections(self) -> dict[str, Any]:
        """What a report says of several suites in one: the names of each one's tasks; nothing of a single suite."""
        return {"suites": {part: list(those) for part, those in self.parts.items()}} if self.parts else {}


def names() -> list[str]:
    """The suites that come with quatrefoil."""
    folder = resources.files("quatrefoil.bench") / "suites"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def find(target: str) -> Suite:
    """The tasks that a word asks for: a suite's name or file, an operator's name, several of these with commas between
    them, or ``all``.

    An operator stands for its tasks in every suite that has no goals, and so does ``all`` for these suites. Of a task that
    several suites hold there is one; where they give one name to different tasks, the later suite's name is added. Several
    have no families and no goals. Raises QuatrefoilError where a word is neither.
    """
    words = [target] if Path(target).is_file() else [word.strip() for word in target.split(",") if word.strip()]
    sources = dict.fromkeys(name for word in words for name in (_without_goals() if word == ALL else [word]))
    found = {source: _operator(source) if _is_operator(source) else load(source) for source in sources}
    if not found:
        raise QuatrefoilError(f"{target!r} names no suite; known are {', '.join(names())}")
    if len(found) == 1:
        return next(iter(found.values()))
    title = "Every suite without goals" if words == [ALL] else ", ".join(Path(word).stem for word in words)
    return _joined(found, title)


def _is_operator(word: str) -> bool:
    return word in ops.SPECS and word not in names()


def _without_goals() -> list[str]:
    return [name for name in names() if not load(name).families]


def _operator(op: str) -> Suite:
    everything = _joined({name: load(name) for name in _without_goals()}, f"{op} in every suite without goals")
    return everything.only([entry for entry in everything.entries if entry.text.startswith(f"{op} ")])


def _joined(suites: Mapping[str, Suite], title: str) -> Suite:
    """Suites as one, by name."""
    by_text: dict[str, Entry] = {}
    taken: set[str] = set()
    parts: dict[str, tuple[str, ...]] = {}
    for source, suite in suites.items():
        label = Path(source).stem if Path(source).stem not in parts else source
        for entry in suite.entries:
            known = by_text.get(entry.text)
            if known is None:
                name = entry.name if entry.name not in taken else f"{entry.name} ({label})"
                taken.add(name)
                by_text[entry.text] = Entry(name, entry.text, quick=entry.quick)
            elif entry.quick:
                by_text[entry.text] = replace(known, quick=True)
        parts[label] = tuple(dict.fromkeys(by_text[entry.text].name for entry in suite.entries))
    return Suite(title, tuple(by_text.values()), parts=parts)


def dtypes(text: str) -> set[str]:
    """The number formats of a task, by its text form: those of its operators' first inputs, and where that is of bytes
    those of weights of bytes too; networks are of float32, or of bytes."""
    if text.startswith(NETWORK):
        return set(BYTES) if text.endswith(INT8) else {"float32"}
    problems = chain(text) if CHAIN.fullmatch(text) else [ops.parse(text)]
    found = {problem.dtype for problem in problems}
    if found & BYTES:
        found |= {tensor.dtype for problem in problems for tensor in problem.inputs if tensor is not None} & BYTES
    return found


def retyped(text: str, dtype: str) -> str:
    """A single problem's text with ``dtype`` in the place of its own number format. Raises QuatrefoilError where the
    operator does not have it, and for chains and networks."""
    if text.startswith(NETWORK) or CHAIN.fullmatch(text):
        raise QuatrefoilError(f"a chain or a network keeps its number format; {dtype} is for single problems")
    problem, call = ops.parse(text), read_call(text)
    inputs = [
        tensor if tensor is None or tensor.dtype != problem.dtype else replace(tensor, dtype=dtype)
        for tensor in call.inputs
    ]
    try:
        return call.settled(ops.canonical(call.op, inputs, call.attributes, call.outputs)).text
    except OperatorError as error:
        raise QuatrefoilError(f"the problem cannot be of {dtype}: {error}") from None


def load(source: str | Path) -> Suite:
    """A suite by its name (one of ``names()``) or from a file. Raises QuatrefoilError that names the faulty entry."""
    if isinstance(source, str) and source in names():
        text = (resources.files("quatrefoil.bench") / "suites" / f"{source}.toml").read_text()
    else:
        try:
            text = Path(source).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise QuatrefoilError(
                f"the suite {str(source)!r} cannot be read ({error}); known are {', '.join(names())}, the operators "
                f"{', '.join(ops.SPECS)}, and {ALL}"
            ) from None
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
