"""SCALE-Sim's files: its figures to the last digit, and errors that name the place.

tests/data/scalesim/alexnet_resnet18.csv and the reports in its folders were measured with SCALE-Sim 3.0.0 (PyPI,
Python 3.11): the first on whole networks, the folders on small layers with small memories, so that halves are dropped.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from quatrefoil.asic_sim import scalesim
from quatrefoil.asic_sim.scalesim import Config, Layer, ScaleSimError
from quatrefoil.cli.app import run

DATA = Path(__file__).parent / "data" / "scalesim"
MEASURED = sorted(path.parent for path in DATA.glob("*/config.cfg"))
REPORTS = ("COMPUTE_REPORT.csv", "BANDWIDTH_REPORT.csv", "DETAILED_ACCESS_REPORT.csv")
CONV = "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,\n"


def test_all_rows_of_alexnet_and_resnet18_are_as_measured() -> None:
    with (DATA / "alexnet_resnet18.csv").open() as file:
        rows = list(csv.DictReader(file))
    apart = []
    for row in rows:
        array_rows, columns = map(int, row["array"].split("x"))
        config = Config("x", array_rows, columns, row["dataflow"], 1024, 1024, 1024)
        result = scalesim.simulate(Layer.product(row["layer"], int(row["M"]), int(row["N"]), int(row["K"])), config)
        ours = (
            result.total_cycles,
            result.ifmap.accesses,
            result.filter.accesses,
            result.ofmap.accesses,
            round(result.mapping_efficiency, 4),
            round(result.compute_utilisation, 4),
        )
        names = ("total_cycles", "sram_ifmap_reads", "sram_filter_reads", "sram_ofmap_writes", "mapping_eff_pct")
        theirs = tuple(float(row[name]) for name in (*names, "compute_util_pct"))
        if ours != theirs:
            apart.append((row, ours))
    assert len(rows) == 156
    assert not apart


@pytest.mark.parametrize("folder", MEASURED, ids=lambda folder: folder.name)
def test_reports_are_those_of_scalesim_to_the_letter(folder: Path, tmp_path: Path) -> None:
    config, topology = folder / "config.cfg", folder / "topology.csv"
    assert run(["simulate", "--scalesim", str(config), "--topology", str(topology), "-o", str(tmp_path)]) == 0
    for name in REPORTS:
        assert (tmp_path / folder.name / name).read_text() == (folder / name).read_text()


def test_the_measured_folders_reach_every_way_of_counting() -> None:
    assert len(MEASURED) == 5
    results = [
        scalesim.simulate(layer, scalesim.read_config(folder / "config.cfg"))
        for folder in MEASURED
        for layer in scalesim.read_topology(folder / "topology.csv")
    ]
    for operand in ("ifmap", "filter"):
        stops = [getattr(result, operand).dram_stop for result in results]
        assert min(stops) == -1, "some memory holds all"
        assert max(stops) > 0, "in some a half is dropped"
    assert any(result.ofmap.dram_start < result.ofmap.stop for result in results)


def test_what_is_not_known_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = DATA / "ws_16x8_conv"
    config = tmp_path / "user.cfg"
    config.write_text((folder / "config.cfg").read_text().replace(": CALC", ": USER"))
    arguments = ["simulate", "--scalesim", str(config), "--topology", str(folder / "topology.csv"), "-o", str(tmp_path)]
    assert run([*arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    with (folder / "COMPUTE_REPORT.csv").open() as file:
        compute = list(csv.reader(file))
    assert [layer["compute_cycles"] for layer in data["layers"]] == [int(row[2]) for row in compute[1:]]
    rows = list(csv.reader((tmp_path / "ws_16x8_conv" / "COMPUTE_REPORT.csv").read_text().splitlines()))
    assert [cell.strip() for cell in rows[1]] == ["0", "", "", "", "", compute[1][5].strip(), compute[1][6].strip(), ""]
    assert run(arguments) == 0
    assert "not modelled" in capsys.readouterr().err


def test_topologies_as_people_write_them(tmp_path: Path) -> None:
    file = tmp_path / "net.csv"
    file.write_text(
        "layer NAME,ifmap h,Ifmap W,filter h,filter w,Channels,Num Filter,Stride h,Stride w,Eh,Ew,e2\n"
        ",,,,,,,,,,,,\n\n"
        "Conv1 ,224 , 224,7,7,3,64,2,2,110,110,12100\r\n"
        "CB2a_1,56,56,1,3,64,64,1,2,,,,,\n"
    )
    first, second = scalesim.read_topology(file)
    assert first == Layer("Conv1", 224, 224, 7, 7, 3, 64, 2, 2)
    assert (first.m, first.k, first.n) == (110 * 110, 147, 64)
    assert second.m == 56 * 28
    assert second.stride_width == 2
    file.write_text("Layer, M, N, K, Sparsity\nfc, 1, 1000, 512, 1:1,\n")
    [product] = scalesim.read_topology(file)
    assert (product.m, product.n, product.k) == (1, 1000, 512)
    file.write_text(CONV + "DP1, 8, 8, 3, 3, 4, 1, 1,\n")
    assert [layer.name for layer in scalesim.read_topology(file)] == [f"DP1Channel_{n}" for n in range(4)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CONV + "\nc1,8,8,3,3,4,16,1,\nc2,8,8,3,x,4,16,1,\n", r"net.csv, line 4, column 5 \(Filter Width\): 'x' is no"),
        (CONV + "c1,8,8,3,3,4,16,\n", r"line 2, column 8 \(Strides\): there is nothing"),
        (CONV + "c1,8,8,3,3,4,0,1\n", r"line 2, column 7 \(Num Filter\): 0 is too small"),
        (CONV + "c1,8,8,9,3,4,4,1\n", r"line 2, column 4 \(Filter Height\): 9 is larger than the image's 8"),
        (CONV + "c1,8,8,3,3,4,4,1,2:4,\n", r"line 2, column 9: sparsity 2:4 is not modelled"),
        ("c1,8,8,3,3,4,4,1\n", "line 1: a header comes first"),
        ("Layer, M, K, N,\nfc,1,2,3,\n", "line 1: the header has M, K, N; the order is M, N, K"),
        ("Layer, M, N, K,\nfc,1,2.5,3,\n", r"line 2, column 3 \(N\): '2.5' is no whole number"),
        (CONV, "has a header and no layer"),
        (",,\n", "is empty"),
    ],
)
def test_errors_of_a_topology_name_line_and_column(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "net.csv"
    file.write_text(text)
    with pytest.raises(ScaleSimError, match=said):
        scalesim.read_topology(file)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("ArrayHeight : 16", "ArrayHeight : many", "ArrayHeight is 'many'"),
        ("ArrayHeight : 16", "", r"\[architecture_presets\] has no ArrayHeight"),
        ("ArrayHeight : 16", "ArrayHeight : 0", "ArrayHeight is 0"),
        ("Dataflow : ws", "Dataflow : rs", "Dataflow is 'rs'; give one of ws, os, is"),
        (": CALC", ": FAST", "InterfaceBandwidth is 'FAST'; give CALC or USER"),
        ("SparsitySupport : false", "SparsitySupport : true", "sparse layers are not modelled"),
        ("run_name = ws_16x8_conv", "run_name = ../x", "run_name is '../x'"),
        ("[general]", "general", "cannot be read"),
    ],
)
def test_errors_of_a_configuration_name_the_key(old: str, new: str, said: str, tmp_path: Path) -> None:
    text = (DATA / "ws_16x8_conv" / "config.cfg").read_text()
    assert old in text
    file = tmp_path / "a.cfg"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ScaleSimError, match=said):
        scalesim.read_config(file)


def test_memories_that_scalesim_has_no_figures_for_are_refused() -> None:
    layer = Layer.product("fc", 100, 10, 100)
    scalesim.simulate(Layer.product("fc", 10, 10, 10), Config("x", 600, 8, "ws", 1, 8, 8))
    with pytest.raises(ScaleSimError, match="IfmapSramSzkB 1 is too small for 600"):
        scalesim.simulate(layer, Config("x", 600, 8, "ws", 1, 8, 8))


def test_use_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = DATA / "ws_16x8_conv"
    config, topology = ("--scalesim", str(folder / "config.cfg")), ("--topology", str(folder / "topology.csv"))
    for arguments, said in (
        (config, "belong together"),
        (topology, "belong together"),
        ((*config, *topology, "--design", "edge"), "leave the problem, --design, --format, --trace"),
        ((), "nothing to simulate"),
        (("--scalesim", "none.cfg", *topology), "none.cfg cannot be read"),
    ):
        assert run(["simulate", *arguments]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert run(["simulate", *config, *topology]) == 0
    assert "hanging" in capsys.readouterr().out
