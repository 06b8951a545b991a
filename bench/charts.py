"""A report's charts, drawn with plotly: the roofline, ratios to the best as a map, families, error against time, nodes;
a simulated chip's: the parts of its cycles, its roofline, its energy; and a search's: its progress, its settings.

Colours are those of Okabe and Ito ("Color universal design", 2008), and every contender has a symbol of its own besides.
Measured figures alone are drawn; simulated ones have a chart of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from itertools import accumulate
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
"""Pixels of a task in a map, and of a node."""
LABEL = 30
"""Characters of a row's name beside a breakdown; all of it shows above the bar."""
LANE = 13
"""Pixels of a contender in a family."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A contender's geometric mean over a family's tasks of its time over ours, with Student's 95 % interval of the
    logarithms; None for fewer than three tasks."""

    family: str
    contender: str
    tasks: int
    ratio: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Bar:
    """A node's microseconds, and the least that its limit allows; None where it has none."""

    label: str
    microseconds: float
    limit: float | None
    about: str


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
        name = f"{level.name}: {level.gbyte_s * threads:.0f} GB/s"
        _roof(figure, name, peak, level.gbyte_s * threads, (first, last), "dot" if level.kib is None else "solid")
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


@dataclass(frozen=True, slots=True)
class Rate:
    """A simulated layer's operations for a byte over the port to DRAM, its operations in a cycle, and its share of all
    cycles, which its symbol grows with; of a kind that has a colour."""

    label: str
    kind: str
    intensity: float
    rate: float
    share: float


