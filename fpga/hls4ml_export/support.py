"""What of a fixed-point network hls4ml 1.3's backends compute to the last bit, by layer, backend and io.

``why_not`` is the law of the exporter (``fixed_layers`` asks it) and the table of docs/fpga.md, which this prints:

    python -m quatrefoil.fpga.hls4ml_export.support

Each "yes" is held by ``proof``, which compiles random nets of the layer; each "no" says why, from hls4ml's own sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from quatrefoil.fpga.hls4ml_export.layers import ExportError

BACKENDS: Final = ("Vitis", "Vivado", "Quartus", "Catapult", "oneAPI", "Libero")
IO: Final = ("parallel", "stream")
VITIS_LIKE: Final = ("Vitis", "Vivado")
AC_TYPES: Final = ("Quartus", "Catapult")
BUILT: Final = (*VITIS_LIKE, *AC_TYPES)
"""Backends whose C++ g++ compiles with what hls4ml brings along."""

ROWS: Final = {
    "dense": "Dense",
    "conv1d": "Convolution over one axis",
    "conv2d": "Convolution over two axes",
    "conv_1x1": "Convolution with kernel 1",
    "conv_strided_beyond": "Convolution with strides beyond its kernel",
    "conv_grouped": "Grouped convolution (zeros between groups)",
    "conv_dilated": "Dilated convolution (zeros between taps)",
    "conv1d_depthwise": "Depthwise convolution over one axis",
    "conv2d_depthwise": "Depthwise convolution over two axes",
    "max_pool": "Max pooling, strides equal to the kernel",
    "max_pool1d_strided": "Max pooling over one axis, any strides",
    "max_pool2d_strided": "Max pooling over two axes, any strides",
    "max_pool_padded": "Max pooling over padding",
    "max_pool_global": "Max pooling of the whole plane",
    "average_pool": "Average pooling, strides equal to the kernel",
    "average_pool1d_strided": "Average pooling over one axis, any strides",
    "average_pool2d_strided": "Average pooling over two axes, any strides",
    "average_pool_padded": "Average pooling over padding",
    "average_pool_global": "Average pooling of the whole plane",
    "relu": "Relu",
    "cast": "Cast",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "leaky_relu": "LeakyRelu",
    "elu": "Elu",
    "hard_sigmoid": "HardSigmoid",
    "relu6": "Clip(0,6)",
    "softmax": "Softmax of a vector",
    "add": "Sum of two values",
    "subtract": "Difference of two values",
    "multiply": "Product of two values",
    "constant": "Sum, difference or product with a constant",
    "concat": "Concatenation of channels",
    "concat_elsewhere": "Concatenation along another axis",
    "flatten": "Flatten, then dense",
    "move": "Transpose, Slice, Pad, ... before a layer that needs the order",
    "upsample": "Upsampling by whole factors",
    "lstm_one_format": "LSTM with one format for x, sums and y (hls4ml's own)",
    "gru": "GRU with linear_before_reset (hls4ml's own)",
    "lstm": "LSTM with formats of its own",
    "lstm_reverse": "LSTM, reverse",
    "lstm_bidirectional": "LSTM, bidirectional",
    "lstm_initial_state": "LSTM from a given state",
    "lstm_cell_state": "LSTM's last cell state",
    "lstm_functions": "LSTM with other functions",
    "gru_reverse": "GRU with linear_before_reset, reverse",
    "gru_initial_state": "GRU with linear_before_reset from a given state",
    "gru_reset_before": "GRU without linear_before_reset",
    "gru_reset_before_bidirectional": "GRU without linear_before_reset, bidirectional",
    "rnn": "RNN",
    "rnn_bidirectional_initial_state": "RNN, bidirectional, from a given state",
    "recurrent_stacked": "LSTM, then GRU",
}
"""The rows: proof.TRIALS has random nets of each."""

OWN: Final = (
    "move", "lstm", "lstm_reverse", "lstm_bidirectional", "lstm_initial_state", "lstm_cell_state", "lstm_functions",
    "gru_reverse", "gru_initial_state", "gru_reset_before", "gru_reset_before_bidirectional", "rnn",
    "rnn_bidirectional_initial_state", "recurrent_stacked",
)  # fmt: skip
"""Rows that need a layer of our own (``extension``)."""

TABLES: Final = ("sigmoid", "tanh", "softplus", "softsign", "elu", "lstm_one_format", "gru")
"""Rows that look a function up."""


@dataclass(frozen=True, slots=True)
class No:
    """Why rows do not go with backends and ios."""

    rows: tuple[str, ...]
    backends: tuple[str, ...]
    io: tuple[str, ...]
    why: str


EVERY: Final = tuple(ROWS)

NOT: Final = (
    No(EVERY, ("oneAPI",), IO, "its C++ includes sycl/sycl.hpp and sycl/ext/intel/fpga_extensions.hpp, which come with "
       "Intel's compiler alone, so that g++ cannot hold it to the network"),
    No(EVERY, ("Libero",), IO, "its C++ includes hls/ap_fixpt.hpp and hls/streaming.hpp of SmartHLS, and hls4ml asks for shls "
       "on the path before it writes anything"),
    No(OWN, AC_TYPES, IO, "it is a layer of our own, written for Vitis and Vivado"),
    No(TABLES, ("Quartus",), IO, "hls4ml looks functions up by |x| in tables of half the range there, and takes 1 - entry "
       "or -entry below zero"),
    No(TABLES, ("Catapult",), IO, "hls4ml computes functions piecewise linear there (ac_math's ac_sigmoid_pwl and others), "
       "without a table"),
    No(("average_pool", "average_pool1d_strided", "average_pool2d_strided", "average_pool_padded", "average_pool_global"),
       AC_TYPES, IO, "hls4ml averages in a format of its own there (x's, wider by log2 of the taps), not in the accumulator"),
    No(("conv1d_depthwise", "conv2d_depthwise"), ("Quartus",), IO, "hls4ml writes no call of it into the top function"),
    No(("conv1d_depthwise", "conv2d_depthwise"), ("Catapult",), IO, "hls4ml makes two layers of it there, and a format of its "
       "own between them"),
    No(("softmax",), AC_TYPES, IO, "hls4ml takes differences in x's format there and sums exponentials in the table's, "
       "without formats of their own"),
    No(("hard_sigmoid",), ("Catapult",), IO, "hls4ml computes it in x's format there, with 0.2 and 0.5 cast to it"),
    No(("max_pool1d_strided",), ("Quartus",), ("stream",), "hls4ml's pooling of streams asserts strides equal to the kernel"),
    No(("max_pool_padded",), ("Quartus",), ("stream",), "hls4ml's pooling of streams over padding does not compile there"),
    No(("max_pool_padded", "average_pool_padded"), (*VITIS_LIKE, "Catapult"), ("stream",), "hls4ml's pooling of streams "
       "asserts that there is no padding"),
    No(("max_pool2d_strided", "average_pool2d_strided"), BUILT, ("stream",), "hls4ml's pooling of streams over two axes "
       "asserts strides equal to the kernel"),
    No(("concat_elsewhere",), VITIS_LIKE, ("stream",), "hls4ml concatenates channels of streams alone"),
    No(("relu6",), BUILT, ("stream",), "hls4ml has it with io='parallel' alone"),
)  # fmt: skip


def why_not(row: str, backend: str, io: str) -> str:
    """A sentence, empty where the row is supported."""
    for entry in NOT:
        if row in entry.rows and backend in entry.backends and io in entry.io:
            return entry.why
    return ""


def require(name: str, row: str, backend: str, io: str) -> None:
    """Raises ExportError that names the layer where its row is not supported."""
    why = why_not(row, backend, io)
    if why:
        others = [f"{b} {i}" for b in BACKENDS for i in IO if not why_not(row, b, i)]
        instead = f"; supported with {', '.join(others)}" if others else ""
        raise ExportError(f"{name}: {ROWS[row]} with {backend}, io={io!r}: {why}{instead}")


def table() -> str:
    """As Markdown: a row for each layer, a column for each backend and io, and the reasons below."""
    columns = [(backend, io) for backend in BACKENDS for io in IO]
    reasons: list[str] = []
    lines = ["| layer | " + " | ".join(f"{b} {i}" for b, i in columns) + " |", "| --- |" + " --- |" * len(columns)]
    for row, title in ROWS.items():
        cells = []
        for backend, io in columns:
            why = why_not(row, backend, io)
            if why and why not in reasons:
                reasons.append(why)
            cells.append(f"no ({reasons.index(why) + 1})" if why else "yes")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {why}" for number, why in enumerate(reasons, 1))]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
