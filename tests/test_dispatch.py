"""Selecting, planning, explaining: what is explained is what happens, and nothing happens silently."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest

import quatrefoil as qf
from quatrefoil import autotune, backends, dispatch, ops
from quatrefoil.errors import BackendUnavailable, NoKernelError, OperatorError, QuatrefoilError
from quatrefoil.ops import rnn
from quatrefoil.problem import Problem, Tensor
from quatrefoil.registry import Availability, Kernel, Reject

F32 = np.float32


def conv_problem(channels: int = 3) -> Problem:
    tensors = (Tensor("float32", (1, channels, 6, 6)), Tensor("float32", (4, channels, 3, 3)))
    return ops.canonical("conv", tensors, {})


@dataclass(eq=False)
class FakeBackend:
    """A backend whose kernels only say who ran."""

    name: str = "fake"
    simulated: bool = False
    timing_note: str = ""
    ready: bool = True
    calls: list[str] = field(default_factory=list)
    delays: dict[str, int] = field(default_factory=dict)

    def probe(self) -> Availability:
        return Availability(
            self.ready, "a fake" if self.ready else "no fake board is plugged in", "" if self.ready else "plug it"
        )

    def device(self) -> str:
        return "fake device"

    def kernels(self):
        def prepare(kernel_id):
            def make(problem, parameters):
                def run(inputs):
                    self.calls.append(kernel_id)
                    for _ in range(self.delays.get(kernel_id, 0)):
                        np.ones(1000).sum()
                    return tuple(np.zeros(t.shape, t.numpy_dtype) for t in problem.outputs)

                return run

            return make

        def narrow(problem):
            return None if problem.input(0).shape[1] < 4 else Reject("takes fewer than 4 channels alone")

        return (
            Kernel("conv_narrow_nchw_f32_fake", "conv", narrow, prepare("narrow"), summary="few channels"),
            Kernel(
                "conv_wide_nchw_f32_fake", "conv", lambda p: Reject("takes 64 channels and more alone"), prepare("wide")
            ),
            Kernel("conv_any_nchw_f32_fake", "conv", lambda p: None, prepare("any"), summary="anything"),
        )

    def owns(self, array):
        return isinstance(array, np.ndarray)

    def put(self, array):
        return array

    def get(self, array):
        return array


@pytest.fixture
def fake(monkeypatch, tmp_path):
    backend = FakeBackend()
    real = backends.get
    monkeypatch.setattr(backends, "get", lambda name: backend if name == "fake" else real(name))
    monkeypatch.setenv("QUATREFOIL_CACHE", str(tmp_path))
    return backend


def test_first_that_accepts_is_chosen_and_all_are_listed(fake) -> None:
    selection = dispatch.select(conv_problem(), "fake")
    assert selection.chosen.id == "conv_narrow_nchw_f32_fake"
    text = str(selection)
    for kernel in fake.kernels():
        assert kernel.id in text
    assert "takes 64 channels and more alone" in text


def test_what_is_explained_is_what_runs(fake) -> None:
    for channels in (3, 8):
        problem = conv_problem(channels)
        chosen = dispatch.select(problem, "fake").chosen
        plan = dispatch.plan_problem(problem, {}, "fake")
        assert plan.kernel is chosen or plan.kernel.id == chosen.id
        plan.run([None, None])
    assert fake.calls == ["narrow", "any"]


def test_no_kernel_lists_every_reason(fake, monkeypatch) -> None:
    kernels = fake.kernels()[:2]
    monkeypatch.setattr(fake, "kernels", lambda: kernels)
    with pytest.raises(NoKernelError) as error:
        dispatch.plan_problem(conv_problem(8), {}, "fake")
    assert "takes fewer than 4 channels alone" in str(error.value)
    assert "takes 64 channels and more alone" in str(error.value)


def test_missing_hardware_is_an_error_with_a_remedy(fake) -> None:
    fake.ready = False
    x, w = np.zeros((1, 3, 6, 6), F32), np.zeros((4, 3, 3, 3), F32)
    with pytest.raises(BackendUnavailable, match="no fake board is plugged in; to add it: plug it"):
        qf.conv2d(x, w, backend="fake")
    assert "NOT AVAILABLE" in str(qf.explain(qf.conv2d, x, w, backend="fake", file=None))
    assert fake.calls == []


def test_tuning_measures_and_remembers(fake) -> None:
    fake.delays = {"narrow": 40}
    plan = dispatch.plan_problem(conv_problem(), {}, "fake", tune=True)
    assert plan.kernel.id == "conv_any_nchw_f32_fake"
    autotune._loaded.clear()  # as a new process would find it
    again = dispatch.select(conv_problem(), "fake")
    assert again.chosen.id == "conv_any_nchw_f32_fake"
    assert again.reason == "fastest when measured"
    assert "us measured" in str(again)


@pytest.mark.parametrize("op", ["rnn", "fixed_rnn"])
def test_tuning_takes_whole_sequences(op: str) -> None:
    """Of no length there would be nothing to measure."""
    names = ("x_format", "w_format", "r_format", "accumulator", "y_format", "table_format")
    fixed = op == "fixed_rnn"
    dtype = "int16" if fixed else "float32"
    x, w, r = (Tensor(dtype, shape) for shape in [(7, 3, 5), (1, 4, 5), (1, 4, 4)])
    problem = ops.canonical(
        op, [x, w, r, None, Tensor("int32", (3,))], dict.fromkeys(names, "fixed<12,4>") if fixed else {}
    )
    lengths = dispatch._made_up(backends.get("cpu"), problem, {})[rnn.LENGTHS]
    np.testing.assert_array_equal(lengths, [7, 7, 7])


def test_damaged_tuning_file_is_set_aside_with_a_warning(fake, tmp_path) -> None:
    (tmp_path / autotune.FILE).write_text("{ not json")
    autotune._loaded.clear()
    with pytest.warns(UserWarning, match="measured anew"):
        assert dispatch.select(conv_problem(), "fake").chosen.id == "conv_narrow_nchw_f32_fake"


def test_forced_kernel(fake, monkeypatch) -> None:
    monkeypatch.setattr(backends, "NAMES", (*backends.NAMES, "fake"))
    monkeypatch.setenv("QUATREFOIL_KERNEL", "conv_any_nchw_f32_fake")
    assert dispatch.select(conv_problem(), "fake").chosen.id == "conv_any_nchw_f32_fake"
    monkeypatch.setenv("QUATREFOIL_KERNEL", "conv_wide_nchw_f32_fake")
    with pytest.raises(NoKernelError, match="takes 64 channels and more alone"):
        dispatch.plan_problem(conv_problem(), {}, "fake")
    monkeypatch.setenv("QUATREFOIL_KERNEL", "conv_misspelt")
    with pytest.raises(QuatrefoilError, match="names no kernel"):
        dispatch.select(conv_problem(), "fake")


def test_backend_by_argument_context_and_home(fake) -> None:
    x, w = np.zeros((1, 3, 6, 6), F32), np.zeros((4, 3, 3, 3), F32)
    with qf.backend("fake"):
        qf.conv2d(x, w)
        assert qf.explain(qf.conv2d, x, w, backend="cpu", file=None).backend == "cpu"
    assert fake.calls == ["narrow"]
    assert qf.explain(qf.conv2d, x, w, file=None).backend == "cpu"
    with pytest.raises(QuatrefoilError, match="there is no backend 'tpu'"):
        qf.conv2d(x, w, backend="tpu")


def test_explain_prints(fake) -> None:
    stream = io.StringIO()
    x, w = np.zeros((1, 3, 6, 6), F32), np.zeros((4, 3, 3, 3), F32)
    selection = qf.explain(qf.conv2d, x, w, backend="fake", file=stream)
    assert stream.getvalue().strip() == str(selection)
    assert fake.calls == []


def test_plan_checks_its_inputs() -> None:
    x, w = np.zeros((1, 3, 6, 6), F32), np.zeros((4, 3, 3, 3), F32)
    plan = qf.plan(qf.conv2d, Tensor("float32", (1, 3, 6, 6)), w)
    assert plan(x).shape == (1, 4, 4, 4)
    with pytest.raises(OperatorError, match=r"this plan was made for float32\[1x3x6x6\]"):
        plan(np.zeros((1, 3, 7, 6), F32))
    with pytest.raises(OperatorError, match="number of inputs"):
        plan(x, x)
    with pytest.raises(QuatrefoilError, match="only a type"):
        qf.plan(qf.conv2d, x, Tensor("float32", (4, 3, 3, 3)))


@pytest.mark.parametrize("groups", [1, 3])
def test_plan_does_not_follow_a_weight_that_is_changed_later(groups: int) -> None:
    """What a plan computes is fixed when it is made, also by kernels (depthwise) that use weights as they are."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 3, 6, 6), F32), rng.standard_normal((3, 3 // groups, 3, 3), F32)
    plan = qf.plan(qf.conv2d, x, w, groups=groups)
    before = plan(x).copy()
    w *= 2
    np.testing.assert_array_equal(plan(x), before)


