"""Frames and answers of Binance spot are read exactly, or refused with the one error."""

import gzip
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from services.collector.venues.base import (
    Acknowledgement,
    Goodbye,
    Ignored,
    MalformedFrameError,
    RestRequest,
    TopOfBook,
    TradePrint,
    VenueFault,
)
from services.collector.venues.binance_spot import BinanceSpot, DepthUpdate
from services.shared.capture import read_capture
from tests.unit.collector.support import captures

BINANCE = BinanceSpot()
REQUEST = RestRequest("/api/v3/depth", 50, {"symbol": "BTCUSDT", "limit": "1000"})

DEPTH = {
    "e": "depthUpdate", "E": 1672515782136, "s": "BNBBTC", "U": 157, "u": 160,
    "b": [["0.00240000", "10.00000000"]], "a": [["0.0026", "100"]],
}  # fmt: skip
TRADE = {
    "e": "trade", "E": 1672515782136, "s": "BNBBTC", "t": 12345, "p": "0.00100000",
    "q": "100.00000000", "T": 1672515782100, "m": True, "M": True,
}  # fmt: skip
TICKER = {
    "u": 400900217, "s": "BNBUSDT", "b": "25.35190000", "B": "31.21000000",
    "a": "25.36520000", "A": "40.66000000",
}  # fmt: skip


def _frames(event: dict[str, Any], stream: str) -> list[bytes | str]:
    """The same event in every form in which it may come."""
    raw = json.dumps(event)
    spaced = json.dumps({"stream": stream, "data": event})
    combined = json.dumps({"stream": stream, "data": event}, separators=(",", ":"))
    turned = json.dumps({"data": event, "stream": stream}, separators=(",", ":"))
    return [raw, raw.encode(), spaced, combined, combined.encode(), turned]


@pytest.mark.parametrize("frame", _frames(DEPTH, "bnbbtc@depth@100ms"))
def test_depth_update(frame: bytes | str) -> None:
    message = BINANCE.decode(frame)
    assert isinstance(message, DepthUpdate)
    assert (message.native_symbol, message.first, message.last) == ("BNBBTC", 157, 160)
    assert message.previous == 156
    assert message.exchange_time == 1672515782136_000_000
    assert message.bids == [("0.00240000", "10.00000000")]
    assert message.asks == [("0.0026", "100")]


@pytest.mark.parametrize("frame", _frames(TRADE, "bnbbtc@trade"))
def test_trade(frame: bytes | str) -> None:
    assert BINANCE.decode(frame) == TradePrint(
        "BNBBTC", 12345, 1672515782100_000_000, "0.001", "100", buyer_is_maker=True
    )


@pytest.mark.parametrize("frame", _frames(TICKER, "bnbusdt@bookTicker"))
def test_book_ticker_has_neither_kind_nor_time(frame: bytes | str) -> None:
    assert BINANCE.decode(frame) == TopOfBook(
        "BNBUSDT", 400900217, 0, ("25.3519", "31.21"), ("25.3652", "40.66")
    )


def test_an_empty_side_of_the_ticker_is_empty_and_not_zero() -> None:
    frame = json.dumps({**TICKER, "a": "0.00000000", "A": "0.00000000"})
    message = BINANCE.decode(frame)
    assert isinstance(message, TopOfBook)
    assert (message.bid, message.ask) == (("25.3519", "31.21"), ("", ""))


def test_times_in_microseconds_are_told_from_milliseconds() -> None:
    message = BINANCE.decode(json.dumps({**TRADE, "T": 1672515782100123}))
    assert isinstance(message, TradePrint)
    assert message.exchange_time == 1672515782100123_000


def test_what_is_not_about_a_book() -> None:
    assert BINANCE.decode('{"result":null,"id":3}') == Acknowledgement(3)
    fault = BINANCE.decode('{"code":2,"msg":"Invalid request","id":7}')
    assert fault == VenueFault(7, "2", "Invalid request")
    fault = BINANCE.decode('{"error":{"code":3,"msg":"Too many"}}')
    assert fault == VenueFault(None, "3", "Too many")
    assert BINANCE.decode('{"e":"serverShutdown","E":1}') == Goodbye("serverShutdown")
    assert BINANCE.decode('{"e":"executionReport"}') == Ignored("executionReport")


