// The Toeplitz hash over 36 bytes, the first of them in bits 7:0, with a key of 40 bytes likewise.
// Does nothing while valid is low: this is why it is written here by hand.
module nicscope_toeplitz (
    input  wire         valid,
    input  wire [287:0] data,
    input  wire [319:0] key,
    output reg  [31:0]  hash
);
    integer i, j;
    reg [39:0] window;
    reg [7:0]  octet;
    always @* begin
        hash = 32'h0;
        window = 40'h0;
        octet = 8'h0;
        if (valid) begin
            for (i = 0; i < 36; i = i + 1) begin
                octet = data[8*i +: 8];
                if (octet != 8'h0) begin
                    window = {key[8*i +: 8], key[8*i+8 +: 8], key[8*i+16 +: 8], key[8*i+24 +: 8], key[8*i+32 +: 8]};
                    // The first bit of a byte is its highest
                    for (j = 0; j < 8; j = j + 1) if (octet[7-j]) hash = hash ^ window[8-j +: 32];
                end
            end
        end
    end
endmodule
