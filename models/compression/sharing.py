"""Weights that share a few values: a codebook of 16 or 256 entries for each weight, and a code for each of its elements.

    weight = Gather(codebook, Cast(codes))

in ONNX's own operators, which any runtime computes: codes are uint8, of up to 16 entries uint4, two in a byte (operator set 21).
Codebooks are k-means in one dimension, exact by dynamic programming over the sorted weights (Wang and Song, Ckmeans.1d.dp,
2011), which are taken together in BINS where there are more, and then moved by Lloyd's steps (1982). Zeros that pruning made are
an entry of their own, the first. Codebooks train like any constant: the gradient of an entry is the sum over the weights that
share it (Han, Mao and Dally, Deep compression, 2016).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.compression.network import BOOK, CODES, Network

BINS: Final = 512
ENTRIES: Final = (2, 256)
SMALL: Final = 16
"""Entries that a code of four bits tells apart, from operator set PACKED on."""
PACKED: Final = 21
NODES: Final = 160
"""Bytes that the two nodes and the two names take in a file, about."""
STEPS: Final = 50


def checked_entries(entries: int) -> int:
    if not ENTRIES[0] <= entries <= ENTRIES[1]:
        raise QuatrefoilError(
            f"compress: share is {entries}; a codebook has {ENTRIES[0]} to {ENTRIES[1]} entries, 16 and 256 fill their codes"
        )
    return int(entries)


def k_means(values: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` centres of numbers, in order, with the least sum of squared distances."""
    ordered = np.sort(values.reshape(-1).astype(np.float64))
    distinct, counts = np.unique(ordered, return_counts=True)
    if len(distinct) <= count:
        return distinct
    exact = len(distinct) <= BINS
    if exact:
        weights, sums, squares = counts.astype(np.float64), distinct * counts, distinct**2 * counts
    else:
        edges = np.linspace(0, len(ordered), BINS + 1).astype(np.int64)
        parts = list(pairwise(edges))
        weights = np.array([float(end - begin) for begin, end in parts])
        sums = np.array([ordered[begin:end].sum() for begin, end in parts])
        squares = np.array([np.square(ordered[begin:end]).sum() for begin, end in parts])
    centres = _partition(weights, sums, squares, count)
    if not exact:
        for _ in range(STEPS):
            places = np.searchsorted((centres[1:] + centres[:-1]) / 2, ordered)
            totals = np.bincount(places, ordered, len(centres))
            sizes = np.bincount(places, minlength=len(centres))
            moved = np.where(sizes > 0, totals / np.maximum(sizes, 1), centres)
            if np.array_equal(moved, centres):
                break
            centres = moved
    return centres


def _partition(weights: np.ndarray, sums: np.ndarray, squares: np.ndarray, count: int) -> np.ndarray:
    """The means of the ``count`` runs of ordered bins whose squared distances are the least together."""
    w, s, q = (np.concatenate([[0.0], np.cumsum(each)]) for each in (weights, sums, squares))
    bins = len(weights)
    # cost[i, j]: of the run of bins i to j - 1
    with np.errstate(all="ignore"):
        size, total = w[np.newaxis] - w[:, np.newaxis], s[np.newaxis] - s[:, np.newaxis]
        cost = q[np.newaxis] - q[:, np.newaxis] - total**2 / size
    cost[np.tril_indices(bins + 1)] = np.inf
    least = np.full(bins + 1, np.inf)
    least[0] = 0.0
    begins = np.zeros((count, bins + 1), np.int64)
    places = np.arange(bins + 1)
    for run in range(count):
        together = least[:, np.newaxis] + cost
        begins[run] = together.argmin(0)
        least = together[begins[run], places]
    ends, end = [], bins
    for run in reversed(range(count)):
        ends.append((begins[run, end], end))
        end = int(begins[run, end])
    return np.array([(s[end] - s[begin]) / (w[end] - w[begin]) for begin, end in reversed(ends)])


class Shared(NamedTuple):
    """codes of the weight's shape, uint8; book float, its first entry 0 where ``zero``."""

    codes: np.ndarray
    book: np.ndarray
    zero: bool


def shared(array: np.ndarray, entries: int, pinned: np.ndarray | None = None) -> Shared:
    """A weight by codes; pinned: elements that are an entry of zero."""
    gone = np.zeros(array.shape, bool) if pinned is None else pinned
    zero, free = bool(gone.any()), array[~gone]
    centres = k_means(free, entries - zero) if free.size else np.zeros(0)
    book = np.concatenate([np.zeros(1), centres]) if zero else centres
    codes = np.searchsorted((centres[1:] + centres[:-1]) / 2, array) + zero if len(centres) else np.zeros(array.shape)
    if zero:
        codes = np.where(gone, 0, codes)
    return Shared(codes.astype(np.uint8), book.astype(array.dtype), zero)


def share(network: Network, entries: int) -> dict[str, str]:
    """Put codebooks in the place of a network's weights where the file becomes smaller. Gives what happened to each."""
    packed = entries <= SMALL and network.reach(PACKED)
    said: dict[str, str] = {}
    nodes = []
    for weight in network.weights():
        array = network.constants[weight.name]
        bits = 4 if packed else 8
        size = -(-array.size * bits // 8) + entries * array.itemsize + NODES
        if size >= array.nbytes:
            said[weight.name] = f"left: {array.nbytes} bytes would become about {size}"
            continue
        made = shared(array, entries, network.pinned.get(weight.name))
        book, codes, places = weight.name + BOOK, weight.name + CODES, weight.name + ".places"
        network.put({book: made.book})
        network.proto.graph.initializer.append(codes_of(codes, made.codes, packed))
        network.constants[codes] = made.codes
        nodes.append(helper.make_node("Cast", [codes], [places], f"{weight.name}.cast", to=TensorProto.INT32))
        nodes.append(helper.make_node("Gather", [book, places], [weight.name], f"{weight.name}.gather"))
        network.pinned.pop(weight.name, None)
        if made.zero:
            network.pinned[book] = np.arange(len(made.book)) == 0
        said[weight.name] = f"{len(made.book)} entries, codes of {bits} bits"
    gone = {name for name, what in said.items() if not what.startswith("left")}
    network.drop(gone)
    network.set_nodes([*nodes, *network.nodes])
    return said


def codes_of(name: str, codes: np.ndarray, packed: bool) -> TensorProto:
    """Codes as a constant: bytes, or where ``packed`` two in a byte, the first in the lower half."""
    if not packed:
        return numpy_helper.from_array(codes, name)
    flat = codes.reshape(-1)
    pairs = np.pad(flat, (0, flat.size % 2)).reshape(-1, 2)
    return helper.make_tensor(
        name, TensorProto.UINT4, codes.shape, (pairs[:, 0] | pairs[:, 1] << 4).tobytes(), raw=True
    )
