"""Training in parallel: every division gives one process's numbers, a lost process loses a step, and what cannot be is said."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.parallel.cluster import Cluster, parameter_server, synchronous
from quatrefoil.models.parallel.job import Job
from quatrefoil.models.parallel.launch import train

WITH_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


@pytest.mark.parametrize(
    ("division", "sentence"),
    [
        ({"replicas": 0}, "replicas is 0"),
        ({"replicas": 3}, "64 samples do not divide evenly among 3 replicas"),
        ({"replicas": 128, "batch": 64}, "fewer processes"),
        ({"batch": 5000}, "there are 1437"),
        ({"layers": 8}, "4 stages, which 8 processes cannot share"),
        ({"layers": 3}, "4 stages do not divide evenly among 3"),
        ({"layers": 2, "microbatches": 5}, "do not divide into 5 microbatches"),
        ({"channels": 3}, "not 3"),
        ({"asynchronous": True}, "needs a worker"),
        ({"asynchronous": True, "replicas": 2, "layers": 2}, "leave layers and channels at 1"),
        ({"asynchronous": True, "replicas": 2, "staleness": -1}, "staleness is -1"),
        ({"asynchronous": True, "replicas": 4}, "64 samples do not divide evenly among 3 workers"),
    ],
)
def test_a_division_that_cannot_be_is_refused(division: dict[str, Any], sentence: str) -> None:
    with pytest.raises(QuatrefoilError, match=sentence):
        Job(directory="", **division).check(1437)


def test_a_job_reads_as_it_was_written(tmp_path: Path) -> None:
    job = Job(directory=str(tmp_path), replicas=2, end_process=(1, 5))
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job


def test_without_spread_a_cluster_follows_the_closed_forms() -> None:
    even = Cluster(8, 0.1, 0.0, 1e6, 1e-3, 1e8)
    assert even.ring() == pytest.approx(14 * (1e-3 + 1e6 / 8 / 1e8))
    assert even.tree() == pytest.approx(6 * (1e-3 + 1e-2))
    assert synchronous(even, even.ring()).speedup == pytest.approx(8 * 0.1 / (0.1 + even.ring()))
    # two transfers of 11 ms an update, one each way and at the same time as others': the server's link is what limits
    served = parameter_server(Cluster(50, 0.1, 0.0, 1e6, 1e-3, 1e8))
    assert served.steps_per_s == pytest.approx(1 / 0.011, rel=0.02)
    assert served.staleness == pytest.approx(49, rel=0.02)
    alone = parameter_server(Cluster(1, 0.1, 0.0, 1e6, 1e-3, 1e8))
    assert alone.steps_per_s == pytest.approx(1 / 0.122, rel=0.01)
    assert alone.staleness == 0


def test_stragglers_cost_a_synchronous_step_its_slowest_worker() -> None:
    spread = Cluster(16, 0.1, 0.3, 1e6, 1e-5, 1e10)
    slowest = np.random.default_rng(7).lognormal(-0.045, 0.3, (20000, 16)).max(1).mean()
    assert synchronous(spread, 0.0, 20000).speedup == pytest.approx(16 / slowest, rel=0.01)
    assert parameter_server(spread).speedup > 1.3 * synchronous(spread, spread.ring()).speedup


@pytest.mark.parametrize(
    ("name", "value"), [("workers", 0), ("bytes_per_s", 0.0), ("spread", -0.1), ("compute_s", math.nan)]
)
def test_a_cluster_that_cannot_be_is_refused(name: str, value: float) -> None:
    said = {"workers": 2, "compute_s": 0.1, "spread": 0.0, "gradient_bytes": 1.0, "latency_s": 0.0, "bytes_per_s": 1.0}
    with pytest.raises(QuatrefoilError, match=name):
        Cluster(**{**said, name: value})


@WITH_TORCH
@pytest.mark.parametrize(
    "division", [{"replicas": 2}, {"layers": 2}, {"channels": 2}, {"layers": 2, "channels": 2}], ids=str
)
def test_a_divided_step_gives_the_numbers_of_one_process(division: dict[str, int], tmp_path: Path) -> None:
    import torch

    train(Job(directory=str(tmp_path / "one"), steps=3))
    result = train(Job(directory=str(tmp_path / "divided"), steps=3, **division))
    one, many = (torch.load(tmp_path / name / "network.pt", weights_only=True) for name in ("one", "divided"))
    assert result.bytes_per_step > 0
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, rtol=1e-4, atol=1e-6)


@WITH_TORCH
def test_a_lost_process_is_replaced_and_loses_one_step(tmp_path: Path) -> None:
    import torch

    train(Job(directory=str(tmp_path / "whole"), steps=8))
    result = train(
        Job(directory=str(tmp_path / "lost"), steps=8, layers=2, keep_every=1, end_process=(1, 5)), restarts=1
    )
    assert (result.restarts, result.began_at) in {(1, 4), (1, 5)}
    one, again = (torch.load(tmp_path / name / "network.pt", weights_only=True) for name in ("whole", "lost"))
    for name, value in one.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-6)


@WITH_TORCH
def test_what_ends_a_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(QuatrefoilError, match=r"ended by signal 9; the checkpoint of step 3 is in .*, run again"):
        train(Job(directory=str(tmp_path), steps=6, replicas=2, keep_every=1, end_process=(1, 3)))
    with pytest.raises(QuatrefoilError, match="of another division"):
        train(Job(directory=str(tmp_path), steps=6, layers=2, keep_every=1))
    with pytest.raises(QuatrefoilError, match="the loss is nan at step"):
        train(Job(directory=str(tmp_path / "steep"), steps=6, rate=1e6))


@WITH_TORCH
def test_staleness_is_measured_and_bounded(tmp_path: Path) -> None:
    job = Job(directory=str(tmp_path), replicas=3, asynchronous=True, steps=120, staleness=1, momentum=0.0, rate=0.1)
    result = train(job)
    assert result.staleness_most <= 2 * (3 - 2) * (1 + 1)
    assert result.accuracy > 0.5


@WITH_TORCH
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "layer0-channel0-3.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(QuatrefoilError, match="cannot be read as a checkpoint"):
        train(Job(directory=str(tmp_path), steps=6))
