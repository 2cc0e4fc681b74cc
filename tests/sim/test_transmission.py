"""Frames that leave the card, calls to the world outside, and what it sends back: alike on every engine."""

import gc
import re
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from hw.bus.core import OperationKind as K
from hw.config import load_machine
from sim.build.design import Design
from sim.build.native import build_native
from sim.build.toplevel import Toplevel
from sim.engine.amaranth import run_on_amaranth
from sim.engine.engine import EngineError, Jump, Recording, WakeKind
from sim.engine.loop import LoopEngine
from sim.engine.native import NativeEngine
from sim.observe.log import EventLog

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

import engine_software  # noqa: E402
from engine_design import Echo, PlantedPacket  # noqa: E402

#: Ticks of the card's clock.
NIC = load_machine("tiny").period_ticks("nic")
#: Edges from one at which a beat can be handed over to its frame's start, at the least.
HAND_OVER = 1
BATCHES = 12


def design(machine="SmallMachine"):
    return Design(load_machine("tiny"), f"engine_design:{machine}", (HERE / "engine_design.py",))


@pytest.fixture(scope="module")
def build():
    return build_native(design())


@pytest.fixture(scope="module")
def reference(build):
    """A conversation with every edge of every clock executed."""
    return NativeEngine(build, jump=Jump.OFF).execute(engine_software.conversation)


def same(outcome, reference):
    assert {**outcome, "executed": None} == {**reference, "executed": None}


def on_both(build, experiment):
    """The result, or exception, of an experiment on the native engine and on the reference, which must be equal."""
    outcomes = []
    for run in (NativeEngine(build).execute, lambda made: run_on_amaranth(design(), made)):
        try:
            outcomes.append(run(experiment))
        except (EngineError, ZeroDivisionError) as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]
    return outcomes[0]


async def run_on(engine, until=None):
    """Run until idle or ``until``, whatever software is woken for."""
    while True:
        for wake in await engine.run(until):
            if wake.kind in (WakeKind.IDLE, WakeKind.LIMIT):
                return


def now(engine, until=None):
    """:func:`run_on` without a coroutine."""
    engine.execute(lambda engine: run_on(engine, until))


# ---- One behaviour


def test_the_conversation_exercises_what_it_should(build, reference):
    frames = [entry for entry in reference["told"] if entry[0] == "frame"]
    assert [tuple(entry[1:]) for entry in frames] == reference["transmitted"]
    assert len(frames) > 25
    assert {len(data) for _, _, data in reference["transmitted"]} == {1, 64, 65, 200}
    assert [packet for _, packet, _ in reference["transmitted"]] == list(range(1, len(frames) + 1))
    assert len(reference["told"]) > len(frames), "a silence was broken"
    assert reference["whole"] != reference["sha256"]


@pytest.mark.parametrize("seed", range(8))
def test_jumps_change_nothing(build, reference, seed):
    engine = NativeEngine(build, jump=Jump.RANDOM if seed else Jump.ALL, seed=seed)
    same(engine.execute(engine_software.conversation), reference)


@pytest.mark.parametrize("ticks", (1, 37))
def test_interruptions_of_a_run_change_nothing(build, reference, ticks):
    same(NativeEngine(build).execute(lambda e: engine_software.conversation(e, ticks=ticks)), reference)


@pytest.mark.parametrize("jump", (Jump.ALL, Jump.RANDOM))
def test_amaranth_does_the_same(build, jump):
    def talk(engine):
        return engine_software.conversation(engine, batches=BATCHES)

    same(run_on_amaranth(design(), talk, jump=jump, seed=2), NativeEngine(build).execute(talk))


def test_cocotb_does_the_same(reference):
    from sim.engine.cocotb import run_in_cocotb

    same(run_in_cocotb(design(), "engine_software:conversation"), reference)


def test_a_planted_wake_up_bug_is_caught():
    """The card that oversleeps sends on time with every edge executed only."""
    sent = {
        jump: run_on_amaranth(
            design("SleepyMachine"), lambda e: engine_software.conversation(e, batches=BATCHES), jump=jump, seed=1
        )["told"]
        for jump in Jump
    }
    assert sent[Jump.OFF] != sent[Jump.ALL]
    assert sent[Jump.OFF] != sent[Jump.RANDOM]


