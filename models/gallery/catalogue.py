"""Every model of the gallery that is trained on our operators, by name, and what is done with one.

A model is a file beside this one with ``ENTRIES``; its file's name stands here, and is imported when it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from quatrefoil.errors import BackendUnavailable, QuatrefoilError
from quatrefoil.models.gallery.entry import (
    Agreement,
    Checkpoint,
    Entry,
    Report,
    agreement,
    load_checkpoint,
    save_checkpoint,
    write_whole,
)
from quatrefoil.models.gallery.tuning import Tuning

FILES = (
    "rbm",
    "conv_rbm",
    "dbn",
    "dbm",
    "echo_state",
    "ensembles",
    "classifiers",
    "autoencoders",
    "captions",
    "dbn_tuned",
    "gan",
    "sunspots_gru",
    "power_demand",
    "characters",
    "spiking",
    "attention",
)
FOLDER = Path("gallery")
"""Where checkpoints and ONNX files go unless somebody says."""


@cache
def entries() -> dict[str, Entry]:
    """Every model by name."""
    found = [entry for file in FILES for entry in import_module(f"quatrefoil.models.gallery.{file}").ENTRIES]
    return {entry.name: entry for entry in found}


def entry(name: str) -> Entry:
    """Raises QuatrefoilError for a name that the gallery has not."""
    known = entries()
    if name not in known:
        raise QuatrefoilError(f"the gallery has no model {name!r} to train; it has {', '.join(known)}")
    return known[name]


def tuning(name: str) -> Tuning:
    """What of a model can be tuned. Raises QuatrefoilError for a model of which nothing can."""
    found = entry(name).tuning
    if found is None:
        able = [each.name for each in entries().values() if each.tuning is not None]
        raise QuatrefoilError(f"{name} has no settings to tune; these have: {', '.join(able)}")
    return found


def checkpoint_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npz"


def train(
    name: str, small: bool, folder: Path, report: Report, settings: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Train a model, with its own settings or with some of them given, and write its checkpoint and its ONNX file into a
    folder. Raises QuatrefoilError for settings that it has not."""
    model = entry(name)
    given = None if settings is None else tuning(name).settings(name, settings, small)
    began = time.perf_counter()
    trained = model.train(small, report) if given is None else tuning(name).train(given, small, report)
    seconds = time.perf_counter() - began
    save_checkpoint(checkpoint_path(folder, name), name, trained, small, seconds)
    write_whole(folder / f"{name}.onnx", model.export(trained.weights).SerializeToString(deterministic=True))
    return Checkpoint(trained, small, seconds)


def run(name: str, folder: Path, backends: tuple[str, ...] = ()) -> tuple[Checkpoint, list[Agreement]]:
    """A trained model of a folder on every backend (or those named), on real inputs, beside the CPU."""
    model = entry(name)
    kept = load_checkpoint(checkpoint_path(folder, name), name)
    return kept, agreement(model.export(kept.trained.weights), model.inputs(kept.small), backends)


@dataclass(frozen=True)
class Ran:
    """A model that was trained and run on every backend; or why it was not: ``missing`` what has to be installed, or
    ``failed``."""

    name: str
    kept: Checkpoint | None = None
    agreements: tuple[Agreement, ...] = ()
    missing: str = ""
    failed: str = ""

    @property
    def right(self) -> bool:
        """False where something went wrong; what is not installed is not wrong."""
        return not self.failed and all(each.agrees for each in self.agreements)

    def __str__(self) -> str:
        if self.kept is None:
            return f"{self.name}: {f'FAILED: {self.failed}' if self.failed else f'not here ({self.missing})'}"
        figure, value = next(iter(self.kept.trained.figures.items()))
        agreed = ", ".join(f"{each.backend} {each.short}" for each in self.agreements)
        return f"{self.name}: {figure} {value:.4g}; {self.kept.seconds:.1f} s; from cpu: {agreed}"


def run_all(small: bool, folder: Path, report: Report) -> Iterator[Ran]:
    """Train every model and run it on every backend, each as it comes; one that cannot be trained does not end the
    others."""
    for name in entries():
        try:
            kept = train(name, small, folder, lambda line, name=name: report(f"{name}: {line}"))  # type: ignore[misc]
            yield Ran(name, kept, tuple(run(name, folder)[1]))
        except QuatrefoilError as error:
            absent = isinstance(error, BackendUnavailable) or isinstance(error.__cause__, ImportError)
            yield Ran(name, missing=str(error)) if absent else Ran(name, failed=str(error))
