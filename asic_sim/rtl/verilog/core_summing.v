// An array of resting sums with what feeds it: folds start, and the finished sums of a tile leave through their chain,
// a row a cycle.
module core #(
    parameter ROWS = 4,
    parameter COLUMNS = 4,
    parameter STREAM_BITS = 8,
    parameter TILE_BITS = 32,
    parameter SUM_BITS = 32,
    parameter ADDRESS_BITS = 5,
    parameter LENGTH_BITS = 16
) (
    input wire clk,
    input wire rst,
    // the fold at the head of the queue
    input wire fold_valid,
    input wire [LENGTH_BITS-1:0] fold_length,
    input wire fold_fresh,
    input wire fold_first,
    input wire fold_last,
    input wire fold_waits,
    output wire starts,
    output wire [3:0] lacks,
    // operands
    input wire tile_valid,
    output wire tile_take,
    input wire [TILE_BITS-1:0] tile_data,
    input wire stream_valid,
    output wire stream_take,
    input wire [ROWS*STREAM_BITS-1:0] stream_data,
    // sums to the accumulators; `completes` with the last of a tile
    output wire bank,  // of the tile that the fold at the head adds to
    input wire [1:0] done,
    output wire [COLUMNS-1:0] write,
    output wire [COLUMNS-1:0] clear,
    output wire [COLUMNS*ADDRESS_BITS-1:0] addresses,
    output wire [COLUMNS*SUM_BITS-1:0] sums,
    output wire completes,
    output wire complete_bank
);
  localparam ENTRY_BITS = ADDRESS_BITS - 1;
  wire enters, first_slice, ends_tile, finish, shift, idle;
  wire [LENGTH_BITS-1:0] position, chain_left;
  wire restart = enters & first_slice & position == 0;
  wire unused = &{1'b0, idle, fold_fresh};
  assign tile_take = enters;
  assign stream_take = enters;
  sequencer #(.SUMMING(1), .LENGTH_BITS(LENGTH_BITS)) sequence_of_folds (
      .clk(clk), .rst(rst), .fold_valid(fold_valid), .start(starts), .fold_length(fold_length),
      .fold_first(fold_first), .fold_last(fold_last), .fold_waits(fold_waits), .tile_ready(tile_valid),
      .chain_left(chain_left), .stream_valid(stream_valid), .idle(idle), .enters(enters),
      .first_slice(first_slice), .ends_tile(ends_tile), .position(position), .bank(bank), .done(done), .lacks(lacks)
  );

  wire [ENTRY_BITS-1:0] row;
  chain #(.ROWS(ROWS), .COLUMNS(COLUMNS), .ENTRY_BITS(ENTRY_BITS), .LENGTH_BITS(LENGTH_BITS)) results (
      .clk(clk), .rst(rst), .ends_tile(ends_tile), .bank(bank), .finish(finish), .shift(shift), .left(chain_left),
      .row_bank(complete_bank), .row(row), .last_row(completes)
  );
  assign write = {COLUMNS{shift}};
  assign clear = {COLUMNS{1'b1}};
  assign addresses = {COLUMNS{complete_bank, row}};

  // a step that does not come adds nothing
  wire [ROWS*STREAM_BITS-1:0] activations = stream_data & {ROWS * STREAM_BITS{enters}};
  array_summing #(
      .ROWS(ROWS), .COLUMNS(COLUMNS), .ACTIVATION_BITS(STREAM_BITS), .WEIGHT_BITS(TILE_BITS / COLUMNS),
      .SUM_BITS(SUM_BITS)
  ) array (
      .clk(clk), .activations(activations), .weights(tile_data), .restart(restart), .finish(finish), .shift(shift),
      .results(sums)
  );
endmodule
