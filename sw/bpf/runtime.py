"""What helper functions do (``kernel/bpf/helpers.c``, ``net/core/filter.c``), on modelled memory."""

from collections.abc import Callable, Mapping
from errno import EINVAL
from inspect import signature
from typing import Any

from sw.bpf.arithmetic import MASK32, MASK64, sign_extend
from sw.bpf.context import XDP_BUFF, XdpAction
from sw.bpf.fixup import HTAB_LOOKUP
from sw.bpf.helpers import HelperId
from sw.bpf.instruction import MAX_CALL_FRAMES, STACK_BYTES
from sw.bpf.map.area import Area
from sw.bpf.map.base import KernelMap
from sw.bpf.map.hash import HashMap
from sw.bpf.map.xsk import XskMap
from sw.core import LINE, Core, function
from sw.structs import Struct

__all__ = ["BPF_REDIRECT_INFO", "Runtime"]

#: ``struct bpf_redirect_info``: what ``bpf_redirect_map`` leaves for ``xdp_do_redirect``, on each core.
BPF_REDIRECT_INFO = Struct(LINE, tgt_index=8, tgt_value=8, map=8, flags=4, map_id=4, map_type=4)
_NO_MAP_ID = (1 << 31) - 1

#: ``struct rnd_state`` of each core.
_RND_STATE = Struct(16, s1=4, s2=4, s3=4, s4=4)
#: Steps of the Tausworthe generator (``lib/random32.c``): shifts and mask for each word of its state.
_TAUSWORTHE = ((6, 13, ~1, 18), (2, 27, ~7, 2), (13, 21, ~15, 7), (3, 12, ~127, 13))

_ETH_HLEN = 14
#: ``struct xdp_frame``, for which the head of a buffer stays free; ``struct skb_shared_info``, for which its end does.
_XDP_FRAME_BYTES = 40
_SHARED_INFO_BYTES = 320
#: Verdicts that a program may name for a redirect that finds nothing.
_ACTION_MASK = XdpAction.DROP | XdpAction.PASS | XdpAction.TX
#: ``bpf_csum_diff`` takes no more than this (``MAX_BPF_STACK``).
_CSUM_MOST = 512


class Runtime:
    """What programs share while they run.

    Arguments:
        area: where per-CPU variables lie.
        clock: nanoseconds since boot, as a core sees them.
        seed: of the random numbers.
    """

    def __init__(self, area: Area, clock: Callable[[Core], int], seed: int = 1):
        self.area = area
        self.clock = clock
        self.maps: dict[int, KernelMap] = {}  #: by the address of their ``struct bpf_map``
        self.redirect_info = area.allocate_percpu(BPF_REDIRECT_INFO.size, LINE)
        self.rnd_state = area.allocate_percpu(_RND_STATE.size, 16)
        self.seed = seed
        self._stack = area.allocate_percpu(MAX_CALL_FRAMES * STACK_BYTES, LINE)

    async def init(self, core: Core) -> None:
        """Write what per-CPU variables begin with."""
        for number in range(self.area.cores):
            words = [(self.seed * 69069 + 4 * number + n) * 2654435761 & MASK32 | 256 for n in range(4)]
            state = b"".join(word.to_bytes(4, "little") for word in words)
            core.store(self.area.on_core(self.rnd_state, number), state, _RND_STATE.size)

    def stack(self, core: Core) -> int:
        """Address of a core's frames: softirqs do not nest, so each core needs one stack."""
        return self.area.on_core(self._stack, core.index)

    def helpers(self, jit: bool) -> Mapping[int, Callable[..., Any]]:
        """Helper functions by number.

        Arguments:
            jit: calls go to the map's own function directly; the interpreter finds it through the map.
        """

        def arguments_of(code: Callable[..., Any]) -> int:
            return len(signature(code).parameters) - 2

        def bound(code: Callable[..., Any]) -> Callable[..., Any]:
            count = arguments_of(code)

            async def helper(core: Core, *arguments: int) -> int:
                return await code(core, self, *arguments[:count])

            return helper

        return {number: bound(code) for number, code in (_DIRECT if jit else _INDIRECT).items()}


