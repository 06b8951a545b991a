"""Loading, running, profiling and explaining models, and every way in which that is refused."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

import quatrefoil as qf
from quatrefoil import backends, ops
from quatrefoil.models import ModelError
from quatrefoil.reference import evaluate
from quatrefoil.registry import Availability, Kernel

RNG = np.random.default_rng(11)


def text_model(text: str, ir: int = 8, opset: int = 17) -> onnx.ModelProto:
    """A model from ONNX's text form, without its header."""
    return parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]> {text}')


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


CNN = text_model("""
net (float[n, 3, 8, 8] image) => (float[n, 5] scores) {
    features = Conv <pads = [1, 1, 1, 1]> (image, w, b)
    positive = Relu (features)
    pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (positive)
    mean = GlobalAveragePool (pooled)
    flat = Flatten (mean)
    scores = Gemm (flat, m, c)
}
""")
for _name, _shape in (("w", (4, 3, 3, 3)), ("b", (4,)), ("m", (4, 5)), ("c", (5,))):
    CNN.graph.initializer.append(numpy_helper.from_array(normal(*_shape), _name))

LSTM = text_model("""
net (float[t, n, 4] x, int32[n] lengths) => (float[t, d, n, 6] y, float[d, n, 6] h) {
    y, h = LSTM <hidden_size = 6> (x, w, r, b, lengths)
}
""")
for _name, _shape in (("w", (1, 24, 4)), ("r", (1, 24, 6)), ("b", (1, 48))):
    LSTM.graph.initializer.append(numpy_helper.from_array(normal(*_shape), _name))


def reference(model: onnx.ModelProto, inputs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip([v.name for v in model.graph.output], ReferenceEvaluator(model).run(None, inputs)))


