// A systolic array with its accumulators and its vector unit; @KIND@.
// Loads, starts and drains are decided here; the surroundings hand over folds, operands and room for results as they
// have them. A row of operands enters in the cycle in which it is taken.
module accelerator #(
    parameter ROWS = @ROWS@,
    parameter COLUMNS = @COLUMNS@,
    parameter LANES = @LANES@,
    parameter STREAM_BITS = @STREAM_BITS@,
    parameter TILE_BITS = @TILE_BITS@,  // of what is taken in one cycle
    parameter SUM_BITS = @SUM_BITS@,
    parameter VALUE_BITS = @VALUE_BITS@,
    parameter CHANNEL_ROWS = @CHANNEL_ROWS@,
    parameter CHANNEL_BITS = @CHANNEL_BITS@,
    parameter ENTRY_BITS = @ENTRY_BITS@,
    parameter LENGTH_BITS = @LENGTH_BITS@,
    parameter CYCLE_BITS = @CYCLE_BITS@
) (
    input wire clk,
    input wire rst,
    // what to do: a queue of folds
    input wire fold_valid,
    output wire fold_ready,
    input wire [LENGTH_BITS-1:0] fold_length,   // cycles that it streams
    input wire [LENGTH_BITS-1:0] fold_rows,     // of the tile of results
    input wire [LENGTH_BITS-1:0] fold_columns,  // of the tile of results
    input wire [CYCLE_BITS-1:0] fold_cycles,    // of the vector unit for LANES elements
    input wire [CHANNEL_BITS-1:0] fold_channel, // the first output channel of the tile of results
    input wire fold_fresh,                      // it needs another resting tile than the fold before
    input wire fold_first,                      // it begins a tile of results
    input wire fold_last,                       // it ends one
    input wire fold_waits,                      // for the vector unit to end all tiles before
    // @TILE@
    input wire tile_valid,
    output wire tile_take,
    input wire [TILE_BITS-1:0] tile_data,
    // @STREAM@
    input wire stream_valid,
    output wire stream_take,
    input wire [ROWS*STREAM_BITS-1:0] stream_data,
    // what the lanes do with a layer's sums: it stays as it is from the layer's first fold to its last result
    input wire channel_write,
    input wire [CHANNEL_BITS-1:0] channel_index,
    input wire [SUM_BITS-1:0] channel_bias,
    input wire [31:0] channel_multiplier,  // a finite float32
    input wire clips,
    input wire [SUM_BITS-1:0] clip_low,
    input wire [SUM_BITS-1:0] clip_high,
    input wire requantizes,
    input wire [8:0] zero_point,
    input wire [8:0] lowest,
    input wire [8:0] highest,
    // finished tiles
    input wire out_ready,  // there is room for a tile
    output wire out_valid,
    output wire out_last,
    output wire [LANES-1:0] out_mask,
    output wire [LANES*SUM_BITS-1:0] out_data,
    // for counters
    output wire starts,
    output wire vector_active,
    output wire [3:0] lacks,  // why no fold starts: room, step before, stream, tile
    // windows
    input wire block_valid,
    output wire block_take,
    input wire [LENGTH_BITS-1:0] block_groups,
    input wire [LENGTH_BITS-1:0] taps,
    input wire average,
    output wire tap_take,
    input wire [LANES-1:0] tap_mask,
    input wire [LANES*VALUE_BITS-1:0] tap_data,
    input wire pool_out_ready,
    output wire pool_out_valid,
    output wire pool_out_last,
    output wire [LANES*SUM_BITS-1:0] pool_out_data
);
  localparam FOLD_BITS = 3 * LENGTH_BITS + CYCLE_BITS + CHANNEL_BITS + 4;
  localparam ADDRESS_BITS = ENTRY_BITS + 1;

  wire next_valid, next_fresh, next_first, next_last, next_waits;
  wire [LENGTH_BITS-1:0] next_length, next_rows, next_columns;
  wire [CYCLE_BITS-1:0] next_cycles;
  wire [CHANNEL_BITS-1:0] next_channel;
  fifo #(.WIDTH(FOLD_BITS)) folds (
      .clk(clk), .rst(rst), .in_valid(fold_valid), .in_ready(fold_ready),
      .in({fold_length, fold_rows, fold_columns, fold_cycles, fold_channel, fold_fresh, fold_first, fold_last,
           fold_waits}),
      .head_valid(next_valid), .take(starts),
      .head({next_length, next_rows, next_columns, next_cycles, next_channel, next_fresh, next_first, next_last,
             next_waits})
  );

  // the tiles of results in the two banks: what the vector unit has to know of each, and whether it may begin
  reg [1:0] finished;
  reg [2*LENGTH_BITS-1:0] tile_rows, tile_columns;
  reg [2*CYCLE_BITS-1:0] tile_cycles;
  reg [2*CHANNEL_BITS-1:0] tile_channel;
  wire bank, completes, complete_bank;
  wire [1:0] done;
  always @(posedge clk) begin
    if (starts & next_last) begin
      tile_rows[bank*LENGTH_BITS+:LENGTH_BITS] <= next_rows;
      tile_columns[bank*LENGTH_BITS+:LENGTH_BITS] <= next_columns;
      tile_cycles[bank*CYCLE_BITS+:CYCLE_BITS] <= next_cycles;
      tile_channel[bank*CHANNEL_BITS+:CHANNEL_BITS] <= next_channel;
    end
    if (rst) finished <= 2'b00;
    else begin
      finished <= finished & ~done;
      if (completes) finished[complete_bank] <= 1'b1;
    end
  end

  wire [LANES*ADDRESS_BITS-1:0] read_addresses;
  wire [COLUMNS*LANES*SUM_BITS-1:0] read;
  wire [LANES*CHANNEL_BITS-1:0] channel_indices;
  wire [LANES*SUM_BITS-1:0] biases;
  wire [LANES*32-1:0] multipliers;
  channels #(.CHANNEL_BITS(CHANNEL_BITS), .SUM_BITS(SUM_BITS), .LANES(LANES)) vectors (
      .clk(clk), .write(channel_write), .index(channel_index), .bias(channel_bias), .multiplier(channel_multiplier),
      .read_indices(channel_indices), .read_biases(biases), .read_multipliers(multipliers)
  );
  vector_unit #(
      .COLUMNS(COLUMNS), .LANES(LANES), .CHANNEL_ROWS(CHANNEL_ROWS), .CHANNEL_BITS(CHANNEL_BITS),
      .ENTRY_BITS(ENTRY_BITS), .LENGTH_BITS(LENGTH_BITS), .CYCLE_BITS(CYCLE_BITS), .SUM_BITS(SUM_BITS)
  ) lanes (
      .clk(clk), .rst(rst), .finished(finished), .tile_rows(tile_rows), .tile_columns(tile_columns),
      .tile_cycles(tile_cycles), .tile_channel(tile_channel), .clips(clips), .clip_low(clip_low),
      .clip_high(clip_high), .requantizes(requantizes), .zero_point(zero_point), .lowest(lowest), .highest(highest),
      .channel_indices(channel_indices), .biases(biases), .multipliers(multipliers), .done(done),
      .active(vector_active), .read_addresses(read_addresses), .read(read), .out_ready(out_ready),
      .out_valid(out_valid), .out_last(out_last), .out_mask(out_mask), .out_data(out_data)
  );
  pooling #(
      .LANES(LANES), .VALUE_BITS(VALUE_BITS), .SUM_BITS(SUM_BITS), .LENGTH_BITS(LENGTH_BITS)
  ) windows (
      .clk(clk), .rst(rst), .block_valid(block_valid), .block_take(block_take), .block_groups(block_groups),
      .taps(taps), .average(average), .tap_take(tap_take), .tap_mask(tap_mask), .tap_data(tap_data),
      .out_ready(pool_out_ready), .out_valid(pool_out_valid), .out_last(pool_out_last), .out_data(pool_out_data)
  );

  wire [COLUMNS-1:0] write, clear;
  wire [COLUMNS*ADDRESS_BITS-1:0] addresses;
  wire [COLUMNS*SUM_BITS-1:0] sums;
  core #(
      .ROWS(ROWS), .COLUMNS(COLUMNS), .STREAM_BITS(STREAM_BITS), .TILE_BITS(TILE_BITS), .SUM_BITS(SUM_BITS),
      .ADDRESS_BITS(ADDRESS_BITS), .LENGTH_BITS(LENGTH_BITS)
  ) array (
      .clk(clk), .rst(rst), .fold_valid(next_valid), .fold_length(next_length), .fold_fresh(next_fresh),
      .fold_first(next_first), .fold_last(next_last), .fold_waits(next_waits), .starts(starts), .lacks(lacks),
      .tile_valid(tile_valid), .tile_take(tile_take), .tile_data(tile_data), .stream_valid(stream_valid),
      .stream_take(stream_take), .stream_data(stream_data), .bank(bank), .done(done), .write(write), .clear(clear),
      .addresses(addresses), .sums(sums), .completes(completes), .complete_bank(complete_bank)
  );
  genvar c;
  generate
    for (c = 0; c < COLUMNS; c = c + 1) begin : below
      accumulator #(.ADDRESS_BITS(ADDRESS_BITS), .SUM_BITS(SUM_BITS), .LANES(LANES)) memory (
          .clk(clk), .valid(write[c]), .clear(clear[c]), .address(addresses[c*ADDRESS_BITS+:ADDRESS_BITS]),
          .sum(sums[c*SUM_BITS+:SUM_BITS]), .read_addresses(read_addresses),
          .read(read[c*LANES*SUM_BITS+:LANES*SUM_BITS])
      );
    end
  endgenerate
endmodule
