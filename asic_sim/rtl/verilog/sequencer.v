// Starts folds. A fold streams `fold_length` rows; it starts when the one before has entered, its operands are there,
// and there is room for its results:
//
//   SUMMING 0  the tile that rests is in the array (`laid`), the bank is free for a first slice
//   SUMMING 1  for a last slice the bank is free, and the chain of finished sums is when the last step has entered
//
// `fold_waits`: the vector unit has to end all tiles before. A row enters in every cycle in which its operands are
// there; a fold may pause between rows, and gives the array nothing then.
// The tile of results belongs to bank `bank`; `busy` holds it from its start here until the vector unit is done.
module sequencer #(
    parameter SUMMING = 0,
    parameter LENGTH_BITS = 16
) (
    input wire clk,
    input wire rst,
    input wire fold_valid,
    output wire start,
    input wire [LENGTH_BITS-1:0] fold_length,
    input wire fold_first,
    input wire fold_last,
    input wire fold_waits,
    input wire tile_ready,
    input wire [LENGTH_BITS-1:0] chain_left,
    input wire stream_valid,
    output wire idle,
    output wire enters,
    output wire first_slice,
    output wire ends_tile,
    output wire [LENGTH_BITS-1:0] position,
    output reg bank,
    input wire [1:0] done,
    output wire [3:0] lacks
);
  reg [LENGTH_BITS-1:0] left, entered;
  reg first, last;
  reg [1:0] busy;

  wire takes_bank = SUMMING != 0 ? fold_last : fold_first;
  wire bank_free = ~takes_bank | ~busy[bank];
  wire chain_free = SUMMING == 0 | ~fold_last | chain_left <= fold_length;
  wire step_done = ~fold_waits | ~busy[~bank];  // tiles go through the vector unit in order

  assign idle = left == 0;
  assign start = idle & fold_valid & tile_ready & stream_valid & bank_free & chain_free & step_done;
  assign enters = start | (~idle & stream_valid & (SUMMING == 0 | tile_ready));
  assign first_slice = start ? fold_first : first;
  assign position = start ? {LENGTH_BITS{1'b0}} : entered;
  assign ends_tile = enters & (start ? fold_last & fold_length == 1 : last & left == 1);
  // why the next fold has not started: tile, stream, step before, room for results
  assign lacks = {4{idle & fold_valid}} & {~(bank_free & chain_free), ~step_done, ~stream_valid, ~tile_ready};

  always @(posedge clk) begin
    if (rst) begin
      left <= 0;
      entered <= 0;
      first <= 1'b0;
      last <= 1'b0;
      bank <= 1'b0;
      busy <= 2'b00;
    end else begin
      busy <= busy & ~done;
      if (start) begin
        left  <= fold_length - 1'b1;
        first <= fold_first;
        last  <= fold_last;
        if (takes_bank) busy[bank] <= 1'b1;
      end else if (enters) left <= left - 1'b1;
      if (enters) entered <= position + 1'b1;
      if (ends_tile) bank <= ~bank;
    end
  end
endmodule
