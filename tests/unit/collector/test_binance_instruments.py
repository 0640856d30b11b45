"""Binance's lists of instruments become descriptions with canonical names, each name of one."""

import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from marketprism.market.v1 import instrument_pb2 as pb

from services.collector.venues.base import MalformedFrameError
from services.shared.capture import read_capture
from tests.unit.collector.binance_support import COINM, SPOT, US, USDM
from tests.unit.collector.support import captures

CHRISTMAS = int(datetime(2026, 12, 25, 8, tzinfo=UTC).timestamp())
STEPS = [
    {"filterType": "PRICE_FILTER", "tickSize": "0.10"},
    {"filterType": "LOT_SIZE", "stepSize": "1", "minQty": "1"},
    {"filterType": "MIN_NOTIONAL", "notional": "5"},
]


def _inverse(**change: Any) -> dict[str, Any]:
    return {
        "symbol": "BTCUSD_PERP", "pair": "BTCUSD", "contractType": "PERPETUAL",
        "deliveryDate": 4133404800000, "contractStatus": "TRADING", "contractSize": 100,
        "baseAsset": "BTC", "quoteAsset": "USD", "marginAsset": "BTC", "filters": STEPS, **change,
    }  # fmt: skip


def _linear(**change: Any) -> dict[str, Any]:
    return {
        "symbol": "BTCUSDT", "pair": "BTCUSDT", "contractType": "PERPETUAL",
        "deliveryDate": 4133404800000, "status": "TRADING", "baseAsset": "BTC",
        "quoteAsset": "USDT", "marginAsset": "USDT", "filters": STEPS, **change,
    }  # fmt: skip


def _body(*symbols: dict[str, Any]) -> bytes:
    return json.dumps({"symbols": symbols}).encode()


def test_inverse_contracts_count_units_of_the_quote_currency() -> None:
    (spec,) = COINM.decode_instruments(_body(_inverse()))
    assert (spec.symbol, spec.kind, spec.expiry_time) == (
        "BTC-USD-PERP", pb.INSTRUMENT_KIND_PERPETUAL, 0,
    )  # fmt: skip
    assert (spec.settlement, spec.contract_size, spec.quantity_unit) == (
        "BTC", "100", pb.QUANTITY_UNIT_QUOTE,
    )  # fmt: skip
    assert (spec.underlying, spec.family) == ("BTCUSD", "BTCUSD")
    # One contract is the least that can be ordered.
    assert (spec.tick_size, spec.lot_size, spec.min_quantity) == ("0.1", "100", "100")


@pytest.mark.parametrize(
    ("change", "symbol", "kind", "expiry"),
    [
        ({}, "BTC-USDT-PERP", pb.INSTRUMENT_KIND_PERPETUAL, 0),
        ({"symbol": "TSLAUSDT", "baseAsset": "TSLA", "contractType": "TRADIFI_PERPETUAL"},
         "TSLA-USDT-PERP", pb.INSTRUMENT_KIND_PERPETUAL, 0),
        ({"contractType": "PERPETUAL_DELIVERING", "deliveryDate": CHRISTMAS * 1000},
         "BTC-USDT-PERP", pb.INSTRUMENT_KIND_PERPETUAL, 0),
        ({"symbol": "BTCUSDT_261225", "contractType": "NEXT_QUARTER",
          "deliveryDate": CHRISTMAS * 1000},
         "BTC-USDT-20261225", pb.INSTRUMENT_KIND_FUTURE, CHRISTMAS),
        ({"symbol": "BTCUSDT_261225", "contractType": "CURRENT_QUARTER DELIVERING",
          "deliveryDate": CHRISTMAS * 1000},
         "BTC-USDT-20261225", pb.INSTRUMENT_KIND_FUTURE, CHRISTMAS),
        ({"symbol": "BTCUSDT_261225", "contractType": "", "deliveryDate": 0},
         "BTC-USDT-20261225", pb.INSTRUMENT_KIND_FUTURE, CHRISTMAS),
        ({"symbol": "BTCUSDTQ", "contractType": "CURRENT_MONTH", "deliveryDate": CHRISTMAS * 1000},
         "BTC-USDT-20261225", pb.INSTRUMENT_KIND_FUTURE, CHRISTMAS),
    ],
)  # fmt: skip
def test_the_term_of_a_contract_is_in_its_name(
    change: dict[str, Any], symbol: str, kind: int, expiry: int
) -> None:
    (spec,) = USDM.decode_instruments(_body(_linear(**change)))
    assert (spec.symbol, spec.kind, spec.expiry_time) == (symbol, kind, expiry * 10**9)
    assert (spec.settlement, spec.contract_size, spec.quantity_unit) == (
        "USDT", "1", pb.QUANTITY_UNIT_BASE,
    )  # fmt: skip
    assert spec.min_notional == "5"


