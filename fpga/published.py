"""Estimates beside published figures.

    python -m quatrefoil.fpga.published

Designs of papers, and of C-synthesis reports that stand in public repositories. Weights are not kept here: of nets whose trained
weights are public their counts (``WeightCounts``) are; those of Fahim et al. are drawn at random (``jet_weights``).
docs/fpga_estimates.md says what was fitted to which figure; the table marks these with *.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quatrefoil.fpga import estimate as estimates
from quatrefoil.fpga.estimate import EstimateReport, Layer, Matrix, Target, WeightCounts, aligned
from quatrefoil.fpga.parts import find_part
from quatrefoil.numerics import Fixed

FIGURES = ("dsp", "lut", "ff", "bram", "latency", "interval")

JET_SHAPES = ((16, 64), (64, 32), (32, 32), (32, 5))
JET_SCALES = (0.20, 0.145, 0.22, 0.40)
"""Mean sizes of the weights, layer by layer, that L1 regularisation left alive in three public trainings of the jet net."""

JET_ALIVE = 0.565
"""Their share in Fahim et al.: fitted to the one figure of 1,852 DSP at 16 bits (in the three trainings it is 0.4 to 0.76)."""


@dataclass(frozen=True, slots=True)
class Design:
    """A published design: its figures, those among them that a constant or a rule of the estimate was fitted to, its source."""

    name: str
    target: Target
    layers: tuple[Layer, ...]
    figures: dict[str, int]
    source: str
    fitted: tuple[str, ...] = ()

    def estimate(self) -> EstimateReport:
        return estimates.estimate(self.layers, self.target)


def jet_weights(form: Fixed, seed: int = 0, alive: float = JET_ALIVE) -> list[np.ndarray]:
    """Integers for the jet net's layers, (outputs, inputs): of each layer a share ``alive`` is drawn from a Laplace
    distribution, the others lie at 1e-4, as L1 regularisation leaves them."""
    rng = np.random.default_rng(seed)
    drawn = []
    for (inputs, outputs), scale in zip(JET_SHAPES, JET_SCALES):
        weights = rng.laplace(0.0, scale, (outputs, inputs))
        dead = rng.random(weights.shape) > alive
        drawn.append(form.quantize(np.where(dead, rng.normal(0.0, 1e-4, weights.shape), weights)))
    return drawn


def _matrix(inputs: int, outputs: int, widths: Sequence[int], counts: WeightCounts | None, copies: int = 1) -> Matrix:
    x, w, total, product = widths
    return Matrix(inputs, outputs, x, w, total, product, copies, counts)


SIXTEEN = (16, 16, 16, 26)
"""Bits of values, weights, sums and of products that reach the sum, all being fixed<16,6>."""


def _jet_net(
    counts: Sequence[WeightCounts], first: Sequence[int], others: Sequence[int], bits: int
) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    for number, ((inputs, outputs), count) in enumerate(zip(JET_SHAPES, counts), 1):
        matrix = _matrix(inputs, outputs, first if number == 1 else others, count)
        layers.append(Layer(f"dense {number}", "product", matrices=(matrix,), elements=outputs, width=bits))
        if number < 4:
            layers.append(estimates.relu(f"relu {number}", outputs, bits))
    return (*layers, estimates.softmax("softmax", 5, bits))


def _counted(shapes: Sequence[tuple[int, int]], counts: Sequence[tuple[int, int, int, int]]) -> list[WeightCounts]:
    """From nonzero weights, multipliers, shifted constants and most terms of an output, of 16-bit nets."""
    return [
        WeightCounts(inputs * outputs, nonzero, ((16, multipliers),), shifted, terms)
        for (inputs, outputs), (nonzero, multipliers, shifted, terms) in zip(shapes, counts)
    ]


def _counted_jet(*counts: tuple[int, int, int, int]) -> tuple[Layer, ...]:
    return _jet_net(_counted(JET_SHAPES, counts), SIXTEEN, SIXTEEN, 16)


def _fahim(width: int) -> tuple[Layer, ...]:
    if width == 6:  # trained with 6-bit weights and activations; inputs and sums stay at 16 bits
        counts = [estimates.count_weights(w) for w in jet_weights(Fixed(6, 1, "RND", "SAT"))]
        return _jet_net(counts, (16, 6, 16, 21), (6, 6, 16, 12), 6)
    counts = [estimates.count_weights(w) for w in jet_weights(Fixed(width, 6))]
    widths = (width, width, width, 2 * width - 6)
    return _jet_net(counts, widths, widths, width)


def _resource(name: str, inputs: int, outputs: int, reuse: int, widths: Sequence[int]) -> Layer:
    matrix = _matrix(inputs, outputs, widths, None)
    return Layer(name, "product", "resource", reuse, (matrix,), elements=outputs, width=widths[0])


def _mnist(reuse: int) -> tuple[Layer, ...]:
    """784-16-10; the paper tells the reuse of the first layer: the second's is the largest allowed one up to that."""
    second = max(allowed for allowed in _resource("", 16, 10, 1, SIXTEEN).reuse_factors() if allowed <= reuse)
    return (
        _resource("dense 1", 784, 16, reuse, SIXTEEN),
        estimates.relu("relu", 16, 16),
        _resource("dense 2", 16, 10, second, SIXTEEN),
        estimates.softmax("softmax", 10, 16),
    )


