"""The command line: ``quatrefoil run | bench | explain | export | simulate | sweep | doctor | demo | gallery``, a file for each.

Exit codes: 0 all is well; 1 something was checked and failed; 2 the command cannot be done as given.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point of the ``quatrefoil`` command."""
    from quatrefoil.cli.app import run

    sys.exit(run(sys.argv[1:]))


__all__ = ["main"]
