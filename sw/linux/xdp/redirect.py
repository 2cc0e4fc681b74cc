"""Where a program's verdict REDIRECT leads (net/core/filter.c)."""

from errno import EINVAL, ENOBUFS, ENOMEM, ENOSPC

from sw.bpf.maps import MapType
from sw.bpf.runtime import BPF_REDIRECT_INFO, Runtime
from sw.core import function
from sw.linux.cpu import Cpu
from sw.linux.xdp.xsk import AfXdp, xsk_map_redirect

__all__ = ["redirect_drop_reason", "xdp_do_redirect"]

#: Drops that a socket counts, as ``struct xdp_statistics`` names them.
_COUNTED = {ENOBUFS: "rx_ring_full", ENOMEM: "rx_fill_ring_empty_descs", ENOSPC: "rx_dropped"}


@function()
async def xdp_do_redirect(cpu: Cpu, runtime: Runtime, family: AfXdp | None, buff: int, packet: tuple[int, int]) -> int:
    """Take a packet where the program has said just now; 0 or a negative errno.

    Arguments:
        runtime: of the program.
        family: the sockets there are.
        buff: address of the ``struct xdp_buff``.
        packet: which received packet it is, for observers.
    """
    info = runtime.area.on_core(runtime.redirect_info, cpu.index)
    target, kind = await cpu.get_all(info, BPF_REDIRECT_INFO.tgt_value, BPF_REDIRECT_INFO.map_type)
    cpu.put(info, BPF_REDIRECT_INFO.map_id, 0)
    cpu.put(info, BPF_REDIRECT_INFO.map_type, 0)
    if family is None or kind != MapType.XSKMAP:
        return -EINVAL
    return await xsk_map_redirect(cpu, family, target, buff, packet)


def redirect_drop_reason(error: int) -> str:
    """Why a packet is dropped that could not be redirected."""
    return _COUNTED.get(-error, "XDP_REDIRECT")
