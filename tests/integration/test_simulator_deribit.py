"""The simulated Deribit keeps the venue's protocol over sockets, its truth, and its faults."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from decimal import Decimal
from typing import Any, Self

import aiohttp
import pytest
import websockets
from marketprism.market.v1 import common_pb2

from services.collector.venues import base
from services.collector.venues.deribit import Deribit as DeribitAdapter
from services.collector.venues.deribit import DeribitBookUpdate
from services.simulator.deribit import Deribit, DeribitSettings
from services.simulator.server import SimulatedVenue
from services.simulator.venues import generated_market

_DEADLINE = 20.0
_BOOK = "book.BTC-PERPETUAL.100ms"
_TRADES = "trades.BTC-PERPETUAL.100ms"
_OPTION = "BTC-25DEC26-60000-C"


class Client:
    """A JSON-RPC client without any cleverness."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self.socket = socket
        self.notifications: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.heartbeats: list[str] = []
        self.answer_heartbeats = True
        self._replies: dict[object, asyncio.Future[dict[str, Any]]] = {}
        self._stray: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._number = 0
        self._reader = asyncio.create_task(self._read())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader

    async def _read(self) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            async for text in self.socket:
                try:
                    message = json.loads(text, parse_float=Decimal)
                except ValueError:
                    message = {"method": "subscription", "params": {"damaged": text}}
                if message.get("method") == "subscription":
                    self.notifications.put_nowait(message["params"])
                elif message.get("method") == "heartbeat":
                    kind = message["params"]["type"]
                    self.heartbeats.append(kind)
                    if kind == "test_request" and self.answer_heartbeats:
                        await self.send("public/test")
                elif message.get("id") in self._replies:
                    self._replies.pop(message["id"]).set_result(message)
                else:
                    self._stray.put_nowait(message)

    async def send(self, method: str, **params: Any) -> int:
        """Send a request; return its id."""
        self._number += 1
        request = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        await self.socket.send(json.dumps(request))
        return self._number

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a request; return the whole reply."""
        reply = asyncio.get_running_loop().create_future()
        self._replies[self._number + 1] = reply
        await self.send(method, **params)
        async with asyncio.timeout(_DEADLINE):
            return await reply

    async def stray(self) -> dict[str, Any]:
        """Return the next message that answers no request of ours."""
        async with asyncio.timeout(_DEADLINE):
            return await self._stray.get()

    async def subscribe(self, *channels: str) -> list[str]:
        """Subscribe; return the channels which the venue took."""
        reply = await self.ask("public/subscribe", channels=list(channels))
        return list(reply["result"])

    async def next(self, channel: str) -> Any:
        """Return the data of the next notification of a channel; others are let go."""
        async with asyncio.timeout(_DEADLINE):
            while True:
                params = await self.notifications.get()
                if params.get("channel") == channel:
                    return params["data"]

    async def closed(self) -> tuple[int | None, str | None]:
        """(close code, reason) once the connection is over."""
        async with asyncio.timeout(_DEADLINE):
            await self.socket.wait_closed()
        return self.socket.close_code, self.socket.close_reason


class NaiveBook:
    """A book kept by the venue's published rules and nothing else."""

    def __init__(self) -> None:
        self.change_id = -1
        self.sides: dict[str, dict[Decimal, Decimal]] = {"bids": {}, "asks": {}}

    def take(self, data: dict[str, Any]) -> bool:
        """Apply a frame; False when it does not continue the book, which is then left alone."""
        if data["type"] == "snapshot":
            self.sides = {"bids": {}, "asks": {}}
        elif data["prev_change_id"] != self.change_id:
            return False
        self.change_id = data["change_id"]
        for name, side in self.sides.items():
            for _, price, amount in data[name]:
                if Decimal(amount):
                    side[Decimal(price)] = Decimal(amount)
                else:
                    side.pop(Decimal(price), None)
        return True


