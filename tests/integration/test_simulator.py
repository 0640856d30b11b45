"""The simulated Binance spot venue keeps the venue's protocol, and its own truth."""

import asyncio
import contextlib
import gzip
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import websockets

from services.simulator.capture import CaptureMarket
from services.simulator.generated import GeneratedMarket, GeneratedSettings
from services.simulator.market import Market
from services.simulator.server import SimulatedVenue, VenueSettings

_DEADLINE = 20.0
_CAPTURES = os.environ.get("MARKETPRISM_CAPTURES")


class NaiveBook:
    """A book kept by the venue's published rules and nothing else."""

    def __init__(self) -> None:
        self.bids: dict[Decimal, Decimal] = {}
        self.asks: dict[Decimal, Decimal] = {}
        self.update_id: int | None = None
        self.snapshot_id: int | None = None
        self.waiting: list[dict[str, Any]] = []
        self.stale = False

    def snapshot(self, body: dict[str, Any]) -> None:
        self.bids = {Decimal(price): Decimal(size) for price, size in body["bids"]}
        self.asks = {Decimal(price): Decimal(size) for price, size in body["asks"]}
        self.snapshot_id, self.update_id = body["lastUpdateId"], None
        waiting, self.waiting = self.waiting, []
        for event in waiting:
            self.diff(event)

    def diff(self, event: dict[str, Any]) -> bool:
        """Apply a diff; whether the book changed."""
        if self.snapshot_id is None:
            self.waiting.append(event)
            return False
        if self.update_id is None:
            if event["u"] <= self.snapshot_id:
                return False
            if not event["U"] <= self.snapshot_id + 1 <= event["u"]:
                self.stale = True
                return False
        else:
            assert event["U"] == self.update_id + 1, "a gap where no fault was set"
        for side, levels in ((self.bids, event["b"]), (self.asks, event["a"])):
            for price, size in levels:
                if Decimal(size):
                    side[Decimal(price)] = Decimal(size)
                else:
                    side.pop(Decimal(price), None)
        self.update_id = event["u"]
        return True

    def canonical(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        return (
            [_plain(level) for level in sorted(self.bids.items(), reverse=True)],
            [_plain(level) for level in sorted(self.asks.items())],
        )


def _plain(level: tuple[Decimal, Decimal]) -> tuple[str, str]:
    price, size = (f"{number.normalize():f}" for number in level)
    return price, size


def _generated(**options: Any) -> GeneratedMarket:
    settings = {"depth_rate": 20, "trade_rate": 10, "levels": 300, **options}
    return GeneratedMarket(GeneratedSettings(**settings))


@contextlib.asynccontextmanager
async def _venue(
    market: Market | None = None, **settings: Any
) -> AsyncIterator[tuple[SimulatedVenue, aiohttp.ClientSession]]:
    async with (
        asyncio.timeout(100),
        SimulatedVenue(market or _generated(), settings=VenueSettings(**settings)) as venue,
        aiohttp.ClientSession(venue.rest_url) as session,
    ):
        yield venue, session


async def _json(socket_: websockets.ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(_DEADLINE):
        return json.loads(await socket_.recv())


async def _until(socket_: websockets.ClientConnection, wanted: Any) -> dict[str, Any]:
    async with asyncio.timeout(_DEADLINE):
        while True:
            message = json.loads(await socket_.recv())
            if wanted(message):
                return message


async def _eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_DEADLINE):
        while not condition():  # noqa: ASYNC110 - there is nothing that could be awaited
            await asyncio.sleep(0.01)


async def _drain(socket_: websockets.ClientConnection) -> None:
    while True:
        await _json(socket_)


async def _ask(
    socket_: websockets.ClientConnection, method: str, params: Any = None, number: int = 1
) -> dict[str, Any]:
    request = {"method": method, "id": number} | ({} if params is None else {"params": params})
    await socket_.send(json.dumps(request))
    return await _until(socket_, lambda message: "e" not in message and "stream" not in message)


# Streams ------------------------------------------------------------------------------------


async def test_every_stream_of_a_combined_url_arrives_under_its_name() -> None:
    kinds = ("depth@100ms", "depth", "trade", "aggTrade", "bookTicker", "kline_1m", "ticker")
    wanted = {f"btcusdt@{kind}" for kind in kinds}
    async with _venue() as (venue, _):
        url = f"{venue.ws_url}/stream?streams={'/'.join(wanted)}"
        async with websockets.connect(url) as client:
            while wanted:
                message = await _json(client)
                assert message["data"]["s"] == "BTCUSDT"
                wanted.discard(message["stream"])


async def test_a_raw_url_carries_bare_events_and_also_several() -> None:
    async with _venue() as (venue, _):
        async with websockets.connect(f"{venue.ws_url}/ws/btcusdt@trade") as client:
            assert (await _json(client))["e"] == "trade"
        async with websockets.connect(f"{venue.ws_url}/ws/btcusdt@trade/ethusdt@trade") as client:
            symbols: set[str] = set()
            while len(symbols) < 2:
                symbols.add((await _json(client))["s"])


@pytest.mark.parametrize(("path", "wrapped"), [("/ws", False), ("/stream", True)])
async def test_subscribe_list_and_unsubscribe(path: str, wrapped: bool) -> None:
    async with _venue() as (venue, _), websockets.connect(venue.ws_url + path) as client:
        names = ["btcusdt@trade", "ethusdt@depth@100ms"]
        assert await _ask(client, "SUBSCRIBE", names, 7) == {"result": None, "id": 7}
        assert await _ask(client, "LIST_SUBSCRIPTIONS", None, 8) == {"result": names, "id": 8}
        message = await _until(client, lambda m: m.get("data", m).get("e") == "trade")
        assert ("stream" in message) is wrapped
        assert await _ask(client, "UNSUBSCRIBE", names[:1], 9) == {"result": None, "id": 9}
        await _until(client, lambda m: m.get("data", m).get("e") == "depthUpdate")
        told = venue.stats()["streams"]["btcusdt@trade"]
        await _until(client, lambda m: m.get("data", m).get("e") == "depthUpdate")
        assert venue.stats()["streams"]["btcusdt@trade"] == told, "nobody subscribes it any more"


async def test_a_property_turns_wrapping_on_and_off() -> None:
    async with _venue() as (venue, _), websockets.connect(f"{venue.ws_url}/ws") as client:
        assert (await _ask(client, "GET_PROPERTY", ["combined"]))["result"] is False
        assert (await _ask(client, "SET_PROPERTY", ["combined", True]))["result"] is None
        await _ask(client, "SUBSCRIBE", ["btcusdt@trade"])
        assert (await _json(client))["stream"] == "btcusdt@trade"


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("{", 3, "Invalid JSON"),
        ("[]", 2, "expected an object"),
        ('{"id": 1}', 2, "missing field `method`"),
        ('{"method": "BUY", "id": 1}', 2, "unknown variant `BUY`, expected one of `SUBSCRIBE`"),
        ('{"method": "SUBSCRIBE", "params": "a", "id": 1}', 2, "array of strings"),
        ('{"method": "SUBSCRIBE", "params": [1], "id": 1}', 2, "array of strings"),
        ('{"method": "SUBSCRIBE", "params": [], "id": -1}', 2, "unsigned integer"),
        ('{"method": "SET_PROPERTY", "params": ["colour"], "id": 1}', 0, "Unknown property"),
        ('{"method": "SET_PROPERTY", "params": ["combined", 1], "id": 1}', 1, "Boolean"),
    ],
)
async def test_a_bad_request_is_answered_and_the_connection_lives(
    text: str, code: int, told: str
) -> None:
    async with _venue() as (venue, _), websockets.connect(f"{venue.ws_url}/ws") as client:
        await client.send(text)
        error = (await _json(client))["error"]
        assert error["code"] == code
        assert told in error["msg"]
        assert (await _ask(client, "LIST_SUBSCRIPTIONS"))["result"] == []


