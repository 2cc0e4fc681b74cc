"""The card: an Intel 82599's programming model."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tlp import TlpPort, TlpStatus, TlpType
from hw.bus.wire import SentStream, WireStream
from hw.config import MachineConfig
from hw.lib.time import NOW_WIDTH

from .interrupts import Interrupts
from .layouts import RegisterBus, register_layout
from .mac import MacReceive
from .packet_buffer import PacketBuffer
from .read_limit import ReadLimit
from .register_file import RegisterFile
from .registers import QUEUE_CAUSES, REG
from .rss import ReceiveSideScaling
from .rx import Receive
from .statistics import OctetStatistic, Statistic
from .tlp_arbiter import TlpArbiter
from .tx import Transmit
from .tx_mac import MacTransmit

__all__ = ["Nic", "ResetControl"]


class ResetControl(wiring.Component):
    """CTRL and STATUS: the card's reset, and whether it may start DMA.

    CTRL.RST or LRST written 1 begins a reset: ``resetting`` is high until ``drained`` is, then ``reset`` for one cycle;
    the bit reads 1 until then.
    """

    bus: In(RegisterBus())
    drained: In(1)  #: nothing of the card is in flight, no packet is in it
    dma_idle: In(1)  #: no DMA is in flight
    ctrl: Out(32)
    status: Out(32)
    links: Out(32)
    master: Out(1)
    resetting: Out(1)
    reset: Out(1)
    quiet: Out(1)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        control = Signal(register_layout(REG.CTRL))
        status, links = Signal(register_layout(REG.STATUS)), Signal(register_layout(REG.LINKS))
        written = self.bus.write & ~self.bus.table & (self.bus.offset == REG.CTRL.offset())
        clearing = REG.CTRL.RST.mask | REG.CTRL.LRST.mask
        with m.If(written & ~self.resetting):
            m.d.nic += [control.value.eq(self.bus.data), self.resetting.eq((self.bus.data & clearing) != 0)]
        m.d.comb += self.reset.eq(self.resetting & self.drained)
        with m.If(self.reset):
            m.d.nic += [control.value.eq(0), self.resetting.eq(0)]
        up = ~self.resetting
        m.d.comb += [
            status.LINK_UP.eq(up),
            status.GIO_MASTER_EN.eq(~control.GIO_DIS | ~self.dma_idle),
            links.UP.eq(up),
            links.KX_AN_COMP.eq(up),
            links.SPEED.eq(Mux(up, 3, 0)),
            self.ctrl.eq(control.value),
            self.status.eq(status.value),
            self.links.eq(links.value),
            self.master.eq(~control.GIO_DIS),
            self.quiet.eq(~self.bus.write & ~self.reset),
        ]
        return m


class Nic(wiring.Component):
    """The whole card, in domain ``nic``.

    ``wire``: frames that come in, see :class:`hw.nic.mac.MacReceive`. ``wire_out``: those that go out, see
    :class:`hw.nic.tx_mac.MacTransmit`. ``pcie``: one stream of TLPs each way; everything the
    card sends leaves in the order in which the arbiter took it, so a packet's payload goes before its
    descriptor and the descriptor before its interrupt, and a register read's answer after all of what was
    sent before. At most ``nic.read_tags`` reads are in flight.

    With ``nic.dca_gates``, an extension, writes are marked for the cache as DCA_RXCTRL, DCA_TXCTRL and DCA_CTRL say, at
    the beginning of each buffer and of each write-back; else none is marked and the mark means nothing.
    """

    wire: In(WireStream)
    wire_out: Out(SentStream)
    pcie: Out(TlpPort())
    now: In(NOW_WIDTH)
    quiet: Out(1)

    def __init__(self, config: MachineConfig):
        super().__init__()
        self.mac = MacReceive(config)
        self.packet_buffer = PacketBuffer(config.nic.packet_buffer_kib)
        self.rss = ReceiveSideScaling()
        self.rx = Receive(config)
        self.tx = Transmit(config)
        self.tx_mac = MacTransmit(config)
        self.queues = config.nic.queues
        self.dca_gates = config.nic.dca_gates
        self.interrupt = Interrupts(config, self.queues)
        self.registers = RegisterFile(self.queues, config.nic.msix_vectors)
        self.control = ResetControl()
        # Register reads, interrupts, descriptors of either direction, payload to be read, and written
        self.arbiter = TlpArbiter(2 + 4 * self.queues + 2)
        self.read_limit = ReadLimit(config.nic.read_tags)
        self.statistics = [
            Statistic(register)
            for register in (REG.CRCERRS, REG.RUC, REG.RFC, REG.ROC, REG.RJC, REG.GPRC, REG.RXMPC, REG.GPTC)
        ]
        self.octets = OctetStatistic(REG.GORCL, REG.GORCH)
        self.sent_octets = OctetStatistic(REG.GOTCL, REG.GOTCH)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.mac = mac = self.mac
        m.submodules.packet_buffer = buffer = self.packet_buffer
        m.submodules.rss = rss = self.rss
        m.submodules.rx = rx = self.rx
        m.submodules.tx = tx = self.tx
        m.submodules.tx_mac = tx_mac = self.tx_mac
        m.submodules.interrupt = interrupt = self.interrupt
        m.submodules.registers = registers = self.registers
        m.submodules.control = control = self.control
        m.submodules.arbiter = arbiter = self.arbiter
        m.submodules.read_limit = self.read_limit

        # Packets
        wiring.connect(m, mac.wire, wiring.flipped(self.wire))
        wiring.connect(m, buffer.input, mac.packets)
        m.d.comb += [
            rss.beats.valid.eq(mac.packets.valid),
            rss.beats.payload.eq(mac.packets.payload),
            buffer.end.valid.eq(mac.end.valid),
            buffer.end.payload.eq(mac.end.payload),
            buffer.end.payload.rss.eq(rss.result),
        ]
        wiring.connect(m, rx.packets, buffer.output)
        wiring.connect(m, tx_mac.packets, tx.packets)
        wiring.connect(m, wiring.flipped(self.wire_out), tx_mac.wire)
        m.d.comb += [part.now.eq(self.now) for part in (mac, tx_mac, interrupt)]

        self._tlps(m)
        self._registers(m)
        self._statistics(m)

        # Causes
        other = Signal(register_layout(REG.EICR))
        m.d.comb += [
            other.MISSED.eq(buffer.missed),
            other.DHER.eq(rx.error | tx.error),
            interrupt.other_causes.eq(other.value),
            interrupt.rx_causes.eq(rx.causes),
            interrupt.tx_causes.eq(tx.causes),
        ]

        # Reset
        dma_idle = rx.idle & tx.idle
        m.d.comb += [
            control.dma_idle.eq(dma_idle),
            control.drained.eq(
                dma_idle & Cat(rx.disabled, tx.disabled, buffer.empty, tx.empty, interrupt.idle, tx_mac.idle).all()
            ),
            *(part.resetting.eq(control.resetting) for part in (mac, rx, tx)),
            *(part.master.eq(control.master) for part in (rx, tx)),
            *(part.reset.eq(control.reset) for part in (registers, rss, rx, tx, interrupt)),
        ]

        children = (mac, buffer, rss, rx, tx, tx_mac, interrupt, registers, control, arbiter)
        m.d.comb += self.quiet.eq(Cat(child.quiet for child in children).all())
        return m

    def _tlps(self, m: Module) -> None:
        """Completions to the parts that read, requests to the registers; everything sent through the arbiter."""
        registers, rx, tx, limit = self.registers, self.rx, self.tx, self.read_limit
        incoming = self.pcie.receive
        is_completion = incoming.payload.header.kind == TlpType.COMPLETION
        is_received = rx.tags.is_receive(incoming.payload.header.tag)
        for sink, mine in (
            (registers.request, ~is_completion),
            (rx.completion, is_completion & is_received),
            (tx.completion, is_completion & ~is_received),
        ):
            m.d.comb += [sink.payload.eq(incoming.payload), sink.valid.eq(incoming.valid & mine)]
        m.d.comb += [
            incoming.ready.eq(Mux(is_completion, is_received | tx.completion.ready, registers.request.ready)),
            limit.answered.eq(
                incoming.valid
                & incoming.ready
                & is_completion
                & (
                    (incoming.payload.header.remaining == incoming.payload.header.length)
                    | (incoming.payload.header.status != TlpStatus.SUCCESS)
                )
            ),
            limit.sent.eq(
                self.pcie.send.valid
                & self.pcie.send.ready
                & (self.pcie.send.payload.header.kind == TlpType.MEMORY_READ)
            ),
        ]

        # Before payload and write-back come those that are few, so nobody starves
        sources = [registers.completion, self.interrupt.send]
        reads = [*rx.reads, *tx.reads]
        others = [*rx.write_backs, *tx.write_backs, rx.payload]
        inputs = list(self.arbiter.inputs)
        for source, sink in zip([*sources, *reads, *others], inputs, strict=True):
            if source in reads:
                m.d.comb += [
                    sink.payload.eq(source.payload),
                    sink.valid.eq(source.valid & limit.free),
                    source.ready.eq(sink.ready & limit.free),
                ]
            else:
                wiring.connect(m, sink, source)
        wiring.connect(m, wiring.flipped(self.pcie.send), self.arbiter.output)

    def _registers(self, m: Module) -> None:
        """Connect every live register with the block that keeps it or looks at it."""
        file, mac, rx, tx, interrupt, control = (
            self.registers,
            self.mac,
            self.rx,
            self.tx,
            self.interrupt,
            self.control,
        )
        for block in (self.rss, rx, tx, interrupt, control):
            wiring.connect(m, block.bus, file.bus)
        looks = {
            mac: {n: n.upper() for n in ("rxctrl", "fctrl", "hlreg0", "rdrxctl", "maxfrs")}
            | {"ral": "RAL0", "rah": "RAH0"},
            self.tx_mac: {"hlreg0": "HLREG0"},
            self.rss: {"mrqc": "MRQC"},
            interrupt: {n: n.upper() for n in ("eiac", "eiam", "gpie", "ivar_misc")},
        }
        for block, names in looks.items():
            for port, name in names.items():
                m.d.comb += getattr(block, port).eq(getattr(file, name))
        for index, port in enumerate(interrupt.ivar):
            m.d.comb += port.eq(getattr(file, f"IVAR{index}"))
        for index, port in enumerate(interrupt.eitr):
            m.d.comb += port.eq(getattr(file, f"EITR{index}"))
        m.d.comb += [
            file.table_data.eq(interrupt.table_data),
            file.CTRL.eq(control.ctrl),
            file.STATUS.eq(control.status),
            file.LINKS.eq(control.links),
            file.EICR.eq(interrupt.eicr),
            file.EICS.eq(interrupt.eicr),
            file.EIMS.eq(interrupt.eims),
            file.EIMC.eq(interrupt.eims),
            file.EICS_EX0.eq(interrupt.eicr[:QUEUE_CAUSES]),
            file.EIMS_EX0.eq(interrupt.eims[:QUEUE_CAUSES]),
            file.EIMC_EX0.eq(interrupt.eims[:QUEUE_CAUSES]),
            tx.enable.eq(file.DMATXCTL.TE),
        ]
        for index in range(self.queues):
            for letter, control_name, queues in (("R", "RXDCTL", rx), ("T", "TXDCTL", tx)):
                queue = queues.registers[index]
                for port, name in (("base_low", "BAL"), ("base_high", "BAH"), ("length", "LEN"), ("tail", "T")):
                    m.d.comb += getattr(queue, port).value.eq(getattr(file, f"{letter}D{name}{index}").value)
                m.d.comb += [
                    getattr(file, f"{letter}DH{index}").eq(queue.head),
                    getattr(file, f"{control_name}{index}").eq(queue.control),
                ]
            m.d.comb += rx.srrctl[index].eq(getattr(file, f"SRRCTL{index}"))
            if self.dca_gates:
                enabled = ~file.DCA_CTRL.DCA_DIS
                receive, transmit = getattr(file, f"DCA_RXCTRL{index}"), getattr(file, f"DCA_TXCTRL{index}")
                m.d.comb += [
                    rx.inject[index].eq(enabled & receive.DESC_DCA_EN),
                    rx.inject_payload[index].eq(enabled & receive.DATA_DCA_EN),
                    tx.inject[index].eq(enabled & transmit.DESC_DCA_EN),
                ]
            for block, names in ((rx, ("qprc", "qbrc_l", "qbrc_h", "qprdc")), (tx, ("qptc", "qbtc_l", "qbtc_h"))):
                m.d.comb += [getattr(file, f"{n.upper()}{index}").eq(getattr(block, n)[index]) for n in names]

    def _statistics(self, m: Module) -> None:
        """Count what the MAC and the packet buffer report."""
        m.submodules += self.statistics
        m.submodules.octets = octets = self.octets
        m.submodules.sent_octets = sent = self.sent_octets
        events, file = self.mac.events, self.registers
        causes = (
            events.crc_error,
            events.undersize,
            events.fragment,
            events.oversize,
            events.jabber,
            events.good,
            self.packet_buffer.missed,
            self.tx_mac.sent.valid,
        )
        ports = (file.CRCERRS, file.RUC, file.RFC, file.ROC, file.RJC, file.GPRC, file.RXMPC0, file.GPTC)
        for statistic, event, port in zip(self.statistics, causes, ports, strict=True):
            m.d.comb += [statistic.event.eq(event), port.eq(statistic.value)]
        for statistic in (*self.statistics, octets, sent):
            wiring.connect(m, statistic.bus, file.bus)
            m.d.comb += statistic.reset.eq(self.control.reset)
        m.d.comb += [
            octets.event.eq(events.good),
            octets.amount.eq(events.length),
            file.GORCL.eq(octets.low),
            file.GORCH.eq(octets.high),
            sent.event.eq(self.tx_mac.sent.valid),
            sent.amount.eq(self.tx_mac.sent.length),
            file.GOTCL.eq(sent.low),
            file.GOTCH.eq(sent.high),
        ]
