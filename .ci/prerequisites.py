"""Says in a sentence what this machine lacks for building quatrefoil, and the one command that adds it.

Runs on the Python that was found before anything is installed, so it uses nothing but the standard library and the
syntax of old versions.
"""

import os
import shutil
import sys
import sysconfig


def missing():
    """Pairs of (what is missing, the Debian package that has it)."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this runs on whatever Python was found
        version = ".".join(map(str, sys.version_info[:3]))
        yield f"Python 3.11 or newer (this is {version}; name another with `make PYTHON=python3.12 …`)", "python3"
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        yield "Python's venv and ensurepip modules", "python3-venv"
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        yield "Python's C headers (Python.h)", "python3-dev"
    if not shutil.which(os.environ.get("CXX", "g++")):
        yield "a C++ compiler ({})".format(os.environ.get("CXX", "g++")), "g++"


def main():
    lacking = list(missing())
    for what, _ in lacking:
        print(f"quatrefoil needs {what}: not found here.", file=sys.stderr)
    if lacking:
        packages = " ".join(package for _, package in lacking)
        print(f"On Debian or Ubuntu this adds it:  sudo apt install {packages}", file=sys.stderr)
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
