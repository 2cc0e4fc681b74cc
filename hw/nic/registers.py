"""The card's registers as data: the RTL, the drivers, the decoders and the reference page are made from this.

Offsets, bits and behaviour are those of the Intel 82599 10 GbE Controller Datasheet, section 8.2.3 (register
descriptions); each register names its subsection. Importing this module elaborates nothing.

    REG.RDT.offset(3)          # byte offset in BAR0 of queue 3's receive tail
    REG.RXDCTL.ENABLE.mask     # 1 << 25
    REG.SRRCTL.BSIZEPACKET.put(2) | REG.SRRCTL.DROP_EN.mask
    REG.LINKS.UP.get(value)
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = [
    "MSIX_ENTRY_BYTES",
    "MSIX_PBA",
    "QUEUE_CAUSES",
    "REG",
    "REGISTERS",
    "STATION_ADDRESS",
    "STORAGE_BYTES",
    "Access",
    "Bank",
    "Field",
    "Keeper",
    "Per",
    "Register",
    "msix_entry",
]

#: The part of BAR0 that holds registers; unlisted offsets below it are storage, those above read zero.
STORAGE_BYTES = 0x2_0000

#: Station address after a reset, as the card's EEPROM gives it (locally administered).
STATION_ADDRESS = bytes.fromhex("020000000001")

#: EICR bits that stand for queues, by way of IVAR.
QUEUE_CAUSES = 16

#: An entry of the MSI-X table: address low, address high, data, vector control (bit 0 masks), 4 bytes each
#: (PCI Local Bus Specification 3.0, section 6.8.2). Offsets are in BAR3.
MSIX_ENTRY_BYTES = 16
MSIX_PBA = 0x2000


def msix_entry(vector: int) -> int:
    """Byte offset in BAR3 of the MSI-X table entry of ``vector``."""
    return MSIX_ENTRY_BYTES * vector


class Access(enum.Enum):
    """What software may do, in the datasheet's terms."""

    RO = "read-only"
    RW = "read and write"
    RC = "cleared by reading"
    W1C = "writing one clears"
    W1S = "writing one sets"
    SC = "clears itself"


class Keeper(enum.Enum):
    """Where a register lives in the RTL."""

    STORAGE = "storage"  #: reads back what was written and does nothing
    FILE = "file"  #: written by software only, looked at by hardware: flip-flops in the register file
    BLOCK = "block"  #: changes by itself: kept by the block it belongs to


class Per(enum.Enum):
    """What the index of a register counts."""

    ONE = "one"
    QUEUE = "queue"
    QUEUE_PAIR = "pair of queues"
    VECTOR = "vector"
    OTHER = "other"


@dataclass(frozen=True)
class Field:
    """Bits of a register."""

    name: str
    low: int  #: lowest bit
    width: int = 1
    access: Access = Access.RW
    doc: str = ""

    @property
    def mask(self) -> int:
        """The field's bits, in place."""
        return ((1 << self.width) - 1) << self.low

    def put(self, value: int) -> int:
        """``value`` in place.

        Raises:
            ValueError: when it does not fit.
        """
        if not 0 <= value < 1 << self.width:
            raise ValueError(f"{self.name} has {self.width} bits, which cannot hold {value}")
        return value << self.low

    def get(self, register: int) -> int:
        """The field's value in a register's value."""
        return (register & self.mask) >> self.low


@dataclass(frozen=True)
class Bank:
    """Registers ``first`` to ``first + count - 1`` lie at ``base``, ``base + stride``, …"""

    base: int
    count: int = 1
    stride: int = 4
    first: int = 0


