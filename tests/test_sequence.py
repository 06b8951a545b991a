"""Native sequences on the CPU: the same numbers as step by step, whatever the layouts; memory, threads, reports."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import quatrefoil as qf
from quatrefoil import cpu, ops
from quatrefoil.cpu import _sequence, conv, instruction_set, layouts
from quatrefoil.cpu.sequence import PreparedPlan
from quatrefoil.models.scheduling import KNOWN, SequenceOperation
from quatrefoil.problem import Tensor
from quatrefoil.sequences import Concat, Elementwise, Plan, Step, View

TOLERANCE = 2e-5


class Net:
    """An ONNX model in the making: float32 values by name, with their shapes."""

    def __init__(self, *shape: int, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.shapes: dict[str, tuple[int, ...]] = {"x": shape}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def weights(self, *shape: int) -> str:
        return self.constant(self.rng.standard_normal(shape).astype(np.float32) / np.float32(np.prod(shape[1:]) ** 0.5))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def add(self, kind: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.shapes[name] = shape
        return name

    def model(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shapes["x"])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    def input(self) -> np.ndarray:
        return self.rng.standard_normal(self.shapes["x"]).astype(np.float32)

    def conv(self, x: str, channels: int, kernel: int = 1, group: int = 1, stride: int = 1) -> str:
        n, c, h, w = self.shapes[x]
        pad = kernel // 2
        shape = n, channels, (h + 2 * pad - kernel) // stride + 1, (w + 2 * pad - kernel) // stride + 1
        inputs = [x, self.weights(channels, c // group, kernel, kernel), self.weights(channels)]
        return self.add("Conv", inputs, shape, pads=[pad] * 4, group=group, strides=[stride] * 2)

    def pool(self, x: str, kind: str, kernel: int, stride: int) -> str:
        n, c, h, w = self.shapes[x]
        pad = kernel // 2
        shape = n, c, (h + 2 * pad - kernel) // stride + 1, (w + 2 * pad - kernel) // stride + 1
        return self.add(kind, [x], shape, kernel_shape=[kernel] * 2, pads=[pad] * 4, strides=[stride] * 2)

    def normalize(self, x: str) -> str:
        c = self.shapes[x][1]
        statistics = [self.constant(self.rng.uniform(0.5, 1.5, c).astype(np.float32)) for _ in range(4)]
        return self.add("BatchNormalization", [x, *statistics], self.shapes[x])

    def shuffle(self, x: str, groups: int) -> str:
        n, c, h, w = self.shapes[x]
        split = self.add("Reshape", [x, self.ints(n, groups, c // groups, h, w)], (n, groups, c // groups, h, w))
        turned = self.add("Transpose", [split], (n, c // groups, groups, h, w), perm=[0, 2, 1, 3, 4])
        return self.add("Reshape", [turned, self.ints(n, c, h, w)], (n, c, h, w))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = qf.num_threads()
    yield
    qf.set_num_threads(before)


def step_by_step(model: onnx.ModelProto, x: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
    """The model's outputs without sequences."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu.CpuBackend, "sequencer", None)
        return qf.load(model, **options).run(x, backend="cpu")


def check(model: onnx.ModelProto, x: np.ndarray, **options: Any) -> qf.Model:
    """Twice the same, and as step by step."""
    wanted = step_by_step(model, x, **options)
    loaded = qf.load(model, **options)
    first, second = loaded.run(x, backend="cpu"), loaded.run(x, backend="cpu")
    for name, array in wanted.items():
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(
            first[name], array, rtol=TOLERANCE, atol=TOLERANCE * max(1.0, float(np.abs(array).max(initial=0)))
        )
    return loaded


def sequences(model: qf.Model) -> list[SequenceOperation]:
    """Those of the model's schedules."""
    [program] = model._programs.values()
    found = [step.operation for schedule in program._schedules.values() for step in schedule.steps]
    return [operation for operation in found if isinstance(operation, SequenceOperation)]


