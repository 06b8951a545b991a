// What one lane does with a sum, at most one step a cycle, and nothing in a cycle without a step:
//
//   adds     takes the sum and adds the bias, with wraparound
//   clips    clip_low to clip_high, both included
//   scales   to float32, rounded half to even: `mantissa`, 24 bits with the leading one on top, times 2^(9 - lifted)
//   rounds   times the multiplier as float32 rounds it, then to the nearest integer, half to even, plus the zero point,
//            between lowest and highest
//
// `multiplier` is a finite float32. Its product with the sum is rounded twice, as software does: to 24 bits, then to an
// integer. No exponent is out of range on the way: a product of 2^9 or more saturates, whatever it is, and one below a
// half is zero, so that a subnormal multiplier is as good as none.
module lane #(
    parameter SUM_BITS = 32  // at most 32
) (
    input wire clk,
    input wire adds,
    input wire clips,
    input wire scales,
    input wire rounds,
    input wire signed [SUM_BITS-1:0] sum,
    input wire signed [SUM_BITS-1:0] bias,
    input wire signed [SUM_BITS-1:0] clip_low,
    input wire signed [SUM_BITS-1:0] clip_high,
    input wire [31:0] multiplier,
    input wire signed [8:0] zero_point,
    input wire signed [8:0] lowest,
    input wire signed [8:0] highest,
    output wire signed [SUM_BITS-1:0] out
);
  reg signed [SUM_BITS-1:0] value;
  reg negative;
  reg [23:0] mantissa;
  reg [5:0] lifted;

  wire signed [SUM_BITS-1:0] clipped = value < clip_low ? clip_low : value > clip_high ? clip_high : value;

  // to float32: the leading one moves to the top, eight bits below the mantissa are rounded away
  wire [SUM_BITS-1:0] magnitude = value[SUM_BITS-1] ? -value : value;
  wire [31:0] by_0 = {{(32 - SUM_BITS) {1'b0}}, magnitude};
  wire [4:0] zeros = {~|by_0[31:16], ~|by_16[31:24], ~|by_8[31:28], ~|by_4[31:30], ~by_2[31]};
  wire [31:0] by_16 = zeros[4] ? {by_0[15:0], 16'b0} : by_0;
  wire [31:0] by_8 = zeros[3] ? {by_16[23:0], 8'b0} : by_16;
  wire [31:0] by_4 = zeros[2] ? {by_8[27:0], 4'b0} : by_8;
  wire [31:0] by_2 = zeros[1] ? {by_4[29:0], 2'b0} : by_4;
  wire [31:0] by_1 = zeros[0] ? {by_2[30:0], 1'b0} : by_2;
  wire sum_up = by_1[7] & (|by_1[6:0] | by_1[8]);
  wire [24:0] sum_rounded = {1'b0, by_1[31:8]} + {24'b0, sum_up};

  // the product as float32: 24 bits of 47 or 48
  wire [47:0] product = {24'b0, mantissa} * {24'b0, 1'b1, multiplier[22:0]};
  wire [47:0] topped = product[47] ? product : {product[46:0], 1'b0};
  wire product_up = topped[23] & (|topped[22:0] | topped[24]);
  wire [24:0] product_rounded = {1'b0, topped[47:24]} + {24'b0, product_up};

  // it is product_rounded / 2^down; to an integer
  wire signed [9:0] down = 10'sd118 + {4'b0, lifted} - {9'b0, product[47]} - {2'b0, multiplier[30:23]};
  wire saturates = down < 15;
  wire vanishes = down > 24 | ~mantissa[23];
  wire [3:0] further = down[3:0] + 4'd1;  // beyond 15
  wire [33:0] shifted = {product_rounded, 9'b0} >> further;
  wire whole_up = shifted[23] & (|shifted[22:0] | shifted[24]);
  wire [9:0] whole = vanishes ? 10'd0 : saturates ? 10'd512 : shifted[33:24] + {9'b0, whole_up};
  wire signed [11:0] signed_whole = negative ^ multiplier[31] ? -{2'b0, whole} : {2'b0, whole};
  wire signed [11:0] moved = signed_whole + {{3{zero_point[8]}}, zero_point};
  wire signed [11:0] low = {{3{lowest[8]}}, lowest};
  wire signed [11:0] high = {{3{highest[8]}}, highest};
  wire signed [11:0] saturated = moved < low ? low : moved > high ? high : moved;
  wire signed [SUM_BITS-1:0] quantized = {{(SUM_BITS - 9) {saturated[8]}}, saturated[8:0]};
  wire unused = &{1'b0, saturated[11:9]};

  assign out = adds ? sum + bias : clips ? clipped : rounds ? quantized : value;

  always @(posedge clk) begin
    value <= out;
    if (scales) begin
      negative <= value[SUM_BITS-1];
      mantissa <= {sum_rounded[24] | sum_rounded[23], sum_rounded[22:0]};
      lifted   <= {1'b0, zeros} + 6'd1 - {5'b0, sum_rounded[24]};
    end
  end
endmodule
