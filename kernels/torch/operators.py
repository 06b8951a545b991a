"""Every operator of the house that has a gradient, as two custom operators of torch.

  quatrefoil::apply(inputs, places, op, …)     runs the operator ``op`` of ops/ through dispatch
  quatrefoil::gradients(…)                     the gradients of its inputs, by the rules of ``qf.gradients``

They are registered with torch.library: autograd differentiates the first by the second, fake tensors get their shapes from
``ops.canonical`` (which settles shapes, so that a compiled graph is made again for inputs of other shapes), and torch.compile
takes both into its graph as they are. Attributes travel as in a problem's text form, ``strides=2x2 pads=1x1x1x1``.

Tensors stay where they are: those on the CPU run on the backend ``cpu``, those on CUDA on ``gpu``, unless ``with
qf.backend(...)`` says otherwise. Gradients of gradients are not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from quatrefoil import dispatch, gradients, ops
from quatrefoil.ops.rnn import TRAINING
from quatrefoil.ops.text import ATTRIBUTES
from quatrefoil.problem import AttributeValue, Problem, attribute_text, dtype_name
from quatrefoil.problem import Tensor as Type


def text_of(attributes: Mapping[str, AttributeValue | Sequence[int]]) -> str:
    """Attributes as one word each."""
    return " ".join(
        f"{name}={attribute_text(tuple(value) if isinstance(value, list) else value)}"  # type: ignore[arg-type]
        for name, value in attributes.items()
    )


@lru_cache(maxsize=4096)
def attributes_of(op: str, text: str) -> dict[str, Any]:
    """What ``text_of`` wrote, read back."""
    pairs = (word.split("=", 1) for word in text.split())
    return {name: ATTRIBUTES[op][name].read(value) for name, value in pairs}


class Form(Protocol):
    """How tensors that a layer of torch's keeps by themselves make the inputs of an operator. Arrays are torch's or NumPy's."""

    def joined(self, tensors: Sequence[Any]) -> list[Any]:
        """The inputs in order, None for absent ones."""

    def parted(self, gradients: Sequence[Any]) -> list[Any]:
        """Gradients of the tensors, from those of the inputs, which it may change; None for those that are not there."""

    def places(self, count: int) -> Sequence[int]:
        """Of each of ``count`` tensors, the input that it goes into."""


def apply(
    inputs: Sequence[Tensor | None], op: str, attributes: str, outputs: int, form: Form | None = None
) -> list[Tensor]:
    """All outputs of an operator of the house, differentiable: its inputs in order (None for absent ones), its name, its
    attributes as ``text_of`` writes them, and how many outputs are asked for. form: what makes its inputs of those given, which
    where nobody traces is one node of autograd together with the operator. Raises OperatorError as any call."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return apply_operator(*_packed(inputs if form is None else form.joined(inputs)), op, attributes, outputs)
    return list(_Eager.apply(op, attributes, outputs, form, *inputs))


class _Eager(torch.autograd.Function):
    """What the custom operators do where nobody traces: to go through them takes longer than a small layer takes."""

    @staticmethod
    def forward(
        ctx: Any, op: str, attributes: str, outputs: int, form: Form | None, *inputs: Tensor | None
    ) -> tuple[Tensor, ...]:
        arrays = _arrays(inputs)
        if form is not None:
            arrays = form.joined(arrays)
        types = tuple([None if array is None else (array.dtype, array.shape) for array in arrays])
        problem = _problem(op, types, attributes, outputs)
        results = tuple(map(_tensor, dispatch.run(problem, arrays)))
        if any(ctx.needs_input_grad):
            kept = [place for place in gradients.rule_of(op).reads if place < outputs]
            # what was given is also kept beside what it was joined to, so that torch sees it changed in place
            given = inputs if form is None else [None if array is None else _tensor(array) for array in arrays]
            ctx.save_for_backward(*given, *(results[place] for place in kept), *(() if form is None else inputs))
            ctx.call = (problem, len(given), kept, form, len(inputs))
            ctx.mark_non_differentiable(*results[_of_layer(op, outputs) :])
            ctx.set_materialize_grads(False)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *output_gradients: Tensor | None) -> tuple[Any, ...]:
        problem, count, kept, form, given = ctx.call
        saved = ctx.saved_tensors
        results: list[Tensor | None] = [None] * len(problem.outputs)
        for place, result in zip(kept, saved[count:]):
            results[place] = result
        places = range(count) if form is None else form.places(given)
        needed = {place for place, asked in zip(places, ctx.needs_input_grad[FIXED:]) if asked}
        wanted = tuple(place for place in gradients.rule_of(problem.op).inputs if place in needed)
        dys = [None if dy is None or not dy.is_floating_point() else dy for dy in output_gradients]
        if not wanted or all(dy is None for dy in dys):
            return (None,) * (FIXED + given)
        arrays = _arrays((*saved[: len(problem.inputs)], *results, *dys))
        found: Sequence[Any] = gradients.differentiate(problem, arrays, wanted)
        if form is not None:
            found = form.parted(found)
        theirs = [dy for dy in dys if dy is not None]
        made = [None if gradient is None else _own(_tensor(gradient), theirs) for gradient in found]
        return (None,) * FIXED + (*made, *(None,) * (given - len(made)))


FIXED = 4
"""Arguments of _Eager before the tensors."""


def _of_layer(op: str, outputs: int) -> int:
    """How many of the outputs are the layer's: a training form gives one more, for its gradients' sake."""
    return outputs - op.endswith(TRAINING)


def _arrays(tensors: Sequence[Tensor | None]) -> list[Any]:
    """Tensors on the CPU as NumPy's arrays of the same memory, which is quicker than DLPack; others as they are."""
    return [
        tensor.detach().numpy() if tensor is not None and tensor.is_cpu and tensor.dtype in PLAIN else tensor
        for tensor in tensors
    ]


