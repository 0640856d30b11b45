"""Fan-out of one marketdata process, beside what grpcio alone can send in the same run.

`python -m benchmarks.fanout` prints one JSON line a measurement:
- ceiling: a bare grpc.aio server that sends one ready-made message over and over to every stream;
- marketdata: the service's own path, the same events, each in a message of its own;
- batched: the same with the usual bound on messages, so that one carries many events, as it does
  for subscribers who are behind.

Events come in bursts, the next when every subscriber of a book has the last, so that neither side
waits for the other. `server_us_per_event` is processor time, which says more than the rate where
the machine has other work.

The client (`benchmarks/sink.py`) only counts. Server and client have a process each.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import uvloop
from marketprism.market.v1 import instrument_pb2, order_book_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb

from benchmarks.sink import Sink
from services.marketdata.service import MarketDataService
from services.marketdata.settings import MarketDataSettings, StreamSettings
from services.marketdata.wire import ORDER_BOOK_UPDATE, event_item, field, varint
from services.shared.jetstream import Message
from services.shared.ports import free_port
from services.shared.settings import MeshSettings, ServiceSettings

_PATH = "/marketprism.market.v1.MarketDataService/StreamOrderBook"
_EXCHANGE = "binance"
_ONE_EVENT = 1024  # bound on messages in which no second event finds room
_PREFIX = 5  # bytes before each gRPC message
_EPOCH = 1_700_000_000_000_000


def update(symbol: str, sequence: int, levels: int) -> bytes:
    """Give an encoded update with `levels` changed levels."""
    message = order_book_pb2.OrderBookUpdate(
        exchange=_EXCHANGE,
        symbol=symbol,
        epoch=_EPOCH,
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


class Fed(MarketDataService):
    """The service, fed from within instead of by a broker."""

    subscribers = 0
    books = 1
    burst = 1
    levels = 16

    async def setup(self, stack: contextlib.AsyncExitStack) -> None:
        """Begin to feed."""
        self.spawn(self._feed_books(), "feed")
        self.spawn(self._end_streams(), "end of streams")

    async def _feed_books(self) -> None:
        market = self.market
        feeds = []
        for number in range(self.books):
            name = f"{_EXCHANGE}.{symbol(number)}"
            instrument = instrument_pb2.Instrument(exchange=_EXCHANGE, symbol=symbol(number))
            market.on_instrument(
                [Message(f"market.instrument.{name}", instrument.SerializeToString(), 1)]
            )
            feeds.append(self._feed_one(symbol(number)))
        market.catalog.ready = True
        while True:
            for feed in feeds:
                next(feed)
            # The other books' subscribers are served meanwhile; a busier loop would be measured.
            await asyncio.sleep(0.001)

    def _feed_one(self, name: str) -> Iterator[None]:
        """Feed a book whenever all of its subscribers have all of it."""
        market = self.market
        snapshot = order_book_pb2.OrderBookSnapshot(
            exchange=_EXCHANGE,
            symbol=name,
            epoch=_EPOCH,
            reason=order_book_pb2.SNAPSHOT_REASON_PERIODIC,
        )
        log = market.book((_EXCHANGE, name)).log
        # Making events is the collector's work: here only the sequence (field 4) is put in.
        made = update(name, 0, self.levels)
        identity = field(1, _EXCHANGE.encode()) + field(2, name.encode()) + b"\x18" + varint(_EPOCH)
        assert made.startswith(identity)
        head, tail = identity + b"\x20", made[len(identity) :]
        sequence = 0
        while True:
            if sequence % 2000 < self.burst:
                snapshot.sequence = sequence
                subject = f"market.order_book_snapshot.{_EXCHANGE}.{name}"
                market.on_order_book([Message(subject, snapshot.SerializeToString(), 1)])
            while log.waiting < self.subscribers // self.books:
                yield
            subject = f"market.order_book_update.{_EXCHANGE}.{name}"
            market.on_order_book(
                [
                    Message(subject, head + varint(sequence + n) + tail, 1)
                    for n in range(1, self.burst + 1)
                ]
            )
            sequence += self.burst
            yield


def symbol(number: int) -> str:
    """Give the name of one of the books."""
    return f"B{number:02}-USDT"


async def serve(given: argparse.Namespace) -> None:
    """Run one of the servers until the process is ended."""
    kind, port, levels = given.serve, given.port, given.levels
    if kind == "ceiling":
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        message = event_item(ORDER_BOOK_UPDATE, update(symbol(0), 1, levels))

        async def stream(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
            while True:
                yield message

        service, _, method = _PATH.strip("/").rpartition("/")
        handler = grpc.unary_stream_rpc_method_handler(stream)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        print("ready", flush=True)
        await server.wait_for_termination()
        return
    with tempfile.TemporaryDirectory() as directory:
        mesh = MeshSettings(
            data_dir=Path(directory), services={"marketdata": ServiceSettings(grpc_port=port)}
        )
        bound = StreamSettings()
        if kind == "marketdata":
            bound = StreamSettings(max_message_bytes=_ONE_EVENT)
        fed = Fed(mesh, MarketDataSettings(stream=bound))
        fed.subscribers, fed.books = given.subscribers, given.books
        fed.burst, fed.levels = given.burst, levels
        async with fed.running():
            print("ready", flush=True)
            await fed.wait()


def measure(
    kind: str, *, subscribers: int, books: int, burst: int, levels: int, seconds: float
) -> dict[str, object]:
    """Run a server of a kind and count what it sends."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.fanout", "--serve", kind, "--port", str(port)]
    command += ["--subscribers", str(subscribers), "--books", str(books)]
    command += ["--burst", str(burst), "--levels", str(levels)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        while "ready" not in (line := process.stdout.readline()):
            if not line:
                raise SystemExit(f"the {kind} server did not start")
        sink = Sink("127.0.0.1", port)
        for number in range(books):
            request = pb.StreamOrderBookRequest(exchange=_EXCHANGE, symbol=symbol(number))
            sink.open(subscribers // books, _PATH, request.SerializeToString(), f"127.0.0.1:{port}")
        sink.read(1.0)
        server = psutil.Process(process.pid)
        sent_before, cpu_before = sink.bytes, sum(server.cpu_times()[:2])
        took = sink.read(seconds)
        cpu = sum(server.cpu_times()[:2]) - cpu_before
        sent = sink.bytes - sent_before
        sink.close()
        size = len(event_item(ORDER_BOOK_UPDATE, update(symbol(0), 1, levels)))
        if sink.ended or not sent:
            raise SystemExit(f"the {kind} server ended {sink.ended} streams")
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    events = sent / (size if kind == "batched" else size + _PREFIX)
    return {
        "measured": kind,
        "subscribers": subscribers,
        "books": books,
        "event_bytes": size,
        "events_per_second": round(events / took),
        "server_us_per_event": round(cpu / events * 1e6, 2),
        "megabytes_per_second": round(sent / took / 1e6, 1),
    }


def main() -> None:
    """Measure, or serve for a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", choices=("ceiling", "marketdata", "batched"))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--subscribers", type=int, default=50)
    parser.add_argument("--books", type=int, default=10, help="shared evenly by the subscribers")
    parser.add_argument("--levels", type=int, default=40, help="changed levels an update")
    parser.add_argument("--burst", type=int, default=200, help="events that come at once")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts")
    given = parser.parse_args()
    if len(event_item(ORDER_BOOK_UPDATE, update(symbol(0), 1, given.levels))) * 2 <= _ONE_EVENT:
        parser.error(f"--levels {given.levels}: two such events fit into a message; give more")
    if given.serve:
        uvloop.run(serve(given))
        return
    best: dict[str, dict[str, Any]] = {}
    for _ in range(given.rounds):
        for kind in ("ceiling", "marketdata", "batched"):
            result = measure(
                kind,
                subscribers=given.subscribers,
                books=given.books,
                burst=given.burst,
                levels=given.levels,
                seconds=given.seconds,
            )
            if result["events_per_second"] > best.get(kind, result)["events_per_second"] or (
                kind not in best
            ):
                best[kind] = result
    ceiling = best["ceiling"]["events_per_second"]
    for result in best.values():
        result["of_ceiling"] = round(result["events_per_second"] / ceiling, 3)
        result["of_ceiling_by_cpu"] = round(
            best["ceiling"]["server_us_per_event"] / result["server_us_per_event"], 3
        )
        print(json.dumps(result))


if __name__ == "__main__":
    main()
