"""Path "dpdk": a poll-mode driver in a program, no kernel on the way."""

from sw.apps.poll_mode import Echo, L2Forward, RxOnly
from sw.dpdk.ethdev import EthDev
from sw.dpdk.ixgbe_rx import IXGBE_MIN_RING_DESC, RTE_IXGBE_DESCS_PER_LOOP, check_ring
from sw.linux.cpu import Cpu
from sw.linux.kernel import Kernel
from sw.linux.sched import PRIORITY_NORMAL
from sw.options import Options
from sw.paths.path import Path

__all__ = ["DpdkPath"]

_PROGRAMS = {program.name: program for program in (RxOnly, L2Forward, Echo)}


class DpdkPath(Path):
    """A program that never sleeps; its buffers and rings lie in pages of 2 MiB."""

    name = "dpdk"
    summary = "a poll-mode driver in user space: bursts, mbufs in huge pages"
    costs = ("linux", "dpdk")
    least_ring = IXGBE_MIN_RING_DESC
    applications = {
        "rxonly": "receives and frees, without a look at the packets",
        "l2fwd": "sends every packet back with other Ethernet addresses",
        "echo": "sends UDP datagrams back to where they came from",
    }

    def __init__(self, kernel: Kernel, options: Options):
        super().__init__(kernel, options)
        # The vector receive function rounds a burst down to a multiple of what it handles at once: none of less.
        vector = options.batch % RTE_IXGBE_DESCS_PER_LOOP == 0
        self.dev = EthDev(
            kernel.allocate_huge, options.mac, options.ring_size, options.promiscuous, vector, tx_ring=options.tx_ring
        )
        program = _PROGRAMS[self.application(options.application)](self.dev, options.batch)
        self.tasks = [kernel.new_task(program.name, self.app_cpu, PRIORITY_NORMAL, program.main)]
        self.starting = 1

    @classmethod
    def uses(cls, application: str) -> frozenset[str]:
        """No interrupt, no other program."""
        return frozenset({"app_core", "batch", "tx_ring"})

    @classmethod
    def check_ring(cls, count: int) -> None:
        """The poll-mode driver takes powers of two."""
        check_ring(count)

    async def start(self, cpu: Cpu) -> None:
        """The program brings the card up itself."""
