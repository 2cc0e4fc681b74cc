"""Each rule of the verifier: a program that breaks it, refused in the kernel's words, and one hardly different that passes.

The host's own verifier, where it can be asked, decides the same.
"""

import ctypes
import errno
import os
import platform
from typing import NamedTuple

import pytest

from sw.bpf.instruction import Instruction, encode
from sw.bpf.maps import MapDefinition, MapFlag, MapType
from sw.bpf.program import Program
from sw.bpf.verifier import VerifierError, verify
from tests.sw.bpf import host_bpf
from tests.sw.bpf.assembly import assemble

HASH, VALUES, XSKS, READ_ONLY, INDEXED = 3, 4, 5, 6, 7
MAPS = {
    HASH: MapDefinition(MapType.HASH, 4, 8, 16),
    VALUES: MapDefinition(MapType.ARRAY, 4, 64, 1),
    XSKS: MapDefinition(MapType.XSKMAP, 4, 4, 4),
    READ_ONLY: MapDefinition(MapType.ARRAY, 4, 64, 1, MapFlag.RDONLY_PROG),
    INDEXED: MapDefinition(MapType.ARRAY, 4, 8, 8),
}
EACCES, EINVAL, E2BIG, EBADF = errno.EACCES, errno.EINVAL, errno.E2BIG, errno.EBADF

PACKET = "r2 = *(u32 *)(r1 +0); r3 = *(u32 *)(r1 +4);"
CHECKED = PACKET + "r4 = r2; r4 += 8; if r4 > r3 goto out;"
OUT = "out: r0 = 0; exit"
LOOKUP = f"*(u64 *)(r10 -8) = 0; r2 = r10; r2 += -8; r1 = map {HASH}; call map_lookup_elem;"
UNKNOWN = "r2 = *(u32 *)(r1 +16);"
CHECKSUM = "r1 = 0; r2 = 0; r3 = r10; r3 += -8; r5 = 0; *(u64 *)(r10 -8) = 0; call csum_diff;"


class Rule(NamedTuple):
    """A rule: its name, what breaks it, errno and message, and what does not."""

    name: str
    broken: str
    errno: int
    message: str
    kept: str


