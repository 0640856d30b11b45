"""Whatever comes, OKX's adapter gives a message or MalformedFrameError, and nothing else."""

import contextlib
import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from marketprism.market.v1 import common_pb2

from services.collector.venues.base import MalformedFrameError, Poll, RestRequest, Selection
from tests.unit.collector.okx_support import OKX, book, frame, spec

_PERIODS = OKX.polls([spec("A-B-SWAP"), spec("A-B-261225-1-C")], Selection(OKX.kinds))
_POLLS = [*_PERIODS, Poll(common_pb2.EVENT_KIND_LONG_SHORT_RATIO, RestRequest("/other", 1), 1)]
_LEVELS = {"asks": [["1.0", "2", "0", "1"]], "bids": [["0.9", "2", "0", "1"]]}
_TRADE = {"instId": "A-B", "tradeId": "7", "px": "1", "sz": "2", "side": "buy", "ts": "5",
          "count": "1"}  # fmt: skip
_ROWS: dict[str, Any] = {
    "trades": _TRADE,
    "bbo-tbt": {**_LEVELS, "ts": "5", "seqId": 7},
    "tickers": {"instId": "A-B", "last": "1", "lastSz": "2", "askPx": "", "vol24h": "3",
                "volCcy24h": "4", "ts": "5"},
    "candle1m": ["5", "1", "2", "1", "2", "3", "4", "5", "1"],
    "funding-rate": {"instId": "A-B-SWAP", "fundingRate": "0.1", "fundingTime": "5",
                     "nextFundingTime": "9", "ts": "5", "interestRate": ""},
    "mark-price": {"instId": "A-B-SWAP", "markPx": "1", "ts": "5"},
    "index-tickers": {"instId": "A-B", "idxPx": "1", "ts": "5"},
    "open-interest": {"instId": "A-USD-SWAP", "oi": "1", "oiCcy": "2", "oiUsd": "3", "ts": "5"},
    "opt-summary": {"instId": "A-B-261225-1-C", "uly": "A-B", "deltaBS": "-∞", "markVol": "1",
                    "fwdPx": "2", "ts": "5"},
    "liquidation-orders": {"instId": "A-B-SWAP", "details": [
        {"side": "buy", "posSide": "net", "bkPx": "1", "sz": "2", "ts": "5"}]},
    "instruments": {"instId": "A-B", "instType": "SPOT", "state": "live"},
}  # fmt: skip
_INSTRUMENT = {"instId": "A-B-261225-1-C", "instType": "OPTION", "uly": "A-B", "ctVal": "1",
               "ctMult": "0.1", "ctValCcy": "A", "settleCcy": "A", "stk": "1", "optType": "C",
               "expTime": "5", "lotSz": "1", "minSz": "1", "tickSz": "1"}  # fmt: skip
_FRAMES = [
    frame("books", {**book(15, 10), **_LEVELS}, action="update"),
    frame("books", {**book(15, -1), **_LEVELS}, action="snapshot"),
    *(frame(channel, row, row) for channel, row in _ROWS.items()),
    '{"event":"subscribe","arg":{"channel":"books","instId":"A-B"},"id":"1","connId":"a"}',
    '{"event":"error","code":"60018","msg":"channel:books,instId:A-B doesn\'t exist","id":"1"}',
    '{"event":"notice","code":"64008","msg":"bye"}',
    *(json.dumps({"table": table, "action": "partial", "data": [
        {"instrument_id": "A-B", "timestamp": "2020-02-06T23:42:51.121Z", **row}]})
      for table, row in [("spot/depth", _LEVELS), ("spot/depth5", _LEVELS),
                         ("index/ticker", {"last": "1"}), ("swap/ticker", {"last": ""}),
                         ("option/summary", {"delta": "-∞"}), ("spot/trade", {})]),
    '{"localTimestamp":"x","message":{"arg":{"channel":"books"},"data":[]}}',
    *(json.dumps({"code": "0", "msg": "", "data": [row]})
      for row in (*_ROWS.values(), _INSTRUMENT, {**book(1, 1), **_LEVELS}, ["5", "1.5"])),
]  # fmt: skip
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
# What is nearly right is what finds the holes.
_odd = st.sampled_from(
    ["", "0", "-1", "1e99", "1e-5", "NaN", "∞", "٣", "1_0", " 1", "0x1", "9" * 40, "9" * 14,
     "261399", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "-",
     "--", "A-B-", "update", "buy", -1, 2**63, 10**400, 1.5, None, [], {}, [[]]]
)  # fmt: skip


def _everything(data: bytes | str) -> None:
    body = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    attempts = [
        lambda: OKX.decode(data),
        lambda: OKX.decode_snapshot(body, RestRequest("", 1, {"instId": "A-B", "sz": "400"})),
        lambda: OKX.decode_trades(body, "A-B"),
        lambda: OKX.decode_instruments(body),
        *(lambda poll=poll: OKX.decode_poll(body, poll) for poll in _POLLS),
    ]
    for attempt in attempts:
        with contextlib.suppress(MalformedFrameError):
            attempt()
    OKX.rest_refusal(200, body)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    return [path, *(leaf for key, each in inner for leaf in _leaves(each, (*path, key)))]


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    _everything(data)
    _everything(b'{"arg":{"channel":"books","instId":"BTC-USDT"},"action":' + data)


@given(_json)
def test_any_json(value: Any) -> None:
    _everything(json.dumps(value))
    _everything(json.dumps({"code": "0", "data": value}))
    for channel in _ROWS:
        _everything(frame(channel, value, action="update"))


@given(st.sampled_from(_FRAMES), st.data())
def test_a_real_frame_with_a_value_changed_or_left_out(text: str, data: st.DataObject) -> None:
    value = json.loads(text)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(_leaves(value)))
        if not path:
            continue
        place = value
        for key in path[:-1]:
            place = place[key]
        if data.draw(st.booleans()) and isinstance(place, dict):
            del place[path[-1]]
        else:
            place[path[-1]] = copy.deepcopy(data.draw(_odd | _json))
    _everything(json.dumps(value, separators=(",", ":")))
    _everything(json.dumps(value, separators=(",", ":"), ensure_ascii=False))


@given(st.sampled_from(_FRAMES), st.data())
def test_a_real_frame_that_is_cut_or_damaged(text: str, data: st.DataObject) -> None:
    raw = bytearray(text.encode())
    where = data.draw(st.integers(0, len(raw) - 1))
    _everything(bytes(raw[:where]))
    raw[where] = data.draw(st.integers(0, 255))
    _everything(bytes(raw))


@given(st.text(max_size=40), st.sampled_from(["-SWAP", "-261225", "-261225-1-C", ""]))
def test_any_name_is_some_instrument_of_one_word(name: str, end: str) -> None:
    symbol = OKX.infer_instrument(name + end).symbol
    if name.isalnum() and name.isascii():
        assert "." not in symbol
        assert symbol
