"""HLS export: the C simulation of small networks meets the float model, and what hls4ml lacks is refused by name.

With 28-bit numbers the only differences left are roundings, so that a wrong order, weight or padding cannot hide.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quatrefoil.errors import QuatrefoilError
from quatrefoil.fpga.hls4ml_export import ExportError, export
from quatrefoil.fpga.hls4ml_export.fixed_layers import Target
from quatrefoil.fpga.hls4ml_export.project import calls_in
from quatrefoil.fpga.hls4ml_export.sharing import Sharing, sharing_text
from quatrefoil.fpga.hls4ml_export.simulation import compile_library
from quatrefoil.models import ModelError, load
from quatrefoil.models.fixed.calibration import calibrate
from quatrefoil.models.fixed.network import fixed
from quatrefoil.models.fixed.precision import Precision
from quatrefoil.models.gallery.small import NETS
from quatrefoil.numerics import Fixed

needs_simulation = pytest.mark.skipif(shutil.which("g++") is None, reason="the C simulation needs g++")


class Network:
    """A chain of ONNX nodes with random weights; ``last`` names the newest value."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape
        self.rng = np.random.default_rng(len(shape))
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.last = "x"

    def constant(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def normal(self, *shape: int) -> str:
        scale = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def add(self, kind: str, *more: str, **attributes: Any) -> Network:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.last, *more], [name], name=name, **attributes))
        self.last = name
        return self

    def conv(self, channels: int, inputs: int, *kernel: int, **attributes: Any) -> Network:
        weight = self.normal(channels, inputs // attributes.get("group", 1), *kernel)
        return self.add("Conv", weight, self.normal(channels), **attributes)

    def dense(self, inputs: int, outputs: int) -> Network:
        return self.add("Gemm", self.normal(outputs, inputs), self.normal(outputs), transB=1)

    def model(self, *outputs: str) -> onnx.ModelProto:
        declared = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs or (self.last,)]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *self.shape])
        graph = helper.make_graph(self.nodes, "net", [x], declared, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def samples(self, count: int = 20) -> np.ndarray:
        return self.rng.uniform(-1, 1, (count, *self.shape)).astype(np.float32)


@needs_simulation
def test_cnn_in_parallel_is_equal_to_the_last_bit(tmp_path: Path) -> None:
    """Asymmetric padding, a stride, a flattened map of several channels and pixels, two outputs."""
    net = Network(2, 7, 8).conv(4, 2, 3, 2, pads=[1, 0, 0, 1], strides=[1, 2]).add("Relu")
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2]).conv(3, 4, 1, 1)
    pooled = net.last
    net.add("Flatten").dense(18, 6).add("LeakyRelu", alpha=0.2).dense(6, 3)
    report = export(
        net.model(net.last, pooled), tmp_path / "hls", precision="fixed<26,8>", check=net.samples(), estimate=True
    )
    assert [layer.function for layer in report.layers] == [
        "conv_2d_cl", "relu", "pooling2d_cl", "pointwise_conv_2d_cl", "dense", "leaky_relu", "dense",
    ]  # fmt: skip
    assert [output.name for output in report.outputs] == [net.last, pooled]
    for output in report.outputs:
        assert output.samples == 20
        assert output.max_error < 1e-3 < output.scale
        assert output.agreement == 1.0
    assert (report.samples, len(report.checked)) == (20, 6)
    assert report.integers > 20 * (4 * 6 * 4)
    assert "same argmax on 100.0% of 20 samples" in str(report)
    assert "equal to the last bit" in str(report)
    assert report.top_function.is_file()
    assert report.estimate is not None
    assert "Estimate before synthesis: VU13P" in str(report)
    assert report.estimate.total.dsp.value > 100


@needs_simulation
def test_residual_network_as_a_stream_is_equal_to_the_last_bit(tmp_path: Path) -> None:
    """Depthwise convolution, a residual sum, global averaging, softmax."""
    net = Network(3, 6, 6).conv(4, 3, 3, 3, pads=[1, 1, 1, 1]).add("Relu")
    skipped = net.last
    net.conv(4, 4, 3, 3, group=4, pads=[1, 1, 1, 1]).add("Add", skipped).add("Relu").add("GlobalAveragePool")
    net.add("Flatten").dense(4, 3).add("Softmax", axis=1)
    report = export(
        net.model(), tmp_path, io="stream", precision="fixed<24,8>", check={"x": net.samples() * np.float32(8)}
    )
    assert {"depthwise_conv_2d_cl", "add", "global_pooling2d_cl", "softmax"} <= {x.function for x in report.layers}
    [output] = report.outputs
    assert output.max_error < 5e-3  # softmax comes from tables of 4096 entries
    assert output.agreement == 1.0


