"""SCALE-Sim's files: its configurations and topologies read, its three reports written with its figures.

The figures are those of SCALE-Sim 3.0.0 (https://github.com/scalesim-project/SCALE-Sim), without stepping
cycles. A layer is a product of M output places, depth K and N filters; a dataflow lays two of them over the
array's R rows and C columns and lets the third pass in time:

    ws   rows K, columns N, time M        weights stand, inputs stream, P = 2R
    is   rows K, columns M, time N        inputs stand, weights stream, P = 2R
    os   rows M, columns N, time K        sums stand, both stream,      P = R

One fold of the array takes P + C + T - 2 cycles; folds follow one another, rows innermost, without overlap. What the
reports call total cycles is one less than their sum.

A memory for reads is two halves of 50 sets each. An address that lies in none of the sets is fetched, once, into the
next free place; when a half is full it is dropped as a whole, and the half that is being filled takes its place. So
reads of DRAM are the sum of the different addresses in each stretch of requests, where a stretch ends when it has
asked for as many different addresses as a half holds. The memory for writes drains half of itself whenever more than
half is full, in lines as wide as the array. With ``InterfaceBandwidth: CALC`` reads never stall, and all figures
follow: in closed form, but for an input whose windows overlap and whose words fill a half, which takes its addresses
fold by fold. With USER they hang on the order of single addresses in a prefetcher; those figures are None here, and empty
cells in the reports.
"""

from __future__ import annotations

import configparser
import csv
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from itertools import accumulate
from operator import add, mul
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from quatrefoil.errors import QuatrefoilError

DATAFLOWS = ("ws", "os", "is")

SETS_IN_A_HALF = 50
FIRST_FETCH_PER_CYCLE = 10
"""Words a cycle at which a half is filled before the first request."""

CHUNK = 1 << 18
"""Addresses that are looked at at once."""


class ScaleSimError(QuatrefoilError, ValueError):
    """A configuration or a topology that cannot be read or run; the message names the file and the place in it."""


@dataclass(frozen=True, slots=True)
class Config:
    """An array and its memories, as SCALE-Sim's .cfg says.

    ifmap_kib, filter_kib, ofmap_kib   memories of one-byte words
    calculated                         InterfaceBandwidth is CALC: DRAM gives what is needed, and reads never stall
    """

    run_name: str
    rows: int
    columns: int
    dataflow: str
    ifmap_kib: int
    filter_kib: int
    ofmap_kib: int
    calculated: bool = True

    def __post_init__(self) -> None:
        if self.dataflow not in DATAFLOWS:
            raise ScaleSimError(f"the dataflow is {self.dataflow!r}; give one of {', '.join(DATAFLOWS)}")
        for name in ("rows", "columns", "ifmap_kib", "filter_kib", "ofmap_kib"):
            if getattr(self, name) < 1:
                raise ScaleSimError(f"{name} is {getattr(self, name)}; it has to be 1 or more")


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution without padding over an image height x width x channels; a product [M, K] x [K, N] is one of an
    image M x K with a window of 1 x K."""

    name: str
    height: int
    width: int
    window_height: int
    window_width: int
    channels: int
    filters: int
    stride_height: int
    stride_width: int

    @classmethod
    def product(cls, name: str, m: int, n: int, k: int) -> Layer:
        return cls(name, m, k, 1, k, 1, n, 1, 1)

    @property
    def out_height(self) -> int:
        """Rounded up: the last window may hang over the edge."""
        return -(-(self.height - self.window_height) // self.stride_height) + 1

    @property
    def out_width(self) -> int:
        return -(-(self.width - self.window_width) // self.stride_width) + 1

    @property
    def m(self) -> int:
        return self.out_height * self.out_width

    @property
    def k(self) -> int:
        return self.window_height * self.window_width * self.channels

    @property
    def n(self) -> int:
        return self.filters

    @property
    def macs(self) -> int:
        return self.m * self.k * self.n

    @property
    def words(self) -> int:
        return self.height * self.width * self.channels

    @property
    def hanging(self) -> bool:
        """Some windows reach over the image's edge."""
        return (self.out_height - 1) * self.stride_height + self.window_height > self.height or (
            self.out_width - 1
        ) * self.stride_width + self.window_width > self.width

    @property
    def addresses(self) -> int:
        """Different words of the image that some window touches."""
        rows = _touched(self.height, self.out_height, self.window_height, self.stride_height)
        columns = _touched(self.width, self.out_width, self.window_width, self.stride_width)
        return rows * columns * self.channels


