"""The transmit packet buffer: filled in any order, sent whole and in order."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.bus.memory import PACKET_WIDTH
from hw.bus.tilelink import LINE_BITS, LINE_BYTES
from hw.lib.probe import Counter
from hw.lib.ram import RAM

from .layouts import TransmitStream

__all__ = ["Committed", "TransmitBuffer", "row_pointer_width", "store_layout"]


class Committed(data.Struct):
    """A packet all of whose bytes are in the buffer."""

    length: 16  #: bytes for which it has rows, at least 1
    packet: PACKET_WIDTH
    insert_fcs: 1
    discard: 1  #: it is not sent


def row_pointer_width(kib: int) -> int:
    """Bits of a pointer to a row of a buffer of ``kib`` KiB: one more than an address, to tell full from empty."""
    return ceil_log2(kib * 1024 // LINE_BYTES) + 1


def store_layout(kib: int) -> data.StructLayout:
    """Bytes for a row of a buffer of ``kib`` KiB."""
    return data.StructLayout({"row": row_pointer_width(kib) - 1, "lanes": LINE_BYTES, "data": LINE_BITS})


class TransmitBuffer(wiring.Component):
    """A ring of ``kib`` KiB in rows of 64 bytes. Packets begin at rows, one behind the other.

    ``store`` writes the ``lanes`` of a row. ``commit`` tells that the next packet is complete: it is sent, or its rows
    are free again. If the buffer was empty, the first beat of a packet is offered two edges after the edge at which
    its ``commit`` came; then one beat per cycle. ``freed`` points behind the last row that is free again.

    Raises:
        ValueError: when ``kib`` is not a power of two.
    """

    def __init__(self, kib: int):
        if kib < 1 or kib & (kib - 1):
            raise ValueError(f"a packet buffer is a power of two KiB large, not {kib}")
        self.pointer = row_pointer_width(kib)
        super().__init__(
            {
                "store": In(stream.Signature(store_layout(kib), always_ready=True)),
                "commit": In(stream.Signature(Committed, always_ready=True)),
                "output": Out(TransmitStream),
                "freed": Out(self.pointer),
                "empty": Out(1),
                "quiet": Out(1),
            }
        )
        self.depth = kib * 1024 // LINE_BYTES
        self.rows = RAM(width=LINE_BITS, depth=self.depth, lanes=LINE_BYTES, domain="nic")
        # What is known of a packet lies beside its first row, and is read together with it
        self.headers = RAM(width=Committed.as_shape().size, depth=self.depth, domain="nic")
        self.packets = Counter("nic", "packets stored in the transmit packet buffer")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.rows = rows = self.rows
        m.submodules.metadata = headers = self.headers
        store, commit = self.store, self.commit

        # Fill
        start = Signal(self.pointer)  # row behind the last complete packet
        m.d.comb += [
            rows.write_enable.eq(Mux(store.valid, store.payload.lanes, 0)),
            rows.write_address.eq(store.payload.row),
            rows.write_data.eq(store.payload.data),
            headers.write_enable.eq(commit.valid),
            headers.write_address.eq(start),
            headers.write_data.eq(commit.payload),
        ]
        with m.If(commit.valid):
            m.d.nic += start.eq(start + _rows(commit.payload.length))
        self.packets.increment(m, commit.valid & ~commit.payload.discard)

        # Drain
        output, read = self.output.payload, self.freed
        loaded, first = Signal(), Signal(init=1)
        held, header = Signal(Committed), Signal(Committed)
        left = Signal(16)
        accept, load, skip = Signal(), Signal(), Signal()
        metadata = data.View(Committed, headers.read_data)
        with m.If(first):
            m.d.comb += header.eq(metadata)
        with m.Else():
            m.d.comb += header.eq(held)
        m.d.comb += [
            skip.eq(loaded & header.discard),
            self.output.valid.eq(loaded & ~header.discard),
            accept.eq(self.output.valid & self.output.ready),
            load.eq((read != start) & (~loaded | accept)),
            rows.read_enable.eq(load),
            rows.read_address.eq(read),
            headers.read_enable.eq(load),
            headers.read_address.eq(read),
            output.data.eq(rows.read_data),
            output.first.eq(first),
            output.length.eq(header.length),
            output.packet.eq(header.packet),
            output.insert_fcs.eq(header.insert_fcs),
            output.last.eq(Mux(first, header.length, left) <= LINE_BYTES),
            self.empty.eq((read == start) & ~loaded),
            self.quiet.eq(~store.valid & ~commit.valid & ~load & ~accept & ~skip),
        ]
        with m.If(load):
            m.d.nic += read.eq(read + 1)
        with m.If(load | accept | skip):
            m.d.nic += loaded.eq(load)
        with m.If(skip):
            m.d.nic += read.eq(read + _rows(header.length) - 1)
        with m.If(accept):
            m.d.nic += [first.eq(output.last), left.eq(Mux(first, header.length, left) - LINE_BYTES), held.eq(header)]
        return m


def _rows(length):
    """Rows that so many bytes fill."""
    return (length + (LINE_BYTES - 1)) // LINE_BYTES
