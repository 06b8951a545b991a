"""``quatrefoil gallery``: the models that are trained on our operators; lists, trains and runs them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quatrefoil.cli.arguments import AsJson, backend_names
from quatrefoil.cli.output import FAILED, say_json, stderr, stdout, table
from quatrefoil.cli.progress import steps
from quatrefoil.cli.sweep import HERE, Scheduler
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.gallery import catalogue, report

if TYPE_CHECKING:
    from quatrefoil.bench.tuning import Found
    from quatrefoil.models.gallery.entry import Agreement

ALL = "all"
MOST_ROWS, MOST_REASONS = 10, 5

app = typer.Typer(help="Models that are trained on quatrefoil's operators.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A model's name; `quatrefoil gallery list` says which.")]
NameOrAll = Annotated[str, typer.Argument(metavar="NAME|all", help="A model's name, or all of them.")]
Small = Annotated[bool, typer.Option("--small", help="A small size: seconds instead of minutes.")]
Folder = Annotated[Path, typer.Option("--out", help="Where checkpoints and ONNX files lie.")]
Docs = Annotated[Path, typer.Option("--docs", help="Where gallery.md and its pictures go.")]
SettingsFile = Annotated[
    Path | None, typer.Option("--settings", help="A file of settings in JSON, as `quatrefoil gallery tune` writes it.")
]
Trials = Annotated[int, typer.Option("--trials", min=1, metavar="N", help="Trials of the study, with those it has.")]
Storage = Annotated[
    Path | None, typer.Option("--storage", help="The study's file, from which it goes on; else NAME.study in --out.")
]
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
def train(
    name: NameOrAll,
    small: Small = False,
    settings: SettingsFile = None,
    out: Folder = catalogue.FOLDER,
    as_json: AsJson = False,
) -> None:
    """Train a model, or all, and write its checkpoint and its ONNX file. All are run on every backend too; exit code 1 where
    one fails or differs from the CPU."""
    if name == ALL:
        if settings is not None:
            raise QuatrefoilError("settings are of one model; give its name instead of all")
        _train_all(small, out, as_json)
        return
    kept = catalogue.train(name, small, out, _say, None if settings is None else _settings(settings))
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


def _told(ran: catalogue.Ran) -> dict[str, Any]:
    kept = ran.kept
    return {
        "name": ran.name,
        "missing": ran.missing,
        "failed": ran.failed,
        "seconds": None if kept is None else kept.seconds,
        "figures": {} if kept is None else kept.trained.figures,
        "backends": _agreements(ran.agreements),
    }


def _agreements(found: Sequence[Agreement]) -> list[dict[str, Any]]:
    return [{"backend": a.backend, "device": a.detail, "difference": a.difference, "agrees": a.agrees} for a in found]


def _train_all(small: bool, out: Path, as_json: bool) -> None:
    """A line a model, and the sum of it."""
    found = []
    for ran in catalogue.run_all(small, out, lambda line: None):
        found.append(ran)
        (stderr() if as_json else stdout()).print(str(ran), markup=False, soft_wrap=True)
    wrong = [ran.name for ran in found if not ran.right]
    missing = [ran.name for ran in found if ran.missing]
    seconds = sum(ran.kept.seconds for ran in found if ran.kept is not None)
    said = f"{len(found) - len(missing) - len(wrong)} of {len(found)} models trained and alike on every backend that is here"
    if as_json:
        say_json([_told(ran) for ran in found])
    else:
        stdout().print(
            f"{said}; {seconds:.0f} s of training; {len(missing)} lack packages", markup=False, soft_wrap=True
        )
    if wrong:
        stderr().print(f"wrong: {', '.join(wrong)}", markup=False, soft_wrap=True)
        raise typer.Exit(FAILED)


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QuatrefoilError(f"the settings {path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise QuatrefoilError(f'{path} holds no settings; they are written so: {{"rate": 0.002}}')
    return found


@app.command()
def tune(
    name: Name,
    trials: Trials = 40,
    small: Small = False,
    storage: Storage = None,
    scheduler: Scheduler = "local",
    out: Folder = catalogue.FOLDER,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the search.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Choose a model's settings by Optuna's search on a validation split, and write them with a page of what mattered. Exit
    code 1 where no trial was finished."""
    from quatrefoil.bench import tuning

    storage = storage or out / f"{name}{'-small' if small else ''}.study"
    known = 0
    try:
        with steps(f"tune {name}", trials) as advance:

            def done(trial: tuning.Trial, count: int) -> None:
                nonlocal known
                known = count
                figure, refused = trial.outcome.figure, trial.outcome.refused
                advance(f"trial {trial.number}: {refused or ('stopped' if figure is None else f'{figure:.4g}')}")

            where = None if scheduler == HERE else scheduler
            found = tuning.run(name, trials, small=small, storage=storage, scheduler=where, seed=seed, done=done)
    except KeyboardInterrupt:
        stderr().print(
            f"{known or 'the finished'} trials are kept in {storage}; the same command goes on", markup=False
        )
        raise
    best = found.best
    page, file = out / f"{name}.tuning.html", out / f"{name}.settings.json"
    tuning.write_html(page, found)
    if best is not None:
        tuning.write_settings(file, best)
    if as_json:
        say_json(
            {
                "model": name,
                "small": small,
                "figure": found.tuning.figure,
                "trials": len(found.trials),
                "best": None if best is None else {"value": best.outcome.figure, "settings": best.settings},
                "importance": found.importance,
                "refused": dict(found.refused),
                "storage": storage,
                "page": page,
            }
        )
    else:
        _show(found)
        for why, count in found.refused.most_common(MOST_REASONS):
            stderr().print(f"{count} refused: {why}", markup=False)
        stderr().print(f"page written to {page}", markup=False)
    if best is None:
        stderr().print("no trial was finished")
        raise typer.Exit(FAILED)
    if not as_json:
        command = f"quatrefoil gallery train {name}{' --small' if small else ''} --settings {file}"
        stdout().print(f"to train with the best: {command}", markup=False, soft_wrap=True)


