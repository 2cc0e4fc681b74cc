"""Which loads and stores are allowed, by what their pointer points to (``check_mem_access``)."""

from enum import Enum
from errno import EACCES, EINVAL

from sw.bpf.context import XDP_MD, PointerKind
from sw.bpf.maps import MapFlag
from sw.bpf.verifier import stack
from sw.bpf.verifier.bounds import S64_MIN, UNKNOWN, truncate
from sw.bpf.verifier.errors import Refusal
from sw.bpf.verifier.registers import Register, RegisterType, scalar
from sw.bpf.verifier.state import State

__all__ = ["MAX_VAR_OFF", "Access", "check_access", "check_map_value", "check_packet", "check_unmodified"]

#: Greatest known or possible offset of a pointer (``BPF_MAX_VAR_OFF``).
MAX_VAR_OFF = 1 << 29
_CONTEXT_BYTES = 4
_CONTEXT_TYPES = {
    PointerKind.PACKET: RegisterType.PACKET,
    PointerKind.PACKET_META: RegisterType.PACKET_META,
    PointerKind.PACKET_END: RegisterType.PACKET_END,
}
#: The program's slot to which only programs attached to a device map have access.
_EGRESS_IFINDEX = 20


class Access(Enum):
    """What an instruction or a helper does."""

    READ = "read from"
    WRITE = "write to"


def check_access(
    state: State,
    at: int,
    number: int,
    offset: int,
    size: int,
    access: Access,
    value: Register | None,
    privileged: bool,
    source: int = -1,
    sign_extends: bool = False,
) -> Register | None:
    """Check one load or store; gives what a load gives, zeros above.

    Arguments:
        at: slot of the instruction.
        number: of the register that is the pointer.
        offset: of the instruction.
        value: what is stored, if that is known.
        privileged: whether the program's loader may see addresses (CAP_PERFMON).
        source: number of the register that is stored.
        sign_extends: whether it is a load that extends the sign.
    """
    pointer = state.registers[number]
    kind = pointer.type
    if kind is RegisterType.STACK:
        return _stack(state, at, number, offset, size, access, value, privileged)
    if kind is RegisterType.MAP_VALUE:
        check_map_value(pointer, number, offset, size, access)
        _check_leak(value, source, "map", privileged)
        return _unknown(size)
    if kind is RegisterType.CTX:
        _check_leak(value, source, "ctx", privileged)
        check_unmodified(pointer, number)
        return _context(offset, size, access, sign_extends)
    if kind is RegisterType.PACKET or kind is RegisterType.PACKET_META:
        _check_leak(value, source, "packet", privileged)
        check_packet(pointer, number, offset, size)
        return _unknown(size)
    raise Refusal(EACCES, f"R{number} invalid mem access '{kind.value}'")


def _unknown(size: int) -> Register:
    return scalar(truncate(UNKNOWN, size))


def _check_leak(value: Register | None, source: int, where: str, privileged: bool) -> None:
    if not privileged and value is not None and value.is_pointer:
        raise Refusal(EACCES, f"R{source} leaks addr into {where}")


def check_unmodified(pointer: Register, number: int) -> None:
    """The context is only used by the pointer that the program was given."""
    if pointer.off < 0:
        raise Refusal(EACCES, f"negative offset ctx ptr R{number} off={pointer.off} disallowed")
    if pointer.off:
        raise Refusal(EACCES, f"dereference of modified ctx ptr R{number} off={pointer.off} disallowed")
    if not pointer.bounds.is_known or pointer.bounds.bits.value:
        raise Refusal(EACCES, f"variable ctx access var_off={pointer.bounds.bits} disallowed")


def _context(offset: int, size: int, access: Access, sign_extends: bool) -> Register:
    found = XDP_MD.get(offset)
    valid = found is not None and access is Access.READ and size == _CONTEXT_BYTES and offset != _EGRESS_IFINDEX
    kind = None if found is None else _CONTEXT_TYPES.get(found.kind)
    if not valid or (kind is not None and sign_extends):
        raise Refusal(EACCES, f"invalid bpf_context access off={offset} size={size}")
    return _unknown(size) if kind is None else Register(kind)


