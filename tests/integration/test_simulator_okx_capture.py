"""Captures of OKX and of Binance's futures are played as they were, and lead to the known books."""

import asyncio
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import websockets

from services.simulator.binance_futures import BinanceCoinM, BinanceUsdM
from services.simulator.capture import CaptureMarket
from services.simulator.okx import Okx
from services.simulator.okx_settings import OkxSettings
from services.simulator.protocol import VenueProtocol
from services.simulator.server import SimulatedVenue

_CAPTURES = os.environ.get("MARKETPRISM_CAPTURES")
_DEADLINE = 60.0

pytestmark = pytest.mark.skipif(
    not _CAPTURES, reason="set MARKETPRISM_CAPTURES to the folder of captures"
)


def _path(name: str) -> Path:
    return Path(_CAPTURES or "") / "streams" / f"{name}.jsonl.gz"


def _expected(name: str) -> list[dict[str, Any]]:
    lines = (Path(_CAPTURES or "") / "streams" / "EXPECTED.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["capture"] == f"{name}.jsonl.gz"]


async def test_okx_books_are_sent_as_they_were_and_equal_the_truth() -> None:
    protocol = Okx()
    market = CaptureMarket(_path("OKX"), protocol, speed=None)
    expected = {line["symbol"]: line for line in _expected("OKX")}
    async with (
        asyncio.timeout(_DEADLINE),
        SimulatedVenue(market, settings=OkxSettings(), protocol=protocol) as venue,
        aiohttp.ClientSession(venue.rest_url) as session,
    ):
        async with session.get("/api/v5/public/instruments?instType=SWAP") as answer:
            assert any(e["instId"] == "BTC-USD-SWAP" for e in (await answer.json())["data"])
        uri = f"{venue.ws_url}/ws/v5/public"
        async with websockets.connect(uri, max_queue=None, ping_interval=None) as client:
            args = [
                {"channel": channel, "instId": symbol}
                for channel in ("books", "trades", "tickers")
                for symbol in expected
            ]
            await client.send(json.dumps({"op": "subscribe", "args": args}))
            books: dict[str, dict[str, dict[Decimal, str]]] = {}
            applied = dict.fromkeys(expected, 0)
            trades = tickers = 0
            while any(applied[symbol] < line["applied"] for symbol, line in expected.items()):
                message = json.loads(await client.recv())
                if "data" not in message:
                    assert message["event"] == "subscribe", message
                    continue
                channel = message["arg"]["channel"]
                trades += channel == "trades"
                tickers += channel == "tickers"
                if channel != "books":
                    continue
                symbol = message["arg"]["instId"]
                if message["action"] == "snapshot":
                    books[symbol] = {"bids": {}, "asks": {}}
                else:
                    applied[symbol] += 1
                for name, side in books[symbol].items():
                    for price, size, *_ in message["data"][0][name]:
                        if size == "0":
                            side.pop(Decimal(price), None)
                        else:
                            side[Decimal(price)] = size
            assert trades
            assert tickers
            await market.finished()
            for symbol, line in expected.items():
                truth = market.book(symbol)
                assert truth.digest() == line["digest"]
                bids, asks = truth.canonical()
                told = books[symbol]
                assert [(Decimal(p), Decimal(q)) for p, q in bids] == sorted(
                    ((p, Decimal(q)) for p, q in told["bids"].items()), reverse=True
                )
                assert [(Decimal(p), Decimal(q)) for p, q in asks] == sorted(
                    (p, Decimal(q)) for p, q in told["asks"].items()
                )
            # Who comes later is sent the book as it is then.
            await client.send(json.dumps({"op": "unsubscribe", "args": args[:1]}))
            await client.send(json.dumps({"op": "subscribe", "args": args[:1]}))
            while True:
                message = json.loads(await client.recv())
                if message.get("action") == "snapshot":
                    break
            (book,) = message["data"]
            assert [tuple(level[:2]) for level in book["bids"]] == market.book(
                message["arg"]["instId"], 400
            ).canonical()[0]


async def test_a_capture_of_several_connections_is_played_once() -> None:
    protocol = Okx()
    market = CaptureMarket(_path("OKEX_202107"), protocol, speed=None)
    expected = {
        line["symbol"]: line for line in _expected("OKEX_202107") if line["symbol"] != "FUN-BTC"
    }
    async with (
        asyncio.timeout(_DEADLINE),
        SimulatedVenue(market, settings=OkxSettings(), protocol=protocol) as venue,
    ):
        uri = f"{venue.ws_url}/ws/v5/public"
        async with websockets.connect(uri, max_queue=None, ping_interval=None) as client:
            args = [{"channel": "books-l2-tbt", "instId": symbol} for symbol in expected]
            await client.send(json.dumps({"op": "subscribe", "args": args}))
            finished = asyncio.create_task(market.finished())
            received = 0
            while not finished.done():
                try:
                    async with asyncio.timeout(0.2):
                        received += b"update" in (await client.recv(decode=False))[:120]
                except TimeoutError:
                    continue
            assert received
    for symbol, line in expected.items():
        assert market.book(symbol).digest() == line["digest"], symbol
    stats = market.stats()
    assert isinstance(stats["repeated_frames"], int)
    assert stats["repeated_frames"] > 0


@pytest.mark.parametrize(
    ("name", "protocol", "depth"),
    [
        ("BINANCE_FUTURES", BinanceUsdM, "depth@100ms"),
        ("HBT_usdm_ethusdt", BinanceUsdM, "depth@0ms"),
        ("HBT_cm_ethusd_perp", BinanceCoinM, "depth@0ms"),
    ],
)
async def test_books_of_futures_are_played_to_the_known_ones(
    name: str, protocol: type[VenueProtocol], depth: str
) -> None:
    made = protocol()
    market = CaptureMarket(_path(name), made, speed=None, hold_at_snapshots=False)
    expected = {line["symbol"]: line for line in _expected(name)}
    assert set(market.symbols) == set(expected)
    async with (
        asyncio.timeout(_DEADLINE),
        SimulatedVenue(market, settings=made.settings_type(), protocol=made) as venue,
    ):
        path = "public/" if protocol is BinanceUsdM else ""
        streams = "/".join(f"{symbol.lower()}@{depth}" for symbol in expected)
        uri = f"{venue.ws_url}/{path}stream?streams={streams}"
        async with websockets.connect(uri, max_queue=None) as client:
            last = dict.fromkeys(expected, 0)
            while any(last[s] != line["venue_sequence"] for s, line in expected.items()):
                event = json.loads(await client.recv())["data"]
                last[event["s"]] = event["u"]
    for symbol, line in expected.items():
        book = market.book(symbol)
        assert book.update_id == line["venue_sequence"]
        assert book.digest() == line["digest"]