async def test_an_unknown_stream_is_acknowledged_and_silent_as_at_the_venue() -> None:
    async with _venue() as (venue, _), websockets.connect(f"{venue.ws_url}/ws") as client:
        assert (await _ask(client, "SUBSCRIBE", ["nope@trade", "BTCUSDT@trade"]))["result"] is None
        await _ask(client, "SUBSCRIBE", ["btcusdt@depth@100ms"])
        for _ in range(5):
            assert (await _json(client))["e"] == "depthUpdate"


async def test_times_can_be_microseconds() -> None:
    async with _venue() as (venue, _):
        url = f"{venue.ws_url}/ws/btcusdt@trade?timeUnit=microsecond"
        async with websockets.connect(url) as client:
            trade = await _json(client)
            assert len(str(trade["E"])) == len(str(trade["T"])) == 16
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"{venue.ws_url}/ws?timeUnit=fortnight")
        assert refused.value.response.status_code == 400


async def test_no_more_streams_than_the_venue_allows() -> None:
    async with _venue(max_streams=3) as (venue, _):
        names = [f"s{number}@trade" for number in range(4)]
        async with websockets.connect(f"{venue.ws_url}/ws") as client:
            assert "more than 3" in (await _ask(client, "SUBSCRIBE", names))["error"]["msg"]
            assert (await _ask(client, "SUBSCRIBE", names[:3]))["result"] is None
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(f"{venue.ws_url}/stream?streams={'/'.join(names)}")


