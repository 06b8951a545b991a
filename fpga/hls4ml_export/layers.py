"""What the layers of a design share: their form, the error of an export, and hls4ml's padding."""

from __future__ import annotations

from typing import Any

from quatrefoil.errors import QuatrefoilError
from quatrefoil.ops.windows import Window

Layer = dict[str, Any]
"""hls4ml's description of a layer, which ``ModelGraph.from_layer_list`` takes."""


class ExportError(QuatrefoilError, ValueError):
    """A model that cannot be exported as it is, or a project that does not hold what it should."""


def behind(window: Window, axis: int) -> int:
    """The padding behind the input's last element that the outputs reach into."""
    extent = (window.kernel[axis] - 1) * window.dilations[axis] + 1
    reached = (window.output[axis] - 1) * window.strides[axis] + extent
    return max(reached - window.pads[axis] - window.input[axis], 0)