@needs_simulation
def test_constants_and_broadcasts_are_exported(tmp_path: Path) -> None:
    """A gate for each channel of a map, a constant for each channel, one for each element, one less the map."""
    net = Network(3, 4, 5)
    per_channel = net.constant(np.array([0.5, -1.25, 2], np.float32).reshape(3, 1, 1))
    each = net.constant(np.linspace(-1, 1, 60, dtype=np.float32).reshape(1, 3, 4, 5))
    one = net.constant(np.float32(1))
    net.add("Mul", per_channel).add("Add", each)
    net.nodes.append(helper.make_node("Sub", [one, net.last], ["less"], name="less"))
    net.last = "less"
    net.add("GlobalMaxPool")
    gate, net.last = net.last, "less"
    net.nodes.append(helper.make_node("Mul", [gate, "less"], ["gated"], name="gated"))
    report = export(net.model("gated"), tmp_path, io="stream", precision="fixed<20,8>", check=net.samples())
    assert [layer.function for layer in report.layers].count("normalize") == 3
    assert set(report.checked) >= {"mul0", "add1", "less", "gated"}
    [output] = report.outputs
    assert output.max_error < 0.02 < output.scale


@needs_simulation
def test_formats_that_were_chosen_on_samples_are_exported(tmp_path: Path) -> None:
    net = Network(6, 5)
    net.add("Flatten").dense(30, 8).add("Tanh").dense(8, 3)
    model = load(net.model())
    samples = net.samples(60)
    network = fixed(model, calibrate(model, samples, bits=9).precision)
    report = export(network, tmp_path, check=samples)
    assert report.precision == "values of 9 bits"
    assert report.samples == 60


def test_without_samples_the_project_is_written_and_nothing_is_simulated(tmp_path: Path) -> None:
    net = Network(6).dense(6, 4).add("Relu").dense(4, 2)
    folder = tmp_path / "project"
    report = export(net.model(), folder, part="xc7z020clg400-1", reuse=2)
    assert report.outputs == ()
    assert "not simulated" in str(report)
    assert report.part == "xc7z020clg400-1"
    assert "xc7z020clg400-1" in (folder / "project.tcl").read_text()
    assert not list(folder.rglob("*.so"))
    export(net.model(), folder)  # an earlier export may be written over


def test_a_design_that_does_not_fit_is_told_what_would(tmp_path: Path) -> None:
    net = Network(64).dense(64, 64).add("Relu").dense(64, 10)
    report = export(net.model(), tmp_path, part="xc7z020clg400-1", estimate=True)
    assert report.estimate is not None
    assert "do not fit 7Z020" in str(report)
    assert report.proposal is not None
    assert report.proposal.proposal is not None
    assert max(report.proposal.proposal.reuse.values()) > 1
    assert report.proposal.proposal.share <= 0.8
    assert "proposed: fixed<16,6>, gemm0" in str(report)
    smaller = export(net.model(), tmp_path, part="xcvu13p-flga2577-2-e", estimate=True)
    assert smaller.proposal is None


@needs_simulation
def test_reuse_by_layer_keeps_the_order_of_saturating_sums(tmp_path: Path) -> None:
    """The network's additions follow the design's, each layer's own; a network that was given keeps its own."""
    net = Network(12).dense(12, 8).add("Relu").dense(8, 6).dense(6, 4)
    tight = Precision(accumulator=Fixed(10, 2, "TRN", "SAT"))
    reuse, strategy = {"gemm2": 4, "gemm*": 3}, {"gemm3": "latency", "*": "resource"}
    samples = net.samples(200) * np.float32(4)
    report = export(net.model(), tmp_path / "a", precision=tight, reuse=reuse, strategy=strategy, check=samples)
    shared = {layer.name: (layer.strategy, layer.reuse_factor) for layer in report.layers if layer.strategy}
    assert shared == {"gemm0_sum": ("resource", 3), "gemm2": ("resource", 4), "gemm3": ("latency", 3)}
    assert "resource reuse 4" in str(report)
    headers = (tmp_path / "a" / "firmware" / "parameters.h").read_text()
    assert [int(n) for n in re.findall(r"unsigned reuse_factor = (\d+)", headers)].count(4) == 1
    network = fixed(load(net.model()), tight)
    ordered = Sharing.of(reuse, strategy).ordered(network, Target("Vitis", "parallel"))
    assert any(
        (network.integers(samples)[name] != ordered.integers(samples)[name]).any() for name in network.formats
    ), "the order has to show, or this test shows nothing"
    with pytest.raises(ExportError, match=r"added with reuse 1; .* adds them with reuse 3: give the layer reuse=3"):
        export(network, tmp_path / "b", reuse=reuse, strategy=strategy)


