"""How long history's answers take over many trades.

`python -m benchmarks.store_queries [--trades 100000000]` makes trades within the database (ten
instruments, thirty days, prices that walk), starts the storage service on them, and asks it over
gRPC at random places; one JSON line a question with the 50th and the 99th percentile. The floor is
the smallest answer of the same server (`GetIngestStatus`), and for a page of trades the bare query
in the database. Random ranges meet no cached answer, the newest trades do. Candles of trades that
the rollups have not reached yet are computed on the fly: right after the trades were made these
figures are those of a backlog. The hardware is in the first line.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.history.v1 import history_service_pb2_grpc

from services.shared.log import configure_logging
from services.shared.settings import LogSettings, load_mesh
from services.storage.service import StorageService
from services.storage.settings import StorageSettings

_SYMBOLS = 10
_DAYS = 30
_DAY = 86_400
_START = 1_793_491_200  # 2026-11-01, UTC
_TRADES = """\
INSERT INTO trade (exchange, symbol, trade_number, trade_text, venue_sequence, time,
    exchange_time_told, receive_time, price, quantity, side, trade_count, liquidation, backfilled,
    stream_sequence, stream_created)
SELECT 'binance', {symbol:String}, 1000000000 + {first:UInt64} + number, '', 0,
    fromUnixTimestamp64Nano(
        toInt64({begin:Int64}) * 1000000000
        + intDiv(number * 86400000, {count:UInt64}) * 1000000, 'UTC') AS moment,
    true, moment + INTERVAL 30 MILLISECOND + toIntervalNanosecond(rand(1) % 4000000),
    toDecimal128(round(64250 + 500 * sin(number / 40000) + (rand(2) % 41) / 10 - 2, 2), 18),
    toDecimal128(round(exp(rand(3) % 900 / 100.0) / 10000, 5), 18),
    if(rand(4) % 2, 'SIDE_BUY', 'SIDE_SELL'), 0, false, false,
    {first:UInt64} + number + 1, 1793491200000000000
