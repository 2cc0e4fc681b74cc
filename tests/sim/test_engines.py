"""One run gives one log: over engines, jumps, repetitions, replays and a dawdling Python."""

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from hw.bus.core import AtomicFunction
from hw.bus.core import OperationKind as K
from hw.config import load_machine
from sim.build.design import Design
from sim.build.native import build_native
from sim.build.toplevel import Toplevel
from sim.engine.engine import CoherenceError, Jump, Notify, PageFaultError, Recording, WakeKind
from sim.engine.native import NativeEngine
from sim.observe.log import EventLog

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

import engine_software  # noqa: E402
from engine_design import DEVICE_LINE, Planted  # noqa: E402


def design(machine="SmallMachine"):
    return Design(load_machine("tiny"), f"engine_design:{machine}", (HERE / "engine_design.py",))


@pytest.fixture(scope="module")
def build():
    return build_native(design())


@pytest.fixture(scope="module")
def reference(build):
    """Every edge of every clock executed."""
    return NativeEngine(build, jump=Jump.OFF).execute(engine_software.outcome)


def same(outcome, reference):
    outcome, reference = dict(outcome), dict(reference)
    outcome.pop("executed"), reference.pop("executed")
    assert outcome == reference


def test_the_run_exercises_what_it_should(build, reference):
    kinds = {row[1] for row in reference["seen"]}
    assert kinds == {WakeKind.EMPTY, WakeKind.COMPLETION, WakeKind.INTERRUPT}
    assert reference["counters"]["end.frames"] == 4
    assert reference["cycles"] == reference["executed"]
    engine = NativeEngine(build)
    engine.execute(engine_software.outcome)
    taken = EventLog(engine.manifest, engine.log()).select("core0.interrupt_event")
    assert any(taken["remaining"]) and any(taken["squashed"])
    issued = EventLog(engine.manifest, engine.log()).select("core0.issue_event")["kind"].tolist()
    assert {K.LOAD.value, K.STORE.value, K.ATOMIC.value, K.POLL.value} < set(issued)
    assert reference["counters"]["core0.forwarded"] > 0
    told = [row[4] for row in reference["seen"] if row[1] == WakeKind.COMPLETION]
    assert len(told) == len(set(told)) > 20


def test_jumping_changes_nothing_but_the_work(build, reference):
    outcome = NativeEngine(build, jump=Jump.ALL).execute(engine_software.outcome)
    same(outcome, reference)
    assert sum(outcome["executed"].values()) < sum(reference["executed"].values()) / 3


@pytest.mark.parametrize("seed", range(20))
def test_random_subsets_of_the_jumps_change_nothing(build, reference, seed):
    outcome = NativeEngine(build, jump=Jump.RANDOM, seed=seed).execute(engine_software.outcome)
    same(outcome, reference)


def test_a_planted_wake_up_bug_is_caught():
    """The memory that oversleeps works with every edge executed, and gives another log with jumps."""
    from sim.engine.amaranth import run_on_amaranth

    logs = {
        jump: run_on_amaranth(
            design("BrokenMachine"), lambda e: engine_software.outcome(e, batches=10), jump=jump, seed=1
        )["sha256"]
        for jump in Jump
    }
    assert logs[Jump.OFF] != logs[Jump.ALL]
    assert logs[Jump.OFF] != logs[Jump.RANDOM]


def test_amaranth_gives_the_same_log(reference):
    from sim.engine.amaranth import run_on_amaranth

    for jump in (Jump.ALL, Jump.RANDOM):
        same(run_on_amaranth(design(), engine_software.outcome, jump=jump, seed=3), reference)


@pytest.mark.slow
def test_amaranth_gives_the_same_log_edge_by_edge(reference):
    from sim.engine.amaranth import run_on_amaranth

    same(run_on_amaranth(design(), engine_software.outcome, jump=Jump.OFF), reference)


def test_cocotb_gives_the_same_log(reference):
    from sim.engine.cocotb import run_in_cocotb

    same(run_in_cocotb(design(), "engine_software:outcome"), reference)


def test_an_exception_inside_cocotb_comes_back():
    from sim.engine.cocotb import run_in_cocotb

    with pytest.raises(TypeError, match="no_such_argument"):
        run_in_cocotb(design(), "engine_software:outcome", {"no_such_argument": 1})


