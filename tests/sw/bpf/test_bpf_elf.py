"""Object files: what is read from good ones, and that damaged ones are refused in one line."""

import errno
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sw.bpf.elf import load_object
from sw.bpf.errors import BpfError, LibbpfErrno
from sw.bpf.helpers import HELPER_NAMES
from sw.bpf.instruction import CallKind, Immediate64, decode, disassemble, encode
from sw.bpf.maps import MapDefinition, MapFlag, MapType
from tests.sw.bpf.bench import PROGRAMS, Bench

OBJECTS = Path(__file__).parent / "objects"
NAMES = ("drop_all", "firewall", "mac_swap_tx", "packet_counter", "xsk_redirect")
EVERY = [PROGRAMS / f"{name}.o" for name in NAMES] + sorted(OBJECTS.glob("*.o"))


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("firewall", MapDefinition(MapType.HASH, 2, 8, 1024, 0, "blocked")),
        ("packet_counter", MapDefinition(MapType.PERCPU_ARRAY, 4, 16, 1, 0, "counters")),
        ("xsk_redirect", MapDefinition(MapType.XSKMAP, 4, 4, 64, 0, "xsks")),
    ],
)
def test_maps_described_by_btf(name, definition):
    found = load_object(PROGRAMS / f"{name}.o")
    assert [one.definition for one in found.maps] == [definition]
    program = found.program()
    assert program.name == name and program.license == "Dual BSD/GPL" and program.gpl_compatible
    named = [one.immediate for one in program.instructions if one.is_wide and one.source == Immediate64.MAP_FD]
    assert named == [0] and dict(program.maps) == {0: definition}
    assert program.lines[0].file == f"./{name}.c" and "ctx" in program.lines[0].text


def test_maps_in_a_legacy_section():
    found = load_object(OBJECTS / "legacy_maps.o")
    assert [one.definition for one in found.maps] == [
        MapDefinition(MapType.ARRAY, 4, 8, 16, 0, "first"),
        MapDefinition(MapType.HASH, 8, 4, 100, 0, "second"),
    ]
    code = found.program().instructions
    assert [one.immediate for one in code if one.is_wide] == [0, 1]


@pytest.mark.parametrize("jit", [False, True])
def test_functions_and_global_variables(jit):
    """first() calls scaled(), which calls twice(): linked behind it; .rodata, .data and .bss are maps of one value."""
    found = load_object(OBJECTS / "functions.o")
    assert {one.definition.name: one.definition.flags for one in found.maps} == {
        ".rodata": MapFlag.MMAPABLE | MapFlag.RDONLY_PROG,
        ".data": MapFlag.MMAPABLE,
        ".bss": MapFlag.MMAPABLE,
    }
    assert set(found.programs) == {"first", "second"}
    bench = Bench(jit=jit)
    program, maps = bench.do(bench.bpf.load_object(bench.core, found, "first"))
    assert [bench.run(program, bytes(64))[0] for _ in range(2)] == [41 * 2 * 3 + 41, 42 * 2 * 3 + 41 + 42]
    assert bench.do(bench.bpf.map_lookup_elem(bench.core, maps[".data"], bytes(4))) == (42).to_bytes(8, "little")
    second, _ = bench.do(bench.bpf.load_object(bench.core, found, "second"))
    assert bench.run(second, bytes(64))[0] == 42
    with pytest.raises(BpfError, match=r"no program 'third'; there are: first, second") as error:
        found.program("third")
    assert error.value.errno == errno.ENOENT


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_instructions_go_to_bytes_and_back(path):
    for program in load_object(path).programs.values():
        assert decode(encode(program.instructions)) == program.instructions


def _as_the_kernel_writes(text: str) -> str:
    """llvm-objdump's text in the kernel's syntax: decimal numbers but in comparisons and LD_IMM64, signed offsets."""
    text = re.sub(r"\(r(\d+) ([+-]) (0x[0-9a-f]+)\)", lambda m: f"(r{m[1]} {m[2]}{int(m[3], 16)})", text)
    text = re.sub(r"goto ([+-]0x[0-9a-f]+) <.*>", lambda m: f"goto pc{int(m[1], 16):+d}", text)
    if text.startswith("call "):
        number = int(text.split()[1], 16)
        return f"call {HELPER_NAMES[number]}#{number}"
    if text.endswith(" ll"):
        return text.removesuffix(" ll")
    if not text.startswith("if "):
        text = re.sub(r"= (-?0x[0-9a-f]+)$", lambda m: f"= {int(m[1], 16)}", text)
    return text


