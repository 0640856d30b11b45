"""What is collected follows the venue's list and the shares, and goes on where another stopped."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.message import Message
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import events_pb2, instrument_pb2
from marketprism.market.v1 import order_book_pb2 as pb
from prometheus_client import CollectorRegistry, Counter

from services.collector.feed import InstrumentFeed
from services.collector.ledger import Ledger
from services.collector.rest import RestError
from services.collector.roster import Roster
from services.collector.settings import ExchangeSettings
from services.collector.synchroniser import SnapshotPolicy
from services.collector.venues.base import (
    BookSnapshot,
    InstrumentSpec,
    MalformedFrameError,
    RestRequest,
    Selection,
    Subscription,
)
from services.collector.venues.binance_spot import BinanceSpot
from tests.integration.nats_tools import until
from tests.unit.collector.support import diff
from tests.unit.collector.test_feed import T0, Outbox

HOUR = 3600 * 10**9


def spec(base: str, *, native: str = "", **more: Any) -> InstrumentSpec:
    return InstrumentSpec("binance", f"{base}-USDT", native or f"{base}USDT", base, "USDT", **more)


class Adapter(BinanceSpot):
    """A venue whose two lists, and what is subscribed to for all together, the test says."""

    def __init__(self, lists: dict[str, list[InstrumentSpec]]) -> None:
        super().__init__()
        self.lists = lists

    def instrument_requests(self) -> list[RestRequest]:
        return [RestRequest(path, 1) for path in self.lists]

    def decode_instruments(self, body: bytes) -> list[InstrumentSpec]:
        if body == b"garbage":
            raise MalformedFrameError("garbage")
        return list(self.lists[body.decode()])

    def shared_subscriptions(
        self, specs: Sequence[InstrumentSpec], selection: Selection
    ) -> list[Subscription]:
        return [Subscription(f"index:{base}", ()) for base in sorted({each.base for each in specs})]


class Stored(Outbox):
    """A publisher with what earlier collectors stored."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, Message | bytes] = {}
        self.asked: list[str] = []
        self.failures = 0
        self.on_ask: Callable[[], None] = lambda: None

    async def last_message(self, subject: str) -> SimpleNamespace | None:
        await asyncio.sleep(0)
        self.asked.append(subject)
        self.on_ask()
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the broker is away")
        found = self.stored.get(subject)
        if found is None:
            return None
        return SimpleNamespace(
            payload=found if isinstance(found, bytes) else found.SerializeToString()
        )


