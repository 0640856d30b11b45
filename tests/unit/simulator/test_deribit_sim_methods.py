"""Deribit's public methods: what they answer and refuse, and that nothing makes them fail."""

import contextlib
import json
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.simulator.deribit import Deribit
from services.simulator.deribit_methods import VERSION, DeribitMethods
from services.simulator.deribit_rpc import INVALID_PARAMS, RpcError
from services.simulator.deribit_view import DeribitView
from services.simulator.fixed import canonical
from services.simulator.generated import GeneratedMarket
from services.simulator.venues import generated_market

_START = 1_795_000_000_000_000
_OPTION = "BTC-25DEC26-60000-C"


def _methods(**options: Any) -> tuple[GeneratedMarket, DeribitMethods]:
    market = generated_market(
        Deribit(),
        **{
            "symbols": ("BTC-PERPETUAL", "SOL_USDC-PERPETUAL", "BTC-25DEC26", _OPTION),
            "start_time_us": _START,
            "levels": 60,
            "trade_rate": 40.0,
            **options,
        },
    )
    return market, DeribitMethods(DeribitView(market, 5000), market.book, lambda: market.now_us)


_MARKET, _METHODS = _methods()


def _call(method: str, **params: object) -> Any:
    return json.loads(_METHODS.call(f"public/{method}", params), parse_float=Decimal)


def _refusal(method: str, **params: object) -> RpcError:
    with pytest.raises(RpcError) as refused:
        _METHODS.call(method, params)
    return refused.value


def test_test_and_hello_tell_the_version() -> None:
    assert _call("test") == {"version": VERSION}
    assert _call("hello", client_name="a", client_version="1") == {"version": VERSION}
    assert _refusal("public/hello").data == {
        "reason": "value is required",
        "param": "client_name",
    }


def test_the_time_is_in_milliseconds() -> None:
    assert _call("get_time") == _MARKET.now_us // 1000


@pytest.mark.parametrize(
    ("params", "count"),
    [
        ({}, 4),
        ({"currency": "any"}, 4),
        ({"currency": "BTC"}, 3),
        ({"currency": "USDC"}, 1),
        ({"currency": "BTC", "kind": "future"}, 2),
        ({"currency": "BTC", "kind": "option"}, 1),
        ({"kind": "spot"}, 0),
        ({"currency": "BTC", "expired": "true"}, 0),
    ],
)
def test_instruments_are_listed_by_currency_and_kind(params: dict[str, str], count: int) -> None:
    assert len(_call("get_instruments", **params)) == count


def test_a_changed_tick_is_told_by_the_list() -> None:
    market, methods = _methods()
    market.change_tick("BTC-PERPETUAL", 10**8)
    told = json.loads(methods.call("public/get_instrument", {"instrument_name": "BTC-PERPETUAL"}))
    assert told["tick_size"] == 1.0


