"""Progress on standard error: a bar with an estimate on a terminal, a line for each step anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from quatrefoil.cli.output import stderr

Advance = Callable[[str], None]


@contextmanager
def steps(title: str, weights: int | Sequence[float]) -> Iterator[Advance]:
    """Gives a function to call as each step begins, with the step's name.

    weights: how many steps there are, or how long each takes beside the others; the estimate goes by that.
    """
    shares = [1.0] * weights if isinstance(weights, int) else list(weights)
    if sys.stderr.isatty():
        with _bar(title, shares) as advance:
            yield advance
    else:
        yield _lines(title, shares)


@contextmanager
def _bar(title: str, shares: list[float]) -> Iterator[Advance]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[number]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[step]}"),
    )
    begun = 0
    with Progress(*columns, console=stderr(), transient=True) as progress:
        task = progress.add_task(title, total=sum(shares), step="", number="")

        def advance(step: str) -> None:
            nonlocal begun
            progress.update(task, completed=sum(shares[:begun]), step=step, number=f"{begun + 1}/{len(shares)}")
            begun += 1

        yield advance


def _lines(title: str, shares: list[float]) -> Advance:
    console = stderr()
    begun, began = 0, time.monotonic()

    def advance(step: str) -> None:
        nonlocal begun
        done = sum(shares[:begun])
        seconds = (time.monotonic() - began) / done * (sum(shares) - done) if done else 0.0
        left = f" (about {seconds:.0f} s left)" if seconds >= 1 else ""
        console.print(f"{title} {begun + 1}/{len(shares)}: {step}{left}", markup=False)
        begun += 1

    return advance
