"""What a pattern means, and that a bad one is told."""

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.marketdata.patterns import MAX_PATTERN, Pattern
from services.shared.errors import InvalidArgument


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("binance/BTC-USDT", ["binance/BTC-USDT"], ["binance/BTC-USDT-PERP", "okx/BTC-USDT"]),
        ("binance/*-USDT", ["binance/BTC-USDT"], ["binance/BTC-USDT-PERP", "binance/USDT"]),
        ("*/BTC-*", ["okx/BTC-USD-PERP", "binance/BTC-USDT"], ["okx/ETH-BTC"]),
        ("*/*", ["a/b"], []),
        ("bin*ce/*-*-*-C", ["binance/BTC-USD-20261225-60000-C"], ["binance/BTC-USD-C"]),
        ("x/*A*A", ["x/AA", "x/AxA", "x/BAA"], ["x/A"]),
    ],
)
def test_a_star_means_any_run_of_characters(
    pattern: str, matching: list[str], others: list[str]
) -> None:
    made = Pattern(pattern)

    def means(name: str) -> bool:
        exchange, symbol = name.split("/")
        return made.matches((exchange, symbol))

    assert [name for name in [*matching, *others] if means(name)] == matching


@given(
    st.text("AB*", min_size=1, max_size=12),
    st.text("AB", min_size=1, max_size=12),
)
def test_matching_is_that_of_a_shell(pattern: str, name: str) -> None:
    expected = fnmatch.fnmatchcase(name, pattern)
    made = Pattern(f"x/{pattern}")
    assert made.matches(("x", name)) == expected
    assert not made.matches(("y", name))
    if not made.is_literal:
        assert list(made.matching([("x", name), ("y", name)])) == [("x", name)] * expected


@pytest.mark.parametrize(
    "text",
    [*"/ü", "", "BTC-USDT", "x/", "/x", "a/b/c", "a/b c", "a/ü", "a/b\n", "a/" + "b" * MAX_PATTERN],
)
def test_what_is_no_pattern_is_refused_and_shown(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Pattern(text)
    assert caught.value.reason == "INVALID_PATTERN"
    assert "expected" in caught.value.message