@dataclass(frozen=True)
class Register:
    """A 32-bit register, or ``count`` of them."""

    banks: tuple[Bank, ...]
    section: str  #: of the datasheet
    doc: str
    access: Access = Access.RW
    fields: tuple[Field, ...] = ()
    reset: int = 0
    reset_of: tuple[int, ...] = ()  #: reset values of the first instances, where they differ
    keeper: Keeper = Keeper.STORAGE
    per: Per = Per.ONE
    aliases: tuple[Bank, ...] = ()  #: further addresses of the same registers
    name: str = field(default="", init=False)

    def __set_name__(self, owner: type, name: str) -> None:
        object.__setattr__(self, "name", name)

    def __getattr__(self, name: str) -> Field:
        if not name.startswith("_"):
            for f in self.fields:
                if f.name == name:
                    return f
        raise AttributeError(f"register {self.__dict__.get('name')} has no field {name!r}")

    @property
    def count(self) -> int:
        """Number of registers of this name."""
        return sum(bank.count for bank in self.banks)

    def offset(self, index: int = 0) -> int:
        """Byte offset in BAR0.

        Raises:
            ValueError: when there is no such index.
        """
        for bank in self.banks:
            if bank.first <= index < bank.first + bank.count:
                return bank.base + bank.stride * (index - bank.first)
        raise ValueError(f"{self.name} has indices 0 to {self.count - 1}, not {index}")

    def offsets(self, index: int = 0) -> list[int]:
        """Every byte offset in BAR0 at which the register can be reached, the canonical one first."""
        also = [b.base + b.stride * (index - b.first) for b in self.aliases if b.first <= index < b.first + b.count]
        return [self.offset(index), *also]

    def reset_value(self, index: int = 0) -> int:
        """Value after a reset."""
        return self.reset_of[index] if index < len(self.reset_of) else self.reset

    @property
    def read_only(self) -> int:
        """Bits that keep their reset value whatever software writes."""
        return sum(f.mask for f in self.fields if f.access is Access.RO)


def _queue(low: int, high: int) -> tuple[Bank, ...]:
    """Receive queue registers: 64 near the start of BAR0, 64 further up."""
    return (Bank(low, 64, 0x40), Bank(high, 64, 0x40, 64))


def _flag(name: str, bit: int, doc: str = "", access: Access = Access.RW) -> Field:
    return Field(name, bit, 1, access, doc)


def _statistic(base: int, doc: str, *, count: int = 1, stride: int = 4, per: Per = Per.ONE) -> Register:
    """A counter that reading clears and that sticks at its largest value."""
    return Register((Bank(base, count, stride),), "8.2.3.23", doc, Access.RC, keeper=Keeper.BLOCK, per=per)


def _queue_statistic(base: int, doc: str) -> Register:
    """A counter of each of the 16 queues that have statistics."""
    return _statistic(base, doc, count=16, stride=0x40, per=Per.QUEUE)


#: Causes of an interrupt, at the same bits in EICR, EICS, EIMS, EIMC, EIAC and EIAM.
_CAUSES = (
    Field("RTXQ", 0, QUEUE_CAUSES, doc="receive and transmit queues, as IVAR maps them"),
    _flag("MISSED", 17, "a packet was missed for want of packet buffer"),
    _flag("LSC", 20, "the link went up or down"),
    _flag("ECC", 28, "memory error in the card"),
    _flag("DHER", 29, "descriptor handler error: a queue stopped, its RXDCTL.ENABLE reads 0"),
    _flag("OTHER", 31, "any of the other causes"),
)

_LOW, _HIGH = STATION_ADDRESS[:4], STATION_ADDRESS[4:]


