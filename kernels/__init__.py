"""quatrefoil: convolution, pooling and recurrent kernels for four kinds of silicon behind one call.

    import quatrefoil as qf
    y = qf.conv2d(x, w, bias, padding=1, activation="Relu")              # where x lives
    y = qf.conv2d(x, w, bias, padding=1, backend="fpga")                 # or where you say
    qf.explain(qf.conv2d, x, w, bias, padding=1)                         # which kernel, and why not the others
    plan = qf.plan(qf.conv2d, x, w, bias, padding=1)                     # weights packed once
    y, back = qf.gradients.pullback(qf.conv2d, x, w, bias)               # gradients, by kernels too
    m = qf.load("model.onnx"); m.run({"x": x}, backend="cpu")

Importing quatrefoil loads no CUDA, OpenCL, ONNX or torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if __name__ != "quatrefoil":
    raise ImportError(f"quatrefoil was imported as {__name__!r}: keep its folder off sys.path and `import quatrefoil`")

from quatrefoil import gradients, random
from quatrefoil.dispatch import use_backend as backend
from quatrefoil.errors import BackendUnavailable, NoKernelError, OperatorError, QuatrefoilError
from quatrefoil.functional import (
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    conv1d,
    conv2d,
    conv3d,
    conv_integer,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    explain,
    fixed_average_pool,
    fixed_conv,
    fixed_gru,
    fixed_lstm,
    fixed_max_pool,
    fixed_rnn,
    global_avg_pool,
    global_lp_pool,
    global_max_pool,
    gru,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    lstm,
    max_pool1d,
    max_pool2d,
    max_pool3d,
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
    plan,
    qlinear_conv,
    rnn,
    shared_conv,
    shared_gru,
    shared_lstm,
    shared_rnn,
    sparse_conv,
    sparse_elman,
    sparse_gru,
    sparse_lstm,
    sparse_rnn,
    sparse_weight,
    stacked,
)
from quatrefoil.numerics import Fixed
from quatrefoil.problem import Problem, Tensor
from quatrefoil.settings import num_threads, set_num_threads

if TYPE_CHECKING:
    from quatrefoil.fpga.hls4ml_export import export as export_hls
    from quatrefoil.models import Model, load
    from quatrefoil.models.compression import compress
    from quatrefoil.models.fixed.c_export import export_c
    from quatrefoil.models.fixed.c_export.opencl import export_opencl
    from quatrefoil.models.fixed.calibration import calibrate
    from quatrefoil.models.fixed.network import FixedNetwork, fixed
    from quatrefoil.models.fixed.precision import Precision
    from quatrefoil.models.fixed.quantized import load_quantized
    from quatrefoil.models.int8 import quantize_int8
    from quatrefoil.models.simulation import simulate

__version__ = "0.1.0"

# Rooms that import more than NumPy are opened when they are asked for.
_LAZY = {
    "load": ("quatrefoil.models", "load"),
    "Model": ("quatrefoil.models", "Model"),
    "compress": ("quatrefoil.models.compression", "compress"),
    "calibrate": ("quatrefoil.models.fixed.calibration", "calibrate"),
    "export_c": ("quatrefoil.models.fixed.c_export", "export_c"),
    "export_opencl": ("quatrefoil.models.fixed.c_export.opencl", "export_opencl"),
    "fixed": ("quatrefoil.models.fixed.network", "fixed"),
    "load_quantized": ("quatrefoil.models.fixed.quantized", "load_quantized"),
    "FixedNetwork": ("quatrefoil.models.fixed.network", "FixedNetwork"),
    "Precision": ("quatrefoil.models.fixed.precision", "Precision"),
    "quantize_int8": ("quatrefoil.models.int8", "quantize_int8"),
    "simulate": ("quatrefoil.models.simulation", "simulate"),
    "export_hls": ("quatrefoil.fpga.hls4ml_export", "export"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'quatrefoil' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _LAZY[name]
    return getattr(import_module(module), attribute)


__all__ = [
    "BackendUnavailable",
    "Fixed",
    "FixedNetwork",
    "Model",
    "NoKernelError",
    "OperatorError",
    "Precision",
    "Problem",
    "QuatrefoilError",
    "Tensor",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "backend",
    "calibrate",
    "compress",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_integer",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "explain",
    "export_c",
    "export_hls",
    "export_opencl",
    "fixed",
    "fixed_average_pool",
    "fixed_conv",
    "fixed_gru",
    "fixed_lstm",
    "fixed_max_pool",
    "fixed_rnn",
    "global_avg_pool",
    "global_lp_pool",
    "global_max_pool",
    "gradients",
    "gru",
    "load",
    "load_quantized",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "lstm",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "num_threads",
    "plan",
    "qlinear_conv",
    "quantize_int8",
    "random",
    "rnn",
    "set_num_threads",
    "shared_conv",
    "shared_gru",
    "shared_lstm",
    "shared_rnn",
    "simulate",
    "sparse_conv",
    "sparse_elman",
    "sparse_gru",
    "sparse_lstm",
    "sparse_rnn",
    "sparse_weight",
    "stacked",
]
