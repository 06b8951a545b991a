"""Where each element comes from, of an ONNX operator that only moves values: found by moving the places themselves.

An operator is run once on its input's own places; nearly all of them then turn out to be a sum of one term for each axis
of the output (a stride, or a short table), which is a nest of loops in C.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quatrefoil.models import host
from quatrefoil.models.graph import Node

NOWHERE = -1
"""A place that holds 0."""


def sources(node: Node, shape: tuple[int, ...], constants: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """For each output of a node with an input of ``shape``: the flat place of the input that an element comes from, or
    NOWHERE."""
    assert node.proto is not None
    operator = host.prepare(node.proto, dict(node.opsets), constants)
    places = np.arange(1, np.prod(shape, dtype=np.int64) + 1).reshape(shape)  # what is padded is 0
    given = [places, *(constants.get(name) if name else None for name in node.inputs[1:])]
    return [np.asarray(found, np.int64) - 1 for found in operator.run(given)]


@dataclass(frozen=True)
class Axis:
    """One loop: ``length`` times a ``stride``, or the terms of a ``table`` (NOWHERE where it holds 0)."""

    length: int
    stride: int
    table: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Nest:
    """A nest of loops: the source of an output element is ``start`` and the sum of its axes' terms."""

    start: int
    axes: tuple[Axis, ...]


def nest(places: np.ndarray) -> Nest | None:
    """The loops that give these places; None where they are no sum of terms of the axes."""
    valid = places != NOWHERE
    kept = [
        valid.any(axis=tuple(other for other in range(places.ndim) if other != axis)) for axis in range(places.ndim)
    ]
    separable = np.ones(places.shape, bool)
    for axis, flags in enumerate(kept):
        separable &= flags.reshape([-1 if other == axis else 1 for other in range(places.ndim)])
    if not np.array_equal(separable, valid) or not valid.any():
        return None
    corner = tuple(int(np.argmax(flags)) for flags in kept)
    start = int(places[corner])
    total = np.full(places.shape, start, np.int64)
    axes = []
    for axis, flags in enumerate(kept):
        terms = np.moveaxis(places, axis, -1)[(*corner[:axis], *corner[axis + 1 :])] - start
        total += terms.reshape([-1 if other == axis else 1 for other in range(places.ndim)])
        stride = int(terms[1]) if len(terms) > 1 else 0
        if flags.all() and np.array_equal(terms, np.arange(len(terms)) * stride):
            axes.append(Axis(len(terms), stride))
        else:
            # terms of a table count from 0, so that NOWHERE cannot be one of them
            least = int(terms[flags].min())
            start += least
            table = tuple(int(term) - least if flag else NOWHERE for term, flag in zip(terms, flags))
            axes.append(Axis(len(terms), 0, table))
    if not np.array_equal(total[valid], places[valid]):
        return None
    return Nest(start, tuple(axes))
