"""The paths on the whole machine: orders among them come out by themselves, and no packet is lost on the way.

Only orders are claimed that hold whatever figure within its low-high band is true of each cost.
"""

import sys
from pathlib import Path

import pytest

from hw.config import load_machine
from sw.paths import PATHS

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from bands import Case, cycles, result, worst  # noqa: E402

WAYS = ["napi:sink", "napi:rawdrop", "xdp:drop", "dpdk:rxonly"]


def case(way: str) -> Case:
    """64-byte frames at line rate on the teaching machine."""
    return Case(way, "teaching")


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("dpdk:rxonly", "napi:rawdrop"),
        ("af-xdp:rxdrop", "napi:rawdrop"),
        ("napi:rawdrop", "napi:sink"),
    ],
)
def test_orders_come_out_whatever_is_true_within_the_bands(less, more):
    assert cycles(case(less)) < cycles(case(more))
    low, high = worst(case(less), case(more))
    assert low < high


@pytest.mark.parametrize("way", [*WAYS, "af-xdp:rxdrop"])
def test_every_packet_is_accounted_for(way):
    packets = result(case(way))["packets"]
    assert packets["offered"] == 600 and packets["in_flight"] == 0
    assert packets["delivered"] + packets["transmitted"] + sum(packets["dropped"].values()) == 600
    assert packets["delivered"] > 0


def test_only_sockets_copy_and_cross_into_the_kernel():
    for way in WAYS:
        stages = result(case(way))["stages"]
        for stage in ("copy", "user/kernel crossing"):
            assert (stages[stage] > 0) == (way == "napi:sink"), (way, stage)


def test_a_core_that_polls_is_not_interrupted():
    assert result(case("dpdk:rxonly"))["interrupts"] == {"raised": 0, "taken": 0, "polls": pytest.approx(600, rel=1)}


def sent_frames(way: str, sizes=(64, 200, 1000)) -> tuple[list[bytes], list[bytes]]:
    """What came in, and what went out, of a way that sends every packet back or on."""
    from sim.build.design import Design
    from sim.build.native import build_native
    from sim.engine.native import NativeEngine
    from sim.session import Software, observe
    from sim.wire.frames import generate, with_fcs

    path, application = way.split(":")
    machine = load_machine("teaching")
    frames = [with_fcs(frame) for size in sizes for frame in generate(size, 10, size)]
    engine = NativeEngine(build_native(Design(machine)))
    software = Software(path, application)
    job = [(2000 * n, frame) for n, frame in enumerate(frames)]
    run = engine.execute(lambda engine: observe(engine, machine, job, software))
    assert len(run.transmitted) == len(frames)
    return frames, [frame for _, _, frame in run.sent]


@pytest.mark.parametrize("way", ["dpdk:l2fwd", "dpdk:echo", "xdp:tx", "af-xdp:echo"])
def test_what_is_sent_is_what_came_byte_for_byte_but_for_the_addresses(way):
    from sim.wire.frames import with_fcs

    came, went = sent_frames(way)
    host = came[0][:6]
    for before, after in zip(came, went, strict=True):
        body = before[12:-4]
        if way == "dpdk:l2fwd":
            addresses = bytes.fromhex("020000000000") + host
        else:
            addresses = before[6:12] + before[:6]
        if way.endswith(":echo"):
            body = body[:14] + body[18:22] + body[14:18] + body[24:26] + body[22:24] + body[26:]
        assert after == with_fcs(addresses + body)


def test_every_path_says_what_it_is():
    for name, path in PATHS.items():
        assert path.name == name and path.summary and path.applications
