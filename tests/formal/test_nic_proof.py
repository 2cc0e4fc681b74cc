"""The card: its parts are quiet only when nothing would change; descriptors are read only inside head and tail."""

import pytest
from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tilelink import LINE_BITS
from hw.config import load_machine
from hw.nic.crc import Crc32
from hw.nic.descriptor_fetch import DescriptorFetch
from hw.nic.interrupts import InterruptVector
from hw.nic.mac import MacReceive
from hw.nic.nic import Nic
from hw.nic.packet_buffer import PacketBuffer
from hw.nic.ring import RX_RING, TX_RING, Ring
from hw.nic.rss import ReceiveSideScaling
from hw.nic.rx_dma import RxDma
from hw.nic.toeplitz import INPUT_BYTES, KEY_BYTES, Toeplitz
from hw.nic.tx_buffer import TransmitBuffer
from hw.nic.tx_dma import READ_BOUNDARY, TxDma
from hw.nic.tx_mac import MacTransmit
from hw.nic.write_back import WriteBack
from tests.formal.prove import FORMAL_DOMAIN, Harness, ProofFailed, prove_quiet

CONFIG = load_machine("tiny")
SMALL = load_machine(
    "tiny",
    [
        "core.count=1",
        "nic.read_tags=1",
        "nic.packet_buffer_kib=1",
        "nic.tx_packet_buffer_kib=1",
        "nic.max_frame=512",
        "nic.queues=1",
        "nic.payload_reads=2",
    ],
)


class SomeCrc(wiring.Component):
    """In place of :class:`hw.nic.crc.Crc32`: another function of the same inputs, and a simpler one."""

    valid: In(1)
    crc: In(32)
    data: In(LINE_BITS)
    next: Out(32)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.next.eq(self.data[:32] ^ self.crc)
        return m


class SomeHash(wiring.Component):
    """In place of :class:`hw.nic.toeplitz.Toeplitz`, likewise."""

    valid: In(1)
    data: In(8 * INPUT_BYTES)
    key: In(8 * KEY_BYTES)
    hash: Out(32)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.hash.eq(self.data[:32] ^ self.key[:32])
        return m


def with_some_crc(mac: MacReceive | MacTransmit) -> None:
    mac.crc32._MustUse__silence = True
    assert isinstance(mac.crc32, Crc32)
    mac.crc32 = SomeCrc()


def with_some_hash(rss: ReceiveSideScaling) -> None:
    rss.toeplitz._MustUse__silence = True
    assert isinstance(rss.toeplitz, Toeplitz)
    rss.toeplitz = SomeHash()


def with_some_functions(nic: Nic) -> Nic:
    """Simpler ones in place of a card's long ones: a proof that holds with these needs no property of the others."""
    with_some_crc(nic.mac)
    with_some_crc(nic.tx_mac)
    with_some_hash(nic.rss)
    return nic


def mac() -> MacReceive:
    component = MacReceive(CONFIG)
    with_some_crc(component)
    return component


def tx_mac() -> MacTransmit:
    component = MacTransmit(CONFIG)
    with_some_crc(component)
    return component


def rss() -> ReceiveSideScaling:
    component = ReceiveSideScaling()
    with_some_hash(component)
    return component


def handed_over(dut: MacReceive | Nic) -> list[Value]:
    """High at edges that an engine executes, quiet or not: it hands over part of a frame."""
    return [dut.wire.valid & dut.wire.ready]