@pytest.mark.parametrize("record_jump", (Jump.OFF, Jump.RANDOM))
@pytest.mark.parametrize("replay_jump", Jump)
def test_a_replay_needs_no_peer(build, reference, record_jump, replay_jump, tmp_path):
    live = NativeEngine(build, jump=record_jump, seed=5, record=True)
    live.execute(engine_software.conversation)
    live.recording().save(tmp_path / "run.npz")
    recording = Recording.load(tmp_path / "run.npz")
    assert len(recording.frames) == 2 + engine_software.Talker.SENDS

    replay = NativeEngine(build, jump=replay_jump, seed=6)
    replay.keep_transmitted()
    replay.replay(recording)
    assert replay.log_sha256() == reference["whole"]
    assert replay.transmitted() == reference["transmitted"]
    assert replay.counters() == live.counters()


def test_recordings_of_both_loops_are_equal(build):
    async def record(engine):
        await engine_software.conversation(engine, batches=BATCHES)
        return engine.recording()

    native = NativeEngine(build, record=True).execute(record)
    python = run_on_amaranth(design(), record, record=True)
    assert np.array_equal(native.operations, python.operations)
    assert (native.frames, native.end) == (python.frames, python.end)


def test_who_listens_changes_nothing(build):
    """With a callback, with a list, with nobody: one log."""
    digests = set()
    for listen in (
        lambda engine: None,
        lambda engine: engine.keep_transmitted(),
        lambda engine: engine.on_transmit(lambda *sent: None),
    ):
        engine = NativeEngine(build)
        listen(engine)
        digests.add(engine.execute(engine_software.outcome)["sha256"])
    assert len(digests) == 1


def test_a_machine_without_a_way_out_sends_nothing():
    async def listen(engine):
        engine.keep_transmitted()
        engine.on_transmit(lambda *sent: None)
        await engine_software.busy(engine, batches=3)
        return engine.transmitted()

    assert not Toplevel(design("PlainMachine").make()).manifest.sends
    assert run_on_amaranth(design("PlainMachine"), listen) == []


# ---- When


def test_a_frame_is_told_at_the_edge_of_its_last_beat(build):
    async def experiment(engine):
        engine.keep_transmitted()
        engine.push_frame(bytes(range(200)), 8, 100)
        await run_on(engine)
        return engine.transmitted(), EventLog(engine.manifest, engine.log()).select("end.echo.sent_event").tolist()

    (sent,), beats = on_both(build, experiment)
    assert sent[1:] == (1, bytes(range(200)))
    assert len(beats) == 4 and beats[-1][0] == sent[0]
    assert beats[-1][0] - beats[0][0] == 3 * Echo.BEAT_CYCLES * NIC


