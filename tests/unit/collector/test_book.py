"""A book holds exactly what was told of it, and its bytes say the same."""

import hashlib
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketprism.market.v1 import order_book_pb2 as pb

from services.collector.book import OrderBook, book_digest
from services.shared.decimals import InvalidDecimalError, canonical_decimal
from tests.unit.collector.support import PlainBook, as_decimals, pairs

# Few prices in many spellings, so that levels meet.
prices = st.tuples(
    st.integers(1, 60), st.sampled_from(["{:f}", "{:f}0", "0{:f}", "{:f}00000"])
).map(lambda pair: pair[1].format(Decimal(pair[0]) / 8))
quantities = st.one_of(
    st.sampled_from(["0", "0.00000000", "0e5", "1e2", "000.5", "-0"]),
    st.decimals(0, 10**9, places=8).map(lambda number: f"{number:f}"),
)
sides = st.lists(st.tuples(prices, quantities), max_size=25)


@given(sides, sides, st.lists(st.tuples(sides, sides), max_size=8))
def test_any_sequence_of_updates_gives_the_plain_book_and_its_bytes(
    bids: list[tuple[str, str]],
    asks: list[tuple[str, str]],
    updates: list[tuple[list[tuple[str, str]], list[tuple[str, str]]]],
) -> None:
    book, plain = OrderBook(), PlainBook()
    # A snapshot names a price once; where it does not, the last one counts.
    book.replace(bids, asks)
    plain.apply(bids, asks)
    for changed_bids, changed_asks in updates:
        encoded = pb.OrderBookUpdate.FromString(book.apply(changed_bids, changed_asks))
        plain.apply(changed_bids, changed_asks)
        for told, came in ((encoded.bids, changed_bids), (encoded.asks, changed_asks)):
            assert pairs(told) == [(canonical_decimal(p), canonical_decimal(q)) for p, q in came]
    expected = plain.sorted()
    assert (as_decimals(book.bids()), as_decimals(book.asks())) == expected
    snapshot = pb.OrderBookSnapshot.FromString(book.encode_levels())
    assert (as_decimals(pairs(snapshot.bids)), as_decimals(pairs(snapshot.asks))) == expected
    assert all(canonical_decimal(p) == p for p, _ in pairs(snapshot.bids))
    assert (book.bid_count, book.ask_count) == (len(plain.bids), len(plain.asks))
    best_bid, best_ask = book.best_bid(), book.best_ask()
    assert (best_bid is None) == (not plain.bids)
    assert best_bid is None or Decimal(best_bid.price) == max(plain.bids)
    assert best_ask is None or Decimal(best_ask.price) == min(plain.asks)
    crossed = bool(plain.bids and plain.asks and max(plain.bids) >= min(plain.asks))
    assert book.crossed() == crossed


@given(sides, sides, st.integers(1, 10))
def test_trimming_keeps_the_best_and_moves_the_horizon(
    bids: list[tuple[str, str]], asks: list[tuple[str, str]], limit: int
) -> None:
    book = OrderBook()
    book.replace(bids, asks)
    before_bids, before_asks = book.bids(), book.asks()
    dropped = book.trim(limit)
    assert book.bids() == before_bids[:limit]
    assert book.asks() == before_asks[:limit]
    assert dropped == len(before_bids[limit:]) + len(before_asks[limit:])
    assert book.bid_horizon == (before_bids[limit - 1].price if before_bids[limit:] else "")
    assert book.ask_horizon == (before_asks[limit - 1].price if before_asks[limit:] else "")
    assert book.levels_within_horizon() == (book.bid_count, book.ask_count)


def test_a_side_that_came_full_ends_at_a_horizon_and_one_that_did_not_is_known_whole() -> None:
    book = OrderBook()
    book.replace([("10.0", "1"), ("9", "1"), ("8.50", "2")], [("11", "1"), ("12", "1")], limit=3)
    assert (book.bid_horizon, book.ask_horizon) == ("8.5", "")
    book.apply([("8", "7"), ("7", "7")], [("13", "1")])
    assert (book.bid_count, book.ask_count) == (5, 3)
    assert book.levels_within_horizon() == (3, 3)
    book.apply([("10", "0"), ("9", "0")], [])
    assert book.levels_within_horizon() == (1, 3)


def test_depth_counts_from_the_best() -> None:
    book = OrderBook()
    book.replace([("1", "1"), ("10", "2"), ("9", "3")], [("20", "1"), ("100", "2"), ("30", "3")])
    assert book.bids(2) == [("10", "2"), ("9", "3")]
    assert book.asks(2) == [("20", "1"), ("30", "3")]
    assert book.bids(0) == []


def test_prices_compare_by_value_and_not_by_text() -> None:
    book = OrderBook()
    book.replace([("9", "1"), ("10", "1")], [("100", "1"), ("99.5", "1")])
    assert (book.best_bid(), book.best_ask()) == (("10", "1"), ("99.5", "1"))
    assert not book.crossed()
    book.apply([("99.50000000", "1")], [])
    assert book.crossed()


