"""Programs on a core: which operations they issue, what is charged, what waits for what."""

import asyncio

import pytest

from sw.bpf.context import XDP_BUFF, XdpAction
from sw.bpf.elf import load_object
from sw.bpf.syscall import Bpf
from sw.core import Core, Dispatcher, Mode, Record
from sw.costs import load_costs
from sw.linux.mm import MemBlock, lay_out_text
from sw.port import OperationKind
from tests.sw.bpf.bench import PROGRAMS, trust
from tests.sw.functional_machine import FunctionalMachine

FRAME, XDP = 0x8000, 0x6000
HEADROOM = 256


class Watched(FunctionalMachine):
    """Remembers what is pushed."""

    def __init__(self):
        super().__init__(cores=1)
        self.pushed: list[tuple] = []

    def push(self, context, kind, address=0, size=0, data=0, cycles=0, uops=0, after=-1, notify=0, argument=0):
        handle = super().push(context, kind, address, size, data, cycles, uops, after, notify, argument)
        self.pushed.append((handle, OperationKind(kind), address, size, cycles, uops, after, argument))
        return handle


class Machine:
    def __init__(self, jit: bool, name: str, packet: bytes, figure: str = "cycles"):
        self.port = Watched()
        costs = load_costs("bpf")
        memblock = MemBlock(len(self.port.memory))
        memblock.next = 0x10000
        self.core = Core(0, self.port, Record(), costs, lay_out_text(costs, memblock))
        self.bpf = Bpf(memblock.allocate, 1, trust, jit_enable=jit, costs=costs, jit_figure=figure)
        self.packet = packet
        self.verdict = None
        self.name = name
        self.start = 0
        dispatcher = Dispatcher(self.port, [self.core], self.core.record)
        dispatcher.start(self.core, self.core.new_context(self._main(), Mode.SOFTIRQ))
        asyncio.run(dispatcher.run())

    async def _main(self):
        core, memory = self.core, self.port.memory
        data = FRAME + HEADROOM
        memory[data : data + len(self.packet)] = self.packet
        buff = XDP_BUFF.pack(
            data=data, data_end=data + len(self.packet), data_meta=data, data_hard_start=FRAME, frame_sz=4096
        )
        memory[XDP : XDP + len(buff)] = buff
        program, _ = await self.bpf.load_object(core, load_object(PROGRAMS / f"{self.name}.o"))
        await core.drain()
        self.program = program
        self.start = len(self.port.pushed)
        self.verdict = await program.run(core, XDP)

    @property
    def operations(self):
        return self.port.pushed[self.start :]

    def touched(self, kind: OperationKind) -> list[int]:
        """Offsets into the packet of accesses of a kind."""
        data = FRAME + HEADROOM
        return [o[2] - data for o in self.operations if o[1] is kind and data <= o[2] < data + len(self.packet)]


@pytest.mark.parametrize("jit", [False, True])
def test_drop_all_touches_nothing(jit):
    machine = Machine(jit, "drop_all", bytes(64))
    assert machine.verdict == XdpAction.DROP
    memory = [o for o in machine.operations if o[1] is not OperationKind.EXECUTE]
    # The interpreter reads the two instructions; translated, there is nothing to read.
    assert [(o[1], o[2]) for o in memory] == ([] if jit else [(OperationKind.LOAD, machine.program.address)])


@pytest.mark.parametrize("jit", [False, True])
def test_mac_swap_touches_the_addresses_once(jit):
    machine = Machine(jit, "mac_swap_tx", bytes(range(64)))
    assert machine.verdict == XdpAction.TX
    assert sorted(machine.touched(OperationKind.LOAD)) == [0, 2, 4, 6, 8, 10]
    assert sorted(machine.touched(OperationKind.STORE)) == [0, 2, 4, 6, 8, 10]
    data = FRAME + HEADROOM
    assert bytes(machine.port.memory[data : data + 12]) == bytes(range(6, 12)) + bytes(range(6))


def test_packet_loads_wait_for_the_packets_address():
    """The first load from the packet comes after the load of its address from the context: a pointer chase."""
    machine = Machine(True, "mac_swap_tx", bytes(range(64)))
    loads = [o for o in machine.operations if o[1] is OperationKind.LOAD]
    handles = {o[2]: o[0] for o in loads}
    data = FRAME + HEADROOM
    chased = [o for o in loads if data <= o[2] < data + 64]
    assert {o[6] for o in chased} == {handles[XDP + XDP_BUFF.data.offset]}
    assert all(o[6] == -1 for o in loads if o not in chased)


def test_translated_code_is_fetched_and_charged_as_laid_out():
    machine = Machine(True, "mac_swap_tx", bytes(64))
    image, address = machine.program.runner.image, machine.program.address
    executes = [o for o in machine.operations if o[1] is OperationKind.EXECUTE]
    lines = {line for o in executes if o[7] for line in range(o[2] // 64, o[2] // 64 + o[7])}
    assert lines == set(range(address // 64, (address + image.size - 1) // 64 + 1))
    assert sum(block.cost.cycles for block in image.blocks) <= sum(o[4] for o in executes) <= 8
    assert len(executes) == len(image.blocks)


def test_the_interpreter_is_dearer():
    packet = bytes(12) + b"\x08\x00\x45" + bytes(45)
    cycles = {}
    for jit in (False, True):
        machine = Machine(jit, "firewall", packet)
        assert machine.verdict == XdpAction.PASS
        cycles[jit] = sum(o[4] for o in machine.operations if o[1] is OperationKind.EXECUTE)
    assert 5 * cycles[True] < cycles[False] < 40 * cycles[True]


def test_interpreted_instructions_cost_what_the_table_says():
    machine = Machine(False, "drop_all", bytes(64))
    costs = load_costs("bpf")
    expected = sum(costs[n].cycles for n in ("___bpf_prog_run", "bpf_interpreter.alu", "bpf_interpreter.exit"))
    assert sum(o[4] for o in machine.operations if o[1] is OperationKind.EXECUTE) == expected


def test_the_band_of_translated_code():
    """Cycles lie between what is charged as the least and as the most that is plausible."""
    charged = [
        sum(o[4] for o in Machine(True, "firewall", bytes(64), figure).operations if o[1] is OperationKind.EXECUTE)
        for figure in ("low", "cycles", "high")
    ]
    assert charged[0] <= charged[1] < charged[2]