PLAIN = (torch.float32, torch.float64, torch.float16, torch.int64, torch.int32)


def _tensor(array: Any) -> Tensor:
    return array if isinstance(array, Tensor) else torch.from_numpy(array)


# torch would not see, and say nothing, that a tensor beside a None in a list requires a gradient. So lists hold what is there,
# and next to them goes where it stands.
def _packed(tensors: Sequence[Tensor | None]) -> tuple[list[Tensor], list[int]]:
    there = [(tensor, place) for place, tensor in enumerate(tensors) if tensor is not None]
    return [tensor for tensor, _ in there], [place for _, place in there]


def _unpacked(tensors: Sequence[Tensor], places: Sequence[int], count: int) -> list[Tensor | None]:
    found = dict(zip(places, tensors))
    return [found.get(place) for place in range(count)]


def _inputs(tensors: Sequence[Tensor], places: Sequence[int]) -> list[Tensor | None]:
    return _unpacked(tensors, places, max(places) + 1)


def _call(op: str, inputs: Sequence[Any], attributes: str, outputs: int) -> dispatch.Call:
    return dispatch.Call(op, tuple(inputs), attributes_of(op, attributes), outputs, tuple)


@lru_cache(maxsize=4096)
def _problem(op: str, types: tuple[tuple[Any, Any] | None, ...], attributes: str, outputs: int) -> Problem:
    """The problem of a call on arrays of these dtypes and shapes."""
    tensors = [None if each is None else Type(dtype_name(each[0]), tuple(map(int, each[1]))) for each in types]
    return ops.canonical(op, tensors, attributes_of(op, attributes), outputs)


def _type(tensor: Tensor | None) -> Type | None:
    """Of a tensor that may be fake."""
    return None if tensor is None else Type(str(tensor.dtype).removeprefix("torch."), tuple(map(int, tensor.shape)))


@torch.library.custom_op("quatrefoil::apply", mutates_args=())
def apply_operator(
    inputs: Sequence[Tensor], places: Sequence[int], op: str, attributes: str, outputs: int
) -> list[Tensor]:
    return list(dispatch.call(_call(op, _inputs(inputs, places), attributes, outputs)))


@apply_operator.register_fake
def _(inputs: Sequence[Tensor], places: Sequence[int], op: str, attributes: str, outputs: int) -> list[Tensor]:
    types = [_type(tensor) for tensor in _inputs(inputs, places)]
    problem = ops.canonical(op, types, attributes_of(op, attributes), outputs)
    return [inputs[0].new_empty(y.shape, dtype=getattr(torch, y.dtype)) for y in problem.outputs]


@torch.library.custom_op("quatrefoil::gradients", mutates_args=())
def gradients_of(
    inputs: Sequence[Tensor],
    places: Sequence[int],
    results: Sequence[Tensor],
    result_places: Sequence[int],
    output_gradients: Sequence[Tensor],
    gradient_places: Sequence[int],
    op: str,
    attributes: str,
    outputs: int,
    wanted: Sequence[int],
) -> list[Tensor]:
    given = _inputs(inputs, places)
    problem = _call(op, given, attributes, outputs).problem()
    found = gradients.vjp(
        problem,
        given,
        _unpacked(results, result_places, outputs),
        _unpacked(output_gradients, gradient_places, outputs),
        wanted,
    )
    return [_own(found[place], output_gradients) for place in wanted]


def _own(gradient: Tensor, given: Sequence[Tensor]) -> Tensor:
    """What an operator of torch gives back may not be what it was given."""
    return gradient.clone() if any(tensor.data_ptr() == gradient.data_ptr() for tensor in given) else gradient


@gradients_of.register_fake
def _(
    inputs: Sequence[Tensor],
    places: Sequence[int],
    results: Sequence[Tensor],
    result_places: Sequence[int],
    output_gradients: Sequence[Tensor],
    gradient_places: Sequence[int],
    op: str,
    attributes: str,
    outputs: int,
    wanted: Sequence[int],
) -> list[Tensor]:
    by_place = dict(zip(places, inputs))
    return [by_place[place].new_empty(by_place[place].shape) for place in wanted]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    given, places, op, attributes, outputs = inputs
    read = [place for place in gradients.rule_of(op).reads if place < outputs]
    ctx.save_for_backward(*given, *(output[place] for place in read))
    ctx.call = (list(places), read, op, attributes, outputs)
    ctx.set_materialize_grads(False)  # an output that nothing depends on costs nothing


def _backward(ctx: Any, output_gradients: Sequence[Tensor | None]) -> tuple[Any, ...]:
    places, read, op, attributes, outputs = ctx.call
    given, results = ctx.saved_tensors[: len(places)], ctx.saved_tensors[len(places) :]
    known = gradients.rule_of(op).inputs
    wanted = [place for place, needed in zip(places, ctx.needs_input_grad[0]) if needed and place in known]
    # Indices have no gradient, nor has what a layer's training form gives for its gradients' sake, whatever stands for it here.
    results_of_layer = _of_layer(op, outputs)
    dys, dy_places = _packed(
        [
            dy if place < results_of_layer and dy is not None and dy.is_floating_point() else None
            for place, dy in enumerate(output_gradients)
        ]
    )
    found: dict[int, Tensor] = {}
    if wanted and dys:
        made = gradients_of(given, places, results, read, dys, dy_places, op, attributes, outputs, wanted)
        found = dict(zip(wanted, made))
    return [found.get(place) for place in places], None, None, None, None


apply_operator.register_autograd(_backward, setup_context=_save)
