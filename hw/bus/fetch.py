"""Instruction fetch: between the core port, the L1 instruction cache and the L2 cache."""

from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .tilelink import LINE_ADDRESS_WIDTH

__all__ = ["FETCH_TAG_WIDTH", "FetchDone", "FetchPort", "FetchRequest", "TextPort"]

#: Fetches in flight are told apart by so many bits.
FETCH_TAG_WIDTH = 3


class FetchRequest(data.Struct):
    """A line of text is wanted."""

    tag: FETCH_TAG_WIDTH  #: comes back
    line: LINE_ADDRESS_WIDTH


class FetchDone(data.Struct):
    """It is there. No data: what instructions do comes from software, here they only take up room."""

    tag: FETCH_TAG_WIDTH


class FetchPort(wiring.Signature):
    """As seen from the L1 instruction cache. Answers come in any order and cannot be refused."""

    def __init__(self):
        super().__init__(
            {
                "request": Out(stream.Signature(FetchRequest)),
                "done_valid": In(1),
                "done": In(FetchDone),
            }
        )

    def __eq__(self, other):
        return isinstance(other, FetchPort)


class TextPort(wiring.Signature):
    """As seen from the core port: the text of an EXECUTE.

    ``start`` at edge t: fetch ``lines`` > 0 lines from ``line`` on. ``busy`` from t + 1 on, until all have been looked
    up and are there; ``stall`` in those of these cycles in which the next line is missing and waited for: computing
    stands still. ``cancel``: forget the rest (an interrupt); not ``busy`` from the next edge on. No ``start`` while
    ``busy``.
    """

    def __init__(self):
        super().__init__(
            {
                "start": Out(1),
                "line": Out(LINE_ADDRESS_WIDTH),
                "lines": Out(16),
                "cancel": Out(1),
                "busy": In(1),
                "stall": In(1),
            }
        )

    def __eq__(self, other):
        return isinstance(other, TextPort)
