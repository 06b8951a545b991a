"""The table of what works where, made from the kernels' own declarations.

    python -m quatrefoil.bench.support_table            # writes it into docs/support.md and README.md
    python -m quatrefoil.bench.support_table --check    # exits with 1 where they differ

An operator works on a backend for a number format when some kernel there accepts every conformance case of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from quatrefoil import backends, ops
from quatrefoil.ops import layouts
from quatrefoil.problem import Problem

BEGIN, END = "<!-- support table: begin -->", "<!-- support table: end -->"
FILES = ("README.md", "docs/support.md")


def support(op: str, backend: str) -> dict[str, tuple[int, int]]:
    """By the dtype of x: how many of the operator's conformance cases some kernel accepts, and how many there are."""
    kernels = [kernel for kernel in backends.get(backend).kernels() if kernel.op == op]
    counts: dict[str, tuple[int, int]] = {}
    for problem in _problems(op):
        accepted = any(kernel.accepts(problem) is None for kernel in kernels)
        have, total = counts.get(problem.dtype, (0, 0))
        counts[problem.dtype] = have + accepted, total + 1
    return counts


def _problems(op: str) -> Iterator[Problem]:
    for case in ops.SPECS[op].cases():
        yield layouts.plain(ops.canonical(case.op, case.inputs, case.attributes, case.outputs))


def cell(counts: dict[str, tuple[int, int]]) -> str:
    """``float32 float64, float16 in part`` or a dash."""
    whole = [dtype for dtype, (have, total) in counts.items() if have == total]
    part = [f"{dtype} ({have} of {total} cases)" for dtype, (have, total) in counts.items() if 0 < have < total]
    return ", ".join(whole + part) or "—"


def markdown() -> str:
    """The table, between its markers."""
    lines = [f"| operator | {' | '.join(backends.NAMES)} |", "| --- " * (1 + len(backends.NAMES)) + "|"]
    for op in ops.SPECS:
        cells = [cell(support(op, backend)) for backend in backends.NAMES]
        lines.append(f"| `{op}` | {' | '.join(cells)} |")
    return "\n".join((BEGIN, *lines, END))


def renewed(text: str) -> str:
    """The text with the table between its markers made anew. Raises ValueError where the markers are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no {BEGIN} … {END} to fill")
    return before + markdown() + after


def main(arguments: list[str]) -> int:
    stale = []
    for name in FILES:
        path = Path(name)
        text = path.read_text(encoding="utf-8")
        fresh = renewed(text)
        if fresh != text:
            stale.append(name)
            if "--check" not in arguments:
                path.write_text(fresh, encoding="utf-8")
    if "--check" in arguments and stale:
        print(f"stale: {', '.join(stale)}; run python -m quatrefoil.bench.support_table", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
