"""Cost tables: every figure has a source, every function of the kernel has a figure."""

import ast
from pathlib import Path

import pytest

import sw
from sw.costs import Cost, CostError, load_costs, load_tables, mitigations_of

SOURCES = Path(sw.__file__).parent
ENTRY = """
[f]
cycles = 10
uops = 20
text_bytes = 100
source = "judged: what it does"
kind = "estimated"
low = 5
high = 20
"""


def test_the_table_of_linux():
    costs = load_costs("linux")
    assert all(isinstance(cost, Cost) for cost in costs.values())
    with pytest.raises(TypeError):
        costs["f"] = None  # type: ignore[index]


def charged_and_used() -> tuple[set[str], set[str]]:
    """Names of decorated functions in kernel and driver, and every name given to ``execute``, in the sources."""
    decorated, executed = set(), set()
    for path in SOURCES.rglob("*.py"):
        if path.relative_to(SOURCES).parts[0] == "bpf":  # has a table of its own: tests/sw/bpf/test_bpf_costs.py
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AsyncFunctionDef) and any(
                isinstance(d, ast.Call) and getattr(d.func, "id", "") == "function" for d in node.decorator_list
            ):
                decorated.add(node.name)
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "execute":
                executed |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return decorated, executed


def test_no_entry_is_unused_and_none_is_missing():
    decorated, executed = charged_and_used()
    costs = load_tables(("linux", "dpdk", "xsk"))
    # One turn of a loop that is polled: rx_burst_wait, busy_poll_wait, and xdpsock that spins.
    looked_up = {"rx_burst_empty", "busy_poll_empty", "xsk_ring_empty"}
    assert costs.keys() <= decorated | executed | looked_up
    assert executed <= costs.keys()
    # What these do is charged under the functions they call, or is sleeping, or is the boot.
    free = {
        "busy_poll_wait",
        "compute_check",
        "cpu_idle",
        "default_idle",
        "dmar_fault",
        "dmar_set_interrupt",
        "do_exit",
        "echo_datagram",
        "echo_start",
        "init_dmars",
        "iommu_flush_context_global",
        "iommu_flush_iotlb_global",
        "iommu_set_root_entry",
        "ixgbe_configure_rx",
        "ixgbe_configure_tx",
        "ixgbe_dev_rx_queue_start",
        "ixgbe_reset_hw",
        "ixgbe_rx_enable",
        "ixgbe_rx_queue_start",
        "ixgbe_rx_queue_stop",
        "ixgbe_rx_unit_configure",
        "ixgbe_tx_queue_start",
        "ixgbe_tx_queue_stop",
        "ixgbe_txrx_ring_disable",
        "ixgbe_txrx_ring_enable_zc",
        "ixgbe_up_complete",
        "ixgbe_wait_link",
        "ksoftirqd",
        "native_queued_spin_lock_slowpath",
        "ret_from_fork",
        "rte_eal_init",
        "rte_eth_dev_start",
        "rte_mempool_create",
        "rte_pktmbuf_pool_create",
        "rx_burst_wait",
        "set_ddio",
        "sink_receive",
        "sink_start",
        "start_kernel",
        "stream_serve",
        "stream_start",
        "xdpsock_start",
        "xsk_bind",
        "xsk_getsockopt",
        "xsk_mmap",
        "xsk_ring_wait",
        "xsk_setsockopt",
        "xsk_socket",
    }
    assert decorated - costs.keys() == free


RAW_DROP = """
    ixgbe_clean_rx_descriptor ixgbe_alloc_rx_descriptor napi_build_skb kmem_cache_alloc ixgbe_process_skb_fields
    eth_type_trans napi_gro_receive netif_receive_skb ip_rcv ip_fast_csum kfree_skb put_page kmem_cache_free
""".split()


def test_the_published_packet_lies_in_the_band():
    """docs/costs.md: 750 cycles a packet (xdp_2018, linux_raw), stalls included; no figure was tuned to it."""
    costs = [load_costs("linux")[name] for name in RAW_DROP]
    assert sum(c.low for c in costs) < 750 < sum(c.high for c in costs)


