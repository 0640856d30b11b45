"""A venue is collected live only where the collector can, and the rest is refused in a sentence."""

from pathlib import Path

import pytest

from services.collector.service import CollectorService
from services.collector.venues.registry import (
    adapter_for_exchange,
    exchange_for_url,
    exchanges,
    live_adapter_for_exchange,
    live_exchanges,
)
from services.shared.errors import ConfigError, InvalidArgument
from services.shared.settings import MeshSettings


def test_every_adapter_knows_its_venue() -> None:
    assert [adapter_for_exchange(exchange).exchange for exchange in exchanges()] == exchanges()
    assert set(live_exchanges()) < set(exchanges())


@pytest.mark.parametrize("exchange", ["okx", "binance_usdm", "binance_coinm", "deribit"])
def test_what_can_only_be_verified_is_not_collected(exchange: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot be collected live yet, only its captures"):
        live_adapter_for_exchange(exchange)


def test_configuring_such_a_venue_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "collector.yaml").write_text(
        "exchanges:\n  okx:\n    rest_url: https://www.okx.com\n"
        "    ws_url: wss://ws.okx.com:8443/ws/v5/public\n    symbols: [BTC-USDT]\n"
    )
    expected = r"collector\.yaml: exchanges\.okx: .*expected one of binance, binance_us$"
    with pytest.raises(ConfigError, match=expected):
        CollectorService.from_config(MeshSettings(), tmp_path)


@pytest.mark.parametrize(
    ("url", "exchange"),
    [
        ("wss://stream.binance.com:9443/stream", "binance"),
        ("wss://fstream.binance.com/public/stream", "binance_usdm"),
        ("https://fapi.binance.com/fapi/v1/depth?symbol=BTCUSDT", "binance_usdm"),
        ("wss://dstream.binance.com/stream", "binance_coinm"),
        ("https://dapi.binance.com/dapi/v1/depth", "binance_coinm"),
        ("wss://ws.okx.com:8443/ws/v5/public", "okx"),
        ("wss://wsaws.okx.com:8443/ws/v5/public", "okx"),
        ("wss://ws.okex.com:8443/ws/v5/public", "okx"),
        ("https://www.okx.com/api/v5/public/instruments", "okx"),
        ("wss://ws.okx.com.example.org/", None),
        ("wss://streams.deribit.com/ws/api/v2", "deribit"),
        ("wss://www.deribit.com/ws/api/v2", "deribit"),
        ("wss://test.deribit.com/ws/api/v2", "deribit"),
        ("https://history.deribit.com/api/v2/public/get_instruments?currency=BTC", "deribit"),
        ("wss://www.deribit.com.example.org/", None),
        ("wss://notderibit.com/", None),
    ],
)
def test_hosts_tell_the_venue(url: str, exchange: str | None) -> None:
    assert exchange_for_url(url) == exchange
