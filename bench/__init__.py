"""Benchmarks: problems and models on backends and peers, verified before they are timed, measured side by side.

from quatrefoil import bench
records = bench.run(["max_pool float32[1x64x56x56] kernel_shape=2x2 strides=2x2"], on=("cpu",), peers=("ort",))
    bench.write_html(Path("report.html"), "Pooling", records, bench.describe())
"""

from __future__ import annotations

from quatrefoil.bench.machine import describe
from quatrefoil.bench.records import Chosen, Record, Simulated, flat, write_json
from quatrefoil.bench.report import write_html
from quatrefoil.bench.runner import Effort, run
from quatrefoil.bench.timing import Timing

__all__ = ["Chosen", "Effort", "Record", "Simulated", "Timing", "describe", "flat", "run", "write_html", "write_json"]
