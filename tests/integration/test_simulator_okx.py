"""Simulated OKX over real sockets: its protocol, its books and the truth, its faults."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
import websockets

from services.collector.venues.base import Acknowledgement, Selection, VenueFault
from services.collector.venues.okx import Okx as Adapter
from services.simulator.faults import FaultError
from services.simulator.okx import Okx
from services.simulator.okx_frames import OkxFrames
from services.simulator.okx_settings import OkxSettings
from services.simulator.server import SimulatedVenue
from services.simulator.venues import generated_market

_DEADLINE = 20.0
_SYMBOLS = ("BTC-USDT", "BTC-USDT-SWAP", "BTC-USD-SWAP", "BTC-USD-301225-65000-C")


@contextlib.asynccontextmanager
async def _venue(
    symbols: tuple[str, ...] = _SYMBOLS, market: dict[str, object] | None = None, **settings: Any
) -> AsyncIterator[tuple[SimulatedVenue, aiohttp.ClientSession]]:
    protocol = Okx()
    options = {"depth_rate": 40, "trade_rate": 10, "levels": 600, **(market or {})}
    made = generated_market(protocol, symbols=symbols, **options)
    given = {"connects_per_second": 50, **settings}
    async with (
        asyncio.timeout(100),
        SimulatedVenue(made, settings=OkxSettings(**given), protocol=protocol) as venue,
        aiohttp.ClientSession(venue.rest_url) as session,
    ):
        yield venue, session


def _connect(venue: SimulatedVenue, path: str = "public") -> websockets.connect:
    return websockets.connect(f"{venue.ws_url}/ws/v5/{path}", max_queue=None, ping_interval=None)


async def _recv(client: websockets.ClientConnection) -> Any:
    async with asyncio.timeout(_DEADLINE):
        text = await client.recv()
        assert isinstance(text, str)
        return text if text == "pong" else json.loads(text)


async def _ask(
    client: websockets.ClientConnection, *args: dict[str, str], op: str = "subscribe"
) -> None:
    await client.send(json.dumps({"op": op, "args": args}))


async def _books(client: websockets.ClientConnection, *symbols: str) -> None:
    await _ask(client, *({"channel": "books", "instId": symbol} for symbol in symbols))


async def _answer(client: websockets.ClientConnection) -> dict[str, Any]:
    """The next message that is no push of data."""
    while True:
        message = await _recv(client)
        if "data" not in message:
            return message


async def _pushed(client: websockets.ClientConnection, channel: str, **arg: str) -> dict[str, Any]:
    while True:
        message = await _recv(client)
        wanted = {"channel": channel, **arg}
        if "data" in message and wanted.items() <= message["arg"].items():
            return message


async def _eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_DEADLINE):
        while not condition():  # noqa: ASYNC110 - there is nothing that could be awaited
            await asyncio.sleep(0.01)


class _Book:
    """A client's book, which notices every break of the chain."""

    def __init__(self, venue: SimulatedVenue, symbol: str) -> None:
        self.venue, self.symbol = venue, symbol
        self.sides: dict[str, dict[Decimal, str]] = {}
        self.sequence: int | None = None
        self.breaks: list[tuple[int, int]] = []
        self.resets = 0
        self.updates = 0
        self.keepalives = 0

    def take(self, message: dict[str, Any]) -> None:
        (book,) = message["data"]
        if message["action"] == "snapshot":
            assert book["prevSeqId"] == -1
            self.sides = {"bids": {}, "asks": {}}
        else:
            if book["prevSeqId"] != self.sequence:
                self.breaks.append((self.sequence or 0, book["prevSeqId"]))
            if book["seqId"] < book["prevSeqId"]:
                self.resets += 1
            if book["seqId"] == book["prevSeqId"]:
                assert not book["bids"]
                assert not book["asks"]
                self.keepalives += 1
            self.updates += 1
        for name, side in self.sides.items():
            for price, size, deprecated, orders in book[name]:
                assert deprecated == "0"
                assert (size == "0") == (orders == "0")
                if size == "0":
                    known = side.pop(Decimal(price), None)
                    assert known is not None or self.breaks, "deletes what was never told"
                else:
                    side[Decimal(price)] = size
        self.sequence = book["seqId"]

    def check(self) -> None:
        assert self.sequence is not None
        truth = self.venue.market.book_at(self.symbol, self.sequence, 400)
        bids, asks = truth.canonical()
        assert {Decimal(price): size for price, size in bids} == self.sides["bids"]
        assert {Decimal(price): size for price, size in asks} == self.sides["asks"]


