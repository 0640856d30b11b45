"""The command line of simulated venues: what it refuses, and what it says when it runs."""

import asyncio
import re
import signal
import sys

import aiohttp
import pytest

from services.simulator.command import main
from services.simulator.venues import VENUES, generated_market


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--venue", "mtgox"], "invalid choice"),
        (["--venue", "okx", "--set", "weights=1"], "expected one of"),
        (["--venue", "okx", "--set", "checksum"], "NAME=VALUE"),
        (["--venue", "okx", "--set", "keepalive_seconds=-1"], "greater than 0"),
        (["--venue", "okx", "--symbols", "BTCUSDT"], "BTC-USDT"),
        (["--venue", "okx", "--symbols", "BTC-USDT,BTC-USDT"], "once"),
        (["--capture", "/nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_was_expected(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("venue", sorted(VENUES))
def test_every_venue_lists_as_many_instruments_as_asked_for(venue: str) -> None:
    protocol = VENUES[venue]()
    names = protocol.more_symbols(40, protocol.default_symbols)
    assert len(set(names)) == 40
    market = generated_market(protocol, symbols=names, levels=40, warmup_seconds=0)
    assert list(market.symbols) == list(names)


async def test_it_says_where_to_connect_and_ends_at_a_signal() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli", "simulate",
        "--venue", "okx", "--port", "0", "--symbols", "BTC-USDT,ETH-USDT-SWAP",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            told = ""
            while "instruments" not in told:
                line = await process.stdout.readline()
                assert line, f"it ended and said {told!r}"
                told += line.decode()
            assert "2 symbols (BTC-USDT, ETH-USDT-SWAP)" in told
            assert "/ws/v5/business" in told
            found = re.search(r"http://\S+/api/v5", told)
            assert found is not None
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{found[0]}/public/instruments?instType=SWAP") as answer,
            ):
                listed = (await answer.json())["data"]
            assert [entry["instId"] for entry in listed] == ["ETH-USDT-SWAP"]
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
