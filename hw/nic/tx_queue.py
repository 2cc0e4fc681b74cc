"""A transmit queue."""

from hw.config import MachineConfig

from .registers import REG
from .ring import TX_RING
from .ring_queue import RingQueue
from .tags import ReadTags

__all__ = ["TxQueue"]


class TxQueue(RingQueue):
    """Transmit queue ``index``: TDBAL, TDBAH, TDLEN, TDH, TDT, TXDCTL.

    Descriptors with RS are written back as soon as their buffers have been read, those that lie side by side in a
    line in one TLP. TXDCTL's thresholds are storage: descriptors are fetched by line, as on the receive side.
    """

    def __init__(self, config: MachineConfig, index: int = 0):
        super().__init__(
            TX_RING,
            REG.TXDCTL,
            REG.TDH,
            index=index,
            cache=config.nic.descriptor_cache,
            read_tags=config.nic.read_tags,
            first_tag=ReadTags(config.nic).transmit(index),
        )
