"""quatrefoil.torch: its operators pass torch's own checks, its layers give torch's numbers and gradients."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: quatrefoil.torch cannot be tried (extra torch)")

import quatrefoil.torch as qft  # noqa: E402
from quatrefoil.errors import OperatorError  # noqa: E402
from quatrefoil.torch.swapping import LAYERS  # noqa: E402

nn = torch.nn


def normal(*shape: int, grad: bool = False, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).requires_grad_(grad)


CALLS = {
    "conv": (
        [normal(2, 4, 6, 7, grad=True), normal(6, 2, 3, 3, grad=True), normal(6, grad=True)],
        "conv",
        "strides=2x1 pads=1x1x0x1 dilations=1x1 group=2",
        1,
    ),
    "conv_transpose": (
        [normal(1, 4, 5, grad=True), normal(4, 3, 4, grad=True), None],
        "conv_transpose",
        "strides=3 pads=1x1 dilations=1 group=1 output_padding=1",
        1,
    ),
    "max_pool": ([normal(1, 2, 6, 6, grad=True)], "max_pool", "kernel_shape=2x2 strides=2x2", 2),
    "lp_pool": ([normal(1, 2, 6, 6, grad=True)], "lp_pool", "kernel_shape=2x2 strides=2x2 p=2", 1),
    "gru": (
        [normal(5, 2, 3, grad=True), normal(1, 12, 3, grad=True), normal(1, 12, 4, grad=True)],
        "gru",
        "hidden_size=4 linear_before_reset=1",
        2,
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_operators_pass_opcheck(name: str) -> None:
    """Schemas, fake tensors, autograd's registration and tracing, as torch checks them."""
    inputs, *rest = CALLS[name]
    there = [place for place, tensor in enumerate(inputs) if tensor is not None]
    call = ([inputs[place] for place in there], there, *rest)
    assert set(torch.library.opcheck(torch.ops.quatrefoil.apply.default, call).values()) == {"SUCCESS"}


def test_the_gradients_pass_opcheck() -> None:
    inputs, op, attributes, _ = CALLS["conv"]
    given = [tensor.detach() for tensor in inputs]
    (y,) = qft.apply(given, op, attributes, 1)
    call = (given, [0, 1, 2], [], [], [torch.ones_like(y)], [0], op, attributes, 1, [0, 1, 2])
    assert set(torch.library.opcheck(torch.ops.quatrefoil.gradients.default, call).values()) == {"SUCCESS"}


# name, arguments, keywords, shape of the input
LAYER_CASES = [
    ("Conv1d", (4, 6, 3), {"padding": 1, "dilation": 2}, (2, 4, 17)),
    ("Conv2d", (3, 8, 3), {"stride": 2, "padding": 1}, (2, 3, 9, 10)),
    ("Conv2d", (4, 8, (3, 4)), {"padding": "same", "groups": 2, "bias": False}, (2, 4, 9, 10)),
    ("Conv2d", (3, 5, 3), {"padding": 2, "padding_mode": "circular"}, (1, 3, 7, 8)),
    ("Conv2d", (3, 5, 3), {}, (3, 7, 8)),  # without a batch
    ("Conv3d", (2, 3, 2), {"stride": (1, 2, 1)}, (1, 2, 4, 5, 6)),
    ("ConvTranspose1d", (4, 3, 5), {"stride": 3, "padding": 1, "output_padding": 2}, (2, 4, 7)),
    ("ConvTranspose2d", (6, 4, 3), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}, (2, 6, 5, 6)),
    ("ConvTranspose3d", (2, 3, 2), {"stride": 2}, (1, 2, 3, 3, 4)),
    ("MaxPool1d", (3,), {"stride": 2, "padding": 1}, (2, 3, 12)),
    ("MaxPool2d", (3,), {"stride": 2, "padding": 1, "ceil_mode": True}, (2, 3, 9, 10)),
    ("MaxPool3d", (2,), {}, (1, 2, 4, 6, 4)),
    ("AvgPool1d", (3,), {"padding": 1}, (2, 3, 12)),
    ("AvgPool2d", ((2, 3),), {"stride": 2, "count_include_pad": False, "padding": 1}, (2, 3, 9, 10)),
    ("AvgPool3d", (2,), {}, (1, 2, 4, 6, 4)),
    ("LPPool1d", (2, 3), {}, (2, 3, 12)),
    ("LPPool2d", (2, 3), {"stride": 2}, (2, 3, 9, 9)),
    ("LPPool3d", (2, 2), {}, (1, 2, 4, 6, 4)),
    ("RNN", (3, 5), {"nonlinearity": "relu"}, (6, 2, 3)),
    ("RNN", (3, 5), {"bidirectional": True, "bias": False}, (6, 2, 3)),
    ("LSTM", (3, 5), {"num_layers": 2, "batch_first": True}, (2, 6, 3)),
    ("LSTM", (3, 5), {"bidirectional": True, "num_layers": 2}, (6, 2, 3)),
    ("LSTM", (3, 5), {}, (6, 3)),  # without a batch
    ("GRU", (3, 5), {"num_layers": 2}, (6, 2, 3)),
]


def flat(result: Any) -> list[Any]:
    """Every tensor that a layer gives."""
    return [result] if isinstance(result, torch.Tensor) else [tensor for part in result for tensor in flat(part)]


def both(theirs: Any, ours: Any, x: Any, *more: Any) -> None:
    """Outputs and the gradients of x and of all parameters are the same."""
    found = []
    for layer in (theirs, ours):
        given = x.clone().requires_grad_()
        outputs = flat(layer(given, *more))
        loss = sum((normal(*y.shape, seed=7) * y).sum() for y in outputs)
        gradients = torch.autograd.grad(loss, [given, *layer.parameters()])
        found.append([*(y.detach() for y in outputs), *gradients])
    for want, got in zip(*found):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize(("name", "arguments", "keywords", "shape"), LAYER_CASES)
