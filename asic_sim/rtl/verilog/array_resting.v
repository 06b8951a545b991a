// ROWS x COLUMNS elements that hold a tile. Row r of `stream` belongs to array row r; rows are skewed here, so that all
// of them are given in one cycle.
// A tile comes row by row, the bottom row first (BROADCAST 1: all rows at once, row 0 lowest). STAGGERED 1: column c
// takes its row c cycles later.
// The sum of column c that entered in cycle s is on `sums` from cycle s + ROWS + c on, for one cycle.
module array_resting #(
    parameter ROWS = 4,
    parameter COLUMNS = 4,
    parameter SHADOW = 1,
    parameter STAGGERED = 0,
    parameter BROADCAST = 0,
    parameter STREAM_BITS = 8,
    parameter REST_BITS = 8,
    parameter SUM_BITS = 32
) (
    input wire clk,
    input wire [ROWS*STREAM_BITS-1:0] stream,
    input wire swap,
    input wire load,
    input wire [(BROADCAST != 0 ? ROWS : 1)*COLUMNS*REST_BITS-1:0] tile,
    output wire [COLUMNS*SUM_BITS-1:0] sums
);
  localparam LANE_BITS = STREAM_BITS + 1;
  localparam TILE_ROWS = BROADCAST != 0 ? ROWS : 1;
  wire [ROWS*LANE_BITS-1:0] entering, skewed;
  wire [COLUMNS-1:0] column_load;
  wire [TILE_ROWS*COLUMNS*REST_BITS-1:0] column_tile;

  skew #(.LANES(ROWS), .WIDTH(LANE_BITS)) rows (.clk(clk), .in(entering), .out(skewed));

  genvar r, c;
  generate
    for (r = 0; r < ROWS; r = r + 1) begin : entry
      assign entering[r*LANE_BITS+:LANE_BITS] = {swap, stream[r*STREAM_BITS+:STREAM_BITS]};
    end
    if (STAGGERED != 0) begin : staggered
      wire [COLUMNS*(REST_BITS+1)-1:0] given, delayed;
      skew #(.LANES(COLUMNS), .WIDTH(REST_BITS + 1)) columns (.clk(clk), .in(given), .out(delayed));
      for (c = 0; c < COLUMNS; c = c + 1) begin : lane
        assign given[c*(REST_BITS+1)+:REST_BITS+1] = {load, tile[c*REST_BITS+:REST_BITS]};
        assign {column_load[c], column_tile[c*REST_BITS+:REST_BITS]} = delayed[c*(REST_BITS+1)+:REST_BITS+1];
      end
    end else begin : together
      assign column_load = {COLUMNS{load}};
      assign column_tile = tile;
    end

    for (r = 0; r < ROWS; r = r + 1) begin : row
      for (c = 0; c < COLUMNS; c = c + 1) begin : column
        wire [STREAM_BITS-1:0] west, east;
        wire swap_west, swap_east;
        wire [SUM_BITS-1:0] north, south;
        wire [REST_BITS-1:0] tile_north, tile_south;
        if (c == 0) begin : edge_west
          assign {swap_west, west} = skewed[r*LANE_BITS+:LANE_BITS];
        end else begin : from_west
          assign west = row[r].column[c-1].east;
          assign swap_west = row[r].column[c-1].swap_east;
        end
        if (r == 0) begin : edge_north
          assign north = {SUM_BITS{1'b0}};
        end else begin : from_north
          assign north = row[r-1].column[c].south;
        end
        if (r == 0 || BROADCAST != 0) begin : tile_wire
          assign tile_north = column_tile[(r*COLUMNS+c)*REST_BITS+:REST_BITS];
        end else begin : tile_chain
          assign tile_north = row[r-1].column[c].tile_south;
        end
        element_resting #(
            .SHADOW(SHADOW), .STREAM_BITS(STREAM_BITS), .REST_BITS(REST_BITS), .SUM_BITS(SUM_BITS)
        ) element (
            .clk(clk), .west(west), .swap_west(swap_west), .north(north), .load(column_load[c]),
            .tile_north(tile_north), .east(east), .swap_east(swap_east), .south(south), .tile_south(tile_south)
        );
        if (r == ROWS - 1) begin : bottom
          assign sums[c*SUM_BITS+:SUM_BITS] = south;
          if (BROADCAST == 0) begin : end_of_chain
            wire unused_tile = &{1'b0, tile_south};
          end
        end
        if (BROADCAST != 0) begin : no_chain
          wire unused_tile = &{1'b0, tile_south};
        end
        if (c == COLUMNS - 1) begin : edge_east
          wire unused_east = &{1'b0, swap_east, east};
        end
      end
    end
  endgenerate
endmodule