async def _follow(
    client: websockets.ClientConnection, books: dict[str, _Book], updates: int
) -> None:
    """Feed books until each has had that many updates more; each is true whenever it is told."""
    goal = {symbol: book.updates + updates for symbol, book in books.items()}
    while any(books[symbol].updates < most for symbol, most in goal.items()):
        message = await _recv(client)
        if message.get("arg", {}).get("channel") == "books" and "data" in message:
            book = books[message["arg"]["instId"]]
            book.take(message)
            if not book.breaks:
                book.check()


async def test_books_of_every_kind_chain_from_their_snapshot_and_equal_the_truth() -> None:
    async with _venue() as (venue, session), _connect(venue) as client:
        books = {symbol: _Book(venue, symbol) for symbol in _SYMBOLS}
        await _books(client, *_SYMBOLS)
        await _follow(client, books, 60)
        assert all(not book.breaks for book in books.values())
        for symbol, book in books.items():
            async with session.get(
                "/sim/book", params={"symbol": symbol, "update_id": book.sequence, "depth": 400}
            ) as answer:
                told = await answer.json()
            assert {Decimal(price): size for price, size in told["bids"]} == book.sides["bids"]
            assert told["contract_size"] == (
                {"BTC-USDT-SWAP": "0.01", "BTC-USD-SWAP": "100"}.get(symbol, "1")
            )
            assert len(book.sides["bids"]) <= 400


async def test_connections_that_subscribe_at_any_time_get_a_snapshot_that_chains() -> None:
    async with _venue(("BTC-USDT",)) as (venue, _), contextlib.AsyncExitStack() as stack:
        for _number in range(5):
            client = await stack.enter_async_context(_connect(venue))
            await _books(client, "BTC-USDT")
            book = _Book(venue, "BTC-USDT")
            await _follow(client, {"BTC-USDT": book}, 7)
            assert not book.breaks


async def test_each_argument_is_acknowledged_and_the_snapshot_follows_its_own() -> None:
    async with _venue() as (venue, _), _connect(venue) as client:
        args = [
            {"channel": "books", "instId": "BTC-USDT"},
            {"channel": "trades", "instId": "NOPE-USDT"},
            {"channel": "trades", "instId": "BTC-USDT"},
        ]
        await client.send(json.dumps({"id": "7", "op": "subscribe", "args": args}))
        first = await _recv(client)
        assert first == {
            "id": "7", "event": "subscribe", "arg": args[0], "connId": first["connId"],
        }  # fmt: skip
        second = await _recv(client)
        assert (second["arg"], second["action"]) == (args[0], "snapshot")
        refused, taken = await _answer(client), await _answer(client)
        assert (refused["event"], refused["code"], refused["id"]) == ("error", "60018", "7")
        assert "NOPE-USDT" in refused["msg"]
        assert (taken["event"], taken["arg"]) == ("subscribe", args[2])


async def test_every_channel_tells_something_that_the_collector_understands() -> None:
    public = [
        *({"channel": channel, "instId": "BTC-USDT-SWAP"} for channel in (
            "books", "books5", "bbo-tbt", "trades", "tickers", "mark-price", "funding-rate",
            "open-interest",
        )),
        {"channel": "index-tickers", "instId": "BTC-USDT"},
        {"channel": "opt-summary", "instFamily": "BTC-USD"},
        {"channel": "liquidation-orders", "instType": "SWAP"},
        {"channel": "instruments", "instType": "SWAP"},
    ]  # fmt: skip
    business = [
        {"channel": channel, "instId": "BTC-USDT-SWAP"}
        for channel in ("trades-all", "candle1m", "candle5m", "candle1Dutc")
    ]
    adapter = Adapter()
    async with _venue(market={"trade_rate": 80}) as (venue, _):
        for path, args in (("public", public), ("business", business)):
            async with _connect(venue, path) as client:
                await _ask(client, *args)
                missing = [json.dumps(arg) for arg in args]
                while missing:
                    async with asyncio.timeout(_DEADLINE):
                        text = await client.recv()
                    adapter.decode(text)
                    message = json.loads(text)
                    assert message.get("event") != "error", message
                    if "data" in message and json.dumps(message["arg"]) in missing:
                        missing.remove(json.dumps(message["arg"]))


