"""The bpf() system call: maps and programs behind file descriptors (``kernel/bpf/syscall.c``)."""

from collections.abc import Callable, Mapping
from errno import EBADF, EINVAL, EPERM
from itertools import count
from typing import Any

from sw.bpf.arithmetic import MASK32
from sw.bpf.elf import ObjectFile
from sw.bpf.errors import BpfError
from sw.bpf.fixup import Ready, fix_up
from sw.bpf.instruction import encode
from sw.bpf.interpreter import Interpreter
from sw.bpf.jit.layout import lay_out
from sw.bpf.jit.translate import JitProgram
from sw.bpf.map.area import Allocate, Area
from sw.bpf.map.array import ArrayMap, PerCpuArrayMap
from sw.bpf.map.base import KernelMap, store_lines
from sw.bpf.map.hash import HashMap, PerCpuHashMap
from sw.bpf.map.xsk import FindSocket, XskMap
from sw.bpf.maps import MapDefinition, MapFlag, MapType
from sw.bpf.program import Program, Verification
from sw.bpf.runtime import Runtime
from sw.bpf.verifier import verify
from sw.core import LINE, Core
from sw.costs import Cost

__all__ = ["Bpf", "LoadedProgram", "Verify"]

#: What decides whether a program may run; raises :class:`BpfError` with a log if not.
Verify = Callable[[Program], Verification]

#: Descriptors 0 to 2 are taken in any process.
_FIRST_FD = 3
#: Most instructions that a program may have (``BPF_COMPLEXITY_LIMIT_INSNS``).
_MOST_INSTRUCTIONS = 1_000_000


class LoadedProgram:
    """A program that may be attached.

    Arguments:
        ready: what runs, fixed up.
        address: where its code lies: machine code, or instructions that the interpreter reads.
        runner: interpreter or translated program.
    """

    def __init__(self, name: str, ready: Ready, address: int, runner: Interpreter | JitProgram, runtime: Runtime):
        self.name = name
        self.ready = ready
        self.address = address
        self.runner = runner
        self.runtime = runtime

    @property
    def is_jited(self) -> bool:
        """Whether it runs as machine code."""
        return isinstance(self.runner, JitProgram)

    async def run(self, core: Any, context: int) -> int:
        """Run it on a packet; gives the verdict as 32 bits (``bpf_prog_run_xdp``).

        Arguments:
            context: address of the ``struct xdp_buff`` (``sw.bpf.context.XDP_BUFF``), which lies in one line.
        """
        return await self.runner.run(core, context, self.runtime.stack(core)) & MASK32


