"""Who may import whom, kept by walking the syntax trees; and what `import quatrefoil` may cost."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"kernels": "quatrefoil"} | {
    room: f"quatrefoil.{room}" for room in ("cpu", "gpu", "fpga", "asic_sim", "models", "bench", "cli")
}
BACKENDS = ("quatrefoil.cpu", "quatrefoil.gpu", "quatrefoil.fpga", "quatrefoil.asic_sim")
BACKEND_MAY = (
    "problem",
    "numerics",
    "ops",
    "registry",
    "sequences",
    "widening",
    "decoding",
    "arrays",
    "settings",
    "errors",
)

# The layers, lowest first: a module may import what stands before it or beside it on its line.
LAYERS = (
    ("quatrefoil.errors", "quatrefoil.settings"),
    ("quatrefoil.problem", "quatrefoil.numerics", "quatrefoil.random"),
    ("quatrefoil.ops",),
    ("quatrefoil.reference", "quatrefoil.registry", "quatrefoil.arrays", "quatrefoil.foreign"),
    (
        "quatrefoil.backends",
        "quatrefoil.autotune",
        "quatrefoil.widening",
        "quatrefoil.decoding",
        "quatrefoil.sequences",
    ),
    ("quatrefoil.dispatch",),
    ("quatrefoil.functional",),
    ("quatrefoil.gradients",),
    ("quatrefoil.torch",),
    ("quatrefoil.jax",),
)

# Exporting a model to HLS reads the graph of models/; it is the one way from a backend's room upwards. Its proof, a
# command, holds hls4ml's C++ to the oracle.
EXCEPTIONS = {
    ("quatrefoil.fpga.hls4ml_export", "quatrefoil.models"),
    ("quatrefoil.fpga.hls4ml_export.proof", "quatrefoil.reference"),
}


def modules() -> list[tuple[str, Path]]:
    found = []
    for room, package in ROOMS.items():
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT / room).with_suffix("").parts
            found.append((".".join((package, *(part for part in parts if part != "__init__"))), path))
    return found


def imported(path: Path) -> set[str]:
    """The quatrefoil modules that a file imports, wherever in it. ``from a import b`` counts as a.b too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "quatrefoil"}


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer(name: str) -> int | None:
    return next((i for i, line in enumerate(LAYERS) for package in line if inside(name, package)), None)


def allowed(importer: str, name: str) -> bool:
    home = next((package for package in BACKENDS if inside(importer, package)), None)
    if any(inside(importer, who) and inside(name, what) for who, what in EXCEPTIONS):
        return True
    if home is not None:
        return inside(name, home) or any(inside(name, f"quatrefoil.{part}") for part in BACKEND_MAY)
    own, other = layer(importer), layer(name)
    if own is not None:
        return other is not None and other <= own
    if inside(importer, "quatrefoil.models"):
        return not any(inside(name, f"quatrefoil.{room}") for room in ("bench", "cli"))
    if inside(importer, "quatrefoil.bench"):
        return not inside(name, "quatrefoil.cli")
    return True


@pytest.mark.parametrize(("name", "path"), [pytest.param(n, p, id=n) for n, p in modules()])
def test_imports_respect_the_layers(name: str, path: Path) -> None:
    wrong = sorted(target for target in imported(path) if not allowed(name, target))
    assert not wrong, f"{name} may not import {', '.join(wrong)}"


def test_the_rule_catches_a_wrong_import() -> None:
    assert not allowed("quatrefoil.cpu.conv", "quatrefoil.dispatch.select")
    assert not allowed("quatrefoil.cpu.conv", "quatrefoil.reference.evaluate")
    assert not allowed("quatrefoil.gpu.conv", "quatrefoil.cpu.conv")
    assert not allowed("quatrefoil.ops.conv", "quatrefoil.registry.Kernel")
    assert not allowed("quatrefoil.models.graph", "quatrefoil.cli.main")


FORBIDDEN = ("cupy", "numba", "cuda", "pyopencl", "onnx", "torch", "hls4ml", "scipy", "rich", "typer")


def fresh_python(code: str, **environment: str) -> str:
    variables = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables
    ).stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = json.loads(fresh_python("import quatrefoil, sys, json; print(json.dumps(sorted(sys.modules)))"))
    heavy = [name for name in loaded if name.split(".")[0] in FORBIDDEN]
    assert not heavy, f"import quatrefoil loads {heavy}"
    native = [name for name in loaded if name.startswith("quatrefoil.") and name.split(".")[-1].startswith("_")]
    assert not native, f"import quatrefoil loads compiled parts: {native}"


def test_declaring_kernels_loads_nothing_heavy() -> None:
    code = (
        "import sys, json\nfrom quatrefoil import backends\n"
        "for name in backends.NAMES: backends.get(name).kernels()\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    loaded = json.loads(fresh_python(code))
    heavy = [name for name in loaded if name.split(".")[0] in FORBIDDEN]
    assert not heavy, f"declaring kernels loads {heavy}"


def test_import_is_quick(tmp_path: Path) -> None:
    """Under 150 ms of processor time, NumPy included, as an installed package: byte code is written once and read
    then. The best of six, because what other processes take away is not ours. Where NumPy alone takes more than half
    of that, the processor is slow, and twice NumPy's time is allowed."""
    kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}

    def seconds(module: str) -> float:
        code = f"import time; start = time.process_time(); import {module}; print(time.process_time() - start)"
        return min(float(fresh_python(code, **kept)) for _ in range(6))

    best = seconds("quatrefoil")
    assert best < max(0.150, 2 * seconds("numpy")), f"import quatrefoil takes {best * 1e3:.0f} ms"


def test_double_import_is_an_error() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\ntry:\n import kernels\nexcept ImportError as e: print(e)"
    assert "import quatrefoil" in fresh_python(code)
