"""Options of the simulated venue fit together, or it is said which do not."""

import json
from pathlib import Path

import pytest
from aiohttp import web

from services.cli.venue import VenueOptions, choose_venue, listed_symbols
from services.shared.errors import ConfigError, StartupError


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    path = tmp_path / "x.jsonl"
    path.write_text("")
    return path


def test_without_options_the_venues_are_live() -> None:
    assert choose_venue() is None


def test_a_generated_market_gets_the_venues_names_of_the_symbols() -> None:
    venue = choose_venue(simulated=True, symbols=("BTC-USDT", "eth-btc"), depth_rate=50.0, seed=7)
    assert venue is not None
    command = venue.command(9300)
    assert command[command.index("--symbols") + 1] == "BTCUSDT,ETHBTC"
    assert command[command.index("--depth-rate") + 1] == "50.0"
    assert command[command.index("--seed") + 1] == "7"
    assert "--capture" not in command


def test_a_capture_is_played_at_its_pace_unless_told_otherwise(capture: Path) -> None:
    venue = choose_venue(capture=capture)
    assert venue is not None
    assert venue.speed == "1"
    fast = choose_venue(capture=capture, speed="max", loop=True)
    assert fast is not None
    command = fast.command(9300)
    assert command[command.index("--capture") + 1] == str(capture)
    assert command[command.index("--speed") + 1] == "max"
    assert "--loop" in command


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"symbol_count": 9}, r"--symbol-count: expected --simulated"),
        ({"speed": "2"}, r"--speed: expected --capture FILE"),
        ({"loop": True}, r"--loop: expected --capture FILE"),
        ({"simulated": True, "speed": "2"}, r"--speed: expected --capture FILE"),
        ({"simulated": True, "symbols": ("*-USDT",)}, r"--symbols: expected spot symbols"),
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


async def test_symbols_are_those_that_the_venue_lists() -> None:
    bodies = [
        json.dumps({"symbols": [{"baseAsset": "BTC", "quoteAsset": "USDT"}]}),
        "{}",
        json.dumps({"symbols": []}),
    ]

    async def info(_: web.Request) -> web.Response:
        return web.Response(text=bodies.pop(0), content_type="application/json")

    app = web.Application()
    app.add_routes([web.get("/api/v3/exchangeInfo", info)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        assert await listed_symbols(url) == ["BTC-USDT"]
        with pytest.raises(StartupError, match="expected the simulated venue's symbols"):
            await listed_symbols(url)
        with pytest.raises(StartupError, match="lists none"):
            await listed_symbols(url)
    finally:
        await runner.cleanup()


async def test_a_venue_that_is_not_there_is_told() -> None:
    with pytest.raises(StartupError, match="expected the simulated venue's symbols at"):
        await listed_symbols("http://127.0.0.1:9")


def test_it_tells_what_it_plays(capture: Path) -> None:
    assert VenueOptions().told == "a generated market"
    assert "x.jsonl as fast as possible" in VenueOptions(capture=capture, speed="max").told