def test_layers_are_torchs(name: str, arguments: tuple, keywords: dict[str, Any], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    theirs = getattr(nn, name)(*arguments, **keywords)
    ours = getattr(qft, name)(*arguments, **keywords)
    ours.load_state_dict(theirs.state_dict())
    x = normal(*shape)
    if name.startswith("LPPool"):
        x = x.abs() + 0.1  # torch sums x^p without the modulus
    assert isinstance(ours, nn.RNNBase if isinstance(theirs, nn.RNNBase) else type(theirs))
    assert repr(ours) == repr(theirs)
    both(theirs, ours, x)


def test_every_layer_is_tried() -> None:
    tried = {name for name, *_ in LAYER_CASES} | {"MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d"}
    assert {layer.__name__ for layer in LAYERS} == tried


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unpooling_undoes_pooling_as_torchs_does(rank: int) -> None:
    x = normal(2, 3, *(7,) * rank)
    values, places = getattr(nn, f"MaxPool{rank}d")(2, return_indices=True)(x)
    mine, mine_places = getattr(qft, f"MaxPool{rank}d")(2, return_indices=True)(x)
    torch.testing.assert_close(mine, values)
    assert torch.equal(mine_places, places)
    both(getattr(nn, f"MaxUnpool{rank}d")(2), getattr(qft, f"MaxUnpool{rank}d")(2), values, places, list(x.shape))
    with pytest.raises(OperatorError, match="indices"):
        getattr(qft, f"MaxUnpool{rank}d")(2)(values, places + 10**6)


def test_packed_sequences_and_states_are_torchs() -> None:
    torch.manual_seed(0)
    theirs, ours = nn.LSTM(3, 4, bidirectional=True), qft.LSTM(3, 4, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    x, lengths = normal(6, 3, 3), torch.tensor([4, 6, 1])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    states = (normal(2, 3, 4, seed=1), normal(2, 3, 4, seed=2))
    (want, (h, c)), (got, (our_h, our_c)) = theirs(packed, states), ours(packed, states)
    for a, b in ((want.data, got.data), (h, our_h), (c, our_c)):
        torch.testing.assert_close(b, a)
    assert torch.equal(want.batch_sizes, got.batch_sizes)
    assert torch.equal(want.unsorted_indices, got.unsorted_indices)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_one_weight_alone_has_its_gradient_each_time(name: str) -> None:
    """A gradient is put in order where it lies: asked for again, it has to come out the same."""
    torch.manual_seed(0)
    theirs, ours = getattr(nn, name)(3, 4, bidirectional=True), getattr(qft, name)(3, 4, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    x, dy = normal(6, 2, 3), normal(6, 2, 8, seed=1)
    for only in ("weight_hh_l0", "bias_ih_l0_reverse"):
        wanted = []
        for layer in (theirs, ours):
            for parameter_name, parameter in layer.named_parameters():
                parameter.requires_grad_(parameter_name == only)
            y, parameter = layer(x)[0], getattr(layer, only)
            wanted += [torch.autograd.grad(y, parameter, dy, retain_graph=True)[0].clone() for _ in range(2)]
        for gradient in wanted[1:]:
            torch.testing.assert_close(gradient, wanted[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["RNN", "LSTM"])
def test_weights_changed_between_forward_and_backward_are_an_error(name: str) -> None:
    layer = getattr(qft, name)(3, 4)
    y = layer(normal(6, 2, 3))[0]
    with torch.no_grad():
        layer.weight_hh_l0.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3))
        self.rows = nn.GRU(12, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Any) -> Any:
        rows = self.features(x).transpose(1, 2).flatten(2)
        return self.head(self.rows(rows)[1][0])


def test_a_model_is_swapped_and_back() -> None:
    torch.manual_seed(0)
    model = Net()
    kept = copy.deepcopy(model)
    parameters = list(model.parameters())
    assert qft.swap(model) == ["features.0", "features.2", "features.3", "rows"]
    assert type(model.features[0]) is qft.Conv2d
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    both(kept, model, normal(2, 1, 8, 8))
    assert qft.swap(model, back=True) == ["features.0", "features.2", "features.3", "rows"]
    assert type(model.features[0]) is nn.Conv2d
    with pytest.raises(OperatorError, match=r"give a torch\.nn\.Module"):
        qft.swap("model")


def test_a_model_compiles_without_graph_breaks() -> None:
    torch.manual_seed(0)
    model = Net()
    qft.swap(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    both(model, compiled, normal(2, 1, 8, 8))


def test_it_trains() -> None:
    """A few steps on a task that can be learnt: the loss falls as it does with torch's own layers."""
    losses = []
    for ours in (False, True):
        torch.manual_seed(0)
        model = Net()
        if ours:
            qft.swap(model)
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        x, target = normal(16, 1, 8, 8), torch.arange(16) % 3
        for _ in range(5):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(x), target)
            loss.backward()
            optimiser.step()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_what_is_not_there_is_refused_in_a_sentence() -> None:
    with pytest.raises(OperatorError, match="proj_size is 2; leave it out"):
        qft.LSTM(3, 4, proj_size=2)(normal(2, 1, 3))
    with pytest.raises(OperatorError, match="divisor_override"):
        qft.AvgPool2d(2, divisor_override=3)(normal(1, 1, 4, 4))
    with pytest.raises(OperatorError, match=r"bfloat16"):
        qft.Conv1d(1, 1, 1).to(torch.bfloat16)(normal(1, 1, 4).to(torch.bfloat16))
    np.testing.assert_allclose(qft.AvgPool2d(2)(torch.ones(1, 1, 4, 4)).numpy(), 1.0)
