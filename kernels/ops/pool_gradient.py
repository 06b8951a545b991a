"""gradients of pooling"""

from __future__ import annotations

from quatrefoil.ops.spec import OperatorSpec

SPECS: tuple[OperatorSpec, ...] = ()
