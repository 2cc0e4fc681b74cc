"""Helper functions that programs may call: number, name and what they take and give.

Numbers: ``enum bpf_func_id`` in ``include/uapi/linux/bpf.h``. Types: ``struct bpf_func_proto`` in
``include/linux/bpf.h``; prototypes as in ``kernel/bpf/helpers.c`` and ``net/core/filter.c``. What they do is in
``sw.bpf.runtime``.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum, auto

from sw.bpf.maps import MapType

__all__ = ["HELPERS", "HELPER_NAMES", "MAP_TYPES", "ArgumentType", "Helper", "HelperId", "ReturnType"]


class HelperId(IntEnum):
    """The immediate of a CALL."""

    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    KTIME_GET_NS = 5
    GET_PRANDOM_U32 = 7
    GET_SMP_PROCESSOR_ID = 8
    CSUM_DIFF = 28
    XDP_ADJUST_HEAD = 44
    REDIRECT_MAP = 51
    XDP_ADJUST_TAIL = 65


class ArgumentType(Enum):
    """``enum bpf_arg_type``."""

    CONST_MAP_PTR = auto()  #: a map, by LD_IMM64
    PTR_TO_MAP_KEY = auto()  #: readable memory of the map's key_size
    PTR_TO_MAP_VALUE = auto()  #: readable memory of the map's value_size
    PTR_TO_MEM_OR_NULL = auto()  #: readable memory of the size that the next argument says, or 0
    CONST_SIZE_OR_ZERO = auto()  #: size of the memory of the argument before
    PTR_TO_CTX = auto()  #: the program's context
    ANYTHING = auto()  #: any initialised value


class ReturnType(Enum):
    """``enum bpf_return_type``."""

    INTEGER = auto()
    PTR_TO_MAP_VALUE_OR_NULL = auto()


@dataclass(frozen=True, slots=True)
class Helper:
    """Signature of one helper (``struct bpf_func_proto``)."""

    id: HelperId
    arguments: tuple[ArgumentType, ...]  #: of r1, r2, …
    returns: ReturnType
    gpl_only: bool = False  #: only for programs under a licence compatible with the GPL
    changes_packet: bool = (
        False  #: earlier pointers into the packet are invalid after it (``bpf_helper_changes_pkt_data``)
    )

    @property
    def name(self) -> str:
        """Its name in C."""
        return f"bpf_{self.id.name.lower()}"


_MAP, _KEY, _VALUE = ArgumentType.CONST_MAP_PTR, ArgumentType.PTR_TO_MAP_KEY, ArgumentType.PTR_TO_MAP_VALUE
_CTX, _ANY = ArgumentType.PTR_TO_CTX, ArgumentType.ANYTHING
_MEM, _SIZE = ArgumentType.PTR_TO_MEM_OR_NULL, ArgumentType.CONST_SIZE_OR_ZERO
_INTEGER = ReturnType.INTEGER

#: Every helper an XDP program may call here, by number.
HELPERS = {
    helper.id: helper
    for helper in (
        Helper(HelperId.MAP_LOOKUP_ELEM, (_MAP, _KEY), ReturnType.PTR_TO_MAP_VALUE_OR_NULL),
        Helper(HelperId.MAP_UPDATE_ELEM, (_MAP, _KEY, _VALUE, _ANY), _INTEGER),
        Helper(HelperId.MAP_DELETE_ELEM, (_MAP, _KEY), _INTEGER),
        Helper(HelperId.KTIME_GET_NS, (), _INTEGER),
        Helper(HelperId.GET_PRANDOM_U32, (), _INTEGER),
        Helper(HelperId.GET_SMP_PROCESSOR_ID, (), _INTEGER),
        Helper(HelperId.CSUM_DIFF, (_MEM, _SIZE, _MEM, _SIZE, _ANY), _INTEGER),
        Helper(HelperId.XDP_ADJUST_HEAD, (_CTX, _ANY), _INTEGER, changes_packet=True),
        Helper(HelperId.REDIRECT_MAP, (_MAP, _ANY, _ANY), _INTEGER),
        Helper(HelperId.XDP_ADJUST_TAIL, (_CTX, _ANY), _INTEGER, changes_packet=True),
    )
}

#: For ``disassemble``.
HELPER_NAMES = {int(helper.id): helper.name for helper in HELPERS.values()}

_ELEMENTS = frozenset({MapType.HASH, MapType.ARRAY, MapType.PERCPU_HASH, MapType.PERCPU_ARRAY})

#: Types of map with which a helper that takes one may be called (``check_map_func_compatibility`` and the types' own
#: operations). An XSKMAP can be looked up (the value is a socket), but not changed by programs.
MAP_TYPES = {
    HelperId.MAP_LOOKUP_ELEM: _ELEMENTS,
    HelperId.MAP_UPDATE_ELEM: _ELEMENTS,
    HelperId.MAP_DELETE_ELEM: _ELEMENTS,
    HelperId.REDIRECT_MAP: frozenset({MapType.XSKMAP}),
}
