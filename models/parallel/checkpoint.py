"""Checkpoints that are whole or not there, and that say what they belong to.

A file is written beside its place and moved onto it, so that a process that ends while it writes leaves the one before.
A part of a divided network keeps its last two steps: parts may have ended a step apart, and the run goes on from the newest
step that all of them have.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from quatrefoil.errors import QuatrefoilError

KEPT = 2


class Checkpoint:
    """The checkpoints of one part of a run, in ``directory``."""

    def __init__(self, directory: Path, part: str, division: str, shapes: dict[str, tuple[int, ...]]) -> None:
        self.directory, self.part = directory, part
        self.belongs = {"division": division, "shapes": shapes}

    def steps(self) -> list[int]:
        """The steps that are kept, oldest first."""
        pattern = re.compile(rf"{re.escape(self.part)}-(\d+)\.pt")
        found = (pattern.fullmatch(path.name) for path in self.directory.glob("*.pt"))
        return sorted(int(match[1]) for match in found if match)

    def save(self, step: int, state: dict[str, Any]) -> None:
        target = self._path(step)
        beside = target.with_suffix(f".{os.getpid()}.writing")
        with beside.open("wb") as file:
            torch.save({**self.belongs, "step": step, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
        for old in self.steps()[:-KEPT]:
            self._path(old).unlink(missing_ok=True)

    def load(self, step: int) -> dict[str, Any]:
        """Raises QuatrefoilError where the file is no checkpoint, or of another network or division."""
        path = self._path(step)
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
        except Exception as error:  # torch raises whatever the file's bytes lead it to
            raise QuatrefoilError(
                f"{path} cannot be read as a checkpoint ({error}); remove it to start anew"
            ) from error
        for name, wanted in self.belongs.items():
            if state.get(name) != wanted:
                raise QuatrefoilError(
                    f"{path} is of another run: its {name} is {state.get(name)}, here it is {wanted}; "
                    "give another directory, or remove it to start anew"
                )
        return state

    def _path(self, step: int) -> Path:
        return self.directory / f"{self.part}-{step}.pt"
