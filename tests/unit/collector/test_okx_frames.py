"""Every recorded frame of OKX is read to the right fields: each is worked out here once more."""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.market.v1 import common_pb2

from services.collector.venues.base import (
    Acknowledgement,
    Observation,
    Poll,
    RestRequest,
    Several,
    VenueMessage,
)
from services.collector.venues.okx import OkxBookUpdate
from tests.unit.collector.okx_support import MS, OKX, plain
from tests.unit.collector.support import captures

_MINUTE = 60


def flat(message: VenueMessage) -> Any:
    """A message as plain values; an observation's as (kind, name, key, contracts, fields)."""
    if isinstance(message, Several):
        return [flat(each) for each in message.messages]
    if isinstance(message, Observation):
        fields = {}
        for descriptor, value in message.message.ListFields():
            if isinstance(value, Timestamp | Duration):
                value = value.ToNanoseconds()
            fields[descriptor.name] = value
        kind = common_pb2.EventKind.Name(message.kind).removeprefix("EVENT_KIND_").lower()
        name = message.native_symbol or message.symbol
        return kind, name, message.key, set(message.contracts), fields
    if isinstance(message, OkxBookUpdate):
        return {name: getattr(message, name) for name in message.__struct_fields__}
    return asdict(message)  # type: ignore[call-overload]


def observed(kind: str, name: str, fields: dict[str, Any], key: str = "", *contracts: str) -> Any:
    """The same of what is expected; fields that are empty or 0 are those not told."""
    return kind, name, key, set(contracts), {name: value for name, value in fields.items() if value}


def contracts_of(name: str) -> bool:
    return len(name.split("-")) > 2


# What is expected, by channel


def book(push: dict[str, Any], data: dict[str, Any]) -> Any:
    levels = {side: [tuple(each[:2]) for each in data[side]] for side in ("bids", "asks")}
    told = {**levels, "native_symbol": push["arg"]["instId"], "checksum": data["checksum"],
            "exchange_time": int(data["ts"]) * MS, "last": data.get("seqId", 0)}  # fmt: skip
    if push["action"] == "snapshot":
        return {**told, "limit": 400}
    return {**told, "previous": data.get("prevSeqId", 0)}


def top(push: dict[str, Any], data: dict[str, Any]) -> Any:
    def best(levels: list[list[str]]) -> tuple[str, str]:
        return (plain(levels[0][0]), plain(levels[0][1])) if levels else ("", "")

    return {"native_symbol": push["arg"]["instId"], "venue_sequence": data.get("seqId", 0),
            "exchange_time": int(data["ts"]) * MS, "bid": best(data["bids"]),
            "ask": best(data["asks"])}  # fmt: skip


def trade(push: dict[str, Any], data: dict[str, Any]) -> Any:
    return {"native_symbol": data["instId"], "trade_id": int(data["tradeId"]),
            "exchange_time": int(data["ts"]) * MS, "price": plain(data["px"]),
            "quantity": plain(data["sz"]), "buyer_is_maker": data["side"] == "sell",
            "trade_count": int(data.get("count", 0)), "liquidation": False,
            "venue_id": ""}  # fmt: skip


def ticker(push: dict[str, Any], data: dict[str, Any]) -> Any:
    name = data["instId"]
    if data["instType"] == "SPOT":
        base, quote = data["vol24h"], data["volCcy24h"]
    else:
        # A number of coin-margined contracts is a number of dollars.
        coin_margined = name.split("-")[1] == "USD" and data["instType"] in ("SWAP", "FUTURES")
        base, quote = data["volCcy24h"], data["vol24h"] if coin_margined else ""
    fields = {
        "exchange_time": int(data["ts"]) * MS, "last_price": plain(data["last"]),
        "last_quantity": plain(data["lastSz"]), "open_price": plain(data["open24h"]),
        "high_price": plain(data["high24h"]), "low_price": plain(data["low24h"]),
        "base_volume": plain(base), "quote_volume": plain(quote),
        "bid_price": plain(data["bidPx"]), "bid_quantity": plain(data["bidSz"]),
        "ask_price": plain(data["askPx"]), "ask_quantity": plain(data["askSz"]),
    }  # fmt: skip
    counted = ("last_quantity", "bid_quantity", "ask_quantity", "quote_volume")
    return observed("ticker", name, fields, "", *(counted if contracts_of(name) else ()))


