"""Arithmetic on pointers and what comparisons of packet pointers with the packet's end say.

Sources: ``adjust_ptr_min_max_vals``, ``try_match_pkt_pointers``, ``find_good_pkt_pointers``, ``mark_pkt_end``,
``is_pkt_ptr_branch_taken`` in ``kernel/bpf/verifier.c``.
"""

from collections.abc import Callable
from errno import EACCES, EINVAL

from sw.bpf.instruction import AluOperation
from sw.bpf.instruction import JumpOperation as Jump
from sw.bpf.verifier import alu
from sw.bpf.verifier.bounds import S64_MIN, Bounds, constant
from sw.bpf.verifier.branches import FLIPPED
from sw.bpf.verifier.errors import Refusal
from sw.bpf.verifier.memory import MAX_VAR_OFF
from sw.bpf.verifier.registers import AT_PACKET_END, BEYOND_PACKET_END, Register, RegisterType
from sw.bpf.verifier.state import State

__all__ = ["PacketComparison", "add_to_pointer"]

_ARITHMETIC = frozenset(
    {
        RegisterType.CTX,
        RegisterType.MAP_VALUE,
        RegisterType.STACK,
        RegisterType.PACKET,
        RegisterType.PACKET_META,
    }
)
_RANGED = frozenset({RegisterType.PACKET, RegisterType.PACKET_META})
_BITWISE = {AluOperation.AND: "&=", AluOperation.OR: "|=", AluOperation.XOR: "^="}
_OTHERS = {
    AluOperation.MUL: "*=",
    AluOperation.DIV: "/=",
    AluOperation.LSH: "<<=",
    AluOperation.RSH: ">>=",
    AluOperation.MOD: "%=",
    AluOperation.ARSH: "s>>=",
}
#: Greatest offset that a packet pointer may have for its range to count (``MAX_PACKET_OFF``).
_MAX_PACKET_OFF = 0xFFFF
_S32_MIN, _S32_MAX = -(1 << 31), (1 << 31) - 1


def _check_offset(kind: RegisterType, bounds: Bounds, off: int) -> None:
    """Refuse offsets that might overflow (``check_reg_sane_offset``)."""
    name, least = kind.value, bounds.whole.smin
    pointer = "pointer" if kind is RegisterType.SCALAR else f"{name} pointer"
    if bounds.is_known and not -MAX_VAR_OFF < least < MAX_VAR_OFF:
        raise Refusal(EINVAL, f"math between {pointer} and {least} is not allowed")
    if not -MAX_VAR_OFF < off < MAX_VAR_OFF:
        raise Refusal(EINVAL, f"{pointer} offset {off} is not allowed")
    if least == S64_MIN:
        raise Refusal(EINVAL, f"math between {pointer} and register with unbounded min value is not allowed")
    if not -MAX_VAR_OFF < least < MAX_VAR_OFF:
        raise Refusal(EINVAL, f"value {least} makes {pointer} be out of bounds")


def add_to_pointer(
    number: int,
    operation: int,
    pointer: Register,
    addend: Register,
    is_destination: bool,
    new_id: Callable[[], int],
) -> Register:
    """Result of a 64-bit operation on a pointer and a scalar.

    Arguments:
        number: of the destination.
        is_destination: whether the pointer is in the destination (and not the scalar).
        new_id: gives an id that no register has.
    """
    kind = pointer.type
    if kind is RegisterType.MAP_VALUE_OR_NULL:
        raise Refusal(EACCES, f"R{number} pointer arithmetic on {kind.value} prohibited, null-check it first")
    adds_nothing = addend.is_zero and operation == AluOperation.ADD
    if kind not in _ARITHMETIC and not (kind is RegisterType.CONST_PTR_TO_MAP and adds_nothing):
        raise Refusal(EACCES, f"R{number} pointer arithmetic on {kind.value} prohibited")
    _check_offset(kind, addend.bounds, 0)
    _check_offset(kind, pointer.bounds, pointer.off)
    if operation == AluOperation.SUB:
        if not is_destination:
            raise Refusal(EACCES, f"R{number} tried to subtract pointer from scalar")
        if kind is RegisterType.STACK:
            raise Refusal(EACCES, f"R{number} subtraction from stack pointer prohibited")
    elif operation in _BITWISE:
        raise Refusal(EACCES, f"R{number} bitwise operator {_BITWISE[AluOperation(operation)]} on pointer prohibited")
    elif operation != AluOperation.ADD:
        symbol = _OTHERS[AluOperation(operation)]
        raise Refusal(EACCES, f"R{number} pointer arithmetic with {symbol} operator prohibited")
    result = _moved(operation, pointer, addend, new_id)
    _check_offset(kind, result.bounds, result.off)
    return result