# ---- Maps


async def _lookup(core: Core, runtime: Runtime, map_: int, key: int) -> int:
    return await runtime.maps[map_].lookup(core, key)


async def _update(core: Core, runtime: Runtime, map_: int, key: int, value: int, flags: int) -> int:
    return await runtime.maps[map_].update(core, key, value, flags)


async def _delete(core: Core, runtime: Runtime, map_: int, key: int) -> int:
    return await runtime.maps[map_].delete(core, key)


async def _htab_lookup(core: Core, runtime: Runtime, map_: int, key: int) -> int:
    htab = runtime.maps[map_]
    assert isinstance(htab, HashMap)
    return await htab.lookup_element(core, key)


@function()
async def bpf_map_lookup_elem(core: Core, runtime: Runtime, map_: int, key: int) -> int:
    """Address of the value of a key, or 0."""
    return await _lookup(core, runtime, map_, key)


@function()
async def bpf_map_update_elem(core: Core, runtime: Runtime, map_: int, key: int, value: int, flags: int) -> int:
    """Set a value."""
    return await _update(core, runtime, map_, key, value, flags)


@function()
async def bpf_map_delete_elem(core: Core, runtime: Runtime, map_: int, key: int) -> int:
    """Take an element out."""
    return await _delete(core, runtime, map_, key)


@function()
async def bpf_xdp_redirect_map(core: Core, runtime: Runtime, map_: int, index: int, flags: int) -> int:
    """Note down where the packet shall go (``__bpf_xdp_redirect_map``)."""
    if flags & ~_ACTION_MASK:
        return XdpAction.ABORTED
    xsks = runtime.maps[map_]
    assert isinstance(xsks, XskMap)
    info = runtime.area.on_core(runtime.redirect_info, core.index)
    target = await xsks.socket(core, index & MASK32)
    core.put(info, BPF_REDIRECT_INFO.tgt_value, target)
    if not target:
        core.put(info, BPF_REDIRECT_INFO.map_id, _NO_MAP_ID)
        core.put(info, BPF_REDIRECT_INFO.map_type, 0)
        return flags & _ACTION_MASK
    core.put(info, BPF_REDIRECT_INFO.tgt_index, index & MASK32)
    core.put(info, BPF_REDIRECT_INFO.map_id, xsks.number)
    core.put(info, BPF_REDIRECT_INFO.map_type, xsks.definition.type)
    return XdpAction.REDIRECT


# ---- The packet


@function()
async def bpf_xdp_adjust_head(core: Core, runtime: Runtime, xdp: int, offset: int) -> int:
    """Move the packet's first byte; metadata before it moves along."""
    data, data_end, meta, start = await core.get_all(
        xdp, XDP_BUFF.data, XDP_BUFF.data_end, XDP_BUFF.data_meta, XDP_BUFF.data_hard_start
    )
    offset = sign_extend(offset, 32)
    meta_bytes = data - meta if meta <= data else 0
    if not start + _XDP_FRAME_BYTES + meta_bytes <= data + offset <= data_end - _ETH_HLEN:
        return -EINVAL
    if meta_bytes:
        core.store(meta + offset, await core.load_bytes(meta, meta_bytes), meta_bytes)
    core.put(xdp, XDP_BUFF.data_meta, meta + offset)
    core.put(xdp, XDP_BUFF.data, data + offset)
    return 0


@function()
async def bpf_xdp_adjust_tail(core: Core, runtime: Runtime, xdp: int, offset: int) -> int:
    """Move the packet's end; what is gained is zeros."""
    data, data_end, start, frame_bytes = await core.get_all(
        xdp, XDP_BUFF.data, XDP_BUFF.data_end, XDP_BUFF.data_hard_start, XDP_BUFF.frame_sz
    )
    offset = sign_extend(offset, 32)
    if not data + _ETH_HLEN <= data_end + offset <= start + frame_bytes - _SHARED_INFO_BYTES:
        return -EINVAL
    if offset > 0:
        core.store(data_end, bytes(offset), offset)
    core.put(xdp, XDP_BUFF.data_end, data_end + offset)
    return 0