def candle(push: dict[str, Any], data: list[str]) -> Any:
    name = push["arg"]["instId"]
    opened, prices, volumes = int(data[0]) * MS, data[1:5], data[5:7]
    base, quote = (volumes[1], "") if contracts_of(name) else (volumes[0], volumes[1])
    names = ("open_price", "high_price", "low_price", "close_price")
    fields = {
        **dict(zip(names, map(plain, prices), strict=True)),
        "open_time": opened, "close_time": opened + _MINUTE * 1000 * MS,
        "interval": _MINUTE * 1000 * MS, "base_volume": plain(base), "quote_volume": plain(quote),
    }  # fmt: skip
    assert push["arg"]["channel"] == "candle1m"
    return observed("candle", name, fields, "1m")


def funding(push: dict[str, Any], data: dict[str, Any]) -> Any:
    now, following = int(data["fundingTime"]) * MS, int(data.get("nextFundingTime", 0)) * MS
    fields = {
        "funding_rate": plain(data["fundingRate"]), "funding_time": now,
        "next_funding_rate": plain(data.get("nextFundingRate", "")),
        "next_funding_time": following, "funding_interval": following and following - now,
        "interest_rate": plain(data.get("interestRate", "")),
        "exchange_time": int(data.get("ts", 0)) * MS,
    }  # fmt: skip
    return observed("funding_rate", data["instId"], fields)


def mark(push: dict[str, Any], data: dict[str, Any]) -> Any:
    fields = {"exchange_time": int(data["ts"]) * MS, "mark_price": plain(data["markPx"])}
    return observed("mark_price", data["instId"], fields)


def index(push: dict[str, Any], data: dict[str, Any]) -> Any:
    fields = {"exchange_time": int(data["ts"]) * MS, "index_price": plain(data["idxPx"])}
    return observed("index_price", data["instId"], fields)


def open_interest(push: dict[str, Any], data: dict[str, Any]) -> Any:
    fields = {"exchange_time": int(data["ts"]) * MS, "open_interest": plain(data["oi"]),
              "open_interest_base": plain(data["oiCcy"])}  # fmt: skip
    return observed("open_interest", data["instId"], fields, "", "open_interest")


def greeks(push: dict[str, Any], data: dict[str, Any]) -> Any:
    names = {"delta": "deltaBS", "gamma": "gammaBS", "vega": "vegaBS", "theta": "thetaBS",
             "mark_iv": "markVol", "bid_iv": "bidVol", "ask_iv": "askVol"}  # fmt: skip
    fields = {name: plain(data[theirs]) for name, theirs in names.items()}
    fields |= {"exchange_time": int(data["ts"]) * MS, "underlying": data["uly"]}
    return observed("option_greeks", data["instId"], fields)


EXPECTED: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "books": book, "books-l2-tbt": book, "books5": top, "bbo-tbt": top, "trades": trade,
    "tickers": ticker, "candle1m": candle, "funding-rate": funding, "mark-price": mark,
    "index-tickers": index, "open-interest": open_interest, "opt-summary": greeks,
}  # fmt: skip


# The same of version 3, by table


def v3_time(data: dict[str, Any]) -> int:
    moment = datetime.strptime(data["timestamp"], "%Y-%m-%dT%H:%M:%S.%f%z")
    return round(moment.timestamp() * 1000) * MS


def v3_book(push: dict[str, Any], data: dict[str, Any]) -> Any:
    levels = {side: [tuple(each[:2]) for each in data[side]] for side in ("bids", "asks")}
    told = {**levels, "native_symbol": data["instrument_id"], "checksum": data["checksum"],
            "exchange_time": v3_time(data), "last": 0}  # fmt: skip
    return {**told, "limit": 200} if push["action"] == "partial" else {**told, "previous": 0}


def v3_top(push: dict[str, Any], data: dict[str, Any]) -> Any:
    told = top({"arg": {"instId": data["instrument_id"]}}, {**data, "ts": "0"})
    return {**told, "exchange_time": v3_time(data)}


def v3_ticker(push: dict[str, Any], data: dict[str, Any]) -> Any:
    names = {"last_price": "last", "last_quantity": "last_qty", "open_price": "open_24h",
             "high_price": "high_24h", "low_price": "low_24h", "base_volume": "volume_token_24h",
             "bid_price": "best_bid", "bid_quantity": "best_bid_size", "ask_price": "best_ask",
             "ask_quantity": "best_ask_size"}  # fmt: skip
    fields = {name: plain(data[theirs]) for name, theirs in names.items()}
    counted = ("last_quantity", "bid_quantity", "ask_quantity", "quote_volume")
    fields["exchange_time"] = v3_time(data)  # type: ignore[assignment]
    return observed("ticker", data["instrument_id"], fields, "", *counted)


def v3_index(push: dict[str, Any], data: dict[str, Any]) -> Any:
    fields = {"exchange_time": v3_time(data), "index_price": plain(data["last"])}
    return observed("index_price", data["instrument_id"], fields)


