// The chain through which finished sums leave an array of summing elements. `finish` enters the array in the cycle
// after a tile's last step and sweeps it in ROWS + COLUMNS - 1 cycles; then the chain shifts for ROWS cycles, the bottom
// row first. `left` counts the cycles until it is free again.
module chain #(
    parameter ROWS = 4,
    parameter COLUMNS = 4,
    parameter ENTRY_BITS = 2,
    parameter LENGTH_BITS = 16
) (
    input wire clk,
    input wire rst,
    input wire ends_tile,
    input wire bank,
    output reg finish,
    output wire shift,
    output reg [LENGTH_BITS-1:0] left,
    output reg row_bank,
    output wire [ENTRY_BITS-1:0] row,
    output wire last_row
);
  localparam SWEEP = 2 * ROWS + COLUMNS - 1;
  wire [LENGTH_BITS-1:0] below = left - 1'b1;

  assign shift = left != 0 && left <= ROWS[LENGTH_BITS-1:0];
  assign row = below[ENTRY_BITS-1:0];
  assign last_row = left == 1;

  always @(posedge clk) begin
    finish <= ends_tile & ~rst;
    if (rst) begin
      left <= 0;
      row_bank <= 1'b0;
    end else if (ends_tile) begin
      left <= SWEEP[LENGTH_BITS-1:0];
      row_bank <= bank;
    end else if (left != 0) left <= below;
  end
endmodule