async def test_all_trades_are_told_one_by_one_and_by_order() -> None:
    async with (
        _venue(("BTC-USDT-SWAP",)) as (venue, session),
        _connect(venue) as public,
        _connect(venue, "business") as business,
    ):
        await _ask(public, {"channel": "trades", "instId": "BTC-USDT-SWAP"})
        await _ask(business, {"channel": "trades-all", "instId": "BTC-USDT-SWAP"})
        each = [(await _pushed(business, "trades-all"))["data"][0] for _ in range(40)]
        ids = [int(trade["tradeId"]) for trade in each]
        assert ids == list(range(ids[0], ids[0] + 40))
        sizes = {trade["tradeId"]: Decimal(trade["sz"]) for trade in each}
        compared = 0
        while compared < 5:
            (order,) = (await _pushed(public, "trades"))["data"]
            last, count = int(order["tradeId"]), int(order["count"])
            if all(str(number) in sizes for number in range(last - count + 1, last + 1)):
                parts = [sizes[str(number)] for number in range(last - count + 1, last + 1)]
                assert sum(parts) == Decimal(order["sz"])
                compared += 1
        async with session.get(
            "/api/v5/market/history-trades",
            params={"instId": "BTC-USDT-SWAP", "after": str(ids[20]), "limit": "5"},
        ) as answer:
            past = (await answer.json())["data"]
        assert [int(trade["tradeId"]) for trade in past] == [ids[20] - n for n in range(1, 6)]


async def test_the_best_prices_are_those_of_the_book_at_their_sequence() -> None:
    async with _venue(("BTC-USDT",)) as (venue, _), _connect(venue) as client:
        await _ask(client, {"channel": "bbo-tbt", "instId": "BTC-USDT"})
        for _number in range(20):
            (best,) = (await _pushed(client, "bbo-tbt"))["data"]
            bids, asks = venue.market.book_at("BTC-USDT", best["seqId"], 1).canonical()
            assert [tuple(level[:2]) for level in best["bids"]] == bids
            assert [tuple(level[:2]) for level in best["asks"]] == asks


async def test_the_checksum_fits_when_it_is_switched_on_and_not_when_it_is_made_wrong() -> None:
    async with _venue(("BTC-USDT",), checksum=True) as (venue, _), _connect(venue) as client:
        await _books(client, "BTC-USDT")
        book, fits = _Book(venue, "BTC-USDT"), []
        fault = None
        while len(fits) < 60:
            message = await _recv(client)
            if "action" not in message:
                continue
            (told,) = message["data"]
            book.take(message)
            frames = OkxFrames()
            truth = venue.market.book_at("BTC-USDT", told["seqId"], 25)
            bids, asks = truth.bids, truth.asks
            fits.append(told["checksum"] == frames.checksum(bids, asks))
            if len(fits) == 30:
                fault = venue.fault("wrong_checksum", symbol="BTC-USDT")
        assert fault is not None
        assert fault.hits == 1
        assert fits.count(False) == 1
        assert not book.breaks


async def test_a_book_without_changes_is_told_again_every_minute() -> None:
    quiet = {"depth_rate": 0.01, "trade_rate": 0}
    async with (
        _venue(("BTC-USDT",), quiet, keepalive_seconds=0.2) as (venue, _),
        _connect(venue) as client,
    ):
        await _books(client, "BTC-USDT")
        book = _Book(venue, "BTC-USDT")
        await _follow(client, {"BTC-USDT": book}, 3)
        assert (book.keepalives, book.breaks) == (3, [])


async def test_pings_are_answered_in_text_and_silence_ends_the_connection() -> None:
    async with _venue(client_silence_seconds=0.5) as (venue, _), _connect(venue) as client:
        begun = time.monotonic()
        while time.monotonic() < begun + 1.2:
            await client.send("ping")
            assert await _recv(client) == "pong"
            await asyncio.sleep(0.1)
        with pytest.raises(websockets.ConnectionClosed):
            await _recv(client)
        assert client.close_code == 4004


async def test_a_refused_heartbeat_is_no_pong_and_what_follows_is() -> None:
    async with _venue() as (venue, _), _connect(venue) as client:
        fault = venue.fault("heartbeat_refusal")
        await client.send("ping")
        await _eventually(lambda: fault.hits == 1)
        await client.send("ping")
        assert await _recv(client) == "pong"