@pytest.mark.parametrize(
    ("frame", "symbol", "concerns_book"),
    [
        ('{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","U":1', "BTCUSDT", True),
        ('{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate"}}', "BTCUSDT", True),
        ('{"stream":"btcusdt@trade","data":{"e":"trade","s":"BTCUSDT"}}', "BTCUSDT", False),
        ('{"stream":"btcusdt@bookTicker","data":[]}', "BTCUSDT", False),
        ('{"stream":"btcusdt@dep', "BTCUSDT", True),
        ('{"stream":"btcusdt', "", True),
        ("", "", True),
        ("[]", "", True),
        ("\x00\xff", "", True),
        ("{}", "", True),
    ],
)
def test_a_damaged_frame_tells_whose_it_was_where_that_can_be_read(
    frame: str, symbol: str, concerns_book: bool
) -> None:
    with pytest.raises(MalformedFrameError) as caught:
        BINANCE.decode(frame)
    assert (caught.value.native_symbol, caught.value.concerns_book) == (symbol, concerns_book)


_HUGE = 10**25


@pytest.mark.parametrize(
    "change",
    [{"U": _HUGE}, {"u": _HUGE}, {"U": -1}, {"E": _HUGE}, {"E": -5}, {"U": 161}, {"u": 156},
     {"U": 1.5}, {"u": "160"}, {"s": None}, {"b": None}, {"b": [["1"]]}, {"b": [["1", 2]]},
     {"b": [["1", "2", "3"]]}, {"a": {}}, {"a": "none"}],
)  # fmt: skip
def test_depth_that_the_contracts_cannot_carry_is_malformed(change: dict[str, Any]) -> None:
    event = {**DEPTH, **change}
    for frame in _frames(event, "bnbbtc@depth@100ms"):
        with pytest.raises(MalformedFrameError):
            BINANCE.decode(frame)


@pytest.mark.parametrize(
    "change",
    [{"t": _HUGE}, {"t": -1}, {"T": _HUGE}, {"p": "x"}, {"p": 1}, {"q": ""}, {"m": 1}, {"s": 5},
     {"p": "9" * 500}],
)  # fmt: skip
def test_a_trade_that_the_contracts_cannot_carry_is_malformed(change: dict[str, Any]) -> None:
    for frame in _frames({**TRADE, **change}, "bnbbtc@trade"):
        with pytest.raises(MalformedFrameError):
            BINANCE.decode(frame)


@pytest.mark.parametrize("name", ["BINANCE", "BINANCE_US"])
def test_every_recorded_answer_is_read(name: str) -> None:
    kinds: Counter[str] = Counter()
    for record in read_capture(captures("streams", f"{name}.jsonl.gz")):
        if record.kind != "http":
            continue
        if "exchangeInfo" in (record.url or ""):
            specs = BINANCE.decode_instruments(record.payload())
            listed = json.loads(record.data)["symbols"]
            assert len(specs) == len(listed) > 50
            for spec, entry in zip(specs, listed, strict=True):
                assert spec.native_symbol == entry["symbol"]
                assert spec.symbol == f"{entry['baseAsset']}-{entry['quoteAsset']}"
                assert spec.trading == (entry["status"] == "TRADING")
                assert Decimal(spec.tick_size) > 0
                assert Decimal(spec.lot_size) > 0
                assert Decimal(spec.min_notional) > 0
            kinds["exchangeInfo"] += 1
        elif "/depth" in (record.url or ""):
            snapshot = BINANCE.decode_snapshot(record.payload(), REQUEST)
            told = json.loads(record.data)
            assert snapshot.last == told["lastUpdateId"]
            assert [list(level) for level in snapshot.bids] == told["bids"]
            assert [list(level) for level in snapshot.asks] == told["asks"]
            kinds["depth"] += 1
    assert kinds["exchangeInfo"] >= 1
    assert kinds["depth"] >= 4


