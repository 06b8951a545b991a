"""Calls a compiled C simulation on every sample, in a process of its own; imports nothing of the house, to start quickly.

    python library_call.py LIBRARY FUNCTION SAMPLES.npz RESULTS.npz SIZES

SAMPLES holds the top function's inputs in their order, each (count, elements). SIZES is JSON: {"outputs": elements by
name in the top function's order, "traced": elements by layer}. RESULTS gets (count, elements) by name.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Sequence

import numpy as np


class _Trace(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p))


def main(arguments: Sequence[str]) -> None:
    path, function, given, taken, wanted = arguments
    library = ctypes.CDLL(path)
    top = getattr(library, function)
    top.restype = None
    with np.load(given) as archive:
        inputs = [np.ascontiguousarray(archive[name]) for name in archive.files]
    sizes = json.loads(wanted)
    count, dtype = len(inputs[0]), inputs[0].dtype
    results = {name: np.zeros((count, size), dtype) for name, size in (sizes["outputs"] | sizes["traced"]).items()}
    traces = (_Trace * len(sizes["traced"]))()
    if sizes["traced"]:
        library.allocate_trace_storage(ctypes.c_size_t(dtype.itemsize))
    for index in range(count):
        rows = [array[index] for array in inputs] + [results[name][index] for name in sizes["outputs"]]
        top(*(ctypes.c_void_p(row.ctypes.data) for row in rows))
        if sizes["traced"]:
            library.collect_trace_output(traces)
            for trace in traces:
                row = results[trace.name.decode()][index]
                ctypes.memmove(row.ctypes.data, trace.data, row.nbytes)
    np.savez(taken, allow_pickle=False, **results)


if __name__ == "__main__":
    main(sys.argv[1:])