def test_registered_kernels_need_no_hardware_to_explain() -> None:
    for name in backends.NAMES:
        selection = dispatch.select(conv_problem(), name)
        assert selection.candidates, name
        assert str(selection)


def test_thread_count_from_the_environment() -> None:
    code = "import quatrefoil as qf; print(qf.num_threads())"
    good = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "QUATREFOIL_NUM_THREADS": "3"}, capture_output=True, text=True
    )
    assert good.stdout.strip() == "3"
    bad = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "QUATREFOIL_NUM_THREADS": "many"},
        capture_output=True,
        text=True,
    )
    assert "write a whole number" in bad.stderr


@pytest.mark.parametrize("op", ["lstm", "fixed_gru", "gru_gradient"])
def test_made_up_lengths_are_whole(op: str) -> None:
    """A layer that is tuned with lengths of zero would be timed doing nothing."""
    cases = [case for case in ops.SPECS[op].cases() if len(case.inputs) > 4 and case.inputs[4] is not None]
    problem = ops.canonical(op, cases[0].inputs, cases[0].attributes, cases[0].outputs)
    lengths = dispatch._made_up(backends.get("cpu"), problem, {})[4]
    assert lengths is not None and (lengths == problem.input(0).shape[0]).all()


@pytest.mark.parametrize("backend", ["cpu", "fpga", "asic"])
def test_channels_last_runs_everywhere(backend: str) -> None:
    """On the CPU as they lie, elsewhere through views; explain says which."""
    rng = np.random.default_rng(2)
    x, w = rng.integers(0, 256, (2, 5, 6, 20)).astype(np.uint8), rng.integers(-9, 9, (7, 20, 3, 3)).astype(np.int8)
    if not dispatch.select(
        ops.canonical("conv_integer", [Tensor.of(x), Tensor.of(w)], {"channels_last": 1}), backend
    ).runnable:
        pytest.skip(f"{backend} cannot run here")
    planes = qf.conv_integer(x.transpose(0, 3, 1, 2), w, padding=1, backend="cpu")
    last = qf.conv_integer(x, w, padding=1, channels_last=True, backend=backend)
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), planes)
    plan = qf.plan(qf.conv_integer, x, w, padding=1, channels_last=True, backend=backend)
    np.testing.assert_array_equal(plan(x), last)
    assert ("as they lie" in str(plan.selection)) == (backend == "cpu")


def test_channels_last_is_zero_or_one() -> None:
    x, w = np.ones((1, 4, 4, 3), np.uint8), np.ones((2, 3, 3, 3), np.int8)
    with pytest.raises(OperatorError, match=r"channels_last is 2; it has to be 0, .* or 1"):
        qf.conv_integer(x, w, channels_last=2)
    with pytest.raises(OperatorError, match=r"the rank of x is 2 .* \(N, H, W, C\)"):
        qf.conv_integer(x[0, 0], w, channels_last=True)
