"""What goes wrong with an AF_XDP socket: the kernel's errno and one line that says why."""

import errno as errno_names

__all__ = ["XskError"]


class XskError(Exception):
    """A system call that is refused.

    Arguments:
        errno: positive, from the module ``errno``.
        message: one line.
    """

    def __init__(self, errno: int, message: str):
        super().__init__(f"{errno_names.errorcode.get(errno, errno)}: {message}")
        self.errno = errno
        self.message = message
