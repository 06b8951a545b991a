"""How weights lie in the memories of a chip that reads them compressed, and which rows of the array they take.

Weights lie in the smallest of the forms that the design has:

    whole            the width of the format each
    codes            4 bits each where they have at most 16 different values, else 8, with a codebook of these values
    with an index    those that are not zero: each with its distance from the one before in ``index_bits``; where it is
                     further, zeros are stored between. S. Han et al., "EIE: Efficient Inference Engine on Compressed Deep
                     Neural Network", ISCA 2016, with 4 bits for the code and 4 for the distance
    codes with an index

It depends on the numbers alone, not on the operator that brings them. With an index a strip of the array's columns goes in
the order of its blocks of ``skip_block_rows`` rows of the depth, of its columns, of the rows of a block; a block takes as many
rows of the array as the fullest of its columns has weights in it, so none where it is empty. In blocks of one row that
leaves out rows without a weight in the strip; in larger ones an element chooses its activation among those of the block, so
that 2 of 4 take half of the rows (Z.-G. Liu et al., "S2TA: Exploiting Structured Sparsity for Energy-Efficient Mobile CNN
Acceleration", HPCA 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from quatrefoil.asic_sim.hardware import Hardware
from quatrefoil.ops import compressed
from quatrefoil.problem import Problem

MANY = 257
"""Different values, beyond what any codebook has."""

_SAMPLE = 4096


@dataclass(frozen=True, slots=True)
class Weight:
    """What is known of a weight's numbers.

    shape    of the weight
    zeros    where it is not zero, a bit each; None where only ``density`` is known, the share that is stored
    values   how many different ones it has, at most
    """

    shape: tuple[int, ...]
    zeros: bytes | None = None
    density: float = 1.0
    values: int = MANY

    @classmethod
    def of(cls, array: np.ndarray) -> Weight:
        places = np.asarray(array) != 0  # NaN is not 0
        density = float(places.mean()) if places.size else 1.0
        return cls(places.shape, np.packbits(places).tobytes(), density, _different(np.asarray(array)))

    @property
    def places(self) -> np.ndarray | None:
        if self.zeros is None:
            return None
        return (
            np.unpackbits(np.frombuffer(self.zeros, np.uint8), count=prod(self.shape)).astype(bool).reshape(self.shape)
        )


def _different(array: np.ndarray) -> int:
    flat = array.reshape(-1)
    if len(np.unique(flat[:_SAMPLE])) >= MANY:
        return MANY
    return min(len(np.unique(flat)), MANY)


@dataclass(frozen=True, slots=True)
class Numbers:
    """What is known of an operator's weights, by their positions in it. assumed: what stands for what is not."""

    weights: tuple[tuple[int, Weight], ...] = ()
    assumed: str = "no weight is taken to be zero or like another one, as their numbers are not known"

    def get(self, position: int) -> Weight | None:
        return dict(self.weights).get(position)


UNKNOWN = Numbers()


def known(weights: Mapping[int, np.ndarray]) -> Numbers:
    """Of weights less their zero points."""
    return Numbers(tuple((position, Weight.of(array)) for position, array in sorted(weights.items())), "")


def stated(problem: Problem) -> Numbers:
    """Of an operator with compressed weights, from its types alone."""
    form, found = compressed.FORMS[problem.op], []
    for weight in form.weights:
        shape, place = compressed.weight_shape(problem, weight), form.place(weight.position)
        if form.kind == compressed.SPARSE:
            found.append((weight.position, Weight(shape, density=problem.input(place).size / max(prod(shape), 1))))
        else:
            found.append((weight.position, Weight(shape, values=problem.input(place + 1).size)))
    assumed = (
        "stored weights are taken to lie evenly, in every row of the array, as their places are not known"
        if form.kind == compressed.SPARSE
        else "no weight is taken to be zero, as codes and codebook are not known"
    )
    return Numbers(tuple(found), assumed)


@dataclass(frozen=True, slots=True)
class Lying:
    """How a stage's weights lie. group_bytes: of the largest group; stored: for the native stage, by its arguments' names; None:
    one after the other in the format's width."""

    group_bytes: int
    stored: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Strips:
    """With an index, for each group strip by strip: rows and stored weights as asic_sim/src/stored.h has them."""

    first: np.ndarray
    before: np.ndarray
    taken: np.ndarray

    def group_weights(self, groups: int) -> np.ndarray:
        return self.before[self.first[1:] - 1].reshape(groups, -1).sum(1)


