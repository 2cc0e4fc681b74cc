"""Bringing the unit up, and what it reports (drivers/iommu/intel/{iommu,dmar}.c)."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from hw.memory_map import IOMMU_BASE, MSI_BASE
from hw.pcie.iommu.registers import DMAR, FAULT_RECORD_BYTES, FAULT_RECORDS, Granularity, Register
from hw.pcie.iommu.tables import (
    AW_4_LEVELS,
    CONTEXT_ENTRY_BYTES,
    REQUESTER_ID,
    ROOT_ENTRY_BYTES,
    TABLE_BYTES,
    Context,
    Root,
    TranslationType,
)
from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.dma import Dma
from sw.linux.iommu.domain import DmarDomain
from sw.linux.iommu.iova import IovaDomain
from sw.linux.irq import FIRST_EXTERNAL_VECTOR
from sw.linux.mm import PAGE_SIZE, MemBlock
from sw.paging import PageSize

__all__ = ["FAULT_VECTOR", "IOMMU_MODES", "VFIO_IOVA", "DmarFault", "IntelIommu", "init_dmars"]

#: How the unit is used: not at all; passing the card through (``iommu=pt``); translating by pages of 4 KiB alone
#: (``intel_iommu=on,sp_off``), or of 2 MiB (``intel_iommu=on`` and buffers that lie in huge pages).
IOMMU_MODES = ("off", "pt", "4k", "2m")

#: Where a program's memory lies for the card: at DPDK's default ``--base-virtaddr``, with ``--iova-mode=va``.
VFIO_IOVA = 0x1_0000_0000

#: Of the interrupt that tells of faults.
FAULT_VECTOR = FIRST_EXTERNAL_VECTOR + 1

#: Messages that are printed before the rest of them is only counted (``DEFAULT_RATELIMIT_BURST``).
_RATELIMIT_BURST = 10

#: ``dma_remap_fault_reasons``.
_REASONS = (
    "Software",
    "Present bit in root entry is clear",
    "Present bit in context entry is clear",
    "Invalid context entry",
    "Access beyond MGAW",
    "PTE Write access is not set",
    "PTE Read access is not set",
    "Next page table ptr is invalid",
    "Root table address invalid",
    "Context table ptr is invalid",
    "non-zero reserved fields in RTP",
    "non-zero reserved fields in CTP",
    "non-zero reserved fields in PTE",
)


class DmarFault(NamedTuple):
    """A blocked access, as a fault record tells it."""

    address: int  #: of the page
    read: bool
    reason: int
    source: int  #: requester id

    @property
    def message(self) -> str:
        """What the kernel prints (``dmar_fault_do_one``, Linux 6.1)."""
        kind = "DMA Read" if self.read else "DMA Write"
        bus, device, number = self.source >> 8, self.source >> 3 & 31, self.source & 7
        reason = _REASONS[self.reason] if self.reason < len(_REASONS) else "Unknown"
        return (
            f"DMAR: [{kind} NO_PASID] Request device [{bus:02x}:{device:02x}.{number}] fault addr {self.address:#x} "
            f"[fault reason 0x{self.reason:02x}] {reason}"
        )


class IntelIommu(Dma):
    """One remapping unit, with one domain for the card; mappings are static.

    Arguments:
        memblock: where tables come from.
        mode: one of :data:`IOMMU_MODES`, but "off".

    Attributes:
        faults: the accesses that were blocked, as far as the unit had room to record them.
        overflows: how often it had not.
        log: what was printed.
    """

    def __init__(self, memblock: MemBlock, mode: str):
        if mode not in IOMMU_MODES[1:]:
            raise ValueError(f"an IOMMU is used as {', '.join(IOMMU_MODES)}, not {mode!r}")
        self.mode = mode
        self.page = PageSize.MIB_2 if mode == "2m" else PageSize.KIB_4
        self.memblock = memblock
        self.root_table, self.context_table = (memblock.allocate(TABLE_BYTES, TABLE_BYTES) for _ in range(2))
        self.domain = DmarDomain(memblock.allocate, number=1)
        self.iova = IovaDomain()
        self.faults: list[DmarFault] = []
        self.overflows = 0
        self.log: list[str] = []
        self._entries: list[tuple[int, int]] = []  # to be stored
        self._mapped: list[tuple[int, int, int]] = []  # physical address, size, offset to the card's address

    def print(self, message: str) -> None:
        """Print a message, unless there were too many (``__ratelimit``); a run is shorter than the interval of 5 s."""
        if len(self.log) < _RATELIMIT_BURST:
            self.log.append(message)

    # Mapping (drivers/iommu/dma-iommu.c)

    @property
    def translates(self) -> bool:
        """The card's addresses are not physical ones."""
        return self.mode != "pt"

    def map(self, physical: int, size: int) -> int:
        """Let the card reach ``size`` bytes (``dma_map_page``, ``dma_alloc_coherent``)."""
        if not self.translates:
            return physical
        start = physical & -self.page.bytes
        iova = self.iova.alloc(physical + size - start, self.page.bytes) + physical - start
        self._map(iova, physical, size)
        return iova

    def map_user(self, physical: int, size: int) -> None:
        """As a program does that drives the card: it says where."""
        if self.translates:
            self._map(VFIO_IOVA + physical, physical, size)

    @property
    def user_offset(self) -> int:
        """Of memory mapped by :meth:`map_user`."""
        return VFIO_IOVA if self.translates else 0

    def address(self, physical: int) -> int:
        """Where the card finds what was mapped."""
        for start, size, offset in self._mapped:
            if start <= physical < start + size:
                return physical + offset
        return physical

    def map_pages(self) -> None:
        """Map all memory that is left, from which pages will come."""
        if not self.translates:
            return
        first, end = -(-self.memblock.next // PAGE_SIZE) * PAGE_SIZE, self.memblock.size
        start = first & -self.page.bytes
        iova = self.iova.alloc(end - start, self.page.bytes)
        self.page_offset = iova - start
        # The tables lie in the same memory: set them aside first, so that pages of 4 KiB leave them out of reach.
        self._entries += self.domain.prepare(iova, end - start, self.page)
        first = -(-self.memblock.next // PAGE_SIZE) * PAGE_SIZE
        self._map(first + self.page_offset, first, end - first)

    def _map(self, iova: int, physical: int, size: int) -> None:
        self._mapped.append((physical, size, iova - physical))
        self._entries += self.domain.map(iova, physical, size, self.page)

    # Tables

    async def store_tables(self, cpu: Cpu) -> None:
        """Write root entry, context entry and page tables to memory (``domain_context_mapping_one``)."""
        bus, function_number = REQUESTER_ID >> 8, REQUESTER_ID & 0xFF
        root = self.context_table | Root.P.mask
        kind = TranslationType.TRANSLATE if self.translates else TranslationType.PASS_THROUGH
        low = self.domain.pgd | Context.TT.put(kind) | Context.P.mask
        high = Context.AW.put(AW_4_LEVELS) | Context.DID.put(self.domain.number)
        place = self.context_table + function_number * CONTEXT_ENTRY_BYTES
        cpu.store(self.root_table + bus * ROOT_ENTRY_BYTES, root, 8)
        cpu.store(place + 8, high, 8)
        cpu.store(place, low, 8)
        for number, (address, entry) in enumerate(self._entries):
            cpu.store(address, entry, 8)
            if number % 64 == 63:
                await cpu.drain()
        self._entries.clear()
        await cpu.fence()


async def _read(cpu: Cpu, register: Register) -> int:
    return await cpu.mmio_read(IOMMU_BASE + register.offset, register.width // 8)


def _write(cpu: Cpu, register: Register, value: int) -> None:
    cpu.mmio_write(IOMMU_BASE + register.offset, value, register.width // 8)


async def _wait(cpu: Cpu, register: Register, mask: int, value: int) -> None:
    """``IOMMU_WAIT_OP``."""
    while await _read(cpu, register) & mask != value:
        pass


@function()
async def init_dmars(cpu: Cpu, iommu: IntelIommu) -> None:
    """Tables, their root, empty caches, the fault interrupt, and translation."""
    await iommu.store_tables(cpu)
    await iommu_set_root_entry(cpu, iommu)
    await iommu_flush_context_global(cpu)
    await iommu_flush_iotlb_global(cpu)
    await dmar_set_interrupt(cpu, iommu)
    _write(cpu, DMAR.GCMD, DMAR.GCMD.TE.mask)
    await _wait(cpu, DMAR.GSTS, DMAR.GSTS.TES.mask, DMAR.GSTS.TES.mask)


@function()
async def iommu_set_root_entry(cpu: Cpu, iommu: IntelIommu) -> None:
    """Tell the unit where the root table is."""
    _write(cpu, DMAR.RTADDR, iommu.root_table)
    _write(cpu, DMAR.GCMD, DMAR.GCMD.SRTP.mask)
    await _wait(cpu, DMAR.GSTS, DMAR.GSTS.RTPS.mask, DMAR.GSTS.RTPS.mask)


@function()
async def iommu_flush_context_global(cpu: Cpu) -> None:
    """Empty the context cache (``__iommu_flush_context``)."""
    _write(cpu, DMAR.CCMD, DMAR.CCMD.ICC.mask | DMAR.CCMD.CIRG.put(Granularity.GLOBAL))
    await _wait(cpu, DMAR.CCMD, DMAR.CCMD.ICC.mask, 0)


@function()
async def iommu_flush_iotlb_global(cpu: Cpu) -> None:
    """Empty the IOTLB (``__iommu_flush_iotlb``)."""
    iotlb = DMAR.IOTLB
    _write(cpu, iotlb, iotlb.IVT.mask | iotlb.DW.mask | iotlb.DR.mask | iotlb.IIRG.put(Granularity.GLOBAL))
    await _wait(cpu, iotlb, iotlb.IVT.mask, 0)


@function()
async def dmar_set_interrupt(cpu: Cpu, iommu: IntelIommu) -> None:
    """Have faults interrupt this core, and clear those there were."""
    cpu.kernel.irq_handlers[FAULT_VECTOR] = _handler(iommu)
    _write(cpu, DMAR.FEDATA, FAULT_VECTOR)
    _write(cpu, DMAR.FEADDR, MSI_BASE | cpu.index << 12)
    _write(cpu, DMAR.FEUADDR, 0)
    await dmar_fault(cpu, iommu)
    _write(cpu, DMAR.FECTL, 0)


def _handler(iommu: IntelIommu) -> Callable[[Cpu], Awaitable[None]]:
    async def handler(cpu: Cpu) -> None:
        await dmar_fault(cpu, iommu)

    return handler


@function()
async def dmar_fault(cpu: Cpu, iommu: IntelIommu) -> None:
    """Take every fault that was recorded, in turn, and print it."""
    status = await _read(cpu, DMAR.FSTS)
    if status & DMAR.FSTS.PFO.mask:
        iommu.overflows += 1
    if status & DMAR.FSTS.PPF.mask:
        iommu.print(f"DMAR: DRHD: handling fault status reg {status:x}")
        frcd = DMAR.FRCD_HIGH
        index = DMAR.FSTS.FRI.get(status)
        while True:
            record = IOMMU_BASE + DMAR.FRCD_LOW.offset + index * FAULT_RECORD_BYTES
            upper = await cpu.mmio_read(record + 12) << 32
            if not upper & frcd.F.mask:
                break
            upper |= await cpu.mmio_read(record + 8)
            address = await cpu.mmio_read(record, 8)
            cpu.mmio_write(record + 12, frcd.F.mask >> 32)
            fault = DmarFault(address, bool(frcd.T.get(upper)), frcd.FR.get(upper), frcd.SID.get(upper))
            iommu.faults.append(fault)
            iommu.print(fault.message)
            index = (index + 1) % FAULT_RECORDS
    if status:
        _write(cpu, DMAR.FSTS, DMAR.FSTS.PFO.mask)
