"""What differs between receive and transmit rings: the descriptors, and what the card makes of them."""

from abc import ABC, abstractmethod

from amaranth.hdl import Const, Mux, Value
from amaranth.lib import data

from hw.bus.tilelink import PHYSICAL_ADDRESS_WIDTH

from .descriptors import AdvancedRxRead, AdvancedRxWriteBack, AdvancedTxData, AdvancedTxWriteBack
from .layouts import Finished, RxDescriptor, TxDescriptor, TxFinished, TxKind

__all__ = ["RX_RING", "TX_RING", "Ring"]

#: DTYP of advanced transmit descriptors (datasheet section 7.2.3.2).
DTYP_CONTEXT = 2
DTYP_DATA = 3

#: POPTS of advanced transmit descriptors that ask for a checksum: IXSM and TXSM (section 7.2.3.2.4).
CHECKSUMS = 0b11


class Ring(ABC):
    """One kind of ring.

    Attributes:
        source: a descriptor as software writes it, 16 bytes.
        taken: a descriptor as it waits in the card.
        finished: what is told of a descriptor when the card is done with it; it has a field ``packet``.
        result: a descriptor as the card writes it back.
        traced: its write-backs carry the packet's id, as what belongs to received packets does. Packets that are sent
            have ids of their own, which only reads carry.
    """

    source: type[data.Struct]
    taken: type[data.Struct]
    finished: type[data.Struct]
    result: type[data.Struct]
    traced: bool

    @abstractmethod
    def take(self, m, source, taken) -> Value:
        """Assign ``taken`` from ``source``, both views; returns whether the descriptor stops the queue."""

    @abstractmethod
    def reports(self, finished) -> Value:
        """Whether a descriptor is written back at all."""

    @abstractmethod
    def report(self, m, finished, result) -> None:
        """Assign ``result``, zero otherwise, from ``finished``."""


class _RxRing(Ring):
    source, taken, finished, result = AdvancedRxRead, RxDescriptor, Finished, AdvancedRxWriteBack
    traced = True

    def take(self, m, source, taken):
        m.d.comb += taken.address.eq(source.packet_address)
        return source.packet_address >> PHYSICAL_ADDRESS_WIDTH != 0

    def reports(self, finished):
        return Const(1)

    def report(self, m, finished, result):
        m.d.comb += [
            result.dd.eq(1),
            result.eop.eq(finished.eop),
            result.length.eq(finished.length),
            result.packet_type.eq(finished.packet_type),
            result.rss_type.eq(finished.rss_type),
            result.rss_hash.eq(finished.rss_hash),
        ]


class _TxRing(Ring):
    source, taken, finished, result = AdvancedTxData, TxDescriptor, TxFinished, AdvancedTxWriteBack
    traced = False

    def take(self, m, source, taken):
        # Legacy descriptors (DEXT = 0) have the same address, length, EOP, IFCS, RS and VLE
        known = ~source.dext | (source.dtyp == DTYP_DATA)
        context = source.dext & (source.dtyp == DTYP_CONTEXT)
        beyond = source.address >> PHYSICAL_ADDRESS_WIDTH != 0
        offload = source.vle | Mux(
            source.dext, source.tse | ((source.popts & CHECKSUMS) != 0), source.legacy_insert_checksum
        )
        m.d.comb += [
            taken.address.eq(source.address),
            taken.length.eq(source.length),
            taken.eop.eq(source.eop),
            taken.insert_fcs.eq(source.ifcs),
            taken.report.eq(source.rs),
            taken.offload.eq(offload),
            taken.kind.eq(Mux(context, TxKind.CONTEXT, Mux(known & ~beyond, TxKind.DATA, TxKind.BAD))),
        ]
        return Const(0)

    def reports(self, finished):
        return finished.report

    def report(self, m, finished, result):
        m.d.comb += result.dd.eq(1)


#: Receive rings: advanced descriptors, one buffer each (datasheet section 7.1.6).
RX_RING = _RxRing()

#: Transmit rings: advanced data and context descriptors, legacy ones (datasheet section 7.2.3).
TX_RING = _TxRing()
