"""The simulator beside silicon: what Google's first TPU and Eyeriss were measured to do.

    python -m quatrefoil.bench.silicon

prints two tables. TPUv1: N. Jouppi et al., "In-Datacenter Performance Analysis of a Tensor Processing Unit", ISCA 2017,
tables 1 and 3, for its applications whose layers follow from the text: MLPs are square layers that share the weights
given; LSTM0 likewise, LSTM1 has the 600 x 600 matrices that section 7 names; CNN0 is a 19 x 19 board (its 2,888
operations for a byte of weights are 8 x 361) through 3 x 3 kernels of 256 channels, as no multiply-accumulate is unused.
CNN1's layers are not told. Operands have 8 bits; the LSTMs' activations have 16, at half the speed. Activations stay on
the chip between layers; each layer waits for the one before, its first weights come ahead. Eyeriss: Y.-H. Chen et al.,
JSSC 52(1), 2017, AlexNet's convolutions, batch 4, with operands of 16 bits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from quatrefoil import asic_sim, ops
from quatrefoil.models.simulation import Operation, Workload, cost
from quatrefoil.problem import Tensor

TPU, EYERISS, EYERISS_FORMAT = "tpu_like", "eyeriss_like", "int16"


@dataclass(frozen=True, slots=True)
class Application:
    """An application of the TPU's paper: its layers as (rows, depth, columns) or 3x3 convolutions of (batch, side,
    channels), and what was measured."""

    name: str
    layers: Sequence[tuple[int, int, int]]
    convolutions: bool
    tops: float
    active: float
    """Per cent of cycles in which the array is active."""
    weight_stall: float
    """Per cent of cycles, weights being fetched or shifted in."""
    format: str = "int8"


def square(batch: int, weights: float, layers: int) -> list[tuple[int, int, int]]:
    side = round((weights / layers) ** 0.5)
    return [(batch, side, side)] * layers


APPLICATIONS = (
    Application("MLP0", square(200, 20e6, 5), False, 12.3, 12.7, 53.9 + 15.9),
    Application("MLP1", square(168, 5e6, 4), False, 9.7, 10.6, 44.2 + 13.4),
    Application("LSTM0", square(64, 52e6, 24), False, 3.7, 8.2, 58.1 + 15.8, "int16xint8"),
    Application("LSTM1", [(96, 600, 600)] * 94, False, 2.8, 10.5, 62.1 + 17.1, "int16xint8"),
    Application("CNN0", [(8, 19, 256)] * 16, True, 86.0, 78.2, 0.0),
)

ALEXNET = (
    ("CONV1", "conv float32[4x3x227x227],float32[96x3x11x11] strides=4x4", 16.5, 20.9),
    ("CONV2", "conv float32[4x96x27x27],float32[256x48x5x5] pads=2x2x2x2 group=2", 39.2, 41.9),
    ("CONV3", "conv float32[4x256x13x13],float32[384x256x3x3] pads=1x1x1x1", 21.8, 23.6),
    ("CONV4", "conv float32[4x384x13x13],float32[384x192x3x3] pads=1x1x1x1 group=2", 16.0, 18.4),
    ("CONV5", "conv float32[4x384x13x13],float32[256x192x3x3] pads=1x1x1x1 group=2", 10.0, 10.5),
)
"""Layer, its problem, measured processing and total latency in milliseconds."""


def layers(application: Application) -> Workload:
    """Each layer reads what the one before has made."""
    found = []
    for place, (a, b, c) in enumerate(application.layers):
        name, reads, makes = str(place), (f"x{place}", f"w{place}"), (f"x{place + 1}",)
        if application.convolutions:
            problem = ops.parse(f"conv float32[{a}x{c}x{b}x{b}],float32[{c}x{c}x3x3] pads=1x1x1x1")
            found.append(Operation(name, "Conv", "", "Conv", problem, problem.inputs, problem.outputs, reads, makes))
        else:
            x, w, y = (Tensor("float32", shape) for shape in ((a, b), (b, c), (a, c)))
            found.append(Operation(name, "MatMul", "", "MatMul", None, (x, w), (y,), reads, makes))
    return Workload(tuple(found), frozenset([f"x{len(found)}"]))


def tpu() -> None:
    design = asic_sim.load(TPU)
    rows = [("application", "TOPS", "measured", "ratio", "active", "measured", "weights awaited", "measured")]
    for application in APPLICATIONS:
        report = cost(layers(application), design, as_format=application.format)
        counters, cycles = report.counters, report.cycles
        tops = 2 * report.macs / cycles * design.clock_mhz * 1e-6
        rows.append(
            (
                application.name,
                f"{tops:.1f}",
                f"{application.tops:.1f}",
                f"{tops / application.tops:.2f}",
                f"{counters['busy'] / cycles:.1%}",
                f"{application.active:.1f}%",
                f"{(counters['stall_weights'] + counters['fill']) / cycles:.1%}",
                f"{application.weight_stall:.1f}%",
            )
        )
    show(f"TPUv1 and {design}", rows)


def eyeriss() -> None:
    design = asic_sim.load(EYERISS)
    rows = [("layer", "ms", "processing, measured", "total, measured", "ratio to processing", "array in use")]
    cycles, processing, total = 0, 0.0, 0.0
    for name, text, processed, latency in ALEXNET:
        report = asic_sim.simulate(ops.parse(text), design, EYERISS_FORMAT)
        ms = report.microseconds / 1000
        ratio, use = f"{ms / processed:.2f}", f"{report.utilisation:.0%}"
        rows.append((name, f"{ms:.1f}", f"{processed:.1f}", f"{latency:.1f}", ratio, use))
        cycles, processing, total = cycles + report.cycles, processing + processed, total + latency
    ms = cycles / design.clock_mhz / 1000
    rows.append(("all", f"{ms:.1f}", f"{processing:.1f}", f"{total:.1f}", f"{ms / processing:.2f}", ""))
    show(f"Eyeriss and {design}, AlexNet, batch 4", rows)


def show(title: str, rows: Sequence[Sequence[str]]) -> None:
    print(title)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths))
        print("  ", first.strip().ljust(widths[0]), *others, sep="  ")


def main() -> int:
    tpu()
    eyeriss()
    return 0


if __name__ == "__main__":
    sys.exit(main())
