"""When a state need not be followed, because an earlier one at the same instruction allowed more and came through.

Sources: ``states_equal``, ``regsafe``, ``stacksafe``, ``is_state_visited``, ``propagate_precision`` in
``kernel/bpf/verifier.c``.
"""

from sw.bpf.instruction import SLOT_BYTES
from sw.bpf.verifier.bounds import UNKNOWN
from sw.bpf.verifier.precision import NO_ORIGINS, Origin, Origins, mark
from sw.bpf.verifier.registers import ZERO, Register, RegisterType, scalar
from sw.bpf.verifier.state import INVALID, MISC, SPILL, ZERO_BYTE, Frame, Slot, State

__all__ = ["Checkpoint", "is_covered", "is_repeated"]

_RANGED = frozenset({RegisterType.PACKET, RegisterType.PACKET_META})
_NOTHING = Slot(bytes([INVALID]) * SLOT_BYTES)


class Checkpoint:
    """A state that the verifier came by, and whether all that follows from it has been looked at."""

    __slots__ = ("at", "earlier", "hits", "misses", "open_paths", "state")

    def __init__(self, at: int, state: State, earlier: "Checkpoint | None"):
        self.at = at
        self.earlier = earlier  #: the one before it on its path
        self.state = _remember(state)
        self.open_paths = 1  #: paths that began here and have not ended
        self.hits = self.misses = 0

    def end_path(self) -> None:
        """One of its paths has ended; then perhaps one of the checkpoint before."""
        checkpoint: Checkpoint | None = self
        while checkpoint is not None:
            checkpoint.open_paths -= 1
            if checkpoint.open_paths:
                return
            checkpoint = checkpoint.earlier


def _remember(state: State) -> State:
    """A copy of a state, whose values are the origins of what ``state`` holds from now on."""
    for frame in state.frames:
        for number, register in enumerate(frame.registers):
            if register.is_scalar:
                frame.registers[number] = _begun(register)
        for number, slot in frame.stack.items():
            spilled = slot.spilled
            if spilled is not None and spilled.is_scalar:
                spilled = _begun(spilled)
            earlier = NO_ORIGINS if slot.origin is None else frozenset((slot.origin,))
            frame.stack[number] = Slot(slot.kinds, spilled, Origin(earlier))
    return state.copy()


def _begun(register: Register) -> Register:
    return register._replace(origins=frozenset((Origin(register.origins),)))


def _matters(origins: Origins) -> bool:
    return any(origin.matters for origin in origins)


def is_repeated(old: State, new: State) -> bool:
    """Whether two states are exactly the same: from there on, everything would happen again."""
    if len(old.frames) != len(new.frames):
        return False
    for a, b in zip(old.frames, new.frames, strict=True):
        if a.call_site != b.call_site:
            return False
        if not all(map(_same, a.registers, b.registers)) or a.stack.keys() != b.stack.keys():
            return False
        for number, slot in a.stack.items():
            other = b.stack[number]
            if slot.kinds != other.kinds or not _same(slot.spilled or ZERO, other.spilled or ZERO):
                return False
    return True


def _same(a: Register, b: Register) -> bool:
    """Whether two registers are the same but for where they come from."""
    return a is b or (a.type is b.type and a.bounds == b.bounds and a[2:-1] == b[2:-1])


def is_covered(old: State, new: State, live: list[int], at: int, privileged: bool) -> bool:
    """Whether all that can happen from ``new`` could happen from ``old``, as far as it mattered there.

    If so, what mattered to ``old`` now matters to where ``new`` comes from.

    Arguments:
        live: registers that may be read from each slot on.
        at: the slot at which both are.
        privileged: whether stack that was never written may be read.
    """
    if len(old.frames) != len(new.frames):
        return False
    comparison = _Comparison(privileged)
    for depth, (a, b) in enumerate(zip(old.frames, new.frames, strict=True)):
        if a.call_site != b.call_site or a.function != b.function:
            return False
        is_top = depth + 1 == len(old.frames)
        # A caller goes on behind its call, with r0 from the function.
        mask = live[at] if is_top else live[new.frames[depth + 1].call_site + 1] & ~1
        if not comparison.frame(a, b, mask):
            return False
    comparison.propagate()
    return True


class _Comparison:
    """One comparison: which ids of the old state are which of the new one, and what matters."""

    def __init__(self, privileged: bool) -> None:
        self.privileged = privileged
        self.ids: dict[int, int] = {}
        self.needed: list[Origin] = []

    def propagate(self) -> None:
        mark(self.needed)

    def frame(self, old: Frame, new: Frame, live: int) -> bool:
        for number, register in enumerate(old.registers):
            if live >> number & 1 and not self._register(register, new.registers[number]):
                return False
        return all(self._slot(slot, new.stack.get(number, _NOTHING)) for number, slot in old.stack.items())

    def _same_id(self, old: int, new: int) -> bool:
        """Registers that had one id in the old state have one in the new state."""
        return bool(new) and self.ids.setdefault(old, new) == new

    def _register(self, old: Register, new: Register) -> bool:
        kind = old.type
        if kind is RegisterType.NOT_INIT:
            return True
        if new.type is not kind:
            return False
        if kind is RegisterType.SCALAR:
            if not _matters(old.origins):
                return True
            if not old.bounds.covers(new.bounds):
                return False
            if old.id and (old.off != new.off or not self._same_id(old.id, new.id)):
                return False
            self.needed.extend(new.origins)
            return True
        if old.off != new.off or old.map_fd != new.map_fd or old.frame != new.frame:
            return False
        if (old.id or new.id) and not (old.id and self._same_id(old.id, new.id)):
            return False
        if kind in _RANGED:
            # What was decided by a pointer behind the end was decided for such pointers only.
            if old.range > new.range or (old.range < 0 and old.range != new.range):
                return False
        if kind is RegisterType.STACK:
            return old.bounds == new.bounds
        return old.bounds.covers(new.bounds)

    def _slot(self, old: Slot, new: Slot) -> bool:
        origin = old.origin
        if origin is not None and not origin.matters:
            return True
        if old.spilled is not None and new.spilled is not None and old.kinds == new.kinds:
            covered = self._register(old.spilled, new.spilled)
        elif old.spilled is not None:
            # What was spilled may have been a number of which nothing mattered, or anything.
            covered = self._all_numbers(new) and self._register(old.spilled, scalar(UNKNOWN))
            covered = covered and all(
                a == SPILL or self._byte(a, b, new) for a, b in zip(old.kinds, new.kinds, strict=True)
            )
        else:
            covered = all(self._byte(a, b, new) for a, b in zip(old.kinds, new.kinds, strict=True))
        if covered and new.origin is not None:
            self.needed.append(new.origin)
        return covered

    def _all_numbers(self, slot: Slot) -> bool:
        """Whether whatever is read from a slot is a number."""
        if slot.spilled is not None and slot.spilled.is_pointer:
            return False
        return self.privileged or INVALID not in slot.kinds

    def _byte(self, old: int, new: int, slot: Slot) -> bool:
        """Whether a byte of a slot of the new state may stand where there was one that is not of a register."""
        if old == INVALID:
            return True  # reading it gave any number, or was refused
        if old == ZERO_BYTE:
            return new == ZERO_BYTE
        return self.privileged or new in (MISC, ZERO_BYTE) or (new == SPILL and self._all_numbers(slot))
