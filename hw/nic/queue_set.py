"""What the card's receive and transmit queues have in common beside one another."""

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.memory import PACKET_WIDTH
from hw.bus.tlp import TlpStream
from hw.lib.probe import Counter, Probe

from .descriptor_fetch import PER_LINE
from .descriptors import DESCRIPTOR_BYTES
from .layouts import QueueRegisters, RegisterBus
from .ring_queue import QueueError, RingQueue

__all__ = ["QueueSet"]


class QueueSet(wiring.Component):
    """The queues of one direction, with the probes and counters that speak of them.

    A subclass calls :meth:`_join` once, and drives ``idle`` and ``quiet``.

    Ports, beside those of a subclass:
        causes: a bit per queue, high for one cycle when descriptors of it have been written back.
        error: high when a queue stops.
        disabled: all queues are.

    Arguments:
        signature: members that the other direction does not have.
        queues: the queues.
        which: "receive" or "transmit".
        reads: requests beside the queues' own, of one each.
    """

    def __init__(self, signature: dict[str, Any], queues: Sequence[RingQueue], which: str, reads: int = 0):
        count = len(queues)
        super().__init__(
            {
                **signature,
                "bus": In(RegisterBus()),
                "registers": In(QueueRegisters()).array(count),
                "completion": In(TlpStream),
                "reads": Out(TlpStream).array(count + reads),  #: of descriptors, by queue; others
                "write_backs": Out(TlpStream).array(count),
                "inject": In(count),  #: a bit per queue: its written-back descriptors are to be put into the cache
                "master": In(1),
                "resetting": In(1),
                "reset": In(1),
                "causes": Out(count),
                "error": Out(1),
                "idle": Out(1),  #: no DMA in flight, nothing waiting to be written
                "disabled": Out(1),
                "quiet": Out(1),
            }
        )
        self.queues = list(queues)
        self.descriptor_fetch = Probe("nic", f"{which} descriptors are read", queue=8, address=64, count=8)
        # One probe per place in the cache line: a line's descriptors are written back at one edge
        self.write_back = [
            Probe("nic", f"a {which} descriptor is written back", packet=PACKET_WIDTH, queue=8, index=16, address=64)
            for _ in range(PER_LINE)
        ]
        self.queue_error = [
            Probe("nic", f"a {which} queue stops on an error", queue=8, error=QueueError) for _ in self.queues
        ]
        self.write_back_tlps = Counter("nic", f"{which} descriptor write-back TLPs")
        self.descriptors_written_back = Counter("nic", f"{which} descriptors written back")

    def _join(self, m: Module) -> None:
        """Place the queues and connect what goes to all of them alike."""
        earlier: list[Signal] = []
        for index, queue in enumerate(self.queues):
            m.submodules[f"queues{index}"] = queue
            wiring.connect(m, queue.bus, wiring.flipped(self.bus))
            wiring.connect(m, queue.registers, wiring.flipped(self.registers[index]))
            wiring.connect(m, wiring.flipped(self.reads[index]), queue.read)
            wiring.connect(m, wiring.flipped(self.write_backs[index]), queue.write_back_send)
            m.d.comb += [
                queue.inject.eq(self.inject[index]),
                queue.master.eq(self.master),
                queue.resetting.eq(self.resetting),
                queue.reset.eq(self.reset),
                self.causes[index].eq(queue.write_back.done),
                # One read of descriptors is issued at a time
                queue.fetch.permit.eq(~Cat(earlier).any() if earlier else 1),
            ]
            earlier.append(queue.fetch.wants)
        m.d.comb += [
            self.error.eq(Cat(queue.error for queue in self.queues).any()),
            self.disabled.eq(Cat(queue.disabled for queue in self.queues).all()),
        ]
        self._report(m)

    def _report(self, m: Module) -> None:
        fetch_queue, address, count = Signal(8), Signal(64), Signal(8)
        base, line, of, sent = Signal(64), Signal(16), Signal(8), Signal(PER_LINE)
        packets = [Signal(PACKET_WIDTH, name=f"packet{place}") for place in range(PER_LINE)]
        for index, queue in enumerate(self.queues):
            fetch, write_back = queue.fetch, queue.write_back
            with m.If(fetch.issue):
                m.d.comb += [
                    fetch_queue.eq(index),
                    address.eq(fetch.issue_address),
                    count.eq(fetch.issue_count),
                ]
            # The link takes one TLP at a time
            with m.If(write_back.done):
                m.d.comb += [
                    of.eq(index),
                    sent.eq(write_back.sent_lanes),
                    base.eq(write_back.ring.base),
                    line.eq(write_back.head & ~(PER_LINE - 1)),
                    *(packet.eq(entry.packet) for packet, entry in zip(packets, write_back.sent, strict=True)),
                ]
            self.queue_error[index].emit(m, queue.error, queue=index, error=queue.error_kind)
        issued = Cat(queue.fetch.issue for queue in self.queues).any()
        self.descriptor_fetch.emit(m, issued, queue=fetch_queue, address=address, count=count)
        for place, probe in enumerate(self.write_back):
            index = line + place
            address = base + index * DESCRIPTOR_BYTES
            probe.emit(m, sent[place], packet=packets[place], queue=of, index=index, address=address)
        self.write_back_tlps.increment(m, sent.any())
        self.descriptors_written_back.increment(m, sent.any(), sum(sent))
