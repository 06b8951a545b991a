"""A whole model on backends and peers: the same inputs, the results compared, then timed side by side."""

from __future__ import annotations

from pathlib import Path

from quatrefoil.bench import runner
from quatrefoil.bench.records import Record
from quatrefoil.bench.runner import Effort, Field
from quatrefoil.bench.tasks import Feeds, ModelTask
from quatrefoil.bench.verify import FirstSeen

TOLERANCE = 1e-3
"""Largest difference of an output from the one compared with, as a share of its largest value."""


def compare(field: Field, path: str | Path, feeds: Feeds, effort: Effort) -> list[Record]:
    """A record for each contender of the field, whose peers should be its first. Results are compared with those of the
    first contender that gives any; one of ours that differs by more than 1e-3 of the largest value is refused and not
    timed."""
    task = ModelTask(f"model {Path(path).name}", path=str(path), given=feeds)
    return field.compare(Path(path).name, task, lambda task: FirstSeen(TOLERANCE), effort)


def method(field: Field, effort: Effort) -> list[str]:
    """How it is measured, in sentences for reports."""
    return [
        *runner.method(field, effort),
        "What stands for the oracle of a whole model is the result of the first contender that gives one.",
    ]
