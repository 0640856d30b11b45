"""A venue hands every frame to its instrument, whatever it is, and looks after all of them."""

import asyncio
import json
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2, events_pb2
from marketprism.market.v1 import order_book_pb2 as pb
from prometheus_client import CollectorRegistry, Counter

from services.collector.feed import InstrumentFeed
from services.collector.ledger import Ledger
from services.collector.settings import ExchangeSettings
from services.collector.synchroniser import SnapshotPolicy
from services.collector.venue import Venue
from services.collector.venues.base import (
    BookSnapshot,
    InstrumentSpec,
    Observation,
    TradePrint,
)
from services.collector.venues.binance_spot import BinanceSpot
from tests.unit.collector.support import diff
from tests.unit.collector.test_feed import SECOND, T0, Outbox


class Publisher(Outbox):
    """A publisher whose state the test sets."""

    connected = True
    buffered = 0

    @property
    def status(self) -> SimpleNamespace:
        return SimpleNamespace(connected=self.connected, buffered=self.buffered)


class Bench:
    """A venue without tasks: what it would start is kept."""

    def __init__(self, count: int = 1) -> None:
        self.out = Publisher()
        self.started: list[str] = []
        counter = Counter("events", "Entries.", ["exchange", "kind"], registry=CollectorRegistry())
        ledger = Ledger("col-1", self.out.publish, counter)
        settings = ExchangeSettings(rest_url="http://x", ws_url="ws://x", symbols=("*",))
        adapter = BinanceSpot()
        self.venue = Venue(
            "binance", adapter, settings, None, self.out, ledger,  # type: ignore[arg-type]
            SnapshotPolicy(every_seconds=30), self.spawn,
        )  # fmt: skip
        roster = self.venue.roster
        for number in range(count):
            feed = InstrumentFeed(
                InstrumentSpec("binance", f"S{number}-USDT", f"S{number}USDT", "S", "USDT"),
                adapter, self.out, ledger, SnapshotPolicy(every_seconds=30),  # type: ignore[arg-type]
                self.venue.requests.snapshot, self.venue.requests.trades.fetch,
            )  # fmt: skip
            roster.feeds[feed.spec.native_symbol] = feed
            roster.by_symbol[feed.spec.symbol] = feed
            subscriptions = adapter.subscriptions(feed.spec, settings.selection(adapter.kinds))
            roster._subscriptions[feed.spec.native_symbol] = subscriptions
            self.venue.pool.add(subscriptions)
        if count:
            self.connection = self.venue.connections[0]

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        work.close()
        self.started.append(name)
        return MagicMock()

    def subscribed(self) -> None:
        """The venue acknowledges everything."""
        self.venue.on_subscribed(
            self.connection,
            [topic for each in self.venue.connections for topic in each.topics.topics.values()],
            T0,
        )

    def in_step(self) -> None:
        self.subscribed()
        for feed in self.feeds:
            feed.book.on_snapshot(BookSnapshot(100, [("10", "1")], [("11", "1")]), T0)
            feed.on_diff(self.connection.connection_id, diff(101, 101), T0)
            assert feed.book.in_step

    def frame(self, event: object, stream: str = "s0usdt@depth@100ms") -> None:
        text = json.dumps(
            {"stream": stream, "data": event}, separators=(",", ":"), ensure_ascii=False
        )
        self.venue.on_frame(self.connection, text.encode(), T0)

    @property
    def feeds(self) -> list[InstrumentFeed]:
        return list(self.venue.feeds.values())

    @property
    def entries(self) -> list[integrity.IntegrityEvent]:
        return [integrity.IntegrityEvent.FromString(each) for each in self.out.of("integrity")]


def test_books_that_are_due_together_are_repeated_a_few_at_a_time() -> None:
    bench = Bench(count=100)
    bench.in_step()
    begun = len(bench.out.of("order_book_snapshot"))
    counts = []
    now = T0 + 31 * SECOND
    while len(bench.out.of("order_book_snapshot")) < begun + 100:
        before = len(bench.out.of("order_book_snapshot"))
        bench.venue.tick(now)
        counts.append(len(bench.out.of("order_book_snapshot")) - before)
        now += SECOND // 2
    assert max(counts) == 2
    assert len(counts) == 50
    bench.venue.tick(now)
    assert len(bench.out.of("order_book_snapshot")) == begun + 100, "each once"


def test_a_full_buffer_is_waited_for_before_a_book_speaks_again() -> None:
    bench = Bench()
    bench.in_step()
    (feed,) = bench.feeds
    feed.on_dropped(feed.key, 3)
    bench.venue.tick(T0 + SECOND, roomy=False)
    assert feed.book.muted
    bench.venue.tick(T0 + 2 * SECOND, roomy=True)
    assert not feed.book.muted
    assert bench.entries[-1].kind == integrity.INTEGRITY_KIND_DROPPED


