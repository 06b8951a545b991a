"""Fixed point on the simulated array: what it moves and what its lanes do, by hand; and its numbers where an accumulator
saturates, which the order of additions decides. (The conformance suite runs every case on the default design.)"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import quatrefoil as qf
from quatrefoil import asic_sim, ops, reference
from quatrefoil.asic_sim import backend, energy, formats
from quatrefoil.errors import QuatrefoilError

CONV = "fixed_conv int16[1x4x6x6],int16[5x4x1x1] x_format=fixed<8,3> w_format=fixed<12,2>"
POOL = "int16[1x3x8x8] kernel_shape=2x2 strides=2x2 x_format=fixed<16,6>"
LAYER = "hidden_size=6 x_format=fixed<16,6> w_format=fixed<9,2> r_format=fixed<8,2> accumulator=fixed<20,8>"


def lanes(text: str) -> float:
    """Cycles of a lane for an output."""
    report = qf.simulate(text, "edge")
    return report.counters["lane_operations"] / ops.parse(text).outputs[0].size


def test_elements_take_whole_bytes() -> None:
    """One byte for 8 bits, although arrays hold them in two; two for 12, three for 20."""
    problem = ops.parse(f"{CONV} accumulator=fixed<40,14> y_format=fixed<20,8>")
    report = qf.simulate(problem.text, "edge")
    assert report.cycles == asic_sim.simulate(problem, "edge").cycles > 0
    counted = [report.counters[name] for name in ("activation_bytes", "weight_bytes", "output_bytes", "macs")]
    assert counted == [4 * 36 * 1, 20 * 2, 5 * 36 * 3, 5 * 4 * 36]


def test_a_problem_brings_its_formats() -> None:
    """Energy and area by their widths: 8-bit operands and 32-bit sums are int8's. A design that lists them sets the pace;
    others take an operand each cycle."""
    text = CONV.replace("fixed<12,2>", "fixed<8,2>") + " accumulator=fixed<32,14> y_format=fixed<8,3>"
    edge = asic_sim.load("edge")
    report = qf.simulate(text, edge)
    assert report.formats == ("fixed8x8+32",)
    assert report.energy == energy.energy(edge, "int8", report.counters)
    assert report.area == energy.area_mm2(edge, ["int8"])
    wide = qf.simulate(text.replace("fixed<32,14>", "fixed<48,14>"), edge)
    assert wide.formats == ("fixed8x8+48",)
    assert wide.energy["array"].low > report.energy["array"].low
    assert wide.energy["accumulators"].low >= 1.5 * report.energy["accumulators"].low
    slow = dataclasses.replace(edge, formats={"int8": 1, "fixed8x8+32": 3})
    assert qf.simulate(text, slow).counters["busy"] == 3 * report.counters["busy"]
    [window] = qf.simulate(f"fixed_max_pool {POOL} y_format=fixed<8,3>", edge).formats
    assert window == "fixed16x16+16"
    with pytest.raises(QuatrefoilError, match="there is no number format"):
        formats.parse("fixed8x40+48")


@pytest.mark.parametrize(
    ("y_format", "cycles"),
    [
        ("fixed<24,9>", 1),  # out of the accumulator, as it is
        ("fixed<12,5>", 2),  # shifted
        ("fixed<12,5,RND,WRAP>", 3),
        ("fixed<12,5,TRN,SAT>", 3),
        ("fixed<12,5,RND,SAT> activation=Relu", 4),
    ],
)
def test_lanes_cast_sums(y_format: str, cycles: int) -> None:
    assert lanes(f"{CONV} accumulator=fixed<24,9> y_format={y_format}") == cycles


def test_lanes_of_windows() -> None:
    assert lanes(f"fixed_max_pool {POOL} y_format=fixed<16,6>") == 4
    assert lanes(f"fixed_max_pool {POOL} y_format=fixed<8,3,RND,SAT>") == 4 + 2
    assert lanes(f"fixed_average_pool {POOL} accumulator=fixed<20,10> y_format=fixed<16,6>") == 4 + 1 + 1


@pytest.mark.parametrize(
    ("op", "gates", "cycles", "more"),
    [
        ("rnn", 1, 1 + 1, ""),  # f, the cast of h'
        ("lstm", 4, 5 + 3 + 2, ""),  # five functions, three products, the casts of c' and h'
        ("gru", 3, (2 + 1 + 1) + (1 + 3 + 1), ""),  # z, r, r h and its cast; the candidate, h' and its cast
        ("gru", 3, (2 + 1 + 1) + (1 + 3 + 1), "linear_before_reset=1"),
    ],
)
def test_a_step_by_hand(op: str, gates: int, cycles: int, more: str) -> None:
    """For each hidden unit its gates come out of the array twice, once of W x and once of R h; functions are looked up in
    a cycle. Weights, and W x where it waits in DRAM, move by the widths of their formats."""
    text = f"fixed_{op} int16[5x3x4],int16[1x{gates * 6}x4],int16[1x{gates * 6}x6] {LAYER} y_format=fixed<16,6> {more}"
    report = qf.simulate(f"{text} table_format=fixed<18,8>", "edge")
    assert report.counters["lane_operations"] == 5 * 3 * 6 * (2 * gates + cycles)
    assert report.counters["weight_bytes"] == gates * 6 * (4 * 2 + 6 * 1)
    assert report.counters["activation_bytes"] == 5 * 3 * 4 * 2
    assert report.counters["output_bytes"] == 5 * 3 * 6 * 2
    small = dataclasses.replace(asic_sim.load("edge"), array_rows=2, activation_sram_kib=1)
    wide = qf.simulate(f"{text.replace('5x3x4', '20x3x4')} table_format=fixed<18,8>", small)
    assert wide.counters["output_bytes"] == 20 * 3 * 6 * (gates * 3 + 2)


def test_products_are_added_in_the_operators_order_on_every_design() -> None:
    """An accumulator that saturates after the first product and is brought back by the second keeps the second alone:
    the sum that the accumulator holds goes on in the next slice, it does not start again from zero."""
    text = (
        "fixed_conv int16[1x4],int16[1x4],int16[1] x_format=fixed<8,8> w_format=fixed<8,8> bias_format=fixed<8,8> "
        "accumulator=fixed<8,8,TRN,SAT> y_format=fixed<8,8>"
    )
    arrays = [np.array([[100, 100, -100, 30]], np.int16), np.ones((1, 4), np.int16), np.array([-50], np.int16)]
    problem = ops.parse(text)
    for rows in (1, 2, 16):
        for dataflow in ("weight", "output", "input"):
            design = dataclasses.replace(asic_sim.load("edge"), array_rows=rows, dataflow=dataflow)
            with asic_sim.use_design(design):
                [kernel] = [k for k in asic_sim.BACKEND.kernels() if k.op == "fixed_conv"]
                (y,) = kernel.prepare(problem, {1: arrays[1], 2: arrays[2]})([arrays[0], None, None])
            assert y.dtype == np.int16
            np.testing.assert_array_equal(y, [[127 - 100 + 30]])
    np.testing.assert_array_equal(reference.evaluate(problem, arrays)[0], [[57]])


def test_what_is_too_large_is_refused_in_a_sentence() -> None:
    formats = "x_format=fixed<8,3> w_format=fixed<8,3> accumulator=fixed<24,9> y_format=fixed<8,3>"
    with pytest.raises(QuatrefoilError, match=r"asic: fixed_conv: it takes .* the simulator stops at 2"):
        qf.simulate(f"fixed_conv int16[1000000x1000000],int16[2000x1000000] {formats}", "edge")


def test_the_native_door_checks_what_it_is_given() -> None:
    native = backend.native()
    wrap = native.Fixed(width=8, fraction=0, is_signed=True, low=-128, high=127, rounding=0, overflow=0)
    axes = [native.Axis(), native.Axis(), native.Axis(4, 4)]
    layer = native.Convolution(batch=1, groups=1, channels=1, columns=1, axes=axes, plane=[1, 1, 4])
    x, y = np.zeros(4, np.int32), np.zeros(3, np.int32)
    with pytest.raises(ValueError, match="the size of y"):
        native.convolve_fixed(layer, native.FixedSums(wrap, 0), wrap, False, x, x[:1], None, y)
    with pytest.raises(ValueError, match="reuse out of range"):
        native.FixedSums(wrap, 0, 0)
    with pytest.raises(ValueError, match="a divisor out of range"):
        native.fixed_average_pool(native.Pool(1, axes), wrap, wrap, 0, np.zeros(4, np.int64), x, x)
