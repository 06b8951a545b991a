"""What every subcommand shares: where text goes, JSON, exit codes.

Results go to standard output; progress, remarks and errors to standard error. With ``--json`` (of the bench
``--json -``) standard output holds one JSON document and nothing else. NO_COLOR is honoured; a pipe gets wide lines without colour.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

OK, FAILED, BAD_USE = 0, 1, 2

PIPE_WIDTH = 200


def stdout() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def stderr() -> Console:
    return Console(stderr=True, width=None if sys.stderr.isatty() else PIPE_WIDTH, highlight=False)


def say_json(data: Any) -> None:
    """One JSON document on standard output; NumPy's numbers and arrays become plain ones, NaN and infinity text."""
    print(json.dumps(_plain(data), indent=1, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


class PlainTable:
    """A table whose cells are taken as they are, square brackets and all."""

    def __init__(self, title: str, columns: tuple[str, ...], right: tuple[str, ...]) -> None:
        self.rich = Table(
            title=title, title_justify="left", box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False,
            show_header=any(columns),
        )  # fmt: skip
        for name in columns:
            # figures stay in one piece; what is narrow folds names and sentences
            number = name in right
            header = name.replace(" ", "\n", 1) if number else name
            self.rich.add_column(header, justify="right" if number else "left", overflow="fold", no_wrap=number)

    def row(self, *cells: str, style: str = "", marks: Mapping[int, str] | None = None) -> None:
        """``marks`` gives single cells a style, by position."""
        texts = [Text(cell, style=(marks or {}).get(number, "")) for number, cell in enumerate(cells)]
        self.rich.add_row(*texts, style=style)

    def __rich__(self) -> Table:
        return self.rich


def table(title: str, *columns: str, right: tuple[str, ...] = ()) -> PlainTable:
    """An empty table; the columns named in ``right`` are aligned there."""
    return PlainTable(title, columns, right)


def microseconds(seconds: float | None) -> str:
    """Seconds as microseconds with three or more digits."""
    if seconds is None:
        return ""
    value = seconds * 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
