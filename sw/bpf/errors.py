"""What goes wrong with a program or a map: the kernel's (or libbpf's) errno and one line that says why."""

import errno as errno_names
from enum import IntEnum

__all__ = ["BpfError", "LibbpfErrno"]


class LibbpfErrno(IntEnum):
    """libbpf's own errors, above the system's (``enum libbpf_errno``)."""

    LIBELF = 4000  #: not an ELF file
    FORMAT = 4001  #: an ELF file whose contents are not as libbpf wants them
    ENDIAN = 4003  #: for a machine of the other byte order
    RELOC = 4005  #: a relocation that cannot be done
    PROGTYPE = 4010  #: a kind of program that is not known


class BpfError(Exception):
    """A program, an object file or a system call that is refused.

    Arguments:
        errno: positive, from the module ``errno``, or a :class:`LibbpfErrno`.
        message: one line.
        log: the verifier's log, if it wrote one.
    """

    def __init__(self, errno: int, message: str, log: str = ""):
        name = f"LIBBPF_ERRNO__{errno.name}" if isinstance(errno, LibbpfErrno) else errno_names.errorcode.get(errno)
        super().__init__(f"{name or errno}: {message}")
        self.errno = errno
        self.message = message
        self.log = log
