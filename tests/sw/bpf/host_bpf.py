"""The bpf() system call of the host's own kernel: the last word on what a program does.

Only what the tests need: create maps, load a program, run it on a packet (``BPF_PROG_TEST_RUN``), ask for its code.
"""

import ctypes
import errno
import functools
import os
import platform
import struct

_NUMBERS = {"x86_64": 321, "aarch64": 280}
MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, PROG_LOAD = 0, 1, 2, 3, 5
TEST_RUN, INFO = 10, 15
_ATTR_BYTES = 144
_LOG_BYTES = 1 << 20


class HostError(OSError):
    """The host's kernel refuses; ``log`` is its verifier's."""

    def __init__(self, number: int, what: str, log: str = ""):
        super().__init__(number, f"{what}: {os.strerror(number)}")
        self.log = log


def bpf(command: int, attributes: bytes, what: str) -> tuple[int, bytes]:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise HostError(errno.ENOSYS, what)
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes.ljust(_ATTR_BYTES, b"\0"), _ATTR_BYTES)
    result = libc.syscall(ctypes.c_long(number), ctypes.c_int(command), buffer, ctypes.c_uint(_ATTR_BYTES))
    if result < 0:
        raise HostError(ctypes.get_errno(), what)
    return result, buffer.raw


@functools.cache
def why_not() -> str:
    """Why the host's kernel cannot be asked; empty if it can."""
    try:
        with HostProgram(bytes.fromhex("b700000000000000 9500000000000000")) as program:
            program.run(bytes(64))
    except OSError as error:
        return f"the host's kernel refuses bpf(): {error.strerror}"
    return ""


def _address(buffer: object) -> int:
    return ctypes.addressof(buffer)  # type: ignore[arg-type]


class HostMap:
    """A map of the host's kernel."""

    def __init__(self, kind: int, key_size: int, value_size: int, max_entries: int, flags: int = 0):
        self.key_size, self.value_size = key_size, value_size
        attributes = struct.pack("<IIIII", kind, key_size, value_size, max_entries, flags)
        self.fd, _ = bpf(MAP_CREATE, attributes, "BPF_MAP_CREATE")

    def _element(self, command: int, key: bytes, value: object = None, flags: int = 0) -> None:
        key_buffer = ctypes.create_string_buffer(key, len(key))
        place = _address(value) if value is not None else 0
        bpf(command, struct.pack("<I4xQQQ", self.fd, _address(key_buffer), place, flags), f"map command {command}")

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        self._element(MAP_UPDATE, key, ctypes.create_string_buffer(value, len(value)), flags)

    def lookup(self, key: bytes, size: int | None = None) -> bytes:
        buffer = ctypes.create_string_buffer(size or self.value_size)
        self._element(MAP_LOOKUP, key, buffer)
        return buffer.raw

    def delete(self, key: bytes) -> None:
        self._element(MAP_DELETE, key)

    def close(self) -> None:
        os.close(self.fd)


class HostProgram:
    """An XDP program in the host's kernel."""

    def __init__(self, code: bytes, license: bytes = b"GPL", log_level: int = 0):
        code_buffer = ctypes.create_string_buffer(code, len(code))
        license_buffer = ctypes.create_string_buffer(license)
        log = ctypes.create_string_buffer(_LOG_BYTES if log_level else 1)
        log_place = (log_level, _LOG_BYTES, _address(log)) if log_level else (0, 0, 0)
        attributes = struct.pack(
            "<IIQQIIQ", 6, len(code) // 8, _address(code_buffer), _address(license_buffer), *log_place
        )
        try:
            self.fd, _ = bpf(PROG_LOAD, attributes, "BPF_PROG_LOAD")
        except HostError as error:
            error.log = log.value.decode(errors="replace")
            raise
        self.log = log.value.decode(errors="replace")

    def __enter__(self) -> "HostProgram":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def run(self, packet: bytes, repeat: int = 1, room: int = 4096) -> tuple[int, bytes]:
        """Verdict and the packet afterwards."""
        given = ctypes.create_string_buffer(packet, len(packet))
        taken = ctypes.create_string_buffer(room)
        attributes = struct.pack(
            "<IIIIQQII", self.fd, 0, len(packet), room, _address(given), _address(taken), repeat, 0
        )
        _, back = bpf(TEST_RUN, attributes, "BPF_PROG_TEST_RUN")
        _, verdict, _, size = struct.unpack_from("<IIII", back)
        return verdict, taken.raw[:size]

    def machine_code(self, room: int = 1 << 16) -> bytes:
        """What the host's JIT made of it; empty if the host does not tell."""
        code = ctypes.create_string_buffer(room)
        # struct bpf_prog_info: type, id, tag[8], lengths and places of machine code and of instructions, ...
        info = ctypes.create_string_buffer(struct.pack("<II8sIIQQ", 0, 0, b"", room, 0, _address(code), 0), 256)
        bpf(INFO, struct.pack("<IIQ", self.fd, 256, _address(info)), "BPF_OBJ_GET_INFO_BY_FD")
        (length,) = struct.unpack_from("<I", info.raw, 16)
        return code.raw[:length] if any(code.raw[:length]) else b""
