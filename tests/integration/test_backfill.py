"""Trades missed while nobody listened are fetched page by page, marked, and stored once."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2, events_pb2

from services.collector.service import CollectorService
from tests.integration.collector_fixtures import Bench, bench
from tests.integration.nats_tools import until

_PAGES = {
    "binance": "/api/v3/historicalTrades",
    "binance_usdm": "/fapi/v1/aggTrades",
    "binance_coinm": "/dapi/v1/aggTrades",
    "okx": "/api/v5/market/history-trades",
    "deribit": "/api/v2/public/get_last_trades_by_instrument",
}
"""Where each venue tells what its latest trades do not reach back to."""

_BUSY = {"trade_rate": 500, "depth_rate": 5, "trades_kept": 200_000}


def numbers(trade: events_pb2.Trade) -> range:
    """Give the numbers that a trade stands for."""
    last = trade.venue_sequence or int(trade.trade_id)
    return range(last - max(trade.trade_count, 1) + 1, last + 1)


def told(running: Bench, symbol: str) -> Counter[int]:
    """Count how often each number of a symbol is stored."""
    return Counter(number for trade in running.seen.trades[symbol] for number in numbers(trade))


def missing(running: Bench, symbol: str) -> set[int]:
    """Give the trades that the venue made among those stored, and that are not stored."""
    stored = told(running, symbol)
    native = running.seen.books[symbol].native
    made = {trade.trade_id for trade in running.market.recent_trades(native, 1_000_000)}
    return {number for number in made if min(stored) <= number <= max(stored)} - stored.keys()


def in_ledger(running: Bench, symbol: str) -> set[int]:
    """Give the trades that the ledger says are missing, after all of it."""
    found: set[int] = set()
    for each in running.seen.entries:
        if each.symbol == symbol and each.event_kind == common_pb2.EVENT_KIND_TRADE:
            run = range(each.first_missing_id, each.last_missing_id + 1)
            if each.kind == integrity.INTEGRITY_KIND_GAP:
                assert each.count == len(run), "entries name exact runs"
                found |= set(run)
            elif each.kind == integrity.INTEGRITY_KIND_BACKFILLED:
                found -= set(run)
    return found


def newest(running: Bench, symbol: str) -> int:
    native = running.seen.books[symbol].native
    return running.market.recent_trades(native, 1)[-1].trade_id


async def away(running: Bench, trades: int) -> None:
    """Stop the collector, and wait until so many trades were made of every symbol."""
    await until(lambda: all(running.seen.trades[each] for each in running.seen.books), "it trades")
    await running.service.stop()
    last = {symbol: newest(running, symbol) for symbol in running.seen.books}
    await until(
        lambda: all(newest(running, symbol) > last[symbol] + trades for symbol in last),
        "trades happen while nobody listens",
        40,
    )


async def caught_up(running: Bench) -> None:
    """Wait until everything made by now is stored, or told to be missing."""
    last = {symbol: newest(running, symbol) for symbol in running.seen.books}

    def done() -> bool:
        return all(
            (stored := told(running, symbol))
            and max(stored) >= last[symbol]
            and missing(running, symbol) <= in_ledger(running, symbol)
            for symbol in last
        )

    await until(done, "what was missed is stored or in the ledger", 40)


@pytest.mark.parametrize("of", list(_PAGES))
async def test_a_collector_away_for_longer_than_a_page_fetches_all_that_it_missed(
    tmp_path: Path, of: str
) -> None:
    # Aggregates of futures stand for several trades each, and a page is a thousand of them.
    folded = of in ("binance_usdm", "binance_coinm")
    count = 5000 if folded else 2500
    market = _BUSY | {"symbols": _symbol(of), "trade_rate": count / 4}
    async with bench(tmp_path, of=of, market=market) as running:
        await away(running, count)
        async with CollectorService(running.service.mesh, running.service.settings).running():
            await caught_up(running)
            for symbol in running.seen.books:
                stored = running.seen.trades[symbol]
                assert set(told(running, symbol).values()) == {1}, "each once"
                fetched = sum(len(numbers(trade)) for trade in stored if trade.backfilled)
                assert fetched > count - 100, "marked as backfilled"
                lost, owned_up = missing(running, symbol), in_ledger(running, symbol)
                assert lost <= owned_up, "nothing is missing without a word"
                # An aggregate that stands for trades stored before cannot be told, so the ledger
                # may name a trade that is there.
                assert len(owned_up) <= (20 if folded else 0)
                order = [number for trade in stored for number in numbers(trade)]
                assert order == sorted(order), "in their places: the venue answers in time"
        assert running.requests(_PAGES[of]) > 1


def _symbol(of: str) -> tuple[str, ...]:
    return {
        "binance": ("BTCUSDT", "ETHUSDT"),
        "binance_usdm": ("BTCUSDT",),
        "binance_coinm": ("BTCUSD_PERP",),
        "okx": ("BTC-USDT-SWAP",),
        "deribit": ("BTC-PERPETUAL",),
    }[of]


async def test_live_trades_wait_for_a_slow_history_no_longer_than_allowed(tmp_path: Path) -> None:
    """What was missed comes behind them, and the ledger says both."""
    exchange = {"trade_wait_seconds": 0.3}
    async with bench(tmp_path, market={"trade_rate": 40}, exchange=exchange) as running:
        seen = running.seen
        await until(lambda: running.feed().trades.last_id, "a first trade came")
        slow = running.venue.fault("rest_slow", seconds=1.2, count=None, path="/api/v3/trades")
        await running.fault("drop", stream="btcusdt@trade", count=20)
        await until(lambda: seen.of_kind("GAP"), "the ledger tells what is missing")
        assert not [trade for trade in seen.trades["BTC-USDT"] if trade.backfilled]
        (gap,) = seen.of_kind("GAP")
        await until(lambda: seen.of_kind("BACKFILLED"), "it was fetched")
        assert slow.hits
        await caught_up(running)
        (paid,) = seen.of_kind("BACKFILLED")
        assert (paid.first_missing_id, paid.last_missing_id, paid.count) == (
            gap.first_missing_id,
            gap.last_missing_id,
            gap.count,
        )
        assert paid.previous_event_id == gap.event_id
        assert gap.begin_time.ToNanoseconds() < gap.end_time.ToNanoseconds()
        stored = told(running, "BTC-USDT")
        assert set(stored.values()) == {1}
        assert missing(running, "BTC-USDT") == in_ledger(running, "BTC-USDT") == set()
        late = [number for trade in seen.trades["BTC-USDT"] for number in numbers(trade)]
        assert late != sorted(late), "behind newer ones"


@pytest.mark.parametrize("ends", ["stopped", "killed"])
async def test_what_a_collector_owed_is_fetched_by_the_next_one_and_stored_once(
    tmp_path: Path, ends: str
) -> None:
    """The ledger remembers what is owed, the stream what was stored of it."""
    exchange = {"trade_wait_seconds": 0.3, "backoff_limit_seconds": 0.1}
    market = _BUSY | {"trade_rate": 300}
    async with bench(tmp_path, market=market, exchange=exchange) as running:
        seen, pages = running.seen, "/api/v3/historicalTrades"
        await away(running, 2500)
        running.venue.fault("rest_slow", seconds=0.5, count=None, path="/api/v3/trades")
        # One page comes, then none.
        running.venue.fault("rest_5xx", count=None, skip=1, path=pages)
        second = CollectorService(running.service.mesh, running.service.settings)
        async with second.running():
            await until(
                lambda: all(
                    any(each.kind == integrity.INTEGRITY_KIND_BACKFILLED for each in entries)
                    for entries in [[e for e in seen.entries if e.symbol == "BTC-USDT"]]
                ),
                "a part was fetched",
            )
            await until(lambda: running.requests(pages) > 4, "no more can be had")
            if ends == "killed":
                # Nothing of what follows reaches the broker.
                second.publisher.publish = lambda *_, **__: True  # type: ignore[method-assign]
                second._ledger._publish = lambda *_: True
        assert missing(running, "BTC-USDT")
        running.venue.faults.clear()
        async with CollectorService(running.service.mesh, running.service.settings).running():
            await caught_up(running)
            await until(
                lambda: not any(missing(running, symbol) for symbol in seen.books),
                "everything that was owed is stored",
                40,
            )
            for symbol in seen.books:
                assert set(told(running, symbol).values()) == {1}, "each once"
            await until(
                lambda: not any(in_ledger(running, symbol) for symbol in seen.books),
                "and the ledger says so",
            )


async def test_a_history_that_is_incomplete_itself_leaves_the_rest_in_the_ledger(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path, market={"trade_rate": 40}) as running:
        await until(lambda: running.feed().trades.last_id, "a first trade came")
        running.venue.fault("rest_trades_missing", ids=7, count=None)
        await running.fault("drop", stream="btcusdt@trade", count=30)
        await until(lambda: running.seen.of_kind("GAP"), "the ledger tells what is missing")
        await caught_up(running)
        lost = missing(running, "BTC-USDT")
        assert lost
        assert {number % 7 for number in lost} == {0}
        assert lost == in_ledger(running, "BTC-USDT")
        assert set(told(running, "BTC-USDT").values()) == {1}


async def test_a_venue_that_refuses_its_history_holds_nothing_up(tmp_path: Path) -> None:
    exchange = {"trade_wait_seconds": 0.5, "backoff_limit_seconds": 0.05}
    async with bench(tmp_path, market={"trade_rate": 40}, exchange=exchange) as running:
        await until(lambda: running.feed().trades.last_id, "a first trade came")
        running.venue.fault("rest_5xx", count=None, path="/api/v3/trades")
        await running.fault("drop", stream="btcusdt@trade", count=10)
        await until(
            lambda: any("for good" in each.detail for each in running.seen.of_kind("GAP")),
            "the ledger tells that they stay missing",
        )
        await asyncio.sleep(0)
        await caught_up(running)
        assert missing(running, "BTC-USDT") == in_ledger(running, "BTC-USDT") != set()
