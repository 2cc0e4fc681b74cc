"""The lock of a socket that a program works on for long (net/core/sock.c).

While a program has it, softirqs leave what comes in the backlog, and timers leave their work as a bit; the program does
both before it lets go.
"""

from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.net.tcp_ipv4 import tcp_v4_do_rcv
from sw.linux.net.tcp_minisocks import sock_put, tcp_done
from sw.linux.net.tcp_sock import TCP_SOCK, TcpState
from sw.linux.net.tcp_timeout import (
    DELACK_TIMER_DEFERRED,
    KEEPALIVE_TIMER_DEFERRED,
    WRITE_TIMER_DEFERRED,
    tcp_delack_timer_handler,
    tcp_write_timer_handler,
)
from sw.linux.skb import SK_BUFF
from sw.linux.softirq import local_bh_disable, local_bh_enable, spin_lock_bh, spin_unlock_bh
from sw.linux.spinlock import raw_spin_lock, raw_spin_unlock

__all__ = ["lock_sock", "release_sock"]


@function()
async def lock_sock(cpu: Cpu, sk: int) -> None:
    """Have the socket for oneself (``lock_sock_nested``); two programs do not share one here."""
    lock = sk + TCP_SOCK.slock.offset
    await spin_lock_bh(cpu, lock)
    if await cpu.get(sk, TCP_SOCK.owned):
        raise RuntimeError(f"two programs use the socket at {sk:#x} at once")
    cpu.put(sk, TCP_SOCK.owned, 1)
    await spin_unlock_bh(cpu, lock)


@function()
async def release_sock(cpu: Cpu, sk: int) -> None:
    """Do what others have left, then let go; the socket is gone then if it has ended."""
    lock = sk + TCP_SOCK.slock.offset
    await spin_lock_bh(cpu, lock)
    while head := await cpu.get(sk, TCP_SOCK.backlog_head):
        await _release_backlog(cpu, sk, head)
    deferred = await cpu.get(sk, TCP_SOCK.deferred)
    if deferred:
        await tcp_release_cb(cpu, sk, deferred)
    cpu.put(sk, TCP_SOCK.owned, 0)
    raw_spin_unlock(cpu, lock)
    await sock_put(cpu, sk)
    await local_bh_enable(cpu)


async def _release_backlog(cpu: Cpu, sk: int, skb: int) -> None:
    """Work on the chain of segments that begins with ``skb``; more may come meanwhile (``__release_sock``)."""
    lock = sk + TCP_SOCK.slock.offset
    cpu.put(sk, TCP_SOCK.backlog_head, 0)
    cpu.put(sk, TCP_SOCK.backlog_tail, 0)
    raw_spin_unlock(cpu, lock)
    await local_bh_enable(cpu)
    while skb:
        following = await cpu.get(skb, SK_BUFF.next)
        local_bh_disable(cpu)
        await tcp_v4_do_rcv(cpu, sk, skb)
        await local_bh_enable(cpu)
        skb = following
    local_bh_disable(cpu)
    await raw_spin_lock(cpu, lock)
    # Only now, so that a sender cannot keep a program here for ever.
    cpu.put(sk, TCP_SOCK.backlog_len, 0)


@function()
async def tcp_release_cb(cpu: Cpu, sk: int, deferred: int) -> None:
    """Timers that went off meanwhile."""
    cpu.put(sk, TCP_SOCK.deferred, 0)
    if deferred & WRITE_TIMER_DEFERRED:
        await tcp_write_timer_handler(cpu, sk)
    if deferred & DELACK_TIMER_DEFERRED:
        await tcp_delack_timer_handler(cpu, sk)
    if deferred & KEEPALIVE_TIMER_DEFERRED:
        if await cpu.get(sk, TCP_SOCK.state) in (TcpState.TIME_WAIT, TcpState.FIN_WAIT2):
            await tcp_done(cpu, sk)