def close(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


# Loading and running


@pytest.mark.parametrize("form", ["path", "text path", "bytes", "proto"])
def test_load_from(form: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(CNN, str(path))
    source = {"path": path, "text path": str(path), "bytes": path.read_bytes(), "proto": CNN}[form]
    x = normal(2, 3, 8, 8)
    close(qf.load(source).run({"image": x}, backend="cpu")["scores"], reference(CNN, {"image": x})["scores"])


def test_one_input_needs_no_name() -> None:
    x = normal(1, 3, 8, 8)
    close(qf.load(CNN).run(x)["scores"], reference(CNN, {"image": x})["scores"])


def test_inputs_and_outputs_are_described() -> None:
    model = qf.load(LSTM)
    assert [str(value) for value in model.inputs] == ["x: float32[txnx4]", "lengths: int32[n]"]
    assert [value.name for value in model.outputs] == ["y", "h"]
    assert model.outputs[1].shape == ("d", "n", 6)
    assert "float32[nx3x8x8]" in repr(qf.load(CNN))


def test_free_axes_may_change_between_runs() -> None:
    model = qf.load(CNN)
    for batch in (1, 3, 1, 4):
        x = normal(batch, 3, 8, 8)
        close(model.run(x)["scores"], reference(CNN, {"image": x})["scores"])


def test_more_shapes_than_plans_are_kept() -> None:
    model = qf.load(CNN)
    for batch in [*range(1, 20), 1]:
        x = normal(batch, 3, 8, 8)
        close(model.run(x)["scores"], reference(CNN, {"image": x})["scores"])


@pytest.mark.parametrize("backend", ["cpu", "fpga", "asic"])
def test_every_backend_gives_the_same(backend: str) -> None:
    if not qf.load(CNN).explain(backend=backend).placements[0].selection.availability.ready:
        pytest.skip(f"backend {backend} is not available here")
    x, lengths = normal(5, 2, 4), np.int32([5, 3])
    model = qf.load(LSTM)
    want = model.run({"x": x, "lengths": lengths}, backend="cpu")
    got = model.run({"x": x, "lengths": lengths}, backend=backend)
    close(got["y"], want["y"])
    assert not got["y"][3:, :, 1].any()


def test_the_ambient_backend_is_used() -> None:
    with qf.backend("asic"):
        records = qf.load(CNN).profile(normal(1, 3, 8, 8))
    assert records[0].backend == "asic"


def test_numbers_are_inputs() -> None:
    model = qf.load(
        text_model("g (float a, float[2] b, int64 k) => (float[2] y, int64 j) { y = Mul(a, b) j = Neg(k) }")
    )
    out = model.run({"a": np.float32(2), "b": [1, 2.5], "k": 3})
    np.testing.assert_array_equal(out["y"], np.float32([2, 5]))
    assert out["j"] == -3 and out["j"].dtype == np.int64 and isinstance(out["j"], np.ndarray)


def test_arrays_of_other_libraries_come_back_as_such() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = normal(1, 3, 8, 8)
    got = qf.load(CNN).run(torch.from_numpy(x))["scores"]
    assert isinstance(got, torch.Tensor)
    close(got.numpy(), reference(CNN, {"image": x})["scores"])


def test_strided_read_only_and_swapped_arrays() -> None:
    x = normal(2, 8, 8, 3).transpose(0, 3, 1, 2)
    x.flags.writeable = False
    want = reference(CNN, {"image": x})["scores"]
    close(qf.load(CNN).run(x)["scores"], want)
    close(qf.load(CNN).run(x.astype(">f4"))["scores"], want)


def test_outputs_share_no_memory_with_inputs_or_weights() -> None:
    text = "g (float[2] x) => (float[2] y, float[2] x2, float[1, 2] z) <float[2] w = {1, 2}> " \
        "{ y = Identity(w) x2 = Identity(x) s = Constant<value_ints = [1, 2]>() z = Reshape(x, s) }"  # fmt: skip
    model = qf.load(text_model(text))
    x = np.float32([5, 6])
    out = model.run(x)
    for array in out.values():
        array[...] = 0
    assert x.tolist() == [5, 6]
    assert model.run(x)["y"].tolist() == [1, 2]


def test_weights_that_are_listed_as_inputs() -> None:
    old = text_model("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }", ir=3, opset=7)
    old.graph.initializer.append(numpy_helper.from_array(np.float32([10, 20]), "w"))
    model = qf.load(old)
    assert [value.name for value in model.inputs] == ["x"]
    assert model.run(np.float32([1, 2]))["y"].tolist() == [11, 22]
    assert model.run({"x": np.float32([1, 2]), "w": np.float32([0, 1])})["y"].tolist() == [1, 3]
    assert model.run(np.float32([1, 2]))["y"].tolist() == [11, 22]


def test_weights_that_are_inputs_are_packed_anew() -> None:
    model = qf.load(text_model("g (float[1,2,5,5] x, float[3,2,3,3] w) => (float[1,3,3,3] y) { y = Conv(x, w) }"))
    for _ in range(2):
        x, w = normal(1, 2, 5, 5), normal(3, 2, 3, 3)
        close(model.run({"x": x, "w": w})["y"], qf.conv2d(x, w))


def test_weights_in_another_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model = changed(CNN, lambda copy: None)  # saving so moves the weights out of the model at hand
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").exists()
    x = normal(1, 3, 8, 8)
    close(qf.load(path).run(x)["scores"], reference(CNN, {"image": x})["scores"])
    with pytest.raises(ModelError, match="kept in another file; load the model from its path"):
        qf.load(path.read_bytes())
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(ModelError, match="other files cannot be read"):
        qf.load(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match="other files cannot be read"):
        qf.load(path)


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (tmp_path / "models").mkdir()
    model = onnx.ModelProto()
    model.CopyFrom(text_model("g (float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> { y = Add(x, w) }"))
    [weight] = model.graph.initializer
    del weight.float_data[:]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret.bin")
    path = tmp_path / "models" / "net.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="other files cannot be read"):
        qf.load(path)


def test_nodes_in_any_order() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(CNN)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    x = normal(1, 3, 8, 8)
    close(qf.load(model).run(x)["scores"], reference(CNN, {"image": x})["scores"])


def test_functions_are_inlined() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) { h = own.block(x) y = own.twice(h) }
        <domain: "own", opset_import: ["" : 17]> block (x) => (y) { y = Relu (x) }
        <domain: "own", opset_import: ["" : 17, "own" : 1]> twice (x) => (y) { a = own.block (x) y = Add (a, a) }
    """)
    x = normal(1, 2, 4, 4)
    close(qf.load(model).run(x)["y"], 2 * np.maximum(x, 0))


def test_threads_share_a_model() -> None:
    model = qf.load(CNN)
    images = [normal(1 + i % 3, 3, 8, 8) for i in range(12)]
    want = [reference(CNN, {"image": x})["scores"] for x in images]
    got: list[Any] = [None] * len(images)

    def work(first: int) -> None:
        for _ in range(5):
            for i in range(first, len(images), 4):
                got[i] = model.run(images[i])["scores"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for left, right in zip(got, want):
        close(left, right)


def test_max_unpool_to_a_shape_that_is_an_input() -> None:
    model = qf.load(text_model(
        "g (float[1,1,2,2] x, int64[1,1,2,2] i, int64[4] s) => (float[a,b,c,d] y)"
        "{ y = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (x, i, s) }"
    ))  # fmt: skip
    x, indices = np.float32([[[[1, 2], [3, 4]]]]), np.int64([[[[5, 7], [13, 15]]]])
    for side in (5, 4):
        y = model.run({"x": x, "i": indices, "s": np.int64([1, 1, side, side])})["y"]
        assert y.shape == (1, 1, side, side)
        assert y[0, 0, 1, 1] == 1 and y[0, 0, 3, 3] == 4 and y.sum() == 10


def test_a_model_without_inputs() -> None:
    model = qf.load(text_model("g () => (float[2] y) { c = Constant<value_floats = [1.0, 2.0]>() y = Neg(c) }"))
    assert model.run({})["y"].tolist() == [-1, -2]


@pytest.mark.parametrize("opset", [6, 7, 9, 11, 13, 17, 18, 22])
def test_operator_sets(opset: int) -> None:
    """The same network in operator sets old and new."""
    dropout = "Dropout <ratio = 0.5> (p)" if opset < 12 else "Dropout (p)"
    squeezed = "Squeeze <axes = [2, 3]> (a)" if opset < 13 else "Squeeze (a, axes)"
    clip = "Clip <min = 0.0, max = 1.0> (n)" if opset < 11 else "Clip (n, low, high)"
    test = "is_test = 1, " if opset < 7 else ""
    body = f"""
        g (float[1, 3, 9, 9] x) => (float[1, 2] y) {{
            c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)
            n = BatchNormalization <{test} epsilon = 0.01> (c, s, o, m, v)
            k = {clip}
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (k)
            d = {dropout}
            l = LpPool <kernel_shape = [1, 1], p = 2> (d)
            q = AveragePool <kernel_shape = [2, 2], pads = [0, 0, 1, 1]> (l)
            a = GlobalMaxPool (q)
            y = {squeezed}
        }}
    """
    model = text_model(body, opset=opset)
    weights = {"w": normal(2, 3, 3, 3), "s": normal(2), "o": normal(2), "m": normal(2), "v": np.float32([1, 2])}
    small = {"low": np.float32(0), "high": np.float32(1), "axes": np.int64([2, 3])}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in (weights | small).items())
    x = normal(1, 3, 9, 9)
    c = qf.conv2d(x, weights["w"], stride=2, padding=1)
    s, o, m, v = (weights[name].reshape(-1, 1, 1) for name in "somv")
    k = np.clip((c - m) / np.sqrt(v + 0.01) * s + o, 0, 1)
    p = qf.max_pool2d(k, 2)
    got = qf.load(model).run(x)["y"]
    assert got.shape == (1, 2)
    best = [max(p[0, n, i : i + 2, j : j + 2].mean() for i in (0, 1) for j in (0, 1)) for n in (0, 1)]
    np.testing.assert_allclose(got[0], best, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("opset", "extra"), [(6, ", output_sequence = 1"), (7, ""), (14, ""), (22, "")])
def test_recurrent_layers_of_old_operator_sets(opset: int, extra: str) -> None:
    model = text_model(
        f"g (float[3, 2, 4] x) => (float[3, 1, 2, 5] y) {{ y = GRU <hidden_size = 5 {extra}> (x, w, r) }}", opset=opset
    )
    w, r, x = normal(1, 15, 4), normal(1, 15, 5), normal(3, 2, 4)
    model.graph.initializer.extend([numpy_helper.from_array(w, "w"), numpy_helper.from_array(r, "r")])
    newest = changed(model, _set("opset_import.0.version", 22))
    if extra:
        del newest.graph.node[0].attribute[1]
    close(qf.load(model).run(x)["y"], reference(newest, {"x": x})["y"])


def test_the_weights_of_a_loaded_model_are_read_only() -> None:
    graph = qf.load(CNN).graph
    assert graph.constants
    assert not any(array.flags.writeable for array in graph.constants.values())


# Control flow


IF = """
g (bool c, float[2] x, float[2] z) => (float[2] y) {
    d = Add (x, z)
    y = If (c) <then_branch = t () => (float[2] p) { p = Mul (d, x) }, else_branch = e () => (float[2] q) { q = Neg (d) }>
}
"""


@pytest.mark.parametrize("condition", [True, False])
def test_if(condition: bool) -> None:
    x, z = normal(2), normal(2)
    got = qf.load(text_model(IF)).run({"c": np.bool_(condition), "x": x, "z": z})["y"]
    close(got, (x + z) * x if condition else -(x + z))


def test_operators_of_the_house_inside_bodies() -> None:
    model = text_model("""
    g (bool c, float[1, 3, 6, 6] x) => (float[1, 2, 6, 6] y) {
        y = If (c) <
            then_branch = t () => (float[1, 2, 6, 6] p) { r = Conv <pads = [1, 1, 1, 1]> (x, w) p = Relu (r) },
            else_branch = e () => (float[1, 2, 6, 6] q) { q = Conv (x, v) }
        >
    }
    """)
    w, v = normal(2, 3, 3, 3), normal(2, 3, 1, 1)
    model.graph.initializer.extend([numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")])
    x = normal(1, 3, 6, 6)
    loaded = qf.load(model)
    assert loaded.graph.nodes[0].inputs == ("c", "x"), "weights have to be constants of the bodies"
    close(loaded.run({"c": True, "x": x})["y"], qf.conv2d(x, w, padding=1, activation="Relu"))
    close(loaded.run({"c": False, "x": x})["y"], qf.conv2d(x, v))
    lines = str(loaded.explain({"c": True, "x": x})).splitlines()
    assert "runs its bodies" in lines[0] and "Conv+Relu" in lines[1]


def loop(trips: str, condition: str) -> str:
    return f"""
    g (int64 m, bool c, float s) => (float last, float[k] all) {{
        last, all = Loop ({trips}, {condition}, s) <body = b (int64 i, bool going, float v) => (bool on, float w, float o) {{
            step = Cast <to = 1> (i)
            w = Add (v, step)
            limit = Constant <value_float = 9.5> ()
            on = Less (w, limit)
            o = Mul (w, s)
        }}>
    }}
    """


@pytest.mark.parametrize(("trips", "condition", "m", "c", "last", "count"), [
    ("m", "c", 3, True, 4.0, 3),
    ("m", "c", 100, True, 11.0, 5),
    ("m", "c", 3, False, 1.0, 0),
    ("m", "c", 0, True, 1.0, 0),
    ("m", "", 2, True, 2.0, 2),
    ("", "c", 0, True, 11.0, 5),
    ("", "", 0, True, 11.0, 5),
])  # fmt: skip
def test_loop(trips: str, condition: str, m: int, c: bool, last: float, count: int) -> None:
    out = qf.load(text_model(loop(trips, condition))).run({"m": m, "c": c, "s": 1.0})
    assert out["last"] == last
    assert out["all"].shape == (count,)


def test_scan_directions_and_axes() -> None:
    model = text_model("""
    g (float[2] s, float[2, 3] x) => (float[2] total, float[2, 3] sums) {
        total, sums = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1],
            scan_output_axes = [1], scan_output_directions = [1],
            body = b (float[2] a, float[2] e) => (float[2] t, float[2] o) { t = Add (a, e) o = Identity (t) }> (s, x)
    }
    """)
    s, x = normal(2), normal(2, 3)
    out = qf.load(model).run({"s": s, "x": x})
    close(out["total"], s + x.sum(axis=1))
    close(out["sums"], s[:, None] + x[:, ::-1].cumsum(axis=1)[:, ::-1])


def test_a_sequence_that_grows_in_a_loop() -> None:
    model = text_model("""
    g (int64 m) => (seq(float) y) {
        none = SequenceEmpty ()
        y = Loop (m, , none) <body = b (int64 i, bool c, seq(float) s) => (bool d, seq(float) t) {
            d = Identity (c)
            f = Cast <to = 1> (i)
            t = SequenceInsert (s, f)
        }>
    }
    """)
    assert [float(v) for v in qf.load(model).run({"m": 3})["y"]] == [0, 1, 2]


@pytest.mark.parametrize(("text", "message"), [
    (loop("", "").replace("on = Less (w, limit)", "on = Constant <value = bool {1}> ()"), "never ends"),
    (loop("m", "c").replace(", bool going, float v)", ", bool going)").replace("Add (v, step)", "Add (s, step)"),
     "has to take the iteration, the condition and 1 carried"),
    (IF.replace("(float[2] q)", "(float[2] q, float[2] d)"), "else_branch gives 2 outputs; it has to give 1"),
    (IF.replace(", else_branch = e () => (float[2] q) { q = Neg (d) }", ""), "lacks its body 'else_branch'"),
    (IF.replace("Neg (d)", "Neg (nowhere)"), "reads 'nowhere', which is no input"),
])  # fmt: skip
def test_bodies_that_do_not_fit(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        qf.load(text_model(text)).explain()


# Profiles and explanations


def test_profile_measures_each_node() -> None:
    records = qf.load(CNN).profile(normal(1, 3, 8, 8), backend="cpu", repeats=2)
    assert [record.op for record in records] == ["Conv+Relu", "MaxPool", "GlobalAveragePool", "Flatten", "Gemm"]
    assert [record.backend for record in records] == ["cpu", "cpu", "cpu", "host", "host"]
    assert records[0].kernel.startswith("conv_") and records[0].why
    assert records[4].kernel.startswith("cpu sequence, conv_")  # which one depends on the instruction set
    assert all(record.seconds is not None and record.cycles is None for record in records)
    assert all(record.seconds for record in records if record.op != "Flatten"), "a view costs nothing"
    assert sum(record.share for record in records) == pytest.approx(1)


def test_profile_of_a_simulated_backend_counts_cycles() -> None:
    records = qf.load(CNN).profile(normal(1, 3, 8, 8), backend="asic")
    assert records[0].cycles is not None and records[0].cycles > 0 and records[0].seconds is None
    assert records[0].microseconds is not None and records[0].microseconds > 0
    assert records[4].cycles is None and records[4].seconds is not None and records[4].share == 0
    assert sum(record.share for record in records) == pytest.approx(1)


def test_explain_is_one_line_a_node() -> None:
    lines = str(qf.load(CNN).explain(backend="cpu")).splitlines()
    assert len(lines) == 5
    assert "(Conv+Relu) -> positive: cpu, conv_" in lines[0]
    assert "(Gemm) -> scores: host, cpu sequence, conv_" in lines[4]


def test_explain_says_what_runs() -> None:
    model = qf.load(CNN)
    x = normal(2, 3, 8, 8)
    explained = [p.kernel for p in model.explain(x, backend="fpga") if p.backend == "fpga"]
    assert explained == [record.kernel for record in model.profile(x, backend="fpga") if record.backend == "fpga"]


def test_explain_needs_shapes() -> None:
    with pytest.raises(ModelError, match=r"input x: float32\[txnx4\] has free axes; give example inputs"):
        qf.load(LSTM).explain()


def test_strict() -> None:
    with pytest.raises(ModelError, match=r"strict: .*Flatten \(1\), Gemm \(1\)"):
        qf.load(CNN, strict=True)
    qf.load(LSTM, strict=True)


# A backend with a memory of its own


class FarArray:
    """An array that NumPy cannot read: what a device's array is to the host."""

    __array_ufunc__ = None

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.shape, self.dtype, self.flags, self.size = data, data.shape, data.dtype, data.flags, data.size

    def reshape(self, *shape: int) -> FarArray:
        return FarArray(self.data.reshape(*shape))

    def __getitem__(self, index: Any) -> FarArray:
        return FarArray(self.data[index])

    def min(self) -> int:
        return int(self.data.min())

    def max(self) -> int:
        return int(self.data.max())


