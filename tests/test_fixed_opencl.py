"""The OpenCL folder of a fixed-point network: its kernels equal to the last bit, its host program built and run."""

from __future__ import annotations

import os
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


@pytest.mark.parametrize("name", NETS)
def test_kernels_are_equal_to_the_last_bit(name: str, tmp_path: Path) -> None:
    model = NETS[name]()
    made = export_opencl(fixed(model, "fixed<12,5,RND,SAT>"), tmp_path, name="net", check=samples(model, 5))
    assert made.checked == 5
    assert made.device is not None
    assert made.steps > 1
    text = made.kernels.read_text()
    assert 1 < text.count("QF_STEP net_") <= made.steps, "steps that are alike share a kernel"


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
    done = subprocess.run(["make"], cwd=tmp_path, env=environment, capture_output=True, text=True)
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


def test_files_of_others_are_kept(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("all:\n")
    with pytest.raises(CExportError, match="Makefile is no earlier export"):
        export_opencl(fixed(NETS["gru"](), "fixed<12,5>"), tmp_path)
