"""Random numbers that are a pure function of a seed, a stream and a position: the same bits on every kind of silicon.

The generator is Philox4x32-10 (J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy
as 1, 2, 3", SC 2011): ten rounds turn a counter of four 32-bit words, under a key of two, into four random words. Word
``position`` of a stream is word ``position % 4`` of the block whose counter is (position // 4, stream), under the seed as
key, so that any piece of a stream can be made anywhere and in any order. ``include/quatrefoil/random.h`` is the same for
C, C++, CUDA C++ and OpenCL C.

Every number follows from its words by integer arithmetic and exact conversions: uniforms are multiples of 2^-24,
Bernoulli compares integers, normals are Box and Muller's (1958) in fixed point. So floats, too, are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quatrefoil.errors import OperatorError

_ROUNDS = 10
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_STEPS = (0x9E3779B9, 0xBB67AE85)
_PIECE = 1 << 13
"""Blocks made at a time, so that what a round reads and writes stays in the second-level cache."""

# Polynomials with 30 fraction bits, the lowest power first: ln(1 + x), and sin(x pi / 2) / x in x^2
_LOG1P = (
    1,
    1073741577,
    -536860845,
    357751363,
    -267061634,
    207787834,
    -156057253,
    101743012,
    -50520772,
    16165559,
    -2427725,
)
_SINE = (1686629713, -693598666, 85569282, -5026892, 172072, -3685)
_LN2 = 744261118

Shape = int | Sequence[int]


def philox(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10: counters uint32 (..., 4) under a key of two 32-bit words, to uint32 (..., 4)."""
    words = np.moveaxis(np.asarray(counters, np.uint32).astype(np.uint64), -1, 0)
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    first, second, third, fourth = words
    for number in range(_ROUNDS):
        even, odd = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        keys = [np.uint64((part + number * step) & 0xFFFFFFFF) for part, step in zip(key, _STEPS)]
        first, second = (odd >> high) ^ second ^ keys[0], odd & low
        third, fourth = (even >> high) ^ fourth ^ keys[1], even & low
    return np.stack([first, second, third, fourth], -1).astype(np.uint32)


def words(seed: int, stream: int, position: int, count: int) -> np.ndarray:
    """``count`` words of a stream from ``position`` on, uint32 (count). Raises OperatorError for numbers out of range."""
    for name, value, bits in (("seed", seed, 64), ("stream", stream, 64), ("position", position, 66)):
        if not 0 <= value < 1 << bits:
            raise OperatorError("random", name, value, f"it has to lie in 0 to 2^{bits} - 1")
    if position + count > 1 << 66:
        raise OperatorError("random", "position", position, f"{count} words from there leave the stream's 2^66")
    first, last = position // 4, -(-(position + count) // 4)
    made = np.empty((last - first, 4), np.uint32)
    key = (seed & 0xFFFFFFFF, seed >> 32)
    for begin in range(0, last - first, _PIECE):
        piece = made[begin : begin + _PIECE]
        blocks = np.uint64(first + begin) + np.arange(len(piece), dtype=np.uint64)
        counters = np.empty((len(piece), 4), np.uint32)
        counters[:, 0], counters[:, 1] = blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32)
        counters[:, 2:] = stream & 0xFFFFFFFF, stream >> 32
        piece[...] = philox(counters, key)
    skipped = position - 4 * first
    return made.reshape(-1)[skipped : skipped + count]


