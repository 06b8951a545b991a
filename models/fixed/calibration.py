"""Fixed-point formats that choose themselves: from sample data, for a width, a target error or a budget of bits.

The network is first computed in formats so wide that nothing is lost, which shows what every value and weight ranges
over. For a width, the point of each stands where the mean squared error is least: a bit more of range saves rare large
values, a bit less keeps more of all the others. Widths are then searched by running the candidates on the samples:

  bits=8          every weight and value 8 bits wide
  error=0.02      the narrowest width for all that keeps the error, then bit by bit less where it hurts least
  budget=6.5      from wide to a mean width, a bit at a time, where it costs the least error for what it saves

The error is that of the outputs, root mean square over that of the float model's outputs. Sums of products are exact and
cannot overflow (``lowering.exact_sum``); tables grow until a larger one no longer lowers the error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np

from quatrefoil.models.fixed.network import FixedNetwork, fixed
from quatrefoil.models.fixed.precision import LayerPrecision, Precision
from quatrefoil.models.graph import ModelError, Node
from quatrefoil.models.model import Model, load
from quatrefoil.numerics import Fixed

SAMPLED: Final = 100_000
"""Values of a layer that choose its format; evenly spaced ones of more."""

WIDEST: Final = 18
NARROWEST: Final = 2
"""Widths that are tried."""

TABLES: Final = (256, 512, 1024, 2048, 4096, 8192, 16384)

DIVERGED: Final = 0.1
"""A layer has left the float model when its error is this share of its values."""

WIDE: Final = Precision(
    Fixed(28, 12, "RND", "SAT"), Fixed(20, 4, "RND", "SAT"), table=Fixed(24, 2, "RND", "SAT"), table_size=65536
)

CURVE: Final = (3, 4, 5, 6, 8, 10, 12)
"""Widths of a layer's curve."""

WEIGHT: Final = "weight"
RESULT: Final = "result"


@dataclass(frozen=True, slots=True)
class CalibratedLayer:
    """What a layer got, and what that does on the samples.

    low, high     of its results in the float model
    saturated     results that the format cuts off, of ``values``
    error         of its results, root mean square over that of the exact ones, everything before it fixed point too
    """

    name: str
    operator: str
    weight: Fixed | None
    result: Fixed
    accumulator: Fixed | None
    low: float
    high: float
    saturated: int
    values: int
    error: float


@dataclass(frozen=True, slots=True)
class Trial:
    """A precision that was tried: its mean width, and the outputs' error."""

    bits: float
    error: float


@dataclass(frozen=True)
class Calibration:
    """A precision for a model, chosen on samples.

    error      of the outputs, root mean square over the float model's
    agreement  the share of samples whose greatest output is the same, None where outputs are no scores
    bits       mean width of all weights and values
    curves     where they were asked for: for each layer the outputs' error against the width of its weights and results,
               everything else being as wide as is tried
    """

    precision: Precision
    layers: tuple[CalibratedLayer, ...]
    error: float
    agreement: float | None
    bits: float
    trials: tuple[Trial, ...] = field(repr=False, default=())
    curves: Mapping[str, tuple[Trial, ...]] = field(repr=False, default_factory=dict)

    @cached_property
    def first_diverging(self) -> CalibratedLayer | None:
        """The first layer whose error is more than a tenth of its values."""
        return next((layer for layer in self.layers if layer.error > DIVERGED), None)

    @property
    def summary(self) -> str:
        """In a sentence or two."""
        text = f"mean width {self.bits:.2f} bits, error {self.error:.3%}"
        if self.agreement is not None:
            text += f", same greatest output on {self.agreement:.2%} of the samples"
        if self.first_diverging is not None:
            text += f"; {self.first_diverging.name} is the first layer that is more than {DIVERGED:.0%} off"
        return text

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"{'layer':<{width}}  {'weights':<22} {'results':<22} {'range':>19} {'cut off':>9} {'error':>8}"]
        for layer in self.layers:
            lines.append(
                f"{layer.name:<{width}}  {layer.weight or ''!s:<22} {layer.result.text:<22} {layer.low:>9.3g} "
                f"{layer.high:>9.3g} {layer.saturated / max(layer.values, 1):>9.2%} {layer.error:>8.2%}"
            )
        return "\n".join([*lines, self.summary])