class Bench:
    """A roster, and everything beside it as the test wants it. It is pool, requests and REST."""

    def __init__(self, *specs: InstrumentSpec, others: Iterable[InstrumentSpec] = ()) -> None:
        self.out = Stored()
        self.lists = {"/a": list(specs), "/b": list(others)}
        self.failing: dict[str, Exception | bytes] = {}
        self.reads = 0
        self.topics: list[str] = []
        self.ended: list[str] = []
        self.polled: list[list[str]] = []
        self.retired: list[str] = []
        self.mine: Callable[[str], bool] = lambda symbol: True
        adapter = Adapter(self.lists)
        settings = ExchangeSettings(
            symbols=("*", "!DOGE-*"),
            kinds=("order_book", "trade"),
            backoff_seconds=0.001,
            backoff_limit_seconds=0.002,
        )
        counter = Counter("events", "Entries.", ["exchange", "kind"], registry=CollectorRegistry())
        self.roster = Roster(
            "binance", adapter, settings, self, self.out,  # type: ignore[arg-type]
            Ledger("col-1", self.out.publish, counter), SnapshotPolicy(),
            self, self, lambda symbol: self.mine(symbol),  # type: ignore[arg-type]
        )  # fmt: skip
        self.roster.on_retired = lambda spec: self.retired.append(spec.symbol)

    # REST

    async def get(self, request: RestRequest, priority: int) -> tuple[bytes, int]:
        await asyncio.sleep(0)
        self.reads += request.path == "/a"
        trouble = self.failing.get(request.path)
        if isinstance(trouble, Exception):
            raise trouble
        return trouble if trouble is not None else request.path.encode(), T0

    # Requests of feeds

    def end(self, native_symbol: str) -> None:
        self.ended.append(native_symbol)

    def snapshot(self, feed: InstrumentFeed, reason: int) -> None:
        """Nothing: the test gives the books."""

    @property
    def trades(self) -> "Bench":
        return self

    def fetch(self, feed: InstrumentFeed, first: int, last: int) -> None:
        """Nothing: no trade is missed here."""

    def fetch_owed(self, feed: InstrumentFeed) -> None:
        """Nothing: no trade is owed here."""

    # Pool

    def add(self, subscriptions: Iterable[Subscription]) -> None:
        for each in subscriptions:
            assert each.topic not in self.topics, "subscribed to already"
            self.topics.append(each.topic)

    def remove(self, topics: Iterable[str]) -> None:
        for topic in topics:
            self.topics.remove(topic)

    # What a test looks at

    @property
    def collected(self) -> list[str]:
        assert sorted(self.roster.by_symbol) == sorted(
            feed.spec.symbol for feed in self.roster.feeds.values()
        )
        return sorted(self.roster.by_symbol)

    def feed(self, base: str) -> InstrumentFeed:
        return self.roster.by_symbol[f"{base}-USDT"]

    def in_step(self, base: str) -> None:
        feed = self.feed(base)
        feed.lanes.join("c-1", T0)
        feed.book.on_snapshot(BookSnapshot(100, [("10", "2")], [("11", "3")]), T0)
        feed.on_diff("c-1", diff(101, 101, [("9", "4")]), T0)
        assert feed.book.in_step

    def instruments(self, base: str) -> list[instrument_pb2.Instrument]:
        found = map(instrument_pb2.Instrument.FromString, self.out.of("instrument"))
        return [each for each in found if each.symbol == f"{base}-USDT"]

    def statuses(self, base: str) -> list[str]:
        return [
            instrument_pb2.InstrumentStatus.Name(each.status)[18:]
            for each in self.instruments(base)
        ]

    @property
    def entries(self) -> list[integrity.IntegrityEvent]:
        return [integrity.IntegrityEvent.FromString(each) for each in self.out.of("integrity")]

    def of_kind(self, kind: "integrity.IntegrityKind.ValueType") -> list[tuple[str, str]]:
        return [(each.symbol, each.detail) for each in self.entries if each.kind == kind]

    async def refresh(self) -> None:
        """Have the list read again, and what it says done."""
        reads = self.reads
        self.roster.refresh_soon("the test says so")
        await until(lambda: self.reads > reads, "the list is read again")
        await asyncio.wait_for(self.roster.share(), 5)


