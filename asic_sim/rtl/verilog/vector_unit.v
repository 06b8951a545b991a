// Takes finished tiles out of the accumulators, alternating between the banks: LANES elements at once, row by row of
// the tile, each group for the tile's `cycles` cycles; `out_valid` in the last of them. A tile begins when it is
// finished, the one before has gone through, and the receiver has room for a tile (`out_ready`, looked at when the
// tile begins).
module vector_unit #(
    parameter COLUMNS = 4,
    parameter LANES = 4,
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
      for (c = 0; c < COLUMNS; c = c + 1) begin : from
        assign across[c*SUM_BITS+:SUM_BITS] = read[(c*LANES+g)*SUM_BITS+:SUM_BITS];
      end
      assign out_mask[g] = at_row < rows;
      assign read_addresses[g*(ENTRY_BITS+1)+:ENTRY_BITS+1] = {bank, at_row[ENTRY_BITS-1:0]};
      assign out_data[g*SUM_BITS+:SUM_BITS] = across[at_column*SUM_BITS+:SUM_BITS];
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
