"""Events a second from the broker into the database, beside the bare insert of the same bytes.

`python -m benchmarks.store_ingest` publishes trades and updates of books (40 levels) into a real
broker, then lets ingestion store them, and prints one JSON line a kind. The floor is the engine
alone, in the same run: the same events, framed before, inserted in blocks of the same size by
`raw_insert` and nothing else. Both write to the same kind of empty table.
"""

import argparse
import asyncio
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from benchmarks.broker import running_broker
from benchmarks.store_bytes import generated_trades, generated_updates
from services.shared.log import configure_logging
from services.shared.publisher import Publisher
from services.shared.settings import LogSettings
from services.shared.telemetry import Metrics
from services.storage.engine import Engine
from services.storage.ingest import Ingest
from services.storage.ingest_settings import IngestSettings
from services.storage.migrate import migrate
from services.storage.settings import EngineSettings
from services.storage.tables import TABLES, Table, frame

_WAIT = 0.01


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(_WAIT)


async def _publish(url: str, table: Table, events: Iterator[Message]) -> int:
    publisher = Publisher(url, name="benchmark")
    await publisher.start()
    count = 0
    try:
        for event in events:
            held: Any = event
            if count % 1000 == 0:
                await _until(lambda: publisher.status.buffered < 50_000)
            subject = f"market.{table.name}.{held.exchange}.{held.symbol}"
            publisher.publish(subject, event.SerializeToString(), f"{table.name}/{count}")
            count += 1
        wanted = count
        await _until(lambda: publisher.status.acknowledged >= wanted)
    finally:
        await publisher.stop()
    return count


async def _ingested(engine: Engine, url: str, table: Table, count: int) -> float:
    """Store everything that the stream holds; gives the seconds."""
    stopping, ready = asyncio.Event(), asyncio.Event()
    ready.set()
    ingest = Ingest(
        url, engine, IngestSettings(consumer="benchmark"), Metrics("benchmark"), [table]
    )
    begun = time.perf_counter()
    task = asyncio.create_task(ingest.run(ready, stopping))
    await _until(lambda: sum(status.rows for status in ingest.streams()) >= count)
    took = time.perf_counter() - begun
    stopping.set()
    await task
    return took


async def _floor(engine: Engine, table: Table, events: list[Message]) -> float:
    settings = IngestSettings()
    blocks, block, rows, size = [], bytearray(), 0, 0
    for place, event in enumerate(events, start=1):
        payload = event.SerializeToString()
        block += frame(payload, place, 1)
        rows += 1
        size += len(payload)
        if rows >= settings.batch_rows or size >= settings.batch_bytes:
            blocks.append(bytes(block))
            block, rows, size = bytearray(), 0, 0
    blocks.append(bytes(block))
    begun = time.perf_counter()
    for each in filter(None, blocks):
        await engine.insert(table, each)
    return time.perf_counter() - begun


async def _measure(url: str, name: str, events: list[Message], folder: Path) -> None:
    table = TABLES[name]
    count = await _publish(url, table, iter(events))
    engine = Engine(EngineSettings(), folder)
    await engine.open()
    try:
        await migrate(engine)
        await _floor(engine, table, events[: len(events) // 10])
        await engine.command(f"TRUNCATE TABLE {name}")
        floor = await _floor(engine, table, events)
        await engine.command(f"TRUNCATE TABLE {name}")
        took = await _ingested(engine, url, table, count)
        rows = await engine.query(
            f"SELECT count(), uniqExact(stream_created, stream_sequence) FROM {name}"
        )
    finally:
        await engine.close()
    assert rows == [(count, count)], f"{count} were published, (rows, distinct) are {rows}"
    print(
        json.dumps(
            {
                "benchmark": "store_ingest",
                "table": name,
                "events": count,
                "ingest_rows_per_second": round(count / took),
                "floor_rows_per_second": round(count / floor),
                "share_of_floor": round(floor / took, 3),
            }
        ),
        flush=True,
    )


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store_ingest")
    parser.add_argument("--trades", type=int, default=1_000_000)
    parser.add_argument("--updates", type=int, default=100_000)
    options = parser.parse_args()
    configure_logging(LogSettings(level="warning"))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with running_broker(folder / "broker") as url:
            for name, events in (
                ("trade", generated_trades(options.trades)),
                ("order_book_update", generated_updates(options.updates)),
            ):
                await _measure(url, name, list(itertools.chain(events)), folder / name)


if __name__ == "__main__":
    asyncio.run(main())
