"""What an XDP program sees of a packet, and the kernel's structures from which it comes.

``struct xdp_md`` exists only in the program's text: the kernel's verifier rewrites each access to it into loads from
``struct xdp_buff`` and what that points to (``xdp_convert_ctx_access``, ``net/core/filter.c``).
"""

from enum import Enum, IntEnum, auto
from typing import NamedTuple

from sw.bpf.instruction import Instruction, InstructionClass, Mode, Size
from sw.structs import Field, Struct

__all__ = [
    "NET_DEVICE",
    "XDP_BUFF",
    "XDP_MD",
    "XDP_RXQ_INFO",
    "ContextField",
    "PointerKind",
    "XdpAction",
    "convert_access",
]


class XdpAction(IntEnum):
    """Verdict of an XDP program; any other value counts as ABORTED."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


class PointerKind(Enum):
    """What a program gets by loading a member of its context."""

    SCALAR = auto()
    PACKET = auto()  #: first byte of the packet
    PACKET_META = auto()  #: first byte of the metadata before the packet
    PACKET_END = auto()  #: the byte behind the packet


class ContextField(NamedTuple):
    """A member of ``struct xdp_md``: 4 bytes, read-only, loaded whole and aligned."""

    name: str
    kind: PointerKind
    path: tuple[Field, ...]  #: members to follow from ``xdp_buff``; all but the last are pointers


#: ``struct xdp_buff`` (``include/net/xdp.h``).
XDP_BUFF = Struct(data=8, data_end=8, data_meta=8, data_hard_start=8, rxq=8, txq=8, frame_sz=4, flags=4)
#: ``struct xdp_rxq_info``: one line, of which these members are read.
XDP_RXQ_INFO = Struct(64, dev=8, queue_index=4, reg_state=4, mem_type=4, mem_id=4)
#: ``struct net_device``: of it only ``ifindex``, at its place in Linux 6.1 on x86-64.
NET_DEVICE = Struct(256, ahead=224, ifindex=4)

_RXQ, _TXQ, _DEV, _IFINDEX = XDP_BUFF.rxq, XDP_BUFF.txq, XDP_RXQ_INFO.dev, NET_DEVICE.ifindex

#: ``struct xdp_md`` by offset.
XDP_MD = {
    0: ContextField("data", PointerKind.PACKET, (XDP_BUFF.data,)),
    4: ContextField("data_end", PointerKind.PACKET_END, (XDP_BUFF.data_end,)),
    8: ContextField("data_meta", PointerKind.PACKET_META, (XDP_BUFF.data_meta,)),
    12: ContextField("ingress_ifindex", PointerKind.SCALAR, (_RXQ, _DEV, _IFINDEX)),
    16: ContextField("rx_queue_index", PointerKind.SCALAR, (_RXQ, XDP_RXQ_INFO.queue_index)),
    # Only programs attached to a device map have a transmit queue; the verifier refuses it to others.
    20: ContextField("egress_ifindex", PointerKind.SCALAR, (_TXQ, _DEV, _IFINDEX)),
}

_SIZES = {1: Size.B, 2: Size.H, 4: Size.W, 8: Size.DW}


def convert_access(instruction: Instruction) -> list[Instruction]:
    """The loads that take the place of a load from ``struct xdp_md``, the last into the same register."""
    path = XDP_MD[instruction.offset].path
    base, loads = instruction.source, []
    for offset, size in path:
        opcode = InstructionClass.LDX | Mode.MEM | _SIZES[size]
        loads.append(Instruction(opcode, instruction.destination, base, offset, 0))
        base = instruction.destination
    return loads
