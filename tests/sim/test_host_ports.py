"""Nothing combinational hangs on what the host drives: no output of a machine looks at an input past its registers."""

from collections.abc import Iterator
from itertools import product
from unittest.mock import patch

from amaranth.hdl import Fragment, MemoryInstance, Signal, Value
from amaranth.hdl._ast import SignalDict, SignalSet

from hw.config import load_machine
from hw.lib.platform import CompiledSimulation
from hw.machine import Machine
from hw.nic.mac import MacReceive
from sim.build.toplevel import Toplevel
from tests.formal.prove import fragments_below


def combinational(fragment: Fragment) -> Iterator[tuple[Signal, Signal]]:
    """What combinational logic computes, and each signal it looks at for that."""
    for each in fragments_below(fragment):
        for statement in each.statements.get("comb", ()):
            yield from product(statement._lhs_signals(), statement._rhs_signals())
        if isinstance(each, MemoryInstance):
            for port in each._read_ports:
                if port._domain == "comb":
                    yield from product(Value.cast(port._data)._rhs_signals(), Value.cast(port._addr)._rhs_signals())


def looking_at_inputs() -> set[str]:
    """Outputs of ``tiny`` that depend on an input through combinational logic alone."""
    toplevel = Toplevel(Machine(load_machine("tiny")))
    readers = SignalDict()
    for target, source in combinational(Fragment.get(toplevel, CompiledSimulation())):
        readers.setdefault(source, []).append(target)
    new = [toplevel.ports[port.name] for port in toplevel.manifest.ports if not port.output]
    reached = SignalSet(new)
    while new:
        for signal in readers.get(new.pop(), ()):
            if signal not in reached:
                reached.add(signal)
                new.append(signal)
    return {port.name for port in toplevel.manifest.ports if port.output and toplevel.ports[port.name] in reached}


class LookingMac(MacReceive):
    """Its ``quiet`` looks at what the wire offers."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.quiet.eq(~self.wire.valid)
        return m


def test_outputs_depend_on_registers():
    """Planted: a MAC that is not quiet while it is offered a frame."""
    assert looking_at_inputs() == set()
    with patch("hw.nic.nic.MacReceive", LookingMac):
        assert looking_at_inputs() == {"quiet_nic"}
