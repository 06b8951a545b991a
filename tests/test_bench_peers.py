"""Peers: each computes the same task as the oracle, or refuses in a sentence; a crash is a sentence too."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest

from quatrefoil.bench import contenders, peers, tasks, verify
from quatrefoil.bench.networks import NETWORKS, in_float64, without_softmax
from quatrefoil.bench.onnx_node import model_of
from quatrefoil.bench.peers.openvino import unquantised
from quatrefoil.bench.runner import ANOTHER, UNSEEN, Effort, Field
from quatrefoil.bench.worker import Worker
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models import load
from quatrefoil.registry import Availability, Reject

INT8_WEIGHTS = "int8[4x3x3x3],float32[4],int8[4],float32[],uint8[],int32[4]"
PROBLEMS = (
    "conv float32[1x4x8x8],float32[6x4x3x3],float32[6] pads=1x1x1x1 activation=Relu",
    "conv float32[1x6x9x9],float32[6x1x3x3] group=6 activation=Clip(0.0,6.0)",
    "conv float32[1x3x6x6],float32[4x3x1x1],-,float32[1x4x6x6]",
    "conv float32[1x3x9x8],float32[4x3x3x3],float32[4] pads=1x1x1x1 strides=2x2",
    "conv float32[1x4x20],float32[6x4x5],float32[6] pads=4x4 dilations=2",
    "conv float32[1x2x5x6x7],float32[4x2x3x3x3],float32[4] pads=1x1x1x1x1x1",
    "conv float32[1x3x9x8],float32[4x3x3x3],float32[4] pads=0x1x2x1",
    "conv float32[1x8x9x9],float32[8x4x3x3],float32[8] pads=1x1x1x1 group=2",
    "conv_transpose float32[1x4x5x6],float32[4x3x3x3],float32[3] strides=2x2 pads=1x1x1x1 output_padding=1x0",
    "conv_transpose float32[1x4x5x6],float32[4x3x4x4],float32[3] strides=2x2 pads=1x1x1x1",
    "conv_integer uint8[1x3x6x6],uint8[2x3x3x3],uint8[],uint8[]",
    f"qlinear_conv uint8[1x3x6x6],float32[],uint8[],{INT8_WEIGHTS}",
    f"qlinear_conv uint8[1x6x7x3],float32[],uint8[],{INT8_WEIGHTS} pads=1x1x1x1 channels_last=1",
    "max_pool float32[1x3x9x9] kernel_shape=3x3 strides=2x2 ceil_mode=1 with_indices=1",
    "max_pool float32[1x3x9x9] kernel_shape=3x3 strides=2x2 pads=1x1x1x1",
    "max_pool float32[1x3x10x10] kernel_shape=3x3 strides=2x2 ceil_mode=1",
    "max_pool float32[1x3x12] kernel_shape=4 strides=4",
    "max_pool float32[1x3x6x8x8] kernel_shape=2x2x2 strides=2x2x2",
    "average_pool float32[1x3x9x9] kernel_shape=3x3 pads=1x1x1x1 count_include_pad=1",
    "average_pool float32[1x3x9x9] kernel_shape=3x3 pads=1x1x1x1",
    "average_pool float32[1x3x7x7] kernel_shape=7x7",
    "average_pool float32[1x3x6x6] kernel_shape=7x7 pads=0x0x1x1",
    "lp_pool float32[1x3x9x9] kernel_shape=2x2 strides=2x2 p=3",
    "max_unpool float32[1x2x4x4],int64[1x2x4x4] kernel_shape=2x2 strides=2x2",
    "rnn float32[3x2x4],float32[1x5x4],float32[1x5x5] activations=Affine(0.5,0.1)",
    "rnn float32[3x1x4],float32[1x5x4],float32[1x5x5],float32[1x10]",
    "lstm float32[3x2x4],float32[2x20x4],float32[2x20x5],float32[2x40],int32[2] direction=bidirectional clip=0.5",
    "lstm float32[3x1x4],float32[2x20x4],float32[2x20x5],float32[2x40] direction=bidirectional",
    "lstm float32[1x1x4],float32[1x20x4],float32[1x20x5],float32[1x40],-,float32[1x1x5],float32[1x1x5]",
    "gru float32[3x2x4],float32[1x15x4],float32[1x15x5],float32[1x30] linear_before_reset=1",
    "gru float32[3x1x4],float32[1x15x4],float32[1x15x5],float32[1x30] linear_before_reset=1",
    "gru float32[3x1x4],float32[1x15x4],float32[1x15x5],float32[1x30]",
)
CHAIN = "2 * (conv float32[1x8x9x9],float32[8x8x3x3],float32[8] pads=1x1x1x1 activation=Relu)"
MIXED = (
    "(conv float32[1x3x12x12],float32[6x3x3x3],float32[6] pads=1x1x1x1 activation=Relu -> "
    "max_pool float32[1x6x12x12] kernel_shape=2x2 strides=2x2)"
)


@pytest.fixture(scope="module")
def workers() -> dict[str, Worker]:
    """A process for each peer that is installed, as benchmarks have them; a peer's threads never meet pytest's."""
    made = {name: Worker(name, 1, []) for name in peers.MODULES if peers.get(name).probe().ready}
    yield made  # type: ignore[misc]
    for worker in made.values():
        worker.close()


def installed(name: str, workers: dict[str, Worker]) -> Worker:
    if name not in workers:
        pytest.skip(f"{peers.get(name).probe().detail}; to add it: {peers.get(name).probe().remedy}")
    return workers[name]


@pytest.mark.parametrize("text", [*PROBLEMS, CHAIN, MIXED])
@pytest.mark.parametrize("name", peers.MODULES)
def test_a_peer_computes_the_same_task_or_says_why_not(name: str, text: str, workers: dict[str, Worker]) -> None:
    worker = installed(name, workers)
    task = tasks.read(text)
    ready = worker.prepare(task)
    if isinstance(ready, Reject):
        assert len(str(ready).split()) > 3, str(ready)
        assert "died" not in str(ready), str(ready)
        pytest.skip(str(ready))
    judge = verify.judge_of(task)
    assert judge is not None
    verdict = judge.check(ready.outputs, slack=1)
    # eight-bit products may saturate in a peer, and Winograd's transforms round: both are timed and marked
    limit = ANOTHER if task.op == "qlinear_conv" or name == "mnn" else 1e-5
    assert verdict.error is not None
    assert verdict.error <= limit, verdict
    stretch = worker.time(3)
    assert stretch is not None
    assert 0 < stretch.seconds < 60
    assert ready.refills
    worker.refill(UNSEEN)
    worker.time(1)
    outputs, judge = worker.outputs(), verify.judge_of(task.fresh(UNSEEN))
    assert outputs is not None
    assert judge is not None
    error = judge.check(outputs, slack=1).error
    assert error is not None
    assert error <= limit, "it does not take other inputs"


def test_onnx_runtime_takes_every_problem(workers: dict[str, Worker]) -> None:
    worker = installed("ort", workers)
    for text in PROBLEMS:
        assert not isinstance(worker.prepare(tasks.read(text)), Reject), text


def test_ours_takes_every_task_through_its_public_call() -> None:
    for text in (*PROBLEMS, CHAIN, MIXED):
        task = tasks.read(text)
        ready = contenders.get("cpu").prepare(task, 1)
        assert not isinstance(ready, Reject), text
        judge = verify.judge_of(task)
        assert judge is not None
        assert judge.check(ready.outputs(ready.run())).passed, text


def test_a_crash_is_a_sentence_and_the_next_task_finds_a_new_process() -> None:
    worker = Worker("cpu", 1, [])
    try:
        small = tasks.read("max_pool float32[1x1x4x4] kernel_shape=2x2")
        assert not isinstance(worker.prepare(small), Reject)
        died = worker.prepare(
            tasks.Task("max_pool float32[1x1x4x4] kernel_shape=9x9")
        )  # was never read, and so not checked
        assert isinstance(died, Reject)
        assert "its process died (exit code 1)" in str(died)
        assert "kernel" in str(died)
        assert worker.time(1) is None
        assert not isinstance(worker.prepare(small), Reject)
    finally:
        worker.close()


def test_a_peer_that_is_absent_says_what_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.util, "find_spec", lambda name: None)
    for name in peers.MODULES:
        there = peers.get(name).probe()
        assert not there.ready
        assert "is not installed" in there.detail
        assert "quatrefoil[peers]" in there.remedy
    with Field(["ncnn"], 1) as field:
        [record] = field.compare("one", tasks.read(PROBLEMS[0]), None, Effort(3))
    assert "ncnn is not installed; to add it: pip install" in record.refused


@dataclass(frozen=True)
class Added:
    """A peer of another package."""

    name: str = "added"
    title: str = "added"
    timed: str = "nothing"

    def probe(self) -> Availability:
        return Availability(True, "added 1.0")


def test_other_packages_add_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        def load(self) -> Added:
            return Added()

    monkeypatch.setattr(peers, "_entry_points", lambda: {"added": Point()})
    assert peers.names()[-1] == "added"
    peers.get.cache_clear()
    try:
        assert peers.get("added").probe().ready
    finally:
        peers.get.cache_clear()


def test_reports_of_use_are_kept_from_loading() -> None:
    code = (
        "import sys; from multiprocessing import Pipe; from quatrefoil.bench import worker\n"
        "here, there = Pipe(); here.close(); worker.main(there.fileno(), 'cpu', 1, [])\n"
        "print([name for name in worker.SILENCED if sys.modules.get(name, 0) is not None])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_chains_fit_together() -> None:
    assert [problem.op for problem in tasks.chain(MIXED)] == ["conv", "max_pool"]
    with pytest.raises(QuatrefoilError, match=r"a chain's conv takes .* but gets"):
        tasks.read("2 * (conv float32[1x3x9x9],float32[8x3x3x3])")
    with pytest.raises(QuatrefoilError, match="there is no network 'vgg'"):
        tasks.read("network vgg")
    task = tasks.read(CHAIN)
    assert task.work.macs == 2 * 9 * 9 * 8 * 8 * 9
    assert not isinstance(task.model, Reject)
    assert len(task.model.graph.node) == 4


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_run_and_keep_their_softmax_out(name: str) -> None:
    task = tasks.read(f"network {name}")
    assert not isinstance(task.model, Reject)
    assert task.model.graph.node[-1].op_type != "Softmax"
    assert task.work.macs > 1e8
    if name != "squeezenet":
        return
    [y] = load(task.model).run(task.feeds).values()
    wide = load(in_float64(task.model)).run({key: x.astype(np.float64) for key, x in task.feeds.items()})
    assert next(iter(wide.values())).dtype == np.float64
    assert np.ptp(y) > 0.01
    assert verify.WideModel(task.model, task.feeds).check([y]).accurate


def test_only_a_closing_softmax_goes() -> None:
    nodes = [onnx.helper.make_node("Relu", ["x"], ["h"]), onnx.helper.make_node("Softmax", ["h"], ["y"])]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", onnx.TensorProto.FLOAT, [1, 3])], [value("y", onnx.TensorProto.FLOAT, [1, 3])]
    )
    cut = without_softmax(onnx.helper.make_model(graph))
    assert [node.op_type for node in cut.graph.node] == ["Relu"]
    assert cut.graph.output[0].name == "h"
    assert [node.op_type for node in without_softmax(cut).graph.node] == ["Relu"]


def test_a_quantised_convolution_between_scales_is_the_same() -> None:
    task = tasks.read(f"qlinear_conv uint8[1x3x6x6],float32[],uint8[],{INT8_WEIGHTS} pads=1x1x1x1")
    assert not isinstance(task.model, Reject)
    [y] = load(unquantised(task.model), optimized=False).run(task.feeds).values()
    judge = verify.judge_of(task)
    assert judge is not None
    assert judge.check([y], slack=1).passed


def test_accurate_means_two_in_a_hundred_thousand_or_one_step() -> None:
    task = tasks.read("average_pool float32[1x3x9x9] kernel_shape=3x3")
    judge = verify.judge_of(task)
    assert judge is not None
    right = contenders.get("cpu").prepare(task, 1)
    assert not isinstance(right, Reject)
    [y] = right.outputs(right.run())
    assert y is not None
    scale = np.float32(np.abs(y).max())
    assert judge.check([y + 1.5e-5 * scale]).accurate
    assert not judge.check([y + 3e-5 * scale]).accurate
    task = tasks.read(f"qlinear_conv uint8[1x3x6x6],float32[],uint8[],{INT8_WEIGHTS}")
    judge = verify.judge_of(task)
    assert judge is not None
    right = contenders.get("cpu").prepare(task, 1)
    assert not isinstance(right, Reject)
    [y] = right.outputs(right.run())
    assert y is not None
    near, far = np.where(y < 255, y + 1, y), np.where(y < 254, y + 2, y)
    assert judge.check([near.astype(np.uint8)], slack=1).accurate
    assert not judge.check([near.astype(np.uint8)]).passed
    assert not judge.check([far.astype(np.uint8)], slack=1).accurate


def test_a_model_of_one_node_says_its_opset() -> None:
    task = tasks.read(PROBLEMS[0])
    assert task.problem is not None
    model = model_of(task.problem, task.constants)
    assert not isinstance(model, Reject)
    onnx.checker.check_model(model, full_check=True)
    assert replace(task).feeds.keys() == {"i0"}
