"""``quatrefoil explain``: which kernel would run a problem or each node of a model, and why not the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quatrefoil import dispatch, ops
from quatrefoil.cli.arguments import AsJson, backend_names
from quatrefoil.cli.output import say_json, stdout

Target = Annotated[
    str, typer.Argument(metavar="PROBLEM|MODEL", help="A problem's text form in quotes, or an ONNX file.")
]
Backends = Annotated[str, typer.Option("--backend", "-b", help="Backends with commas between them, or all.")]


def command(target: Target, backend: Backends = "", as_json: AsJson = False) -> None:
    """Print every kernel: chosen, runnable, or not and why."""
    if is_model(target):
        _model(target, backend_names(backend or "cpu"), as_json)
    else:
        _problem(target, backend_names(backend) if backend else list(_all()), as_json)


def is_model(target: str) -> bool:
    """A model's file, and not a suite or a problem's text form, which has a space in it."""
    path = Path(target)
    return path.suffix == ".onnx" or (" " not in target and path.suffix != ".toml" and path.is_file())


def _all() -> tuple[str, ...]:
    from quatrefoil import backends

    return backends.names()


def _problem(text: str, names: list[str], as_json: bool) -> None:
    problem = ops.parse(text)
    selections = [dispatch.select(problem, name) for name in names]
    if as_json:
        say_json({"problem": problem.text, "backends": [selection_data(selection) for selection in selections]})
        return
    console = stdout()
    for number, selection in enumerate(selections):
        lines = str(selection).splitlines()
        console.print("\n".join(lines if number == 0 else lines[1:]), markup=False, soft_wrap=True)


def selection_data(selection: dispatch.Selection) -> dict[str, object]:
    """A selection as plain data."""
    chosen = selection.candidates[0].kernel.id if selection.runnable else None
    return {
        "backend": selection.backend,
        "ready": selection.availability.ready,
        "detail": selection.availability.detail,
        "remedy": selection.availability.remedy,
        "chosen": chosen,
        "reason": selection.reason,
        "kernels": [
            {
                "id": candidate.kernel.id,
                "accepts": candidate.reject is None,
                "reject": None if candidate.reject is None else str(candidate.reject),
                "seconds": candidate.seconds,
                "summary": candidate.kernel.summary,
            }
            for candidate in selection.candidates
        ],
    }


def _model(path: str, names: list[str], as_json: bool) -> None:
    from quatrefoil.models import load

    model = load(path)
    if as_json:
        say_json({"model": path, "backends": {name: str(model.explain(backend=name)).splitlines() for name in names}})
        return
    console = stdout()
    for name in names:
        console.print(str(model.explain(backend=name)), markup=False, soft_wrap=True)