RULES = [
    # ---- Structure
    Rule("opcode", "raw ff 0 0 0 0; exit", EINVAL, "unknown opcode ff", "raw b7 0 0 0 0; exit"),
    Rule("sign-extending load of 8 bytes", "raw 99 0 1 16 0; exit", EINVAL, "unknown opcode 99", "raw 81 0 1 16 0; exit"),
    Rule("swap to no order", "raw df 0 0 0 16; exit", EINVAL, "unknown opcode df", "r0 = 1; raw d7 0 0 0 16; exit"),
    Rule("jump out", "if r1 == 0 goto pc+5; r0 = 0; exit", EINVAL, "jump out of range from insn 0 to 6", "if r1 == 0 goto pc+0; r0 = 0; exit"),
    Rule("end", "r0 = 0", EINVAL, "last insn is not an exit or jmp", "r0 = 0; exit"),
    Rule("unreachable", "r0 = 0; exit; r0 = 1; exit", EINVAL, "unreachable insn 2", "r0 = 0; if r0 == 0 goto pc+1; exit; exit"),
    Rule("unreachable function", "r0 = 0; exit; f: r0 = 0; exit; call f; goto pc-2", EINVAL, "unreachable insn 2", "call f; exit; f: r0 = 0; exit"),
    Rule("middle of LD_IMM64", "if r1 == 0 goto pc+1; r0 = 5 ll; exit", EINVAL, "jump into the middle of ldimm64 insn 1", "if r1 == 0 goto pc+0; r0 = 5 ll; exit"),
    Rule("half of LD_IMM64", "raw 18 0 0 0 5; exit", EINVAL, "invalid bpf_ld_imm64 insn", "r0 = 5 ll; exit"),
    Rule("kind of LD_IMM64", "raw 18 0 9 0 5; raw 0 0 0 0 0; r0 = 0; exit", EINVAL, "unrecognized bpf_ld_imm64 insn", "raw 18 0 0 0 5; raw 0 0 0 0 0; exit"),
    Rule("map", "r1 = map 99; r0 = 0; exit", EBADF, "fd 99 is not pointing to valid bpf_map", f"r1 = map {HASH}; r0 = 0; exit"),
    Rule("address of a value", f"r1 = value {HASH}; r0 = 0; exit", EINVAL, "no direct value access support for this map type", f"r1 = value {VALUES}; r0 = 0; exit"),
    Rule("offset of a value", f"r1 = value {VALUES} + 64; r0 = 0; exit", EINVAL, "invalid access to map value pointer, value_size=64 off=64", f"r1 = value {VALUES} + 63; r0 = 0; exit"),
    Rule("call into nothing", "raw 85 0 1 0 50; r0 = 0; exit", EINVAL, "call to invalid destination", "raw 85 0 1 0 1; exit; r0 = 0; exit"),
    # ---- Reserved fields
    Rule("fields of LDX", "raw 61 0 1 16 1; exit", EINVAL, "BPF_LDX uses reserved fields", "raw 61 0 1 16 0; exit"),
    Rule("fields of ALU", "r0 = 1; raw 07 0 1 0 5; exit", EINVAL, "BPF_ALU uses reserved fields", "r0 = 1; raw 07 0 0 0 5; exit"),
    Rule("offset of ALU", "r0 = 1; raw 27 0 0 1 5; exit", EINVAL, "BPF_ALU uses reserved fields", "r0 = 1; raw 37 0 0 1 5; exit"),
    Rule("fields of MOV", "raw b7 0 0 8 1; exit", EINVAL, "BPF_MOV uses reserved fields", "raw b7 0 0 0 1; exit"),
    Rule("width of MOV", "r0 = 1; raw bc 0 0 32 0; exit", EINVAL, "BPF_MOV uses reserved fields", "r0 = 1; raw bf 0 0 32 0; exit"),
    Rule("fields of NEG", "r0 = 1; raw 87 0 0 0 1; exit", EINVAL, "BPF_NEG uses reserved fields", "r0 = 1; r0 = -r0; exit"),
    Rule("width of END", "r0 = 1; raw d4 0 0 0 7; exit", EINVAL, "BPF_END uses reserved fields", "r0 = 1; raw d4 0 0 0 16; exit"),
    Rule("fields of JA", "r0 = 1; raw 05 0 0 0 1; exit", EINVAL, "BPF_JA uses reserved fields", "r0 = 1; raw 05 0 0 0 0; exit"),
    Rule("fields of branches", "r0 = 1; raw 15 0 1 0 0; exit", EINVAL, "BPF_JMP/JMP32 uses reserved fields", "r0 = 1; raw 1d 0 1 0 0; exit"),
    Rule("fields of EXIT", "r0 = 1; raw 95 0 1 0 0", EINVAL, "BPF_EXIT uses reserved fields", "r0 = 1; exit"),
    Rule("fields of CALL", "raw 85 0 0 1 7; exit", EINVAL, "BPF_CALL uses reserved fields", "raw 85 0 0 0 7; exit"),
    Rule("fields of ST", "raw 7a 10 1 -8 1; r0 = 0; exit", EINVAL, "BPF_ST uses reserved fields", "raw 7a 10 0 -8 1; r0 = 0; exit"),
    Rule("fields of STX", "raw 7b 10 1 -8 1; r0 = 0; exit", EINVAL, "BPF_STX uses reserved fields", "raw 7b 10 1 -8 0; r0 = 0; exit"),
    Rule("fields of LD_IMM64", "raw 18 0 0 7 5; raw 0 0 0 0 5; exit", EINVAL, "BPF_LD_IMM64 uses reserved fields", "raw 18 0 0 0 5; raw 0 0 0 0 5; exit"),
    Rule("legacy loads", "raw 20 0 0 0 0; exit", EINVAL, "BPF_LD_[ABS|IND] instructions not allowed for this program type", "r0 = 0; exit"),
    Rule("division by 0", "r0 = 1; r0 /= 0; exit", EINVAL, "div by zero", "r0 = 1; r0 /= 1; exit"),
    Rule("remainder by 0", "r0 = 1; w0 s%= 0; exit", EINVAL, "div by zero", "r0 = 1; w0 s%= 1; exit"),
    Rule("shift", "r0 = 1; r0 <<= 64; exit", EINVAL, "invalid shift 64", "r0 = 1; r0 <<= 63; exit"),
    Rule("shift of 32 bits", "r0 = 1; w0 s>>= 32; exit", EINVAL, "invalid shift 32", "r0 = 1; w0 s>>= 31; exit"),
    # ---- Registers
    Rule("register without value", "r0 = r2; exit", EACCES, "R2 !read_ok", "r0 = r1; exit"),
    Rule("no verdict", "exit", EACCES, "R0 !read_ok", "r0 = 2; exit"),
    Rule("register after a call", "r2 = 0; call get_prandom_u32; r0 = r2; exit", EACCES, "R2 !read_ok", "r6 = 0; call get_prandom_u32; r0 = r6; exit"),
    Rule("r10 is read-only", "r10 += 1; r0 = 0; exit", EACCES, "frame pointer is read only", "r0 = r10; r0 += 1; exit"),
    Rule("register number", "r11 = 1; r0 = 0; exit", EINVAL, "R11 is invalid", "r9 = 1; r0 = 0; exit"),
    # ---- Pointers
    Rule("product of a pointer", "r2 = r10; r2 *= 2; r0 = 0; exit", EACCES, "R2 pointer arithmetic with *= operator prohibited", "r2 = 7; r2 *= 2; r0 = 0; exit"),
    Rule("bits of a pointer", "r2 = r10; r2 &= 2; r0 = 0; exit", EACCES, "R2 bitwise operator &= on pointer prohibited", "r2 = 7; r2 &= 2; r0 = 0; exit"),
    Rule("sum of pointers", "r2 = r10; r2 += r10; r0 = 0; exit", EACCES, "R2 pointer += pointer prohibited", "r2 = r10; r2 -= r10; r0 = 0; exit"),
    Rule("half of a pointer", "r2 = r10; w2 += 1; r0 = 0; exit", EACCES, "R2 32-bit pointer arithmetic prohibited", "r2 = r10; r2 += 1; r0 = 0; exit"),
    Rule("number minus pointer", "r3 = 5; r3 -= r10; r0 = 0; exit", EACCES, "R3 tried to subtract pointer from scalar", "r3 = 5; r3 += r10; r0 = 0; exit"),
    Rule("stack pointer minus number", "r2 = r10; r2 -= 5; r0 = 0; exit", EACCES, "R2 subtraction from stack pointer prohibited", "r2 = r10; r2 += -5; r0 = 0; exit"),
    Rule("end of the packet", "r2 = *(u32 *)(r1 +4); r2 += 5; r0 = 0; exit", EACCES, "R2 pointer arithmetic on pkt_end prohibited", "r2 = *(u32 *)(r1 +0); r2 += 5; r0 = 0; exit"),
    Rule("map", f"r1 = map {HASH}; r1 += 4; r0 = 0; exit", EACCES, "R1 pointer arithmetic on map_ptr prohibited", f"r1 = map {HASH}; r1 += 0; r0 = 0; exit"),
    Rule("large sum", "r2 = r1; r3 = 536870912; r2 += r3; r0 = 0; exit", EINVAL, "math between ctx pointer and 536870912 is not allowed", "r2 = r1; r3 = 536870911; r2 += r3; r0 = 0; exit"),
    Rule("large offset", PACKET + "r2 += 65535; r2 += 536870000; r0 = 0; exit", EINVAL, "pkt pointer offset 536935535 is not allowed", PACKET + "r2 += 65535; r2 += 536805376; r0 = 0; exit"),
    Rule("unbounded sum", CHECKED + "r5 = *(u64 *)(r2 +0); r2 += r5;" + OUT, EINVAL, "math between pkt pointer and register with unbounded min value is not allowed", CHECKED + "r5 = *(u32 *)(r2 +0); r2 += r5;" + OUT),
    Rule("negative sum", f"r1 = value {VALUES}; r2 = *(s32 *)(r1 +0); r1 += r2; r0 = 0; exit", EINVAL, "value -2147483648 makes map_value pointer be out of bounds", f"r1 = value {VALUES}; r2 = *(s16 *)(r1 +0); r1 += r2; r0 = 0; exit"),
    # ---- Memory
    Rule("number as address", "r2 = -8; *(u64 *)(r2 +0) = 1; r0 = 0; exit", EACCES, "R2 invalid mem access 'scalar'", "r2 = r10; *(u64 *)(r2 -8) = 1; r0 = 0; exit"),
    Rule("packet's end as address", "r2 = *(u32 *)(r1 +4); r0 = *(u8 *)(r2 -1); exit", EACCES, "R2 invalid mem access 'pkt_end'", CHECKED + "r0 = *(u8 *)(r4 -1); exit;" + OUT),
    Rule("packet not checked", PACKET + "r0 = *(u32 *)(r2 +0); exit", EACCES, "invalid access to packet, off=0 size=4, R2(id=0,off=0,r=0)", CHECKED + "r0 = *(u32 *)(r2 +0); exit;" + OUT),
    Rule("behind what was checked", CHECKED + "r0 = *(u32 *)(r2 +5);" + OUT, EACCES, "invalid access to packet, off=5 size=4, R2(id=0,off=5,r=8)", CHECKED + "r0 = *(u32 *)(r2 +4);" + OUT),
    Rule("before the packet", CHECKED + "r0 = *(u8 *)(r2 -1);" + OUT, EACCES, "invalid access to packet, off=-1 size=1, R2(id=0,off=-1,r=8)", CHECKED + "r0 = *(u8 *)(r2 +0);" + OUT),
    Rule("the wrong side", PACKET + "r4 = r2; r4 += 8; if r4 > r3 goto in; r0 = 0; exit; in: r0 = *(u8 *)(r4 -8); exit", EINVAL, "R4 offset is outside of the packet", PACKET + "r4 = r2; r4 += 8; if r4 <= r3 goto in; r0 = 0; exit; in: r0 = *(u8 *)(r4 -8); exit"),
    Rule("strict comparison", PACKET + "r4 = r2; r4 += 8; if r4 > r3 goto out; r0 = *(u8 *)(r2 +8);" + OUT, EACCES, "invalid access to packet, off=8 size=1, R2(id=0,off=8,r=8)", PACKET + "r4 = r2; r4 += 8; if r4 >= r3 goto out; r0 = *(u8 *)(r2 +8);" + OUT),
    Rule("index too large for a packet", PACKET + "r5 = *(u32 *)(r1 +16); r2 += r5; r4 = r2; r4 += 8; if r4 > r3 goto out; r0 = *(u8 *)(r2 +0);" + OUT, EACCES, "invalid access to packet, off=0 size=1, R2(id=1,off=0,r=0)", PACKET + "r5 = *(u32 *)(r1 +16); r5 &= 4095; r2 += r5; r4 = r2; r4 += 8; if r4 > r3 goto out; r0 = *(u8 *)(r2 +0);" + OUT),
    Rule("negative index", PACKET + "r5 = *(u32 *)(r1 +16); r5 &= 7; r5 -= 1; r2 += r5; r4 = r2; r4 += 8; if r4 > r3 goto out; r0 = *(u8 *)(r2 +0);" + OUT, EACCES, "R2 min value is negative, either use unsigned index or do a if (index >=0) check.", PACKET + "r5 = *(u32 *)(r1 +16); r5 &= 7; r5 += 1; r2 += r5; r4 = r2; r4 += 8; if r4 > r3 goto out; r0 = *(u8 *)(r2 +0);" + OUT),
    Rule("other index", PACKET + "r5 = *(u32 *)(r1 +16); r5 &= 7; r6 = r2; r6 += r5; r2 += r5; r4 = r2; r4 += 8; if r4 > r3 goto out; r0 = *(u8 *)(r6 +0);" + OUT, EACCES, "invalid access to packet, off=0 size=1, R6(id=1,off=0,r=0)", PACKET + "r5 = *(u32 *)(r1 +16); r5 &= 7; r2 += r5; r6 = r2; r4 = r2; r4 += 8; if r4 > r3 goto out; r0 = *(u8 *)(r6 +0);" + OUT),
    Rule("metadata", "r0 = *(u32 *)(r1 +8); r1 = *(u32 *)(r1 +0); r2 = r0; r2 += 4; if r2 > r1 goto out; r0 = *(u32 *)(r0 +4);" + OUT, EACCES, "invalid access to packet, off=4 size=4, R0(id=0,off=4,r=4)", "r0 = *(u32 *)(r1 +8); r1 = *(u32 *)(r1 +0); r2 = r0; r2 += 4; if r2 > r1 goto out; r0 = *(u32 *)(r0 +0);" + OUT),
    Rule("context written", "*(u32 *)(r1 +16) = 0; r0 = 0; exit", EACCES, "invalid bpf_context access off=16 size=4", "r0 = *(u32 *)(r1 +16); exit"),
    Rule("part of a context's member", "r0 = *(u16 *)(r1 +16); exit", EACCES, "invalid bpf_context access off=16 size=2", "r0 = *(u32 *)(r1 +16); exit"),
    Rule("behind the context", "r0 = *(u32 *)(r1 +24); exit", EACCES, "invalid bpf_context access off=24 size=4", "r0 = *(u32 *)(r1 +12); exit"),
    Rule("transmit side", "r0 = *(u32 *)(r1 +20); exit", EACCES, "invalid bpf_context access off=20 size=4", "r0 = *(u32 *)(r1 +16); exit"),
    Rule("pointer sign-extended", "r0 = *(s32 *)(r1 +0); exit", EACCES, "invalid bpf_context access off=0 size=4", "r0 = *(s32 *)(r1 +16); exit"),
    Rule("context moved", "r1 += 4; r0 = *(u32 *)(r1 +0); exit", EACCES, "dereference of modified ctx ptr R1 off=4 disallowed", "r1 += 4; r1 += -4; r0 = *(u32 *)(r1 +4); exit"),
    Rule("context moved back", "r1 += -4; r0 = *(u32 *)(r1 +4); exit", EACCES, "negative offset ctx ptr R1 off=-4 disallowed", "r0 = *(u32 *)(r1 +4); exit"),
    Rule("context moved somewhere", UNKNOWN + "r1 += r2; r0 = *(u32 *)(r1 +0); exit", EACCES, "variable ctx access var_off=(0x0; 0xffffffff) disallowed", UNKNOWN + "r2 = 0; r1 += r2; r0 = *(u32 *)(r1 +0); exit"),
    Rule("two kinds of pointer", "*(u64 *)(r10 -8) = 1; r6 = r10; r6 += -24;" + UNKNOWN + "if r2 > 5 goto a; r6 = r1; a: r0 = *(u32 *)(r6 +16); exit", EINVAL, "same insn cannot be used with different pointers", "*(u64 *)(r10 -8) = 1; r6 = r10; r6 += -24;" + UNKNOWN + "if r2 > 5 goto a; r6 = r10; r6 += -32; a: r0 = *(u32 *)(r6 +16); exit"),
    Rule("value that may be missing", LOOKUP + "r0 = *(u64 *)(r0 +0); exit", EACCES, "R0 invalid mem access 'map_value_or_null'", LOOKUP + "if r0 == 0 goto out; r0 = *(u64 *)(r0 +0);" + OUT),
    Rule("the wrong copy", LOOKUP + "r6 = r0;" + LOOKUP + "if r0 == 0 goto out; r0 = *(u64 *)(r6 +0);" + OUT, EACCES, "R6 invalid mem access 'map_value_or_null'", LOOKUP + "r6 = r0; if r0 == 0 goto out; r0 = *(u64 *)(r6 +0);" + OUT),
    Rule("pointer that may be null", LOOKUP + "r0 += 5; exit", EACCES, "R0 pointer arithmetic on map_value_or_null prohibited, null-check it first", LOOKUP + "if r0 == 0 goto out; r0 += 5;" + OUT),
    Rule("index of an array", f"*(u32 *)(r10 -8) = 8; r1 = map {INDEXED}; r2 = r10; r2 += -8; call map_lookup_elem; r0 = *(u64 *)(r0 +0); exit", EACCES, "R0 invalid mem access 'map_value_or_null'", f"*(u32 *)(r10 -8) = 7; r1 = map {INDEXED}; r2 = r10; r2 += -8; call map_lookup_elem; r0 = *(u64 *)(r0 +0); exit"),
    Rule("behind a value", f"r1 = value {VALUES}; r0 = *(u64 *)(r1 +57); exit", EACCES, "invalid access to map value, value_size=64 off=57 size=8", f"r1 = value {VALUES}; r0 = *(u64 *)(r1 +56); exit"),
    Rule("before a value", f"r1 = value {VALUES} + 8; r0 = *(u64 *)(r1 -9); exit", EACCES, "invalid access to map value, value_size=64 off=-1 size=8", f"r1 = value {VALUES} + 8; r0 = *(u64 *)(r1 -8); exit"),
    Rule("index of a value", UNKNOWN + f"r2 &= 63; r1 = value {VALUES}; r1 += r2; r0 = *(u16 *)(r1 +0); exit", EACCES, "invalid access to map value, value_size=64 off=63 size=2", UNKNOWN + f"r2 &= 63; r1 = value {VALUES}; r1 += r2; r0 = *(u8 *)(r1 +0); exit"),
    Rule("unbounded index of a value", UNKNOWN + f"r1 = value {VALUES}; r1 += r2; r0 = *(u8 *)(r1 +0); exit", EACCES, "R1 unbounded memory access, make sure to bounds check any such access", UNKNOWN + f"if r2 > 63 goto out; r1 = value {VALUES}; r1 += r2; r0 = *(u8 *)(r1 +0);" + OUT),
    Rule("negative index of a value", UNKNOWN + f"r2 &= 63; r2 -= 1; r1 = value {VALUES}; r1 += r2; r0 = *(u8 *)(r1 +0); exit", EACCES, "R1 min value is negative, either use unsigned index or do a if (index >=0) check.", UNKNOWN + f"r2 &= 63; r2 -= 1; if r2 s< 0 goto out; r1 = value {VALUES}; r1 += r2; r0 = *(u8 *)(r1 +0);" + OUT),
    Rule("read-only map", f"r1 = value {READ_ONLY}; *(u64 *)(r1 +8) = 5; r0 = 0; exit", EACCES, "write into map forbidden, value_size=64 off=8 size=8", f"r1 = value {READ_ONLY}; r0 = *(u64 *)(r1 +8); exit"),
    # ---- Stack
    Rule("below the stack", "*(u64 *)(r10 -520) = 1; r0 = 0; exit", EACCES, "invalid write to stack R10 off=-520 size=8", "*(u64 *)(r10 -512) = 1; r0 = 0; exit"),
    Rule("above the stack", "r0 = *(u64 *)(r10 +0); exit", EACCES, "invalid read from stack R10 off=0 size=8", "r0 = *(u64 *)(r10 -8); exit"),
    Rule("stack not aligned", "r0 = *(u64 *)(r10 -12); exit", EACCES, "misaligned stack access off 0+0+-12 size 8", "r0 = *(u32 *)(r10 -12); exit"),
    Rule("index of the stack", UNKNOWN + "r2 &= 15; r3 = r10; r3 += r2; *(u8 *)(r3 -8) = 1; r0 = 0; exit", EINVAL, "invalid variable-offset write to stack R3 var_off=(0x0; 0xf) off=-8 size=1", UNKNOWN + "r2 &= 7; r3 = r10; r3 += r2; *(u8 *)(r3 -8) = 1; r0 = 0; exit"),
    Rule("unbounded index of the stack", UNKNOWN + "r3 = r10; r3 += r2; *(u8 *)(r3 -8) = 1; r0 = 0; exit", EACCES, "invalid unbounded variable-offset write to stack R3", UNKNOWN + "if r2 > 7 goto out; r3 = r10; r3 += r2; *(u8 *)(r3 -8) = 1;" + OUT),
    Rule("part of a pointer is spilled", "*(u32 *)(r10 -8) = r10; r0 = 0; exit", EACCES, "invalid size of register spill", "*(u64 *)(r10 -8) = r10; r0 = 0; exit"),
    Rule("part of a pointer is filled", "*(u64 *)(r10 -8) = r10; r0 = *(u32 *)(r10 -8); exit", EACCES, "invalid size of register fill", "*(u64 *)(r10 -8) = r10; r0 = *(u64 *)(r10 -8); exit"),
    Rule("spilled pointer overwritten", "*(u64 *)(r10 -8) = r10; *(u8 *)(r10 -3) = 0; r2 = *(u64 *)(r10 -8); r0 = *(u64 *)(r2 -8); exit", EACCES, "R2 invalid mem access 'scalar'", "*(u64 *)(r10 -8) = r10; *(u8 *)(r10 -13) = 0; r2 = *(u64 *)(r10 -8); r0 = *(u64 *)(r2 -8); exit"),
    Rule("spilled pointer perhaps overwritten", "*(u64 *)(r10 -8) = r10;" + UNKNOWN + "r2 &= 15; r3 = r10; r3 += -16; r3 += r2; *(u8 *)(r3 +0) = 0; r2 = *(u64 *)(r10 -8); r0 = *(u64 *)(r2 -8); exit", EACCES, "R2 invalid mem access 'scalar'", "*(u64 *)(r10 -8) = r10;" + UNKNOWN + "r2 &= 7; r3 = r10; r3 += -16; r3 += r2; *(u8 *)(r3 +0) = 0; r2 = *(u64 *)(r10 -8); r0 = *(u64 *)(r2 -8); exit"),
    # ---- Atomics
    Rule("atomic on a packet", CHECKED + "r5 = 1; lock *(u64 *)(r2 +0) += r5;" + OUT, EACCES, "BPF_ATOMIC stores into R2 pkt is not allowed", CHECKED + "r5 = 1; *(u64 *)(r2 +0) = r5;" + OUT),
    Rule("atomic on the context", "r5 = 1; lock *(u32 *)(r1 +16) += r5; r0 = 0; exit", EACCES, "BPF_ATOMIC stores into R1 ctx is not allowed", f"r5 = 1; r1 = value {VALUES}; lock *(u32 *)(r1 +16) += r5; r0 = 0; exit"),
    Rule("width of an atomic", "r2 = 1; lock *(u16 *)(r10 -8) += r2; r0 = 0; exit", EINVAL, "invalid atomic operand size", "r2 = 1; lock *(u32 *)(r10 -8) += r2; r0 = 0; exit"),
    Rule("kind of atomic", "r2 = 1; raw db 10 2 -8 5; r0 = 0; exit", EINVAL, "BPF_ATOMIC uses invalid atomic opcode 05", "r2 = 1; raw db 10 2 -8 1; r0 = 0; exit"),
    Rule("r0 of an atomic", "r2 = 1; r0 = atomic_cmpxchg(*(u64 *)(r10 -8), r0, r2); r0 = 0; exit", EACCES, "R0 !read_ok", "r2 = 1; r0 = 1; r0 = atomic_cmpxchg(*(u64 *)(r10 -8), r0, r2); exit"),
    # ---- Helpers
    Rule("no such helper", "call 9999; exit", EINVAL, "invalid func unknown#9999", "call 5; exit"),
    Rule("map argument", "r1 = r10; r2 = r10; r2 += -8; call map_lookup_elem; exit", EACCES, "R1 type=fp expected=map_ptr", LOOKUP + "r0 = 0; exit"),
    Rule("key argument", f"r1 = map {HASH}; r2 = 5; call map_lookup_elem; exit", EACCES, "R2 type=scalar expected=fp, pkt, pkt_meta, map_key, map_value, mem, ringbuf_mem, buf, trusted_ptr_", f"r1 = map {HASH}; r2 = value {VALUES}; call map_lookup_elem; exit"),
    Rule("key behind the stack", f"r1 = map {HASH}; r2 = r10; call map_lookup_elem; exit", EACCES, "invalid read from stack R2 off=0 size=4", f"r1 = map {HASH}; r2 = r10; r2 += -4; call map_lookup_elem; exit"),
    Rule("key across the stack's end", f"r1 = map {HASH}; r2 = r10; r2 += -2; call map_lookup_elem; exit", EINVAL, "invalid read from stack R2 off=-2 size=4", f"r1 = map {HASH}; r2 = r10; r2 += -5; call map_lookup_elem; exit"),
    Rule("key in a packet", CHECKED + f"r2 = r4; r1 = map {HASH}; call map_lookup_elem;" + OUT, EACCES, "invalid access to packet, off=8 size=4, R2(id=0,off=8,r=8)", CHECKED + f"r2 = r4; r2 += -4; r1 = map {HASH}; call map_lookup_elem;" + OUT),
    Rule("value in a value", f"*(u64 *)(r10 -8) = 0; r1 = map {HASH}; r2 = r10; r2 += -8; r3 = value {VALUES} + 60; r4 = 0; call map_update_elem; exit", EACCES, "invalid access to map value, value_size=64 off=60 size=8", f"*(u64 *)(r10 -8) = 0; r1 = map {HASH}; r2 = r10; r2 += -8; r3 = value {VALUES} + 56; r4 = 0; call map_update_elem; exit"),
    Rule("argument without value", f"r1 = map {XSKS}; r2 = 0; call redirect_map; exit", EACCES, "R3 !read_ok", f"r1 = map {XSKS}; r2 = 0; r3 = 0; call redirect_map; exit"),
    Rule("type of map", f"r1 = map {HASH}; r2 = 0; r3 = 0; call redirect_map; exit", EINVAL, "cannot pass map_type 1 into func bpf_redirect_map#51", f"r1 = map {XSKS}; r2 = 0; r3 = 0; call redirect_map; exit"),
    Rule("context argument", "r1 = r10; r2 = 0; call xdp_adjust_head; exit", EACCES, "R1 type=fp expected=ctx", "r2 = 0; call xdp_adjust_head; exit"),
    Rule("moved context argument", "r1 += 4; r2 = 0; call xdp_adjust_head; exit", EACCES, "dereference of modified ctx ptr R1 off=4 disallowed", "r1 += 0; r2 = 0; call xdp_adjust_head; exit"),
    Rule("packet moved", "r6 = r1;" + CHECKED + "r7 = r2; r2 = 0; call xdp_adjust_head; r0 = *(u8 *)(r7 +0);" + OUT, EACCES, "R7 invalid mem access 'scalar'", "r6 = r1;" + CHECKED + "r7 = r2; r0 = *(u8 *)(r7 +0); r1 = r6; r2 = 0; call xdp_adjust_head;" + OUT),
    Rule("spilled pointer to a packet moved", "r6 = r1;" + CHECKED + "*(u64 *)(r10 -8) = r2; r2 = 0; call xdp_adjust_head; r7 = *(u64 *)(r10 -8); r0 = *(u8 *)(r7 +0);" + OUT, EACCES, "R7 invalid mem access 'scalar'", "r6 = r1;" + CHECKED + "*(u64 *)(r10 -8) = r2; r7 = *(u64 *)(r10 -8); r0 = *(u8 *)(r7 +0);" + OUT),
    Rule("size argument", UNKNOWN + "r4 = r2;" + CHECKSUM + "exit", EACCES, "R4 unbounded memory access, use 'var &= const' or 'if (var < const)'", UNKNOWN + "r4 = r2; r4 &= 8;" + CHECKSUM + "exit"),
    Rule("negative size argument", "r4 = *(s32 *)(r1 +16);" + CHECKSUM + "exit", EACCES, "R4 min value is negative, either use unsigned or 'var &= const'", "r4 = *(u32 *)(r1 +16); r4 %= 9; if r4 > 8 goto out;" + CHECKSUM + OUT),
    Rule("size behind the stack", "r4 = 12;" + CHECKSUM + "exit", EINVAL, "invalid read from stack R3 off=-8 size=12", "r4 = 8;" + CHECKSUM + "exit"),
    Rule("size of nothing", CHECKSUM.replace("r2 = 0", "r4 = 8; r2 = 4") + "exit", EACCES, "R1 type=scalar expected=fp", CHECKSUM.replace("r2 = 0", "r4 = 8; r2 = 0") + "exit"),
    # ---- Functions
    Rule("r1 to r5 after a call", "call f; r0 = r1; exit; f: r0 = 0; exit", EACCES, "R1 !read_ok", "r6 = r1; call f; r0 = r6; exit; f: r0 = 0; exit"),
    Rule("no result", "call f; exit; f: exit", EACCES, "R0 !read_ok", "call f; r0 = 0; exit; f: exit"),
    Rule("stack of the callee is returned", "call f; r0 = 0; exit; f: r0 = r10; exit", EINVAL, "cannot return stack pointer to the caller", "call f; r0 = 0; exit; f: r0 = r1; exit"),
    Rule("stack of the callee is left", "r1 = r10; call f; exit; f: *(u64 *)(r1 -8) = r10; r0 = 0; exit", EINVAL, "cannot spill pointers to stack into stack frame of the caller", "r1 = r10; call f; exit; f: *(u64 *)(r1 -8) = 7; r0 = 0; exit"),
    Rule("stack of all", "call f; r0 = 0; exit; f: *(u64 *)(r10 -400) = 1; call g; exit; g: *(u64 *)(r10 -400) = 1; r0 = 0; exit", EACCES, "combined stack size of 3 calls is 800. Too large", "call f; r0 = 0; exit; f: *(u64 *)(r10 -400) = 1; call g; exit; g: *(u64 *)(r10 -112) = 1; r0 = 0; exit"),
    Rule("recursion", "call f; exit; f: call f; r0 = 0; exit", E2BIG, "the call stack of 9 frames is too deep", "call f; exit; f: call g; exit; g: r0 = 0; exit"),
    # ---- Loops
    Rule("endless", "r0 = 0; a: goto a", EINVAL, "infinite loop detected at insn 1", "r0 = 0; a: r0 += 1; if r0 < 100 goto a; exit"),
    Rule("endless for some", UNKNOWN + "a: if r2 != 5 goto a; r0 = 0; exit", EINVAL, "infinite loop detected at insn 1", UNKNOWN + "a: if r2 != 5 goto pc+0; r0 = 0; exit"),
]  # fmt: skip


