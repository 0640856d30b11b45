"""Captures of Binance futures are played as they were, with the book that they imply as truth."""

import asyncio
import contextlib
import gzip
import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import websockets

from services.simulator.binance_futures import BinanceCoinM, BinanceFuturesProtocol, BinanceUsdM
from services.simulator.capture import CaptureMarket
from services.simulator.server import SimulatedVenue

_DEADLINE = 30.0
_CAPTURES = os.environ.get("MARKETPRISM_CAPTURES")
_NEEDS_CAPTURES = pytest.mark.skipif(
    _CAPTURES is None, reason="set MARKETPRISM_CAPTURES to the folder of captures"
)


@contextlib.asynccontextmanager
async def _playing(
    protocol: BinanceFuturesProtocol, path: Path
) -> AsyncIterator[tuple[SimulatedVenue, CaptureMarket, aiohttp.ClientSession]]:
    market = CaptureMarket(path, protocol, speed=None)
    async with (
        asyncio.timeout(200),
        SimulatedVenue(market, protocol=protocol) as venue,
        aiohttp.ClientSession(venue.rest_url) as session,
    ):
        yield venue, market, session


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


class _Book:
    """Follows the venue's rules from the first frame and one REST answer."""

    def __init__(self, snapshot: dict[str, Any]) -> None:
        self.id: int = snapshot["lastUpdateId"]
        self.chained = False
        self.sides = [
            {Decimal(price): Decimal(size) for price, size in snapshot[side]}
            for side in ("bids", "asks")
        ]

    def diff(self, event: dict[str, Any]) -> None:
        if not self.chained and event["u"] < self.id:
            return
        if self.chained:
            assert event["pu"] == self.id, "a gap"
        else:
            assert event["U"] <= self.id <= event["u"] or event["pu"] == self.id
        self.chained, self.id = True, event["u"]
        for side, levels in zip(self.sides, (event["b"], event["a"]), strict=True):
            for price, size in levels:
                if Decimal(size):
                    side[Decimal(price)] = Decimal(size)
                else:
                    side.pop(Decimal(price), None)

    def levels(self) -> list[list[tuple[str, str]]]:
        bids, asks = self.sides
        return [
            [(f"{price.normalize():f}", f"{size.normalize():f}") for price, size in side]
            for side in (sorted(bids.items(), reverse=True), sorted(asks.items()))
        ]


@_NEEDS_CAPTURES
@pytest.mark.parametrize(
    ("protocol", "name"),
    [
        (BinanceUsdM(), "BINANCE_FUTURES"),
        (BinanceCoinM(), "HBT_cm_ethusd_perp"),
        (BinanceUsdM(), "HBT_usdm_ethusdt"),
    ],
)
async def test_a_captured_day_ends_with_the_books_that_a_reference_expects(
    protocol: BinanceFuturesProtocol, name: str
) -> None:
    folder = Path(_CAPTURES or "") / "streams"
    path = folder / f"{name}.jsonl.gz"
    expected = [json.loads(line) for line in (folder / "EXPECTED.jsonl").read_text().splitlines()]
    wanted = {each["symbol"]: each for each in expected if each["capture"] == path.name}
    texts = [record["data"] for record in _records(path) if record["kind"] == "ws"]
    texts = [text for text in texts if text.startswith('{"stream"')]
    streams = sorted({text[11 : text.index('"', 11)] for text in texts})
    async with _playing(protocol, path) as (venue, market, session):
        books: dict[str, _Book] = {}
        played = 0
        async with websockets.connect(
            f"{venue.ws_url}/stream?streams={'/'.join(streams)}", max_queue=None
        ) as client:
            for text in texts:
                async with asyncio.timeout(_DEADLINE):
                    frame = await client.recv()
                assert frame == text, "as it was received, and in that order"
                played += 1
                event = json.loads(frame)["data"]
                if event.get("e") != "depthUpdate":
                    continue
                if event["s"] not in books:
                    query = {"symbol": event["s"], "limit": "1000"}
                    async with session.get(f"{protocol.prefix}/depth", params=query) as answer:
                        books[event["s"]] = _Book(await answer.json())
                books[event["s"]].diff(event)
            await asyncio.wait_for(market.finished(), _DEADLINE)
        assert played == len(texts)
        for symbol, each in wanted.items():
            assert books[symbol].id == each["venue_sequence"]
            truth = market.book_at(symbol, each["venue_sequence"])
            assert truth.digest() == each["digest"]
            # Further out the answer to the client, of 1000 levels, may have ended.
            ours = [side[:200] for side in books[symbol].levels()]
            assert ours == [*truth.top(200).canonical()]
        assert market.malformed == 0


