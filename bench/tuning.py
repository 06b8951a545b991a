"""The settings of a gallery's model, chosen by Optuna's search: which were tried, which are best, and what mattered.

The search is Optuna's tree-structured Parzen estimator (Bergstra et al. 2011). Trials run in this process or on the workers of
a Dask cluster (``spread``), as many at a time as there are workers; a lost worker's trial goes to another one. A trial that
stands worse than the median of the finished ones did at the same epoch is stopped (Golovin et al. 2017); it knows those that
were finished when it began. What mattered is said by a functional analysis of variance (Hutter, Hoos and Leyton-Brown 2014).

The study lies in a file, Optuna's journal, from which a later run goes on. Only this process writes it, and one at a time.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Any

from quatrefoil.bench import spread
from quatrefoil.bench.machine import package_version
from quatrefoil.bench.sweep import INSTALL
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.gallery import catalogue
from quatrefoil.models.gallery.data import REMEDY
from quatrefoil.models.gallery.entry import write_whole
from quatrefoil.models.gallery.tuning import Settings, Tuning

BEGINNING = 5
"""Finished trials before one is stopped early."""
ASKED, REFUSED, SECONDS = "asked", "refused", "seconds"
"""The names of what the study keeps beside Optuna's own. A trial without seconds was not finished when its run ended."""


class Hopeless(Exception):
    """Ends a trial from inside its training."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trial.

    figure   on the validation split; None where it was stopped or refused
    epochs   the figure after each epoch
    refused  why it could not be trained with these settings
    """

    figure: float | None
    epochs: tuple[float, ...]
    seconds: float
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial of the study, finished."""

    number: int
    settings: Settings
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Found:
    """A study: its trials in their order, and each setting's share of what made the figure differ (none for fewer than two
    finished trials that differ)."""

    name: str
    small: bool
    tuning: Tuning
    trials: tuple[Trial, ...]
    importance: Mapping[str, float]

    @property
    def complete(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.outcome.figure is not None]

    @property
    def best(self) -> Trial | None:
        """The first of those with the best figure."""
        pick = max if self.tuning.larger else min
        return pick(self.complete, key=_figure, default=None)

    @property
    def refused(self) -> Counter[str]:
        return Counter(trial.outcome.refused for trial in self.trials if trial.outcome.refused)


def _figure(trial: Trial) -> float:
    assert trial.outcome.figure is not None
    return trial.outcome.figure


def attempt(name: str, settings: Settings, small: bool, bars: Sequence[float]) -> Outcome:
    """One trial, in a worker. ``bars``: what its best figure has to reach by each epoch; those beyond are free."""
    tuning = catalogue.tuning(name)
    best = max if tuning.larger else min
    epochs: list[float] = []
    began = time.perf_counter()

    def seen(epoch: int, figure: float) -> None:
        epochs.append(figure)
        if epoch <= len(bars) and best(best(epochs), bars[epoch - 1]) != best(epochs):
            raise Hopeless

    figure, refused = None, ""
    try:
        figure = float(tuning.judge(settings, small, seen))
        if not math.isfinite(figure):
            figure, refused = None, f"{name}: the {tuning.figure} is {figure}"
    except Hopeless:
        pass
    except QuatrefoilError as error:
        refused = str(error)
    return Outcome(figure, tuple(epochs), time.perf_counter() - began, refused)


def run(
    name: str,
    number: int,
    *,
    small: bool = False,
    storage: Path,
    scheduler: str | None = None,
    seed: int = 0,
    done: Callable[[Trial, int], None] | None = None,
) -> Found:
    """A study of ``number`` trials, of which those that the file holds are not made again; the first is of the settings that
    the model has.

    scheduler   None: in this process; "local", or a Dask scheduler's address
    storage     the study's file; made where it is not there
    done        told each trial as it comes, and how many are done

    Raises QuatrefoilError where the model cannot be tuned, the file is of another study or in use, Optuna or Dask is not
    installed, or nobody answers; what is done is kept.
    """
    tuning = catalogue.tuning(name)
    if number < 1:
        raise QuatrefoilError(f"a study of {number} trials; give 1 or more")
    for module, remedy in (("optuna", INSTALL), ("sklearn", REMEDY)):
        if util.find_spec(module) is None:
            raise QuatrefoilError(f"tuning needs {module}; to add it: {remedy}")
    optuna: Any = import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _held(storage), ExitStack() as stack:
        study = _study(optuna, storage, name, small, tuning, seed)
        count = len(_trials(study))
        client, at_once = None, 1
        if scheduler is not None and count < number:
            client = stack.enter_context(spread.cluster_client(scheduler, True))
            at_once = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        space = _space(optuna, tuning)
        while count < number:
            asked = [study.ask(space) for _ in range(min(at_once, number - count))]
            for trial, outcome in _outcomes(name, small, _bars(study), asked, client):
                _tell(optuna, study, trial, outcome)
                count += 1
                if done is not None:
                    done(Trial(trial.number, dict(trial.params), outcome), count)
        return Found(name, small, tuning, tuple(_trials(study)), _importance(optuna, study, seed))


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """The study's file for this process alone; on systems without ``flock`` this is not watched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if util.find_spec("fcntl") is None:
        yield
        return
    import fcntl

    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise QuatrefoilError(f"{path} is in use by another run; wait for it, or give another --storage") from None
        yield


