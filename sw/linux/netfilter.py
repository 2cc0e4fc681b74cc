"""Netfilter: the hook before routing and iptables' raw table on it (net/netfilter/core.c, net/ipv4/netfilter).

One rule is enough for what is measured with it: ``iptables -t raw -A PREROUTING -p udp -j DROP``.
"""

from sw.core import LINE, function
from sw.linux.cpu import Cpu
from sw.linux.net.udp import IPPROTO_UDP
from sw.structs import Struct

__all__ = ["NF_TABLE_BYTES", "init_raw_table", "nf_hook_pre_routing"]

#: ``struct nf_hook_entries`` with one entry, in a line.
_HOOK_ENTRIES = Struct(LINE, num_hook_entries=2, hook=8, priv=8)
#: ``struct ipt_entry`` and the standard target behind it: 112 and 40 bytes.
_IPT_ENTRY = Struct(
    3 * LINE, src=4, dst=4, smsk=4, dmsk=4, iniface=16, outiface=16, masks=32, proto=2, pad=34, verdict=4
)
#: ``struct xt_counters``, one for each core.
_COUNTERS = Struct(LINE, bcnt=8, pcnt=8)

_NF_DROP = 0

#: The hook's entries and one rule; the counters follow, a line for each core.
NF_TABLE_BYTES = _HOOK_ENTRIES.size + _IPT_ENTRY.size


def init_raw_table(cpu: Cpu, table: int) -> None:
    """Write the hook and its rule to memory."""
    rule = table + _HOOK_ENTRIES.size
    cpu.store(table, _HOOK_ENTRIES.pack(num_hook_entries=1, hook=rule, priv=rule), _HOOK_ENTRIES.size)
    cpu.store(rule, _IPT_ENTRY.pack(proto=IPPROTO_UDP, verdict=_NF_DROP), _IPT_ENTRY.size)


async def nf_hook_pre_routing(cpu: Cpu, header: bytes, length: int) -> bool:
    """Whether a packet goes on. Nothing is done where no table is there: a static branch.

    Arguments:
        header: its IPv4 header.
        length: bytes of the packet, header included.
    """
    table = cpu.kernel.raw_table
    return not table or await nf_hook_slow(cpu, table, header, length)


@function()
async def nf_hook_slow(cpu: Cpu, table: int, header: bytes, length: int) -> bool:
    """Call each hook until one decides."""
    entries = cpu.load_begin(table, _HOOK_ENTRIES.size)
    rule = _HOOK_ENTRIES.hook.of(await cpu.result(entries))
    return await ipt_do_table(cpu, rule, entries, header, length)


@function()
async def ipt_do_table(cpu: Cpu, rule: int, entries: int, header: bytes, length: int) -> bool:
    """Compare the packet with the rule (addresses under masks, protocol), count, take the target's verdict."""
    first = cpu.load_begin(rule, LINE, after=entries)
    entry = await cpu.result(first) + await cpu.load(rule + LINE, LINE, after=entries)
    source, destination, source_mask, destination_mask, *_ = _IPT_ENTRY.unpack(entry + bytes(LINE))
    for address, mask, wanted in (
        (header[12:16], source_mask, source),
        (header[16:20], destination_mask, destination),
    ):
        if int.from_bytes(address, "little") & mask != wanted:
            return True
    protocol = _IPT_ENTRY.proto.of(entry)
    if protocol and header[9] != protocol:
        return True
    counters = cpu.kernel.raw_counters + cpu.index * _COUNTERS.size
    count = await cpu.load(counters, 16)
    count_bytes, packets = _COUNTERS.unpack(count)
    cpu.store(counters, _COUNTERS.pack(bcnt=count_bytes + length, pcnt=packets + 1)[:16], 16)
    return await cpu.load(rule + _IPT_ENTRY.verdict.offset, 4) != _NF_DROP
