"""Designs of the ASIC simulator: what a TOML file may say, and the sentence for everything else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from quatrefoil import asic_sim
from quatrefoil.asic_sim import hardware

EDGE = (hardware.FOLDER / "edge.toml").read_text("utf-8")
KEYS = [field.name for field in dataclasses.fields(asic_sim.Hardware)]
KEYS = [key for key in KEYS if key not in hardware.COMPRESSION_KEYS]
SWITCHES = ("whole_weight_tiles", "activations_stay", "weights_ahead")
LEFT_OUT = ("weights_ahead", "cores", "divide")
CHOICES = [key for key in hardware.CHOICES if key != "divide"]
OTHERS = ("name", "clock_mhz", "technology_nm", "formats", "cores", *SWITCHES, *hardware.CHOICES)
WHOLE = [key for key in KEYS if key not in OTHERS]


def with_line(key: str, text: str | None) -> str:
    """edge.toml with a key's value replaced, or its line left out."""
    lines = [line for line in EDGE.splitlines() if not line.startswith(f"{key} ")]
    return "\n".join([*lines, *([] if text is None else [f"{key} = {text}"])])


@pytest.mark.parametrize("name", asic_sim.shipped())
def test_shipped_designs_load(name: str) -> None:
    design = asic_sim.load(name)
    assert design.name == name
    assert design.digest in str(design)
    assert asic_sim.load(name) == design


def test_shipped_names() -> None:
    assert {"edge", "gemmini_like", "tpu_like"} <= set(asic_sim.shipped())
    assert (asic_sim.load("edge").array_rows, asic_sim.load("tpu_like").array_rows) == (16, 256)


@pytest.mark.parametrize("key", [key for key in KEYS if key not in LEFT_OUT])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(asic_sim.DesignError, match=f"here: the key '{key}' is missing"):
        hardware.parse(with_line(key, None), "here")


def test_what_a_design_may_leave_out() -> None:
    assert hardware.parse(with_line("weights_ahead", None), "here") == asic_sim.load("edge")
    assert hardware.parse(with_line("weights_ahead", "true"), "here").weights_ahead


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('count = 4\ndivide = "planes"', "design edge: divide is 'planes'; write one of channels, rows, batch"),
        ('count = 0\ndivide = "rows"', "design edge: cores is 0; it has to lie in 1 to 64"),
        ('count = true\ndivide = "rows"', "design edge: cores is True; give a whole number"),
        ("count = 4", r"here: \[cores\] is .*; it is a table of count and divide"),
        ('count = 4\ndivide = "rows"\nspeed = 3', r"here: \[cores\] is .*; it is a table of count and divide"),
    ],
)
def test_cores_that_are_none(table: str, said: str) -> None:
    with pytest.raises(asic_sim.DesignError, match=said):
        hardware.parse(f"{EDGE}\n[cores]\n{table}\n", "here")


def test_cores_are_a_table() -> None:
    with pytest.raises(asic_sim.DesignError, match=r"here: \[cores\] is 4; it is a table of count and divide"):
        hardware.parse(with_line("cores", "4"), "here")
    with pytest.raises(asic_sim.DesignError, match="here: unknown key 'divide'; known are name, "):
        hardware.parse(with_line("divide", '"rows"'), "here")
    four = hardware.parse(EDGE + '\n[cores]\ncount = 4\ndivide = "batch"\n', "here")
    assert (four.cores, four.divide, four.elements) == (4, "batch", 4 * 256)
    assert "4 cores of 16x16 weight stationary" in str(four)
    with pytest.raises(asic_sim.DesignError, match="activations_stay is true; what stays is in the memory of one core"):
        dataclasses.replace(four, activations_stay=True)


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(asic_sim.DesignError, match=r"here: unknown key 'array_row'; known are name, clock_mhz"):
        hardware.parse(EDGE + "\narray_row = 16\n", "here")


@pytest.mark.parametrize("key", WHOLE)
@pytest.mark.parametrize("value", ['"16"', "16.0", "true", "[16]"])
def test_a_wrong_type_is_named(key: str, value: str) -> None:
    with pytest.raises(asic_sim.DesignError, match=f"design edge: {key} is .*; give a whole number"):
        hardware.parse(with_line(key, value), "here")


@pytest.mark.parametrize("key", CHOICES)
@pytest.mark.parametrize("value", ['"fast"', "1", "true", '["weight"]'])
def test_a_choice_that_is_none(key: str, value: str) -> None:
    with pytest.raises(
        asic_sim.DesignError, match=rf"design edge: {key} is .*; write one of {hardware.CHOICES[key][0]}"
    ):
        hardware.parse(with_line(key, value), "here")