FROM numbers({count:UInt64})"""


async def _fill(service: StorageService, trades: int) -> None:
    each = trades // (_SYMBOLS * _DAYS)
    begun = time.perf_counter()
    for day in range(_DAYS):
        for number in range(_SYMBOLS):
            await service.engine.command(
                _TRADES,
                {
                    "symbol": f"C{number}-USDT",
                    "first": (day * _SYMBOLS + number) * each,
                    "begin": _START + day * _DAY,
                    "count": each,
                },
                {"max_block_size": 1_000_000},
            )
        done = (day + 1) * _SYMBOLS * each
        print(f"{done:,} trades", end="\r", flush=True)
    await service.engine.command(
        "OPTIMIZE TABLE trade FINAL", settings={"max_execution_time": 3600}
    )
    rows = await service.engine.query(
        "SELECT sum(rows), sum(bytes_on_disk), count() FROM system.parts "
        "WHERE active AND database = currentDatabase() AND table = 'trade'"
    )
    count, size, parts = rows[0]
    _print(
        "made",
        rows=count,
        bytes_per_row=round(size / count, 2),
        parts=parts,
        seconds=round(time.perf_counter() - begun, 1),
        processor=platform.processor() or platform.machine(),
        cores=os.cpu_count(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
    )


def _print(what: str, **figures: Any) -> None:
    print(json.dumps({"benchmark": "store_queries", "what": what, **figures}), flush=True)


async def _measure(what: str, ask: Callable[[], Awaitable[int]], times: int) -> None:
    took, items = [], 0
    for _ in range(times):
        begun = time.perf_counter()
        items += await ask()
        took.append((time.perf_counter() - begun) * 1000)
    took.sort()
    _print(
        what,
        times=times,
        items_each=round(items / times, 1),
        p50_ms=round(took[len(took) // 2], 2),
        p99_ms=round(took[min(len(took) - 1, int(len(took) * 0.99))], 2),
    )


class _Questions:
    """What is asked, at random places of the thirty days."""

    def __init__(self, stub: history_service_pb2_grpc.HistoryServiceStub) -> None:
        self._stub = stub
        self._chance = random.Random(3)

    def symbol(self) -> str:
        return f"C{self._chance.randrange(_SYMBOLS)}-USDT"

    def begin(self, length: float) -> float:
        return _START + self._chance.random() * (_DAYS * _DAY - length)

    def range(self, length: float) -> dict[str, Any]:
        begin = self.begin(length)
        return {
            "exchange": "binance",
            "symbol": self.symbol(),
            "start_time": Timestamp(seconds=int(begin), nanos=int(begin % 1 * 1e9)),
            "end_time": Timestamp(seconds=int(begin + length)),
        }

    async def floor(self) -> int:
        await self._stub.GetIngestStatus(pb.GetIngestStatusRequest())
        return 0

    async def page(self, size: int) -> int:
        request = pb.ListTradesRequest(**self.range(_DAY), page_size=size)
        return len((await self._stub.ListTrades(request)).trades)

    async def newest(self) -> int:
        request = pb.ListTradesRequest(
            exchange="binance", symbol=self.symbol(), descending=True, page_size=1000
        )
        return len((await self._stub.ListTrades(request)).trades)

    async def candles(self, interval: int, length: float) -> int:
        request = pb.ListCandlesRequest(
            **self.range(length),
            interval=Duration(seconds=interval),
            source=pb.CANDLE_SOURCE_TRADES,
            page_size=10_000,
        )
        return len((await self._stub.ListCandles(request)).candles)

    async def statistics(self, length: float) -> int:
        request = pb.GetStatisticsRequest(**self.range(length))
        return int((await self._stub.GetStatistics(request)).statistics.trade_count)


async def _ask(service: StorageService, address: str, times: int) -> None:
    async with grpc.aio.insecure_channel(
        address, options=[("grpc.max_receive_message_length", -1)]
    ) as channel:
        ask = _Questions(history_service_pb2_grpc.HistoryServiceStub(channel))  # type: ignore[no-untyped-call]
        await ask.page(10)

        async def bare() -> int:
            rows = await service.engine.query(
                "SELECT trade_number, toString(price) FROM trade FINAL WHERE exchange = 'binance' "
                "AND symbol = {symbol:String} AND time >= toDateTime64({begin:Float64}, 9, 'UTC') "
                "ORDER BY exchange, symbol, time, trade_number LIMIT 1000",
                {"symbol": ask.symbol(), "begin": ask.begin(_DAY)},
            )
            return len(rows)

        await _measure("floor: GetIngestStatus", ask.floor, times)
        await _measure("floor: 1,000 rows from the database", bare, times)
        await _measure("ListTrades, 100", lambda: ask.page(100), times)
        await _measure("ListTrades, 1,000", lambda: ask.page(1000), times)
        await _measure("ListTrades, 10,000", lambda: ask.page(10_000), times // 4)
        await _measure("ListTrades, newest 1,000", ask.newest, times)
        await _measure("ListCandles, 1 m of a day", lambda: ask.candles(60, _DAY), times // 2)
        await _measure("ListCandles, 1 h of 7 days", lambda: ask.candles(3600, 7 * _DAY), times)
        await _measure("ListCandles, 7 s of an hour", lambda: ask.candles(7, 3600), times)
        await _measure("GetStatistics of an hour", lambda: ask.statistics(3600), times)
        await _measure("GetStatistics of a day", lambda: ask.statistics(_DAY), times // 4)
        await _measure("GetStatistics of 20 days", lambda: ask.statistics(20 * _DAY), 5)


async def main() -> None:
    """Make, measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store_queries")
    parser.add_argument("--trades", type=int, default=100_000_000)
    parser.add_argument("--times", type=int, default=200, help="questions of each sort")
    parser.add_argument("--folder", type=Path, help="keep the database here, and use it again")
    options = parser.parse_args()
    configure_logging(LogSettings(level="warning"))
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder or Path(place)
        mesh = load_mesh()
        services = {name: {"grpc_port": 0, "http_port": 0} for name in mesh.services}
        mesh = mesh.model_validate(
            {
                **mesh.model_dump(),
                "data_dir": folder,
                "services": services,
                "nats": {"url": "nats://127.0.0.1:9"},
            }
        )
        settings = StorageSettings.model_validate({"engine": {"query_seconds": 600}})
        service = StorageService(mesh, settings)
        async with service.running():
            held = await service.engine.query("SELECT count() FROM trade")
            if held[0][0] < options.trades * 0.99:
                await _fill(service, options.trades)
            await _ask(service, f"127.0.0.1:{service.grpc_port}", options.times)


if __name__ == "__main__":
    asyncio.run(main())
