"""A model node by node: what each took, its share of the whole, which kernel ran, and the least that it could take.

``Model.profile`` measures, the roofline of the CPU gives the limit. ``quatrefoil bench model.onnx`` and ``run --profile``
show the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from quatrefoil import ops
from quatrefoil.bench import roofline
from quatrefoil.bench.roofline import Ceilings
from quatrefoil.models import Model, NodeProfile


@dataclass(frozen=True)
class LimitedNode(NodeProfile):
    """A node's profile beside its limit.

    limit_seconds  the least time that a direct evaluation can take on this machine; None where no ceiling was measured
                   for what it ran on, and for operators that are not of the house
    """

    limit_seconds: float | None = None

    @property
    def share_of_limit(self) -> float | None:
        """The limit over the measured time: 1 is the limit, and algorithms that multiply less may pass it."""
        return None if self.limit_seconds is None or not self.seconds else self.limit_seconds / self.seconds


def profile(
    model: Model, feeds: Mapping[str, Any], backend: str, threads: int = 1, ceilings: Ceilings | None = None
) -> list[LimitedNode]:
    """What each node took on these inputs, with its limit. ``ceilings`` are those of one core, measured where they are
    not given and the backend is the CPU."""
    found = model.profile(feeds, backend=backend)
    if ceilings is None and backend == "cpu":
        ceilings = roofline.measure()
    return limited(found, threads, ceilings)


def limited(nodes: Sequence[NodeProfile], threads: int, ceilings: Ceilings | None) -> list[LimitedNode]:
    """Profiles with the limits that these ceilings set for the CPU's nodes."""
    return [LimitedNode(**_shallow(node), limit_seconds=_limit(node, threads, ceilings)) for node in nodes]


def _limit(node: NodeProfile, threads: int, ceilings: Ceilings | None) -> float | None:
    if ceilings is None or node.backend != "cpu" or not node.problem:
        return None
    problem = ops.parse(node.problem)
    return ceilings.seconds(problem, ops.SPECS[problem.op].work(problem), threads)


def _shallow(node: NodeProfile) -> dict[str, Any]:
    return {each.name: getattr(node, each.name) for each in fields(NodeProfile)}