class FarBackend:
    """Computes with the oracle, on FarArrays, and counts what travels."""

    name, simulated, timing_note = "far", False, ""

    def __init__(self) -> None:
        self.puts: list[tuple[int, ...]] = []
        self.gets: list[tuple[int, ...]] = []

    def probe(self) -> Availability:
        return Availability(True, "far away")

    def kernels(self) -> list[Kernel]:
        def prepare(problem: Any, parameters: Any) -> Any:
            assert all(isinstance(array, FarArray) for array in parameters.values())

            def run(inputs: Any) -> tuple[FarArray, ...]:
                given = [parameters.get(i, array) for i, array in enumerate(inputs)]
                assert all(array is None or isinstance(array, FarArray) for array in given)
                results = evaluate(problem, [None if array is None else array.data for array in given])
                return tuple(FarArray(r.astype(t.numpy_dtype)) for r, t in zip(results, problem.outputs))

            return run

        return [Kernel(f"{op}_far", op, lambda problem: None, prepare) for op in ops.SPECS]

    def device(self) -> str:
        return "far"

    def owns(self, array: object) -> bool:
        return isinstance(array, FarArray)

    def put(self, array: np.ndarray) -> FarArray:
        self.puts.append(array.shape)
        return FarArray(array.copy())

    def get(self, array: FarArray) -> np.ndarray:
        self.gets.append(array.shape)
        return array.data.copy()


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> FarBackend:
    module = ModuleType("far_away")
    module.BACKEND = FarBackend()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "far_away", module)
    monkeypatch.setitem(backends.MODULES, "far", "far_away")
    backends.get.cache_clear()
    return module.BACKEND  # type: ignore[attr-defined]


