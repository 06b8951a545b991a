// Gives `in` out again STAGES cycles later; 0 stages are a wire.
module delay #(
    parameter WIDTH = 1,
    parameter STAGES = 1
) (
    input wire clk,
    input wire [WIDTH-1:0] in,
    output wire [WIDTH-1:0] out
);
  genvar i;
  generate
    for (i = 0; i < STAGES; i = i + 1) begin : stage
      reg [WIDTH-1:0] value;
      if (i == 0) begin : first
        always @(posedge clk) value <= in;
      end else begin : next
        always @(posedge clk) value <= stage[i-1].value;
      end
    end
    if (STAGES == 0) begin : wire_only
      wire unused = clk;
      assign out = in;
    end else begin : last
      assign out = stage[STAGES-1].value;
    end
  endgenerate
endmodule
