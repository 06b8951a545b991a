"""From where on kernels on compressed weights are faster than dense ones, by instruction set: what was measured, in one place.

The kernels of ``shared_conv.py`` and ``compressed_rnn.py`` refuse what dense kernels do faster, and ``models/sparsity.py``
chooses the form of a model's weights; both by these numbers, which come from ``python -m quatrefoil.bench.sparse_crossover``
and ``python -m quatrefoil.bench.compressed_speed`` (docs/compression.md has their tables).
"""

from __future__ import annotations

from typing import NamedTuple

from quatrefoil.cpu import instruction_set

MIB = 1 << 20

SHORT_BOOK = 16
"""Entries of a codebook up to which two codes share a byte."""


class Share(NamedTuple):
    """Shares of stored weights up to which they are faster: where dense weights stay in a cache, and where they come from
    beyond it."""

    cached: float
    far: float


class Bytes(NamedTuple):
    """Bytes of dense weights from which on codes are faster, for codebooks of up to SHORT_BOOK entries and for longer ones;
    None: never."""

    short: int | None
    long: int | None


class Limits(NamedTuple):
    """cached: bytes of dense weights that stay in a second-level cache.

    Of sparse weights: one_tap, taps: for convolutions whose dense kernel multiplies tap by tap, with something in hand for
    changes of layout. minimal_filters: where it multiplies less, to be divided by how many times less. row: for dense layers
    on one or two rows, whose dense kernel reads each weight for each row. sequence, few_sequences, several_sequences: for
    recurrent layers on one, on fewer than SEVERAL and on more sequences.

    Of codes: coded_rows, coded_sequences: rows of a dense layer and sequences up to which a model takes them by itself;
    coded_row, coded_steps: from which bytes on. coded_planes: places of all images from which on a long codebook costs little
    beside a plane's products. over_sparse: share of weights other than zero above which codes of a short codebook are faster
    than stored values.
    """

    cached: int
    one_tap: float
    taps: float
    minimal_filters: float
    row: Share
    sequence: Share
    few_sequences: Share
    several_sequences: Share
    coded_rows: int
    coded_sequences: int
    coded_row: Bytes
    coded_steps: Bytes
    coded_planes: int
    over_sparse: float


FEW_ROWS = 2
"""Of a dense layer, up to which sums over an output's stored values are faster than vectors of rows."""

SEVERAL = 8
"""Sequences that fill vectors, so that none is looked up."""

AVX2 = Limits(
    cached=MIB,
    one_tap=0.4, taps=0.4, minimal_filters=0.4, row=Share(0.15, 0.15),
    sequence=Share(0.15, 0.2), few_sequences=Share(0.15, 0.2), several_sequences=Share(0.35, 0.35),
    coded_rows=2, coded_sequences=7, coded_row=Bytes(4 * MIB, None), coded_steps=Bytes(4 * MIB, None), coded_planes=48,
    over_sparse=1.0,
)  # fmt: skip
"""On a Zen 4 with AVX2; for the sets before it, too."""

AVX512 = Limits(
    cached=2 * MIB,
    one_tap=0.3, taps=0.25, minimal_filters=0.4, row=Share(0.15, 0.4),
    sequence=Share(0.1, 0.35), few_sequences=Share(0.1, 0.2), several_sequences=Share(0.2, 0.35),
    coded_rows=8, coded_sequences=32, coded_row=Bytes(MIB, 32 * MIB), coded_steps=Bytes(2 * MIB, None), coded_planes=128,
    over_sparse=0.1,
)  # fmt: skip
"""On a Xeon with AVX-512."""

BYTES_PERMUTED = AVX512._replace(coded_row=Bytes(MIB, 2 * MIB), coded_steps=Bytes(2 * MIB, 8 * MIB))
"""On the same one, where long codebooks are decoded by permutations of bytes."""

BY_SET = {"v4": AVX512, "v4_vnni": AVX512, "v4_amx": BYTES_PERMUTED}


def limits() -> Limits:
    """Of the instruction set in use."""
    return BY_SET.get(instruction_set.name(), AVX2)


def most_stored(sequences: int, recurrent_bytes: int) -> float:
    """The share of stored weights up to which a recurrent layer is faster by them. recurrent_bytes: of the dense recurrent
    weights, which every step reads."""
    known = limits()
    of = (
        known.sequence if sequences == 1
        else known.few_sequences if sequences < SEVERAL
        else known.several_sequences
    )  # fmt: skip
    return of.cached if recurrent_bytes < known.cached else of.far


def coded_from(entries: int, bytes_: Bytes) -> int | None:
    """The bytes of dense weights from which on codes into so many entries are faster; None where they never are."""
    return bytes_.short if entries <= SHORT_BOOK else bytes_.long
