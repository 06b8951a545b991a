"""hls4ml's C simulation of fixed-point layers equals the oracle to the last bit, or the exporter refuses in a sentence.

A few projects with a random net of many layers each; ``python -m quatrefoil.fpga.hls4ml_export.proof`` does all of them.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quatrefoil.fpga.hls4ml_export import ExportError, export, fixed_layers
from quatrefoil.fpga.hls4ml_export.fixed_layers import Target
from quatrefoil.fpga.hls4ml_export.fixed_lowering import lower
from quatrefoil.fpga.hls4ml_export.fixed_project import Design, _digest, first_difference, simulate, write
from quatrefoil.fpga.hls4ml_export.proof import TRIALS, Chain, main, prove
from quatrefoil.fpga.hls4ml_export.support import BACKENDS, IO, ROWS, table, why_not
from quatrefoil.models.fixed.network import fixed
from quatrefoil.models.gallery.small import NETS, samples
from quatrefoil.ops import canonical
from quatrefoil.problem import Tensor

needs_simulation = pytest.mark.skipif(shutil.which("g++") is None, reason="the C simulation needs g++")

SMALL = {
    Target("Vitis", "parallel"): ("conv2d", "average_pool_padded", "sigmoid", "softmax", "gru", "lstm_reverse"),
    Target("Vitis", "stream"): ("conv2d", "max_pool", "add", "lstm_one_format", "rnn_bidirectional_initial_state"),
}


def chain(row: str, target: Target, seed: int = 0, count: int = 1) -> Chain:
    made = Chain(np.random.default_rng(seed), target, count, "net")
    TRIALS[row](made)
    return made


@needs_simulation
@pytest.mark.parametrize("target", SMALL, ids=lambda t: f"{t.backend}-{t.io}-{t.strategy}")
def test_layers_equal_the_oracle(target: Target) -> None:
    outcome = prove(SMALL[target], target, samples=200, chains=1)
    assert outcome.difference is None
    assert outcome.chains == len(SMALL[target])
    assert outcome.integers > 200


@needs_simulation
def test_one_weight_off_is_found_and_its_layer_named() -> None:
    made = chain("dense", Target("Vitis", "parallel"), count=50)
    dense = made.layers[1]
    weight = dense.description["weight_data"].copy()
    weight[0, 0] += 2.0 ** -dense.formats["weight"].fraction
    wrong = replace(dense, description=dense.description | {"weight_data": weight})
    design = Design((made.layers[0], wrong), (dense.name,))
    with tempfile.TemporaryDirectory() as folder:
        project = write(design, Path(folder) / "project", "wrong", made.target)
        found = simulate(project, design, made.given, 300.0)
    told = first_difference(found, made.wanted, [dense.name])
    assert told is not None
    assert told.startswith(f"{dense.name}: ")
    assert "C simulation" in told


def test_a_kept_simulation_is_that_of_the_same_headers(tmp_path: Path) -> None:
    """Vitis and Vivado write the same files for a convolution, and have headers of their own."""
    digests = []
    for backend in ("Vitis", "Vivado", "Vivado"):
        target = Target(backend, "parallel")
        made = chain("conv2d", target)
        folder = tmp_path / str(len(digests))
        project = write(Design(tuple(made.layers), tuple(made.outputs)), folder, "net", target)
        digests.append(_digest(project))
    assert digests[0] != digests[1] == digests[2]
    (project.folder / "firmware" / "weights" / "w2.txt").write_text("1")
    assert _digest(project) != digests[2]


def test_a_stopped_proof_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--backend", "Vitis", "--io", "stream", "--layer", "relu6", "--samples", "5", "--jobs", "1"]
    given += ["--keep", str(tmp_path / "kept.jsonl")]
    assert main(given) == 0
    assert "0 equal, 1 refused, 0 different" in capsys.readouterr().out
    assert main(given) == 0
    told = capsys.readouterr().out
    assert "1 trials, 1 of them from" in told and "0 equal, 1 refused, 0 different" in told


def test_every_row_of_the_support_table_has_its_nets() -> None:
    assert set(TRIALS) == set(ROWS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("io", IO)
def test_what_the_table_says_the_exporter_does(backend: str, io: str) -> None:
    """A yes is written, a no is refused; the sentence names the layer and says why."""
    for row in ROWS:
        why = why_not(row, backend, io)
        told = []
        for seed in range(6):
            try:
                chain(row, Target(backend, io), seed)
                break
            except ExportError as error:
                told.append(str(error))
                assert "net_" in told[-1]
        assert (len(told) == 6) == bool(why), (row, told)


def test_the_page_shows_the_table() -> None:
    page = (Path(__file__).parent.parent / "docs" / "fpga.md").read_text("utf-8")
    assert table() in page, "python -m quatrefoil.fpga.hls4ml_export.support prints it"
    assert table().count("\n| ") == len(ROWS) + 1
    assert "\n1. " in table()


@pytest.mark.parametrize(
    ("reuse", "wanted"), [(5, "reuse 5 does not divide"), (2, "are added with reuse 3; strategy 'resource'")]
)
def test_an_order_that_the_design_would_not_keep_is_refused(reuse: int, wanted: str) -> None:
    formats = {
        "x_format": "fixed<8,2>", "w_format": "fixed<8,2>", "accumulator": "fixed<12,4,TRN,SAT>",
        "y_format": "fixed<8,4>", "reuse": 3,
    }  # fmt: skip
    weight = np.full((4, 6), 60, np.int16)
    problem = canonical("fixed_conv", [Tensor("int16", (1, 6)), Tensor.of(weight)], formats, 1)
    with pytest.raises(ExportError, match=wanted):
        fixed_layers.convolution("dense", "x", problem, weight, None, Target("Vitis", "parallel", "resource", reuse))
    fixed_layers.convolution("dense", "x", problem, weight, None, Target("Vitis", "parallel", "resource", 3))


@needs_simulation
@pytest.mark.parametrize(("name", "io"), [("residual_cnn", "stream"), ("lstm_bidirectional", "parallel")])
def test_every_layer_of_a_network_equals_its_integers(name: str, io: str, tmp_path: Path) -> None:
    """A stream with two readers, softmax; two directions whose last states are parts of the sequence."""
    model = NETS[name]()
    network = fixed(model, "fixed<12,5,RND,SAT>")
    report = export(network, tmp_path / "project", io=io, check=samples(model, 50))
    values = {"residual_cnn": ("conv0", "conv2_residual", "softmax8"), "lstm_bidirectional": ("lstm1", "gemm4")}[name]
    assert set(values) <= set(report.checked)
    assert report.samples == 50
    assert all(output.max_error < 0.1 for output in report.outputs)
    assert "C simulation equal to the last bit" in str(report)


@pytest.mark.parametrize(
    ("name", "io"),
    [
        ("autoencoder", "parallel"),
        ("depthwise_cnn", "stream"),
        ("conv_lstm", "stream"),
        ("gru_linear_reverse", "parallel"),
    ],
)
def test_a_small_network_is_written(name: str, io: str, tmp_path: Path) -> None:
    network = fixed(NETS[name](), "fixed<12,5,RND,SAT>")
    report = export(network, tmp_path / "project", io=io)
    assert "not simulated" in str(report)
    assert {layer.name for layer in report.layers} == {
        layer.name for layer in lower(network, Target("Vitis", io)).design.computing
    }


def test_a_network_that_cannot_be_exported_is_refused_in_a_sentence(tmp_path: Path) -> None:
    network = fixed(NETS["gru"](), "fixed<12,5,RND,SAT>")
    with pytest.raises(ExportError, match=r"GRU without .* with Quartus, io=.parallel.*supported with Vitis"):
        export(network, tmp_path / "a", backend="Quartus")
    with pytest.raises(ExportError, match="a fixed-point network has its own"):
        export(network, tmp_path / "b", precision="fixed<16,6>")
    with pytest.raises(ExportError, match="known are Vitis, Vivado, Quartus"):
        export(network, tmp_path / "c", backend="Xilinx")