@pytest.mark.parametrize(
    "status",
    ["PENDING_TRADING", "PRE_DELIVERING", "DELIVERING", "PRE_SETTLE", "TRADING_HALT", "BREAK", ""],
)
def test_only_what_trades_is_trading(status: str) -> None:
    assert not USDM.decode_instruments(_body(_linear(status=status)))[0].trading
    assert not COINM.decode_instruments(_body(_inverse(contractStatus=status)))[0].trading
    assert USDM.decode_instruments(_body(_linear()))[0].trading
    assert COINM.decode_instruments(_body(_inverse()))[0].trading
    info = {"symbol": "AB", "status": status, "baseAsset": "A", "quoteAsset": "B"}
    assert not SPOT.decode_instruments(_body(info))[0].trading


@pytest.mark.parametrize("status", ["DELIVERED", "SETTLING", "CLOSE"])
def test_a_contract_that_is_over_is_no_longer_listed(status: str) -> None:
    other = {"symbol": "ETHUSD_PERP", "baseAsset": "ETH"}
    linear = USDM.decode_instruments(_body(_linear(status=status)))
    inverse = COINM.decode_instruments(_body(_inverse(contractStatus=status), _inverse(**other)))
    assert [spec.native_symbol for spec in (*linear, *inverse)] == ["ETHUSD_PERP"]


def test_a_name_belongs_to_what_trades_and_another_keeps_its_own() -> None:
    old = {"symbol": "OLDAB", "status": "BREAK", "baseAsset": "A", "quoteAsset": "B"}
    specs = SPOT.decode_instruments(
        _body(old, {**old, "symbol": "AB", "status": "TRADING"}, {**old, "symbol": "OLDERAB"})
    )
    assert [spec.symbol for spec in specs] == ["OLDAB", "A-B", "OLDERAB"]


@pytest.mark.parametrize("size", [0, "x", "-1"])
def test_a_contract_size_that_is_none_is_taken_to_be_the_usual_one(size: int | str) -> None:
    other = {"symbol": "ETHUSD_PERP", "baseAsset": "ETH", "contractSize": size}
    specs = COINM.decode_instruments(_body(_inverse(contractSize=size), _inverse(**other)))
    assert [spec.contract_size for spec in specs] == ["100", "10"]


def test_a_list_that_is_none_is_malformed() -> None:
    for adapter in (SPOT, USDM, COINM):
        for body in (b"", b"{}", b'{"symbols":[{}]}', b'{"code":-1003,"msg":"x"}'):
            with pytest.raises(MalformedFrameError):
                adapter.decode_instruments(body)


# From the name alone


@pytest.mark.parametrize(
    ("adapter", "native", "symbol"),
    [
        (SPOT, "BTCUSDT", "BTC-USDT"),
        (SPOT, "BTCU", "BTC-U"),
        (US, "DOTUSD", "DOT-USD"),
        (USDM, "BTCUSDT", "BTC-USDT-PERP"),
        (USDM, "1000SHIBUSDC", "1000SHIB-USDC-PERP"),
        (USDM, "BTCUSDT_261225", "BTC-USDT-20261225"),
        (COINM, "BTCUSD_PERP", "BTC-USD-PERP"),
        (COINM, "DOTUSD_PERP", "DOT-USD-PERP"),
        (COINM, "AVAXUSD_261225", "AVAX-USD-20261225"),
        (USDM, "ODD", "ODD-PERP"),
        (USDM, "BTCUSDT_SETTLED", "BTC-USDT-SETTLED"),
    ],
)
def test_a_name_alone_tells_the_canonical_symbol(adapter: Any, native: str, symbol: str) -> None:
    assert adapter.infer_instrument(native).symbol == symbol


def test_a_name_alone_tells_what_a_contract_is() -> None:
    spec = COINM.infer_instrument("BTCUSD_261225")
    assert spec == COINM.decode_instruments(
        _body(_inverse(symbol="BTCUSD_261225", contractType="CURRENT_QUARTER",
                       deliveryDate=CHRISTMAS * 1000, filters=[]))
    )[0]  # fmt: skip
    assert spec.kind == pb.INSTRUMENT_KIND_FUTURE
    assert COINM.infer_instrument("ETHUSD_PERP").contract_size == "10"
    assert USDM.infer_instrument("BTCUSDT_269999").expiry_time == 0


# Lists that the venues sent


@pytest.mark.parametrize(
    ("name", "adapter", "count", "inferred"),
    [("BINANCE", SPOT, 1695, 1), ("BINANCE_US", US, 121, 0.99), ("BINANCE_FUTURES", USDM, 122, 1)],
)
def test_names_of_a_recorded_list_are_of_one_each_and_can_be_inferred(
    name: str, adapter: Any, count: int, inferred: float
) -> None:
    for record in read_capture(captures("streams", f"{name}.jsonl.gz")):
        if record.kind == "http" and "exchangeInfo" in (record.url or ""):
            specs = adapter.decode_instruments(record.payload())
            break
    assert len(specs) == count
    assert max(Counter(spec.symbol for spec in specs).values()) == 1
    same = [spec.symbol == adapter.infer_instrument(spec.native_symbol).symbol for spec in specs]
    assert sum(same) >= inferred * count
