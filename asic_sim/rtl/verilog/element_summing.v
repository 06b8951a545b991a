// A processing element that owns one sum. Activations pass to the east, weights to the south. `restart` comes with the
// first step of a new tile of results, `finish` in the cycle after the last step: the sum moves into a second register,
// from which it shifts down through the elements below.
module element_summing #(
    parameter ACTIVATION_BITS = 8,
    parameter WEIGHT_BITS = 8,
    parameter SUM_BITS = 32
) (
    input wire clk,
    input wire signed [ACTIVATION_BITS-1:0] west,
    input wire restart_west,
    input wire finish_west,
    input wire signed [WEIGHT_BITS-1:0] north,
    input wire shift,
    input wire signed [SUM_BITS-1:0] result_north,
    output reg signed [ACTIVATION_BITS-1:0] east,
    output reg restart_east,
    output reg finish_east,
    output reg signed [WEIGHT_BITS-1:0] south,
    output reg signed [SUM_BITS-1:0] result_south
);
  localparam PRODUCT_BITS = ACTIVATION_BITS + WEIGHT_BITS;
  reg signed [SUM_BITS-1:0] sum;
  wire signed [PRODUCT_BITS-1:0] product = west * north;
  wire signed [SUM_BITS-1:0] previous = restart_west ? {SUM_BITS{1'b0}} : sum;

  always @(posedge clk) begin
    east <= west;
    restart_east <= restart_west;
    finish_east <= finish_west;
    south <= north;
    sum <= previous + {{(SUM_BITS - PRODUCT_BITS) {product[PRODUCT_BITS-1]}}, product};
    if (finish_west) result_south <= sum;
    else if (shift) result_south <= result_north;
  end
endmodule
