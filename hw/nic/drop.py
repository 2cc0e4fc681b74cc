"""Why a packet was dropped: every frame that does not reach memory, or the wire, fires one probe with one of these."""

from amaranth.lib import enum

__all__ = ["DropReason", "TransmitDropReason"]


class DropReason(enum.Enum, shape=4):
    """Reasons, in the order in which they are looked for."""

    NONE = 0  #: not dropped
    RESET = 1  #: the card was reset while the packet was on the wire or in the card
    RUNT = 2  #: shorter than 64 bytes (RUC, RFC)
    OVERSIZE = 3  #: longer than MAXFRS (1518 without HLREG0.JUMBOEN) or the card's nic.max_frame (ROC, RJC)
    CRC_ERROR = 4  #: the FCS is wrong (CRCERRS)
    RECEIVE_DISABLED = 5  #: RXCTRL.RXEN is off
    FILTERED = 6  #: the destination address is not ours
    NO_BUFFER = 7  #: the packet buffer is full (RXMPC)
    QUEUE_DISABLED = 8  #: the queue is not enabled (QPRDC)
    DMA_ERROR = 9  #: the queue stopped on an error (QPRDC)
    NO_DESCRIPTOR = 10  #: the ring is empty and SRRCTL.DROP_EN is on (QPRDC)


class TransmitDropReason(enum.Enum, shape=3):
    """Why a packet was not sent, in the order in which it is looked for. None of these stops the queue."""

    NONE = 0  #: not dropped
    DESCRIPTOR = 1  #: a descriptor of unknown type, or a buffer beyond the physical address space
    OFFLOAD = 2  #: a checksum, a VLAN tag or segmentation is asked for, none of which is built
    OVERSIZE = 3  #: with its FCS the packet is longer than nic.max_frame
    EMPTY = 4  #: a packet without bytes
    READ_REFUSED = 5  #: the root complex refused a read of its payload
    QUEUE_DISABLED = 6  #: the queue was disabled, stopped on an error or was reset amid the packet