def test_profile_tells_what_an_edge_costs(build, reference):
    engine = NativeEngine(build, jump=Jump.OFF, profile=True)
    same(engine.execute(engine_software.outcome), reference)
    # Edges of the cores always coincide with the uncore's here, every second one with the card's.
    assert all(edges == 0 for edges, _ in engine.edge_costs().values())
    engine = NativeEngine(build, profile=True)
    engine.execute(engine_software.outcome)
    edges, seconds = engine.edge_costs()["uncore"]
    assert edges > 0
    assert seconds > 0


def test_delays_in_python_change_nothing(build, reference):
    same(NativeEngine(build).execute(lambda e: engine_software.outcome(e, dawdle=True)), reference)


@pytest.mark.parametrize("ticks", (1, 7, 1000))
def test_interruptions_of_a_run_change_nothing(build, reference, ticks):
    """A progress bar that asks to come back every so many ticks."""
    same(NativeEngine(build).execute(lambda e: engine_software.outcome(e, ticks=ticks)), reference)


@pytest.mark.parametrize("record_jump", Jump)
@pytest.mark.parametrize("replay_jump", Jump)
def test_replay_gives_the_same_log(build, reference, record_jump, replay_jump, tmp_path):
    live = NativeEngine(build, jump=record_jump, seed=5, record=True)
    live.execute(engine_software.outcome)
    live.recording().save(tmp_path / "run.npz")

    replay = NativeEngine(build, jump=replay_jump, seed=6)
    assert replay.replay(Recording.load(tmp_path / "run.npz")) > 0
    assert replay.log_sha256() == reference["sha256"]
    assert replay.tick == live.tick
    assert replay.counters() == live.counters()
    for core in (0, 1):
        assert replay.issued(core).tolist() == reference["issued"][core]


def test_recordings_of_both_loops_are_equal(build):
    from sim.engine.amaranth import run_on_amaranth

    async def record(engine):
        await engine_software.busy(engine, batches=10)
        return engine.recording()

    native = NativeEngine(build, record=True).execute(record)
    python = run_on_amaranth(design(), record, record=True)
    assert np.array_equal(native.operations, python.operations)
    assert (native.frames, native.end) == (python.frames, python.end)


def test_a_replay_needs_a_fresh_engine_and_a_recording(build):
    engine = NativeEngine(build, record=True)
    engine.execute(engine_software.outcome)
    with pytest.raises(ValueError, match="fresh engine"):
        engine.replay(engine.recording())
    with pytest.raises(ValueError, match="record=True"):
        NativeEngine(build).recording()


def test_issued_is_aligned_with_the_issue_events(build):
    engine = NativeEngine(build)
    engine.execute(engine_software.outcome)
    log = EventLog(engine.manifest, engine.log())
    for core in (0, 1):
        events = log.select(f"core{core}.issue_event")
        assert len(events) == len(engine.issued(core)) > 0
        assert log.log["tick"].tolist() == sorted(log.log["tick"].tolist())
    keys = list(zip(log.log["tick"].tolist(), log.log["probe"].tolist(), strict=True))
    assert keys == sorted(keys)
    assert next(iter(log)).path == engine.manifest.probes[int(log.log["probe"][0])].path


def one_core(engine):
    context = engine.new_context()
    engine.switch(0, context)
    return context


def test_data_come_back_as_int_or_bytes(build):
    engine = NativeEngine(build)
    context = one_core(engine)
    engine.push(context, K.STORE.value, address=8, size=8, data=0x0123456789ABCDEF)
    first = engine.push(context, K.LOAD.value, address=8, size=4, notify=True)
    wake = engine.run_now()[0]
    assert (wake.kind, wake.value, wake.data) == (WakeKind.COMPLETION, first, 0x89ABCDEF)
    engine.push(context, K.LOAD.value, address=8, size=16, notify=True)
    assert engine.run_now()[0].data == bytes.fromhex("efcdab8967452301") + bytes(8)


def test_empty_is_told_once(build):
    engine = NativeEngine(build)
    context = one_core(engine)
    assert [w.kind for w in engine.run_now()] == [WakeKind.EMPTY]
    assert [w.kind for w in engine.run_now()] == [WakeKind.IDLE]
    assert [w.kind for w in engine.run_now()] == [WakeKind.IDLE]
    engine.push(context, K.EXECUTE.value, cycles=5)
    assert [w.kind for w in engine.run_now()] == [WakeKind.EMPTY]