async def test_a_thousand_streams_fit_in_one_url() -> None:
    async with _venue() as (venue, _):
        names = "/".join(f"averylongname{number}usdt@depth@100ms" for number in range(1024))
        async with websockets.connect(f"{venue.ws_url}/stream?streams={names}") as client:
            assert len((await _ask(client, "LIST_SUBSCRIPTIONS"))["result"]) == 1024


async def test_too_many_messages_end_the_connection() -> None:
    async with _venue() as (venue, _), websockets.connect(f"{venue.ws_url}/ws") as client:
        with contextlib.suppress(websockets.ConnectionClosed):
            for number in range(20):
                await client.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": number}))
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await _drain(client)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        await _eventually(lambda: venue.counters["ended: Too many requests"] == 1)


async def test_a_client_without_pongs_is_let_go_and_one_with_pongs_stays() -> None:
    async with _venue(ping_interval_seconds=0.2, pong_timeout_seconds=0.5) as (venue, session):
        silent = await session.ws_connect("/ws/btcusdt@depth@100ms", autoping=False)
        async with websockets.connect(f"{venue.ws_url}/ws/btcusdt@depth@100ms") as good:
            pings = 0
            async with asyncio.timeout(_DEADLINE):
                async for message in silent:
                    pings += message.type is aiohttp.WSMsgType.PING
            assert silent.close_code == 1008
            assert pings >= 2
            assert (await _json(good))["e"] == "depthUpdate"
            await _eventually(lambda: venue.counters["ended: Pong timeout"] == 1)


async def test_life_ends_after_a_notice() -> None:
    life = {"connection_life_seconds": 1.0, "shutdown_notice_seconds": 0.6}
    async with (
        _venue(**life) as (venue, _),
        websockets.connect(f"{venue.ws_url}/stream?streams=btcusdt@depth@100ms") as client,
    ):
        notice = await _until(client, lambda m: m.get("e") == "serverShutdown")
        assert len(str(notice["E"])) == 13
        with pytest.raises(websockets.ConnectionClosed):
            await _drain(client)


async def test_connections_are_limited_and_the_refusal_counted() -> None:
    async with _venue(connects_per_five_minutes=2) as (venue, _):
        for _ in range(2):
            async with websockets.connect(f"{venue.ws_url}/ws"):
                pass
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"{venue.ws_url}/ws")
        assert refused.value.response.status_code == 429
        assert venue.counters["connections refused"] == 1


