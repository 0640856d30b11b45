"""There is one spelling of a number, and it is exact."""

import contextlib
import re
import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.shared.decimals import InvalidDecimalError, canonical_decimal

_CANONICAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]*[1-9])?", re.ASCII)
_digits = st.text("0123456789", min_size=1, max_size=30)


@st.composite
def plain_numbers(draw: st.DrawFn) -> str:
    text = (
        draw(st.sampled_from(["", "-"])) + draw(st.sampled_from(["", "0", "000"])) + draw(_digits)
    )
    if draw(st.booleans()):
        text += "." + draw(st.text("0123456789", max_size=30))
    return text


@given(plain_numbers())
def test_the_canonical_text_has_the_value_of_what_came(text: str) -> None:
    canonical = canonical_decimal(text)
    assert Decimal(canonical) == Decimal(text)
    assert _CANONICAL.fullmatch(canonical)
    assert canonical != "-0"


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=8, min_value=-(10**20), max_value=10**20
    )
)
def test_equal_values_have_equal_texts(number: Decimal) -> None:
    spellings = {f"{number:f}", f"{number:f}0" if "." in f"{number:f}" else f"{number:f}.0"}
    assert len({canonical_decimal(text) for text in spellings}) == 1


@given(plain_numbers(), st.integers(-12, 12), st.sampled_from(["e", "E", "e+"]))
def test_exponents_are_worked_out_exactly_or_refused(text: str, exponent: int, mark: str) -> None:
    written = f"{text}{mark if exponent >= 0 else mark[0]}{exponent}"
    try:
        canonical = canonical_decimal(written)
    except InvalidDecimalError:
        return
    assert Decimal(canonical) == Decimal(written)
    assert _CANONICAL.fullmatch(canonical)


@given(st.text(max_size=40))
def test_any_text_gives_a_canonical_number_or_the_one_error(text: str) -> None:
    with contextlib.suppress(InvalidDecimalError):
        assert _CANONICAL.fullmatch(canonical_decimal(text))


@given(plain_numbers())
def test_canonical_text_is_left_alone(text: str) -> None:
    assert canonical_decimal(canonical_decimal(text)) == canonical_decimal(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.01000000", "0.01"),
        ("1.0002e6", "1000200"),
        ("5", "5"),
        ("0", "0"),
        ("-0.000", "0"),
        ("0e-10", "0"),
        ("00012.50", "12.5"),
        ("5.", "5"),
        ("-1.5E-3", "-0.0015"),
        ("9" * 30 + "." + "9" * 30, "9" * 30 + "." + "9" * 30),
        ("-" + "9" * 30 + "." + "9" * 30, "-" + "9" * 30 + "." + "9" * 30),
        ("-" + "9" * 29 + "." + "9" * 30 + "e0", "-" + "9" * 29 + "." + "9" * 30),
    ],
)
def test_spellings_that_venues_use(text: str, expected: str) -> None:
    assert canonical_decimal(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", ".", "-", "+1", ".5", " 1", "1 ", "1\n", "1_000", "1,5", "0x1", "NaN", "Infinity", "1e",
     "1e999", "1e-31", "٣", "1.٣", "²", "9" * 31, "0." + "9" * 31, "--1", "1.2.3"],
)  # fmt: skip
def test_what_is_no_number_of_thirty_digits_a_side_is_refused(text: str) -> None:
    with pytest.raises(InvalidDecimalError):
        canonical_decimal(text)


def test_a_text_without_end_is_refused_at_once() -> None:
    begun = time.perf_counter()
    with pytest.raises(InvalidDecimalError):
        canonical_decimal("0" * 10_000_000 + "x")
    assert time.perf_counter() - begun < 1.0
