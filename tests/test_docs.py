"""What the documentation says is so: its Python runs, its commands and options exist, its table and links are right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quatrefoil import backends
from quatrefoil.bench import support_table
from quatrefoil.cli.app import run

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
VARIABLE = re.compile(r"QUATREFOIL_[A-Z_]+")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if FENCE.search(page.read_text())], ids=name)
def test_python_in_the_documentation_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(FENCE.findall(page.read_text()))
    if "import jax" in code:
        pytest.importorskip("jax", reason=f"{name(page)} uses JAX; pip install 'quatrefoil[jax]' adds it")
    for backend in ("cpu", "gpu", "fpga", "asic"):
        wanted = f'"{backend}"' in code or (backend == "gpu" and "import cupy" in code)
        if wanted and not backends.get(backend).probe().ready:
            pytest.skip(f"{name(page)} uses {backend}: {backends.get(backend).probe().detail}")
    exec(compile(code, str(page), "exec"), {"__name__": "documentation"})


def test_the_support_table_is_up_to_date(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    assert support_table.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_support_table_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    for file in support_table.FILES:
        text = (ROOT / file).read_text()
        (tmp_path / file).write_text(text.replace("| `lstm` | float32", "| `lstm` | float31"))
    monkeypatch.chdir(tmp_path)
    assert support_table.main(["--check"]) == 1
    assert support_table.main([]) == 0
    assert support_table.main(["--check"]) == 0


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{name(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_options_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in re.findall(r"^(?:    )?quatrefoil ([a-z]+ .*|[a-z]+)$", page.read_text(), re.MULTILINE):
        command, *words = line.split("#")[0].split()
        # the gallery's commands have commands of their own
        inner = words[:1] if command == "gallery" else []
        assert run([command, *inner, "--help"]) == 0, line
        told = capsys.readouterr().out
        for option in [word for word in words if word.startswith("-") and word != "-"]:
            assert option in told, f"{name(page)}: quatrefoil {line}: no option {option}"


def test_settings_are_those_of_the_source() -> None:
    told = set(VARIABLE.findall((ROOT / "docs" / "install.md").read_text()))
    rooms = [init.parent for init in ROOT.glob("*/__init__.py")]
    found = {
        variable for room in rooms for file in room.rglob("*.py") for variable in VARIABLE.findall(file.read_text())
    }
    assert told == found


def test_make_says_what_is_missing() -> None:
    check = [sys.executable, str(ROOT / ".ci" / "prerequisites.py")]
    lacking = subprocess.run(
        check, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "CXX": "no-such-compiler"}
    )
    assert lacking.returncode == 1
    assert "a C++ compiler (no-such-compiler): not found here" in lacking.stderr
    assert "sudo apt install" in lacking.stderr
    assert "g++" in lacking.stderr
