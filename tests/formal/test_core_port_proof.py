"""A core port of the smallest size, and its interrupt controller: quiet implies stable."""

from amaranth.hdl import Cat

from hw.config import load_machine
from hw.cpu.core_port import CorePort
from hw.cpu.deadline_timer import DeadlineTimer
from hw.cpu.interrupt_controller import InterruptController
from tests.formal.prove import prove_quiet

SMALL = load_machine("tiny", ["core.count=1", "core.load_queue=2", "core.store_buffer=2"])
DOMAIN = "core0"


def test_core_port_quiet():
    """Covered: an operation waits for loads in flight."""
    dut = CorePort(SMALL, 0, DOMAIN)
    released = dut.hold_off.armed & ~dut._holding
    own = ~(dut._issuing | dut._taking | dut.host.fault | released) & (dut._stalled == dut._offered)
    noted = dut._stall_now == dut._stall
    parts = {
        name: getattr(dut, name).quiet
        for name in (
            "order",
            "load_unit",
            "store_buffer",
            "write_combining",
            "execute",
            "poll",
            "interrupt_unit",
            "completions",
        )
    }

    def without(*forgotten):
        return Cat(own, noted, *(quiet for name, quiet in parts.items() if name not in forgotten)).all()

    prove_quiet(
        dut,
        domain=DOMAIN,
        idle_inputs=[dut.host.operation.valid & dut.host.operation.ready],
        cover_depth=8,
        outstanding=~dut.order.idle & dut._fetched,
        planted={
            "forgets to note a stall": Cat(own, *parts.values()).all(),
            **{f"forgets {name}": without(name) for name in ("load_unit", "store_buffer", "execute", "poll")},
            "forgets write combining": without("write_combining"),
        },
    )


def test_interrupt_controller_quiet():
    """Covered: an interrupt is pending that the core does not take."""
    dut = InterruptController(DOMAIN)
    planted = {"forgets messages": ~dut.acknowledge, "forgets acknowledgements": ~dut.message.valid}
    prove_quiet(dut, domain=DOMAIN, cover_depth=4, outstanding=dut.pending, planted=planted)


def test_deadline_timer_quiet():
    """Covered: it is armed."""
    dut = DeadlineTimer(DOMAIN)
    planted = {"forgets writes": ~dut.message.valid}
    prove_quiet(dut, domain=DOMAIN, cover_depth=4, outstanding=dut.timer.armed, planted=planted)
