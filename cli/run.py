"""``quatrefoil run``: a model on a backend, with inputs from files or made up, its outputs into a file."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from quatrefoil import backends, settings
from quatrefoil.cli.arguments import AsJson, Backend, Seed
from quatrefoil.cli.inputs import gather
from quatrefoil.cli.output import PlainTable, microseconds, say_json, stderr, stdout, table
from quatrefoil.cli.progress import steps
from quatrefoil.errors import QuatrefoilError

if TYPE_CHECKING:
    from quatrefoil.bench.nodes import LimitedNode

VALUES_SHOWN = 8

ModelFile = Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX file.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", help="name=file (.npy, .npz, .png), or a file alone. Left out: made-up numbers."),
]
Outputs = Annotated[Path | None, typer.Option("--output", "-o", help="Write the outputs to this .npz file.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse models with operators that would run on the host.")]
Profile = Annotated[bool, typer.Option("--profile", help="Also show what each node took.")]
Trace = Annotated[
    Path | None,
    typer.Option("--trace", help="Also write the profiled run as a Chrome trace (.json) for Perfetto: a bar a node."),
]
MaybeThreads = Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Threads for the CPU kernels.")]


def command(
    model: ModelFile,
    input: Inputs = None,
    output: Outputs = None,
    backend: Backend = "cpu",
    strict: Strict = False,
    profile: Profile = False,
    trace: Trace = None,
    threads: MaybeThreads = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Run a model and show its outputs."""
    from quatrefoil.models import load

    backends.get(backend)
    if output is not None and output.suffix != ".npz":
        raise QuatrefoilError(f"--output is {str(output)!r}; give a name that ends in .npz")
    if threads is not None:
        settings.set_num_threads(threads)
    if trace is not None:
        check_trace_name(trace)
    wanted = profile or trace is not None
    with steps("run", 3 if wanted else 2) as advance:
        advance(f"loading {model}")
        loaded = load(model, strict=strict)
        feeds = gather(loaded.inputs, input or [], seed)
        advance(f"running on {backend}")
        start = time.perf_counter()
        results = {name: np.asarray(array) for name, array in loaded.run(feeds, backend=backend).items()}
        seconds = time.perf_counter() - start
        nodes: list[LimitedNode] = []
        if wanted:
            from quatrefoil.bench import nodes as nodewise

            advance(f"profiling on {backend}")
            nodes = nodewise.profile(loaded, feeds, backend, settings.num_threads())
    if trace is not None:
        write_trace(trace, {backend: nodes}, model)
    if output is not None:
        save(output, results)
    if as_json:
        say_json(
            {
                "model": model,
                "backend": backend,
                "inputs": {name: _type(array) for name, array in feeds.items()},
                "made_up": not input,
                "first_run_seconds": seconds,
                "output_file": output,
                "outputs": {name: {**_type(array), "values": array} for name, array in results.items()},
                "profile": [asdict(node) for node in nodes],
            }
        )
        return
    console = stdout()
    if not input:
        console.print(f"inputs made up from seed {seed}: " + ", ".join(_described(n, a) for n, a in feeds.items()))
    for name, array in results.items():
        console.print(f"{_described(name, array)} = {_shown(array)}", markup=False)
    if profile:
        console.print("", profile_table(f"{model} on {backend}", nodes))
    if output is not None:
        console.print(f"outputs written to {output}")


def check_trace_name(path: Path) -> None:
    if path.suffix != ".json":
        raise QuatrefoilError(f"--trace is {str(path)!r}; give a name that ends in .json")


def write_trace(path: Path, profiles: dict[str, list[LimitedNode]], model: str) -> None:
    """A model's profiles, each backend's under its name, as a trace."""
    from quatrefoil.bench import trace

    trace.write(path, profiles, Path(model).name)
    stderr().print(f"trace written to {path}; open it at ui.perfetto.dev or chrome://tracing")


def profile_table(title: str, nodes: list[LimitedNode]) -> PlainTable:
    """Each node with its kernel, its share and its measured time or its simulated cycles, in columns of their own. The
    limit is the roofline's least time for a direct evaluation."""
    simulated = any(node.cycles is not None for node in nodes)
    limited = any(node.limit_seconds is not None for node in nodes)
    figures = [
        "measured us",
        *(["simulated cycles", "simulated us"] if simulated else []),
        "share",
        *(["limit us", "of limit"] if limited else []),
    ]
    rows = table(title, "node", "operator", "kernel", *figures, right=tuple(figures))
    for node in nodes:
        cells = [node.name, node.op, f"{node.backend}: {node.kernel}", microseconds(node.seconds)]
        if simulated:
            cells += ["" if node.cycles is None else f"{node.cycles:,}",
                      "" if node.microseconds is None else f"{node.microseconds:,.1f}"]  # fmt: skip
        cells.append(f"{node.share:.1%}")
        if limited:
            share = node.share_of_limit
            cells += [microseconds(node.limit_seconds), "" if share is None else f"{share:.0%}"]
        rows.row(*cells)
    return rows


def save(path: Path, results: dict[str, np.ndarray]) -> None:
    """Outputs as .npz, by name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        named: dict[str, Any] = dict(results)
        with open(path, "wb") as file:
            np.savez(file, **named)
    except OSError as error:
        raise QuatrefoilError(f"{path} cannot be written: {error}") from None


def _type(array: np.ndarray) -> dict[str, object]:
    return {"dtype": str(array.dtype), "shape": list(array.shape)}


def _described(name: str, array: np.ndarray) -> str:
    return f"{name}: {array.dtype}[{'x'.join(map(str, array.shape))}]"


def _shown(array: np.ndarray) -> str:
    flat = array.reshape(-1)
    values = " ".join(f"{value:.6g}" if array.dtype.kind == "f" else str(value) for value in flat[:VALUES_SHOWN])
    return values + (f" … ({flat.size} values)" if flat.size > VALUES_SHOWN else "")
