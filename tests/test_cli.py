"""The command line: every subcommand, its JSON, its exit codes, and errors that are one sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import quatrefoil as qf
from quatrefoil import backends
from quatrefoil.cli import info
from quatrefoil.cli.app import run
from quatrefoil.models.gallery import path

CNN, LSTM = str(path("digits_cnn")), str(path("digits_lstm"))
CONV = "conv float32[1x2x6x6],float32[3x2x3x3] pads=1x1x1x1"
FIXED = (
    "fixed_conv int16[1x2x6x6],int16[3x2x3x3] x_format=fixed<16,6> w_format=fixed<16,2> accumulator=fixed<24,9,RND,SAT> "
    "y_format=fixed<16,8,RND,SAT>"
)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    code = run(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def call_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    """The JSON document of a command, which has to be all of its standard output."""
    got, out, err = call(capsys, *arguments, "--json", *(["-"] if arguments[0] == "bench" else []))
    assert got == code, err
    return json.loads(out)


def test_help_names_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for name in (
        "run",
        "bench",
        "explain",
        "quantize",
        "compress",
        "export",
        "simulate",
        "sweep",
        "doctor",
        "info",
        "demo",
        "gallery",
    ):
        assert name in out
        assert call(capsys, name, "--help")[0] == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--version")
    assert code == 0
    assert out.startswith("quatrefoil 0.")


def test_run_made_up_inputs_are_reproducible(capsys: pytest.CaptureFixture[str]) -> None:
    first, again = (call_json(capsys, "run", CNN, "--seed", "7") for _ in range(2))
    other = call_json(capsys, "run", CNN, "--seed", "8")
    assert first["made_up"] is True
    assert first["outputs"]["scores"] == again["outputs"]["scores"]
    assert first["outputs"]["scores"] != other["outputs"]["scores"]


@pytest.mark.parametrize("form", ["npy", "npz", "named"])
def test_run_takes_files_and_writes_npz(capsys: pytest.CaptureFixture[str], tmp_path: Path, form: str) -> None:
    image = np.random.default_rng(1).random((2, 1, 8, 8), np.float32)
    np.save(tmp_path / "x.npy", image)
    np.savez(tmp_path / "x.npz", image=image)
    given = {"npy": str(tmp_path / "x.npy"), "npz": str(tmp_path / "x.npz"), "named": f"image={tmp_path / 'x.npy'}"}
    target = tmp_path / "out" / "y.npz"
    code, out, err = call(capsys, "run", CNN, "-i", given[form], "-o", str(target), "--profile")
    assert code == 0, err
    assert "scores: float32[2x10] = " in out
    assert "conv1" in out
    from quatrefoil import load

    wanted = load(CNN).run({"image": image}, backend="cpu")["scores"]
    np.testing.assert_array_equal(np.load(target)["scores"], wanted)


def test_run_reads_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    image.fromarray(pixels).save(tmp_path / "digit.png")
    np.save(tmp_path / "digit.npy", (pixels / np.float32(255)).astype(np.float32)[None, None])
    by_picture, by_array = (
        call_json(capsys, "run", CNN, "-i", str(tmp_path / name))["outputs"] for name in ("digit.png", "digit.npy")
    )
    assert by_picture == by_array


def test_explain_a_problem_and_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    data = call_json(capsys, "explain", CONV)
    assert [entry["backend"] for entry in data["backends"]] == ["cpu", "gpu", "fpga", "asic"]
    cpu = data["backends"][0]
    chosen = [kernel for kernel in cpu["kernels"] if kernel["id"] == cpu["chosen"]]
    assert chosen[0]["accepts"] is True
    assert all(kernel["accepts"] or kernel["reject"] for kernel in cpu["kernels"])
    code, out, _ = call(capsys, "explain", CONV, "-b", "cpu")
    assert code == 0
    assert f"{cpu['chosen']}" in out
    assert "chosen" in out
    code, out, _ = call(capsys, "explain", LSTM, "-b", "cpu")
    assert code == 0
    assert "lstm (LSTM)" in out
    assert "host" in out


def test_bench_a_problem_a_suite_and_a_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = call_json(capsys, "bench", CONV, "--rounds", "3", "--html", str(tmp_path / "r.html"))
    assert data["records"][0]["measured"]["median"] > 0
    assert data["records"][0]["checked"] == "oracle"
    assert "<h2>Measured" in (tmp_path / "r.html").read_text()
    code, out, _ = call(capsys, "bench", CONV, "--rounds", "3", "--json", str(tmp_path / "r.json"))
    assert code == 0
    assert "measured" in out
    assert json.loads((tmp_path / "r.json").read_text())["records"][0]["op"] == "conv"
    assert call(capsys, "bench", "nosuch", "--json", str(tmp_path / "none.json"))[:2] == (2, "")
    suite = tmp_path / "s.toml"
    suite.write_text(f'[[problem]]\nname = "mine"\ntext = "{CONV}"\n')
    code, out, err = call(capsys, "bench", str(suite), "-b", "cpu,asic", "--rounds", "3")
    assert code == 0, err
    assert "mine" in out
    assert "simulated" in out
    data = call_json(capsys, "bench", CNN, "-b", "cpu,asic", "--rounds", "3")
    assert data["ceilings"]["gflop_s"] > 0
    assert data["method"][-1].startswith("What stands for the oracle of a whole model")
    cpu, asic = data["records"]
    assert cpu["measured"]
    assert cpu["simulated"] is None
    assert asic["measured"] is None
    assert asic["simulated"]["cycles"] > 0
    assert asic["checked"] == "cpu"


def test_bench_of_a_wrong_kernel_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from quatrefoil.bench import verify

    right = verify.reference.evaluate
    monkeypatch.setattr(verify.reference, "evaluate", lambda p, a: tuple(y + 1 for y in right(p, a)))
    code, _, err = call(capsys, "bench", CONV, "--rounds", "3")
    assert code == 1
    assert "wrong in" in err


def test_simulate_a_problem_and_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    [layer] = call_json(capsys, "simulate", CONV, "--check")["layers"]
    assert layer["cycles"] > 0
    assert layer["error"] is not None
    assert layer["wrong"] is False
    [layer] = call_json(capsys, "simulate", FIXED, "--check")["layers"]
    assert layer["cycles"] > 0
    assert layer["error"] == 0
    data = call_json(capsys, "simulate", CNN)
    assert data["cycles"] == sum(layer["cycles"] or 0 for layer in data["layers"])
    assert data["dram_bytes"] == sum(layer["dram_bytes"] for layer in data["layers"] if layer["cycles"])
    code, out, err = call(capsys, "simulate", LSTM, "--check")
    assert code == 0, err
    assert "simulated" in out
    assert "energy in uJ" in out


def test_simulate_on_another_design_takes_other_cycles(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from quatrefoil.asic_sim import hardware

    default = hardware.load(hardware.DEFAULT_DESIGN)
    text = (hardware.FOLDER / f"{hardware.DEFAULT_DESIGN}.toml").read_text()
    wide = text.replace(f"array_columns = {default.array_columns}", f"array_columns = {default.array_columns * 2}")
    assert wide != text
    (tmp_path / "wide.toml").write_text(wide)
    big = "conv float32[1x64x14x14],float32[64x64x3x3]"
    cycles = [
        call_json(capsys, "simulate", big, *more)["cycles"] for more in ([], ["--design", str(tmp_path / "wide.toml")])
    ]
    assert cycles[1] < cycles[0]


def test_info_reads_the_declarations(capsys: pytest.CaptureFixture[str]) -> None:
    data = call_json(capsys, "info")
    for row in data["backends"]:
        kernels = backends.get(row["backend"]).kernels()
        assert row["kernels"] == len(kernels)
        assert {info.target_of(kernel.id) for kernel in kernels} <= set(info.TARGETS)
        assert row["languages"] and row["parallel"]
    assert data["operators"]["lstm"]["cpu"] == "float32, float64, float16"
    assert data["operators"]["conv"]["fpga"] == "float32, float16"
    code, out, _ = call(capsys, "info")
    assert code == 0
    assert "CUDA C++" in out and "simulated edge" in out


def test_doctor_always_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    data = call_json(capsys, "doctor")
    assert [finding["name"] for finding in data["backends"]][:4] == ["cpu", "gpu", "fpga", "asic"]
    assert all(finding["ready"] or finding["detail"] for finding in data["backends"] + data["tools"])
    code, out, _ = call(capsys, "doctor")
    assert code == 0
    assert "kernels)" in out
    missing = [f for f in data["backends"] if not f["ready"] and f["remedy"]]
    for finding in missing:
        assert finding["remedy"] in out  # brackets of an extra are not taken for markup


def test_demo_without_hls_writes_a_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn, which is not installed")
    target = tmp_path / "demo.html"
    data = call_json(capsys, "demo", "--no-hls", "--report", str(target))
    assert data["failed"] is False
    cnn = {entry["backend"]: entry for entry in data["runs"]["digits_cnn"]}
    assert cnn["cpu"]["correct"] >= 350
    assert cnn["asic"]["correct"] == cnn["cpu"]["correct"]
    assert all(layer["cycles"] is None or layer["seconds"] is None for run in cnn.values() for layer in run["layers"])
    page = target.read_text()
    assert re.search(r"\de-0[6-9]</td>", page)  # a convolution is near the oracle, a maximum equal to it
    for expected in ("equal", "conv1 (Conv+Relu)", cnn["cpu"]["layers"][0]["kernel"], "Simulated, one image", "98.6%"):
        assert expected in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", "conv float32[1x2x6x6]"], "w is missing"),
        (["explain", "conv float32[1x2x6x6],float32[3x2x3x3]", "-b", "tpu"], "there is no backend 'tpu'"),
        (["bench", "nosuch"], "known are audio, compressed, conv"),
        (["bench", CONV, "--peers", "tvm"], "no peer 'tvm'"),
        (["bench", CONV, "-i", "x.npy"], "--input is for models"),
        (["bench", CNN, "-i", "pixels=x.npy"], "no input 'pixels'"),
        (["run", "nosuch.onnx"], "nosuch.onnx"),
        (["run", CNN, "-i", "nosuch.npy"], "nosuch.npy cannot be read"),
        (["run", CNN, "-i", "pixels=x.npy"], "no input 'pixels'"),
        (["run", CNN, "-o", "out.txt"], "ends in .npz"),
        (["simulate", CONV, "--design", "nosuch"], "there is no design 'nosuch'"),
        (["export", LSTM, "-o", "nosuch", "--backend", "Quartus"], "supported with Vitis parallel"),
        (["export", CNN, "-o", "nosuch", "--precision", "auto"], "give some with --samples"),
        (["export", CNN, "-o", "nosuch", "--precision", "nosuch.json"], "nosuch.json cannot be read"),
    ],
)
def test_errors_are_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    error = call_json(capsys, *arguments, code=2)["error"]
    assert said in error


def test_traceback_is_for_those_who_ask() -> None:
    from quatrefoil.errors import OperatorError

    with pytest.raises(OperatorError):
        run(["explain", "conv float32[1]", "--traceback"])


def test_unknown_options_and_commands_are_bad_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "run", CNN, "--nosuch")[0] == 2
    assert call(capsys, "nosuch")[0] == 2
    assert call(capsys, "bench", CONV, "--rounds", "0")[0] == 2


def test_the_installed_command_honours_no_color() -> None:
    command = Path(sys.executable).with_name("quatrefoil")
    if not command.exists():
        pytest.skip(f"{command} is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"FORCE_COLOR": "1"}

    def failing(environment: dict[str, str]) -> str:
        arguments = [str(command), "explain", "conv x"]
        done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=60, check=False)
        assert done.returncode == 2
        return done.stderr

    red = "31m"
    assert red in failing(environment)
    assert red not in failing({**environment, "NO_COLOR": "1"})


def test_export_without_check_writes_a_project(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("hls4ml", reason="hls4ml is not installed")
    data = call_json(capsys, "export", CNN, "-o", str(tmp_path / "hls"), "--check", "0")
    assert data["agrees"] is None
    assert Path(data["top_function"]).exists()


def test_quantize_and_export_to_c(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Formats chosen on samples go through a file into C that is equal to the last bit."""
    images = np.random.default_rng(0).uniform(0, 1, (30, 1, 8, 8)).astype(np.float32)
    samples, precision = tmp_path / "samples.npy", tmp_path / "precision.json"
    np.save(samples, images)
    data = call_json(capsys, "quantize", CNN, "-i", str(samples), "--bits", "6", "-o", str(precision))
    assert [layer["name"] for layer in data["layers"]] == ["image", "conv1", "conv2", "dense1", "dense2"]
    assert data["layers"][1]["weight"].startswith("fixed<6,")
    arguments = ["-o", str(tmp_path / "c"), "--name", "digits", "--samples", str(samples)]
    made = call_json(capsys, "export", CNN, "--to", "c", "--precision", str(precision), *arguments)
    assert made["checked"] == 30
    assert (tmp_path / "c" / "digits.h").is_file()
    again = call_json(capsys, "export", CNN, "--to", "c", "--precision", "auto", "--bits", "6", *arguments)
    assert again["flash_bytes"] == made["flash_bytes"]


