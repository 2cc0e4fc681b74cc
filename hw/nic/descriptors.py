"""Descriptor formats, one definition for the RTL and for software.

Intel 82599 10 GbE Controller Datasheet, sections 7.1.6 (advanced receive descriptors) and 7.2.3 (transmit descriptors).
All are 16 bytes, little-endian.
"""

from collections.abc import Mapping
from typing import Any

from amaranth.hdl import Shape
from amaranth.lib import data

__all__ = [
    "DESCRIPTOR_BYTES",
    "RX_READ",
    "RX_WRITE_BACK",
    "TX_DATA",
    "TX_WRITE_BACK",
    "AdvancedRxRead",
    "AdvancedRxWriteBack",
    "AdvancedTxData",
    "AdvancedTxWriteBack",
    "Format",
    "PacketType",
]

DESCRIPTOR_BYTES = 16


class AdvancedRxRead(data.Struct):
    """What the driver writes (section 7.1.6.1)."""

    packet_address: 64
    header_address: 64  #: bit 0, which is DD on write-back, must be 0


class PacketType(data.Struct):
    """What the card recognised (section 7.1.6.2, bits 16:4)."""

    ipv4: 1
    ipv4_options: 1
    ipv6: 1
    ipv6_extensions: 1
    tcp: 1
    udp: 1
    sctp: 1
    nfs: 1
    reserved: 5


class AdvancedRxWriteBack(data.Struct):
    """What the card writes back (section 7.1.6.2)."""

    rss_type: 4
    packet_type: PacketType
    rsc_count: 4
    header_length: 10
    split_header: 1
    rss_hash: 32
    dd: 1  #: descriptor done
    eop: 1  #: end of packet
    flow_director_match: 1
    vp: 1  #: VLAN tag stripped
    udpcs: 1
    l4cs: 1  #: L4 checksum verified
    ipcs: 1  #: IP checksum verified
    status: 13  #: the rest of the status, bits 19:7
    error_reserved: 3
    header_buffer_overflow: 1
    crc_error: 1
    length_error: 1
    error_reserved2: 3
    receive_error: 1
    l4_error: 1
    ip_error: 1
    length: 16  #: bytes in this descriptor's buffer
    vlan: 16


class AdvancedTxData(data.Struct):
    """What the driver writes to send (section 7.2.3.2.4). A legacy descriptor (7.2.3.2.1) has DEXT = 0."""

    address: 64
    length: 16  #: bytes in this buffer
    reserved: 2
    mac: 2
    dtyp: 4  #: 3 = data, 2 = context
    eop: 1  #: the packet ends here
    ifcs: 1  #: insert the FCS
    legacy_insert_checksum: 1  #: IC of a legacy descriptor
    rs: 1  #: write this descriptor back when done
    reserved2: 1
    dext: 1  #: 1 = advanced
    vle: 1  #: insert a VLAN tag
    tse: 1  #: segment
    status: 4
    context_index: 3
    check_context: 1
    popts: 6  #: bit 0 = IXSM, bit 1 = TXSM
    payload_length: 18  #: bytes of the packet


class AdvancedTxWriteBack(data.Struct):
    """What the card writes back (section 7.2.3.2.4)."""

    reserved: 96
    dd: 1  #: descriptor done
    reserved2: 31


class Format:
    """Packs and unpacks a structure of ``amaranth.lib.data`` as bytes, for software. Nested fields are dotted.

    Raises:
        ValueError: by :meth:`pack` for an unknown field or a value that does not fit.
    """

    def __init__(self, layout: type[data.Struct]):
        self.name = layout.__name__
        self.size = Shape.cast(layout).width // 8
        #: offset in bits and mask of each field
        self.fields: dict[str, tuple[int, int]] = dict(_flatten(data.Layout.cast(layout), "", 0))

    def pack(self, values: Mapping[str, int] | None = None, **more: int) -> bytes:
        """Bytes with the given fields set and all others zero."""
        word = 0
        for name, value in {**(values or {}), **more}.items():
            if name not in self.fields:
                raise ValueError(f"{self.name} has no field {name!r}; fields: {', '.join(self.fields)}")
            offset, mask = self.fields[name]
            if value & ~mask:
                raise ValueError(f"{self.name}.{name} holds at most {mask:#x}, not {value:#x}")
            word |= value << offset
        return word.to_bytes(self.size, "little")

    def unpack(self, raw: bytes | int) -> dict[str, int]:
        """All fields of ``raw``, bytes or a little-endian integer."""
        word = raw if isinstance(raw, int) else int.from_bytes(raw, "little")
        return {name: word >> offset & mask for name, (offset, mask) in self.fields.items()}

    def get(self, raw: bytes | int, name: str) -> int:
        """One field of ``raw``, bytes or a little-endian integer."""
        word = raw if isinstance(raw, int) else int.from_bytes(raw, "little")
        offset, mask = self.fields[name]
        return word >> offset & mask


def _flatten(layout: data.Layout, prefix: str, base: int) -> Any:
    for key, f in layout:
        name, offset = f"{prefix}{key}", base + f.offset
        yield name, (offset, (1 << Shape.cast(f.shape).width) - 1)
        try:
            inner = data.Layout.cast(f.shape)
        except TypeError:
            continue
        yield from _flatten(inner, f"{name}.", offset)


RX_READ = Format(AdvancedRxRead)
RX_WRITE_BACK = Format(AdvancedRxWriteBack)
TX_DATA = Format(AdvancedTxData)
TX_WRITE_BACK = Format(AdvancedTxWriteBack)
