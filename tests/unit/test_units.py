"""Quantities as people write and read them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.errors import InputError
from ince.units import format_bytes, format_count, format_seconds, parse_bytes, parse_count


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("512", 512),
        (512, 512),
        ("3GiB", 3 * 2**30),
        ("3 gib", 3 * 2**30),
        (" 1.5 MiB ", 3 * 2**19),
        ("2GB", 2 * 10**9),
        ("7kb", 7000),
        ("1TiB", 2**40),
        (2**63 + 1, 2**63 + 1),
        (f"{2**63 + 1}B", 2**63 + 1),
    ],
)
def test_parse_bytes(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "three", "3 4", "-3GiB", "1e9", "inf", "nan", True])
def test_parse_bytes_refuses_what_is_no_amount(text):
    with pytest.raises(InputError, match="not an amount of memory"):
        parse_bytes(text)


def test_parse_bytes_refuses_a_negative_number():
    with pytest.raises(InputError, match="negative"):
        parse_bytes(-1)


def test_parse_bytes_names_the_nearest_unit():
    with pytest.raises(InputError, match="unknown unit of memory 'GiBs'") as caught:
        parse_bytes("3GiBs")
    assert caught.value.do == "did you mean 'GiB'?"


def test_parse_bytes_takes_any_number_of_digits():
    assert parse_bytes("9" * 400) > 10**399


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.50 KiB"),
        (1023.9 * 2**10, "1.00 MiB"),
        (1000 * 2**20, "1000 MiB"),
        (135 * 2**20, "135 MiB"),
        (2.5 * 2**30, "2.50 GiB"),
        (12.34 * 2**30, "12.3 GiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_format_bytes(num_bytes, expected):
    assert format_bytes(num_bytes) == expected


@given(st.integers(0, 2**50))
def test_what_format_bytes_writes_parse_bytes_reads(num_bytes):
    text = format_bytes(num_bytes)
    assert re.fullmatch(r"\d{1,4}(\.\d+)? (B|[KMGT]iB)", text)
    assert parse_bytes(text) == pytest.approx(num_bytes, rel=0.006)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (12.34, "12.3 s"),
        (59.96, "1 min 00 s"),
        (75.2, "1 min 15 s"),
        (3599.6, "1 h 00 min"),
        (7384, "2 h 03 min"),
    ],
)
def test_format_seconds(seconds, expected):
    assert format_seconds(seconds) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0"),
        (9_999, "9,999"),
        (9_999.6, "10.0k"),
        (12_345, "12.3k"),
        (999_950, "1.00M"),
        (4_884_480, "4.88M"),
        (134_515_008, "135M"),
        (7e9, "7.00B"),
        (1.5e12, "1.50T"),
        (-12_345, "-12.3k"),
    ],
)
def test_format_count(number, expected):
    assert format_count(number) == expected


@pytest.mark.parametrize(
    ("text", "count"), [("10M", 10_000_000), ("1.5b", 1_500_000_000), ("20,000", 20_000), (7, 7)]
)
def test_counts_as_people_write_them(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "many", "-1", "1e6", "10 M tokens", "1Q", "M"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(InputError, match="not a count"):
        parse_count(text)
