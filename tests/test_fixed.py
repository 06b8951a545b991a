"""Fixed-point networks: near the float model they are made from, the same integers on every backend, refusals in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quatrefoil.models import ModelError
from quatrefoil.models.fixed.network import FixedNetwork, fixed
from quatrefoil.models.fixed.precision import LayerPrecision, Precision
from quatrefoil.models.gallery.small import NETS, Net, samples
from quatrefoil.numerics import Fixed

WIDE = Precision(
    value=Fixed(26, 8, "RND", "SAT"),
    weight=Fixed(20, 4, "RND", "SAT"),
    table=Fixed(24, 2, "RND", "SAT"),
    table_size=65536,
)
"""So fine that what is left is the tables' steps."""


@pytest.mark.parametrize("name", NETS)
def test_wide_formats_come_near_the_float_model(name: str) -> None:
    model = NETS[name]()
    network, x = fixed(model, WIDE), samples(model, 5)
    got, want = network.run(x), model.run(x)
    for output, array in want.items():
        assert got[output].dtype == np.float32
        scale = np.abs(array).max()
        # 65536 entries over 16: steps of 2^-12 in what recurrent layers look up again and again
        assert np.abs(got[output] - array).max() < 4e-3 * scale, output


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("backend", ["fpga", "asic"])
def test_every_backend_has_the_same_integers(name: str, backend: str) -> None:
    model = NETS[name]()
    network = fixed(model, "fixed<12,5,RND,SAT>")
    x = samples(model, 2)
    want, got = network.integers(x, backend="cpu"), network.integers(x, backend=backend)
    assert want.keys() == got.keys() == network.formats.keys()
    for value, form in network.formats.items():
        assert want[value].dtype == form.dtype
        np.testing.assert_array_equal(got[value], want[value], err_msg=value)


def test_values_have_the_precision_that_was_asked_for() -> None:
    precision = Precision(
        inputs={"image": Fixed(8, 0, "RND", "SAT", signed=False)},
        layers={
            "conv1": LayerPrecision(weight=Fixed(8, 1, "RND", "SAT"), result=Fixed(10, 4, "RND", "SAT")),
            "dense2": LayerPrecision(accumulator=Fixed(20, 8), reuse=4),
        },
    )
    network = fixed(NETS["digits_cnn"](), precision)
    assert network.formats["image.fixed"].text == "ufixed<8,0,RND,SAT>"
    assert network.formats["relu1.out"].text == network.formats["pool1.out"].text == "fixed<10,4,RND,SAT>"
    conv = next(node for node in network.graph.nodes if node.name == "conv1")
    assert conv.attributes["w_format"] == "fixed<8,1,RND,SAT>"
    assert network.graph.constants["conv1.weight"].max() <= 127
    dense = next(node for node in network.graph.nodes if node.name == "dense2")
    assert (dense.attributes["accumulator"], dense.attributes["reuse"]) == ("fixed<20,8>", 4)


def test_exact_sums_do_not_overflow() -> None:
    """Of the greatest inputs with the weights' own signs, which reach the bound."""
    net = Net(50)
    model = net.model(net.add("Gemm", "x", net.weight(4, 50, scale=8.0), net.weight(4), transB=1))
    network = fixed(model, Precision(Fixed(8, 4, "RND", "SAT"), Fixed(8, 2, "RND", "SAT")))
    weight = network.graph.constants["gemm0.weight"]
    x = np.where(weight[:1] > 0, 7.9375, -8.0).astype(np.float32)
    [node] = [node for node in network.graph.nodes if node.op == "fixed_conv"]
    accumulator = Fixed.parse(node.attributes["accumulator"])
    raw = network.formats["x.fixed"].quantize(x).astype(np.int64)
    exact = int((raw * weight[0].astype(np.int64)).sum())
    assert abs(exact) > accumulator.high // 2, "one bit fewer would not do"
    assert accumulator.low <= exact <= accumulator.high


def test_precision_reads_back(tmp_path: Path) -> None:
    precision = Precision(
        bias=Fixed(12, 3), accumulator=Fixed(24, 10, "RND", "SAT"), table_size=4096, inputs={"x": Fixed(8, 1)},
        layers={"conv": LayerPrecision(result=Fixed(9, 2), accumulator="exact", reuse=3)},
    )  # fmt: skip
    precision.save(tmp_path / "precision.json")
    assert Precision.load(tmp_path / "precision.json") == precision


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{", "no JSON"),
        ("[]", "holds list"),
        ('{"values": "fixed<8,1>"}', "unknown key 'values'; known are value"),
        ('{"value": "float"}', "write fixed<width,integer>"),
        ('{"layers": {"a": {"table_size": 0}}}', "give a whole number"),
        ('{"layers": {"a": 1}}', "object of objects"),
    ],
)
def test_a_precision_that_cannot_be_read_is_refused(text: str, wanted: str) -> None:
    with pytest.raises(ModelError, match=wanted):
        Precision.parse(text, "file")


def refused(net: Net, output: str, wanted: str) -> None:
    with pytest.raises(ModelError, match=wanted):
        fixed(net.model(output))


def test_what_has_no_fixed_point_form_is_refused() -> None:
    net = Net(4)
    refused(net, net.add("Erf", "x"), r"'erf0' \(Erf\) has no fixed-point form; known are Conv")
    net = Net(2, 6, 6)
    refused(
        net,
        net.add("Resize", "x", "", net.constant(np.array([1, 1, 2, 2], np.float32)), mode="linear"),
        "nearest alone",
    )
    net = Net(5, 4)
    x = net.add("Transpose", "x", perm=[1, 0, 2])
    y, _ = net.add("RNN", x, net.weight(1, 3, 4), net.weight(1, 3, 3), outputs=2, hidden_size=3, clip=1.0)
    refused(net, y, "clip has no fixed-point form")
    net = Net(5, 4)
    x = net.add("Transpose", "x", perm=[1, 0, 2])
    y, _ = net.add("RNN", x, net.weight(1, 3, 4), net.weight(1, 3, 3), outputs=2, hidden_size=3, activations=["Elu"])
    refused(net, y, "Elu has no fixed-point form; take Sigmoid, Tanh, Relu")
    with pytest.raises(ModelError, match="names 'conv9'; the model's layers are 'conv1'"):
        fixed(NETS["digits_cnn"](), Precision(layers={"conv9": LayerPrecision()}))


def test_a_network_keeps_its_source() -> None:
    model = NETS["digits_cnn"]()
    network = fixed(model, "fixed<16,6>")
    assert isinstance(network, FixedNetwork)
    assert network.source is model
    reals = network.reals(samples(model, 2))
    np.testing.assert_allclose(reals["relu1.out"], np.round(reals["relu1.out"] * 1024) / 1024)
