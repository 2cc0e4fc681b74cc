// Sets of ways, each a key and a value, compared when they are read; bit pseudo-LRU. See associative_ram.py.
// Everything happens inside conditions, in blocking assignments where nothing else looks: so it costs a simulation next
// to nothing at the edges at which it is not asked for anything.
module nicscope_associative_ram #(
    parameter SETS = 1,
    parameter WAYS = 1,
    parameter KEY_WIDTH = 1,
    parameter VALUE_WIDTH = 1,
    parameter SET_WIDTH = 1
) (
    input  wire                   clk,
    input  wire                   read_enable,
    input  wire [SET_WIDTH-1:0]   read_set,
    input  wire [KEY_WIDTH-1:0]   read_key,
    output reg                    hit,
    output reg  [WAYS-1:0]        way,
    output reg  [VALUE_WIDTH-1:0] value,
    input  wire                   touch,
    input  wire [WAYS-1:0]        write_enable,
    input  wire [SET_WIDTH-1:0]   write_set,
    input  wire                   write_valid,
    input  wire [KEY_WIDTH-1:0]   write_key,
    input  wire [VALUE_WIDTH-1:0] write_value,
    input  wire                   flush
);
    reg [KEY_WIDTH-1:0]   keys   [0:SETS*WAYS-1];
    reg [VALUE_WIDTH-1:0] values [0:SETS*WAYS-1];
    reg [WAYS-1:0]        valid  [0:SETS-1];
    reg [WAYS-1:0]        recent [0:SETS-1];
    reg [SET_WIDTH-1:0]   set_read;
    reg [WAYS-1:0]        equal, candidates;
    reg [VALUE_WIDTH-1:0] found;
    integer i;

    initial begin
        hit = 0;
        way = 0;
        value = 0;
        set_read = 0;
        for (i = 0; i < SETS; i = i + 1) begin
            valid[i] = 0;
            recent[i] = 0;
        end
        for (i = 0; i < SETS * WAYS; i = i + 1) begin
            keys[i] = 0;
            values[i] = 0;
        end
    end

    always @(posedge clk) begin
        if (read_enable) begin
            equal = 0;
            found = 0;
            for (i = 0; i < WAYS; i = i + 1)
                if (valid[read_set][i] && keys[read_set * WAYS + i] == read_key) begin
                    equal[i] = 1;
                    found = values[read_set * WAYS + i];
                end
            candidates = ~valid[read_set] & ~recent[read_set];
            if (candidates == 0) candidates = ~recent[read_set];
            if (WAYS == 1) candidates = 1;
            hit <= equal != 0;
            way <= equal != 0 ? equal : candidates & (~candidates + 1'b1);
            value <= found;
            set_read <= read_set;
        end
        if (touch) begin
            recent[set_read] = recent[set_read] | way;
            if (&recent[set_read]) recent[set_read] = way;
        end
        if (write_enable != 0) begin
            for (i = 0; i < WAYS; i = i + 1)
                if (write_enable[i]) begin
                    keys[write_set * WAYS + i] = write_key;
                    values[write_set * WAYS + i] = write_value;
                end
            if (write_valid) valid[write_set] = valid[write_set] | write_enable;
            else begin
                valid[write_set] = valid[write_set] & ~write_enable;
                recent[write_set] = recent[write_set] & ~write_enable;
            end
        end
        if (flush)
            for (i = 0; i < SETS; i = i + 1) begin
                valid[i] = 0;
                recent[i] = 0;
            end
    end
endmodule