def _gru(steps: int, inputs: int, hidden: int, widths: Sequence[int], reuse: int) -> Layer:
    return Layer(
        "gru", "recurrent", "resource", reuse,
        (_matrix(inputs, 3 * hidden, widths, None), _matrix(hidden, 3 * hidden, widths, None)),
        elements=hidden, width=widths[0], lookups=(2 * hidden, hidden), steps=steps, gates=3 * hidden, fused=hidden,
    )  # fmt: skip


def _svhn() -> tuple[Layer, ...]:
    shapes = ((27, 16), (144, 16), (144, 24), (96, 42), (42, 64), (64, 10))
    counts = _counted(
        shapes,
        ((216, 212, 3, 18), (1144, 840, 248, 85), (1718, 1330, 298, 80), (2002, 1448, 399, 58), (1336, 1168, 120, 26),
         (640, 534, 86, 64)),
    )  # fmt: skip
    layers: list[Layer] = []
    extents = ((32, 30, 15), (15, 13, 6), (6, 4, 2))
    channels = 3
    for number, ((before, after, pooled), (inputs, outputs), count) in enumerate(zip(extents, shapes, counts), 1):
        layers += [
            Layer(
                f"conv {number}", "product", matrices=(_matrix(inputs, outputs, SIXTEEN, count),), positions=after**2,
                arriving=before**2, window=inputs, line=2 * before * channels, elements=outputs,
            ),
            estimates.relu(f"relu {number}", outputs, 16, after**2),
            Layer(
                f"pool {number}", "pool", positions=pooled**2, arriving=after**2, window=4 * outputs, line=after * outputs,
                elements=outputs,
            ),
        ]  # fmt: skip
        channels = outputs
    for number, ((inputs, outputs), count) in enumerate(zip(shapes[3:], counts[3:]), 1):
        matrix = _matrix(inputs, outputs, SIXTEEN, count)
        layers.append(Layer(f"dense {number}", "product", matrices=(matrix,), elements=outputs))
        if number < 3:
            layers.append(estimates.relu(f"relu {number + 3}", outputs, 16))
    return (*layers, estimates.softmax("softmax", 10, 16))


DUARTE = "Duarte et al., JINST 13 (2018) P07027; counts of fastmachinelearning/example-models@ce390f9a80, KERAS_3layer"
FAHIM = "Fahim et al., arXiv:2103.05579 (2021)"
REPOSITORIES = {
    "tutorial 2019.2": "Hector-Plata/hls4ml-tutorial@9f451d82a3, model_1",
    "tutorial 2022.2": "nrp-nautilus/6nrp-hls4ml@3a010eff21, model_1",
    "pruned 2024.1": "Lrozzy/hls4ml_OpenML@47cf4d8562, model_2.1",
    "gru": "uw-acme/HLS4ML_VS_MANUAL@6478cf0402, the nets of Khoda et al., arXiv:2207.00559",
    "svhn": "nycu-pcs-lab/hls4ml_tuto_extension_vivadoflow@bf2bd2133e, the net of Aarrestad et al., arXiv:2101.05108",
}


