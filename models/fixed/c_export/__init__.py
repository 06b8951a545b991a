"""Export of a fixed-point network to C99 without any dependency, for small devices: a header and a source.

    report = export_c(qf.fixed("model.onnx", precision), "build/net", check=samples)

The generated code computes the network's integers to the last bit. ``check`` compiles it with -Wall -Wextra -Werror and
compares every output with the network's own result. Weights and tables are constants (flash), values lie in one static
block in which those that are not needed at the same time share places (RAM).
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np

from quatrefoil.models.fixed.c_export import functions
from quatrefoil.models.fixed.c_export.functions import WRITERS, Source, Step, c_bytes, c_type
from quatrefoil.models.fixed.c_export.memory import Lifetime, places
from quatrefoil.models.fixed.c_export.moves import nest, sources
from quatrefoil.models.fixed.network import FixedNetwork, batch_rows, value_shapes
from quatrefoil.models.graph import ModelError, Node
from quatrefoil.problem import Tensor

MARKER: Final = "/* made by quatrefoil: a fixed-point network */"
"""The first line of both files, by which an earlier export is known."""

FLAGS: Final = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror")


class CExportError(ModelError):
    """A network that cannot be written as C, or C that does not compute what it should."""


@dataclass(frozen=True, slots=True)
class CExport:
    """C that was written.

    ram_bytes    the static block for values; inputs and outputs are the caller's
    stack_bytes  what recurrent layers keep their states in, beside a few dozen bytes of every call
    flash_bytes  constants: weights, biases, tables
    checked      samples on which every output equalled the network's, to the last bit; None where none were given
    library_bytes   of the shared library that was compiled to check; None where none was
    """

    header: Path
    source: Path
    name: str
    ram_bytes: int
    stack_bytes: int
    flash_bytes: int
    checked: int | None
    library_bytes: int | None

    def __str__(self) -> str:
        proof = "not compiled: no samples were given"
        if self.checked is not None:
            proof = f"equal to the last bit on {self.checked} samples ({' '.join(FLAGS)})"
        return (
            f"{self.header}, {self.source}: {self.name}_run\n"
            f"RAM {self.ram_bytes:,} bytes beside inputs and outputs, {self.stack_bytes:,} of states on the stack, flash "
            f"{self.flash_bytes:,} bytes of constants; {proof}"
        )


def export_c(
    network: FixedNetwork,
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    check: Mapping[str, Any] | Any | None = None,
) -> CExport:
    """Write a fixed-point network as ``name``.h and ``name``.c.

    directory: made if it is not there; files of other origin are not written over. name: a C identifier, the model's name
    when left out. check: inputs, batch first, on which the compiled code is held to the network; needs a C compiler (CC,
    else cc or gcc).

    Raises CExportError, in a sentence, for what cannot be written, does not compile or gives other numbers.
    """
    chosen = chosen_name(network, name)
    folder = Path(directory)
    header, source = folder / f"{chosen}.h", folder / f"{chosen}.c"
    writable(folder, {header: MARKER, source: MARKER})
    writing = Writing(network, chosen)
    header_text, source_text = writing.texts()
    folder.mkdir(parents=True, exist_ok=True)
    header.write_text(header_text, "utf-8")
    source.write_text(source_text, "utf-8")
    checked = text = None
    if check is not None:
        checked, text = _checked(writing, source, check)
    return CExport(
        header, source, chosen, writing.ram_bytes, writing.stack_bytes, writing.constant_bytes, checked, text
    )  # fmt: skip


def chosen_name(network: FixedNetwork, name: str | None) -> str:
    """A C identifier: the given one, or one made of the model's name. Raises CExportError for what is none."""
    chosen = name or "qf_" + re.sub(r"\W+", "_", network.graph.name or "model", flags=re.ASCII).strip("_").lower()
    if not re.fullmatch(r"[A-Za-z_]\w*", chosen, re.ASCII):
        raise CExportError(f"name is {chosen!r}; give a C identifier")
    return chosen


