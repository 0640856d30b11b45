"""Every recorded frame of Binance is read to the last field, against values computed apart."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from marketprism.market.v1 import common_pb2

from services.collector.venues.base import (
    Acknowledgement,
    BookSnapshot,
    Ignored,
    Observation,
    Poll,
    RestRequest,
    SkippedTrade,
    TopOfBook,
    TradePrint,
    VenueMessage,
)
from services.collector.venues.binance_adapter import BinanceAdapter
from services.collector.venues.binance_futures_streams import FuturesDepthUpdate
from services.collector.venues.binance_spot import DepthUpdate
from services.shared.capture import read_capture
from tests.unit.collector.binance_support import COINM, SPOT, US, USDM, fields, plain
from tests.unit.collector.support import captures

SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
MILLISECOND = 10**6
# Which of the venue's words mean which of ours; the last column of COIN-M counts contracts.
TICKER = {
    "last_price": "c", "last_quantity": "Q", "open_price": "o", "high_price": "h",
    "low_price": "l", "price_change": "p", "price_change_percent": "P",
    "weighted_average_price": "w", "bid_price": "b", "bid_quantity": "B", "ask_price": "a",
    "ask_quantity": "A",
}  # fmt: skip
CANDLE = {"open_price": "o", "high_price": "h", "low_price": "l", "close_price": "c"}


def number(text: str) -> str:
    """The one spelling, by way of Decimal."""
    value = Decimal(text)
    return "0" if value == 0 else format(value.normalize(), "f")


def numbers(source: dict[str, Any], names: dict[str, str]) -> dict[str, str]:
    return {ours: number(source[venue]) for ours, venue in names.items() if source.get(venue)}


def market_of(text: str, payload: Any) -> BinanceAdapter:
    """Which market a frame is of that was recorded without an address."""
    one = payload[0] if isinstance(payload, list) else payload
    if "USD_" in text or '"indexPriceUpdate"' in text or '"i":"BTCUSD"' in text:
        return COINM
    if re.search(r'"e":"(markPriceUpdate|forceOrder)"|"pu":|"X":|"openInterest"', text):
        return USDM
    if one.get("e") == "24hrTicker":
        return SPOT if "x" in one else USDM
    if one.get("e") in ("trade", "aggTrade"):
        return SPOT if "M" in one else USDM
    if "b" in one and "B" in one:
        return USDM if "E" in one else SPOT
    return SPOT


def expected(adapter: BinanceAdapter, payload: Any) -> Any:
    """What a payload means, computed from the raw JSON alone."""
    if isinstance(payload, list):
        told = [expected(adapter, each) for each in payload]
        flat = [each for one in told for each in (one if isinstance(one, list) else [one])]
        return flat[0] if len(flat) == 1 else flat
    inverse = adapter is COINM
    match payload.get("e"):
        case "trade":
            if payload.get("X") in ("INSURANCE_FUND", "ADL", "NA"):
                return SkippedTrade(payload["s"], payload["t"])
            return _trade(payload, payload["t"], 0, "")
        case "aggTrade":
            count = payload["l"] - payload["f"] + 1
            return _trade(payload, payload["l"], count, str(payload.get("a", "")))
        case "24hrTicker":
            message = numbers(payload, TICKER) | {
                "exchange_time": payload["E"] * MILLISECOND,
                "open_time": payload["O"] * MILLISECOND,
                "trade_count": payload["n"],
                "base_volume": number(payload["q" if inverse else "v"]),
                "quote_volume": number(payload["v" if inverse else "q"]),
            }
            counted = ("last_quantity", "quote_volume") if inverse else ()
            return ("TICKER", payload["s"], "", message, counted, "", "")
        case "kline":
            return _candle(payload, payload["k"], inverse)
        case "markPriceUpdate":
            return _mark(payload, inverse)
        case "indexPriceUpdate":
            message = {
                "exchange_time": payload["E"] * MILLISECOND, "index_price": number(payload["p"]),
            }  # fmt: skip
            return ("INDEX_PRICE", "", "BTC-USD", message, (), "", "")
        case "forceOrder":
            order = payload["o"]
            message = {
                "exchange_time": order["T"] * MILLISECOND,
                "side": common_pb2.Side.Value(f"SIDE_{order['S']}"),
                "sampled": True,
                **numbers(
                    order,
                    {"price": "p", "quantity": "q", "average_price": "ap", "filled_quantity": "z"},
                ),
            }
            counted = ("quantity", "filled_quantity") if inverse else ()
            name = f"{order['T']}-{order['S']}-{number(order['p'])}-{number(order['q'])}"
            return ("LIQUIDATION", order["s"], "", message, counted, "", name)
    if "openInterest" in payload:
        message = {"open_interest": number(payload["openInterest"])}
        message["open_interest_quote" if inverse else "open_interest_base"] = message[
            "open_interest"
        ]
        if "time" in payload:
            message["exchange_time"] = payload["time"] * MILLISECOND
        counted = ("open_interest", "open_interest_quote") if inverse else ()
        return ("OPEN_INTEREST", payload["symbol"], "", message, counted, "", "")
    bid, ask = (
        ("", "") if Decimal(payload[size]) == 0 else (number(payload[price]), number(payload[size]))
        for price, size in (("b", "B"), ("a", "A"))
    )
    return TopOfBook(payload["s"], payload["u"], payload.get("E", 0) * MILLISECOND, bid, ask)


def _trade(payload: dict[str, Any], last: int, count: int, name: str) -> TradePrint:
    return TradePrint(
        payload["s"], last, payload["T"] * MILLISECOND, number(payload["p"]), number(payload["q"]),
        payload["m"], count, venue_id=name,
    )  # fmt: skip


def _candle(payload: dict[str, Any], kline: dict[str, Any], inverse: bool) -> Any:
    base, quote, taker_base, taker_quote = "qvQV" if inverse else "vqVQ"
    length = kline["i"]
    seconds = 31 * 86400 if length == "1M" else int(length[:-1]) * SECONDS[length[-1]]
    message: dict[str, Any] = numbers(kline, CANDLE) | {
        "interval": seconds,
        "open_time": kline["t"] * MILLISECOND,
        "close_time": (kline["t"] + seconds * 1000) * MILLISECOND,
        "exchange_time": payload["E"] * MILLISECOND,
        "base_volume": number(kline[base]),
        "quote_volume": number(kline[quote]),
        "taker_buy_base_volume": number(kline[taker_base]),
        "taker_buy_quote_volume": number(kline[taker_quote]),
        "trade_count": kline["n"],
    }
    if kline["x"]:
        message["closed"] = True
    counted = ("quote_volume", "taker_buy_quote_volume") if inverse else ()
    return ("CANDLE", payload["s"], "", message, counted, length, "")


def _mark(payload: dict[str, Any], inverse: bool) -> Any:
    time = {"exchange_time": payload["E"] * MILLISECOND}
    native = payload["s"]
    names = {"mark_price": "p", "index_price": "i", "estimated_settlement_price": "P"}
    told = [("MARK_PRICE", native, "", time | numbers(payload, names), (), "", "")]
    if "_" in native and not native.endswith("_PERP"):
        return told[0]
    if payload.get("i") and not inverse:
        index = time | {"index_price": number(payload["i"])}
        told.append(("INDEX_PRICE", "", native.replace("USDT", "-USDT"), index, (), "", ""))
    funding = time | {"funding_rate": number(payload["r"])}
    if payload["T"]:
        funding |= {"funding_time": payload["T"] * MILLISECOND}
    told.append(("FUNDING_RATE", native, "", funding, (), "", ""))
    return told


def check(adapter: BinanceAdapter, text: str) -> str:
    """Assert what a frame is read as; give the kind of frame."""
    frame = json.loads(text)
    stream, payload = frame.get("stream", ""), frame.get("data", frame)
    channel = stream.partition("@")[2]
    message = adapter.decode(text)
    if "result" in frame:
        assert message == Acknowledgement(frame["id"])
        return "answer"
    if channel.isupper():  # European options
        assert message == Ignored(payload["e"])
        return "options"
    if "lastUpdateId" in payload:
        _check_snapshot(adapter, message, payload, stream, channel)
        return "snapshot"
    if isinstance(payload, dict) and payload.get("e") == "depthUpdate":
        _check_depth(message, payload, stream)
        return "depth"
    if "openInterest" in payload:
        request = RestRequest("/x/openInterest", 1, {"symbol": payload["symbol"]})
        poll = Poll(common_pb2.EVENT_KIND_OPEN_INTEREST, request, 1.0, payload["symbol"])
        (polled,) = adapter.decode_poll(json.dumps(payload).encode(), poll)  # type: ignore[attr-defined]
        assert plain(polled) == plain(message)
    assert plain(message) == expected(adapter, payload)
    one = payload[0] if isinstance(payload, list) else payload
    return str(one.get("e", "openInterest" if "openInterest" in one else "bookTicker"))


def _check_snapshot(
    adapter: BinanceAdapter, message: VenueMessage, payload: Any, stream: str, channel: str
) -> None:
    request = RestRequest("/x/depth", 1, {"symbol": "X", "limit": "1000"})
    answer = adapter.decode_snapshot(json.dumps(payload).encode(), request)
    for snapshot in [answer, *([message] if isinstance(message, BookSnapshot) else [])]:
        assert snapshot.last == payload["lastUpdateId"]
        assert [list(level) for level in snapshot.bids] == payload["bids"]
        assert [list(level) for level in snapshot.asks] == payload["asks"]
        assert snapshot.exchange_time == payload.get("E", 0) * MILLISECOND
    if channel == "depthSnapshot" or "symbol" in payload:
        assert isinstance(message, BookSnapshot)
        native = stream.partition("@")[0].upper() or payload["symbol"]
        assert message.native_symbol == native
    else:
        assert isinstance(message, Ignored)


def _check_depth(message: VenueMessage, payload: dict[str, Any], stream: str) -> None:
    if re.search(r"@depth(5|10|20)\b", stream):
        assert message == Ignored(stream)
        return
    assert isinstance(message, DepthUpdate | FuturesDepthUpdate)
    assert isinstance(message, FuturesDepthUpdate) == ("pu" in payload)
    previous = payload.get("pu", payload["U"] - 1)
    assert (message.native_symbol, message.first, message.last, message.previous) == (
        payload["s"], payload["U"], payload["u"], previous,
    )  # fmt: skip
    assert message.exchange_time == payload["E"] * MILLISECOND
    assert [list(level) for level in message.bids] == payload["b"]
    assert [list(level) for level in message.asks] == payload["a"]


def _frames(name: str) -> Iterator[str]:
    for record in read_capture(captures(name)):
        if record.kind == "ws" and not re.search("okx|deribit", record.conn or ""):
            yield record.payload().decode()


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("binance.jsonl.gz",
         {"trade": 2, "bookTicker": 1, "24hrTicker": 1, "depth": 4, "snapshot": 2}),
        ("binance_futures.jsonl.gz",
         {"aggTrade": 1, "24hrTicker": 2, "markPriceUpdate": 3, "trade": 3, "depth": 2,
          "snapshot": 1, "openInterest": 1, "forceOrder": 1, "bookTicker": 1}),
        ("binance_delivery.jsonl.gz",
         {"answer": 1, "snapshot": 1, "depth": 2, "markPriceUpdate": 1, "indexPriceUpdate": 1,
          "24hrTicker": 1, "openInterest": 1, "trade": 2, "forceOrder": 1, "bookTicker": 1}),
        ("binance_2021_2022.jsonl.gz",
         {"aggTrade": 5, "options": 2, "markPriceUpdate": 4, "depth": 10, "snapshot": 6,
          "bookTicker": 5, "24hrTicker": 10, "kline": 5, "openInterest": 4}),
        ("present_day_2026.jsonl", {"depth": 4, "bookTicker": 1}),
    ],
)  # fmt: skip
def test_every_frame_of_a_kind_is_read_to_the_last_field(name: str, counts: dict[str, int]) -> None:
    seen: Counter[str] = Counter()
    for text in _frames(f"frames/{name}"):
        frame = json.loads(text)
        seen[check(market_of(text, frame.get("data", frame)), text)] += 1
    assert seen == counts


@pytest.mark.parametrize(
    ("name", "adapter", "least"),
    [
        ("BINANCE", SPOT, {"depth": 177, "bookTicker": 84, "aggTrade": 2, "kline": 2}),
        ("BINANCE_US", US, {"depth": 336, "bookTicker": 128, "aggTrade": 11, "kline": 5}),
        ("BINANCE_FUTURES", USDM,
         {"depth": 764, "bookTicker": 613, "aggTrade": 91, "kline": 67}),
        ("HBT_spot_ethusdt", SPOT, {"depth": 400, "bookTicker": 3000, "trade": 500}),
        ("HBT_usdm_ethusdt", USDM, {"depth": 400, "bookTicker": 3000, "trade": 500}),
        ("HBT_cm_ethusd_perp", COINM, {"depth": 2000, "bookTicker": 2000, "trade": 100}),
    ],
)  # fmt: skip
def test_every_frame_of_a_stream_is_read_to_the_last_field(
    name: str, adapter: BinanceAdapter, least: dict[str, int]
) -> None:
    seen: Counter[str] = Counter()
    for number_of_frame, text in enumerate(_frames(f"streams/{name}.jsonl.gz")):
        if number_of_frame == 6000:
            break
        seen[check(adapter, text)] += 1
    assert all(seen[kind] >= count for kind, count in least.items()), seen
    assert seen.keys() == least.keys()


# Forms of frames that no recording has


def test_a_raw_array_is_read_like_one_of_a_stream_and_leaves_out_the_other_market() -> None:
    mark = {"e": "markPriceUpdate", "E": 5, "s": "BTCUSDT", "p": "2", "r": "", "T": 0, "st": 1}
    inverse = {**mark, "s": "BTCUSD_PERP", "st": 2}
    for frame in (
        json.dumps([inverse, mark]),
        json.dumps({"stream": "!markPrice@arr@1s", "data": [mark, inverse]}),
        json.dumps({"stream": "!markPrice@arr@1s", "data": [mark, inverse]}, separators=(",", ":")),
    ):
        told = ("MARK_PRICE", "BTCUSDT", "", {"exchange_time": 5 * 10**6, "mark_price": "2"})
        assert plain(USDM.decode(frame))[:4] == told
        assert plain(COINM.decode(frame))[1] == "BTCUSD_PERP"
    other = json.dumps({"stream": "!bookTicker", "data": {**mark, "st": 2}}, separators=(",", ":"))
    assert USDM.decode(other) == Ignored("of another market")


def test_times_in_microseconds_end_a_candle_exactly() -> None:
    kline = {
        "t": 1672515780000000, "T": 1672515839999999, "s": "BNBBTC", "i": "1m", "o": "1", "c": "2",
        "h": "3", "l": "0.5", "v": "0", "n": 0, "x": True, "q": "0", "V": "0", "Q": "0",
    }  # fmt: skip
    event = {"e": "kline", "E": 1672515840000123, "s": "BNBBTC", "k": kline}
    message = SPOT.decode(json.dumps({"stream": "bnbbtc@kline_1m", "data": event}))
    told = plain(message)[3]
    assert told["close_time"] == 1672515840 * 10**9
    assert (told["interval"], told["closed"]) == (60, True)
    assert told["exchange_time"] == 1672515840000123000


def test_an_empty_side_of_a_ticker_is_empty_and_not_zero() -> None:
    event = {
        "e": "24hrTicker", "E": 1, "s": "AB", "p": "0", "P": "0", "w": "0", "c": "0", "Q": "0",
        "o": "0", "h": "0", "l": "0", "v": "0", "q": "0", "O": 0, "n": 0, "b": "0.00000000",
        "B": "0.00000000", "a": "5.0", "A": "1",
    }  # fmt: skip
    told = plain(SPOT.decode(json.dumps(event)))[3]
    assert "bid_price" not in told
    assert (told["ask_price"], told["ask_quantity"]) == ("5", "1")


def test_levels_that_are_not_for_all_are_no_changes_of_the_book() -> None:
    change = {"e": "depthUpdate", "E": 1, "s": "BTCUSDT", "U": 1, "u": 2, "pu": 0, "b": [], "a": []}
    stream = "btcusdt@rpiDepth@500ms"
    for separators in ((",", ":"), (", ", ": ")):
        frame = json.dumps({"stream": stream, "data": change}, separators=separators)
        assert USDM.decode(frame) == Ignored(stream)


def test_the_index_of_an_inverse_perpetual_comes_from_its_own_stream_only() -> None:
    mark = {"e": "markPriceUpdate", "E": 1, "s": "BTCUSD_PERP", "p": "2", "i": "3", "P": "",
            "r": "-0.0001", "T": 9}  # fmt: skip
    told = plain(COINM.decode(json.dumps(mark)))
    assert [each[0] for each in told] == ["MARK_PRICE", "FUNDING_RATE"]
    assert told[0][3]["index_price"] == "3"
    assert told[1][3]["funding_rate"] == "-0.0001"
    index = {"e": "indexPriceUpdate", "E": 1, "i": "DOTUSD", "p": "9.50"}
    frame = json.dumps({"stream": "dotusd@indexPrice@1s", "data": index}, separators=(",", ":"))
    assert plain(COINM.decode(frame))[2:4] == (
        "DOT-USD", {"exchange_time": 10**6, "index_price": "9.5"},
    )  # fmt: skip


def test_messages_compare_by_the_fields_that_are_set() -> None:
    """Otherwise the tests above would pass whatever else a message says."""
    mark = {"e": "markPriceUpdate", "E": 1, "s": "BTCUSDT_261225", "p": "2"}
    message = USDM.decode(json.dumps(mark))
    assert isinstance(message, Observation)
    assert fields(message.message) == {"exchange_time": 10**6, "mark_price": "2"}