async def test_a_client_that_does_not_read_is_disconnected_and_others_are_not() -> None:
    market = _generated(depth_rate=1000, changes_per_side=100, symbols=("BTCUSDT",))
    async with _venue(market, max_send_buffer_bytes=200_000) as (venue, session):
        lazy = socket.create_connection(("127.0.0.1", venue.port))
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.sendall(
            b"GET /ws/btcusdt@depth@100ms HTTP/1.1\r\nHost: venue\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        async with session.ws_connect("/ws/btcusdt@depth@100ms") as good:
            async with asyncio.timeout(60):
                while not venue.hub.slow_disconnects:
                    await good.receive_json()
            await good.receive_json()
        lazy.close()
        assert venue.hub.slow_disconnects == 1
        await _eventually(lambda: venue.counters["ended: slow client: send buffer full"] == 1)


# REST ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", -1102),
        ("symbol=", -1102),
        ("symbol=NOPE", -1121),
        ("symbol=btcusdt", -1100),
        ("symbol=BTC%2FUSDT", -1100),
        ("symbol=BTCUSDT&limit=ten", -1100),
        ("symbol=BTCUSDT&limit=-1", -1100),
        ("symbol=BTCUSDT&limit=0", -1130),
        ("symbol=BTCUSDT&depth=5", -1104),
        ("symbol=BTCUSDT&symbol=ETHUSDT", -1101),
    ],
)
async def test_bad_parameters_are_refused_with_the_venues_codes(query: str, code: int) -> None:
    async with _venue() as (_, session), session.get(f"/api/v3/depth?{query}") as answer:
        assert answer.status == 400
        body = await answer.json()
        assert body["code"] == code
        assert set(body) == {"code", "msg"}


async def test_depth_has_so_many_levels_and_weighs_accordingly() -> None:
    market = _generated(levels=1500, symbols=("BTCUSDT",))
    async with _venue(market) as (_, session):
        used = 0
        for query, levels, weight in (
            ("", 100, 5),
            ("&limit=5", 5, 5),
            ("&limit=500", 500, 25),
            ("&limit=1000", 1000, 50),
            ("&limit=9999", None, 250),
        ):
            async with session.get(f"/api/v3/depth?symbol=BTCUSDT{query}") as answer:
                body = await answer.json()
                used += weight
                assert answer.headers["X-MBX-USED-WEIGHT-1M"] == str(used)
            truth = market.book_at("BTCUSDT", body["lastUpdateId"], levels)
            for side in ("bids", "asks"):
                told = [(Decimal(p), Decimal(q)) for p, q in body[side]]
                assert told == [
                    (Decimal(p).scaleb(-8), Decimal(q).scaleb(-8)) for p, q in getattr(truth, side)
                ]
            assert all(
                re.fullmatch(r"\d+\.\d{8}", text) for level in body["bids"] for text in level
            )
        assert len(body["bids"]) > 1000


async def test_weight_runs_out_with_429_and_then_a_ban() -> None:
    async with _venue(weight_limit=100, ban_after=2, ban_seconds=60) as (_, session):
        statuses = []
        for _ in range(6):
            async with session.get("/api/v3/depth?symbol=BTCUSDT&limit=1000") as answer:
                statuses.append(answer.status)
                if answer.status != 200:
                    assert int(answer.headers["Retry-After"]) >= 1
                    assert (await answer.json())["code"] == -1003
        assert statuses == [200, 200, 429, 429, 418, 418]


async def test_small_answers() -> None:
    async with _venue() as (_, session):
        async with session.get("/api/v3/ping") as answer:
            assert await answer.json() == {}
        async with session.get("/api/v3/time") as answer:
            assert len(str((await answer.json())["serverTime"])) == 13
        headers = {"X-MBX-TIME-UNIT": "MICROSECOND"}
        async with session.get("/api/v3/time", headers=headers) as answer:
            assert len(str((await answer.json())["serverTime"])) == 16
        async with session.get("/api/v3/nothing") as answer:
            assert answer.status == 404


