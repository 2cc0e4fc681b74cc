"""Who takes packets, and where: interrupts, a program that polls, threads, two cores, on the whole machine."""

import functools
import tempfile
from pathlib import Path

import pytest

from hw.config import ConfigError, load_machine
from sim.engine.engine import Jump
from sim.experiment import Experiment
from sim.wire.traffic import Traffic

#: What a socket holds (212992 bytes of 2304 each, and one more): all that a program gets that runs only afterwards.
SOCKET_HOLDS = 93


@functools.cache
def result(way: str, rate: str = "500kpps", count: int = 60, background: bool = False, idle: str = "poll", **options):
    """64-byte frames through one way on the teaching machine."""
    path, _, application = way.partition(":")
    traffic = Traffic.make(size=64, rate=rate, count=count)
    with tempfile.TemporaryDirectory() as directory:
        return Experiment(
            path, load_machine("teaching"), traffic, application or None,
            out=Path(directory), options=options, background=background, idle=idle,
        ).run()  # fmt: skip


WAYS = [
    ("napi", {"app_core": 1}),
    ("napi", {"app_core": 1, "idle": "halt"}),
    ("napi", {"napi_thread": 1}),
    ("napi", {"napi_thread": 1, "app_core": 1, "background": True}),
    ("interrupt", {}),
    ("interrupt", {"app_core": 1}),
    ("interrupt:rawdrop", {}),
    ("busypoll", {}),
    ("busypoll", {"app_core": 1}),
    ("busypoll:kthread", {}),
]


@pytest.mark.parametrize("way, options", WAYS, ids=str)
def test_every_packet_is_delivered(way, options):
    packets = result(way, **options)["packets"]
    assert packets["delivered"] == packets["offered"] == 60 and packets["dropped"] == {}


@pytest.mark.parametrize("way, options", WAYS, ids=str)
def test_skipping_edges_changes_nothing(way, options, tmp_path):
    """On the smallest machine: interrupts between cores, flags that are polled, programs that poll."""
    path, _, application = way.partition(":")
    given = dict(options)
    switches = {name: given.pop(name, default) for name, default in {"background": False, "idle": "poll"}.items()}
    traffic = Traffic.make(size=64, rate="200kpps", count=4)
    machine = load_machine("tiny")
    digests = set()
    for jump in (Jump.OFF, Jump.ALL):
        experiment = Experiment(
            path, machine, traffic, application or None, out=tmp_path, options=given, jump=jump, **switches
        )
        run = experiment.run()
        assert run["packets"]["delivered"] == 4
        digests.add(run["log_sha256"])
    assert len(digests) == 1


def kicks(**options) -> int:
    """Interrupts that cores sent to each other."""
    return result("napi", **options)["counters"]["root_complex.mmio_bridge.interrupts"]


def test_a_core_is_interrupted_by_another_only_if_it_sleeps():
    assert kicks(app_core=1) == 0  # idle=poll
    taken = result("napi", app_core=1, idle="halt")["interrupts"]
    assert 0 < kicks(app_core=1, idle="halt") == taken["taken"] - taken["raised"]
    assert kicks() == 0


def test_two_cores_deliver_more_than_one():
    """More than one core can do: the second takes half of the work."""
    one, two = (result("napi", "2Mpps", 1000, app_core=core)["packets"]["delivered"] for core in (0, 1))
    assert one < 500 and two == 1000


def test_interrupts_alone_livelock():
    """Mogul and Ramakrishnan: what is delivered rises with what is offered, peaks, and falls towards zero."""
    delivered = {rate: result("interrupt", f"{rate}kpps", 600)["packets"]["delivered"] for rate in (400, 800, 1500)}
    assert delivered[400] == delivered[800] == 600
    # Only what the socket still held when no more came: under load the program did not run at all.
    assert delivered[1500] <= SOCKET_HOLDS
    assert result("interrupt", "1500kpps", 600)["packets"]["dropped"] == {"SOCKET_RCVBUFF": 600 - delivered[1500]}
    # Where no program is needed nothing collapses.
    assert result("interrupt:rawdrop", "1500kpps", 600)["packets"]["delivered"] == 600


def test_interrupt_per_packet():
    assert result("interrupt")["per_packet"]["interrupts"] == 1
    assert result("interrupt")["interrupts"]["polls"] == 0
    assert result("napi")["per_packet"]["interrupts"] < 0.5  # moderated
    for way in ("busypoll", "busypoll:kthread"):
        assert result(way)["per_packet"]["interrupts"] < 0.1


def test_who_polls_has_a_packet_sooner():
    """At low load, without moderation: no interrupt, no wake-up on the way."""
    latency = {
        way: result(way, "100kpps", 40, itr_us=0.0)["latency_ns"]["p50"]
        for way in ("napi", "busypoll", "busypoll:kthread")
    }
    assert latency["busypoll"] < latency["busypoll:kthread"] < latency["napi"]


def test_what_cannot_be_is_told():
    for options, told in [
        ({"app_core": 2}, "no core 2 to receive on; cores: 0 to 1"),
        ({"napi_thread": -1}, "no core -1 to poll on; cores: 0 to 1"),
    ]:
        with pytest.raises(ConfigError, match=told):
            result("napi", **options)
    with pytest.raises(ConfigError, match="a thread that spins on core 1 leaves nothing"):
        result("busypoll:kthread", app_core=1, napi_thread=1)
