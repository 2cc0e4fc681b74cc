"""Probes and counters: what a component tells the observers, without plumbing and without cost in silicon.

A component keeps its probes and counters as attributes. :func:`hw.lib.observe.collect` walks the
component tree and gathers them; a simulation build turns them into outputs, and in a synthesis build
nobody reads them, so they vanish.
"""

from collections.abc import Mapping

from amaranth.hdl import Module, Mux, Shape, ShapeCastable, Signal, Value, ValueLike

__all__ = ["Counter", "Gauge", "Probe"]

#: A record of the event log has room for this many fields of at most 64 bits.
MAX_FIELDS = 4


class Probe:
    """An event a component can report: it happens at every edge of ``domain`` at which ``valid`` is high.

    Arguments:
        domain: clock domain whose edge the event belongs to.
        doc: one line that says what happened.
        fields: name and shape of each value that goes with the event, at most four of at most 64 bits.

    Raises:
        ValueError: with more than four fields, or a field wider than 64 bits.
    """

    def __init__(self, domain: str, doc: str, **fields: int | Shape | ShapeCastable):
        if len(fields) > MAX_FIELDS:
            raise ValueError(f"a probe has at most {MAX_FIELDS} fields, not {len(fields)}")
        self.domain = domain
        self.doc = doc
        self.valid = Signal(name="valid")
        self.fields: dict[str, Signal] = {}
        for name, shape in fields.items():
            if Shape.cast(shape).width > 64:
                raise ValueError(f"probe field {name!r} must be at most 64 bits, not {Shape.cast(shape).width}")
            self.fields[name] = Signal(Shape.cast(shape), name=name)

    def emit(self, m: Module, condition: ValueLike, **values: ValueLike) -> None:
        """Report the event whenever ``condition`` holds, with ``values`` for exactly the declared fields."""
        if values.keys() != self.fields.keys():
            raise ValueError(f"probe takes fields {sorted(self.fields)}, not {sorted(values)}")
        m.d.comb += self.valid.eq(condition)
        for name, value in values.items():
            m.d.comb += self.fields[name].eq(Value.cast(value))


class Counter:
    """Counts edges of ``domain`` at which a condition holds, in 48 bits.

    Arguments:
        domain: clock domain it counts in.
        doc: one line that says what is counted.
    """

    WIDTH = 48

    def __init__(self, domain: str, doc: str):
        self.domain = domain
        self.doc = doc
        self.value = Signal(self.WIDTH, name="count")

    def increment(self, m: Module, condition: ValueLike, by: ValueLike = 1) -> None:
        """Add ``by`` at every edge at which ``condition`` holds. Called once per counter."""
        with m.If(condition):
            m.d[self.domain] += self.value.eq(self.value + by)


class Gauge(Counter):
    """Counts how many there are of something: up when one comes, down when one goes. Observers read it as a counter."""

    def change(self, m: Module, up: ValueLike, down: ValueLike) -> None:
        """Add one at every edge with ``up`` alone, take one away with ``down`` alone. Called once per gauge."""
        up, down = Value.cast(up), Value.cast(down)
        with m.If(up != down):
            m.d[self.domain] += self.value.eq(Mux(up, self.value + 1, self.value - 1))


Fields = Mapping[str, Signal]
