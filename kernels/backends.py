"""The list of backends by name. Each is loaded when it is asked for, never before.

Others can be added by an entry point in the group ``quatrefoil.backends`` that names an object satisfying
``registry.Backend``.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from quatrefoil.errors import QuatrefoilError
from quatrefoil.registry import Backend

MODULES = {
    "cpu": "quatrefoil.cpu",
    "gpu": "quatrefoil.gpu",
    "fpga": "quatrefoil.fpga",
    "asic": "quatrefoil.asic_sim",
}
NAMES = tuple(MODULES)

ENTRY_POINTS = "quatrefoil.backends"


@cache
def get(name: str) -> Backend:
    """The backend of that name. Raises QuatrefoilError, with the known names, when there is none."""
    if name in MODULES:
        backend: Backend = import_module(MODULES[name]).BACKEND
        return backend
    added = _entry_points()
    if name in added:
        loaded: Backend = added[name].load()
        return loaded
    raise QuatrefoilError(f"there is no backend {name!r}; known are {', '.join((*NAMES, *added))}")


def names() -> tuple[str, ...]:
    """Our four, then those that other packages add."""
    return (*NAMES, *(name for name in _entry_points() if name not in MODULES))


@cache
def _entry_points() -> dict:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}
