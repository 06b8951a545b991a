"""The same integers everywhere: whole fixed-point networks on every backend and as C, held to the oracle bit by bit.

    python -m quatrefoil.bench.fixed_proof [--samples 1000] [--nets digits_cnn,lstm,…] [--on cpu,fpga,asic,c]
    python -m quatrefoil.bench.fixed_proof --random 300 --samples 20 [--on hls --jobs 2]

For each network and precision every integer value inside it (the outputs alone for C) is compared with what
quatrefoil.reference computes, node by node, on the same samples. With --random, networks of random layers and options are
tried in place of the known ones; each has to come out equal or be refused in a sentence. Exits with 1 where one differs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np

from quatrefoil import backends, ops, reference
from quatrefoil.fpga.hls4ml_export import ExportError
from quatrefoil.fpga.hls4ml_export import export as export_hls
from quatrefoil.models import host
from quatrefoil.models.fixed import elements
from quatrefoil.models.fixed.c_export import export_c
from quatrefoil.models.fixed.c_export.opencl import export_opencl
from quatrefoil.models.fixed.network import FixedNetwork, fixed
from quatrefoil.models.gallery.small import NETS, random_network, samples
from quatrefoil.models.graph import ModelError
from quatrefoil.models.model import Model
from quatrefoil.ops import pool
from quatrefoil.problem import Problem, Tensor

PRECISIONS: Final = ("fixed<16,6>", "fixed<8,4,RND,SAT>")
"""Wrapping as high-level synthesis has it by default, and a narrow one that rounds and saturates."""

PLACES: Final = ("cpu", "fpga", "asic", "c", "opencl", "opencl-ndrange", "hls", "hls-stream")
"""Backends; C, OpenCL kernels without quatrefoil (as streams, and of many work-items), and Vitis projects of hls4ml with io
parallel and stream."""

FORMS: Final = {"opencl": "stream", "opencl-ndrange": "ndrange"}

IO: Final = {"hls": "parallel", "hls-stream": "stream"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One network in one precision at one place: integers that differ, of those compared."""

    net: str
    precision: str
    place: str
    samples: int
    differing: int
    compared: int
    seconds: float
    note: str = ""


def problem_of(node: Any, types: Sequence[Tensor | None]) -> Problem:
    """The call that a node of the house makes of inputs of these types."""
    attributes: Mapping[str, Any] = node.attributes
    if node.whole_plane:
        assert types[0] is not None
        attributes = pool.global_attributes(types[0], attributes)
    return ops.canonical(node.op, types, attributes)


