// One synchronous read port, one write port with lanes; memory starts at zero.
// A read at the edge that writes the same row returns the old row.
module nicscope_ram #(
    parameter WIDTH = 8,
    parameter DEPTH = 2,
    parameter LANES = 1,
    parameter ADDRESS_WIDTH = 1
) (
    input  wire                     clk,
    input  wire                     read_enable,
    input  wire [ADDRESS_WIDTH-1:0] read_address,
    output reg  [WIDTH-1:0]         read_data,
    input  wire [LANES-1:0]         write_enable,
    input  wire [ADDRESS_WIDTH-1:0] write_address,
    input  wire [WIDTH-1:0]         write_data
);
    localparam LANE_WIDTH = WIDTH / LANES;
    reg [WIDTH-1:0] rows [0:DEPTH-1] /* verilator public_flat_rd */;
    integer i;
    initial begin
        read_data = 0;
        for (i = 0; i < DEPTH; i = i + 1) rows[i] = 0;
    end
    // Reads come first, and nothing else looks at the rows: so these may be blocking assignments. Verilator pays for every
    // nonblocking one at every edge, taken or not.
    always @(posedge clk) begin
        if (read_enable) read_data <= rows[read_address];
        if (LANES == 1) begin
            if (write_enable[0]) rows[write_address] = write_data;
        end else if (write_enable != 0) begin
            for (i = 0; i < LANES; i = i + 1)
                if (write_enable[i])
                    rows[write_address][i*LANE_WIDTH +: LANE_WIDTH] = write_data[i*LANE_WIDTH +: LANE_WIDTH];
        end
    end
endmodule
