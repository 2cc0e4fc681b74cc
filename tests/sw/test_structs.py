"""Structures in modelled memory."""

import pytest

from sw.linux.skb import SK_BUFF
from sw.linux.socket import SOCK
from sw.structs import Field, Struct


def test_layout_is_that_of_c():
    struct = Struct(a=1, b=4, c=2, d=8, e=3, f=16)
    assert struct.b == Field(4, 4)
    assert struct.c == Field(8, 2)
    assert struct.d == Field(16, 8)
    assert struct.e == Field(24, 3)
    assert struct.f == Field(32, 16)
    assert struct.size == 48


def test_pack_and_read_back():
    struct = Struct(16, a=2, b=8)
    data = struct.pack(a=0x1234, b=5)
    assert data == bytes([0x34, 0x12, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0])
    assert struct.a.of(data) == 0x1234 and struct.b.of(data) == 5
    assert struct.unpack(data) == (0x1234, 5)
    wide = Struct(32, a=1, b=3, c=4, d=12)
    data = bytes(range(32))
    assert wide.unpack(data[:20]) == (0, b"\1\2\3", 0x07060504, data[8:20])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="take 16 bytes, more than the structure's 8"):
        Struct(8, a=8, b=8)
    with pytest.raises(OverflowError, match="a = 256 does not fit 1 bytes"):
        Struct(a=1).pack(a=256)
    with pytest.raises(AttributeError, match="lenght"):
        SK_BUFF.lenght  # noqa: B018


def test_hot_members_share_lines_as_intended():
    assert SK_BUFF.page.offset + SK_BUFF.page.size <= 64
    assert SOCK.receive_queue.offset == 64