@pytest.mark.parametrize("jump", Jump)
def test_a_call_comes_before_the_edges_of_its_tick(build, jump):
    """A frame pushed at the tick of an edge is handed over at that edge; pushed one tick later, at the next."""

    def arrival(tick):
        engine = NativeEngine(build, jump=jump)
        engine.call_at(tick, lambda: engine.push_frame(bytes(64), 2, 0 if tick == 0 else tick // NIC))
        now(engine, 100 * NIC)
        return EventLog(engine.manifest, engine.log()).select("end.frame_event")["tick"].tolist()

    assert arrival(40 * NIC) == [(40 + HAND_OVER) * NIC]
    assert arrival(40 * NIC + 1) == arrival(41 * NIC) == [(41 + HAND_OVER) * NIC]
    assert arrival(0) == [HAND_OVER * NIC]


@pytest.mark.parametrize("jump", Jump)
def test_a_frame_pushed_as_one_leaves_is_handed_over_at_the_next_edge(build, jump):
    engine = NativeEngine(build, jump=jump)
    left = []

    def answer(tick, packet, data):
        left.append(tick)
        if packet == 1:
            engine.push_frame(data, 4, tick // NIC)

    engine.on_transmit(answer)
    engine.push_frame(bytes(64), 2, 10)
    now(engine, 1000 * NIC)
    arrivals = EventLog(engine.manifest, engine.log()).select("end.frame_event")["tick"].tolist()
    assert arrivals[1] == left[0] + (1 + HAND_OVER) * NIC
    assert left[1] - arrivals[1] == left[0] - arrivals[0] == Echo.DELAY * NIC


def test_calls_are_in_order_at_their_ticks_and_keep_the_run_alive(build):
    async def experiment(engine):
        made = []
        for name, tick in (("late", 1_000_001), ("first", 77), ("second", 77), ("never", 77), ("start", 0)):
            number = engine.call_at(tick, lambda name=name: made.append((name, engine.tick)))
            if name == "never":
                assert engine.cancel_call(number)
                assert not engine.cancel_call(number)
        engine.call_at(500, lambda: engine.call_at(501, lambda: made.append(("nested", engine.tick))))
        wakes = [(wake.kind, engine.tick) for until in (500, 1_000_000, None) for wake in await engine.run(until)]
        return made, wakes

    made, wakes = on_both(build, experiment)
    assert made == [("start", 0), ("first", 77), ("second", 77), ("nested", 501), ("late", 1_000_001)]
    assert [kind for kind, _ in wakes] == [WakeKind.LIMIT, WakeKind.LIMIT, WakeKind.IDLE]
    assert [tick for _, tick in wakes[:2]] == [500, 1_000_000]


def test_a_call_at_the_limit_is_made(build):
    async def experiment(engine):
        made = []
        for tick in (99, 100, 101):
            engine.call_at(tick, lambda tick=tick: made.append(tick))
        await engine.run(100)
        return made

    assert on_both(build, experiment) == [99, 100]


def test_software_is_woken_after_the_outside_is_told(build):
    """A fence that completes at the very edge at which the echo leaves."""

    def fence_after(cycles):
        async def experiment(engine):
            order = []
            context = engine.new_context()
            engine.switch(0, context)
            engine.push(context, K.EXECUTE.value, cycles=cycles)
            engine.push(context, K.FENCE.value, notify=True)
            engine.on_transmit(lambda tick, *sent: order.append(("sent", tick)))
            engine.push_frame(bytes(64), 3, 0)
            while len(order) < 2:
                order += [("woken", engine.tick) for wake in await engine.run() if wake.kind == WakeKind.COMPLETION]
            return order

        return experiment

    expected = (HAND_OVER + Echo.DELAY) * NIC // build.manifest.domains[0].period
    together = {}
    for cycles in range(expected - 10, expected + 10):
        (first, one), (_, other) = NativeEngine(build).execute(fence_after(cycles))
        if one == other:
            together[cycles] = first
    assert set(together.values()) == {"sent"}
    on_both(build, fence_after(next(iter(together))))


# ---- What may not be


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (PlantedPacket.NO_FIRST, "the card sent a beat with first 0, last 0 at byte 0 of a frame of 100"),
        (PlantedPacket.NO_LAST, "the card sent a beat with first 0, last 0 at byte 64 of a frame of 100"),
        (PlantedPacket.NO_LENGTH, "the card sent a beat with first 1, last 0 at byte 0 of a frame of 0"),
    ],
)
def test_beats_that_make_no_frame_end_the_run(build, packet, message):
    async def experiment(engine, packet=packet):
        engine.keep_transmitted()
        engine.push_frame(bytes(100), packet, 0)
        await run_on(engine)
        return engine.transmitted()

    error, told = on_both(build, experiment)
    assert error is EngineError
    assert re.fullmatch(rf"tick \d+: {message}", told)


def engines(build):
    return NativeEngine(build), LoopEngine(build.manifest, backend=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((b"", 1, 0), "a frame must have 1 to 65535 bytes, not 0"),
        ((bytes(65536), 1, 0), "a frame must have 1 to 65535 bytes, not 65536"),
        ((b"a", 0, 0), "packet must be between 1 and 16777215, not 0"),
        ((b"a", 1 << 24, 0), "packet must be between 1 and 16777215, not 16777216"),
        ((b"a", 1, -1), r"start must be between the card's present cycle, 0, and 2^48 - 1, not -1"),
        ((b"a", 1, 1 << 48), r"present cycle, 0, and 2^48 - 1, not 281474976710656"),
    ],
)
def test_bad_frames_are_refused_alike(build, arguments, message):
    for engine in engines(build):
        with pytest.raises(ValueError, match=re.escape(message)):
            engine.push_frame(*arguments)


def test_a_frame_in_the_past_is_refused(build):
    async def experiment(engine):
        said = []

        def push(start):
            try:
                engine.push_frame(b"a", 1, start)
            except ValueError as error:
                said.append((engine.tick, str(error)))

        def at_edge():
            push(99)
            push(100)

        engine.call_at(100 * NIC, at_edge)
        await run_on(engine, 110 * NIC + 1)
        push(109)
        push(110)
        return said

    assert on_both(build, experiment) == [
        (100 * NIC, "start must be between the card's present cycle, 100, and 2^48 - 1, not 99"),
        (110 * NIC + 1, "start must be between the card's present cycle, 110, and 2^48 - 1, not 109"),
    ]