def test_arrays_stay_on_the_device_between_operators_of_the_house(far: FarBackend) -> None:
    model, x = qf.load(CNN), normal(2, 3, 8, 8)
    want = reference(CNN, {"image": x})["scores"]
    close(model.run(x, backend="far")["scores"], want)
    assert sorted(far.puts) == [(2, 3, 8, 8), (4,), (4, 3, 3, 3)]
    assert far.gets == [(2, 4, 1, 1)], "the pooled features are brought to the host for Flatten, nothing else is"
    far.puts.clear()
    far.gets.clear()
    close(model.run(x, backend="far")["scores"], want)
    assert far.puts == [(2, 3, 8, 8)], "weights are put once"
    lines = str(model.explain(x, backend="far")).splitlines()
    assert lines[0].endswith("far, conv_far, first in priority that accepts")
    assert lines[3].endswith("host, numpy, its inputs copied to the host")
    assert [r.kernel for r in model.profile(x, backend="far")][:3] == ["conv_far", "max_pool_far", "average_pool_far"]


def test_outputs_are_brought_back_from_the_device(far: FarBackend) -> None:
    x, lengths = normal(5, 2, 4), np.int32([5, 3])
    got = qf.load(LSTM).run({"x": x, "lengths": lengths}, backend="far")
    want = qf.load(LSTM).run({"x": x, "lengths": lengths}, backend="cpu")
    close(got["y"], want["y"])
    close(got["h"], want["h"])


