"""Every kernel path that hands datagrams to programs gives them the same bytes of the bundled capture."""

import functools

import pytest

from sim.session import PORTS
from sim.wire.traffic import BUNDLED_CAPTURE, Traffic
from tests.sw.test_receive_path import Bench, pad

WAYS = {
    "napi on another core": {"path": "napi", "app_core": 1},
    "threaded napi": {"path": "napi", "napi_thread": 1},
    "threaded napi, program there": {"path": "napi", "napi_thread": 1, "app_core": 1},
    "interrupt": {"path": "interrupt"},
    "interrupt, program elsewhere": {"path": "interrupt", "app_core": 1},
    "busypoll": {"path": "busypoll"},
    "busypoll, program elsewhere": {"path": "busypoll", "app_core": 1},
    "busypoll by a thread": {"path": "busypoll", "application": "kthread"},
}


@functools.cache
def frames() -> list[bytes]:
    traffic = Traffic.make(capture=BUNDLED_CAPTURE)
    return [pad(frame.data) for frame in traffic.frames]


def outcome(**options):
    """What became of each frame: port, length and CRC-32 of what a program read, or why it was dropped."""
    bench = Bench(dram_bytes=16 << 20, ports=PORTS, compute=(), ring_size=256, **options)
    bench.send(frames(), gap=20_000)
    assert not bench.machine.nic.no_descriptor
    return bench.delivered, bench.crc, bench.dropped


@functools.cache
def by_napi():
    return outcome(path="napi")


def test_the_capture_has_something_for_the_programs():
    delivered, crc, dropped = by_napi()
    assert len(crc) == len(delivered) > 20 and len(dropped) > 5
    assert len({port for port, _ in delivered.values()}) > 1


@pytest.mark.parametrize("way", WAYS)
def test_same_datagrams_same_bytes_same_drops(way):
    assert outcome(**WAYS[way]) == by_napi()
