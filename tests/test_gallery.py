"""The gallery's models: their held-out accuracy on real digits, and that they are what their scripts say."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import quatrefoil as qf
from quatrefoil import backends
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models import gallery
from quatrefoil.models.gallery import data

MODELS = {"digits_cnn": ((1, 8, 8), 355), "digits_lstm": ((8, 8), 354)}
"""The shape of an image, and how many of the 360 held-out digits the model reads right."""


@pytest.fixture(scope="module")
def split() -> gallery.Split:
    return gallery.digits_split()


def test_split_is_disjoint_and_complete(split: gallery.Split) -> None:
    assert split.held_out_images.shape == (360, 8, 8)
    assert split.train_images.shape == (1437, 8, 8)
    assert split.train_images.dtype == np.float32
    assert split.train_images.max() == 1.0
    assert set(split.held_out_digits.tolist()) == set(range(10))


def test_the_validation_split_is_cut_from_the_training_images_alone(split: gallery.Split) -> None:
    cut = data.held_out(split)
    assert (len(cut.train_digits), len(cut.held_out_digits)) == (1150, 287)
    np.testing.assert_array_equal(np.concatenate([cut.train_images, cut.held_out_images]), split.train_images)
    np.testing.assert_array_equal(np.concatenate([cut.train_digits, cut.held_out_digits]), split.train_digits)
    with pytest.raises(QuatrefoilError, match="4 training images cannot be cut in 5"):
        data.held_out(split._replace(train_digits=split.train_digits[:4]))


@pytest.mark.parametrize("name", MODELS)
def test_held_out_accuracy(name: str, split: gallery.Split) -> None:
    shape, right = MODELS[name]
    model = qf.load(gallery.path(name))
    scores = model.run({"image": split.held_out_images.reshape(-1, *shape)}, backend="cpu")["scores"]
    assert int((scores.argmax(1) == split.held_out_digits).sum()) == right


@pytest.mark.parametrize("name", MODELS)
def test_equals_onnxruntime(name: str, split: gallery.Split) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    image = split.held_out_images[:32].reshape(-1, *MODELS[name][0])
    session = onnxruntime.InferenceSession(gallery.path(name), providers=["CPUExecutionProvider"])
    [wanted] = session.run(None, {"image": image})
    scores = qf.load(gallery.path(name)).run({"image": image}, backend="cpu")["scores"]
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("backend", ["fpga", "asic"])
@pytest.mark.parametrize("name", MODELS)
def test_other_backends_give_the_same_scores(name: str, backend: str, split: gallery.Split) -> None:
    available = backends.get(backend).probe()
    if not available.ready:
        pytest.skip(f"{backend} cannot run here: {available.detail}")
    image = split.held_out_images[:16].reshape(-1, *MODELS[name][0])
    model = qf.load(gallery.path(name))
    wanted = model.run({"image": image}, backend="cpu")["scores"]
    scores = model.run({"image": image}, backend=backend)["scores"]
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", MODELS)
def test_files_are_small_and_plain(name: str) -> None:
    file = gallery.path(name)
    assert file.stat().st_size < 200_000
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert all(node.name for node in model.graph.node)


def test_unknown_name_says_what_there_is() -> None:
    with pytest.raises(QuatrefoilError, match="digits_cnn, digits_lstm"):
        gallery.path("mnist")
