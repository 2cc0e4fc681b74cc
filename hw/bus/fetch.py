"""Instruction fetch: between the L1 instruction cache and the L2 cache."""

from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .tilelink import LINE_ADDRESS_WIDTH

__all__ = ["FETCH_TAG_WIDTH", "FetchDone", "FetchPort", "FetchRequest"]

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
