"""Calls of a plan: arrays that its kernel takes as they are go straight to it, all others are brought or refused."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

import quatrefoil as qf
from quatrefoil import ops
from quatrefoil.cpu._arrays import PlannedRun
from quatrefoil.dispatch import CallPlan
from quatrefoil.errors import OperatorError, QuatrefoilError

RNG = np.random.default_rng(11)
Arrays = tuple[np.ndarray, ...]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def conv() -> tuple[CallPlan, Arrays]:
    x = normal(2, 3, 8, 9)
    return qf.plan(qf.conv2d, x, normal(4, 3, 3, 3), normal(4), padding=1), (x,)


def conv_with_residual() -> tuple[CallPlan, Arrays]:
    x, residual = normal(2, 3, 8, 9), normal(2, 4, 8, 9)
    return qf.plan(qf.conv2d, x, normal(4, 3, 3, 3), normal(4), padding=1, residual=residual), (x, residual)


def pool_with_indices() -> tuple[CallPlan, Arrays]:
    x = normal(2, 3, 8, 9)
    return qf.plan(qf.max_pool2d, x, 2, return_indices=True), (x,)


def lstm() -> tuple[CallPlan, Arrays]:
    x, h, c = normal(5, 2, 6), normal(1, 2, 7), normal(1, 2, 7)
    return qf.plan(qf.lstm, x, normal(1, 28, 6), normal(1, 28, 7), initial_h=h, initial_c=c), (x, h, c)


def batch_first_gru() -> tuple[CallPlan, Arrays]:
    x, h = normal(2, 5, 6), normal(2, 1, 7)
    return qf.plan(qf.gru, x, normal(1, 21, 6), normal(1, 21, 7), initial_h=h, layout=1), (x, h)


PLANS = (conv, conv_with_residual, pool_with_indices, lstm, batch_first_gru)
Made = tuple[CallPlan, Arrays]


@pytest.fixture(params=PLANS, ids=lambda make: make.__name__)
def made(request: pytest.FixtureRequest) -> Made:
    return request.param()


def as_tuple(result: np.ndarray | tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    return result if isinstance(result, tuple) else (result,)


def went_straight(plan: CallPlan, inputs: Arrays) -> bool:
    """Whether the kernel took the inputs as they are."""
    assert plan._direct is not None
    return plan._direct(inputs) is not None


def expect_equal(result: np.ndarray | tuple[np.ndarray, ...], want: np.ndarray | tuple[np.ndarray, ...]) -> None:
    for got, expected in zip(as_tuple(result), as_tuple(want), strict=True):
        np.testing.assert_array_equal(got, expected)


def apart(array: np.ndarray) -> np.ndarray:
    """The same values, every second element of a larger array."""
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def read_only(array: np.ndarray) -> np.ndarray:
    frozen = array.copy()
    frozen.flags.writeable = False
    return frozen


def unaligned(array: np.ndarray) -> np.ndarray:
    shifted = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    return shifted


class Subclass(np.ndarray):
    """An array of another type: what its elements mean is for NumPy to say."""


def test_both_ways_give_the_same(made: Made) -> None:
    """The way in full and the straight one."""
    plan, inputs = made
    assert went_straight(plan, inputs)
    expect_equal(plan(*inputs), plan._checked(inputs))


@pytest.mark.parametrize(
    ("change", "straight"),
    [
        (read_only, True),
        (np.asfortranarray, False),
        (apart, False),
        (unaligned, False),
        (lambda array: array.astype(">f4"), False),
        (lambda array: array.view(Subclass), False),
    ],
    ids=["read_only", "fortran", "apart", "unaligned", "big_endian", "subclass"],
)
def test_other_arrays_give_the_same(made: Made, change: Callable[[np.ndarray], np.ndarray], straight: bool) -> None:
    plan, inputs = made
    want = plan(*inputs)
    for position in range(len(inputs)):
        changed = tuple(change(array) if i == position else array for i, array in enumerate(inputs))
        assert went_straight(plan, changed) == straight
        expect_equal(plan(*changed), want)


def test_wrong_dtypes_and_shapes_are_refused(made: Made) -> None:
    plan, inputs = made
    for position, array in enumerate(inputs):
        for wrong in (
            array.astype(np.float64),
            array.view(np.int32),
            array[:1] if len(array) > 1 else np.repeat(array, 2, 0),
            array[..., :-1].copy(),
            array[None],
            array.reshape(-1),
        ):
            changed = tuple(wrong if i == position else each for i, each in enumerate(inputs))
            assert not went_straight(plan, changed)
            with pytest.raises(OperatorError, match=r"this plan was made for .*; make another plan"):
                plan(*changed)


def test_wrong_counts_are_refused(made: Made) -> None:
    plan, inputs = made
    for wrong in (inputs[:-1], (*inputs, inputs[0]), ()):
        assert not went_straight(plan, wrong)
        with pytest.raises(OperatorError, match=r"the number of inputs .* this plan takes x"):
            plan(*wrong)


def test_what_is_no_array_is_refused(made: Made) -> None:
    plan, inputs = made
    for wrong in (None, 1.0, inputs[0].tolist()):
        with pytest.raises(QuatrefoilError, match="is no array"):
            plan(wrong, *inputs[1:])
    with pytest.raises(QuatrefoilError, match="fill it first"):
        plan(np.ma.masked_array(inputs[0]), *inputs[1:])


def test_outputs_are_new(made: Made) -> None:
    """What one call gave, a later one does not change."""
    plan, inputs = made
    first = as_tuple(plan(*inputs))
    kept = [array.copy() for array in first]
    second = as_tuple(plan(*(-array for array in inputs)))
    assert any((array != before).any() for array, before in zip(second, kept))
    for array, before in zip(first, kept):
        np.testing.assert_array_equal(array, before)


def test_several_threads_at_once(made: Made) -> None:
    plan, inputs = made
    given = [tuple(array * (1 + i) for array in inputs) for i in range(4)]
    want = [plan(*each) for each in given]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(300):
            if any((got != expected).any() for got, expected in zip(as_tuple(plan(*given[i])), as_tuple(want[i]))):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_lengths_are_checked_at_every_call() -> None:
    x, lengths = normal(4, 2, 3), np.array([4, 2], np.int32)
    plan = qf.plan(qf.rnn, x, normal(1, 5, 3), normal(1, 5, 5), sequence_lens=lengths)
    plan(x, lengths)
    with pytest.raises(OperatorError, match="sequence_lens"):
        plan(x, np.array([4, 5], np.int32))


def test_float16_and_integers_go_straight_too() -> None:
    x, w = normal(1, 3, 8, 8).astype(np.float16), normal(4, 3, 3, 3).astype(np.float16)
    plan = qf.plan(qf.conv2d, x, w)
    assert went_straight(plan, (x,))
    assert plan(x).dtype == np.float16
    whole, weights = RNG.integers(0, 255, (1, 3, 8, 8), np.uint8), RNG.integers(-9, 9, (4, 3, 3, 3), np.int8)
    plan = qf.plan(qf.conv_integer, whole, weights)
    assert went_straight(plan, (whole,))
    expect_equal(plan(whole), qf.conv_integer(whole, weights))


def test_torch_tensors_come_back_as_tensors(made: Made) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: its tensors cannot be tried")
    plan, inputs = made
    want = plan(*inputs)
    got = plan(*(torch.from_numpy(array) for array in inputs))
    assert all(isinstance(tensor, torch.Tensor) for tensor in as_tuple(got))
    expect_equal(tuple(tensor.numpy() for tensor in as_tuple(got)), want)


class Foreign:
    """The least that an array of another library has: a type, DLPack, and the one operation that torch's indices take."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.dtype, self.shape = array, array.dtype, array.shape

    def __dlpack__(self, **options: object) -> object:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __mod__(self, size: int) -> Foreign:
        return Foreign(self.array % size)