def _csum_partial(data: bytes, total: int) -> int:
    """32-bit sum with carries added at the end, as x86's ``csum_partial`` gives it."""
    for position in range(0, len(data), 8):
        total += int.from_bytes(data[position : position + 8], "little")
        total = (total & MASK64) + (total >> 64)
    total = (total & MASK32) + (total >> 32)
    return (total & MASK32) + (total >> 32)


def _add32(a: int, b: int) -> int:
    return (a + b & MASK32) + (a + b >> 32)


@function()
async def bpf_csum_diff(
    core: Core, runtime: Runtime, old: int, old_bytes: int, new: int, new_bytes: int, seed: int
) -> int:
    """Checksum of bytes that take the place of others, folded to 16 bits."""
    if old_bytes % 4 or new_bytes % 4 or old_bytes + new_bytes > _CSUM_MOST:
        return -EINVAL
    core.execute("csum_partial_word", (old_bytes + new_bytes) // 4)
    seed &= MASK32
    before = await core.load_bytes(old, old_bytes) if old_bytes else b""
    after = await core.load_bytes(new, new_bytes) if new_bytes else b""
    if before and after:
        total = _add32(_csum_partial(after, seed), ~_csum_partial(before, 0) & MASK32)
    elif after:
        total = _csum_partial(after, seed)
    elif before:
        total = ~_csum_partial(before, ~seed & MASK32) & MASK32
    else:
        total = seed
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


# ---- The rest


@function()
async def bpf_ktime_get_ns(core: Core, runtime: Runtime) -> int:
    """Nanoseconds since boot."""
    return runtime.clock(core)


@function()
async def bpf_get_smp_processor_id(core: Core, runtime: Runtime) -> int:
    """Number of the core."""
    return core.index


@function()
async def bpf_user_rnd_u32(core: Core, runtime: Runtime) -> int:
    """A random number of 32 bits (``prandom_u32_state``)."""
    place = runtime.area.on_core(runtime.rnd_state, core.index)
    state = _RND_STATE.unpack(await core.load_bytes(place, _RND_STATE.size))
    result, words = 0, b""
    for word, (a, b, mask, d) in zip(state, _TAUSWORTHE, strict=True):
        word = ((word & mask) << d & MASK32) ^ ((word << a & MASK32 ^ word) >> b)
        result ^= word
        words += word.to_bytes(4, "little")
    core.store(place, words, _RND_STATE.size)
    return result


_COMMON: dict[int, Callable[..., Any]] = {
    HelperId.KTIME_GET_NS: bpf_ktime_get_ns,
    HelperId.GET_PRANDOM_U32: bpf_user_rnd_u32,
    HelperId.GET_SMP_PROCESSOR_ID: bpf_get_smp_processor_id,
    HelperId.CSUM_DIFF: bpf_csum_diff,
    HelperId.XDP_ADJUST_HEAD: bpf_xdp_adjust_head,
    HelperId.XDP_ADJUST_TAIL: bpf_xdp_adjust_tail,
    HelperId.REDIRECT_MAP: bpf_xdp_redirect_map,
}
_DIRECT = _COMMON | {
    HelperId.MAP_LOOKUP_ELEM: _lookup,
    HelperId.MAP_UPDATE_ELEM: _update,
    HelperId.MAP_DELETE_ELEM: _delete,
    HTAB_LOOKUP: _htab_lookup,
}
_INDIRECT = _COMMON | {
    HelperId.MAP_LOOKUP_ELEM: bpf_map_lookup_elem,
    HelperId.MAP_UPDATE_ELEM: bpf_map_update_elem,
    HelperId.MAP_DELETE_ELEM: bpf_map_delete_elem,
}
