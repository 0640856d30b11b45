"""What is asked of a venue for books and trades: once at a time, patiently, not for ever."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import events_pb2
from marketprism.market.v1 import order_book_pb2 as pb
from prometheus_client import CollectorRegistry, Counter

from services.collector.feed import InstrumentFeed
from services.collector.ledger import Ledger
from services.collector.rest import RateLimitedError, RestError
from services.collector.settings import ExchangeSettings
from services.collector.snapshots import FeedRequests
from services.collector.synchroniser import SnapshotPolicy
from services.collector.venues.base import (
    BookSnapshot,
    InstrumentSpec,
    RestRequest,
    TradePrint,
    VenueAdapter,
)
from services.collector.venues.binance_spot import BinanceSpot
from services.collector.venues.okx import Okx, OkxBookUpdate
from tests.integration.nats_tools import until
from tests.unit.collector.support import diff
from tests.unit.collector.test_feed import T0, Outbox

OKX = Okx()
Answer = Callable[[RestRequest], bytes | Exception]


def depth(last: int) -> bytes:
    return json.dumps({"lastUpdateId": last, "bids": [["10", "1"]], "asks": [["11", "1"]]}).encode()


def trades(*numbers: int) -> bytes:
    """A history in which trade n was made n milliseconds after `T0`."""
    return json.dumps(
        [
            {
                "id": number,
                "price": "1",
                "qty": "1",
                "time": T0 // 10**6 + number,
                "isBuyerMaker": True,
            }
            for number in numbers
        ]
    ).encode()


class Bench:
    """One feed and its requests, to a venue that answers what the test says, when it says so."""

    def __init__(self, adapter: VenueAdapter, last_trade_id: int = 0) -> None:
        self.out = Outbox()
        self.tasks: list[asyncio.Task[Any]] = []
        self.asked: list[RestRequest] = []
        self.answer: Answer = lambda request: RestError("the test has no answer")
        self.free = asyncio.Event()
        self.free.set()
        self.renewals = 0
        settings = ExchangeSettings(symbols=("*",), acknowledge_seconds=0.05, lag_seconds=0.01)
        counter = Counter("events", "Entries.", ["exchange", "kind"], registry=CollectorRegistry())
        ledger = Ledger("col-1", self.out.publish, counter)
        self.requests = FeedRequests(
            adapter.exchange, adapter, settings, self, ledger, self.spawn, self.renew  # type: ignore[arg-type]
        )  # fmt: skip
        self.adapter = adapter
        self.feed = InstrumentFeed(
            InstrumentSpec(adapter.exchange, "BTC-USDT", "BTCUSDT", "BTC", "USDT"),
            adapter,
            self.out,  # type: ignore[arg-type]
            ledger,
            SnapshotPolicy(),
            self.requests.snapshot,
            self.requests.history,
            last_trade_id=last_trade_id,
        )

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        self.tasks.append(asyncio.create_task(work, name=name))
        return self.tasks[-1]

    async def get(self, request: RestRequest, priority: int) -> tuple[bytes, int]:
        self.asked.append(request)
        await self.free.wait()
        answer = self.answer(request)
        if isinstance(answer, Exception):
            raise answer
        return answer, T0

    def renew(self, feed: InstrumentFeed) -> bool:
        self.renewals += 1
        return True

    async def idle(self) -> None:
        await until(lambda: all(task.done() for task in self.tasks), "nothing is asked any more")

    def join(self) -> None:
        self.feed.expects_snapshot = True
        self.feed.lanes.join("c-1", T0)

    async def in_step(self) -> None:
        self.answer = lambda request: depth(100)
        self.join()
        await until(lambda: self.feed.book.in_step, "the book is in step")
        self.asked.clear()

    def stream_snapshot(self, last: int = 100) -> None:
        snapshot = BookSnapshot(last, [("10", "1")], [("11", "1")], native_symbol="BTCUSDT")
        self.feed.on_book_message("c-1", snapshot, T0)

    def gap(self) -> None:
        self.feed.on_diff("c-1", OkxBookUpdate("BTCUSDT", 150, 160, [], [], T0, 0), T0)

    def live(self, *numbers: int) -> None:
        for number in numbers:
            self.feed.on_trade(TradePrint("BTCUSDT", number, T0, "1", "1", True), T0)

    @property
    def told(self) -> list[int]:
        return [int(events_pb2.Trade.FromString(each).trade_id) for each in self.out.of("trade")]

    @property
    def kinds(self) -> list[str]:
        entries = [integrity.IntegrityEvent.FromString(each) for each in self.out.of("integrity")]
        return [integrity.IntegrityKind.Name(each.kind)[15:] for each in entries]


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which attempt each wait was for; none of them takes any time."""
    found: list[int] = []

    def backoff(_settings: object, attempt: int) -> float:
        found.append(attempt)
        return 0.0

    monkeypatch.setattr("services.collector.snapshots.backoff", backoff)
    return found


