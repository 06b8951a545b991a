"""A model as a fixed-point network: made from its float graph and a ``Precision``, run in integers on any backend.

    network = fixed(qf.load("model.onnx"), "fixed<16,6>")
    network.run(x, backend="fpga")          # floats in and out
    network.integers(x)                     # every value inside, in integers

The graph's convolutions, dense layers, pools and recurrent layers are the fixed-point operators of ops/fixed.py; what is
between them are the kinds of ``elements`` and ONNX operators that only move values. Integers have the names that the
float values have, but for the graph's outputs, which end in ``.fixed`` before they become floats again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from quatrefoil.models.fixed.lowering import lower
from quatrefoil.models.fixed.precision import Precision
from quatrefoil.models.graph import Graph, Value
from quatrefoil.models.model import Model, declared_zeros, load
from quatrefoil.numerics import Fixed


@dataclass(frozen=True)
class FixedNetwork:
    """A fixed-point network.

    source     the float model
    graph      the same in integers, from float inputs to float outputs
    formats    of every integer value of the graph, by its name
    precision  what it was made with
    """

    source: Model
    graph: Graph
    formats: Mapping[str, Fixed]
    precision: Precision

    @cached_property
    def model(self) -> Model:
        """The graph as a model that runs and explains on any backend."""
        return Model(self.graph, optimized=False)

    @cached_property
    def _traced(self) -> Model:
        outputs = tuple(Value(name, form.dtype, None) for name, form in self.formats.items())
        return Model(replace(self.graph, outputs=outputs), optimized=False)

    def run(self, inputs: Mapping[str, Any] | Any, backend: str | None = None) -> dict[str, Any]:
        """The outputs as floats, by name; as ``Model.run``."""
        return self.model.run(inputs, backend)

    def integers(self, inputs: Mapping[str, Any] | Any, backend: str | None = None) -> dict[str, np.ndarray]:
        """Every integer value of the graph that depends on the inputs, by name."""
        return self._traced.run(inputs, backend)

    def reals(self, inputs: Mapping[str, Any] | Any, backend: str | None = None) -> dict[str, np.ndarray]:
        """``integers`` as the numbers that they stand for (float64), by name."""
        return {name: self.formats[name].dequantize(array) for name, array in self.integers(inputs, backend).items()}


def fixed(model: Model | Any, precision: Precision | Fixed | str | None = None) -> FixedNetwork:
    """A model as a fixed-point network.

    model: a ``Model``, or what ``load`` takes. precision: a ``Precision``, or one format for everything; the defaults of
    ``Precision`` when left out.
    Raises ModelError, in a sentence that names the node, for what has no fixed-point form.
    """
    loaded = model if isinstance(model, Model) else load(model)
    if precision is None:
        precision = Precision()
    chosen = precision if isinstance(precision, Precision) else Precision.of(precision)
    graph, formats = lower(loaded.graph, chosen, value_shapes(loaded))
    return FixedNetwork(loaded, graph, formats, chosen)


_shapes: WeakKeyDictionary[Model, dict[str, tuple[int, ...]]] = WeakKeyDictionary()


def value_shapes(model: Model) -> Mapping[str, tuple[int, ...]]:
    """The shape of every value of a model's graph, for zeros of its declared shapes and a batch of one."""
    if model not in _shapes:  # a search makes hundreds of networks of one model
        _shapes[model] = _value_shapes(model)
    return _shapes[model]


def _value_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    names = [name for node in model.graph.nodes for name in node.outputs if name]
    traced = Model(replace(model.graph, outputs=tuple(Value(name, None, None) for name in names)), optimized=False)
    zeros = {value.name: declared_zeros(value) for value in model.inputs}
    found = {**zeros, **traced.run(zeros, backend="cpu")}
    return {name: array.shape for name, array in found.items() if isinstance(array, np.ndarray)}


def batch_rows(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A value of a batch as a row for each sample. shape: of the value for a batch of one; the batch is the axis that the
    samples make longer, the first where there is but one sample."""
    longer = [axis for axis, (one, given) in enumerate(zip(shape, array.shape)) if one != given]
    axis = longer[0] if longer else 0
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
