"""A self-contained HTML page of headings, sentences, tables, bars and charts: nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from quatrefoil.errors import QuatrefoilError

PRINTED_WIDTH = 940
"""Pixels that fit on A4 and on letter paper, laid across."""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #3b7dd8; --ours: #2a9d6f; --quiet: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p { max-width: 60rem; } .quiet { color: var(--quiet); }
table { border-collapse: collapse; margin: .8rem 0; font-size: .9rem; }
caption { text-align: left; color: var(--quiet); padding-bottom: .3rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; } td:first-child, .sortable td { white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.simulated, th.simulated { background: #e9a23b22; } td.bad { color: #c0392b; font-weight: 600; }
code { font-size: .88em; } .wide { overflow-x: auto; } figure { margin: .8rem 0; }
figcaption { font-size: .9rem; padding-bottom: .3rem; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
.answer { font-size: 1.15rem; line-height: 1.45; } .answer b { font-variant-numeric: tabular-nums; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--bar); }
th[aria-sort=ascending] button::after { content: " \\2191"; } th[aria-sort=descending] button::after { content: " \\2193"; }
label.filter { display: block; margin: .8rem 0 0; }
label.filter input { font: inherit; padding: .15rem .4rem; width: 18rem; max-width: 100%; }
.chart { margin: .8rem 0; overflow-x: auto; }
@page { size: landscape; margin: 12mm; }
@media print {
  :root { color-scheme: light; }
  body { max-width: none; margin: 0; padding: 0; font-size: 11px; }
  h1 { font-size: 18px; } h2 { font-size: 14px; margin-top: 1.2rem; break-after: avoid; }
  .answer { font-size: 13px; margin: .3rem 0; }
  p { max-width: none; margin: .4rem 0; } thead, tr, .chart, svg { break-inside: avoid; } table { font-size: 8px; }
  th, td { padding: .15rem .35rem; }
  td:not(.number), .sortable td:not(.number) { white-space: normal; }
  table:not(.sortable) td:not(.number) { overflow-wrap: anywhere; }
  label.filter { display: none; } .wide, .chart { overflow: visible; }
}
""".strip()

SORTING = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = row => {
      const text = row.cells[column].textContent.trim();
      const number = head.classList.contains("number") ? parseFloat(text.replace(/[~,]/g, "")) : NaN;
      return isNaN(number) ? text : number;
    };
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (typeof x === typeof y) return x < y ? -1 : x > y ? 1 : 0;
      return typeof x === "number" ? -1 : 1;
    };
    const rows = [...body.rows].sort(order);
    body.append(...(descending ? rows.reverse() : rows));
  }));
}
for (const input of document.querySelectorAll("label.filter input"))
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\\s+/);
    for (const row of document.getElementById(input.dataset.table).tBodies[0].rows)
      row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
  });
""".strip()
"""Sorts a table by the column whose head is clicked (again: backwards), and hides the rows that lack a word of a filter."""

PRINTING = f"""
for (const [moment, width] of [["beforeprint", {PRINTED_WIDTH}], ["afterprint", null]])
  addEventListener(moment, () => {{
    for (const chart of document.querySelectorAll(".js-plotly-plot"))
      Plotly.relayout(chart, width ? {{ width }} : {{ autosize: true }});
  }});
""".strip()
"""Charts are drawn for the window; on paper they are drawn anew for its width."""

Cell = str | int | float | None


class Page:
    """Parts are added in order; ``write`` makes the file."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._scripts: dict[str, None] = {}
        self._libraries: dict[str, None] = {}
        self._parts = [f"<h1>{escape(title)}</h1>"]
        if subtitle:
            self._parts.append(f'<p class="quiet">{escape(subtitle)}</p>')

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, quiet: bool = False) -> None:
        style = "quiet" if quiet else ""
        self._parts.append(f'<p class="{style}">{escape(text)}</p>')

    def answer(self, sentences: Iterable[tuple[str, str]]) -> None:
        """What the page is about, at its top: each sentence with the figure that it begins with."""
        for number, rest in sentences:
            self._parts.append(f'<p class="answer"><b>{escape(number)}</b> {escape(rest)}</p>')

    def chart(self, caption: str, html: str, library: str) -> None:
        """A chart as a library made it, in HTML; ``library`` is the script that it needs, which the page holds once."""
        self._libraries.setdefault(library)
        self._scripts.setdefault(PRINTING)
        self._parts.append(f'<div class="chart"><p class="quiet">{escape(caption)}</p>{html}</div>')

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[Cell]],
        *,
        caption: str = "",
        numbers: Iterable[str] = (),
        simulated: Iterable[str] = (),
        sortable: str = "",
    ) -> None:
        """``numbers`` names the columns that are aligned right, ``simulated`` those whose figures were not measured:
        they stand on a background of their own. ``sortable``: a name of its own, for a table that can be sorted by its
        heads and filtered."""
        classes = [
            " ".join(kind for kind, names in (("number", set(numbers)), ("simulated", set(simulated))) if name in names)
            for name in columns
        ]
        heads = [f"<button>{escape(name)}</button>" if sortable else escape(name) for name in columns]
        head = "".join(f'<th class="{kind}">{text}</th>' for text, kind in zip(heads, classes))
        body = "".join(
            "<tr>" + "".join(f'<td class="{kind}">{_text(cell)}</td>' for cell, kind in zip(row, classes)) + "</tr>\n"
            for row in rows
        )
        said = f"<caption>{escape(caption)}</caption>" if caption else ""
        kind = f' class="sortable" id="{escape(sortable)}"' if sortable else ""
        if sortable:
            self._scripts.setdefault(SORTING)
            self._parts.append(
                f'<label class="filter">Only rows with <input data-table="{escape(sortable)}" type="search" '
                f'placeholder="words, such as a kernel or a task"></label>'
            )
        self._parts.append(
            f'<div class="wide"><table{kind}>{said}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
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
            f'<meta name="viewport" content="width=device-width">\n<style>\n{STYLE}\n</style>'
            + "".join(f"<script>{library}</script>\n" for library in self._libraries)
            + "</head>\n<body>\n"
            + "\n".join(self._parts)
            + "".join(f"\n<script>\n{script}\n</script>" for script in self._scripts)
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
    """A number with two or more digits that mean something, thousands separated."""
    size = abs(value)
    if 0 < size < 0.1:
        return f"{value:.2g}"
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return figure(cell)
    return f"{cell:,}" if isinstance(cell, int) else escape(cell)
