"""The interface of the paths."""

from collections.abc import Mapping
from typing import Any, ClassVar

from sw.ixgbe.ring import check_ring
from sw.linux.cpu import Cpu
from sw.linux.kernel import Kernel
from sw.linux.sched import Task
from sw.options import Options

__all__ = ["BOOT_CORE", "Path", "PathError", "core_of"]

#: The core that boots and takes the card's interrupt.
BOOT_CORE = 0


class PathError(ValueError):
    """A path or an application that does not exist; the message is one line."""


def core_of(kernel: Kernel, index: int, purpose: str) -> Cpu:
    """Core ``index``, which is to do something.

    Raises:
        ValueError: if there is no such core.
    """
    if not 0 <= index < len(kernel.cpus):
        raise ValueError(f"there is no core {index} to {purpose} on; cores: 0 to {len(kernel.cpus) - 1}")
    return kernel.cpus[index]


class Path:
    """One way from the card to an application: a driver, what lies above it, and programs.

    A path sets its memory and its tasks aside when it is made; :meth:`start` brings the card up.

    Arguments:
        kernel: what runs on all cores.
        options: what the run asks for.

    Raises:
        PathError: for an application that the path does not have.
        ValueError: for numbers that cannot be.
        OutOfMemoryError: when DRAM is too small.
    """

    name: ClassVar[str]
    summary: ClassVar[str]  #: one line
    applications: ClassVar[Mapping[str, str]]  #: what may receive, and what it does in one line; the first by default

    costs: ClassVar[tuple[str, ...]] = ("linux",)  #: tables of cycles that its software needs, see ``sw.costs``
    needs_peer: ClassVar[bool] = False  #: traffic is what a peer and the host say to each other, no recording
    least_ring: ClassVar[int] = 32  #: receive descriptors it cannot do without
    defaults: ClassVar[Mapping[str, Any]] = {}  #: of ``sw.options.Options``, what a run has where they differ

    def __init__(self, kernel: Kernel, options: Options):
        self.kernel = kernel
        self.options = options
        self.tasks: list[Task] = []  #: what runs from the start
        self.starting = 0  #: programs that will note ``ready``
        self.app_cpu = core_of(kernel, options.app_core, "receive")  #: where the receiving programs run

    @classmethod
    def application(cls, name: str | None) -> str:
        """The application that ``name`` asks for.

        Raises:
            PathError: if the path does not have it.
        """
        if name is None:
            return next(iter(cls.applications))
        if name not in cls.applications:
            raise PathError(f"path {cls.name} has no application {name!r}; it has: {', '.join(cls.applications)}")
        return name

    @classmethod
    def uses(cls, application: str) -> frozenset[str]:
        """Those of ``sw.options.OPTIONAL`` that have an effect on the path with that application."""
        return frozenset()

    @classmethod
    def check_ring(cls, count: int) -> None:
        """Refuse a number of receive descriptors that the driver does not take, before memory is set aside.

        Raises:
            ValueError: in one line that names those it takes.
        """
        check_ring(count)

    @classmethod
    def skbs(cls, options: Options) -> int:
        """Socket buffers that may be in use at once."""
        return 0

    async def prepare(self, cpu: Cpu) -> None:
        """Take memory for good and fill it; runs on the boot core before the kernel itself starts."""

    async def start(self, cpu: Cpu) -> None:
        """Bring the card up; runs on the boot core, before any task does."""
        raise NotImplementedError