async def test_the_listing_tells_ticks_and_lots_and_can_be_narrowed() -> None:
    async with _venue() as (venue, session):
        async with session.get("/api/v3/exchangeInfo") as answer:
            info = await answer.json()
        assert [entry["symbol"] for entry in info["symbols"]] == list(venue.market.symbols)
        entry = info["symbols"][0]
        filters = {f["filterType"]: f for f in entry["filters"]}
        assert (entry["baseAsset"], entry["quoteAsset"], entry["status"]) == (
            "BTC",
            "USDT",
            "TRADING",
        )
        assert filters["PRICE_FILTER"]["tickSize"] == "0.01000000"
        assert filters["LOT_SIZE"]["stepSize"] == "0.00001000"
        async with session.get('/api/v3/exchangeInfo?symbols=["ETHUSDT","BTCUSDT"]') as answer:
            assert len((await answer.json())["symbols"]) == 2
        for query in ("symbol=NOPE", 'symbols=["NOPE"]', "symbols=x", 'symbol=A&symbols=["A"]'):
            async with session.get(f"/api/v3/exchangeInfo?{query}") as answer:
                assert answer.status == 400


async def test_rest_trades_are_those_of_the_stream() -> None:
    async with _venue() as (venue, session):
        async with websockets.connect(f"{venue.ws_url}/ws/btcusdt@trade") as client:
            streamed = [await _json(client) for _ in range(10)]
        async with session.get("/api/v3/trades?symbol=BTCUSDT&limit=1000") as answer:
            told = {trade["id"]: trade for trade in await answer.json()}
        for trade in streamed:
            rest = told[trade["t"]]
            assert (rest["price"], rest["qty"], rest["time"], rest["isBuyerMaker"]) == (
                trade["p"],
                trade["q"],
                trade["T"],
                trade["m"],
            )
        async with session.get("/sim/trades?symbol=BTCUSDT") as answer:
            body = await answer.json()
        assert body["sent"]["btcusdt@trade"]["ids"][:10] == [trade["t"] for trade in streamed]
        assert body["sent"]["btcusdt@trade"]["count"] >= 10


# Truth --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["depth@100ms", "depth"])
async def test_the_sync_rules_lead_to_the_true_book_at_each_id(stream: str) -> None:
    market = _generated(symbols=("BTCUSDT", "XRPUSDT"), depth_rate=50)
    async with _venue(market) as (venue, session):
        url = f"{venue.ws_url}/stream?streams=btcusdt@{stream}/xrpusdt@{stream}"
        async with websockets.connect(url) as client:
            books = {"BTCUSDT": NaiveBook(), "XRPUSDT": NaiveBook()}
            compared = dict.fromkeys(books, 0)
            needed = 60 if stream == "depth@100ms" else 3
            while min(compared.values()) < needed:
                event = (await _json(client))["data"]
                symbol, book = event["s"], books[event["s"]]
                changed = book.diff(event)
                if book.snapshot_id is None:
                    async with session.get(f"/api/v3/depth?symbol={symbol}&limit=5000") as answer:
                        book.snapshot(await answer.json())
                assert not book.stale
                if changed:
                    assert book.canonical() == market.book_at(symbol, event["u"]).canonical()
                    compared[symbol] += 1


async def test_best_prices_agree_with_the_book_at_the_same_id() -> None:
    market = _generated(symbols=("BTCUSDT",))
    async with (
        _venue(market) as (venue, _),
        websockets.connect(f"{venue.ws_url}/ws/btcusdt@bookTicker") as client,
    ):
        for _ in range(20):
            told = await _json(client)
            bids, asks = market.book_at("BTCUSDT", told["u"], 1).canonical()
            assert Decimal(told["b"]) == Decimal(bids[0][0])
            assert Decimal(told["B"]) == Decimal(bids[0][1])
            assert Decimal(told["a"]) == Decimal(asks[0][0])
            assert Decimal(told["A"]) == Decimal(asks[0][1])


