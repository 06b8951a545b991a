"""Problems whose arrays lie otherwise than kernels take them: recurrent layers with the batch first (``layout``), quantised
convolutions with channels last (``channels_last``).

Dispatch gives kernels the same problem in their own layout, ``plain``, and views of the arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quatrefoil.ops import conv, rnn
from quatrefoil.problem import Problem


def turned(problem: Problem) -> bool:
    """Whether the problem's arrays lie otherwise than kernels take them."""
    return ("layout", 1) in problem.attributes or conv.channels_last(problem)


def plain(problem: Problem) -> Problem:
    """The same problem in the layout that kernels take."""
    if not turned(problem):
        return problem
    return conv.channels_first(problem) if conv.channels_last(problem) else rnn.without_layout(problem)


def views(problem: Problem, inputs: Sequence[Any]) -> list[Any]:
    """A turned problem's inputs as views that fit the plain one."""
    if not conv.channels_last(problem):
        return rnn.batch_second(inputs)
    return [conv.planes_of(array) if i == conv.X and array is not None else array for i, array in enumerate(inputs)]


def results(problem: Problem, outputs: Sequence[Any]) -> tuple[Any, ...]:
    """The plain problem's outputs as views that fit the turned one."""
    if not conv.channels_last(problem):
        return rnn.batch_first(outputs)
    return tuple(conv.pixels_of(array) for array in outputs)