def v3_greeks(push: dict[str, Any], data: dict[str, Any]) -> Any:
    names = {"delta": "delta", "gamma": "gamma", "vega": "vega", "theta": "theta",
             "mark_iv": "mark_vol", "bid_iv": "bid_vol", "ask_iv": "ask_vol",
             "mark_price": "mark_price"}  # fmt: skip
    fields = {
        name: "" if "∞" in data[theirs] else plain(data[theirs]) for name, theirs in names.items()
    }
    told = {**fields, "exchange_time": v3_time(data), "underlying": data["underlying"]}
    return observed("option_greeks", data["instrument_id"], told)


EXPECTED_V3: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "option/depth": v3_book, "option/depth_l2_tbt": v3_book, "spot/depth5": v3_top,
    "option/ticker": v3_ticker, "option/summary": v3_greeks, "index/ticker": v3_index,
}  # fmt: skip


# What was recorded


def records(*parts: str) -> Iterator[dict[str, Any]]:
    data = captures(*parts).read_bytes()
    text = gzip.decompress(data) if parts[-1].endswith(".gz") else data
    yield from map(json.loads, text.decode().splitlines())


def check(text: str) -> str:
    """Compare one frame, and say what it was."""
    push = json.loads(text)
    push = push.get("message", push)
    if "event" in push:
        topic = f"{push['arg']['channel']}:{push['arg']['instId']}"
        assert OKX.decode(text) == Acknowledgement(None, (topic,), complete=False)
        return "acknowledgement"
    if "table" in push:
        (data,) = push["data"]
        assert flat(OKX.decode(text)) == EXPECTED_V3[push["table"]](push, data)
        return str(push["table"])
    channel = push["arg"]["channel"]
    wanted = [EXPECTED[channel](push, data) for data in push["data"]]
    assert flat(OKX.decode(text)) == (wanted[0] if len(wanted) == 1 else wanted)
    return str(channel)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("okx_v5_2022.jsonl.gz",
         {"trades": 6, "funding-rate": 2, "books-l2-tbt": 5, "books5": 6, "bbo-tbt": 6,
          "candle1m": 6, "tickers": 6, "spot/depth5": 1}),
        ("okex-options.jsonl.gz",
         {"books-l2-tbt": 1, "index-tickers": 1, "open-interest": 1, "mark-price": 1, "tickers": 1,
          "opt-summary": 2, "trades": 1, "option/depth": 1, "option/depth_l2_tbt": 2,
          "option/summary": 6, "index/ticker": 1, "option/ticker": 1}),
        ("okex-futures_x-perp.jsonl.gz", {"index-tickers": 1, "funding-rate": 1}),
        ("okex_usdc_contracts_before_and_after_index_migration.jsonl.gz",
         {"index-tickers": 3, "tickers": 3}),
        ("present_day_2026.jsonl", {"acknowledgement": 1, "books5": 1, "trades": 1, "tickers": 1}),
    ],
)  # fmt: skip
def test_isolated_frames_are_read_field_by_field(name: str, counts: dict[str, int]) -> None:
    seen: Counter[str] = Counter()
    for record in records("frames", name):
        text = record["data"]
        if name.startswith("present") and not record["conn"].startswith("okx"):
            continue
        if '"code"' in text:
            continue  # an answer of the REST interface
        seen[check(text)] += 1
    assert seen == counts


@pytest.mark.parametrize("name", ["OKX", "OKEX_202107"])
def test_streams_are_read_field_by_field(name: str) -> None:
    seen: Counter[str] = Counter()
    for record in records("streams", f"{name}.jsonl.gz"):
        if record["kind"] == "ws":
            seen[check(record["data"])] += 1
    assert set(seen) <= {"books", "books-l2-tbt", "trades", "tickers", "acknowledgement"}
    assert sum(seen.values()) > 400


def test_recorded_answers_are_read_field_by_field() -> None:
    books = interests = 0
    for record in records("frames", "okx_v5_2022.jsonl.gz"):
        answer = json.loads(record["data"])
        if "code" not in answer:
            continue
        body = record["data"].encode()
        if "asks" in answer["data"][0]:
            books += 1
            request = OKX.snapshot_request("BTC-USDT", 400)
            push = {"arg": {"instId": "BTC-USDT"}, "action": "snapshot"}
            wanted = book(push, {**answer["data"][0], "checksum": 0})
            assert flat(OKX.decode_snapshot(body, request)) == wanted
        else:
            interests += 1
            request = RestRequest("/api/v5/public/open-interest", 1)
            poll = Poll(common_pb2.EVENT_KIND_OPEN_INTEREST, request, 10)
            told = [flat(each) for each in OKX.decode_poll(body, poll)]
            assert told == [open_interest({}, data) for data in answer["data"]]
    assert (books, interests) == (6, 6)
