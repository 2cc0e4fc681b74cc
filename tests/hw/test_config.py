"""Machines are validated: every error is one line that names the field and what would be valid."""

import math
from fractions import Fraction

import pytest

from hw.config import ConfigError, load_machine, preset_names


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_clocks_share_a_tick(name):
    machine = load_machine(name)
    assert machine.name == name
    periods = [machine.period_ticks(clock) for clock in ("core", "uncore", "nic", "dram")]
    assert math.gcd(*periods) == 1
    for clock, period in zip(("core", "uncore", "nic", "dram"), periods, strict=True):
        assert period * machine.clocks.khz(clock) * 1000 == machine.ticks_per_second


def test_teaching_is_what_the_documentation_says():
    machine = load_machine("teaching")
    assert (machine.core.count, machine.clocks.core) == (2, 3000.0)
    assert (machine.l1.size_kib, machine.llc.size_kib, machine.llc.ways, machine.llc.ddio_ways) == (32, 2048, 16, 2)
    assert machine.dram.size_mib >= 64
    # 10 Gb/s at 312.5 MHz: four bytes a cycle.
    assert machine.cycles_per_byte(machine.nic.line_gbps) == Fraction(1, 4)


@pytest.mark.parametrize(
    "setting, message",
    [
        ("llc.ddio_wys=1", "unknown key of .llc. 'ddio_wys'; did you mean 'ddio_ways'?"),
        ("lcc.ddio_ways=1", "unknown machine section 'lcc'; did you mean 'llc'?"),
        ("llc.ddio_ways", "--set takes section.key=value"),
        ("ddio_ways=1", "--set takes section.key=value"),
        ("llc.ddio_ways=many", "takes a number or true/false, not 'many'"),
        ("llc.ddio_ways=2.5", "llc.ddio_ways must be a whole number, not 2.5"),
        ("llc.ddio=1", "llc.ddio must be true or false, not 1"),
        ("llc.ddio_ways=true", "llc.ddio_ways must be a whole number, not True"),
        ("llc.ddio_ways=17", "llc.ddio_ways must be between 1 and 16, not 17"),
        ("llc.ways=3", "llc.ways must divide the 32768 lines"),
        ("llc.slices=33", "llc.slices must be between 1 and 32, not 33"),
        ("llc.slices=3", "llc.slices must divide the 2048 sets of the whole cache, not 3"),
        ("llc.slices=true", "llc.slices must be a whole number, not True"),
        ("llc.inclusion=exclusive", "llc.inclusion must be one of non-inclusive, inclusive, not 'exclusive'"),
        ("llc.inclusion='x y'", "llc.inclusion must be one of non-inclusive, inclusive, not 'x y'"),
        ("llc.replacement=lru", "llc.replacement must be one of bit-plru, random, not 'lru'"),
        ("llc.class_masks=[5]", "llc.class_masks must be contiguous ones, not 0b101"),
        ("llc.class_masks=[0]", "llc.class_masks must be between 1 and 65535, not 0"),
        ("llc.class_masks=[65536]", "llc.class_masks must be between 1 and 65535, not 65536"),
        ("llc.class_masks=7", "llc.class_masks must be a list of whole numbers, not 7"),
        ("llc.core_classes=[16]", "llc.core_classes must be between 0 and 15, not 16"),
        ("llc.snoop_filter_ways=5", "llc.snoop_filter_lines must be a multiple of .* = 5, not 16384"),
        ("llc.snoop_filter_lines=65536", "4096 sets must be at most the 2048 sets of the cache"),
        ("l1.ways=3", "l1.ways must be a power of two"),
        ("core.window=true", "core.window must be a whole number, not True"),
        ("core.sleep_exit_ns=3", "core.sleep_exit_ns must be a list of numbers, not 3"),
        ("core.sleep_exit_ns=[5, 2]", "core.sleep_exit_ns must rise from state to state"),
        ("l2.latency=4", "l2.latency must be between 8 and 255, not 4"),
        ("tlb.l2=1000", "tlb.l2 = 1000 is no multiple of 6 ways"),
        ("tlb.l1_4k=48", "tlb.l1_4k / ways .sets. must be a power of two of at least 1, not 12"),
        ("nic.line_gbps=107", "exceeds the 106.25 Gb/s of 65-byte frames"),
        ("pcie.gbps=500", "exceeds the 160 Gb/s"),
        ("pcie.mps=100", "pcie.mps must be a power of two of at least 128"),
        ("dram.tRAS=10", "dram.tRAS must be at least tRCD = 17"),
        ("dram.tREFI=100", "dram.tREFI must exceed 514, for each rank tRFC "),
        ("dram.controller_ns=101.0", "dram.controller_ns must be between 0 and 100, not 101"),
        ("dram.phy_ns=-1.0", "dram.phy_ns must be between 0 and 100, not -1"),
        ("dram.size_mib=48", "dram.size_mib must be a power of two"),
        ("clocks.core=0.1", "clocks.core must be between 1 and 10000"),
        ("clocks.core=1.23456", "clocks.core has more than three decimals"),
        ("nic.packet_buffer_kib=16", "must hold two frames"),
        ("nic.tx_packet_buffer_kib=16", "nic.tx_packet_buffer_kib = 16 must hold two frames of 9728 bytes"),
        ("nic.queues=17", "nic.queues must be between 1 and 16, not 17"),
        ("nic.queues=8", "take 272 tags; a read has one of 256"),
        ("nic.payload_reads=3", "nic.payload_reads must be a power of two of at least 2, not 3"),
    ],
)
def test_impossible_settings(setting, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_machine("teaching", [setting])
    assert "\n" not in str(caught.value)


def test_settings_apply():
    machine = load_machine("teaching", ["llc.ddio_ways=4", "llc.ddio=false", "nic.line_gbps=100"])
    assert (machine.llc.ddio_ways, machine.llc.ddio, machine.nic.line_gbps) == (4, False, 100)


def test_a_file_may_begin_from_a_preset(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "tiny"\nname = "mine"\n[llc]\nddio_ways = 1\n')
    machine = load_machine(str(path))
    assert (machine.name, machine.llc.ddio_ways, machine.llc.ways) == ("mine", 1, 8)


@pytest.mark.parametrize(
    "text, message",
    [
        ("name = ", "mine.toml: "),
        ('base = "large"', "unknown base machine 'large'; valid: "),
        ('base = "tiny"\n[llc]\nspeed = 1', "unknown key of .llc. 'speed'"),
        ('base = "tiny"\nllc = 3', ".llc. must be a table"),
        ('name = "x"', ".clocks. lacks core"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_machine(str(path))


def test_unknown_machine():
    with pytest.raises(ConfigError, match="unknown machine 'teachin'; did you mean 'teaching'"):
        load_machine("teachin")
    with pytest.raises(ConfigError, match="no machine file"):
        load_machine("./nowhere.toml")
