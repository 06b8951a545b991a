// ROWS x COLUMNS elements that own a sum each. `activations` (one for each row) and `weights` (one for each column) of
// a step are given in one cycle and skewed here; `restart` and `finish` travel with the activations.
// While `shift`, finished sums move down; the row that leaves is on `results`.
module array_summing #(
    parameter ROWS = 4,
    parameter COLUMNS = 4,
    parameter ACTIVATION_BITS = 8,
    parameter WEIGHT_BITS = 8,
    parameter SUM_BITS = 32
) (
    input wire clk,
    input wire [ROWS*ACTIVATION_BITS-1:0] activations,
    input wire [COLUMNS*WEIGHT_BITS-1:0] weights,
    input wire restart,
    input wire finish,
    input wire shift,
    output wire [COLUMNS*SUM_BITS-1:0] results
);
  localparam LANE_BITS = ACTIVATION_BITS + 2;
  wire [ROWS*LANE_BITS-1:0] entering, skewed;
  wire [COLUMNS*WEIGHT_BITS-1:0] skewed_weights;

  skew #(.LANES(ROWS), .WIDTH(LANE_BITS)) rows (.clk(clk), .in(entering), .out(skewed));
  skew #(.LANES(COLUMNS), .WIDTH(WEIGHT_BITS)) columns (.clk(clk), .in(weights), .out(skewed_weights));

  genvar r, c;
  generate
    for (r = 0; r < ROWS; r = r + 1) begin : entry
      assign entering[r*LANE_BITS+:LANE_BITS] = {finish, restart, activations[r*ACTIVATION_BITS+:ACTIVATION_BITS]};
    end
    for (r = 0; r < ROWS; r = r + 1) begin : row
      for (c = 0; c < COLUMNS; c = c + 1) begin : column
        wire [ACTIVATION_BITS-1:0] west, east;
        wire restart_west, restart_east, finish_west, finish_east;
        wire [WEIGHT_BITS-1:0] north, south;
        wire [SUM_BITS-1:0] result_north, result_south;
        if (c == 0) begin : edge_west
          assign {finish_west, restart_west, west} = skewed[r*LANE_BITS+:LANE_BITS];
        end else begin : from_west
          assign west = row[r].column[c-1].east;
          assign restart_west = row[r].column[c-1].restart_east;
          assign finish_west = row[r].column[c-1].finish_east;
        end
        if (r == 0) begin : edge_north
          assign north = skewed_weights[c*WEIGHT_BITS+:WEIGHT_BITS];
          assign result_north = {SUM_BITS{1'b0}};
        end else begin : from_north
          assign north = row[r-1].column[c].south;
          assign result_north = row[r-1].column[c].result_south;
        end
        element_summing #(
            .ACTIVATION_BITS(ACTIVATION_BITS), .WEIGHT_BITS(WEIGHT_BITS), .SUM_BITS(SUM_BITS)
        ) element (
            .clk(clk), .west(west), .restart_west(restart_west), .finish_west(finish_west), .north(north),
            .shift(shift), .result_north(result_north), .east(east), .restart_east(restart_east),
            .finish_east(finish_east), .south(south), .result_south(result_south)
        );
        if (r == ROWS - 1) begin : bottom
          assign results[c*SUM_BITS+:SUM_BITS] = result_south;
          wire unused_south = &{1'b0, south};
        end
        if (c == COLUMNS - 1) begin : edge_east
          wire unused_east = &{1'b0, finish_east, restart_east, east};
        end
      end
    end
  endgenerate
endmodule