@contextlib.asynccontextmanager
async def _venue(
    market: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[SimulatedVenue, aiohttp.ClientSession]]:
    protocol = Deribit()
    options: dict[str, Any] = {
        "symbols": ("BTC-PERPETUAL", "ETH-PERPETUAL", "SOL_USDC-PERPETUAL", "BTC-25DEC26", _OPTION),
        "depth_rate": 50.0,
        "trade_rate": 10.0,
        "levels": 80,
        **(market or {}),
    }
    limits = {"subscribe_credits": 10**9, "request_credits": 10**9, **settings}
    async with (
        asyncio.timeout(100),
        SimulatedVenue(
            generated_market(protocol, **options),
            settings=DeribitSettings(**limits),
            protocol=protocol,
        ) as venue,
        aiohttp.ClientSession(venue.rest_url) as session,
    ):
        yield venue, session


@contextlib.asynccontextmanager
async def _client(venue: SimulatedVenue) -> AsyncIterator[Client]:
    url = f"{venue.ws_url}/ws/api/v2"
    async with (
        websockets.connect(url, max_queue=None, max_size=None) as socket,
        Client(socket) as client,
    ):
        yield client


async def _eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_DEADLINE):
        while not condition():  # noqa: ASYNC110 - there is nothing that could be awaited
            await asyncio.sleep(0.01)


async def _equals_truth(session: aiohttp.ClientSession, symbol: str, book: NaiveBook) -> None:
    query = {"symbol": symbol, "update_id": str(book.change_id), "wait_seconds": "10"}
    async with session.get("/sim/book", params=query) as answer:
        assert answer.status == 200, await answer.text()
        truth = await answer.json()
    for side, best_first in (("bids", True), ("asks", False)):
        told = [(Decimal(price), Decimal(amount)) for price, amount in truth[side]]
        assert sorted(book.sides[side].items(), reverse=best_first) == told


async def test_a_subscription_lists_what_was_taken_and_a_snapshot_comes_first() -> None:
    async with _venue() as (venue, session), _client(venue) as client:
        taken = await client.subscribe(_BOOK, "book.NOPE.100ms", "book.BTC-PERPETUAL.50ms", _TRADES)
        assert sorted(taken) == sorted([_BOOK, _TRADES]), "unknown channels are left out in silence"
        book = NaiveBook()
        first = await client.next(_BOOK)
        assert first["type"] == "snapshot"
        assert book.take(first)
        for _ in range(30):
            data = await client.next(_BOOK)
            assert data["type"] == "change"
            assert book.take(data)
            await _equals_truth(session, "BTC-PERPETUAL", book)


async def test_a_second_subscription_is_acknowledged_without_a_second_snapshot() -> None:
    async with _venue() as (venue, _), _client(venue) as client:
        await client.subscribe(_BOOK)
        assert (await client.next(_BOOK))["type"] == "snapshot"
        assert await client.subscribe(_BOOK) == [_BOOK]
        assert {(await client.next(_BOOK))["type"] for _ in range(20)} == {"change"}


async def test_unsubscribing_and_subscribing_again_brings_a_new_snapshot() -> None:
    async with _venue() as (venue, session), _client(venue) as client:
        await client.subscribe(_BOOK)
        await client.next(_BOOK)
        reply = await client.ask("public/unsubscribe", channels=[_BOOK, "quote.ETH-PERPETUAL"])
        assert reply["result"] == [_BOOK]
        while not client.notifications.empty():
            client.notifications.get_nowait()
        await client.subscribe(_BOOK)
        book = NaiveBook()
        snapshot = await client.next(_BOOK)
        assert snapshot["type"] == "snapshot"
        book.take(snapshot)
        assert book.take(await client.next(_BOOK))
        await _equals_truth(session, "BTC-PERPETUAL", book)
        assert (await client.ask("public/unsubscribe_all"))["result"] == "ok"
        assert not any(connection.streams for connection in venue.hub.connections.values())


async def test_errors_have_the_venues_codes_and_leave_the_connection_open() -> None:
    async with _venue() as (venue, _), _client(venue) as client:
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
        raw = await client.ask("public/subscribe", channels=[_BOOK, "book.BTC-PERPETUAL.raw"])
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
        _venue(subscribe_credits=30_000, credits_per_second=1) as (venue, _),
        _client(venue) as client,
    ):
        for number in range(10):
            assert "result" in await client.ask("public/subscribe", channels=[_BOOK]), number
        assert (await client.ask("public/subscribe", channels=[_BOOK]))["error"] == {
            "code": 10028,
            "message": "too_many_requests",
        }
        await client.closed()
        assert venue.counters["sessions out of credits"] == 1


