"""A problem's text form reads back as the same problem, for every conformance case; bad text is refused in words."""

from __future__ import annotations

import pytest

from quatrefoil import ops
from quatrefoil.errors import OperatorError
from quatrefoil.ops import SPECS, Case

CASES = [case for spec in SPECS.values() for case in spec.cases()]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_text_reads_back(case: Case) -> None:
    problem = ops.canonical(case.op, case.inputs, case.attributes, case.outputs)
    assert ops.parse(problem.text) == problem


def test_different_problems_have_different_texts() -> None:
    problems = {ops.canonical(case.op, case.inputs, case.attributes, case.outputs) for case in CASES}
    assert len({problem.text for problem in problems}) == len(problems)


def test_defaults_and_auto_pad_are_settled() -> None:
    short = ops.parse("conv float32[1x3x8x8],float32[4x3x3x3] auto_pad=SAME_UPPER")
    assert short.text == ("conv float32[1x3x8x8],float32[4x3x3x3] strides=1x1 pads=1x1x1x1 dilations=1x1 group=1")


def test_conv_transpose_keeps_its_split_of_the_padding() -> None:
    text = (
        "conv_transpose float32[1x2x4x4],float32[2x2x3x3] "
        "strides=2x2 pads=0x1x2x0 dilations=1x1 group=1 output_shape=7x9"
    )
    assert ops.parse(text).text == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write: operator inputs"),
        ("convolve float32[1]", "known are conv, "),
        ("conv float32[1x3x8x8],float32[4x3x3x3] stride=1x1", "one of strides, "),
        ("conv float32[1x3x8x8],float32[4x3x3x3] strides=1,1", "whole numbers with x"),
        ("conv float32[1x3x8x8],float32[4x3x3x3] group=1 group=1", "write it once"),
        ("conv float32(1x3x8x8),float32[4x3x3x3]", "write dtype[AxBxC]"),
        ("max_pool float32[1x3x8x8] kernel_shape=2x2 with_indices=2", "give 0 or 1"),
        ("max_unpool float32[1x3x8x8],int64[1x3x8x8] indexed_shape=2x3x9x9", "begin with N and C"),
        ("conv_transpose float32[1x2x4x4],float32[2x2x3x3] pads=0x0x0x0 output_shape=5x6", "needs more"),
        ("conv_transpose float32[1x2x4x4],float32[2x2x3x3] pads=0x0x0 output_shape=5x6", "2 spatial axes"),
        ("lstm float32[5x3x4],float32[1x24x4],float32[1x24x6] activations=Sigmoid,Softer,Tanh", "known are Identity"),
    ],
)
def test_bad_text_is_refused(text: str, said: str) -> None:
    with pytest.raises(OperatorError, match=said.replace("[", r"\[").replace("(", r"\(")):
        ops.parse(text)
