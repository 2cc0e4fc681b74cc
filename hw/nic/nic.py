"""The card: an Intel 82599's programming model, receiving."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.bus.tlp import TlpPort, TlpType
from hw.bus.wire import SentStream, WireStream
from hw.config import MachineConfig
from hw.lib.time import NOW_WIDTH

from .interrupts import Interrupts
from .layouts import RegisterBus, register_layout
from .mac import MacReceive
from .packet_buffer import PacketBuffer
from .register_file import RegisterFile
from .registers import REG
from .rx import Receive
from .statistics import OctetStatistic, Statistic
from .tlp_arbiter import TlpArbiter
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
    sent before.
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
        self.rx = Receive(config)
        self.tx_mac = MacTransmit(config)
        self.interrupt = Interrupts(config)
        self.registers = RegisterFile(1, config.nic.msix_vectors)
        self.control = ResetControl()
        self.arbiter = TlpArbiter(5)
        self.statistics = [
            Statistic(register) for register in (REG.CRCERRS, REG.RUC, REG.RFC, REG.ROC, REG.RJC, REG.GPRC, REG.RXMPC)
        ]
        self.octets = OctetStatistic(REG.GORCL, REG.GORCH)

    def elaborate(self, platform):
        """Elaborate."""
        m = Module()
        m.submodules.mac = mac = self.mac
        m.submodules.packet_buffer = buffer = self.packet_buffer
        m.submodules.rx = rx = self.rx
        m.submodules.tx_mac = tx_mac = self.tx_mac
        m.submodules.interrupt = interrupt = self.interrupt
        m.submodules.registers = registers = self.registers
        m.submodules.control = control = self.control
        m.submodules.arbiter = arbiter = self.arbiter

        # Packets
        wiring.connect(m, mac.wire, wiring.flipped(self.wire))
        wiring.connect(m, buffer.input, mac.packets)
        wiring.connect(m, buffer.end, mac.end)
        wiring.connect(m, rx.packets, buffer.output)
        wiring.connect(m, wiring.flipped(self.wire_out), tx_mac.wire)
        m.d.comb += [part.now.eq(self.now) for part in (mac, tx_mac, interrupt)]

        # TLPs in: completions to the receive side, requests to the registers
        incoming = self.pcie.receive
        is_completion = incoming.payload.header.kind == TlpType.COMPLETION
        m.d.comb += [
            rx.completion.payload.eq(incoming.payload),
            rx.completion.valid.eq(incoming.valid & is_completion),
            registers.request.payload.eq(incoming.payload),
            registers.request.valid.eq(incoming.valid & ~is_completion),
            incoming.ready.eq(Mux(is_completion, rx.completion.ready, registers.request.ready)),
        ]

        # TLPs out. Before payload and write-back come those that are few, so nobody starves
        sources = (registers.completion, interrupt.send, rx.read, rx.write_back_send, rx.payload)
        for source, sink in zip(sources, arbiter.inputs, strict=True):
            wiring.connect(m, sink, source)
        wiring.connect(m, wiring.flipped(self.pcie.send), arbiter.output)

        self._registers(m)
        self._statistics(m)

        # Causes
        other = Signal(register_layout(REG.EICR))
        m.d.comb += [
            other.MISSED.eq(buffer.missed),
            other.DHER.eq(rx.error),
            interrupt.other_causes.eq(other.value),
            interrupt.rx_causes.eq(rx.cause),
        ]

        # Reset
        dma_idle = rx.idle
        m.d.comb += [
            control.dma_idle.eq(dma_idle),
            control.drained.eq(dma_idle & rx.disabled & buffer.empty & interrupt.idle & tx_mac.idle),
            mac.resetting.eq(control.resetting),
            rx.resetting.eq(control.resetting),
            rx.master.eq(control.master),
            *(part.reset.eq(control.reset) for part in (registers, rx, interrupt)),
        ]

        children = (mac, buffer, rx, tx_mac, interrupt, registers, control, arbiter)
        m.d.comb += self.quiet.eq(Cat(child.quiet for child in children).all())
        return m

    def _registers(self, m: Module) -> None:
        """Connect every live register with the block that keeps it or looks at it."""
        file, mac, rx, interrupt, control = self.registers, self.mac, self.rx, self.interrupt, self.control
        queue = rx.registers
        for block in (rx, interrupt, control):
            wiring.connect(m, block.bus, file.bus)
        looks = {
            mac: {n: n.upper() for n in ("rxctrl", "fctrl", "hlreg0", "rdrxctl", "maxfrs")}
            | {"ral": "RAL0", "rah": "RAH0"},
            self.tx_mac: {"hlreg0": "HLREG0"},
            queue: {n: f"{n.upper()}0" for n in ("rdbal", "rdbah", "rdlen", "rdt", "srrctl")},
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
            file.RDH0.eq(queue.rdh),
            file.RXDCTL0.eq(queue.rxdctl),
            file.QPRC0.eq(rx.qprc),
            file.QBRC_L0.eq(rx.qbrc_l),
            file.QBRC_H0.eq(rx.qbrc_h),
            file.QPRDC0.eq(rx.qprdc),
        ]

    def _statistics(self, m: Module) -> None:
        """Count what the MAC and the packet buffer report."""
        m.submodules += self.statistics
        m.submodules.octets = octets = self.octets
        events, file = self.mac.events, self.registers
        causes = (
            events.crc_error,
            events.undersize,
            events.fragment,
            events.oversize,
            events.jabber,
            events.good,
            self.packet_buffer.missed,
        )
        ports = (file.CRCERRS, file.RUC, file.RFC, file.ROC, file.RJC, file.GPRC, file.RXMPC0)
        for statistic, event, port in zip(self.statistics, causes, ports, strict=True):
            m.d.comb += [statistic.event.eq(event), port.eq(statistic.value)]
        for statistic in (*self.statistics, octets):
            wiring.connect(m, statistic.bus, file.bus)
            m.d.comb += statistic.reset.eq(self.control.reset)
        m.d.comb += [
            octets.event.eq(events.good),
            octets.amount.eq(events.length),
            file.GORCL.eq(octets.low),
            file.GORCH.eq(octets.high),
        ]