@st.composite
def nets(draw: st.DrawFn) -> tuple[onnx.ModelProto, np.ndarray]:
    """Graphs of convolutions, pools and what stands between them, with channels around whole blocks."""
    channels = st.sampled_from([1, 3, 8, 12, 16, 24, 32])
    net = Net(
        draw(st.integers(1, 2)),
        draw(channels),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 9)),
        seed=draw(st.integers(0, 99)),
    )
    values = ["x"]
    for _ in range(draw(st.integers(1, 10))):
        x = draw(st.sampled_from(values[-4:]))
        shape = n, c, h, w = net.shapes[x]
        match draw(
            st.sampled_from(
                [
                    "conv",
                    "conv",
                    "conv",
                    "depthwise",
                    "act",
                    "pool",
                    "two",
                    "channel",
                    "norm",
                    "concat",
                    "slice",
                    "shuffle",
                    "pad",
                    "scalar",
                    "lrn",
                ]
            )
        ):
            case "conv":
                y = net.conv(x, draw(channels), draw(st.sampled_from([1, 1, 3])), stride=draw(st.integers(1, 2)))
            case "depthwise":
                y = net.conv(x, c, 3, group=c)
            case "act":
                y = net.add(
                    draw(st.sampled_from(["Relu", "Sigmoid", "HardSwish", "Tanh", "Softplus", "Exp", "Neg", "Abs"])),
                    [x],
                    shape,
                )
            case "pool":
                y = net.pool(
                    x,
                    draw(st.sampled_from(["MaxPool", "AveragePool"])),
                    draw(st.sampled_from([1, 2, 3])),
                    draw(st.integers(1, 2)),
                )
            case "two":
                other = draw(st.sampled_from([v for v in values if net.shapes[v] == shape]))
                y = net.add(draw(st.sampled_from(["Add", "Mul", "Sub", "Max", "Min"])), [x, other], shape)
            case "channel":
                gate = net.add("GlobalAveragePool", [x], (n, c, 1, 1))
                y = net.add(draw(st.sampled_from(["Mul", "Add"])), draw(st.permutations([x, gate])), shape)
            case "norm":
                y = net.normalize(x)
            case "concat":
                parts = draw(
                    st.lists(
                        st.sampled_from([v for v in values if (*net.shapes[v][:1], *net.shapes[v][2:]) == (n, h, w)]),
                        min_size=1,
                        max_size=3,
                    )
                )
                y = net.add("Concat", parts, (n, sum(net.shapes[v][1] for v in parts), h, w), axis=1)
            case "slice":
                first = draw(st.sampled_from([i for i in (0, 1, 4, 8, 16) if i < c]))
                y = net.add("Slice", [x, net.ints(first), net.ints(c), net.ints(1)], (n, c - first, h, w))
            case "shuffle":
                y = net.shuffle(x, draw(st.sampled_from([g for g in (1, 2, 3, 4) if c % g == 0])))
            case "pad":
                mode = draw(st.sampled_from(["constant", "edge"]))
                y = net.add("Pad", [x, net.ints(0, 0, 1, 2, 0, 0, 0, 1)], (n, c, h + 1, w + 3), mode=mode)
            case "scalar":
                y = net.add(
                    draw(st.sampled_from(["Mul", "Add", "Div"])), [x, net.constant(np.array(1.5, np.float32))], shape
                )
            case _:
                y = net.add("LRN", [x], shape, size=3)
        values.append(y)
    n, c, h, w = net.shapes[values[-1]]
    if draw(st.booleans()):
        flat = net.add("Flatten", [values[-1]], (n, c * h * w))
        last = net.add("Gemm", [flat, net.weights(5, c * h * w)], (n, 5), transB=1)
        values.append(net.add("Softmax", [last], (n, 5)))
    outputs = {values[-1], draw(st.sampled_from(values[1:]))}
    return net.model(*outputs), net.input()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nets(), st.booleans())
def test_any_graph_gives_the_same_numbers(net: tuple[onnx.ModelProto, np.ndarray], optimized: bool) -> None:
    check(*net, optimized=optimized)


