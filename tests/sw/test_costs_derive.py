"""Derivation of costs: the kept evidence gives the kept table; calls are followed; llvm-mca is asked rightly."""

import json
import shutil
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest

import sw.costs
from sw.costs import KINDS, load_costs
from sw.costs.derive import mca
from sw.costs.derive.__main__ import TABLES
from sw.costs.derive.instruction import Instruction
from sw.costs.derive.special import special_figures
from sw.costs.derive.table import cost_of, rewrite
from sw.costs.derive.trace import Tracer, executed

DERIVE = Path(sw.costs.__file__).with_name("derive")
EVIDENCE = {table: json.loads((DERIVE / f"{table}.evidence.json").read_text()) for table in TABLES}
PLAN = {table: tomllib.loads((DERIVE / f"{table}.toml").read_text()) for table in TABLES}
ENTRIES = [(table, name) for table in TABLES for name in EVIDENCE[table]["entries"]]

needs_mca = pytest.mark.skipif(mca.find_mca() is None, reason="there is no llvm-mca (Debian package llvm-19)")


# The table


#: Entries of kind "derived" without code of their own.
INLINED = {"linux": {"ip_fast_csum"}}


@pytest.mark.parametrize("table", TABLES)
def test_the_table_is_what_the_evidence_says(table):
    costs, evidence, plan = load_costs(table), EVIDENCE[table], PLAN[table]
    assert evidence["entries"].keys() == plan["entry"].keys()
    called = {name: entry for name, entry in plan["entry"].items() if "operations" in entry}
    for name, entry in called.items():
        assert costs[name] == cost_of(entry, evidence["entries"][name], evidence["source"]), name
    assert {name for name, cost in costs.items() if cost.kind == "derived"} == called.keys() | INLINED.get(table, set())


@pytest.mark.parametrize(
    "table, name", [pair for pair in ENTRIES if "operations" not in PLAN[pair[0]]["entry"][pair[1]]]
)
def test_what_nobody_calls_yet_could_be_an_entry(table, name):
    parts = EVIDENCE[table]["entries"][name]
    cost = cost_of({"operations": 0}, parts, EVIDENCE[table]["source"])
    assert cost.kind == "derived" and cost.cycles > 0


def test_special_figures_say_where_they_come_from():
    for name, figures in special_figures().items():
        assert figures["kind"] in KINDS and figures["source"].strip(), name
        assert 0 <= figures["low"] <= figures["cycles"] <= figures["high"], name
    seen = {name for table, entry in ENTRIES for part in EVIDENCE[table]["entries"][entry] for name in part["special"]}
    assert seen <= special_figures().keys()


@pytest.mark.parametrize("table, name", ENTRIES)
def test_the_evidence_is_as_planned(table, name):
    parts, planned = EVIDENCE[table]["entries"][name], PLAN[table]["entry"][name]
    assert [part["path"] for part in parts] == [part["path"] for part in planned["parts"]]
    for part, plan in zip(parts, planned["parts"], strict=True):
        assert (part["of"], part["times"]) == (plan.get("of", 1), plan.get("times", 1))
        assert part.get("turns", 1) == plan.get("turns", 1)
        assert bool(part["seen"]) == ("log" in plan)
        assert part["seen"] <= part["calls"]
        assert part["low"] <= part["cycles"] <= part["high"]
        assert part["code"] and part["lines"]


@pytest.mark.parametrize("table", TABLES)
def test_every_walk_is_of_use(table):
    used = {part["path"] for entry in PLAN[table]["entry"].values() for part in entry["parts"]}
    used |= {walk for described in PLAN[table]["walk"].values() for walk in described.get("into", {}).values()}
    assert PLAN[table]["walk"].keys() <= used


PART = {"path": "p", "times": 1.0, "of": 1, "uops": 10.0, "cycles": 20.4, "low": 9.9, "high": 30.1, "indirect": 1}
PART |= {"special": {}, "locked": 0}
LOCK = special_figures()["lock"]


