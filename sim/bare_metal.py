"""Software without an operating system: operations pushed straight to the cores of an engine.

For measurements and tests. No interrupts: one context per core.
"""

from collections.abc import Callable

from hw.bus.core import AtomicFunction
from hw.bus.core import OperationKind as K
from hw.memory_map import BAR0_BASE
from hw.nic.registers import Register
from sim.engine.engine import Notify, WakeKind
from sim.engine.native import NativeEngine
from sim.observe.log import EventLog

__all__ = ["BareMetal", "StuckError"]

#: Of an operation that has a result, or an end.
_TOLD = Notify.COMPLETE


class StuckError(RuntimeError):
    """The machine came to rest although something was asked of it."""


class BareMetal:
    """One context per core, no interrupts.

    Arguments:
        engine: runs the machine.
        loaded: called with the handle and the data of every operation with a result as it completes.

    Attributes:
        values: the same, by handle; whoever wants few of many clears it now and then.
    """

    def __init__(self, engine: NativeEngine, loaded: Callable[[int, int | bytes], None] = lambda handle, data: None):
        self.engine = engine
        self.cores = len(engine.manifest.core_domains)
        self.contexts = [engine.new_context() for _ in range(self.cores)]
        self.values: dict[int, int | bytes] = {}
        self._loaded = loaded
        for core, context in enumerate(self.contexts):
            engine.switch(core, context)

    # Operations: queued, in order on each core

    def load(self, core: int, address: int, size: int = 8, after: int = -1) -> int:
        """Queue a load whose data are wanted, and return its handle; ``after``: it needs the result of that load."""
        return self._push(core, K.LOAD, address=address, size=size, uops=1, after=after, notify=_TOLD)

    def touch(self, core: int, address: int, size: int = 8, after: int = -1) -> int:
        """Queue a load whose data nobody wants."""
        return self._push(core, K.LOAD, address=address, size=size, uops=1, after=after)

    def prefetch(self, core: int, address: int) -> int:
        """Queue a prefetch."""
        return self._push(core, K.PREFETCH, address=address, size=1, uops=1)

    def store(self, core: int, address: int, data: bytes) -> int:
        """Queue a store."""
        return self._push(core, K.STORE, address=address, size=len(data), data=data, uops=1)

    def store_nt(self, core: int, address: int, data: bytes) -> int:
        """Queue a non-temporal store."""
        return self._push(core, K.STORE_NT, address=address, size=len(data), data=data, uops=1)

    def clflush(self, core: int, address: int) -> int:
        """Queue a flush of the line of ``address``."""
        return self._push(core, K.CLFLUSH, address=address, size=1, uops=1)

    def atomic(
        self, core: int, address: int, size: int, function: AtomicFunction, operand: int, compare: int = 0
    ) -> int:
        """Queue a locked operation; its value is what was there before."""
        data = operand.to_bytes(8, "little") + compare.to_bytes(8, "little")
        return self._push(
            core, K.ATOMIC, address=address, size=size, data=data, uops=1, argument=function.value, notify=_TOLD
        )

    def poll(self, core: int, address: int, size: int, value: int, cycles: int, period: int) -> int:
        """Queue a wait until memory is not ``value``, looking every ``period`` cycles, at most for ``cycles``."""
        data = value.to_bytes(size, "little")
        return self._push(
            core, K.POLL, address=address, size=size, data=data, cycles=cycles, uops=1, argument=period, notify=_TOLD
        )

    def execute(self, core: int, cycles: int, uops: int = 1, after: int = -1) -> int:
        """Queue so many cycles of work."""
        return self._push(core, K.EXECUTE, cycles=cycles, uops=uops, after=after)

    def fence(self, core: int, kind: K = K.FENCE) -> int:
        """Queue a fence."""
        return self._push(core, kind, notify=_TOLD)

    def mmio_write(self, core: int, address: int, data: int, size: int = 4) -> int:
        """Queue a posted write of a device."""
        return self._push(core, K.MMIO_WRITE, address=address, size=size, data=data)

    def mmio_read(self, core: int, address: int, size: int = 4) -> int:
        """Queue a read of a device."""
        return self._push(core, K.MMIO_READ, address=address, size=size, notify=_TOLD)

    def mask_interrupts(self, core: int) -> int:
        """Queue a CLI: interrupts stay pending from then on."""
        return self._push(core, K.CLI)

    def write_cr3(self, core: int, root: int) -> int:
        """Queue the choice of page tables, and of none with 0."""
        return self._push(core, K.WRITE_CR3, address=root)

    def _push(self, core: int, kind: K, **fields: int | bytes) -> int:
        return self.engine.push(self.contexts[core], kind.value, **fields)

    # Running

    def run(self, *cores: int, until: int | None = None) -> list[int]:
        """Run until some core of ``cores`` (all if none are given) has nothing left to do; return which.

        Empty when tick ``until`` came first.

        Raises:
            StuckError: when nothing will ever happen again.
        """
        wanted = set(cores or range(self.cores))
        while True:
            empty = []
            for wake in self.engine.run_now(until):
                match wake.kind:
                    case WakeKind.COMPLETION:
                        self.values[wake.value] = wake.data
                        self._loaded(wake.value, wake.data)
                    case WakeKind.EMPTY:
                        if wake.core in wanted:
                            empty.append(wake.core)
                    case WakeKind.LIMIT:
                        return []
                    case WakeKind.IDLE:
                        raise StuckError(f"idle at tick {self.engine.tick}")
                    case WakeKind.INTERRUPT:
                        raise StuckError(f"interrupt {wake.value} on core {wake.core}, which has no handler")
            if empty:
                return empty

    def complete(self, core: int, handle: int) -> int | bytes:
        """Run until an operation with a result is complete, and return the result."""
        while handle not in self.values:
            self.run(core)
        return self.values.pop(handle)

    def settle(self, *cores: int) -> None:
        """Run until the cores named (all if none are) have done all they have, stores visible to everybody."""
        left = set(cores or range(self.cores))
        for core in left:
            self.fence(core)
        while left:
            left -= set(self.run(*left))

    def read(self, register: Register, index: int = 0, core: int = 0) -> int:
        """Read a register of the card."""
        value = self.complete(core, self.mmio_read(core, BAR0_BASE + register.offset(index)))
        assert isinstance(value, int)
        return value

    def write(self, register: Register, value: int, index: int = 0, core: int = 0) -> None:
        """Queue a write of a register of the card."""
        self.mmio_write(core, BAR0_BASE + register.offset(index), value)

    # What happened

    def log(self) -> EventLog:
        """The event log so far."""
        return EventLog(self.engine.manifest, self.engine.log())

    def cycle(self, core: int = 0) -> int:
        """Number of the edge of a core's clock that was last."""
        domain = self.engine.manifest.domains[self.engine.manifest.core_domains[core]]
        return self.engine.tick // domain.period
