"""How long the book of a past instant takes, over a day of a busy book.

`python -m benchmarks.history_book` makes a store of its own (embedded engine, a temporary folder):
`--hours` of a book that changes ten times a second, `--changes` levels each, repeated by a snapshot
every 30 s as the collector does. It then asks `GetOrderBookAt` at random instants, one after the
other and without the cache of answers, and prints one JSON line a depth.

One hour is generated, and the others are copies of it in time and epoch. Every answer's verdict is
checked: a book that is not continuous would be cheap to give.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import Message
from marketprism.history.v1 import history_service_pb2, order_book_history_pb2
from marketprism.market.v1 import order_book_pb2

from services.shared.cache import Cache, MemoryStore
from services.shared.log import configure_logging
from services.shared.settings import LogSettings
from services.shared.telemetry import Metrics
from services.storage.book_history import BookHistory
from services.storage.engine import Engine
from services.storage.http_cache import Answers, AnswerSettings
from services.storage.known import KnownInstruments
from services.storage.migrate import migrate
from services.storage.settings import EngineSettings
from services.storage.tables import TABLES, frame

_BEGIN = 1_795_392_000  # a midnight
_HOUR = 3600
_NANOS = 1_000_000_000
_EXCHANGE, _SYMBOL = "binance", "BTC-USDT"
_CONTINUOUS = order_book_history_pb2.ORDER_BOOK_CONTINUITY_CONTINUOUS


class _Context:
    """What a handler gets beside the request, when nobody calls over the network."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Give nothing."""
        return ()


def _hour(levels: int, changes: int) -> Iterator[tuple[str, Message]]:
    """Give an hour of a book: most changes near the top, as live."""
    chance = random.Random(1)
    middle = 600_000
    book = {
        "bids": {middle - 1 - n: 1 + n for n in range(levels)},
        "asks": {middle + n: 1 + n for n in range(levels)},
    }

    def place(message: Message, tick: int) -> Message:
        message.exchange, message.symbol = _EXCHANGE, _SYMBOL  # type: ignore[attr-defined]
        message.epoch = _BEGIN * 1_000_000  # type: ignore[attr-defined]
        message.sequence = tick  # type: ignore[attr-defined]
        message.receive_time.FromNanoseconds(  # type: ignore[attr-defined]
            _BEGIN * _NANOS + tick * _NANOS // 10
        )
        return message

    for tick in range(_HOUR * 10):
        if tick:
            update = order_book_pb2.OrderBookUpdate()
            for side, sign in (("bids", -1), ("asks", 1)):
                for _ in range(changes // 2):
                    price = middle + sign * int(chance.expovariate(0.02)) - (sign < 0)
                    quantity = chance.choice((0, chance.randrange(1, 10_000)))
                    if quantity:
                        book[side][price] = quantity
                    else:
                        book[side].pop(price, None)
                    getattr(update, side).add(price=_text(price), quantity=_text(quantity))
            yield "order_book_update", place(update, tick)
        if tick % 300 == 0:
            snapshot = order_book_pb2.OrderBookSnapshot(
                reason=order_book_pb2.SNAPSHOT_REASON_PERIODIC
                if tick
                else order_book_pb2.SNAPSHOT_REASON_EPOCH_START
            )
            for side, down in (("bids", True), ("asks", False)):
                for price, quantity in sorted(book[side].items(), reverse=down):
                    getattr(snapshot, side).add(price=_text(price), quantity=_text(quantity))
            yield "order_book_snapshot", place(snapshot, tick)


def _text(hundredths: int) -> str:
    whole, part = divmod(hundredths, 100)
    return f"{whole}.{part:02}".rstrip("0") if part else str(whole)


async def _fill(engine: Engine, hours: int, levels: int, changes: int) -> None:
    rows: dict[str, list[bytes]] = {}
    for name, event in _hour(levels, changes):
        kept = rows.setdefault(name, [])
        kept.append(frame(event.SerializeToString(), len(kept) + 1, 1))
    for name, blocks in rows.items():
        await engine.insert(TABLES[name], b"".join(blocks))
        columns = [f"`{column.name}`" for column in TABLES[name].columns if column.stored]
        shifted = {
            "`time`": "time + toIntervalHour(hour) AS `time`",
            "`epoch`": f"epoch + hour * {_HOUR * 1_000_000} AS `epoch`",
        }
        values = ", ".join(shifted.get(column, column) for column in columns)
        for hour in range(1, hours):
            await engine.command(
                f"INSERT INTO {name} ({', '.join(columns)}) SELECT {values} FROM {name} "
                f"CROSS JOIN (SELECT {hour} AS hour) AS shift "
                f"WHERE {name}.epoch = {_BEGIN * 1_000_000}"
            )


async def _ask(engine: Engine, instants: list[int], depth: int) -> tuple[list[float], int]:
    settings = AnswerSettings(changing_seconds=0, settled_seconds=0)
    cache = Cache(
        MemoryStore(settings.max_bytes), "history", "benchmark", metrics=Metrics("benchmark")
    )
    calls = BookHistory(engine, KnownInstruments(engine), Answers(cache, settings))
    times = []
    levels = 0
    for at in instants:
        request = history_service_pb2.GetOrderBookAtRequest(
            exchange=_EXCHANGE, symbol=_SYMBOL, depth=depth
        )
        request.time.FromNanoseconds(at)
        begin = time.perf_counter()
        encoded = await calls.GetOrderBookAt(request, _Context())  # type: ignore[arg-type]
        times.append(time.perf_counter() - begin)
        answer = history_service_pb2.GetOrderBookAtResponse.FromString(encoded)
        if answer.verdict.continuity != _CONTINUOUS:
            raise SystemExit(f"expected a continuous book at {at}, got {answer.verdict}")
        levels = len(answer.order_book.bids) + len(answer.order_book.asks)
    return times, levels


async def _measure(options: argparse.Namespace, folder: Path) -> None:
    engine = Engine(EngineSettings(), folder)
    await engine.open()
    try:
        await migrate(engine)
        begin = time.perf_counter()
        await _fill(engine, options.hours, options.levels, options.changes)
        filled = time.perf_counter() - begin
        ((updates,),) = await engine.query("SELECT count() FROM order_book_update")
        chance = random.Random(2)
        end = (options.hours * _HOUR - 1) * _NANOS
        instants = [_BEGIN * _NANOS + chance.randrange(end) for _ in range(options.instants)]
        await _ask(engine, instants[:20], 0)
        for depth in (0, 20):
            times, levels = await _ask(engine, instants, depth)
            times.sort()
            print(
                json.dumps(
                    {
                        "name": "history_book",
                        "depth": depth,
                        "levels": levels,
                        "updates_stored": updates,
                        "fill_seconds": round(filled, 1),
                        "instants": len(times),
                        "p50_ms": round(times[len(times) // 2] * 1e3, 2),
                        "p99_ms": round(times[len(times) * 99 // 100] * 1e3, 2),
                        "max_ms": round(times[-1] * 1e3, 2),
                    }
                ),
                flush=True,
            )
    finally:
        await engine.close()


def main() -> None:
    """Make the store, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=int, default=24, help="length of the history")
    parser.add_argument("--levels", type=int, default=1000, help="levels a side at the begin")
    parser.add_argument("--changes", type=int, default=20, help="levels that an update changes")
    parser.add_argument("--instants", type=int, default=1000, help="instants to ask for")
    options = parser.parse_args()
    configure_logging(LogSettings(level="warning"))
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(options, Path(folder)))


if __name__ == "__main__":
    main()
