"""What a model of the gallery says about itself, what a training run gives, and how that is kept and checked.

An ``Entry`` trains with ``train(small, report)`` and writes its inference as ONNX with ``export(weights)``. A checkpoint is
one .npz: the weights by name, and a header that names the model, so that another model's is refused. Files are written
whole or not at all.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quatrefoil import backends
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.gallery.training import OPSET
from quatrefoil.models.gallery.tuning import Tuning
from quatrefoil.models.model import load

HEADER, WEIGHT, PICTURE = "quatrefoil", "weights/", "pictures/"
FORMAT = 1
AGREES = 1e-5
"""Largest difference from the CPU's numbers, as a share of the largest of them."""

Weights = dict[str, np.ndarray]
Report = Callable[[str], None]
"""Takes a line about how the training goes."""


@dataclass(frozen=True)
class Beside:
    """A figure to compare with, of the same data and split: whose it is, and where it comes from."""

    name: str
    value: float
    source: str


@dataclass(frozen=True)
class Trained:
    """What a training run gives.

    figures   ours by name, such as "held-out accuracy"
    beside    others' figures for the same data and split
    curves    a list of numbers for each curve, such as the reconstruction error of every epoch
    pictures  images (rows, columns, height, width) from 0 to 1 by caption
    texts     what it writes, by caption
    """

    weights: Weights
    figures: dict[str, float]
    beside: tuple[Beside, ...] = ()
    curves: dict[str, list[float]] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A model of the gallery.

    name      as in ``quatrefoil gallery run NAME``
    what      the model in a few words
    data      the data that it is trained with
    source    where the algorithm comes from
    train     ``train(small, report)``: full size in minutes, or small in seconds
    export    the inference as ONNX, from the weights of a training run
    inputs    a few real inputs of the exported model, for a run of either size
    tuning    what of it can be chosen by trials; None where nothing is
    """

    name: str
    what: str
    data: str
    source: str
    train: Callable[[bool, Report], Trained]
    export: Callable[[Weights], onnx.ModelProto]
    inputs: Callable[[bool], np.ndarray]
    tuning: Tuning | None = None


@dataclass(frozen=True)
class Agreement:
    """A backend's outputs beside the CPU's: the largest difference as a share of the largest value; None where the
    backend cannot run here, and ``detail`` says why."""

    backend: str
    detail: str
    difference: float | None

    @property
    def agrees(self) -> bool:
        return self.difference is None or self.difference <= AGREES

    @property
    def short(self) -> str:
        if self.difference is None:
            return "not here"
        return f"{self.difference:.1e}{'' if self.agrees else ' DIFFERS'}"

    def __str__(self) -> str:
        if self.difference is None:
            return f"{self.backend}: not here ({self.detail})"
        word = "agrees" if self.agrees else "DIFFERS"
        return (
            f"{self.backend}: {word}, at most {self.difference:.1e} of the largest value away from cpu ({self.detail})"
        )


def agreement(model: onnx.ModelProto, inputs: np.ndarray, names: Sequence[str] = ()) -> list[Agreement]:
    """Run a model on the backends named (all when none is) and compare with the CPU's numbers."""
    loaded = load(model)
    [given] = loaded.inputs
    feeds = {given.name: inputs}
    wanted = loaded.run(feeds, backend="cpu")
    found = []
    for name in names or backends.names():
        there = backends.get(name).probe()
        if not there.ready:
            found.append(Agreement(name, there.detail, None))
            continue
        got = loaded.run(feeds, backend=name)
        difference = max(_share(got[output], value) for output, value in wanted.items())
        found.append(Agreement(name, backends.get(name).device(), difference))
    return found