@pytest.mark.parametrize("name", NAMES)
def test_text_is_llvm_objdumps(name):
    objdump = shutil.which("llvm-objdump-19") or shutil.which("llvm-objdump")
    if objdump is None:
        pytest.skip("there is no llvm-objdump on PATH (Debian package llvm-19)")
    done = subprocess.run([objdump, "-d", str(PROGRAMS / f"{name}.o")], capture_output=True, text=True, check=True)
    theirs = dict(re.findall(r"^ +(\d+):\t(?:[0-9a-f]{2} ?)+\t(.*)$", done.stdout, re.M))
    code = load_object(PROGRAMS / f"{name}.o").program().instructions
    assert len(theirs) == len(code) - sum(one.is_wide for one in code)
    for slot, text in theirs.items():
        assert disassemble(code, int(slot), HELPER_NAMES) == _as_the_kernel_writes(text)


def test_recompiling_gives_the_same_instructions(tmp_path):
    clang = shutil.which("clang-19")
    if clang is None or shutil.which("llvm-strip-19") is None:
        pytest.skip("there is no clang-19 with llvm-strip-19 on PATH (Debian packages clang-19, llvm-19)")
    version = subprocess.run([clang, "--version"], capture_output=True, text=True, check=True).stdout
    if "19.1.7" not in version:
        pytest.skip(f"the objects were made by clang 19.1.7, this is {version.splitlines()[0]}")
    subprocess.run(["bash", str(PROGRAMS / "build.sh"), str(tmp_path)], check=True)
    for name in NAMES:
        kept, made = load_object(PROGRAMS / f"{name}.o"), load_object(tmp_path / f"{name}.o")
        assert made.maps == kept.maps
        assert made.program().instructions == kept.program().instructions, name


# ---- Bad files


def _patched(name: str, old: bytes, new: bytes) -> bytes:
    contents = (PROGRAMS / f"{name}.o").read_bytes()
    assert old in contents and len(old) == len(new)
    return contents.replace(old, new)


@pytest.mark.parametrize(
    ("contents", "number", "message"),
    [
        (b"#!/bin/sh\n", LibbpfErrno.LIBELF, "not an ELF file"),
        (b"", LibbpfErrno.LIBELF, "not an ELF file"),
        (b"\x7fELF", LibbpfErrno.FORMAT, "damaged ELF file"),
        (_patched("drop_all", b"\0xdp\0", b"\0xdq\0"), LibbpfErrno.PROGTYPE, r"section 'xdq'.*valid: SEC\(\"xdp\"\)"),
        (
            _patched("firewall", b"max_entries", b"max_entrees"),
            errno.ENOTSUP,
            "unknown member 'max_entrees'; valid: type",
        ),
    ],
)
def test_bad_files_are_refused_by_reason(contents, number, message):
    with pytest.raises(BpfError, match=f"^.*thing: .*{message}") as error:
        load_object(contents, "thing")
    assert error.value.errno == number
    assert "\n" not in str(error.value)


def test_an_object_of_this_machine_is_refused():
    shared = next(Path("/lib/x86_64-linux-gnu").glob("libc.so.6"), None)
    if shared is None:
        pytest.skip("no libc.so.6 to be mistaken for an object")
    with pytest.raises(BpfError, match="for machine EM_X86_64; valid: EM_BPF"):
        load_object(shared)


def test_a_missing_file():
    with pytest.raises(BpfError, match=r"nowhere\.o: No such file") as error:
        load_object("nowhere.o")
    assert error.value.errno == errno.ENOENT


def test_an_unknown_relocation_says_where():
    """The relocation of the firewall's map with another type."""
    contents = bytearray((PROGRAMS / "firewall.o").read_bytes())
    code = load_object(PROGRAMS / "firewall.o").program().instructions
    slot = next(n for n, one in enumerate(code) if one.is_wide)
    place = contents.find((8 * slot).to_bytes(8, "little") + b"\x01")
    assert place > 0
    contents[place + 8] = 77
    with pytest.raises(BpfError, match=rf"section xdp, offset {8 * slot:#x}: relocation type 77.*valid: R_BPF_64_64"):
        load_object(bytes(contents))


def test_damaged_files_are_refused_in_one_line():
    """Bytes changed at random, files cut: a program, or a BpfError of one line; never anything else."""
    chance = random.Random(4)
    refused = 0
    for _ in range(800):
        contents = bytearray(chance.choice(EVERY).read_bytes())
        if chance.random() < 0.2:
            del contents[chance.randrange(len(contents)) :]
        for _ in range(chance.choice((1, 1, 2, 8))):
            if contents:
                contents[chance.randrange(len(contents))] = chance.randrange(256)
        try:
            load_object(bytes(contents))
        except BpfError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 80


def test_calls_keep_their_kind():
    """Calls between functions are local ones after linking."""
    code = load_object(OBJECTS / "functions.o").program("first").instructions
    assert [one.source for one in code if one.is_call] == [CallKind.LOCAL, CallKind.LOCAL]