@contextlib.asynccontextmanager
async def running(bench: Bench, *, ready: bool = True) -> AsyncIterator[Bench]:
    owner = asyncio.create_task(bench.roster.run())
    try:
        if ready:
            await until(lambda: bench.roster.ready or owner.done(), "the roster is ready")
        yield bench
        assert not owner.done(), "expected it to go on"
    finally:
        owner.cancel()
        await asyncio.gather(owner, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.collector.roster._SOON_SECONDS", 0.0)
    monkeypatch.setattr("services.collector.roster._EXPIRY_MARGIN", 0.0)


# The list


async def test_what_is_listed_and_selected_is_announced_and_collected() -> None:
    bench = Bench(spec("BTC"), spec("DOGE"), spec("ETH", trading=False), others=[spec("SOL")])
    async with running(bench):
        assert bench.collected == ["BTC-USDT", "SOL-USDT"]
        assert bench.topics == [
            "btcusdt@depth@100ms", "btcusdt@trade", "solusdt@depth@100ms", "solusdt@trade",
            "index:BTC", "index:SOL",
        ]  # fmt: skip
        assert (bench.statuses("BTC"), bench.statuses("DOGE")) == (["TRADING"], [])


async def test_the_start_waits_for_a_list_and_says_so() -> None:
    bench = Bench(spec("BTC"))
    bench.failing["/a"] = RestError("HTTP 503")
    async with running(bench, ready=False):
        await until(lambda: bench.reads >= 2, "the list is asked for again and again")
        assert not bench.roster.ready
        assert bench.roster.detail == "cannot read the list of instruments: HTTP 503"
        bench.failing.clear()
        await until(lambda: bench.roster.ready, "it is ready")
        assert bench.collected == ["BTC-USDT"]


async def test_a_list_without_anything_selected_is_waited_out() -> None:
    bench = Bench(spec("DOGE"))
    async with running(bench, ready=False):
        await until(lambda: bench.reads >= 2, "the list is asked for again and again")
        assert "no instrument that trades matches" in bench.roster.detail
        bench.lists["/a"].append(spec("BTC"))
        await until(lambda: bench.roster.ready, "it is ready")


async def test_an_instrument_that_appears_is_collected_and_one_that_goes_is_not() -> None:
    bench = Bench(spec("BTC"), spec("ETH"))
    async with running(bench):
        bench.in_step("ETH")
        bench.lists["/a"] = [spec("BTC"), spec("SOL")]
        await bench.refresh()
        assert bench.collected == ["BTC-USDT", "SOL-USDT"]
        assert bench.statuses("ETH") == ["TRADING", "EXPIRED"]
        assert bench.statuses("SOL") == ["TRADING"]
        assert bench.statuses("BTC") == ["TRADING"], "told once"
        assert not [topic for topic in bench.topics if "eth" in topic.lower()]
        assert (bench.ended, bench.retired) == (["ETHUSDT"], ["ETH-USDT"])
        status = pb.OrderBookStatus.FromString(bench.out.of("order_book_status")[-1])
        assert (status.symbol, status.state) == ("ETH-USDT", pb.ORDER_BOOK_STATE_STALE)
        assert status.reason == pb.ORDER_BOOK_REASON_INSTRUMENT_CHANGED
        assert bench.of_kind(integrity.INTEGRITY_KIND_HANDED_OVER) == [
            ("ETH-USDT", "the instrument trades no more")
        ]


async def test_an_instrument_that_is_halted_is_collected_on() -> None:
    bench = Bench(spec("BTC"))
    async with running(bench):
        feed = bench.feed("BTC")
        bench.lists["/a"] = [spec("BTC", trading=False)]
        await bench.refresh()
        assert bench.feed("BTC") is feed
        assert bench.statuses("BTC") == ["TRADING", "HALTED"]


async def test_an_instrument_ends_at_its_time_though_the_list_cannot_be_read() -> None:
    future = spec("BTC", expiry_time=time.time_ns() + 300_000_000)
    bench = Bench(future, spec("ETH"))
    async with running(bench):
        assert bench.collected == ["BTC-USDT", "ETH-USDT"]
        bench.failing = {"/a": RestError("HTTP 503"), "/b": RestError("HTTP 503")}
        await until(lambda: bench.collected == ["ETH-USDT"], "it is collected no more")
        assert bench.statuses("BTC") == ["TRADING", "EXPIRED"]
        reads = bench.reads
        await asyncio.sleep(0.05)
        assert bench.reads == reads, "the list is not read again and again for it"


async def test_an_instrument_that_is_called_otherwise_is_collected_anew() -> None:
    bench = Bench(spec("BTC", native="X"))
    async with running(bench):
        bench.in_step("BTC")
        before = bench.feed("BTC")
        bench.lists["/a"] = [spec("XBT", native="X")]
        await bench.refresh()
        assert bench.collected == ["XBT-USDT"]
        assert bench.roster.feeds["X"] is not before
        assert bench.of_kind(integrity.INTEGRITY_KIND_HANDED_OVER) == [
            ("BTC-USDT", "the instrument trades no more")
        ]
        assert (bench.statuses("BTC"), bench.statuses("XBT")) == (
            ["TRADING", "EXPIRED"], ["TRADING"]
        )  # fmt: skip
        assert bench.topics == ["x@depth@100ms", "x@trade", "index:XBT"]


async def test_another_tick_is_told_and_the_book_goes_on() -> None:
    bench = Bench(spec("BTC", tick_size="0.1"))
    async with running(bench):
        bench.in_step("BTC")
        epoch = bench.feed("BTC").book.epoch
        bench.lists["/a"] = [spec("BTC", tick_size="0.01")]
        await bench.refresh()
        assert [each.tick_size for each in bench.instruments("BTC")] == ["0.1", "0.01"]
        assert bench.feed("BTC").spec.tick_size == "0.01"
        assert bench.feed("BTC").book.in_step
        assert bench.feed("BTC").book.epoch == epoch


async def test_another_contract_size_begins_a_new_epoch_in_the_new_unit() -> None:
    bench = Bench(spec("BTC"))
    async with running(bench):
        bench.in_step("BTC")
        feed = bench.feed("BTC")
        epoch = feed.book.epoch
        bench.lists["/a"] = [spec("BTC", contract_size="100")]
        await bench.refresh()
        assert not feed.book.in_step
        assert feed.book.reason == pb.ORDER_BOOK_REASON_INSTRUMENT_CHANGED
        feed.book.on_snapshot(BookSnapshot(102, [("10", "2")], [("11", "3")]), T0)
        feed.on_diff("c-1", diff(103, 103, [("9", "0.5")]), T0)
        assert feed.book.epoch > epoch
        snapshot = pb.OrderBookSnapshot.FromString(bench.out.of("order_book_snapshot")[-1])
        assert [(each.price, each.quantity) for each in snapshot.bids] == [("10", "200")]
        update = pb.OrderBookUpdate.FromString(bench.out.of("order_book_update")[-1])
        assert [(each.price, each.quantity) for each in update.bids] == [("9", "50")]


@pytest.mark.parametrize("trouble", [RestError("HTTP 500"), b"garbage"])
async def test_what_could_not_be_read_stays_as_it_was(trouble: Exception | bytes) -> None:
    bench = Bench(spec("BTC"), others=[spec("ETH")])
    async with running(bench):
        bench.failing["/b"] = trouble
        bench.lists["/a"] = [spec("SOL")]
        await bench.refresh()
        assert bench.collected == ["BTC-USDT", "ETH-USDT", "SOL-USDT"]
        assert bench.statuses("ETH") == ["TRADING"]
        bench.failing.clear()
        await bench.refresh()
        assert bench.collected == ["ETH-USDT", "SOL-USDT"]
        assert bench.statuses("BTC") == ["TRADING", "EXPIRED"]


async def test_a_venue_that_suddenly_lists_nothing_ends_nothing() -> None:
    bench = Bench(spec("BTC"), others=[spec("ETH")])
    async with running(bench):
        bench.lists["/a"] = bench.lists["/b"] = []
        await bench.refresh()
        assert bench.collected == ["BTC-USDT", "ETH-USDT"]


# Shares


async def test_only_what_is_ours_is_collected_and_all_of_the_indexes_are_heard() -> None:
    bench = Bench(spec("BTC"), spec("ETH"))
    bench.mine = lambda symbol: symbol == "BTC-USDT"
    async with running(bench):
        assert bench.collected == ["BTC-USDT"]
        assert bench.topics == ["btcusdt@depth@100ms", "btcusdt@trade", "index:BTC", "index:ETH"]
        assert bench.statuses("ETH") == ["TRADING"], "the list is told by each"


async def test_shares_that_change_are_done_when_sharing_returns() -> None:
    bench = Bench(spec("BTC"), spec("ETH"))
    bench.mine = lambda symbol: symbol == "BTC-USDT"
    async with running(bench):
        bench.in_step("BTC")
        bench.mine = lambda symbol: symbol == "ETH-USDT"
        await asyncio.wait_for(bench.roster.share(), 5)
        assert bench.collected == ["ETH-USDT"]
        assert bench.of_kind(integrity.INTEGRITY_KIND_HANDED_OVER) == [
            ("BTC-USDT", "handed over to another collector")
        ]
        assert bench.statuses("BTC") == ["TRADING"]


async def test_sharing_before_the_list_is_known_waits_for_nothing() -> None:
    bench = Bench(spec("BTC"))
    bench.failing["/a"] = RestError("HTTP 503")
    async with running(bench, ready=False):
        await asyncio.wait_for(bench.roster.share(), 1)


async def test_what_is_lost_while_the_first_are_begun_is_let_go_of_before_sharing_returns() -> None:
    """Another one tells of it as soon as sharing returns."""
    bench = Bench(*(spec(f"S{number}") for number in range(40)))
    lost: list[str] = []
    sharing: list[asyncio.Task[bool]] = []

    async def share() -> bool:
        await bench.roster.share()
        return lost[0] in bench.collected

    def lose() -> None:
        if bench.collected and not lost:
            lost.append(bench.collected[0])
            bench.mine = lambda symbol: symbol not in lost
            sharing.append(asyncio.create_task(share()))

    bench.out.on_ask = lose
    async with running(bench, ready=False):
        await until(lambda: sharing, "some are begun")
        assert not await asyncio.wait_for(sharing[0], 5)


async def test_what_is_given_up_tells_nothing_more() -> None:
    bench = Bench(spec("BTC"), spec("ETH"))
    async with running(bench):
        bench.in_step("BTC")
        told = len(bench.out.of("order_book_status"))
        bench.roster.give_up(lambda symbol: symbol == "BTC-USDT")
        assert bench.collected == ["ETH-USDT"]
        assert len(bench.out.of("order_book_status")) == told
        assert bench.ended == ["BTCUSDT"]
        assert not [topic for topic in bench.topics if "btc" in topic]
        assert len(bench.of_kind(integrity.INTEGRITY_KIND_HANDED_OVER)) == 1


async def test_what_is_handed_over_at_the_end_may_say_so() -> None:
    bench = Bench(spec("BTC"))
    async with running(bench):
        bench.in_step("BTC")
        bench.roster.give_up(lambda symbol: True, told=True)
        status = pb.OrderBookStatus.FromString(bench.out.of("order_book_status")[-1])
        assert status.state == pb.ORDER_BOOK_STATE_STALE


async def test_what_is_lost_while_the_broker_is_asked_is_not_begun() -> None:
    bench = Bench(spec("BTC"), spec("ETH"))
    bench.out.on_ask = lambda: setattr(bench, "mine", lambda symbol: symbol == "ETH-USDT")
    async with running(bench):
        assert bench.collected == ["ETH-USDT"]
        assert not [topic for topic in bench.topics if "btc" in topic]


# Where an earlier collector stopped

EPOCH = time.time_ns() // 1000 + 3600 * 10**6


def stored(base: str, **messages: Message | bytes) -> dict[str, Message | bytes]:
    return {f"market.{kind}.binance.{base}-USDT": each for kind, each in messages.items()}


@pytest.mark.parametrize(
    ("trade", "last"),
    [
        (events_pb2.Trade(trade_id="41"), 41),
        (events_pb2.Trade(trade_id="ETH-7", venue_sequence=12), 12),
        (events_pb2.Trade(trade_id="9", venue_sequence=12), 12),
        (events_pb2.Trade(trade_id="ETH-7"), 0),
        (events_pb2.Trade(trade_id="٤١"), 0),
        (b"\xff\xff", 0),
    ],
    ids=["number", "Deribit", "Deribit BTC", "no number", "not ASCII", "garbage"],
)
async def test_trades_go_on_after_the_last_one_stored(trade: Message | bytes, last: int) -> None:
    bench = Bench(spec("BTC"))
    bench.out.stored = stored("BTC", trade=trade)
    async with running(bench):
        assert bench.feed("BTC").trades.last_id == last


async def test_epochs_go_on_above_the_last_one_stored() -> None:
    bench = Bench(spec("BTC"), spec("ETH"))
    bench.out.stored = stored(
        "BTC",
        order_book_snapshot=pb.OrderBookSnapshot(epoch=EPOCH),
        order_book_status=pb.OrderBookStatus(epoch=EPOCH + 5),
    )
    async with running(bench):
        for base in ("BTC", "ETH"):
            bench.in_step(base)
        assert bench.feed("BTC").book.epoch == EPOCH + 6
        assert bench.feed("ETH").book.epoch < EPOCH


async def test_a_broker_that_goes_away_is_waited_for() -> None:
    bench = Bench(spec("BTC"))
    bench.out.stored = stored("BTC", trade=events_pb2.Trade(trade_id="41"))
    bench.out.failures = 4
    async with running(bench):
        assert bench.feed("BTC").trades.last_id == 41


async def test_who_takes_over_says_so_and_who_starts_again_does_not() -> None:
    bench = Bench(spec("BTC"), spec("ETH"))
    bench.mine = lambda symbol: symbol == "BTC-USDT"
    for base in ("BTC", "ETH"):
        bench.out.stored |= stored(base, order_book_status=pb.OrderBookStatus(epoch=EPOCH))
    async with running(bench):
        assert bench.of_kind(integrity.INTEGRITY_KIND_TAKEN_OVER) == []
        bench.mine = lambda symbol: True
        await asyncio.wait_for(bench.roster.share(), 5)
        assert [symbol for symbol, _ in bench.of_kind(integrity.INTEGRITY_KIND_TAKEN_OVER)] == [
            "ETH-USDT"
        ]


async def test_changes_of_a_list_that_changes_nothing_else_are_not_told() -> None:
    bench = Bench(spec("BTC"))
    async with running(bench):
        bench.lists["/a"] = [dataclasses.replace(spec("BTC"))]
        told = len(bench.out.messages)
        await bench.refresh()
        assert len(bench.out.messages) == told