def _show(found: Found) -> None:
    """The settings tried, the best first, and what mattered."""
    names = list(found.tuning.ranges)
    columns = ("trial", found.tuning.figure, *names)
    shown = table(f"{len(found.complete)} of {len(found.trials)} trials finished", *columns, right=columns)
    best = found.best
    ranked = sorted(found.complete, key=lambda trial: trial.outcome.figure or 0.0, reverse=found.tuning.larger)
    for trial in ranked[:MOST_ROWS]:
        shown.row(
            str(trial.number), f"{trial.outcome.figure:.4g}", *(f"{trial.settings[name]:.4g}" for name in names),
            style="bold" if trial == best else "",
        )  # fmt: skip
    stdout().print(shown)
    if found.importance:
        said = ", ".join(f"{name} {100 * share:.0f} %" for name, share in found.importance.items())
        stdout().print(f"what mattered: {said}", markup=False)


@app.command()
def run(name: Name, out: Folder = catalogue.FOLDER, backends: Backends = "", as_json: AsJson = False) -> None:
    """Run a trained model on every backend, and say how it agrees with the CPU. Exit code 1 where one differs."""
    _, found = catalogue.run(name, out, tuple(backend_names(backends)) if backends else ())
    if as_json:
        say_json(_agreements(found))
    else:
        for each in found:
            stdout().print(str(each), markup=False, soft_wrap=True)
    if not all(each.agrees for each in found):
        raise typer.Exit(FAILED)


@app.command("report")
def write_report(small: Small = False, out: Folder = catalogue.FOLDER, docs: Docs = Path("docs")) -> None:
    """Train what is not trained yet, run everything everywhere, and write gallery.md with pictures."""
    stdout().print(f"written to {report.write(small, out, docs, _say)}", markup=False)
