"""A client written for live runs on history: the library and the command line, over gRPC."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from marketprism.client import AsyncClient, Client, ClientError, OrderBook
from marketprism.collector.v1.integrity_event_pb2 import IntegrityEvent

from services.cli.replay import moment, print_replay, speed_of
from services.shared.errors import InvalidArgument
from services.shared.settings import MeshSettings
from services.storage.ingest_settings import IngestSettings
from services.storage.service import StorageService
from services.storage.settings import StorageSettings
from tests.integration.storage.replay_tools import BEGIN, SECOND, Market, live_events, split

A, B = ("binance", "BTC-USDT"), ("okx", "BTC-USDT")
KINDS = ["trade", "order_book", "ticker"]


@pytest.fixture(scope="module")
def market() -> Market:
    made = Market(9)
    made.run([A, B], 300)
    return made


@pytest.fixture
async def address(tmp_path: Path, market: Market) -> AsyncIterator[str]:
    mesh = MeshSettings.model_validate(
        {"data_dir": tmp_path, "services": {"storage": {"grpc_port": 0, "http_port": 0}}}
    )
    settings = StorageSettings(ingest=IngestSettings(enabled=False))
    async with StorageService(mesh, settings).running() as service:
        await market.store(service.engine)
        yield f"127.0.0.1:{service.grpc_port}"


async def test_the_client_gives_a_replay_as_it_gives_the_live_stream(
    address: str, market: Market
) -> None:
    gaps: list[IntegrityEvent] = []
    async with AsyncClient(address) as client:
        came = [
            event
            async for event in client.replay(
                ["*/*"], KINDS, BEGIN, BEGIN + 100 * SECOND, speed=None, on_gap=gaps.append
            )
        ]
    published = [each for each in market.published if each.table != "integrity"]
    assert split(came, published) == live_events(published)
    assert [gap.SerializeToString() for gap in gaps] == [
        each.payload for each in market.published if each.table == "integrity"
    ]


async def test_a_book_keeps_itself_from_a_replay_without_change(address: str) -> None:
    def follow() -> tuple[int, int, OrderBook | None]:
        trusted = changes = 0
        last = None
        with Client(address) as client:
            for book in client.replay_book(
                *A, BEGIN + SECOND, BEGIN + 100 * SECOND, speed=10, longest_pause=0.01
            ):
                changes += 1
                trusted += book.is_trusted
                last = book
        return changes, trusted, last

    changes, trusted, book = await asyncio.to_thread(follow)
    assert book is not None
    assert changes > 20
    assert trusted > changes // 2
    assert book.gaps == 0, "the server tells of what is missing before a client can stumble"
    assert book.best_bid()
    assert book.best_ask()


async def test_a_refusal_is_the_clients_error(address: str) -> None:
    async with AsyncClient(address) as client:
        with pytest.raises(ClientError, match="no instrument"):
            await anext(client.replay("binance/NO-SUCH", ["trade"], BEGIN))
        with pytest.raises(ClientError, match="speed"):
            await anext(client.replay("*/*", ["trade"], BEGIN, speed=0.001))
        with pytest.raises(ValueError, match="zone"):
            await anext(client.replay("*/*", ["trade"], datetime(2026, 11, 24)))


async def test_the_command_prints_every_event_and_how_far_it_is(
    address: str, market: Market, capsys: pytest.CaptureFixture[str]
) -> None:
    start = datetime.fromtimestamp(BEGIN // SECOND, UTC)
    count = await print_replay(
        address, ["*/*"], ["trade", "ticker"], start, start + timedelta(seconds=100),
        speed=None, longest_pause=None, as_json=True, quiet=False,
    )  # fmt: skip
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    published = [each.table for each in market.published]
    assert count == published.count("trade") + published.count("ticker")
    assert sum("trade" in line for line in lines) == published.count("trade")
    assert "100 %" in err
    assert f"{count} events" in err
    await print_replay(
        address, ["okx/*"], ["order_book"], start, None,
        speed=None, longest_pause=None, as_json=False, quiet=True,
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert "order_book_update" in out
    assert "RESYNC" in out or "GAP" in out
    assert err == ""


def test_what_the_command_is_given_is_checked() -> None:
    assert moment("2026-11-24T16:00:00Z") == moment("2026-11-24T16:00:00")
    assert speed_of("10", unpaced=False) == Decimal(10)
    assert speed_of("x", unpaced=True) is None
    for text in ("yesterday", ""):
        with pytest.raises(InvalidArgument, match="expected a time"):
            moment(text)
    with pytest.raises(InvalidArgument, match="--speed"):
        speed_of("NaN", unpaced=False)