async def test_the_truth_is_told_over_http() -> None:
    async with _venue() as (venue, session):
        here = venue.market.update_id("BTCUSDT")
        query = f"symbol=BTCUSDT&update_id={here + 5}&depth=3&wait_seconds=10"
        async with session.get(f"/sim/book?{query}") as answer:
            body = await answer.json()
        truth = venue.market.book_at("BTCUSDT", here + 5, 3)
        assert [tuple(level) for level in body["bids"]] == truth.canonical()[0]
        assert [tuple(level) for level in body["asks"]] == truth.canonical()[1]
        for query, status in (
            ("symbol=NOPE", 404),
            ("symbol=BTCUSDT&update_id=1", 404),
            ("symbol=BTCUSDT&update_id=99999999999999", 404),
            ("symbol=BTCUSDT&update_id=x", 400),
            ("symbol=BTCUSDT&depth=x", 400),
            ("symbol=BTCUSDT&wait_seconds=x", 400),
        ):
            async with session.get(f"/sim/book?{query}") as answer:
                assert answer.status == status
                assert (await answer.json())["error"]
        async with websockets.connect(f"{venue.ws_url}/ws/btcusdt@trade"):
            async with session.get("/sim/connections") as answer:
                (connection,) = (await answer.json())["connections"]
            assert connection["streams"] == ["btcusdt@trade"]
        async with session.get("/sim/stats") as answer:
            assert (await answer.json())["market"]["source"] == "generated"


def _capture(name: str) -> Path:
    if not _CAPTURES:
        pytest.skip("set MARKETPRISM_CAPTURES to the folder of captures")
    return Path(_CAPTURES) / "streams" / f"{name}.jsonl.gz"


