"""Levels put together from bytes equal a naive book, whatever came in between."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketprism.market.v1 import order_book_pb2

from services.marketdata.levels import BookLevels, MalformedLevelError, Side
from tests.unit.marketdata.truth import Collected, levels_of

S = order_book_pb2
prices = st.integers(1, 400).map(lambda n: f"{Decimal(n) / 8:f}".rstrip("0").rstrip("."))
quantities = st.one_of(st.just("0"), st.integers(1, 9).map(str))
changes = st.lists(st.tuples(prices, quantities), max_size=60)


@given(st.lists(changes, max_size=20), st.integers(0, 12), st.sampled_from((10, 11)))
def test_a_side_equals_a_sorted_dictionary(
    steps: list[list[tuple[str, str]]], depth: int, number: int
) -> None:
    side = Side(number, descending=number == 10)
    naive: dict[str, str] = {}
    for step in steps:
        update = S.OrderBookUpdate()
        for price, quantity in step:
            update.bids.add(price=price, quantity=quantity)
            naive[price] = quantity
            if quantity == "0":
                del naive[price]
        side.apply(update.bids)
        expected = sorted(naive, key=Decimal, reverse=number == 10)
        assert side.best(0) == expected
        assert side.best(depth) == (expected[:depth] if depth else expected)
        message = S.OrderBookSnapshot.FromString(side.encode(depth))
        bids, asks = levels_of(message)
        assert (bids or asks) == [(p, naive[p]) for p in (expected[:depth] if depth else expected)]


def test_a_book_brought_forward_is_the_collectors_own_snapshot() -> None:
    book = Collected(levels=300)
    levels = BookLevels(book.rebuild(), 0)
    for step in range(200):
        levels.apply(book.update(20))
        if step % 7 == 0:
            encoded = S.OrderBookSnapshot.FromString(levels.encode(S.SNAPSHOT_REASON_PERIODIC))
            expected = S.OrderBookSnapshot.FromString(book.snapshot())
            # What the collector stamps at each event, the reference stamps at the snapshot.
            assert encoded.HasField("exchange_time")
            assert encoded.HasField("receive_time")
            for message in (encoded, expected):
                message.ClearField("exchange_time")
                message.ClearField("receive_time")
            assert encoded.SerializeToString() == expected.SerializeToString()


def test_nothing_is_known_beyond_the_worst_level_of_a_window_that_moved() -> None:
    """OKX keeps the best 400 levels up: when one comes in, the worst goes, and is unknown then."""
    window = S.OrderBookSnapshot(exchange="okx", symbol="BTC-USDT", epoch=1, sequence=0)
    for price in ("100", "99", "98", "97"):
        window.bids.add(price=price, quantity="1")
    for price in ("101", "102", "103", "104"):
        window.asks.add(price=price, quantity="1")
    window.bid_horizon, window.ask_horizon = "97", "104"
    levels = BookLevels(window.SerializeToString(), 0)

    def horizons() -> tuple[str, str]:
        told = S.OrderBookSnapshot.FromString(levels.encode(S.SNAPSHOT_REASON_REQUESTED, 1))
        return told.bid_horizon, told.ask_horizon

    assert horizons() == ("97", "104")
    better = S.OrderBookUpdate(epoch=1, sequence=1)
    better.bids.add(price="100.5", quantity="2")
    better.bids.add(price="97", quantity="0")
    levels.apply(better.SerializeToString())
    assert horizons() == ("98", "104")
    worse = S.OrderBookUpdate(epoch=1, sequence=2)
    worse.bids.add(price="100.5", quantity="0")
    worse.bids.add(price="97", quantity="1")
    worse.asks.add(price="101", quantity="0")
    worse.asks.add(price="105", quantity="1")
    levels.apply(worse.SerializeToString())
    assert horizons() == ("97", "104"), "expected no claim beyond what the collector claims"


def test_long_numbers_are_encoded_whole() -> None:
    side = Side(10, descending=True)
    price, quantity = "1" * 70 + ".5", "2" * 70
    side.apply([S.OrderBookSnapshot().bids.add(price=price, quantity=quantity)])
    message = S.OrderBookSnapshot.FromString(side.encode(0))
    assert levels_of(message)[0] == [(price, quantity)]


@pytest.mark.parametrize("bad", ["", "abc", "NaN", "sNaN", "1,5"])
def test_a_price_that_is_no_number_is_an_error(bad: str) -> None:
    side = Side(11, descending=False)
    message = S.OrderBookSnapshot()
    message.asks.add(price="1", quantity="1")
    message.asks.add(price=bad, quantity="1")
    message.asks.add(price="2", quantity="1")
    side.apply(message.asks)
    with pytest.raises(MalformedLevelError, match="expected a decimal price"):
        side.encode(0)


def test_two_spellings_of_one_price_break_nothing() -> None:
    side = Side(11, descending=False)
    for price, quantity in (("1", "5"), ("2", "5"), ("1.0", "6"), ("1", "0"), ("3", "1")):
        message = S.OrderBookSnapshot()
        message.asks.add(price=price, quantity=quantity)
        side.apply(message.asks)
        assert side.best(0)
    assert side.best(0) == ["1.0", "2", "3"]
