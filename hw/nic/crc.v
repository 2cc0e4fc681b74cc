// CRC-32 of Ethernet (least significant bit first) over 64 bytes, by tables for eight bytes at once.
// Does nothing while valid is low: this is why it is written here by hand.
module nicscope_crc32 (
    input  wire         valid,
    input  wire [31:0]  crc,
    input  wire [511:0] data,
    output reg  [31:0]  next
);
    reg [31:0] tables [0:2047];
    reg [31:0] value;
    integer i, j;
    initial begin
        for (i = 0; i < 256; i = i + 1) begin
            value = i;
            for (j = 0; j < 8; j = j + 1) value = (value >> 1) ^ (value[0] ? 32'hEDB88320 : 32'h0);
            tables[i] = value;
        end
        for (i = 256; i < 2048; i = i + 1)
            tables[i] = (tables[i-256] >> 8) ^ tables[{3'b000, tables[i-256][7:0]}];
    end
    reg [63:0] x;
    integer k;
    always @* begin
        next = 32'h0;
        x = 64'h0;
        if (valid) begin
            next = crc;
            for (k = 0; k < 8; k = k + 1) begin
                x = data[64*k +: 64] ^ {32'h0, next};
                next = tables[{3'd7, x[7:0]}] ^ tables[{3'd6, x[15:8]}] ^ tables[{3'd5, x[23:16]}]
                     ^ tables[{3'd4, x[31:24]}] ^ tables[{3'd3, x[39:32]}] ^ tables[{3'd2, x[47:40]}]
                     ^ tables[{3'd1, x[55:48]}] ^ tables[{3'd0, x[63:56]}];
            end
        end
    end
endmodule
