"""Grouping by price steps: exact, and never better than what is in the group."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketprism.market.v1 import order_book_pb2

from services.marketdata.grouping import GroupedLadder, plain_text, rounded
from services.marketdata.ladder import Changes, Ladder
from services.marketdata.levels import MalformedLevelError
from services.shared.decimals import canonical_decimal
from tests.unit.marketdata.book_scene import grouped

NUMBERS = st.decimals(-(10**30) + 1, 10**30 - 1, allow_nan=False, places=30)
STEPS = st.decimals(min_value=Decimal("1e-30"), max_value=10**30 - 1, places=30)


@given(NUMBERS, STEPS)
def test_prices_are_rounded_to_the_step_that_is_not_beyond_them(
    price: Decimal, step: Decimal
) -> None:
    for up in (False, True):
        group = Fraction(rounded(price, step, up=up))
        assert (group / Fraction(step)).denominator == 1, "expected a multiple of the step"
        away = group - Fraction(price) if up else Fraction(price) - group
        assert 0 <= away < Fraction(step)


@given(NUMBERS)
def test_numbers_are_spelt_canonically(number: Decimal) -> None:
    assert plain_text(number) == canonical_decimal(f"{number:f}")


LEVELS = st.dictionaries(
    st.decimals(0, 100, places=3).map(plain_text),
    st.one_of(st.just("0"), st.decimals(Decimal("1e-20"), 10**20, places=20).map(plain_text)),
    max_size=20,
)


@given(
    LEVELS, st.lists(st.tuples(LEVELS, LEVELS), max_size=8), st.sampled_from(["0.1", "7", "200"])
)
def test_sums_that_are_kept_equal_sums_that_are_made_anew(
    start: dict[str, str], steps: list[tuple[dict[str, str], dict[str, str]]], step: str
) -> None:
    raw = Ladder()
    snapshot = order_book_pb2.OrderBookSnapshot()
    for price, quantity in start.items():
        if quantity != "0":
            snapshot.bids.add(price=price, quantity=quantity)
    raw.load(snapshot)
    groups = GroupedLadder(raw, step)
    groups.load()
    client = dict(groups.bids.levels), dict(groups.asks.levels)
    update = order_book_pb2.OrderBookUpdate()
    for bids, asks in steps:
        changes = Changes(bids, asks, update, update)
        told = groups.take(changes)
        raw.take(changes)
        for held, changed in zip(client, (told.bids, told.asks), strict=True):
            for price, quantity in changed.items():
                assert held.get(price, "0") != quantity, "expected what changed and nothing else"
                if quantity == "0":
                    del held[price]
                else:
                    held[price] = quantity
        assert client == (groups.bids.levels, groups.asks.levels)
        naive = grouped(raw.bids.before({}), step, up=False)
        assert [(p, groups.bids.levels[p]) for p in groups.bids.best(0)] == naive
        naive = grouped(raw.asks.before({}), step, up=True)
        assert [(p, groups.asks.levels[p]) for p in groups.asks.best(0)] == naive


@pytest.mark.parametrize(("price", "quantity"), [("x", "1"), ("1", "x"), ("NaN", "1"), ("1", "")])
def test_what_is_no_number_is_told(price: str, quantity: str) -> None:
    groups = GroupedLadder(Ladder(), "1")
    update = order_book_pb2.OrderBookUpdate()
    with pytest.raises(MalformedLevelError, match="expected a decimal level"):
        groups.take(Changes({price: quantity}, {}, update, update))
