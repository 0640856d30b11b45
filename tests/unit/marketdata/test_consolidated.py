"""Consolidated books: every leg's levels side by side, and legs that cannot be trusted left out."""

import asyncio
import random
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st
from marketprism.market.v1 import instrument_pb2, market_event_pb2, order_book_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb

from services.marketdata.consolidated_calls import ConsolidatedCalls
from services.marketdata.market import Market
from services.marketdata.settings import MarketDataSettings, StreamSettings
from services.shared.errors import InvalidArgument, NotFound, Unavailable
from tests.unit.marketdata.book_scene import advance, on_fake_time
from tests.unit.marketdata.truth import Collected

S = order_book_pb2
E = market_event_pb2
PAIR = {"base": "BTC", "quote": "USDT"}


class Venues:
    """Venues that list the same pair, and the calls under test."""

    def __init__(self, *exchanges: str, max_age: float = 60.0) -> None:
        self.now = 1_700_000_000_000_000_000
        self.market = Market(MarketDataSettings(), clock=lambda: self.now)
        self.market.catalog.ready = True
        self.calls = ConsolidatedCalls(self.market, StreamSettings(heartbeat_seconds=1.0), max_age)
        self.books: dict[str, Collected] = {}
        for exchange in exchanges:
            self.describe(exchange)
            self.begin(exchange)

    def describe(self, exchange: str, symbol: str = "BTC-USDT", **fields: Any) -> None:
        described = {"kind": instrument_pb2.INSTRUMENT_KIND_SPOT, **PAIR} | fields
        message = instrument_pb2.Instrument(exchange=exchange, symbol=symbol, **described)
        self.market.catalog.describe((exchange, symbol), message.SerializeToString())

    def begin(self, exchange: str, symbol: str = "BTC-USDT") -> None:
        seed = len(self.books) + 1
        book = self.books[exchange] = Collected(exchange, symbol, seed=seed, levels=8)
        self.snapshot(exchange)
        self.market.book((exchange, symbol)).on_status(book.synced())

    def snapshot(self, exchange: str) -> None:
        book = self.books[exchange]
        message = S.OrderBookSnapshot.FromString(book.rebuild())
        message.receive_time.FromNanoseconds(self.now)
        key = (exchange, book.symbol)
        self.market.book(key).on_snapshot(message.SerializeToString())

    def update(self, exchange: str) -> None:
        book = self.books[exchange]
        message = S.OrderBookUpdate.FromString(book.update())
        message.receive_time.FromNanoseconds(self.now)
        self.market.book((exchange, book.symbol)).on_update(message.SerializeToString())

    def get(self, **request: Any) -> pb.ConsolidatedOrderBook:
        answer = asyncio.run(
            self.calls.GetConsolidatedOrderBook(
                pb.GetConsolidatedOrderBookRequest(**PAIR | request),
                None,  # type: ignore[arg-type]
            )
        )
        return pb.GetConsolidatedOrderBookResponse.FromString(answer).order_book

    def naive(self, included: list[str], depth: int = 50) -> tuple[list[Any], list[Any]]:
        """Put the book together the slow way."""
        sides = []
        for side, sign in ((0, -1), (1, 1)):
            levels = [
                (sign * Decimal(price), exchange, price, quantity)
                for exchange in included
                for price, quantity in self.books[exchange].best()[side]
            ]
            sides.append([level[1:] for level in sorted(levels, key=lambda each: each[:2])][:depth])
        return sides[0], sides[1]

    def stream(self, **request: Any) -> AsyncIterator[bytes]:
        return self.calls.StreamConsolidatedOrderBook(
            pb.StreamConsolidatedOrderBookRequest(**PAIR | request),
            None,  # type: ignore[arg-type]
        )


