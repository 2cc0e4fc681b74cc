"""A choice between requesters that stays until what was chosen has gone."""

from amaranth.hdl import Module, Mux, Signal

from hw.lib.round_robin import round_robin

__all__ = ["steady_choice"]


def steady_choice(m: Module, requests: Signal, gone, name: str) -> tuple[Signal, Signal]:
    """Which of ``requests`` is offered, in turn, and whether remembering it changes something at the next edge.

    What is offered stays until ``gone`` is high in the same cycle. In domain ``uncore``.
    """
    last, held = Signal(range(max(2, len(requests))), name=f"{name}_last"), Signal(name=f"{name}_held")
    choice, keeps = Signal.like(last, name=f"{name}_choice"), Signal(name=f"{name}_keeps")
    changes = Signal(name=f"{name}_changes")
    with m.If(requests.any()):
        m.d.comb += [choice.eq(Mux(held, last, round_robin(m, list(requests), last))), keeps.eq(~gone)]
        m.d.uncore += last.eq(choice)
    m.d.uncore += held.eq(keeps)
    m.d.comb += changes.eq((held != keeps) | (requests.any() & (last != choice)))
    return choice, changes
