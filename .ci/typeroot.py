"""Writes a tree of links in which the folders of this checkout stand where Python's import names say they are.

    python .ci/typeroot.py [CHECKOUT [TARGET]]        # defaults: this checkout, .typeroot

kernels/ is the package ``quatrefoil`` and cpu/ is ``quatrefoil.cpu``: type checkers and editors do not follow that
map, but they follow links. After this, ``.typeroot`` is a folder for mypy_path, for extraPaths or for PYTHONPATH.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT_ROOM = "kernels"


def write(checkout: Path, target: Path) -> None:
    """Makes ``target``/quatrefoil anew: a link for every entry of kernels/, and one for every other package."""
    package = target / "quatrefoil"
    if package.exists():
        shutil.rmtree(package)
    package.mkdir(parents=True)
    inner = [path for path in (checkout / ROOT_ROOM).iterdir() if path.name != "__pycache__"]
    rooms = [init.parent for init in checkout.glob("*/__init__.py") if init.parent.name != ROOT_ROOM]
    for path in (*inner, *rooms):
        (package / path.name).symlink_to(path.resolve())


if __name__ == "__main__":
    here = Path(__file__).resolve().parent.parent
    given = [Path(text) for text in sys.argv[1:]]
    write(given[0] if given else here, given[1] if len(given) > 1 else here / ".typeroot")