def _touched(size: int, outputs: int, window: int, stride: int) -> int:
    if stride <= window:
        return min(size, (outputs - 1) * stride + window)
    return (outputs - 1) * window + max(0, min(window, size - (outputs - 1) * stride))


@dataclass(frozen=True, slots=True)
class Memory:
    """What the reports say of one operand. Cycles count from the layer's beginning; those of DRAM may lie before it.

    accesses          of the memory on the chip
    start, stop       cycles of its first and last access; None where stalls are not known
    dram_accesses     words between it and DRAM; None where the bandwidth is the user's
    dram_start, dram_stop   likewise
    """

    accesses: int
    start: int | None
    stop: int | None
    dram_accesses: int | None
    dram_start: int | None
    dram_stop: int | None


@dataclass(frozen=True, slots=True)
class Result:
    """A layer's figures. ``compute_cycles`` are those without stalls, one less than demanded, as SCALE-Sim counts;
    ``total_cycles`` and ``stall_cycles`` are None where the bandwidth is the user's."""

    layer: Layer
    config: Config
    compute_cycles: int
    total_cycles: int | None
    stall_cycles: int | None
    mapping_efficiency: float
    compute_utilisation: float
    ifmap: Memory
    filter: Memory
    ofmap: Memory

    @property
    def cycles_with_prefetch(self) -> int | None:
        stop, starts = self.ofmap.dram_stop, (self.ifmap.dram_start, self.filter.dram_start)
        return None if stop is None else stop - min(start for start in starts if start is not None)

    @property
    def overall_utilisation(self) -> float | None:
        if self.total_cycles is None:
            return None
        return (self.layer.macs * 100) / (self.total_cycles * (self.config.rows * self.config.columns))


# Reading ------------------------------------------------------------------------------------------------------------


def read_config(path: Path) -> Config:
    """Raises ScaleSimError, which names the section and the key."""
    parser = configparser.ConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"), source=str(path))
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise ScaleSimError(f"the configuration {path} cannot be read: {error}") from None

    def said(section: str, key: str, default: str | None = None) -> str:
        if parser.has_option(section, key):
            return parser.get(section, key, raw=True).strip()
        if default is None:
            raise ScaleSimError(f"{path}: [{section}] has no {key}")
        return default

    def number(key: str) -> int:
        text = said("architecture_presets", key)
        try:
            value = int(text)
        except ValueError:
            raise ScaleSimError(f"{path}: {key} is {text!r}; give a whole number") from None
        if value < 1:
            raise ScaleSimError(f"{path}: {key} is {value}; it has to be 1 or more")
        return value

    if said("sparsity", "SparsitySupport", "false").lower() == "true":
        raise ScaleSimError(f"{path}: SparsitySupport is true; sparse layers are not modelled: set it to false")
    mode = said("run_presets", "InterfaceBandwidth").upper()
    if mode not in ("CALC", "USER"):
        raise ScaleSimError(f"{path}: InterfaceBandwidth is {mode!r}; give CALC or USER")
    dataflow = said("architecture_presets", "Dataflow").lower()
    if dataflow not in DATAFLOWS:
        raise ScaleSimError(f"{path}: Dataflow is {dataflow!r}; give one of {', '.join(DATAFLOWS)}")
    name = said("general", "run_name")
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise ScaleSimError(f"{path}: run_name is {name!r}; give a name that can be a folder's")
    return Config(
        name,
        number("ArrayHeight"),
        number("ArrayWidth"),
        dataflow,
        number("IfmapSramSzkB"),
        number("FilterSramSzkB"),
        number("OfmapSramSzkB"),
        mode == "CALC",
    )


