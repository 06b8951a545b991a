"""Models run constant weights by their stored values where that is faster, say so, and give the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

import quatrefoil as qf
from quatrefoil import autotune, dispatch, ops, settings
from quatrefoil.cpu import compressed_limits
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models import sparsity
from quatrefoil.ops import compressed

RNG = np.random.default_rng(3)
X = RNG.standard_normal((1, 64, 14, 14), np.float32)


def pruned(*shape: int, share: float) -> np.ndarray:
    """A weight of which this share is not zero."""
    weight = RNG.standard_normal(shape).astype(np.float32).reshape(-1)
    weight[RNG.permutation(weight.size)[round(share * weight.size) :]] = 0
    return weight.reshape(shape)


def network(share: float) -> onnx.ModelProto:
    """Two convolutions with a residual, and a dense layer, all with this share of weights."""
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> g (float[1, 64, 14, 14] x) => (float[1, 20] y) {
        a = Conv(x, w, b)  r = Relu(a)  c = Conv<pads = [1, 1, 1, 1]>(r, v)  d = Add(c, x)  e = Relu(d)
        p = GlobalAveragePool(e)  f = Flatten(p)  y = Gemm<transB = 1>(f, g, h) }""")
    weights = {
        "w": pruned(64, 64, 1, 1, share=share), "b": RNG.standard_normal(64, np.float32),
        "v": pruned(64, 64, 3, 3, share=share), "g": pruned(20, 64, share=share), "h": np.ones(20, np.float32),
    }  # fmt: skip
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return proto


def test_a_model_with_90_percent_zeros_takes_the_sparse_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    model = qf.load(network(0.1))
    told = str(model.explain(X))
    assert told.count("sparse_conv_places_nchw_f32_simd") == 2
    assert "sparse_conv_row_nchw_f32_simd" in told, "the dense layer"
    most = compressed_limits.limits().one_tap
    assert f"10.0% of its weights are not zero, and up to {most:.0%} it is faster so" in told
    assert [profile.kernel for profile in model.profile(X)].count("sparse_conv_places_nchw_f32_simd") == 2
    monkeypatch.setenv(settings.SPARSE_VARIABLE, settings.NEVER)
    dense = qf.load(network(0.1))
    assert "sparse" not in str(dense.explain(X))


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_numbers_are_the_dense_ones(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    proto = network(share)
    plain = RNG.standard_normal((1, 64, 14, 14), np.float32)
    results = {}
    for wish in (settings.AUTO, settings.NEVER, settings.ALWAYS):
        monkeypatch.setenv(settings.SPARSE_VARIABLE, wish)
        results[wish] = qf.load(proto).run(plain)["y"]
        np.testing.assert_allclose(qf.load(proto, optimized=False).run(plain)["y"], results[wish], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(results[settings.AUTO], results[settings.NEVER], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(results[settings.ALWAYS], results[settings.NEVER], rtol=2e-5, atol=2e-5)
    elsewhere = qf.load(proto).run(plain, backend="asic")["y"]
    np.testing.assert_allclose(elsewhere, results[settings.NEVER], rtol=2e-5, atol=2e-5)


def test_a_model_with_20_percent_zeros_stays_dense_and_says_why() -> None:
    told = str(qf.load(network(0.8)).explain(X))
    assert "sparse_conv" not in told
    most = compressed_limits.limits().one_tap
    assert f"80.0% of its weights are not zero, and it is faster by its stored values up to {most:.0%}" in told
    assert "zero" not in str(qf.load(network(1.0)).explain(X))


def test_a_zero_that_meets_an_infinity_is_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    x = X.copy()
    x[0, 5, 3, 4] = np.inf
    proto = network(0.1)
    sparse = qf.load(proto).run(x)["y"]
    monkeypatch.setenv(settings.SPARSE_VARIABLE, settings.NEVER)
    np.testing.assert_array_equal(np.isnan(sparse), np.isnan(qf.load(proto).run(x)["y"]))
    assert np.isnan(sparse).any()


def test_sparse_initializers_are_taken() -> None:
    weight = pruned(64, 64, 1, 1, share=0.05)
    (places,) = np.nonzero(weight.reshape(-1))
    stored = helper.make_sparse_tensor(
        numpy_helper.from_array(weight.reshape(-1)[places], "w"), numpy_helper.from_array(places.astype(np.int64), "i"),
        weight.shape,
    )  # fmt: skip
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 64, 14, 14] x) => (float[1, 64, 14, 14] y) {y = Conv(x, w)}'
    )
    proto.graph.sparse_initializer.append(stored)
    model = qf.load(proto)
    assert "sparse_conv_places" in str(model.explain(X))
    np.testing.assert_allclose(model.run(X)["y"], qf.conv2d(X, weight), rtol=1e-5, atol=1e-5)


def test_measured_times_decide_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = pruned(16, 16, 1, 1, share=0.2)
    problem = ops.parse("conv float32[1x16x8x8],float32[16x16x1x1]")
    parameters = {1: weight}
    stored, said = sparsity.stored_form(problem, parameters, "cpu")
    assert stored is not None
    assert f"up to {compressed_limits.limits().one_tap:.0%}" in said
    seconds = {"conv": 1e-6, "sparse_conv": 2e-6}
    real = autotune.remembered

    def remembered(house: object, asked: object) -> dict[str, float]:
        keys = (autotune.kernel_key(kernel) for kernel in house.kernels() if kernel.op == asked.op)
        return dict.fromkeys(keys, seconds[asked.op])

    monkeypatch.setattr(autotune, "remembered", remembered)
    dispatch._select.cache_clear()
    stored, said = sparsity.stored_form(problem, parameters, "cpu")
    assert stored is None
    assert "2.0 us measured by its stored values, 1.0 us dense" in said
    monkeypatch.setattr(autotune, "remembered", real)
    dispatch._select.cache_clear()


