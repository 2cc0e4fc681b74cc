"""A program that sends every UDP datagram back to where it came from."""

from sw.core import LINE, function
from sw.linux.cpu import Cpu
from sw.linux.syscall import recvfrom, sendto, sys_bind, sys_socket

__all__ = ["ECHO_BYTES", "UdpEcho"]

_BUFFER_BYTES = 4096
#: Bytes of the program's memory: the buffer, and where the datagram came from.
ECHO_BYTES = _BUFFER_BYTES + LINE


class UdpEcho:
    """Binds one port and loops over ``recvfrom`` and ``sendto``, in the manner of the service of RFC 862.

    Arguments:
        port: UDP port.
        memory: address of :data:`ECHO_BYTES` of the program's own.
        rcvbuf: receive buffer of its socket, in bytes of ``truesize``.
        sndbuf: send buffer likewise.

    Notes: ``ready`` (program), once. For each datagram the driver notes ``sent``, or who drops the answer ``dropped``.
    """

    def __init__(self, port: int, memory: int, rcvbuf: int, sndbuf: int):
        if not 1 <= port <= 65535:
            raise ValueError(f"a UDP port is between 1 and 65535, not {port}")
        self.port = port
        self.buffer = memory
        self.name = memory + _BUFFER_BYTES
        self.rcvbuf = rcvbuf
        self.sndbuf = sndbuf

    async def main(self, cpu: Cpu) -> None:
        """The program."""
        sock = await echo_start(cpu, self)
        while True:
            await echo_datagram(cpu, self, sock)


@function()
async def echo_start(cpu: Cpu, echo: UdpEcho) -> int:
    """Make and bind the socket; it is in memory before anyone is told."""
    sock = await sys_socket(cpu, echo.rcvbuf, echo.sndbuf)
    await sys_bind(cpu, sock, echo.port)
    await cpu.fence()
    cpu.note("ready", program=f"echo:{echo.port}")
    return sock


@function()
async def echo_datagram(cpu: Cpu, echo: UdpEcho, sock: int) -> None:
    """One turn of the loop."""
    length, packet = await recvfrom(cpu, sock, echo.buffer, _BUFFER_BYTES, echo.name)
    cpu.execute("sink_loop")
    await sendto(cpu, sock, echo.buffer, length, echo.name, packet)
