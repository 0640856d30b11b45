"""Watches many instruments in one stream: books and trades by pattern, in plain grpcio.

    pip install grpcio protobuf && export PYTHONPATH=gen/python
    python examples/python/watch_many.py "binance/*-USDT" "okx/BTC-*" --address localhost:8080

One call carries everything. Instruments that appear later join by themselves. When the stream
breaks, every book goes on from where it stands; what is not certain meanwhile is said.
"""

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Iterator

import grpc
from keep_book import BrokenBookError, OrderBook
from marketprism.market.v1 import common_pb2, order_book_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1.market_data_service_pb2_grpc import MarketDataServiceStub
from marketprism.market.v1.market_event_pb2 import MarketEvent, StreamState, StreamStatus

HEARTBEAT_SECONDS = 5
KINDS = [common_pb2.EVENT_KIND_ORDER_BOOK, common_pb2.EVENT_KIND_TRADE]


class Watch:
    """Every book and the number of trades, by (exchange, symbol)."""

    def __init__(self, patterns: list[str]) -> None:
        self.patterns = patterns
        self.books: dict[tuple[str, str], OrderBook] = defaultdict(OrderBook)
        self.trades: dict[tuple[str, str], int] = defaultdict(int)
        self.doubts: set[tuple[str, str]] = set()

    def run(self, address: str) -> Iterator[None]:
        """Follow the stream without end, connecting again as needed; yields after each message."""
        delay = 0.1
        while True:
            try:
                with grpc.insecure_channel(address) as channel:
                    for response in MarketDataServiceStub(channel).Subscribe(self._requests()):
                        delay = 0.1
                        for event in response.events:
                            self.take(event)
                        yield
            except BrokenBookError as error:
                print(f"out of step: {error}")
            except grpc.RpcError as error:
                print(f"{error.code().name}: {error.details()}")
            self.doubts.add(("", ""))
            time.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, 10.0)

    def take(self, event: MarketEvent) -> None:
        """Take one event of any kind."""
        kind = event.WhichOneof("event")
        if kind is None:
            return
        payload = getattr(event, kind)
        key = (payload.exchange, payload.symbol)
        if kind == "stream_status":
            self.on_status(payload, key)
        elif kind == "trade":
            self.trades[key] += 1
        else:
            try:
                self.books[key].apply(event)
            except BrokenBookError:
                # It begins anew with the next stream, and the others go on.
                del self.books[key]
                raise

    def on_status(self, status: StreamStatus, key: tuple[str, str]) -> None:
        """Note what the stream says of itself."""
        if status.state == StreamState.STREAM_STATE_INTERRUPTED:
            self.doubts.add(key)
        elif status.state == StreamState.STREAM_STATE_OPEN:
            self.doubts.discard(key)
        elif status.message.startswith("refused: "):
            raise SystemExit(f"{status.reason}: {status.message}")
        if status.state != StreamState.STREAM_STATE_HEARTBEAT:
            state = StreamState.Name(status.state).removeprefix("STREAM_STATE_")
            print(f"{state:12} {status.reason} {'/'.join(key).strip('/')} {status.message}")

    def summary(self) -> str:
        """Give one line: books in step, trades, what is doubtful."""
        in_step = order_book_pb2.ORDER_BOOK_STATE_SYNCED
        synced = sum(book.state == in_step for book in self.books.values())
        doubts = ", ".join("/".join(key).strip("/") or "everything" for key in sorted(self.doubts))
        return (
            f"{synced} of {len(self.books)} books in step, {sum(self.trades.values())} trades"
            + (f"; doubtful: {doubts}" if doubts else "")
        )

    def _requests(self) -> Iterator[pb.SubscribeRequest]:
        first = pb.SubscribeRequest()
        first.heartbeat_interval.FromSeconds(HEARTBEAT_SECONDS)
        yield first
        subscription = pb.Subscription(
            subscription_id="all", instruments=self.patterns, kinds=KINDS
        )
        for (exchange, symbol), book in self.books.items():
            if book.epoch:
                subscription.resumes.add(
                    instrument=pb.InstrumentKey(exchange=exchange, symbol=symbol),
                    resume=pb.ResumePoint(epoch=book.epoch, sequence=book.sequence),
                )
        yield pb.SubscribeRequest(add=subscription)


def main() -> None:
    """Print a line whenever something came, at most ten times a second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="+", help='for example "binance/*-USDT"')
    parser.add_argument("--address", default="localhost:8080")
    parser.add_argument("--lines", type=int, default=0, help="end after so many lines")
    given = parser.parse_args()
    watch = Watch(given.patterns)
    shown, count = 0.0, 0
    for _ in watch.run(given.address):
        if time.monotonic() - shown >= 0.1:
            shown = time.monotonic()
            print(watch.summary(), flush=True)
            count += 1
            if count == given.lines:
                return


if __name__ == "__main__":
    main()
