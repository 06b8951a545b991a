"""A report's charts, drawn with plotly: the roofline, ratios to the best as a map, families, and error against time.

Colours are those of Okabe and Ito ("Color universal design", 2008), and every contender has a symbol of its own besides.
Measured figures alone are drawn; simulated ones have a chart of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import util
from typing import Any

from quatrefoil.bench.records import Record
from quatrefoil.bench.roofline import Ceilings

COLOURS = ("#009E73", "#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#999999")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "star", "hexagon", "x")
INK, LINES = "#808080", "rgba(128,128,128,.3)"
"""Legible on light and on dark pages."""
NO_ERROR = 1e-9
"""Where an error of zero stands on a logarithmic axis."""
NEAR_TO_FAR = ((0, "#bfe5d8"), (0.15, "#f4f1e6"), (1, "#e69f00"))
"""A map's colours, from the best to eight times its time: light enough for dark figures, which alone carry the meaning."""
ROW = 20
"""Pixels of a task in a map."""


def available() -> bool:
    """Whether plotly is installed: pip install 'quatrefoil[report]'."""
    return util.find_spec("plotly") is not None


def library() -> str:
    """plotly's script, which a page holds once."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def roofline(records: Sequence[Record], ceilings: Ceilings, threads: int) -> str:
    """Measured tasks by their operations for a byte, under what the machine can do at most."""
    figure = _figure("operations for each byte of inputs, weights and outputs", "Gflop/s", 460)
    rated = [record for record in records if record.measured and record.gmacs and record.bytes]
    if not rated:
        return ""
    intensities = [2 * record.macs / record.bytes for record in rated]
    first, last = min(*intensities, 0.5) / 2, max(*intensities, 100) * 2
    peak = ceilings.gflop_s * threads
    for level in ceilings.levels:
        knee = ceilings.gflop_s / level.gbyte_s
        xs = [first, knee, last] if first < knee < last else [first, last]
        figure.add_scatter(
            x=xs,
            y=[min(peak, level.gbyte_s * threads * x) for x in xs],
            mode="lines",
            line={"color": INK, "width": 1, "dash": "dot" if level.kib is None else "solid"},
            name=f"{level.name}: {level.gbyte_s * threads:.0f} GB/s",
            hoverinfo="name",
        )
    for place, contender in enumerate(_contenders(rated)):
        mine = [record for record in rated if record.contender == contender]
        figure.add_scatter(
            x=[2 * record.macs / record.bytes for record in mine],
            y=[2 * (record.gmacs or 0.0) for record in mine],
            mode="markers",
            marker=_marker(place),
            name=contender,
            text=[f"{record.name}: {record.kernel}" for record in mine],
            hovertemplate="%{text}<br>%{y:.3g} Gflop/s<extra></extra>",
        )
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    return _html(figure)


def ratio_map(records: Sequence[Record]) -> str:
    """Every task by every contender: its time over the best accurate one's."""
    names, contenders = list(dict.fromkeys(record.name for record in records)), _contenders(records)
    by = {(record.name, record.contender): record for record in records}
    values: list[list[float | None]] = []
    texts: list[list[str]] = []
    for name in names:
        row = [by.get((name, contender)) for contender in contenders]
        times = [record.measured.median if record and record.measured else None for record in row]
        accurate = [time for time, record in zip(times, row) if time and record and record.accurate is not False]
        best = min(accurate or [time for time in times if time], default=None)
        values.append([None if time is None or best is None else math.log2(max(time / best, 1e-3)) for time in times])
        rough = ["~" if record is not None and record.accurate is False else "" for record in row]
        texts.append([
            "" if time is None or best is None else f"{mark}{time / best:.2f}" for time, mark in zip(times, rough)
        ])  # fmt: skip
    figure = _figure("", "", 110 + ROW * len(names))
    figure.add_heatmap(
        z=values, x=contenders, y=names, text=texts, texttemplate="%{text}", zmin=0, zmax=3, colorscale=NEAR_TO_FAR,
        textfont={"color": "#111"}, showscale=False, xgap=2, ygap=1,
        hovertemplate="%{y}, %{x}: %{text} times the best<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", ticks="", showgrid=False)
    figure.update_xaxes(side="top", showgrid=False)
    return _html(figure)


