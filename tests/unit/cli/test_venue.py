"""Options of the simulated venues fit together, or it is said which do not."""

import json
from pathlib import Path

import pytest

from services.cli.venue import (
    DEMO_EXCHANGES,
    VenueOptions,
    captured_exchanges,
    choose_venue,
    simulated_urls,
)
from services.shared.errors import ConfigError

SPOT_URL = "wss://stream.binance.com:9443/stream?streams=btcusdt@depth@100ms"
OKX_URL = "wss://ws.okx.com:8443/ws/v5/public"
DERIBIT_URL = "wss://streams.deribit.com/ws/api/v2"
LOCAL_URL = "ws://127.0.0.1:9300/stream"


def write_capture(path: Path, *urls: str) -> Path:
    lines = [json.dumps({"kind": "ws", "url": url, "conn": "c", "data": "{}"}) for url in urls]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return write_capture(tmp_path / "x.jsonl", SPOT_URL)


def test_without_options_the_venues_are_live() -> None:
    assert choose_venue() is None


def test_the_demo_has_every_protocol_each_at_a_place_of_its_own() -> None:
    venue = choose_venue(simulated=True)
    assert venue is not None
    assert venue.exchanges == DEMO_EXCHANGES
    uses = venue.port_uses()
    assert [(use.venue, use.port) for use in uses] == [
        ("binance", 9300),
        ("binance_usdm", 9301),
        ("binance_coinm", 9302),
        ("okx", 9303),
        ("deribit", 9304),
    ]
    command = venue.command({use.venue: use.port for use in uses})
    assert command[-5:] == [f"{use.venue}={use.port}" for use in uses]


def test_a_venue_keeps_its_port_whoever_else_is_simulated() -> None:
    venue = choose_venue(simulated=True, exchanges=("deribit", "okx"), port=9400)
    assert venue is not None
    assert {use.venue: use.port for use in venue.port_uses()} == {"deribit": 9404, "okx": 9403}
    free = choose_venue(simulated=True, exchanges=("okx",), port=0)
    assert free is not None
    assert [use.port for use in free.port_uses()] == [0]


def test_a_generated_market_gets_the_venues_names_of_the_symbols() -> None:
    venue = choose_venue(
        simulated=True, symbols=("eth-btc", "BTC-USDT-PERP"), depth_rate=50.0, seed=7
    )
    assert venue is not None
    assert venue.symbols == {
        "binance": ("ETHBTC",),
        "binance_usdm": ("BTCUSDT",),
        "okx": ("ETH-BTC", "BTC-USDT-SWAP"),
    }
    assert venue.exchanges == ("binance", "binance_usdm", "okx"), "the others can have none of it"
    command = venue.command(dict.fromkeys(venue.exchanges, 1))
    assert "okx=ETH-BTC,BTC-USDT-SWAP" in command
    assert command[command.index("--depth-rate") + 1] == "50.0"
    assert command[command.index("--seed") + 1] == "7"
    assert "--capture" not in command


def test_a_capture_is_played_at_its_pace_unless_told_otherwise(capture: Path) -> None:
    venue = choose_venue(capture=capture)
    assert venue is not None
    assert venue.speed == "1"
    assert venue.exchanges == ("binance",)
    fast = choose_venue(capture=capture, speed="max", loop=True)
    assert fast is not None
    command = fast.command({"binance": 9300})
    assert command[command.index("--capture") + 1] == str(capture)
    assert command[command.index("--speed") + 1] == "max"
    assert "--loop" in command
    assert command[-1] == "binance=9300"


@pytest.mark.parametrize(("url", "exchange"), [(OKX_URL, "okx"), (DERIBIT_URL, "deribit")])
def test_the_venue_of_a_capture_is_told_by_its_urls(
    tmp_path: Path, url: str, exchange: str
) -> None:
    path = write_capture(tmp_path / "x.jsonl", LOCAL_URL, url, url)
    assert captured_exchanges(path) == [exchange]
    venue = choose_venue(capture=path)
    assert venue is not None
    assert venue.exchanges == (exchange,)


def test_a_capture_of_local_addresses_is_of_the_venue_that_is_named(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "local.jsonl", LOCAL_URL)
    usual = choose_venue(capture=path)
    named = choose_venue(capture=path, exchanges=("binance_coinm",))
    assert usual is not None
    assert named is not None
    assert (usual.exchanges, named.exchanges) == (("binance",), ("binance_coinm",))


@pytest.mark.parametrize(
    ("urls", "exchanges", "told"),
    [
        ((SPOT_URL, OKX_URL), (), "expected a recording of one venue, .* is of binance, okx"),
        ((OKX_URL,), ("binance",), "are of okx, got binance"),
        ((OKX_URL,), ("okx", "binance"), "expected the one venue"),
    ],
)
def test_a_capture_that_no_simulated_venue_can_play_is_told(
    tmp_path: Path, urls: tuple[str, ...], exchanges: tuple[str, ...], told: str
) -> None:
    path = write_capture(tmp_path / "x.jsonl", *urls)
    with pytest.raises(ConfigError, match=told):
        choose_venue(capture=path, exchanges=exchanges)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"symbol_count": 9}, r"--symbol-count: expected --simulated"),
        ({"speed": "2"}, r"--speed: expected --capture FILE"),
        ({"loop": True}, r"--loop: expected --capture FILE"),
        ({"simulated": True, "speed": "2"}, r"--speed: expected --capture FILE"),
        ({"simulated": True, "symbols": ("*-USDT",)}, r"--symbols: expected symbols that one of"),
        ({"simulated": True, "symbols": ("NOPE",)}, r"--symbols: expected symbols .* got 'NOPE'"),
        (
            {"simulated": True, "symbols": ("BTC-USDT",), "exchanges": ("binance", "deribit")},
            r"--symbols: expected something for deribit",
        ),
        ({"simulated": True, "exchanges": ("kraken",)}, r"--exchanges: .* got 'kraken'"),
        ({"simulated": True, "port": 65_535}, r"--simulator-port: expected a port"),
        ({"capture": Path("/absent.jsonl")}, r"cannot read /absent.jsonl"),
    ],
)
def test_options_that_do_not_go_together_are_told(options: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        choose_venue(**options)  # type: ignore[arg-type]


def test_a_generated_and_a_recorded_market_exclude_each_other(capture: Path) -> None:
    with pytest.raises(ConfigError, match="expected one of them"):
        choose_venue(simulated=True, capture=capture)


@pytest.mark.parametrize("speed", ["0", "-1", "fast", "inf", "nan", ""])
def test_a_pace_is_a_number_above_zero_or_max(capture: Path, speed: str) -> None:
    with pytest.raises(ConfigError, match="--speed: expected a number above 0 or 'max'"):
        choose_venue(capture=capture, speed=speed)


def test_it_tells_what_it_plays(capture: Path) -> None:
    assert VenueOptions().told == "a generated market each"
    assert VenueOptions(exchanges=("okx",)).told == "a generated market"
    assert "x.jsonl as fast as possible" in VenueOptions(capture=capture, speed="max").told


def test_a_collector_is_given_what_its_venue_s_addresses_have_in_common() -> None:
    assert simulated_urls("binance", "h:1") == ("http://h:1", "ws://h:1/stream")
    assert simulated_urls("okx", "h:1") == ("http://h:1", "ws://h:1")
    assert simulated_urls("deribit", "h:1") == ("http://h:1", "ws://h:1/ws/api/v2")
