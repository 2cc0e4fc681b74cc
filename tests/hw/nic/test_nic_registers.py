"""Registers and descriptors as data."""

import pytest

from hw.nic.descriptors import RX_READ, RX_WRITE_BACK
from hw.nic.registers import REG, REGISTERS, STORAGE_BYTES, Bank, Field, msix_entry


def test_offsets_of_the_datasheet():
    assert REG.RDT.offset(3) == 0x1018 + 3 * 0x40
    assert REG.RDT.offset(64) == 0xD018
    assert REG.EITR.offset(23) == 0x87C and REG.EITR.offset(24) == 0x12300
    assert REG.SRRCTL.offset(15) == 0x213C and REG.SRRCTL.offset(16) == 0x1014 + 16 * 0x40
    assert REG.RAL.offsets(2) == [0xA210, 0x5410] and REG.RAL.offsets(20) == [0xA2A0]
    assert REG.MRQC.offsets() == [0xEC80, 0x5818]
    assert REG.QPRDC.offset(15) == 0x1430 + 15 * 0x40
    assert [REG.DCA_RXCTRL.offset(queue) for queue in (15, 16, 64)] == [0x223C, 0x140C, 0xD00C]
    assert REG.DCA_TXCTRL.offset(2) == 0x608C and REG.DCA_CTRL.offset() == 0x11074
    assert msix_entry(3) == 48


def test_fields():
    assert REG.RXDCTL.ENABLE.mask == 1 << 25
    assert REG.SRRCTL.BSIZEPACKET.put(2) == 2
    assert REG.EITR.INTERVAL.put(100) == 100 << 3
    assert REG.LINKS.SPEED.get(0xF000_0000) == 3
    assert REG.RDT.name == "RDT" and REGISTERS["RDT"] is REG.RDT
    assert REG.RDRXCTL.read_only == 1 << 3 and REG.RDRXCTL.reset_value() == 1 << 3


def test_errors_name_what_would_be_valid():
    with pytest.raises(ValueError, match="RDT has indices 0 to 127, not 128"):
        REG.RDT.offset(128)
    with pytest.raises(ValueError, match="BSIZEPACKET has 5 bits, which cannot hold 32"):
        REG.SRRCTL.BSIZEPACKET.put(32)
    with pytest.raises(AttributeError, match="register RDT has no field 'NONE'"):
        REG.RDT.NONE  # noqa: B018


def test_no_two_registers_share_an_offset():
    seen: dict[int, str] = {}
    for register in REGISTERS.values():
        for index in range(register.count):
            for offset in register.offsets(index):
                name = f"{register.name}({index})"
                assert offset not in seen, f"{name} and {seen[offset]} at {offset:#x}"
                assert offset % 4 == 0 and offset < STORAGE_BYTES
                seen[offset] = name


def test_fields_do_not_overlap():
    for register in REGISTERS.values():
        bits = 0
        for f in register.fields:
            assert isinstance(f, Field) and f.low + f.width <= 32 and not bits & f.mask, (register.name, f.name)
            bits |= f.mask
        assert all(isinstance(bank, Bank) for bank in register.banks) and register.doc and register.section


def test_descriptor_formats():
    raw = RX_READ.pack(packet_address=0x1234_5678_9ABC)
    assert raw == (0x1234_5678_9ABC).to_bytes(8, "little") + bytes(8)
    raw = RX_WRITE_BACK.pack({"dd": 1, "eop": 1, "length": 1500, "crc_error": 1, "packet_type.udp": 1})
    assert raw == (1 << 9).to_bytes(8, "little") + (3 | 1 << 24).to_bytes(4, "little") + (1500).to_bytes(4, "little")
    assert RX_WRITE_BACK.unpack(raw)["length"] == 1500
    assert RX_WRITE_BACK.get(raw, "packet_type.udp") == 1
    with pytest.raises(ValueError, match="has no field 'nope'"):
        RX_READ.pack(nope=1)
    with pytest.raises(ValueError, match="length holds at most 0xffff, not 0x10000"):
        RX_WRITE_BACK.pack(length=0x10000)
