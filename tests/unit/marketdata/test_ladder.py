"""The levels that views read: kept in order, and encoded as the library would."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketprism.market.v1 import common_pb2, order_book_pb2

from services.marketdata.ladder import (
    ASKS,
    BIDS,
    Ladder,
    OrderedSide,
    encode_best,
    encode_horizons,
    encode_levels,
)
from services.marketdata.levels import MalformedLevelError

S = order_book_pb2
TEXTS = st.text(max_size=80)


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=5), TEXTS, TEXTS)
def test_levels_and_horizons_are_encoded_as_the_library_does(
    levels: list[tuple[str, str]], bid: str, ask: str
) -> None:
    # Texts of any length and kind: what a venue names is none of ours to choose.
    encoded = encode_levels(BIDS, levels) + encode_levels(ASKS, levels) + encode_horizons(bid, ask)
    repeated = [common_pb2.PriceLevel(price=price, quantity=size) for price, size in levels]
    expected = S.OrderBookSnapshot(bids=repeated, asks=repeated, bid_horizon=bid, ask_horizon=ask)
    assert S.OrderBookSnapshot.FromString(encoded) == expected
    by_price = dict(levels)
    prices = list(by_price)
    assert encode_best(BIDS, prices, by_price) == encode_levels(BIDS, by_price.items())


@given(
    st.booleans(),
    st.lists(
        st.tuples(
            st.booleans(),
            st.dictionaries(
                st.integers(0, 40).map(lambda n: f"{n}.5"), st.sampled_from(["0", "1", "2"])
            ),
        ),
        max_size=12,
    ),
)
def test_a_side_is_in_order_whenever_it_is_asked(
    descending: bool, steps: list[tuple[bool, dict[str, str]]]
) -> None:
    side = OrderedSide(BIDS, descending=descending)
    truth: dict[str, str] = {}
    for is_asked, changes in steps:
        side.take(changes)
        truth = {price: size for price, size in (truth | changes).items() if size != "0"}
        assert side.levels == truth
        if is_asked:
            order = sorted(truth, key=Decimal, reverse=descending)
            assert side.best(0) == order
            assert side.best(3) == order[:3]


def test_a_horizon_at_the_worst_level_moves_with_it_and_another_does_not() -> None:
    ladder = Ladder()
    snapshot = S.OrderBookSnapshot(bid_horizon="9", ask_horizon="20")
    snapshot.bids.add(price="10", quantity="1")
    snapshot.bids.add(price="9", quantity="1")
    snapshot.asks.add(price="11", quantity="1")
    ladder.load(snapshot)
    assert ladder.horizons() == ("9", "20")
    ladder.bids.take({"9": "0"})
    assert ladder.horizons() == ("10", "20")


def test_a_price_that_is_none_is_told_when_order_is_asked_for() -> None:
    side = OrderedSide(BIDS, descending=True)
    side.take({"1": "1", "x": "1"})
    with pytest.raises(MalformedLevelError, match="'x'"):
        side.best(1)
    with pytest.raises(MalformedLevelError):
        side.before({})
    with pytest.raises(MalformedLevelError):
        side.better("1", "x")
