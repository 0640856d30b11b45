"""A canonical symbol leads to the venue's own name, and back through the venue's adapter."""

import pytest

from services.cli.venue_names import can_match, native_name
from services.collector.venues.deribit_names import spec_of_name
from services.collector.venues.okx_instruments import infer_spec
from services.simulator.venues import VENUES


@pytest.mark.parametrize(
    ("exchange", "symbol", "name"),
    [
        ("binance", "BTC-USDT", "BTCUSDT"),
        ("binance_us", "ETH-USD", "ETHUSD"),
        ("binance_usdm", "BTC-USDT-PERP", "BTCUSDT"),
        ("binance_usdm", "BTC-USDT-20261225", "BTCUSDT_261225"),
        ("binance_coinm", "BTC-USD-PERP", "BTCUSD_PERP"),
        ("binance_coinm", "BTC-USD-20261225", "BTCUSD_261225"),
        ("okx", "BTC-USDT", "BTC-USDT"),
        ("okx", "BTC-USD-PERP", "BTC-USD-SWAP"),
        ("okx", "BTC-USD-20261225-60000-C", "BTC-USD-261225-60000-C"),
        ("deribit", "BTC-USD-PERP", "BTC-PERPETUAL"),
        ("deribit", "SOL-USDC-PERP", "SOL_USDC-PERPETUAL"),
        ("deribit", "BTC-USD-20260206", "BTC-6FEB26"),
        ("deribit", "XRP-USDC-20261225-1d02-C", "XRP_USDC-25DEC26-1d02-C"),
    ],
)
def test_the_name_is_the_venues_own(exchange: str, symbol: str, name: str) -> None:
    assert native_name(exchange, symbol) == name
    if exchange == "deribit":
        assert spec_of_name(exchange, name).symbol == symbol
    if exchange == "okx":
        assert infer_spec(exchange, name).symbol == symbol


@pytest.mark.parametrize("exchange", sorted(VENUES))
def test_every_simulated_venue_can_have_something(exchange: str) -> None:
    symbols = ("BTC-USDT", "BTC-USDT-PERP", "BTC-USD-PERP")
    names = [name for symbol in symbols if (name := native_name(exchange, symbol)) is not None]
    assert names
    for name in names:
        assert VENUES[exchange]().listed(name).spec.symbol == name


@pytest.mark.parametrize(
    ("exchange", "symbol"),
    [
        ("binance", "BTC-USDT-PERP"),
        ("binance_usdm", "BTC-USDT"),
        ("binance_usdm", "BTC-USD-PERP"),
        ("binance_coinm", "BTC-USDT-PERP"),
        ("deribit", "BTC-USDT-PERP"),
        ("binance", "BTCUSDT"),
        ("binance", "btc-usdt"),
        ("nowhere", "BTC-USDT"),
    ],
)
def test_what_a_venue_cannot_have_has_no_name(exchange: str, symbol: str) -> None:
    assert native_name(exchange, symbol) is None


@pytest.mark.parametrize(
    ("pattern", "exchanges"),
    [
        ("*", {"binance", "binance_usdm", "binance_coinm", "okx", "deribit"}),
        ("BTC-*", {"binance", "binance_usdm", "binance_coinm", "okx", "deribit"}),
        ("*-USDT", {"binance", "okx"}),
        ("*-PERP", {"binance_usdm", "binance_coinm", "okx", "deribit"}),
        ("*-USD-20261225", {"binance_usdm", "binance_coinm", "okx", "deribit"}),
        ("BTC-USD-*-C", {"okx", "deribit"}),
        ("BTC-USD-PERP", {"binance_coinm", "okx", "deribit"}),
    ],
)
def test_a_pattern_is_for_venues_that_can_have_what_it_ends_with(
    pattern: str, exchanges: set[str]
) -> None:
    asked = ("binance", "binance_usdm", "binance_coinm", "okx", "deribit")
    assert {exchange for exchange in asked if can_match(exchange, pattern)} == exchanges
