"""The IOMMU's registers as data: a subset of VT-d's, at the offsets and bits of the specification.

Sections are those of the Intel Virtualization Technology for Directed I/O Architecture Specification, revision 3.0
(June 2018); the kernel's names are in drivers/iommu/intel/iommu.h. Importing this module elaborates nothing.

    DMAR.FSTS.offset           # byte offset from IOMMU_BASE
    DMAR.GCMD.TE.mask          # 1 << 31
    DMAR.IOTLB.IIRG.put(1)     # global
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hw.nic.registers import Access, Field

__all__ = [
    "DMAR",
    "DMAR_REGISTERS",
    "FAULT_RECORDS",
    "FAULT_RECORD_BYTES",
    "FaultReason",
    "Granularity",
    "Register",
    "capabilities",
]

#: Fault recording registers, of 16 bytes each (section 10.4.14).
FAULT_RECORDS = 4
FAULT_RECORD_BYTES = 16


class FaultReason:
    """Why a request was blocked (section 7.2.3 and appendix A); texts: :mod:`sw.linux.iommu.dmar`."""

    ROOT_NOT_PRESENT = 0x1
    CONTEXT_NOT_PRESENT = 0x2
    CONTEXT_INVALID = 0x3
    BEYOND_MGAW = 0x4
    WRITE = 0x5
    READ = 0x6
    PAGE_TABLE_POINTER = 0x7
    ROOT_TABLE_POINTER = 0x8
    CONTEXT_TABLE_POINTER = 0x9
    ROOT_RESERVED = 0xA
    CONTEXT_RESERVED = 0xB
    ENTRY_RESERVED = 0xC


class Granularity:
    """What an invalidation drops: the fields IIRG and IAIG, CIRG and CAIG."""

    GLOBAL = 1
    DOMAIN = 2
    PAGE = 3  #: of the IOTLB; a device of the context cache


@dataclass(frozen=True)
class Register:
    """A register of ``width`` bits; one of 64 is also reached by halves."""

    offset: int  #: bytes from the start of the window
    section: str  #: of the specification
    doc: str
    width: int = 32
    access: Access = Access.RW
    fields: tuple[Field, ...] = ()
    name: str = field(default="", init=False)

    def __set_name__(self, owner: type, name: str) -> None:
        object.__setattr__(self, "name", name)

    def __getattr__(self, name: str) -> Field:
        for each in self.fields:
            if each.name == name:
                return each
        raise AttributeError(f"register {self.name} has no field {name}")


class DMAR:
    """Registers of the DMA remapping unit."""

    VER = Register(0x00, "10.4.1", "version", access=Access.RO, fields=(Field("MIN", 0, 4), Field("MAX", 4, 4)))
    CAP = Register(
        0x08,
        "10.4.2",
        "capabilities",
        64,
        Access.RO,
        (
            Field("ND", 0, 3, doc="bits of a domain's number: 4 + 2 * ND"),
            Field("SAGAW", 8, 5, doc="table depths: bit 2 is 4 levels"),
            Field("MGAW", 16, 6, doc="address bits that are translated, less 1"),
            Field("FRO", 24, 10, doc="offset of the fault records, in 16 bytes"),
            Field("SLLPS", 34, 4, doc="large pages: bit 0 is 2 MiB"),
            Field("PSI", 39, doc="single pages can be invalidated"),
            Field("NFR", 40, 8, doc="fault records, less 1"),
            Field("MAMV", 48, 6, doc="most pages in one invalidation, a power of two"),
            Field("DWD", 54, doc="writes under way can be drained"),
            Field("DRD", 55, doc="reads likewise"),
        ),
    )
    ECAP = Register(
        0x10,
        "10.4.3",
        "extended capabilities",
        64,
        Access.RO,
        (
            Field("C", 0, doc="walks are coherent with the caches"),
            Field("PT", 6, doc="a device can be passed through"),
            Field("IRO", 8, 10, doc="offset of IVA, in 16 bytes"),
        ),
    )
    GCMD = Register(
        0x18,
        "10.4.4",
        "global command",
        fields=(Field("SRTP", 30, doc="take RTADDR over"), Field("TE", 31, doc="translate")),
    )
    GSTS = Register(
        0x1C,
        "10.4.5",
        "global status",
        access=Access.RO,
        fields=(Field("RTPS", 30, doc="RTADDR has been taken over"), Field("TES", 31, doc="translation is on")),
    )
    RTADDR = Register(0x20, "10.4.6", "address of the root table", 64, fields=(Field("RTA", 12, 52),))
    CCMD = Register(
        0x28,
        "10.4.7",
        "context cache: any command empties it",
        64,
        fields=(
            Field("DID", 0, 16),
            Field("SID", 16, 16),
            Field("CAIG", 59, 2, Access.RO),
            Field("CIRG", 61, 2),
            Field("ICC", 63, doc="invalidate; clears itself when done"),
        ),
    )
    FSTS = Register(
        0x34,
        "10.4.9",
        "fault status",
        fields=(
            Field("PFO", 0, access=Access.W1C, doc="a fault found no record free"),
            Field("PPF", 1, access=Access.RO, doc="a record holds a fault"),
            Field("FRI", 8, 8, Access.RO, "the first such record"),
        ),
    )
    FECTL = Register(
        0x38,
        "10.4.10",
        "fault event control",
        fields=(
            Field("IP", 30, access=Access.RO, doc="an interrupt waits"),
            Field("IM", 31, doc="mask; set after reset"),
        ),
    )
    FEDATA = Register(0x3C, "10.4.11", "data of the fault event's message", fields=(Field("IMD", 0, 16),))
    FEADDR = Register(0x40, "10.4.12", "address of the fault event's message", fields=(Field("MA", 2, 30),))
    FEUADDR = Register(0x44, "10.4.13", "upper half of that address: storage")
    IVA = Register(
        0x200,
        "10.4.8.2",
        "invalidate address",
        64,
        fields=(
            Field("AM", 0, 6, doc="0: one page; what exceeds CAP.MAMV drops the domain"),
            Field("IH", 6, doc="tables above the page's own entry are unchanged"),
            Field("ADDR", 12, 52),
        ),
    )
    IOTLB = Register(
        0x208,
        "10.4.8.1",
        "IOTLB invalidate",
        64,
        fields=(
            Field("DID", 32, 16),
            Field("DW", 48, doc="drain writes: always done"),
            Field("DR", 49, doc="drain reads: always done"),
            Field("IAIG", 57, 2, Access.RO, "what was dropped"),
            Field("IIRG", 60, 2, doc="what is to be dropped"),
            Field("IVT", 63, doc="invalidate; clears itself when done"),
        ),
    )
    FRCD_LOW = Register(0x220, "10.4.14", "first fault record", 64, Access.RO, (Field("FI", 12, 52),))
    FRCD_HIGH = Register(
        0x228,
        "10.4.14",
        "its upper half",
        64,
        fields=(
            Field("SID", 0, 16, Access.RO, "who asked"),
            Field("FR", 32, 8, Access.RO, "why it was blocked"),
            Field("T", 62, access=Access.RO, doc="a read"),
            Field("F", 63, access=Access.W1C, doc="the record holds a fault"),
        ),
    )


#: All of them, by name.
DMAR_REGISTERS: Mapping[str, Register] = {
    name: value for name, value in vars(DMAR).items() if isinstance(value, Register)
}


def capabilities(address_width: int) -> tuple[int, int]:
    """Values of CAP and ECAP of a unit that translates so many address bits."""
    cap = DMAR.CAP
    values = {
        "ND": 6,
        "SAGAW": 1 << 2,
        "MGAW": address_width - 1,
        "FRO": DMAR.FRCD_LOW.offset // 16,
        "SLLPS": 1,
        "PSI": 1,
        "NFR": FAULT_RECORDS - 1,
        "MAMV": 0,
        "DWD": 1,
        "DRD": 1,
    }
    ecap = {"C": 1, "PT": 1, "IRO": DMAR.IVA.offset // 16}
    return (
        sum(getattr(cap, name).put(value) for name, value in values.items()),
        sum(getattr(DMAR.ECAP, name).put(value) for name, value in ecap.items()),
    )
