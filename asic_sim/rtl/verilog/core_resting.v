// An array of resting operands with what feeds it: folds start, tiles are laid in, and every row that enters is followed
// by a token that says what becomes of its sums.
module core #(
    parameter ROWS = 4,
    parameter COLUMNS = 4,
    parameter SHADOW = @SHADOW@,
    parameter STAGGERED = @STAGGERED@,
    parameter BROADCAST = @BROADCAST@,
    parameter HOLD = @HOLD@,  // cycles until a resting tile may be replaced
    parameter REST_BITS = @REST_BITS@,
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
  localparam TOKEN_BITS = ADDRESS_BITS + 3;
  wire idle, laid, load, first_slice, ends_tile;
  wire swap = starts & fold_fresh;
  wire [LENGTH_BITS-1:0] position;
  sequencer #(.SUMMING(0), .LENGTH_BITS(LENGTH_BITS)) sequence_of_folds (
      .clk(clk), .rst(rst), .fold_valid(fold_valid), .start(starts), .fold_length(fold_length),
      .fold_first(fold_first), .fold_last(fold_last), .fold_waits(fold_waits), .tile_ready(laid | ~fold_fresh),
      .chain_left({LENGTH_BITS{1'b0}}), .stream_valid(stream_valid), .idle(idle), .enters(stream_take),
      .first_slice(first_slice), .ends_tile(ends_tile), .position(position), .bank(bank), .done(done), .lacks(lacks)
  );
  loader #(.SHADOW(SHADOW), .BEATS(BROADCAST != 0 ? 1 : ROWS), .HOLD(HOLD)) loads (
      .clk(clk), .rst(rst), .tile_valid(tile_valid), .load(load), .tile_take(tile_take), .laid(laid),
      .wanted(idle & fold_valid & fold_fresh), .swap(swap), .enters(stream_take)
  );
  array_resting #(
      .ROWS(ROWS), .COLUMNS(COLUMNS), .SHADOW(SHADOW), .STAGGERED(STAGGERED), .BROADCAST(BROADCAST),
      .STREAM_BITS(STREAM_BITS), .REST_BITS(REST_BITS), .SUM_BITS(SUM_BITS)
  ) array (
      .clk(clk), .stream(stream_data), .swap(swap), .load(load), .tile(tile_data), .sums(sums)
  );

  wire [TOKEN_BITS-1:0] token = {stream_take & ~rst, ends_tile, first_slice, bank, position[ENTRY_BITS-1:0]};
  wire unused = &{1'b0, position};  // an accumulator may have fewer entries than a fold may have rows
  genvar c;
  generate
    for (c = 0; c < COLUMNS; c = c + 1) begin : below
      wire [TOKEN_BITS-1:0] arrives;
      wire ends;
      assign {write[c], ends, clear[c], addresses[c*ADDRESS_BITS+:ADDRESS_BITS]} = arrives;
      if (c == 0) begin : first
        delay #(.WIDTH(TOKEN_BITS), .STAGES(ROWS)) down (.clk(clk), .in(token), .out(arrives));
      end else begin : next
        delay #(.WIDTH(TOKEN_BITS), .STAGES(1)) across (.clk(clk), .in(below[c-1].arrives), .out(arrives));
      end
      if (c == COLUMNS - 1) begin : last
        assign completes = write[c] & ends;
        assign complete_bank = addresses[(c+1)*ADDRESS_BITS-1];
      end else begin : inner
        wire unused_ends = ends;
      end
    end
  endgenerate
endmodule
