// Lays the tile that rests into the array in BEATS rows (`load` in each), and says when it is there.
//
//   SHADOW 1  the next tile follows HOLD cycles after the first row of the fold that took this one into use
//   SHADOW 0  it follows when a fold asks for it and HOLD cycles have passed since the last row of the fold before
module loader #(
    parameter SHADOW = 1,
    parameter BEATS = 4,
    parameter HOLD = 7
) (
    input wire clk,
    input wire rst,
    input wire tile_valid,
    output wire load,
    output wire tile_take,
    output reg laid,
    input wire wanted,
    input wire swap,
    input wire enters
);
  localparam BITS = $clog2(HOLD + BEATS + 1);
  localparam LAST = BEATS - 1;
  reg [BITS-1:0] beat, held;
  wire holds = SHADOW != 0 ? swap : enters;

  assign tile_take = ~laid & held == 0 & (SHADOW != 0 | wanted);
  assign load = tile_take & tile_valid;

  always @(posedge clk) begin
    if (rst) begin
      laid <= 1'b0;
      beat <= 0;
      held <= 0;
    end else begin
      if (holds) held <= HOLD[BITS-1:0];
      else if (held != 0) held <= held - 1'b1;
      if (swap) laid <= 1'b0;
      else if (load && beat == LAST[BITS-1:0]) laid <= 1'b1;
      if (load) beat <= beat == LAST[BITS-1:0] ? {BITS{1'b0}} : beat + 1'b1;
    end
  end
endmodule
