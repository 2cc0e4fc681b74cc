"""Programs with an AF_XDP socket, after xdpsock (samples/bpf/xdpsock_user.c): peek, do something, give back, again."""

import abc
from dataclasses import dataclass

from sw.apps.reply import exchange_addresses
from sw.bpf.syscall import Bpf
from sw.core import function
from sw.libxdp.xsk import (
    XSK_RING,
    XskSocket,
    xsk_ring_cons_comp_addr,
    xsk_ring_cons_peek,
    xsk_ring_cons_release,
    xsk_ring_cons_rx_desc,
    xsk_ring_prod_fill,
    xsk_ring_prod_needs_wakeup,
    xsk_ring_prod_reserve,
    xsk_ring_prod_submit,
    xsk_ring_prod_tx,
    xsk_ring_wait,
    xsk_socket_create,
)
from sw.linux.cpu import Cpu
from sw.linux.select import PollEvent
from sw.linux.syscall import sched_yield
from sw.linux.xdp.if_xdp import BindFlag
from sw.linux.xdp.syscall import sys_poll, xsk_recvfrom, xsk_sendto
from sw.linux.xdp.umem import XdpUmem
from sw.linux.xdp.xsk import AfXdp

__all__ = ["Echo", "RxDrop", "XdpsockPlan", "XdpsockProgram"]

#: Turns of the loop over an empty ring, in cycles, before the program lets others run: twice as many each time that
#: nothing has come, up to the time of a timer tick. And before it looks whether what it sends has been sent.
_PATIENCE, _MOST_PATIENCE, _SENDING_PATIENCE = 10_000, 10_000 << 10, 500


@dataclass(frozen=True, slots=True)
class XdpsockPlan:
    """What a program asks for.

    Attributes:
        family: the kernel's AF_XDP.
        bpf: the kernel's BPF.
        xsks: name of the map that leads from queues to sockets.
        umem: its UMEM.
        memory: address of :attr:`memory_bytes` of its own.
        entries: of each ring.
        flags: of bind().
        queue: whose packets it wants.
    """

    family: AfXdp
    bpf: Bpf
    umem: XdpUmem
    memory: int
    entries: int
    flags: BindFlag
    queue: int = 0

    memory_bytes = 4 * XSK_RING.size


class XdpsockProgram(abc.ABC):
    """A program with one socket.

    Arguments:
        batch: packets taken at once.
        sleeps: it waits in poll(2) instead of spinning.

    Notes: ``ready`` once; for each packet one of ``delivered``, when the program looks at its descriptor, ``sent``
    and ``dropped``.

    Raises:
        ValueError: for a batch of nothing.
    """

    name: str
    transmits: bool

    def __init__(self, plan: XdpsockPlan, batch: int, sleeps: bool):
        if batch < 1:
            raise ValueError(f"a batch has at least 1 packet, not {batch}")
        self.plan = plan
        self.batch = batch
        self.sleeps = sleeps
        self._waited, self._patience = 0, _PATIENCE  # turns over an empty ring so far, and before others may run
        self.socket: XskSocket | None = None
        self.xsks = -1  #: file descriptor of the XSKMAP

    @property
    def starves(self) -> bool:
        """So many chunks are out that the card may have none: before sleeping, see that they come back."""
        return False

    @property
    def turns(self) -> int:
        """Most turns over an empty ring, in cycles, before looking at all else."""
        return _MOST_PATIENCE

    async def main(self, cpu: Cpu) -> None:
        """The program."""
        socket = await xdpsock_start(cpu, self)
        while not cpu.kernel.stopping:
            if not await self.turn(cpu, socket):
                await self.wait(cpu, socket)

    async def wait(self, cpu: Cpu, socket: XskSocket) -> None:
        """Wait until there is something to do, after telling the kernel what it asks to be told.

        A program that spins lets ksoftirqd run now and then: no timer tick would take the core away.
        """
        if self.sleeps and not self.starves:
            await sys_poll(cpu, socket.xs, PollEvent.POLLIN)
            return
        if await xsk_ring_prod_needs_wakeup(cpu, socket.fill):
            await xsk_recvfrom(cpu, socket.xs)
        turns = min(self.turns, self._patience - self._waited)
        if await xsk_ring_wait(cpu, socket.rx, turns):
            self._waited, self._patience = 0, _PATIENCE
            return
        self._waited += turns
        if self._waited == self._patience:
            self._waited, self._patience = 0, min(2 * self._patience, _MOST_PATIENCE)
            await sched_yield(cpu)

    @abc.abstractmethod
    async def turn(self, cpu: Cpu, socket: XskSocket) -> int:
        """One turn of the loop; how much there was to do."""


@function()
async def xdpsock_start(cpu: Cpu, program: XdpsockProgram) -> XskSocket:
    """Make the socket and enter it in the map, so that the program in the driver finds it."""
    plan = program.plan
    fill = [number * plan.umem.chunk_size for number in range(min(plan.umem.chunks, plan.entries))]
    socket = program.socket = await xsk_socket_create(
        cpu,
        plan.family,
        plan.umem,
        plan.memory,
        plan.entries,
        plan.flags,
        queue=plan.queue,
        transmit=program.transmits,
        fill=fill,
    )
    key, value = plan.queue.to_bytes(4, "little"), socket.xs.fd.to_bytes(4, "little")
    await plan.bpf.map_update_elem(cpu, program.xsks, key, value)
    await cpu.fence()
    cpu.note("ready", program=program.name)
    return socket


