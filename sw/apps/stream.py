"""Programs that accept TCP connections: one reads a stream, one sends it back."""

import abc
import zlib

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.tcp_syscall import (
    TCP_RCVBUF,
    recvfrom,
    sendto,
    sys_accept4,
    sys_bind,
    sys_close,
    sys_listen,
    sys_socket,
)

__all__ = ["STREAM_BUFFER_BYTES", "StreamEcho", "StreamProgram", "StreamSink"]

#: Bytes of a program's buffer.
STREAM_BUFFER_BYTES = 16_384
#: Connections that may wait to be accepted.
_BACKLOG = 128


class StreamProgram(abc.ABC):
    """Listens on a port and serves one connection after another.

    Arguments:
        port: TCP port.
        buffer: address of the program's buffer, of :data:`STREAM_BUFFER_BYTES`.
        rcvbuf: receive buffer of its sockets, in bytes of ``truesize``.

    Notes: ``ready`` (program), once; ``delivered`` (packet, port, length) for every segment whose bytes it has;
    ``stream`` (port, length, crc32, error) at the end of a connection.

    Raises:
        ValueError: for what is no port.
    """

    name: str

    def __init__(self, port: int, buffer: int, rcvbuf: int = TCP_RCVBUF):
        if not 1 <= port <= 65535:
            raise ValueError(f"a TCP port is between 1 and 65535, not {port}")
        self.port = port
        self.buffer = buffer
        self.rcvbuf = rcvbuf

    async def main(self, cpu: Cpu) -> None:
        """The program."""
        listener = await stream_start(cpu, self)
        while True:
            await stream_serve(cpu, self, await sys_accept4(cpu, listener))

    @abc.abstractmethod
    async def use(self, cpu: Cpu, sock: int, length: int, crc32: int) -> tuple[int, int]:
        """Do what the program does with ``length`` bytes in its buffer.

        Arguments:
            crc32: of the stream before them.

        Returns:
            that of the stream with them, and an errno (0: none).
        """


@function()
async def stream_start(cpu: Cpu, program: StreamProgram) -> int:
    """Make the listening socket; it is in memory before anyone is told."""
    sock = await sys_socket(cpu, program.rcvbuf)
    for result in (sock, await sys_bind(cpu, sock, program.port), await sys_listen(cpu, sock, _BACKLOG)):
        if result < 0:
            raise RuntimeError(f"{program.name} cannot listen on port {program.port}: errno {-result}")
    await cpu.fence()
    cpu.note("ready", program=f"{program.name}:{program.port}")
    cpu.execute("sink_loop")
    return sock


@function()
async def stream_serve(cpu: Cpu, program: StreamProgram, sock: int) -> None:
    """One connection, to its end."""
    total = crc32 = 0
    while True:
        length, packets = await recvfrom(cpu, sock, program.buffer, STREAM_BUFFER_BYTES)
        for packet in packets:
            cpu.note("delivered", packet=packet, port=program.port, length=length)
        cpu.execute("sink_loop")
        if length <= 0:
            break
        total += length
        crc32, error = await program.use(cpu, sock, length, crc32)
        if error:
            length = error
            break
    cpu.note("stream", port=program.port, length=total, crc32=crc32, error=-length)
    cpu.execute("sink_loop")
    await sys_close(cpu, sock)


class StreamSink(StreamProgram):
    """Reads every byte, if it is to."""

    name = "sink"

    def __init__(self, port: int, buffer: int, rcvbuf: int = TCP_RCVBUF, read: bool = True):
        super().__init__(port, buffer, rcvbuf)
        self.read = read

    async def use(self, cpu: Cpu, sock: int, length: int, crc32: int) -> tuple[int, int]:
        """Read the bytes."""
        if not self.read:
            return 0, 0
        return zlib.crc32(await cpu.load_bytes(self.buffer, length), crc32), 0


class StreamEcho(StreamProgram):
    """Sends every byte back (RFC 862)."""

    name = "echo"

    async def use(self, cpu: Cpu, sock: int, length: int, crc32: int) -> tuple[int, int]:
        """Send the bytes."""
        sent = await sendto(cpu, sock, self.buffer, length)
        return crc32, min(sent, 0)
