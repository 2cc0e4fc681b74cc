"""Orders that must come out by themselves, as core cycles per packet on one core, and shapes under rising load.

Which costs are true within their bands is not known, so an order is claimed only if it holds where it is least true
(:func:`bands.worst`). Those that do not are in :data:`NOT_CLAIMED`, are printed as such, and must turn round there.
"""

import itertools
import sys
from pathlib import Path

import pytest

from sim.report.published import figures

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from bands import Case, calls, cycles, result, worst, worst_ends  # noqa: E402

#: From the cheapest packet on. A 10G port leaves the fast paths idle between small bursts; at 100G they are busy.
ORDER = ["dpdk:rxonly", "xdp:drop", "af-xdp:rxdrop", "napi:rawdrop", "napi:sink", "tcp:sink"]
PAIRS = list(itertools.pairwise(ORDER))

#: Pairs of :data:`ORDER` that could be the other way round within the bands of their costs.
NOT_CLAIMED = frozenset({("dpdk:rxonly", "xdp:drop"), ("xdp:drop", "af-xdp:rxdrop")})


def at_100g(way: str, count: int = 1500, **changes) -> Case:
    return Case(way, "xdp-paper", count=count, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(("less", "more"), PAIRS)
def test_orders_of_core_cycles_per_packet(less, more):
    cheap, dear = at_100g(less), at_100g(more)
    low, high = worst(cheap, dear)
    claimed = low < high
    print(
        f"\n{less} < {more}: {cycles(cheap):,.0f} < {cycles(dear):,.0f}; least true: {low:,.0f}, {high:,.0f}:", end=" "
    )
    print("claimed" if claimed else "not claimed")
    assert cycles(cheap) < cycles(dear)
    assert claimed == ((less, more) not in NOT_CLAIMED)


def test_the_worst_ends_are_worse_than_both_ends_of_all():
    """What is found by counting is at least as bad for the order as all costs low, or all high."""
    less, more = (Case(way, "tiny", rate="1Mpps", count=40) for way in ("xdp:drop", "napi:rawdrop"))
    assert 0 < len(worst_ends(less, more)) < len(calls(less))
    assert calls(less)["ixgbe_run_xdp"] == 1 and "ixgbe_run_xdp" not in calls(more)
    assert "ixgbe_run_xdp" in worst_ends(less, more) and "ip_rcv" not in worst_ends(less, more)
    low, high = worst(less, more)
    for ends in ("low", "cycles", "high"):
        assert high - low < cycles(more, ends) - cycles(less, ends), ends


def test_an_order_that_a_band_could_turn_is_found_out(monkeypatch):
    """Of two ways as good as equal, each may be the cheaper one."""
    one, other = (Case(way, "tiny", rate="1Mpps", count=40) for way in ("xdp:drop", "xdp:count"))
    assert cycles(one) < cycles(other)
    low, high = worst(other, one)
    assert low > high


# ---- Rising load


def delivered(way: str, rate: str, count: int) -> float:
    """Million packets a second on the 10G machine, a short ring behind the card so that it is soon full."""
    case = Case(way, "teaching", rate=rate, count=count, options=(("ring_size", 128),))
    return result(case)["rates"]["delivered_mpps"]


def test_napi_with_a_raw_drop_stays_at_its_peak():
    peak = delivered("napi:rawdrop", "4Mpps", 1200)
    assert peak > 3.5, "it keeps up"
    for rate in ("6Mpps", "10Mpps", "line"):
        assert delivered("napi:rawdrop", rate, 1500) > 0.9 * peak, rate


@pytest.mark.slow
def test_napi_with_a_socket_on_its_core_never_falls_towards_zero():
    """Past its peak it falls, but not further as the load grows further: the thread lets the program have its turns."""
    peak = delivered("napi:sink", "1500kpps", 2000)
    twice, ten_times = delivered("napi:sink", "4Mpps", 8000), delivered("napi:sink", "line", 30_000)
    assert peak > 1.4, "it keeps up"
    assert ten_times > 0.8 * twice
    assert min(twice, ten_times) > 0.15 * peak


@pytest.mark.slow
def test_an_interrupt_for_each_packet_starves_the_program():
    peak = max(delivered("interrupt:sink", rate, 2000) for rate in ("300kpps", "500kpps", "700kpps"))
    flooded = [delivered("interrupt:sink", "line", count) for count in (20_000, 40_000)]
    assert flooded[0] < 0.2 * peak
    assert flooded[1] < 0.6 * flooded[0], "what was delivered came before and after the flood: the longer, the less"


# ---- Batches


def batches(ends="cycles") -> dict[int, float]:
    """Core cycles per packet of a poll-mode driver by the size of its bursts."""
    case = at_100g("dpdk:l2fwd", 2000)
    return {n: cycles(Case(**{**vars(case), "options": (("batch", n),)}), ends) for n in (1, 2, 4, 8, 16, 32)}


@pytest.mark.slow
def test_larger_bursts_help_a_poll_mode_driver():
    """Bursts of less than 4 are not for the vector driver; from 8 on little is left to be gained, as was measured."""
    for ends in ("low", "cycles", "high"):
        spent = batches(ends)
        assert spent[1] > spent[2] > spent[4] and spent[1] > 1.3 * spent[32], ends
        assert spent[4] > spent[8] > 0.99 * spent[32] and spent[4] > 1.1 * spent[32], ends
    published = next(figure for figure in figures() if figure.source.startswith("ixy"))
    predicted = batches()[8] / batches()[32]
    print(f"\n{published.what}: {published.published:g} ({published.source}), model {predicted:.2f}")
    assert published.published == 1 and predicted < 1.2


# ---- DDIO

SMALL, LARGE = 64, 1518


def without_ddio(way: str, size: int) -> float:
    """Core cycles that a packet takes more where DDIO is off, at a load that every way keeps up with."""
    on, off = (
        cycles(Case(way, "teaching", settings, size=size, rate="500kpps", count=300))
        for settings in ((), ("llc.ddio=false",))
    )
    return off - on


@pytest.mark.slow
@pytest.mark.parametrize("way", ("xdp:drop", "napi:rawdrop", "dpdk:l2fwd", "dpdk:echo"))
def test_without_ddio_a_way_that_reads_headers_pays_for_one_line(way):
    small, large = without_ddio(way, SMALL), without_ddio(way, LARGE)
    assert small > 30, "an access to DRAM, part of it overlapped"
    assert large == pytest.approx(small, rel=0.15), "however long the frame is"


@pytest.mark.slow
def test_without_ddio_a_way_that_reads_nothing_pays_nothing():
    for size in SMALL, LARGE:
        assert abs(without_ddio("dpdk:rxonly", size)) < 2


@pytest.mark.slow
def test_without_ddio_a_way_that_reads_the_payload_pays_for_every_line():
    """Loads of a copy overlap: a line costs less than an access to DRAM, and the cost grows with the lines."""
    extra = {size: without_ddio("napi:sink", size) for size in (SMALL, 512, 1024, LARGE)}
    lines = {size: -(-(size - 4) // 64) for size in extra}
    each = [(extra[b] - extra[a]) / (lines[b] - lines[a]) for a, b in itertools.pairwise(extra)]
    print(f"\nDDIO off: {extra}, for each line more: {each}")
    assert all(cost > 3 for cost in each)
    assert extra[LARGE] > 3 * extra[SMALL]
