"""activation.h and ops/activations.py are one table: same codes, same values."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from quatrefoil.errors import OperatorError
from quatrefoil.ops.activations import FUNCTIONS, SLOPES, Activation, activation

INCLUDE = Path(__file__).parent.parent / "kernels" / "include"
POINTS = np.array(
    [0.0, -0.0, 1e-30, -1e-30, 1e-6, 0.3, -0.3, 1.0, -1.0, 2.9, -2.9, 3.1, -3.1, 9.0, -9.0, 40.0, -40.0, 100.0, -100.0,
     np.inf, -np.inf, np.nan],
    np.float32,
)  # fmt: skip


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("activation")
    source = folder / "activation.c"
    source.write_text(
        '#include <math.h>\n#include "quatrefoil/activation.h"\n'
        "float evaluate(int c, float a, float b, float x) { return qf_activation(c, a, b, x); }\n"
    )
    library = folder / "activation.so"
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", f"-I{INCLUDE}"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(library), "-lm"], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.evaluate.restype = ctypes.c_float
    loaded.evaluate.argtypes = [ctypes.c_int, ctypes.c_float, ctypes.c_float, ctypes.c_float]
    return loaded


@pytest.mark.parametrize("name", FUNCTIONS)
def test_native_values_meet_the_table(native: ctypes.CDLL, name: str) -> None:
    parameters = {"Clip": (-0.5, 2.0), "Affine": (2.0, -1.0), "ScaledTanh": (1.5, 0.5), "HardSigmoid": (0.3, 0.4)}
    function = activation(name, *parameters.get(name, ()))
    with np.errstate(invalid="ignore", over="ignore"):
        want = np.asarray(function(POINTS.astype(np.float64)))
    got = np.array([native.evaluate(function.code, function.alpha, function.beta, float(x)) for x in POINTS])
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-30)


def test_codes_are_the_headers() -> None:
    text = (INCLUDE / "quatrefoil" / "activation.h").read_text()
    codes = sorted(int(code) for code in re.findall(r"QF_\w+ = (\d+)", text))
    assert codes == sorted(function.code for function in FUNCTIONS.values())


def test_text_reads_back() -> None:
    for name, function in FUNCTIONS.items():
        original = activation(name, *(0.25 + i for i in range(len(function.defaults))))
        assert Activation.parse(original.text) == original


def test_unknown_or_malformed_is_refused() -> None:
    for text in ("Nope", "Relu(1.0)", "LeakyRelu(a)", "", "Clip(nan,1)"):
        with pytest.raises(OperatorError, match="; "):
            Activation.parse(text)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_slopes_meet_central_differences(name: str) -> None:
    function = activation(name, *(-1.5, 1.25)[: len(FUNCTIONS[name].defaults)] if name == "Clip" else ())
    x = np.array([-7.3, -2.9, -1.2, -0.4, -1e-3, 1e-3, 0.3, 0.9, 1.7, 2.9, 8.1])
    step = 1e-6
    expected = (function(x + step) - function(x - step)) / (2 * step)
    np.testing.assert_allclose(function.slope(x), expected, rtol=1e-8, atol=1e-8)
    assert function.slope(x.astype(np.float32)).dtype == np.float32
    assert set(SLOPES) == set(FUNCTIONS)
