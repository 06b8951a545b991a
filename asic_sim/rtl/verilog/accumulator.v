// The sums below one column, in two banks (the top address bit). Adds `sum` to an entry, or begins it anew with `clear`.
// The vector unit reads LANES entries in a cycle.
module accumulator #(
    parameter ADDRESS_BITS = 5,
    parameter SUM_BITS = 32,
    parameter LANES = 4
) (
    input wire clk,
    input wire valid,
    input wire clear,
    input wire [ADDRESS_BITS-1:0] address,
    input wire [SUM_BITS-1:0] sum,
    input wire [LANES*ADDRESS_BITS-1:0] read_addresses,
    output wire [LANES*SUM_BITS-1:0] read
);
  reg [SUM_BITS-1:0] entries[0:(1<<ADDRESS_BITS)-1];
  wire [SUM_BITS-1:0] previous = clear ? {SUM_BITS{1'b0}} : entries[address];

  always @(posedge clk) if (valid) entries[address] <= previous + sum;

  genvar l;
  generate
    for (l = 0; l < LANES; l = l + 1) begin : lane
      assign read[l*SUM_BITS+:SUM_BITS] = entries[read_addresses[l*ADDRESS_BITS+:ADDRESS_BITS]];
    end
  endgenerate
endmodule
