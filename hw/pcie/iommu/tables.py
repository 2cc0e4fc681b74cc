"""Root table, context table and second-level page tables in memory, as bits; for the RTL and for the software.

Intel VT-d specification, revision 3.0, sections 9.1 (root entry), 9.3 (context entry) and 9.8 (second-level paging
entries). Importing this module elaborates nothing.
"""

from hw.nic.registers import Field

__all__ = [
    "AW_4_LEVELS",
    "CONTEXT_ENTRY_BYTES",
    "PAGE_ENTRY_BYTES",
    "REQUESTER_ID",
    "ROOT_ENTRY_BYTES",
    "TABLE_BYTES",
    "Context",
    "PageEntry",
    "Root",
    "TranslationType",
]

#: Of the card: bus 1, device 0, function 0.
REQUESTER_ID = 0x0100

TABLE_BYTES = 4096
ROOT_ENTRY_BYTES = CONTEXT_ENTRY_BYTES = 16
PAGE_ENTRY_BYTES = 8

#: AW of a context entry: 48 bits, tables of four levels.
AW_4_LEVELS = 2


class Root:
    """A root entry, one per bus: its lower 64 bits; the others are 0."""

    P = Field("P", 0, doc="present")
    CTP = Field("CTP", 12, 52, doc="number of the context table's page")


class TranslationType:
    """TT of a context entry."""

    TRANSLATE = 0  #: by second-level tables
    PASS_THROUGH = 2  #: addresses are physical


class Context:
    """A context entry, one per device and function, in a table per bus. DID and AW are bits of the upper half."""

    P = Field("P", 0, doc="present")
    FPD = Field("FPD", 1, doc="faults of the device are not recorded")
    TT = Field("TT", 2, 2, doc="a TranslationType")
    SLPTPTR = Field("SLPTPTR", 12, 52, doc="number of the top page table's page")
    AW = Field("AW", 0, 3, doc="depth of the tables")
    DID = Field("DID", 8, 16, doc="the domain: who has the same tables has the same number")


class PageEntry:
    """An entry of a second-level page table; rights hold if all entries on the way give them."""

    R = Field("R", 0, doc="may be read")
    W = Field("W", 1, doc="may be written")
    PS = Field("PS", 7, doc="in a directory: a page of 2 MiB")
    ADDR = Field("ADDR", 12, 40, doc="number of the page, or of the next table's page")