def test_mitigations_are_off_until_asked_for():
    costs = load_costs("linux")
    hard = load_costs("linux", mitigations=("retpoline", "page_table_isolation"))
    assert hard.keys() == costs.keys()
    assert hard["napi_poll"].indirect == 1
    assert hard["napi_poll"].cycles == costs["napi_poll"].cycles + 30
    assert hard["entry_SYSCALL_64"].cycles == costs["entry_SYSCALL_64"].cycles + 220
    assert hard["eth_type_trans"] == costs["eth_type_trans"]
    assert load_costs("linux", ["retpoline", "retpoline"]) == load_costs("linux", ["retpoline"])
    with pytest.raises(CostError, match=r"no mitigation 'kpti'; there are: ibrs, page_table_isolation, retpoline"):
        load_costs("linux", ["kpti"])


def test_settings_of_mitigations():
    assert mitigations_of("off") == ()
    assert mitigations_of("auto") == ("page_table_isolation", "retpoline")
    assert mitigations_of("retpoline,ibrs,retpoline") == ("ibrs", "retpoline")
    for wrong in ("on", "", "auto,nosmt", "retpoline,"):
        with pytest.raises(CostError, match=r"off, auto, or some of ibrs, page_table_isolation, retpoline") as error:
            mitigations_of(wrong)
        assert "\n" not in str(error.value)


MITIGATION = """
[mitigations.m]
cycles = 7
uops = 3
low = 6
high = 8
source = "s"
kind = "chosen"
entries = { f = 2 }
"""


def test_a_mitigation_counts_by_indirect_calls_and_by_entry(tmp_path):
    path = tmp_path / "table.toml"
    path.write_text(ENTRY + "indirect = 1.5\n" + MITIGATION + "indirect = true\n")
    cost = load_costs(path, ["m"])["f"]
    assert (cost.cycles, cost.uops, cost.low, cost.high) == (10 + 24, 20 + 10, 5 + 21, 20 + 28)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("f = 2", "g = 2"), r"\[mitigations.m\] names g, which have no entry"),
        (("f = 2", "f = 0"), r"\[mitigations.m\] entries must be a table of whole numbers of at least 1"),
        (("cycles = 7", "cycles = 9"), r"\[mitigations.m\] cycles = 9 must lie between low = 6 and high = 8"),
        (("uops = 3", "uop = 3"), r"\[mitigations.m\] has unknown uop; valid: cycles"),
        (("uops = 3\n", ""), r"\[mitigations.m\] lacks uops"),
    ],
)
def test_a_wrong_mitigation_is_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "table.toml"
    path.write_text(ENTRY + MITIGATION.replace(*change))
    with pytest.raises(CostError, match=message) as error:
        load_costs(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("cycles = 10", "cycles = 30"), r"\[f\] cycles = 30 must lie between low = 5 and high = 20"),
        (("cycles = 10", "cycles = 1.5"), r"\[f\] cycles must be a whole number of at least 0, not 1.5"),
        (("uops = 20", "uops = -1"), r"\[f\] uops must be a whole number of at least 0, not -1"),
        (('kind = "estimated"', 'kind = "guessed"'), r"\[f\] kind must be one of measured.*not 'guessed'"),
        (('source = "judged: what it does"', 'source = " "'), r"\[f\] source must say where"),
        (("low = 5\n", ""), r"\[f\] lacks low"),
        (("high = 20", "high = 20\nindirect = -1"), r"\[f\] indirect must be a number of at least 0, not -1"),
        (("low = 5", "lowest = 5"), r"\[f\] has unknown lowest; valid: cycles"),
        (("[f]", "[f"), "Expected"),
        (("[f]", "f = 3\n[g]"), "f must be a table"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "table.toml"
    path.write_text(ENTRY)
    assert load_costs(path)["f"].cycles == 10
    path.write_text(ENTRY.replace(*change))
    with pytest.raises(CostError, match=message) as error:
        load_costs(path)
    assert "\n" not in str(error.value)


def test_an_unknown_table_names_those_there_are():
    with pytest.raises(CostError, match=r"no cost table 'plan9'; there are: .*linux"):
        load_costs("plan9")