def test_reuse_that_fits_the_part_is_chosen_and_written(tmp_path: Path) -> None:
    net = Network(64).dense(64, 64).add("Relu").dense(64, 10)
    report = export(net.model(), tmp_path, part="xc7z020clg400-1", reuse="auto", estimate=True)
    assert report.estimate is not None
    assert report.proposal is None
    assert 0.02 < max(report.estimate.shares().values()) <= 0.8
    assert {layer.strategy for layer in report.layers if layer.strategy} == {"resource"}
    with pytest.raises(ExportError, match="no reuse factors make it fit 7Z020"):
        export(Network(3000).dense(3000, 2000).model(), tmp_path, part="xc7z020clg400-1", reuse="auto")


def test_estimates_count_what_is_exported(tmp_path: Path) -> None:
    """Groups become zeros that a shared multiplier counts; a depthwise convolution shares nothing."""
    net = Network(4, 9, 9).conv(8, 4, 3, 3, group=2).conv(8, 8, 3, 3, group=8)
    report = export(net.model(), tmp_path, reuse={"conv0": 2}, strategy="resource", estimate=True)
    assert report.estimate is not None
    assert report.estimate.layers[0].multipliers == 4 * 9 * 8 // 2
    shared = [(layer.strategy, layer.reuse_factor) for layer in report.layers if layer.strategy]
    assert shared == [("resource", 2), ("latency", 1)]


@pytest.mark.parametrize(
    ("text", "strategy", "wanted"),
    [
        ("16", None, {"dense1": ("latency", 16), "out": ("latency", 16)}),
        ("dense1=4,out=128", "resource", {"dense1": ("resource", 4), "out": ("resource", 128), "other": ("resource", 1)}),
        ("d*=2,dense1=4", {"out": "resource"}, {"dense1": ("latency", 4), "dense2": ("latency", 2), "out": ("resource", 1)}),
        ("plan.toml", None, {"dense1": ("resource", 4), "out": ("latency", 2)}),
        ("plan.toml", "latency", {"dense1": ("latency", 4)}),
        ("plan.json", None, {"dense1": ("resource", 4), "out": ("latency", 2)}),
    ],
)  # fmt: skip
def test_sharing_is_read_from_text_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, strategy: Any, wanted: dict[str, tuple[str, int]]
) -> None:
    monkeypatch.chdir(tmp_path)
    reuse, kept = {"dense1": 4, "*": 2}, {"*": "resource", "out": "latency"}
    Path("plan.toml").write_text(sharing_text(reuse, kept))
    Path("plan.json").write_text(json.dumps({"reuse": reuse, "strategy": kept}))
    sharing = Sharing.parse(text, strategy)
    made = {name: sharing.target(name, Target("Vitis", "parallel")) for name in wanted}
    assert {name: (target.strategy, target.reuse_factor) for name, target in made.items()} == wanted


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"reuse": "many"}, r"reuse of '\*' is 'many'"),
        ({"reuse": "gemm0="}, "layer=value"),
        ({"reuse": {"gemm7": 2}}, "names 'gemm7'; .* but gemm0"),
        ({"reuse": {"gemm0": 0}}, "reuse of 'gemm0' is 0"),
        ({"reuse": 3, "strategy": "resource"}, r"gemm0: reuse 3 does not divide 4 x 2 .* give 1, 2, 4, 8"),
        ({"reuse": "auto", "strategy": "resource"}, "chooses strategies too"),
        ({"reuse": "absent.toml"}, "absent.toml cannot be read"),
        ({"strategy": {"relu*": "resource"}}, "strategy names"),
    ],
)
def test_bad_sharing_is_refused_before_anything_is_written(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ExportError, match=named):
        export(Network(4).dense(4, 2).model(), tmp_path / "hls", **options)
    assert not (tmp_path / "hls").exists()


