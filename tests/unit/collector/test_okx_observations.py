"""What OKX sends of today beside the recordings: every field in its place, and the odd cases."""

import json
from typing import Any

import pytest
from marketprism.market.v1 import common_pb2, events_pb2

from services.collector.venues.base import (
    InstrumentsChanged,
    MalformedFrameError,
    Observation,
    Several,
)
from tests.unit.collector.okx_support import MS, OKX, frame


def observation(text: str) -> Observation:
    message = OKX.decode(text)
    assert isinstance(message, Observation)
    return message


def fields(message: Any) -> dict[str, Any]:
    return {descriptor.name: value for descriptor, value in message.ListFields()}


@pytest.mark.parametrize(
    ("name", "base", "quote", "contracts"),
    [
        ("BTC-USDT", "7.5", "99", ()),
        ("BTC-USDT-SWAP", "99", "", ("last_quantity", "bid_quantity", "ask_quantity",
                                     "quote_volume")),
        ("BTC-USD_UM-SWAP", "99", "", ...),
        ("BTC-USD_UM_XPERP-310404", "99", "", ...),
        ("BTC-USD-SWAP", "99", "7.5", ...),
        ("BTC-USD-261225", "99", "7.5", ...),
        ("BTC-USD-261225-66000-C", "99", "", ...),
    ],
)  # fmt: skip
def test_volumes_are_told_in_the_currency_that_they_count(
    name: str, base: str, quote: str, contracts: Any
) -> None:
    data = {"instId": name, "ts": "5", "last": "1", "vol24h": "7.50", "volCcy24h": "99"}
    told = observation(frame("tickers", data, instId=name))
    message: Any = told.message
    assert (message.base_volume, message.quote_volume) == (base, quote)
    if contracts is not ...:
        assert told.contracts == contracts
    if quote == "7.5":
        assert "quote_volume" in told.contracts, "a number of contracts still"


@pytest.mark.parametrize(
    ("name", "base", "quote"), [("BTC-USDT", "3", "120"), ("BTC-USDT-SWAP", "0.03", "121")]
)
def test_a_candle_of_today_has_all_volumes_and_says_whether_it_is_closed(
    name: str, base: str, quote: str
) -> None:
    volumes = ["3", "120", "120"] if name == "BTC-USDT" else ["3", "0.03", "121"]
    rows = [["1700000000000", "1.0", "4", "0.5", "2", *volumes, closed] for closed in "01"]
    pushed = OKX.decode(frame("candle1Dutc", *rows, instId=name))
    assert isinstance(pushed, Several)
    going, closed = pushed.messages
    assert isinstance(going, Observation)
    assert isinstance(closed, Observation)
    message: Any = closed.message
    assert (going.kind, going.native_symbol, going.key) == (
        common_pb2.EVENT_KIND_CANDLE, name, "1Dutc",
    )  # fmt: skip
    assert (message.open_price, message.high_price, message.low_price, message.close_price) == (
        "1", "4", "0.5", "2",
    )  # fmt: skip
    assert (message.base_volume, message.quote_volume) == (base, quote)
    assert message.open_time.ToNanoseconds() == 1_700_000_000_000 * MS
    assert message.close_time.seconds - message.open_time.seconds == 86_400
    assert message.interval.seconds == 86_400
    assert (going.message.closed, message.closed) == (False, True)  # type: ignore[attr-defined]
    assert not message.HasField("exchange_time"), "OKX does not tell it"


def test_candles_of_months_have_no_length_and_are_left_out() -> None:
    row = ["1700000000000", "1", "4", "0.5", "2", "3", "120"]
    assert type(OKX.decode(frame("candle1Mutc", row))).__name__ == "Ignored"


def test_open_interest_in_dollars_is_quote_currency_only_where_prices_are_in_dollars() -> None:
    for name, quote in [("BTC-USDT-SWAP", ""), ("BTC-USD-SWAP", "5.5"), ("BTC-USD_UM-SWAP", "5.5")]:
        data = {"instId": name, "ts": "5", "oi": "10", "oiCcy": "0.10", "oiUsd": "5.50"}
        message: Any = observation(frame("open-interest", data, instId=name)).message
        assert fields(message)["open_interest_base"] == "0.1"
        assert (message.open_interest, message.open_interest_quote) == ("10", quote)


def liquidation(**changes: Any) -> dict[str, Any]:
    detail = {"bkLoss": "0", "bkPx": "82655.70", "ccy": "", "posSide": "long", "side": "sell",
              "sz": "8.55", "ts": "1791565600771", **changes}  # fmt: skip
    return {"instId": "BTC-USDT-SWAP", "instFamily": "BTC-USDT", "instType": "SWAP",
            "uly": "BTC-USDT", "details": [detail]}  # fmt: skip


def test_a_liquidation_is_the_order_that_closes_the_position() -> None:
    told = observation(frame("liquidation-orders", liquidation(), instType="SWAP"))
    message: Any = told.message
    assert fields(message) == {
        "side": common_pb2.SIDE_SELL, "price": "82655.7", "quantity": "8.55", "sampled": True,
        "exchange_time": message.exchange_time,
    }  # fmt: skip
    assert message.exchange_time.ToNanoseconds() == 1_791_565_600_771 * MS
    assert (told.native_symbol, told.contracts) == ("BTC-USDT-SWAP", ("quantity",))


