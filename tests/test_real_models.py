"""Real models on real input: onnxruntime's numbers, and the right answers where a picture or a word has one.

The models are fetched on first use, into the cache folder; where the package index cannot be reached the tests that
need them are skipped and say why.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import quatrefoil as qf
from quatrefoil import backends
from quatrefoil.bench import efficientnet_lite, fetching, real_models
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models import ModelError

MODELS = {model.name: model for model in real_models.MODELS}
FACE = 0.7
"""The probability from which MTCNN's own package takes a crop for a face."""


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return fetching.fetch(fetching.default_folder())
    except fetching.FetchError as error:
        pytest.skip(f"the real models are not here and cannot be fetched: {error}")


def outputs(name: str, folder: Path) -> list[Mapping[str, np.ndarray]]:
    model = MODELS[name]
    loaded = qf.load(folder / model.file)
    return [loaded.run(feed, backend="cpu") for feed in model.feeds(folder)]


@pytest.mark.parametrize("name", MODELS)
def test_equals_onnxruntime(name: str, folder: Path) -> None:
    model = MODELS[name]
    session = real_models.onnxruntime_session(folder / model.file)
    names = [output.name for output in session.get_outputs()]
    for feed, results in zip(model.feeds(folder), outputs(name, folder)):
        wanted = dict(zip(names, session.run(None, dict(feed))))
        assert real_models.difference(results, wanted) <= model.tolerance


@pytest.mark.parametrize(("name", "output"), [("mtcnn_rnet", "softmax_1"), ("mtcnn_onet", "softmax_2")])
def test_every_crop_is_told_right(name: str, output: str, folder: Path) -> None:
    [results] = outputs(name, folder)
    face = results[output][:, 1] > FACE
    assert face[:100].all()
    assert not face[100:].any()


def test_cat_and_coffee_are_recognised(folder: Path) -> None:
    cat, coffee = (int(results["scores"].argmax()) for results in outputs("efficientnet_lite0", folder))
    assert cat in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
    assert coffee == 967  # espresso


def test_speech_is_found_where_it_is(folder: Path) -> None:
    [results] = outputs("silero_vad_16k_sequence", folder)
    speaks = results["speech_probs"]
    assert speaks[:15].max() < 0.1
    assert speaks[17:60].min() > 0.5
    [logits] = (found["logits"] for found in outputs("pulsevad", folder))
    [rounded] = (found["logits"] for found in outputs("pulsevad_int8", folder))
    assert np.abs(rounded - logits).max() < 0.2


def test_text_is_found_on_the_page(folder: Path) -> None:
    [results] = outputs("ppocr_det", folder)
    [mask] = results.values()
    page = MODELS["ppocr_det"].feeds(folder)[0]["x"][0, 0]
    text = mask[0, 0] > 0.3
    assert 0.05 < text.mean() < 0.3
    assert page[text].mean() < page[~text].mean(), "letters are darker than paper"


@pytest.mark.parametrize("name", ["pulsevad", "pulsevad_int8", "lac", "silero_vad"])
def test_the_simulated_chip_gives_the_same_numbers(name: str, folder: Path) -> None:
    available = backends.get("asic").probe()
    if not available.ready:
        pytest.skip(f"asic cannot run here: {available.detail}")
    loaded, feed = qf.load(folder / MODELS[name].file), MODELS[name].feeds(folder)[0]
    wanted = loaded.run(feed, backend="cpu")
    assert real_models.difference(loaded.run(feed, backend="asic"), wanted) <= MODELS[name].tolerance


@pytest.mark.parametrize("name", MODELS)
def test_truncated_files_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    data = (folder / MODELS[name].file).read_bytes()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError):
        qf.load(broken)


def test_pins_are_complete() -> None:
    kept = {file.name for archive in fetching.archives().values() for file in archive.files} | {
        "efficientnet_lite0.onnx"
    }
    assert {model.file for model in MODELS.values()} <= kept
    for archive in fetching.archives().values():
        assert "==" in archive.requirement
        assert all(len(item.sha256) == 64 for item in (archive, *archive.files))


def test_altered_file_counts_as_missing(folder: Path, tmp_path: Path) -> None:
    archive = fetching.archives()["pulsevad"]
    for file in archive.files:
        (tmp_path / file.name).write_bytes((folder / file.name).read_bytes())
    assert fetching.complete(archive, tmp_path)
    (tmp_path / archive.files[0].name).write_bytes(b"something else")
    assert not fetching.complete(archive, tmp_path)


def test_checkpoint_that_asks_for_code_is_refused(tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.pth"
    hostile.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(QuatrefoilError, match=r"os\.system"):
        efficientnet_lite.read_checkpoint(hostile)


def test_unknown_model_says_what_there_is() -> None:
    with pytest.raises(QuatrefoilError, match="mtcnn_pnet, mtcnn_rnet"):
        real_models.chosen(["resnet"])