def experiment(engine, *operations, core=0):
    """Push operations, given as the arguments of ``push``: what the engine tells, at which cycle, until it is idle."""
    context = engine.new_context()
    engine.switch(core, context)
    handles = [engine.push(context, kind.value, *more, **named) for kind, *more, named in operations]

    async def run():
        told = []
        while True:
            for wake in await engine.run():
                if wake.kind == WakeKind.IDLE:
                    return told
                if wake.kind == WakeKind.COMPLETION:
                    cycle = engine.tick // engine.manifest.domains[0].period
                    told.append((handles.index(wake.value), wake.data, cycle))

    return run()


def on_both(build, *operations):
    """The same on the native engine and on the reference, which must tell the same."""
    from sim.engine.amaranth import run_on_amaranth

    outcomes = []
    for run in (NativeEngine(build).execute, lambda make: run_on_amaranth(design(), make)):
        try:
            outcomes.append(run(lambda engine: experiment(engine, *operations)))
        except (CoherenceError, PageFaultError) as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]
    return outcomes[0]


def store(address, data):
    return K.STORE, address, len(data), data, {}


def load(address, size, notify=Notify.NO, **more):
    return K.LOAD, address, size, {"notify": notify, **more}


def test_a_value_is_told_at_issue_the_data_come_later(build):
    late, early = (
        on_both(build, store(64, b"12345678"), load(64, 16, notify), load(0, 8, Notify.COMPLETE))
        for notify in (Notify.COMPLETE, Notify.ISSUE)
    )
    assert [row[:2] for row in early] == [row[:2] for row in late] == [(1, b"12345678" + bytes(8)), (2, 0)]
    assert early[0][2] < 20 < late[0][2]
    assert early[1] == late[1]


def test_a_load_is_bound_to_the_youngest_store_to_each_byte(build):
    told = on_both(
        build,
        store(64, b"aaaaaaaa"),
        store(66, b"bbbb"),
        store(68, b"c"),
        load(64, 8, Notify.ISSUE),
        load(62, 2, Notify.ISSUE),
    )
    assert told[0][1] == int.from_bytes(b"aabbcbaa", "little")
    assert told[1][1] == 0


@pytest.mark.parametrize(
    ("function", "operand", "compare", "result"),
    [
        (AtomicFunction.EXCHANGE, 7, 0, 7),
        (AtomicFunction.ADD, 0xF001, 0, 0x1001),
        (AtomicFunction.AND, 0x0FF0, 0, 0x0000),
        (AtomicFunction.OR, 0x0FF0, 0, 0x2FF0),
        (AtomicFunction.XOR, 0x3000, 0, 0x1000),
        (AtomicFunction.COMPARE_EXCHANGE, 5, 0x2000, 5),
        (AtomicFunction.COMPARE_EXCHANGE, 5, 0x2001, 0x2000),
    ],
)
def test_atomics(build, function, operand, compare, result):
    data = operand.to_bytes(8, "little") + compare.to_bytes(8, "little")
    told = on_both(
        build,
        store(64, b"\xff\xff\x00\x20\xff\xff\xff\xff"),
        (K.ATOMIC, 66, 2, data, {"argument": function.value, "notify": Notify.COMPLETE}),
        load(64, 8, Notify.ISSUE),
    )
    assert [data for _, data, _ in told] == [0x2000, 0xFFFF_FFFF_0000_FFFF | result << 16]


def test_polls_end_by_a_change_or_by_the_clock(build):
    poll = (K.POLL, 64 * DEVICE_LINE, 8, 0, 2000, {"argument": 50, "notify": Notify.COMPLETE})
    in_vain = (K.POLL, 0, 4, 0, 200, {"argument": 50, "notify": Notify.COMPLETE})
    (_, zero, first), (_, number, second) = on_both(build, in_vain, poll)
    assert (zero, number) == (0, 1)
    assert 200 <= first < 300 and 500 <= second < 650