def oracle(network: FixedNetwork, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Every integer value of a network with one input, by quatrefoil.reference, node by node."""
    graph = network.graph
    values: dict[str, np.ndarray] = {**graph.constants, graph.inputs[0].name: inputs}
    for node in graph.nodes:
        given = [values[name] if name else None for name in node.inputs]
        if node.op is not None:
            problem = problem_of(node, [None if array is None else Tensor.of(array) for array in given])
            made: Sequence[np.ndarray] = reference.evaluate(problem, given[: len(problem.inputs)])
        else:
            element = elements.operator_of(node)
            if element is not None:
                made = element.compute(given)
            else:
                assert node.proto is not None
                made = host.prepare(node.proto, dict(node.opsets), graph.constants).run(given)
        values |= {name: array for name, array in zip(node.outputs, made) if name}
    return {name: values[name] for name in network.formats}


def findings(models: Iterable[tuple[str, Model]], places: Sequence[str], count: int) -> Iterator[Finding | str]:
    """For each network, precision and place what was found; a sentence for a network that has no fixed-point form."""
    for net, model in models:
        x = samples(model, count)
        for precision in PRECISIONS:
            try:
                network = fixed(model, precision)
            except ModelError as error:
                yield f"{net} is refused: {error}"
                break
            want = oracle(network, x)
            for place in places:
                start = time.perf_counter()
                if place not in backends.names():
                    differing, compared, note = _exported(network, x, want, place)
                else:
                    differing, compared, note = _on_backend(network, x, want, place)
                took = time.perf_counter() - start
                yield Finding(net, precision, place, count, differing, compared, took, note)


def _found(net: str | int, places: Sequence[str], count: int) -> list[Finding | str]:
    """``findings`` of a known network, by its name, or of a random one, by its seed."""
    model = (f"random {net}", random_network(net)) if isinstance(net, int) else (net, NETS[net]())
    return list(findings([model], places, count))


def _all_found(nets: Sequence[str | int], places: Sequence[str], count: int, jobs: int) -> Iterator[Finding | str]:
    """In the order of the networks, ``jobs`` of them at a time."""
    look = partial(_found, places=places, count=count)
    if jobs < 2:
        yield from chain.from_iterable(map(look, nets))
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from chain.from_iterable(pool.map(look, nets))


def _on_backend(
    network: FixedNetwork, x: np.ndarray, want: Mapping[str, np.ndarray], place: str
) -> tuple[int, int, str]:
    """Every value, and the outputs of a run that keeps no other, in which a backend may join operators."""
    got = network.integers(x, backend=place)
    wrong = {name: int((got[name] != array).sum()) for name, array in want.items()}
    run = network.run(x, backend=place)
    ends = {node.outputs[0]: node.inputs[0] for node in network.graph.nodes if node.kind == "FixedDequantize"}
    for real, name in ends.items():
        wrong[real] = int((run[real] != network.formats[name].dequantize(want[name]).astype(np.float32)).sum())
    first = next((name for name, count in wrong.items() if count), "")
    compared = sum(array.size for array in want.values()) + sum(want[name].size for name in ends.values())
    return sum(wrong.values()), compared, first and f"first in {first}"


def _exported(network: FixedNetwork, x: np.ndarray, want: Mapping[str, np.ndarray], place: str) -> tuple[int, int, str]:
    """Of C and OpenCL the outputs are compared, of an HLS project every layer that its simulation traces."""
    ends = [node.inputs[0] for node in network.graph.nodes if node.kind == "FixedDequantize"]
    compared = sum(want[name].size for name in ends)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if place == "c":
                made = export_c(network, folder, check=x)
                return 0, compared, f"RAM {made.ram_bytes} B, flash {made.flash_bytes} B"
            if place in FORMS:
                return 0, compared, f"{export_opencl(network, folder, check=x, form=FORMS[place]).steps} kernels"
            report = export_hls(
                network, Path(folder) / "project", io=IO[place], check={network.source.inputs[0].name: x}
            )
            return 0, report.integers, f"{len(report.checked)} layers"
        except ModelError as error:
            return compared, compared, str(error)
        except ExportError as error:
            return (0 if "supported with" in str(error) else compared), compared, f"refused: {error}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--on", default="cpu,fpga,asic,c", help=f"of {', '.join(PLACES)}")
    parser.add_argument("--random", type=int, default=0, help="this many random networks in place of the known ones")
    parser.add_argument("--seed", type=int, default=0, help="of the first random network")
    parser.add_argument(
        "--jobs", type=int, default=1, help="networks side by side; HLS projects spend their time in g++"
    )
    given = parser.parse_args(arguments)
    nets, places = given.nets.split(","), given.on.split(",")
    unknown = [*(net for net in nets if net not in NETS), *(place for place in places if place not in PLACES)]
    if unknown:
        parser.error(f"{unknown[0]!r} is unknown; nets are {', '.join(NETS)}, places {', '.join(PLACES)}")
    for place in places:
        if place in backends.names() and not backends.get(place).probe().ready:
            print(f"{place} is left out: {backends.get(place).probe().detail}")
            places = [other for other in places if other != place]
    wanted: Sequence[str | int] = range(given.seed, given.seed + given.random) if given.random else nets
    equal = failed = refused = 0
    print(f"{'network':<20} {'precision':<20} {'on':<14} {'samples':>7} {'integers':>10} {'differ':>7} {'s':>6}")
    for one in _all_found(wanted, places, given.samples, given.jobs):
        if isinstance(one, str):
            refused += 1
            print(one, flush=True)
            continue
        equal, failed = equal + (one.differing == 0), failed + (one.differing > 0)
        print(
            f"{one.net:<20} {one.precision:<20} {one.place:<14} {one.samples:>7} {one.compared:>10,} {one.differing:>7,} "
            f"{one.seconds:>6.1f}  {one.note}",
            flush=True,
        )
    print(f"{equal} equal to the last bit, {failed} different, {refused} networks refused")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
