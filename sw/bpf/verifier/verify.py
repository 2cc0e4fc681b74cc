"""The verifier: whether a program may run (``bpf_check``)."""

from collections.abc import Mapping
from dataclasses import dataclass
from errno import E2BIG, EACCES

from sw.bpf.instruction import MAX_CALL_FRAMES, STACK_BYTES, CallKind, jump_target
from sw.bpf.program import Program, Verification
from sw.bpf.verifier.errors import Refusal, VerifierError
from sw.bpf.verifier.log import Log
from sw.bpf.verifier.structure import COMPLEXITY_LIMIT_INSNS, Structure
from sw.bpf.verifier.walker import Walker

__all__ = ["Verified", "verify"]

#: Frames of compiled programs begin at multiples of this; the interpreter's take 512 bytes each whatever they use.
_FRAME_ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Verified(Verification):
    """What the verifier has found out, and what it cost; ``processed`` is the number of instructions walked."""

    states: int = 0  #: checkpoints that were kept
    peak_states: int = 0  #: of which so many at once


def verify(
    program: Program, log_level: int = 1, *, perfmon: bool = True, limit: int = COMPLEXITY_LIMIT_INSNS
) -> Verified:
    """Check a program.

    Arguments:
        log_level: 0: no log; 1: the path that is refused; 2: every path.
        perfmon: whether the loader has CAP_PERFMON: it may see addresses and stack that was never written. CAP_BPF
            and CAP_NET_ADMIN it has.
        limit: instructions that are walked at most.

    Raises:
        VerifierError: with the kernel's errno and message.
    """
    log = Log(program.instructions, log_level)
    try:
        structure = Structure(program)
        walker = Walker(structure, program.gpl_compatible, perfmon, limit, log)
        walker.walk()
        _check_stack_depth(structure, walker.depths)
    except Refusal as refusal:
        for line in refusal.lines:
            log.note(line)
        raise VerifierError(refusal.errno, refusal.lines[0], log.text()) from None
    if log_level < 2:
        log.back_to(0)
    log.note(
        f"processed {walker.processed} insns (limit {limit}) max_states_per_insn {walker.most_states} "
        f"total_states {walker.total_states} peak_states {walker.peak_states} mark_read 0"
    )
    return Verified(
        context_accesses=frozenset(walker.context_accesses),
        stack_depths=walker.depths,
        dead=_dead(structure, walker.seen),
        log=log.text(),
        processed=walker.processed,
        states=walker.total_states,
        peak_states=walker.peak_states,
    )


def _dead(structure: Structure, seen: set[int]) -> frozenset[int]:
    """Slots that no path reached, both of LD_IMM64's."""
    reached = set(seen)
    for at in seen:
        if structure.instructions[at].is_wide:
            reached.add(at + 1)
    return frozenset(range(len(structure.instructions))) - reached


def _check_stack_depth(structure: Structure, depths: Mapping[int, int]) -> None:
    """The frames of every chain of calls fit the stack together (``check_max_stack_depth``)."""
    calls: dict[int, set[int]] = {start: set() for start in structure.functions}
    for at, instruction in enumerate(structure.instructions):
        if instruction.is_call and instruction.source == CallKind.LOCAL:
            calls[structure.function_of(at)].add(jump_target(structure.instructions, at))
    _check_chain(0, 0, 1, calls, depths)


def _check_chain(function: int, below: int, frames: int, calls: dict[int, set[int]], depths: Mapping[int, int]) -> None:
    depth = below + -(-depths[function] // _FRAME_ALIGNMENT) * _FRAME_ALIGNMENT
    if depth > STACK_BYTES:
        raise Refusal(EACCES, f"combined stack size of {frames} calls is {depth}. Too large")
    if calls[function] and frames >= MAX_CALL_FRAMES:
        raise Refusal(E2BIG, f"the call stack of {frames + 1} frames is too deep !")
    for callee in sorted(calls[function]):
        _check_chain(callee, depth, frames + 1, calls, depths)