@pytest.mark.parametrize("key", SWITCHES)
@pytest.mark.parametrize("value", ["1", '"yes"', "[]"])
def test_a_switch_that_is_none(key: str, value: str) -> None:
    with pytest.raises(asic_sim.DesignError, match=rf"{key} is .*; write true or false"):
        hardware.parse(with_line(key, value), "here")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"int8"', "formats is 'int8'; give a table of formats"),
        ("{}", "formats is .*; give a table of formats"),
        ("{ int8 = 0 }", "formats is int8 = 0; cycles lie in 1 to 16"),
        ("{ int8 = true }", "formats is int8 = True; cycles lie in 1 to 16"),
        ("{ int1 = 1 }", "formats: there is no number format 'int1'; such are int8, int16"),
        ("{ int8xint8 = 1 }", "there is no number format 'int8xint8'"),
        ("{ float8 = 1 }", "there is no number format 'float8'"),
        ('{ "fixed<8,9>" = 1 }', "there is no number format"),
        ('{ "fixed<16,6>+<8,4>" = 1 }', "there is no number format"),
    ],
)
def test_formats_that_are_none(text: str, said: str) -> None:
    with pytest.raises(asic_sim.DesignError, match=said):
        hardware.parse(with_line("formats", text), "here")


@pytest.mark.parametrize("value", [4.9, 181, float("nan")])
def test_a_process_that_nothing_is_known_of(value: float) -> None:
    with pytest.raises(asic_sim.DesignError, match=r"technology_nm is .*; "):
        dataclasses.replace(asic_sim.load("edge"), technology_nm=value)


def test_banks_have_to_take_the_sums_that_rest_in_the_array() -> None:
    with pytest.raises(asic_sim.DesignError, match=r"accumulator_entries is 31; with dataflow output .* at least 32"):
        dataclasses.replace(asic_sim.load("edge"), dataflow="output", accumulator_entries=31)


def test_a_row_has_to_hold_a_burst() -> None:
    with pytest.raises(asic_sim.DesignError, match=r"dram_row_bytes is 16; a row has to hold a burst of 32 bytes"):
        dataclasses.replace(asic_sim.load("edge"), dram_row_bytes=16)


def test_a_refresh_has_to_leave_time() -> None:
    with pytest.raises(
        asic_sim.DesignError, match=r"dram_refresh_cycles is 9; it has to be less than .*_cycles, 9, or 0"
    ):
        dataclasses.replace(asic_sim.load("edge"), dram_refresh_cycles=9, dram_refresh_interval_cycles=9)
    dataclasses.replace(asic_sim.load("edge"), dram_refresh_cycles=0, dram_refresh_interval_cycles=1)


@pytest.mark.parametrize("value", ['"fast"', "true", "[]"])
def test_a_clock_that_is_no_number(value: str) -> None:
    with pytest.raises(asic_sim.DesignError, match=r"clock_mhz is .*; give a number"):
        hardware.parse(with_line("clock_mhz", value), "here")


@pytest.mark.parametrize("value", ["0", "-1.5", "nan", "inf"])
def test_a_clock_that_does_not_tick(value: str) -> None:
    with pytest.raises(asic_sim.DesignError, match=r"clock_mhz is .*; it has to be positive and finite"):
        hardware.parse(with_line("clock_mhz", value), "here")


@pytest.mark.parametrize("value", ['""', "3"])
def test_a_name_that_is_none(value: str) -> None:
    with pytest.raises(asic_sim.DesignError, match=r"name is .*; give a text"):
        hardware.parse(with_line("name", value), "here")


@pytest.mark.parametrize("key", WHOLE)
def test_values_out_of_range_are_named(key: str) -> None:
    low, high = hardware.LIMITS.get(key, (1, hardware.MOST))
    for value in (low - 1, -(2**70), high + 1, 2**70):
        with pytest.raises(asic_sim.DesignError, match=f"{key} is {value}; it has to lie in {low} to {high}"):
            dataclasses.replace(asic_sim.load("edge"), **{key: value})


def test_the_activation_memory_has_to_hold_a_row() -> None:
    with pytest.raises(asic_sim.DesignError, match=r"activation_sram_kib is 1; it has to hold two buffers .* 256 rows"):
        dataclasses.replace(asic_sim.load("tpu_like"), activation_sram_kib=1)


