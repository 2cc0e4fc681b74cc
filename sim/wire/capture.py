"""Capture files: pcapng in and out by python-pcapng, pcap in by scapy."""

import enum
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pcapng import FileScanner, FileWriter
from pcapng.blocks import EnhancedPacket, InterfaceDescription, SectionHeader, SimplePacket
from pcapng.exceptions import PcapngException, TruncatedFile
from pcapng.structs import EPBFlags
from scapy.error import Scapy_Exception
from scapy.utils import RawPcapReader

from .frames import FCS_BYTES, HOST_MAC, LEAST_FRAME_BYTES, Frame, TrafficError

__all__ = ["Captured", "Direction", "read_capture", "write_capture"]

#: Link type of Ethernet in a capture file (LINKTYPE_ETHERNET).
ETHERNET = 1
#: The first four bytes of a pcapng file.
SECTION_HEADER = b"\x0a\x0d\x0d\x0a"
#: The first two bytes of a gzip file; scapy reads compressed pcap.
GZIP = b"\x1f\x8b"
#: Bytes of a pcap file's header, and of each record's.
PCAP_HEADER_BYTES = 24
PCAP_RECORD_BYTES = 16


class Direction(enum.IntEnum):
    """Which way a frame passed the captured port: bits 1:0 of epb_flags (pcapng, section 4.3.1)."""

    INBOUND = 1  #: into the card
    OUTBOUND = 2  #: out of it


@dataclass(frozen=True)
class Captured:
    """A frame to be written."""

    time_ns: Fraction  #: whole nanoseconds of it are kept
    data: bytes  #: without FCS
    comment: str
    direction: Direction = Direction.INBOUND


#: A record of a capture: time in ns, bytes captured, bytes on the wire, link type.
Record = tuple[Fraction, bytes, int, int]


def read_capture(path: Path) -> tuple[list[Frame], int]:
    """Read the frames that come to the host from a pcap or pcapng file; times count from the first of them.

    Frames whose source is the host's own address were sent by it, not to it: they are left out. Frames captured
    before their sender padded them are padded to the least that goes over a wire.

    Returns:
        The frames, and how many were left out.

    Raises:
        TrafficError: one line that names the file, the packet and what is wrong with it.
    """
    if not path.is_file():
        raise TrafficError(f"{path}: no such capture file")
    with path.open("rb") as file:
        pcapng = file.read(4) == SECTION_HEADER
    frames: list[Frame] = []
    left_out = number = 0
    try:
        for number, record in enumerate(_pcapng(path) if pcapng else _pcap(path), 1):
            time_ns, data = _checked(f"{path}: packet {number}", record)
            if data[6:12] == HOST_MAC:
                left_out += 1
            else:
                frames.append(Frame(time_ns, data))
    except TrafficError:
        raise
    except (Scapy_Exception, PcapngException, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        what = f"damaged after packet {number}" if number else "not a readable pcap or pcapng file"
        raise TrafficError(f"{path}: {what}: {error}") from None
    if not frames:
        raise TrafficError(f"{path}: no frame for the host in {number} packets; a capture needs at least one")
    first = min(frame.time_ns for frame in frames)
    return [Frame(frame.time_ns - first, frame.data) for frame in sorted(frames, key=lambda f: f.time_ns)], left_out


def _pcapng(path: Path) -> Iterator[Record]:
    size = path.stat().st_size
    end = 0  #: of the last whole block
    with path.open("rb") as file:
        for block in FileScanner(file):
            end = file.tell()
            if isinstance(block, SimplePacket):
                raise TrafficError(f"{path}: simple packet blocks carry no time; record enhanced packet blocks")
            if isinstance(block, EnhancedPacket):
                units = (block.timestamp_high << 32) | block.timestamp_low
                resolution = Fraction(str(block.interface.timestamp_resolution))
                yield (
                    units * resolution * 10**9,
                    block.packet_data,
                    block.packet_len,
                    block.interface.link_type,
                )
    if end != size:  # the scanner takes a file that ends between two fields of a block for complete
        raise TruncatedFile(f"the last block is cut off after {size - end} bytes")


def _pcap(path: Path) -> Iterator[Record]:
    log, warnings = logging.getLogger("scapy"), _Warnings()
    handlers, propagate = log.handlers, log.propagate
    log.handlers, log.propagate = [warnings], False
    try:
        length = PCAP_HEADER_BYTES
        with RawPcapReader(str(path)) as reader:
            for data, meta in reader:
                if warnings.messages:
                    break
                length += PCAP_RECORD_BYTES + len(data)
                nanoseconds = meta.usec * (1 if reader.nano else 1000)
                yield Fraction(meta.sec * 10**9 + nanoseconds), data, meta.wirelen, reader.linktype
    finally:
        log.handlers, log.propagate = handlers, propagate
    if warnings.messages:
        raise Scapy_Exception(warnings.messages[0])
    with path.open("rb") as file:
        compressed = file.read(2) == GZIP
    if not compressed and path.stat().st_size != length:
        raise Scapy_Exception(f"{path.stat().st_size - length} bytes follow that are no packet")


class _Warnings(logging.Handler):
    """scapy warns of truncated records and reads on; these are collected to stop at."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _checked(where: str, record: Record) -> tuple[Fraction, bytes]:
    time_ns, data, wire_length, link_type = record
    if link_type != ETHERNET:
        raise TrafficError(f"{where} has link type {link_type}; only Ethernet ({ETHERNET}) can be replayed")
    if len(data) < wire_length:
        raise TrafficError(
            f"{where} holds {len(data)} of its {wire_length} bytes; record with a full snap length (-s 0)"
        )
    if len(data) < 14:
        raise TrafficError(f"{where} has {len(data)} bytes; an Ethernet header has 14")
    return time_ns, data.ljust(LEAST_FRAME_BYTES - FCS_BYTES, b"\0")


def write_capture(path: Path, frames: Iterable[Captured]) -> None:
    """Write a pcapng file, of the frames in the order given."""
    section = SectionHeader(options={"shb_userappl": "nicscope"})
    section.new_member(
        InterfaceDescription,
        link_type=ETHERNET,
        snaplen=0,
        options={"if_name": "wire", "if_tsresol": b"\x09"},
    )
    with path.open("wb") as file:
        writer = FileWriter(file, section)
        for frame in frames:
            flags = EPBFlags(frame.direction)
            block = section.new_member(EnhancedPacket, options={"opt_comment": frame.comment, "epb_flags": flags})
            block.timestamp_high, block.timestamp_low = divmod(int(frame.time_ns), 1 << 32)
            block.packet_data = frame.data
            writer.write_block(block)
