"""What venues may do that is odd and legal, and what the night brings."""

import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from services.collector.settings import ExchangeSettings
from services.collector.synchroniser import BookSynchroniser, SnapshotPolicy
from services.collector.topics import TopicBook, TopicState
from services.collector.venues.base import (
    Acknowledgement,
    BookSnapshot,
    RestRequest,
    SkippedTrade,
    Subscription,
)
from services.collector.venues.okx import Okx, OkxBookUpdate
from tests.integration.nats_tools import until
from tests.unit.collector.support import Subscriber
from tests.unit.collector.test_connection import raw_server, running
from tests.unit.collector.test_feed import Bench as FeedBench
from tests.unit.collector.test_venue import T0
from tests.unit.collector.test_venue import Bench as VenueBench

_BOOK = (common_pb2.EVENT_KIND_ORDER_BOOK,)


def snapshot(number: int) -> BookSnapshot:
    return BookSnapshot(number, [("10", "1")], [("11", "1")], 400, native_symbol="B")


def test_a_snapshot_before_its_acknowledgement_leaves_the_book_able_to_ask_again() -> None:
    out = Subscriber()
    book = BookSynchroniser("okx", "B", Okx(), out, SnapshotPolicy())
    book.begin(T0)
    book.on_stream_snapshot(snapshot(100), T0)
    book.begin(T0 + 1)
    asked = len(out.requests)
    book.on_diff(OkxBookUpdate("B", 105, 106, [], [], 0, 0), T0 + 2)
    assert len(out.requests) == asked + 1


def test_an_early_snapshot_of_a_second_connection_does_not_begin_an_epoch() -> None:
    bench = VenueBench()
    (feed,) = bench.feeds
    okx = Okx()
    feed.book = BookSynchroniser("okx", "B", okx, feed, SnapshotPolicy())
    feed.lanes = type(feed.lanes)(feed.book, okx)
    bench.venue.feeds["B"] = feed
    old, new = SimpleNamespace(connection_id="old"), SimpleNamespace(connection_id="new")
    for connection in (old, new):
        bench.venue._on_book_message(connection, snapshot(100), T0)  # type: ignore[arg-type]
        epoch = feed.book.epoch
        bench.venue.join(feed, connection.connection_id, T0)
    assert feed.lanes.names == ["old", "new"]
    assert feed.book.epoch == epoch, "the book goes on"
    assert len(bench.out.of("order_book_snapshot")) == 1


def test_what_happens_to_a_muted_book_is_in_the_ledger_and_known_here() -> None:
    bench = FeedBench()
    bench.in_step(100)
    feed = bench.feed
    feed.book.mute()
    assert feed.synced.is_set()
    feed.book.on_malformed("broken", bench.tick())
    assert not feed.synced.is_set(), "who waits for the book must not think that it is in step"
    assert "RESYNC_BEGUN" in bench.kinds


@pytest.mark.parametrize(
    "place", ["ws://127.0.0.1:99999/", "ws://127.0.0.1:abc/", "ws://a..b/", "ws://[::1/"]
)
async def test_a_redirect_to_nowhere_ends_nothing(place: str) -> None:
    answer = f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()
    async with raw_server(answer) as url, running(url) as (connection, _):
        await until(lambda: connection.reconnects >= 2, "it is tried again")
        assert connection.last_error


def test_what_is_left_of_a_request_answered_in_part_is_refused_and_asked_for_later() -> None:
    topics = TopicBook(Okx())
    names = [f"books:S{number}-USDT" for number in range(3)]
    topics.add([Subscription(name, _BOOK) for name in names], 0)
    request = topics.due(0)
    assert request is not None
    topics.sent(request.request_id, 0)
    for name in names[:2]:
        topics.acknowledge(Acknowledgement(request.request_id, (name,), complete=False), 1)
    assert topics.give_up(5, 10).refused == []
    (left,) = topics.give_up(11, 10).refused
    assert (left.subscription.topic, left.state) == (names[2], TopicState.REFUSED)
    assert topics.overdue(100, 10) == 0, "the connection goes on"


def test_a_request_that_waited_for_its_turn_is_not_late() -> None:
    topics = TopicBook(Okx())
    topics.add([Subscription("books:B", _BOOK)], 0)
    request = topics.due(0)
    assert request is not None
    topics.sent(request.request_id, 3600)
    assert topics.overdue(3605, 10) == 0
    assert topics.overdue(3611, 10) == 1


def test_numbers_that_the_history_leaves_out_are_not_missing() -> None:
    bench = FeedBench(last_trade_id=10)
    bench.trade(15)
    told = [SkippedTrade("BTCUSDT", number) for number in (11, 12, 13, 14)]
    bench.feed.on_history(11, told, "", bench.tick())
    assert bench.feed.trades.last_id == 15
    assert bench.feed.trades.missed == bench.feed.trades.backfilled == 0
    assert "GAP" not in bench.kinds


class Lists:
    """A venue whose lists the test sets."""

    def __init__(self, *bodies: bytes | Exception) -> None:
        self.bodies = list(bodies)

    async def get(self, _request: RestRequest, priority: int) -> tuple[bytes, int]:
        body = self.bodies.pop(0) if len(self.bodies) > 1 else self.bodies[0]
        if isinstance(body, Exception):
            raise body
        return body, T0


def listing(*names: str) -> bytes:
    symbols = ",".join(
        f'{{"symbol":"{n}USDT","status":"TRADING","baseAsset":"{n}","quoteAsset":"USDT"}}'
        for n in names
    )
    return f'{{"symbols":[{symbols}]}}'.encode()


@contextlib.asynccontextmanager
async def venue(rest: Lists) -> AsyncIterator[Any]:
    bench = VenueBench(count=0)
    bench.venue.roster._rest = rest  # type: ignore[assignment]
    bench.venue.roster._settings = ExchangeSettings(symbols=("*",), backoff_seconds=0.01)
    yield bench.venue.roster


async def test_a_list_that_is_suddenly_empty_removes_nothing() -> None:
    async with venue(Lists(listing("A", "B"), listing())) as roster:
        assert await roster._read(first=True)
        assert len(roster.listed) == 2
        await roster._read(first=False)
        assert len(roster.listed) == 2
        assert not roster._whole, "it is read again soon"


async def test_a_gap_asks_once_where_the_ledger_tells_it() -> None:
    bench = VenueBench()
    bench.in_step()
    (feed,) = bench.feeds
    feed.book.on_malformed("broken", T0)
    kinds = [entry.kind for entry in bench.entries]
    assert kinds.count(integrity.INTEGRITY_KIND_RESYNC_BEGUN) == 2, "the start, and this"
    assert feed.book.state == pb.ORDER_BOOK_STATE_RESYNCING