def test_parts_add_up_less_what_the_model_issues():
    parts = [PART | {"lines": ["40", "80"]}, PART | {"path": "q", "times": 0.5, "of": 2, "lines": ["80", "c0"]}]
    cost = cost_of({"operations": 3}, parts, "kernel")
    assert (cost.cycles, cost.uops, cost.low, cost.high) == (22, 10, 9, 38)  # 25.5 - 3, 12.5 - 3, 12.4 - 3, 37.6
    assert (cost.text_bytes, cost.indirect, cost.source) == (3 * 64, 1.25, "kernel: p + q")


def test_more_operations_than_cycles_leave_one_cycle():
    cost = cost_of({"operations": 50}, [PART | {"lines": ["40"]}], "kernel")
    assert (cost.cycles, cost.uops, cost.low) == (1, 1, 0)


def test_special_instructions_add_their_own_figure_and_an_atomic_has_its_own_time():
    parts = [PART | {"lines": ["40"], "special": {"cli": 1, "lock": 2}, "locked": 2}]
    plain, cli = cost_of({"operations": 0}, [PART | {"lines": ["40"]}], "kernel"), special_figures()["cli"]
    cost = cost_of({"operations": 0}, parts, "kernel")
    for what in ("cycles", "uops", "low", "high"):
        assert getattr(cost, what) == getattr(plain, what) + cli[what] + 2 * LOCK[what]
    issued = cost_of({"operations": 0, "atomics": 2}, parts, "kernel")
    for what in ("cycles", "uops", "low", "high"):
        assert getattr(issued, what) == getattr(plain, what) + cli[what]
    with pytest.raises(ValueError, match="3 atomics for 2 locked instructions"):
        cost_of({"operations": 0, "atomics": 3}, parts, "kernel")


def test_rewriting_changes_only_the_entries_named(tmp_path):
    table = tmp_path / "linux.toml"
    shutil.copy(DERIVE.with_name("linux.toml"), table)
    before = table.read_text()
    costs = load_costs(table)
    rewrite(table, {name: costs[name] for name in EVIDENCE["linux"]["entries"] if name in costs})
    assert table.read_text() == before
    with pytest.raises(ValueError, match="has no entry nobody to be replaced"):
        rewrite(table, {"nobody": costs["ip_rcv"]})


# Following calls


class Code:
    """Stands for the kernel's text: functions of given instructions, 1 byte each."""

    def __init__(self, functions: dict[str, tuple[int, list[str]]]):
        self._starts = {name: start for name, (start, _) in functions.items()}
        self._lines = {start + i: line for start, lines in functions.values() for i, line in enumerate(lines)}

    def address_of(self, name):
        return self._starts[name]

    def place(self, address):
        start, name = max((start, name) for name, start in self._starts.items() if start <= address)
        return name, address - start

    def names_at(self, address):
        return {name for name, start in self._starts.items() if start == address}

    def instruction(self, address):
        mnemonic, _, operands = self._lines[address].partition(" ")
        if mnemonic == "rep":
            mnemonic, operands = "rep stosq", ""
        return Instruction(address, 1, mnemonic, operands)


K = 1 << 63
CODE = Code(
    {
        "root": (K + 0x10, ["mov", f"callq {K + 0x20:#x}", "rep", "mov", f"callq {K + 0x30:#x}", "retq"]),
        "helper": (K + 0x20, ["mov", "retq"]),
        "nested": (K + 0x30, ["mov", f"jmp {K + 0x40:#x}"]),
        "tail": (K + 0x40, ["mov", "retq"]),
        "__switch_to_asm": (K + 0x50, ["jmp"]),
        "asm_interrupt": (K + 0x60, ["mov", "iretq"]),
    }
)
PATH = (0x10, 0x20, 0x12, 0x12, 0x12, 0x13, 0x30, 0x40, 0x15)


def follow(tmp_path, addresses, roots=("root", "nested", "tail")) -> dict[str, Counter]:
    log = tmp_path / "log"
    log.write_text(
        "".join(f"Trace 0: 0x7f00 [00000000/{K + a if a else 5:016x}/0/0] \n" for a in (0, *addresses, 0, 0))
    )
    tracer = Tracer(CODE, set(roots))
    tracer.follow(log)
    return tracer.paths