def lying(
    weight: Weight | None,
    arrange: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, int, int],
    design: Hardware,
    width: int,
) -> Lying:
    """shape: groups, depth and columns of the stage; arrange: makes that of an array of the weight's shape. width: bytes of a
    weight of the format."""
    groups, depth, columns = shape
    count, whole = groups * depth * columns, Lying(depth * columns * width)
    if weight is None or not count or not design.compresses:
        return whole
    places = weight.places
    matrix = None if places is None else arrange(places).reshape(shape)
    multiplied = round(weight.density * count) if matrix is None else int(matrix.sum())
    gated = {"multiplied": multiplied} if design.zero_gating else {}
    forms: list[tuple[int, int, int, int, Strips | None]] = [(count * width * 8, 1, width * 8, 0, None)]
    table = weight.values * width if weight.values <= design.codebook_entries else 0
    code = 4 if weight.values <= 16 else 8
    if table:
        forms.append((count * code + 8 * table, 1, code, table, None))
    if design.index_bits and multiplied < count:
        if matrix is None:
            strips = even_strips(weight.density, shape, design.array_columns)
        else:
            strips = strips_of(matrix, design.array_columns, design.skip_block_rows, design.index_bits)
        entries = int(strips.group_weights(groups).sum())
        for bits, book in ((width * 8, 0), *([(code, table)] if table else [])):
            forms.append((entries * (bits + design.index_bits) + 8 * book, 0, bits + design.index_bits, book, strips))
    _, _, bits, book, chosen = min(forms, key=lambda form: form[:2])
    if bits == width * 8 and not gated:
        return whole
    stored: dict[str, Any] = {"bits": bits, "table_bytes": book, **gated}
    if book or chosen is not None:
        stored["decoded"] = design.decoded_weights_per_cycle
    if chosen is None:
        return Lying(-(-depth * columns * bits // 8), stored)
    stored |= {"first": chosen.first.tolist(), "before": chosen.before.tolist(), "taken": chosen.taken.tolist()}
    return Lying(int(-(-chosen.group_weights(groups).max() * bits // 8)), stored)


def strips_of(matrix: np.ndarray, array_columns: int, block_rows: int, index_bits: int) -> Strips:
    """matrix: (groups, depth, columns), where weights are not zero. block_rows: 0 to skip nothing."""
    groups, depth, columns = matrix.shape
    high = max(block_rows, 1)
    blocks = -(-depth // high)
    whole = np.zeros((groups, blocks * high, columns), bool)
    whole[:, :depth] = matrix
    tall = whole.reshape(groups, blocks, high, columns).transpose(0, 1, 3, 2)
    sizes = np.full(blocks, high)
    sizes[-1] = depth - (blocks - 1) * high
    rows, stored = [], []
    for start in range(0, columns, array_columns):
        strip = np.ascontiguousarray(tall[:, :, start : start + array_columns])
        needed = strip.sum(3).max(2) if block_rows else np.broadcast_to(sizes, (groups, blocks)).copy()
        needed[needed.sum(1) == 0, 0] = 1  # sums have to come out even if nothing adds to them
        rows.append(needed)
        stored.append(_stored(strip.reshape(groups, blocks, -1), index_bits))
    return _strips(np.stack(rows, 1), np.stack(stored, 1), sizes)


def even_strips(density: float, shape: tuple[int, int, int], array_columns: int) -> Strips:
    """Where nothing is known but the share of weights that are stored."""
    groups, depth, columns = shape
    widths = np.minimum(array_columns, columns - np.arange(0, columns, array_columns))
    before = np.rint(density * widths[:, None] * np.arange(depth + 1)).astype(np.int64)
    stored = np.broadcast_to(np.diff(before), (groups, len(widths), depth))
    return _strips(np.ones_like(stored), stored, np.ones(depth, np.int64))


def _stored(strip: np.ndarray, index_bits: int) -> np.ndarray:
    """Weights that are stored for each block (groups, blocks), the zeros among them that bridge long distances included."""
    groups, blocks, size = strip.shape
    group, place = np.nonzero(strip.reshape(groups, -1))
    distance = np.diff(place, prepend=-1)
    begins = np.diff(group, prepend=-1) != 0
    distance[begins] = place[begins] + 1
    bridges = (distance - 1) >> index_bits
    counts = np.bincount(group * blocks + place // size, weights=1 + bridges, minlength=groups * blocks)
    return counts.astype(np.int64).reshape(groups, blocks)


def _strips(rows: np.ndarray, stored: np.ndarray, sizes: np.ndarray) -> Strips:
    """rows, stored: (groups, strips, blocks), what each block takes; sizes: rows of the depth of each block. A block's weights
    are spread over its rows."""
    base = (np.cumsum(stored, 2) - stored).reshape(-1)
    block_rows, block_stored = rows.reshape(-1), stored.reshape(-1)
    block = np.repeat(np.arange(len(block_rows)), block_rows)
    number = np.arange(len(block)) - (np.cumsum(block_rows) - block_rows)[block]
    after = base[block] + block_stored[block] * (number + 1) // block_rows[block]
    first = np.concatenate([[0], np.cumsum(rows.sum(2).reshape(-1) + 1)])
    before = np.zeros(first[-1], np.int64)
    begins = np.zeros(len(before), bool)
    begins[first[:-1]] = True
    before[~begins] = after
    return Strips(first, before, ((rows > 0) * sizes).sum(2).reshape(-1))


def kept_rows(matrix: np.ndarray, array_columns: int) -> np.ndarray:
    """Of one group (depth, columns), the rows that each strip keeps where blocks have one row."""
    found: list[np.ndarray] = []
    for start in range(0, matrix.shape[1], array_columns):
        kept = np.flatnonzero(matrix[:, start : start + array_columns].any(1))
        found.append(kept if len(kept) else np.zeros(1, np.int64))
    return np.concatenate(found).astype(np.int64)