async def test_a_silent_subscription_is_acknowledged_and_has_no_snapshot() -> None:
    async with _venue() as (venue, _), _connect(venue) as client:
        venue.fault("silence", stream="books:*", count=1)
        await _books(client, "BTC-USDT")
        assert (await _answer(client))["event"] == "subscribe"
        await _books(client, "BTC-USD-SWAP")
        book = _Book(venue, "BTC-USD-SWAP")
        await _follow(client, {"BTC-USD-SWAP": book}, 5)
        await _ask(client, {"channel": "books", "instId": "BTC-USDT"}, op="unsubscribe")
        assert (await _answer(client))["event"] == "unsubscribe"
        await _books(client, "BTC-USDT")
        assert (await _pushed(client, "books", instId="BTC-USDT"))["action"] == "snapshot"


async def test_a_refused_subscription_has_the_venues_error() -> None:
    async with _venue() as (venue, _), _connect(venue) as client:
        venue.fault("refuse_subscription", symbol="BTC-USDT")
        await _books(client, "BTC-USDT")
        assert (await _answer(client))["code"] == "60018"
        await _books(client, "BTC-USDT")
        assert (await _answer(client))["event"] == "subscribe"


@pytest.mark.parametrize(
    ("kind", "options", "breaks"),
    [
        ("drop", {}, 1),
        ("duplicate", {}, 1),
        ("reorder", {}, 3),
        ("gap", {"symbol": "BTC-USDT"}, 1),
        ("sequence_reset", {"symbol": "BTC-USDT"}, 0),
    ],
)
async def test_faults_of_the_sequence_break_the_chain_as_they_should(
    kind: str, options: dict[str, object], breaks: int
) -> None:
    async with _venue(("BTC-USDT",)) as (venue, _), _connect(venue) as client:
        await _books(client, "BTC-USDT")
        book = _Book(venue, "BTC-USDT")
        await _follow(client, {"BTC-USDT": book}, 3)
        fault = venue.fault(kind, **options)
        goal = book.updates + 25
        while book.updates < goal:
            message = await _recv(client)
            if "action" in message:
                book.take(message)
        assert fault.hits == 1
        assert len(book.breaks) == breaks
        assert book.resets == (kind == "sequence_reset")
        if not breaks:
            book.check()


async def test_a_book_is_had_anew_by_unsubscribing_and_subscribing() -> None:
    async with _venue(("BTC-USDT",)) as (venue, _), _connect(venue) as client:
        await _books(client, "BTC-USDT")
        book = _Book(venue, "BTC-USDT")
        await _follow(client, {"BTC-USDT": book}, 3)
        await _ask(client, {"channel": "books", "instId": "BTC-USDT"}, op="unsubscribe")
        while (await _recv(client)).get("event") != "unsubscribe":
            pass
        await _books(client, "BTC-USDT")
        again = _Book(venue, "BTC-USDT")
        await _follow(client, {"BTC-USDT": again}, 3)
        assert not again.breaks


async def test_a_stale_snapshot_on_the_stream_is_true_but_does_not_chain() -> None:
    async with _venue(("BTC-USDT",)) as (venue, _), _connect(venue) as client:
        fault = venue.fault("stale_snapshot", symbol="BTC-USDT", behind=20)
        await _books(client, "BTC-USDT")
        book = _Book(venue, "BTC-USDT")
        book.take(await _pushed(client, "books"))
        book.check()
        assert fault.hits == 1
        book.take(await _pushed(client, "books"))
        assert len(book.breaks) == 1


async def test_a_maintenance_is_announced_and_closes_everything_for_a_while() -> None:
    async with _venue() as (venue, session), _connect(venue) as client:
        venue.fault("maintenance", seconds=1.0, notice=0.2)
        notice = await _recv(client)
        assert (notice["event"], notice["code"]) == ("notice", "64008")
        with pytest.raises(websockets.ConnectionClosed):
            await _recv(client)
        async with session.get("/api/v5/public/time") as answer:
            assert (answer.status, (await answer.json())["code"]) == (503, "50001")
        with pytest.raises(websockets.InvalidStatus):
            await _connect(venue)
        async with asyncio.timeout(_DEADLINE):
            while True:
                async with session.get("/api/v5/public/time") as answer:
                    if answer.status == 200:
                        break
                await asyncio.sleep(0.05)
        async with _connect(venue) as again:
            await again.send("ping")
            assert await _recv(again) == "pong"


