"""The backend ``asic``: a cycle-level simulator of a systolic array, described by a TOML file."""

from __future__ import annotations

from quatrefoil.asic_sim.backend import AsicBackend, simulate
from quatrefoil.asic_sim.hardware import DesignError, Hardware, current, load, shipped, use_design
from quatrefoil.asic_sim.mapping import Mapping, MappingError, Mappings
from quatrefoil.asic_sim.simulation import SimulationReport
from quatrefoil.asic_sim.waves import vcd

BACKEND = AsicBackend()

__all__ = [
    "BACKEND",
    "DesignError",
    "Hardware",
    "Mapping",
    "MappingError",
    "Mappings",
    "SimulationReport",
    "current",
    "load",
    "shipped",
    "simulate",
    "use_design",
    "vcd",
]