def only(paths: Counter) -> tuple[list[tuple[int, int]], tuple[str, ...]]:
    ((runs, nested),) = paths
    return [(start - K, end - K) for start, end in runs], nested


def test_runs_go_to_the_innermost_root_and_repeats_count_once(tmp_path):
    paths = follow(tmp_path, PATH)
    assert only(paths["root"]) == (
        [(0x10, 0x12), (0x20, 0x22), (0x12, 0x16)],
        ("nested",),
    )
    assert only(paths["nested"]) == ([(0x30, 0x32)], ("tail",))
    assert only(paths["tail"]) == ([(0x40, 0x42)], ())


def test_an_interrupt_leaves_the_path_as_it_was(tmp_path):
    for position in range(1, len(PATH)):
        if PATH[position] == PATH[position - 1]:
            continue  # within the repeated instruction
        paths = follow(tmp_path, (*PATH[:position], 0x60, *PATH[position:]))
        assert only(paths["root"]) == only(follow(tmp_path, PATH)["root"])
        assert only(paths["(interrupt)"]) == ([(0x60, 0x62)], ())


def test_blocks_that_were_not_run_and_other_processors_are_left_out(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        f"Trace 0: 0x1 [0/{K:x}/0/0] \nTrace 1: 0x1 [0/{K + 1:x}/0/0] \nTrace 0: 0x1 [0/{K + 2:x}/0/0] \n"
        f"Stopped execution of TB chain before 0x1 [{K + 2:x}] \nTrace 0: 0x1 [0/1000/0/0] \n"
    )
    assert list(executed(log)) == [K, 0]


# llvm-mca


def code(*lines: str) -> list[Instruction]:
    parts = [line.partition(" ") for line in lines]
    return [
        Instruction(i, 1, *((m, o) if m not in ("lock", "rep") else (f"{m} {o.split()[0]}", "")))
        for i, (m, _, o) in enumerate(parts)
    ]


def test_what_llvm_mca_gets():
    lines, special = mca.prepare(
        code("pushq %rbx", "cmpq %rax, %rbx", "je 0x12", "cmpq $1, 8(%rax)", "je 0x12", "testl %eax, %eax", "js 0x12")
        + code("cmpl %eax, %ebx", "js 0x12", "callq 0x1000", "callq *%rax", "jmpq *8(%rax)", "popq %rbx", "retq")
        + code("lock incl", "rep stosq", "cli", "swapgs", "divq %rcx", "xchgl %eax, (%rdi)", "xchgl %eax, %ebx")
    )
    assert lines == [
        *("movq %rbx, -8(%rsp)", "cmpq %rax, %rbx", "cmpq $1, 8(%rax)", "je start", "testl %eax, %eax"),
        *("cmpl %eax, %ebx", "js start", "movq %rsp, -8(%rsp)", "jmp start", "movq %rsp, -8(%rsp)", "jmpq *%rax"),
        *("jmpq *8(%rax)", "movq (%rsp), %rbx", "jmpq *(%rsp)", "xchgl %eax, %ebx"),
    ]
    assert special == {"lock": 2, "rep": 1, "cli": 1, "swapgs": 1, "div": 1}


