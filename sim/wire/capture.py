"""Capture files: pcap and pcapng in, read by scapy; pcapng out, written by python-pcapng."""

import logging
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

from pcapng import FileWriter
from pcapng.blocks import EnhancedPacket, InterfaceDescription, SectionHeader
from scapy.error import Scapy_Exception
from scapy.utils import RawPcapReader

from .frames import HOST_MAC, Frame, TrafficError

__all__ = ["read_capture", "write_capture"]

#: Link type of Ethernet in a capture file (LINKTYPE_ETHERNET).
ETHERNET = 1


class _Strict(logging.Handler):
    """scapy warns of truncated records and reads on; collect the warnings instead."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def read_capture(path: Path) -> tuple[list[Frame], int]:
    """Read the frames that come to the host from a pcap or pcapng file; times count from the first of them.

    Frames whose source is the host's own address were sent by it, not to it: they are left out.

    Returns:
        The frames, and how many were left out.

    Raises:
        TrafficError: one line that names the file, the packet and what is wrong with it.
    """
    if not path.is_file():
        raise TrafficError(f"{path}: no such capture file")
    log, strict = logging.getLogger("scapy"), _Strict()
    log.addHandler(strict)
    propagate, log.propagate = log.propagate, False
    quiet, log.handlers = log.handlers, [strict]
    frames: list[Frame] = []
    left_out = number = 0
    try:
        with RawPcapReader(str(path)) as reader:
            for data, meta in reader:
                number += 1
                if strict.messages:
                    break
                _check(path, number, data, meta, reader)
                if data[6:12] == HOST_MAC:
                    left_out += 1
                    continue
                frames.append(Frame(_time_ns(meta, reader), data))
    except TrafficError:
        raise
    except (Scapy_Exception, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        after = f" after packet {number}" if number else ""
        raise TrafficError(f"{path}: not a readable pcap or pcapng file{after}: {error}") from None
    finally:
        log.handlers, log.propagate = quiet, propagate
    if strict.messages:
        raise TrafficError(f"{path}: damaged after packet {max(number - 1, 0)}: {strict.messages[0]}")
    if not frames:
        raise TrafficError(f"{path}: no frame for the host in {number} packets; a capture needs at least one")
    first = min(frame.time_ns for frame in frames)
    return [Frame(frame.time_ns - first, frame.data) for frame in sorted(frames, key=lambda f: f.time_ns)], left_out


def _check(path: Path, number: int, data: bytes, meta, reader) -> None:
    link_type = getattr(meta, "linktype", None) or getattr(reader, "linktype", ETHERNET)
    if link_type != ETHERNET:
        raise TrafficError(f"{path}: packet {number} has link type {link_type}; only Ethernet ({ETHERNET}) can be replayed")
    if len(data) < meta.wirelen:
        raise TrafficError(
            f"{path}: packet {number} holds {len(data)} of its {meta.wirelen} bytes; record with a full snap length (-s 0)"
        )
    if len(data) < 14:
        raise TrafficError(f"{path}: packet {number} has {len(data)} bytes; an Ethernet header has 14")


def _time_ns(meta, reader) -> Fraction:
    if hasattr(meta, "tsresol"):
        return Fraction((meta.tshigh << 32) | meta.tslow, meta.tsresol) * 10**9
    return Fraction(meta.sec * 10**9 + meta.usec * (1 if reader.nano else 1000))


def write_capture(path: Path, frames: Iterable[tuple[Fraction, bytes, str]]) -> None:
    """Write a pcapng file from (time in ns, frame without FCS, comment); times keep whole nanoseconds."""
    section = SectionHeader(options={"shb_userappl": "nicscope"})
    section.new_member(
        InterfaceDescription, link_type=ETHERNET, snaplen=0, options={"if_name": "wire", "if_tsresol": b"\x09"}
    )
    with path.open("wb") as file:
        writer = FileWriter(file, section)
        for time_ns, data, comment in frames:
            block = section.new_member(EnhancedPacket, options={"opt_comment": comment})
            block.timestamp_high, block.timestamp_low = divmod(int(time_ns), 1 << 32)
            block.packet_data = data
            writer.write_block(block)
