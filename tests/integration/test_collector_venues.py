"""Every venue between its simulated self and a real broker: everything arrives, once and true."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from marketprism.market.v1 import common_pb2, instrument_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from services.simulator.fixed import canonical
from tests.integration.collector_fixtures import SYNCED, Bench, bench
from tests.integration.nats_tools import until

VENUES = ["binance_usdm", "binance_coinm", "okx", "deribit"]
every_venue = pytest.mark.parametrize("of", VENUES)

_BOOKS_AND_MORE = ["order_book", "trade", "best_bid_offer", "ticker"]
_SILENT = {
    "binance_usdm": ("*@depth*", "*@trade", "*@ticker"),
    "binance_coinm": ("*@depth*", "*@trade", "*@ticker"),
    "okx": ("books:*", "trades*", "tickers:*"),
    "deribit": ("book.*", "trades.*", "ticker.*"),
}
"""Streams of books, trades and tickers, as each venue calls them."""


def kinds_of(bench: Bench) -> set[str]:
    """Kinds that the venue has, as subjects name them."""
    found = {
        common_pb2.EventKind.Name(kind).removeprefix("EVENT_KIND_").lower()
        for kind in bench.service.venues[0]._adapter.kinds
    }
    return found - {"order_book"} | {"order_book_update", "order_book_snapshot", "instrument"}


def told(bench: Bench) -> set[str]:
    return {kind for kind, _ in bench.seen.told}


def native(bench: Bench, symbol: str) -> str:
    return bench.seen.books[symbol].native


async def instruments(bench: Bench, verb: str, symbol: str, **body: Any) -> dict[str, Any]:
    """List, change or expire an instrument at the venue, as a tester in another process would."""
    if verb == "POST":
        body, query = {"symbol": symbol, **body}, {}
    else:
        query = {"symbol": symbol}
    address = f"http://127.0.0.1:{bench.venue.port}/sim/instruments"
    async with (
        aiohttp.ClientSession() as session,
        session.request(verb, address, params=query, json=body or None) as response,
    ):
        answer: dict[str, Any] = await response.json()
        assert response.status in (200, 201), answer
        return answer


@every_venue
async def test_all_that_a_venue_has_arrives_in_its_form(tmp_path: Path, of: str) -> None:
    async with bench(tmp_path, of=of, everything=True) as running:
        seen = running.seen
        await until(lambda: kinds_of(running) <= told(running), "every kind is told", 30)
        await seen.settle()
        await seen.settle_trades()
        assert told(running) == kinds_of(running) | {"order_book_status"}
        assert seen.problems == []
        assert set(seen.instruments) == set(seen.books)
        for symbol, described in seen.instruments.items():
            complete(running, symbol, described)
        assert seen.of_kind("GAP") == []
        assert [b.epochs for b in seen.books.values() if len(b.epochs) != 1] == []


def complete(running: Bench, symbol: str, told: instrument_pb2.Instrument) -> None:
    """See that a description tells what the venue's own list does."""
    spec = running.market.symbols[native(running, symbol)]
    assert told.native_symbol == spec.symbol
    assert told.status == instrument_pb2.INSTRUMENT_STATUS_TRADING
    kind = instrument_pb2.InstrumentKind.Name(told.kind).removeprefix("INSTRUMENT_KIND_")
    assert kind.lower() == spec.kind.value
    assert told.base == spec.base
    assert told.quote
    if kind != "OPTION":
        # The step of an option may depend on its price; the least is told.
        assert told.tick_size == canonical(spec.tick)
    assert told.tick_size
    assert told.lot_size
    assert told.contract_size == running.seen.quantity(spec.symbol, 10**8)
    unit = instrument_pb2.QUANTITY_UNIT_QUOTE if spec.inverse else instrument_pb2.QUANTITY_UNIT_BASE
    if kind != "OPTION":
        assert told.quantity_unit == unit
    if spec.derivative:
        assert told.settlement
        assert told.underlying
    assert told.HasField("expiry_time") == (spec.expiry_us is not None)
    if spec.expiry_us is not None:
        assert told.expiry_time.ToMicroseconds() == spec.expiry_us
    assert told.strike == ("" if spec.strike is None else canonical(spec.strike))
    right = {"C": instrument_pb2.OPTION_RIGHT_CALL, "P": instrument_pb2.OPTION_RIGHT_PUT}
    assert told.option_right == right.get(spec.right or "", 0)


