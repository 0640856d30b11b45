"""How fast history is replayed without pace, beside reading the same rows from the database.

`python -m benchmarks.history_replay [--trades N] [--books N]` fills a store of its own, replays it
in this process, and prints one JSON line a case: events and bytes a second of wall time, and events
a second of processor time, which counts the database's threads too. `raw` is the floor: the same
rows with the same bytes in one query, unsorted and without a message made of them.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.market.v1 import common_pb2, events_pb2, order_book_pb2

from services.storage.engine import Engine
from services.storage.known import KnownInstruments
from services.storage.migrate import migrate
from services.storage.replay import MarketReplay, OpenStreams
from services.storage.replay_selection import item_sql
from services.storage.replay_settings import ReplaySettings
from services.storage.settings import EngineSettings
from services.storage.tables import TABLES, Table, frame

_BATCH = 50_000
_BEGIN = 1_795_529_124_000_000_000
_STEP = 500_000
_INSTRUMENTS = 20


def _trades(count: int) -> Iterator[Message]:
    for number in range(count):
        trade = events_pb2.Trade(
            exchange="binance", symbol=f"S{number % _INSTRUMENTS}-USDT",
            trade_id=str(10**9 + number), price="64123.45", quantity="0.00125",
            side=common_pb2.SIDE_BUY,
        )  # fmt: skip
        trade.exchange_time.FromNanoseconds(_BEGIN + number * _STEP)
        trade.receive_time.FromNanoseconds(_BEGIN + number * _STEP + 5_000_000)
        yield trade


def _updates(count: int) -> Iterator[Message]:
    chance = random.Random(1)
    for number in range(count):
        update = order_book_pb2.OrderBookUpdate(
            exchange="binance", symbol=f"S{number % _INSTRUMENTS}-USDT", epoch=1,
            sequence=number // _INSTRUMENTS + 1,
        )  # fmt: skip
        update.receive_time.FromNanoseconds(_BEGIN + number * _STEP + 1)
        for _ in range(10):
            update.bids.add(price=str(chance.randrange(60_000, 64_000)), quantity="0.125")
        yield update


def _snapshots() -> Iterator[Message]:
    for number in range(_INSTRUMENTS):
        snapshot = order_book_pb2.OrderBookSnapshot(
            exchange="binance", symbol=f"S{number}-USDT", epoch=1,
            reason=order_book_pb2.SNAPSHOT_REASON_EPOCH_START,
        )  # fmt: skip
        snapshot.receive_time.FromNanoseconds(_BEGIN)
        yield snapshot


async def _fill(engine: Engine, table: Table, events: Iterator[Message], first: int = 1) -> None:
    rows: list[bytes] = []
    for place, event in enumerate(events, first):
        rows.append(frame(event.SerializeToString(), place, 1))
        if len(rows) == _BATCH:
            await engine.insert(table, b"".join(rows))
            rows.clear()
    if rows:
        await engine.insert(table, b"".join(rows))


async def _measure(case: str, count: int, work: Callable[[], Awaitable[int]]) -> None:
    wall, busy = time.perf_counter(), time.process_time()
    size = await work()
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    print(
        json.dumps(
            {
                "case": case,
                "events": count,
                "events_per_second": round(count / wall),
                "megabytes_per_second": round(size / wall / 1e6, 1),
                "events_per_processor_second": round(count / busy),
            }
        ),
        flush=True,
    )


async def _replay(engine: Engine, kinds: list[str]) -> int:
    settings = ReplaySettings()
    made = MarketReplay(engine, KnownInstruments(engine), settings, OpenStreams(1))
    request = pb.ReplayMarketDataRequest(
        instruments=["*/*"],
        kinds=kinds,  # type: ignore[arg-type]
        start_time=Timestamp(seconds=_BEGIN // 10**9 - 1),
        pace=pb.REPLAY_PACE_UNPACED,
    )
    return sum([len(each) async for each in made.ReplayMarketData(request, None)])  # type: ignore[arg-type]


async def _raw(engine: Engine, tables: list[Table]) -> int:
    size = 0
    for table in tables:
        blocks = engine.stream(
            f"SELECT {item_sql(table)} AS event FROM {table.name}", events_of=table
        )
        async for block in blocks:
            size += sum(len(event) for (event,) in block)
    return size


async def main() -> None:
    """Fill a store and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trades", type=int, default=1_000_000)
    parser.add_argument("--books", type=int, default=300_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(EngineSettings(), Path(folder) / "clickhouse")
        await engine.open()
        try:
            await migrate(engine)
            trades, updates = TABLES["trade"], TABLES["order_book_update"]
            await _fill(engine, trades, _trades(options.trades))
            await _fill(engine, TABLES["order_book_snapshot"], _snapshots())
            await _fill(engine, updates, _updates(options.books), _INSTRUMENTS + 1)
            both = options.trades + options.books
            for case, count, kinds, tables in (
                ("trades", options.trades, ["EVENT_KIND_TRADE"], [trades]),
                ("books", options.books, ["EVENT_KIND_ORDER_BOOK"], [updates]),
                ("both", both, ["EVENT_KIND_TRADE", "EVENT_KIND_ORDER_BOOK"], [trades, updates]),
            ):
                await _measure(f"{case} raw", count, lambda tables=tables: _raw(engine, tables))
                await _measure(case, count, lambda kinds=kinds: _replay(engine, kinds))
        finally:
            await engine.close()


if __name__ == "__main__":
    asyncio.run(main())