def chip_roofline(rates: Sequence[Rate], peak: float, bytes_per_cycle: float) -> str:
    """Simulated layers under what the design's array (``peak`` operations a cycle) and its port to DRAM allow."""
    figure = _figure("operations for each byte over the port to DRAM", "SIMULATED operations a cycle", 460)
    xs = [rate.intensity for rate in rates]
    span = (min(*xs, peak / bytes_per_cycle) / 3, max(*xs, peak / bytes_per_cycle) * 3)
    name = f"array {peak:,.0f} operations, DRAM {bytes_per_cycle:,.0f} bytes a cycle"
    _roof(figure, name, peak, bytes_per_cycle, span, "solid")
    for place, kind in enumerate(dict.fromkeys(rate.kind for rate in rates)):
        mine = [rate for rate in rates if rate.kind == kind]
        marker = _marker(place)
        marker["symbol"] += "-open"
        marker["size"] = [7 + 25 * math.sqrt(rate.share) for rate in mine]
        marker["line"] = {"width": 1.8}
        figure.add_scatter(
            x=[rate.intensity for rate in mine],
            y=[rate.rate for rate in mine],
            mode="markers",
            marker=marker,
            name=kind,
            text=[rate.label for rate in mine],
            hovertemplate="%{text}<br>%{y:,.4g} operations a cycle, %{x:,.4g} for each byte<extra></extra>",
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


def families(means: Sequence[Mean]) -> str:
    """Each family's geometric means with their intervals: a contender's time over ours, above 1 where we are faster."""
    names = list(dict.fromkeys(mean.family for mean in means))
    contenders = list(dict.fromkeys(mean.contender for mean in means))
    rows = {name: row for row, name in enumerate(names)}
    height = 120 + len(names) * max(34, LANE * len(contenders))
    figure = _figure("time over ours; above 1 ours is faster", "", height)
    for place, contender in enumerate(contenders):
        mine = [mean for mean in means if mean.contender == contender]
        lane = 0.75 * ((place + 0.5) / len(contenders) - 0.5)
        spans = [mean.interval or (mean.ratio, mean.ratio) for mean in mine]
        figure.add_scatter(
            x=[mean.ratio for mean in mine],
            y=[rows[mean.family] + lane for mean in mine],
            mode="markers",
            marker=_marker(place + 1),
            name=contender,
            error_x=_bounds([mean.ratio for mean in mine], spans),
            text=[f"{mean.family}: {mean.ratio:.2f}, of {mean.tasks} tasks" for mean in mine],
            hovertemplate="%{text}<extra>" + contender + "</extra>",
        )
    figure.add_vline(x=1, line_color=INK, line_width=1)
    figure.update_xaxes(
        type="log", **_ratio_ticks([bound for mean in means for bound in mean.interval or (mean.ratio,)])
    )
    figure.update_yaxes(
        range=[len(names) - 0.5, -0.5], tickvals=list(rows.values()), ticktext=names, showgrid=False, zeroline=False
    )
    for row in range(1, len(names)):
        figure.add_hline(y=row - 0.5, line_color=LINES, line_width=1)
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
            bounds = _bounds(values, [(low * 1e6, high * 1e6) for low, high in spans])
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


def search(up: str, numbers: Sequence[float], figures: Sequence[float], larger: bool) -> str:
    """A search's figures by the number of their trial, and the best until then."""
    figure = _figure("trial", up, 360)
    figure.add_scatter(x=numbers, y=figures, mode="markers", marker=_marker(1), name="trial")
    best = list(accumulate(figures, max if larger else min))
    line = {"color": COLOURS[0], "shape": "hv", "width": 2}
    figure.add_scatter(x=numbers, y=best, mode="lines", line=line, name="best")
    return _html(figure)


def slices(up: str, columns: Mapping[str, tuple[Sequence[float], bool]], figures: Sequence[float]) -> str:
    """A figure by each of several values side by side; each name with the values, and whether their axis is logarithmic."""
    figure = _figure("", "", 320)
    share = 1 / len(columns)
    for place, (name, (values, log)) in enumerate(columns.items(), 1):
        axis = "" if place == 1 else str(place)
        figure.add_scatter(x=values, y=figures, mode="markers", marker=_marker(1), xaxis=f"x{axis}", showlegend=False)
        span = [share * (place - 1) + 0.02, share * place - 0.01]
        settings = {"domain": span, "title": {"text": name}, "gridcolor": LINES, "zeroline": False, "anchor": "y"}
        figure.update_layout({f"xaxis{axis}": {**settings, "type": "log" if log else "linear", "nticks": 5}})
    figure.update_yaxes(title={"text": up})
    return _html(figure)


def nodes(bars: Sequence[Bar], simulated: bool = False) -> str:
    """A model's nodes in their order, with their limits; or simulated ones, hatched."""
    unit = "simulated us, of the design's clock" if simulated else "us, measured"
    figure = _figure(unit, "", 110 + ROW * len(bars))
    hatched = {"pattern": {"shape": "/", "fgcolor": INK, "size": 6}} if simulated else {}
    figure.add_bar(
        x=[bar.microseconds for bar in bars],
        y=[bar.label for bar in bars],
        orientation="h",
        marker={"color": COLOURS[5 if simulated else 0], **hatched},
        name="simulated" if simulated else "measured",
        text=[bar.about for bar in bars],
        textposition="none",
        hovertemplate="%{y}: %{x:.4g} us<br>%{text}<extra></extra>",
    )
    limited = [bar for bar in bars if bar.limit is not None]
    if limited:
        figure.add_scatter(
            x=[bar.limit for bar in limited],
            y=[bar.label for bar in limited],
            mode="markers",
            marker={"symbol": "line-ns", "size": ROW - 6, "line": {"width": 2.5, "color": COLOURS[2]}},
            name="limit of a direct evaluation",
            hovertemplate="%{y}: %{x:.4g} us at least<extra></extra>",
        )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(showlegend=True)
    return _html(figure)


def breakdown(labels: Sequence[str], parts: Mapping[str, Sequence[int]], unit: str) -> str:
    """Rows that consist of parts: the parts of a row stand one after the other. Two buttons show rows as they are, or
    all of one length. labels: one for each row; parts: eight by name, a figure for each row."""
    figure, rows = _figure(unit, "", 220 + ROW * len(labels)), list(range(len(labels)))
    colours = (COLOURS[5], COLOURS[0], COLOURS[1], COLOURS[4], COLOURS[3], COLOURS[2], COLOURS[6], COLOURS[7])
    for colour, (name, values) in zip(colours, parts.items(), strict=True):
        figure.add_bar(
            x=list(values),
            y=rows,
            orientation="h",
            name=name,
            marker={"color": colour},
            customdata=list(zip(labels, values)),
            hovertemplate="%{customdata[0]}: %{customdata[1]:,} " + unit + "<extra>" + name + "</extra>",
        )
    shown = [label if len(label) <= LABEL else f"{label[: LABEL - 1]}…" for label in labels]
    # a row is left free above the first: on paper the legend lies there
    figure.update_yaxes(range=[len(rows) - 0.5, -1.5], showgrid=False, zeroline=False, tickvals=rows, ticktext=shown)
    buttons = [
        {"label": label, "method": "relayout", "args": [{"barnorm": norm, "xaxis.title.text": title}]}
        for label, norm, title in (("cycles", "", unit), ("shares", "percent", f"% of a layer's {unit}"))
    ]
    figure.update_layout(
        barmode="stack",
        legend={"traceorder": "normal"},
        updatemenus=[
            {"type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "y": 0, "yanchor": "top",
             "pad": {"t": 46}, "bgcolor": "rgba(128,128,128,.12)", "bordercolor": LINES, "buttons": buttons}
        ],
    )  # fmt: skip
    return _html(figure)


def bands(values: Mapping[str, tuple[float, float]], unit: str) -> str:
    """Figures that are known from a low to a high end: bars to the middle, and lines from end to end."""
    figure = _figure(unit, "", 110 + 30 * len(values))
    middles = [(low + high) / 2 for low, high in values.values()]
    figure.add_bar(
        x=middles,
        y=list(values),
        orientation="h",
        marker={"color": COLOURS[5]},
        error_x=_bounds(middles, list(values.values())) | {"color": INK},
        customdata=list(values.values()),
        hovertemplate="%{y}: %{customdata[0]:,.4g} to %{customdata[1]:,.4g}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return _html(figure)


def _roof(figure: Any, name: str, peak: float, bandwidth: float, span: tuple[float, float], dash: str) -> None:
    """What operations for a byte, from one end of ``span`` to the other, allow at most: bandwidth, then the peak."""
    first, last = span
    knee = peak / bandwidth
    xs = [first, knee, last] if first < knee < last else [first, last]
    figure.add_scatter(
        x=xs,
        y=[min(peak, bandwidth * x) for x in xs],
        mode="lines",
        line={"color": INK, "width": 1, "dash": dash},
        name=name,
        hoverinfo="name",
    )


def _bounds(values: Sequence[float], spans: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Error bars from each span's low end to its high one."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, (_, high) in zip(values, spans)],
        "arrayminus": [value - low for value, (low, _) in zip(values, spans)],
        "thickness": 1.5,
        "width": 3,
    }


def _ratio_ticks(values: Sequence[float]) -> dict[str, Any]:
    """Marks of a logarithmic axis that holds these ratios and 1: plain numbers, and few."""
    least, most = min(*values, 1.0), max(*values, 1.0)
    steps = (
        (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if most / least > 8 else (0.2, 0.3, 0.5, 0.8, 1, 1.25, 1.5, 2, 3, 5)
    )
    marks = [step for step in steps if least / 1.3 <= step <= most * 1.3]
    return {"tickangle": 0, "tickvals": marks, "ticktext": [f"{mark:g}" for mark in marks]}


def _marker(place: int) -> dict[str, Any]:
    """A colour and a symbol, which together are one contender's alone: once all colours are taken, symbols move on."""
    colour, symbol = COLOURS[place % len(COLOURS)], SYMBOLS[(place + place // len(COLOURS)) % len(SYMBOLS)]
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
