"""Numbers of the simulator are exact, and are printed as the venue prints them."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.fixed import canonical, eight_decimals, from_units, to_units


@given(st.integers(min_value=-(10**18), max_value=10**18))
def test_both_texts_keep_the_exact_number(units: int) -> None:
    assert to_units(canonical(units)) == units
    assert to_units(eight_decimals(units)) == units
    assert from_units(units) == Decimal(units).scaleb(-8)


@pytest.mark.parametrize(
    ("units", "canonical_text", "venue_text"),
    [
        (268_380_000_000, "2683.8", "2683.80000000"),
        (6560, "0.0000656", "0.00006560"),
        (500_000_000, "5", "5.00000000"),
        (0, "0", "0.00000000"),
        (-150_000_000, "-1.5", "-1.50000000"),
    ],
)
def test_canonical_has_no_trailing_zeros_and_the_venue_always_eight_decimals(
    units: int, canonical_text: str, venue_text: str
) -> None:
    assert canonical(units) == canonical_text
    assert eight_decimals(units) == venue_text


@pytest.mark.parametrize("text", ["", "abc", "NaN", "Infinity", "0.000000001", "1,5"])
def test_what_is_no_plain_decimal_of_eight_places_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        to_units(text)
