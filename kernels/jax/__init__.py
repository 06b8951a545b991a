"""quatrefoil's operators in JAX, with gradients: ``import quatrefoil.jax as qj`` (extra ``jax``).

    y = jax.jit(lambda x, w, b: qj.conv2d(x, w, b, padding=1))(x, w, b)
    dw = jax.grad(lambda w: qj.conv2d(x, w, b, padding=1).sum())(w)

The functions have the names and arguments of quatrefoil's own, take JAX arrays and run the kernels of the CPU that dispatch
chooses, as targets of XLA's foreign function interface (``target.py``): under ``jax.jit``, ``jax.grad`` (by ``custom_vjp``, each
gradient through the operator's rule in ``quatrefoil.gradients``) and ``jax.vmap``. What is wrong with arguments is an
OperatorError while JAX traces; what is wrong with values (lengths, indices) is JAX's runtime error with the same sentence.

Not there: arrays on a GPU, for which XLA says that the target is missing; second derivatives; forward mode (``jax.jvp``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise ImportError("quatrefoil.jax needs JAX, which pip install 'quatrefoil[jax]' adds") from error

from quatrefoil import functional
from quatrefoil.dispatch import Call
from quatrefoil.errors import OperatorError
from quatrefoil.functional import OperatorFunction
from quatrefoil.gradients import is_float, rule_of
from quatrefoil.jax import target
from quatrefoil.problem import Problem, Tensor

Arrays = tuple[Any, ...]
"""One for each input or output of a problem; None for absent ones."""


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Wanted:
    """Positions of the inputs whose gradients somebody asks for."""

    positions: tuple[int, ...]


def _types(tensors: Sequence[Tensor]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(tensor.shape, tensor.numpy_dtype) for tensor in tensors]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(problem: Problem, inputs: Arrays) -> Arrays:
    """All outputs of a problem."""
    given = [array for array in inputs if array is not None]
    call = jax.ffi.ffi_call(target.forward(), _types(problem.outputs), vmap_method="expand_dims")
    return tuple(call(*given, problem=problem.text))


def _forward(problem: Problem, inputs: Arrays) -> tuple[Arrays, tuple[Arrays, Arrays, _Wanted]]:
    rule = rule_of(problem.op)
    arrays = tuple(None if array is None else array.value for array in inputs)
    wanted = tuple(
        position
        for position in rule.inputs
        if problem.has(position) and inputs[position].perturbed and is_float(problem.input(position))
    )
    outputs = _run(problem, arrays)
    kept = tuple(output if place in rule.reads else None for place, output in enumerate(outputs))
    return outputs, (arrays, kept, _Wanted(wanted))


def _backward(problem: Problem, kept: tuple[Arrays, Arrays, _Wanted], gradients: Arrays) -> tuple[Arrays]:
    arrays, outputs, wanted = kept
    nothing = jax.custom_derivatives.SymbolicZero
    given = tuple(
        None if type(gradient) is nothing or not is_float(tensor) else gradient
        for gradient, tensor in zip(gradients, problem.outputs)
    )
    found: dict[int, Any] = {}
    if wanted.positions and any(gradient is not None for gradient in given):
        made = _gradients(problem, wanted, (arrays, outputs, given))
        found = dict(zip(wanted.positions, made))
    return (tuple(found.get(position) for position in range(len(arrays))),)


_run.defvjp(_forward, _backward, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(problem: Problem, wanted: _Wanted, arrays: tuple[Arrays, Arrays, Arrays]) -> Arrays:
    """The gradients of the wanted inputs, from inputs, the outputs that the rule reads and the outputs' gradients."""
    types = _types([problem.input(position) for position in wanted.positions])
    call = jax.ffi.ffi_call(target.backward(), types, vmap_method="expand_dims")
    there = "".join("-" if gradient is None else "+" for gradient in arrays[2])
    given = [array for group in arrays for array in group if array is not None]
    positions = " ".join(map(str, wanted.positions))
    return tuple(call(*given, problem=problem.text, wanted=positions, gradients=there))


def _gradients_forward(problem: Problem, wanted: _Wanted, arrays: tuple[Arrays, Arrays, Arrays]) -> tuple[Arrays, None]:
    return _gradients(problem, wanted, arrays), None


def _gradients_backward(problem: Problem, wanted: _Wanted, kept: None, gradients: Arrays) -> Any:
    raise OperatorError(problem.op, "its second derivative", "asked for", "there are first derivatives alone")


_gradients.defvjp(_gradients_forward, _gradients_backward)


def _called(call: Call) -> Any:
    """A call, in JAX."""
    inputs = tuple(None if array is None else jnp.asarray(array) for array in call.inputs)
    problem = Call(call.op, inputs, call.attributes, call.outputs).problem()
    for tensor in (*problem.inputs, *problem.outputs):
        if tensor is not None and tensor.numpy_dtype.itemsize == 8 and not jax.config.jax_enable_x64:
            raise OperatorError(
                call.op, "an array", tensor, "JAX has 64 bits only with jax.config.update('jax_enable_x64', True)"
            )
    return call.finish(_run(problem, inputs[: len(problem.inputs)]))


def _in_jax(function: OperatorFunction) -> Callable[..., Any]:
    @wraps(function.call)
    def operator(*args: Any, **kwargs: Any) -> Any:
        return _called(function.call(*args, **kwargs))

    return operator


def _max_unpool(function: OperatorFunction) -> Callable[..., Any]:
    @wraps(function.call)
    def operator(x: Any, indices: Any, *args: Any, **kwargs: Any) -> Any:
        x, indices = jnp.asarray(x), jnp.asarray(indices)
        # what an index has to be is checked when there are values: outside of its plane it becomes -1, which is refused
        call = function.call(x, Tensor.of(indices), *args, **kwargs)
        problem = call.problem()
        size = math.prod(problem.ints("indexed_shape")[2:])
        planes = jnp.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))
        whole = jnp.where((indices < 0) | (indices >= size), -1, indices + planes * size)
        return _called(Call(call.op, (x, whole), call.attributes, call.outputs, call.finish))

    return operator


conv1d, conv2d, conv3d = map(_in_jax, (functional.conv1d, functional.conv2d, functional.conv3d))
conv_transpose1d, conv_transpose2d, conv_transpose3d = map(
    _in_jax, (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
)
max_pool1d, max_pool2d, max_pool3d = map(_in_jax, (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d))
avg_pool1d, avg_pool2d, avg_pool3d = map(_in_jax, (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d))
lp_pool1d, lp_pool2d, lp_pool3d = map(_in_jax, (functional.lp_pool1d, functional.lp_pool2d, functional.lp_pool3d))
max_unpool1d, max_unpool2d, max_unpool3d = map(
    _max_unpool, (functional.max_unpool1d, functional.max_unpool2d, functional.max_unpool3d)
)
global_max_pool, global_avg_pool, global_lp_pool = map(
    _in_jax, (functional.global_max_pool, functional.global_avg_pool, functional.global_lp_pool)
)
rnn, lstm, gru = map(_in_jax, (functional.rnn, functional.lstm, functional.gru))
