"""What is asked of a venue for books and trades: once at a time, patiently, not for ever."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from types import SimpleNamespace
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
from services.collector.trade_ledger import Debt
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

    def __init__(
        self,
        adapter: VenueAdapter,
        last_trade_id: int = 0,
        debts: tuple[Debt, ...] = (),
        **settings_of_venue: Any,
    ) -> None:
        self.out = Outbox()
        self.tasks: list[asyncio.Task[Any]] = []
        self.asked: list[RestRequest] = []
        self.answer: Answer = lambda request: RestError("the test has no answer")
        self.free = asyncio.Event()
        self.free.set()
        self.renewals = 0
        settings = ExchangeSettings(
            symbols=("*",),
            acknowledge_seconds=0.05,
            lag_seconds=0.01,
            **{"trade_history_hours": 87_600, **settings_of_venue},
        )
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
            self.requests.trades.fetch,
            last_trade_id=last_trade_id,
            debts=debts,
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
    def entries(self) -> list[integrity.IntegrityEvent]:
        return [integrity.IntegrityEvent.FromString(each) for each in self.out.of("integrity")]

    @property
    def kinds(self) -> list[str]:
        return [integrity.IntegrityKind.Name(each.kind)[15:] for each in self.entries]

    @property
    def gaps(self) -> list[integrity.IntegrityEvent]:
        return [each for each in self.entries if each.kind == integrity.INTEGRITY_KIND_GAP]


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which attempt each wait was for; none of them takes any time."""
    found: list[int] = []

    def backoff(_settings: object, attempt: int) -> float:
        found.append(attempt)
        return 0.0

    monkeypatch.setattr("services.collector.snapshots.backoff", backoff)
    monkeypatch.setattr("services.collector.backfill.backoff", backoff)
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


class Past:
    """The history of Binance spot: the newest two trades by themselves, the others by number."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers
        self.asked: list[tuple[int, int] | None] = []
        self.refused: Exception | None = None

    def __call__(self, request: RestRequest) -> bytes | Exception:
        if request.path == "/api/v3/trades":
            self.asked.append(None)
            return trades(*self.numbers[-2:])
        first, limit = int(request.query["fromId"]), int(request.query["limit"])
        self.asked.append((first, limit))
        if self.refused is not None:
            return self.refused
        return trades(*[number for number in self.numbers if number >= first][:limit])


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer holds four trades."""
    monkeypatch.setattr(BinanceSpot, "history_page", 4)


@pytest.mark.usefixtures("small_pages")
async def test_a_hole_larger_than_an_answer_is_filled_page_by_page(waits: list[int]) -> None:
    async with bench(last_trade_id=10) as made:
        made.answer = past = Past(*range(1, 22))
        made.live(20)
        await until(lambda: made.feed.trades.missing is None, "the hole is closed")
        assert past.asked == [None, (16, 4), (12, 4), (11, 1)]
        assert made.told == list(range(11, 21))
        assert (made.feed.trades.missed, waits) == (0, [])
        assert made.kinds == ["BACKFILLED"]


@pytest.mark.usefixtures("small_pages")
async def test_a_history_that_begins_within_the_hole_leaves_the_rest_in_the_ledger() -> None:
    async with bench(last_trade_id=10) as made:
        made.answer = Past(*range(14, 21))
        made.live(20)
        await until(lambda: made.feed.trades.missing is None, "the hole is closed")
        assert made.told == list(range(14, 21))
        (gap,) = made.gaps
        assert (gap.first_missing_id, gap.last_missing_id, gap.count) == (11, 13, 3)
        assert "begins at 14" in gap.detail


@pytest.mark.usefixtures("small_pages")
async def test_a_history_with_holes_of_its_own_names_each_in_the_ledger() -> None:
    async with bench(last_trade_id=10) as made:
        made.answer = Past(11, 12, 14, 15, 16, 18, 19, 20)
        made.live(20)
        await until(lambda: made.feed.trades.missing is None, "the hole is closed")
        assert made.told == [11, 12, 14, 15, 16, 18, 19, 20]
        assert [(gap.first_missing_id, gap.last_missing_id) for gap in made.gaps] == [
            (13, 13),
            (17, 17),
        ]


@pytest.mark.usefixtures("small_pages")
async def test_no_more_pages_are_asked_for_than_allowed() -> None:
    async with bench(last_trade_id=10, trade_history_pages=2) as made:
        made.answer = past = Past(*range(1, 22))
        made.live(20)
        await until(lambda: made.feed.trades.missing is None, "the hole is closed")
        assert len(past.asked) == 2
        assert made.told == list(range(16, 21)), "the newest ones"
        assert "more than 2 requests" in made.gaps[0].detail


