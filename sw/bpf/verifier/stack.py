"""Reads and writes of stack: what a slot holds afterwards, and what a register gets from it.

Sources: ``check_stack_write_fixed_off``, ``check_stack_write_var_off``, ``check_stack_read_fixed_off``,
``check_stack_range_initialized`` in ``kernel/bpf/verifier.c``.
"""

from errno import EACCES, EINVAL

from sw.bpf.instruction import SLOT_BYTES, STACK_BYTES
from sw.bpf.verifier.bounds import Bounds, truncate
from sw.bpf.verifier.errors import Refusal
from sw.bpf.verifier.precision import Origin, mark
from sw.bpf.verifier.registers import ZERO, Register, RegisterType, scalar
from sw.bpf.verifier.state import INVALID, MISC, SPILL, ZERO_BYTE, Frame, Slot, slot_of

__all__ = [
    "check_range",
    "check_range_initialised",
    "holds_constant",
    "read",
    "read_range",
    "readable",
    "write",
    "write_range",
]

_UNTOUCHED = Slot(bytes([INVALID]) * SLOT_BYTES)
_SPILLED = bytes([SPILL]) * SLOT_BYTES
#: Offsets that variable ones must stay between for their sum not to overflow (``BPF_MAX_VAR_OFF``).
_MAX_VAR_OFF = 1 << 29


def check_range(
    owner: Frame, number: int, pointer: Register, offset: int, size: int, access: str, room: int = STACK_BYTES
) -> tuple[int, int]:
    """Least and greatest offset from the frame pointer of an access.

    Arguments:
        owner: whose stack it is.
        number: of the register that is the pointer.
        offset: of the instruction.
        access: ``read from`` or ``write to``.
        room: bytes of stack that may be accessed.
    """
    span, off = pointer.bounds.whole, pointer.off + offset
    if pointer.bounds.is_known:
        least = most = off + span.smin
    elif span.smax >= _MAX_VAR_OFF or span.smin <= -_MAX_VAR_OFF:
        raise Refusal(EACCES, f"invalid unbounded variable-offset {access} stack R{number}")
    else:
        least, most = off + span.smin, off + span.smax
    if not -room <= least < 0 or most + size > 0:
        errno = EINVAL if -room <= least < 0 else EACCES
        if pointer.bounds.is_known:
            raise Refusal(errno, f"invalid {access} stack R{number} off={least} size={size}")
        where = f"R{number} var_off={pointer.bounds.bits} off={off} size={size}"
        raise Refusal(errno, f"invalid variable-offset {access} stack {where}")
    owner.depths[owner.function] = max(owner.depths.get(owner.function, 0), -least)
    return least, most


def readable(owner: Frame, privileged: bool) -> int:
    """Bytes of stack that may be read: all of it, or as far down as something was written."""
    return STACK_BYTES if privileged else SLOT_BYTES * (max(owner.stack, default=-1) + 1)


def _forget(kind: int) -> int:
    """Kind of a byte whose spilled register is gone."""
    return MISC if kind == SPILL else kind


def write(frame: Frame, owner: Frame, offset: int, size: int, value: Register, whole: bool, privileged: bool) -> None:
    """Store at a known offset.

    Arguments:
        frame: of the function that runs.
        owner: whose stack it is.
        whole: whether ``value`` is a register or constant; otherwise only that something is written is known.
        privileged: whether the program's loader may see addresses (CAP_PERFMON).
    """
    number, place = slot_of(offset)
    slot = owner.stack.get(number, _UNTOUCHED)
    spilled = slot.spilled
    if not privileged and spilled is not None and spilled.is_pointer and size != SLOT_BYTES:
        raise Refusal(EACCES, "attempt to corrupt spilled pointer on stack")
    if whole and value.is_pointer:
        if size != SLOT_BYTES:
            raise Refusal(EACCES, "invalid size of register spill")
        if value.type is RegisterType.STACK and owner is not frame:
            raise Refusal(EINVAL, "cannot spill pointers to stack into stack frame of the caller")
        owner.stack[number] = Slot(_SPILLED, value)
        return
    if whole and place == 0:
        if value.bounds.whole.umax >> 8 * size:
            value = value._replace(id=0, off=0)  # what is read back is cut, so no longer equal
        rest = bytes(_forget(kind) for kind in slot.kinds[size:])
        owner.stack[number] = Slot(_SPILLED[:size] + rest, value, None if size == SLOT_BYTES else slot.origin)
        return
    kinds = [_forget(kind) if spilled is not None else kind for kind in slot.kinds]
    kind = MISC
    if whole and value.is_zero:
        mark(value.origins)
        kind = ZERO_BYTE
    kinds[place : place + size] = [kind] * size
    owner.stack[number] = Slot(bytes(kinds), None, None if size == SLOT_BYTES else slot.origin)


