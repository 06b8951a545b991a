"""A self-contained HTML page of headings, sentences, tables and bars: no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from quatrefoil.errors import QuatrefoilError

STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #3b7dd8; --ours: #2a9d6f; --quiet: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p { max-width: 60rem; } .quiet { color: var(--quiet); }
table { border-collapse: collapse; margin: .8rem 0; font-size: .9rem; }
caption { text-align: left; color: var(--quiet); padding-bottom: .3rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.simulated, th.simulated { background: #e9a23b22; } td.bad { color: #c0392b; font-weight: 600; }
code { font-size: .88em; } .wide { overflow-x: auto; } figure { margin: .8rem 0; }
figcaption { font-size: .9rem; padding-bottom: .3rem; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
""".strip()

Cell = str | int | float | None


class Page:
    """Parts are added in order; ``write`` makes the file."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]
        if subtitle:
            self._parts.append(f'<p class="quiet">{escape(subtitle)}</p>')

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, quiet: bool = False) -> None:
        style = "quiet" if quiet else ""
        self._parts.append(f'<p class="{style}">{escape(text)}</p>')

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[Cell]],
        *,
        caption: str = "",
        numbers: Iterable[str] = (),
        simulated: Iterable[str] = (),
    ) -> None:
        """``numbers`` names the columns that are aligned right, ``simulated`` those whose figures were not measured:
        they stand on a background of their own."""
        classes = [
            " ".join(kind for kind, names in (("number", set(numbers)), ("simulated", set(simulated))) if name in names)
            for name in columns
        ]
        head = "".join(f'<th class="{kind}">{escape(name)}</th>' for name, kind in zip(columns, classes))
        body = "".join(
            "<tr>" + "".join(f'<td class="{kind}">{_text(cell)}</td>' for cell, kind in zip(row, classes)) + "</tr>\n"
            for row in rows
        )
        said = f"<caption>{escape(caption)}</caption>" if caption else ""
        self._parts.append(
            f'<div class="wide"><table>{said}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
        )

    def bars(self, caption: str, values: Sequence[tuple[str, float, bool]], unit: str) -> None:
        """Horizontal bars on one axis from 0: (label, value, whether it is ours). All have to be of one kind."""
        if not values:
            return
        label, width, height = 190, 420, 22
        longest = max(value for _, value, _ in values) or 1.0
        lines = []
        for number, (name, value, ours) in enumerate(values):
            y = number * height
            colour = "--ours" if ours else "--bar"
            length = max(1.0, width * value / longest)
            lines.append(
                f'<text x="{label - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
                f'<rect x="{label}" y="{y + 4}" width="{length:.1f}" height="14" rx="2" '
                f'fill="var({colour})"/>'
                f'<text x="{label + length + 6:.1f}" y="{y + 15}">{escape(figure(value))} {escape(unit)}</text>'
            )
        self._figure(caption, label + width + 130, len(values) * height, lines)

    def pictures(self, caption: str, images: Sequence[np.ndarray], labels: Sequence[str]) -> None:
        """Small grey pictures, (H, W) with 0 for the background and 1 for ink, each with a label below."""
        pixel, gap = 7, 12
        parts, left, bottom = [], 0, 0
        for image, label in zip(images, labels):
            height, width = image.shape
            cells = "".join(
                f'<rect x="{left + x * pixel}" y="{y * pixel}" width="{pixel}" height="{pixel}" opacity="{ink:.2f}"/>'
                for (y, x), ink in np.ndenumerate(image)
                if ink > 0
            )
            parts.append(f'<g fill="currentColor">{cells}</g>')
            middle, base = left + width * pixel / 2, height * pixel + 18
            parts.append(f'<text x="{middle}" y="{base}" text-anchor="middle">{escape(label)}</text>')
            left, bottom = left + width * pixel + gap, max(bottom, base + 4)
        self._figure(caption, left, bottom, parts)

    def _figure(self, caption: str, width: float, height: float, parts: Sequence[str]) -> None:
        self._parts.append(
            f'<figure class="wide"><figcaption class="quiet">{escape(caption)}</figcaption>'
            f'<svg width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{escape(caption)}">'
            f"{''.join(parts)}</svg></figure>"
        )

    def write(self, path: Path) -> None:
        """Raises QuatrefoilError where the file cannot be written."""
        text = (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(self._title)}</title>\n'
            f'<meta name="viewport" content="width=device-width">\n<style>\n{STYLE}\n</style></head>\n<body>\n'
            + "\n".join(self._parts)
            + "\n</body></html>\n"
        )
        write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """A file with this text, its folder made where there is none. Raises QuatrefoilError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise QuatrefoilError(f"{path} cannot be written: {error}") from None


def figure(value: float) -> str:
    """A number with three or more digits that mean something, thousands separated."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return figure(cell)
    return f"{cell:,}" if isinstance(cell, int) else escape(cell)