def _expected(name: str) -> dict[str, dict[str, Any]]:
    lines = (Path(_CAPTURES or "") / "streams" / "EXPECTED.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    return {line["symbol"]: line for line in told if line["capture"] == f"{name}.jsonl.gz"}


@pytest.mark.parametrize(
    ("name", "speed", "every"),
    [
        ("BINANCE", None, 1),
        ("BINANCE_US", None, 1),
        ("BINANCE", 30.0, 1),
        ("HBT_spot_ethusdt", None, 100),
    ],
)
async def test_a_capture_leads_to_the_books_known_from_elsewhere(
    name: str, speed: float | None, every: int
) -> None:
    market = CaptureMarket(_capture(name), speed=speed)
    expected = _expected(name)
    async with _venue(market) as (venue, session):
        assert set(market.symbols) == set(expected)
        streams = [
            f"{s.lower()}@{kind}" for s in expected for kind in ("depth@100ms", "bookTicker")
        ]
        books = {symbol: NaiveBook() for symbol in expected}
        applied = dict.fromkeys(books, 0)
        bests = {symbol: {} for symbol in expected}
        agreed = 0
        async with websockets.connect(
            f"{venue.ws_url}/stream?streams={'/'.join(streams)}", max_queue=1024
        ) as client:
            for symbol, book in books.items():
                async with session.get(f"/api/v3/depth?symbol={symbol}&limit=5000") as answer:
                    book.snapshot(await answer.json())
            last = {symbol: line["venue_sequence"] for symbol, line in expected.items()}
            while any(books[symbol].update_id != last[symbol] for symbol in books):
                event = (await _json(client))["data"]
                book = books[event["s"]]
                if "e" not in event:
                    bests[event["s"]][event["u"]] = event
                    continue
                if not book.diff(event):
                    continue
                applied[event["s"]] += 1
                if applied[event["s"]] % every == 0:
                    truth = market.book_at(event["s"], event["u"])
                    assert book.canonical() == truth.canonical()
                best = bests[event["s"]].pop(event["u"], None)
                if best is not None:
                    assert Decimal(best["b"]) == max(book.bids)
                    assert Decimal(best["a"]) == min(book.asks)
                    agreed += 1
            async with asyncio.timeout(_DEADLINE):
                await market.finished()
            assert (await _ask(client, "LIST_SUBSCRIPTIONS"))["result"] == streams, "stays open"
        assert agreed
        for symbol, line in expected.items():
            if speed is None:
                assert applied[symbol] == line["applied"], "it waited at each snapshot"
            assert market.book_at(symbol, line["venue_sequence"]).digest() == line["digest"]
        assert market.stats()["malformed_lines"] == 0


async def test_a_captured_frame_and_listing_arrive_unchanged() -> None:
    path = _capture("BINANCE")
    with gzip.open(path, "rt") as lines:
        records = [json.loads(line) for line in lines]
    market = CaptureMarket(path, speed=None)
    wanted = [
        record["data"]
        for record in records
        if record["kind"] == "ws" and "nknusdt@depth" in record["data"][:40]
    ]
    async with _venue(market, inbound_per_second=50) as (venue, session):
        async with websockets.connect(f"{venue.ws_url}/stream") as client:
            async with session.get("/api/v3/depth?symbol=NKNUSDT") as answer:
                assert answer.status == 200
            await client.send('{"method":"SUBSCRIBE","params":["nknusdt@depth@100ms"],"id":1}')
            assert (await _json(client)) == {"result": None, "id": 1}
            got = [await client.recv() for _ in wanted]
        assert got == wanted
        async with session.get("/api/v3/exchangeInfo") as answer:
            body = await answer.text()
        assert body == next(r["data"] for r in records if (r["url"] or "").endswith("Info"))
        async with session.get("/api/v3/exchangeInfo?symbol=NKNUSDT") as answer:
            assert (await answer.json())["symbols"][0]["baseAsset"] == "NKN"


# The process ----------------------------------------------------------------------------------


async def _run(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.simulator",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_the_command_says_where_it_listens_and_an_interrupt_ends_it_at_once() -> None:
    process = await _run("--port", "0", "--symbols", "BTCUSDT,ETHUSDT", "--seed", "3")
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_DEADLINE):
            told = ""
            while "/sim/stats" not in told:
                line = (await process.stdout.readline()).decode()
                assert line, "it ended before it listened"
                told += line
        port = int(re.findall(r"127\.0\.0\.1:(\d+)", told)[0])
        async with websockets.connect(f"ws://127.0.0.1:{port}/ws/btcusdt@depth@100ms") as client:
            await _json(client)
            begun = asyncio.get_running_loop().time()
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(_DEADLINE):
                assert await process.wait() == 0
            assert asyncio.get_running_loop().time() - begun < 5
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--symbols", "x"], 2, "expected a symbol"),
        (["--depth-rate", "0"], 2, "depth_rate"),
        (["--capture", "/nonexistent"], 2, "No such file or directory"),
        (["--capture", __file__, "--speed", "fast"], 2, "--speed"),
        (["--venue", "moon"], 2, "--venue"),
        (["--set", "colour=red"], 2, "colour"),
        (["--set", "weight_limit=few"], 2, "weight_limit"),
        (["--set", "weight_limit"], 2, "NAME=VALUE"),
    ],
)
async def test_a_bad_command_line_is_explained(
    arguments: list[str], status: int, told: str
) -> None:
    process = await _run("--port", "0", *arguments)
    async with asyncio.timeout(_DEADLINE):
        _, errors = await process.communicate()
    assert process.returncode == status
    assert told in errors.decode()


async def test_a_port_that_is_taken_gives_one_clear_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = await _run("--port", str(port))
        async with asyncio.timeout(_DEADLINE):
            _, errors = await process.communicate()
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in errors.decode()
    assert "Traceback" not in errors.decode()
