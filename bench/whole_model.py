"""A whole model on backends and peers: the same inputs, the results compared, then timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from quatrefoil.bench.records import Record
from quatrefoil.bench.runner import Effort, Field
from quatrefoil.bench.tasks import Feeds, ModelTask
from quatrefoil.bench.verify import FirstSeen

TOLERANCE = 1e-3
"""Largest difference of an output from the one compared with, as a share of its largest value."""


def run_model(
    path: str | Path,
    feeds: Feeds,
    on: Sequence[str] = ("cpu",),
    peers: Sequence[str] = (),
    *,
    threads: int = 1,
    effort: Effort = Effort(),  # noqa: B008 - frozen
    begin: Callable[[str], None] | None = None,
) -> list[Record]:
    """A record for each contender, peers first. Results are compared with those of the first contender that gives
    any; one of ours that differs by more than 1e-3 of the largest value is refused and not timed."""
    if begin is not None:
        begin(Path(path).name)
    task = ModelTask(f"model {Path(path).name}", path=str(path), given=feeds)
    with Field([*peers, *on], threads) as field:
        return field.compare(Path(path).name, task, lambda task: FirstSeen(TOLERANCE), effort)
