"""What the tests of ingestion share: streams, trades to publish, a process that ingests."""

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from marketprism.market.v1 import events_pb2

from services.shared.publisher import Publisher
from services.shared.telemetry import Metrics
from services.storage.engine import Engine
from services.storage.ingest import Ingest
from services.storage.ingest_settings import IngestSettings
from services.storage.tables import TABLES
from tests.integration.nats_tools import make_stream, until

QUICK = IngestSettings(batch_seconds=0.05, retry_seconds=0.05, retry_limit_seconds=0.2)
TRADE = "market.trade.simulated.{}"


def trade(number: int, symbol: str = "A-USDT") -> events_pb2.Trade:
    """Give a trade that differs from every other of its symbol."""
    made = events_pb2.Trade(
        exchange="simulated",
        symbol=symbol,
        trade_id=str(number + 1),
        price="64250.05",
        quantity="0.5",
        side="SIDE_BUY",
    )
    made.exchange_time.FromMilliseconds(1_795_529_124_000 + number)
    made.receive_time.FromNanoseconds(1_795_529_124_000_000_123 + number * 1_000_000)
    return made


async def make_streams(url: str) -> None:
    """Make the streams of the tables that the tests use."""
    await make_stream(url, "MARKET_TRADE", "market.trade.>")
    await make_stream(url, "MARKET_BEST_BID_OFFER", "market.best_bid_offer.>")
    await make_stream(url, "DEAD_LETTER", "dead_letter.>", duplicate_window=60_000_000_000)


async def publish(publisher: Publisher, numbers: Iterable[int], symbol: str = "A-USDT") -> None:
    """Publish trades and wait until the broker has them."""
    for number in numbers:
        made = trade(number, symbol)
        subject = TRADE.format(symbol)
        assert publisher.publish(subject, made.SerializeToString(), f"{symbol}/{number}")
    assert await publisher.drain(30)


async def stored(engine: Engine, table: str = "trade") -> list[int]:
    """Give the stream sequences that a table holds, without FINAL, in order."""
    rows = await engine.query(f"SELECT stream_sequence FROM {table} ORDER BY stream_sequence")
    return [int(row[0]) for row in rows]


async def until_stored(engine: Engine, count: int, table: str = "trade") -> None:
    """Wait until a table holds so many rows or more."""
    deadline = asyncio.get_running_loop().time() + 30
    while (found := await _count(engine, table)) < count:
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"within 30 s: expected {count} rows in {table}, found {found}")
        await asyncio.sleep(0.02)


async def _count(engine: Engine, table: str) -> int:
    return int((await engine.query(f"SELECT count() FROM {table}"))[0][0])


def each_once(sequences: list[int], count: int) -> None:
    """Fail unless these are the sequences from 1 to `count`, each exactly once."""
    twice = [sequence for sequence, times in Counter(sequences).items() if times > 1]
    missing = sorted(set(range(1, count + 1)) - set(sequences))
    assert not twice, f"{len(twice)} stored more than once: {twice[:10]}"
    assert not missing, f"{len(missing)} missing: {missing[:10]}"
    assert len(sequences) == count


@contextlib.asynccontextmanager
async def ingesting(
    url: str, engine: Engine, settings: IngestSettings = QUICK, *tables: str
) -> AsyncIterator[Ingest]:
    """Ingest some tables in this process; `trade` when none is named."""
    ingest = Ingest(
        url, engine, settings, Metrics("storage"), [TABLES[t] for t in tables or ("trade",)]
    )
    ready, stopping = asyncio.Event(), asyncio.Event()
    ready.set()
    work = asyncio.create_task(ingest.run(ready, stopping))
    try:
        yield ingest
    finally:
        stopping.set()
        await asyncio.wait_for(work, 20)


class Worker:
    """A process of its own that ingests trades into a folder, to be killed."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it reads."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.integration.storage.ingest_worker",
            self._url, str(self._folder),
            stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), 30)
        assert line == b"reading\n", f"expected the worker to read, got {line!r}"

    async def stop(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, and wait for its end."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            await asyncio.wait_for(self._process.communicate(), 30)
            self._process = None


__all__ = [
    "QUICK",
    "TRADE",
    "Worker",
    "each_once",
    "ingesting",
    "make_streams",
    "publish",
    "stored",
    "trade",
    "until",
    "until_stored",
]
