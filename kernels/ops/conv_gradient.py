"""conv_weight_gradient"""

from __future__ import annotations

from quatrefoil.ops.spec import OperatorSpec

SPECS: tuple[OperatorSpec, ...] = ()
