"""What is known of a register, and how the kernel's log writes it.

Source: ``struct bpf_reg_state`` in ``include/linux/bpf_verifier.h``; text: ``print_reg_state`` in ``kernel/bpf/log.c``.
"""

from enum import Enum
from typing import NamedTuple

from sw.bpf.maps import MapDefinition
from sw.bpf.verifier.bounds import FULL32, FULL64, UNKNOWN, Bounds, constant
from sw.bpf.verifier.precision import NO_ORIGINS, Origins

__all__ = [
    "AT_PACKET_END",
    "BEYOND_PACKET_END",
    "NOT_INITIALISED",
    "PACKET_POINTERS",
    "ZERO",
    "Register",
    "RegisterType",
    "scalar",
]


class RegisterType(Enum):
    """``enum bpf_reg_type``, by the name that the log uses."""

    NOT_INIT = "?"
    SCALAR = "scalar"
    CTX = "ctx"
    CONST_PTR_TO_MAP = "map_ptr"
    MAP_VALUE = "map_value"
    MAP_VALUE_OR_NULL = "map_value_or_null"
    STACK = "fp"
    PACKET = "pkt"
    PACKET_META = "pkt_meta"
    PACKET_END = "pkt_end"

    __hash__ = object.__hash__


#: Pointers that are worthless once a helper has moved the packet.
PACKET_POINTERS = frozenset({RegisterType.PACKET, RegisterType.PACKET_META, RegisterType.PACKET_END})
#: ``Register.range`` of a pointer that is known to lie not before the packet's end, or behind it.
AT_PACKET_END, BEYOND_PACKET_END = -1, -2


_ZERO = constant(0)


class Register(NamedTuple):
    """One register or spilled register."""

    type: RegisterType
    bounds: Bounds = _ZERO  #: of a scalar; of a pointer, what was added to it besides ``off``
    off: int = 0  #: known part of a pointer's offset; of a number, what it is more than others with its id
    id: int = 0  #: not 0: equal to all others with this id (scalars), or of one origin with them (pointers)
    range: int = 0  #: of a packet pointer: bytes from its base (``off`` 0) that are known to be in the packet
    map: MapDefinition | None = None  #: of a pointer to a map or to a value
    map_fd: int = 0
    frame: int = 0  #: of a pointer to the stack: which frame's
    origins: Origins = NO_ORIGINS  #: of a scalar

    @property
    def is_scalar(self) -> bool:
        """Whether it is a number."""
        return self.type is RegisterType.SCALAR

    @property
    def is_pointer(self) -> bool:
        """Whether it is an address of any kind."""
        return self.type is not RegisterType.SCALAR and self.type is not RegisterType.NOT_INIT

    @property
    def is_constant(self) -> bool:
        """Whether it is a number of one value."""
        return self.type is RegisterType.SCALAR and not self.bounds.bits.mask

    @property
    def is_zero(self) -> bool:
        """Whether it is the number 0."""
        return self.is_constant and self.bounds.bits.value == 0

    def __str__(self) -> str:
        return self.text(0)

    def text(self, frame: int) -> str:
        """As the log writes it among the registers of a frame."""
        if self.type is RegisterType.SCALAR:
            return self._scalar_text()
        if self.type is RegisterType.STACK and self.bounds.is_known:
            return f"fp[{self.frame}]{self.off}" if self.frame != frame else f"fp{self.off}"
        parts = []
        if self.id:
            parts.append(f"id={self.id}")
        if self.map is not None:
            parts += [f"map={self.map.name}"] if self.map.name else []
            parts += [f"ks={self.map.key_size}", f"vs={self.map.value_size}"]
        if self.off:
            parts.append(f"off={_number(self.off)}")
        if self.type in (RegisterType.PACKET, RegisterType.PACKET_META):
            parts.append(f"r={self.range}")
        if not self.bounds.is_known:
            parts += _bounds_text(self.bounds)
        elif self.bounds.bits.value:
            parts.append(f"imm={_number(self.bounds.whole.smin)}")
        return f"{self.type.value}({','.join(parts)})"

    def _scalar_text(self) -> str:
        if self.bounds.is_known:
            return _number(self.bounds.whole.smin)
        more = f"{self.off:+d}" if self.off else ""
        parts = [f"id={self.id}{more}"] if self.id else []
        return f"scalar({','.join(parts + _bounds_text(self.bounds))})"


def _number(value: int, is_signed: bool = True) -> str:
    """Small numbers are decimal, others hexadecimal (``verbose_snum``, ``verbose_unum``)."""
    least, most = (-0x8000, 0x7FFF) if is_signed else (0, 0xFFFF)
    return str(value) if least <= value <= most else hex(value & FULL64.umax)


def _bounds_text(bounds: Bounds) -> list[str]:
    """Limits that say something, equal ones together."""
    whole, half = bounds.whole, bounds.half
    limits = [
        ("smin", whole.smin, FULL64.smin),
        ("smax", whole.smax, FULL64.smax),
        ("umin", whole.umin, FULL64.umin),
        ("umax", whole.umax, FULL64.umax),
        ("smin32", half.smin, FULL32.smin),
        ("smax32", half.smax, FULL32.smax),
        ("umin32", half.umin, FULL32.umin),
        ("umax32", half.umax, FULL32.umax),
    ]
    groups: dict[tuple[str, int], list[str]] = {}
    for name, value, says_nothing in limits:
        if value != says_nothing:
            if name.startswith("s") and name.endswith("32") and not -0x8000 <= value <= 0x7FFF:
                value &= FULL32.umax
            groups.setdefault((name[1:4], value), []).append(name)
    parts = [f"{'='.join(names)}={_number(value, names[0][0] == 's')}" for (_, value), names in groups.items()]
    if bounds.bits.mask not in (FULL64.umax, 0):
        parts.append(f"var_off={bounds.bits}")
    return parts


def scalar(bounds: Bounds = UNKNOWN, origins: Origins = NO_ORIGINS, id: int = 0) -> Register:
    """A number."""
    return Register(RegisterType.SCALAR, bounds, 0, id, 0, None, 0, 0, origins)


NOT_INITIALISED = Register(RegisterType.NOT_INIT)
ZERO = scalar(_ZERO)
