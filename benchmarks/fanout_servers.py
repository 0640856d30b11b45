"""The servers that the fan-out benchmarks measure, each in a process of its own.

`python -m benchmarks.fanout_servers KIND --port N ...`:
- ceiling: a bare grpc.aio server that sends one ready-made message over and over to every stream;
- bare: a bare grpc.aio server whose streams wait for events and send each in a message;
- marketdata, batched: the service, fed from within whenever all subscribers have everything;
- paced: the service, fed from within at a rate.
"""

import argparse
import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import uvloop
from marketprism.market.v1 import instrument_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb

from benchmarks.fanout_events import EXCHANGE, Updates, paced, snapshot, symbol, update
from services.marketdata.service import MarketDataService
from services.marketdata.settings import MarketDataSettings, StreamSettings
from services.marketdata.wire import ORDER_BOOK_UPDATE, event_item
from services.shared.jetstream import Message
from services.shared.pauses import avoid_pauses
from services.shared.settings import MeshSettings, ServiceSettings

__all__ = ["KINDS", "ONE_EVENT", "SERVICE", "item_size"]

KINDS = ("ceiling", "bare", "marketdata", "batched", "paced")
"""The servers there are."""

SERVICE = "marketprism.market.v1.MarketDataService"
"""Whose methods the streams are of."""

ONE_EVENT = 1024
"""Bound on messages in which no second event finds room, bytes."""


def item_size(levels: int) -> int:
    """Give the bytes of one event in a message."""
    return len(event_item(ORDER_BOOK_UPDATE, update(symbol(0), 1, levels)))


class Fed(MarketDataService):
    """The service, fed from within instead of by a broker."""

    subscribers = 0
    books = 1
    burst = 1
    levels = 16
    rate = 0.0

    async def setup(self, stack: contextlib.AsyncExitStack) -> None:
        """Begin to feed."""
        for number in range(self.books):
            self._begin(symbol(number))
        self.market.catalog.ready = True
        feed = self._feed_at_a_rate() if self.rate else self._feed_whoever_waits()
        self.spawn(feed, "feed")
        self.spawn(self._end_streams(), "end of streams")

    def _begin(self, name: str) -> None:
        instrument = instrument_pb2.Instrument(exchange=EXCHANGE, symbol=name)
        self.market.on_instrument(
            [Message(f"market.instrument.{EXCHANGE}.{name}", instrument.SerializeToString(), 1)]
        )
        self._repeat(name, 0)

    def _repeat(self, name: str, sequence: int) -> None:
        subject = f"market.order_book_snapshot.{EXCHANGE}.{name}"
        self.market.on_order_book([Message(subject, snapshot(name, sequence), 1)])

    async def _feed_whoever_waits(self) -> None:
        feeds = [self._feed_one(symbol(number)) for number in range(self.books)]
        while True:
            for feed in feeds:
                next(feed)
            # The other books' subscribers are served meanwhile; a busier loop would be measured.
            await asyncio.sleep(0.001)

    def _feed_one(self, name: str) -> Iterator[None]:
        """Feed a book whenever all of its subscribers have all of it."""
        market = self.market
        log = market.book((EXCHANGE, name)).log
        made = Updates(name, self.levels)
        subject = f"market.order_book_update.{EXCHANGE}.{name}"
        while True:
            if made.sequence % 2000 < self.burst:
                self._repeat(name, made.sequence)
            while log.waiting < self.subscribers // self.books:
                yield
            market.on_order_book([Message(subject, made.next(), 1) for _ in range(self.burst)])
            yield

    async def _feed_at_a_rate(self) -> None:
        names = [symbol(number) for number in range(self.books)]
        made = [Updates(name, self.levels) for name in names]
        subjects = [f"market.order_book_update.{EXCHANGE}.{name}" for name in names]
        async for number in paced(self.books, self.rate):
            updates = made[number]
            self.market.on_order_book([Message(subjects[number], updates.next_now(), 1)])
            if not updates.sequence % 2000:
                self._repeat(names[number], updates.sequence)


async def _serve_ceiling(port: int, levels: int) -> None:
    message = event_item(ORDER_BOOK_UPDATE, update(symbol(0), 1, levels))

    async def stream(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        while True:
            yield message

    await _serve_bare(port, dict.fromkeys(("StreamOrderBook", "StreamMarketData"), stream))


async def _serve_waiting(port: int, books: int, levels: int, rate: float) -> None:
    """Send each event to every stream of its book: what grpcio and asyncio alone can do."""
    waiting: list[list[asyncio.Future[bytes]]] = [[] for _ in range(books)]
    numbers = {f"{EXCHANGE}/{symbol(number)}": number for number in range(books)}
    loop = asyncio.get_running_loop()

    async def stream(request: bytes, _context: Any) -> AsyncIterator[bytes]:
        number = numbers[pb.StreamMarketDataRequest.FromString(request).instruments[0]]
        while True:
            future: asyncio.Future[bytes] = loop.create_future()
            waiting[number].append(future)
            yield await future

    async def feed() -> None:
        made = [Updates(symbol(number), levels) for number in range(books)]
        async for number in paced(books, rate):
            message = event_item(ORDER_BOOK_UPDATE, made[number].next_now())
            woken, waiting[number] = waiting[number], []
            for future in woken:
                if not future.done():
                    future.set_result(message)

    feeding = asyncio.create_task(feed())
    await _serve_bare(port, {"StreamMarketData": stream})
    feeding.cancel()


async def _serve_bare(port: int, methods: dict[str, Any]) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers: dict[str, Any] = {
        name: grpc.unary_stream_rpc_method_handler(stream) for name, stream in methods.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


async def _serve(given: argparse.Namespace) -> None:
    avoid_pauses()
    if given.kind == "ceiling":
        await _serve_ceiling(given.port, given.levels)
    elif given.kind == "bare":
        await _serve_waiting(given.port, given.books, given.levels, given.rate)
    else:
        await _serve_marketdata(given)


async def _serve_marketdata(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as directory:
        mesh = MeshSettings(
            data_dir=Path(directory), services={"marketdata": ServiceSettings(grpc_port=given.port)}
        )
        bound = StreamSettings()
        if given.kind == "marketdata":
            bound = StreamSettings(max_message_bytes=ONE_EVENT)
        fed = Fed(mesh, MarketDataSettings(stream=bound))
        fed.subscribers, fed.books, fed.burst = given.subscribers, given.books, given.burst
        fed.levels, fed.rate = given.levels, given.rate if given.kind == "paced" else 0.0
        async with fed.running():
            print("ready", flush=True)
            await fed.wait()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--subscribers", type=int, default=1)
    parser.add_argument("--books", type=int, default=1)
    parser.add_argument("--levels", type=int, default=40)
    parser.add_argument("--burst", type=int, default=1)
    parser.add_argument("--rate", type=float, default=100.0, help="events a second of all books")
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