@pytest.mark.usefixtures("small_pages")
async def test_trades_older_than_wanted_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trade n was made n ms after T0."""
    now = T0 + 24 * 3600 * 10**9 + 15 * 10**6
    monkeypatch.setattr("services.collector.backfill.time", SimpleNamespace(time_ns=lambda: now))
    async with bench(last_trade_id=10, trade_history_hours=24) as made:
        made.answer = past = Past(*range(1, 22))
        made.live(20)
        await until(lambda: made.feed.trades.missing is None, "the hole is closed")
        assert made.told == list(range(15, 21))
        assert past.asked == [None, (16, 4), (12, 4)]
        (gap,) = made.gaps
        assert (gap.first_missing_id, gap.last_missing_id) == (11, 14)
        assert "older" in gap.detail


@pytest.mark.usefixtures("small_pages")
async def test_a_history_that_refuses_is_not_asked_again(waits: list[int]) -> None:
    async with bench(last_trade_id=10) as made:
        made.answer = past = Past(*range(1, 22))
        past.refused = RestError("HTTP 401: an API key, please", 401)
        made.live(20)
        await until(lambda: made.feed.trades.missing is None, "the hole is closed")
        assert (len(past.asked), waits) == (2, [])
        assert made.told == [20]
        (gap,) = made.gaps
        assert (gap.first_missing_id, gap.last_missing_id) == (11, 19)
        assert "API key" in gap.detail


@pytest.mark.usefixtures("small_pages")
async def test_trades_are_held_no_longer_than_is_worth_it() -> None:
    """What comes after the wait is published behind the newer ones, each once."""
    async with bench(last_trade_id=10, trade_wait_seconds=0.05) as made:
        made.answer = past = Past(*range(1, 22))
        made.free.clear()
        made.live(20, 21)
        await until(lambda: made.told == [20, 21], "trades go on without those missed")
        (gap,) = made.gaps
        assert (gap.first_missing_id, gap.last_missing_id, gap.count) == (11, 19, 9)
        made.live(15)
        assert made.told == [20, 21, 15], "one that was only late"
        made.live(22, 15, 20)
        made.free.set()
        await made.idle()
        assert sorted(made.told) == list(range(11, 23))
        assert made.told[4:] == [16, 17, 18, 19, 12, 13, 14, 11]
        assert past.asked[0] is None
        paid = [each for each in made.entries if each.kind == integrity.INTEGRITY_KIND_BACKFILLED]
        assert [(each.first_missing_id, each.last_missing_id, each.count) for each in paid] == [
            (16, 19, 4),
            (12, 14, 3),
            (11, 11, 1),
        ]
        assert {each.previous_event_id for each in paid} == {gap.event_id}
        assert (made.feed.trades.missed, bool(made.feed.trades.owed)) == (0, False)
        assert made.gaps == [gap], "nothing stays missing"


@pytest.mark.usefixtures("small_pages")
async def test_what_is_owed_and_cannot_be_fetched_is_told_again_for_good() -> None:
    async with bench(last_trade_id=10, trade_wait_seconds=0.05) as made:
        made.answer = Past(*range(14, 22))
        made.free.clear()
        made.live(20)
        await until(lambda: made.told == [20], "trades go on without those missed")
        made.free.set()
        await made.idle()
        assert sorted(made.told) == list(range(14, 21))
        first, again = made.gaps
        assert (again.first_missing_id, again.last_missing_id, again.count) == (11, 13, 3)
        assert again.previous_event_id == first.event_id
        made.live(12)
        assert 12 not in made.told, "it was given up"


@pytest.mark.usefixtures("small_pages")
async def test_what_an_earlier_process_owed_is_fetched_behind_what_is_new() -> None:
    debts = (Debt(3, 4, T0, "old-1"), Debt(6, 9, T0, "old-2"))
    async with bench(last_trade_id=10, debts=debts) as made:
        made.answer = past = Past(*range(4, 12))
        made.requests.trades.fetch_owed(made.feed)
        made.live(11)
        await made.idle()
        assert past.asked == [(6, 4), (3, 2), (3, 1)], "the newest first, and only by number"
        assert made.told == [11, 6, 7, 8, 9, 4]
        assert [each.previous_event_id for each in made.entries] == ["old-2", "old-1"]
        assert made.gaps == [], "the ledger has it already that 3 is missing"


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