def writable(folder: Path, markers: Mapping[Path, str]) -> None:
    """Raises CExportError where a file of other origin would be written over: one that does not begin with its marker."""
    if folder.exists() and not folder.is_dir():
        raise CExportError(f"{folder} is a file; give a folder")
    for path, marker in markers.items():
        if path.exists() and not path.read_text("utf-8", "replace").startswith(marker):
            raise CExportError(f"{path} is no earlier export; give another name or folder")


@dataclass(frozen=True, slots=True)
class Given:
    """A constant that a function takes like a value."""

    name: str
    kind: str
    values: np.ndarray

    @property
    def text(self) -> str:
        numbers = ", ".join(map(str, self.values.reshape(-1).tolist()))
        return f"static const {self.kind} {self.name}[{self.values.size}] = {{{numbers}}};"


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: its integers' name and format, and the elements of a batch of one."""

    real: str
    integer: str
    size: int


class Writing:
    """A network's steps as functions, and the memory for what is between them."""

    def __init__(self, network: FixedNetwork, name: str) -> None:
        self.network, self.name, self.graph = network, name, network.graph
        self.shapes = value_shapes(network.model)
        self.formats = network.formats
        self.source = Source()
        self.calls: list[tuple[str, list[str]]] = []
        """Functions, and the values that they are called with: inputs, then outputs; "" for one that is not wanted."""
        self.alias: dict[str, str] = {}
        """Values that are others under another shape."""
        self.given: dict[str, Given] = {}
        self.inputs, self.outputs = [], []
        for node in self.graph.nodes:
            if node.kind == "FixedQuantize":
                self.inputs.append(self._port(node.inputs[0], node.outputs[0]))
            elif node.kind == "FixedDequantize":
                self.outputs.append(self._port(node.outputs[0], node.inputs[0]))
            else:
                self.node(node)
        self.offsets, self.ram_bytes = self.memory()
        self.stack_bytes = max(map(self._states, self.graph.nodes), default=0)

    @property
    def constant_bytes(self) -> int:
        return self.source.constant_bytes + sum(g.values.size * c_bytes(g.kind) for g in self.given.values())

    def _states(self, node: Node) -> int:
        """Bytes of a recurrent layer's states: old and new h, the cells or what a reset keeps."""
        if node.op not in ("fixed_rnn", "fixed_lstm", "fixed_gru"):
            return 0
        arrays = {"fixed_rnn": 2, "fixed_lstm": 3, "fixed_gru": 3}[node.op]
        first = next(name for name in node.outputs if name)
        return arrays * int(node.attributes["hidden_size"]) * c_bytes(c_type(self.formats[first]))

    def _port(self, real: str, integer: str) -> Port:
        return Port(real, integer, int(np.prod(self.shapes[integer])))

    def tensor(self, name: str) -> Tensor | None:
        if not name:
            return None
        if name in self.graph.constants:
            return Tensor.of(self.graph.constants[name])
        return Tensor(self.formats[name].dtype, self.shapes[name])

    def step(self, node: Node) -> Step:
        return Step(
            f"{self.name}_{re.sub(r'[^A-Za-z0-9]+', '_', node.name)}_{len(self.calls)}", node,
            [self.tensor(name) for name in node.inputs], [self.tensor(name) for name in node.outputs],
            self.formats, self.graph.constants,
        )  # fmt: skip

    def node(self, node: Node) -> None:
        step = self.step(node)
        writer = WRITERS.get(node.op or node.kind)
        if writer is not None:
            called = self.source.function(step.name, writer(step, self.source))
            taken = [name for name in node.inputs if name and name not in self._packed(node)]
            wanted = list(node.outputs)
            if node.op is not None and node.op in ("fixed_rnn", "fixed_lstm", "fixed_gru"):
                wanted += [""] * (2 + (node.op == "fixed_lstm") - len(wanted))
            for name in taken:
                if name in self.graph.constants:
                    self.constant_input(step, name)
            self.calls.append((called, [*taken, *wanted]))
        elif node.kind == "Concat":
            self.concat(step)
        elif node.proto is not None:
            self.move(step)
        else:
            raise CExportError(f"{node} has no form in C")

    def _packed(self, node: Node) -> set[str]:
        """Inputs that are written into the function."""
        if node.op == "fixed_conv":
            return set(node.inputs[1:])
        if node.op in ("fixed_rnn", "fixed_lstm", "fixed_gru"):
            return set(node.inputs[1:4])
        return set()

    def constant_input(self, step: Step, name: str) -> None:
        """A constant that a function takes like a value: in the type that the function reads."""
        kinds = dict(zip(step.node.inputs, ("a_format", "b_format")))
        form = step.form(kinds[name] if name in kinds and kinds[name] in step.node.attributes else "y_format")
        self.given.setdefault(name, Given(f"{step.name}_constant", c_type(form), self.graph.constants[name]))

    def move(self, step: Step) -> None:
        node = step.node
        shape = self.shapes[node.inputs[0]]
        for output, found in zip(node.outputs, sources(node, shape, self.graph.constants)):
            if not output:
                continue
            if found.size == int(np.prod(shape)) and np.array_equal(found.reshape(-1), np.arange(found.size)):
                self.alias[output] = node.inputs[0]
                continue
            self.copy(step, node.inputs[0], output, found, 0)

    def concat(self, step: Step) -> None:
        node = step.node
        assert node.proto is not None
        shape = self.shapes[node.outputs[0]]
        axis = next(item.i for item in node.proto.attribute if item.name == "axis") % len(shape)
        start = 0
        for name in node.inputs:
            part = self.shapes[name]
            inner = int(np.prod(shape[axis + 1 :]))
            self.copy(step, name, node.outputs[0], np.arange(int(np.prod(part))).reshape(part), start * inner)
            start += part[axis]

    def copy(self, step: Step, x: str, y: str, found: np.ndarray, start: int) -> None:
        name = f"{step.name}_{len(self.calls)}"
        text = functions.move(name, step.kind(y), nest(found), found, self.source, start, self.shapes[y])
        self.calls.append((self.source.function(name, text), [x, y]))

    def root(self, name: str) -> str:
        while name in self.alias:
            name = self.alias[name]
        return name

    def memory(self) -> tuple[dict[str, int], int]:
        """Offsets of the values that are neither inputs nor outputs, in one block."""
        outside = {port.integer for port in (*self.inputs, *self.outputs)}
        lives: dict[str, Lifetime] = {}
        for number, (_, names) in enumerate(self.calls):
            for name in map(self.root, filter(None, names)):
                if name in outside or name not in self.formats:
                    continue
                size = int(np.prod(self.shapes[name])) * c_bytes(c_type(self.formats[name]))
                known = lives.get(name, Lifetime(size, number, number))
                lives[name] = replace(known, last=number)
        # an output that is another value under another shape is copied at the end
        for port in self.outputs:
            root = self.root(port.integer)
            if root in lives:
                lives[root] = replace(lives[root], last=len(self.calls))
        return places(lives)

    def argument(self, name: str) -> str:
        if not name:
            return "0"
        root = self.root(name)
        for kind, ports in (("x", self.inputs), ("y", self.outputs)):
            for number, port in enumerate(ports):
                if port.integer == root:
                    return f"{kind}{number}"
        if root in self.offsets:
            return f"({c_type(self.formats[root])} *)(memory + {self.offsets[root]})"
        return self.given[root].name

    def texts(self) -> tuple[str, str]:
        """The header and the source."""
        upper, parameters = self.name.upper(), []
        lines = [MARKER, f"#ifndef {upper}_H", f"#define {upper}_H", "", "#include <stdint.h>", ""]
        for kind, word, ports in (("x", "input", self.inputs), ("y", "output", self.outputs)):
            for number, port in enumerate(ports):
                form = self.formats[port.integer]
                shape = "x".join(map(str, self.shapes[port.integer]))
                lines.append(
                    f"/* {word} {number}: {port.real}, {shape}, integers of {form} (real = integer / 2^{form.fraction}) */"
                )
                lines.append(f"#define {upper}_{word.upper()}_{number}_SIZE {port.size}")
                parameters.append(f"{'const ' if kind == 'x' else ''}{c_type(form)} *{kind}{number}")
        signature = f"void {self.name}_run({', '.join(parameters)})"
        lines += [
            "", f"/* {self.ram_bytes} bytes of static memory, {self.constant_bytes} bytes of constants. Not reentrant. */",
            f"{signature};", "", "#endif", "",
        ]  # fmt: skip
        calls = [f"{name}({', '.join(map(self.argument, names))});" for name, names in self.calls]
        for number, port in enumerate(self.outputs):
            if self.argument(port.integer) != f"y{number}":
                calls.append(
                    f"for (int i = 0; i < {port.size}; i++) y{number}[i] = ({self.argument(port.integer)})[i];"
                )
        memory = f"static union {{ unsigned char bytes[{max(self.ram_bytes, 1)}]; int64_t aligned; }} block;"
        use = "  unsigned char *const memory = block.bytes;\n" if self.ram_bytes else ""
        body = functions.indented("\n".join(calls), 1)
        pieces = [
            MARKER, f'#include "{self.name}.h"', IN_C, casts(), HELPERS, *self.source.texts,
            *(given.text for given in self.given.values()), *self.source.functions,
            *([memory] if self.ram_bytes else []), f"{signature} {{\n{use}{body}\n}}\n",
        ]  # fmt: skip
        return "\n".join(lines), "\n\n".join(pieces)


