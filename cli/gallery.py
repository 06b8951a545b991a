"""``quatrefoil gallery``: the models that are trained on our operators; lists, trains and runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quatrefoil.cli.arguments import AsJson, backend_names
from quatrefoil.cli.output import FAILED, say_json, stderr, stdout, table
from quatrefoil.models.gallery import catalogue, report

app = typer.Typer(help="Models that are trained on quatrefoil's operators.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A model's name; `quatrefoil gallery list` says which.")]
Small = Annotated[bool, typer.Option("--small", help="A small size: seconds instead of minutes.")]
Folder = Annotated[Path, typer.Option("--out", help="Where checkpoints and ONNX files lie.")]
Docs = Annotated[Path, typer.Option("--docs", help="Where gallery.md and its pictures go.")]
Backends = Annotated[str, typer.Option("--backends", "-b", help="Names with commas between, or all.")]


def _say(line: str) -> None:
    stderr().print(line, markup=False, soft_wrap=True)


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """What the gallery has: each model, its data and where it comes from."""
    known = catalogue.entries().values()
    if as_json:
        say_json([{"name": e.name, "what": e.what, "data": e.data, "source": e.source} for e in known])
        return
    rows = table("", "name", "model", "data", "source")
    for each in known:
        rows.row(each.name, each.what, each.data, each.source)
    stdout().print(rows)


@app.command()
def train(name: Name, small: Small = False, out: Folder = catalogue.FOLDER, as_json: AsJson = False) -> None:
    """Train a model, and write its checkpoint and its ONNX file."""
    kept = catalogue.train(name, small, out, _say)
    beside = {each.name: each.value for each in kept.trained.beside}
    if as_json:
        say_json(
            {"name": name, "seconds": kept.seconds, "figures": kept.trained.figures, "beside": beside, "folder": out}
        )
        return
    rows = table(f"{name}, {kept.seconds:.0f} s", "figure", "value", "from", right=("value",))
    for figure, value in kept.trained.figures.items():
        rows.row(figure, f"{value:.4g}", "ours", style="bold")
    for each in kept.trained.beside:
        rows.row(each.name, f"{each.value:.4g}", each.source)
    stdout().print(rows)
    stdout().print(f"written to {catalogue.checkpoint_path(out, name)} and {out / f'{name}.onnx'}", markup=False)


@app.command()
def run(name: Name, out: Folder = catalogue.FOLDER, backends: Backends = "", as_json: AsJson = False) -> None:
    """Run a trained model on every backend, and say how it agrees with the CPU. Exit code 1 where one differs."""
    _, found = catalogue.run(name, out, tuple(backend_names(backends)) if backends else ())
    if as_json:
        say_json(
            [{"backend": a.backend, "device": a.detail, "difference": a.difference, "agrees": a.agrees} for a in found]
        )
    else:
        for each in found:
            stdout().print(str(each), markup=False, soft_wrap=True)
    if not all(each.agrees for each in found):
        raise typer.Exit(FAILED)


@app.command("report")
def write_report(small: Small = False, out: Folder = catalogue.FOLDER, docs: Docs = Path("docs")) -> None:
    """Train what is not trained yet, run everything everywhere, and write gallery.md with pictures."""
    stdout().print(f"written to {report.write(small, out, docs, _say)}", markup=False)