@pytest.mark.parametrize(
    ("method", "params", "reason"),
    [
        ("get_instruments", {"currency": "NOPE"}, "invalid currency"),
        ("get_instruments", {"kind": "NOPE"}, "invalid kind"),
        ("get_instruments", {"expired": "maybe"}, "value must be boolean"),
        ("ticker", {}, "value is required"),
        ("ticker", {"instrument_name": "NOPE"}, "instrument not found"),
        ("ticker", {"instrument_name": ["BTC-PERPETUAL"]}, "wrong format"),
        ("get_order_book", {"instrument_name": "BTC-PERPETUAL", "depth": 7}, "must be one of"),
        ("get_order_book", {"instrument_name": "BTC-PERPETUAL", "depth": "x"}, "integer"),
        ("get_last_trades_by_instrument", {"instrument_name": _OPTION, "count": 0}, "between"),
        ("get_last_trades_by_instrument", {"instrument_name": _OPTION, "sorting": "up"}, "one of"),
        ("get_index_price", {"index_name": "nope_usd"}, "invalid index_name"),
        ("get_funding_rate_value", {"instrument_name": _OPTION}, "not a perpetual"),
        (
            "get_volatility_index_data",
            {"currency": "BTC", "resolution": "7", "start_timestamp": 0, "end_timestamp": 1},
            "must be one of",
        ),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(
    method: str, params: dict[str, Any], reason: str
) -> None:
    refused = _refusal(f"public/{method}", **params)
    assert (refused.code, refused.message) == (INVALID_PARAMS, "Invalid params")
    assert isinstance(refused.data, dict)
    assert reason in refused.data["reason"]


def test_unknown_and_private_methods_have_the_venues_codes() -> None:
    assert _refusal("public/nope").code == -32601
    private = _refusal("private/buy")
    assert (private.code, private.data) == (13009, {"reason": "invalid_token"})


def test_an_order_book_holds_the_ticker_and_the_true_levels() -> None:
    told = _call("get_order_book", instrument_name="BTC-PERPETUAL", depth=20)
    truth = _MARKET.book_at("BTC-PERPETUAL", told["change_id"], 20)
    assert [(Decimal(price), Decimal(amount)) for price, amount in told["bids"]] == [
        (Decimal(canonical(price)), Decimal(canonical(amount))) for price, amount in truth.bids
    ]
    assert told["best_ask_price"] == told["asks"][0][0]
    assert set(_call("ticker", instrument_name="BTC-PERPETUAL")) < set(told)


def test_trades_are_paged_in_both_directions() -> None:
    name = "BTC-PERPETUAL"
    newest = _call("get_last_trades_by_instrument", instrument_name=name, count=5)
    sequences = [trade["trade_seq"] for trade in newest["trades"]]
    assert sequences == sorted(sequences, reverse=True)
    assert newest["has_more"] is True
    first, last = sequences[-1], sequences[0]
    again = _call(
        "get_last_trades_by_instrument",
        instrument_name=name,
        start_seq=first,
        end_seq=last,
        count=1000,
        sorting="asc",
    )
    assert again == {"trades": newest["trades"][::-1], "has_more": False}
    page = _call("get_last_trades_by_instrument", instrument_name=name, start_seq=first, count=2)
    assert [trade["trade_seq"] for trade in page["trades"]] == [first, first + 1]
    assert page["has_more"] is True
    beyond = _call("get_last_trades_by_instrument", instrument_name=name, start_seq=last + 10**6)
    assert beyond == {"trades": [], "has_more": False}


def test_funding_adds_up_over_time() -> None:
    hours = [
        _call(
            "get_funding_rate_value",
            instrument_name="BTC-PERPETUAL",
            start_timestamp=0,
            end_timestamp=count * 3_600_000,
        )
        for count in (0, 8, 16)
    ]
    assert hours[0] == 0
    assert hours[2] == 2 * hours[1]


def test_volatility_candles_meet_and_are_paged_by_their_continuation() -> None:
    now = _MARKET.now_us // 1000
    told = _call(
        "get_volatility_index_data",
        currency="BTC",
        resolution="60",
        start_timestamp=now - 1500 * 60_000,
        end_timestamp=now,
    )
    assert len(told["data"]) == 1000
    assert told["continuation"] < told["data"][0][0]
    for before, after in zip(told["data"], told["data"][1:-1], strict=False):
        assert (before[0] + 60_000, before[4]) == (after[0], after[1])
        assert before[3] <= min(before[1], before[4])
        assert max(before[1], before[4]) <= before[2]
    rest = _call(
        "get_volatility_index_data",
        currency="BTC",
        resolution="60",
        start_timestamp=now - 1500 * 60_000,
        end_timestamp=told["continuation"],
    )
    assert rest["continuation"] is None
    assert rest["data"][-1][0] + 60_000 == told["data"][0][0]


_VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["BTC-PERPETUAL", _OPTION, "BTC", "btc_usd", "60", "asc", "any", "future"])
    | st.lists(st.integers())
)


@settings(deadline=None)
@given(
    st.sampled_from(_METHODS.names()),
    st.dictionaries(
        st.sampled_from(
            [
                "instrument_name",
                "currency",
                "kind",
                "expired",
                "depth",
                "count",
                "sorting",
                "start_seq",
                "end_seq",
                "index_name",
                "resolution",
                "start_timestamp",
                "end_timestamp",
                "client_name",
            ]
        ),
        _VALUES,
    ),
)
def test_no_parameters_make_a_method_fail(method: str, params: dict[str, Any]) -> None:
    begun = time.monotonic()
    with contextlib.suppress(RpcError):
        json.loads(_METHODS.call(method, params))
    assert time.monotonic() - begun < 5
