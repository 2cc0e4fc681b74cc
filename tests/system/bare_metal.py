"""Software for tests, without an operating system: operations pushed straight to the cores of an engine."""

from collections.abc import Callable

from hw.bus.core import OperationKind as K
from hw.memory_map import BAR0_BASE
from hw.nic.registers import Register
from sim.engine.engine import WakeKind
from sim.engine.native import NativeEngine
from sim.observe.log import EventLog

__all__ = ["BareMetal", "Stuck"]


class Stuck(AssertionError):
    """The machine came to rest although something was asked of it."""


class BareMetal:
    """One context per core, no interrupts.

    ``loaded`` is called with the handle and the data of every load and register read as it completes.
    """

    def __init__(self, engine: NativeEngine, loaded: Callable[[int, int | bytes], None] = lambda handle, data: None):
        self.engine = engine
        self.cores = len(engine.manifest.core_domains)
        self.contexts = [engine.new_context() for _ in range(self.cores)]
        self._loaded = loaded
        for core, context in enumerate(self.contexts):
            engine.switch(core, context)

    # Operations: queued, in order on each core

    def load(self, core: int, address: int, size: int = 8, after: int = -1) -> int:
        """Queue a load whose data are wanted, and return its handle."""
        return self.engine.push(self.contexts[core], K.LOAD.value, address=address, size=size, after=after, notify=True)

    def store(self, core: int, address: int, data: bytes) -> int:
        """Queue a store."""
        return self.engine.push(self.contexts[core], K.STORE.value, address=address, size=len(data), data=data)

    def execute(self, core: int, cycles: int) -> int:
        """Queue so many cycles of work."""
        return self.engine.push(self.contexts[core], K.EXECUTE.value, cycles=cycles)

    def fence(self, core: int) -> int:
        """Queue a fence."""
        return self.engine.push(self.contexts[core], K.FENCE.value, notify=True)

    def mmio_write(self, core: int, address: int, data: int, size: int = 4) -> int:
        """Queue a posted write of a device."""
        return self.engine.push(self.contexts[core], K.MMIO_WRITE.value, address=address, size=size, data=data)

    def mmio_read(self, core: int, address: int, size: int = 4) -> int:
        """Queue a read of a device."""
        return self.engine.push(self.contexts[core], K.MMIO_READ.value, address=address, size=size, notify=True)

    def mask_interrupts(self, core: int) -> None:
        """Queue a CLI: interrupts stay pending from then on."""
        self.engine.push(self.contexts[core], K.CLI.value)

    # Running

    def run(self, *cores: int, until: int | None = None) -> list[int]:
        """Run until some core of ``cores`` (all if none are given) has nothing left to do; return which.

        Empty when tick ``until`` came first.

        Raises:
            Stuck: when nothing will ever happen again.
        """
        wanted = set(cores or range(self.cores))
        while True:
            empty = []
            for wake in self.engine.run_now(until):
                match wake.kind:
                    case WakeKind.COMPLETION:
                        self._loaded(wake.value, wake.data)
                    case WakeKind.EMPTY:
                        if wake.core in wanted:
                            empty.append(wake.core)
                    case WakeKind.LIMIT:
                        return []
                    case WakeKind.IDLE:
                        raise Stuck(f"idle at tick {self.engine.tick}")
                    case WakeKind.INTERRUPT:
                        raise AssertionError(f"interrupt {wake.value} on core {wake.core}")
            if empty:
                return empty

    def complete(self, core: int, handle: int) -> int | bytes:
        """Run until an operation pushed with a result is complete, and return the result."""
        results = []

        def keep(done: int, data: int | bytes) -> None:
            if done == handle:
                results.append(data)
            outer(done, data)

        outer, self._loaded = self._loaded, keep
        try:
            while not results:
                self.run(core)
        finally:
            self._loaded = outer
        return results[0]

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