def planted(line, *rest):
    """Operations behind a store to ``line`` that is long visible."""
    return (store(64 * line, b"abcdefgh"), (K.EXECUTE, {"cycles": 200}), *rest)


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        (
            planted(Planted.WRONG_READ, load(64 * Planted.WRONG_READ, 4)),
            r"LOAD of 4 bytes at 0x3200 \(handle 2\): got 60626364, expected 61626364",
        ),
        (
            planted(Planted.LOST_STORE, load(64 * Planted.LOST_STORE + 6, 2)),
            r"LOAD of 2 bytes at 0x3246 \(handle 2\): got 0000, expected 6768",
        ),
        (
            (
                store(64 * Planted.WRONG_FORWARD, b"abcdefgh"),
                store(64 * Planted.WRONG_FORWARD, b"wxyz"),
                load(64 * Planted.WRONG_FORWARD, 8),
            ),
            r"LOAD of 8 bytes at 0x3280 \(handle 2\): got 7778797a00000000, expected 7778797a65666768",
        ),
        (
            planted(Planted.UNTOLD_STORE, load(64 * Planted.UNTOLD_STORE + 3, 16)),
            r"LOAD of 16 bytes at 0x32c3 \(handle 2\): read before an earlier store to it was visible",
        ),
        (planted(Planted.TOLD_TWICE), r"core 0, tick \d+: a store that had not issued became visible"),
        (
            ((K.ATOMIC, 64 * Planted.UNREAD_ATOMIC, 8, bytes(16), {}),),
            r"ATOMIC of 8 bytes at 0x3340 \(handle 0\): got 0000000000000000, expected no answer: it was not read",
        ),
        (
            planted(Planted.TIRED_POLL, (K.POLL, 64 * Planted.TIRED_POLL, 1, 0, 10000, {"argument": 10})),
            r"POLL of 1 bytes at 0x3380 \(handle 2\): got 00, expected 61",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_planted_incoherence_is_caught(build, operations, message):
    kind, told = on_both(build, *operations)
    assert kind is CoherenceError
    assert re.search(message, told), told
    assert "\n" not in told


def test_a_replay_checks_too(build):
    engine = NativeEngine(build, record=True)
    with pytest.raises(CoherenceError) as live:
        engine.execute(lambda e: experiment(e, *planted(Planted.WRONG_READ, load(64 * Planted.WRONG_READ, 4))))
    recording = engine.recording()  # it ends before the step that failed
    with pytest.raises(CoherenceError) as again:
        NativeEngine(build).replay(dataclasses.replace(recording, end=recording.end + 100))
    assert str(again.value) == str(live.value)


def test_a_page_fault_ends_the_run(build):
    kind, told = on_both(build, load(0, 4), store(0x8000_0000_0040, b"abcd"))
    assert kind is PageFaultError
    assert re.fullmatch(r"core 0, tick \d+: STORE of 4 bytes at 0x800000000040 \(handle 1\): page not present", told)


def test_a_machine_need_not_tell_of_devices(reference):
    from sim.engine.amaranth import run_on_amaranth

    assert Toplevel(design("PlainMachine").make()).manifest.device_domain == -1
    outcome = run_on_amaranth(design("PlainMachine"), lambda e: engine_software.outcome(e, batches=10))
    assert outcome["events"] > 0


@pytest.mark.parametrize("jump", Jump)
def test_a_poll_cut_short_goes_on_and_is_told_once(build, jump):
    engine = NativeEngine(build, jump=jump)
    context = one_core(engine)
    poll = engine.push(context, K.POLL.value, 0, 4, 0, 1000, notify=Notify.COMPLETE, argument=30)
    engine.push_frame(bytes(64), 2, 100)
    assert engine.run_now()[0].kind == WakeKind.INTERRUPT
    handler = engine.new_context()
    engine.push(handler, K.EXECUTE.value, cycles=400)
    iret = engine.push(handler, K.IRET.value)
    engine.switch(0, handler)
    assert engine.run_now()[0].kind == WakeKind.EMPTY
    engine.switch(0, context)
    wake = engine.run_now()[0]
    assert (wake.kind, wake.value, wake.data) == (WakeKind.COMPLETION, poll, 0)
    assert engine.issued(0).tolist() == [poll, iret - 1, iret, poll]
    # The last look may begin up to a period late, and takes its time.
    assert 1400 <= engine.tick // engine.manifest.domains[0].period < 1520


def test_a_squashed_load_is_told_once(build):
    engine = NativeEngine(build)
    context = one_core(engine)
    engine.push(context, K.EXECUTE.value, cycles=1000)
    loads = [engine.push(context, K.LOAD.value, 8 * n, 8, notify=Notify.ISSUE) for n in range(2)]
    engine.push_frame(bytes(64), 2, 100)
    assert engine.run_now()[0].kind == WakeKind.INTERRUPT
    engine.switch(0, context)
    assert [wake.value for _ in loads for wake in engine.run_now()] == loads
    assert [wake.kind for wake in engine.run_now()] == [WakeKind.EMPTY]


def test_halt_completes_at_the_interrupt_and_the_context_resumes(build):
    engine = NativeEngine(build)
    context = one_core(engine)
    halt = engine.push(context, K.HALT.value, notify=True)
    engine.push_frame(bytes(64), 2, 100)
    wakes = engine.run_now()
    assert [(w.kind, w.context) for w in wakes] == [
        (WakeKind.COMPLETION, context),
        (WakeKind.INTERRUPT, context),
    ]
    assert (wakes[0].value, wakes[1].value) == (halt, 2)
    engine.switch(0, context)
    assert engine.run_now()[0].kind == WakeKind.EMPTY


def test_an_execute_cut_short_goes_on_for_the_rest(build):
    engine = NativeEngine(build)
    context = one_core(engine)
    work = engine.push(context, K.EXECUTE.value, cycles=1000, uops=4000)
    fence = engine.push(context, K.FENCE.value, notify=True)
    engine.push_frame(bytes(64), 2, 100)
    assert engine.run_now()[0].kind == WakeKind.INTERRUPT
    handler = engine.new_context()
    iret = engine.push(handler, K.IRET.value)
    engine.switch(0, handler)
    assert engine.run_now()[0].kind == WakeKind.EMPTY
    engine.switch(0, context)
    wake = engine.run_now()[0]
    assert (wake.kind, wake.value) == (WakeKind.COMPLETION, fence)
    # The IRET takes a few cycles; the EXECUTE is done after its 1000 and those.
    assert engine.issued(0).tolist() == [work, iret, work, fence]
    period = engine.manifest.domains[0].period
    assert 1000 <= engine.tick // period < 1020


def test_numbers_are_not_reused_while_in_flight(build):
    """A load outlasts 256 operations of one cycle: the next holder of its number waits."""
    engine = NativeEngine(build)
    context = one_core(engine)
    for round_ in range(3):
        engine.push(context, K.STORE.value, address=8 * round_, size=8, data=round_)
        engine.push(context, K.LOAD.value, address=8 * round_, size=8, notify=True)
        for _ in range(300):
            engine.push(context, K.CLI.value)
    values = []
    while len(values) < 3:
        values += [w.data for w in engine.run_now() if w.kind == WakeKind.COMPLETION]
    assert values == [0, 1, 2]


def test_limit_is_where_it_was_asked_for(build):
    engine = NativeEngine(build)
    context = one_core(engine)
    engine.push(context, K.EXECUTE.value, cycles=10_000)
    engine.push(context, K.FENCE.value, notify=True)
    wakes = engine.run_now(1234)
    assert [w.kind for w in wakes] == [WakeKind.LIMIT]
    assert engine.tick == 1234


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": 1 + max(k.value for k in K)}, f"no operation of kind {1 + max(k.value for k in K)}"),
        ({"kind": K.LOAD.value, "size": 0}, "size must be between 1 and 64 bytes, not 0"),
        ({"kind": K.LOAD.value, "address": 60, "size": 8}, "8 bytes at address 60 cross a line"),
        ({"kind": K.LOAD.value, "address": 1 << 48, "size": 8}, "an address has 48 bits"),
        ({"kind": K.INVLPG.value, "address": 1 << 48}, "an address has 48 bits"),
        ({"kind": K.MMIO_READ.value, "size": 2}, "4 or 8 bytes, not 2"),
        ({"kind": K.EXECUTE.value}, "cycles must be between 1 and 4294967295, not 0"),
        ({"kind": K.EXECUTE.value, "cycles": 1, "uops": 70000}, "uops must be between 0 and 65535"),
        ({"kind": K.EXECUTE.value, "cycles": 1, "after": 0}, "after must be the handle"),
        ({"kind": K.STORE.value, "size": 4, "data": b"abc"}, "data has 3 bytes, size says 4"),
        ({"kind": K.STORE.value, "size": 1, "data": 256}, "data does not fit 1 bytes"),
        ({"kind": K.STORE.value, "size": 16, "data": 1}, "more than 8 bytes must be bytes"),
        ({"kind": K.STORE.value, "size": 1, "data": 1, "notify": True}, "never completes"),
        ({"kind": K.LOAD.value, "size": 1, "notify": 3}, "notify must be between 0 and 2, not 3"),
        ({"kind": K.FENCE.value, "notify": Notify.ISSUE}, "kind 6 has no value when it issues"),
        ({"kind": K.HALT.value, "argument": 70000}, "argument must be between 0 and 65535, not 70000"),
        ({"kind": K.ATOMIC.value, "size": 3, "data": bytes(16)}, "aligned, not 3 at address 0"),
        ({"kind": K.ATOMIC.value, "size": 4, "address": 2, "data": bytes(16)}, "aligned, not 4 at address 2"),
        ({"kind": K.ATOMIC.value, "size": 4, "data": bytes(16), "argument": 6}, "no atomic function 6"),
        ({"kind": K.ATOMIC.value, "size": 4, "data": 1}, "data of an ATOMIC must be 16 bytes"),
        ({"kind": K.POLL.value, "size": 9, "cycles": 1, "data": bytes(9), "argument": 1}, "up to 8 bytes, not 9"),
        ({"kind": K.POLL.value, "size": 8, "data": 0, "argument": 1}, "cycles must be between 1 and 4294967295, not 0"),
        ({"kind": K.POLL.value, "size": 8, "cycles": 1, "data": 0}, "looks again after at least 1 cycle, not 0"),
    ],
)
def test_bad_operations_are_refused_alike(build, arguments, message):
    from sim.engine.loop import LoopEngine

    for engine in (NativeEngine(build), LoopEngine(build.manifest, backend=None)):
        with pytest.raises(ValueError, match=message):
            engine.push(engine.new_context(), **arguments)


