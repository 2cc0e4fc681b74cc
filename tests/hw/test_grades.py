"""Speed grades of DRAM: cycles as vendors' datasheets print them, and what cannot be."""

from fractions import Fraction

import pytest

from hw.config import ConfigError, load_machine
from hw.grades import clocks, grade_names, grade_values, most_clock_mhz

#: Cycles that datasheets of 8 Gb x8 devices (DDR4) and 16 Gb x8 devices (DDR5) print, at the grade's own clock. Those
#: of DDR4 are also in the tables of Ramulator 2.0 (src/dram/impl/DDR4.cpp); its DDR5.cpp, which has no grade beyond
#: 3200, agrees on what does not depend on the grade.
PRINTED = {
    ("DDR4-2133", 1066.667): {"tRAS": 36, "tFAW": 23, "tRRD_L": 6, "tCCD_L": 6, "tWR": 16, "tRTP": 8, "tWTR_L": 8},
    ("DDR4-2400", 1200): {"tRAS": 39, "tFAW": 26, "tRRD_L": 6, "tCCD_L": 6, "tWR": 18, "tRTP": 9, "tRFC": 420},
    ("DDR4-2666", 1333.333): {"tRAS": 43, "tFAW": 28, "tRRD_L": 7, "tCCD_L": 7, "tWR": 20, "tRTP": 10, "tREFI": 10399},
    ("DDR4-2933", 1466.667): {"tRAS": 47, "tFAW": 31, "tRRD_L": 8, "tCCD_L": 8, "tWR": 22, "tRTP": 11},
    ("DDR4-3200", 1600): {"tRAS": 52, "tFAW": 34, "tRRD_L": 8, "tCCD_L": 8, "tWR": 24, "tRTP": 12, "tRFC": 560},
    ("DDR5-4800", 2400): {"tRAS": 77, "tFAW": 32, "tRRD_L": 12, "tCCD_L": 12, "tWR": 72, "tRTP": 18, "tRFC": 708},
}


@pytest.mark.parametrize("grade, mhz", PRINTED)
def test_cycles(grade, mhz):
    values = grade_values(grade, mhz)
    assert {name: values[name] for name in PRINTED[grade, mhz]} == PRINTED[grade, mhz]
    assert Fraction(str(mhz)) == most_clock_mhz(grade)


def test_every_grade_is_here():
    assert {grade for grade, _ in PRINTED} == set(grade_names())


def test_rounding():
    """Up, but for the guard band of 2.6 % of a clock; a greatest time down; the longer of clocks and nanoseconds."""
    assert clocks({"ns": 10.0}, 1000) == 10
    assert clocks({"ns": 10.02}, 1000) == 10
    assert clocks({"ns": 10.03}, 1000) == 11
    assert clocks({"ns": 10.9}, 1000, at_most=True) == 10
    assert clocks({"nck": 4, "ns": 2.5}, 1000) == 4
    assert clocks(17, 1000) == 17


def test_a_machine_takes_what_it_does_not_say_from_its_grade():
    machine = load_machine("teaching", ["dram.grade=DDR4-3200", "clocks.dram=1600", "dram.tRCD=25"])
    assert (machine.dram.tRCD, machine.dram.tRP, machine.dram.CL) == (25, 22, 22)
    slower = machine.replace(["clocks.dram=800"])
    assert (slower.dram.tRCD, slower.dram.tRAS) == (25, 26)


@pytest.mark.parametrize(
    "settings, message",
    [
        (["dram.grade=DDR4-2401"], "unknown dram.grade 'DDR4-2401'; did you mean 'DDR4-2400'"),
        (["clocks.dram=1333"], "clocks.dram must be at most 1200 MHz for dram.grade = 'DDR4-2400', not 1333"),
        (["dram.mapping=row bank"], "dram.mapping must name each of group, column, bank, row once, not 'row bank'"),
        (["dram.page_policy=ajar"], "unknown dram.page_policy 'ajar'; valid: open, closed"),
        (["dram.burst_length=4"], "dram.burst_length must be 8 or 16, not 4"),
        (["dram.channels=3"], "dram.channels must be a power of two of at least 1, not 3"),
        (["dram.channels=16"], "dram.channels must be between 1 and 8, not 16"),
        (["dram.ranks=8"], "dram.ranks must be between 1 and 4, not 8"),
        (
            ["dram.ranks=2", "dram.mapping=group column bank row"],
            "dram.mapping must name each of rank, group, column, bank, row once, not 'group column bank row'",
        ),
        (["dram.tREFI=500"], "dram.tREFI must exceed 514, for each rank tRFC "),
        (["dram.tRTP=9360"], "dram.tRTP must be below tREFI = 9360, not 9360"),
        (["dram.command_clocks=3"], "dram.command_clocks must be between 1 and 2, not 3"),
        (["dram.tCCD_L_WR=5"], "dram.tCCD_L_WR must be at least tCCD_L = 6, not 5"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match="^" + message.replace("(", r"\(")):
        load_machine("teaching", settings)