def uniforms_of(words: np.ndarray) -> np.ndarray:
    """A float32 from 0 to below 1 of each word: its upper 24 bits times 2^-24."""
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def bernoulli_of(words: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """True with each word's probability, float32, in steps of 2^-24 rounded up."""
    thresholds = np.ceil(np.clip(probability, 0, 1) * np.float32(2**24)).astype(np.uint32)
    return (words >> np.uint32(8)) < thresholds


def integers_of(words: np.ndarray, count: int) -> np.ndarray:
    """An int64 from 0 to below count (to 2^32) of each word, each with its probability to within 2^-32."""
    return ((words.astype(np.uint64) * np.uint64(count)) >> np.uint64(32)).astype(np.int64)


def normals_of(words: np.ndarray) -> np.ndarray:
    """A float32 of the standard normal distribution for each of an even number of words, two from every two."""
    first, second = words[0::2].astype(np.int64), words[1::2].astype(np.int64)
    odd = 2 * first + 1
    exponent = np.frexp(odd.astype(np.float64))[1].astype(np.int64) - 1
    fraction = (odd << (32 - exponent)) & 0xFFFFFFFF
    minus_log = np.maximum((33 - exponent) * _LN2 - _polynomial(_LOG1P, fraction >> 1), 0)
    size = _root(minus_log << 27)
    quarter, x = second >> 30, 2 * (second & 0x3FFFFFFF) + 1
    sine, cosine = _sine(x), _sine((1 << 31) - x)
    swap = (quarter & 1).astype(bool)
    made = np.empty((len(size), 2), np.int64)
    made[:, 0] = np.where((quarter == 1) | (quarter == 2), -1, 1) * ((size * np.where(swap, sine, cosine)) >> 30)
    made[:, 1] = np.where(quarter >= 2, -1, 1) * ((size * np.where(swap, cosine, sine)) >> 30)
    return made.astype(np.float32).reshape(-1) * np.float32(2**-28)


def _polynomial(coefficients: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = coefficient + ((total * x) >> 31)
    return total


def _sine(x: np.ndarray) -> np.ndarray:
    return (_polynomial(_SINE, (x * x) >> 31) * x) >> 31


def _root(square: np.ndarray) -> np.ndarray:
    """The whole part of a square root: float64's, mended where its 53 bits are too few."""
    root = np.sqrt(square.astype(np.float64)).astype(np.int64)
    root -= root * root > square
    return root + ((root + 1) * (root + 1) <= square)


class Generator:
    """A stream of random numbers; every draw takes words from where the last one ended.

        rng = qf.random.Generator(seed=1)
        h = rng.bernoulli(probability)

    seed, stream: 64 bits each; streams of one seed are independent. ``position`` counts the words that are taken; it
    may be kept and given again, and the numbers go on as if nothing had been.
    """

    def __init__(self, seed: int, stream: int = 0, position: int = 0) -> None:
        words(seed, stream, position, 0)
        self.seed, self.stream, self.position = seed, stream, position

    def words(self, shape: Shape) -> np.ndarray:
        """Random words, uint32."""
        extents = (shape,) if isinstance(shape, int) else tuple(shape)
        count = int(np.prod(extents, dtype=np.int64))
        if min(extents, default=0) < 0:
            raise OperatorError("random", "shape", list(extents), "no extent may be negative")
        made = words(self.seed, self.stream, self.position, count)
        self.position += count
        return made.reshape(extents)

    def uniform(self, shape: Shape) -> np.ndarray:
        """float32 from 0 to below 1, multiples of 2^-24."""
        return uniforms_of(self.words(shape))

    def bernoulli(self, probability: np.ndarray) -> np.ndarray:
        """float32 of the probabilities' shape: 1 with each probability, else 0. Raises OperatorError for NaN and for
        probabilities outside 0 to 1."""
        given = np.asarray(probability, np.float32)
        if not bool(np.all((given >= 0) & (given <= 1))):
            raise OperatorError("random", "a probability", given[~((given >= 0) & (given <= 1))][0], "give 0 to 1")
        return bernoulli_of(self.words(given.shape), given).astype(np.float32)

    def integers(self, low: int, high: int, shape: Shape) -> np.ndarray:
        """int64 from low to below high, at most 2^32 of them."""
        if not 0 < high - low <= 1 << 32:
            raise OperatorError("random", "the range", f"{low} to {high}", "it has to hold 1 to 2^32 integers")
        return low + integers_of(self.words(shape), high - low)

    def normal(self, shape: Shape) -> np.ndarray:
        """float32 of the standard normal distribution, magnitudes to 6.76; takes words in pairs."""
        extents = (shape,) if isinstance(shape, int) else tuple(shape)
        count = int(np.prod(extents, dtype=np.int64))
        return normals_of(self.words(count + count % 2))[:count].reshape(extents)

    def permutation(self, count: int) -> np.ndarray:
        """0 to count - 1 in random order, int64: sorted by 64 random bits each."""
        pairs = self.words((count, 2)).astype(np.uint64)
        return np.argsort((pairs[:, 0] << np.uint64(32)) | pairs[:, 1], kind="stable")