@dataclass(frozen=True)
class _Site:
    """A layer with formats of its own: a float node, or an input of the model."""

    name: str
    operator: str
    result: str
    sums: tuple[str, ...]
    weight: np.ndarray | None
    tables: bool = False
    cells: bool = False
    is_input: bool = False


def calibrate(
    model: Model | Any,
    samples: Mapping[str, Any] | Any,
    *,
    bits: int | None = None,
    error: float | None = None,
    budget: float | None = None,
    unsigned: bool = True,
    start: Precision | None = None,
    curves: bool = False,
) -> Calibration:
    """Choose a model's fixed-point formats on samples.

    model: a ``Model``, or what ``load`` takes. samples: inputs as for ``Model.run``, batch first; some hundred do.
    bits, error, budget: one of them (see above); 8 bits when all are left out. unsigned: give values that are never
    negative formats without a sign. start: accumulators, reuse and whatever else is not searched, for every layer.
    curves: measure the outputs' error against each layer's width, too.

    Raises ModelError for what has no fixed-point form, and where no width up to 18 bits keeps the error.
    """
    given = [name for name, value in (("bits", bits), ("error", error), ("budget", budget)) if value is not None]
    if len(given) > 1:
        raise ModelError(f"calibrate: {' and '.join(given)} are given; give one of them")
    search = _Search(model if isinstance(model, Model) else load(model), samples, unsigned, start or Precision())
    if error is not None:
        widths = search.for_error(error)
    elif budget is not None:
        widths = search.for_budget(budget)
    else:
        wanted = 8 if bits is None else bits
        if not NARROWEST <= wanted <= WIDEST:
            raise ModelError(f"calibrate: bits is {wanted}; give {NARROWEST} to {WIDEST}")
        widths = search.uniform(wanted)
        search.error(widths)
    return search.result(widths, search.curves() if curves else {})


Widths = dict[tuple[str, str], int]


