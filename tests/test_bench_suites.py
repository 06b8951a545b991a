"""Which tasks a word asks for: suites, operators, several, all; number formats; numbers of threads; the command with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quatrefoil import ops
from quatrefoil.bench import goals, suites
from quatrefoil.cli.app import run
from quatrefoil.cli.bench import thread_counts
from quatrefoil.errors import QuatrefoilError

POOL = "max_pool float32[1x1x4x4] kernel_shape=2x2 strides=1x1 pads=0x0x0x0 dilations=1x1 ceil_mode=0 storage_order=0"
BYTES = "max_pool uint8[1x1x4x4] kernel_shape=2x2"


def two_suites(folder: Path) -> str:
    """Two files that share a task and give one name to two tasks."""
    first, second = folder / "first.toml", folder / "second.toml"
    first.write_text(
        f'[[problem]]\nname = "shared"\ntext = "{POOL}"\n[[problem]]\nname = "small"\ntext = "{BYTES}"\nquick = true\n'
    )
    other = POOL.replace("4x4", "5x5")
    second.write_text(
        f'[[problem]]\nname = "again"\ntext = "{POOL}"\nquick = true\n[[problem]]\nname = "small"\ntext = "{other}"\n'
    )
    return f"{first},{second}"


def test_several_suites_hold_each_task_once(tmp_path: Path) -> None:
    found = suites.find(two_suites(tmp_path))
    assert found.title == "first, second"
    assert [entry.name for entry in found.entries] == ["shared", "small", "small (second)"]
    assert found.parts == {"first": ("shared", "small"), "second": ("shared", "small (second)")}
    assert [entry.name for entry in found.entries if entry.quick] == ["shared", "small"]
    assert found.only(found.entries[1:2]).parts == {"first": ("small",)}


def test_all_is_every_suite_without_goals() -> None:
    found = suites.find("all")
    assert set(found.parts) == {name for name in suites.names() if not suites.load(name).families}
    assert len({entry.name for entry in found.entries}) == len({entry.text for entry in found.entries})
    for part, tasks in found.parts.items():
        few = {entry.name for entry in found.entries if entry.quick} & set(tasks)
        assert 2 <= len(few) <= 10, part


@pytest.mark.parametrize("op", ops.SPECS)
def test_every_operator_has_tasks_and_one_that_stands_for_it(op: str) -> None:
    found = suites.find(op)
    assert any(entry.quick and entry.text.startswith(f"{op} ") for entry in found.entries)
    if op not in suites.names():
        assert all(entry.text.startswith(f"{op} ") for entry in found.entries)


def test_a_word_that_names_nothing_is_told_what_there_is() -> None:
    with pytest.raises(
        QuatrefoilError,
        match=r"known are audio, .* the operators conv, .*gru, .*fixed_gru, sparse_rnn, .*gru_gradient, and all",
    ):
        suites.find("conv,nothing")
    with pytest.raises(QuatrefoilError, match="names no suite"):
        suites.find(",")


def test_number_formats_are_those_of_what_is_multiplied() -> None:
    [quantised] = [entry for entry in suites.load("int8").entries if entry.name == "3x3 64@56"]
    assert suites.dtypes(quantised.text) == {"uint8", "int8"}
    assert suites.dtypes("max_unpool float32[1x1x2x2],int64[1x1x2x2] kernel_shape=2x2") == {"float32"}
    assert suites.dtypes(f"2 * ({POOL.replace('4x4', '1x1').replace('2x2', '1x1')})") == {"float32"}
    assert suites.dtypes("network resnet50") == {"float32"}


def test_a_problem_takes_another_number_format_or_says_why_not() -> None:
    text = "conv float32[1x3x8x8],float32[4x3x3x3],float32[4] pads=1x1x1x1"
    assert suites.retyped(text, "float16").startswith("conv float16[1x3x8x8],float16[4x3x3x3],float16[4] ")
    unpool = suites.retyped("max_unpool float32[1x1x2x2],int64[1x1x2x2] kernel_shape=2x2", "float16")
    assert "float16[1x1x2x2],int64[1x1x2x2]" in unpool
    with pytest.raises(QuatrefoilError, match=r"cannot be of int8: conv: .*float32 or float64"):
        suites.retyped(text, "int8")
    with pytest.raises(QuatrefoilError, match="keeps its number format"):
        suites.retyped("network resnet50", "float16")


def test_numbers_of_threads() -> None:
    assert thread_counts("1, 2,1") == [1, 2]
    for wrong in ("", "0", "two", "1,-2", "1.5"):
        with pytest.raises(QuatrefoilError, match="write whole numbers from 1"):
            thread_counts(wrong)


def test_the_command_takes_suites_formats_and_threads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, file = two_suites(tmp_path), tmp_path / "r.json"
    wanted = ["bench", target, "--rounds", "3", "--threads", "1,2", "--dtype", "float32", "--json", str(file)]
    assert run([*wanted, "--html", str(tmp_path / "r.html")]) == 0
    told = capsys.readouterr().out
    assert ", one thread" in told
    assert ", 2 threads" in told
    data = json.loads(file.read_text())
    records = [(row["name"], row["threads"]) for row in data["records"]]
    assert records == [("shared", 1), ("small (second)", 1), ("shared", 2), ("small (second)", 2)]
    assert data["suites"] == {"first": ["shared"], "second": ["shared", "small (second)"]}
    assert data["method"][-1].startswith("Each number of threads")
    assert [goals.title(report) for report in goals.by_threads(data)] == ["one thread", "2 threads"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pool", "--dtype", "int4"], "there are some of float32"),
        (["pool", "--threads", "1,2", "--scheduler", "local"], "--scheduler goes with one number of threads"),
        (["pool", "--markdown", "x.md"], "--markdown is for suites with goals"),
        (["peers", "--markdown", "x.md", "--scheduler", "local"], "--markdown goes without"),
        ([f"{POOL} with_indices=0", "--dtype", "float8"], "cannot be of float8"),
    ],
)
def test_what_cannot_be_asked_for(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *arguments]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
