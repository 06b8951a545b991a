"""Estimates before synthesis: formulas by hand, published figures, the search, and vendors' reports."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from quatrefoil import ops
from quatrefoil.errors import OperatorError
from quatrefoil.fpga import estimate as estimates
from quatrefoil.fpga import published
from quatrefoil.fpga.estimate import (
    Band,
    Layer,
    Matrix,
    Target,
    WeightCounts,
    adder_tree,
    count_weights,
    describe,
    estimate,
    estimate_layer,
)
from quatrefoil.fpga.fit import Candidate, fit, variants
from quatrefoil.fpga.parts import PARTS, find_part
from quatrefoil.fpga.vendor_reports import beside, read_report
from quatrefoil.numerics import Fixed
from quatrefoil.ops import fixed
from quatrefoil.problem import Problem, Tensor

DATA = Path(__file__).parent / "data" / "csynth"
VU9P = Target(find_part("VU9P"))
STREAM = Target(find_part("VU9P"), io="stream")
FORMATS = dict.fromkeys(("x_format", "w_format", "r_format", "accumulator", "y_format"), "fixed<16,6>")


def dense(inputs: int, outputs: int, **formats: str) -> Problem:
    given = (Tensor.parse(f"int16[1x{inputs}]"), Tensor.parse(f"int16[{outputs}x{inputs}]"))
    return ops.canonical("fixed_conv", given, {**FORMATS, **formats})


def convolution(x: str, w: str, **attributes: object) -> Problem:
    return ops.canonical(
        "fixed_conv", (Tensor.parse(f"int16[{x}]"), Tensor.parse(f"int16[{w}]")), {**FORMATS, **attributes}
    )


def recurrent(op: str, steps: int, inputs: int, hidden: int, **attributes: object) -> Problem:
    gates = {"fixed_rnn": 1, "fixed_lstm": 4, "fixed_gru": 3}[op] * hidden
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    shapes = (f"{steps}x1x{inputs}", f"{directions}x{gates}x{inputs}", f"{directions}x{gates}x{hidden}")
    given = tuple(Tensor.parse(f"int16[{shape}]") for shape in shapes)
    return ops.canonical(op, given, {**FORMATS, "table_format": "fixed<18,8>", **attributes})


@pytest.mark.parametrize(
    ("constant", "digits"),
    [(0, 0), (1, 1), (-64, 1), (3, 2), (7, 2), (-40, 2), (11, 3), (13, 3), (23, 3), (0b1010101, 4)],
)
def test_signed_digits(constant: int, digits: int) -> None:
    assert estimates.signed_digits(constant) == digits


def test_weights_that_need_a_multiplier() -> None:
    # one input, six outputs: 0 and -32 cost none, 7 an addition, 11 is needed twice and multiplied once
    w = np.array([[0], [-32], [7], [11], [11], [-11]], np.int16)
    assert count_weights(w) == WeightCounts(6, 5, ((5, 2),), 1, 1)
    # the same constants behind another input are other products
    assert count_weights(np.array([[11, 11]])).multipliers == 2
    assert count_weights(np.array([[11], [11]]), groups=2).multipliers == 2


def test_latency_strategy_costs_what_its_constants_cost() -> None:
    w = np.array([[0, 11], [3, 11], [16, 100]], np.int16)
    one = estimate_layer(describe(dense(2, 3), {"w": w}, name="d"), VU9P)
    # 11 and 100 = 64 + 32 + 4 = 128 - 32 + 4 behind the second input
    assert (one.name, one.multipliers, one.dsp.value, one.interval) == ("d", 2, 2, 1)
    # five products are added at 16 + 4 LUTs, 3 is an addition of 16 + 8 + 8
    assert one.lut.value == 5 * 20 + 32
    unknown = estimate_layer(describe(dense(2, 3)), VU9P)
    assert unknown.dsp.value == 6 and any("not known" in note for note in unknown.notes)


def test_multipliers_are_shared_up_to_hls4ml_s_limit() -> None:
    rng = np.random.default_rng(1)
    w = np.where(rng.random((64, 16)) < 0.2, 0, rng.choice(np.arange(1001, 4001, 2), (64, 16)))
    counts = count_weights(w)
    zeros = counts.weights - counts.nonzero
    shared = estimate_layer(describe(dense(16, 64), {"w": w}, reuse=4), VU9P)
    assert shared.multipliers == 256 - zeros // 4 < counts.multipliers
    assert shared.interval == 4


@pytest.mark.parametrize("reuse", [1, 2, 4, 14, 98, 784, 12_544])
def test_resource_strategy_follows_the_reuse_factor(reuse: int) -> None:
    layer = describe(dense(784, 16), strategy="resource", reuse=reuse)
    assert reuse in layer.reuse_factors()
    one = estimate_layer(layer, VU9P)
    assert (one.interval, one.multipliers, one.dsp.value) == (reuse, 12_544 // reuse, 12_544 // reuse)
    if reuse > 1:
        assert one.bram.value == (0 if reuse * 16 * (12_544 // reuse) <= 1024 else VU9P.part.family.memory_blocks(
            reuse, 16 * (12_544 // reuse)))  # fmt: skip


def test_reuse_factors_are_hls4ml_s() -> None:
    backend = pytest.importorskip("hls4ml.backends").get_backend("Vitis")
    for inputs, outputs in ((16, 64), (20, 60), (27, 16), (7, 13), (784, 16)):
        matrix = Matrix(inputs, outputs, 16, 16, 16, 26)
        assert sorted(matrix.reuse_factors()) == backend.get_valid_reuse_factors(inputs, outputs)


def test_a_reuse_factor_that_does_not_suit_becomes_the_nearest() -> None:
    one = estimate_layer(describe(dense(16, 10), strategy="resource", reuse=14), VU9P)
    assert one.interval == 16 and "hls4ml takes 16" in one.notes[0]


def test_width_decides_between_dsp_and_logic() -> None:
    def of(bits: int) -> tuple[int, int]:
        form = f"fixed<{bits},2>"
        problem = dense(32, 32, **dict.fromkeys(FORMATS, form))
        one = estimate_layer(describe(problem, strategy="resource", reuse=32), VU9P)
        return one.dsp.value, one.multipliers

    assert of(10) == (0, 32) and of(11) == (32, 32)
    family = find_part("VU9P").family
    assert [family.dsp_blocks(*widths) for widths in ((16, 16), (27, 18), (24, 24), (32, 32))] == [1, 1, 2, 4]
    assert find_part("Stratix10").family.dsp_blocks(18, 18) == 0.5
    assert find_part("Stratix10").family.dsp_blocks(27, 27) == 1


def test_adder_trees_are_cut_where_the_clock_ends() -> None:
    # 1.94 ns and six additions of 0.78 in 3.65 ns: two fit behind the product, four into the next state
    assert adder_tree(56, VU9P) == (2, [2])
    assert adder_tree(1, VU9P) == (1, [])
    slow = Target(find_part("7Z007S"), 10 / 3)
    states, cuts = adder_tree(35, slow)
    assert states == 8 and cuts == [0, 1, 2, 3, 4, 5][: len(cuts)]


def test_convolutions_over_pixels() -> None:
    problem = convolution("1x16x15x15", "16x16x3x3")
    stream = estimate_layer(describe(problem), STREAM)
    assert stream.interval == 225 + 3
    assert estimate_layer(describe(problem, reuse=4), STREAM).interval in (225 * 4 + 3, 225 * 3 + 3)
    parallel = estimate_layer(describe(problem), VU9P)
    assert parallel.interval == 169 and parallel.dsp.value == 16 * 16 * 9
    unrolled = estimate_layer(describe(problem, parallel=13), VU9P)
    assert unrolled.interval == 13 and unrolled.dsp.value == 13 * parallel.dsp.value
    shared, all_at_once = (
        estimate_layer(describe(problem, strategy="resource", reuse=16, parallel=count), VU9P) for count in (1, 169)
    )
    assert all_at_once.bram == shared.bram and all_at_once.dsp.value == 169 * shared.dsp.value
    deep = describe(convolution("1x8x6x6", "8x1x3x3", group=8), strategy="resource", reuse=9)
    assert estimate_layer(deep, VU9P).dsp.value == 8


def test_pools() -> None:
    x = (Tensor.parse("int16[1x16x30x30]"),)
    attributes = {"kernel_shape": [2, 2], "strides": [2, 2], "x_format": "fixed<16,6>", "y_format": "fixed<16,6>"}
    most = ops.canonical("fixed_max_pool", x, attributes)
    assert estimate_layer(describe(most), STREAM).interval == 903
    assert estimate_layer(describe(most), VU9P).interval == 1
    mean = ops.canonical("fixed_average_pool", x, attributes | {"accumulator": "fixed<18,8>"})
    assert estimate_layer(describe(mean), STREAM).dsp.value == 0


@pytest.mark.parametrize(
    ("op", "gates", "products", "readers"),
    [("fixed_rnn", 1, 0, 20), ("fixed_lstm", 4, 60, 100), ("fixed_gru", 3, 60, 60)],
)
def test_recurrent_layers_step_by_step(op: str, gates: int, products: int, readers: int) -> None:
    layer = describe(recurrent(op, 20, 6, 20), strategy="resource", reuse=20)
    one = estimate_layer(layer, VU9P)
    inputs = -(-6 * 20 * gates // estimates._matrix_reuse(layer.matrices[0], layer))
    assert one.multipliers == inputs + 20 * gates + products
    assert sum(layer.lookups) == readers
    assert one.interval == 20 * (max(20, estimates._matrix_reuse(layer.matrices[0], layer)) + 10) + 1
    unrolled = estimate_layer(dataclasses.replace(layer, static=False), VU9P)
    assert unrolled.dsp.value == 20 * one.dsp.value and unrolled.interval <= 20 + 4
    both = describe(recurrent(op, 20, 6, 20, direction="bidirectional"), strategy="resource", reuse=20)
    assert estimate_layer(both, VU9P).dsp.value == 2 * one.dsp.value


def test_tables_share_a_memory_between_two_readers() -> None:
    one = estimate_layer(estimates.table("sigmoid", 5, 16, 1024, 18), VU9P)
    assert one.bram.value == 3
    assert estimate_layer(estimates.table("sigmoid", 5, 16, 4096, 16), VU9P).bram.value == 12
    assert estimate_layer(estimates.table("sigmoid", 5, 16, 32, 16), VU9P).bram.value == 0
    assert estimate_layer(estimates.softmax("softmax", 5, 16), VU9P).dsp.value == 5


def test_every_fixed_point_case_has_an_estimate() -> None:
    for spec in fixed.SPECS:
        for case in spec.cases():
            problem = ops.canonical(case.op, case.inputs, case.attributes)
            for strategy, target in (("latency", VU9P), ("resource", STREAM)):
                report = estimate([describe(problem, strategy=strategy, reuse=4)], target)
                for figure in (report.total.dsp, report.total.lut, report.total.bram, report.total.latency):
                    assert 0 <= figure.low <= figure.value <= figure.high, case.name
                assert report.total.interval >= 1
                assert json.loads(json.dumps(dataclasses.asdict(report)))["total"]["name"] == "total"


def test_other_operators_are_refused() -> None:
    with pytest.raises(OperatorError, match=r"conv.*ops/fixed"):
        describe(ops.canonical("conv", (Tensor.parse("float32[1x1x4]"), Tensor.parse("float32[1x1x3]")), {}))
    with pytest.raises(OperatorError, match="latency, resource"):
        Layer("", "product", "fast")
    with pytest.raises(OperatorError, match="parallel, stream"):
        Target(find_part("VU9P"), io="serial")


def test_parts_by_name_and_number() -> None:
    assert find_part("xcvu9p-flgb2104-2-i").dsp == 6840
    assert find_part("vu13p") is find_part("VU13P")
    assert find_part("xc7z020-1clg400c").bram == 280
    assert find_part("xczu7ev-ffvc1156-2-e").name == "ZU7EV"
    assert find_part("10AX115S2F45I1SG").name == find_part("Arria10").name == "Arria 10 GX 1150"
    assert len({part.name for part in PARTS}) == len(PARTS)
    for part in PARTS:
        assert find_part(part.name) is part
        assert all(find_part(prefix) is part for prefix in part.prefixes), part.name
    with pytest.raises(OperatorError, match=r"xcvu99p.*VU9P"):
        find_part("xcvu99p")
    with pytest.raises(OperatorError, match="xcu500"):
        find_part("xcu500-fsvh2104")


@pytest.mark.parametrize("design", published.designs(), ids=lambda design: design.name)
def test_published_figures(design: published.Design) -> None:
    report = design.estimate()
    for figure, wanted in design.figures.items():
        ours = published.estimated(report, figure)
        if figure == "interval":
            assert ours == wanted
        elif figure == "dsp":
            assert abs(ours / wanted - 1) < 0.2
        else:
            assert 0.5 <= ours / wanted <= 2, figure


def test_most_published_figures_lie_in_their_range() -> None:
    inside, outside = 0, []
    for design in published.designs():
        total = design.estimate().total
        for figure in ("dsp", "lut", "ff", "bram", "latency"):
            if figure in design.figures:
                found = design.figures[figure] in getattr(total, figure)
                inside += found
                outside += [] if found else [(design.name, figure)]
    assert inside >= 49, outside


def test_random_weights_do_not_decide_the_jet_net() -> None:
    for width, published_dsp in ((16, 1852), (14, 1132)):
        for seed in range(1, 4):
            drawn = published.jet_weights(Fixed(width, 6), seed)
            multipliers = sum(count_weights(w).multipliers for w in drawn)
            assert abs(multipliers / published_dsp - 1) < 0.1


def test_a_report_reads_as_a_table_and_warns() -> None:
    layers = [describe(dense(1024, 512), name="wide"), estimates.relu("relu", 512, 16)]
    report = estimate(layers, Target(find_part("7Z020")))
    text = report.text()
    assert "wide" in text and "warning: 524,288 DSP do not fit 7Z020, which has 220" in text
    assert any("524,288 products side by side" in line for line in report.warnings())
    assert any("larger reuse shares multipliers" in line for line in report.warnings())
    assert estimate([estimates.relu("relu", 8, 16)], VU9P).warnings() == []


def test_fit_proposes_what_fits() -> None:
    wide, narrow = (
        tuple(describe(dense(64, 64, **dict.fromkeys(FORMATS, form)), name=f"dense {n}", reuse=1) for n in (1, 2))
        for form in ("fixed<16,6>", "fixed<8,3>")
    )
    target = Target(find_part("7Z020"))
    found = fit([Candidate("16 bit", 0.0, wide), Candidate("8 bit", 0.1, narrow)], target)
    assert found.proposal is not None and found.proposal.label == "16 bit"
    assert found.proposal.fits and found.proposal.share <= 0.8
    assert set(found.proposal.reuse) == {"dense 1", "dense 2"}
    quicker = [choice for choice in found.front if choice.report.total.interval < found.proposal.report.total.interval]
    assert all(not choice.fits or choice.error > 0 for choice in quicker)
    for one in found.front:
        for other in found.front:
            assert not (one.measures != other.measures and all(a <= b for a, b in zip(one.measures, other.measures)))
    assert "proposed" in found.text()
    loose = fit([Candidate("16 bit", 0.0, wide), Candidate("8 bit", 0.1, narrow)], target, max_error=0.2)
    assert loose.proposal is not None
    assert loose.proposal.report.total.interval <= found.proposal.report.total.interval


@pytest.mark.parametrize("part", ["7Z010", "7A35T", "7Z020"])
def test_fit_finds_the_shortest_interval_that_fits(part: str) -> None:
    layers = (describe(dense(48, 32), name="first"), describe(dense(32, 32), name="second"))
    target = Target(find_part(part))
    found = fit([Candidate("16 bit", 0.0, layers)], target)
    every = [estimate(pair, target) for pair in itertools.product(*map(variants, layers))]
    fitting = [report for report in every if max(report.shares().values()) <= 0.8]
    assert 0 < len(fitting) < len(every)
    assert found.proposal is not None
    assert found.proposal.report.total.interval == min(report.total.interval for report in fitting)


def test_fit_says_when_nothing_fits() -> None:
    large = Candidate("16 bit", 0.0, (describe(dense(3000, 1000), name="d"),))
    nothing = fit([large], Target(find_part("7Z007S")), usable=0.01)
    assert nothing.proposal is None and "nothing fits" in nothing.text()


def test_fit_spends_what_is_left_on_latency() -> None:
    # the first layer needs the reuse; the second could have as much, but the part has room for it without
    layers = (describe(dense(128, 128), name="large"), describe(dense(8, 8), name="small"))
    found = fit([Candidate("16 bit", 0.0, layers)], Target(find_part("7Z045")))
    assert found.proposal is not None
    assert found.proposal.reuse["small"] < found.proposal.reuse["large"]


@pytest.mark.parametrize("suffix", ["xml", "rpt"])
def test_vendor_reports_are_read(suffix: str) -> None:
    found = read_report(DATA / f"net_csynth.{suffix}")
    assert found.name == "net" and found.latency == Band(12, 13, 13) and found.interval == 1
    assert [band.value for band in (found.dsp, found.lut, found.ff, found.bram)] == [817, 36_000, 8000, 8]
    design = next(design for design in published.designs() if design.name == "jets pruned Vitis 2024.1")
    text = beside(design.estimate(), found)
    assert "36,000" in text and "outside" not in text


def test_a_built_project_is_read_by_hls4ml_s_reader(tmp_path: Path) -> None:
    pytest.importorskip("hls4ml")
    solution = tmp_path / "net_prj" / "solution1"
    (solution / "syn" / "report").mkdir(parents=True)
    (tmp_path / "project.tcl").write_text('set project_name "net"\nset backend "vitis"\n')
    (tmp_path / "net_prj" / "hls.app").write_text(
        '<AutoPilot:project xmlns:AutoPilot="com.autoesl.autopilot.project"><solutions><solution name="solution1"/>'
        "</solutions></AutoPilot:project>"
    )
    with pytest.raises(OperatorError, match="CSynthesis report not found"):
        read_report(tmp_path)
    shutil.copy(DATA / "net_csynth.xml", solution / "syn" / "report")
    assert read_report(tmp_path).dsp == Band.exact(817)


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="csynth"):
        read_report(tmp_path / "missing_csynth.xml")
    broken = tmp_path / "net_csynth.xml"
    broken.write_text("<profile><PerformanceEstimates/></profile>")
    with pytest.raises(OperatorError, match="Resources lacks"):
        read_report(broken)
    text = (DATA / "net_csynth.xml").read_text()
    broken.write_text(text.replace("<Worst-caseLatency>13", "<Worst-caseLatency>undef"))
    with pytest.raises(OperatorError, match=r"Worst-caseLatency is undef.*fixed bounds"):
        read_report(broken)
    other = tmp_path / "net_csynth.rpt"
    other.write_text("nothing")
    with pytest.raises(OperatorError, match=r"no \*_csynth\.rpt"):
        read_report(other)


def test_the_docs_hold_the_table_as_printed() -> None:
    page = (Path(__file__).parent.parent / "docs" / "fpga_estimates.md").read_text()
    assert published.table() in page
