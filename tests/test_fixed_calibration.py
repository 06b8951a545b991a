"""Fixed-point formats that choose themselves, on handwritten digits."""

from __future__ import annotations

import numpy as np
import pytest

import quatrefoil as qf
from quatrefoil.models import ModelError
from quatrefoil.models.fixed import calibration
from quatrefoil.models.fixed.calibration import best_format, calibrate, relative
from quatrefoil.models.fixed.network import fixed
from quatrefoil.models.gallery import path

datasets = pytest.importorskip("sklearn.datasets", reason="digits come with scikit-learn")
HELD_OUT = 1437  # as the gallery's networks were trained


def digits(rank: int) -> tuple[np.ndarray, np.ndarray]:
    found = datasets.load_digits()
    images = (found.images / 16).astype(np.float32)
    return (images[:, None] if rank == 4 else images), found.target


@pytest.mark.parametrize("name", ["digits_cnn", "digits_lstm"])
def test_8_bits_are_within_half_a_point_of_float(name: str) -> None:
    model = qf.load(path(name))
    images, labels = digits(len(model.inputs[0].shape or ()))
    found = calibrate(model, images[:200], bits=8)
    network = fixed(model, found.precision)
    assert all(form.width == 8 for form in network.formats.values())
    float_scores, scores = (part.run(images[HELD_OUT:])["scores"] for part in (model, network))
    accuracy = [float((answer.argmax(1) == labels[HELD_OUT:]).mean()) for answer in (float_scores, scores)]
    assert accuracy[1] >= accuracy[0] - 0.005, accuracy
    assert found.agreement is not None
    assert found.agreement > 0.98
    assert "mean width 8.00 bits" in str(found)


def test_a_target_error_takes_as_few_bits_as_it_needs() -> None:
    model = qf.load(path("digits_cnn"))
    images, _ = digits(4)
    found = calibrate(model, images[:60], error=0.05)
    network = fixed(model, found.precision)
    outputs = network.run(images[:60])["scores"]
    assert relative(outputs, model.run(images[:60])["scores"]) == pytest.approx(found.error)
    assert found.error <= 0.05
    assert found.bits < 8
    # one bit less anywhere that is left would have been too much
    assert any(trial.error > 0.05 for trial in found.trials)


def test_a_layer_that_is_cut_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "CURVE", (3, 12))
    model = qf.load(path("digits_cnn"))
    images, _ = digits(4)
    found = calibrate(model, images[:60], bits=3, curves=True)
    assert list(found.curves) == [layer.name for layer in found.layers]
    for curve in found.curves.values():
        assert curve[0].error > 3 * curve[-1].error, "narrower is worse"
        assert curve[0].error < found.error, "than all layers narrow"
    assert found.first_diverging is not None
    assert f"{found.first_diverging.name} is the first layer" in str(found)
    before = found.layers[: found.layers.index(found.first_diverging)]
    assert all(layer.error <= 0.1 for layer in before)


def test_the_point_stands_where_the_error_is_least() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(50_000)
    values[0] = 20.0  # not worth a format that loses all the others
    assert best_format(values, 6, True).integer in (2, 3)
    assert best_format(values[1:] * 2.0**-10, 8, True).integer < -5
    assert best_format(np.zeros(4), 8, False).text == "ufixed<8,1,RND,SAT>"
    assert best_format(np.abs(values[1:]), 8, False).integer == 2


def test_wishes_that_cannot_be_met_are_refused() -> None:
    model = qf.load(path("digits_cnn"))
    images, _ = digits(4)
    with pytest.raises(ModelError, match="bits and error are given; give one"):
        calibrate(model, images[:4], bits=8, error=0.1)
    with pytest.raises(ModelError, match="give 2 to 18"):
        calibrate(model, images[:4], bits=1)
    with pytest.raises(ModelError, match=r"18 bits for everything are .* off"):
        calibrate(model, images[:4], error=1e-9)
