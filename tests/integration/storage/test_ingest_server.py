"""Ingestion into a server by HTTP that is killed, refuses, and comes back."""

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.shared.health import Health
from services.shared.ports import free_port
from services.shared.publisher import Publisher
from services.storage.engine import Engine
from services.storage.ingest import Ingest
from tests.integration.nats_tools import nats_server, read_all, until
from tests.integration.storage.ingest_tools import (
    TRADE,
    each_once,
    ingesting,
    make_streams,
    publish,
    stored,
    until_stored,
)
from tests.integration.storage.store_tools import open_store

FRONT = Path(__file__).with_name("clickhouse_front.py")


class Front:
    """A database server in a process of its own, always at the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, FRONT, self._folder / "data", str(self.port),
            cwd=self._folder, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), 30)
        assert line.startswith(b"listening on"), f"the server did not start: {line!r}"

    async def kill(self) -> None:
        """Kill it as a power switch would."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await asyncio.wait_for(self._process.communicate(), 30)
            self._process = None


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    folder = tmp_path / "server"
    folder.mkdir()
    front = Front(folder)
    await front.start()
    yield front
    await front.kill()


async def test_a_server_that_is_killed_again_and_again_has_everything_once(
    tmp_path: Path, front: Front
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        nats = await stack.enter_async_context(nats_server(tmp_path / "nats"))
        await make_streams(nats.url)
        publisher = Publisher(nats.url)
        await publisher.start()
        stack.push_async_callback(publisher.stop)
        engine = await stack.enter_async_context(open_store(tmp_path, url=front.url))
        ingest = await stack.enter_async_context(ingesting(nats.url, engine))
        count = 0
        for _ in range(4):
            for _ in range(5):
                await publish(publisher, range(count, count + 200))
                count += 200
                await asyncio.sleep(random.uniform(0, 0.05))
            await front.kill()
            await publish(publisher, range(count, count + 50))
            count += 50
            await _until_told(ingest, engine)
            await front.start()
        assert publisher.publish(TRADE.format("BAD"), b"junk", "bad")
        await until_stored(engine, count)
        await until(lambda: ingest.writable, "it says that all is well again")
        assert ingest.dependencies()["ingest"].status is Health.HEALTHY
        each_once(await stored(engine), count)
        await until(lambda: ingest.tables["trade"].state.rejected == 1, "the bad one is set aside")
        (letter,) = await read_all(nats.url, "DEAD_LETTER")
        assert letter.payload == b"junk"


async def _until_told(ingest: Ingest, engine: Engine) -> None:
    await until(lambda: not ingest.writable, "it says that the database is away")
    health = ingest.dependencies()["ingest"]
    assert health.status is Health.DEGRADED
    assert "events wait in the broker" in health.detail
    assert not engine.is_embedded