async def test_a_client_that_answers_heartbeats_lives_and_one_that_does_not_is_closed() -> None:
    timings = {"heartbeat_least_seconds": 0.05, "heartbeat_answer_seconds": 0.2}
    async with _venue(**timings) as (venue, _), _client(venue) as good, _client(venue) as bad:
        bad.answer_heartbeats = False
        assert (await good.ask("public/set_heartbeat", interval=0.1))["result"] == "ok"
        assert (await bad.ask("public/set_heartbeat", interval=0.1))["result"] == "ok"
        assert await bad.closed() == (4000, "heartbeat close")
        await _eventually(lambda: good.heartbeats.count("test_request") >= 6)
        assert "heartbeat" in good.heartbeats, "a quiet connection is sent heartbeats too"
        assert good.socket.close_code is None
        assert (await good.ask("public/disable_heartbeat"))["result"] == "ok"


async def test_a_heartbeat_interval_below_ten_seconds_is_refused() -> None:
    async with _venue() as (venue, _), _client(venue) as client:
        reply = await client.ask("public/set_heartbeat", interval=9)
        assert reply["error"]["data"] == {
            "reason": "value must be at least 10",
            "param": "interval",
        }


async def test_a_connection_that_neither_asks_nor_subscribes_is_broken_off() -> None:
    async with (
        _venue(idle_seconds=0.3) as (venue, _),
        _client(venue) as idle,
        _client(venue) as subscribed,
    ):
        await subscribed.subscribe("book.ETH-PERPETUAL.agg2")
        assert (await idle.closed())[0] == 1006
        assert subscribed.socket.close_code is None


async def test_the_thirty_third_connection_is_refused() -> None:
    async with _venue(max_connections=2) as (venue, _), _client(venue), _client(venue):
        with pytest.raises(websockets.InvalidStatus, match="429"):
            async with _client(venue):
                pass


async def test_http_answers_as_the_socket_does() -> None:
    async with _venue() as (venue, session), _client(venue) as client:
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
    async with _venue(market={"trade_rate": 40.0}) as (venue, session), _client(venue) as client:
        await client.subscribe(_TRADES)
        told: list[dict[str, Any]] = []
        while len(told) < 40:
            told += await client.next(_TRADES)
        sequences = [trade["trade_seq"] for trade in told]
        assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
        async with session.get("/sim/trades?symbol=BTC-PERPETUAL") as answer:
            truth = await answer.json()
        assert truth["sent"][_TRADES]["ids"][: len(sequences)] == sequences
        query = f"start_seq={sequences[0]}&end_seq={sequences[-1]}&count=1000&sorting=asc"
        path = "/api/v2/public/get_last_trades_by_instrument?instrument_name=BTC-PERPETUAL&"
        async with session.get(path + query) as answer:
            body = json.loads(await answer.read(), parse_float=Decimal)
        assert body["result"]["trades"] == told


# Faults


async def test_a_dropped_frame_breaks_the_chain_until_a_new_snapshot() -> None:
    async with _venue() as (venue, session), _client(venue) as client:
        await client.subscribe(_BOOK)
        book = NaiveBook()
        book.take(await client.next(_BOOK))
        venue.fault("drop", symbol="BTC-PERPETUAL", stream=_BOOK)
        async with asyncio.timeout(_DEADLINE):
            while book.take(await client.next(_BOOK)):
                pass
        await client.ask("public/unsubscribe", channels=[_BOOK])
        while not client.notifications.empty():
            client.notifications.get_nowait()
        await client.subscribe(_BOOK)
        assert book.take(await client.next(_BOOK))
        assert book.take(await client.next(_BOOK))
        await _equals_truth(session, "BTC-PERPETUAL", book)


async def test_a_dropped_frame_of_trades_is_not_among_those_sent() -> None:
    async with _venue() as (venue, _), _client(venue) as client:
        await client.subscribe(_TRADES)
        fault = venue.fault("drop", stream=_TRADES, skip=1)
        told: list[int] = []
        while not fault.exhausted or len(told) < 10:
            told += [trade["trade_seq"] for trade in await client.next(_TRADES)]
        sent = list(venue.hub.sent[_TRADES].ids)
        assert sent[: len(told)] == told
        assert told != list(range(told[0], told[0] + len(told))), "a hole where the frame was"


