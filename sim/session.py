"""One run on an engine: boot the software, send the frames, until every packet is accounted for."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np

from hw.config import ConfigError, MachineConfig
from sim.account import Account
from sim.check.jedec import check_dram
from sim.engine.engine import Engine
from sim.observe.log import EventLog
from sim.observe.samples import Samples
from sim.observe.stages import Stage, stage_of
from sim.result import FUNCTION_MASK, Observation
from sim.wire.conversation import Conversation, Offered, Replay
from sim.wire.frames import GENERATOR_PORT, HOST_IP, HOST_MAC
from sw.core import Note, Record
from sw.costs import load_tables
from sw.linux.cpuidle import Cpuidle
from sw.options import Options
from sw.paths import path_named
from sw.port import WakeKind
from sw.system import System

__all__ = ["PORTS", "Software", "observe"]

#: UDP ports a receiving program listens on: the generator's, DNS and memcached.
PORTS = (GENERATOR_PORT, 53, 11211)

#: How far the machine runs before the host looks whether every packet is accounted for, in ns.
STEP_NS = 20_000

#: What the options are in a memory too small for what they are by default.
SMALL_MIB = 8
SMALL = {"rcvbuf": 16_384, "tcp_rcvbuf": 32_768, "netdev_budget": 64}


@dataclass(frozen=True)
class Software:
    """Which software runs.

    Attributes:
        path: name of the path.
        application: what receives; None: the path's first.
        options: of ``sw.options.Options``, where they differ from what a run has by default.
        mitigations: names in the cost tables.
        background: a program computes whenever there is nothing to receive.
        idle: how an idle core sleeps, one of ``sw.linux.cpuidle.IDLE``.
    """

    path: str = "napi"
    application: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    mitigations: tuple[str, ...] = ()
    background: bool = True
    idle: str = "poll"

    def system(
        self,
        engine: Engine,
        machine: MachineConfig,
        on_note: Callable[[Note], None],
        neighbours: Mapping[bytes, bytes] = MappingProxyType({}),
    ) -> System:
        """Assemble it; ``neighbours``: see ``sw.options.Options``.

        Raises:
            ConfigError: when it cannot be set up on this machine.
        """
        try:
            path = path_named(self.path, self.application)
            small = SMALL | {"ring_size": path.least_ring} if machine.dram.size_mib < SMALL_MIB else {}
            options = Options(
                **{
                    "mac": HOST_MAC,
                    "addresses": (HOST_IP.packed,),
                    "neighbours": neighbours,
                    "ports": PORTS,
                    "llc_ways": machine.llc.ways,
                    "tsc_khz": machine.clocks.khz("core"),
                    "compute": (0,) if self.background else (),
                    "cpuidle": Cpuidle(idle=self.idle, exit_ns=machine.core.sleep_exit_ns),
                    "application": self.application,
                    **path.defaults,
                    **small,
                    **self.options,
                }
            )
            if options.iommu != "off" and not machine.iommu.enabled:
                raise ConfigError(
                    f"--iommu {options.iommu} needs a machine with an IOMMU, which {machine.name} is not; "
                    "--set iommu.enabled=true gives it one"
                )
            dram = machine.dram.size_mib << 20
            return System(
                engine, machine.core.count, dram, _costs(path.costs, self.mitigations), self.path, options, on_note
            )
        except ConfigError:
            raise
        except (ValueError, MemoryError) as error:
            raise ConfigError(str(error)) from None


#: What runs unless asked otherwise.
NAPI = Software()


async def observe(
    engine: Engine,
    machine: MachineConfig,
    frames: Sequence[tuple[Fraction, bytes]],
    software: Software = NAPI,
    advance: Callable[[int], None] = lambda done: None,
    sample_ns: float | None = None,
) -> Observation:
    """Boot the software, send the frames, run until every packet is accounted for.

    Arguments:
        frames: start in ns after the system is ready, and bytes with FCS, in order of packet id.
        software: path, application and their options.
        advance: called with the number of packets accounted for so far.
        sample_ns: read the counters so often, from when the software is up; None: not at all.

    Raises:
        ConfigError: when the software cannot be set up on this machine.
        JedecError: when a DRAM command broke a rule.
    """
    begin = time.monotonic()
    engine.keep_transmitted()
    account = Account(engine)
    ticks_per_ns = Fraction(machine.ticks_per_second, 10**9)
    offered: Offered
    if path_named(software.path).needs_peer:
        offered = Conversation(engine, frames, ticks_per_ns)
    else:
        offered = Replay(engine, frames, ticks_per_ns, machine.period_ticks("nic"))
    system = software.system(engine, machine, account.note, offered.neighbours)
    await system.boot()
    counters_at_ready = engine.counters()

    ready = engine.tick
    offered.start()
    step, patience = int(STEP_NS * ticks_per_ns), int(offered.patience_ns * ticks_per_ns)
    done, changed, until = 0, ready, ready
    samples = None if sample_ns is None else Samples(sample_ns)
    sampled = ready
    if samples is not None:
        samples.take(ready, counters_at_ready)
    while (not offered.over or done < len(offered.frames) or not account.all_left) and until - max(
        changed, offered.last_tick
    ) < patience:
        until += step
        ended: WakeKind | None = WakeKind.LIMIT
        if samples is not None and sample_ns is not None:
            # Stops on the way do not decide when the run ends.
            interval = int(sample_ns * ticks_per_ns)
            while ended is WakeKind.LIMIT and sampled + interval < until:
                sampled += interval
                ended = await system.run(sampled)
                samples.take(engine.tick, engine.counters())
        if ended is WakeKind.LIMIT:
            ended = await system.run(until)
        account.look()
        if account.settled != done:
            done, changed = account.settled, until
            advance(done)
        if ended is not WakeKind.LIMIT:
            break
    end_tick = engine.tick
    if samples is not None:
        samples.take(end_tick, engine.counters())
    engine.close()

    account.look()
    written, left = account.written, account.left
    log = engine.log()
    check_dram(machine.dram, EventLog(engine.manifest, log))
    functions, stages, tags = _tags(system.record)
    return Observation(
        manifest=engine.manifest,
        log=log,
        issued=[engine.issued(core) for core in range(machine.core.count)],
        issued_cycles=[engine.issued_cycles(core) for core in range(machine.core.count)],
        tags=tags,
        functions=functions,
        stages=stages,
        delivered={written[packet]: handle for packet, handle in account.delivered.items()},
        transmitted={written[packet]: left[frame] for packet, frame in account.sent.items() if frame in left},
        consumed={written[packet] for packet in account.consumed},
        offered=offered.frames,
        peer={**offered.summary(), "streams": account.streams} if account.streams else offered.summary(),
        sent=engine.transmitted(),
        dropped={
            **account.dropped_by_card,
            **{written[packet]: reason for packet, reason in account.dropped.items()},
        },
        polls=account.polls,
        counters=engine.counters(),
        counters_at_ready=counters_at_ready,
        samples=samples,
        cycles=engine.cycles(),
        end_tick=end_tick,
        log_sha256=engine.log_sha256(),
        wall_s=time.monotonic() - begin,
        blocked=system.kernel.iommu.log if system.kernel.iommu is not None else (),
    )


_costs = functools.cache(load_tables)


def _tags(record: Record) -> tuple[list[str], list[Stage], np.ndarray]:
    """Names of the functions that ran, sorted, their stages, and each operation's tag with the function's place there.

    The record numbers functions in the order in which a process came to know them; a result must not depend on that.
    """
    tags = np.frombuffer(record.tags, dtype=np.uint16)
    used = sorted(np.unique(tags & FUNCTION_MASK).tolist(), key=lambda number: record.function_names[number])
    place = np.zeros(FUNCTION_MASK + 1, dtype=np.uint16)
    place[used] = np.arange(len(used))
    names = [record.function_names[number] for number in used]
    stages = [
        stage_of(record.function_modules[number], name) if number else Stage.WAITING
        for number, name in zip(used, names, strict=True)
    ]
    return names, stages, tags & ~np.uint16(FUNCTION_MASK) | place[tags & FUNCTION_MASK]