class REG:
    """The registers, by name."""

    # General control and EEPROM
    CTRL = Register(
        (Bank(0x00000),),
        "8.2.3.1",
        "device control",
        fields=(
            _flag("GIO_DIS", 2, "master disable: start no new DMA; STATUS.GIO_MASTER_EN falls once all is quiet"),
            _flag("LRST", 3, "link reset: a full reset, as RST", Access.SC),
            _flag("RST", 26, "full reset; reads 0 when done", Access.SC),
        ),
        keeper=Keeper.BLOCK,
        aliases=(Bank(0x00004),),
    )
    STATUS = Register(
        (Bank(0x00008),),
        "8.2.3.1",
        "device status",
        Access.RO,
        (
            _flag("LINK_UP", 7, "the link is up", Access.RO),
            _flag("GIO_MASTER_EN", 19, "0 when CTRL.GIO_DIS has taken effect", Access.RO),
        ),
        keeper=Keeper.BLOCK,
    )
    CTRL_EXT = Register(
        (Bank(0x00018),),
        "8.2.3.1",
        "extended device control",
        fields=(_flag("NS_DIS", 16), _flag("RO_DIS", 17), _flag("DRV_LOAD", 28, "a driver is loaded")),
    )
    EEC = Register(
        (Bank(0x10010),),
        "8.2.3.2",
        "EEPROM control",
        fields=(
            _flag("GNT", 7, "access granted", Access.RO),
            _flag("PRES", 8, "EEPROM present", Access.RO),
            _flag("AUTO_RD", 9, "auto-read done", Access.RO),
            Field("SIZE", 11, 4, Access.RO, "size: 4 is 16 KiB"),
        ),
        reset=1 << 7 | 1 << 8 | 1 << 9 | 4 << 11,
        keeper=Keeper.FILE,
    )

    # Interrupts
    EICR = Register(
        (Bank(0x00800),), "8.2.3.5", "interrupt causes; reading clears", Access.RC, _CAUSES, keeper=Keeper.BLOCK
    )
    EICS = Register(
        (Bank(0x00808),),
        "8.2.3.5",
        "sets causes; reads EICR without clearing",
        Access.W1S,
        _CAUSES,
        keeper=Keeper.BLOCK,
    )
    EIMS = Register((Bank(0x00880),), "8.2.3.5", "unmasks causes", Access.W1S, _CAUSES, keeper=Keeper.BLOCK)
    EIMC = Register((Bank(0x00888),), "8.2.3.5", "masks causes", Access.W1C, _CAUSES, keeper=Keeper.BLOCK)
    EIAC = Register(
        (Bank(0x00810),), "8.2.3.5", "causes that an MSI-X message clears", fields=_CAUSES, keeper=Keeper.FILE
    )
    EIAM = Register(
        (Bank(0x00890),),
        "8.2.3.5",
        "causes that are masked by a message (GPIE.EIAME) or by touching EICR",
        fields=_CAUSES,
        keeper=Keeper.FILE,
    )
    GPIE = Register(
        (Bank(0x00898),),
        "8.2.3.5",
        "interrupt modes",
        fields=(
            _flag("MSIX_MODE", 4, "messages by MSI-X; without it none is sent"),
            _flag("OCD", 5, "reading EICR clears only bits 29:16"),
            _flag("EIMEN", 6, "EICS interrupts immediately"),
            _flag("EIAME", 30, "messages mask the causes in EIAM"),
            _flag("PBA_SUPPORT", 31),
        ),
        keeper=Keeper.FILE,
    )
    EICS_EX = Register(
        (Bank(0x00A90, 2),), "8.2.3.5", "sets causes of vectors; 15:0 are EICS's", Access.W1S, keeper=Keeper.BLOCK
    )
    EIMS_EX = Register(
        (Bank(0x00AA0, 2),), "8.2.3.5", "unmasks causes of vectors; 15:0 are EIMS's", Access.W1S, keeper=Keeper.BLOCK
    )
    EIMC_EX = Register(
        (Bank(0x00AB0, 2),), "8.2.3.5", "masks causes of vectors; 15:0 are EIMC's", Access.W1C, keeper=Keeper.BLOCK
    )
    EITR = Register(
        (Bank(0x00820, 24), Bank(0x12300, 40, 4, 24)),
        "8.2.3.5",
        "interrupt throttle of a vector",
        fields=(
            Field("INTERVAL", 3, 9, doc="least time between messages, in units of 2.048 us; 0 = none"),
            _flag("LLI_EN", 15),
            _flag("CNT_WDIS", 31, "the write leaves the running interval alone; else the next message may go at once"),
        ),
        keeper=Keeper.FILE,
        per=Per.VECTOR,
    )
    IVAR = Register(
        (Bank(0x00900, 64),),
        "8.2.3.5",
        "vectors of queues 2n and 2n + 1",
        fields=(
            Field("RX_EVEN", 0, 6, doc="vector of the even queue's receive cause"),
            _flag("RX_EVEN_VALID", 7),
            Field("TX_EVEN", 8, 6),
            _flag("TX_EVEN_VALID", 15),
            Field("RX_ODD", 16, 6),
            _flag("RX_ODD_VALID", 23),
            Field("TX_ODD", 24, 6),
            _flag("TX_ODD_VALID", 31),
        ),
        keeper=Keeper.FILE,
        per=Per.QUEUE_PAIR,
    )
    IVAR_MISC = Register(
        (Bank(0x00A00),),
        "8.2.3.5",
        "vectors of the TCP timer and of all other causes",
        fields=(Field("TIMER", 0, 6), _flag("TIMER_VALID", 7), Field("OTHER", 8, 6), _flag("OTHER_VALID", 15)),
        keeper=Keeper.FILE,
    )

    # Filters
    FCTRL = Register(
        (Bank(0x05080),),
        "8.2.3.7",
        "receive filter",
        fields=(
            _flag("SBP", 1, "store bad packets"),
            _flag("MPE", 8, "accept every multicast frame"),
            _flag("UPE", 9, "accept every unicast frame"),
            _flag("BAM", 10, "accept broadcast"),
        ),
        keeper=Keeper.FILE,
    )
    RAL = Register(
        (Bank(0x0A200, 128, 8),),
        "8.2.3.7",
        "station address, bytes 0 to 3, first byte in bits 7:0",
        reset_of=(int.from_bytes(_LOW, "little"),),
        keeper=Keeper.FILE,
        aliases=(Bank(0x05400, 16, 8),),
    )
    RAH = Register(
        (Bank(0x0A204, 128, 8),),
        "8.2.3.7",
        "station address, bytes 4 and 5",
        fields=(Field("ADDRESS", 0, 16), _flag("AV", 31, "the address is valid")),
        reset_of=(1 << 31 | int.from_bytes(_HIGH, "little"),),
        keeper=Keeper.FILE,
        aliases=(Bank(0x05404, 16, 8),),
    )
    MRQC = Register(
        (Bank(0x0EC80),),
        "8.2.3.7",
        "multiple receive queues",
        fields=(
            Field("MRQE", 0, 4, doc="1 = RSS"),
            _flag("TCP_IPV4", 16, "hash addresses and ports of TCP over IPv4"),
            _flag("IPV4", 17, "hash the addresses of IPv4"),
            _flag("IPV6", 20, "hash the addresses of IPv6"),
            _flag("TCP_IPV6", 21, "hash addresses and ports of TCP over IPv6"),
            _flag("UDP_IPV4", 22, "hash addresses and ports of UDP over IPv4"),
            _flag("UDP_IPV6", 23, "hash addresses and ports of UDP over IPv6"),
        ),
        keeper=Keeper.FILE,
        aliases=(Bank(0x05818),),
    )
    RETA = Register(
        (Bank(0x0EB00, 32),),
        "8.2.3.7",
        "RSS: queue of each value of the hash's low 7 bits, a byte each",
        fields=tuple(Field(f"ENTRY{place}", 8 * place, 4) for place in range(4)),
        per=Per.OTHER,
        aliases=(Bank(0x05C00, 32),),
    )
    RSSRK = Register(
        (Bank(0x0EB80, 10),),
        "8.2.3.7",
        "RSS: the hash's key, its first byte in bits 7:0 of the first register",
        per=Per.OTHER,
        aliases=(Bank(0x05C80, 10),),
    )

    # Receive queues
    RDBAL = Register(
        _queue(0x01000, 0x0D000),
        "8.2.3.8",
        "ring base, bits 31:0; 128-byte aligned, bits 6:0 are ignored",
        keeper=Keeper.FILE,
        per=Per.QUEUE,
    )
    RDBAH = Register(_queue(0x01004, 0x0D004), "8.2.3.8", "ring base, bits 63:32", keeper=Keeper.FILE, per=Per.QUEUE)
    RDLEN = Register(
        _queue(0x01008, 0x0D008),
        "8.2.3.8",
        "ring size in bytes, a multiple of 128",
        fields=(Field("LEN", 0, 20),),
        keeper=Keeper.FILE,
        per=Per.QUEUE,
    )
    RDH = Register(
        _queue(0x01010, 0x0D010),
        "8.2.3.8",
        "head: the next descriptor to be written back; writable while the queue is disabled",
        fields=(Field("HEAD", 0, 16),),
        keeper=Keeper.BLOCK,
        per=Per.QUEUE,
    )
    RDT = Register(
        _queue(0x01018, 0x0D018),
        "8.2.3.8",
        "tail: the first descriptor that is not the hardware's",
        fields=(Field("TAIL", 0, 16),),
        keeper=Keeper.FILE,
        per=Per.QUEUE,
    )
    RXDCTL = Register(
        _queue(0x01028, 0x0D028),
        "8.2.3.8",
        "queue control",
        fields=(
            _flag("ENABLE", 25, "reads 1 while enabled; falls once a disabled queue has drained, or on an error"),
            _flag("VME", 30, "strip VLAN tags"),
        ),
        keeper=Keeper.BLOCK,
        per=Per.QUEUE,
    )
    SRRCTL = Register(
        (Bank(0x02100, 16), Bank(0x01414, 48, 0x40, 16), Bank(0x0D014, 64, 0x40, 64)),
        "8.2.3.8",
        "buffers of a queue",
        fields=(
            Field("BSIZEPACKET", 0, 5, doc="bytes of a buffer, in KiB"),
            Field("BSIZEHEADER", 8, 6, doc="bytes of a header buffer, in units of 64"),
            Field("DESCTYPE", 25, 3, doc="1 = advanced, one buffer"),
            _flag("DROP_EN", 28, "drop packets when no descriptor is available"),
        ),
        reset=0x0402,
        keeper=Keeper.FILE,
        per=Per.QUEUE,
        aliases=(Bank(0x01014, 16, 0x40),),
    )
    RDRXCTL = Register(
        (Bank(0x02F00),),
        "8.2.3.8",
        "receive DMA control",
        fields=(
            _flag("CRCSTRIP", 1, "strip the FCS (together with HLREG0.RXCRCSTRP)"),
            _flag("DMAIDONE", 3, "DMA initialised", Access.RO),
        ),
        reset=1 << 3,
        keeper=Keeper.FILE,
    )
    RXCTRL = Register(
        (Bank(0x03000),), "8.2.3.8", "receive control", fields=(_flag("RXEN", 0, "receive"),), keeper=Keeper.FILE
    )
    DCA_RXCTRL = Register(
        (Bank(0x02200, 16), Bank(0x0140C, 48, 0x40, 16), Bank(0x0D00C, 64, 0x40, 64)),
        "8.2.3.11",
        "cache injection of a receive queue: without effect, unless the machine has nic.dca_gates",
        fields=(
            _flag("DESC_DCA_EN", 5, "descriptors that are written back"),
            _flag("HEAD_DCA_EN", 6, "header buffers: there are none without header split"),
            _flag("DATA_DCA_EN", 7, "packet buffers"),
            Field("CPUID", 24, 8, doc="whose cache: without effect, there is one last level"),
        ),
        keeper=Keeper.FILE,
        per=Per.QUEUE,
    )
    RXPBSIZE = Register(
        (Bank(0x03C00, 8),),
        "8.2.3.8",
        "packet buffer",
        fields=(Field("SIZE", 10, 10, doc="KiB"),),
        reset_of=(512 << 10,),
        per=Per.OTHER,
    )

    # Transmit queues
    TDBAL = Register(
        (Bank(0x06000, 128, 0x40),),
        "8.2.3.9",
        "ring base, bits 31:0; 128-byte aligned, bits 6:0 are ignored",
        keeper=Keeper.FILE,
        per=Per.QUEUE,
    )
    TDBAH = Register((Bank(0x06004, 128, 0x40),), "8.2.3.9", "ring base, bits 63:32", keeper=Keeper.FILE, per=Per.QUEUE)
    TDLEN = Register(
        (Bank(0x06008, 128, 0x40),),
        "8.2.3.9",
        "ring size in bytes, a multiple of 128",
        fields=(Field("LEN", 0, 20),),
        keeper=Keeper.FILE,
        per=Per.QUEUE,
    )
    TDH = Register(
        (Bank(0x06010, 128, 0x40),),
        "8.2.3.9",
        "head: the next descriptor the card is to be done with; writable while the queue is disabled",
        fields=(Field("HEAD", 0, 16),),
        keeper=Keeper.BLOCK,
        per=Per.QUEUE,
    )
    TDT = Register(
        (Bank(0x06018, 128, 0x40),),
        "8.2.3.9",
        "tail: the first descriptor that is not the hardware's",
        fields=(Field("TAIL", 0, 16),),
        keeper=Keeper.FILE,
        per=Per.QUEUE,
    )
    TXDCTL = Register(
        (Bank(0x06028, 128, 0x40),),
        "8.2.3.9",
        "queue control",
        fields=(
            Field("PTHRESH", 0, 7, doc="prefetch threshold: without effect, descriptors are fetched by line"),
            Field("HTHRESH", 8, 7, doc="host threshold: without effect"),
            Field("WTHRESH", 16, 7, doc="write-back threshold: without effect, descriptors with RS are written back"),
            _flag("ENABLE", 25, "reads 1 while enabled; falls once a disabled queue has drained, or on an error"),
        ),
        keeper=Keeper.BLOCK,
        per=Per.QUEUE,
    )
    DCA_TXCTRL = Register(
        (Bank(0x0600C, 128, 0x40),),
        "8.2.3.11",
        "cache injection of a transmit queue: without effect, unless the machine has nic.dca_gates",
        fields=(
            _flag("DESC_DCA_EN", 5, "descriptors that are written back"),
            Field("CPUID", 24, 8, doc="whose cache: without effect, there is one last level"),
        ),
        keeper=Keeper.FILE,
        per=Per.QUEUE,
    )
    DCA_CTRL = Register(
        (Bank(0x11074),),
        "8.2.3.11",
        "cache injection",
        fields=(_flag("DCA_DIS", 0, "nothing is marked to be put into a cache"), Field("DCA_MODE", 1, 4)),
        reset=1 << 0,
        keeper=Keeper.FILE,
    )
    DMATXCTL = Register(
        (Bank(0x04A80),),
        "8.2.3.9",
        "transmit DMA control",
        fields=(_flag("TE", 0, "transmit: without it no packet is begun"),),
        keeper=Keeper.FILE,
    )
    TXPBSIZE = Register(
        (Bank(0x0CC00, 8),),
        "8.2.3.9",
        "transmit packet buffer",
        fields=(Field("SIZE", 10, 10, doc="KiB"),),
        reset_of=(160 << 10,),
        per=Per.OTHER,
    )

    # MAC
    HLREG0 = Register(
        (Bank(0x04240),),
        "8.2.3.22",
        "MAC control",
        fields=(
            _flag("TXCRCEN", 0, "append the FCS to packets that ask for it"),
            _flag("RXCRCSTRP", 1, "strip the FCS (together with RDRXCTL.CRCSTRIP)"),
            _flag("JUMBOEN", 2, "frames up to MAXFRS, else up to 1518 bytes"),
            _flag("TXPADEN", 10, "pad short packets that ask for their FCS"),
            _flag("LPBK", 15, "loopback"),
        ),
        reset=1 << 0 | 1 << 1 | 1 << 10,
        keeper=Keeper.FILE,
    )
    MAXFRS = Register(
        (Bank(0x04268),),
        "8.2.3.22",
        "largest frame",
        fields=(Field("MFS", 16, 16, doc="bytes, FCS included, VLAN tag not counted"),),
        reset=1518 << 16,
        keeper=Keeper.FILE,
    )
    AUTOC = Register((Bank(0x042A0),), "8.2.3.22", "auto-negotiation control", reset=0x0000_6000)
    LINKS = Register(
        (Bank(0x042A4),),
        "8.2.3.22",
        "link status",
        Access.RO,
        (
            Field("SPEED", 28, 2, Access.RO, "3 = 10 G"),
            _flag("UP", 30, "the link is up", Access.RO),
            _flag("KX_AN_COMP", 31, "negotiation complete", Access.RO),
        ),
        keeper=Keeper.BLOCK,
    )

    # Statistics
    CRCERRS = _statistic(0x04000, "frames of 64 bytes or more with a bad FCS")
    RXMPC = _statistic(0x03FA0, "missed for want of packet buffer", count=8)
    GPRC = _statistic(0x04074, "good frames that passed the filters, those missed for want of packet buffer included")
    GORCL = _statistic(0x04088, "bytes of good frames, 31:0")
    GORCH = _statistic(0x0408C, "bytes of good frames, 35:32")
    GPTC = _statistic(0x04080, "frames sent")
    GOTCL = _statistic(0x04090, "bytes of frames sent, FCS included, 31:0")
    GOTCH = _statistic(0x04094, "bytes of frames sent, 35:32")
    RUC = _statistic(0x040A4, "undersize, good FCS")
    RFC = _statistic(0x040A8, "fragments: undersize, bad FCS")
    ROC = _statistic(0x040AC, "oversize, good FCS")
    RJC = _statistic(0x040B0, "jabber: oversize, bad FCS")
    QPRC = _queue_statistic(0x01030, "packets received by a queue")
    QBRC_L = _queue_statistic(0x01034, "bytes received by a queue, 31:0")
    QBRC_H = _queue_statistic(0x01038, "bytes received by a queue, 35:32")
    QPRDC = _queue_statistic(0x01430, "dropped for want of a descriptor, or of an enabled queue")
    QPTC = _queue_statistic(0x06030, "packets sent by a queue")
    QBTC_L = _statistic(0x08700, "bytes sent by a queue, 31:0", count=16, stride=8, per=Per.QUEUE)
    QBTC_H = _statistic(0x08704, "bytes sent by a queue, 35:32", count=16, stride=8, per=Per.QUEUE)


def _registers() -> Iterator[Register]:
    return (r for r in vars(REG).values() if isinstance(r, Register))


#: Every listed register by name.
REGISTERS: dict[str, Register] = {r.name: r for r in _registers()}