IN_C: Final = """#define QF_TABLE static const
#define QF_TABLE_POINTER const
#define QF_GLOBAL
#if defined(__GNUC__) && !defined(__clang__)
/* GCC 12.2 at -O2 leaves out calls of steps whose results it takes for unused; with noipa it looks at each alone. */
#define QF_STEP static __attribute__((noipa)) void
#else
#define QF_STEP static void
#endif
#define QF_64(number) number##LL"""

HELPERS: Final = """QF_FUNCTION qf_int64 qf_relu(qf_int64 v) { return v > 0 ? v : 0; }
QF_FUNCTION qf_int64 qf_between(qf_int64 v, qf_int64 low, qf_int64 high) {
  return v < low ? low : v > high ? high : v;
}"""


def casts() -> str:
    """The text of the casts."""
    return (Path(str(files("quatrefoil"))) / "include" / "quatrefoil" / "fixed.h").read_text("utf-8")


def _checked(writing: Writing, source: Path, check: Mapping[str, Any] | Any) -> tuple[int, int]:
    """Compiles, runs and compares; gives the number of samples and the bytes of the compiled library."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise CExportError("there is no C compiler to check with; install gcc, name one in CC, or leave check out")
    network = writing.network
    want = network.integers(check)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "network.so")
        command = [compiler, *FLAGS, "-fPIC", "-shared", str(source), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise CExportError(
                f"{source} does not compile ({' '.join(command[: len(FLAGS) + 1])}):\n{done.stderr.strip()}"
            )
        run = getattr(ctypes.CDLL(str(library)), f"{writing.name}_run")
        run.restype = None
        given = [rows(writing, port, want[port.integer]) for port in writing.inputs]
        expected = [rows(writing, port, want[port.integer]) for port in writing.outputs]
        got = [np.zeros_like(array) for array in expected]
        for number in range(len(given[0])):
            run(*(ctypes.c_void_p(array[number].ctypes.data) for array in (*given, *got)))
        for port, array, right in zip(writing.outputs, got, expected):
            wrong = int((array != right).sum())
            if wrong:
                raise CExportError(
                    f"the C of {port.real!r} differs in {wrong} of {right.size} integers from the network"
                )
        return len(given[0]), library.stat().st_size


def rows(writing: Writing, port: Port, integers: np.ndarray) -> np.ndarray:
    """Integers of a batch, a row for each sample, in the type that the C has."""
    kind = np.dtype(c_type(writing.formats[port.integer]).removesuffix("_t"))
    return np.ascontiguousarray(batch_rows(integers, writing.shapes[port.integer]), kind)


__all__ = ["CExport", "CExportError", "export_c"]