@every_venue
async def test_instruments_come_change_and_go_while_running(tmp_path: Path, of: str) -> None:
    exchange = {"instrument_refresh_seconds": 2.0}
    async with bench(tmp_path, of=of, exchange=exchange, everything=True) as running:
        seen, venue = running.seen, running.venue
        collected = running.service.venues[0]
        have = tuple(running.market.symbols)
        new = venue.protocol.more_symbols(len(have) + 1, have)[-1]
        symbol = collected._adapter.infer_instrument(new).symbol
        seen.follow(new, symbol, venue.protocol.listed(new).spec)

        await instruments(running, "POST", new)
        await until(lambda: new in collected.feeds, f"{new} is collected", 20)
        assert collected.feeds[new].spec.symbol == symbol
        await seen.settle()
        await until(lambda: seen.instruments.get(symbol), f"{symbol} is described")
        complete(running, symbol, seen.instruments[symbol])

        other = next(iter(have))
        before = running.market.symbols[other].tick
        changed = collected.feeds[other].spec.symbol
        epochs = [book.epoch for book in seen.books.values()]
        await instruments(running, "PATCH", other, tick=canonical(2 * before))
        await until(
            lambda: seen.instruments[changed].tick_size == canonical(2 * before),
            f"{changed} is described with its new tick",
        )
        await seen.settle()
        assert [book.epoch for book in seen.books.values()] == epochs, "books go on"

        await instruments(running, "DELETE", new)
        await until(lambda: new not in collected.feeds, f"{new} is collected no more")
        gone = seen.books[symbol]
        await until(lambda: gone.statuses[-1].state == pb.ORDER_BOOK_STATE_STALE, "told in-band")
        del seen.books[symbol]
        assert gone.reasons()[-1] == "INSTRUMENT_CHANGED"
        await until(
            lambda: (
                seen.instruments[symbol].status
                in (
                    instrument_pb2.INSTRUMENT_STATUS_EXPIRED,
                    instrument_pb2.INSTRUMENT_STATUS_HALTED,
                )
            ),
            f"{symbol} is described as ended",
        )
        await until(lambda: seen.of_kind("HANDED_OVER"), "the ledger tells the end")
        (entry,) = seen.of_kind("HANDED_OVER")
        assert (entry.symbol, entry.detail) == (symbol, "the instrument trades no more")
        await until(
            lambda: not any(new in s for c in collected.connections for s in c.topics.topics),
            "nothing of it is subscribed to",
        )
        await seen.settle()
        assert gone.problems == []
        assert seen.problems == []


@every_venue
async def test_connections_are_replaced_without_a_gap(tmp_path: Path, of: str) -> None:
    exchange = {"rollover_seconds": 1.5, "overlap_seconds": 20.0}
    async with bench(tmp_path, of=of, exchange=exchange) as running:
        seen, pool = running.seen, running.service.venues[0].pool
        first = {each.connection_id for each in pool.connections}
        await until(lambda: pool.rollovers >= 2 * len(first), "each was replaced twice", 40)
        await seen.settle()
        await seen.settle_trades()
        assert not first & {each.connection_id for each in pool.connections}
        assert [b.epochs for b in seen.books.values() if len(b.epochs) != 1] == []
        assert len(seen.of_kind("ROLLED_OVER")) >= 2 * len(first)
        assert not {"GAP", "DISCONNECTED", "BACKFILLED"} & set(seen.kinds())
        await until(lambda: len(running.venue.hub.connections) <= 2 * len(first), "old ones end")


@every_venue
async def test_of_two_connections_one_may_die_without_a_gap(tmp_path: Path, of: str) -> None:
    async with bench(tmp_path, of=of, exchange={"redundancy": 2}) as running:
        seen, hub = running.seen, running.venue.hub
        is_depth = running.venue.protocol.is_depth

        def carriers() -> list[str]:
            return [
                name
                for name, each in hub.connections.items()
                if sum(is_depth(stream) for stream in each.streams) == len(seen.books)
            ]

        await until(lambda: len(carriers()) == 2, "both carry every book")
        for turn in range(2):
            await until(lambda: len(carriers()) == 2, "both carry every book again")
            feeds = running.service.venues[0].feeds.values()
            await until(
                lambda f=feeds: all(
                    len(each.lanes.names) == 2 and all(map(each.lanes.is_aligned, each.lanes.names))
                    for each in f
                ),
                "every book goes on from either",
            )
            await running.fault("cut", connection=carriers()[turn], abort=True)
            await seen.settle()
        await seen.settle_trades()
        assert [b.epochs for b in seen.books.values() if len(b.epochs) != 1] == []
        await until(lambda: len(seen.of_kind("DISCONNECTED")) == 2, "the ledger tells the loss")
        assert not {"GAP", "BACKFILLED"} & set(seen.kinds())


@every_venue
async def test_subscriptions_that_are_acknowledged_and_silent_are_found(
    tmp_path: Path, of: str
) -> None:
    exchange = {"quiet_seconds": 1.0, "kinds": _BOOKS_AND_MORE}
    async with bench(tmp_path, of=of, exchange=exchange, everything=True) as running:
        seen, venue = running.seen, running.venue
        book = next(iter(seen.books.values()))
        symbol = running.service.venues[0].feeds[book.native].spec.symbol
        faults = [venue.fault("silence", symbol=book.native, stream=each) for each in _SILENT[of]]
        for connection in list(venue.hub.connections):
            venue.fault("cut", connection=connection)
        await until(lambda: all(each.hits for each in faults), "the streams are silent")
        counts = seen.told["ticker", symbol], len(seen.trades[symbol])
        await until(lambda: seen.told["ticker", symbol] > counts[0] + 1, "the ticker speaks", 30)
        await until(lambda: len(seen.trades[symbol]) > counts[1] + 30, "trades flow", 30)
        await seen.settle(40)
        assert book.state == SYNCED
        await seen.settle_trades(30)
        silent = {
            common_pb2.EventKind.Name(kind).removeprefix("EVENT_KIND_")
            for each in seen.of_kind("SILENT")
            for kind in [each.event_kind]
            if each.symbol == symbol
        }
        assert {"TRADE", "TICKER"} <= silent
        assert seen.problems == []
