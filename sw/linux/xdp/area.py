"""Where rings, pools and sockets of AF_XDP lie."""

from errno import ENOMEM
from typing import TYPE_CHECKING

from sw.core import LINE
from sw.linux.mm import PAGE_SIZE
from sw.linux.xdp.errors import XskError
from sw.paging import PHYSICAL_MASK, PageSize, virtual

if TYPE_CHECKING:
    from sw.linux.kernel import Kernel

__all__ = ["XdpArea"]


class XdpArea:
    """Zeroed memory that is set aside at boot and handed out in whole pages when rings are made, for good.

    The kernel uses it under its own addresses; every page can be mapped by a program, too.
    """

    def __init__(self, kernel: "Kernel", size: int):
        self._next = kernel.allocate_user(size) & PHYSICAL_MASK
        self._end = self._next + size

    def allocate(self, size: int, alignment: int = LINE) -> int:
        """The kernel's address of ``size`` bytes.

        Raises:
            XskError: ENOMEM.
        """
        address = (self._next + alignment - 1) // alignment * alignment
        if address + size > self._end:
            raise XskError(ENOMEM, f"{size} bytes are wanted, {max(self._end - address, 0)} are left for sockets")
        self._next = address + size
        return address

    @staticmethod
    def user_address(address: int) -> int:
        """The address under which a program has what the kernel has at ``address``."""
        return virtual(address, PageSize.KIB_4)

    @staticmethod
    def pages(size: int) -> int:
        """``size`` rounded up to whole pages."""
        return (size + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