def families(means: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Each family's geometric means: a contender's time over ours, above 1 where we are faster."""
    contenders = list(dict.fromkeys(name for _, ratios in means for name in ratios))
    figure = _figure("time over ours (geometric mean; above 1 ours is faster)", "", 120 + 34 * len(means))
    for place, contender in enumerate(contenders, 1):
        figure.add_scatter(
            x=[ratios.get(contender) for _, ratios in means],
            y=[name for name, _ in means],
            mode="markers",
            marker=_marker(place),
            name=contender,
            hovertemplate="%{y}: %{x:.2f}<extra>" + contender + "</extra>",
        )
    figure.add_vline(x=1, line_color=INK, line_width=1)
    figure.update_xaxes(type="log")
    figure.update_yaxes(autorange="reversed")
    return _html(figure)


def error_and_time(records: Sequence[Record]) -> str:
    """Each contender's error by its time over the best of the task."""
    figure = _figure("time over the best of the task", "error, as a share of the largest value", 420)
    best: dict[str, float] = {}
    for record in records:
        if record.measured:
            best[record.name] = min(best.get(record.name, math.inf), record.measured.median)
    for place, contender in enumerate(_contenders(records)):
        mine = [
            (record, record.error)
            for record in records
            if record.contender == contender
            and record.measured
            and record.error is not None
            and math.isfinite(record.error)
        ]
        figure.add_scatter(
            x=[record.measured.median / best[record.name] for record, _ in mine if record.measured],
            y=[max(error, NO_ERROR) for _, error in mine],
            mode="markers",
            marker=_marker(place),
            name=contender,
            text=[record.name for record, _ in mine],
            hovertemplate="%{text}: %{y:.1e}<extra>" + contender + "</extra>",
        )
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log", exponentformat="e")
    return _html(figure)


def times(records: Sequence[Record], simulated: bool = False) -> str:
    """Each task's times with their intervals; or simulated microseconds, which are a design's, in open symbols."""
    names, contenders = list(dict.fromkeys(record.name for record in records)), _contenders(records)
    unit = "simulated us, of the design's clock" if simulated else "us, measured"
    figure = _figure(unit, "", 120 + 26 * len(names))
    for place, contender in enumerate(contenders):
        mine = [record for record in records if record.contender == contender]
        marker, bounds = _marker(place), None
        if simulated:
            values = [record.simulated.microseconds if record.simulated else 0.0 for record in mine]
            marker["symbol"] += "-open"
        else:
            timings = [record.measured for record in mine if record.measured]
            values = [timing.median * 1e6 for timing in timings]
            spans = [timing.confidence or (timing.median, timing.median) for timing in timings]
            bounds = {
                "type": "data",
                "symmetric": False,
                "array": [span[1] * 1e6 - value for span, value in zip(spans, values)],
                "arrayminus": [value - span[0] * 1e6 for span, value in zip(spans, values)],
                "thickness": 1.5,
                "width": 3,
            }
        figure.add_scatter(
            x=values,
            y=[record.name for record in mine],
            mode="markers",
            name=contender,
            error_x=bounds,
            marker=marker,
            text=[record.kernel for record in mine],
            hovertemplate="%{y}: %{x:.4g} us<br>%{text}<extra>" + contender + "</extra>",
        )
    figure.update_xaxes(type="log")
    figure.update_yaxes(autorange="reversed")
    return _html(figure)


def scatter(across: str, up: str, groups: Mapping[str, Sequence[tuple[float, float, str]]]) -> str:
    """Points on two logarithmic axes, (x, y, what it is), in groups by name."""
    figure = _figure(across, up, 480)
    for place, (name, points) in enumerate(groups.items()):
        figure.add_scatter(
            x=[x for x, _, _ in points],
            y=[y for _, y, _ in points],
            text=[text for _, _, text in points],
            mode="markers",
            marker=_marker(place),
            name=name,
            hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra>" + name + "</extra>",
        )
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    return _html(figure)


def _marker(place: int) -> dict[str, Any]:
    colour, symbol = COLOURS[place % len(COLOURS)], SYMBOLS[place % len(SYMBOLS)]
    return {"color": colour, "symbol": symbol, "size": 8, "line": {"width": 0.5, "color": INK}}


def _contenders(records: Sequence[Record]) -> list[str]:
    """Ours first, then peers in their order."""
    return list(dict.fromkeys(record.contender for record in sorted(records, key=lambda record: not record.ours)))


def _figure(across: str, up: str, height: int) -> Any:
    from plotly import graph_objects

    figure = graph_objects.Figure()
    figure.update_layout(
        height=height,
        margin={"l": 10, "r": 10, "t": 40, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "family": "system-ui, sans-serif", "size": 12},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        xaxis_title=across,
        yaxis_title=up,
        bargap=0.25,
    )
    figure.update_xaxes(gridcolor=LINES, zerolinecolor=LINES, automargin=True)
    figure.update_yaxes(gridcolor=LINES, zerolinecolor=LINES, automargin=True)
    return figure


def _html(figure: Any) -> str:
    """The chart without plotly's script, in the width of the page."""
    settings = {"displayModeBar": False, "responsive": True}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=settings))
