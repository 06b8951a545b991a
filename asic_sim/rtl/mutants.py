"""Changes of a line of the Verilog, each of which ``prove --mutants`` has to notice: what makes its comparisons
believable. A mutant is a text that occurs once in a file of ``verilog/``, and what stands there instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quatrefoil.asic_sim.rtl.verilator import VerilatorError


@dataclass(frozen=True)
class Mutant:
    """``dataflow`` and ``weight_load``: of a design that has the line."""

    name: str
    file: str
    line: str
    instead: str
    dataflow: str = "weight"
    weight_load: str = "double_buffered"

    def applied(self, texts: Mapping[str, str]) -> dict[str, str]:
        """The files of generator.generate with the change. Raises VerilatorError where the line is not there once."""
        count = texts[self.file].count(self.line)
        if count != 1:
            raise VerilatorError(f"{self.name}: {self.file} has {self.line!r} {count} times, not once")
        return {**texts, self.file: texts[self.file].replace(self.line, self.instead)}


MUTANTS = (
    Mutant("a row more of skew", "skew.v", ".STAGES(i)", ".STAGES(i + 1)"),
    Mutant("the switch to the new tile travels a cycle late", "element_resting.v", "used = swap_west ?",
           "used = swap_east ?"),
    Mutant("an accumulator is not cleared", "accumulator.v", "clear ? {SUM_BITS{1'b0}}", "1'b0 ? {SUM_BITS{1'b0}}"),
    Mutant("a tile is laid in a cycle early behind the switch", "loader.v", "held <= HOLD[BITS-1:0]",
           "held <= HOLD[BITS-1:0] - 1'b1"),
    Mutant("a tile is laid in while the array still works", "loader.v", "held <= HOLD[BITS-1:0]",
           "held <= HOLD[BITS-1:0] - 1'b1", weight_load="serial"),
    Mutant("columns are loaded together, not one behind the other", "array_resting.v", "= delayed[c*", "= given[c*",
           weight_load="skewed"),
    Mutant("a sum is not begun anew", "element_summing.v", "restart_west ?", "1'b0 ?", "output"),
    Mutant("finished sums leave a cycle late", "chain.v", "SWEEP = 2 * ROWS + COLUMNS - 1",
           "SWEEP = 2 * ROWS + COLUMNS", "output"),
    Mutant("a step that does not come is added", "core.v",
           "stream_data & {ROWS * STREAM_BITS{enters}}", "stream_data", "output"),
    Mutant("a bank is free before the vector unit is done", "sequencer.v", "bank_free = ~takes_bank | ~busy[bank]",
           "bank_free = 1'b1"),
    Mutant("a step does not wait for the one before", "sequencer.v", "step_done = ~fold_waits | ~busy[~bank]",
           "step_done = 1'b1"),
    Mutant("a tile begins without room for it", "vector_unit.v", "(finished[bank] & out_ready)", "finished[bank]"),
    Mutant("an output channel is a column where it is a row", "vector_unit.v", "CHANNEL_ROWS != 0 ? at_row",
           "CHANNEL_ROWS == 2 ? at_row", "input"),
    Mutant("no bias", "lane.v", "adds ? sum + bias", "adds ? sum"),
    Mutant("clipped from one side only", "lane.v", "value < clip_low ? clip_low :", ""),
    Mutant("a large sum is truncated to 24 bits", "lane.v", "sum_up = by_1[7] & (|by_1[6:0] | by_1[8])",
           "sum_up = 1'b0"),
    Mutant("ties of a large sum go up", "lane.v", "sum_up = by_1[7] & (|by_1[6:0] | by_1[8])", "sum_up = by_1[7]"),
    Mutant("a mantissa that rounds up to 2^24 keeps its exponent", "lane.v", "+ 6'd1 - {5'b0, sum_rounded[24]}",
           "+ 6'd1"),
    Mutant("the product is truncated to 24 bits", "lane.v",
           "product_up = topped[23] & (|topped[22:0] | topped[24])", "product_up = 1'b0"),
    Mutant("ties of the product go up", "lane.v", "product_up = topped[23] & (|topped[22:0] | topped[24])",
           "product_up = topped[23]"),
    Mutant("halves go up, not to even", "lane.v", "whole_up = shifted[23] & (|shifted[22:0] | shifted[24])",
           "whole_up = shifted[23]"),
    Mutant("the product is rounded once, not twice", "lane.v", "shifted = {product_rounded, 9'b0} >> further",
           "shifted = {1'b0, topped[47:24], |topped[23:0], 8'b0} >> further"),
    Mutant("a product that is too large wraps", "lane.v", "saturates ? 10'd512 : ", ""),
    Mutant("no saturation at the top", "lane.v", "moved > high ? high : moved", "moved"),
    Mutant("the zero point is not added", "lane.v", "signed_whole + {{3{zero_point[8]}}, zero_point}",
           "signed_whole"),
    Mutant("an empty window's largest value is zero", "pooling.v", "average ? {SUM_BITS{1'b0}} : lowest",
           "{SUM_BITS{1'b0}}"),
    Mutant("padding counts as a tap", "pooling.v", "tap_take & tap_mask[l] ?", "tap_take ?"),
)  # fmt: skip
