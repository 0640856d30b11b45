"""One stream of many instruments and kinds: what it begins with, whose turn it is, how it ends."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import market_event_pb2, order_book_pb2

from services.marketdata.settings import StreamSettings, SubscriptionLimits
from services.marketdata.subscriptions import read_subscription
from services.shared.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    MarketPrismError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from tests.unit.marketdata.subscriber import (
    BOOK,
    TICKER,
    TRADE,
    Exchange,
    Subscriber,
    add,
    subscription,
)
from tests.unit.marketdata.truth import ClientBook

S = order_book_pb2
E = market_event_pb2
BTC, ETH, OKX = ("binance", "BTC-USDT"), ("binance", "ETH-USDT"), ("okx", "BTC-USDT")
LIMITS = SubscriptionLimits()


async def test_state_comes_first_and_trades_from_now_on() -> None:
    exchange = Exchange()
    for kind in (TRADE, TICKER, BOOK):
        exchange.put(kind, BTC)
    subscriber = Subscriber(exchange.open())
    await add(subscriber.session, "s", ["binance/BTC-USDT"], [TRADE, TICKER, BOOK])
    subscriber.read()
    assert subscriber.reasons == ["SUBSCRIBED", "ADDED"]
    assert subscriber.statuses[1].subscription_id == "s"
    assert subscriber.tickers[BTC] == [0], "expected the latest ticker"
    assert subscriber.trades[BTC] == [], "expected no trade from before"
    book = subscriber.books[BTC]
    assert book.kinds == ["order_book_snapshot", "order_book_status"]
    assert book.snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED]
    exchange.put(TRADE, BTC)
    assert subscriber.read().trades[BTC] == [1]


async def test_an_instrument_that_appears_later_is_announced_and_begins_with_its_snapshot() -> None:
    exchange = Exchange()
    exchange.put(TRADE, BTC)
    subscriber = Subscriber(exchange.open())
    await add(subscriber.session, "s", ["binance/*"], [TRADE, BOOK])
    subscriber.read()
    exchange.put(BOOK, ETH)
    exchange.put(TRADE, ETH)
    exchange.put(TRADE, OKX)
    subscriber.read()
    added = subscriber.told("INSTRUMENT_ADDED")
    assert [(s.subscription_id, s.exchange, s.symbol) for s in added] == [("s", *ETH)] * 2
    assert subscriber.books[ETH].best() == exchange.books[ETH].best()
    assert subscriber.trades == {ETH: [0]}, "expected the very first trade, and none of another's"


async def test_an_instrument_that_appears_while_a_subscription_is_resolved_is_in_it() -> None:
    exchange = Exchange()
    subscriber = Subscriber(exchange.open())
    adding = asyncio.create_task(add(subscriber.session, "s", ["okx/*", "binance/*"], [TRADE]))
    await asyncio.sleep(0)
    exchange.put(TRADE, BTC)
    exchange.put(TRADE, OKX)
    await adding
    exchange.put(TRADE, BTC)
    exchange.put(TRADE, OKX)
    subscriber.read()
    assert subscriber.trades == {BTC: [1], OKX: [1]}
    assert subscriber.told("ADDED")[0].message == "2 instruments at present"


async def test_an_unknown_instrument_is_told_and_waited_for() -> None:
    exchange = Exchange()
    exchange.put(TRADE, BTC)
    subscriber = Subscriber(exchange.open())
    await add(subscriber.session, "s", ["binance/BTCUSDT", "binance/ETH-USDT"], [TRADE])
    subscriber.read()
    told = {(s.exchange, s.symbol): s.message for s in subscriber.told("NO_SUCH_INSTRUMENT")}
    assert set(told) == {("binance", "BTCUSDT"), ETH}
    assert "did you mean BTC-USDT?" in told["binance", "BTCUSDT"]
    exchange.put(TRADE, ETH)
    subscriber.read()
    assert subscriber.trades == {ETH: [0]}
    assert len(subscriber.told("INSTRUMENT_ADDED")) == 1


async def test_many_unknown_instruments_keep_nobody_waiting() -> None:
    exchange = Exchange()
    for number in range(1000):
        exchange.put(TRADE, ("binance", f"BTC{number}-USDT"))
    subscriber = Subscriber(exchange.open())
    names = [f"binance/BTCX{number}-USDT" for number in range(1000)]
    adding = asyncio.create_task(add(subscriber.session, "s", names, [TRADE]))
    longest = 0.0
    while not adding.done():
        began = time.thread_time()
        await asyncio.sleep(0)
        longest = max(longest, time.thread_time() - began)
    assert longest < 0.25, "expected the event loop to be free all the time"
    subscriber.read()
    assert len(subscriber.told("NO_SUCH_INSTRUMENT")) == 1000


async def test_what_two_subscriptions_mean_comes_once_until_both_are_removed() -> None:
    exchange = Exchange()
    exchange.put(TRADE, BTC)
    subscriber = Subscriber(exchange.open())
    await add(subscriber.session, "a", ["binance/*"], [TRADE])
    await add(subscriber.session, "b", ["*/BTC-USDT"], [TRADE])
    assert subscriber.session.sources == 1
    exchange.put(TRADE, BTC)
    subscriber.session.remove("a")
    exchange.put(TRADE, BTC)
    assert subscriber.read().trades[BTC] == [1, 2]
    exchange.put(TRADE, BTC)
    subscriber.session.remove("b")
    exchange.put(TRADE, BTC)
    assert subscriber.read().trades[BTC] == [1, 2], "expected no event behind REMOVED"
    assert subscriber.session.sources == 0
    assert subscriber.reasons[-2:] == ["REMOVED", "REMOVED"]


async def test_a_busy_source_does_not_keep_the_others_waiting() -> None:
    exchange = Exchange(StreamSettings(max_message_bytes=1024))
    exchange.put(BOOK, BTC)
    for key in (ETH, OKX):
        exchange.put(TRADE, key)
    subscriber = Subscriber(exchange.open())
    await add(subscriber.session, "s", ["*/*"], [TRADE, BOOK])
    subscriber.read()
    for _ in range(15):
        exchange.put(BOOK, BTC)
    for key in (ETH, OKX):
        exchange.put(TRADE, key)
    subscriber.events.clear()
    subscriber.read(1)
    came = {key for _, key in subscriber.events}
    assert came == {BTC, ETH, OKX}, "expected all of them in the first message"
    assert len(subscriber.events) < 15, "expected the busy one to have a share"
    subscriber.read()
    assert subscriber.books[BTC].sequence == 15


async def test_a_message_keeps_its_bound_unless_one_event_is_larger() -> None:
    exchange = Exchange(StreamSettings(max_message_bytes=1024))
    keys = [("binance", f"B{n}-USDT") for n in range(20)]
    for key in keys:
        exchange.put(BOOK, key)
        exchange.put(TRADE, key)
    subscriber = Subscriber(exchange.open())
    await add(subscriber.session, "s", ["*/*"], [TRADE, BOOK])
    for _ in range(3):
        subscriber.read()
        for key in keys:
            exchange.put(BOOK, key)
            exchange.put(TRADE, key)
    subscriber.read()
    assert all(size <= 1024 or events == 1 for size, events in subscriber.sizes), subscriber.sizes
    assert len(subscriber.sizes) > 10
    assert subscriber.trades == {key: [1, 2, 3] for key in keys}, "expected none to be forgotten"
    for key in keys:
        assert subscriber.books[key].best() == exchange.books[key].best()


async def test_an_event_costs_only_those_who_have_read_the_ones_before() -> None:
    exchange = Exchange()
    exchange.put(TRADE, BTC)
    sessions = [exchange.open() for _ in range(3)]
    for session in sessions:
        await add(session, "s", ["binance/BTC-USDT"], [TRADE])
        Subscriber(session).read()
    log = exchange.market.trades[BTC].log
    assert log.waiting == 3
    exchange.put(TRADE, BTC)
    assert log.waiting == 0, "expected each of them to be told once"
    Subscriber(sessions[0]).read()
    assert log.waiting == 1, "expected one that reads to be told again, and no other"
    for session in sessions:
        exchange.sessions.close(session)
    assert log.waiting == 0


async def test_a_slow_readers_book_is_conflated_and_its_tickers_are_the_latest() -> None:
    exchange = Exchange()
    for kind in (BOOK, TICKER):
        exchange.put(kind, BTC)
    subscriber = Subscriber(exchange.open())
    await add(subscriber.session, "s", ["binance/*"], [BOOK, TICKER])
    subscriber.read()
    for _ in range(50):
        exchange.put(BOOK, BTC)
        exchange.put(TICKER, BTC)
    subscriber.read()
    book = subscriber.books[BTC]
    assert book.snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED, S.SNAPSHOT_REASON_CONFLATED]
    assert book.best() == exchange.books[BTC].best()
    assert subscriber.tickers[BTC] == [0, 50]
    assert subscriber.dropped[TICKER, BTC] == 50
    assert exchange.market.tally.dropped == sum(subscriber.dropped.values())


async def test_lost_trades_are_counted_and_end_the_stream_when_it_happens_again_and_again() -> None:
    exchange = Exchange(StreamSettings(slow_reader_losses=3))
    for key in (BTC, ETH):
        exchange.put(TRADE, key)
    subscriber = Subscriber(exchange.open())
    await add(subscriber.session, "s", ["binance/*"], [TRADE])
    subscriber.read()
    for _ in range(3):
        # Two instruments lose at once: that is one time for each of them.
        for _ in range(20):
            exchange.put(TRADE, BTC)
            exchange.put(TRADE, ETH)
        subscriber.read()
    assert subscriber.dropped[TRADE, BTC] == 8
    last = subscriber.statuses[-1]
    assert (last.state, last.reason) == (E.STREAM_STATE_ENDED, "SLOW_READER")
    assert (last.exchange, last.dropped_events) == ("binance", 4)
    error = subscriber.session.error
    assert isinstance(error, ResourceExhausted)
    assert error.reason == "SLOW_READER"
    exchange.put(TRADE, BTC)
    assert subscriber.session.take() == b"", "expected nothing behind ENDED"


async def test_a_resume_point_brings_what_was_missed_or_says_why_not() -> None:
    exchange = Exchange()
    for key in (BTC, ETH):
        exchange.put(BOOK, key)
        exchange.put(BOOK, key)
    first = Subscriber(exchange.open())
    await add(first.session, "s", ["binance/*"], [BOOK])
    first.read()
    exchange.sessions.close(first.session)
    for _ in range(3):
        exchange.put(BOOK, BTC)
    for _ in range(40):
        exchange.put(BOOK, ETH)
    resumes = [
        pb.InstrumentResume(
            instrument=pb.InstrumentKey(exchange=key[0], symbol=key[1]),
            resume=pb.ResumePoint(epoch=book.epoch, sequence=book.sequence),
        )
        for key, book in first.books.items()
    ]
    second = Subscriber(exchange.open())
    second.books = first.books
    await add(second.session, "s", ["binance/*"], [BOOK], resumes=resumes)
    second.read()
    assert second.books[BTC].snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED], "expected no snapshot"
    assert [(s.exchange, s.symbol) for s in second.told("RESUMED")] == [BTC]
    assert second.books[ETH].snapshots[-1] == S.SNAPSHOT_REASON_RESUME_TOO_OLD
    for key in (BTC, ETH):
        assert second.books[key].best() == exchange.books[key].best()


async def test_interruptions_are_told_to_those_whom_they_concern() -> None:
    exchange = Exchange()
    for key in (BTC, OKX):
        exchange.put(TICKER, key)
    binance, okx = Subscriber(exchange.open()), Subscriber(exchange.open())
    await add(binance.session, "s", ["binance/*"], [TICKER])
    await add(okx.session, "s", ["okx/*"], [TICKER])
    exchange.market.on_collectors(lambda name, _: "silent for 9 s" if name == "okx" else "")
    exchange.market.on_books_lost("the broker is away")
    late = Subscriber(exchange.open())
    await add(late.session, "s", ["okx/*"], [TICKER])
    exchange.market.on_books_back()
    exchange.market.on_collectors(lambda _name, _: "")
    for subscriber in (binance, okx, late):
        subscriber.read()

    def states(subscriber: Subscriber) -> list[tuple[int, str]]:
        return [(s.state, s.exchange) for s in subscriber.statuses if s.reason != "ADDED"]

    opened, broken = E.STREAM_STATE_OPEN, E.STREAM_STATE_INTERRUPTED
    assert states(binance) == [(opened, ""), (broken, ""), (opened, "")]
    everything = [(broken, "okx"), (broken, ""), (opened, ""), (opened, "okx")]
    assert states(okx) == [(opened, ""), *everything]
    assert sorted(states(late)[1:]) == sorted(everything), "expected a newcomer to be told too"


async def test_trades_say_what_interrupts_them_when_they_begin() -> None:
    exchange = Exchange()
    exchange.put(TRADE, BTC)
    exchange.market.on_trades_lost("the broker is away")
    subscriber = Subscriber(exchange.open())
    await add(subscriber.session, "s", ["binance/BTC-USDT"], [TRADE])
    subscriber.read()
    last = subscriber.statuses[-1]
    assert (last.state, last.symbol) == (E.STREAM_STATE_INTERRUPTED, "BTC-USDT")
    exchange.market.on_trades_back("")
    assert subscriber.read().statuses[-1].state == E.STREAM_STATE_OPEN


async def test_a_heartbeat_breaks_every_silence() -> None:
    exchange = Exchange()
    subscriber = Subscriber(exchange.open(heartbeat=60))
    subscriber.read()
    subscriber.session.set_heartbeat(0.05)
    began = time.monotonic()
    for _ in range(3):
        await asyncio.wait_for(subscriber.session.wait(), 5)
        subscriber.read()
    beats = [s for s in subscriber.statuses if s.state == E.STREAM_STATE_HEARTBEAT]
    assert len(beats) == 3
    assert time.monotonic() - began > 0.12


async def test_a_stopping_server_ends_a_stream_behind_all_that_was_there() -> None:
    exchange = Exchange()
    exchange.put(TRADE, BTC)
    busy, idle = Subscriber(exchange.open()), Subscriber(exchange.open())
    await add(busy.session, "s", ["binance/*"], [TRADE])
    busy.read()
    exchange.put(TRADE, BTC)
    exchange.market.close()
    for subscriber in (busy, idle):
        subscriber.read()
        last = subscriber.statuses[-1]
        assert (last.state, last.reason) == (E.STREAM_STATE_ENDED, "SERVER_STOPPING")
        assert isinstance(subscriber.session.error, Unavailable)
    assert busy.trades[BTC] == [1]


async def test_limits_refuse_and_change_nothing() -> None:
    limits = SubscriptionLimits(
        max_streams=1, max_subscriptions=2, max_patterns=3, max_wildcards=2, max_sources=2
    )
    exchange = Exchange(limits=limits)
    for key in (BTC, ETH, OKX):
        exchange.put(TRADE, key)
    session = exchange.open()
    with pytest.raises(ResourceExhausted) as caught:
        exchange.open()
    assert caught.value.reason == "TOO_MANY_STREAMS"

    async def refused(*arguments: Any, **options: Any) -> str:
        with pytest.raises(MarketPrismError) as caught:
            await add(session, *arguments, **options)
        return caught.value.reason

    assert await refused("x", ["*/*"], [TRADE]) == "TOO_MANY_SOURCES"
    await add(session, "a", ["okx/*"], [TRADE])
    assert await refused("a", ["okx/*"], [TRADE]) == "DUPLICATE_SUBSCRIPTION_ID"
    assert await refused("b", ["a/1", "a/2", "a/3"], [TRADE]) == "TOO_MANY_PATTERNS"
    assert await refused("b", ["a/*", "b/*"], [TRADE]) == "TOO_MANY_PATTERNS"
    await add(session, "b", ["binance/BTC-USDT", "okx/NEW"], [TRADE])
    assert await refused("c", ["okx/*"], [TRADE]) == "TOO_MANY_SUBSCRIPTIONS"
    assert session.sources == 2
    subscriber = Subscriber(session).read()
    exchange.put(TRADE, ("okx", "NEW"))
    exchange.put(TRADE, ("okx", "NEWER"))
    subscriber.read()
    left_out = subscriber.told("TOO_MANY_SOURCES")
    assert {(s.subscription_id, s.symbol) for s in left_out} == {("a", "NEW"), ("b", "NEW")}, (
        "expected it to be told once a subscription"
    )
    with pytest.raises(NotFound) as missing:
        session.remove("none")
    assert missing.value.reason == "NO_SUCH_SUBSCRIPTION"


async def test_one_book_cannot_come_in_two_ways_in_one_stream() -> None:
    exchange = Exchange()
    for key in (BTC, ETH):
        exchange.put(BOOK, key)
    session = exchange.open()
    await add(session, "whole", ["binance/BTC-USDT"], [BOOK])
    top = {"order_book_mode": pb.ORDER_BOOK_MODE_TOP, "depth": 5}
    with pytest.raises(FailedPrecondition) as caught:
        await add(session, "top", ["binance/*"], [BOOK], **top)
    assert caught.value.reason == "BOOK_OPTIONS_CONFLICT"
    await add(session, "trades", ["binance/*"], [TRADE], **top)


async def test_books_come_as_they_are_wanted_and_are_given_back() -> None:
    exchange = Exchange()
    exchange.put(BOOK, BTC)
    top, conflated = Subscriber(exchange.open()), Subscriber(exchange.open())
    options = {"order_book_mode": pb.ORDER_BOOK_MODE_TOP, "depth": 2}
    await add(top.session, "s", ["binance/*"], [BOOK, TRADE], **options)
    await add(conflated.session, "s", ["*/*"], [BOOK], conflation_interval={"nanos": 10_000_000})
    for subscriber in (top, conflated):
        subscriber.read()
    for _ in range(10):
        exchange.put(BOOK, BTC)
    true = exchange.books[BTC]
    await _until_told(top, lambda: top.books[BTC].best() == true.best(2))
    assert set(top.books[BTC].snapshots[1:]) <= {S.SNAPSHOT_REASON_TOP_CHANGED}
    kept = _Merged()
    kept.__dict__.update(conflated.books[BTC].__dict__)
    conflated.books[BTC] = kept
    await _until_told(conflated, lambda: kept.best() == true.best())
    assert 0 < kept.updates < 10, "expected updates to be merged"
    log = exchange.market.books[BTC].log
    for subscriber in (top, conflated):
        exchange.sessions.close(subscriber.session)
    assert log.waiting == 0


class _Merged(ClientBook):
    """Keeps a book by updates that may stand for several."""

    def _on_order_book_update(self, update: S.OrderBookUpdate) -> None:
        if update.first_sequence:
            assert update.first_sequence == self.sequence + 1
            self.sequence = update.sequence - 1
        super()._on_order_book_update(update)


async def _until_told(subscriber: Subscriber, is_told: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_told():
            await subscriber.session.wait()
            subscriber.read()


async def test_unknown_instruments_fail_a_stream_that_cannot_be_changed() -> None:
    exchange = Exchange()
    exchange.put(TRADE, BTC)
    session = exchange.open()
    request = pb.StreamMarketDataRequest(instruments=["binance/NONE"], kinds=[1])
    with pytest.raises(NotFound) as caught:
        await session.add(read_subscription(request, LIMITS), all_known=True)
    assert caught.value.reason == "INSTRUMENT_NOT_FOUND"
    exchange.market.catalog.ready = False
    with pytest.raises(Unavailable):
        exchange.open()


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"instruments": ["binance"]}, "INVALID_PATTERN", "add.instruments[0]"),
        ({"instruments": ["*/*", "x/"]}, "INVALID_PATTERN", "add.instruments[1]"),
        ({"kinds": [1, 99]}, "UNKNOWN_KIND", "add.kinds[1]"),
        ({"kinds": [0]}, "UNKNOWN_KIND", "add.kinds[0]"),
        ({"subscription_id": "x" * 129}, "INVALID_SUBSCRIPTION_ID", "add.subscription_id"),
        ({"order_book_mode": 7}, "INVALID_BOOK_OPTIONS", "add.order_book_mode"),
        ({"depth": 5}, "INVALID_BOOK_OPTIONS", "add.depth"),
        ({"order_book_mode": 2, "depth": 1001}, "INVALID_BOOK_OPTIONS", "add.depth"),
        ({"order_book_mode": 2, "depth": -1}, "INVALID_BOOK_OPTIONS", "add.depth"),
        ({"price_grouping": "0"}, "INVALID_BOOK_OPTIONS", "add.price_grouping"),
        ({"price_grouping": "-1"}, "INVALID_BOOK_OPTIONS", "add.price_grouping"),
        ({"price_grouping": "a"}, "INVALID_BOOK_OPTIONS", "add.price_grouping"),
        (
            {"conflation_interval": {"nanos": 9_999_999}},
            "INVALID_BOOK_OPTIONS",
            "add.conflation_interval",
        ),
        (
            {"conflation_interval": {"seconds": 61}},
            "INVALID_BOOK_OPTIONS",
            "add.conflation_interval",
        ),
        (
            {"resumes": [pb.InstrumentResume(resume=pb.ResumePoint(sequence=1))]},
            "INVALID_RESUME",
            "add.resumes[0].resume.epoch",
        ),
    ],
)
def test_a_field_that_is_wrong_is_named(change: dict[str, Any], reason: str, field: str) -> None:
    fields: dict[str, Any] = {"instruments": ["*/*"], "kinds": [TRADE], "identity": "s"}
    if "subscription_id" in change:
        fields["identity"] = change.pop("subscription_id")
    with pytest.raises(InvalidArgument) as caught:
        read_subscription(subscription(**{**fields, **change}), LIMITS, "add.")
    assert (caught.value.reason, caught.value.violations[0].field) == (reason, field)


def test_too_many_instruments_are_refused_before_they_are_read() -> None:
    for options in (
        {"instruments": ["nonsense"] * 2001},
        {"instruments": ["*/*"], "resumes": [pb.InstrumentResume()] * 2001},
    ):
        with pytest.raises(ResourceExhausted) as caught:
            read_subscription(subscription("s", kinds=[TRADE], **options), LIMITS)  # type: ignore[arg-type]
        assert caught.value.reason == "TOO_MANY_PATTERNS"


async def test_a_duplicate_keeps_the_first() -> None:
    exchange = Exchange()
    exchange.put(TRADE, BTC)
    session = exchange.open()
    await add(session, "s", ["binance/*"], [TRADE])
    with pytest.raises(AlreadyExists):
        await add(session, "s", ["okx/*"], [TRADE])
    exchange.put(TRADE, BTC)
    assert Subscriber(session).read().trades[BTC] == [1]
