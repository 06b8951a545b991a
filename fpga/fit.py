"""Reuse factors and precisions with which a design fits a part.

    found = fit([Candidate("16 bit", 0.001, layers16), Candidate("8 bit", 0.02, layers8)], target, max_error=0.05)
    print(found.text()); found.proposal.reuse      # {"dense 1": 4, …}

For each candidate precision every interval that its layers can keep is tried: each layer takes, of its reuse factors
that keep the interval, the one that takes least of the part (its largest share of any resource). Where that fits,
there is a second choice for which the rest of the part is spent on latency, the best return first. The choice of
reuse for an interval is exact where one resource binds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from quatrefoil.errors import OperatorError
from quatrefoil.fpga.estimate import (
    UNROLL_LIMIT,
    Estimate,
    EstimateReport,
    Layer,
    Target,
    aligned,
    estimate_layer,
    summed,
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network at some precision: its error (in any unit; less is better) and its layers."""

    label: str
    error: float
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """A candidate with reuse factors: the layers as chosen, and what they take. ``share``: the largest of the part's
    resources."""

    label: str
    error: float
    layers: tuple[Layer, ...]
    report: EstimateReport
    fits: bool

    @property
    def share(self) -> float:
        return max(self.report.shares().values())

    @property
    def reuse(self) -> dict[str, int]:
        """Reuse factors by layer, of layers that multiply by weights."""
        return {layer.name: layer.reuse for layer in self.layers if layer.matrices}

    @property
    def strategies(self) -> dict[str, str]:
        return {layer.name: layer.strategy for layer in self.layers if layer.matrices}

    @property
    def measures(self) -> tuple[float, float, float, float]:
        """What the Pareto front trades: error, interval, latency (cycles), share of the part."""
        total = self.report.total
        return (self.error, float(total.interval), float(total.latency.value), self.share)


@dataclass(frozen=True, slots=True)
class Fit:
    """``proposal``: what to take, None where nothing fits; ``front``: the choices that nothing beats, fitting or not, by
    interval; ``usable``: the share of the part that a design may take."""

    proposal: Choice | None
    front: tuple[Choice, ...]
    usable: float

    def text(self) -> str:
        rows = [("precision", "error", "interval", "latency", "DSP", "logic", "BRAM", "of the part", "")]
        for choice in self.front:
            total = choice.report.total
            mark = "proposed" if choice is self.proposal else "" if choice.fits else "does not fit"
            rows.append(
                (choice.label, f"{choice.error:.4g}", f"{total.interval:,}", f"{total.latency.value:,}",
                 f"{total.dsp.value:,}", f"{total.lut.value:,}", f"{total.bram.value:,}", f"{choice.share:.1%}", mark)
            )  # fmt: skip
        lines = aligned(rows)
        if self.proposal is None:
            lines.append(f"nothing fits {self.usable:.0%} of the part; take a larger one or fewer bits")
        else:
            reuse, strategies = self.proposal.reuse, self.proposal.strategies
            lines.append(
                f"proposed: {self.proposal.label}, "
                + ", ".join(f"{name} {strategies[name]} reuse {factor}" for name, factor in reuse.items())
            )
        return "\n".join(lines)


def fit(candidates: Sequence[Candidate], target: Target, max_error: float | None = None, usable: float = 0.8) -> Fit:
    """The choices for a part. Proposed is, of those that fit into ``usable`` of it, the one with the shortest interval,
    then latency, among candidates of an error up to ``max_error``; None: among those of the least error that fits."""
    if not candidates:
        raise OperatorError("fit", "candidates", "empty", "give at least one precision")
    if not 0 < usable <= 1:
        raise OperatorError("fit", "usable", usable, "it has to lie in 0 to 1")
    choices: list[Choice] = []
    for candidate in candidates:
        distinct = {choice.layers: choice for choice in _choices(candidate, target, usable)}
        choices += distinct.values()
    fitting = [choice for choice in choices if choice.fits]
    if max_error is None:
        least = min((choice.error for choice in fitting), default=0.0)
        allowed = [choice for choice in fitting if choice.error == least]
    else:
        allowed = [choice for choice in fitting if choice.error <= max_error]
    proposal = min(allowed, key=lambda c: (c.measures[1:3], c.error, c.share), default=None)
    front = {one.measures: one for one in choices if not any(_beats(other, one) for other in choices)}
    if proposal is not None:
        front[proposal.measures] = proposal
    return Fit(proposal, tuple(sorted(front.values(), key=lambda c: (c.measures[1], c.error, c.measures[2]))), usable)


def _beats(one: Choice, other: Choice) -> bool:
    pairs = list(zip(one.measures, other.measures))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def variants(layer: Layer) -> list[Layer]:
    """A layer with each reuse factor that hls4ml allows, largest first, the last without reuse in latency strategy, unless
    HLS would not unroll it."""
    if not layer.matrices:
        return [layer]
    factors = [reuse for reuse in sorted(layer.reuse_factors(), reverse=True) if reuse > 1]
    shared = [replace(layer, strategy="resource", reuse=reuse) for reuse in factors]
    unrolled = [replace(layer, strategy="latency", reuse=1)]
    if not layer.sharing:
        return [layer]
    small = all(matrix.weights <= UNROLL_LIMIT for matrix in layer.matrices)
    return shared + (unrolled if small or not shared else [])


def _choices(candidate: Candidate, target: Target, usable: float) -> list[Choice]:
    @cache
    def cost(layer: Layer) -> Estimate:
        return estimate_layer(layer, target)

    def share(layer: Layer) -> float:
        part, one = target.part, cost(layer)
        return max(
            one.dsp.value / part.dsp, one.lut.value / part.lut, one.ff.value / part.ff, one.bram.value / part.bram
        )

    def choice(layers: Sequence[Layer]) -> Choice:
        report = summed(layers, tuple(map(cost, layers)), target)
        fits = max(report.shares().values()) <= usable
        return Choice(candidate.label, candidate.error, tuple(layers), report, fits)

    options = [variants(layer) for layer in candidate.layers]
    # the slowest layer of the fastest design bounds what can be kept
    floor = max((min(cost(layer).interval for layer in each) for each in options), default=1)
    intervals = sorted({cost(layer).interval for each in options for layer in each if cost(layer).interval >= floor})
    found: list[Choice] = []
    for interval in intervals:
        keeping = [[layer for layer in each if cost(layer).interval <= interval] for each in options]
        chosen = choice([min(each, key=share) for each in keeping])
        found.append(chosen)
        if chosen.fits:
            found.append(_quicken(chosen, keeping, cost, choice))
    return found


def _quicken(
    chosen: Choice,
    keeping: Sequence[Sequence[Layer]],
    cost: Callable[[Layer], Estimate],
    choice: Callable[[Sequence[Layer]], Choice],
) -> Choice:
    """Spends what is left of the part on latency: one layer at a time, the largest gain of cycles first."""
    while True:
        steps = [
            (cost(layer).latency.value - cost(faster).latency.value, position, faster)
            for position, layer in enumerate(chosen.layers)
            for faster in keeping[position]
            if cost(faster).latency.value < cost(layer).latency.value
        ]
        for _, position, faster in sorted(steps, key=lambda step: (-step[0], step[1])):
            tried = choice([*chosen.layers[:position], faster, *chosen.layers[position + 1 :]])
            if tried.fits:
                chosen = tried
                break
        else:
            return chosen
