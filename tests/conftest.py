"""Fixtures of the tests of native CPU kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from quatrefoil import settings
from quatrefoil.cpu import instruction_set


@pytest.fixture(params=instruction_set.supported())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set that this processor and build can run, forced in turn."""
    number = instruction_set.supported().index(request.param)
    monkeypatch.setattr(instruction_set, "index", lambda: number)
    return request.param


@pytest.fixture
def threads() -> Iterator[None]:
    """The number of threads is after the test what it was before."""
    before = settings.num_threads()
    yield
    settings.set_num_threads(before)
