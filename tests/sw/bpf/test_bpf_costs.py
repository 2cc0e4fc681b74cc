"""The cost table of eBPF: what is charged has an entry, every entry is charged, derived ones are what llvm-mca says."""

import ast
from pathlib import Path

import pytest

import sw.bpf
from sw.bpf.derive import HANDLERS, JHASH, derive_handler, derive_jhash
from sw.bpf.instruction import Instruction
from sw.bpf.interpreter import Interpreter, cost_name
from sw.costs import load_costs
from sw.costs.derive.mca import find_mca
from tests.sw.bpf.harness import Generator

SOURCES = Path(sw.bpf.__file__).parent


def charged() -> set[str]:
    """Names of decorated functions, and those given to execute()."""
    names = {Interpreter.ENTRY}
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AsyncFunctionDef) and any(
                isinstance(d, ast.Call) and getattr(d.func, "id", "") == "function" for d in node.decorator_list
            ):
                names.add(node.name)
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "execute":
                names |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return names


def test_no_entry_is_unused_and_none_is_missing():
    costs = load_costs("bpf")
    interpreted = {f"bpf_interpreter.{name}" for name in HANDLERS}
    assert costs.keys() - interpreted == charged()
    assert interpreted <= costs.keys()
    assert not costs.keys() & load_costs("linux").keys()


def test_every_instruction_has_a_cost():
    costs = load_costs("bpf")
    for seed in range(20):
        for instruction in Generator(seed).program():
            assert cost_name(instruction) in costs
    assert cost_name(Instruction(0x85, 0, 1, 0, 3)) == "bpf_interpreter.call_local"


@pytest.mark.parametrize("name", [*HANDLERS, JHASH])
def test_derived_entries_are_what_llvm_mca_says(name):
    if find_mca() is None:
        pytest.skip("there is no llvm-mca on PATH (Debian package llvm-19)")
    entry = load_costs("bpf")[name if name == JHASH else f"bpf_interpreter.{name}"]
    figures = derive_jhash() if name == JHASH else derive_handler(name)
    assert (entry.cycles, entry.uops, entry.low, entry.high) == figures
    assert entry.kind == "derived"