def test_an_output_shape_on_the_device(far: FarBackend) -> None:
    model = qf.load(text_model(
        "g (float[1,1,2,2] x, int64[4] s) => (float[a,b,c,d] y)"
        "{ p, i = MaxPool <kernel_shape = [1, 1], strides = [1, 1]> (x)"
        "  y = MaxUnpool <kernel_shape = [1, 1], strides = [1, 1]> (p, i, s) }"
    ))  # fmt: skip
    assert model.run({"x": normal(1, 1, 2, 2), "s": [1, 1, 3, 3]}, backend="far")["y"].shape == (1, 1, 3, 3)


# Refusals of inputs


@pytest.mark.parametrize(("inputs", "message"), [
    ({}, r"the input 'x' is missing; the model takes x: float32\[txnx4\], lengths: int32\[n\]"),
    ({"x": np.zeros((1, 1, 4), np.float32)}, "the input 'lengths' is missing"),
    ({"y": 1, "x": 1, "lengths": 1}, "no input 'y'; it has x"),
    (np.zeros((1, 1, 4), np.float32), r"the model has 2 inputs \(x, lengths\); give them by name"),
    ({"x": np.zeros((1, 1, 4)), "lengths": np.int32([1])}, r"'x' has dtype float64; the model takes x: float32"),
    ({"x": np.zeros((1, 4), np.float32), "lengths": np.int32([1])}, r"'x' has shape \[1, 4\]; the model takes"),
    ({"x": np.zeros((1, 1, 5), np.float32), "lengths": np.int32([1])}, r"'x' has shape \[1, 1, 5\]"),
    ({"x": None, "lengths": np.int32([1])}, "'x' is NoneType; give an array"),
    ({"x": "text", "lengths": np.int32([1])}, "'x' is str; give an array"),
    ({"x": np.zeros((1, 1, 4), np.float32), "lengths": [1.5]}, "'lengths' has dtype float64"),
    ({"x": np.zeros((2, 1, 4), np.float32), "lengths": np.int32([3])}, "node 'LSTM_1' .*sequence_lens .* 0 to 2"),
    ({"x": np.zeros((2, 1, 4), np.float32), "lengths": np.int32([1, 1])}, r"shape of sequence_lens is \[2\]"),
])  # fmt: skip
def test_inputs_that_do_not_fit(inputs: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        qf.load(LSTM).run(inputs, backend="cpu")


def test_an_unknown_backend() -> None:
    with pytest.raises(qf.QuatrefoilError, match="no backend 'tpu'; known are cpu"):
        qf.load(CNN).run(normal(1, 3, 8, 8), backend="tpu")


def test_shapes_that_do_not_fit_inside_name_the_node() -> None:
    model = qf.load(text_model("g (float[a] x, float[b] y) => (float[c] z) { z = Add(x, y) }"))
    with pytest.raises(ModelError, match="node 'Add_1'"):
        model.run({"x": np.zeros(2, np.float32), "y": np.zeros(3, np.float32)})


# Refusals of models


def changed(model: onnx.ModelProto, change: Any) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change(copy)
    return copy


def _duplicate_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def _set(path: str, value: Any) -> Any:
    def change(model: onnx.ModelProto) -> None:
        *steps, last = path.split(".")
        target: Any = model
        for step in steps:
            target = target[int(step)] if step.isdigit() else getattr(target, step)
        if last.isdigit():
            target[int(last)] = value
        else:
            setattr(target, last, value)

    return change


@pytest.mark.parametrize(("change", "message"), [
    (_set("ir_version", 99), "IR version 99; the installed onnx .* reads up to"),
    (_set("ir_version", 0), "no IR version; is it an ONNX file"),
    (_set("opset_import.0.version", 999), "needs operator set 999; known are 6 to"),
    (_set("opset_import.0.version", 5), "needs operator set 5"),
    (lambda m: m.opset_import.pop(), "names no operator set"),
    (lambda m: m.opset_import.append(helper.make_opsetid("", 12)), "in versions 17 and 12"),
    (lambda m: m.ClearField("graph"), "holds no graph"),
    (_set("graph.node.0.op_type", "Convolve"), "no operator 'Convolve' in operator set 17 of 'ai.onnx'"),
    (_set("graph.node.0.domain", "elsewhere"), "of domain 'elsewhere', which the model does not import"),
    (lambda m: (_set("graph.node.0.domain", "elsewhere")(m),
                m.opset_import.append(helper.make_opsetid("elsewhere", 1))), "operator Conv of domain 'elsewhere'"),
    (_set("graph.node.0.input.1", "missing"), r"node 'Conv_1' \(Conv\) reads 'missing', which is no input"),
    (_set("graph.node.0.input.0", "positive"), "the graph has a cycle through node 'Conv_1'"),
    (_set("graph.node.1.output.0", "features"), "'features' is made twice, the second time by node"),
    (_set("graph.node.1.output.0", "image"), "'image' is made twice"),
    (_set("graph.node.1.output.0", "w"), "'w' is made twice"),
    (_duplicate_weight, "the weight 'w' is there twice"),
    (lambda m: m.graph.input.append(m.graph.input[0]), "the input 'image' is there twice"),
    (_set("graph.output.0.name", "nothing"), "the output 'nothing' is made by no node"),
    (_set("graph.initializer.0.dims.0", -4), r"'w' has shape \[-4, 3, 3, 3\]; no axis can be negative"),
    (_set("graph.initializer.0.dims.0", 400), "the weight 'w' is damaged"),
    (_set("graph.initializer.0.dims.0", 2**50), "the weight 'w' is damaged"),
    (_set("graph.initializer.0.data_type", 77), "the weight 'w' is damaged"),
    (_set("graph.input.0.type.tensor_type.elem_type", 77), "'image' has element type 77"),
    (lambda m: m.graph.node[2].attribute.pop(0), "Required attribute 'kernel_shape'"),
    (lambda m: m.graph.node[1].attribute.append(helper.make_attribute("slope", 1)), "Unrecognized attribute: slope"),
    (lambda m: m.graph.node[1].input.append("image"), "node '' .Relu.: Node.* has input size 2"),
    (lambda m: m.graph.node[2].attribute[0].ints.append(-1), r"node 'MaxPool_3' .*kernel_shape is \(2, 2, -1\)"),
    (lambda m: m.graph.node[1].CopyFrom(helper.make_node("Cast", ["features"], ["positive"], to=0)), "Cast"),
])  # fmt: skip
def test_damaged_models(change: Any, message: str) -> None:
    model = changed(CNN, change)
    with pytest.raises(ModelError, match=message):
        qf.load(model).run(normal(1, 3, 8, 8))


@pytest.mark.parametrize(("source", "message"), [
    (b"", "no IR version"),
    (b"not an onnx file", "no ONNX model, or is truncated or damaged"),
    (CNN.SerializeToString()[:-40], "no ONNX model, or is truncated or damaged"),
    ("/nowhere/model.onnx", "cannot read the model '/nowhere/model.onnx': No such file"),
    ("/", "cannot read the model '/'"),
    (3, "cannot load int; give a path, bytes or an onnx.ModelProto"),
])  # fmt: skip
def test_things_that_are_no_models(source: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        qf.load(source)


def test_every_operator_that_nothing_runs_is_named() -> None:
    model = text_model("g (float[1] x) => (float[1] y) { a = far.Alpha(x) b = far.Beta(a) y = far.Alpha(b) }")
    model.opset_import.append(helper.make_opsetid("far", 3))
    with pytest.raises(ModelError, match=r"operator Alpha of domain 'far'.*; operator Beta of domain 'far'"):
        qf.load(model)


def _function_calls(calls: dict[str, list[str]]) -> onnx.ModelProto:
    functions = "".join(
        f'<domain: "own", opset_import: ["" : 17, "own" : 1]> {name} (v0) => (v{len(body)}) {{ '
        + " ".join(f"v{i + 1} = {callee} (v{i})" for i, callee in enumerate(body)) + " }"
        for name, body in calls.items()
    )  # fmt: skip
    first = next(iter(calls))
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float x) => (float y) {{ y = own.{first} (x) }} {functions}'
    )


