"""Rules of the operators of ops/pool.py: each has one operator that is its gradient (ops/pool_gradient.py)."""

from __future__ import annotations

from typing import Any

from quatrefoil.gradients.rule import Backward, Rule
from quatrefoil.problem import Tensor

X = 0
INDICES = 1


def _window(back: Backward) -> dict[str, Any]:
    names = ("kernel_shape", "strides", "pads", "dilations", "ceil_mode")
    return {name: back.problem[name] for name in names}


def max_pool(back: Backward) -> dict[int, Tensor]:
    (dx,) = back.run("max_pool_gradient", (back.gradients[0], back.inputs[X]), _window(back))
    return {X: dx}


def average_pool(back: Backward) -> dict[int, Tensor]:
    problem = back.problem
    more = {"count_include_pad": problem["count_include_pad"], "input_shape": problem.input(X).shape}
    (dx,) = back.run("average_pool_gradient", (back.gradients[0],), {**_window(back), **more})
    return {X: dx}


def lp_pool(back: Backward) -> dict[int, Tensor]:
    attributes = {**_window(back), "p": back.problem["p"]}
    (dx,) = back.run("lp_pool_gradient", (back.gradients[0], back.inputs[X], back.outputs[0]), attributes)
    return {X: dx}


def max_unpool(back: Backward) -> dict[int, Tensor]:
    attributes = {"indexed_shape": back.problem["indexed_shape"]}
    (dx,) = back.run("max_unpool_gradient", (back.gradients[0], back.inputs[INDICES]), attributes)
    return {X: dx}


RULES: dict[str, Rule] = {
    "max_pool": Rule(max_pool, (X,)),
    "average_pool": Rule(average_pool, (X,)),
    "lp_pool": Rule(lp_pool, (X,), reads=(0,)),
    "max_unpool": Rule(max_unpool, (X,)),
}
