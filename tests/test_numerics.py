"""Fixed-point formats: casts against exact fractions, and the C header against the casts."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import quatrefoil
from quatrefoil.errors import OperatorError
from quatrefoil.numerics import OVERFLOWS, ROUNDINGS, TABLE_REACH, Fixed, function_table, table_index

HEADER = Path(quatrefoil.__file__).parent / "include" / "quatrefoil" / "fixed.h"


def rounded(value: Fraction, mode: str) -> int:
    """The definitions, word for word."""
    down, up = math.floor(value), math.ceil(value)
    toward_zero, away = (down, up) if value > 0 else (up, down)
    if mode == "TRN":
        return down
    if mode == "TRN_ZERO":
        return toward_zero
    if value - down != Fraction(1, 2):
        return math.floor(value + Fraction(1, 2))
    return {
        "RND": up,
        "RND_MIN_INF": down,
        "RND_ZERO": toward_zero,
        "RND_INF": away,
        "RND_CONV": down if down % 2 == 0 else up,
    }[mode]


def fitted(value: int, form: Fixed) -> int:
    low = -(1 << (form.width - 1)) if form.signed else 0
    high = (1 << (form.width - form.signed)) - 1
    if form.overflow == "WRAP":
        return (value - low) % (1 << form.width) + low
    if form.overflow == "SAT_SYM" and form.signed:
        low = -high
    if low <= value <= high:
        return value
    return 0 if form.overflow == "SAT_ZERO" else min(max(value, low), high)


def expected(value: int, fraction: int, form: Fixed) -> int:
    return fitted(rounded(Fraction(value) * Fraction(2) ** (form.fraction - fraction), form.rounding), form)


def formats(rng: np.random.Generator, count: int, widest: int) -> list[Fixed]:
    return [
        Fixed(
            int(rng.integers(1, widest + 1)), int(rng.integers(-20, 40)), str(rng.choice(ROUNDINGS)),
            str(rng.choice(OVERFLOWS)), bool(rng.integers(0, 2)),
        )
        for _ in range(count)
    ]  # fmt: skip


def values(rng: np.random.Generator, count: int) -> np.ndarray:
    """Integers of every size up to 2^61, ties and ends among them."""
    found = rng.integers(-(2**61), 2**61, count) >> rng.integers(0, 61, count)
    powers = (1 << rng.integers(0, 61, count // 4)) * rng.choice([-1, 1, 3, -3], count // 4)
    found[: count // 4] = np.clip(powers, -(2**61), 2**61)
    found[:8] = (0, -1, 1, 2**61, -(2**61), 2**40, -(2**40), 3 << 20)
    return found


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("overflow", OVERFLOWS)
def test_every_small_cast(rounding: str, overflow: str) -> None:
    for signed in (True, False):
        form = Fixed(4, 2, rounding, overflow, signed)
        numbers = np.arange(-200, 200)
        for fraction in (0, 1, 2, 3, 4, 5):
            want = [expected(int(value), fraction, form) for value in numbers]
            assert form.cast(numbers, fraction).tolist() == want, (form, fraction)


def test_casts_of_any_size() -> None:
    rng = np.random.default_rng(5)
    for form in formats(rng, 400, 62):
        fraction = int(rng.integers(-20, 90))
        numbers = values(rng, 40)
        want = [expected(int(value), fraction, form) for value in numbers]
        assert form.cast(numbers, fraction).tolist() == want, (form, fraction)


def test_real_numbers_are_cast_like_integers() -> None:
    rng = np.random.default_rng(6)
    for form in formats(rng, 300, 32):
        reals = np.concatenate(
            [rng.standard_normal(20) * 2.0**form.integer, values(rng, 20) * 2.0**-30, [0.5, -0.5, -1.5]]
        )
        want = [fitted(rounded(Fraction(float(v)) * Fraction(2) ** form.fraction, form.rounding), form) for v in reals]
        got = form.quantize(reals)
        assert got.tolist() == want, form
        assert got.dtype == form.dtype
        np.testing.assert_array_equal(form.quantize(form.dequantize(got)), got)


def test_text_reads_back() -> None:
    for text in ("fixed<16,6>", "ufixed<8,0,RND,SAT>", "fixed<12,-3,TRN_ZERO,SAT_SYM>", "fixed<8,12>"):
        assert Fixed.parse(text).text == text
    assert Fixed.parse("ap_fixed< 18 , 8 , AP_RND_CONV, AP_SAT_ZERO>") == Fixed(18, 8, "RND_CONV", "SAT_ZERO")
    for text in ("fixed<16>", "float", "fixed<16,6,SAT>", "fixed<0,0>", "fixed<63,1>", ""):
        with pytest.raises(OperatorError, match="; "):
            Fixed.parse(text)
    with pytest.raises(OperatorError, match="NaN or infinite"):
        Fixed(16, 6).quantize(np.array([1.0, np.nan]))


@pytest.mark.parametrize("function", TABLE_REACH)
def test_tables(function: str) -> None:
    exact = {
        "Sigmoid": lambda x: 1 / (1 + np.exp(-x)), "Tanh": np.tanh, "Softplus": lambda x: np.log1p(np.exp(x)),
        "Softsign": lambda x: x / (1 + np.abs(x)),
    }[function]  # fmt: skip
    reach, form = TABLE_REACH[function], Fixed(18, 8)
    table = function_table(function, 1024, form)
    places = np.arange(1024) * 2 * reach / 1024 - reach
    error = form.dequantize(table) - exact(places)
    assert error.max() < 1e-6
    assert error.min() > -(2.0**-10) - 1e-6  # truncated
    # the index counts whole steps from the middle, toward zero
    for fraction in (0, 3, 10, 20, 40):
        numbers = np.array([0, 1, -1, 5, -5, 1000, -1000, 2**20 - 1, -(2**30), 2**50])
        steps = [int(Fraction(int(v), 2**fraction) * 1024 / (2 * reach)) + 512 for v in numbers]
        assert table_index(numbers, fraction, function, 1024).tolist() == [min(max(s, 0), 1023) for s in steps]


PROGRAM = """
#include "fixed.h"
extern "C" void casts(const long long* v, const int* f, long long* out, int count) {
  for (int i = 0; i < count; i++) {
    qf_format to = {((const long long*)v)[3 * i + 1], v[3 * i + 2], f[5 * i], f[5 * i + 1], f[5 * i + 2], f[5 * i + 3]};
    out[i] = qf_cast(v[3 * i], f[5 * i + 4], to);
  }
}
extern "C" void indices(const long long* v, const int* bits, const int* sizes, int* out, int count) {
  for (int i = 0; i < count; i++) out[i] = qf_table_index(v[i], bits[i], sizes[i]);
}
"""


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ to compile the header with")
    folder = tmp_path_factory.mktemp("fixed")
    (folder / "casts.cpp").write_text(PROGRAM)
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fsanitize=undefined", "-fno-sanitize-recover"]
    subprocess.run([compiler, *flags, f"-I{HEADER.parent}", "casts.cpp", "-o", "casts.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "casts.so"))


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def test_the_header_casts_alike(header: ctypes.CDLL) -> None:
    rng = np.random.default_rng(7)
    numbers, codes, want = [], [], []
    for form in formats(rng, 2000, 62):
        fraction = int(rng.integers(-20, 90))
        for value in values(rng, 40)[::5]:
            numbers.append((int(value), form.low, form.high))
            codes.append((form.width, form.signed, ROUNDINGS.index(form.rounding), OVERFLOWS.index(form.overflow),
                          fraction - form.fraction))  # fmt: skip
            want.append(int(form.cast(value, fraction)))
    v, f = np.array(numbers, np.int64), np.array(codes, np.int32)
    out = np.zeros(len(v), np.int64)
    header.casts(pointer(v), pointer(f), pointer(out), len(v))
    np.testing.assert_array_equal(out, want)


def test_the_header_indexes_alike(header: ctypes.CDLL) -> None:
    rng = np.random.default_rng(8)
    numbers, bits, sizes, want = [], [], [], []
    for value in values(rng, 4000):
        function, size = str(rng.choice(list(TABLE_REACH))), 2 ** int(rng.integers(4, 17))
        fraction = int(rng.integers(-20, 60))
        numbers.append(value)
        bits.append(int(math.log2(2 * TABLE_REACH[function])) + fraction - int(math.log2(size)))
        sizes.append(size)
        want.append(int(table_index(np.array(value), fraction, function, size)))
    v, b, s = np.array(numbers, np.int64), np.array(bits, np.int32), np.array(sizes, np.int32)
    out = np.zeros(len(v), np.int32)
    header.indices(pointer(v), pointer(b), pointer(s), pointer(out), len(v))
    np.testing.assert_array_equal(out, want)


AP_PROGRAM = """
#include "ap_fixed.h"
template <class To, class From> static void cast(const long long* v, long long* out, int count) {
  for (int i = 0; i < count; i++) {
    From from;
    from(From::width - 1, 0) = v[i];
    To to = from;
    ap_int<64> bits = 0;
    bits(To::width - 1, 0) = to(To::width - 1, 0);
    out[i] = bits.to_int64();
  }
}
extern "C" void casts(int which, const long long* v, long long* out, int count) {
  switch (which) {
%s
  }
}
"""


def ap_type(form: Fixed) -> str:
    sign = "" if form.signed else "u"
    return f"ap_{sign}fixed<{form.width}, {form.integer}, AP_{form.rounding}, AP_{form.overflow}>"


def test_casts_are_those_of_ap_fixed(tmp_path: Path) -> None:
    """The types of high-level synthesis themselves, as hls4ml ships them."""
    hls4ml = pytest.importorskip("hls4ml", reason="hls4ml is not installed; it brings the ap_fixed headers")
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ to compile ap_fixed with")
    rng = np.random.default_rng(9)
    pairs = []
    for rounding in ROUNDINGS:
        for overflow in OVERFLOWS:
            for signed in (True, False):
                width, start = (int(n) for n in rng.integers(2, 30, 2))
                source = Fixed(start, int(rng.integers(-3, start + 4)), signed=bool(rng.integers(0, 4)))
                # its headers stop with an assertion where every bit of the source would be dropped
                most = width + source.integer - 1
                integer = min(int(rng.integers(-3, width + 4)), most)
                to = Fixed(width, integer, rounding, overflow, signed)
                pairs.append((source, to))
    lines = [
        f"    case {which}: cast<{ap_type(to)}, {ap_type(source)}>(v, out, count); break;"
        for which, (source, to) in enumerate(pairs)
    ]
    (tmp_path / "casts.cpp").write_text(AP_PROGRAM % "\n".join(lines))
    headers = Path(hls4ml.__file__).parent / "templates" / "vivado" / "ap_types"
    command = [compiler, "-O0", "-w", "-shared", "-fPIC", f"-I{headers}", "casts.cpp", "-o", "casts.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "casts.so"))
    for which, (source, to) in enumerate(pairs):
        numbers = rng.integers(source.low, source.high + 1, 300)
        numbers[:4] = source.low, source.high, 0, source.high // 2
        out = np.zeros_like(numbers)
        library.casts(which, pointer(numbers), pointer(out), len(numbers))
        bits = to.cast(numbers, source.fraction) & ((1 << to.width) - 1)
        np.testing.assert_array_equal(out, bits, err_msg=f"{source} to {to}")
