"""The machine that a figure was measured on, in words."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import quatrefoil


def describe() -> dict[str, str]:
    """Processor, system and versions, for reports."""
    return {
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": package_version("numpy"),
        "onnx": package_version("onnx"),
        "quatrefoil": quatrefoil.__version__,
    }


def package_version(name: str) -> str:
    """The version of an installed package, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The processor's name as Linux tells it, else the machine type."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
