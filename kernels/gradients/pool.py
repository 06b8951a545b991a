"""Rules of the operators of ops/pool.py."""

from __future__ import annotations

from quatrefoil.gradients.rule import Rule

RULES: dict[str, Rule] = {}