def _program(text: str) -> Program:
    return Program(assemble(text), MAPS)


@pytest.fixture(scope="module")
def host():
    """Loads text into the host's kernel; gives errno and log."""
    if reason := host_bpf.why_not():
        pytest.skip(reason)
    fds = {n: host_bpf.HostMap(m.type, m.key_size, m.value_size, m.max_entries, m.flags) for n, m in MAPS.items()}

    def load(code: tuple[Instruction, ...], log_level: int = 1) -> tuple[int, str]:
        bound = [
            one._replace(immediate=fds[one.immediate].fd)
            if one.is_wide and one.source in (1, 2) and one.immediate in fds
            else one
            for one in code
        ]
        try:
            with host_bpf.HostProgram(encode(bound), log_level=log_level) as loaded:
                return 0, loaded.log
        except host_bpf.HostError as error:
            return error.errno or 0, error.log

    yield load
    for one in fds.values():
        one.close()


def _words_of_618() -> bool:
    """Whether the host's messages are those of the version that the verifier follows."""
    return platform.release().startswith("6.18.")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule(rule):
    with pytest.raises(VerifierError) as refused:
        verify(_program(rule.broken))
    assert (refused.value.errno, refused.value.message) == (rule.errno, rule.message)
    assert rule.message in refused.value.log.splitlines()[-2:]
    verify(_program(rule.kept))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_host_agrees(rule, host):
    assert host(assemble(rule.kept))[0] == 0
    number, log = host(assemble(rule.broken))
    assert number == rule.errno
    if _words_of_618():
        assert rule.message in log