@pytest.mark.parametrize("kind", ["duplicate", "reorder"])
async def test_a_repeated_or_swapped_frame_does_not_continue_the_chain(kind: str) -> None:
    async with _venue() as (venue, _), _client(venue) as client:
        await client.subscribe(_BOOK)
        book = NaiveBook()
        book.take(await client.next(_BOOK))
        fault = venue.fault(kind, stream=_BOOK)
        continued = [book.take(await client.next(_BOOK)) for _ in range(30)]
        assert fault.hits == 1
        assert continued.count(False) >= 1


@pytest.mark.parametrize("mode", ["json", "truncate", "types", "empty"])
async def test_a_corrupt_frame_is_one_that_the_adapter_refuses(mode: str) -> None:
    adapter = DeribitAdapter()
    async with (
        _venue() as (venue, _),
        websockets.connect(f"{venue.ws_url}/ws/api/v2", max_queue=None) as socket,
    ):
        await socket.send(adapter.subscribe([_BOOK], 1)[0].frame)
        venue.fault("corrupt", stream=_BOOK, mode=mode, skip=1)
        refused = 0
        for _ in range(12):
            async with asyncio.timeout(_DEADLINE):
                frame = await socket.recv()
            try:
                adapter.decode(frame)
            except base.MalformedFrameError:
                refused += 1
        assert refused == 1


async def test_a_silent_subscription_is_acknowledged_and_then_nothing_comes() -> None:
    async with _venue() as (venue, _), _client(venue) as client:
        venue.fault("silence", stream=_BOOK)
        assert _BOOK in await client.subscribe(_BOOK, "quote.BTC-PERPETUAL")
        for _ in range(50):
            async with asyncio.timeout(_DEADLINE):
                params = await client.notifications.get()
            assert params["channel"] != _BOOK


async def test_a_refused_subscription_is_left_out_of_the_result() -> None:
    async with _venue() as (venue, _), _client(venue) as client:
        venue.fault("refuse_subscription", stream=_BOOK)
        assert await client.subscribe(_BOOK, _TRADES) == [_TRADES]
        assert await client.subscribe(_BOOK) == [_BOOK]


async def test_a_reset_of_the_sequence_is_a_lower_change_id_and_no_snapshot() -> None:
    async with _venue() as (venue, session), _client(venue) as client:
        await client.subscribe(_BOOK)
        book = NaiveBook()
        book.take(await client.next(_BOOK))
        venue.fault("sequence_reset", symbol="BTC-PERPETUAL")
        async with asyncio.timeout(_DEADLINE):
            while book.take(data := await client.next(_BOOK)):
                pass
        assert data["type"] == "change"
        assert data["change_id"] < book.change_id
        await client.ask("public/unsubscribe", channels=[_BOOK])
        while not client.notifications.empty():
            client.notifications.get_nowait()
        await client.subscribe(_BOOK)
        for _ in range(5):
            assert book.take(await client.next(_BOOK))
        await _equals_truth(session, "BTC-PERPETUAL", book)


async def test_left_out_ids_are_a_gap() -> None:
    async with _venue() as (venue, _), _client(venue) as client:
        await client.subscribe(_BOOK)
        book = NaiveBook()
        book.take(await client.next(_BOOK))
        venue.fault("gap", symbol="BTC-PERPETUAL", ids=5)
        assert not all([book.take(await client.next(_BOOK)) for _ in range(10)])


async def test_a_stale_snapshot_is_true_but_not_continued() -> None:
    async with _venue() as (venue, session), _client(venue) as client:
        venue.fault("stale_snapshot", symbol="BTC-PERPETUAL", behind=30)
        await client.subscribe(_BOOK)
        book = NaiveBook()
        assert book.take(await client.next(_BOOK))
        await _equals_truth(session, "BTC-PERPETUAL", book)
        assert not book.take(await client.next(_BOOK))


async def test_a_stale_snapshot_over_http_is_an_old_true_book() -> None:
    async with _venue() as (venue, session):
        venue.fault("stale_snapshot", symbol="BTC-PERPETUAL", behind=50)
        path = "/api/v2/public/get_order_book?instrument_name=BTC-PERPETUAL&depth=10"
        async with session.get(path) as answer:
            old = (await answer.json())["result"]
        assert old["change_id"] <= venue.market.update_id("BTC-PERPETUAL") - 50