def test_arrays_of_another_library_come_back_as_theirs(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(from_dlpack=lambda array: Foreign(np.from_dlpack(array)))
    monkeypatch.setitem(sys.modules, "foreign", library)
    monkeypatch.setattr(Foreign, "__module__", "foreign.arrays")
    plan, inputs = made
    want = plan(*inputs)
    got = plan(*(Foreign(array) for array in inputs))
    assert all(isinstance(array, Foreign) for array in as_tuple(got))
    expect_equal(tuple(array.array for array in as_tuple(got)), want)


def large() -> tuple[CallPlan, np.ndarray]:
    x = normal(1, 2, 400, 500)
    return qf.plan(qf.max_pool2d, x, 1), x


def test_memory_of_large_outputs_is_used_again() -> None:
    call, x = large()
    first = call(x)
    address = first.ctypes.data
    assert first.flags.owndata
    del first
    again = call(x)
    assert again.ctypes.data == address
    other = call(x)  # while the other one lives
    assert other.ctypes.data != address
    np.testing.assert_array_equal(again, x)
    np.testing.assert_array_equal(other, x)


def test_large_outputs_are_arrays_like_any_other() -> None:
    call, x = large()
    y = call(x)
    y.resize((1, 3, 400, 500), refcheck=False)
    np.testing.assert_array_equal(y[:, :2], x)
    assert not y[:, 2].any()
    y.resize((1, 1, 1, 5), refcheck=False)
    np.testing.assert_array_equal(y.reshape(-1), x.reshape(-1)[:5])
    assert np.zeros(x.shape).nbytes  # NumPy's own memory again


def test_large_outputs_of_many_threads() -> None:
    call, x = large()
    wrong: list[int] = []

    def work(seed: int) -> None:
        mine = x + np.float32(seed)
        for _ in range(50):
            if not np.array_equal(call(mine), mine):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("op", ops.SPECS)
def test_calls_of_a_plan_take_every_input_of_an_operator(op: str) -> None:
    case = max(ops.SPECS[op].cases(), key=lambda case: sum(tensor is not None for tensor in case.inputs))
    given = [(i, tensor.numpy_dtype, tensor.shape) for i, tensor in enumerate(case.inputs) if tensor is not None]
    assert PlannedRun(lambda inputs: (), len(case.inputs), given) is not None


@pytest.mark.parametrize("make", [conv, pool_with_indices, lstm, batch_first_gru])
def test_results_that_somebody_holds_stay_as_they_are(make: Callable[[], tuple[CallPlan, Arrays]]) -> None:
    """Memory of small results is used again once nobody has them, which nobody may notice."""
    plan, (x, *rest) = make()

    def called(factor: float) -> Arrays:
        result = plan(x * np.float32(factor), *rest)
        return result if isinstance(result, tuple) else (result,)

    factors = [1.0, -2.0, 0.5, 3.0, -1.5]
    held = [called(factor) for factor in factors]  # the arrays themselves
    views = [tuple(array[...] for array in called(factor)) for factor in factors]
    buffers = [tuple(memoryview(array) for array in called(factor)) for factor in factors]
    for factor, arrays, seen, exported in zip(factors, held, views, buffers):
        fresh = called(factor)
        for want, array, view, buffer in zip(fresh, arrays, seen, exported):
            np.testing.assert_array_equal(array, want)
            np.testing.assert_array_equal(view, want)
            np.testing.assert_array_equal(np.asarray(buffer), want)


def test_results_that_were_changed_are_not_used_again() -> None:
    plan, (x,) = conv()
    want = plan(x).copy()

    def spoil_shape(y: np.ndarray) -> None:
        y.shape = (y.size,)

    def spoil_flags(y: np.ndarray) -> None:
        y.flags.writeable = False

    def spoil_size(y: np.ndarray) -> None:
        y.resize(3, refcheck=False)

    for spoil in (spoil_shape, spoil_flags, spoil_size):
        for _ in range(3):
            spoil(plan(x))
            result = plan(x)
            assert result.shape == want.shape and result.flags.writeable and result.flags.owndata
            np.testing.assert_array_equal(result, want)
            del result
    seen = weakref.ref(plan(x))
    alive = [plan(x) for _ in range(4)]
    assert all(array is not seen() for array in alive)
    assert len({array.ctypes.data for array in alive}) == len(alive)