def _study(optuna: Any, path: Path, name: str, small: bool, tuning: Tuning, seed: int) -> Any:
    """The study of a file. Raises QuatrefoilError where the file holds something else."""
    kept_lines = spread.lines(path, lambda row: row["op_code"], "line of a journal of Optuna")
    if path.stat().st_size and not kept_lines:
        raise QuatrefoilError(f"{path} is no journal of Optuna; give another --storage")
    spread.mend(path)
    asked = {
        "model": name,
        "small": small,
        "figure": tuning.figure,
        "ranges": {key: list(each) for key, each in tuning.ranges.items()},
        "quatrefoil": package_version("quatrefoil"),
    }
    journal = optuna.storages.journal
    try:
        storage = journal.JournalStorage(journal.JournalFileBackend(str(path)))
        study = optuna.create_study(
            storage=storage,
            study_name="gallery",
            direction="maximize" if tuning.larger else "minimize",
            load_if_exists=True,
        )
    except (ValueError, KeyError, TypeError) as error:  # what its reader raises for what it did not write
        raise QuatrefoilError(f"{path} is no journal of Optuna: {error}; give another --storage") from None
    kept = study.user_attrs.get(ASKED)
    if kept is None and not study.trials:
        study.set_user_attr(ASKED, asked)
        study.enqueue_trial(dict(tuning.chosen(small)))
    elif kept != asked:
        apart = ", ".join(key for key, value in asked.items() if kept is None or kept.get(key) != value)
        raise QuatrefoilError(f"{path} holds another study (it differs in {apart}); give another --storage")
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):  # of a run that was ended
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    # one that goes on must not suggest the same again
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), constant_liar=True)
    return study


def _space(optuna: Any, tuning: Tuning) -> dict[str, Any]:
    kinds = optuna.distributions
    return {
        name: (kinds.IntDistribution if each.whole else kinds.FloatDistribution)(each.low, each.high, log=each.log)
        for name, each in tuning.ranges.items()
    }


def _bars(study: Any) -> list[float]:
    """The median of the finished trials' figures at each epoch that all of them reached; none for a few trials."""
    finished = [trial.outcome.epochs for trial in _trials(study) if trial.outcome.figure is not None]
    return [statistics.median(each) for each in zip(*finished)] if len(finished) >= BEGINNING else []


def _outcomes(
    name: str, small: bool, bars: Sequence[float], asked: Sequence[Any], client: Any
) -> Iterator[tuple[Any, Outcome]]:
    """Each trial with what came of it, as they come."""
    if client is None:
        yield from ((trial, attempt(name, trial.params, small, bars)) for trial in asked)
        return
    trials = {trial.number: trial for trial in asked}
    calls = [(number, name, dict(trial.params), small, bars) for number, trial in trials.items()]
    for (number, *_), came in spread.as_they_come(client, _numbered, calls):
        if isinstance(came, BaseException):
            came = Outcome(None, (), 0.0, f"its workers were lost: {came}")
        yield trials[number], came