def test_rules_are_many_and_their_messages_of_many_kinds():
    assert len(RULES) >= 100
    assert len({rule.message.split()[-1] for rule in RULES}) > 30


# ---- Without the right to see addresses

WITHOUT_PERFMON = [
    Rule("stack never written", "r0 = *(u64 *)(r10 -8); exit", EACCES, "invalid read from stack R10 off=-8 size=8", "*(u64 *)(r10 -8) = 1; r0 = *(u64 *)(r10 -8); exit"),
    Rule("stack half written", "*(u32 *)(r10 -8) = 5; r0 = *(u64 *)(r10 -8); exit", EACCES, "invalid read from stack off -8+4 size 8", "*(u32 *)(r10 -8) = 5; r0 = *(u32 *)(r10 -8); exit"),
    Rule("address as verdict", "r0 = r10; exit", EACCES, "R0 leaks addr as return value", "r0 = 0; exit"),
    Rule("half of an address", "r2 = r10; w2 = w2; r0 = 0; exit", EACCES, "R2 partial copy of pointer", "r2 = r10; r2 = r2; r0 = 0; exit"),
    Rule("difference of addresses", "r2 = r10; r2 -= r1; r0 = 0; exit", EACCES, "R2 pointer -= pointer prohibited", "r2 = r10; r0 = 0; exit"),
    Rule("part of a spilled pointer", "*(u64 *)(r10 -8) = r10; *(u8 *)(r10 -8) = 0; r0 = 0; exit", EACCES, "attempt to corrupt spilled pointer on stack", "*(u64 *)(r10 -8) = r10; *(u64 *)(r10 -8) = 0; r0 = 0; exit"),
    Rule("address into a packet", CHECKED + "*(u64 *)(r2 +0) = r10;" + OUT, EACCES, "R10 leaks addr into packet", CHECKED + "*(u64 *)(r2 +0) = 1;" + OUT),
    Rule("address into a map", f"r2 = value {VALUES}; *(u64 *)(r2 +0) = r10; r0 = 0; exit", EACCES, "R10 leaks addr into map", f"r2 = value {VALUES}; *(u64 *)(r2 +0) = 1; r0 = 0; exit"),
    Rule("address into a helper", f"r1 = map {HASH}; r2 = r10; r2 += -8; *(u64 *)(r10 -8) = 0; r3 = r2; r4 = r10; call map_update_elem; r0 = 0; exit", EACCES, "R4 leaks addr into helper function", f"r1 = map {HASH}; r2 = r10; r2 += -8; *(u64 *)(r10 -8) = 0; r3 = r2; r4 = 0; call map_update_elem; r0 = 0; exit"),
    Rule("address as a key", f"*(u64 *)(r10 -8) = r10; r1 = map {HASH}; r2 = r10; r2 += -8; call map_lookup_elem; r0 = 0; exit", EACCES, "invalid read from stack R2 off -8+0 size 4", LOOKUP + "r0 = 0; exit"),
    Rule("address by an atomic", "*(u64 *)(r10 -8) = 0; r2 = r10; lock *(u64 *)(r10 -8) += r2; r0 = 0; exit", EACCES, "R2 leaks addr into mem", "*(u64 *)(r10 -8) = 0; r2 = 1; lock *(u64 *)(r10 -8) += r2; r0 = 0; exit"),
    Rule("comparison of an address", "if r10 == 5 goto a; a: r0 = 0; exit", EACCES, "R10 pointer comparison prohibited", PACKET + "if r2 > r3 goto out;" + OUT),
    Rule("negated address", "r2 = r10; r2 = -r2; r0 = 0; exit", EACCES, "R2 pointer arithmetic prohibited", "r2 = 1; r2 = -r2; r0 = 0; exit"),
    Rule("index of the stack", UNKNOWN + "r2 &= 7; r3 = r10; r3 += r2; *(u64 *)(r10 -8) = 0; r0 = *(u8 *)(r3 -8); exit", EACCES, "R3 variable stack access prohibited for !root, var_off=(0x0; 0x7) off=0", "*(u64 *)(r10 -8) = 0; r0 = *(u8 *)(r10 -8); exit"),
]  # fmt: skip


