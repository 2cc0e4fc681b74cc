"""A receive queue."""

from hw.config import MachineConfig

from .registers import REG
from .ring import RX_RING
from .ring_queue import RingQueue
from .tags import ReadTags

__all__ = ["RxQueue"]


class RxQueue(RingQueue):
    """Receive queue ``index``: RDBAL, RDBAH, RDLEN, RDH, RDT, RXDCTL."""

    def __init__(self, config: MachineConfig, index: int = 0):
        super().__init__(
            RX_RING,
            REG.RXDCTL,
            REG.RDH,
            index=index,
            cache=config.nic.descriptor_cache,
            read_tags=config.nic.read_tags,
            first_tag=ReadTags(config.nic).receive(index),
        )
