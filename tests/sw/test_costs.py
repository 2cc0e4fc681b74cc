"""Cost tables: every figure has a source, every function of the kernel has a figure."""

import ast
from pathlib import Path

import pytest

import sw
from sw.costs import Cost, CostError, load_costs

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
    costs = load_costs("linux")
    assert costs.keys() <= decorated | executed
    assert executed <= costs.keys()
    # What these do is charged under the functions they call, or is sleeping, or is the boot.
    free = {
        "cpu_idle",
        "default_idle",
        "do_exit",
        "ixgbe_configure_rx",
        "ixgbe_reset_hw",
        "ixgbe_up_complete",
        "ksoftirqd",
        "compute_check",
        "ret_from_fork",
        "sink_receive",
        "sink_start",
        "start_kernel",
    }
    assert decorated - costs.keys() == free


def test_a_packet_costs_about_what_the_header_of_the_table_says():
    costs = load_costs("linux")
    raw_drop = """
        ixgbe_clean_rx_descriptor ixgbe_alloc_rx_descriptor napi_build_skb kmem_cache_alloc ixgbe_process_skb_fields
        eth_type_trans napi_gro_receive netif_receive_skb ip_rcv ip_fast_csum kfree_skb put_page kmem_cache_free
    """.split()
    assert 420 <= sum(costs[name].cycles for name in raw_drop) <= 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("cycles = 10", "cycles = 30"), r"\[f\] cycles = 30 must lie between low = 5 and high = 20"),
        (("cycles = 10", "cycles = 1.5"), r"\[f\] cycles must be a whole number of at least 0, not 1.5"),
        (("uops = 20", "uops = -1"), r"\[f\] uops must be a whole number of at least 0, not -1"),
        (('kind = "estimated"', 'kind = "guessed"'), r"\[f\] kind must be one of measured.*not 'guessed'"),
        (('source = "judged: what it does"', 'source = " "'), r"\[f\] source must say where"),
        (("low = 5\n", ""), r"\[f\] lacks low"),
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