@pytest.mark.parametrize(
    ("event", "stream"),
    [
        ({"e": "depthUpdate", "s": "OTHER", "U": 1, "u": 1, "b": [], "a": []}, "other@depth@100ms"),
        (
            {"e": "trade", "s": "OTHER", "t": 1, "p": "1", "q": "1", "T": 1, "m": True},
            "other@trade",
        ),
        ({"u": 1, "s": "OTHER", "b": "1", "B": "1", "a": "2", "A": "1"}, "other@bookTicker"),
        ({"e": "kline", "s": "S0USDT"}, "s0usdt@kline_1m"),
        ({"e": "depthUpdate"}, "other@depth@100ms"),
    ],
)
def test_frames_that_nobody_asked_for_touch_no_book(event: object, stream: str) -> None:
    bench = Bench()
    bench.in_step()
    bench.frame(event, stream)
    assert bench.feeds[0].book.in_step


@pytest.mark.parametrize(
    "frame", [b"", b"\x00\xff", b"[]", b'{"stream":"s0us', b"null", b"[" * 9999]
)
def test_a_frame_that_tells_nothing_is_in_the_ledger_without_an_instrument(frame: bytes) -> None:
    bench = Bench()
    bench.in_step()
    bench.venue.on_frame(bench.connection, frame, T0)
    entry = bench.entries[-1]
    assert (entry.kind, entry.symbol) == (integrity.INTEGRITY_KIND_MALFORMED_FRAME, "")
    assert entry.connection_id == "binance-1"
    assert bench.connection.malformed == 1
    assert bench.feeds[0].book.in_step, "the next id of its kind shows what was missed"


def test_a_malformed_frame_of_a_book_costs_that_book_only() -> None:
    bench = Bench(count=2)
    bench.in_step()
    bench.frame({"e": "depthUpdate", "U": "x"}, "s1usdt@depth@100ms")
    assert [feed.book.in_step for feed in bench.feeds] == [True, False]
    entries = [e for e in bench.entries if e.kind == integrity.INTEGRITY_KIND_MALFORMED_FRAME]
    assert [(e.symbol, e.event_kind) for e in entries] == [
        ("S1-USDT", common_pb2.EVENT_KIND_ORDER_BOOK)
    ]


def test_a_flood_of_malformed_frames_does_not_flood_the_ledger() -> None:
    bench = Bench(count=2)
    bench.in_step()
    before = len(bench.entries)
    for _ in range(1000):
        bench.venue.on_frame(bench.connection, b"garbage", T0)
    bench.frame({"e": "depthUpdate", "U": "x"}, "s1usdt@depth@100ms")
    assert [feed.book.in_step for feed in bench.feeds] == [True, False], "the book is given up"
    bench.venue.tick(T0 + SECOND)
    told = [e for e in bench.entries[before:] if e.kind == integrity.INTEGRITY_KIND_MALFORMED_FRAME]
    assert len(told) == 21
    assert sum(entry.count for entry in told) == 1001
    bench.venue.on_frame(bench.connection, b"garbage", T0 + SECOND)
    bench.venue.tick(T0 + 2 * SECOND)
    assert bench.entries[-1].count == 1


def test_nothing_is_fetched_for_a_book_whose_diffs_do_not_flow() -> None:
    bench = Bench()
    bench.in_step()
    bench.started.clear()
    bench.venue.on_closed(bench.connection, "cut", T0)
    bench.feeds[0].book.rebuild(pb.ORDER_BOOK_REASON_REQUESTED, "asked for", T0)
    assert bench.started == []
    bench.subscribed()
    assert bench.started == ["binance: snapshot of S0-USDT"]


def spec(base: str, native: str, *, trading: bool = True) -> InstrumentSpec:
    return InstrumentSpec("binance", f"{base}-USDT", native, base, "USDT", trading=trading)


def test_a_malformed_frame_of_a_symbol_that_is_not_ascii_costs_its_book() -> None:
    bench = Bench()
    (feed,) = bench.feeds
    bench.venue.feeds["币安人生USDT"] = feed
    bench.in_step()
    bench.frame({"e": "depthUpdate", "U": "x"}, "币安人生usdt@depth@100ms")
    assert not feed.book.in_step


