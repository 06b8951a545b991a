"""Random numbers: Random123's known answers, the same bits from NumPy, C++, OpenCL and CUDA, and their distribution."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import quatrefoil as qf
from quatrefoil import random
from quatrefoil.errors import OperatorError

# tests/kat_vectors of Random123, philox4x32 10: the counter, the key, the answer
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
SEED, STREAM, FIRST, COUNT = 0x299F31D0A4093822, 0x0370734413198A2E, 0xFFFFFFFE, 4096
"""The first block's number is such that the counter's lowest word runs over."""

KINDS = ("word", "uniform", "bernoulli", "integer", "normal")
BODY = """
  qf_random_block made = qf_random_words(SEED, STREAM, FIRST + i);
  for (int k = 0; k < 4; k++) {
    qf_random_word word = made.word[k];
    words[4 * i + k] = word;
    uniforms[4 * i + k] = qf_random_uniform(word);
    bernoullis[4 * i + k] = qf_random_bernoulli(word, probabilities[4 * i + k]);
    integers[4 * i + k] = qf_random_integer(word, 1000003);
    normals[4 * i + k] = qf_random_normal(made.word[k & 2], made.word[k | 1], k & 1);
  }
"""
ARGUMENTS = "{0}const float* probabilities, {0}qf_random_word* words, {0}float* uniforms, {0}int* bernoullis, "
ARGUMENTS += "{0}qf_random_word* integers, {0}float* normals"
CONSTANTS = f"#define SEED {SEED}u{{0}}\n#define STREAM {STREAM}u{{0}}\n#define FIRST {FIRST}u{{0}}\n"


def probabilities() -> np.ndarray:
    made = np.random.default_rng(0).random(COUNT, np.float32)
    made[:6] = 0, 1, 2**-30, 1 - 2**-24, 2**-24, 0.5
    return made


def expected() -> list[np.ndarray]:
    words = random.words(SEED, STREAM, 4 * FIRST, COUNT)
    return [
        words,
        random.uniforms_of(words),
        random.bernoulli_of(words, probabilities()).astype(np.int32),
        random.integers_of(words, 1000003).astype(np.uint32),
        random.normals_of(words),
    ]


def assert_same_bits(found: list[np.ndarray]) -> None:
    for kind, wanted, given in zip(KINDS, expected(), found):
        np.testing.assert_array_equal(given.view(np.uint32), wanted.view(np.uint32), err_msg=kind)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    c, k, a = ([int(word, 16) for word in text.split()] for text in (counter, key, answer))
    assert random.philox(np.array([c]), (k[0], k[1])).tolist() == [a]
    made = random.words(k[0] | k[1] << 32, c[2] | c[3] << 32, 4 * (c[0] | c[1] << 32), 4)
    assert made.tolist() == a


def made_by_processor(compiler: str, language: str, folder: Path) -> list[np.ndarray]:
    source, library = folder / f"made.{language}", folder / f"made_{language}.so"
    linkage = 'extern "C" ' if language == "cpp" else ""
    source.write_text(
        f'#include "quatrefoil/random.h"\n{CONSTANTS.format("ll")}'
        f"{linkage}void made({ARGUMENTS.format('')}) {{ for (int i = 0; i < {COUNT // 4}; i++) {{ {BODY} }} }}\n"
    )
    include = Path(qf.__file__).parent / "include"
    # the flags of the fastest kernels: contraction must not matter
    flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-Wall", "-Werror", f"-I{include}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
    results = [np.zeros(COUNT, array.dtype) for array in expected()]
    given = [probabilities(), *results]
    ctypes.CDLL(str(library)).made(*(array.ctypes.data_as(ctypes.c_void_p) for array in given))
    return results


@pytest.mark.parametrize(("compiler", "language"), [("g++", "cpp"), ("gcc", "c")])
def test_processors_give_the_same_bits(compiler: str, language: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    assert_same_bits(made_by_processor(compiler, language, tmp_path))


def test_opencl_gives_the_same_bits() -> None:
    from quatrefoil.fpga import opencl
    from quatrefoil.problem import Tensor

    available = opencl.availability()
    if not available.ready:
        pytest.skip(f"no OpenCL device: {available.detail}")
    text = (
        f"{opencl.source('quatrefoil/random.h')}\n{CONSTANTS.format('l')}"
        f"__kernel void made({ARGUMENTS.format('__global ')}) {{ int i = get_global_id(0); {BODY} }}\n"
    )
    program = opencl.runtime().build("made", text, {})
    outputs = [Tensor.of(array) for array in expected()]
    assert_same_bits(list(program([probabilities()], outputs, (COUNT // 4,))))


def test_cuda_gives_the_same_bits(tmp_path: Path) -> None:
    from quatrefoil.gpu.emulation import device, host

    if host.gxx() is None:
        pytest.skip("emulating CUDA needs g++")
    (tmp_path / "made.cu").write_text(
        f'#define QF_FUNCTION __device__ inline\n#include "quatrefoil/random.h"\n{CONSTANTS.format("ll")}'
        f'extern "C" __global__ void made({ARGUMENTS.format("")}) '
        f"{{ int i = blockIdx.x * blockDim.x + threadIdx.x; {BODY} }}\n"
    )
    results = [np.zeros(COUNT, array.dtype) for array in expected()]
    launch = device.EmulatedDevice(sources=tmp_path).load("made.cu", "made", {})
    launch((COUNT // 4 // 64,), (64,), probabilities(), *results)
    assert_same_bits(results)


def test_position_goes_on_where_it_stood() -> None:
    whole = random.Generator(7, 3).words(1001)
    parts = random.Generator(7, 3)
    np.testing.assert_array_equal(np.concatenate([parts.words(n) for n in (1, 2, 500, 0, 498)]), whole)
    np.testing.assert_array_equal(random.Generator(7, 3, 503).words(498), whole[503:])
    assert not np.array_equal(random.Generator(7, 4).words(8), whole[:8])
    assert not np.array_equal(random.Generator(8, 3).words(8), whole[:8])
    # pieces are made in bulk; a long draw equals its parts across their bounds
    long = random.words(1, 2, 3, 100_000)
    np.testing.assert_array_equal(long[50_000:50_100], random.words(1, 2, 50_003, 100))


def test_distributions() -> None:
    """Kolmogorov and Smirnov's distance, below what one sample in 10^5 exceeds; frequencies within 4.5 deviations."""
    count, rng = 1 << 18, random.Generator(11)
    bound = 2.47 / math.sqrt(count)
    steps = (np.arange(count) + 0.5) / count
    uniform = np.sort(rng.uniform(count).astype(np.float64))
    assert np.abs(uniform - steps).max() < bound
    normal = np.sort(rng.normal(count).astype(np.float64))
    cumulative = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in normal])
    assert np.abs(cumulative - steps).max() < bound
    assert abs((normal**4).mean() - 3) < 0.1
    pairs = rng.normal((count // 2, 2))
    assert abs((pairs[:, 0] * pairs[:, 1]).mean()) < 4.5 / math.sqrt(count // 2)
    assert abs(rng.bernoulli(np.full(count, 0.3, np.float32)).mean() - 0.3) < 4.5 * math.sqrt(0.21 / count)
    faces = np.bincount(rng.integers(0, 6, count), minlength=6)
    assert np.abs(faces - count / 6).max() < 4.5 * math.sqrt(count * 5 / 36)
    assert sorted(rng.permutation(1000)) == list(range(1000))


def test_normals_are_what_float64_makes_of_the_same_words() -> None:
    words = random.words(5, 6, 0, 100_000)
    words[:4] = 0, 0, 0xFFFFFFFF, 0xFFFFFFFF
    u, v = (words[0::2] + 0.5) / 2**32, (words[1::2] + 0.5) / 2**32
    size = np.sqrt(-2 * np.log(u))
    wanted = np.stack([size * np.cos(2 * np.pi * v), size * np.sin(2 * np.pi * v)], 1).reshape(-1)
    # near u = 1 the root of a logarithm that is 1e-9 off: half of its digits
    np.testing.assert_allclose(random.normals_of(words), wanted, rtol=0, atol=1e-4)
    ordinary = np.repeat(size > 0.05, 2)
    np.testing.assert_allclose(random.normals_of(words)[ordinary], wanted[ordinary], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: random.Generator(-1), "seed"),
        (lambda: random.Generator(0, 1 << 64), "stream"),
        (lambda: random.Generator(0).bernoulli(np.array([0.5, np.nan], np.float32)), "give 0 to 1"),
        (lambda: random.Generator(0).bernoulli(np.array([1.5], np.float32)), "give 0 to 1"),
        (lambda: random.Generator(0).integers(3, 3, 2), "1 to 2"),
        (lambda: random.Generator(0).uniform((2, -1)), "negative"),
        (lambda: random.Generator(0, 0, (1 << 66) - 4).words(8), "leave the stream"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call: object, says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        call()  # type: ignore[operator]