@pytest.mark.parametrize(
    ("depth", "limit", "weight"),
    [(5, 5, 5), (100, 100, 5), (101, 101, 25), (500, 500, 25), (1000, 1000, 50), (5000, 5000, 250),
     (9999, 5000, 250)],
)  # fmt: skip
def test_a_snapshot_costs_what_the_venue_says(depth: int, limit: int, weight: int) -> None:
    request = BINANCE.snapshot_request("BTCUSDT", depth)
    assert (request.path, request.weight) == ("/api/v3/depth", weight)
    assert request.query == {"symbol": "BTCUSDT", "limit": str(limit)}


def test_a_snapshot_keeps_the_limit_asked_for() -> None:
    body = b'{"lastUpdateId":9,"bids":[["1","2"]],"asks":[]}'
    snapshot = BINANCE.decode_snapshot(body, REQUEST)
    assert (snapshot.last, snapshot.bids, snapshot.asks) == (9, [("1", "2")], [])
    assert snapshot.limit == 1000


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'{"lastUpdateId":-1,"bids":[],"asks":[]}',
                                  b'{"lastUpdateId":1,"bids":[["1"]],"asks":[]}',
                                  b'{"code":-1121,"msg":"Invalid symbol."}'])  # fmt: skip
def test_a_snapshot_that_is_none_names_the_instrument(body: bytes) -> None:
    with pytest.raises(MalformedFrameError) as caught:
        BINANCE.decode_snapshot(body, REQUEST)
    assert caught.value.native_symbol == "BTCUSDT"


def test_past_trades_are_sorted_and_canonical() -> None:
    body = json.dumps(
        [
            {"id": 29, "price": "5.10", "qty": "1.0", "time": 1700000000001, "isBuyerMaker": True},
            {"id": 28, "price": "4.00000100", "qty": "12.00000000", "quoteQty": "48.000012",
             "time": 1499865549590123, "isBuyerMaker": False, "isBestMatch": True},
        ]
    ).encode()  # fmt: skip
    assert BINANCE.decode_trades(body, "X") == [
        TradePrint("X", 28, 1499865549590123_000, "4.000001", "12", buyer_is_maker=False),
        TradePrint("X", 29, 1700000000001_000_000, "5.1", "1", buyer_is_maker=True),
    ]


def test_an_instrument_with_damaged_filters_keeps_empty_steps() -> None:
    info = {
        "symbols": [
            {"symbol": "AB", "status": "BREAK", "baseAsset": "A", "quoteAsset": "B",
             "filters": [{"filterType": "PRICE_FILTER", "tickSize": "x"},
                         {"filterType": "LOT_SIZE", "stepSize": 5, "minQty": "0.00"},
                         {"noType": 1}, {"filterType": ["odd"]}]},
        ]
    }  # fmt: skip
    (spec,) = BINANCE.decode_instruments(json.dumps(info).encode())
    assert (spec.symbol, spec.trading) == ("A-B", False)
    assert (spec.tick_size, spec.lot_size, spec.min_quantity, spec.min_notional) == ("",) * 4


@pytest.mark.parametrize(
    ("native", "symbol"),
    [("BTCUSDT", "BTC-USDT"), ("ETHBTC", "ETH-BTC"), ("USDTTRY", "USDT-TRY"), ("ODD", "ODD"),
     ("USDT", "USDT"), ("BTCFDUSD", "BTC-FDUSD"), ("", "")],
)  # fmt: skip
def test_a_name_is_split_at_the_longest_known_quote(native: str, symbol: str) -> None:
    assert BINANCE.infer_instrument(native).symbol == symbol


def test_captures_are_readable_as_they_lie(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl.gz"
    line = json.dumps({"kind": "ws", "data": json.dumps(DEPTH), "conn": "c", "url": "wss://x"})
    path.write_bytes(gzip.compress(line.encode()))
    (record,) = read_capture(path)
    assert isinstance(BINANCE.decode(record.payload()), DepthUpdate)