_CONV = ("IFMAP Height", "IFMAP Width", "Filter Height", "Filter Width", "Channels", "Num Filter", "Strides")
_GEMM = ("M", "N", "K")


def read_topology(path: Path) -> list[Layer]:
    """The layers of a convolutional topology, or of one of products where the header says M, N, K.

    A layer with DP in its name is depthwise: one layer for each channel, as SCALE-Sim has it. Raises ScaleSimError,
    which names line and column.
    """
    rows = _rows(path)
    line, header = rows[0]
    products = _says_products(header)
    wanted = _GEMM if products else _CONV
    if len(header) > 1 and header[1].lstrip("+-").isdigit():
        raise ScaleSimError(f"{path}, line {line}: a header comes first (Layer name, {', '.join(wanted)})")
    if products and [_letters(cell) for cell in header[1:4]] != ["m", "n", "k"]:
        raise ScaleSimError(f"{path}, line {line}: the header has {', '.join(header[1:4])}; the order is M, N, K")
    if len(rows) == 1:
        raise ScaleSimError(f"the topology {path} has a header and no layer")
    layers: list[Layer] = []
    for line, row in rows[1:]:
        layers += _layers(row, header, wanted, f"{path}, line {line}")
    return layers


def has_products(path: Path) -> bool:
    """Whether a topology is of products: SCALE-Sim has to be told."""
    return _says_products(_rows(path)[0][1])


def _says_products(header: Sequence[str]) -> bool:
    return sorted(_letters(cell) for cell in header[1:4]) == ["k", "m", "n"]


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows that are not blank, with their lines' numbers; one at least."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = [(reader.line_num, [cell.strip() for cell in row]) for reader in [csv.reader(text.splitlines())]
                for row in reader]  # fmt: skip
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScaleSimError(f"the topology {path} cannot be read: {error}") from None
    rows = [(line, row) for line, row in rows if any(row)]
    if not rows:
        raise ScaleSimError(f"the topology {path} is empty; give a header and a line for each layer")
    return rows


def _letters(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalpha())


def _layers(row: Sequence[str], header: Sequence[str], wanted: Sequence[str], place: str) -> list[Layer]:
    def number(column: int, name: str) -> int:
        text = row[column] if column < len(row) else ""
        where = f"{place}, column {column + 1} ({name})"
        if not text:
            raise ScaleSimError(f"{where}: there is nothing; give a whole number")
        try:
            value = int(text)
        except ValueError:
            raise ScaleSimError(f"{where}: {text!r} is no whole number") from None
        if value < 1:
            raise ScaleSimError(f"{where}: {value} is too small; it has to be 1 or more")
        return value

    name = row[0]
    values = [number(column, what) for column, what in enumerate(wanted, 1)]
    strides = values[-1]
    for column in range(len(wanted) + 1, len(row)):
        title = header[column] if column < len(header) else ""
        if ":" in row[column]:
            kept, _, of = row[column].partition(":")
            if kept.strip() != of.strip():
                raise ScaleSimError(f"{place}, column {column + 1}: sparsity {row[column]} is not modelled; give 1:1")
        elif "stride" in title.lower() and row[column] and len(wanted) == len(_CONV):
            strides = number(column, title)
    if len(wanted) == len(_GEMM):
        return [Layer.product(name, *values)]
    height, width, window_height, window_width, channels, filters, stride = values
    for size, window, column in ((height, window_height, 3), (width, window_width, 4)):
        if window > size:
            what = wanted[column - 1]
            raise ScaleSimError(f"{place}, column {column + 1} ({what}): {window} is larger than the image's {size}")
    if "DP" in name:
        return [
            Layer(f"{name}Channel_{channel}", height, width, window_height, window_width, 1, filters, stride, strides)
            for channel in range(channels)
        ]
    return [Layer(name, height, width, window_height, window_width, channels, filters, stride, strides)]


