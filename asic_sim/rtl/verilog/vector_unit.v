// Takes finished tiles out of the accumulators, alternating between the banks: LANES elements at once, row by row of
// the tile, each group for the tile's `cycles` cycles; `out_valid` in the last of them. A tile begins when it is
// finished, the one before has gone through, and the receiver has room for a tile (`out_ready`, looked at when the
// tile begins).
// Every lane adds the bias in the first cycle, clips in the next where `clips`, and requantises in two more where
// `requantizes`; `cycles` has to take them all, and the result waits out the others.
module vector_unit #(
    parameter COLUMNS = 4,
    parameter LANES = 4,
    parameter CHANNEL_ROWS = 0,  // an output channel is a row of the tile, not a column
    parameter CHANNEL_BITS = 8,
    parameter ENTRY_BITS = 4,
    parameter LENGTH_BITS = 16,
    parameter CYCLE_BITS = 8,
    parameter SUM_BITS = 32
) (
    input wire clk,
    input wire rst,
    input wire [1:0] finished,
    input wire [2*LENGTH_BITS-1:0] tile_rows,
    input wire [2*LENGTH_BITS-1:0] tile_columns,
    input wire [2*CYCLE_BITS-1:0] tile_cycles,
    input wire [2*CHANNEL_BITS-1:0] tile_channel,  // the first one
    input wire clips,
    input wire [SUM_BITS-1:0] clip_low,
    input wire [SUM_BITS-1:0] clip_high,
    input wire requantizes,
    input wire [8:0] zero_point,
    input wire [8:0] lowest,
    input wire [8:0] highest,
    output wire [LANES*CHANNEL_BITS-1:0] channel_indices,
    input wire [LANES*SUM_BITS-1:0] biases,
    input wire [LANES*32-1:0] multipliers,
    output wire [1:0] done,
    output wire active,
    output wire [LANES*(ENTRY_BITS+1)-1:0] read_addresses,
    input wire [COLUMNS*LANES*SUM_BITS-1:0] read,
    input wire out_ready,
    output wire out_valid,
    output wire out_last,
    output wire [LANES-1:0] out_mask,
    output wire [LANES*SUM_BITS-1:0] out_data
);
  reg working, bank;
  reg [LENGTH_BITS-1:0] row, column;  // of the first lane's element
  reg [CYCLE_BITS-1:0] count;

  wire [LENGTH_BITS-1:0] rows = tile_rows[bank*LENGTH_BITS+:LENGTH_BITS];
  wire [LENGTH_BITS-1:0] columns = tile_columns[bank*LENGTH_BITS+:LENGTH_BITS];
  wire [CYCLE_BITS-1:0] cycles = tile_cycles[bank*CYCLE_BITS+:CYCLE_BITS];
  wire [CHANNEL_BITS-1:0] first_channel = tile_channel[bank*CHANNEL_BITS+:CHANNEL_BITS];

  wire [CYCLE_BITS-1:0] scaling = clips ? 2 : 1;  // the cycle of it
  wire adds_now = count == 0;
  wire clips_now = clips & count == 1;
  wire scales_now = requantizes & count == scaling;
  wire rounds_now = requantizes & count == scaling + 1'b1;

  // where each lane's element is, and the one after the last lane's
  integer l;
  reg [LENGTH_BITS-1:0] lane_row, lane_column;
  reg [LANES*LENGTH_BITS-1:0] lane_rows, lane_columns;
  always @* begin
    lane_row = row;
    lane_column = column;
    for (l = 0; l < LANES; l = l + 1) begin
      lane_rows[l*LENGTH_BITS+:LENGTH_BITS] = lane_row;
      lane_columns[l*LENGTH_BITS+:LENGTH_BITS] = lane_column;
      lane_column = lane_column + 1'b1;
      if (lane_column == columns) begin
        lane_column = 0;
        lane_row = lane_row + 1'b1;
      end
    end
  end

  genvar g, c;
  generate
    for (g = 0; g < LANES; g = g + 1) begin : lane
      wire [COLUMNS*SUM_BITS-1:0] across;
      wire [LENGTH_BITS-1:0] at_row = lane_rows[g*LENGTH_BITS+:LENGTH_BITS];
      wire [LENGTH_BITS-1:0] at_column = lane_columns[g*LENGTH_BITS+:LENGTH_BITS];
      wire [CHANNEL_BITS-1:0] at_channel = CHANNEL_ROWS != 0 ? at_row[CHANNEL_BITS-1:0] : at_column[CHANNEL_BITS-1:0];
      for (c = 0; c < COLUMNS; c = c + 1) begin : from
        assign across[c*SUM_BITS+:SUM_BITS] = read[(c*LANES+g)*SUM_BITS+:SUM_BITS];
      end
      assign out_mask[g] = at_row < rows;
      assign read_addresses[g*(ENTRY_BITS+1)+:ENTRY_BITS+1] = {bank, at_row[ENTRY_BITS-1:0]};
      assign channel_indices[g*CHANNEL_BITS+:CHANNEL_BITS] = first_channel + at_channel;
      lane #(.SUM_BITS(SUM_BITS)) steps (
          .clk(clk), .adds(adds_now), .clips(clips_now), .scales(scales_now), .rounds(rounds_now),
          .sum(across[at_column*SUM_BITS+:SUM_BITS]), .bias(biases[g*SUM_BITS+:SUM_BITS]), .clip_low(clip_low),
          .clip_high(clip_high), .multiplier(multipliers[g*32+:32]), .zero_point(zero_point), .lowest(lowest),
          .highest(highest), .out(out_data[g*SUM_BITS+:SUM_BITS])
      );
    end
  endgenerate

  assign active = working | (finished[bank] & out_ready);
  assign out_valid = active & (count + 1'b1 == cycles);
  assign out_last = out_valid & (lane_row >= rows);
  assign done = {out_last & bank, out_last & ~bank};

  always @(posedge clk) begin
    if (rst) begin
      working <= 1'b0;
      bank <= 1'b0;
      row <= 0;
      column <= 0;
      count <= 0;
    end else if (active) begin
      working <= ~out_last;
      count   <= out_valid ? {CYCLE_BITS{1'b0}} : count + 1'b1;
      if (out_last) begin
        bank   <= ~bank;
        row    <= 0;
        column <= 0;
      end else if (out_valid) begin
        row    <= lane_row;
        column <= lane_column;
      end
    end
  end
endmodule