def test_a_setting_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.SPARSE_VARIABLE, "sometimes")
    with pytest.raises(QuatrefoilError, match="QUATREFOIL_SPARSE='sometimes'; write auto, never or always"):
        settings.sparse_weights()


@pytest.mark.parametrize(("op", "gates"), [("RNN", 1), ("LSTM", 4), ("GRU", 3)])
@pytest.mark.parametrize("lengths", [False, True])
def test_recurrent_layers_take_either_form(monkeypatch: pytest.MonkeyPatch, op: str, gates: int, lengths: bool) -> None:
    given = ", int32[3] lens" if lengths else ""
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[7, 3, 24] x{given}) => (float[7, 2, 3, 20] y) '
        f'{{ y = {op}<hidden_size = 20, direction = "bidirectional">(x, w, r, b{", lens" if lengths else ""}) }}'
    )
    book = np.array([-0.4, 0.0, 0.3, 0.1], np.float32)
    weights = {
        "w": pruned(2, 20 * gates, 24, share=0.08), "r": pruned(2, 20 * gates, 20, share=0.08) * np.float32(0.3),
        "b": RNG.standard_normal((2, 40 * gates), np.float32),
    }  # fmt: skip
    x = {"x": RNG.standard_normal((7, 3, 24), np.float32)} | (
        {"lens": np.array([7, 2, 0], np.int32)} if lengths else {}
    )
    name = {"RNN": "elman", "LSTM": "lstm", "GRU": "gru"}[op]
    for form, wish in ((f"sparse_{name}_rows", settings.AUTO), (f"shared_{op.lower()}_lookup", settings.ALWAYS)):
        if wish == settings.ALWAYS:  # no zeros, few values
            weights |= {key: book[[0, 2, 3]][RNG.integers(0, 3, weights[key].shape)] for key in "wr"}
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in weights.items())
        monkeypatch.setenv(settings.SPARSE_VARIABLE, wish)
        model = qf.load(proto)
        assert form in str(model.explain(x))
        made = model.run(x)["y"]
        monkeypatch.setenv(settings.SPARSE_VARIABLE, settings.NEVER)
        np.testing.assert_allclose(made, qf.load(proto).run(x)["y"], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("problem", "entries", "known", "says"),
    [
        ("conv float32[2x1024x1],float32[1024x1024x1]", 16, "AVX2", "16 values, and codes are read faster from 4 MiB"),
        ("conv float32[1x512x1],float32[1024x512x1]", 16, "AVX2", "16 values, and codes are only read faster from 4 MiB"),
        ("conv float32[1x512x1],float32[1024x512x1]", 16, "AVX512", "codes are read faster from 1 MiB"),
        ("conv float32[9x512x1],float32[1024x512x1]", 16, "AVX512", "only read faster from 1 MiB of dense weights on, for up to 8"),
        ("conv float32[1x512x1],float32[1024x512x1]", 99, "AVX2", "99 values, and so many are looked up slower"),
        ("conv float32[1x512x1],float32[1024x512x1]", 99, "BYTES_PERMUTED", "99 values, and codes are read faster from 2 MiB"),
        ("conv float32[1x64x14x14],float32[256x64x1x1]", 16, "AVX512", "whose codes are only smaller: the places of a plane"),
        ("lstm float32[2x1x8],float32[1x1536x8],float32[1x1536x384] hidden_size=384", 16, "AVX512",
         "16 values, and codes are read faster from 2 MiB of dense weights on, for up to 32 sequences"),
    ],
)  # fmt: skip
def test_few_values_are_codes_where_these_are_read_faster(
    monkeypatch: pytest.MonkeyPatch, problem: str, entries: int, known: str, says: str
) -> None:
    monkeypatch.setattr(compressed_limits, "limits", lambda: getattr(compressed_limits, known))
    parsed, book = ops.parse(problem), RNG.standard_normal(entries).astype(np.float32)
    weights = {
        position: book[RNG.integers(0, entries, parsed.input(position).shape)]
        for position in range(1, len(parsed.inputs))
    }
    stored, said = sparsity.stored_form(parsed, weights, "cpu")
    assert says in said
    assert (stored is None) == ("only" in says or "slower" in says)
    if stored is not None:
        decoded = compressed.decoded(stored.problem, stored.parameters)
        for position, weight in weights.items():
            np.testing.assert_array_equal(decoded[position], weight)


@pytest.mark.parametrize(("share", "form"), [(0.3, "shared_conv"), (0.05, "sparse_conv")])
def test_few_values_with_zeros_take_the_faster_form(monkeypatch: pytest.MonkeyPatch, share: float, form: str) -> None:
    monkeypatch.setattr(compressed_limits, "limits", lambda: compressed_limits.AVX512)
    weight = np.sign(pruned(1024, 1024, 1, share=share))
    stored, _ = sparsity.stored_form(ops.parse("conv float32[1x1024x1],float32[1024x1024x1]"), {1: weight}, "cpu")
    assert stored is not None
    assert stored.problem.op == form
