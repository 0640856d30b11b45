"""Keeps one order book over gRPC, and shows its top: a whole client in plain grpcio.

    pip install grpcio protobuf && export PYTHONPATH=gen/python
    python examples/python/keep_book.py binance BTC-USDT --address localhost:8080

Two rules keep a book right: a snapshot replaces everything; an update is right only if it has the
same epoch and the next sequence. When the stream breaks, the client asks to go on from where its
book stands, and gets the missing updates, or a snapshot when they are no longer held.
"""

import argparse
import random
import time
from collections.abc import Iterator
from decimal import Decimal

import grpc
from marketprism.market.v1 import market_data_service_pb2, order_book_pb2
from marketprism.market.v1.market_data_service_pb2_grpc import MarketDataServiceStub
from marketprism.market.v1.market_event_pb2 import MarketEvent, StreamState


class BrokenBookError(Exception):
    """The book lost step: what is held must not be used until the next snapshot."""


class OrderBook:
    """Bids and asks of one instrument, and where they stand."""

    def __init__(self) -> None:
        self.epoch = 0
        self.sequence = 0
        self.state = order_book_pb2.ORDER_BOOK_STATE_SYNCING
        self.bids: dict[str, str] = {}
        self.asks: dict[str, str] = {}

    def apply(self, event: MarketEvent) -> None:
        """Apply one event; raises `BrokenBookError` when an update does not continue the book."""
        kind = event.WhichOneof("event")
        if kind == "order_book_snapshot":
            snapshot = event.order_book_snapshot
            self.epoch, self.sequence = snapshot.epoch, snapshot.sequence
            self.bids = {level.price: level.quantity for level in snapshot.bids}
            self.asks = {level.price: level.quantity for level in snapshot.asks}
        elif kind == "order_book_update":
            update = event.order_book_update
            if (update.epoch, update.sequence) != (self.epoch, self.sequence + 1):
                raise BrokenBookError(f"expected update {self.sequence + 1}, got {update.sequence}")
            self.sequence = update.sequence
            for side, levels in ((self.bids, update.bids), (self.asks, update.asks)):
                for level in levels:
                    if level.quantity == "0":
                        side.pop(level.price, None)
                    else:
                        side[level.price] = level.quantity
        elif kind == "order_book_status":
            self.state = event.order_book_status.state

    def top(self) -> str:
        """Give one line: state, sequence, best bid and best ask."""
        state = order_book_pb2.OrderBookState.Name(self.state).removeprefix("ORDER_BOOK_STATE_")
        bid = max(self.bids, key=Decimal, default="-")
        ask = min(self.asks, key=Decimal, default="-")
        return (
            f"{state:10} {self.epoch}/{self.sequence}  "
            f"{self.bids.get(bid, '-')} @ {bid}  |  {ask} @ {self.asks.get(ask, '-')}"
        )


def keep(address: str, exchange: str, symbol: str) -> Iterator[OrderBook]:
    """Keep a book without end; gives it after each message, connecting again as needed."""
    book = OrderBook()
    delay = 0.1
    while True:
        request = market_data_service_pb2.StreamOrderBookRequest(exchange=exchange, symbol=symbol)
        if book.epoch:
            request.resume.epoch = book.epoch
            request.resume.sequence = book.sequence
        try:
            with grpc.insecure_channel(address) as channel:
                for response in MarketDataServiceStub(channel).StreamOrderBook(request):
                    delay = 0.1
                    for event in response.events:
                        told = event.stream_status
                        if told.state == StreamState.STREAM_STATE_LAGGING:
                            print(f"too slow: {told.dropped_events} events were left out")
                        book.apply(event)
                    yield book
        except BrokenBookError as error:
            print(f"out of step: {error}")
            book = OrderBook()
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                raise SystemExit(f"{error.code().name}: {error.details()}") from None
            print(f"{error.code().name}: {error.details()}")
        time.sleep(delay * random.uniform(0.5, 1.0))
        delay = min(delay * 2, 10.0)


def main() -> None:
    """Print the top of the book whenever it moved, at most ten times a second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exchange", help="for example binance")
    parser.add_argument("symbol", help="for example BTC-USDT")
    parser.add_argument("--address", default="localhost:8080")
    parser.add_argument("--lines", type=int, default=0, help="end after so many lines")
    given = parser.parse_args()
    shown, count = 0.0, 0
    for book in keep(given.address, given.exchange, given.symbol):
        if time.monotonic() - shown >= 0.1:
            shown = time.monotonic()
            print(book.top(), flush=True)
            count += 1
            if count == given.lines:
                return


if __name__ == "__main__":
    main()
