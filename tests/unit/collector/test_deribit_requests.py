"""Deribit is asked as it wants to be asked: channels, instruments, books, past trades."""

import json

import pytest
from marketprism.market.v1 import common_pb2, instrument_pb2

from services.collector.venues.base import (
    BookSnapshot,
    InstrumentSpec,
    MalformedFrameError,
    Poll,
    RestRequest,
    Selection,
)
from services.collector.venues.deribit import Deribit
from tests.unit.collector.deribit_frames import trade

DERIBIT = Deribit()
MS = 10**6
EVERYTHING = Selection(DERIBIT.kinds, (60, 300, 86_400, 7))


def _spec(native: str) -> InstrumentSpec:
    return DERIBIT.infer_instrument(native)


def _topics(native: str, selection: Selection = EVERYTHING) -> list[str]:
    return [each.topic for each in DERIBIT.subscriptions(_spec(native), selection)]


def test_an_instrument_is_subscribed_to_by_what_is_selected() -> None:
    assert _topics("BTC-PERPETUAL") == [
        "book.BTC-PERPETUAL.100ms", "trades.BTC-PERPETUAL.100ms", "quote.BTC-PERPETUAL",
        "ticker.BTC-PERPETUAL.100ms", "chart.trades.BTC-PERPETUAL.1",
        "chart.trades.BTC-PERPETUAL.5", "chart.trades.BTC-PERPETUAL.1D",
    ]  # fmt: skip
    only = Selection(frozenset({common_pb2.EVENT_KIND_OPTION_GREEKS}))
    assert _topics("BTC-26DEC25-60000-C", only) == ["ticker.BTC-26DEC25-60000-C.100ms"]
    assert _topics("BTC-PERPETUAL", only) == [], "a perpetual has no greeks"
    forced = Selection(frozenset({common_pb2.EVENT_KIND_LIQUIDATION}))
    assert _topics("BTC-PERPETUAL", forced) == ["trades.BTC-PERPETUAL.100ms"]
    assert _topics("BTC_USDC", forced) == [], "nobody is liquidated in spot"


def test_every_kind_has_a_stream_that_may_be_silent_for_so_long() -> None:
    natives = ["BTC-PERPETUAL", "BTC-26DEC25", "BTC-26DEC25-60000-C", "BTC_USDC"]
    specs = [_spec(native) for native in natives]
    brought: set[int] = set()
    for spec in specs:
        for each in DERIBIT.subscriptions(spec, EVERYTHING):
            assert each.native_symbol == spec.native_symbol
            assert (each.quiet_seconds == 0) == each.topic.startswith("trades.")
            brought.update(each.kinds)
    for each in DERIBIT.shared_subscriptions(specs, EVERYTHING):
        brought.update(each.kinds)
    assert brought == DERIBIT.kinds
    assert common_pb2.EVENT_KIND_LONG_SHORT_RATIO not in DERIBIT.kinds


def test_indexes_are_shared_by_their_instruments() -> None:
    specs = [_spec(native) for native in ("BTC-PERPETUAL", "BTC-26DEC25", "SOL_USDC-PERPETUAL")]
    topics = [each.topic for each in DERIBIT.shared_subscriptions(specs, EVERYTHING)]
    assert topics == [
        "instrument.state.future.any",
        "instrument.state.option.any",
        "instrument.state.spot.any",
        "deribit_price_index.btc_usd",
        "deribit_price_index.sol_usdc",
        "deribit_volatility_index.btc_usd",
    ]
    only = Selection(frozenset({common_pb2.EVENT_KIND_TRADE}))
    others = DERIBIT.shared_subscriptions(specs, only)
    assert [each.topic for each in others] == topics[:3], "no news of combinations"


@pytest.mark.parametrize("method", ["subscribe", "unsubscribe"])
def test_requests_carry_as_many_channels_as_the_venue_takes(method: str) -> None:
    topics = [f"quote.X{n}" for n in range(501)]
    made = getattr(DERIBIT, method)(topics, 7)
    assert [(each.request_id, len(each.topics)) for each in made] == [(7, 500), (8, 1)]
    request = json.loads(made[1].frame)
    assert request == {"jsonrpc": "2.0", "id": 8, "method": f"public/{method}",
                       "params": {"channels": ["quote.X500"]}}  # fmt: skip
    assert getattr(DERIBIT, method)([], 1) == []


def test_a_connection_begins_with_heartbeats() -> None:
    (request,) = DERIBIT.opening_requests(1)
    assert request.topics == ()
    assert json.loads(request.frame) == {
        "jsonrpc": "2.0", "id": 1, "method": "public/set_heartbeat", "params": {"interval": 30},
    }  # fmt: skip