@pytest.mark.parametrize(
    ("detail", "side"),
    [
        ({"side": "buy", "posSide": "short"}, common_pb2.SIDE_BUY),
        ({"side": "buy", "posSide": "net"}, common_pb2.SIDE_BUY),
        ({"side": "", "posSide": "long"}, common_pb2.SIDE_SELL),
        ({"side": "", "posSide": "short", "bkPx": "", "sz": ""}, common_pb2.SIDE_BUY),
        ({"side": "", "posSide": ""}, common_pb2.SIDE_UNSPECIFIED),
    ],
)
def test_the_side_is_that_of_the_order_or_follows_from_the_position(
    detail: dict[str, str], side: int
) -> None:
    told = observation(frame("liquidation-orders", liquidation(**detail), instType="SWAP"))
    assert told.message.side == side  # type: ignore[attr-defined]


def test_the_same_liquidation_has_the_same_id_and_others_have_others() -> None:
    def ids(*pushed: dict[str, Any]) -> list[str]:
        message = OKX.decode(frame("liquidation-orders", *pushed, instType="SWAP"))
        each = message.messages if isinstance(message, Several) else (message,)
        return [one.event_id for one in each if isinstance(one, Observation)]

    (one,) = ids(liquidation())
    assert ids(liquidation()) == [one], "however often it is told"
    twice = ids(liquidation(), liquidation())
    assert twice[0] == one
    assert len(set(twice)) == 2, "two that are alike within one frame are two"
    others = [liquidation(sz="9"), liquidation(bkPx="9"), liquidation(ts="9"),
              liquidation(side="buy")]  # fmt: skip
    assert len({one, *(ids(other)[0] for other in others)}) == 5
    assert all(len(each) <= 100 and " " not in each for each in (one, *twice))


def test_nothing_liquidated_is_nothing_told() -> None:
    empty = {**liquidation(), "details": []}
    assert OKX.decode(frame("liquidation-orders", empty, instType="SWAP")) == Several(())


def test_an_options_greeks_are_in_quote_currency_and_its_forward_is_told() -> None:
    data = {"instType": "OPTION", "instId": "BTC-USD-261225-66000-C", "uly": "BTC-USD",
            "delta": "0.19", "gamma": "4.7", "vega": "0.0002", "theta": "-0.004",
            "deltaBS": "0.20", "gammaBS": "0.0013", "vegaBS": "0.76", "thetaBS": "-16.40",
            "lever": "162", "markVol": "0.78", "bidVol": "", "askVol": "∞", "realVol": "",
            "volLv": "0.5", "fwdPx": "66100.10", "ts": "5"}  # fmt: skip
    told = observation(frame("opt-summary", data, instFamily="BTC-USD"))
    message: Any = told.message
    assert isinstance(message, events_pb2.OptionGreeks)
    assert fields(message) == {
        "delta": "0.2", "gamma": "0.0013", "vega": "0.76", "theta": "-16.4", "mark_iv": "0.78",
        "underlying_price": "66100.1", "underlying": "BTC-USD",
        "exchange_time": message.exchange_time,
    }  # fmt: skip


def test_a_funding_rate_that_tells_no_next_period_has_no_interval() -> None:
    data = {"instId": "A-B-SWAP", "fundingRate": "1e-5", "fundingTime": "1000",
            "nextFundingRate": "", "nextFundingTime": "", "ts": ""}  # fmt: skip
    message: Any = observation(frame("funding-rate", data, instId="A-B-SWAP")).message
    assert message.funding_rate == "0.00001"
    assert not message.HasField("funding_interval")
    assert not message.HasField("next_funding_time")
    assert not message.HasField("exchange_time")


def test_a_change_of_the_list_of_instruments_names_some_of_them() -> None:
    changed = [{"instId": f"A{n}-B", "instType": "SPOT", "state": "live"} for n in range(7)]
    assert OKX.decode(frame("instruments", *changed[:2], instType="SPOT")) == InstrumentsChanged(
        "A0-B live, A1-B live"
    )
    many = OKX.decode(frame("instruments", *changed, instType="SPOT"))
    assert isinstance(many, InstrumentsChanged)
    assert many.what.endswith("A4-B live and 2 more")


@pytest.mark.parametrize(
    ("channel", "data"),
    [
        ("tickers", {"instId": "A-B", "ts": "5", "last": "x"}),
        ("tickers", {"instId": "A-B", "last": "1"}),
        ("candle1m", ["5", "1", "2", "3"]),
        ("candle1m", ["5", "1", "2", "3", "4", "5", "6", "7", "2"]),
        ("mark-price", {"instId": "A-B", "ts": "5", "markPx": ""}),
        ("index-tickers", {"instId": "A-B", "ts": "-5", "idxPx": "1"}),
        ("open-interest", {"instId": "A-B", "ts": "5", "oi": ""}),
        ("funding-rate", {"instId": "A-B", "fundingRate": "1", "fundingTime": "soon"}),
        ("liquidation-orders", {"instId": "A-B", "details": [{"ts": "5", "side": "up"}]}),
        ("opt-summary", {"instId": "A-B", "ts": "5", "deltaBS": "NaN"}),
    ],
)
def test_what_is_malformed_says_so_and_does_not_concern_the_book(channel: str, data: Any) -> None:
    with pytest.raises(MalformedFrameError) as caught:
        OKX.decode(frame(channel, data))
    assert not caught.value.concerns_book
    assert "okx: " in str(caught.value)


def test_a_recorder_may_put_the_frame_beside_its_own_time() -> None:
    pushed = frame("mark-price", {"instId": "A-B-SWAP", "ts": "5", "markPx": "7"})
    wrapped = json.dumps({"localTimestamp": "2026-08-04T19:14:00.033Z",
                          "message": json.loads(pushed)})  # fmt: skip
    assert OKX.decode(wrapped) == OKX.decode(pushed)
