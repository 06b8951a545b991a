"""Choosing a model's settings by trials: on a validation split alone, going on where a run ended, whatever happens to workers."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optuna", reason="tuning needs optuna, which is not installed (extra sweep)")

from quatrefoil.bench import tuning
from quatrefoil.cli.app import run as command_line
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.gallery import SEED, catalogue, data
from quatrefoil.models.gallery.tuning import Range, Seen, Settings, Tuning

NAME = "bagging"


def judged(judge: Callable[[Settings, bool, Seen], float], larger: bool = True) -> Tuning:
    """Something to tune whose figure is made up."""
    ranges = {"x": Range(0.0, 1.0), "n": Range(1, 9)}
    return Tuning(ranges, lambda small: {"x": 0.5, "n": 3}, "figure", larger, judge, lambda *given: None)


def replaced(monkeypatch: pytest.MonkeyPatch, made: Tuning) -> None:
    monkeypatch.setattr(catalogue, "tuning", lambda name: made)


def test_the_search_finds_what_is_best_and_what_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, judged(lambda s, small, seen: (s["x"] - 0.2) ** 2 + s["n"] / 1e4, larger=False))
    found = tuning.run("made up", 30, storage=tmp_path / "study")
    assert found.trials[0].settings == {"x": 0.5, "n": 3}, "the settings that the model has come first"
    assert found.best is not None
    assert abs(found.best.settings["x"] - 0.2) < 0.05
    assert next(iter(found.importance)) == "x"
    assert found.importance["x"] > 0.9
    assert sum(found.importance.values()) == pytest.approx(1)
    assert {type(trial.settings["n"]) for trial in found.trials} == {int}


def test_the_test_split_takes_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = catalogue.tuning(NAME).chosen(True)
    before = tuning.attempt(NAME, settings, True, ())
    split = data.digits()
    spoiled = split._replace(
        held_out_images=np.full_like(split.held_out_images, np.nan), held_out_digits=split.held_out_digits * 0 - 7
    )
    monkeypatch.setattr("quatrefoil.models.gallery.data.digits_split", lambda: spoiled)
    assert np.isnan(data.digits().held_out_images).all()
    assert before.figure is not None
    assert tuning.attempt(NAME, settings, True, ()).figure == before.figure


def test_a_study_goes_on_where_it_was_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, asked = tmp_path / "deep" / "study", []

    def judge(settings: Settings, small: bool, seen: Seen) -> float:
        asked.append(settings)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return settings["x"]

    made = judged(judge)
    replaced(monkeypatch, made)
    with pytest.raises(KeyboardInterrupt):
        tuning.run("made up", 6, storage=storage)
    with storage.open("a") as file:
        file.write('{"op_code": 4, "wor')  # what a process leaves that is ended while it writes
    found = tuning.run("made up", 6, storage=storage)
    assert len(found.trials) == 6
    assert len(asked) == 7
    assert asked[4] == asked[3], "the trial that was not finished is made first"
    assert [trial.settings for trial in found.trials] == [*asked[:3], *asked[4:]]
    assert len({settings["x"] for settings in asked}) == 6, "nothing else is made twice"
    assert tuning.run("made up", 6, storage=storage) == found
    assert len(asked) == 7
    for ranges, small, said in ((made.ranges, True, "small"), ({"x": Range(0.0, 2.0)}, False, "ranges")):
        replaced(monkeypatch, replace(made, ranges=ranges))
        with pytest.raises(QuatrefoilError, match=f"differs in {said}"):
            tuning.run("made up", 6, small=small, storage=storage)
    replaced(monkeypatch, made)
    for text in ("text\n", "text", '{"name": "a bench"}\n', "[1]\n", '{"op_code": 1}\n'):
        (tmp_path / "other").write_text(text)
        with pytest.raises(QuatrefoilError, match=r"is no (line of a )?journal of Optuna"):
            tuning.run("made up", 6, storage=tmp_path / "other")
        assert (tmp_path / "other").read_text() == text
    with tuning._held(storage), pytest.raises(QuatrefoilError, match="in use by another run"):
        tuning.run("made up", 6, storage=storage)


def test_trials_that_are_hopeless_or_refused_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst of three kinds of trials is stopped at the first epoch at which five better ones are known."""
    count = 0

    def judge(settings: Settings, small: bool, seen: Seen) -> float:
        nonlocal count
        count += 1
        if count == 2:
            raise QuatrefoilError("made up: a rate of 9 is too large")
        if count == 3:
            return float("nan")
        for epoch in range(1, 5):
            seen(epoch, epoch - (10.0 if count == 9 else 0.0))
        return 4.0 + settings["x"]

    replaced(monkeypatch, judged(judge))
    found = tuning.run("made up", 10, storage=tmp_path / "study")
    outcomes = [trial.outcome for trial in found.trials]
    assert found.refused == {"made up: a rate of 9 is too large": 1, "made up: the figure is nan": 1}
    assert outcomes[8].figure is None
    assert outcomes[8].epochs == (-9.0,)
    assert not outcomes[8].refused
    assert [len(each.epochs) for each in outcomes] == [4, 0, 0, 4, 4, 4, 4, 4, 1, 4]
    assert len(found.complete) == 7
    tuning.write_html(tmp_path / "page.html", found)
    page = (tmp_path / "page.html").read_text()
    assert "10 trials, 1 of them stopped early, 2 refused" in page
    assert "a rate of 9 is too large" in page


