// Delays lane i by i cycles: what enters in one cycle leaves along a diagonal.
module skew #(
    parameter LANES = 4,
    parameter WIDTH = 8
) (
    input wire clk,
    input wire [LANES*WIDTH-1:0] in,
    output wire [LANES*WIDTH-1:0] out
);
  genvar i;
  generate
    for (i = 0; i < LANES; i = i + 1) begin : lane
      delay #(.WIDTH(WIDTH), .STAGES(i)) behind (
          .clk(clk),
          .in(in[i*WIDTH+:WIDTH]),
          .out(out[i*WIDTH+:WIDTH])
      );
    end
  endgenerate
endmodule
