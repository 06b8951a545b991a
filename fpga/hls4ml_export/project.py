"""Whether every layer of a design is in the generated top function."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from quatrefoil.fpga.hls4ml_export.layers import ExportError

CALL: Final = re.compile(r"^\s*nnet::(\w+)<.*;\s*//\s*(\w+)\s*$", re.MULTILINE)
TRACED_CALL: Final = re.compile(
    r'^\s*nnet::(\w+)<.*;\n#if.*\n\s*nnet::save_layer_output<.*?>\(\w.*?, "(\w+)"', re.MULTILINE
)
"""Quartus's calls have no comment; where layers are traced, the trace that follows names them."""


def calls_in(top: Path, computing: Sequence[str], titles: Mapping[str, str] | None = None) -> dict[str, str]:
    """By layer, the function that computes it in the generated top function. Raises ExportError where one is missing."""
    text = top.read_text(encoding="utf-8")
    calls = {name: function for pattern in (CALL, TRACED_CALL) for function, name in pattern.findall(text)}
    missing = [name for name in computing if name not in calls]
    if missing:
        nodes = ", ".join((titles or {}).get(name, name) for name in missing)
        raise ExportError(f"hls4ml left out {nodes}: {top} does not call {', '.join(missing)}")
    return {name: calls[name] for name in computing}
