"""The arithmetic of goals, on made-up records: means, who counts, what is missed; and the roofline's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quatrefoil import ops
from quatrefoil.bench import goals, roofline, suites
from quatrefoil.bench.goals import Compared, compared, standing
from quatrefoil.bench.suites import Family
from quatrefoil.cli.app import run
from quatrefoil.cpu import _instruction_set, _roofline, instruction_set
from quatrefoil.errors import QuatrefoilError
from quatrefoil.problem import Work

POOL = "max_pool float32[1x1x4x4] kernel_shape=2x2"
CEILINGS = roofline.Ceilings(
    "v3",
    100.0,
    (roofline.Level("L1", 32.0, 200.0), roofline.Level("L2", 512.0, 80.0), roofline.Level("memory", None, 20.0)),
)


def record(name: str, contender: str, microseconds: float | None, accurate: bool = True, **more: Any) -> dict[str, Any]:
    measured = None if microseconds is None else {"median": microseconds * 1e-6}
    data = {
        "name": name,
        "contender": contender,
        "ours": contender == "cpu",
        "measured": measured,
        "accurate": accurate,
    }
    base = {"refused": "", "kernel": "k", "error": 1e-7, "threads": 1, "macs": 1000, "bytes": 80, "problem": POOL}
    return {**base, **data, **more}


def two_tasks() -> list[Compared]:
    return compared(
        [
            record("a", "cpu", 10), record("a", "ort", 20), record("a", "ncnn", 12), record("a", "mnn", 1, accurate=False),
            record("b", "cpu", 10), record("b", "openvino", 45), record("b", "torch", 80), record("b", "ncnn", None),
        ]
    )  # fmt: skip


def test_means_are_geometric_and_count_accurate_peers_alone() -> None:
    found = standing(Family("f", 2.0, 3.0, None), two_tasks())
    assert found.best == pytest.approx((1.2 * 4.5) ** 0.5)
    assert found.major == pytest.approx((2.0 * 4.5) ** 0.5)
    assert found.worst == (pytest.approx(1.2), "a", "ncnn")
    assert found.misses == ()


def test_misses_are_said() -> None:
    found = standing(Family("f", 2.5, 3.5, None), two_tasks())
    assert found.misses == ("2.32 of 2.5 against the best peer", "3.00 of 3.5 against torch, ONNX Runtime and OpenVINO")
    slow = compared([record("a", "cpu", 10), record("a", "ort", 8.5)])
    assert standing(Family("f", 0.5, None, None), slow).misses == ("a at 0.85, below 0.9",)
    none = compared([record("a", "cpu", None, refused="no kernel"), record("a", "ort", 8)])
    assert standing(Family("f", 1.0, None, None), none).misses == ("a: no kernel",)


def test_a_goal_that_nobody_can_be_compared_on_is_neither_met_nor_missed() -> None:
    rough = [record("a", "cpu", 10), record("a", "ort", 5, accurate=False)]
    alone = standing(Family("f", 1.0, None, None), compared(rough))
    assert (alone.misses, alone.verdict) == ((), "not compared; no accurate result of the best peer")
    partly = standing(Family("f", 1.0, 1.0, None), compared([*rough, record("a", "litert", 20)]))
    assert partly.verdict == "met; no accurate result of torch, ONNX Runtime and OpenVINO"
    assert standing(Family("f", 3.0, None, None), two_tasks()).verdict == "missed: 2.32 of 3 against the best peer"


def test_a_bound_in_microseconds() -> None:
    tasks = compared([record("a", "cpu", 0.8), record("b", "cpu", 1.2)])
    assert standing(Family("f", None, None, 1.5), tasks).misses == ()
    assert standing(Family("f", None, None, 1.0), tasks).misses == ("1.20 us of 1 us",)


def test_a_task_without_an_accurate_peer_is_in_no_mean() -> None:
    tasks = compared(
        [record("a", "cpu", 10), record("a", "ort", 5, accurate=False), record("b", "cpu", 10), record("b", "ort", 20)]
    )
    found = standing(Family("f", 1.0, 1.0, None), tasks)
    assert (found.tasks, found.best, found.misses) == (2, pytest.approx(2.0), ())


def suite_file(folder: Path) -> Path:
    file = folder / "goals.toml"
    file.write_text(
        f'title = "T"\n[[family]]\nname = "pools"\ngoal = 1.5\ngoal_major = 1.0\n'
        f'[[family.problem]]\nname = "a"\ntext = "{POOL}"\nquick = true\n[[family.problem]]\nname = "b"\ntext = "{POOL}"\n'
    )
    return file


def report(folder: Path, name: str, threads: int, *rows: dict[str, Any]) -> Path:
    file = folder / name
    file.write_text(
        json.dumps(
            {
                "suite": str(suite_file(folder)),
                "made": "2026-11-25T00:00:00",
                "machine": {"processor": "P"},
                "ceilings": CEILINGS.as_dict(),
                "probe": {"asked": 10, "slow": 1},
                "peers": [{"name": "ort", "title": "ONNX Runtime", "version": "onnxruntime 1"}],
                "records": [{**row, "threads": threads} for row in rows],
            }
        )
    )
    return file


def test_reports_become_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = report(
        tmp_path, "1.json", 1, record("a", "cpu", 10), record("a", "ort", 20), record("a", "mnn", 3, accurate=False)
    )
    more = report(tmp_path, "2.json", 1, record("b", "cpu", 10), record("b", "ort", 5))
    two = report(tmp_path, "3.json", 2, record("a", "cpu", 6), record("a", "ort", 12))
    assert goals.main([str(first), str(more), str(two)]) == 0
    told = capsys.readouterr().out
    assert told.count("| family |") == 2
    assert (
        "| pools | 2 | 1.00 | 1.5 | 1.00 | 1 | b: 0.50 (ort) | **missed**: 1.00 of 1.5 against the best peer; b at 0.50"
        in told
    )
    assert "| pools | 1 | 2.00 | 1.5 | 2.00 | 1 | a: 2.00 (ort) | met |" in told
    assert "| a | `k` | 10.0 | 20.0 | ~3.00 | 2.00 |" in told
    assert "2 of 20 rounds began on a core below its speed" in told
    assert "100 GFLOP/s" in told


def test_a_file_that_is_no_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "x.json"
    other.write_text("{}")
    assert goals.main([str(other)]) == 2
    assert "no report of a suite with goals" in capsys.readouterr().err
    assert goals.main([]) == 2
    with pytest.raises(QuatrefoilError, match="cannot be read"):
        goals.read(tmp_path / "none.json")


@pytest.mark.parametrize(("line", "said"), [("goal = 0", "write a number above 0"), ("gaol = 1", "unknown keys .gaol")])
def test_a_faulty_family_is_named(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "s.toml"
    file.write_text(f'[[family]]\nname = "f"\n{line}\n[[family.problem]]\ntext = "{POOL}"\n')
    with pytest.raises(QuatrefoilError, match=said):
        suites.load(file)


def test_the_command_measures_and_judges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite, table, data = suite_file(tmp_path), tmp_path / "goals.md", tmp_path / "goals.json"
    assert run(["bench", str(suite), "--peers", "ort", "--rounds", "3", "--quick", "--markdown", str(table)]) == 0
    told = capsys.readouterr().out
    assert "verdict" in told
    assert "pools" in told
    assert "| pools | 1 |" in table.read_text()
    assert run(["bench", str(suite), "--peers", "", "--rounds", "3", "--match", "^b$", "--json", str(data)]) == 0
    assert "not compared" in capsys.readouterr().out
    [row] = goals.read(data)["records"]
    assert (row["name"], row["contender"], row["accurate"]) == ("b", "cpu", True)
    assert run(["bench", str(suite), "--match", "nothing"]) == 2
    assert "no task of the suite is left" in capsys.readouterr().err
    assert run(["bench", str(suite), "--match", "("]) == 2
    assert "no regular expression" in capsys.readouterr().err


def test_the_suite_of_every_peer_has_the_families_of_the_goals() -> None:
    suite = suites.load("peers")
    assert all(family.goal or family.most_microseconds for family in suite.families)
    for family in suite.families:
        members = [entry for entry in suite.entries if entry.family == family.name]
        assert any(entry.quick for entry in members), family.name
        assert len(members) > 2, family.name


def test_the_roofline_takes_the_slower_of_arithmetic_and_memory() -> None:
    conv = ops.parse("conv float32[1x4x8x8],float32[6x4x3x3]")
    assert CEILINGS.seconds(conv, Work(50_000, 80), 1) == pytest.approx(1e-6)
    assert CEILINGS.seconds(conv, Work(50_000, 80), 2) == pytest.approx(0.5e-6)
    assert CEILINGS.seconds(conv, Work(50, 16_000), 1) == pytest.approx(80e-9)
    assert CEILINGS.seconds(conv, Work(50, 400_000), 1) == pytest.approx(5e-6)
    assert CEILINGS.seconds(ops.parse(POOL), Work(50_000, 4_000_000), 1) == pytest.approx(200e-6)
    step = "lstm float32[{}x1x8],float32[1x256x8],float32[1x256x64] hidden_size=64"
    weights = 256 * 64 * 4
    assert CEILINGS.seconds(ops.parse(step.format(5)), Work(0, weights), 1) == pytest.approx(5 * weights / 80e9)
    assert CEILINGS.seconds(None, Work(50_000, 10**9), 1) == pytest.approx(1e-6)


def test_products_of_bytes_have_a_peak_of_their_own() -> None:
    conv = ops.parse("conv_integer uint8[1x4x8x8],int8[6x4x3x3]")
    pool = ops.parse("max_pool uint8[1x4x8x8] kernel_shape=2x2")
    quick = replace(CEILINGS, int8_gop_s=400.0)
    assert quick.limit(conv, Work(50_000, 80), 1) == (pytest.approx(0.25e-6), "arithmetic")
    assert quick.limit(conv, Work(50, 16_000), 1) == (pytest.approx(80e-9), "L1")
    assert quick.limit(pool, Work(50_000, 16_000), 1) == (pytest.approx(80e-9), "L1")
    earlier = {name: value for name, value in CEILINGS.as_dict().items() if name != "int8_gop_s"}
    assert roofline.Ceilings.of(earlier).limit(conv, Work(50_000, 80), 1)[1] == "L1", "it was not measured then"


def test_byte_products_are_measured_for_each_instruction_set() -> None:
    found = {
        name: max(_roofline.byte_operations(number, 20_000) for _ in range(100))
        for number, name in enumerate(instruction_set.supported())
    }
    assert min(found.values()) > 1e8
    if "v3" in found:
        assert found["v3"] > found["portable"]
    if "v4_vnni" in found and not _instruction_set.emulated(instruction_set.supported().index("v4_vnni")):
        assert found["v4_vnni"] > 1.5 * found["v3"], "an instruction does the work of three"


def test_ceilings_are_measured_and_survive_json() -> None:
    found = roofline.measure()
    assert found.gflop_s > 0.1
    assert found.int8_gop_s
    assert found.int8_gop_s > 0.1
    assert found.levels[-1].kib is None
    assert all(level.gbyte_s > 0.1 for level in found.levels)
    assert roofline.Ceilings.of(json.loads(json.dumps(found.as_dict()))) == found