async def test_limits_are_the_venues_own() -> None:
    async with (
        _venue(operations_per_hour=2, connects_per_second=1) as (venue, session),
        _connect(venue) as client,
    ):
        with pytest.raises(websockets.InvalidStatus):
            await _connect(venue)
        for _number in range(3):
            await _ask(client, {"channel": "tickers", "instId": "BTC-USDT"})
        answers = [await _answer(client) for _ in range(3)]
        assert [answer.get("code") for answer in answers] == [None, None, "60014"]
        statuses = []
        for _number in range(8):
            path = "/api/v5/rubik/stat/contracts/long-short-account-ratio-contract"
            async with session.get(path, params={"instId": "BTC-USDT-SWAP"}) as answer:
                body = await answer.json()
                statuses.append((answer.status, body["code"]))
        assert statuses == [(200, "0")] * 5 + [(429, "50011")] * 3


@pytest.mark.parametrize(
    ("kind", "options", "status", "code"),
    [
        ("rest_429", {}, 429, "50011"),
        ("rest_418", {}, 418, "50011"),
        ("rest_5xx", {"status": 500}, 500, "50026"),
        ("rest_5xx", {"status": 503}, 503, "50001"),
    ],
)
async def test_rest_faults_are_told_in_the_venues_words(
    kind: str, options: dict[str, object], status: int, code: str
) -> None:
    async with _venue() as (venue, session):
        venue.fault(kind, **options)
        async with session.get("/api/v5/public/instruments?instType=SPOT") as answer:
            assert (answer.status, (await answer.json())["code"]) == (status, code)
        async with session.get("/api/v5/public/instruments?instType=SPOT") as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("public/instruments", 400, "50014"),
        ("public/instruments?instType=NOPE", 400, "51000"),
        ("public/instruments?instType=OPTION", 400, "50015"),
        ("market/books?instId=NOPE", 200, "51001"),
        ("market/books?instId=BTC-USDT&sz=x", 400, "51000"),
        ("public/funding-rate?instId=BTC-USDT", 200, "51001"),
        ("market/candles?instId=BTC-USDT&bar=7m", 400, "51000"),
        ("nothing", 404, "404"),
    ],
)
async def test_a_bad_request_has_the_venues_error(query: str, status: int, code: str) -> None:
    async with _venue() as (_, session), session.get(f"/api/v5/{query}") as answer:
        assert (answer.status, (await answer.json())["code"]) == (status, code)


async def test_rest_tells_what_the_collector_asks_for() -> None:
    adapter = Adapter()
    async with _venue() as (venue, session):
        specs = []
        for request in adapter.instrument_requests():
            async with session.get(request.path, params=request.query) as answer:
                if answer.status == 200:
                    specs += adapter.decode_instruments(await answer.read())
        assert {spec.native_symbol for spec in specs} == set(_SYMBOLS)
        request = adapter.snapshot_request("BTC-USDT", 400)
        async with session.get(request.path, params=request.query) as answer:
            book = adapter.decode_snapshot(await answer.read(), request)
        truth = venue.market.book_at("BTC-USDT", book.last, 400).canonical()
        assert (list(book.bids), list(book.asks)) == truth
        for path in (
            "long-short-account-ratio-contract",
            "long-short-account-ratio-contract-top-trader",
            "long-short-position-ratio-contract-top-trader",
        ):
            async with session.get(
                f"/api/v5/rubik/stat/contracts/{path}",
                params={"instId": "BTC-USDT-SWAP", "period": "5m", "limit": "3"},
            ) as answer:
                rows = (await answer.json())["data"]
            times = [int(row[0]) for row in rows]
            assert times == [times[0] - n * 300_000 for n in range(3)]
            assert all(Decimal(row[1]) > 0 for row in rows)


async def test_instruments_come_change_and_go_while_it_runs() -> None:
    async with _venue() as (venue, session), _connect(venue) as client:
        await _ask(client, {"channel": "instruments", "instType": "SPOT"})
        listing = (await _pushed(client, "instruments"))["data"]
        assert [entry["instId"] for entry in listing] == ["BTC-USDT"]
        async with session.post("/sim/instruments", json={"symbol": "币安人生-USDT"}) as answer:
            assert answer.status == 201
        (entry,) = (await _pushed(client, "instruments"))["data"]
        assert (entry["instId"], entry["state"]) == ("币安人生-USDT", "live")
        await _books(client, "币安人生-USDT")
        book = _Book(venue, "币安人生-USDT")
        await _follow(client, {"币安人生-USDT": book}, 5)
        async with session.patch(
            "/sim/instruments", params={"symbol": "币安人生-USDT"}, json={"tick": "0.05"}
        ) as answer:
            assert answer.status == 200
        (entry,) = (await _pushed(client, "instruments"))["data"]
        assert entry["tickSz"] == "0.05"
        async with session.delete("/sim/instruments", params={"symbol": "币安人生-USDT"}) as answer:
            assert answer.status == 200
        (entry,) = (await _pushed(client, "instruments"))["data"]
        assert entry["state"] == "expired"
        async with session.get("/api/v5/public/instruments?instType=SPOT") as answer:
            assert [e["instId"] for e in (await answer.json())["data"]] == ["BTC-USDT"]
        await _ask(client, {"channel": "trades", "instId": "币安人生-USDT"})
        assert (await _answer(client))["event"] == "error"
        assert venue.market.book_at("币安人生-USDT", book.sequence or 0) is not None


