"""DPDK programs: receive a burst, do something with it, again."""

import abc
from collections.abc import Sequence

from sw.apps.reply import exchange_addresses
from sw.core import LINE, function
from sw.dpdk.ethdev import EthDev, free, rte_eth_dev_start, rte_eth_rx_burst, rte_eth_tx_burst
from sw.dpdk.ixgbe_rx import RTE_IXGBE_DESCS_PER_LOOP, rx_burst_wait
from sw.dpdk.mbuf import RTE_MBUF
from sw.linux.cpu import Cpu

__all__ = ["MAX_PKT_BURST", "Echo", "L2Forward", "PollModeProgram", "RxOnly"]

#: Most packets of a burst.
MAX_PKT_BURST = 32

#: How long an empty ring is watched before the program looks whether it should end, in cycles.
_PATIENCE = 100_000


class PollModeProgram(abc.ABC):
    """A program on a core of its own, which never sleeps.

    Arguments:
        dev: its port.
        burst: packets asked for at once; a multiple of 4 if the port receives with vector instructions.

    Notes: ``ready`` once; ``poll`` (work) for each burst; for each packet one of ``delivered`` (when the burst is
    handed to the program), ``sent`` and ``dropped``.

    Raises:
        ValueError: for bursts that the driver does not take.
    """

    name: str

    def __init__(self, dev: EthDev, burst: int = MAX_PKT_BURST):
        if not 1 <= burst <= MAX_PKT_BURST:
            raise ValueError(f"the poll-mode driver takes bursts of 1 to {MAX_PKT_BURST}, not {burst}")
        if dev.rx.vector and burst % RTE_IXGBE_DESCS_PER_LOOP:
            step = RTE_IXGBE_DESCS_PER_LOOP
            raise ValueError(f"the vector driver takes bursts of a multiple of {step}, not {burst}")
        self.dev = dev
        self.burst = burst

    async def main(self, cpu: Cpu) -> None:
        """The program."""
        await rte_eal_init(cpu, self)
        while not cpu.kernel.stopping:
            mbufs = await rte_eth_rx_burst(cpu, self.dev, self.burst)
            if mbufs:
                await self.handle(cpu, mbufs)
            else:
                await rx_burst_wait(cpu, self.dev.rx, _PATIENCE)

    @abc.abstractmethod
    async def handle(self, cpu: Cpu, mbufs: Sequence[int]) -> None:
        """Do what the program does with a burst; the mbufs are its own."""


@function()
async def rte_eal_init(cpu: Cpu, program: PollModeProgram) -> None:
    """Bring the port up; everything is in memory before anyone is told."""
    await rte_eth_dev_start(cpu, program.dev)
    await cpu.fence()
    cpu.note("ready", program=program.name)


class RxOnly(PollModeProgram):
    """Receives and frees, without a look at the packets (testpmd's ``rxonly``)."""

    name = "rxonly"

    async def handle(self, cpu: Cpu, mbufs: Sequence[int]) -> None:
        """Free the burst."""
        await pkt_burst_receive(cpu, self.dev, mbufs)


@function()
async def pkt_burst_receive(cpu: Cpu, dev: EthDev, mbufs: Sequence[int]) -> None:
    """Free a burst (app/test-pmd/rxonly.c)."""
    for mbuf in mbufs:
        cpu.note("delivered", packet=dev.rx.packet_of.pop(mbuf))
    await free(cpu, dev, mbufs)


class L2Forward(PollModeProgram):
    """Sends every packet back with other Ethernet addresses (examples/l2fwd), each burst as it was received.

    The example collects bursts for up to 100 us where there are fewer than 32 packets; this one does not.
    """

    name = "l2fwd"

    async def handle(self, cpu: Cpu, mbufs: Sequence[int]) -> None:
        """New addresses, then send."""
        for mbuf in mbufs:
            await l2fwd_simple_forward(cpu, self.dev, mbuf)
        await _send(cpu, self.dev, mbufs)


@function()
async def l2fwd_simple_forward(cpu: Cpu, dev: EthDev, mbuf: int) -> None:
    """Write destination 02:00:00:00:00:00 (port 0) and this port's source address; nothing of the packet is read."""
    header = await cpu.load(mbuf, LINE)
    data = RTE_MBUF.buf_addr.of(header) + RTE_MBUF.data_off.of(header)
    cpu.store(data, b"\x02" + bytes(5) + dev.mac, 12)


class Echo(PollModeProgram):
    """Sends UDP datagrams back to where they came from; frees all else."""

    name = "echo"

    async def handle(self, cpu: Cpu, mbufs: Sequence[int]) -> None:
        """Turn round what is UDP, then send."""
        turned: list[int] = []
        others: list[int] = []
        for mbuf in mbufs:
            (turned if await reply_to_udp(cpu, mbuf) else others).append(mbuf)
        for mbuf in others:
            cpu.note("dropped", packet=self.dev.rx.packet_of.pop(mbuf), reason="NOT_UDP")
        await free(cpu, self.dev, others)
        await _send(cpu, self.dev, turned)


@function()
async def reply_to_udp(cpu: Cpu, mbuf: int) -> bool:
    """Exchange source and destination in Ethernet, IPv4 and UDP headers; their checksums stay right.

    False if the packet is none without IP options.
    """
    descriptor = await cpu.load(mbuf, LINE)
    data = RTE_MBUF.buf_addr.of(descriptor) + RTE_MBUF.data_off.of(descriptor)
    return await exchange_addresses(cpu, data, RTE_MBUF.data_len.of(descriptor))


async def _send(cpu: Cpu, dev: EthDev, mbufs: Sequence[int]) -> None:
    """Send; what the card does not take is freed, as the examples do."""
    if not mbufs:
        return
    sent = await rte_eth_tx_burst(cpu, dev, mbufs)
    for mbuf in mbufs[:sent]:
        del dev.rx.packet_of[mbuf]
    for mbuf in mbufs[sent:]:
        cpu.note("dropped", packet=dev.rx.packet_of.pop(mbuf), reason="TX_RING_FULL")
    await free(cpu, dev, mbufs[sent:])
