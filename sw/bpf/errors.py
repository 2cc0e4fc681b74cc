"""What goes wrong with a program or a map: the kernel's (or libbpf's) errno and one line that says why."""

import errno as errno_names

__all__ = ["BpfError"]


class BpfError(Exception):
    """A program, an object file or a system call that is refused.

    Arguments:
        errno: positive, from the module ``errno``.
        message: one line.
        log: the verifier's log, if it wrote one.
    """

    def __init__(self, errno: int, message: str, log: str = ""):
        super().__init__(f"{errno_names.errorcode.get(errno, errno)}: {message}")
        self.errno = errno
        self.message = message
        self.log = log
