"""Whatever comes in place of a frame or an answer of Binance: a message, or the one error."""

import contextlib
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketprism.market.v1 import common_pb2

from services.collector.venues.base import (
    MalformedFrameError,
    Observation,
    Poll,
    RestRequest,
    Several,
    VenueAdapter,
)
from tests.unit.collector.binance_support import ADAPTERS, COINM, SPOT, USDM

REQUEST = RestRequest("/x/depth", 20, {"symbol": "BTCUSDT", "limit": "1000"})
PATHS = (
    "/fapi/v1/openInterest", "/futures/data/topLongShortAccountRatio",
    "/futures/data/topLongShortPositionRatio", "/futures/data/globalLongShortAccountRatio",
    "/fapi/v1/fundingInfo", "/fapi/v1/premiumIndex", "/fapi/v1/nothing",
)  # fmt: skip
FRAMES: list[dict[str, Any]] = [
    {"stream": "btcusdt@depth@100ms", "data": {
        "e": "depthUpdate", "E": 1, "T": 1, "s": "BTCUSDT", "U": 157, "u": 160, "pu": 149,
        "b": [["1", "2"]], "a": [["77021.60", "650.0043"]], "st": 1}},
    {"stream": "btcusdt@trade", "data": {
        "e": "trade", "E": 1, "T": 2, "s": "BTCUSDT", "t": 3, "p": "7627.60", "q": "0.044",
        "X": "MARKET", "m": False}},
    {"stream": "btcusdt@aggTrade", "data": {
        "e": "aggTrade", "E": 1, "a": 2, "s": "BTCUSDT", "p": "1", "q": "5", "f": 3, "l": 5,
        "T": 6, "m": True}},
    {"stream": "btcusdt@bookTicker", "data": {
        "e": "bookTicker", "u": 7, "s": "BTCUSDT", "b": "1.50", "B": "2.0", "a": "1.60",
        "A": "0.000", "T": 1, "E": 2}},
    {"stream": "btcusdt@ticker", "data": {
        "e": "24hrTicker", "E": 1, "s": "BTCUSDT", "p": "-1", "P": "2", "w": "3", "c": "4",
        "Q": "5", "o": "6", "h": "7", "l": "8", "v": "9", "q": "10", "O": 11, "n": 12, "b": "13",
        "B": "14", "a": "15", "A": "16"}},
    {"stream": "btcusdt@kline_1m", "data": {
        "e": "kline", "E": 1, "s": "BTCUSDT", "k": {
            "t": 1, "T": 2, "s": "BTCUSDT", "i": "1m", "f": 1, "L": 2, "o": "1", "c": "2",
            "h": "3", "l": "4", "v": "5", "n": 6, "x": False, "q": "7", "V": "8", "Q": "9"}}},
    {"stream": "btcusdt@markPrice@1s", "data": {
        "e": "markPriceUpdate", "E": 1, "s": "BTCUSDT", "p": "1", "P": "2", "i": "3", "r": "4",
        "T": 5}},
    {"stream": "btcusd@indexPrice@1s", "data": {
        "e": "indexPriceUpdate", "E": 1, "i": "BTCUSD", "p": "1"}},
    {"stream": "btcusdt@forceOrder", "data": {
        "e": "forceOrder", "E": 1, "o": {
            "s": "BTCUSDT", "S": "BUY", "q": "1", "p": "2", "ap": "3", "z": "4", "T": 5}}},
    {"stream": "!contractInfo", "data": {"e": "contractInfo", "s": "BTCUSDT", "cs": "TRADING"}},
    {"stream": "!markPrice@arr", "data": [
        {"e": "markPriceUpdate", "E": 1, "s": "BTCUSDT", "p": "1", "r": "", "T": 0, "st": 1}]},
    {"stream": "btcusdt@openInterest", "data": {
        "symbol": "BTCUSDT", "openInterest": "1", "time": 2}},
    {"stream": "btcusdt@depthSnapshot", "data": {
        "lastUpdateId": 1, "E": 2, "bids": [["1", "2"]], "asks": []}},
    {"result": None, "id": 1},
    {"error": {"code": -1003, "msg": "Too many"}, "id": 2},
]  # fmt: skip
ANSWERS: list[Any] = [
    {"symbols": [{
        "symbol": "BTCUSD_261225", "pair": "BTCUSD", "contractType": "CURRENT_QUARTER",
        "deliveryDate": 1798185600000, "contractStatus": "TRADING", "status": "TRADING",
        "contractSize": 100, "baseAsset": "BTC", "quoteAsset": "USD", "marginAsset": "BTC",
        "filters": [{"filterType": "PRICE_FILTER", "tickSize": "0.1"},
                    {"filterType": "LOT_SIZE", "stepSize": "1", "minQty": "1"}]}]},
    {"lastUpdateId": 1, "E": 2, "bids": [["1", "2"]], "asks": [["3", "4"]]},
    [{"id": 1, "price": "2", "qty": "3", "time": 4, "isBuyerMaker": True}],
    {"symbol": "BTCUSDT", "openInterest": "1", "time": 2},
    [{"symbol": "BTCUSDT", "longShortRatio": "1", "longAccount": "0.5", "shortAccount": "0.5",
      "longPosition": "0.5", "shortPosition": "0.5", "timestamp": "1583139600000"}],
    [{"symbol": "BTCUSDT", "fundingIntervalHours": 4}],
    [{"symbol": "BTCUSDT", "interestRate": "0.0001"}],
    {"code": -1003, "msg": "Too many"},
]  # fmt: skip

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["1.0", "-0", "9" * 40, "1e99", "253402300799999999", -1, 2**63, 10**14]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)  # fmt: skip
_keys = st.sampled_from(
    [*"eEsUubBaAtpqTmidXoIcChlvQOnwPrSzk", "pu", "st", "ap", "cs", "id", "result", "error", "code",
     "msg", "data", "stream"]
)  # fmt: skip
_events = st.sampled_from([frame["data"]["e"] for frame in FRAMES[:10]])
_objects = st.dictionaries(_keys, _json | _events)
_streams = st.sampled_from([*(frame.get("stream", "") for frame in FRAMES), "a@depth5", "x", "@"])


