"""Path "af-xdp": an eBPF program at the driver's hook hands every packet to a program's socket."""

from sw.apps.xdpsock import Echo, RxDrop, XdpsockPlan
from sw.bpf.elf import load_object
from sw.bpf.syscall import Bpf
from sw.ixgbe.main import IxgbeAdapter, ixgbe_probe
from sw.ixgbe.ndo import IxgbeNetdev
from sw.linux.cpu import Cpu
from sw.linux.kernel import Kernel
from sw.linux.napi import NETDEV_BUDGET
from sw.linux.sched import PRIORITY_NORMAL
from sw.linux.xdp.generic import xsk_destruct_skb
from sw.linux.xdp.if_xdp import BindFlag
from sw.linux.xdp.pool import XskBuffPool
from sw.linux.xdp.queue import XskQueue
from sw.linux.xdp.umem import XdpUmem
from sw.linux.xdp.xsk import XDP_SOCK, AfXdp
from sw.options import WAKEUPS, Options
from sw.paging import PHYSICAL_MASK
from sw.paths.path import BOOT_CORE, Path
from sw.paths.xdp import PROGRAMS

__all__ = ["AfXdpPath"]

_PROGRAMS = {program.name: program for program in (RxDrop, Echo)}

#: Modes by the name of the option.
_MODES = {"zero-copy": BindFlag.ZEROCOPY, "copy": BindFlag.COPY}

#: Bytes of a chunk. The 82599 knows the size of its buffers in KiB: of 2048 bytes the headroom would leave it one.
CHUNK_BYTES = 4096


class AfXdpPath(Path):
    """A socket whose packets and rings lie in the program's memory, in pages of 4 KiB."""

    name = "af-xdp"
    summary = "an eBPF program redirects to an AF_XDP socket: rings and packets in user memory"
    costs = ("linux", "bpf", "xsk")
    applications = {
        "rxdrop": "receives and gives the chunks back, without a look at the packets",
        "echo": "sends UDP datagrams back to where they came from",
    }

    def __init__(self, kernel: Kernel, options: Options):
        super().__init__(kernel, options)
        if options.xdp_mode not in _MODES:
            raise ValueError(f"an AF_XDP socket is in mode {' or '.join(_MODES)}, not {options.xdp_mode!r}")
        if options.wakeup not in WAKEUPS:
            raise ValueError(f"a program with an AF_XDP socket waits by {' or '.join(WAKEUPS)}, not {options.wakeup!r}")
        program = _PROGRAMS[self.application(options.application)]
        self.adapter = IxgbeAdapter.make(kernel, options.ring_size, options.itr_us, options.promiscuous, BOOT_CORE)
        self.xdp = self.adapter.add_xdp()
        self.bpf = Bpf(
            kernel.memblock.allocate,
            len(kernel.cpus),
            costs=kernel.costs,
            jit_enable=options.bpf_jit,
            find_socket=lambda fd: self.family.find_socket(fd),
        )
        # In copy mode, what is sent takes the kernel's own way.
        tx = self.adapter.add_tx() if program.transmits and options.xdp_mode == "copy" else None
        device = IxgbeNetdev(self.adapter, tx)
        kernel.skb_destructors[kernel.text["xsk_destruct_skb"]] = xsk_destruct_skb
        # As many chunks with the program, its rings and the card's transmit ring as with the card's receive ring.
        entries = 1 << options.ring_size.bit_length()
        rings = 2 * XskQueue.bytes_needed(entries, True) + 2 * XskQueue.bytes_needed(entries, False)
        size = rings + XskBuffPool.bytes_needed(entries) + XDP_SOCK.size + 8 * 4096
        self.family = self.xdp.sockets = AfXdp(kernel, size, device)
        umem = XdpUmem(kernel.allocate_user(entries * CHUNK_BYTES), entries * CHUNK_BYTES, CHUNK_BYTES)
        if options.xdp_mode == "zero-copy":
            kernel.dma.map(umem.address & PHYSICAL_MASK, umem.size)  # at boot instead of at bind()
        memory = kernel.allocate_user(XdpsockPlan.memory_bytes)
        flags = _MODES[options.xdp_mode] | BindFlag.USE_NEED_WAKEUP
        plan = XdpsockPlan(self.family, self.bpf, umem, memory, entries, flags)
        self.program = program(plan, options.batch, options.wakeup == "poll")
        self.tasks = [kernel.new_task(self.program.name, self.app_cpu, PRIORITY_NORMAL, self.program.main)]
        self.starting = 1
        self.object = load_object(PROGRAMS / "xsk_redirect.o")

    @classmethod
    def uses(cls, application: str) -> frozenset[str]:
        """The softirq polls; the socket is the path's own."""
        return frozenset({"app_core", "batch", "itr_us", "xdp_mode", "wakeup"})

    @classmethod
    def skbs(cls, options: Options) -> int:
        """One softirq's packets, before the socket is in the map; in copy mode, what the card's ring sends."""
        return NETDEV_BUDGET + options.ring_size

    async def prepare(self, cpu: Cpu) -> None:
        """Load the program into the driver."""
        self.xdp.program, maps = await self.bpf.load_object(cpu, self.object)
        self.program.xsks = maps["xsks"]
        self.family.init(cpu)

    async def start(self, cpu: Cpu) -> None:
        """Probe the card; the program makes its socket when it runs."""
        await ixgbe_probe(cpu, self.adapter)