class RxDrop(XdpsockProgram):
    """Receives and gives the chunks back, without a look at the packets (xdpsock's ``rxdrop``)."""

    name = "rxdrop"
    transmits = False

    async def turn(self, cpu: Cpu, socket: XskSocket) -> int:
        """Take a batch, give it back."""
        return await rx_drop(cpu, socket, self.batch)


@function()
async def rx_drop(cpu: Cpu, socket: XskSocket, batch: int) -> int:
    """Drop a batch: its chunks go to the fill ring."""
    count, first = await xsk_ring_cons_peek(cpu, socket.rx, batch)
    if not count:
        return 0
    cpu.execute("rx_drop_frame", count)
    addresses = []
    for number in range(count):
        address, length = await xsk_ring_cons_rx_desc(cpu, socket.rx, first + number)
        cpu.note("delivered", packet=socket.packet(address), length=length)
        addresses.append(address)
    await _fill(cpu, socket, addresses)
    await xsk_ring_cons_release(cpu, socket.rx, count)
    return count


class Echo(XdpsockProgram):
    """Sends UDP datagrams back to where they came from, gives the chunks of all else back (xdpsock's ``l2fwd``).

    xdpsock exchanges Ethernet addresses and sends whatever comes.
    """

    name = "echo"
    transmits = True

    def __init__(self, plan: XdpsockPlan, batch: int, sleeps: bool):
        super().__init__(plan, batch, sleeps)
        self.outstanding = 0  #: packets sent that have not come back by the completion ring

    @property
    def starves(self) -> bool:
        """While more than a quarter of the chunks is out."""
        return self.outstanding > self.plan.umem.chunks // 4

    @property
    def turns(self) -> int:
        """Few while packets are being sent: the completion ring is to be looked at."""
        return _SENDING_PATIENCE if self.outstanding else _MOST_PATIENCE

    async def turn(self, cpu: Cpu, socket: XskSocket) -> int:
        """Take back what has been sent, then send a batch back."""
        completed = await complete_tx_l2fwd(cpu, self, socket) if self.outstanding else 0
        return completed + await l2fwd(cpu, self, socket)


@function()
async def complete_tx_l2fwd(cpu: Cpu, program: Echo, socket: XskSocket) -> int:
    """Give chunks that have been sent to the fill ring; in copy mode, have what has not been sent be sent first."""
    assert socket.tx is not None
    if program.plan.flags & BindFlag.COPY:
        await kick_tx(cpu, socket)
    count, first = await xsk_ring_cons_peek(cpu, socket.completion, program.batch)
    if not count:
        return 0
    cpu.execute("l2fwd_completion", count)
    chunks = [await xsk_ring_cons_comp_addr(cpu, socket.completion, first + number) for number in range(count)]
    await _fill(cpu, socket, chunks)
    await xsk_ring_cons_release(cpu, socket.completion, count)
    program.outstanding -= count
    return count


@function()
async def l2fwd(cpu: Cpu, program: Echo, socket: XskSocket) -> int:
    """Turn a batch round and send it."""
    assert socket.tx is not None
    count, first = await xsk_ring_cons_peek(cpu, socket.rx, program.batch)
    if not count:
        return 0
    cpu.execute("l2fwd_frame", count)
    turned: list[tuple[int, int, tuple[int, int]]] = []
    others: list[int] = []
    for number in range(count):
        address, length = await xsk_ring_cons_rx_desc(cpu, socket.rx, first + number)
        packet = socket.packet(address)
        if await xsk_reply_to_udp(cpu, socket.data(address), length):
            turned.append((address, length, packet))
        else:
            cpu.note("dropped", packet=packet, reason="NOT_UDP")
            others.append(address)
            cpu.execute("l2fwd_completion")
    await xsk_ring_cons_release(cpu, socket.rx, count)
    if others:
        await _fill(cpu, socket, others)
    if turned:
        slot = await xsk_ring_prod_reserve(cpu, socket.tx, len(turned))
        assert slot is not None, "the transmit ring has room for every chunk"
        for number, (address, length, packet) in enumerate(turned):
            socket.send(address, packet)
            xsk_ring_prod_tx(cpu, socket.tx, slot + number, address, length)
        await xsk_ring_prod_submit(cpu, socket.tx, len(turned))
        program.outstanding += len(turned)
        if not program.plan.flags & BindFlag.COPY:
            await kick_tx(cpu, socket)
    return count


@function()
async def xsk_reply_to_udp(cpu: Cpu, data: int, length: int) -> bool:
    """Turn a datagram round in place; false if it is none."""
    return await exchange_addresses(cpu, data, length)


async def kick_tx(cpu: Cpu, socket: XskSocket) -> None:
    """Have the transmit ring looked at, if the kernel does not of itself. What it cannot send now, it is told again."""
    assert socket.tx is not None
    if await xsk_ring_prod_needs_wakeup(cpu, socket.tx):
        await xsk_sendto(cpu, socket.xs)


async def _fill(cpu: Cpu, socket: XskSocket, addresses: list[int]) -> None:
    """Give chunks to the fill ring, which has room for every chunk."""
    slot = await xsk_ring_prod_reserve(cpu, socket.fill, len(addresses))
    assert slot is not None, "the fill ring has room for every chunk"
    for number, address in enumerate(addresses):
        xsk_ring_prod_fill(cpu, socket.fill, slot + number, address - address % socket.umem.chunk_size)
    await xsk_ring_prod_submit(cpu, socket.fill, len(addresses))
