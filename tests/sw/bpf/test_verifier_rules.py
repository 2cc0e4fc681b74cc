"""Each rule of the verifier: a program that breaks it, refused in the kernel's words, and one like it that passes.

The host's own verifier, where it can be asked, decides the same.
"""

import ctypes
import errno
import os
import platform
import tomllib
from pathlib import Path
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


class Rule(NamedTuple):
    """A rule: its name, what breaks it, errno and message, and what does not."""

    name: str
    broken: str
    errno: int
    message: str
    kept: str


def _rules(table: str) -> list[Rule]:
    entries = tomllib.loads(Path(__file__).with_name("verifier_rules.toml").read_text())[table]
    return [Rule(**{**entry, "errno": getattr(errno, entry["errno"])}) for entry in entries]


RULES, WITHOUT_PERFMON = _rules("rule"), _rules("without_perfmon")


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