# Folds and the requests in them ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Folds:
    """How a layer lies on the array. Fold f = column_fold x row_folds + row_fold begins in cycle f x cycles."""

    rows: int
    columns: int
    time: int
    config: Config

    @property
    def standing(self) -> bool:
        """An operand is laid into the array before the other streams."""
        return self.config.dataflow != "os"

    @property
    def cycles(self) -> int:
        return (2 if self.standing else 1) * self.config.rows + self.config.columns + self.time - 2

    @property
    def row_parts(self) -> list[int]:
        """The rows that each fold uses."""
        return _parts(self.rows, self.config.rows)

    @property
    def column_parts(self) -> list[int]:
        return _parts(self.columns, self.config.columns)

    @property
    def count(self) -> int:
        return -(-self.rows // self.config.rows) * -(-self.columns // self.config.columns)


def _parts(size: int, most: int) -> list[int]:
    full, rest = divmod(size, most)
    return [most] * full + [rest] * (rest > 0)


@dataclass(frozen=True)
class _Requests:
    """The requests for one operand: in each fold a rectangle of ``deep`` by ``wide`` words, from cycle ``base`` of the
    fold on, row after row; where it is ``skewed``, column c comes c cycles later."""

    cycles: int
    deep: Sequence[int]
    wide: Sequence[int]
    base: Sequence[int]
    skewed: bool

    @cached_property
    def ends(self) -> list[int]:
        """Requests up to the end of each fold."""
        return list(accumulate(map(mul, self.deep, self.wide)))

    @property
    def total(self) -> int:
        return self.ends[-1]

    @property
    def first(self) -> int:
        return self.base[0]

    @property
    def last(self) -> int:
        fold = len(self.deep) - 1
        return self._start(fold) + self.deep[fold] - 1 + (self.wide[fold] - 1) * self.skewed

    def cycle(self, number: int) -> int:
        """The cycle of a request, counted from 0."""
        fold = bisect_right(self.ends, number)
        inside = number - (self.ends[fold - 1] if fold else 0)
        if self.skewed:
            deep, wide = self.deep[fold], self.wide[fold]
            return self._start(fold) + bisect_right(range(deep + wide), inside, key=lambda d: _below(d, deep, wide)) - 1
        return self._start(fold) + inside // self.wide[fold]

    def _start(self, fold: int) -> int:
        return fold * self.cycles + self.base[fold]


def _below(diagonal: int, deep: int, wide: int) -> int:
    """Elements of a rectangle on the anti-diagonals before this one."""
    short, long = min(deep, wide), max(deep, wide)
    if diagonal <= short:
        return diagonal * (diagonal + 1) // 2
    if diagonal <= long:
        return short * (short + 1) // 2 + (diagonal - short) * short
    left = max(0, short + long - 1 - diagonal)
    return short * long - left * (left + 1) // 2


def _requests(folds: _Folds, by: str) -> _Requests:
    """``by``: "rows" for what streams in at the rows, "columns" for what comes in or goes out at the columns, "laid"
    for what stands in the array, "sums" for sums that go out of it."""
    high, wide = folds.config.rows, folds.column_parts
    rows = folds.row_parts * len(wide)
    columns = [part for part in wide for _ in folds.row_parts]
    time, count = [folds.time] * len(rows), len(rows)
    if by == "rows":
        return _Requests(folds.cycles, time, rows, [high if folds.standing else 0] * count, skewed=True)
    if by == "columns":
        return _Requests(folds.cycles, time, columns, [2 * high - 1 if folds.standing else 0] * count, skewed=True)
    unused = [high - part for part in rows]
    if by == "laid":
        return _Requests(folds.cycles, rows, columns, unused, skewed=False)
    return _Requests(folds.cycles, rows, columns, [folds.time - 1 + part for part in unused], skewed=True)


# A layer ------------------------------------------------------------------------------------------------------------


def simulate(layer: Layer, config: Config) -> Result:
    """The figures of a layer. Raises ScaleSimError where a memory is too small for the array's width."""
    m, k, n = layer.m, layer.k, layer.n
    rows, columns, time = {"ws": (k, n, m), "is": (k, m, n), "os": (m, n, k)}[config.dataflow]
    folds = _Folds(rows, columns, time, config)
    kinds = {"ws": ("rows", "laid", "columns"), "is": ("laid", "rows", "columns"), "os": ("rows", "columns", "sums")}
    ifmap, filters, ofmap = (_requests(folds, by) for by in kinds[config.dataflow])
    compute = folds.count * folds.cycles - 1
    elements = config.rows * config.columns
    # SCALE-Sim takes the share over a longer time than a fold where an operand stands: C - 1 cycles are counted twice
    shared = elements * (folds.cycles + (config.columns - 1) * folds.standing)
    used = [row * column for column in folds.column_parts for row in folds.row_parts]
    # one after the other, as sum() does up to Python 3.11: with another rounding the last digit differs
    mapping = reduce(add, [part / elements for part in used], 0.0) / len(used) * 100
    utilisation = reduce(add, [part * time / shared for part in used], 0.0) / len(used) * 100
    # each fold of sums adds the array's rows and columns to the count of writes once more
    writes = ofmap.total + (0 if folds.standing else folds.count * (config.rows + config.columns))
    if not config.calculated:
        unknown = [Memory(count, None, None, None, None, None) for count in (ifmap.total, filters.total, writes)]
        return Result(layer, config, compute, None, None, mapping, utilisation, *unknown)
    return Result(
        layer,
        config,
        compute,
        compute,
        0,
        mapping,
        utilisation,
        _ifmap(layer, folds, ifmap),
        _filter(layer, folds, filters),
        _ofmap(ofmap, writes, config),
    )


def _half(kib: int, different: int, config: Config, key: str) -> tuple[int, int]:
    """The words of a set, and those of a half of a memory for reads, of which so many different ones are asked for."""
    words = kib * 1024 // 100
    half, widest = words * SETS_IN_A_HALF, max(config.rows, config.columns)
    if half < widest and half <= different:
        raise ScaleSimError(
            f"{key} {kib} is too small for {widest} requests in a cycle: SCALE-Sim stops where half of it fills up twice in one"
        )
    return words, half


def _fetched(requests: _Requests, last: int, reads: int, words: int, filled: int | None) -> Memory:
    """A memory for reads. ``last``: the cycle of the last request that is none for padding; ``filled``: the cycle in
    which a half was full for the last time, or None where none ever was. Reads are counted in the cycle of their answer,
    one later than their request."""
    if filled is None:
        start = -(-(-(-reads // words) * words) // FIRST_FETCH_PER_CYCLE)
        return Memory(requests.total, requests.first + 1, last + 1, reads, -start, -1)
    start = requests.first - -(-SETS_IN_A_HALF * words // FIRST_FETCH_PER_CYCLE)
    return Memory(requests.total, requests.first + 1, last + 1, reads, start, filled + 1)


def _filter(layer: Layer, folds: _Folds, requests: _Requests) -> Memory:
    number = layer.k * layer.n
    words, half = _half(folds.config.filter_kib, number, folds.config, "FilterSramSzkB")
    if number < half:
        return _fetched(requests, requests.last, number, words, None)
    if folds.config.dataflow == "os":
        reads, filled = _blocks(folds, half)
    else:  # all are different until the first comes again, which is then long gone
        reads, filled = requests.total, requests.total // half * half - 1
    return _fetched(requests, requests.last, reads, words, requests.cycle(filled))


def _blocks(folds: _Folds, half: int) -> tuple[int, int]:
    """Reads, and the number of the request that filled a half last, where each column fold asks for its own block of
    words again in each of its row folds."""
    reads = held = done = 0
    filled = -1
    repeats = len(folds.row_parts)
    for width in folds.column_parts:
        block = folds.time * width
        if block >= half:  # what comes again is always gone
            reads += block * repeats
            if held + block * repeats >= half:
                filled = done + (held + block * repeats) // half * half - held - 1
            held = (held + block * repeats) % half
        elif held + block < half:
            reads += block
            held += block
        else:
            first = half - held
            filled = done + first - 1
            held = min(block, repeats * block - first)  # once more, all around the block
            reads += first + held
        done += block * repeats
    return reads, filled


def _ifmap(layer: Layer, folds: _Folds, requests: _Requests) -> Memory:
    last, number = _last_request(layer, folds, requests), layer.addresses
    words, half = _half(folds.config.ifmap_kib, number, folds.config, "IfmapSramSzkB")
    if number < half:
        return _fetched(requests, last, number, words, None)
    if number == layer.m * layer.k:  # no word in two windows
        return _fetched(requests, last, requests.total, words, requests.cycle(requests.total // half * half - 1))
    reads, filled = _stretches(layer, folds, half)
    return _fetched(requests, last, reads, words, filled)


def _last_request(layer: Layer, folds: _Folds, requests: _Requests) -> int:
    """The last cycle with a request for a word inside the image: a window that hangs over its edge asks for less."""
    if not layer.hanging:
        return requests.last
    for number in reversed(range(folds.count)):
        row_fold = number % len(folds.row_parts)
        lanes = row_fold * folds.config.rows + np.arange(folds.row_parts[row_fold])
        if folds.config.dataflow == "is":
            lasts = np.concatenate([cycle + np.flatnonzero((block < layer.words).any(axis=1))
                                    for cycle, block in _stream(layer, folds, number)])  # fmt: skip
        elif folds.config.dataflow == "ws":
            down, along, _ = _taps(layer, lanes)
            top = np.minimum((layer.height - 1 - down) // layer.stride_height, layer.out_height - 1)
            left = np.minimum((layer.width - 1 - along) // layer.stride_width, layer.out_width - 1)
            lasts = number * folds.cycles + folds.config.rows + top * layer.out_width + left + lanes - lanes[0]
        else:
            top, left = _corners(layer, lanes)
            down = np.minimum(layer.height - 1 - top, layer.window_height - 1)
            along = np.minimum(layer.width - 1 - left, layer.window_width - 1)
            moments = (down * layer.window_width + along + 1) * layer.channels - 1
            lasts = (number * folds.cycles + moments + lanes - lanes[0])[(down >= 0) & (along >= 0)]
        if lasts.size:
            return int(lasts.max())
    raise AssertionError("the first window lies inside the image")


def _stretches(layer: Layer, folds: _Folds, half: int) -> tuple[int, int]:
    """Reads of DRAM, and the cycle in which a half was full for the last time, address by address."""
    stretch = np.zeros(layer.words + 1, np.int32)  # the one in which each word was asked for last
    place = np.zeros(layer.words + 1, np.int32)
    reads = held = 0
    current, filled = 1, -1
    stretch[layer.words] = current  # what is no request is never new
    look = min(max(2 * half, CHUNK // 64), CHUNK)
    for number in range(folds.count):
        for cycle, block in _stream(layer, folds, number):
            addresses, begin = block.ravel(), 0
            while begin < addresses.size:
                some = addresses[begin : begin + look]
                new = np.flatnonzero(stretch[some] != current)
                asked = some[new]
                order = np.arange(asked.size, dtype=np.int32)
                place[asked[::-1]] = order[::-1]  # the first of equal ones is written last
                first = new[place[asked] == order]
                if held + first.size < half:
                    stretch[asked] = current
                    held += first.size
                    reads += first.size
                    begin += some.size
                    continue
                end = begin + int(first[half - held - 1])
                reads += half - held
                filled = cycle + end // block.shape[1]
                held, current, begin = 0, current + 1, end + 1
                stretch[layer.words] = current
    return reads, filled


def _corners(layer: Layer, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Top and left of the windows at these output places."""
    row, column = np.divmod(places, layer.out_width)
    return row * layer.stride_height, column * layer.stride_width


def _taps(layer: Layer, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and channel inside the window."""
    down, rest = np.divmod(numbers, layer.window_width * layer.channels)
    return down, *np.divmod(rest, layer.channels)


def _stream(layer: Layer, folds: _Folds, number: int) -> Iterator[tuple[int, np.ndarray]]:
    """The image's requests in a fold, in blocks: a cycle, and addresses (cycles from there on, array's lanes), in the order
    of their requests; layer.words stands where there is none."""
    config = folds.config
    column_fold, row_fold = divmod(number, len(folds.row_parts))
    lanes = row_fold * config.rows + np.arange(folds.row_parts[row_fold])
    start = number * folds.cycles + (config.rows if folds.standing else 0)
    if config.dataflow == "is":
        columns = column_fold * config.columns + np.arange(folds.column_parts[column_fold])
        yield start - lanes.size, _addresses(layer, columns, lanes[::-1, None])
        return
    # lane c asks in cycle d for the element d - c of what passes in time: windows over those elements, read backwards
    nothing = np.full(lanes.size - 1, -1)
    passing = sliding_window_view(np.concatenate((nothing, np.arange(folds.time), nothing)), lanes.size)[:, ::-1]
    step = max(1, CHUNK // lanes.size)
    for begin in range(0, len(passing), step):
        times = passing[begin : begin + step]
        found = _addresses(layer, times, lanes) if config.dataflow == "ws" else _addresses(layer, lanes, times)
        if begin < lanes.size or begin + step > folds.time:
            found = np.where(times < 0, layer.words, found)
        yield start + begin, found


def _addresses(layer: Layer, places: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """The addresses of taps at output places, broadcast; layer.words outside the image."""
    origins, offsets, (top, left, down, along) = _image(layer)
    found: np.ndarray = origins[places] + offsets[taps]
    if layer.hanging:
        inside = (top[places] + down[taps] < layer.height) & (left[places] + along[taps] < layer.width)
        return np.where(inside, found, layer.words)
    return found


@lru_cache(maxsize=1)
def _image(layer: Layer) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """The first address of each output place, what each tap adds to it, and where both lie: top, left, down, along."""
    top, left = _corners(layer, np.arange(layer.m))
    down, along, channel = _taps(layer, np.arange(layer.k))
    origins = (top * layer.width + left) * layer.channels
    offsets = (down * layer.width + along) * layer.channels + channel
    return origins, offsets, (top, left, down, along)


def _ofmap(requests: _Requests, writes: int, config: Config) -> Memory:
    half, line = config.ofmap_kib * 512, config.columns
    end = len(requests.deep) * requests.cycles - 1
    lines = -(-half // line)
    waiting: deque[tuple[int, int]] = deque()  # lines, and the words in each
    done = drained = full = 0
    start, stop = None, 0

    def gather(words: int) -> None:
        """A drain takes lines, so that one that is not full goes along with those that are."""
        if words >= line:
            waiting.append((words // line, line))
        if words % line:
            waiting.append((1, words % line))

    def drain() -> tuple[int, int]:
        """Lines and words of a drain; SCALE-Sim counts every line but the last as full."""
        taken, words = 0, line
        while waiting and taken < lines:
            count, words = waiting.popleft()
            if taken + count > lines:
                waiting.appendleft((count - (lines - taken), words))
                count = lines - taken
            taken += count
        return taken, taken * line - (line - words)

    # A drain of n lines leaves room for (n - 1) x C + 1 words or more, and takes n - 1 cycles of C words at most: the next
    # one never has to wait, and writes never stall.
    while (new := half + 1 - full) <= requests.total - done:
        gather(new)
        taken, words = drain()
        cycle = requests.cycle(done + new - 1)
        start = cycle if start is None else start
        stop = max(stop, cycle + taken - 1)
        full += new - words
        drained += words
        done += new
    gather(requests.total - done)
    cycle = end
    while waiting:
        taken, words = drain()
        start = cycle if start is None else start
        stop = max(stop, cycle + taken - 1)
        cycle += taken
        drained += words
    return Memory(writes, requests.first, requests.last, drained, start, stop)


# Reports ------------------------------------------------------------------------------------------------------------

COMPUTE = ("Total Cycles (incl. prefetch)", "Total Cycles", "Stall Cycles", "Overall Util %", "Mapping Efficiency %",
           "Compute Util %")  # fmt: skip
BANDWIDTH = tuple(f"Avg {name} {where} BW" for where in ("SRAM", "DRAM") for name in ("IFMAP", "FILTER", "OFMAP"))
DETAILED = tuple(
    f"{where} {name} {what}"
    for where in ("SRAM", "DRAM")
    for name, access in (("IFMAP", "Reads"), ("Filter", "Reads"), ("OFMAP", "Writes"))
    for what in ("Start Cycle", "Stop Cycle", access)
)


def reports(results: Sequence[Result]) -> dict[str, str]:
    """The text of each report by its file's name."""
    makers = {
        "COMPUTE_REPORT.csv": (COMPUTE, _compute_row),
        "BANDWIDTH_REPORT.csv": (BANDWIDTH, _bandwidth_row),
        "DETAILED_ACCESS_REPORT.csv": (DETAILED, _detailed_row),
    }
    made = {}
    for name, (columns, row) in makers.items():
        lines = [", ".join(("LayerID", *columns)) + ",\n"]
        for number, result in enumerate(results):
            cells = ("" if cell is None else str(cell) for cell in (number, *row(result)))
            lines.append(", ".join(cells) + ",\n")
        made[name] = "".join(lines)
    return made


Cell = int | float | None


def _compute_row(result: Result) -> list[Cell]:
    return [
        result.cycles_with_prefetch,
        result.total_cycles,
        result.stall_cycles,
        result.overall_utilisation,
        result.mapping_efficiency,
        result.compute_utilisation,
    ]


def _bandwidth_row(result: Result) -> list[Cell]:
    memories, cycles = (result.ifmap, result.filter, result.ofmap), result.total_cycles
    on_chip: list[Cell] = [None if cycles is None else memory.accesses / cycles for memory in memories]
    return on_chip + [
        None
        if memory.dram_accesses is None or memory.dram_start is None or memory.dram_stop is None
        else memory.dram_accesses / (memory.dram_stop - memory.dram_start + 1)
        for memory in memories
    ]


def _detailed_row(result: Result) -> list[Cell]:
    """Cycles with a decimal point, as SCALE-Sim writes them; accesses without."""
    memories = (result.ifmap, result.filter, result.ofmap)
    cells: list[Cell] = []
    for memory in memories:
        cells += [_moment(memory.start), _moment(memory.stop), memory.accesses]
    for memory in memories:
        cells += [_moment(memory.dram_start), _moment(memory.dram_stop), memory.dram_accesses]
    return cells


def _moment(cycle: int | None) -> float | None:
    return None if cycle is None else float(cycle)


def write_reports(results: Sequence[Result], folder: Path) -> list[Path]:
    """The three reports into ``folder``, which is made. Raises ScaleSimError where they cannot be written."""
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in reports(results).items():
            path = folder / name
            path.write_text(text, encoding="utf-8")
            paths.append(path)
    except OSError as error:
        raise ScaleSimError(f"the reports cannot be written: {error}") from None
    return paths
