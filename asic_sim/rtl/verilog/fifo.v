// A queue whose oldest entry is on `head` while `head_valid`. DEPTH is a power of two.
module fifo #(
    parameter WIDTH = 8,
    parameter DEPTH = 4
) (
    input wire clk,
    input wire rst,
    input wire in_valid,
    output wire in_ready,
    input wire [WIDTH-1:0] in,
    output wire head_valid,
    input wire take,
    output wire [WIDTH-1:0] head
);
  localparam BITS = $clog2(DEPTH);
  reg [WIDTH-1:0] entries[0:DEPTH-1];
  reg [BITS:0] written, taken;
  wire put = in_valid & in_ready;

  assign in_ready = written - taken != DEPTH[BITS:0];
  assign head_valid = written != taken;
  assign head = entries[taken[BITS-1:0]];

  always @(posedge clk) begin
    if (put) entries[written[BITS-1:0]] <= in;
    if (rst) begin
      written <= 0;
      taken   <= 0;
    end else begin
      if (put) written <= written + 1'b1;
      if (take) taken <= taken + 1'b1;
    end
  end
endmodule