def test_quartus_shares_with_strategy_resource_alone(tmp_path: Path) -> None:
    net = Network(6).dense(6, 4)
    report = export(net.model(), tmp_path / "a", backend="Quartus", io="stream", reuse=3)
    assert [(layer.strategy, layer.reuse_factor) for layer in report.layers] == [("resource", 3)]
    with pytest.raises(ExportError, match="gemm0: hls4ml makes strategy resource of latency there"):
        export(net.model(), tmp_path / "b", backend="Quartus", reuse=3, strategy="latency")


@needs_simulation
def test_a_stream_of_quartus_is_equal_to_the_last_bit(tmp_path: Path) -> None:
    """Two outputs, a stream with two readers; every layer is traced by its own stream."""
    net = Network(3, 5).conv(2, 3, 3, pads=[1, 1]).add("Relu")
    skipped = net.last
    net.conv(2, 2, 1).add("Add", skipped)
    report = export(
        net.model(net.last, skipped),
        tmp_path,
        backend="Quartus",
        io="stream",
        precision="fixed<14,5>",
        check=net.samples(),
    )
    assert len(report.checked) == 3
    assert all(output.max_error < 0.05 < output.scale for output in report.outputs)


def test_the_example_in_the_docs_is_a_report_of_this_form() -> None:
    text = (Path(__file__).parent.parent / "docs" / "examples" / "hls_export.txt").read_text()
    for line in (
        "Vitis project qf_digits_cnn in project",
        "sharing",
        "C simulation equal to the last bit",
        "Estimate before",
    ):
        assert line in text


def test_layers_that_cannot_share_say_so(tmp_path: Path) -> None:
    net = Network(3, 6, 6).conv(3, 3, 3, 3, group=3)
    with pytest.raises(ExportError, match=r"conv0.* depthwise convolution has a multiplier for each product"):
        export(net.model(), tmp_path / "hls", reuse={"conv0": 3})
    with pytest.raises(ExportError, match="shares multipliers with strategy 'resource' alone"):
        export(NETS["rnn"](), tmp_path / "hls", reuse=2)


def test_a_layer_that_hls4ml_leaves_out_fails_the_export(tmp_path: Path) -> None:
    net = Network(6).dense(6, 4).add("Relu")
    report = export(net.model(), tmp_path)
    titles = {layer.name: layer.node for layer in report.layers}
    assert calls_in(report.top_function, list(titles)) == {layer.name: layer.function for layer in report.layers}
    kept = [line for line in report.top_function.read_text().splitlines() if "nnet::relu<" not in line]
    report.top_function.write_text("\n".join(kept))
    with pytest.raises(ExportError, match=r"hls4ml left out .*Gemm"):
        calls_in(report.top_function, list(titles), titles)


@pytest.mark.parametrize(
    ("build", "options", "named"),
    [
        (lambda: Network(2, 4, 4, 4).conv(4, 2, 3, 3, 3), {}, ("conv0", "axes")),
        (lambda: Network(2, 8, 8).conv(2, 2, 3, 3, group=2), {"backend": "Quartus"}, ("conv0", "Quartus")),
        (lambda: Network(4).dense(4, 3).add("Sigmoid"), {"backend": "Catapult"}, ("sigmoid1", "Catapult")),
    ],
)
def test_what_hls4ml_lacks_is_refused_by_name(
    tmp_path: Path, build: Callable[[], Network], options: dict[str, Any], named: tuple[str, ...]
) -> None:
    folder = tmp_path / "hls"
    with pytest.raises(ExportError) as caught:
        export(build().model(), folder, **options)
    for part in named:
        assert part in str(caught.value)
    assert not folder.exists(), "nothing is written for a refused model"