@needs_mca
def test_independent_and_dependent_code():
    loose = mca.analyse(code(*(f"addq $1, %{r}" for r in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9"))))
    assert loose.cycles == pytest.approx(2, abs=0.3)  # four a cycle
    assert (loose.instructions, loose.uops, loose.indirect) == (8, 8, 0)
    chain = mca.analyse(code(*["addq $1, %rax"] * 8))
    assert chain.cycles == pytest.approx(8, abs=0.3)
    chase = mca.analyse(code(*["movq (%rax), %rax"] * 4))
    assert chase.cycles == pytest.approx(20, abs=0.5)  # L1's 5 cycles each
    assert loose.low <= loose.cycles <= loose.high


@needs_mca
def test_special_instructions_are_taken_out():
    plain = mca.analyse(code("addq $1, %rax"))
    locked = mca.analyse(code("addq $1, %rax", "lock incl"), also=["syscall"])
    assert locked.cycles == pytest.approx(plain.cycles)
    assert (locked.locked, locked.special) == (1, {"lock": 1, "syscall": 1})


@needs_mca
def test_what_nobody_has_a_figure_for_is_refused_in_one_line():
    with pytest.raises(mca.McaError, match=r"no figure for wrmsr: add it to special\.toml"):
        mca.analyse(code("wrmsr"))
    with pytest.raises(mca.McaError, match="llvm-mca refuses the code: ") as error:
        mca.analyse(code("addq $1"))
    assert "\n" not in str(error.value)


def test_without_llvm_mca_its_package_is_named(monkeypatch):
    monkeypatch.setattr(mca, "find_mca", lambda: None)
    with pytest.raises(mca.McaError, match="Debian package llvm-19"):
        mca.analyse(code("addq $1, %rax"))


# All of it, on a function assembled here

SOURCE = """
outer:
    pushq %rbx
    movq %rdi, %rbx
    testq %rbx, %rbx
    je 1f
    call inner
    addq (%rbx), %rax
1:  popq %rbx
    ret
inner:
    movq 8(%rdi), %rax
    ret
"""


@needs_mca
@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_a_function_assembled_here(tmp_path):
    pytest.importorskip("capstone", reason="the extra `costs` is not installed")
    from sw.costs.derive.paths import PathError, find_paths
    from sw.costs.derive.text import Text

    command = ["gcc", "-nostdlib", "-c", "-x", "assembler", "-", "-o", str(tmp_path / "o")]
    subprocess.run(command, input=SOURCE, text=True, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", str(tmp_path / "o"), str(tmp_path / "bin")], check=True)
    data = (tmp_path / "bin").read_bytes()
    inner = len(data) - 5
    text = Text([(K, data)], [(K, "outer"), (K + inner, "inner"), (K + 0x1000, "__switch_to_asm")])
    names = [i.mnemonic for i in text.run(K, K + len(data))]
    assert names == ["pushq", "movq", "testq", "je", "callq", "addq", "popq", "retq", "movq", "retq"]
    call = next(i for i in text.run(K, K + inner) if i.is_call)
    assert call.target == K + inner and text.place(call.target) == ("inner", 0)

    plan = {
        "roots": [],
        "walk": {
            "outer": {"function": "outer", "into": {f"{call.address - K:#x}": "inner"}},
            "inner": {"function": "inner"},
            "wrong": {"function": "outer", "taken": [3]},
        },
        "entry": {"f": {"parts": [{"path": "outer"}]}},
    }
    (path,) = find_paths(lambda log: text, tmp_path, plan)["f"]
    assert path.places(text) == [f"outer+0-{call.end - K:x}", "inner+0-5", f"outer+{call.end - K:x}-{inner:x}"]
    analysis = mca.analyse(path.code(text))
    assert (analysis.instructions, analysis.indirect) == (10, 0)
    assert 3 <= analysis.cycles <= 15

    plan["entry"]["f"]["parts"] = [{"path": "outer", "turns": 3}]
    (path,) = find_paths(lambda log: text, tmp_path, plan)["f"]
    assert len(path.code(text)) == 30
    walks = plan["walk"]
    walks["outer"] = {"function": "outer", "to": walks["outer"]["into"]}
    (path,) = find_paths(lambda log: text, tmp_path, plan)["f"]
    assert len(path.code(text)) == 24  # inner is another entry's
    walks["outer"]["to"]["0x3"] = "nobody"
    with pytest.raises(PathError, match="outer: the path does not come to 0x3"):
        find_paths(lambda log: text, tmp_path, plan)

    plan["entry"]["f"]["parts"] = [{"path": "wrong"}]
    with pytest.raises(PathError, match=r"wrong: nothing is said of|wrong: the path does not come to 0x3"):
        find_paths(lambda log: text, tmp_path, plan)