def check_packet(pointer: Register, number: int, offset: int, size: int) -> None:
    """Within what comparisons with the packet's end have shown to be in the packet."""
    if pointer.bounds.whole.smin < 0:
        raise Refusal(EACCES, _negative(number))
    off = pointer.off + offset
    outside = f"R{number} offset is outside of the packet"
    if pointer.range < 0:
        raise Refusal(EINVAL, outside)
    if off < 0 or off + size > pointer.range:
        where = f"R{number}(id={pointer.id},off={off},r={pointer.range})"
        raise Refusal(EACCES, f"invalid access to packet, off={off} size={size}, {where}", outside)


def check_map_value(pointer: Register, number: int, offset: int, size: int, access: Access) -> None:
    """Within the value, for every possible offset, and as the map's flags allow."""
    assert pointer.map is not None
    limit, off, span = pointer.map.value_size, pointer.off + offset, pointer.bounds.whole
    forbidden = MapFlag.RDONLY_PROG if access is Access.WRITE else MapFlag.WRONLY_PROG
    if pointer.map.flags & forbidden:
        what = "write into" if access is Access.WRITE else "read from"
        raise Refusal(EACCES, f"{what} map forbidden, value_size={limit} off={off + span.smin} size={size}")
    if span.smin < 0 and (span.smin == S64_MIN or off + span.smin < 0):
        raise Refusal(EACCES, _negative(number))
    _check_within(number, off + span.smin, size, limit, "min")
    if span.umax >= MAX_VAR_OFF:
        raise Refusal(EACCES, f"R{number} unbounded memory access, make sure to bounds check any such access")
    _check_within(number, off + span.umax, size, limit, "max")


def _check_within(number: int, off: int, size: int, limit: int, which: str) -> None:
    if off < 0 or off + size > limit:
        raise Refusal(
            EACCES,
            f"invalid access to map value, value_size={limit} off={off} size={size}",
            f"R{number} {which} value is outside of the allowed memory range",
        )


def _negative(number: int) -> str:
    return f"R{number} min value is negative, either use unsigned index or do a if (index >=0) check."


def _stack(
    state: State,
    at: int,
    number: int,
    offset: int,
    size: int,
    access: Access,
    value: Register | None,
    privileged: bool,
) -> Register | None:
    pointer = state.registers[number]
    _check_alignment(pointer, offset, size)
    owner = state.frames[pointer.frame]
    room = stack.readable(owner, privileged or access is Access.WRITE)
    least, most = stack.check_range(owner, number, pointer, offset, size, access.value, room)
    fixed = pointer.bounds.is_known
    if not fixed and not privileged:
        where = f"var_off={pointer.bounds.bits} off={pointer.off}"
        raise Refusal(EACCES, f"R{number} variable stack access prohibited for !root, {where}")
    if access is Access.READ:
        return stack.read(owner, least, size, privileged) if fixed else stack.read_range(owner, least, most, size)
    stored = _unknown(8) if value is None else value
    if fixed:
        stack.write(state.frame, owner, least, size, stored, value is not None, privileged)
    else:
        stack.write_range(state.frame, owner, least, most, size, stored, at, privileged)
    return None


def _check_alignment(pointer: Register, offset: int, size: int) -> None:
    """Only the stack must be accessed aligned on x86: a slot holds what was spilled there."""
    bits, off = pointer.bounds.bits, pointer.off + offset
    if (bits.value | bits.mask) % size or (bits.value + off) % size:
        text = f"{bits.value:#x}" if bits.is_known and bits.value else "0" if bits.is_known else str(bits)
        raise Refusal(EACCES, f"misaligned stack access off {text}+{pointer.off}+{offset} size {size}")