@pytest.mark.parametrize("rule", WITHOUT_PERFMON, ids=lambda rule: rule.name)
def test_rule_without_perfmon(rule):
    with pytest.raises(VerifierError) as refused:
        verify(_program(rule.broken), perfmon=False)
    assert (refused.value.errno, refused.value.message) == (rule.errno, rule.message)
    verify(_program(rule.kept), perfmon=False)
    verify(_program(rule.broken))  # with it, all of them pass


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@pytest.fixture
def without_perfmon():
    """This thread has CAP_BPF and CAP_NET_ADMIN, and no other capability."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = _Header(0x20080522, 0), (_Data * 2)()
    if libc.capget(ctypes.byref(header), data):
        pytest.skip(f"capget: {os.strerror(ctypes.get_errno())}")
    before = [word.effective for word in data]
    data[0].effective, data[1].effective = 1 << 12, 1 << (39 - 32)
    if libc.capset(ctypes.byref(header), data):
        pytest.skip(f"capset: {os.strerror(ctypes.get_errno())}")
    yield
    data[0].effective, data[1].effective = before
    assert libc.capset(ctypes.byref(header), data) == 0


@pytest.mark.parametrize("rule", WITHOUT_PERFMON, ids=lambda rule: rule.name)
def test_the_host_agrees_without_perfmon(rule, host, without_perfmon):
    assert host(assemble(rule.kept))[0] == 0
    number, log = host(assemble(rule.broken))
    assert number == rule.errno
    if _words_of_618():
        assert rule.message in log