def test_what_is_no_file_and_no_toml(tmp_path: Path) -> None:
    with pytest.raises(
        asic_sim.DesignError,
        match=r"there is no design 'edgy'; shipped are edge, edge_quad, edge_sparse, eyeriss_like, gemmini_like, "
        r"hardware_neurons, tpu_like",
    ):
        asic_sim.load("edgy")
    broken = tmp_path / "broken.toml"
    broken.write_text("array_rows = ")
    with pytest.raises(asic_sim.DesignError, match=r"broken.toml is no TOML file"):
        asic_sim.load(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(asic_sim.DesignError, match=r"broken.toml cannot be read"):
        asic_sim.load(broken)


def test_a_design_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "wide.toml"
    path.write_text(with_line("array_columns", "32"))
    assert asic_sim.load(path) == dataclasses.replace(asic_sim.load("edge"), array_columns=32)


def test_every_figure_is_in_the_digest() -> None:
    edge = asic_sim.load("edge")
    digests = {edge.digest}
    for key in WHOLE:
        digests.add(dataclasses.replace(edge, **{key: getattr(edge, key) + 1}).digest)
    for key, choices in hardware.CHOICES.items():
        digests.add(dataclasses.replace(edge, **{key: choices[-1]}).digest)
    digests.add(dataclasses.replace(edge, clock_mhz=401.0).digest)
    for key in SWITCHES:
        digests.add(dataclasses.replace(edge, **{key: True}).digest)
    digests.add(dataclasses.replace(edge, formats={"int8": 2, "float32": 1}).digest)
    digests.add(dataclasses.replace(edge, technology_nm=7.0).digest)
    digests.add(dataclasses.replace(edge, name="other").digest)
    digests.add(dataclasses.replace(edge, cores=2).digest)
    assert len(digests) == len(KEYS) + 1


SPARSE = (hardware.FOLDER / "edge_sparse.toml").read_text("utf-8")


def test_the_table_of_compression() -> None:
    design = asic_sim.load("edge_sparse")
    digests = {design.digest}
    for key in hardware.COMPRESSION_KEYS:
        value = getattr(design, key)
        digests.add(dataclasses.replace(design, **{key: False if value is True else value - 1}).digest)
    assert len(digests) == 1 + len(hardware.COMPRESSION_KEYS)
    assert design.compresses and not asic_sim.load("edge").compresses


@pytest.mark.parametrize(("old", "new", "says"), [
    ("index_bits = 4", "index_bit = 4", r"\[compression\] is .*; it is a table of codebook_entries and"),
    ("index_bits = 4", "", r"\[compression\] is .*; it is a table of codebook_entries and"),
    ("index_bits = 4", "index_bits = 0", "skip_block_rows is 4; rows are skipped by the index"),
    ("index_bits = 4", "index_bits = 17", "index_bits is 17; it has to lie in 0 to 16"),
    ("zero_gating = true", "zero_gating = 1", "zero_gating is 1; write true or false"),
    ('dataflow = "weight"', 'dataflow = "input"', "index_bits is 4; with dataflow input weights stream"),
    ("[compression]", "[compressions]", r"unknown key 'compressions'; known are .*the tables \[cores\], \[compression\]"),
    ("[compression]", "", "unknown key 'codebook_entries'"),
    ("[compression]", '[cores]\ncount = 2\ndivide = "channels"\n[compression]', "divide is channels; with index_bits or zero"),
])  # fmt: skip
def test_a_wrong_table_of_compression(old: str, new: str, says: str) -> None:
    assert old in SPARSE
    with pytest.raises(asic_sim.DesignError, match=says):
        hardware.parse(SPARSE.replace(old, new), "here")


def test_the_design_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(hardware.DESIGN_VARIABLE, raising=False)
    assert hardware.current().name == "edge"
    monkeypatch.setenv(hardware.DESIGN_VARIABLE, "gemmini_like")
    assert hardware.current().name == "gemmini_like"
    with asic_sim.use_design("tpu_like") as outer:
        assert hardware.current() is outer
        with asic_sim.use_design(asic_sim.load("edge")):
            assert hardware.current().name == "edge"
        assert hardware.current() is outer
        assert "tpu_like at 700 MHz" in asic_sim.BACKEND.timing_note
    assert hardware.current().name == "gemmini_like"
    monkeypatch.setenv(hardware.DESIGN_VARIABLE, "nothing")
    state = asic_sim.BACKEND.probe()
    assert not state.ready
    assert "there is no design 'nothing'" in state.detail
    assert state.remedy == "export QUATREFOIL_ASIC_DESIGN=edge"


def test_a_design_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        asic_sim.load("edge").array_rows = 8  # type: ignore[misc]