@contextlib.asynccontextmanager
async def bench(adapter: VenueAdapter | None = None, **more: Any) -> AsyncIterator[Bench]:
    made = Bench(adapter or BinanceSpot(), **more)
    try:
        yield made
        for task in made.tasks:
            if task.done() and not task.cancelled():
                assert task.exception() is None
    finally:
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)


# Snapshots by request


async def test_one_snapshot_is_asked_for_at_a_time() -> None:
    async with bench() as made:
        made.free.clear()
        made.join()
        await until(lambda: made.asked, "a snapshot is asked for")
        made.requests.snapshot(made.feed, 0)
        made.requests.snapshot(made.feed, 0)
        await until(lambda: [t.done() for t in made.tasks] == [True, True, False], "one is left")
        made.answer = lambda request: depth(100)
        made.free.set()
        await until(lambda: made.feed.book.in_step, "the book is in step")
        assert len(made.out.of("order_book_snapshot")) == 1


async def test_nothing_is_asked_for_where_no_connection_carries_the_book() -> None:
    async with bench() as made:
        made.requests.snapshot(made.feed, 0)
        assert made.tasks == []


async def test_each_failure_is_told_and_waited_for_longer(waits: list[int]) -> None:
    failures: list[Exception | bytes] = [
        RestError("HTTP 503"),
        RateLimitedError("HTTP 429", 1.0),
        b"{}",
        b'{"lastUpdateId":9,"bids":[["x","1"]],"asks":[]}',
        depth(100),
    ]
    async with bench() as made:
        made.answer = lambda request: failures[len(made.asked) - 1]
        made.join()
        await until(lambda: made.feed.book.in_step, "the book is in step")
        assert waits == [0, 1, 2, 3]
        statuses = [pb.OrderBookStatus.FromString(e) for e in made.out.of("order_book_status")]
        reasons = [pb.OrderBookReason.Name(each.reason)[18:] for each in statuses]
        assert reasons[1:] == [
            "SNAPSHOT_FAILED", "RATE_LIMITED", "SNAPSHOT_FAILED", "SNAPSHOT_FAILED",
            "SYNCHRONISED",
        ]  # fmt: skip
        assert made.kinds.count("RATE_LIMITED") == 1


async def test_an_answer_for_a_book_that_was_let_go_of_is_not_taken() -> None:
    async with bench() as made:
        made.free.clear()
        made.join()
        await until(lambda: made.asked, "a snapshot is asked for")
        made.answer = lambda request: depth(100)
        made.requests.end("BTCUSDT")
        made.free.set()
        await made.idle()
        assert not made.feed.book.in_step


# Snapshots in the stream


async def test_a_snapshot_that_is_on_its_way_is_waited_for() -> None:
    async with bench(OKX) as made:
        made.join()
        await asyncio.sleep(0)
        made.stream_snapshot()
        await made.idle()
        assert (made.renewals, made.asked, made.feed.book.in_step) == (0, [], True)


