"""A driver for the card in a few lines, on bare metal: one ring of advanced descriptors, found done by polling."""

from hw.memory_map import BAR3_BASE, MSI_BASE
from hw.nic.descriptors import DESCRIPTOR_BYTES, RX_READ
from hw.nic.registers import REG, Register, msix_entry
from sim.bare_metal import BareMetal

__all__ = ["CardDriver"]

#: Reads of a register that is to change before the driver gives up.
PATIENCE = 200


class CardDriver:
    """Drives the card from core ``core`` with a ring of ``count`` descriptors at ``ring``."""

    def __init__(self, bench: BareMetal, ring: int, count: int, core: int = 0):
        self.bench = bench
        self.ring, self.count, self.core = ring, count, core
        self.tail = 0

    def read(self, register: Register, index: int = 0) -> int:
        """Read a register."""
        return self.bench.read(register, index, core=self.core)

    def write(self, register: Register, value: int, index: int = 0) -> None:
        """Queue a write of a register."""
        self.bench.write(register, value, index, core=self.core)

    def wait_for(self, register: Register, mask: int, wanted: int) -> int:
        """Read a register until the bits of ``mask`` are ``wanted``; returns how many reads it took."""
        for reads in range(1, PATIENCE + 1):
            value = self.read(register)
            if value & mask == wanted:
                return reads
        raise AssertionError(f"{register.name} still reads {value:#010x} after {PATIENCE} reads")

    def reset(self) -> int:
        """Reset the card and wait until it says that it is done; returns the reads that took."""
        self.write(REG.CTRL, REG.CTRL.RST.mask)
        return self.wait_for(REG.CTRL, REG.CTRL.RST.mask, 0)

    def set_up_ring(self, base: int | None = None, length: int | None = None, **srrctl: int) -> None:
        """Write the ring's registers: where it is and how long, as given or as it should be."""
        base = self.ring if base is None else base
        self.write(REG.RDBAL, base & 0xFFFF_FFFF)
        self.write(REG.RDBAH, base >> 32)
        self.write(REG.RDLEN, self.count * DESCRIPTOR_BYTES if length is None else length)
        self.write(REG.RDH, 0)
        self.write(REG.RDT, 0)
        fields = {"BSIZEPACKET": 1, "DESCTYPE": 1, **srrctl}
        self.write(REG.SRRCTL, sum(getattr(REG.SRRCTL, name).put(value) for name, value in fields.items()))
        self.write(REG.RXDCTL, REG.RXDCTL.ENABLE.mask)
        self.tail = 0

    def initialise(self, **srrctl: int) -> None:
        """Set up a card that has just been reset, and receive."""
        self.write(REG.RDRXCTL, REG.RDRXCTL.CRCSTRIP.mask)
        self.set_up_ring(**srrctl)
        self.wait_for(REG.RXDCTL, REG.RXDCTL.ENABLE.mask, REG.RXDCTL.ENABLE.mask)
        self.write(REG.RXCTRL, REG.RXCTRL.RXEN.mask)
        self.read(REG.RXCTRL)

    def start(self, **srrctl: int) -> None:
        """Reset and set up the card."""
        self.reset()
        self.initialise(**srrctl)

    def send_interrupts(self, vector: int) -> None:
        """Have a message sent to the core for every descriptor written back, without moderation."""
        for word, value in enumerate((MSI_BASE | self.core << 12, 0, vector, 0)):
            self.bench.mmio_write(self.core, BAR3_BASE + msix_entry(0) + 4 * word, value)
        self.write(REG.GPIE, REG.GPIE.MSIX_MODE.mask)
        self.write(REG.EIAC, REG.EIAC.RTXQ.mask)
        self.write(REG.IVAR, REG.IVAR.RX_EVEN.put(0) | REG.IVAR.RX_EVEN_VALID.mask)
        self.write(REG.EIMS, REG.EIMS.RTXQ.mask)

    def descriptor(self, index: int) -> int:
        """Address of a descriptor."""
        return self.ring + index * DESCRIPTOR_BYTES

    def post(self, buffer: int) -> None:
        """Queue the next descriptor's store; :meth:`publish` gives it to the card."""
        self.bench.store(self.core, self.descriptor(self.tail), RX_READ.pack(packet_address=buffer))
        self.advance()

    def advance(self) -> None:
        """Count a descriptor that has been stored otherwise."""
        self.tail = (self.tail + 1) % self.count

    def publish(self) -> None:
        """Queue the write of RDT."""
        self.write(REG.RDT, self.tail)