class _Search:
    def __init__(self, model: Model, samples: Mapping[str, Any] | Any, unsigned: bool, start: Precision) -> None:
        self.model, self.samples, self.unsigned, self.start = model, samples, unsigned, start
        self.expected = {
            name: np.asarray(array, np.float64) for name, array in model.run(samples, backend="cpu").items()
        }
        for name, array in self.expected.items():
            if not np.isfinite(array).all() or array.size == 0:
                raise ModelError(
                    f"calibrate: the float model gives no or no finite numbers for {name!r} on the samples"
                )
        wide = fixed(model, WIDE)
        self.exact = wide.reals(samples, backend="cpu")
        self.sites = _sites(wide)
        self.table_size = start.table_size
        self.trials: list[Trial] = []
        self._formats: dict[tuple[str, str, int], Fixed] = {}
        if any(site.tables for site in self.sites):
            self._choose_tables()

    def _choose_tables(self) -> None:
        """The smallest table after which twice the entries lower the error by less than a tenth."""
        errors = []
        for size in TABLES:
            self.table_size = size
            errors.append(self.error(self.uniform(WIDEST)))
            if len(errors) > 1 and errors[-1] > 0.9 * errors[-2]:
                self.table_size = size // 2
                break
        self.trials.clear()

    def uniform(self, width: int) -> Widths:
        found: Widths = {}
        for site in self.sites:
            found[site.name, RESULT] = width
            if site.weight is not None:
                found[site.name, WEIGHT] = width
        return found

    def mean(self, widths: Widths) -> float:
        """Bits of a weight or value, each kind of each layer counted once."""
        return sum(widths.values()) / len(widths)

    def precision(self, widths: Widths) -> Precision:
        inputs, layers = dict(self.start.inputs), dict(self.start.layers)
        for site in self.sites:
            result = self.form(site, RESULT, widths[site.name, RESULT])
            if site.is_input:
                inputs[site.name] = result
                continue
            own: dict[str, Any] = {"result": result, "table_size": self.table_size if site.tables else None}
            if site.weight is not None:
                own["weight"] = self.form(site, WEIGHT, widths[site.name, WEIGHT])
            if site.sums:
                own["sum"] = self.form(site, "sum", widths[site.name, RESULT])
            layers[site.name] = replace(layers.get(site.name, LayerPrecision()), **own)
        return replace(self.start, inputs=inputs, layers=layers)

    def form(self, site: _Site, what: str, width: int) -> Fixed:
        """The format of a width with the least mean squared error, of a layer's weights, results or sums."""
        key = site.name, what, width
        if key not in self._formats:
            if what == WEIGHT:
                assert site.weight is not None
                values, signed = site.weight, True
            else:
                names = site.sums if what == "sum" else (site.result,)
                values = np.concatenate([self.exact[name].reshape(-1) for name in names])
                signed = not self.unsigned or bool((values < 0).any())
            found = best_format(values, width, signed)
            self._formats[key] = self.with_room_for_cells(site, found) if site.cells and what == RESULT else found
        return self._formats[key]

    def with_room_for_cells(self, site: _Site, form: Fixed) -> Fixed:
        """An LSTM's result format also holds its cells, which no output shows at every step: of formats with more
        integer bits the one with which the layer, all else being wide, is nearest."""

        def missed(form: Fixed) -> float:
            layer = LayerPrecision(result=form, table_size=self.table_size)
            network = fixed(self.model, replace(WIDE, layers={site.name: layer}))
            return relative(network.reals(self.samples, backend="cpu")[site.result], self.exact[site.result])

        return min((replace(form, integer=form.integer + more) for more in range(5)), key=missed)

    def outputs_error(self, outputs: Mapping[str, np.ndarray]) -> float:
        return max(relative(outputs[name], want) for name, want in self.expected.items())

    def error(self, widths: Widths) -> float:
        """Of the outputs, with these widths; kept as a trial."""
        network = fixed(self.model, self.precision(widths))
        found = self.outputs_error(network.run(self.samples, backend="cpu"))
        self.trials.append(Trial(self.mean(widths), found))
        return found

    def curves(self) -> dict[str, tuple[Trial, ...]]:
        """Of each layer the outputs' error against its width."""
        found, before = {}, len(self.trials)
        for site in self.sites:
            errors = []
            for width in CURVE:
                widths = {
                    place: width if place[0] == site.name else wide for place, wide in self.uniform(WIDEST).items()
                }
                errors.append(Trial(width, self.error(widths)))
            found[site.name] = tuple(errors)
        del self.trials[before:]
        return found

    def for_error(self, target: float) -> Widths:
        if not target > 0:
            raise ModelError(f"calibrate: error is {target}; give a positive share, for example 0.02")
        for width in range(4, WIDEST + 1):
            found = self.error(self.uniform(width))
            if found <= target:
                break
        else:
            raise ModelError(f"calibrate: {WIDEST} bits for everything are {found:.3%} off, more than {target:.3%}")
        return self.lowered(self.uniform(width), lambda widths, found: found <= target, lambda widths: False)

    def for_budget(self, budget: float) -> Widths:
        if not NARROWEST <= budget <= WIDEST:
            raise ModelError(f"calibrate: budget is {budget}; give {NARROWEST} to {WIDEST} bits")
        first = self.uniform(min(int(np.ceil(budget)) + 3, WIDEST))
        return self.lowered(first, lambda widths, found: True, lambda widths: self.mean(widths) <= budget)

    def lowered(
        self,
        widths: Widths,
        allowed: Callable[[Widths, float], bool],
        enough: Callable[[Widths], bool],
    ) -> Widths:
        """A bit less at a time, where the error grows least, as long as it is allowed and not enough."""
        open_places = set(widths)
        while open_places and not enough(widths):
            found = []
            for place in sorted(open_places):
                if widths[place] <= NARROWEST:
                    open_places.discard(place)
                    continue
                tried = {**widths, place: widths[place] - 1}
                error = self.error(tried)
                if allowed(tried, error):
                    found.append((error, place))
                else:
                    open_places.discard(place)
            if not found:
                break
            _, place = min(found)
            widths = {**widths, place: widths[place] - 1}
        return widths

    def result(self, widths: Widths, curves: Mapping[str, tuple[Trial, ...]]) -> Calibration:
        precision = self.precision(widths)
        network = fixed(self.model, precision)
        outputs = network.run(self.samples, backend="cpu")
        reals = network.reals(self.samples, backend="cpu")
        nodes = {node.name: node for node in network.graph.nodes}
        layers = []
        for site in self.sites:
            exact, form = self.exact[site.result], network.formats[site.result]
            low, high = form.dequantize(np.array([form.low, form.high]))
            accumulator = nodes[site.name].attributes.get("accumulator") if site.name in nodes else None
            layers.append(
                CalibratedLayer(
                    site.name, site.operator,
                    None if site.weight is None else self.form(site, WEIGHT, widths[site.name, WEIGHT]),
                    form, None if accumulator is None else Fixed.parse(accumulator),
                    float(exact.min()), float(exact.max()),
                    int(((exact < low) | (exact > high)).sum()), exact.size, relative(reals[site.result], exact),
                )
            )  # fmt: skip
        return Calibration(
            precision, tuple(layers), self.outputs_error(outputs), agreement(outputs, self.expected), self.mean(widths),
            tuple(self.trials), curves,
        )  # fmt: skip


