"""Several simulated venues in one process: what each lists, and who counts requests together."""

import json
from pathlib import Path

import pytest

from services.cli.simulators import _parser, _venues, main

DEPTH = (
    '{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":10,"u":11,'
    '"b":[["100.00","1"]],"a":[["101.00","1"]]}'
)
WS = "wss://stream.binance.com:9443/stream?streams=btcusdt@depth@100ms"
INFO = "https://api.binance.com/api/v3/exchangeInfo"


def test_each_venue_has_its_own_market_at_its_own_port() -> None:
    given = _parser().parse_args(
        ["binance=9300", "okx=9303", "--symbols", "okx=ETH-USDT", "--seed", "7"]
    )
    venues = {venue.protocol.name: venue for venue in _venues(given)}
    assert {name: venue.port for name, venue in venues.items()} == {"binance": 9300, "okx": 9303}
    assert list(venues["okx"].market.symbols) == ["ETH-USDT"]
    assert "BTCUSDT" in venues["binance"].market.symbols


def test_the_count_of_instruments_is_that_of_each_venue() -> None:
    given = _parser().parse_args(["binance=0", "deribit=0", "--symbol-count", "12"])
    assert [len(venue.market.symbols) for venue in _venues(given)] == [12, 12]


def test_binance_s_futures_count_requests_together_and_with_nobody_else() -> None:
    given = _parser().parse_args(["binance=0", "binance_usdm=0", "binance_coinm=0", "okx=0"])
    spot, usd_m, coin_m, okx = _venues(given)
    assert usd_m.weights is coin_m.weights
    assert len({id(each.weights) for each in (spot, usd_m, okx)}) == 3


def test_a_recording_lists_only_what_it_can_play(tmp_path: Path) -> None:
    def entry(symbol: str, base: str) -> dict[str, object]:
        told = {"symbol": symbol, "baseAsset": base, "quoteAsset": "USDT", "filters": []}
        return {**told, "status": "TRADING"}

    info = {"symbols": [entry("BTCUSDT", "BTC"), entry("ETHUSDT", "ETH")]}
    records = [
        {"ts": 1.0, "kind": "http", "url": INFO, "conn": "h", "data": json.dumps(info)},
        {"ts": 2.0, "kind": "ws", "url": WS, "conn": "c", "data": DEPTH},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (venue,) = _venues(_parser().parse_args(["binance=0", "--capture", str(path)]))
    assert list(venue.market.symbols) == ["BTCUSDT"]
    for body in (
        venue.market.exchange_info(),
        venue.market.captured_answer("/api/v3/exchangeInfo", {}),
    ):
        assert body is not None
        assert [each["symbol"] for each in json.loads(body)["symbols"]] == ["BTCUSDT"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["kraken=1"], "expected VENUE=..., VENUE one of"),
        (["okx"], "expected VENUE=..."),
        (["okx=1", "--symbols", "okx=NOPE!"], "NOPE!"),
        (["okx=1", "binance=2", "--capture", "x"], "expected one venue to play it"),
        (["binance=1", "--capture", "/absent.jsonl"], "/absent.jsonl"),
    ],
)
def test_a_bad_command_line_is_told(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
