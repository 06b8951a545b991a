"""``python -m quatrefoil.models.gallery``: trains the gallery and writes its page; see report.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from quatrefoil.models.gallery import catalogue, report


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train the whole gallery, run it on every backend, and write its page."
    )
    parser.add_argument("--small", action="store_true", help="small sizes: seconds a model instead of minutes")
    parser.add_argument(
        "--out", type=Path, default=catalogue.FOLDER, help="checkpoints and ONNX files; kept ones are used"
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where gallery.md and its pictures go")
    given = parser.parse_args()
    print(report.write(given.small, given.out, given.docs, lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main()