def test_a_lost_worker_loses_only_its_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="spreading needs distributed")
    clusters: list[Any] = []

    class Cluster(distributed.LocalCluster):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "n_workers": 2})
            clusters.append(self)

    monkeypatch.setattr(distributed, "LocalCluster", Cluster)
    killed = threading.Event()

    def kill_one(trial: tuning.Trial, count: int) -> None:
        if not killed.is_set():
            killed.set()
            os.kill(next(iter(clusters[0].workers.values())).pid, signal.SIGKILL)

    found = tuning.run(NAME, 4, small=True, storage=tmp_path / "study", scheduler="local", done=kill_one)
    assert killed.is_set()
    assert len(found.complete) == 4
    again = tuning.attempt(NAME, found.trials[3].settings, True, ())
    assert again.figure == found.trials[3].outcome.figure, "a worker's figure is this process's"


def test_what_can_be_tuned_has_its_own_settings_in_its_ranges() -> None:
    able = {name: each.tuning for name, each in catalogue.entries().items() if each.tuning is not None}
    assert {"perceptron", "lenet", "sunspots_gru", "bagging"} <= able.keys()
    for name, each in able.items():
        for small in (False, True):
            assert each.settings(name, each.chosen(small), small) == each.chosen(small)
            assert list(each.chosen(small)) == list(each.ranges)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ["--small", "--out", str(tmp_path)]
    arguments = ["gallery", "tune", NAME, *here, "--trials", "3", "--scheduler", "none"]
    assert command_line(arguments) == 0
    said = capsys.readouterr()
    assert "3 of 3 trials finished" in said.out
    assert "what mattered: " in said.out
    assert command_line([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    page = (tmp_path / f"{NAME}.tuning.html").read_text()
    assert "What mattered" in page
    assert "<svg" in page
    settings = tmp_path / f"{NAME}.settings.json"
    assert json.loads(settings.read_text()) == told["best"]["settings"]
    assert command_line(["gallery", "train", NAME, *here, "--settings", str(settings)]) == 0
    capsys.readouterr()
    kept = catalogue.run(NAME, tmp_path)[0]
    assert kept.trained.weights["w"].shape[1] == told["best"]["settings"]["hidden"]
    for text, match in (
        ('{"hidden": 1e9}', "hidden is 1000000000.0; it has to be a whole number from 20 to 800, by factors"),
        ('{"penalty": true}', "penalty is True"),
        ('{"penalty": NaN}', "penalty is nan"),
        ('{"beauty": 1}', "bagging has no setting 'beauty'; it has hidden, penalty"),
        ("[1]", "holds no settings"),
        ("{", "cannot be read"),
    ):
        settings.write_text(text)
        assert command_line(["gallery", "train", NAME, *here, "--settings", str(settings)]) == 2
        assert match in " ".join(capsys.readouterr().err.split())
    assert command_line(["gallery", "tune", "dbn"]) == 2
    assert "dbn has no settings to tune; these have: bagging" in " ".join(capsys.readouterr().err.split())


def test_the_command_says_where_nothing_could_be_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def judge(settings: Settings, small: bool, seen: Seen) -> float:
        raise QuatrefoilError(f"no data, seed {SEED}")

    replaced(monkeypatch, judged(judge))
    assert command_line(["gallery", "tune", NAME, "--trials", "2", "--scheduler", "none", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"2 refused: no data, seed {SEED}" in said
    assert "no trial was finished" in said
