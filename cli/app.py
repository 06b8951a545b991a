"""The application: its subcommands, and what an error looks like to the person who made it."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from typing import Annotated

import typer

from quatrefoil.cli import (
    bench,
    compress,
    demo,
    doctor,
    explain,
    export,
    gallery,
    info,
    output,
    quantize,
    simulate,
    sweep,
)
from quatrefoil.cli import run as run_command
from quatrefoil.errors import QuatrefoilError

TRACEBACK = "--traceback"

app = typer.Typer(
    name="quatrefoil",
    help="Convolution, pooling and recurrent kernels on CPU, GPU, FPGA and a cycle-level ASIC simulator.",
    epilog=f"Exit codes: 0 all is well, 1 a check failed, 2 the command cannot be done as given. "
    f"{TRACEBACK} anywhere shows where an error came from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("run")(run_command.command)
app.command("bench")(bench.command)
app.command("explain")(explain.command)
app.command("quantize")(quantize.command)
app.command("compress")(compress.command)
app.command("export")(export.command)
app.command("simulate")(simulate.command)
app.command("sweep")(sweep.command)
app.command("doctor")(doctor.command)
app.command("info")(info.command)
app.command("demo")(demo.command)
app.add_typer(gallery.app, name="gallery")


def _version(wanted: bool) -> None:
    if wanted:
        from quatrefoil.bench.machine import package_version

        print(f"quatrefoil {package_version('quatrefoil')}")
        raise typer.Exit(output.OK)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Convolution, pooling and recurrent kernels on CPU, GPU, FPGA and a cycle-level ASIC simulator."""


def run(arguments: list[str]) -> int:
    """Do what the arguments say; gives the exit code."""
    given = [argument for argument in arguments if argument != TRACEBACK]
    try:
        app(given, prog_name="quatrefoil")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else output.BAD_USE
    except QuatrefoilError as error:
        if TRACEBACK in arguments:
            raise
        if _says_json(given):
            output.say_json({"error": str(error)})
        output.stderr().print(f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True)
        return output.BAD_USE
    except KeyboardInterrupt:
        output.stderr().print("interrupted")
        return 130
    except BrokenPipeError:
        # whoever read our output has had enough; Python must not complain again when it closes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return output.OK
    return output.OK


def _says_json(arguments: list[str]) -> bool:
    """Whether standard output was to hold a JSON document. The bench's option names a file, where - is standard output."""
    if arguments[:1] != ["bench"]:
        return "--json" in arguments
    return "--json=-" in arguments or ("--json", "-") in pairwise(arguments)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