#: Parts that are quiet in the middle of their work: how each is made, what tells that it waits, and a wrong quiet.
PARTS = {
    "mac, for the rest of a frame": (mac, lambda dut: dut.arrival.armed, lambda dut: dut.quiet | dut.packets.valid),
    "packet buffer, for its packet to be taken": (
        lambda: PacketBuffer(1),
        lambda dut: dut.output.valid,
        lambda dut: dut.quiet | dut.end.valid,
    ),
    "receive DMA, for a descriptor": (
        lambda: RxDma(CONFIG),
        lambda dut: dut.packets.valid,
        lambda dut: dut.quiet | dut.finished.valid,
    ),
    "descriptor fetch, for descriptors": (
        lambda: DescriptorFetch(cache=8, read_tags=2),
        lambda dut: ~dut.idle,
        lambda dut: dut.quiet | dut.completion.valid,
    ),
    "write-back, for the rest of a line": (WriteBack, lambda dut: ~dut.idle, lambda dut: dut.quiet | dut.send.valid),
    "transmitting MAC, for the rest of a frame": (
        tx_mac,
        lambda dut: dut.departure.armed,
        lambda dut: dut.quiet | dut.packets.valid,
    ),
    "transmit buffer, for its packet to be taken": (
        lambda: TransmitBuffer(1),
        lambda dut: dut.output.valid,
        lambda dut: dut.quiet | dut.store.valid,
    ),
    "transmit DMA, for payload": (
        lambda: TxDma(SMALL),
        lambda dut: ~dut.idle,
        lambda dut: dut.quiet | dut.completion.valid,
    ),
    "transmit descriptor fetch, for descriptors": (
        lambda: DescriptorFetch(TX_RING, cache=8, read_tags=2),
        lambda dut: ~dut.idle,
        lambda dut: dut.quiet | dut.completion.valid,
    ),
    "transmit write-back, for the rest of a line": (
        lambda: WriteBack(TX_RING),
        lambda dut: ~dut.idle,
        lambda dut: dut.quiet | dut.finished.valid,
    ),
    "receive-side scaling, for a frame": (
        rss,
        lambda dut: Value.cast(dut.result.type) != 0,
        lambda dut: dut.quiet | dut.reset,
    ),
    "vector, for its interval": (
        lambda: InterruptVector(CONFIG),
        lambda dut: dut.moderation.armed,
        lambda dut: ~dut.fire & ~dut.sent & ~dut.reset,
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_quiet(part):
    make, waits, wrong_quiet = PARTS[part]
    dut = make()
    prove_quiet(
        dut,
        domain="nic",
        idle_inputs=handed_over(dut) if isinstance(dut, MacReceive) else (),
        cover_depth=6,
        outstanding=waits(dut),
        planted={"wrong": wrong_quiet(dut)},
    )


def test_an_engine_must_execute_the_edge_at_which_it_hands_over():
    """The MAC's quiet does not look at the wire: one that relied on quiet alone would lose what it hands over."""
    with pytest.raises(ProofFailed, match="no memory changes"):
        prove_quiet(mac(), domain="nic", mode="bmc", depth=3, cover_depth=None)


def test_card_quiet():
    """All parts joined, with the statistics, which have no quiet of their own. Covered: a frame is on the wire."""
    nic = with_some_functions(Nic(SMALL))
    parts = (
        nic.mac,
        nic.packet_buffer,
        nic.rss,
        nic.rx,
        nic.tx,
        nic.tx_mac,
        nic.interrupt,
        nic.registers,
        nic.control,
        nic.arbiter,
    )

    def without(forgotten):
        return Cat(part.quiet for part in parts if part is not forgotten).all()

    planted = {
        "forgets the MAC": without(nic.mac),
        "forgets the register file": without(nic.registers),
        "forgets what is sent": without(nic.tx),
    }
    prove_quiet(
        nic,
        domain="nic",
        idle_inputs=handed_over(nic),
        cover_depth=4,
        outstanding=nic.mac.arrival.armed,
        planted=planted,
    )


class Fetch(wiring.Component):
    """A fetcher; with ``bug`` it believes that the tail is one further."""

    def __init__(self, bug: bool, kind: Ring):
        self.fetch = DescriptorFetch(kind, cache=8, read_tags=2)
        self.bug = bug
        super().__init__(self.fetch.signature)

    def elaborate(self, platform):
        m = Module()
        m.submodules.fetch = fetch = self.fetch
        for name, member in self.signature.members.items():
            if member.is_signature:
                inner, outer = getattr(fetch, name), wiring.flipped(getattr(self, name))
                wiring.connect(m, *((outer, inner) if member.flow == Out else (inner, outer)))
            elif member.flow == Out:
                m.d.comb += getattr(self, name).eq(getattr(fetch, name))
            else:
                m.d.comb += getattr(fetch, name).eq(getattr(self, name))
        m.d.comb += fetch.ring.tail.eq(self.ring.tail + self.bug)
        return m


def prove_fetch(bug: bool, kind: Ring) -> None:
    """Inside the ring, within one line, and not the descriptor at the tail or one behind it."""
    dut = Fetch(bug, kind)
    harness = Harness(dut)
    next, size, tail, head = dut.fetch._next, dut.ring.size, dut.ring.tail, dut.head
    steady = Signal()  # the ring's size has been what it is since the first step
    harness.module.d.comb += steady.eq(harness.past(size) == size)
    started = harness.past(Signal(init=1), init=0)
    harness.assume(~started | steady)
    harness.assume((size % 8 == 0) & (size != 0) & (size <= 1 << 16))
    harness.assume((tail < size) & (head < size))
    harness.always(next < size, "the next descriptor is in the ring")
    count = dut.issue_count
    harness.always(~dut.issue | (next + count <= size), "a read ends inside the ring")
    harness.always(~dut.issue | (next % 4 + count <= 4), "a read is within a line")
    for place in range(4):
        harness.always(~dut.issue | (count <= place) | (next + place != tail), "a read stops before the tail")
    harness.cover(dut.issue & (count == 4))
    harness.run(prove=2, cover=4)


@pytest.mark.parametrize("kind", [RX_RING, TX_RING], ids=["receive", "transmit"])
def test_reads_stay_before_the_tail(kind):
    prove_fetch(bug=False, kind=kind)


@pytest.mark.parametrize("kind", [RX_RING, TX_RING], ids=["receive", "transmit"])
def test_a_fetch_beyond_the_tail_is_caught(kind):
    with pytest.raises(ProofFailed, match="before the tail"):
        prove_fetch(bug=True, kind=kind)


def prove_write_back(reports) -> None:
    """Only descriptors that ask for it are written back, inside a line, and the head never passes what is finished."""
    dut = WriteBack(TX_RING)
    dut.kind = type("Kind", (type(TX_RING),), {"reports": staticmethod(reports)})()
    harness = Harness(dut)
    m, tick = harness.module, harness.tick["nic"]
    # One descriptor of the ring, any: whether it is the next one to be finished, and asks for its report
    chosen = Signal(16)
    harness.assume(harness.past(chosen) == chosen)
    size = dut.ring.size
    harness.assume((harness.past(size, init=8) == size) & (size == 8) & (chosen < size))
    harness.assume(~dut.start)
    index, asked, seen = Signal(16), Signal(), Signal()
    accept = dut.finished.valid & dut.finished.ready
    with m.If(tick & accept):
        m.d[FORMAL_DOMAIN] += index.eq(Mux(index + 1 == size, 0, index + 1))
        with m.If(index == chosen):
            m.d[FORMAL_DOMAIN] += [asked.eq(dut.finished.payload.report), seen.eq(1)]
    count, first = dut.send.payload.header.length >> 4, dut.head
    covers = dut.done & (first <= chosen) & (chosen < first + count)
    with m.If(tick & covers):
        m.d[FORMAL_DOMAIN] += seen.eq(0)
    harness.always(~covers | (seen & asked), "what is written back has asked for it")
    harness.always(~dut.done | (first % 4 + count <= 4), "a write-back is within a line")
    harness.cover(covers & (count == 3))
    harness.run(bmc=10, cover=10)


def test_only_what_asks_for_it_is_written_back():
    prove_write_back(TX_RING.reports)


def test_a_write_back_of_everything_is_caught():
    with pytest.raises(ProofFailed, match="has asked for it"):
        prove_write_back(lambda finished: Const(1))


def prove_payload_reads(mrrs: int) -> None:
    """No read is longer than the card may ask for, and none crosses 4 KiB."""
    dut = TxDma(SMALL)
    longest, dut.mrrs = dut.mrrs, mrrs
    harness = Harness(dut)
    header = dut.read.payload.header
    harness.always(header.length <= longest, "a read is not too long")
    harness.always(header.address % READ_BOUNDARY + header.length <= READ_BOUNDARY, "a read does not cross 4 KiB")
    harness.cover(dut.read.valid & (header.length == longest))
    harness.run(prove=2, cover=8)


def test_payload_reads():
    prove_payload_reads(SMALL.pcie.mrrs)


def test_a_read_that_is_too_long_is_caught():
    with pytest.raises(ProofFailed, match="too long"):
        prove_payload_reads(2 * SMALL.pcie.mrrs)