def test_bad_contexts_are_refused_alike(build):
    from sim.engine.loop import LoopEngine

    for engine in (NativeEngine(build), LoopEngine(build.manifest, backend=None)):
        with pytest.raises(ValueError, match="there is no context 3"):
            engine.push(3, K.HALT.value)
        context = one_core(engine)
        with pytest.raises(ValueError, match="context 0 is on core 0"):
            engine.switch(1, context)
        with pytest.raises(ValueError, match="core must be between 0 and 1, not 2"):
            engine.switch(2, context)
        engine.push(context, K.HALT.value)
        with pytest.raises(ValueError, match="still has 1 operations"):
            engine.free_context(context)
        with pytest.raises(ValueError, match="1 to 65535 bytes, not 0"):
            engine.push_frame(b"", 1, 0)


def test_waves_show_what_the_log_says(reference, tmp_path):
    pywellen = pytest.importorskip("pywellen")
    path = tmp_path / "waves.fst"
    engine = NativeEngine(build_native(design(), waves=True), waves=path)
    same(engine.execute(engine_software.outcome), reference)
    engine.close()

    waves = pywellen.Waveform(str(path))
    variables = {variable.full_name: variable for variable in waves.all_vars()}
    picoseconds = 10**12 // engine.manifest.ticks_per_second

    def changes(name):
        """(picosecond, value) of a port."""
        return [(at, int(value)) for at, value in variables[f"nicscope.{name}"].tv]

    # The clock of the card rises at executed edges only, each on the schedule.
    rises = [at for at, value in changes("clk_nic") if value == 1]
    assert len(rises) == engine.executed()["nic"]
    assert all(at % (engine.manifest.domains[-1].period * picoseconds) == 0 for at in rises)

    # The issue signal is high just before each edge at which the log has the event.
    issue = changes("core0_issue")
    for tick in EventLog(engine.manifest, engine.log()).select("core0.issue_event")["tick"].tolist():
        assert [value for at, value in issue if at < tick * picoseconds][-1] == 1
