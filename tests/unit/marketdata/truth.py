"""A book as a collector publishes it, and as a client keeps it: the two are compared."""

import random
import time
from collections.abc import Iterable
from decimal import Decimal

from marketprism.market.v1 import market_event_pb2, order_book_pb2

__all__ = ["ClientBook", "Collected", "levels_of"]

Levels = dict[str, str]
S = order_book_pb2


class Collected:
    """Plays the collector of one instrument: what it publishes, and the true book."""

    def __init__(
        self,
        exchange: str = "binance",
        symbol: str = "BTC-USDT",
        *,
        seed: int = 1,
        levels: int = 50,
    ) -> None:
        self.exchange = exchange
        self.symbol = symbol
        self.epoch = 0
        self.sequence = 0
        self.venue_sequence = 1000
        self.bids: Levels = {}
        self.asks: Levels = {}
        self._random = random.Random(seed)
        self._levels = levels

    def subject(self, kind: str) -> str:
        return f"market.{kind}.{self.exchange}.{self.symbol}"

    def rebuild(self, reason: int = S.SNAPSHOT_REASON_EPOCH_START) -> bytes:
        """Begin a new epoch with a fresh book."""
        self.epoch += 1 if self.epoch else time.time_ns() // 1000
        self.sequence = 0
        self.bids = {self._price(-1, n): self._quantity() for n in range(self._levels)}
        self.asks = {self._price(1, n): self._quantity() for n in range(self._levels)}
        return self.snapshot(reason)

    def snapshot(self, reason: int = S.SNAPSHOT_REASON_PERIODIC) -> bytes:
        message = S.OrderBookSnapshot(
            **self._head(), reason=reason, bid_horizon="100", ask_horizon="90000"
        )
        message.receive_time.FromNanoseconds(time.time_ns())
        for price in sorted(self.bids, key=Decimal, reverse=True):
            message.bids.add(price=price, quantity=self.bids[price])
        for price in sorted(self.asks, key=Decimal):
            message.asks.add(price=price, quantity=self.asks[price])
        return message.SerializeToString()

    def status(self, state: int, reason: int, detail: str = "") -> bytes:
        message = S.OrderBookStatus(**self._head(), state=state, reason=reason, detail=detail)
        message.time.FromNanoseconds(time.time_ns())
        return message.SerializeToString()

    def synced(self) -> bytes:
        return self.status(S.ORDER_BOOK_STATE_SYNCED, S.ORDER_BOOK_REASON_SYNCHRONISED)

    def resyncing(self) -> bytes:
        return self.status(S.ORDER_BOOK_STATE_RESYNCING, S.ORDER_BOOK_REASON_VENUE_GAP, "a gap")

    def update(self, changes: int = 4) -> bytes:
        """Change some levels and give the update that says so."""
        self.sequence += 1
        self.venue_sequence += 3
        message = S.OrderBookUpdate(**self._head(), previous_venue_sequence=self.venue_sequence - 3)
        message.exchange_time.FromNanoseconds(time.time_ns())
        message.receive_time.FromNanoseconds(time.time_ns())
        for side, held, out in ((-1, self.bids, message.bids), (1, self.asks, message.asks)):
            for _ in range(changes // 2):
                price = self._price(side, self._random.randrange(self._levels * 2))
                quantity = "0" if self._random.random() < 0.4 else self._quantity()
                if quantity == "0":
                    held.pop(price, None)
                else:
                    held[price] = quantity
                out.add(price=price, quantity=quantity)
        return message.SerializeToString()

    def best(self, depth: int = 0) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Give bids and asks, best first."""
        bids = sorted(self.bids.items(), key=lambda level: Decimal(level[0]), reverse=True)
        asks = sorted(self.asks.items(), key=lambda level: Decimal(level[0]))
        return (bids[:depth], asks[:depth]) if depth else (bids, asks)

    def _head(self) -> dict[str, object]:
        return {
            "exchange": self.exchange,
            "symbol": self.symbol,
            "epoch": self.epoch,
            "sequence": self.sequence,
            "venue_sequence": self.venue_sequence,
        }

    def _price(self, side: int, step: int) -> str:
        return f"{Decimal(50000) + side * (step + 1) * Decimal('0.25'):f}".rstrip("0").rstrip(".")

    def _quantity(self) -> str:
        return str(self._random.randrange(1, 1000))


class ClientBook:
    """Keeps a book as the contract tells a client to, and asserts what it promises."""

    def __init__(self) -> None:
        self.bids: Levels = {}
        self.asks: Levels = {}
        self.epoch = 0
        self.sequence = -1
        self.has_book = False
        self.state = 0
        self.kinds: list[str] = []
        self.statuses: list[order_book_pb2.OrderBookStatus] = []
        self.stream_states: list[market_event_pb2.StreamStatus] = []
        self.snapshots: list[int] = []
        self.updates = 0

    def take(self, events: Iterable[market_event_pb2.MarketEvent]) -> None:
        for event in events:
            kind = event.WhichOneof("event")
            assert kind is not None, "expected an event in every item"
            self.kinds.append(kind)
            getattr(self, f"_on_{kind}")(getattr(event, kind))

    def best(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        return (
            sorted(self.bids.items(), key=lambda level: Decimal(level[0]), reverse=True),
            sorted(self.asks.items(), key=lambda level: Decimal(level[0])),
        )

    def _on_order_book_snapshot(self, snapshot: order_book_pb2.OrderBookSnapshot) -> None:
        self.bids = {level.price: level.quantity for level in snapshot.bids}
        self.asks = {level.price: level.quantity for level in snapshot.asks}
        self.epoch, self.sequence = snapshot.epoch, snapshot.sequence
        self.has_book = True
        self.snapshots.append(snapshot.reason)

    def _on_order_book_update(self, update: order_book_pb2.OrderBookUpdate) -> None:
        assert self.has_book, "expected no update before a snapshot"
        assert (update.epoch, update.sequence) == (self.epoch, self.sequence + 1), (
            f"expected update {self.sequence + 1} of epoch {self.epoch}, "
            f"got {update.sequence} of {update.epoch}"
        )
        self.sequence = update.sequence
        self.updates += 1
        for held, changes in ((self.bids, update.bids), (self.asks, update.asks)):
            for level in changes:
                if level.quantity == "0":
                    held.pop(level.price, None)
                else:
                    held[level.price] = level.quantity

    def _on_order_book_status(self, status: order_book_pb2.OrderBookStatus) -> None:
        self.statuses.append(status)
        self.state = status.state

    def _on_stream_status(self, status: market_event_pb2.StreamStatus) -> None:
        self.stream_states.append(status)


def levels_of(
    snapshot: order_book_pb2.OrderBookSnapshot,
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Give bids and asks as they stand in a snapshot."""
    return (
        [(level.price, level.quantity) for level in snapshot.bids],
        [(level.price, level.quantity) for level in snapshot.asks],
    )