async def test_a_refused_heartbeat_is_a_burst_and_a_close() -> None:
    timings = {"heartbeat_least_seconds": 0.05, "heartbeat_answer_seconds": 0.3}
    async with _venue(**timings) as (venue, _), _client(venue) as client:
        await client.ask("public/set_heartbeat", interval=0.1)
        await _eventually(lambda: len(client.heartbeats) >= 4)
        seen = len(client.heartbeats)
        fault = venue.fault("heartbeat_refusal")
        assert await client.closed() == (4000, "heartbeat close")
        assert fault.hits == 1
        assert client.heartbeats[seen:].count("test_request") >= 5
        async with _client(venue) as again:
            await again.ask("public/set_heartbeat", interval=0.1)
            await _eventually(lambda: again.heartbeats.count("test_request") >= 6)


@pytest.mark.parametrize(("abort", "code"), [(False, 1001), (True, 1006)])
async def test_a_cut_ends_the_connection(abort: bool, code: int) -> None:
    async with _venue() as (venue, _), _client(venue) as client:
        await client.subscribe(_BOOK)
        venue.fault("cut", symbol="BTC-PERPETUAL", abort=abort)
        assert (await client.closed())[0] == code


async def test_delayed_frames_keep_their_order() -> None:
    async with _venue() as (venue, _), _client(venue) as client:
        await client.subscribe(_BOOK)
        book = NaiveBook()
        book.take(await client.next(_BOOK))
        fault = venue.fault("delay", stream=_BOOK, seconds=0.2)
        assert all([book.take(await client.next(_BOOK)) for _ in range(20)])
        assert fault.hits == 1


async def test_a_maintenance_closes_and_refuses_everything_for_its_time() -> None:
    async with _venue() as (venue, session), _client(venue) as client:
        venue.fault("maintenance", seconds=60)
        assert (await client.closed())[0] == 1001
        with pytest.raises(websockets.InvalidStatus, match="503"):
            async with _client(venue):
                pass
        async with session.get("/api/v2/public/get_time") as answer:
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == 11051
            assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize(
    ("kind", "status", "code"), [("rest_429", 429, 10028), ("rest_418", 418, 10028)]
)
async def test_http_limits_are_told_with_a_time_to_wait(kind: str, status: int, code: int) -> None:
    async with _venue() as (venue, session):
        venue.fault(kind, path="/api/v2/public/get_time", retry_after=3)
        async with session.get("/api/v2/public/get_time") as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (status, "3")
            assert (await answer.json())["error"]["code"] == code
        async with session.get("/api/v2/public/get_time") as answer:
            assert answer.status == 200


async def test_http_errors_and_slowness_do_what_they_say() -> None:
    async with _venue() as (venue, session):
        venue.fault("rest_5xx", status=502)
        async with session.get("/api/v2/public/get_time") as answer:
            assert answer.status == 502
        venue.fault("rest_slow", seconds=0.2)
        begun = asyncio.get_running_loop().time()
        async with session.get("/api/v2/public/get_time") as answer:
            assert answer.status == 200
        assert asyncio.get_running_loop().time() - begun >= 0.2


# The collector's adapter


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
        _venue(market={"trade_rate": 300.0}, heartbeat_least_seconds=0.05) as (venue, session),
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

        async with asyncio.timeout(_DEADLINE):
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
        async with asyncio.timeout(_DEADLINE):
            while not isinstance(adapter.decode(await socket.recv()), base.InstrumentsChanged):
                pass


async def test_the_collectors_adapter_reads_books_and_trades_over_http() -> None:
    adapter = DeribitAdapter()
    async with _venue() as (venue, session):
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
        async with asyncio.timeout(_DEADLINE):
            while not any("truth" in line for line in lines):
                lines.append((await process.stdout.readline()).decode())
        assert "12 symbols" in lines[0]
        url = next(line.split()[-1] for line in lines if "ws://" in line)
        async with websockets.connect(url) as socket:
            await socket.send('{"jsonrpc":"2.0","id":1,"method":"public/test","params":{}}')
            async with asyncio.timeout(_DEADLINE):
                assert json.loads(await socket.recv())["result"]["version"]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), _DEADLINE) == 0
