"""Receive-side scaling: a hash of a packet's flow chooses its queue (datasheet section 7.1.2.8)."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tilelink import LINE_BYTES
from hw.bus.wire import Rss, RssType
from hw.lib.ram import RAM

from .classifier import classify
from .layouts import MacStream, RegisterBus, register_layout
from .registers import REG
from .toeplitz import Toeplitz

__all__ = ["ReceiveSideScaling"]

#: MRQC.MRQE: RSS alone.
MRQE_RSS = 1

#: Offsets of the source address in an untagged Ethernet frame, and bytes of both addresses. The ports follow at once.
IPV4_ADDRESSES, IPV4_BYTES = 26, 8
IPV6_ADDRESSES, IPV6_BYTES = 22, 32
PORT_BYTES = 4


class ReceiveSideScaling(wiring.Component):
    """Looks at a frame's first beat on its way to the packet buffer; ``result`` holds from the next edge on.

    Packets are hashed over the most that MRQC asks for and they have: addresses and ports of TCP or UDP, else
    addresses. Of IPv4 with options, IPv6 with extension headers, and fragments, the addresses alone are. The
    hash's low seven bits choose an entry of RETA, and that names the queue. Without RSS, or with nothing
    to hash, the queue is 0.

    RETA and RSSRK are storage for the register file; what software writes is kept here once more.
    """

    bus: In(RegisterBus())
    mrqc: In(register_layout(REG.MRQC))
    beats: In(MacStream)
    reset: In(1)
    result: Out(Rss)
    quiet: Out(1)

    def __init__(self):
        super().__init__()
        self.toeplitz = Toeplitz()
        self.table = RAM(width=32, depth=REG.RETA.count, domain="nic")

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.toeplitz = toeplitz = self.toeplitz
        m.submodules.table = table = self.table
        key = Signal(data.ArrayLayout(32, REG.RSSRK.count))
        known = Signal(REG.RETA.count)  # rows of the table written since the last reset

        # Registers
        with m.If(self.bus.write & ~self.bus.table), m.Switch(self.bus.offset):
            for index in range(REG.RETA.count):
                with m.Case(*REG.RETA.offsets(index)):
                    m.d.comb += [table.write_enable.eq(1), table.write_address.eq(index)]
                    m.d.nic += known[index].eq(1)
            for index in range(REG.RSSRK.count):
                with m.Case(*REG.RSSRK.offsets(index)):
                    m.d.nic += key[index].eq(self.bus.data)
        m.d.comb += table.write_data.eq(self.bus.data)

        # The hash
        hashing, kind, hashed = Signal(), Signal(RssType), Signal(Rss)
        m.d.comb += hashing.eq(self.beats.valid & self.beats.payload.first)
        with m.If(hashing & (self.mrqc.MRQE == MRQE_RSS)):
            octets = data.View(data.ArrayLayout(8, LINE_BYTES), self.beats.payload.data)
            self._classify(m, kind)
            m.d.comb += [toeplitz.valid.eq(kind != RssType.NONE), toeplitz.key.eq(key)]
            with m.Switch(kind):
                for case, begin, size in (
                    ((RssType.IPV4,), IPV4_ADDRESSES, IPV4_BYTES),
                    ((RssType.TCP_IPV4, RssType.UDP_IPV4), IPV4_ADDRESSES, IPV4_BYTES + PORT_BYTES),
                    ((RssType.IPV6,), IPV6_ADDRESSES, IPV6_BYTES),
                    ((RssType.TCP_IPV6, RssType.UDP_IPV6), IPV6_ADDRESSES, IPV6_BYTES + PORT_BYTES),
                ):
                    with m.Case(*case):
                        m.d.comb += toeplitz.data.eq(octets.as_value()[8 * begin : 8 * (begin + size)])
        place = Signal(2)
        m.d.comb += [
            table.read_enable.eq(toeplitz.valid),
            table.read_address.eq(toeplitz.hash[2:7]),
        ]
        row = Signal(range(REG.RETA.count))
        with m.If(hashing):
            m.d.nic += [hashed.type.eq(kind), hashed.hash.eq(toeplitz.hash)]
        m.d.comb += [
            self.result.hash.eq(hashed.hash),
            self.result.type.eq(hashed.type),
            row.eq(hashed.hash[2:7]),
            place.eq(hashed.hash[:2]),
        ]
        with m.If((hashed.type != RssType.NONE) & known.bit_select(row, 1)):
            m.d.comb += self.result.queue.eq(table.read_data.word_select(place, 8)[:4])

        with m.If(self.reset):
            m.d.nic += [key.eq(0), known.eq(0)]
        m.d.comb += self.quiet.eq(~self.beats.valid & ~self.bus.write & ~self.reset)
        return m

    def _classify(self, m, kind):
        """What of the packet is hashed."""
        packet, mrqc = classify(m, self.beats.payload.data), self.mrqc
        for here, tcp, udp, both, of in (
            (packet.ipv4, RssType.TCP_IPV4, RssType.UDP_IPV4, RssType.IPV4, "IPV4"),
            (packet.ipv6, RssType.TCP_IPV6, RssType.UDP_IPV6, RssType.IPV6, "IPV6"),
        ):
            with m.If(here):
                with m.If(packet.tcp & getattr(mrqc, f"TCP_{of}")):
                    m.d.comb += kind.eq(tcp)
                with m.Elif(packet.udp & getattr(mrqc, f"UDP_{of}")):
                    m.d.comb += kind.eq(udp)
                with m.Elif(getattr(mrqc, of)):
                    m.d.comb += kind.eq(both)
        with m.If(packet.ipv4_options & mrqc.IPV4):
            m.d.comb += kind.eq(RssType.IPV4)
