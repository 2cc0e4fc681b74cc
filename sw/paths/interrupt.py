"""Path "interrupt": all of a packet's way to its socket in the interrupt handler, nothing masked."""

from sw.linux.kernel import Kernel
from sw.linux.net.dev import netif_receive_skb
from sw.options import Options
from sw.paths.napi import NapiPath

__all__ = ["InterruptPath"]


class InterruptPath(NapiPath):
    """What receiving was before NAPI: the handler empties the ring through IP and UDP into the sockets.

    The card does not mask what it has signalled, and by default it does not wait between two interrupts: moderation
    would be a cure for what this path shows. Under overload the handler has the core for itself, and the programs,
    which should take what it queues, never run (receive livelock).
    """

    name = "interrupt"
    summary = "the interrupt handler does it all: ring, IP, UDP, socket; nothing masked, no moderation"
    applications = {name: NapiPath.applications[name] for name in ("sink", "rawdrop")}
    defaults = {"itr_us": 0.0}

    @classmethod
    def uses(cls, application: str) -> frozenset[str]:
        """Nobody polls."""
        return super().uses(application) - {"napi_thread"}

    def __init__(self, kernel: Kernel, options: Options):
        super().__init__(kernel, options)
        kernel.receives_in_hardirq = True
        self.adapter.polled = False
        self.adapter.ring.receive = netif_receive_skb