def _numbered(number: int, name: str, settings: Settings, small: bool, bars: Sequence[float]) -> Outcome:
    """``attempt`` by a worker; the number tells trials of equal settings apart."""
    return attempt(name, settings, small, bars)


def _tell(optuna: Any, study: Any, trial: Any, outcome: Outcome) -> None:
    trial.set_user_attr(SECONDS, outcome.seconds)
    for epoch, figure in enumerate(outcome.epochs, 1):
        trial.report(figure, epoch)
    if outcome.refused:
        trial.set_user_attr(REFUSED, outcome.refused)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    elif outcome.figure is None:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(trial, outcome.figure)


def _trials(study: Any) -> list[Trial]:
    """Those that are finished."""
    found = []
    for each in study.get_trials(deepcopy=False):
        if not each.state.is_finished() or SECONDS not in each.user_attrs:
            continue
        epochs = tuple(each.intermediate_values[epoch] for epoch in sorted(each.intermediate_values))
        figure = each.value if each.state.name == "COMPLETE" else None
        outcome = Outcome(figure, epochs, each.user_attrs[SECONDS], each.user_attrs.get(REFUSED, ""))
        found.append(Trial(each.number, dict(each.params), outcome))
    return found


def _importance(optuna: Any, study: Any, seed: int) -> dict[str, float]:
    """Each setting's share, the largest first."""
    figures = {trial.outcome.figure for trial in _trials(study) if trial.outcome.figure is not None}
    if len(figures) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except RuntimeError:  # its trees have no variance: too few trials
        return {}
    return dict(sorted(found.items(), key=lambda each: -each[1]))


# What is written ----------------------------------------------------------------------------------------------------


def write_settings(path: Path, best: Trial) -> None:
    """The settings of a trial as JSON, which ``quatrefoil gallery train --settings`` takes."""
    write_whole(path, (json.dumps(best.settings, indent=1) + "\n").encode())


def write_html(path: Path, found: Found) -> None:
    """One file that loads nothing; the charts need plotly (pip install 'quatrefoil[report]'), the rest does not."""
    from quatrefoil.bench import charts
    from quatrefoil.bench.page import Page

    size = "small" if found.small else "full"
    names = list(found.tuning.ranges)
    page = Page(
        f"Settings of {found.name}", f"{size} size; " + "; ".join(f"{n} {found.tuning.ranges[n]}" for n in names)
    )
    best, complete = found.best, found.complete
    if best is not None:
        said = ", ".join(f"{name} {value:.4g}" for name, value in best.settings.items())
        page.answer([(f"{_figure(best):.4g}", f"{found.tuning.figure}, the best, of {said} (trial {best.number}).")])
    stopped = sum(trial.outcome.figure is None and not trial.outcome.refused for trial in found.trials)
    page.paragraph(
        f"{len(found.trials)} trials, {stopped} of them stopped early, {sum(found.refused.values())} refused. The first is "
        "of the settings that the model had. The test split took no part.",
        quiet=True,
    )
    if found.importance:
        bars = [(name, 100 * share, place == 0) for place, (name, share) in enumerate(found.importance.items())]
        page.bars("What mattered: each setting's share of the variance of the figure", bars, "%")
    if charts.available() and complete:
        numbers = [float(trial.number) for trial in complete]
        figures = [_figure(trial) for trial in complete]
        library = charts.library()
        drawn = charts.search(found.tuning.figure, numbers, figures, found.tuning.larger)
        page.chart("Every finished trial, and the best until then", drawn, library)
        columns = {
            name: ([trial.settings[name] for trial in complete], found.tuning.ranges[name].log) for name in names
        }
        page.chart("The figure by each setting", charts.slices(found.tuning.figure, columns, figures), library)
    page.table(
        ("trial", found.tuning.figure, *names, "epochs", "seconds", "refused"),
        [
            (
                trial.number,
                trial.outcome.figure,
                *(trial.settings[name] for name in names),
                len(trial.outcome.epochs),
                trial.outcome.seconds,
                trial.outcome.refused,
            )
            for trial in found.trials
        ],
        numbers=("trial", found.tuning.figure, *names, "epochs", "seconds"),
        sortable="trials",
    )
    page.write(path)