def _share(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference as a share of the largest wanted value; infinite where anything is not finite."""
    away, largest = float(np.abs(got - wanted).max()), float(np.abs(wanted).max())
    if not np.isfinite(away):
        return float("inf")
    return away / largest if largest else away


def require_finite(name: str, loss: float, epoch: int) -> float:
    """The loss. Raises QuatrefoilError where it is not finite."""
    if not np.isfinite(loss):
        raise QuatrefoilError(
            f"{name}: the loss is {loss} in epoch {epoch}; training stops and the checkpoint before it stays as it was. "
            "A smaller learning rate, or inputs without NaN and infinity, would do"
        )
    return float(loss)


def write_whole(path: Path, contents: bytes) -> None:
    """Write a file so that it holds either what it held before or all of the new contents."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)
        raise QuatrefoilError(f"{path} cannot be written: {error}") from None


def save_checkpoint(path: Path, name: str, trained: Trained, small: bool, seconds: float) -> None:
    """What a training run gave, as one .npz, atomically. Raises QuatrefoilError for weights that are not finite."""
    for key, array in trained.weights.items():
        if not np.isfinite(array).all():
            raise QuatrefoilError(f"{name}: {key} holds numbers that are not finite; no checkpoint is written")
    header = {
        "model": name, "format": FORMAT, "small": small, "seconds": seconds, "figures": trained.figures,
        "beside": [asdict(each) for each in trained.beside], "curves": trained.curves, "captions": list(trained.pictures),
        "texts": trained.texts,
    }  # fmt: skip
    arrays: dict[str, np.ndarray] = {HEADER: np.frombuffer(json.dumps(header).encode(), np.uint8)}
    arrays |= {f"{WEIGHT}{key}": array for key, array in trained.weights.items()}
    for number, picture in enumerate(trained.pictures.values()):
        arrays[f"{PICTURE}{number}"] = np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    buffer = BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_whole(path, buffer.getvalue())


class Checkpoint(NamedTuple):
    trained: Trained
    small: bool
    seconds: float


def load_checkpoint(path: Path, name: str) -> Checkpoint:
    """A model's checkpoint. Raises QuatrefoilError for a file that is missing, damaged, or another model's."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        header = json.loads(arrays.pop(HEADER).tobytes())
    except FileNotFoundError:
        raise QuatrefoilError(f"{path} is not there; `quatrefoil gallery train {name}` makes it") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise QuatrefoilError(f"{path} is no whole checkpoint of the gallery: {error}") from None
    if header.get("model") != name:
        raise QuatrefoilError(
            f"{path} is a checkpoint of {header.get('model')!r}, not of {name!r}; train {name!r} first"
        )
    if header.get("format") != FORMAT:
        raise QuatrefoilError(f"{path} is of format {header.get('format')}, this is {FORMAT}; train {name!r} again")
    trained = Trained(
        {key.removeprefix(WEIGHT): array for key, array in arrays.items() if key.startswith(WEIGHT)},
        header["figures"],
        tuple(Beside(**each) for each in header["beside"]),
        header["curves"],
        {caption: arrays[f"{PICTURE}{n}"].astype(np.float32) / 255 for n, caption in enumerate(header["captions"])},
        header.get("texts", {}),
    )
    return Checkpoint(trained, header["small"], header["seconds"])


class Graph:
    """An ONNX graph of one input, written node by node."""

    def __init__(
        self,
        name: str,
        input_name: str,
        shape: Sequence[int | str],
        documentation: str,
        kind: int = TensorProto.FLOAT,
    ) -> None:
        self._name, self._documentation = name, documentation
        self._input = helper.make_tensor_value_info(input_name, kind, list(shape))
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._known: set[str] = set()

    def weight(self, name: str, array: np.ndarray) -> str:
        if name not in self._known:
            self._known.add(name)
            self._weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, op: str, *inputs: str, name: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        """A node whose one output has its name, or whose outputs are named."""
        self._nodes.append(helper.make_node(op, list(inputs), list(outputs or [name]), name, **attributes))
        return name

    def model(self, **outputs: Sequence[int | str]) -> onnx.ModelProto:
        """The checked model; outputs: each name with its shape."""
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [self._input],
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, list(shape)) for key, shape in outputs.items()],
            self._weights,
            doc_string=self._documentation,
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=10, producer_name="quatrefoil")
        onnx.checker.check_model(model, full_check=True)
        return model