def best_format(values: np.ndarray, width: int, signed: bool) -> Fixed:
    """Of all places of the point, the one with the least mean squared error; values beyond the range are cut off."""
    values = values.reshape(-1)
    values = values[:: max(values.size // SAMPLED, 1)]
    greatest = float(np.abs(values).max(initial=0.0))
    if greatest == 0.0:
        return Fixed(width, 1, "RND", "SAT", signed)
    most = int(np.floor(np.log2(greatest))) + 1 + signed
    candidates = [Fixed(width, integer, "RND", "SAT", signed) for integer in range(most + 1, most - 5, -1)]
    return min(candidates, key=lambda form: float(np.square(form.dequantize(form.quantize(values)) - values).mean()))


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """Root mean square of the difference over that of ``want`` (of 1 where that is zero)."""
    scale = float(np.sqrt(np.square(want, dtype=np.float64).mean())) or 1.0
    return float(np.sqrt(np.square(np.asarray(got, np.float64) - want).mean())) / scale


def agreement(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> float | None:
    """The share of rows with the same greatest element, of a model with one output (batch, two or more scores)."""
    if len(want) != 1:
        return None
    [(name, scores)] = want.items()
    if scores.ndim != 2 or scores.shape[1] < 2:
        return None
    return float((np.argmax(got[name], 1) == scores.argmax(1)).mean())


def _sites(network: FixedNetwork) -> list[_Site]:
    """The layers of a network that have a result format of their own, in order."""
    sites = [
        _Site(value.name, "input", f"{value.name}.fixed", (), None, is_input=True)
        for value in network.source.graph.inputs
    ]
    for node in network.source.graph.nodes:
        parts = [part for part in network.graph.nodes if _belongs(part, node)]
        parts = [part for part in parts if part.op not in ("fixed_max_pool", "fixed_average_pool")]
        if not parts:
            continue
        results = [next(name for name in part.outputs if name) for part in parts]
        tables = any("table_format" in part.attributes for part in parts)
        cells = parts[-1].op == "fixed_lstm"
        sites.append(
            _Site(node.name, node.title, results[-1], tuple(results[:-1]), _weights(network, parts), tables, cells)
        )
    return sites


def _belongs(part: Node, node: Node) -> bool:
    """Whether a node of the fixed-point graph gives a result or a sum of a float node."""
    return "y_format" in part.attributes and part.name in (
        node.name, f"{node.name}.residual", f"{node.name}.activation"
    )  # fmt: skip


def _weights(network: FixedNetwork, parts: Sequence[Node]) -> np.ndarray | None:
    """Every weight of a layer in one row, as in the wide network."""
    found = [
        network.graph.constants[part.inputs[place]].reshape(-1)
        for part in parts
        for place, attribute in ((1, "w_format"), (2, "r_format"))
        if attribute in part.attributes
    ]
    return WIDE.weight.dequantize(np.concatenate(found)) if found else None


__all__ = ["CalibratedLayer", "Calibration", "Trial", "agreement", "best_format", "calibrate", "relative"]
