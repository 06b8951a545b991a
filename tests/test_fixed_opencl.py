"""The OpenCL folder of a fixed-point network: its kernels equal to the last bit, its host program built and run."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from quatrefoil import backends
from quatrefoil.models.fixed.c_export import CExportError
from quatrefoil.models.fixed.c_export.opencl import export_opencl
from quatrefoil.models.fixed.network import fixed
from quatrefoil.models.gallery.small import NETS, samples

pytestmark = pytest.mark.skipif(
    not backends.get("fpga").probe().ready, reason=f"no OpenCL device: {backends.get('fpga').probe().detail}"
)


AS_C = (Path(__file__).parent / "data" / "opencl_as_c.h").read_text()


@pytest.mark.parametrize("name", NETS)
def test_kernels_are_equal_to_the_last_bit(name: str, tmp_path: Path) -> None:
    model = NETS[name]()
    made = export_opencl(fixed(model, "fixed<12,5,RND,SAT>"), tmp_path, name="net", check=samples(model, 5))
    assert made.checked == 5
    assert made.device is not None
    assert made.steps > 1


def test_layers_in_a_row_are_a_stream_and_steps_that_are_alike_share_a_kernel(tmp_path: Path) -> None:
    made = export_opencl(fixed(NETS["digits_cnn"](), "fixed<12,5,RND,SAT>"), tmp_path / "cnn", name="net")
    text = made.kernels.read_text()
    assert text.count("QF_STREAM(short8, stream_net_pool2_0_") == 3, "conv, pool, conv, pool"
    assert made.steps == 3
    assert text.count("QF_STEP net_dense") == 2, "a dense layer has nothing to slide over"
    # a sigmoid stands in the stream; a pool in front of which a value is read twice begins one
    text = export_opencl(
        fixed(NETS["autoencoder"](), "fixed<12,5>"), tmp_path / "coder", name="net"
    ).kernels.read_text()
    assert "sigmoid_table[qf_table_index(" in text
    assert text.count("QF_STEP net_sigmoid") == 0
    text = export_opencl(
        fixed(NETS["depthwise_cnn"](), "fixed<12,5>"), tmp_path / "twice", name="net"
    ).kernels.read_text()
    assert text.count("QF_STEP net_tanh") == 1


@pytest.mark.parametrize(
    ("name", "form"), [("digits_cnn", "QF_CHANNELS"), ("depthwise_cnn", "QF_PIPES"), ("autoencoder", "QF_CHANNELS")]
)
def test_kernels_with_channels_or_pipes_are_equal(name: str, form: str, tmp_path: Path) -> None:
    """The form that PoCL cannot compile, compiled as C: in the host's order, every kernel on its own."""
    compiler = os.environ.get("CC") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to compile the kernels with")
    model = NETS[name]()
    network = fixed(model, "fixed<12,5,RND,SAT>")
    made = export_opencl(network, tmp_path, name="net")
    source, library = tmp_path / "net.c", tmp_path / "net.so"
    source.write_text(AS_C + made.kernels.read_text())
    command = [compiler, f"-D{form}", "-std=gnu11", "-O1", "-w", "-shared", "-fPIC", source, "-o", library, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = ctypes.CDLL(str(library))
    host = made.host.read_text()
    apart = host[host.index("#ifdef QF_STREAMS") : host.index("#else")]
    calls = re.findall(r'{"(\w+)", {0, 0}, \d+, (\d+), {([^}]*)}}', apart)
    assert any(count == "1" for _, count, _ in calls), "the first and the last kernel of a stream see one end of it"
    sizes = [int(size) for size in re.search(r"sizes\[\] = {([^}]*)}", host)[1].split(",")]  # type: ignore[index]
    buffers = [ctypes.create_string_buffer(size) for size in sizes]
    x = samples(model, 1)
    want = network.integers(x)
    ends = [(node, node.kind) for node in network.graph.nodes if node.kind in ("FixedQuantize", "FixedDequantize")]
    given, found = (
        [int(place) for place in re.search(rf"{word}\[\] = {{([^}}]*)}}", host)[1].split(",")]  # type: ignore[index]
        for word in ("inputs", "outputs")
    )
    firsts = [node.outputs[0] for node, kind in ends if kind == "FixedQuantize"]
    lasts = [node.inputs[0] for node, kind in ends if kind == "FixedDequantize"]
    for place, value in zip(given, firsts):
        buffers[place][:] = want[value].tobytes()
    for kernel, count, places in calls:
        getattr(kernels, kernel)(*[buffers[int(place)] for place in places.split(",")][: int(count)])
    for place, value in zip(found, lasts):
        np.testing.assert_array_equal(np.frombuffer(buffers[place], want[value].dtype), want[value].reshape(-1))
    assert kernels.left() == 0


def test_the_host_program_runs(tmp_path: Path) -> None:
    """Compiled by the folder's own Makefile, on raw files, with the loader and the device that pyopencl brings."""
    if not any(Path(place, "CL", "cl.h").exists() for place in ("/usr/include", "/usr/local/include")):
        pytest.skip("there are no OpenCL headers (CL/cl.h) to compile the host program with")
    import pyopencl

    libraries = Path(pyopencl.__file__).parent / ".libs"
    loader = next(libraries.glob("libOpenCL*.so*"), None)
    if loader is None or shutil.which("make") is None:
        pytest.skip("pyopencl brings no OpenCL loader to link with, or there is no make")
    model = NETS["conv_lstm"]()
    network = fixed(model, "fixed<12,5,RND,SAT>")
    export_opencl(network, tmp_path, name="net")
    (tmp_path / "libOpenCL.so").symlink_to(loader)
    environment = {
        **os.environ, "LDFLAGS": f"-L{tmp_path} -Wl,-rpath,{libraries}", "LD_LIBRARY_PATH": f"{tmp_path}:{libraries}",
        "OCL_ICD_VENDORS": os.environ.get("OCL_ICD_VENDORS", str(libraries)),
    }  # fmt: skip
    for arguments in (["-B", "STREAMS=1"], ["-B"]):
        done = subprocess.run(["make", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr
    x = samples(model, 3)
    want = network.integers(x)
    want["x.fixed"].tofile(tmp_path / "x.bin")
    outputs = [node.inputs[0] for node in network.graph.nodes if node.kind == "FixedDequantize"]
    files = ["x.bin", *(f"{place}.bin" for place in range(len(outputs)))]
    run = subprocess.run(["./net", "net.cl", *files], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for place, name in enumerate(outputs):
        got = np.fromfile(tmp_path / f"{place}.bin", want[name].dtype)
        batch = 1 if name.startswith("lstm") else 0  # a state's batch is its second axis
        np.testing.assert_array_equal(got, np.moveaxis(want[name], batch, 0).reshape(-1))


@pytest.mark.parametrize("name", ["depthwise_cnn", "conv_lstm"])
def test_kernels_of_many_work_items_are_equal(name: str, tmp_path: Path) -> None:
    model = NETS[name]()
    network = fixed(model, "fixed<12,5,RND,SAT>")
    made = export_opencl(network, tmp_path, name="net", check=samples(model, 5), form="ndrange")
    assert (made.checked, made.form) == (5, "ndrange")
    convolutions = sum(node.op == "fixed_conv" for node in network.graph.nodes)
    assert made.kernels.read_text().count("conv_place_net_") >= 2 * convolutions, "defined and called"
    assert "QF_STREAM(" not in made.kernels.read_text().split("#endif")[-1]


def test_the_form_is_measured(tmp_path: Path) -> None:
    model = NETS["depthwise_cnn"]()
    network = fixed(model, "fixed<12,5,RND,SAT>")
    made = export_opencl(network, tmp_path, name="net", check=samples(model, 3), form="measured")
    assert set(made.seconds) == {"stream", "ndrange"}
    assert made.form == min(made.seconds, key=lambda form: made.seconds[form])
    assert f": {made.form} was written" in str(made)
    assert ("conv_place_" in made.kernels.read_text()) == (made.form == "ndrange")
    with pytest.raises(CExportError, match="give some with check"):
        export_opencl(network, tmp_path, name="net", form="measured")
    with pytest.raises(CExportError, match="form is 'fast'; known are stream, ndrange, measured"):
        export_opencl(network, tmp_path, name="net", form="fast")


def test_a_wrong_number_is_found_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = NETS["gru"]()
    network = fixed(model, "fixed<12,5,RND,SAT>")
    real = type(network).integers
    monkeypatch.setattr(type(network), "integers", lambda self, x: {k: v ^ 1 for k, v in real(self, x).items()})
    with pytest.raises(CExportError, match="differs in"):
        export_opencl(network, tmp_path / "none", name="net", check=samples(model, 1))
    assert not (tmp_path / "none").exists()


def test_files_of_others_are_kept(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("all:\n")
    with pytest.raises(CExportError, match="Makefile is no earlier export"):
        export_opencl(fixed(NETS["gru"](), "fixed<12,5>"), tmp_path)