@pytest.mark.parametrize("isa", range(6), ids=["portable", "v2", "v3", "v4", "v4_vnni", "v4_amx"])
@pytest.mark.parametrize("channels", [5, 16, 21])
def test_every_instruction_set(isa: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if isa >= len(instruction_set.supported()):
        pytest.skip(f"this processor and build have {', '.join(instruction_set.supported())} alone")
    monkeypatch.setattr(instruction_set, "index", lambda: isa)
    qf.set_num_threads(1 + isa % 3)
    net = Net(2, 3, 11, 13)
    a = net.add("Relu", [net.conv("x", channels, 3)], (2, channels, 11, 13))
    b = net.normalize(net.pool(a, "MaxPool", 3, 1))
    both = net.add("Concat", [a, b, net.conv(b, 16)], (2, 2 * channels + 16, 11, 13), axis=1)
    gate = net.add(
        "Sigmoid", [net.add("GlobalAveragePool", [both], (2, 2 * channels + 16, 1, 1))], (2, 2 * channels + 16, 1, 1)
    )
    gated = net.add("Mul", [both, gate], net.shapes[both])
    normal = net.add("LRN", [net.conv(net.pool(gated, "AveragePool", 2, 2), 12)], (2, 12, 6, 7), size=5)
    check(net.model(net.add("LogSoftmax", [normal], net.shapes[normal], axis=1), gated), net.input())


HOST: dict[str, Callable[[Net], str]] = {
    "transpose": lambda net: net.add("Transpose", ["x"], (), perm=[0, 2, 3, 1]),
    "flip": lambda net: net.add("Slice", ["x", net.ints(-1), net.ints(-99), net.ints(3), net.ints(-1)], ()),
    "stepped": lambda net: net.add("Slice", ["x", net.ints(1, 0), net.ints(99, 5), net.ints(1, 3), net.ints(2, 3)], ()),
    "reflect": lambda net: net.add("Pad", ["x", net.ints(0, 0, 2, 3, 0, 0, 1, 2)], (), mode="reflect"),
    "edge": lambda net: net.add("Pad", ["x", net.ints(1, 0, 2, 3, 0, 2, 1, 2)], (), mode="edge"),
    "constant": lambda net: net.add(
        "Pad", ["x", net.ints(1, 0, 2, 3, 0, 2, 1, 2), net.constant(np.array(3, np.float32))], ()
    ),
    "concat last": lambda net: net.add("Concat", ["x", net.weights(2, 6, 5, 1), "x"], (), axis=3),
    "concat first": lambda net: net.add("Concat", ["x", "x", net.weights(1, 6, 5, 7)], (), axis=0),
    "prelu": lambda net: net.add("PRelu", ["x", net.weights(6, 1, 1)], ()),
    "power": lambda net: net.add("Pow", ["x", net.constant(np.array(2, np.float32))], ()),
    "sum": lambda net: net.add("Sum", ["x", net.weights(6, 1, 1), net.weights(7)], ()),
    "quotient": lambda net: net.add("Reciprocal", [net.add("Exp", ["x"], ())], ()),
    "mean": lambda net: net.add("ReduceMean", ["x"], (), axes=[2, 3]),
    "mean of all": lambda net: net.add("ReduceMean", ["x"], (), keepdims=0),
    "matmul": lambda net: net.add("MatMul", ["x", net.weights(7, 9)], ()),
    "softmax": lambda net: net.add("Softmax", ["x"], (), axis=2),
    "log softmax": lambda net: net.add("LogSoftmax", ["x"], ()),
    "lrn": lambda net: net.add("LRN", ["x"], (), size=4, beta=0.6, alpha=0.5),
    "clip": lambda net: net.add(
        "Clip", ["x", net.constant(np.array(-0.5, np.float32)), net.constant(np.array(0.5, np.float32))], ()
    ),
    "global pool": lambda net: net.add("GlobalMaxPool", ["x"], ()),
}


@pytest.mark.parametrize("kind", HOST)
@pytest.mark.parametrize("special", [False, True], ids=["numbers", "nan and infinity"])
def test_every_form(kind: str, special: bool) -> None:
    net = Net(2, 6, 5, 7)
    y = HOST[kind](net)
    x = net.input()
    if special:
        x[0, 1, 2, 3], x[1, 2, 3, 4], x[1, 5, 0, 0] = np.nan, np.inf, -np.inf
    with np.errstate(all="ignore"):
        loaded = check(net.model(y, net.add("Neg", [y], ())), x, optimized=False)
    assert sequences(loaded), "the node should have a native form"


def test_a_network_is_one_sequence_that_is_explained_and_profiled() -> None:
    net = Net(1, 3, 12, 12)
    a = net.conv("x", 16, 3)
    shape = net.add("Shape", [a], ())
    b = net.add("Add", [net.conv(net.add("Relu", [a], net.shapes[a]), 16, 1), a], net.shapes[a])
    rows = net.add("Gather", [shape, net.ints(0)], ())
    y = net.add("Reshape", [b, net.add("Concat", [rows, net.ints(-1)], (), axis=0)], ())
    loaded = check(net.model(y), net.input(), optimized=False)
    assert len(sequences(loaded)) == 1
    explained = {p.node.kind: p for p in loaded.explain(net.input())}
    assert explained["Add"].where == "cpu sequence"
    assert explained["Shape"].where == explained["Gather"].where == KNOWN
    selection = explained["Conv"].selection
    assert selection is not None and selection.chosen.blocked is not None
    records = loaded.profile(net.input())
    assert [record.op for record in records] == [node.op_type for node in net.nodes]
    assert all(record.seconds for record in records if record.op in ("Conv", "Add"))


def test_a_pool_between_blocks_says_why() -> None:
    net = Net(1, 16, 8, 8)
    y = net.conv(net.pool(net.conv("x", 16, 1), "MaxPool", 3, 2), 16, 1)
    loaded = check(net.model(y), net.input())
    pool = loaded.explain(net.input())[1]
    assert pool.selection.chosen.id == "max_pool_blocked_nchwc_f32_simd"
    assert pool.why == "keeps channels in blocks from layer to layer"


def test_joined_and_overwritten_values_take_no_memory_of_their_own() -> None:
    """Two parts of 1000 floats are computed where they are joined, and the sum over one that nobody reads again."""
    types = {number: Tensor("float32", shape) for number, shape in enumerate([(1, 1000)] * 4 + [(1, 2000)] * 2)}
    steps = [
        Step(Elementwise("magnitude"), (0,), (1,), "a"),
        Step(Elementwise("square_root"), (1,), (2,), "b"),
        Step(Elementwise("exponential"), (0,), (3,), "c"),
        Step(Concat(1), (2, 3), (4,), "d"),
        Step(View(), (4,), (5,), "e"),
    ]
    prepared = PreparedPlan(Plan(steps, types, {}, (0,), (5,)))
    assert prepared.run.arena_bytes == 0, "everything lies in the output"
    x = np.random.default_rng(0).standard_normal((1, 1000)).astype(np.float32)
    [y] = prepared([x])
    np.testing.assert_allclose(y, np.concatenate([np.sqrt(np.abs(x)), np.exp(x)], 1), rtol=1e-6)


def test_missing_channels_are_zero_in_blocks() -> None:
    array = np.arange(2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3) + 1
    blocked = layouts.blocked_array(array, 4)
    assert blocked.shape == (2, 2, 3, 4) == layouts.in_blocks(Tensor.of(array), 4).shape
    np.testing.assert_array_equal(blocked[:, 1, :, 1:], 0)
    np.testing.assert_array_equal(np.moveaxis(blocked, -1, 2).reshape(2, 8, 3)[:, :5], array)


def test_new_types_get_their_own_schedule_and_other_layouts_are_taken() -> None:
    net = Net(2, 4, 6, 6)
    y = net.add("Sigmoid", [net.conv("x", 4, 3)], net.shapes["x"])
    model = net.model(y)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    loaded = qf.load(model)
    for batch in (2, 1, 3, 2, 0):
        x = net.rng.standard_normal((batch, 6, 6, 4)).astype(np.float32).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(loaded.run(x)[y], step_by_step(model, x)[y], rtol=TOLERANCE, atol=TOLERANCE)


def test_threads_share_a_model_and_outputs_are_fresh() -> None:
    net = Net(1, 8, 16, 16)
    y = net.add("Relu", [net.conv(net.conv("x", 16, 3), 8, 3)], net.shapes["x"])
    loaded, inputs = qf.load(net.model(y)), [net.input() for _ in range(8)]
    wanted = [step_by_step(net.model(y), x)[y] for x in inputs]
    results: list[np.ndarray | None] = [None] * 8

    def work(place: int) -> None:
        for _ in range(5):
            results[place] = loaded.run(inputs[place])[y]

    threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, result in enumerate(results):
        assert result is not None
        np.testing.assert_allclose(result, wanted[place], rtol=TOLERANCE, atol=TOLERANCE)
        result[...] = np.nan
    np.testing.assert_allclose(loaded.run(inputs[0])[y], wanted[0], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_recurrent_layers_are_steps(kind: str, direction: str) -> None:
    gates, directions = {"RNN": 1, "LSTM": 4, "GRU": 3}[kind], 1 + (direction == "bidirectional")
    net = Net(3, 2, 5)
    h0 = net.weights(directions, 2, 6)
    inputs = ["x", net.weights(directions, gates * 6, 5), net.weights(directions, gates * 6, 6), "", "", h0]
    outputs = ["y", "h", "c"] if kind == "LSTM" else ["", "h"]
    net.nodes.append(helper.make_node(kind, inputs, outputs, name="layer", hidden_size=6, direction=direction))
    state = net.add("Gather", ["h", net.constant(np.array(-1))], (2, 6), axis=0)
    y = net.add("Relu", [net.add("Unsqueeze", [state, net.ints(1)], (2, 1, 6))], (2, 1, 6))
    loaded = check(net.model(y, *(name for name in outputs if name)), net.input())
    assert len(sequences(loaded)) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([1, 3, 5, 8, 12, 16]), st.sampled_from([1, 4, 8, 13]), st.booleans(), st.sampled_from([1, 2, 3, 5]),
    st.integers(1, 2), st.integers(1, 12), st.integers(1, 12),
)  # fmt: skip
def test_kernels_stay_inside_their_arrays(
    channels: int, out: int, depthwise: bool, kernel: int, stride: int, height: int, width: int
) -> None:
    """Every float32 convolution, with NaN before and behind x, and marks before and behind y."""
    margin, mark = 256, np.float32(7.25)
    weights = np.ones((channels if depthwise else out, 1 if depthwise else channels, kernel, kernel), np.float32)
    x = Tensor("float32", (2, channels, height, width))
    attributes = {"strides": (stride,) * 2, "pads": (kernel // 2,) * 4, "group": channels if depthwise else 1}
    problem = ops.canonical("conv", [x, Tensor.of(weights)], attributes)
    y = problem.outputs[0]
    for declared in conv.KERNELS:
        if declared.op != "conv" or declared.accepts(problem) is not None:
            continue
        source, target = np.full(x.size + 2 * margin, np.nan, np.float32), np.full(y.size + 2 * margin, mark)
        source[margin:-margin] = 1
        operands = [(_sequence.ABSOLUTE, array.ctypes.data + 4 * margin) for array in (source, target)]
        step = _sequence.kernel_step(declared.prepare(problem, {1: weights}))
        _sequence.Sequence([(step, [operands[0], *[(_sequence.ABSOLUTE, 0)] * 7], operands[1:])], 0, 0, [], None)([])
        assert (target[:margin] == mark).all() and (target[-margin:] == mark).all(), declared.id
        assert np.isfinite(target[margin:-margin]).all(), declared.id