def test_quantize_writes_int8_models(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(0, 1, (30, 1, 8, 8)).astype(np.float32)
    samples, made = tmp_path / "samples.npy", tmp_path / "digits.onnx"
    np.save(samples, images)
    data = call_json(capsys, "quantize", CNN, "-i", str(samples), "--int8", "-o", str(made))
    assert [(layer["name"], layer["channels"]) for layer in data["layers"]] == [
        ("conv1", 16), ("conv2", 32), ("dense1", 64), ("dense2", 10),
    ]  # fmt: skip
    assert data["left"] == {}
    assert qf.load(made).run(images)["scores"].shape == (30, 10)
    for wrong, wanted in ((["--int8", "--bits", "6"], "leave --bits"), (["--per-tensor"], "said of --int8")):
        code, _, err = call(capsys, "quantize", CNN, "-i", str(samples), *wrong)
        assert code == 2
        assert wanted in err


def test_quantize_wants_samples(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = call(capsys, "quantize", CNN)
    assert code == 2
    assert "give samples" in err
    code, _, err = call(capsys, "export", CNN, "--to", "Vitis", "-o", str(tmp_path))
    assert code == 2
    assert "known are hls4ml, c, opencl" in err


def test_export_tells_when_the_simulation_is_too_far(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quatrefoil.fpga import hls4ml_export
    from quatrefoil.fpga.hls4ml_export import ExportReport, OutputCheck

    checked = OutputCheck("scores", 8, 0.5, 2.0, 1.0)
    made = ExportReport(tmp_path, "p", "Vitis", "part", "parallel", "latency", 1, "fixed<16,6>", (), outputs=(checked,))
    monkeypatch.setattr(ExportReport, "__str__", lambda self: "made")
    monkeypatch.setattr(hls4ml_export, "export", lambda *args, **kwargs: made)
    code, _, err = call(capsys, "export", CNN, "-o", str(tmp_path))
    assert code == 1
    assert "more bits" in err
    assert call(capsys, "export", CNN, "-o", str(tmp_path), "--tolerance", "0.3")[0] == 0


def test_a_model_with_two_inputs_asks_for_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("a", "b", "c")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "add", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "add.onnx")
    np.save(tmp_path / "a.npy", np.ones(2, np.float32))
    code, _, err = call(capsys, "run", str(tmp_path / "add.onnx"), "-i", str(tmp_path / "a.npy"))
    assert code == 2
    assert "2 inputs (a, b)" in err