def write_range(
    frame: Frame, owner: Frame, least: int, most: int, size: int, value: Register, at: int, privileged: bool
) -> None:
    """Store somewhere from offset ``least`` to offset ``most``: nothing that was there is sure any more.

    Arguments:
        at: slot of the instruction.
    """
    if value.type is RegisterType.STACK and owner is not frame:
        raise Refusal(EINVAL, "cannot spill pointers to stack into stack frame of the caller")
    if value.is_zero:
        mark(value.origins)
    for offset in range(least, most + size):
        number, place = slot_of(offset)
        slot = owner.stack.get(number, _UNTOUCHED)
        if slot.spilled is not None:
            if slot.kinds[place] == SPILL and slot.spilled.is_zero and value.is_zero:
                continue
            kinds = bytearray(_forget(kind) for kind in slot.kinds)
        else:
            kinds = bytearray(slot.kinds)
        if not privileged:
            if slot.spilled is not None and slot.spilled.is_pointer:
                raise Refusal(EINVAL, f"spilled ptr in range of var-offset stack write; insn {at}, ptr off: {least}")
            if kinds[place] == INVALID:
                raise Refusal(
                    EINVAL, f"uninit stack in range of var-offset write prohibited for !root; insn {at}, off: {least}"
                )
        if not (kinds[place] == ZERO_BYTE and value.is_zero):
            kinds[place] = MISC
        # The slot stays the one that may be read: it may as well not be written.
        owner.stack[number] = Slot(bytes(kinds), None, slot.origin)


def read(owner: Frame, offset: int, size: int, privileged: bool) -> Register:
    """What a register gets by a load at a known offset, zeros above."""
    number, place = slot_of(offset)
    slot = owner.stack.get(number, _UNTOUCHED)
    _mark_read(slot)
    spilled, kinds = slot.spilled, slot.kinds[place : place + size]
    if spilled is not None:
        if size == SLOT_BYTES and slot.kinds == _SPILLED:
            return spilled
        if spilled.is_pointer:
            raise Refusal(EACCES, "invalid size of register fill")
        if place == 0 and kinds == _SPILLED[:size]:
            fits = not spilled.bounds.whole.umax >> 8 * size
            return spilled if fits else scalar(truncate(spilled.bounds, size), spilled.origins)
        if spilled.is_zero and all(kind == SPILL for kind in kinds):
            mark(spilled.origins)
            return ZERO
    _check_initialised(slot, kinds, offset, place, size, privileged)
    return ZERO if all(kind == ZERO_BYTE for kind in kinds) else scalar(truncate(_anything(), size))


def read_range(owner: Frame, least: int, most: int, size: int) -> Register:
    """What a register gets by a load somewhere from offset ``least`` to offset ``most``."""
    zeros = True
    for offset in range(least, most + size):
        number, place = slot_of(offset)
        slot = owner.stack.get(number, _UNTOUCHED)
        _mark_read(slot)
        zeros = zeros and slot.kinds[place] == ZERO_BYTE
    return ZERO if zeros else scalar(truncate(_anything(), size))


def check_range_initialised(
    owner: Frame, least: int, most: int, size: int, number: int, pointer: Register, privileged: bool
) -> None:
    """A helper reads ``size`` bytes somewhere from offset ``least`` to offset ``most``."""
    for offset in range(least, most + size):
        index, place = slot_of(offset)
        slot = owner.stack.get(index, _UNTOUCHED)
        _mark_read(slot)
        is_pointer = slot.spilled is not None and slot.spilled.is_pointer
        if privileged or not (slot.kinds[place] == INVALID or is_pointer):
            continue
        if least == most:
            raise Refusal(EACCES, f"invalid read from stack R{number} off {least}+{offset - least} size {size}")
        where = f"var_off {pointer.bounds.bits}+{offset - least} size {size}"
        raise Refusal(EACCES, f"invalid read from stack R{number} {where}")


def holds_constant(owner: Frame, offset: int, size: int) -> int | None:
    """The known number that ``size`` bytes hold, if they hold one; it counts as read and relied upon."""
    index, place = slot_of(offset)
    slot = owner.stack.get(index, _UNTOUCHED)
    kinds = slot.kinds[place : place + size]
    if len(kinds) == size and all(kind == ZERO_BYTE for kind in kinds):
        return 0
    if place or slot.spilled is None or not slot.spilled.is_constant or kinds != _SPILLED[:size]:
        return None
    mark(slot.spilled.origins)
    return truncate(slot.spilled.bounds, size).bits.value


def _anything() -> Bounds:
    return scalar().bounds


def _mark_read(slot: Slot) -> None:
    origin: Origin | None = slot.origin
    if origin is not None and not origin.matters:
        mark((origin,))


def _check_initialised(slot: Slot, kinds: bytes, offset: int, place: int, size: int, privileged: bool) -> None:
    if privileged:
        return
    for index, kind in enumerate(kinds):
        if kind == INVALID:
            raise Refusal(EACCES, f"invalid read from stack off {offset}+{index} size {size}")
