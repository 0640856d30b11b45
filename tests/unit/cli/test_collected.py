"""The collector is told just what the command line asks for, and nothing of the rest."""

import json
from pathlib import Path

import pytest

from services.cli.collected import live_environment, simulated_environment
from services.cli.venue import DEMO_EXCHANGES, VenueOptions
from services.collector.settings import CollectorSettings
from services.shared.errors import ConfigError
from services.shared.settings import load_settings

E = "MARKETPRISM__COLLECTOR__EXCHANGES__"


def configured(**exchanges: object) -> CollectorSettings:
    return CollectorSettings.model_validate({"exchanges": exchanges})


BOTH = configured(
    binance={"symbols": ["BTC-USDT"]},
    okx={"symbols": ["BTC-USDT"]},
    deribit={"symbols": ["*"], "enabled": False},
)


def told(environment: dict[str, str], exchange: str) -> dict[str, str]:
    head = f"{E}{exchange.upper()}__"
    return {key[len(head) :]: value for key, value in environment.items() if key.startswith(head)}


def test_nothing_is_told_when_nothing_is_asked_for() -> None:
    assert live_environment((), (), BOTH) == {}


def test_only_the_venues_that_are_named_are_collected() -> None:
    environment = live_environment(("deribit", "okx"), (), BOTH)
    assert {name: told(environment, name)["ENABLED"] for name in BOTH.exchanges} == {
        "binance": "false",
        "okx": "true",
        "deribit": "true",
    }


def test_symbols_go_to_the_venues_that_can_have_them() -> None:
    environment = live_environment((), ("ETH-USDT-PERP", "*-EUR", "!X-EUR"), BOTH)
    assert json.loads(told(environment, "binance")["SYMBOLS"]) == ["*-EUR", "!X-EUR"]
    assert json.loads(told(environment, "okx")["SYMBOLS"]) == ["ETH-USDT-PERP", "*-EUR", "!X-EUR"]
    assert told(environment, "deribit") == {}, "what is switched off stays so"


def test_a_venue_that_can_have_none_of_the_symbols_is_left_out() -> None:
    environment = live_environment((), ("ETH-USDT-PERP",), BOTH)
    assert told(environment, "binance") == {"ENABLED": "false"}


@pytest.mark.parametrize(
    ("exchanges", "symbols", "what"),
    [
        (("kraken",), (), r"--exchanges: expected venues of config/collector.yaml, binance, okx"),
        (("binance",), ("BTC-USDT-PERP",), r"--symbols: expected something for binance"),
        ((), ("BTCUSDT",), r"--symbols: .* got 'BTCUSDT'"),
    ],
)
def test_what_cannot_be_collected_is_told(
    exchanges: tuple[str, ...], symbols: tuple[str, ...], what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        live_environment(exchanges, symbols, BOTH)


def test_simulated_venues_replace_the_live_ones_whatever_the_file_has(tmp_path: Path) -> None:
    (tmp_path / "collector.yaml").write_text(
        "exchanges:\n"
        "  binance_us: { symbols: [BTC-USDT] }\n"
        "  okx: { symbols: [BTC-USDT], silence_seconds: 3 }\n"
    )
    before = load_settings(CollectorSettings, "collector", config_dir=tmp_path, environ={})
    addresses = {name: f"127.0.0.1:{9300 + n}" for n, name in enumerate(DEMO_EXCHANGES)}
    environment = simulated_environment(VenueOptions(), addresses, (), before)
    after = load_settings(CollectorSettings, "collector", config_dir=tmp_path, environ=environment)
    enabled = {name for name, each in after.exchanges.items() if each.enabled}
    assert enabled == set(DEMO_EXCHANGES)
    for name in enabled:
        settings = after.exchanges[name]
        assert settings.symbols == ("*",)
        assert addresses[name] in settings.rest_url
        assert addresses[name] in settings.ws_url
    assert after.exchanges["okx"].silence_seconds == 3
    assert not after.exchanges["binance_us"].enabled


def test_the_configuration_in_the_repository_has_every_venue_with_something_to_collect() -> None:
    settings = load_settings(CollectorSettings, "collector", environ={})
    assert {name for name, each in settings.exchanges.items() if each.enabled} == set(
        DEMO_EXCHANGES
    )
    assert "binance_us" in settings.exchanges