async def test_an_expiry_that_is_reached_ends_the_instrument() -> None:
    async with _venue() as (venue, session), _connect(venue) as client:
        await _ask(client, {"channel": "instruments", "instType": "FUTURES"})
        await _pushed(client, "instruments")
        async with session.post(
            "/sim/instruments", json={"symbol": "BTC-USD-301225", "expiry_seconds": 1}
        ) as answer:
            assert answer.status == 201
        states = [(await _pushed(client, "instruments"))["data"][0]["state"] for _ in range(2)]
        assert states == ["live", "expired"]
        assert "BTC-USD-301225" not in venue.market.symbols


@pytest.mark.parametrize(
    ("method", "query", "body", "status"),
    [
        ("POST", "", {"symbol": "BTCUSDT"}, 400),
        ("POST", "", {"symbol": "BTC-USDT"}, 409),
        ("POST", "", {"symbol": "X-USDT", "tick": "-1"}, 400),
        ("POST", "", {"symbol": "X-USDT", "nope": 1}, 400),
        ("POST", "", [], 400),
        ("PATCH", "?symbol=NOPE", {"tick": "1"}, 404),
        ("PATCH", "", {"tick": "1"}, 400),
        ("DELETE", "?symbol=NOPE", None, 404),
    ],
)
async def test_a_change_of_the_list_that_makes_no_sense_is_refused(
    method: str, query: str, body: object, status: int
) -> None:
    async with (
        _venue() as (_, session),
        session.request(method, f"/sim/instruments{query}", json=body) as answer,
    ):
        assert answer.status == status
        assert "error" in await answer.json()


async def test_faults_name_symbols_that_there_are() -> None:
    async with _venue() as (venue, _):
        with pytest.raises(FaultError, match="unknown symbol"):
            venue.fault("sequence_reset", symbol="NOPE")


async def test_everything_that_the_collector_asks_for_is_there() -> None:
    adapter = Adapter()
    selection = Selection(kinds=adapter.kinds, candle_intervals=(60, 300, 3600))
    async with _venue(market={"trade_rate": 60}, rest_limits=False) as (venue, session):
        specs = []
        for request in adapter.instrument_requests():
            async with session.get(request.path, params=request.query) as answer:
                specs += adapter.decode_instruments(await answer.read())
        assert {spec.native_symbol for spec in specs} == set(_SYMBOLS)
        wanted = [
            *(each for spec in specs for each in adapter.subscriptions(spec, selection)),
            *adapter.shared_subscriptions(specs, selection),
        ]
        # Liquidations are rare, and these types of instruments have few trades or none.
        rare = ("liquidation-orders:",)
        for route in {each.route for each in wanted}:
            topics = [each.topic for each in wanted if each.route == route]
            url = adapter.route_url(venue.ws_url, route)
            async with websockets.connect(url, max_queue=None, ping_interval=None) as client:
                for request in adapter.subscribe(topics, 1):
                    await client.send(request.frame)
                missing = {topic for topic in topics if not topic.startswith(rare)}
                acknowledged: set[str] = set()
                while missing or len(acknowledged) < len(topics):
                    async with asyncio.timeout(_DEADLINE):
                        text = await client.recv()
                    message = adapter.decode(text)
                    assert not isinstance(message, VenueFault), message
                    if isinstance(message, Acknowledgement):
                        acknowledged.update(message.topics or ())
                    told = json.loads(text)
                    if "data" in told:
                        arg = told["arg"]
                        key = arg.get("instId") or arg.get("instFamily") or arg.get("instType")
                        missing.discard(f"{arg['channel']}:{key}")
        polls = adapter.polls(specs, selection)
        assert polls
        for poll in polls:
            async with session.get(poll.request.path, params=poll.request.query) as answer:
                assert adapter.decode_poll(await answer.read(), poll), poll