def test_a_call_in_the_past_is_refused(build):
    async def experiment(engine):
        said = []

        def ask(tick):
            try:
                engine.call_at(tick, lambda: None)
            except ValueError as error:
                said.append(str(error))

        def from_within(tick):
            ask(tick)
            ask(tick + 1)

        ask(-1)
        engine.call_at(10, lambda: from_within(10))
        engine.on_transmit(lambda tick, *sent: from_within(tick))
        engine.push_frame(b"a", 2, 0)
        engine.call_at(60 * NIC, lambda: None)
        await run_on(engine)
        ask(60 * NIC)
        ask(60 * NIC + 1)
        return said

    said = on_both(build, experiment)
    assert said[0] == "a call must be later than tick -1, not at -1"
    assert said[1] == "a call must be later than tick 10, not at 10"
    assert re.fullmatch(r"a call must be later than tick (\d+), not at \1", said[2])
    assert said[3:] == [f"a call must be later than tick {60 * NIC}, not at {60 * NIC}"]


def test_listeners_come_before_the_first_edge(build):
    for engine in engines(build):
        with pytest.raises(ValueError, match="keep_transmitted was not called before the engine ran"):
            engine.transmitted()
        for wrong in (lambda e: e.on_transmit(3), lambda e: e.call_at(1, None)):
            with pytest.raises(TypeError, match="must be callable"):
                wrong(engine)

    async def experiment(engine):
        said = []
        engine.call_at(51, lambda: None)
        await run_on(engine, 50)
        for listen in (lambda: engine.on_transmit(print), engine.keep_transmitted):
            try:
                listen()
            except ValueError as error:
                said.append(str(error))
        return said

    assert on_both(build, experiment) == [
        "on_transmit comes before the first edge, not at tick 50",
        "keep_transmitted comes before the first edge, not at tick 50",
    ]


def test_a_replay_calls_nobody(build):
    live = NativeEngine(build, record=True)
    live.run_now(100)
    for listen in (lambda e: e.on_transmit(print), lambda e: e.call_at(10, print)):
        engine = NativeEngine(build)
        listen(engine)
        with pytest.raises(ValueError, match="a replay calls nobody"):
            engine.replay(live.recording())


# ---- What raises


def stumble(*arguments):
    raise ZeroDivisionError("it stumbled")


@pytest.mark.parametrize("how", ("transmit", "call"))
def test_an_exception_outside_ends_the_run_and_closes_the_engine(build, how):
    async def experiment(engine):
        engine.call_at(10_000, lambda: None)
        if how == "transmit":
            engine.on_transmit(stumble)
        else:
            engine.call_at(50 * NIC, stumble)
        engine.keep_transmitted()
        engine.push_frame(b"a", 2, 0)
        said = []
        for _ in range(2):
            try:
                await run_on(engine)
            except (ZeroDivisionError, EngineError) as error:
                said.append((type(error), str(error), engine.tick))
        return said, engine.log_sha256(), engine.cycles(), engine.counters()

    said, _, cycles, counters = on_both(build, experiment)
    assert [entry[:2] for entry in said] == [
        (ZeroDivisionError, "it stumbled"),
        (EngineError, "the engine is closed: what it called has failed"),
    ]
    assert said[0][2] == said[1][2] == (50 if how == "call" else 1 + Echo.DELAY) * NIC
    assert cycles["nic"] == said[0][2] // NIC + (how == "transmit")
    assert counters["end.frames"] == 1


def test_an_exception_outside_reaches_whoever_runs_the_experiment(build):
    async def experiment(engine):
        engine.call_at(5, stumble)
        await engine.run()

    assert on_both(build, experiment) == (ZeroDivisionError, "it stumbled")


def test_waves_are_finished_when_something_outside_raises(tmp_path):
    pywellen = pytest.importorskip("pywellen")
    path = tmp_path / "waves.fst"
    engine = NativeEngine(build_native(design(), waves=True), waves=path)
    engine.push_frame(bytes(64), 2, 0)
    engine.on_transmit(stumble)
    with pytest.raises(ZeroDivisionError):
        now(engine)
    variables = {variable.full_name: variable for variable in pywellen.Waveform(str(path)).all_vars()}
    shown = [int(value) for _, value in variables["nicscope.wire_out_valid"].tv]
    assert shown[-2:] == [1, 0], "the frame that was told is in the file"


def test_what_is_called_may_not_run_the_engine(build):
    engine = NativeEngine(build)
    engine.call_at(5, engine.run_now)
    with pytest.raises(EngineError, match="what an engine calls may not run it"):
        engine.run_now()


def test_an_engine_and_the_peer_that_holds_it_are_collected(build):
    engine = NativeEngine(build)
    engine_software.Talker(engine)
    engine.run_now(20)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
