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
from services.simulator.deribit import Deribit
from services.simulator.okx import Okx
from services.simulator.okx_settings import OkxSettings
from services.simulator.protocol import VenueProtocol
from services.simulator.server import SimulatedVenue
from services.simulator.venues import generated_market

_CAPTURES = os.environ.get("MARKETPRISM_CAPTURES")
_DEADLINE = 60.0

_needs_captures = pytest.mark.skipif(
    not _CAPTURES, reason="set MARKETPRISM_CAPTURES to the folder of captures"
)


def _path(name: str) -> Path:
    return Path(_CAPTURES or "") / "streams" / f"{name}.jsonl.gz"


def _expected(name: str) -> list[dict[str, Any]]:
    lines = (Path(_CAPTURES or "") / "streams" / "EXPECTED.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["capture"] == f"{name}.jsonl.gz"]


@_needs_captures
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


@_needs_captures
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


@_needs_captures
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


_OKX_BOOK = {"op": "subscribe", "args": [{"channel": "books", "instId": "BTC-USDT"}]}
_DERIBIT_BOOK = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "public/subscribe",
    "params": {"channels": ["book.BTC-PERPETUAL.100ms", "trades.BTC-PERPETUAL.100ms"]},
}


def _sequence(message: dict[str, Any]) -> int | None:
    data = message.get("data") or message.get("params", {}).get("data")
    if isinstance(data, list):
        data = data[0]
    if not isinstance(data, dict):
        return None
    return data.get("seqId", data.get("change_id")) if "bids" in data else None


@pytest.mark.parametrize(
    ("make", "symbol", "path", "request_"),
    [
        (Okx, "BTC-USDT", "/ws/v5/public", _OKX_BOOK),
        (Deribit, "BTC-PERPETUAL", "/ws/api/v2", _DERIBIT_BOOK),
    ],
)
async def test_what_was_captured_of_a_simulated_venue_is_played_to_the_same_book(
    make: type[VenueProtocol],
    symbol: str,
    path: str,
    request_: dict[str, Any],
    tmp_path: Path,
) -> None:
    recorded: list[str] = []
    protocol = make()
    generated = generated_market(protocol, symbols=(symbol,), depth_rate=50, trade_rate=20)
    async with asyncio.timeout(_DEADLINE):
        async with (
            SimulatedVenue(generated, protocol=protocol) as venue,
            websockets.connect(f"{venue.ws_url}{path}", max_queue=None) as client,
        ):
            await client.send(json.dumps(request_))
            last = 0
            while len(recorded) < 80:
                text = await client.recv()
                assert isinstance(text, str)
                recorded.append(text)
                last = _sequence(json.loads(text)) or last
            truth = generated.book_at(symbol, last)
        file = tmp_path / "capture.jsonl"
        lines = [
            {"ts": 1.0 + n / 100, "kind": "ws", "url": "ws://x", "conn": "c1", "data": text}
            for n, text in enumerate(recorded)
        ]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        again = make()
        market = CaptureMarket(file, again, speed=None)
        played = []
        async with (
            SimulatedVenue(market, protocol=again) as venue,
            websockets.connect(f"{venue.ws_url}{path}", max_queue=None) as client,
        ):
            await client.send(json.dumps(request_))
            sequence = 0
            while sequence != last:
                text = await client.recv()
                assert isinstance(text, str)
                sequence = _sequence(json.loads(text)) or sequence
                played.append(text)
    pushed = [text for text in recorded if '"result"' not in text and '"event"' not in text]
    assert [text for text in played if text in pushed] == pushed[: len(played) - 1]
    depth = 400 if make is Okx else None
    assert market.book(symbol, depth).canonical() == truth.top(depth).canonical()