class Bpf:
    """The BPF subsystem of one kernel.

    Arguments:
        allocate: where its memory comes from, for good (``MemBlock.allocate``).
        cores: how many cores there are.
        verify: the verifier.
        jit_enable: as ``net.core.bpf_jit_enable``: whether programs are translated or interpreted.
        costs: of ``sw/costs/bpf.toml``; without them, a program's computing takes no time.
        jit_figure: which figure of translated code is charged: ``cycles``, ``low`` or ``high``.
        clock: nanoseconds since boot, as a core sees them.
        find_socket: what a file descriptor of an AF_XDP socket names.
        seed: of hashes and random numbers.
    """

    def __init__(
        self,
        allocate: Allocate,
        cores: int,
        verify: Verify = verify,
        jit_enable: bool = True,
        costs: Mapping[str, Cost] | None = None,
        jit_figure: str = "cycles",
        clock: Callable[[Core], int] = lambda core: 0,
        find_socket: FindSocket = lambda fd: None,
        seed: int = 1,
    ):
        self.area = Area(allocate, cores)
        self.runtime = Runtime(self.area, clock, seed)
        self.jit_enable = jit_enable
        self._verify = verify
        self._costs = costs
        self._jit_figure = jit_figure
        self._find_socket = find_socket
        self._seed = seed
        self._objects: dict[int, KernelMap | LoadedProgram] = {}
        self._initialised = False

    # Maps

    async def map_create(self, core: Core, definition: MapDefinition) -> int:
        """``BPF_MAP_CREATE``: gives a file descriptor.

        Raises:
            BpfError: as the kernel refuses it.
        """
        definition.check()
        if not self._initialised:
            self._initialised = True
            await self.runtime.init(core)
        number = 1 + sum(isinstance(one, KernelMap) for one in self._objects.values())
        made: KernelMap
        if definition.type in (MapType.HASH, MapType.PERCPU_HASH):
            hash_class = PerCpuHashMap if definition.is_percpu else HashMap
            made = hash_class(definition, number, self.area, self._seed * 2654435761 & MASK32)
        elif definition.type is MapType.XSKMAP:
            made = XskMap(definition, number, self.area, self._find_socket)
        else:
            made = (PerCpuArrayMap if definition.is_percpu else ArrayMap)(definition, number, self.area)
        await made.init(core)
        self.runtime.maps[made.address] = made
        return self._install(made)

    async def map_lookup_elem(self, core: Core, fd: int, key: bytes) -> bytes:
        """``BPF_MAP_LOOKUP_ELEM``: of a per-CPU map, the values of all cores, on 8 bytes each.

        Raises:
            BpfError: as the kernel refuses it.
        """
        return await self._map(fd, MapFlag.WRONLY).user_lookup(core, key)

    async def map_update_elem(self, core: Core, fd: int, key: bytes, value: bytes, flags: int = 0) -> None:
        """``BPF_MAP_UPDATE_ELEM``.

        Raises:
            BpfError: as the kernel refuses it.
        """
        await self._map(fd, MapFlag.RDONLY).user_update(core, key, value, flags)

    async def map_delete_elem(self, core: Core, fd: int, key: bytes) -> None:
        """``BPF_MAP_DELETE_ELEM``.

        Raises:
            BpfError: as the kernel refuses it.
        """
        await self._map(fd, MapFlag.RDONLY).user_delete(core, key)

    def map(self, fd: int) -> KernelMap:
        """The map behind a file descriptor.

        Raises:
            BpfError: EBADF.
        """
        found = self._objects.get(fd)
        if not isinstance(found, KernelMap):
            raise BpfError(EBADF, f"file descriptor {fd} is not a map")
        return found

    # Programs

    async def prog_load(self, core: Core, program: Program) -> int:
        """``BPF_PROG_LOAD``: verifies, gives a file descriptor.

        Raises:
            BpfError: as the kernel refuses it, with the verifier's log.
        """
        slots = len(program.instructions)
        if not 1 <= slots <= _MOST_INSTRUCTIONS:
            raise BpfError(EINVAL, f"a program has 1 to {_MOST_INSTRUCTIONS} instructions, not {slots}")
        maps = {fd: self.map(fd) for fd in program.maps}
        ready = fix_up(program, self._verify(program), maps, self.jit_enable)
        if self.jit_enable:
            loaded = self._translate(program, ready)
        else:
            code = encode(ready.instructions)
            address = self.area.allocate(len(code), LINE)
            store_lines(core, address, code)
            interpreter = Interpreter(ready.instructions, address, self.runtime.helpers(jit=False), self._costs)
            loaded = LoadedProgram(program.name, ready, address, interpreter, self.runtime)
        return self._install(loaded)

    def program(self, fd: int) -> LoadedProgram:
        """The program behind a file descriptor.

        Raises:
            BpfError: EBADF.
        """
        found = self._objects.get(fd)
        if not isinstance(found, LoadedProgram):
            raise BpfError(EBADF, f"file descriptor {fd} is not a program")
        return found

    async def load_object(
        self, core: Core, object_file: ObjectFile, name: str | None = None
    ) -> tuple[LoadedProgram, dict[str, int]]:
        """What a loader such as libbpf does: make the maps, load a program (default: the only one).

        Gives the program, and the file descriptors of the maps by name.

        Raises:
            BpfError: as the kernel or the loader refuses it.
        """
        chosen = object_file.program(name)
        fds, names = {}, {}
        for position in chosen.maps:
            specification = object_file.maps[position]
            fd = fds[position] = await self.map_create(core, specification.definition)
            names[specification.definition.name] = fd
            if any(specification.initial):
                await self.map_update_elem(core, fd, bytes(4), specification.initial)
        bound = object_file.bind(chosen, fds)
        return self.program(await self.prog_load(core, bound)), names

    def close(self, fd: int) -> None:
        """Close a file descriptor; memory is not given back.

        Raises:
            BpfError: EBADF.
        """
        if fd not in self._objects:
            raise BpfError(EBADF, f"file descriptor {fd} is not open")
        del self._objects[fd]

    def _translate(self, program: Program, ready: Ready) -> LoadedProgram:
        image = lay_out(ready.instructions, ready.functions, ready.stack_depths)
        address = self.area.allocate(image.size, LINE)
        translated = JitProgram(
            ready.instructions,
            image,
            self.runtime.helpers(jit=True),
            text=address,
            percpu_stride=self.area.percpu_stride,
            figure=None if self._costs is None else self._jit_figure,
        )
        return LoadedProgram(program.name, ready, address, translated, self.runtime)

    def _map(self, fd: int, forbidden: MapFlag) -> KernelMap:
        found = self.map(fd)
        if found.definition.flags & forbidden:
            raise BpfError(EPERM, f"{found.name} is {forbidden.name} for user space")
        return found

    def _install(self, thing: KernelMap | LoadedProgram) -> int:
        fd = next(number for number in count(_FIRST_FD) if number not in self._objects)
        self._objects[fd] = thing
        return fd
