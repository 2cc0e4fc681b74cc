"""Calls of helpers: which, with what arguments, and what they give (``check_helper_call``)."""

from errno import EACCES, EINVAL

from sw.bpf.helpers import HELPER_NAMES, HELPERS, MAP_TYPES, ArgumentType, Helper, HelperId, ReturnType
from sw.bpf.maps import MapDefinition, MapType
from sw.bpf.verifier import stack
from sw.bpf.verifier.bounds import constant
from sw.bpf.verifier.errors import Refusal
from sw.bpf.verifier.memory import MAX_VAR_OFF, Access, check_map_value, check_packet, check_unmodified
from sw.bpf.verifier.precision import mark
from sw.bpf.verifier.registers import Register, RegisterType, scalar
from sw.bpf.verifier.state import State

__all__ = ["check_helper", "find_helper"]

#: One more than the number of the last helper that any kernel has (``__BPF_FUNC_MAX_ID``).
_MAX_ID = 212
_MEMORY = frozenset({RegisterType.STACK, RegisterType.PACKET, RegisterType.PACKET_META, RegisterType.MAP_VALUE})
#: As the kernel lists what it takes for memory, the kinds that the model does not have included.
_MEMORY_TEXT = "fp, pkt, pkt_meta, map_key, map_value, mem, ringbuf_mem, buf, trusted_ptr_"
#: Arrays: a lookup of an index that is known to be in them never fails.
_ARRAYS = frozenset({MapType.ARRAY, MapType.PERCPU_ARRAY})
_ARRAY_KEY_BYTES = 4


def find_helper(number: int, gpl_compatible: bool) -> Helper:
    """The helper that a CALL names."""
    if not 0 < number < _MAX_ID:
        raise Refusal(EINVAL, f"invalid func unknown#{number}")
    helper = HELPERS.get(HelperId(number)) if number in HELPER_NAMES else None
    if helper is None:
        raise Refusal(EINVAL, f"program of this type cannot use helper {HELPER_NAMES.get(number, 'unknown')}#{number}")
    if helper.gpl_only and not gpl_compatible:
        raise Refusal(EINVAL, "cannot call GPL-restricted function from non-GPL compatible program")
    return helper


def check_helper(state: State, helper: Helper, privileged: bool) -> Register:
    """Check the arguments of a helper; gives r0, a pointer that may be null still without its id.

    Arguments:
        privileged: whether the program's loader may see addresses (CAP_PERFMON).
    """
    checker = _Arguments(state, privileged)
    for number, kind in enumerate(helper.arguments, 1):
        checker.check(number, kind)
    definition = checker.map
    allowed = MAP_TYPES.get(helper.id)
    if allowed is not None and (definition is None or definition.type not in allowed):
        kind_number = definition.type if definition is not None else 0
        raise Refusal(EINVAL, f"cannot pass map_type {kind_number:d} into func {helper.name}#{helper.id:d}")
    if helper.returns is ReturnType.INTEGER:
        return scalar()
    assert definition is not None
    index = checker.key
    is_there = definition.type in _ARRAYS and index is not None and index < definition.max_entries
    kind_of = RegisterType.MAP_VALUE if is_there else RegisterType.MAP_VALUE_OR_NULL
    return Register(kind_of, constant(0), map=definition, map_fd=checker.map_fd)


class _Arguments:
    """The arguments of one call, r1 first: later ones depend on the map that an earlier one is."""

    def __init__(self, state: State, privileged: bool):
        self.state = state
        self.privileged = privileged
        self.map: MapDefinition | None = None
        self.map_fd = 0
        self.key: int | None = None  #: of an array, if it is known

    def check(self, number: int, kind: ArgumentType) -> None:
        register = self.state.registers[number]
        if register.type is RegisterType.NOT_INIT:
            raise Refusal(EACCES, f"R{number} !read_ok")
        if kind is ArgumentType.ANYTHING:
            if register.is_pointer and not self.privileged:
                raise Refusal(EACCES, f"R{number} leaks addr into helper function")
        elif kind is ArgumentType.CONST_MAP_PTR:
            self._expect(number, register, RegisterType.CONST_PTR_TO_MAP)
            self.map, self.map_fd = register.map, register.map_fd
        elif kind is ArgumentType.PTR_TO_CTX:
            self._expect(number, register, RegisterType.CTX)
            check_unmodified(register, number)
        elif kind is ArgumentType.PTR_TO_MEM_OR_NULL:
            if not register.is_zero:
                self._expect_memory(number, register)
        elif kind is ArgumentType.CONST_SIZE_OR_ZERO:
            self._size(number, register)
        else:
            self._expect_memory(number, register)
            assert self.map is not None
            is_key = kind is ArgumentType.PTR_TO_MAP_KEY
            self._read(number, self.map.key_size if is_key else self.map.value_size)
            if is_key and self.map.type in _ARRAYS:
                self.key = self._constant_key(register)

    def _expect(self, number: int, register: Register, kind: RegisterType) -> None:
        if register.type is not kind:
            raise Refusal(EACCES, f"R{number} type={register.type.value} expected={kind.value}")

    def _expect_memory(self, number: int, register: Register) -> None:
        if register.type not in _MEMORY:
            raise Refusal(EACCES, f"R{number} type={register.type.value} expected={_MEMORY_TEXT}")

    def _size(self, number: int, register: Register) -> None:
        """The size of the memory that the argument before points to."""
        self._expect(number, register, RegisterType.SCALAR)
        span = register.bounds.whole
        if span.smin < 0:
            raise Refusal(EACCES, f"R{number} min value is negative, either use unsigned or 'var &= const'")
        if span.umax >= MAX_VAR_OFF:
            advice = "use 'var &= const' or 'if (var < const)'"
            raise Refusal(EACCES, f"R{number} unbounded memory access, {advice}")
        pointer = self.state.registers[number - 1]
        if not pointer.is_zero:
            self._read(number - 1, span.umax)
        elif span.umax:
            raise Refusal(EACCES, f"R{number - 1} type=scalar expected=fp")
        mark(pointer.origins | register.origins)

    def _read(self, number: int, size: int) -> None:
        """The helper reads so many bytes from where a register points."""
        pointer = self.state.registers[number]
        if pointer.type is RegisterType.MAP_VALUE:
            check_map_value(pointer, number, 0, size, Access.READ)
        elif pointer.type is RegisterType.STACK:
            fixed = pointer.bounds.is_known
            if not fixed and not self.privileged:
                where = f"var_off={pointer.bounds.bits} off={pointer.off}"
                raise Refusal(EACCES, f"R{number} variable stack access prohibited for !root, {where}")
            owner = self.state.frames[pointer.frame]
            room = stack.readable(owner, self.privileged)
            least, most = stack.check_range(owner, number, pointer, 0, size, Access.READ.value, room)
            stack.check_range_initialised(owner, least, most, size, number, pointer, self.privileged)
        else:
            check_packet(pointer, number, 0, size)

    def _constant_key(self, pointer: Register) -> int | None:
        if pointer.type is not RegisterType.STACK or not pointer.bounds.is_known:
            return None
        owner = self.state.frames[pointer.frame]
        return stack.holds_constant(owner, pointer.off + pointer.bounds.whole.smin, _ARRAY_KEY_BYTES)