def test_the_rules_are_those_of_the_credits() -> None:
    rules = DERIBIT.connection_rules
    assert (rules.topics, rules.life_seconds, rules.keepalive_frame) == (500, 0, "")
    assert rules.request_seconds >= 3000 / 10_000
    assert rules.connects <= 32
    pool = DERIBIT.rest_pool
    assert pool.limit / pool.window_seconds <= 10_000 / 500
    assert DERIBIT.route_url("ws://127.0.0.1:1/ws/api/v2", "") == "ws://127.0.0.1:1/ws/api/v2"


# REST


_LISTED = [
    {"instrument_name": "BTC-PERPETUAL", "kind": "future", "instrument_type": "reversed",
     "base_currency": "BTC", "quote_currency": "USD", "counter_currency": "USD",
     "settlement_currency": "BTC", "settlement_period": "perpetual", "tick_size": 0.5,
     "tick_size_steps": [], "min_trade_amount": 10.0, "contract_size": 10.0, "is_active": True,
     "state": "open", "expiration_timestamp": 32503708800000, "price_index": "btc_usd"},
    {"instrument_name": "SOL_USDC-26DEC25", "kind": "future", "instrument_type": "linear",
     "base_currency": "SOL", "quote_currency": "USDC", "settlement_currency": "USDC",
     "settlement_period": "month", "tick_size": 0.01, "min_trade_amount": 0.1,
     "contract_size": 0.1, "is_active": True, "state": "locked",
     "expiration_timestamp": 1766736000000, "price_index": "sol_usdc"},
    {"instrument_name": "BTC-27MAR26-60000-C", "kind": "option", "instrument_type": "reversed",
     "base_currency": "BTC", "quote_currency": "BTC", "settlement_currency": "BTC",
     "settlement_period": "month", "tick_size": 1e-4, "min_trade_amount": 0.1,
     "tick_size_steps": [{"above_price": 0.005, "tick_size": 0.0005}], "contract_size": 1.0,
     "is_active": True, "expiration_timestamp": 1774598400000, "strike": 60000.0,
     "option_type": "call", "price_index": "btc_usd"},
    {"instrument_name": "XRP_USDC-26DEC25-1d02-P", "kind": "option", "instrument_type": "linear",
     "base_currency": "XRP", "quote_currency": "USDC", "settlement_currency": "USDC",
     "tick_size": 0.0002, "min_trade_amount": 1000, "contract_size": 1000, "is_active": False,
     "expiration_timestamp": 1766736000000, "strike": 1.02, "option_type": "put",
     "price_index": "xrp_usdc"},
    {"instrument_name": "BTC_USDC", "kind": "spot", "instrument_type": "linear",
     "base_currency": "BTC", "quote_currency": "USDC", "tick_size": 1, "min_trade_amount": 1e-4,
     "contract_size": 1e-4, "is_active": True, "price_index": "btc_usdc",
     "expiration_timestamp": 32503708800000},
    {"instrument_name": "BTC-FS-26DEC25_PERP", "kind": "future_combo", "base_currency": "BTC",
     "quote_currency": "USD", "tick_size": 0.5, "min_trade_amount": 10, "is_active": True},
    {"instrument_name": "BTC-CS-26DEC25-90000_95000", "kind": "option_combo",
     "base_currency": "BTC", "quote_currency": "BTC", "is_active": True},
]  # fmt: skip


def _listed() -> dict[str, InstrumentSpec]:
    specs = DERIBIT.decode_instruments(json.dumps({"result": _LISTED}).encode())
    return {spec.native_symbol: spec for spec in specs}


def test_the_list_of_instruments_is_read_without_combinations() -> None:
    specs = _listed()
    assert list(specs) == [each["instrument_name"] for each in _LISTED[:5]]
    perpetual = specs["BTC-PERPETUAL"]
    assert perpetual == InstrumentSpec(
        "deribit", "BTC-USD-PERP", "BTC-PERPETUAL", "BTC", "USD", "0.5", "10", "10", "", True,
        instrument_pb2.INSTRUMENT_KIND_PERPETUAL, "BTC", "1", instrument_pb2.QUANTITY_UNIT_QUOTE,
        0, "", instrument_pb2.OPTION_RIGHT_UNSPECIFIED, "btc_usd", "BTC",
    )  # fmt: skip
    option = specs["BTC-27MAR26-60000-C"]
    assert (option.tick_size, option.min_quantity, option.strike) == ("0.0001", "0.1", "60000")
    assert option.quantity_unit == instrument_pb2.QUANTITY_UNIT_BASE, "the type speaks of prices"
    linear = specs["SOL_USDC-26DEC25"]
    assert (linear.quantity_unit, linear.trading) == (instrument_pb2.QUANTITY_UNIT_BASE, False)
    spot = specs["BTC_USDC"]
    assert (spot.kind, spot.settlement, spot.underlying, spot.expiry_time, spot.lot_size) == (
        instrument_pb2.INSTRUMENT_KIND_SPOT, "", "", 0, "0.0001",
    )  # fmt: skip


