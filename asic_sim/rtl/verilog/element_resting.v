// A processing element that holds one operand. The streaming operand passes to the east, the sum to the south; `swap`
// travels with the first operand of a fold that brings a new tile into use.
// SHADOW 1: the next tile shifts down through a second register while the one in use works. 0: it shifts through the
// register in use, when nothing streams.
module element_resting #(
    parameter SHADOW = 1,
    parameter STREAM_BITS = 8,
    parameter REST_BITS = 8,
    parameter SUM_BITS = 32
) (
    input wire clk,
    input wire signed [STREAM_BITS-1:0] west,
    input wire swap_west,
    input wire signed [SUM_BITS-1:0] north,
    input wire load,
    input wire signed [REST_BITS-1:0] tile_north,
    output reg signed [STREAM_BITS-1:0] east,
    output reg swap_east,
    output reg signed [SUM_BITS-1:0] south,
    output wire signed [REST_BITS-1:0] tile_south
);
  localparam PRODUCT_BITS = STREAM_BITS + REST_BITS;
  reg signed [REST_BITS-1:0] laid;
  wire signed [REST_BITS-1:0] used;
  wire signed [PRODUCT_BITS-1:0] product = west * used;

  assign tile_south = laid;
  generate
    if (SHADOW != 0) begin : shadow
      reg signed [REST_BITS-1:0] resting;
      assign used = swap_west ? laid : resting;
      always @(posedge clk) resting <= used;
    end else begin : single
      assign used = laid;
    end
  endgenerate

  always @(posedge clk) begin
    east <= west;
    swap_east <= swap_west;
    south <= north + {{(SUM_BITS - PRODUCT_BITS) {product[PRODUCT_BITS-1]}}, product};
    if (load) laid <= tile_north;
  end
endmodule
