"""The functional machine's wire, as a peer sees it (``sim.wire.peer.Wire``): frames take no time of their own."""

from collections.abc import Callable

from tests.sw.functional_machine import FunctionalMachine

__all__ = ["FunctionalWire"]


class FunctionalWire:
    """One tick is one nanosecond here.

    Attributes:
        inbound: frames that were sent to the card, in the order in which they arrive.
    """

    def __init__(self, machine: FunctionalMachine, peer):
        self.machine, self.peer = machine, peer
        self.inbound: list[bytes] = []
        machine.nic.on_transmit = self._left
        peer.connect(self)

    @property
    def tick(self) -> int:
        return self.machine.tick

    def send(self, data: bytes, delay_ns=0) -> None:
        self.after(delay_ns, lambda: self._arrive(data.ljust(60, b"\0")))

    def after(self, delay_ns, function: Callable[[], object]) -> int:
        return self.machine.call_at(self.tick + max(-int(-delay_ns // 1), 1), function)

    def cancel(self, call: int) -> None:
        self.machine.cancel_call(call)

    def _arrive(self, data: bytes) -> None:
        self.inbound.append(data)
        self.machine.send(data, self.tick)

    def _left(self, frame: bytes) -> None:
        self.after(1, lambda: self.peer.frame(self.tick, frame))
