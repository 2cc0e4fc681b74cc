"""The card by itself as Verilog with flat ports, for a testbench in cocotb."""

from collections.abc import Iterator

from amaranth.back import verilog
from amaranth.hdl import ClockDomain, Elaboratable, Module, Signal, Value
from amaranth.lib import data

from hw.config import MachineConfig
from hw.lib.platform import CompiledSimulation
from hw.lib.ram import RAM_VERILOG
from hw.nic.nic import Nic
from sim.build.toplevel import with_constants

TOP = "card"


class CardTop(Elaboratable):
    """A card of ``config``: clock ``nic_clk``, and for each stream ``NAME_valid``, ``NAME_ready``, ``NAME_FIELD``."""

    def __init__(self, config: MachineConfig):
        self.card = Nic(config)
        self.clock = Signal(name="nic_clk")
        self.ports = [self.clock]

    def elaborate(self, platform):
        """Elaborate; ``ports`` is complete afterwards."""
        m = Module()
        m.domains.nic = domain = ClockDomain("nic", reset_less=True)
        domain.clk = self.clock
        m.submodules.card = card = self.card
        now = Signal(48)
        m.d.nic += now.eq(now + 1)
        m.d.comb += card.now.eq(now)
        for name, stream in (("wire", card.wire), ("receive", card.pcie.receive)):
            self._port(m, f"{name}_ready", stream.ready, output=True)
            self._port(m, f"{name}_valid", stream.valid, output=False)
            for field, value in _leaves(stream.payload):
                self._port(m, f"{name}_{field}", value, output=False)
        self._port(m, "send_ready", card.pcie.send.ready, output=False)
        self._port(m, "send_valid", card.pcie.send.valid, output=True)
        for field, value in _leaves(card.pcie.send.payload):
            self._port(m, f"send_{field}", value, output=True)
        self._port(m, "sent_valid", card.wire_out.valid, output=True)
        for field, value in _leaves(card.wire_out.payload):
            self._port(m, f"sent_{field}", value, output=True)
        self._port(m, "quiet", card.quiet, output=True)
        return m

    def _port(self, m: Module, name: str, value: Value, *, output: bool) -> None:
        signal = Signal(len(value), name=name)
        m.d.comb += signal.eq(value) if output else value.eq(signal)
        self.ports.append(signal)


def _leaves(view: data.View) -> Iterator[tuple[str, Value]]:
    for name, field in data.Layout.cast(view.shape()):
        inner = view[name]
        if isinstance(field.shape, type) and issubclass(field.shape, data.Struct):
            yield from _leaves(inner)
        else:
            yield name, Value.cast(inner)


def card_verilog(config: MachineConfig) -> tuple[str, list[str]]:
    """The Verilog of the card and of every module it is made from, and the names of its ports."""
    top, platform = CardTop(config), CompiledSimulation()
    text = verilog.convert(top.elaborate(platform), name=TOP, platform=platform, ports=top.ports, emit_src=False)
    modules = [with_constants(text), RAM_VERILOG.read_text(), *platform.files.values()]
    return "\n".join(modules), [port.name for port in top.ports]