def test_a_name_alone_tells_the_same_as_the_list() -> None:
    for native, listed in _listed().items():
        inferred = DERIBIT.infer_instrument(native)
        for name in ("symbol", "base", "quote", "kind", "settlement", "quantity_unit", "strike",
                     "expiry_time", "option_right", "underlying", "contract_size"):  # fmt: skip
            assert getattr(inferred, name) == getattr(listed, name), (native, name)


def test_a_list_of_2021_has_fewer_fields() -> None:
    item = {"instrument_name": "ETH-24SEP21", "kind": "future", "base_currency": "ETH",
            "quote_currency": "USD", "tick_size": "x", "min_trade_amount": -1,
            "settlement_period": "month", "is_active": True,
            "expiration_timestamp": 1632470400000}  # fmt: skip
    (spec,) = DERIBIT.decode_instruments(json.dumps({"result": [item]}).encode())
    assert (spec.symbol, spec.settlement, spec.underlying) == ("ETH-USD-20210924", "ETH", "eth_usd")
    assert spec.quantity_unit == instrument_pb2.QUANTITY_UNIT_QUOTE
    assert (spec.tick_size, spec.lot_size) == ("", "")


def test_instruments_are_asked_for_by_kind() -> None:
    requests = DERIBIT.instrument_requests()
    assert {request.path for request in requests} == {"/api/v2/public/get_instruments"}
    assert [request.query["kind"] for request in requests] == ["future", "option", "spot"]
    assert sum(request.weight for request in requests) <= DERIBIT.rest_pool.limit


def test_a_book_is_asked_for_at_a_depth_that_the_venue_has() -> None:
    for wanted, asked in ((1, "1"), (7, "10"), (50, "50"), (400, "1000"), (99_999, "10000")):
        assert DERIBIT.snapshot_request("X", wanted).query["depth"] == asked
    request = DERIBIT.snapshot_request("X", 5)
    body = b'{"result":{"change_id":4,"timestamp":2,"bids":[[1.5,2.0]],"asks":[]},"usOut":1}'
    assert DERIBIT.decode_snapshot(body, request) == BookSnapshot(
        4, [("1.5", "2.0")], [], 5, 2 * MS, 0, "X"
    )
    with pytest.raises(MalformedFrameError, match="too_many") as caught:
        DERIBIT.decode_snapshot(b'{"error":{"code":10028,"message":"too_many"}}', request)
    assert caught.value.native_symbol == "X"


def test_past_trades_are_asked_for_by_number() -> None:
    request = DERIBIT.trades_request("X", 100, 5000)
    assert request.path == "/api/v2/public/get_last_trades_by_instrument"
    assert request.query == {"instrument_name": "X", "start_seq": "100", "end_seq": "1099",
                             "count": "1000", "sorting": "asc"}  # fmt: skip
    first, second = json.loads(trade())[0], json.loads(trade(trade_seq=6))[0]
    body = json.dumps({"result": {"trades": [first, second], "has_more": False}}).encode()
    assert [each.trade_id for each in DERIBIT.decode_trades(body, "X")] == [6, 7]


@pytest.mark.parametrize(
    ("status", "body", "seconds"),
    [
        (429, b"", 0.0),
        (400, b'{"error":{"code":10028,"message":"too_many_requests"}}', 0.0),
        (503, b'{"jsonrpc":"2.0","error":{"code":11051,"message":"system_maintenance"}}', 0.0),
        (200, b'{"error":{"code":10028}}', 0.0),
        (400, b'{"error":{"code":13020,"message":"not_found"}}', None),
        (502, b"<html>", None),
        (200, b'{"result":[]}', None),
    ],
)
def test_an_answer_says_when_we_ask_too_much(
    status: int, body: bytes, seconds: float | None
) -> None:
    assert DERIBIT.rest_refusal(status, body) == seconds


def test_there_is_nothing_to_poll() -> None:
    assert DERIBIT.polls([_spec("BTC-PERPETUAL")], EVERYTHING) == []
    poll = Poll(common_pb2.EVENT_KIND_TICKER, RestRequest("/x", 1), 60.0)
    with pytest.raises(MalformedFrameError):
        DERIBIT.decode_poll(b"{}", poll)
