"""Deribit's JSON numbers are spelt as the venue spells them, and lose nothing."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.deribit_numbers import Float, Numbers, dumps, plain, rounded, short
from services.simulator.fixed import to_units


@pytest.mark.parametrize(
    "spelt",
    [
        # Seen in frames of the venue in 2026.
        "1.0002e6",
        "3.0e6",
        "2.2e3",
        "76914.0",
        "8450.0",
        "1054.0",
        "308897.0",
        "38458.5",
        "115372.0",
        "10.0",
        "0.0",
        "0.0065",
        "0.0009",
        "0.0477",
        "2.8e-4",
        "1.423e-4",
        "5.149e-5",
    ],
)
def test_a_float_has_the_venues_spelling(spelt: str) -> None:
    assert short(to_units(Decimal(spelt))) == spelt


@pytest.mark.parametrize(
    ("units", "spelt"),
    [
        (10**11, "1.0e3"),
        (10**10, "100.0"),
        (1, "1.0e-8"),
        (12, "1.2e-7"),
        (10**7, "0.1"),
        (12345678, "0.12345678"),
        (-220000000000, "-2.2e3"),
    ],
)
def test_the_shorter_form_wins_and_decimals_win_a_tie(units: int, spelt: str) -> None:
    assert short(units) == spelt


@given(st.integers(-(10**24), 10**24))
def test_no_spelling_loses_a_digit(units: int) -> None:
    value = Decimal(units).scaleb(-8)
    assert Decimal(short(units)) == value
    assert Decimal(plain(units)) == value
    assert "." in short(units), "the venue's floats always have a point"
    assert Numbers()[units] == short(units).encode()


@given(st.integers(1, 10**20))
def test_no_spelling_is_longer_than_the_decimal_one(units: int) -> None:
    decimal = plain(units)
    assert len(short(units)) <= len(decimal if "." in decimal else f"{decimal}.0")


def test_whole_numbers_stay_integers_beside_floats() -> None:
    told = dumps({"id": 7, "price": Float(7 * 10**8), "none": None, "open": True, "levels": [[1]]})
    assert told == '{"id":7,"price":7.0,"none":null,"open":true,"levels":[[1]]}'
    assert json.loads(told)["price"] == 7.0


def test_a_python_float_is_refused_since_its_spelling_is_pythons() -> None:
    with pytest.raises(TypeError, match="expected JSON data without Python floats, got float"):
        dumps([0.1])


@pytest.mark.parametrize(("value", "units"), [(1.5, 150_000_000), (-0.00012345, -12345), (0.0, 0)])
def test_computed_values_are_rounded_to_units(value: float, units: int) -> None:
    assert rounded(value) == units