async def test_a_gap_subscribes_anew_at_once_and_only_once() -> None:
    async with bench(OKX) as made:
        made.join()
        made.stream_snapshot()
        await made.idle()
        made.gap()
        await until(lambda: made.renewals == 1, "it is subscribed to anew")
        made.join()
        made.stream_snapshot(200)
        await made.idle()
        assert made.renewals == 1


async def test_a_gap_while_a_subscription_has_just_begun_waits_for_its_snapshot() -> None:
    """Changes may come before the snapshot of a new subscription: no reason to begin it again."""
    async with bench(OKX) as made:
        made.join()
        made.gap()
        for _ in range(10):
            await asyncio.sleep(0)
        assert made.renewals == 0
        made.stream_snapshot()
        await until(lambda: made.feed.book.in_step, "the book is in step")


async def test_a_snapshot_that_does_not_come_is_subscribed_for_again(waits: list[int]) -> None:
    async with bench(OKX) as made:
        made.join()
        await until(lambda: made.renewals == 3, "it is subscribed to again and again")
        assert waits == [0, 1, 2]
        assert not made.feed.book.in_step
        assert made.kinds.count("SILENT") == 1, "told once"
        made.stream_snapshot()
        await made.idle()


async def test_nobody_waits_for_the_snapshot_of_a_connection_that_ended() -> None:
    async with bench(OKX) as made:
        made.join()
        made.feed.on_disconnected("c-1", "cut", T0)
        await made.idle()
        assert made.renewals == 0


# Probes


async def probe(made: Bench, last: int | Exception) -> bool | None:
    made.answer = lambda request: last if isinstance(last, Exception) else depth(last)
    outcome: list[bool | None] = []
    made.requests.probe(made.feed, outcome.append)
    await until(lambda: outcome, "the probe has an outcome")
    return outcome[0]


async def test_a_probe_agrees_with_a_quiet_book() -> None:
    async with bench() as made:
        await made.in_step()
        assert await probe(made, 100) is True
        assert made.feed.book.in_step
        assert made.asked[0].query["limit"] == "5", "a small one will do"


async def test_a_probe_that_disagrees_makes_the_book_stale() -> None:
    async with bench() as made:
        await made.in_step()
        assert await probe(made, 107) is False
        assert made.feed.book.state == pb.ORDER_BOOK_STATE_STALE
        assert made.feed.probe_mismatches == 1


async def test_a_change_that_was_on_its_way_is_no_disagreement() -> None:
    async with bench() as made:
        await made.in_step()
        outcome: list[bool | None] = []
        made.answer = lambda request: depth(101)
        made.requests.probe(made.feed, outcome.append)
        made.requests.probe(made.feed, outcome.append)
        await until(lambda: made.asked, "the venue is asked")
        made.feed.on_diff("c-1", diff(101, 101), T0)
        await until(lambda: outcome, "the probe has an outcome")
        assert (outcome, len(made.asked)) == ([True], 1)
        assert made.feed.book.in_step


@pytest.mark.parametrize("failure", [RestError("HTTP 500"), RateLimitedError("HTTP 429", 1.0)])
async def test_a_probe_without_an_answer_says_nothing_of_the_book(failure: Exception) -> None:
    async with bench() as made:
        await made.in_step()
        assert await probe(made, failure) is None
        assert made.feed.book.in_step
        assert await probe(made, 100) is True, "it may be asked again"


async def test_a_probe_of_an_instrument_that_was_given_up_tells_nothing() -> None:
    async with bench() as made:
        await made.in_step()
        outcome: list[bool | None] = []
        made.free.clear()
        made.answer = lambda request: depth(107)
        made.requests.probe(made.feed, outcome.append)
        await until(lambda: made.asked, "the venue is asked")
        told = len(made.out.messages)
        made.requests.end("BTCUSDT")
        made.free.set()
        await made.idle()
        assert (outcome, len(made.out.messages)) == ([], told)
        assert await probe(made, 100) is True, "who collects it again may ask again"


async def test_a_probe_that_ended_before_it_began_may_be_made_again() -> None:
    async with bench() as made:
        await made.in_step()
        made.requests.probe(made.feed, lambda agree: None)
        made.requests.end("BTCUSDT")
        assert await probe(made, 100) is True


