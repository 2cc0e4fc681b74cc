"""Path "busypoll": who waits for packets polls the card, and its interrupt stays masked."""

from sw.linux.kernel import Kernel
from sw.options import Options
from sw.paths.napi import NapiPath

__all__ = ["BusyPollPath"]

#: SO_BUSY_POLL takes an int (``sk_ll_usec``, net/core/sock.c).
MOST_BUSY_POLL_US = (1 << 31) - 1


class BusyPollPath(NapiPath):
    """NAPI polled by the program that reads, or by a thread that does nothing else.

    A program that reads polls for ``Options.busy_poll_us`` before it sleeps (``SO_BUSY_POLL``). It prefers busy polling
    and suspends the interrupt: that stays masked from one read to the next, until a program sleeps. The thread (NAPI
    threaded busy poll) needs a core that nobody else wants.
    """

    name = "busypoll"
    summary = "NAPI polled by the program that reads, or by a thread that spins; the interrupt stays masked"
    applications = {
        "sink": "a program per port whose recvfrom polls the card (SO_BUSY_POLL), and that reads every datagram",
        "kthread": "the same program; a kernel thread on another core polls the card without end",
    }

    def __init__(self, kernel: Kernel, options: Options):
        super().__init__(kernel, options)
        if not 0 <= options.busy_poll_us <= MOST_BUSY_POLL_US:
            raise ValueError(f"a program polls for 0 to {MOST_BUSY_POLL_US} us, not {options.busy_poll_us:g} us")
        if self.application(options.application) == "kthread":
            self._add_spinning_thread(options)
        else:
            kernel.busy_read_us = options.busy_poll_us
            self.adapter.napi.suspends_irqs = True
            self.adapter.ring.napi_id = self.adapter.napi.address

    def _add_spinning_thread(self, options: Options) -> None:
        """Let the thread spin on the core asked for, else on the last one that the programs leave free."""
        free = [cpu.index for cpu in self.kernel.cpus if cpu is not self.app_cpu and cpu.index not in options.compute]
        core = options.napi_thread if options.napi_thread is not None else free[-1] if free else self.app_cpu.index
        if core == self.app_cpu.index:
            raise ValueError(f"a thread that spins on core {core} leaves nothing of it to the programs there")
        napi = self.adapter.napi
        if napi.thread is None:
            self.add_napi_thread(core)
        napi.thread_spins = True

    @classmethod
    def uses(cls, application: str) -> frozenset[str]:
        """Where a thread polls, nobody reads by polling."""
        return super().uses(application) | (frozenset() if application == "kthread" else {"busy_poll_us"})

    @classmethod
    def receivers(cls, options: Options) -> tuple[int, ...]:
        """Programs receive in either case."""
        return options.ports
