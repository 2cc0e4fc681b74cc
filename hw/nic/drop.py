"""Why a packet was dropped: every frame that does not reach memory fires one probe with one of these."""

from amaranth.lib import enum

__all__ = ["DropReason"]


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
