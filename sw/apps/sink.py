"""A program that receives UDP datagrams and looks at every byte."""

import zlib

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.socket import SOCK_RCVBUF
from sw.linux.syscall import recvfrom, sys_bind, sys_socket

__all__ = ["BUFFER_BYTES", "Sink"]

#: Bytes of the program's buffer: a page holds any datagram of a 1500-byte MTU.
BUFFER_BYTES = 4096


class Sink:
    """Binds one port and loops over ``recvfrom``.

    Arguments:
        port: UDP port.
        buffer: address of the program's buffer, of :data:`BUFFER_BYTES`.
        rcvbuf: receive buffer of its socket, in bytes of ``truesize``.
        read: also read the payload, as a program would that has a use for it.

    Notes: ``ready`` (program), once; for every datagram ``delivered`` (packet, port, length) at the return from
    ``recvfrom`` and, with ``read``, ``read`` (packet, crc32) once the bytes are known, at the next call's
    first operation.
    """

    def __init__(self, port: int, buffer: int, rcvbuf: int = SOCK_RCVBUF, read: bool = True):
        if not 1 <= port <= 65535:
            raise ValueError(f"a UDP port is between 1 and 65535, not {port}")
        self.port = port
        self.buffer = buffer
        self.rcvbuf = rcvbuf
        self.read = read
        self.received = 0

    async def main(self, cpu: Cpu) -> None:
        """The program."""
        sock = await sink_start(cpu, self)
        while True:
            await sink_receive(cpu, self, sock)


@function()
async def sink_start(cpu: Cpu, sink: Sink) -> int:
    """Make and bind the socket; it is in memory before anyone is told."""
    sock = await sys_socket(cpu, sink.rcvbuf)
    await sys_bind(cpu, sock, sink.port)
    await cpu.fence()
    cpu.note("ready", program=f"sink:{sink.port}")
    return sock


@function()
async def sink_receive(cpu: Cpu, sink: Sink, sock: int) -> None:
    """One turn of the loop."""
    length, packet = await recvfrom(cpu, sock, sink.buffer, BUFFER_BYTES)
    sink.received += 1
    cpu.note("delivered", packet=packet, port=sink.port, length=length)
    cpu.execute("sink_loop")
    if sink.read:
        data = await cpu.load_bytes(sink.buffer, length)
        cpu.note("read", packet=packet, crc32=zlib.crc32(data))