@st.composite
def _changed(draw: Callable[..., Any], template: Any) -> Any:
    """A real frame or answer in which up to three values are others, or missing."""
    changed = copy.deepcopy(template)
    for _ in range(draw(st.integers(0, 3))):
        place = changed
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            inner = place[key]
            if isinstance(inner, dict | list) and inner and draw(st.booleans()):
                place = inner
                continue
            if draw(st.integers(0, 4)) == 0:
                del place[key]
            else:
                place[key] = draw(_json)
            break
    return changed


_frames = st.sampled_from(FRAMES).flatmap(_changed)
_answers = st.sampled_from(ANSWERS).flatmap(_changed)


def _serialise(message: Any) -> None:
    """What was decoded can be sent: its numbers and times fit the contracts."""
    for each in message.messages if isinstance(message, Several) else [message]:
        assert not isinstance(each, Several)
        if isinstance(each, Observation):
            each.message.SerializeToString()
            for name in ("exchange_time", "open_time", "close_time", "funding_time"):
                if name in each.message.DESCRIPTOR.fields_by_name:
                    getattr(each.message, name).ToDatetime()


def _decode_all(data: bytes | str) -> None:
    body = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    adapter: VenueAdapter
    for adapter in (SPOT, USDM, COINM):
        with contextlib.suppress(MalformedFrameError):
            _serialise(adapter.decode(data))
        with contextlib.suppress(MalformedFrameError):
            adapter.decode_snapshot(body, REQUEST)
        with contextlib.suppress(MalformedFrameError):
            adapter.decode_trades(body, "BTCUSDT")
        with contextlib.suppress(MalformedFrameError):
            adapter.decode_instruments(body)
        for path in PATHS:
            request = RestRequest(path, 1, {"pair": "BTCUSD"} if adapter is COINM else {})
            poll = Poll(common_pb2.EVENT_KIND_OPEN_INTEREST, request, 1.0, "BTCUSDT")
            with contextlib.suppress(MalformedFrameError):
                for observation in adapter.decode_poll(body, poll):
                    _serialise(observation)
        assert adapter.rest_refusal(200, body) in (None, 0.0)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    _decode_all(data)
    _decode_all(b'{"stream":"btcusdt@depth@100ms","data":' + data)


@given(st.text(st.characters(exclude_categories=[]), max_size=60))
def test_any_text_is_a_message_or_malformed(text: str) -> None:
    _decode_all(text)


@given(_json | _objects)
def test_any_json_is_a_message_or_malformed(value: Any) -> None:
    _decode_all(json.dumps(value))


@given(_streams, _json | _objects | st.lists(_objects, max_size=3))
def test_any_payload_of_a_stream_is_a_message_or_malformed(stream: str, value: Any) -> None:
    _decode_all(json.dumps({"stream": stream, "data": value}, separators=(",", ":")))


@given(_frames, st.booleans())
def test_a_frame_with_other_values_is_a_message_or_malformed(frame: Any, raw: bool) -> None:
    _decode_all(json.dumps(frame, separators=(",", ":")))
    if raw and isinstance(frame, dict):
        _decode_all(json.dumps(frame.get("data")))


@given(_answers)
def test_an_answer_with_other_values_is_decoded_or_malformed(answer: Any) -> None:
    _decode_all(json.dumps(answer))


@given(st.text(max_size=30))
def test_any_name_is_some_instrument(name: str) -> None:
    for adapter in ADAPTERS.values():
        spec = adapter.infer_instrument(name)  # type: ignore[attr-defined]
        assert (spec.exchange, spec.native_symbol) == (adapter.exchange, name)


@pytest.mark.parametrize(
    "frame",
    [
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"stream":"btcusdt@depth@100ms","data":{"x":' + b"[" * 100_000,
        b'{"stream":"btcusdt@kline_1m","data":{"x":' + b"[" * 100_000,
        b'{"e":"depthUpdate","x":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"id":' + b"9" * 100_000 + b',"result":null}',
        b'{"e":1' + b"0" * 5000 + b"}",
        b'{"E":1e999999}',
        b'"' + b"\xed\xa0\x80" + b'"',
        '{"stream":"b\ud800@depth@100ms"}',
        '[{"e":"24hrTicker"},5]',
    ],
)
def test_hostile_frames_are_malformed(frame: bytes | str) -> None:
    for adapter in (SPOT, USDM, COINM):
        with pytest.raises(MalformedFrameError):
            adapter.decode(frame)
