import math

import pytest

from cutset.quantities import (
    BANDWIDTH,
    BYTE_COST,
    BYTES,
    ROW_RATE,
    SECONDS,
    near_units,
    read_bytes,
    read_quantity,
)


@pytest.mark.parametrize(
    ("text", "measure", "expected"),
    [
        ("50 ms", SECONDS, 0.05),
        (" 50ms ", SECONDS, 0.05),
        (".5e3 us", SECONDS, 0.0005),
        ("-0 s", SECONDS, 0.0),
        ("2 min", SECONDS, 120.0),
        ("100 Mbit/s", BANDWIDTH, 12_500_000.0),
        ("100 Mbps", BANDWIDTH, 12_500_000.0),
        ("inf", BANDWIDTH, math.inf),
        ("3 us/MB", BYTE_COST, 3e-12),
        ("30 rows/min", ROW_RATE, 0.5),
        ("2/s", ROW_RATE, 2.0),
    ],
)
def test_reads_numbers_with_units(text, measure, expected):
    assert read_quantity(text, measure) == expected


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("100", "'100' has no unit; write one as in '1 ms'"),
        ("1e5", "'1e5' has no unit"),
        ("1e400 s", "too large"),
        ("-5 ms", "must be 0 or more, got '-5 ms'"),
        ("nan", "cannot read 'nan'"),
        ("inf s", "cannot read 'inf s'"),
        ("1.2.3 s", "cannot read"),
        ("1,5 s", "cannot read"),
        ("1_000 s", "cannot read"),
        ("", "cannot read"),
        ("\N{ARABIC-INDIC DIGIT THREE} s", "cannot read"),
        ("5" * 100 + " s", "cannot read"),
        ("5 \x1b[2J", r"unknown unit '\x1b[2J'"),
        ("5 sec", "unknown unit 'sec'; did you mean 's'?"),
        ("5 parsec", "unknown unit 'parsec'; known: s, ms, us"),
    ],
)
def test_says_what_is_wrong_with_a_text(text, what):
    with pytest.raises(ValueError, match=r".") as caught:
        read_quantity(text, SECONDS)
    assert what in str(caught.value)


def test_a_number_without_a_unit_takes_the_one_that_the_caller_says():
    assert read_quantity("50", SECONDS, bare="ms") == 0.05
    assert read_bytes("2", bare="MiB") == 2_097_152


@pytest.mark.parametrize(
    ("unit", "measure", "expected"),
    [
        ("MB/sec", BANDWIDTH, ["MB/s"]),
        ("mbit", BANDWIDTH, ["Mbit/s"]),
        ("mbps", BANDWIDTH, ["Mbps"]),
        ("MBps", BANDWIDTH, ["MB/s"]),
        ("Mb/s", BANDWIDTH, ["Mbit/s", "MB/s"]),
        ("megabits per second", BANDWIDTH, ["Mbit/s"]),
        ("kilobytes/s", BANDWIDTH, ["kB/s"]),
        ("gb", BYTES, ["GB"]),
        ("Gi", BYTES, ["GiB"]),
        ("msec", SECONDS, ["ms"]),
        ("ns/byte", BYTE_COST, ["ns/B"]),
        ("rows per second", ROW_RATE, ["rows/s"]),
        ("parsec", BANDWIDTH, []),
    ],
)
def test_near_units_are_those_that_were_probably_meant(unit, measure, expected):
    assert near_units(unit, measure) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9007199254740991.9 B", 9_007_199_254_740_991),  # as a float it would be one more
        ("9007199254740993 B", 9_007_199_254_740_993),
        ("0.9 KiB", 921),
        ("1.9 B", 1),
        ("0.9 B", 0),
        ("1e-999999999 B", 0),
    ],
)
def test_memory_is_never_rounded_up(text, expected):
    assert read_bytes(text) == expected


@pytest.mark.parametrize("text", ["1e30 TB", "1e999999999 B", "9223372036854775808 B"])
def test_more_memory_than_there_can_be_is_refused(text):
    with pytest.raises(ValueError, match="too large"):
        read_bytes(text)
