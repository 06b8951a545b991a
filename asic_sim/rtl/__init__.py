"""Synthesizable Verilog of a design's array, from the same TOML file as the simulator, cycle for cycle.

    from quatrefoil.asic_sim import load, rtl
    rtl.write(load("edge"), "build/edge")

``verilator`` runs it beside the simulator, ``prove`` compares the two on random and real layers and tries whether it would
notice ``mutants``, ``synthesis`` counts cells and places them on an FPGA.
"""

from __future__ import annotations

from quatrefoil.asic_sim.rtl.generator import Formats, generate, write

__all__ = ["Formats", "generate", "write"]
