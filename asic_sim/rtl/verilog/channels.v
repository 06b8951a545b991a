// Bias and multiplier of each output channel of a layer, written before its tiles come; every lane reads one entry at once.
module channels #(
    parameter CHANNEL_BITS = 8,
    parameter SUM_BITS = 32,
    parameter LANES = 4
) (
    input wire clk,
    input wire write,
    input wire [CHANNEL_BITS-1:0] index,
    input wire [SUM_BITS-1:0] bias,
    input wire [31:0] multiplier,
    input wire [LANES*CHANNEL_BITS-1:0] read_indices,
    output wire [LANES*SUM_BITS-1:0] read_biases,
    output wire [LANES*32-1:0] read_multipliers
);
  reg [SUM_BITS-1:0] biases[0:(1<<CHANNEL_BITS)-1];
  reg [31:0] multipliers[0:(1<<CHANNEL_BITS)-1];

  always @(posedge clk) begin
    if (write) begin
      biases[index] <= bias;
      multipliers[index] <= multiplier;
    end
  end

  genvar l;
  generate
    for (l = 0; l < LANES; l = l + 1) begin : lane
      wire [CHANNEL_BITS-1:0] at = read_indices[l*CHANNEL_BITS+:CHANNEL_BITS];
      assign read_biases[l*SUM_BITS+:SUM_BITS] = biases[at];
      assign read_multipliers[l*32+:32] = multipliers[at];
    end
  endgenerate
endmodule