class Reader:
    """Reads a stream in the background."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self.books: list[pb.ConsolidatedOrderBook] = []
        self.statuses: list[market_event_pb2.StreamStatus] = []
        self.task = asyncio.ensure_future(self._read(stream))

    async def _read(self, stream: AsyncIterator[bytes]) -> None:
        async for message in stream:
            response = pb.StreamConsolidatedOrderBookResponse.FromString(message)
            if response.HasField("stream_status"):
                assert not response.HasField("order_book"), "expected a book or a status"
                self.statuses.append(response.stream_status)
            else:
                self.books.append(response.order_book)


def sides(book: pb.ConsolidatedOrderBook) -> tuple[list[Any], list[Any]]:
    assert all(level.symbol == "BTC-USDT" for level in (*book.bids, *book.asks))
    bids, asks = (
        [(level.exchange, level.price, level.quantity) for level in side]
        for side in (book.bids, book.asks)
    )
    return bids, asks


def legs(book: pb.ConsolidatedOrderBook) -> dict[str, tuple[int, bool]]:
    return {leg.exchange: (leg.state, leg.included) for leg in book.legs}


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.lists(st.sampled_from(["update", "rebuild", "resync", "age"]), max_size=25),
    st.integers(1, 20),
)
def test_the_book_is_that_of_all_legs_in_step(seed: int, steps: list[str], depth: int) -> None:
    venues = Venues("a", "b", "c", max_age=60.0)
    chance = random.Random(seed)
    included = {"a", "b", "c"}
    changed = dict.fromkeys(included, venues.now)
    for step in steps:
        exchange = chance.choice("abc")
        live = venues.market.book((exchange, "BTC-USDT"))
        if step == "update":
            venues.update(exchange)
            changed[exchange] = venues.now
        elif step == "rebuild":
            venues.snapshot(exchange)
            live.on_status(venues.books[exchange].synced())
            changed[exchange] = venues.now
            included.add(exchange)
        elif step == "resync":
            live.on_status(venues.books[exchange].resyncing())
            included.discard(exchange)
        else:
            venues.now += 25 * 10**9
        fresh = {name for name in included if venues.now - changed[name] <= 60 * 10**9}
        book = venues.get(depth=depth)
        assert sides(book) == venues.naive(sorted(fresh), depth)
        assert {leg.exchange for leg in book.legs if leg.included} == fresh
        assert [leg.exchange for leg in book.legs] == ["a", "b", "c"], "expected all legs named"
        for leg in book.legs:
            truth = venues.books[leg.exchange]
            assert (leg.epoch, leg.sequence) == (truth.epoch, truth.sequence)
            assert leg.age_ms == (venues.now - changed[leg.exchange]) // 10**6


def test_a_book_that_is_crossed_across_venues_is_told_as_it_is() -> None:
    venues = Venues("a", "b")
    for exchange, bid, ask in (("a", "10", "11"), ("b", "12", "13")):
        message = S.OrderBookSnapshot.FromString(venues.books[exchange].rebuild())
        message.receive_time.FromNanoseconds(venues.now)
        del message.bids[:], message.asks[:]
        message.bids.add(price=bid, quantity="1")
        message.asks.add(price=ask, quantity="2")
        live = venues.market.book((exchange, "BTC-USDT"))
        live.on_snapshot(message.SerializeToString())
        live.on_status(venues.books[exchange].synced())
    book = venues.get()
    assert sides(book) == (
        [("b", "12", "1"), ("a", "10", "1")],
        [("a", "11", "2"), ("b", "13", "2")],
    )


def test_only_spot_instruments_of_the_pair_are_legs() -> None:
    venues = Venues("a")
    venues.describe("a", "BTC-USDT-PERP", kind=instrument_pb2.INSTRUMENT_KIND_PERPETUAL)
    venues.describe("a", "ETH-USDT", base="ETH")
    venues.describe("b", status=instrument_pb2.INSTRUMENT_STATUS_EXPIRED)
    venues.describe("c")
    assert legs(venues.get()) == {
        "a": (S.ORDER_BOOK_STATE_SYNCED, True),
        "c": (S.ORDER_BOOK_STATE_SYNCING, False),
    }
    assert legs(venues.get(exchanges=["c"])) == {"c": (S.ORDER_BOOK_STATE_SYNCING, False)}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"depth": -1}, "depth"),
        ({"depth": 10_001}, "depth"),
        ({"exchanges": ["a", ""]}, "exchanges[1]"),
        ({"exchanges": [str(n) for n in range(101)]}, "exchanges"),
    ],
)
def test_what_is_wrong_with_a_request_is_told_by_field(
    request_: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Venues("a").get(**request_)
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize("interval", [Duration(nanos=9_999_999), Duration(seconds=61), Duration()])
async def test_an_interval_out_of_range_is_refused(interval: Duration) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await anext(Venues("a").stream(interval=interval))
    assert caught.value.violations[0].field == "interval"


def test_a_pair_that_nobody_lists_is_not_found() -> None:
    venues = Venues("a")
    with pytest.raises(NotFound, match="did you mean BTC/USDT") as caught:
        venues.get(base="btc", quote="usdt")
    assert caught.value.reason == "INSTRUMENT_NOT_FOUND"
    with pytest.raises(NotFound, match="BTC is traded against USDT"):
        venues.get(quote="EUR")
    with pytest.raises(NotFound) as caught:
        venues.get(exchanges=["z"])
    assert caught.value.reason == "EXCHANGE_NOT_FOUND"
    venues.market.catalog.ready = False
    with pytest.raises(Unavailable):
        venues.get()


def test_a_stream_sends_the_book_when_it_changed_and_at_most_once_an_interval() -> None:
    async def scenario() -> None:
        venues = Venues("a", "b")
        reader = Reader(venues.stream(interval=Duration(seconds=1)))
        other = Reader(venues.stream(interval=Duration(seconds=1)))
        await advance()
        assert [status.state for status in reader.statuses] == [E.STREAM_STATE_OPEN]
        assert len(reader.books) == 1
        for _ in range(40):
            venues.update("a")
            await advance(0.1)
        assert 4 <= len(reader.books) <= 5
        assert other.books == reader.books
        await advance(1.0)
        assert sides(reader.books[-1]) == venues.naive(["a", "b"])
        count = len(reader.books)
        for _ in range(25):
            await advance(0.1)
        assert len(reader.books) == count, "expected nothing when nothing changed"
        assert E.STREAM_STATE_HEARTBEAT in [status.state for status in reader.statuses]
        venues.market.book(("b", "BTC-USDT")).on_status(venues.books["b"].resyncing())
        await advance(0.1)
        assert sides(reader.books[-1]) == venues.naive(["a"])
        assert legs(reader.books[-1])["b"] == (S.ORDER_BOOK_STATE_RESYNCING, False)
        for each in (reader, other):
            each.task.cancel()
        await advance()
        assert not venues.calls._shared, "expected nothing to be computed when all have gone"

    on_fake_time(scenario)


def test_a_venue_that_comes_later_joins() -> None:
    async def scenario() -> None:
        venues = Venues("a")
        reader = Reader(venues.stream())
        await advance()
        venues.describe("b")
        venues.begin("b")
        calls = venues.calls._books
        calls._refresh_at = 0.0
        await advance(0.2)
        assert sides(reader.books[-1]) == venues.naive(["a", "b"])
        reader.task.cancel()
        await advance()

    on_fake_time(scenario)


def test_a_stream_ends_with_the_server_and_says_so() -> None:
    async def scenario() -> None:
        venues = Venues("a")
        reader = Reader(venues.stream())
        await advance()
        venues.market.close()
        await advance()
        assert reader.statuses[-1].state == E.STREAM_STATE_ENDED
        assert reader.statuses[-1].reason == "SERVER_STOPPING"
        with pytest.raises(Unavailable):
            reader.task.result()

    on_fake_time(scenario)
