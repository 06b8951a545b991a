"""``quatrefoil sweep``: many designs of the simulated chip for a problem or a model, and those that no other one beats."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from quatrefoil.bench.sweep import OBJECTIVES, Outcome, Sweep
from quatrefoil.cli.arguments import AsJson, Seed, listed
from quatrefoil.cli.explain import Target, is_model
from quatrefoil.cli.output import FAILED, say_json, stderr, stdout, table
from quatrefoil.cli.progress import steps
from quatrefoil.cli.simulate import Design, Format
from quatrefoil.errors import QuatrefoilError
from quatrefoil.models.simulation import Workload

HERE = "none"
MOST_ROWS, MOST_REASONS, MOST_STEPS, STEP = 40, 5, 20, 100

Over = Annotated[
    list[str],
    typer.Option(
        "--over",
        metavar="FIELD=VALUES",
        help="A field of the design with its values: 8,16,32 or 4:64:*2 or 4:64:4; FIELD+FIELD gives both the same.",
    ),
]
Random = Annotated[int | None, typer.Option("--random", min=1, metavar="N", help="N random designs of the grid.")]
Optuna = Annotated[int | None, typer.Option("--optuna", min=1, metavar="N", help="N designs by Optuna's search.")]
Objectives = Annotated[
    str, typer.Option("--objectives", help=f"What is to be small, with commas between: of {', '.join(OBJECTIVES)}.")
]
Scheduler = Annotated[
    str,
    typer.Option("--scheduler", help=f"local processes, {HERE} besides this one, or a Dask scheduler's tcp://…"),
]
Keep = Annotated[
    Path | None, typer.Option("--keep", help="Keep each design in this file, and go on from it; else in a new one.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write a page with a chart of the designs.")]


def command(
    target: Target,
    over: Over,
    design: Design = "",
    random: Random = None,
    optuna: Optuna = None,
    objectives: Objectives = "cycles,energy_pj,area_mm2",
    scheduler: Scheduler = "local",
    keep: Keep = None,
    html: Html = None,
    as_format: Format = "",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Evaluate many designs of the simulated chip, and print those that no other one beats."""
    from quatrefoil.asic_sim import hardware
    from quatrefoil.bench import sweep

    if random is not None and optuna is not None:
        raise QuatrefoilError("give --random or --optuna, not both")
    method = sweep.RANDOM if random is not None else sweep.OPTUNA if optuna is not None else sweep.GRID
    base = hardware.load(design) if design else hardware.current()
    axes = tuple(sweep.axis(text, base) for text in over)
    asked = Sweep(
        _network(target, seed, sweep.weighs(base, axes)),
        base,
        axes,
        method,
        random or optuna or 0,
        seed,
        tuple(listed(objectives)),
        as_format or None,
    )
    if asked.network.unknown:
        names = ", ".join(dict.fromkeys(each.op for each in asked.network.unknown))
        stderr().print(f"no cost is known for these, they take nothing: {names}", markup=False)
    keep = keep or Path("reports", f"sweep-{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl")
    parts, begun, known = min(MOST_STEPS, 1 + asked.count // STEP), 0, 0
    try:
        with steps("sweep", parts) as advance:

            def done(count: int) -> None:
                nonlocal begun, known
                known = count
                while begun * asked.count < count * parts:
                    advance(f"{count:,} of {asked.count:,} designs")
                    begun += 1

            found = sweep.run(asked, scheduler=None if scheduler == HERE else scheduler, keep=keep, done=done)
    except KeyboardInterrupt:
        stderr().print(f"{known} designs are kept in {keep}; to go on, give the same command with --keep {keep}")
        raise
    best = sweep.front(found, asked.objectives)
    if html is not None:
        sweep.write_html(html, f"Designs for {Path(target).name if is_model(target) else target}", asked, found)
        stderr().print(f"page written to {html}")
    refused = Counter(outcome.refused for outcome in found if outcome.figures is None)
    if as_json:
        say_json(
            {
                "sweep": asked.digest,
                **asked.as_dict(),
                "no_cost_known": [each.op for each in asked.network.unknown],
                "objectives": asked.objectives,
                "designs": len(found),
                "front": [{**outcome.values, **(outcome.figures or {})} for outcome in best],
                "refused": dict(refused.most_common()),
                "kept": keep,
            }
        )
    else:
        _show(asked, found, best)
        for why, count in refused.most_common(MOST_REASONS):
            stderr().print(f"{count} refused: {why}", markup=False)
        stderr().print(f"all are kept in {keep}", markup=False)
    if not best:
        stderr().print("no design can run this")
        raise typer.Exit(FAILED)


def _network(target: str, seed: int, weights: bool) -> Workload:
    from quatrefoil import ops
    from quatrefoil.bench.sweep import network_of

    if not is_model(target):
        return network_of(ops.parse(target))
    from quatrefoil.cli.inputs import gather
    from quatrefoil.models import load

    model = load(target)
    return network_of(model, gather(model.inputs, [], seed), weights)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"


def _show(asked: Sweep, found: list[Outcome], best: list[Outcome]) -> None:
    names = [name for one in asked.axes for name in one.fields]
    columns = [*names, *asked.objectives]
    shown = table(f"{len(best)} of {len(found)} designs are beaten by no other one", *columns, right=tuple(columns))
    for outcome in best[:MOST_ROWS]:
        figures: Any = outcome.figures
        shown.row(
            *(str(outcome.values[name]) for name in names), *(_figure(figures[name]) for name in asked.objectives)
        )
    console = stdout()
    console.print(f"base design {asked.base}", markup=False)
    console.print(shown)
    if len(best) > MOST_ROWS:
        console.print(f"and {len(best) - MOST_ROWS} more")
