"""Arrays for a model's inputs, from .npy, .npz and .png files or made up from a seed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.graph import Value

FREE_AXIS = 1
"""The length of an axis that the model leaves open, when inputs are made up."""


def gather(declared: Sequence[Value], given: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Inputs by name. ``given`` holds ``name=file`` or ``file`` entries; with none of them every input is made up.

    A bare .npz gives its arrays by name; a bare .npy or .png is for the model's only input.
    """
    if not given:
        rng = np.random.default_rng(seed)
        return {value.name: made_up(value, rng) for value in declared}
    found: dict[str, np.ndarray] = {}
    by_name = {value.name: value for value in declared}
    for entry in given:
        name, equals, text = entry.partition("=")
        path = Path(text if equals else entry)
        if not equals and path.suffix == ".npz":
            found.update(_npz(path))
            continue
        if not equals:
            if len(declared) != 1:
                raise QuatrefoilError(
                    f"{entry}: the model has {len(declared)} inputs ({', '.join(by_name)}); write name={entry}"
                )
            name = declared[0].name
        if name not in by_name:
            raise QuatrefoilError(f"the model has no input {name!r}; it has {', '.join(by_name) or 'none'}")
        found[name] = _file(path, by_name[name])
    return found


def made_up(value: Value, rng: np.random.Generator) -> np.ndarray:
    """Normal numbers for floats, small whole numbers for integers; open axes are 1 long."""
    if value.kind != "tensor" or value.shape is None or value.dtype in (None, "string"):
        raise QuatrefoilError(f"an input {value} cannot be made up; give it with --input {value.name}=file.npy")
    shape = tuple(length if isinstance(length, int) else FREE_AXIS for length in value.shape)
    dtype = np.dtype(value.dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0, min(np.iinfo(dtype).max, 10) + 1, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _npz(path: Path) -> dict[str, np.ndarray]:
    loaded = _load(path)
    if not isinstance(loaded, Mapping):
        raise QuatrefoilError(f"{path} holds one array; write name={path}")
    return {name: loaded[name] for name in loaded}


def _file(path: Path, value: Value) -> np.ndarray:
    if path.suffix.lower() == ".png":
        return _png(path, value)
    loaded = _load(path)
    if not isinstance(loaded, Mapping):
        return loaded
    names = list(loaded)
    if value.name in names:
        return np.asarray(loaded[value.name])
    if len(names) == 1:
        return np.asarray(loaded[names[0]])
    raise QuatrefoilError(f"{path} has no array {value.name!r}; it has {', '.join(names)}")


def _load(path: Path) -> np.ndarray | Mapping[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError) as error:
        raise QuatrefoilError(f"{path} cannot be read as .npy or .npz: {error}") from None


def _png(path: Path, value: Value) -> np.ndarray:
    """A picture as (1, C, H, W) with values from 0 to 1, in the channels that the input declares (1 or 3)."""
    if importlib.util.find_spec("PIL") is None:
        raise QuatrefoilError(f"reading {path} needs Pillow; to add it: pip install pillow")
    from PIL import Image, UnidentifiedImageError

    shape = value.shape
    channels = shape[1] if shape is not None and len(shape) == 4 else None
    if channels not in (1, 3):
        raise QuatrefoilError(f"a picture does not fit the input {value}; it has to be (N, 1 or 3, H, W)")
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise QuatrefoilError(f"{path} cannot be read as a picture: {error}") from None
    planes = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    scaled = np.ascontiguousarray(planes[None], np.float32) / 255
    return scaled if value.dtype in (None, "float32") else scaled.astype(value.dtype)
