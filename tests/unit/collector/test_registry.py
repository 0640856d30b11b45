"""Venues are known by their ids and by their addresses."""

from pathlib import Path

import pytest

from services.collector.service import CollectorService
from services.collector.venues.registry import (
    adapter_for_exchange,
    exchange_for_url,
    exchanges,
)
from services.shared.errors import ConfigError
from services.shared.settings import MeshSettings


def test_every_adapter_knows_its_venue() -> None:
    assert [adapter_for_exchange(exchange).exchange for exchange in exchanges()] == exchanges()


def test_a_venue_without_an_adapter_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "collector.yaml").write_text("exchanges:\n  mtgox:\n    symbols: [BTC-USD]\n")
    expected = r"collector\.yaml: exchanges\.mtgox: .*expected one of binance, binance_coinm, "
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
