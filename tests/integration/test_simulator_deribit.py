"""The simulated Deribit keeps the venue's protocol over sockets, and its own truth."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
import websockets
from marketprism.market.v1 import common_pb2

from services.collector.venues import base
from services.collector.venues.deribit import Deribit as DeribitAdapter
from services.collector.venues.deribit import DeribitBookUpdate
from tests.integration.deribit_tools import (
    BOOK,
    DEADLINE,
    TRADES,
    NaiveBook,
    client_of,
    equals_truth,
    eventually,
    simulated,
)


async def test_a_subscription_lists_what_was_taken_and_a_snapshot_comes_first() -> None:
    async with simulated() as (venue, session), client_of(venue) as client:
        taken = await client.subscribe(BOOK, "book.NOPE.100ms", "book.BTC-PERPETUAL.50ms", TRADES)
        assert sorted(taken) == sorted([BOOK, TRADES]), "unknown channels are left out in silence"
        book = NaiveBook()
        first = await client.next(BOOK)
        assert first["type"] == "snapshot"
        assert book.take(first)
        for _ in range(30):
            data = await client.next(BOOK)
            assert data["type"] == "change"
            assert book.take(data)
            await equals_truth(session, "BTC-PERPETUAL", book)


async def test_a_second_subscription_is_acknowledged_without_a_second_snapshot() -> None:
    async with simulated() as (venue, _), client_of(venue) as client:
        await client.subscribe(BOOK)
        assert (await client.next(BOOK))["type"] == "snapshot"
        assert await client.subscribe(BOOK) == [BOOK]
        assert {(await client.next(BOOK))["type"] for _ in range(20)} == {"change"}


async def test_unsubscribing_and_subscribing_again_brings_a_new_snapshot() -> None:
    async with simulated() as (venue, session), client_of(venue) as client:
        await client.subscribe(BOOK)
        await client.next(BOOK)
        reply = await client.ask("public/unsubscribe", channels=[BOOK, "quote.ETH-PERPETUAL"])
        assert reply["result"] == [BOOK]
        while not client.notifications.empty():
            client.notifications.get_nowait()
        await client.subscribe(BOOK)
        book = NaiveBook()
        snapshot = await client.next(BOOK)
        assert snapshot["type"] == "snapshot"
        book.take(snapshot)
        assert book.take(await client.next(BOOK))
        await equals_truth(session, "BTC-PERPETUAL", book)
        assert (await client.ask("public/unsubscribe_all"))["result"] == "ok"
        assert not any(connection.streams for connection in venue.hub.connections.values())


async def test_errors_have_the_venues_codes_and_leave_the_connection_open() -> None:
    async with simulated() as (venue, _), client_of(venue) as client:
        codes = {
            "public/nope": -32601,
            "public/subscribe": -32602,
            "public/get_order_book": -32602,
            "private/get_positions": 13009,
        }
        for method, code in codes.items():
            reply = await client.ask(method)
            assert reply["error"]["code"] == code, reply
            assert list(reply) == ["jsonrpc", "id", "error", "usIn", "usOut", "usDiff", "testnet"]
        raw = await client.ask("public/subscribe", channels=[BOOK, "book.BTC-PERPETUAL.raw"])
        assert raw["error"] == {
            "code": 13778,
            "message": "raw_subscriptions_not_available_for_unauthorized",
        }
        assert not any(connection.streams for connection in venue.hub.connections.values())
        await client.socket.send("{nope")
        stray = await client.stray()
        assert stray["error"] == {"code": 11050, "data": "invalid json", "message": "bad_request"}
        assert "id" not in stray
        await client.socket.send('{"jsonrpc":"2.0","method":"public/test"}')
        assert "version" in (await client.stray())["result"]


async def test_too_many_subscriptions_cost_the_session() -> None:
    async with (
        simulated(subscribe_credits=30_000, credits_per_second=1) as (venue, _),
        client_of(venue) as client,
    ):
        for number in range(10):
            assert "result" in await client.ask("public/subscribe", channels=[BOOK]), number
        assert (await client.ask("public/subscribe", channels=[BOOK]))["error"] == {
            "code": 10028,
            "message": "too_many_requests",
        }
        await client.closed()
        assert venue.counters["sessions out of credits"] == 1


async def test_a_client_that_answers_heartbeats_lives_and_one_that_does_not_is_closed() -> None:
    timings = {"heartbeat_least_seconds": 0.05, "heartbeat_answer_seconds": 0.2}
    async with (
        simulated(**timings) as (venue, _),
        client_of(venue) as good,
        client_of(venue) as bad,
    ):
        bad.answer_heartbeats = False
        assert (await good.ask("public/set_heartbeat", interval=0.1))["result"] == "ok"
        assert (await bad.ask("public/set_heartbeat", interval=0.1))["result"] == "ok"
        assert await bad.closed() == (4000, "heartbeat close")
        await eventually(lambda: good.heartbeats.count("test_request") >= 6)
        assert "heartbeat" in good.heartbeats, "a quiet connection is sent heartbeats too"
        assert good.socket.close_code is None
        assert (await good.ask("public/disable_heartbeat"))["result"] == "ok"


async def test_a_heartbeat_interval_below_ten_seconds_is_refused() -> None:
    async with simulated() as (venue, _), client_of(venue) as client:
        reply = await client.ask("public/set_heartbeat", interval=9)
        assert reply["error"]["data"] == {
            "reason": "value must be at least 10",
            "param": "interval",
        }


async def test_a_connection_that_neither_asks_nor_subscribes_is_broken_off() -> None:
    async with (
        simulated(idle_seconds=0.3) as (venue, _),
        client_of(venue) as idle,
        client_of(venue) as subscribed,
    ):
        await subscribed.subscribe("book.ETH-PERPETUAL.agg2")
        assert (await idle.closed())[0] == 1006
        assert subscribed.socket.close_code is None


async def test_the_thirty_third_connection_is_refused() -> None:
    async with simulated(max_connections=2) as (venue, _), client_of(venue), client_of(venue):
        with pytest.raises(websockets.InvalidStatus, match="429"):
            async with client_of(venue):
                pass


async def test_http_answers_as_the_socket_does() -> None:
    async with simulated() as (venue, session), client_of(venue) as client:
        async with session.get("/api/v2/public/get_instruments?currency=BTC&kind=option") as answer:
            assert answer.status == 200
            told = await answer.json()
        reply = await client.ask("public/get_instruments", currency="BTC", kind="option")
        assert json.loads(json.dumps(reply["result"], default=float)) == told["result"]
        async with session.get("/api/v2/public/ticker?instrument_name=NOPE") as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["data"]["reason"] == "instrument not found"
        async with session.get("/api/v2/public/set_heartbeat?interval=10") as answer:
            assert (await answer.json())["error"]["code"] == 10030
        request = {"jsonrpc": "2.0", "id": 5, "method": "public/get_time", "params": {}}
        async with session.post("/api/v2", json=request) as answer:
            assert (await answer.json())["id"] == 5


async def test_every_trade_sent_is_known_and_can_be_asked_for() -> None:
    async with (
        simulated(market={"trade_rate": 40.0}) as (venue, session),
        client_of(venue) as client,
    ):
        await client.subscribe(TRADES)
        told: list[dict[str, Any]] = []
        while len(told) < 40:
            told += await client.next(TRADES)
        sequences = [trade["trade_seq"] for trade in told]
        assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
        async with session.get("/sim/trades?symbol=BTC-PERPETUAL") as answer:
            truth = await answer.json()
        assert truth["sent"][TRADES]["ids"][: len(sequences)] == sequences
        query = f"start_seq={sequences[0]}&end_seq={sequences[-1]}&count=1000&sorting=asc"
        path = "/api/v2/public/get_last_trades_by_instrument?instrument_name=BTC-PERPETUAL&"
        async with session.get(path + query) as answer:
            body = json.loads(await answer.read(), parse_float=Decimal)
        assert body["result"]["trades"] == told


async def _specs(
    session: aiohttp.ClientSession, adapter: DeribitAdapter
) -> list[base.InstrumentSpec]:
    specs: list[base.InstrumentSpec] = []
    for request in adapter.instrument_requests():
        async with session.get(request.path, params=request.query) as answer:
            assert answer.status == 200, await answer.text()
            specs += adapter.decode_instruments(await answer.read())
    return specs


def _flat(message: base.VenueMessage) -> Sequence[base.VenueMessage]:
    return message.messages if isinstance(message, base.Several) else (message,)


async def test_the_collectors_adapter_understands_every_frame() -> None:
    adapter = DeribitAdapter()
    selection = base.Selection(adapter.kinds)
    async with (
        simulated(market={"trade_rate": 300.0}, heartbeat_least_seconds=0.05) as (venue, session),
        websockets.connect(f"{venue.ws_url}/ws/api/v2", max_queue=None, max_size=None) as socket,
    ):
        specs = await _specs(session, adapter)
        assert {spec.native_symbol for spec in specs} == set(venue.market.symbols)
        subscriptions = [each for spec in specs for each in adapter.subscriptions(spec, selection)]
        subscriptions += adapter.shared_subscriptions(specs, selection)
        topics = [each.topic for each in subscriptions]
        await socket.send(adapter.subscribe(topics, 1)[0].frame)
        heartbeat = {"id": 2, "method": "public/set_heartbeat", "params": {"interval": 0.2}}
        await socket.send(json.dumps(heartbeat))
        found: dict[str, int] = {}
        kinds: set[int] = set()
        books: dict[str, int] = {}
        acknowledged: tuple[str, ...] | None = None

        def complete() -> bool:
            wanted = {"TradePrint", "DeribitBookUpdate", "Ping", "TopOfBook", "Observation"}
            told = kinds | {
                common_pb2.EVENT_KIND_TRADE,
                common_pb2.EVENT_KIND_ORDER_BOOK,
                common_pb2.EVENT_KIND_BEST_BID_OFFER,
            }
            return wanted <= found.keys() and told >= adapter.kinds

        async with asyncio.timeout(DEADLINE):
            while not complete():
                for message in _flat(adapter.decode(await socket.recv())):
                    found[type(message).__name__] = found.get(type(message).__name__, 0) + 1
                    assert not isinstance(message, base.VenueFault), message
                    if isinstance(message, base.Acknowledgement) and message.request_id == 1:
                        acknowledged = message.topics
                    elif isinstance(message, base.BookSnapshot):
                        books[message.native_symbol] = message.last
                    elif isinstance(message, DeribitBookUpdate):
                        assert adapter.bridges(message, books[message.native_symbol])
                        books[message.native_symbol] = message.last
                    elif isinstance(message, base.Observation):
                        kinds.add(message.kind)
                    elif isinstance(message, base.Ping):
                        await socket.send(message.reply)
        assert acknowledged is not None
        assert set(acknowledged) == set(topics), "every channel of the adapter's is taken"
        assert set(books) == set(venue.market.symbols)
        venue.market.expire("BTC-25DEC26")
        async with asyncio.timeout(DEADLINE):
            while not isinstance(adapter.decode(await socket.recv()), base.InstrumentsChanged):
                pass


async def test_the_collectors_adapter_reads_books_and_trades_over_http() -> None:
    adapter = DeribitAdapter()
    async with simulated() as (venue, session):
        request = adapter.snapshot_request("BTC-PERPETUAL", 20)
        async with session.get(request.path, params=request.query) as answer:
            snapshot = adapter.decode_snapshot(await answer.read(), request)
        truth = venue.market.book_at("BTC-PERPETUAL", snapshot.last, 20)
        assert [Decimal(price) for price, _ in snapshot.bids] == [
            Decimal(price) for price, _ in truth.canonical()[0]
        ]
        newest = venue.market.recent_trades("BTC-PERPETUAL", 5)
        request = adapter.trades_request("BTC-PERPETUAL", newest[0].trade_id, 5)
        async with session.get(request.path, params=request.query) as answer:
            trades = adapter.decode_trades(await answer.read(), "BTC-PERPETUAL")
        assert [trade.trade_id for trade in trades[:5]] == [trade.trade_id for trade in newest]


async def test_it_runs_as_a_process_of_its_own() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.simulator",
        "--venue",
        "deribit",
        "--port",
        "0",
        "--symbol-count",
        "12",
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        lines: list[str] = []
        async with asyncio.timeout(DEADLINE):
            while not any("truth" in line for line in lines):
                lines.append((await process.stdout.readline()).decode())
        assert "12 symbols" in lines[0]
        url = next(line.split()[-1] for line in lines if "ws://" in line)
        async with websockets.connect(url) as socket:
            await socket.send('{"jsonrpc":"2.0","id":1,"method":"public/test","params":{}}')
            async with asyncio.timeout(DEADLINE):
                assert json.loads(await socket.recv())["result"]["version"]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), DEADLINE) == 0
