// The vector unit's windows: LANES outputs at once, one tap of each a cycle, padding left out (`tap_mask`). The largest
// tap leaves with the last tap; the sum of the taps one cycle after it, in the cycle that an average takes to be scaled.
// A block of `block_groups` groups of LANES outputs begins when its input is there (`block_valid`) and the receiver has
// room for its results (`out_ready`), and takes its taps in every cycle from then on.
module pooling #(
    parameter LANES = 4,
    parameter VALUE_BITS = 8,
    parameter SUM_BITS = 32,
    parameter LENGTH_BITS = 16
) (
    input wire clk,
    input wire rst,
    input wire block_valid,
    output wire block_take,
    input wire [LENGTH_BITS-1:0] block_groups,
    input wire [LENGTH_BITS-1:0] taps,
    input wire average,
    output wire tap_take,
    input wire [LANES-1:0] tap_mask,
    input wire [LANES*VALUE_BITS-1:0] tap_data,
    input wire out_ready,
    output wire out_valid,
    output wire out_last,
    output wire [LANES*SUM_BITS-1:0] out_data
);
  reg [LENGTH_BITS-1:0] groups_left, tap;
  wire idle = groups_left == 0;
  wire active = ~idle | block_take;
  wire [LENGTH_BITS-1:0] groups = idle ? block_groups : groups_left;
  wire [LENGTH_BITS-1:0] next_tap = tap + 1'b1;
  wire scaling = average & tap == taps;

  assign block_take = idle & block_valid & out_ready;
  assign tap_take = active & ~scaling;
  assign out_valid = active & (average ? scaling : next_tap == taps);
  assign out_last = out_valid & groups == 1;

  genvar l;
  generate
    for (l = 0; l < LANES; l = l + 1) begin : lane
      reg signed [SUM_BITS-1:0] value;
      wire signed [VALUE_BITS-1:0] given = tap_data[l*VALUE_BITS+:VALUE_BITS];
      wire signed [SUM_BITS-1:0] wide = {{(SUM_BITS - VALUE_BITS) {given[VALUE_BITS-1]}}, given};
      wire signed [SUM_BITS-1:0] lowest = {{(SUM_BITS - VALUE_BITS + 1) {1'b1}}, {(VALUE_BITS - 1) {1'b0}}};
      wire signed [SUM_BITS-1:0] previous = tap != 0 ? value : average ? {SUM_BITS{1'b0}} : lowest;
      wire signed [SUM_BITS-1:0] joined = average ? previous + wide : (wide > previous ? wide : previous);
      wire signed [SUM_BITS-1:0] after = tap_take & tap_mask[l] ? joined : previous;
      assign out_data[l*SUM_BITS+:SUM_BITS] = after;
      always @(posedge clk) value <= after;
    end
  endgenerate

  always @(posedge clk) begin
    if (rst) begin
      groups_left <= 0;
      tap <= 0;
    end else if (active) begin
      tap <= out_valid ? {LENGTH_BITS{1'b0}} : next_tap;
      groups_left <= out_valid ? groups - 1'b1 : groups;
    end
  end
endmodule
