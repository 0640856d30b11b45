"""The events that the fan-out benchmarks send: book updates as a collector encodes them."""

import asyncio
import time
from collections.abc import AsyncIterator

from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.market.v1 import order_book_pb2

from services.shared.wire import field, varint

__all__ = ["EPOCH", "EXCHANGE", "Updates", "paced", "snapshot", "symbol", "update"]

EXCHANGE = "binance"
"""The venue of every book."""

EPOCH = 1_700_000_000_000_000
"""The epoch of every book."""

_RECEIVE_TIME = 6


def symbol(number: int) -> str:
    """Give the name of one of the books."""
    return f"B{number:02}-USDT"


def snapshot(name: str, sequence: int) -> bytes:
    """Give an encoded snapshot without levels."""
    return order_book_pb2.OrderBookSnapshot(
        exchange=EXCHANGE,
        symbol=name,
        epoch=EPOCH,
        sequence=sequence,
        reason=order_book_pb2.SNAPSHOT_REASON_PERIODIC,
    ).SerializeToString()


def update(name: str, sequence: int, levels: int) -> bytes:
    """Give an encoded update with `levels` changed levels."""
    message = order_book_pb2.OrderBookUpdate(
        exchange=EXCHANGE,
        symbol=name,
        epoch=EPOCH,
        sequence=sequence,
        venue_sequence=70_000_000_000,
        first_venue_sequence=70_000_000_000,
        previous_venue_sequence=70_000_000_000 - 1,
    )
    now = time.time_ns()
    message.exchange_time.FromNanoseconds(now // 1_000_000 * 1_000_000)
    message.receive_time.FromNanoseconds(now)
    for number in range(levels):
        side = message.bids if number % 2 else message.asks
        side.add(price=f"9{number % 10}123.{number:02}", quantity=f"0.{number + 1}5")
    return message.SerializeToString()


class Updates:
    """Encoded updates of one book, quickly: making events is the collector's work."""

    def __init__(self, name: str, levels: int) -> None:
        made = update(name, 0, levels)
        self._head = field(1, EXCHANGE.encode()) + field(2, name.encode()) + b"\x18" + varint(EPOCH)
        assert made.startswith(self._head)
        self._tail = made[len(self._head) :]
        message = order_book_pb2.OrderBookUpdate.FromString(made)
        for each in ("exchange", "symbol", "epoch", "exchange_time", "receive_time"):
            message.ClearField(each)
        self._behind_times = message.SerializeToString()
        self.sequence = 0
        """Sequence of the last one."""

    def next(self) -> bytes:
        """Give the next one; its times are those at which this was made."""
        self.sequence += 1
        return self._head + b"\x20" + varint(self.sequence) + self._tail

    def next_now(self) -> bytes:
        """Give the next one, read from its socket just now."""
        self.sequence += 1
        stamp = Timestamp()
        stamp.FromNanoseconds(time.time_ns())
        times = field(_RECEIVE_TIME, stamp.SerializeToString())
        return self._head + b"\x20" + varint(self.sequence) + times + self._behind_times


async def paced(books: int, rate: float) -> AsyncIterator[int]:
    """Give the numbers of books in turn, `rate` a second in all, however long each takes."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    number = 0
    while True:
        wait = due - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        yield number
        number = (number + 1) % books
        due += 1 / rate