async def test_an_answer_that_was_asked_for_on_another_connection_brings_no_book_in_step() -> None:
    bench = Bench()
    asked, answered = asyncio.Event(), asyncio.Event()

    async def get(_request: object, priority: int) -> tuple[bytes, int]:
        asked.set()
        await answered.wait()
        return b'{"lastUpdateId":100,"bids":[["10","1"]],"asks":[["11","1"]]}', T0

    tasks: list[asyncio.Task[Any]] = []

    def spawn(work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        tasks.append(asyncio.create_task(work, name=name))
        return tasks[-1]

    bench.venue.requests._rest = SimpleNamespace(get=get)  # type: ignore[assignment]
    bench.venue.requests._spawn = spawn
    bench.subscribed()
    await asked.wait()
    bench.venue.on_closed(bench.connection, "cut", T0 + SECOND)
    answered.set()
    await asyncio.wait(tasks, timeout=10)
    assert not bench.feeds[0].book.in_step, "no diffs flow: nobody would notice what it misses"
    assert bench.out.of("order_book_snapshot") == []


class History:
    """The venue's REST interface, whose history grows from one answer to the next."""

    def __init__(self, *newest: int) -> None:
        self.newest = list(newest)
        self.asked = 0

    async def get(self, _request: object, priority: int) -> tuple[bytes, int]:
        self.asked += 1
        last = self.newest[min(self.asked, len(self.newest)) - 1]
        trades = [
            {"id": number, "price": "1", "qty": "1", "time": 1, "isBuyerMaker": True}
            for number in range(last - 4, last + 1)
        ]
        return json.dumps(trades).encode(), T0


@pytest.mark.parametrize(
    ("newest", "asked", "missed"), [((101, 103, 104), 3, 0), ((101,), 6, 3)], ids=["late", "never"]
)
async def test_history_that_is_behind_the_stream_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, newest: tuple[int, ...], asked: int, missed: int
) -> None:
    monkeypatch.setattr("services.collector.backfill.backoff", lambda *_: 0.0)
    bench = Bench()
    (feed,) = bench.feeds
    backfill = bench.venue.requests.trades
    history = backfill._rest = History(*newest)  # type: ignore[assignment]
    for number in (100, 105):
        feed.on_trade(TradePrint("S0USDT", number, T0, "1", "1", buyer_is_maker=True), T0)
    assert feed.trades.missing == (101, 104)
    await backfill._fill(feed, 101, 104, 0)
    assert (history.asked, feed.trades.missed) == (asked, missed)
    assert feed.trades.missing is None
    assert feed.trades.last_id == 105


AHEAD = T0 // 1000 + 3600 * 1_000_000  # an epoch of an hour later, in microseconds


@pytest.mark.parametrize(
    ("snapshot_epoch", "status_epoch", "floor"),
    [(AHEAD, 0, AHEAD), (0, AHEAD, AHEAD), (AHEAD, AHEAD + 5, AHEAD + 5), (AHEAD, 7, AHEAD)],
)
async def test_a_collector_goes_on_where_an_earlier_one_stopped(
    snapshot_epoch: int, status_epoch: int, floor: int
) -> None:
    stored = {"market.trade.binance.BTC-USDT": events_pb2.Trade(trade_id="41")}
    if snapshot_epoch:
        subject = "market.order_book_snapshot.binance.BTC-USDT"
        stored[subject] = pb.OrderBookSnapshot(epoch=snapshot_epoch)
    if status_epoch:
        subject = "market.order_book_status.binance.BTC-USDT"
        stored[subject] = pb.OrderBookStatus(epoch=status_epoch)

    async def last_message(subject: str) -> SimpleNamespace | None:
        found = stored.get(subject)
        return SimpleNamespace(payload=found.SerializeToString()) if found is not None else None

    bench = Bench(count=0)
    bench.out.last_message = last_message  # type: ignore[attr-defined]
    await bench.venue.roster._add([spec("BTC", "BTCUSDT"), spec("ETH", "ETHUSDT")])
    for feed in bench.feeds:
        feed.book.begin(T0)
        feed.book.on_snapshot(BookSnapshot(100, [("10", "1")], [("11", "1")]), T0)
    assert bench.venue.by_symbol["BTC-USDT"].book.epoch == floor + 1
    assert bench.venue.by_symbol["ETH-USDT"].book.epoch == T0 // 1000
    assert [feed.trades.last_id for feed in bench.feeds] == [41, 0]


def test_a_frame_that_we_cannot_handle_ends_nothing_but_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    bench.in_step()
    restarts: list[str] = []
    monkeypatch.setattr(bench.connection, "restart", lambda reason, cause: restarts.append(reason))

    def broken(_frame: object) -> object:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(bench.venue._adapter, "decode", broken)
    bench.venue.on_frame(bench.connection, b"{}", T0)
    assert "a fault of ours" in restarts[0]
    assert bench.entries[-1].kind == integrity.INTEGRITY_KIND_MALFORMED_FRAME


async def test_a_stream_that_tells_what_others_collect_is_not_silent() -> None:
    """Whoever shares instruments hears the streams of indexes, and tells only its own."""
    bench = Bench()
    bench.venue._shares = lambda symbol: symbol != "BTC-USD"
    message = events_pb2.IndexPrice(index_price="1")
    observation = Observation(common_pb2.EVENT_KIND_INDEX_PRICE, message, symbol="BTC-USD")
    bench.venue._dispatch(bench.connection, observation, T0)
    assert bench.out.of("index_price") == []
    assert bench.venue.tape.last_of_kind(common_pb2.EVENT_KIND_INDEX_PRICE) == T0