def test_functions_that_call_themselves() -> None:
    with pytest.raises(ModelError, match="the function 'f' calls itself"):
        qf.load(_function_calls({"f": ["own.h"], "h": ["own.f"]}))


def test_functions_that_grow_without_measure() -> None:
    calls = {f"f{i}": [f"own.f{i + 1}"] * 10 for i in range(12)} | {"f12": ["Neg"]}
    with pytest.raises(ModelError, match="unfold to 1000000000000 nodes; at most 1000000"):
        qf.load(_function_calls(calls))


def test_wrong_ranks_are_named() -> None:
    model = changed(CNN, lambda m: m.graph.initializer[0].CopyFrom(numpy_helper.from_array(normal(4, 3, 3), "w")))
    with pytest.raises(ModelError, match=r"node 'Conv_1' \(Conv\+Relu\): conv: the rank of w is 3"):
        qf.load(model).run(normal(1, 3, 8, 8))


BYTES = CNN.SerializeToString()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_bytes_never_crash(data: st.DataObject) -> None:
    """Whatever is done to the file's bytes, the model loads and runs or a sentence says why not."""
    damaged = bytearray(BYTES)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(len(damaged) // 2, len(damaged))) :]
    try:
        model = qf.load(bytes(damaged))
        model.run({value.name: np.zeros((1, 3, 8, 8), np.float32) for value in model.inputs}, backend="cpu")
    except qf.QuatrefoilError as error:
        assert len(str(error)) > 10