# Missed trades


async def test_a_hole_larger_than_an_answer_is_filled_page_by_page(
    waits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    begins: list[int] = []

    def request(native_symbol: str, first_id: int, count: int) -> RestRequest:
        begins.append(first_id)
        return RestRequest("/trades", 1)

    async with bench(last_trade_id=10) as made:
        monkeypatch.setattr(made.adapter, "trades_request", request)
        made.answer = lambda request: trades(*range(begins[-1], begins[-1] + 4))
        made.live(20)
        await until(lambda: made.feed.trades.missing is None, "the hole is closed")
        assert begins == [11, 15, 19]
        assert made.told == list(range(11, 21))
        assert (made.feed.trades.missed, waits) == (0, [])


async def test_history_of_an_instrument_that_was_given_up_is_not_told() -> None:
    """Who collects it now finds the hole itself; the trades would be told twice."""
    async with bench(last_trade_id=10) as made:
        made.free.clear()
        made.live(15)
        await until(lambda: made.asked, "history is asked for")
        made.answer = lambda request: trades(11, 12, 13, 14)
        made.requests.end("BTCUSDT")
        made.free.set()
        await made.idle()
        assert (made.told, made.kinds) == ([], [])


# Trades that the stream does not tell


async def look(made: Bench, *numbers: int) -> int:
    """Give how often the stream was found to be silent."""
    made.answer = lambda request: trades(*numbers)
    missed: list[None] = []
    made.requests.look_for_trades(made.feed, lambda: missed.append(None))
    made.requests.look_for_trades(made.feed, lambda: missed.append(None))
    await made.idle()
    return len(missed)


async def test_trades_that_the_stream_did_not_tell_are_found_and_told() -> None:
    async with bench() as made:
        made.live(10)
        assert await look(made, 8, 9, 10) == 0
        assert await look(made, 11, 12, 13) == 1
        assert made.told == [10, 11, 12, 13]


async def test_what_was_traded_before_anybody_looked_is_not_missing() -> None:
    async with bench() as made:
        made.feed.trades_since = T0 + 4 * 10**6
        assert await look(made, 1, 2, 3) == 0, "it was traded before we began"
        assert await look(made, 1, 2, 3) == 0
        assert made.told == []
        assert await look(made, 4, 5) == 1
        assert made.told == [4, 5], "all that was traded since we looked first"


async def test_what_was_traded_since_the_stream_was_subscribed_to_is_missing() -> None:
    """A stream that never spoke is found at the first look, and costs no trade."""
    async with bench() as made:
        made.feed.trades_since = T0 + 3 * 10**6 + 1
        assert await look(made, 1, 2, 3, 4, 5, 6) == 1
        assert made.told == [4, 5, 6]


async def test_when_all_that_history_tells_was_missed_it_begins_with_the_oldest() -> None:
    async with bench() as made:
        made.feed.trades_since = T0
        assert await look(made, 4, 5, 6) == 1
        assert made.told == [4, 5, 6]


async def test_a_trade_that_comes_meanwhile_shows_that_the_stream_speaks() -> None:
    async with bench() as made:
        made.live(10)
        made.free.clear()
        made.answer = lambda request: trades(11)
        missed: list[None] = []
        made.requests.look_for_trades(made.feed, lambda: missed.append(None))
        await until(lambda: made.asked, "the venue is asked")
        made.free.set()
        made.live(11)
        await made.idle()
        assert (missed, made.told) == ([], [10, 11])


@pytest.mark.parametrize("answer", [RestError("HTTP 500"), b"[]", b"garbage"])
async def test_a_look_without_an_answer_changes_nothing(answer: bytes | Exception) -> None:
    async with bench() as made:
        made.live(10)
        made.answer = lambda request: answer
        made.requests.look_for_trades(made.feed, lambda: pytest.fail("nothing is known"))
        await made.idle()
        assert made.told == [10]
