"""Options that several subcommands have, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

from quatrefoil import backends
from quatrefoil.errors import QuatrefoilError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Backend = Annotated[str, typer.Option("--backend", "-b", help=f"One of {', '.join(backends.NAMES)}.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of inputs that are made up.")]


def listed(text: str) -> list[str]:
    """``cpu,asic`` as a list, without repetitions."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    return list(dict.fromkeys(names))


def backend_names(text: str) -> list[str]:
    """A list of backends, or all that this machine can run for ``all``. Raises QuatrefoilError for an unknown one."""
    if text.strip() == "all":
        return [name for name in backends.names() if backends.get(name).probe().ready]
    chosen = listed(text)
    if not chosen:
        raise QuatrefoilError(f"no backend is named; give some of {', '.join(backends.names())}, or all")
    for name in chosen:
        backends.get(name)
    return chosen
