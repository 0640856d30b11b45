"""Bytes on disk of a trade and of an update of a book, beside Parquet with zstd of the same rows.

`python -m benchmarks.store_bytes [--capture FILE]` prints one JSON line a table. With a capture of
Binance spot or futures (`MARKETPRISM_CAPTURES` names a folder of them) the events are the real
ones; without, they are generated: a random walk on a price grid, ids in sequence, quantities as
people trade them. The store's figure is `data_compressed_bytes` of the merged part, every column
included; Parquet holds the fields of the message as pyarrow would type them (exact decimals, times
in nanoseconds, text as dictionaries), sorted the same, zstd level 3.
"""

import argparse
import asyncio
import gzip
import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from marketprism.market.v1 import common_pb2, events_pb2, order_book_pb2

from services.shared.decimals import canonical_decimal as canonical
from services.storage.engine import Engine
from services.storage.migrate import migrate
from services.storage.settings import EngineSettings
from services.storage.tables import TABLES, frame

_BATCH = 50_000
_START = 1_795_529_124_000_000_000


def generated_trades(count: int) -> Iterator[events_pb2.Trade]:
    """Give trades of one busy instrument."""
    chance = random.Random(1)
    cents, now = 6_425_000, _START
    for number in range(count):
        cents += chance.choice((-1, 0, 0, 0, 1))
        now += int(chance.expovariate(1 / 20e6))
        trade = events_pb2.Trade(
            exchange="binance",
            symbol="BTC-USDT",
            trade_id=str(5_000_000_000 + number),
            price=canonical(f"{cents / 100:.2f}"),
            quantity=canonical(f"{min(chance.paretovariate(1.1) * 0.0001, 9):.5f}"),
            side=chance.choice((common_pb2.SIDE_BUY, common_pb2.SIDE_SELL)),
        )
        trade.exchange_time.FromNanoseconds(now // 1_000_000 * 1_000_000)
        trade.receive_time.FromNanoseconds(now + 30_000_000 + chance.randrange(4_000_000))
        yield trade


def generated_updates(count: int) -> Iterator[order_book_pb2.OrderBookUpdate]:
    """Give updates of one busy book, 40 changed levels each, most of them near the top."""
    chance = random.Random(2)
    cents, now = 6_425_000, _START
    for number in range(count):
        cents += chance.choice((-5, 0, 0, 5))
        now += 100_000_000
        update = order_book_pb2.OrderBookUpdate(
            exchange="binance",
            symbol="BTC-USDT",
            epoch=1_795_529_124_420_257,
            sequence=number + 1,
            venue_sequence=90_000_000_000 + 50 * number + 49,
            first_venue_sequence=90_000_000_000 + 50 * number,
            previous_venue_sequence=90_000_000_000 + 50 * number - 1,
        )
        update.exchange_time.FromNanoseconds(now)
        update.receive_time.FromNanoseconds(now + 30_000_000 + chance.randrange(4_000_000))
        for side, sign in ((update.bids, -1), (update.asks, 1)):
            for place in sorted({int(chance.expovariate(1 / 40)) for _ in range(20)}):
                is_gone = chance.random() < 0.4
                quantity = 0 if is_gone else min(chance.paretovariate(1.1) * 0.001, 99)
                side.add(
                    price=canonical(f"{(cents + sign * (place + 1)) / 100:.2f}"),
                    quantity=canonical(f"{quantity:.5f}"),
                )
        yield update


def captured(path: Path) -> tuple[list[events_pb2.Trade], list[order_book_pb2.OrderBookUpdate]]:
    """Give the trades and the updates of a Binance capture."""
    trades, updates = [], []
    with gzip.open(path, "rt") as file:
        for line in file:
            record = json.loads(line)
            if record["kind"] != "ws":
                continue
            frame_ = json.loads(record["data"])
            data = frame_.get("data", frame_)
            received = record.get("ts_ns") or int(record["ts"] * 1e9)
            if data.get("e") == "trade":
                trades.append(_trade(data, received))
            elif data.get("e") == "depthUpdate":
                updates.append(_update(data, received, len(updates) + 1))
    return trades, updates


def _trade(data: dict[str, Any], received: int) -> events_pb2.Trade:
    trade = events_pb2.Trade(
        exchange="binance",
        symbol=data["s"],
        trade_id=str(data["t"]),
        price=canonical(data["p"]),
        quantity=canonical(data["q"]),
        side=common_pb2.SIDE_SELL if data["m"] else common_pb2.SIDE_BUY,
    )
    trade.exchange_time.FromMilliseconds(data["T"])
    trade.receive_time.FromNanoseconds(received)
    return trade


def _update(data: dict[str, Any], received: int, number: int) -> order_book_pb2.OrderBookUpdate:
    update = order_book_pb2.OrderBookUpdate(
        exchange="binance",
        symbol=data["s"],
        epoch=1_795_529_124_420_257,
        sequence=number,
        venue_sequence=data["u"],
        first_venue_sequence=data["U"],
        previous_venue_sequence=data.get("pu", data["U"] - 1),
    )
    update.exchange_time.FromMilliseconds(data.get("T", data["E"]))
    update.receive_time.FromNanoseconds(received)
    for side, levels in ((update.bids, data["b"]), (update.asks, data["a"])):
        for price, quantity in levels:
            side.add(price=canonical(price), quantity=canonical(quantity))
    return update


def _parquet_bytes(name: str, events: list[Any], folder: Path) -> int:
    decimal = pa.decimal128(38, 18)
    level = pa.list_(pa.struct([("price", decimal), ("quantity", decimal)]))
    columns: dict[str, pa.Array] = {}
    for item in events[0].DESCRIPTOR.fields:
        values = [getattr(event, item.name) for event in events]
        if item.is_repeated:
            rows = [[{"price": x.price, "quantity": x.quantity} for x in side] for side in values]
            text = pa.list_(pa.struct([("price", pa.string()), ("quantity", pa.string())]))
            columns[item.name] = pa.array(rows, text).cast(level)
        elif item.message_type is not None:
            times = [value.ToNanoseconds() for value in values]
            columns[item.name] = pa.array(times, pa.int64()).cast(pa.timestamp("ns", "UTC"))
        elif item.name in ("price", "quantity"):
            columns[item.name] = pa.array(values, pa.string()).cast(decimal)
        else:
            columns[item.name] = pa.array(values)
    path = folder / f"{name}.parquet"
    pq.write_table(
        pa.table(columns), path, compression="zstd", compression_level=3, row_group_size=1_000_000
    )
    return path.stat().st_size


async def _measure(name: str, events: list[Any], folder: Path, source: str) -> None:
    table = TABLES[name]
    engine = Engine(EngineSettings(), folder / "clickhouse")
    await engine.open()
    try:
        await migrate(engine)
        await engine.command(f"TRUNCATE TABLE {name}")
        for begin in range(0, len(events), _BATCH):
            part = events[begin : begin + _BATCH]
            block = [
                frame(event.SerializeToString(), begin + place, _START)
                for place, event in enumerate(part, start=1)
            ]
            await engine.insert(table, b"".join(block))
        await engine.command(f"OPTIMIZE TABLE {name} FINAL")
        rows, size = (
            await engine.query(
                "SELECT sum(rows), sum(data_compressed_bytes) FROM system.parts "
                "WHERE active AND database = currentDatabase() AND table = {table:String}",
                {"table": name},
            )
        )[0]
        columns = await engine.query(
            "SELECT name, data_compressed_bytes FROM system.columns "
            "WHERE database = currentDatabase() AND table = {table:String} "
            "AND data_compressed_bytes > 0 ORDER BY data_compressed_bytes DESC",
            {"table": name},
        )
    finally:
        await engine.close()
    assert rows == len(events), f"{len(events)} went in, {rows} are there"
    levels = sum(len(e.bids) + len(e.asks) for e in events) if hasattr(events[0], "bids") else 0
    parquet = _parquet_bytes(name, events, folder)
    figure = {
        "table": name,
        "source": source,
        "rows": rows,
        "levels_per_row": round(levels / rows, 1),
        "bytes_per_row": round(size / rows, 2),
        "parquet_zstd_bytes_per_row": round(parquet / rows, 2),
        "protobuf_bytes_per_row": round(sum(e.ByteSize() for e in events) / rows, 2),
        "share_of_parquet": round(size / parquet, 3),
        "largest_columns": {column: round(used / rows, 2) for column, used in columns[:6]},
    }
    print(json.dumps(figure), flush=True)


def _captures() -> list[Path]:
    folder = os.environ.get("MARKETPRISM_CAPTURES")
    return sorted(Path(folder).glob("streams/HBT_*.jsonl.gz")) if folder else []


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store_bytes")
    parser.add_argument("--capture", type=Path, help="a capture of Binance trades and depth")
    parser.add_argument("--trades", type=int, default=1_000_000, help="generated trades")
    parser.add_argument("--updates", type=int, default=50_000, help="generated updates")
    options = parser.parse_args()
    paths = [options.capture] if options.capture else _captures()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        await _measure("trade", list(generated_trades(options.trades)), work, "generated")
        await _measure(
            "order_book_update", list(generated_updates(options.updates)), work, "generated"
        )
        for path in paths:
            trades, updates = captured(path)
            await _measure("trade", trades, work, path.name)
            await _measure("order_book_update", updates, work, path.name)


if __name__ == "__main__":
    asyncio.run(main())