def _line(kind: str, url: str, data: object, ts: float) -> str:
    return json.dumps({"ts": ts, "kind": kind, "url": url, "conn": "c", "data": json.dumps(data)})


async def test_what_tells_of_several_or_of_no_symbol_is_played_too(tmp_path: Path) -> None:
    ws, rest = "wss://fstream.binance.com/market/stream", "https://fapi.binance.com"
    order = {"s": "BTCUSDT", "S": "SELL", "q": "1", "p": "2", "ap": "3", "T": 5}
    trade = {"e": "trade", "E": 1, "T": 1, "s": "BTCUSDT", "t": 7, "p": "5.5", "q": "0.5",
             "X": "MARKET", "m": True}  # fmt: skip
    frames = [
        ("btcusdt@trade", trade),
        ("btcusdt@trade", trade | {"t": 8, "X": "ADL"}),
        ("!markPrice@arr@1s", [{"e": "markPriceUpdate", "E": 1, "s": "BTCUSDT", "p": "1"}]),
        ("btcusdt@forceOrder", {"e": "forceOrder", "E": 1, "o": order}),
        ("btcusd@indexPrice", {"e": "indexPriceUpdate", "E": 1, "i": "BTCUSD", "p": "9429.39"}),
        ("btcusdt@ticker", {"e": "24hrTicker", "E": 1, "s": "BTCUSDT", "o": "5", "c": "6"}),
    ]
    interest = {"symbol": "BTCUSDT", "openInterest": "17.5", "time": 3}
    lines = [
        _line("ws", ws, {"stream": stream, "data": data}, 1.0 + number)
        for number, (stream, data) in enumerate(frames)
    ]
    lines += [
        _line("ws", ws, {"result": None, "id": 1}, 9.0),
        _line("http", f"{rest}/fapi/v1/openInterest?symbol=BTCUSDT", interest, 9.5),
        _line("http", f"{rest}/fapi/v1/premiumIndex", [{"symbol": "BTCUSDT"}], 9.6),
    ]
    path = tmp_path / "made.jsonl"
    path.write_text("\n".join(lines))
    async with _playing(BinanceUsdM(), path) as (venue, market, session):
        assert market.malformed == 0
        assert list(market.symbols) == ["BTCUSDT"]
        url = f"{venue.ws_url}/stream?streams={'/'.join(dict(frames))}"
        async with websockets.connect(url) as client:
            for stream, data in frames:
                async with asyncio.timeout(_DEADLINE):
                    assert json.loads(await client.recv()) == {"stream": stream, "data": data}
        query = {"symbol": "BTCUSDT"}
        async with session.get("/fapi/v1/trades", params=query) as answer:
            told = [trade["id"] for trade in await answer.json()]
            assert told == [7], "only trades of the market"
        async with session.get("/fapi/v1/openInterest", params=query) as answer:
            assert await answer.json() == interest
        async with session.get("/fapi/v1/premiumIndex", params=query) as answer:
            assert answer.status == 400, "nobody asked that when it was captured"
            assert (await answer.json())["code"] == -1020


async def test_raw_connections_of_a_capture_tell_their_stream_by_their_address(
    tmp_path: Path,
) -> None:
    base = "wss://dstream.binance.com/ws"
    mark = [{"e": "markPriceUpdate", "E": 1, "s": "BTCUSD_PERP", "p": "1"}]
    lines = [
        _line("ws", f"{base}/btcusd@markPrice@1s", mark, 1.0),
        _line("ws", f"{base}/btcusd_perp@depth@0ms",
              {"e": "depthUpdate", "E": 1, "T": 1, "s": "BTCUSD_PERP", "ps": "BTCUSD", "U": 5,
               "u": 6, "pu": 4, "b": [["2", "3"]], "a": []}, 2.0),
        _line("ws", f"{base}/a@trade/b@trade", [1], 3.0),
    ]  # fmt: skip
    path = tmp_path / "raw.jsonl"
    path.write_text("\n".join(lines))
    async with _playing(BinanceCoinM(), path) as (venue, market, _):
        url = f"{venue.ws_url}/stream?streams=btcusd@markPrice@1s/btcusd_perp@depth@0ms"
        async with websockets.connect(url) as client:
            seen: Counter[str] = Counter()
            while sum(seen.values()) < 2:
                async with asyncio.timeout(_DEADLINE):
                    seen[json.loads(await client.recv())["stream"]] += 1
        assert seen == {"btcusd@markPrice@1s": 1, "btcusd_perp@depth@0ms": 1}
        assert market.book_at("BTCUSD_PERP", 6).canonical() == ([("2", "3")], [])