def test_what_has_no_fixed_point_form_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'erf1' \(Erf\) has no fixed-point form"):
        export(Network(4).dense(4, 3).add("Erf").model(), tmp_path / "hls")
    assert not (tmp_path / "hls").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"backend": "Altera"}, "known are Vitis, Vivado"),
        ({"io": "wires"}, "known are parallel, stream"),
        ({"strategy": "fast"}, "known are latency, resource"),
        ({"reuse": 0}, r"reuse of '\*' is 0"),
        ({"precision": "float32"}, "write fixed<width,integer>"),
        ({"check": np.zeros((3, 5), np.float32)}, r"check has shape \[3, 5\]"),
        ({"check": {"y": np.zeros((3, 4), np.float32)}}, "the model's input is 'x'"),
        ({"part": "xc9nothing", "estimate": True}, "xc9nothing"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(QuatrefoilError, match=named):
        export(Network(4).dense(4, 2).model(), tmp_path / "hls", **options)
    assert not (tmp_path / "hls").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ExportError, match="holds other files"):
        export(Network(4).dense(4, 2).model(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("compiler", "named"),
    [
        ("sleep 60", "took longer than the limit of 0.5 s"),
        ("echo 'a.cpp: error: no such type'; exit 3", "no such type"),
    ],
)
def test_a_simulation_that_does_not_build_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, named: str
) -> None:
    (tmp_path / "build_lib.sh").write_text("")
    (tmp_path / "g++").write_text(f"#!/bin/sh\n{compiler}\n")
    (tmp_path / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ExportError, match=named):
        compile_library(tmp_path, "net", tmp_path / "net.so", 0.5)


FAKE_TOOL = """#!/bin/sh
echo "INFO: called with $*"
grep -q "csim       0" build_opt.tcl || grep -q "csim 0" build_opt.tcl || exit 9
{more}
name=$(sed -n 's/.*set project_name "\\(.*\\)".*/\\1/p' project.tcl)
mkdir -p "${{name}}_prj/solution1/syn/report"
cp {report} "${{name}}_prj/solution1/syn/report/${{name}}_csynth.xml"
"""
REPORTED = Path(__file__).parent / "data" / "csynth" / "net_csynth.xml"


def fake_tool(folder: Path, monkeypatch: pytest.MonkeyPatch, more: str = "", name: str = "vitis-run") -> None:
    """A program on the PATH that leaves a report where Vitis HLS does."""
    folder.mkdir()
    (folder / name).write_text(FAKE_TOOL.format(more=more, report=REPORTED))
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize("name", ["vitis-run", "vitis_hls"])
def test_synthesis_runs_and_its_report_stands_beside_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fake_tool(tmp_path / "bin", monkeypatch, name=name)
    lines: list[str] = []
    report = export(
        Network(6).dense(6, 4).model(), tmp_path / "project", clock_ns=4.0, synthesize=True, show=lines.append
    )
    assert report.synthesis is not None
    assert (report.synthesis.tool, report.synthesis.reported and report.synthesis.reported.dsp.value) == (name, 817)
    assert len(lines) == 1 and "build_prj.tcl" in lines[0]
    assert report.synthesis.log.read_text() == f"{lines[0]}\n"
    assert report.estimate is not None
    ratio = report.estimate.total.lut.value / 36_000
    kept = json.loads((tmp_path / "project" / "quatrefoil_report.json").read_text())
    [lut] = [figure for figure in kept["compared"] if figure["name"] == "LUT"]
    assert (lut["reported"], lut["expected"], lut["ratio"]) == (36_000, False, pytest.approx(ratio))
    text = (tmp_path / "project" / "quatrefoil_report.txt").read_text()
    assert text == f"{report}\n"
    assert re.search(rf"LUT .* 36,000 +{ratio:.2f} +outside the range", text)
    assert "clock_period 4" in (tmp_path / "project" / "project.tcl").read_text()


@pytest.mark.parametrize(
    ("more", "options", "named"),
    [
        ("echo 'ERROR: [HLS 200-70] no license'; exit 1", {}, r"vitis-run failed in .*exit status 1.*\n.*no license"),
        ("sleep 60", {"synthesis_limit_s": 0.5}, "vitis-run took longer than the limit of 0.5 s"),
        ("exit 0", {}, "left no report at"),
        ("", {"part": "7Z020"}, "the part is '7Z020'; vitis-run takes an order number"),
        ("", {"backend": "Vivado"}, "synthesis for Vivado takes vivado_hls on the PATH, and none is there"),
        ("", {"backend": "Libero"}, "not run from here; known are Vitis"),
    ],
)
def test_synthesis_that_fails_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, options: dict[str, Any], named: str
) -> None:
    fake_tool(tmp_path / "bin", monkeypatch, more)
    with pytest.raises(ExportError, match=named):
        export(Network(6).dense(6, 4).model(), tmp_path / "project", synthesize=True, **options)
