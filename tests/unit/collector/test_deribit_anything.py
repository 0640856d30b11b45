"""Whatever Deribit may send is a message or a MalformedFrameError, and levels keep their value."""

import contextlib
import json
from decimal import Decimal
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from marketprism.market.v1 import common_pb2

from services.collector.venues.base import MalformedFrameError, Poll, RestRequest
from services.collector.venues.deribit import Deribit, DeribitBookUpdate
from tests.unit.collector.deribit_frames import change, push

DERIBIT = Deribit()

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
_numbers: st.SearchStrategy[Any] = st.sampled_from(
    [0, 1, -1, 0.5, 1e300, -0.0, 2**63, 10**40, "1", "", None, [], "NaN"]
)
_words = st.sampled_from(["new", "delete", "change", "snapshot", "buy", "sell", "M", "MT", "1",
                          "BTC-PERPETUAL", "BTC-26DEC25-1d02-C", "btc_usd", "test_request",
                          "\ud800", "x" * 200])  # fmt: skip
_levels = st.lists(
    st.lists(_words | _numbers, max_size=4) | st.tuples(st.just("new"), _numbers, _numbers),
    max_size=4,
)
_FIELDS = {
    "book": ["timestamp", "instrument_name", "change_id", "prev_change_id", "type", "bids", "asks"],
    "trades": ["trade_seq", "trade_id", "timestamp", "price", "amount", "instrument_name",
               "direction", "liquidation"],
    "ticker": ["instrument_name", "timestamp", "stats", "greeks", "last_price", "best_bid_price",
               "best_bid_amount", "mark_price", "open_interest", "current_funding", "mark_iv",
               "estimated_delivery_price", "underlying_index"],
    "quote": ["instrument_name", "timestamp", "best_bid_price", "best_bid_amount"],
    "deribit_price_index": ["timestamp", "price", "index_name"],
    "deribit_volatility_index": ["timestamp", "volatility", "index_name"],
    "chart": ["tick", "open", "high", "low", "close", "volume", "cost"],
    "instrument": ["timestamp", "state", "instrument_name"],
    "": ["method", "params", "id", "result", "error", "code", "message", "channel", "data"],
}  # fmt: skip
_VALID: dict[str, Any] = {
    "timestamp": 5, "tick": 5, "instrument_name": "BTC-26DEC25-60000-C", "change_id": 10,
    "prev_change_id": 9, "type": "change", "trade_seq": 7, "trade_id": "12", "direction": "buy",
    "index_name": "btc_usd", "stats": {"volume": 1}, "greeks": {"delta": 0.5},
    "underlying_index": "BTC-26DEC25", "bids": [["new", 1, 2]], "asks": [], "method": "heartbeat",
    "state": "open", "params": {"type": "test_request"}, "id": 1, "result": ["a"],
    "error": {"code": 1, "message": "x"},
}  # fmt: skip


@st.composite
def _shaped(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """The data of a channel as the venue has it, some of its values random."""
    word = draw(st.sampled_from(sorted(_FIELDS)))
    data = {name: _VALID.get(name, 1.5) for name in _FIELDS[word]}
    for name in draw(st.lists(st.sampled_from(_FIELDS[word]), max_size=3)):
        data[name] = draw(_numbers | _words | _levels | _json)
    return word, data


def _decode_all(data: bytes | str) -> None:
    body = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    poll = Poll(common_pb2.EVENT_KIND_TICKER, RestRequest("/x", 1), 60.0)
    for attempt in (
        lambda: DERIBIT.decode(data),
        lambda: DERIBIT.decode_snapshot(body, RestRequest("", 1, {"instrument_name": "X"})),
        lambda: DERIBIT.decode_snapshot(body, RestRequest("", 1, {"depth": "²"})),
        lambda: DERIBIT.decode_trades(body, "X"),
        lambda: DERIBIT.decode_instruments(body),
        lambda: DERIBIT.decode_poll(body, poll),
    ):
        with contextlib.suppress(MalformedFrameError):
            attempt()
    DERIBIT.rest_refusal(400, body)


@given(st.binary(max_size=200))
@example(b"[" * 100_000)
@example(b'{"error":' * 50_000)
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    _decode_all(data)
    _decode_all(b'{"jsonrpc":"2.0","method":"subscription","params":{"channel":"book.' + data)
    _decode_all(b'{"method":"subscription","params":{"channel":"quote.X","data":' + data + b"}}")


@given(_json, st.sampled_from(sorted(_FIELDS)))
def test_any_json_is_a_message_or_malformed(value: Any, word: str) -> None:
    _decode_all(json.dumps(value))
    _decode_all(json.dumps({"result": value, "id": 3}))
    _decode_all(push(f"{word}.BTC-PERPETUAL.100ms", json.dumps(value)))


@given(_shaped())
def test_anything_shaped_like_a_frame_is_a_message_or_malformed(
    shaped: tuple[str, dict[str, Any]],
) -> None:
    word, data = shaped
    text = json.dumps(data)
    _decode_all(text)
    _decode_all(push(f"{word}.BTC-PERPETUAL.100ms", text))
    _decode_all(push(f"{word}.BTC-PERPETUAL.100ms", f"[{text}]"))
    _decode_all(push("chart.trades.BTC-PERPETUAL.1", text))
    _decode_all(push("book.BTC-PERPETUAL.none.20.100ms", text))
    _decode_all(json.dumps({"result": data, "id": 1}))
    _decode_all(json.dumps({"result": [{**data, "kind": "option"}]}))
    _decode_all(json.dumps({"result": {"trades": [data]}}))


_actions = st.sampled_from(["new", "change", "delete"])
_decimals = st.decimals(
    min_value=0, max_value=10**12, places=4, allow_nan=False, allow_infinity=False
)  # fmt: skip


@given(st.lists(st.tuples(_actions, _decimals, _decimals), max_size=12), st.booleans())
def test_any_levels_are_read_by_value(
    levels: list[tuple[str, Decimal, Decimal]], wide: bool
) -> None:
    space = " " if wide else ""
    side = f",{space}".join(
        f'["{action}",{space}{price},{amount}]' for action, price, amount in levels
    )
    message = DERIBIT.decode(change(f"[{side}]"))
    assert isinstance(message, DeribitBookUpdate)
    assert [(Decimal(price), Decimal(amount)) for price, amount in message.bids] == [
        (price, 0 if action == "delete" else amount) for action, price, amount in levels
    ]