@pytest.mark.parametrize(
    "bad",
    [("1", "-1"), ("x", "1"), ("1", ""), ("1", "1.٣"), ("1", "²"), ("1", "9" * 31),
     ("1", "9" * 200), ("9" * 31, "1"), ("1", "NaN"), ("1", "0." + "0" * 31),
     ("1", "9" * 40 + ".5")],
)  # fmt: skip
def test_a_malformed_level_is_one_error_wherever_it_comes(bad: tuple[str, str]) -> None:
    book = OrderBook()
    book.replace([("5", "1")], [("6", "1")])
    with pytest.raises(InvalidDecimalError):
        book.replace([bad], [])
    assert book.bids() == [("5", "1")], "a refused snapshot leaves the book as it was"
    with pytest.raises(InvalidDecimalError):
        book.apply([], [bad])


@given(st.text(max_size=50), st.text(max_size=50))
def test_any_text_as_a_level_is_applied_or_refused(price: str, quantity: str) -> None:
    try:
        encoded = OrderBook().apply([(price, quantity)], [])
    except InvalidDecimalError:
        return
    (level,) = pb.OrderBookUpdate.FromString(encoded).bids
    assert (level.price, level.quantity) == (canonical_decimal(price), canonical_decimal(quantity))


_eight = st.tuples(st.integers(0, 10**24), st.integers(0, 10**8 - 1)).map(
    lambda parts: f"{parts[0]}.{parts[1]:08d}"
)
_odd = st.sampled_from(
    ["0.00000000", "00.00000000", "007.50000000", ".50000000", ".00000000", "1.2.00000000", "5",
     "5.", "", "1e3", "-1.00000000", "1.0000000", "1.000000000", "10.00000000", "0.00000010",
     "٣.00000000", "1\u00b2.00000000", "12345678", "1.00000000 ", "+1.00000000", "0.0", "100",
     "1.5" + "0" * 27, "1.5" + "0" * 28, "1.5" + "0" * 29, "0." + "0" * 28, "0." + "0" * 30,
     "9" * 30, "9" * 31, "1..5", "..", ".", "00", "01", "0", "1e-05", "0.00005"]
)  # fmt: skip
_plain = st.decimals(0, 10**9, places=5, allow_nan=False).map(
    lambda number: f"{number:f}".rstrip("0").rstrip(".") or "0"
) | st.sampled_from(["0", "0.0", "40.0", "1.66317", "0.5", "12"])


@given(
    st.one_of(
        st.lists(st.tuples(prices, st.one_of(_eight, _eight, _odd)), max_size=8),
        st.lists(st.tuples(prices, st.one_of(_plain, _plain, _odd)), max_size=8),
    )
)
def test_one_odd_quantity_among_usual_ones_is_read_or_refused_as_it_would_be_alone(
    changes: list[tuple[str, str]],
) -> None:
    book = OrderBook()
    book.replace([("3", "1"), ("4", "2")], [])
    plain = PlainBook()
    plain.apply([("3", "1"), ("4", "2")], [])
    try:
        expected = [(canonical_decimal(p), canonical_decimal(q)) for p, q in changes]
        if any(quantity.startswith("-") for _, quantity in expected):
            raise InvalidDecimalError
    except InvalidDecimalError:
        with pytest.raises(InvalidDecimalError):
            book.apply(changes, [])
        return
    assert pairs(pb.OrderBookUpdate.FromString(book.apply(changes, [])).bids) == expected
    plain.apply(expected, [])
    assert as_decimals(book.bids()) == plain.sorted()[0]


@given(
    st.lists(
        st.tuples(st.integers(0, 10**18), st.sampled_from([0, 1, 5, 8, 18])).map(
            lambda pair: f"{Decimal(pair[0]).scaleb(-pair[1]):f}"
        ),
        min_size=1,
        max_size=12,
    )
)
def test_prices_of_any_length_are_ordered_by_their_exact_value(texts: list[str]) -> None:
    # Neighbours that a double cannot tell apart.
    texts += [f"{text}{'' if '.' in text else '.'}00001" for text in texts if len(text) < 29]
    book = OrderBook()
    book.replace([(text, "1") for text in texts], [(text, "1") for text in texts], limit=1)
    expected = sorted({Decimal(text) for text in texts})
    assert [Decimal(price) for price, _ in book.asks()] == expected
    assert [Decimal(price) for price, _ in book.bids()] == expected[::-1]
    best_bid, best_ask = book.best_bid(), book.best_ask()
    assert best_bid is not None
    assert best_ask is not None
    assert (Decimal(best_ask.price), Decimal(best_bid.price)) == (expected[0], expected[-1])
    assert (Decimal(book.bid_horizon), Decimal(book.ask_horizon)) == (expected[0], expected[-1])


def test_many_different_prices_do_not_fill_memory() -> None:
    from services.collector import book as module

    book = OrderBook()
    for start in range(0, 120_000, 1000):
        book.apply([(f"{start + step}.25", "0") for step in range(1000)], [])
    assert len(module._PRICES) <= 50_000
    assert book.bid_count == 0


def test_the_digest_is_that_of_the_captures() -> None:
    bids = [(str(100 - step), "1.5") for step in range(60)]
    asks = [(str(101 + step), "0.25") for step in range(60)]
    text = "".join(f"bid {p} {q}\n" for p, q in bids[:50])
    text += "".join(f"ask {p} {q}\n" for p, q in asks[:50])
    assert book_digest(bids, asks) == hashlib.sha256(text.encode()).hexdigest()
    assert book_digest([], []) == hashlib.sha256(b"").hexdigest()
    assert book_digest(bids[:1], []) == hashlib.sha256(b"bid 100 1.5\n").hexdigest()