def designs() -> tuple[Design, ...]:
    """The published designs, in the order of the table."""
    vu9p = Target(find_part("xcvu9p-flgb2104-2-i"), 5.0, "parallel", "Vivado")
    ku115 = Target(find_part("xcku115-flvb2104-2-i"), 5.0, "parallel", "Vivado")
    u250 = Target(find_part("xcu250-figd2104-2L-e"), 5.0, "parallel", "Vivado")
    vitis = Target(u250.part, 5.0, "parallel", "Vitis")
    u50 = Target(find_part("xcu50-fsvh2104-2-e"), 5.0, "parallel", "Vitis")
    narrow = (4, 4, 4, 6)
    return (
        Design("jets 16 bit", vu9p, _fahim(16), {"dsp": 1852, "lut": 89_209, "ff": 11_266, "latency": 10},
               f"{FAHIM}, table 1", ("dsp",)),
        Design("jets 14 bit", vu9p, _fahim(14), {"dsp": 1132, "lut": 90_019, "ff": 9262, "latency": 10},
               f"{FAHIM}, table 1"),
        Design("jets 6 bit", vu9p, _fahim(6), {"dsp": 38, "lut": 63_251, "ff": 4394, "latency": 9},
               f"{FAHIM}, table 1"),
        Design("MNIST reuse 14", vu9p, _mnist(14), {"interval": 14}, FAHIM),
        Design("MNIST reuse 12544", vu9p, _mnist(12_544), {"interval": 12_544}, FAHIM),
        Design("jets 2018",
               ku115, _counted_jet((1021, 881, 101, 16), (2042, 1509, 397, 64), (1021, 810, 159, 32), (160, 129, 24, 32)),
               {"dsp": 3329, "latency": 15, "interval": 1}, DUARTE),
        Design("jets 2018 pruned",
               ku115, _counted_jet((431, 335, 78, 13), (469, 361, 93, 39), (227, 190, 34, 19), (78, 68, 10, 17)),
               {"dsp": 954, "latency": 15, "interval": 1}, DUARTE),
        Design("jets Vivado 2019.2",
               u250, _counted_jet((960, 476, 178, 16), (1687, 561, 320, 62), (844, 311, 153, 30), (147, 110, 13, 31)),
               {"dsp": 1450, "lut": 84_942, "ff": 10_961, "bram": 4, "latency": 13, "interval": 1},
               REPOSITORIES["tutorial 2019.2"], ("ff",)),
        Design("jets Vitis 2022.2",
               vitis, _counted_jet((984, 719, 158, 16), (1803, 1097, 390, 64), (928, 614, 147, 32), (153, 122, 21, 32)),
               {"dsp": 2557, "lut": 116_694, "ff": 24_233, "bram": 8, "latency": 15, "interval": 1},
               REPOSITORIES["tutorial 2022.2"], ("lut",)),
        Design("jets pruned Vitis 2024.1",
               u50, _counted_jet((256, 204, 43, 9), (507, 370, 102, 29), (255, 200, 45, 17), (40, 38, 2, 11)),
               {"dsp": 817, "lut": 35_326, "ff": 8462, "bram": 8, "latency": 14, "interval": 1},
               REPOSITORIES["pruned 2024.1"], ("dsp", "lut", "latency")),
        Design("top tagging GRU", u250,
               (_gru(20, 6, 20, SIXTEEN, 30), _resource("dense 1", 20, 64, 30, SIXTEEN), estimates.relu("relu", 64, 16),
                _resource("dense 2", 64, 1, 30, SIXTEEN), estimates.table("sigmoid", 1, 16, 1024, 18)),
               {"dsp": 198, "lut": 82_840, "ff": 15_194, "bram": 93, "latency": 856, "interval": 802},
               REPOSITORIES["gru"], ("lut", "ff", "bram", "latency", "interval")),
        Design("quick draw GRU", u250,
               (_gru(100, 3, 128, SIXTEEN, 30), _resource("dense 1", 128, 256, 30, SIXTEEN),
                _resource("dense 2", 256, 128, 30, SIXTEEN), _resource("dense 3", 128, 5, 30, SIXTEEN),
                estimates.softmax("softmax", 5, 16)),
               {"dsp": 4041, "lut": 1_218_611, "ff": 155_795, "bram": 1820, "latency": 4308, "interval": 4202},
               REPOSITORIES["gru"], ("lut", "ff")),
        Design("flavour tagging GRU 4 bit", u250,
               (_gru(15, 6, 120, narrow, 30), _resource("dense 1", 120, 50, 30, narrow), estimates.relu("relu 1", 50, 4),
                _resource("dense 2", 50, 10, 30, narrow), estimates.relu("relu 2", 10, 4),
                _resource("dense 3", 10, 3, 30, narrow), estimates.softmax("softmax", 3, 4, 16)),
               {"dsp": 123, "lut": 122_749, "ff": 14_906, "bram": 374, "latency": 649, "interval": 557},
               REPOSITORIES["gru"], ("dsp", "lut", "bram", "interval")),
        Design("SVHN CNN stream", Target(u250.part, 5.0, "stream", "Vivado"), _svhn(),
               {"dsp": 5414, "lut": 245_466, "ff": 52_549, "bram": 100, "latency": 1044, "interval": 1028},
               REPOSITORIES["svhn"], ("lut", "bram", "interval")),
    )  # fmt: skip


def estimated(report: EstimateReport, figure: str) -> int:
    """A report's total by the name of a published figure; latency in cycles."""
    found = getattr(report.total, figure)
    return found if isinstance(found, int) else found.value


def table() -> str:
    """Ours / published, and their ratio, for each design; * marks figures that a constant or a rule was fitted to."""
    rows: list[Sequence[str]] = [("design", "part", *FIGURES)]
    sources: dict[str, list[str]] = {}
    for design in designs():
        report = design.estimate()
        cells = []
        for figure in FIGURES:
            if figure not in design.figures:
                cells.append("")
                continue
            ours, published = estimated(report, figure), design.figures[figure]
            star = "*" if figure in design.fitted else ""
            cells.append(f"{ours:,} / {published:,}{star} = {ours / published:.2f}")
        rows.append((design.name, design.target.part.name, *cells))
        sources.setdefault(design.source, []).append(design.name)
    lines = [
        "estimate / published = ratio; * a constant or rule was fitted to it; latency and interval in cycles of 5 ns",
        "",
    ]
    lines += aligned(rows)
    return "\n".join([*lines, "", *(f"{', '.join(names)}: {source}" for source, names in sources.items())])


if __name__ == "__main__":
    print(table())