def _moved(operation: int, pointer: Register, addend: Register, new_id: Callable[[], int]) -> Register:
    least = addend.bounds.whole.smin
    if addend.is_constant:
        step = least if operation == AluOperation.ADD else -least
        if _S32_MIN <= pointer.off + step <= _S32_MAX:
            # That a pointer lies behind the packet's end says nothing of one before it.
            past = pointer.range if pointer.range >= 0 or step >= 0 else 0
            return pointer._replace(off=pointer.off + step, range=past)
    moved = pointer._replace(bounds=alu.result(operation, 64, pointer.bounds, addend.bounds))
    if pointer.type in _RANGED:
        moved = moved._replace(id=new_id(), range=0)
    return moved


class PacketComparison:
    """A comparison of a pointer into the packet (or its metadata) with where that ends.

    Arguments:
        operation: a :class:`~sw.bpf.instruction.JumpOperation`.
        a, b: its operands.
    """

    def __init__(self, operation: int, a: Register, b: Register):
        self.is_one = False
        if operation not in _ORDERED:
            return
        self.operation, self.pointer = operation, a
        if _ends(a, b):
            self.is_one = True
        elif _ends(b, a):
            self.is_one = True
            self.operation, self.pointer = FLIPPED[Jump(operation)], b
        self.end_is_packet_end = RegisterType.PACKET_END in (a.type, b.type)

    def decided(self) -> bool | None:
        """Whether an earlier comparison says how this one goes."""
        if not self.is_one or not self.end_is_packet_end or self.pointer.range >= 0:
            return None
        if self.operation in (Jump.JGT, Jump.JLE):
            return None if self.pointer.range == AT_PACKET_END else self.operation == Jump.JGT
        return self.operation == Jump.JGE

    def learn(self, state: State, holds: bool) -> None:
        """Note in ``state`` what the comparison says if it holds, or does not."""
        if not self.is_one:
            return
        inside = holds == (self.operation in (Jump.JLT, Jump.JLE))
        if inside:
            # Of "before" and "not behind" the former lets one more byte be read.
            self._extend(state, strict=self.operation in (Jump.JLT, Jump.JGE))
        elif self.pointer.type is RegisterType.PACKET and self.end_is_packet_end:
            past = BEYOND_PACKET_END if self.operation in (Jump.JGT, Jump.JLE) else AT_PACKET_END
            state.replace(lambda register: register._replace(range=past) if register is self.pointer else None)

    def _extend(self, state: State, strict: bool) -> None:
        """All pointers of the same base may be used up to the one that was compared."""
        pointer = self.pointer
        most = pointer.bounds.whole.umax
        if pointer.off < 0 or (pointer.off == 0 and strict):  # of one byte at its base the kernel makes nothing
            return
        if most > _MAX_PACKET_OFF or most + pointer.off > _MAX_PACKET_OFF:
            return
        reach = pointer.off + strict

        def extended(register: Register) -> Register | None:
            if register.type is pointer.type and register.id == pointer.id and register.range < reach:
                return register._replace(range=reach)
            return None

        state.replace(extended)


_ORDERED = frozenset({Jump.JGT, Jump.JGE, Jump.JLT, Jump.JLE})


def _ends(pointer: Register, end: Register) -> bool:
    """Whether ``end`` is where that to which ``pointer`` points ends."""
    if pointer.type is RegisterType.PACKET:
        return end.type is RegisterType.PACKET_END
    is_start = end.type is RegisterType.PACKET and end.id == 0 and end.off == 0
    return pointer.type is RegisterType.PACKET_META and is_start and end.bounds == constant(0)
