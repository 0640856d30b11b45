"""What the collector's tests share: captures, plain books, an output that remembers."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest
from marketprism.market.v1 import common_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from services.collector.venues.binance_spot import DepthUpdate

CAPTURES_VARIABLE = "MARKETPRISM_CAPTURES"

Levels = Sequence[tuple[str, str]]


def captures(*parts: str) -> Path:
    """Path below the captures; skips the test where there are none."""
    root = os.environ.get(CAPTURES_VARIABLE)
    if not root:
        pytest.skip(f"needs recorded market data: set {CAPTURES_VARIABLE} to their folder")
    return Path(root).joinpath(*parts)


def diff(first: int, last: int, bids: Levels = (), asks: Levels = (), ms: int = 0) -> DepthUpdate:
    """A Binance diff of update ids first..last."""
    return DepthUpdate("BTCUSDT", first, last, list(bids), list(asks), ms)


class PlainBook:
    """A book kept in the plainest way: Decimal to Decimal, both sides sorted when asked."""

    def __init__(self) -> None:
        self.bids: dict[Decimal, Decimal] = {}
        self.asks: dict[Decimal, Decimal] = {}

    def apply(self, bids: Levels, asks: Levels) -> None:
        for side, changes in ((self.bids, bids), (self.asks, asks)):
            for price, quantity in changes:
                if Decimal(quantity) == 0:
                    side.pop(Decimal(price), None)
                else:
                    side[Decimal(price)] = Decimal(quantity)

    def sorted(self) -> tuple[list[tuple[Decimal, Decimal]], list[tuple[Decimal, Decimal]]]:
        return sorted(self.bids.items(), reverse=True), sorted(self.asks.items())


def as_decimals(levels: Levels) -> list[tuple[Decimal, Decimal]]:
    """Levels by value."""
    return [(Decimal(price), Decimal(quantity)) for price, quantity in levels]


def pairs(levels: Sequence[common_pb2.PriceLevel]) -> list[tuple[str, str]]:
    """Levels of a message as text."""
    return [(level.price, level.quantity) for level in levels]


@dataclass
class Subscriber:
    """Follows a book by the contract alone: what the rules of the stream allow, and nothing else.

    It is the `BookOutput` of a synchroniser. `problems` are breaches of the contract.
    """

    epoch: int = 0
    sequence: int = 0
    venue_sequence: int = 0
    state: int = 0
    book: PlainBook = field(default_factory=PlainBook)
    has_book: bool = False
    statuses: list[pb.OrderBookStatus] = field(default_factory=list)
    updates: list[pb.OrderBookUpdate] = field(default_factory=list)
    snapshots: list[pb.OrderBookSnapshot] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    is_muted: Callable[[], bool] = lambda: False

    def publish_update(self, payload: bytes, epoch: int, sequence: int) -> None:
        update = pb.OrderBookUpdate.FromString(payload)
        self._expect(update.SerializeToString() == payload, "the library's own bytes")
        self._expect((update.epoch, update.sequence) == (epoch, sequence), "the ids told beside")
        self._expect(epoch == self.epoch, f"epoch {self.epoch}, got {epoch}")
        self._expect(sequence == self.sequence + 1, f"{self.sequence + 1}, got {sequence}")
        self._expect(
            update.previous_venue_sequence == self.venue_sequence,
            f"a continuation of {self.venue_sequence}, got {update.previous_venue_sequence}",
        )
        self.sequence = sequence
        self.venue_sequence = update.venue_sequence
        self.book.apply(pairs(update.bids), pairs(update.asks))
        self.updates.append(update)
        self.payloads.append(payload)

    def publish_snapshot(self, payload: bytes, epoch: int, sequence: int) -> None:
        snapshot = pb.OrderBookSnapshot.FromString(payload)
        self._expect(snapshot.SerializeToString() == payload, "the library's own bytes")
        self._expect(
            (snapshot.epoch, snapshot.sequence) == (epoch, sequence), "the ids told beside"
        )
        if snapshot.reason == pb.SNAPSHOT_REASON_EPOCH_START:
            self._expect(epoch > self.epoch, f"an epoch above {self.epoch}, got {epoch}")
            self._expect(sequence == 0, f"an epoch that starts at 0, got {sequence}")
        else:
            self._expect(
                (epoch, sequence) == (self.epoch, self.sequence),
                f"a repetition of {self.epoch}.{self.sequence}, got {epoch}.{sequence}",
            )
        book = PlainBook()
        book.apply(pairs(snapshot.bids), pairs(snapshot.asks))
        bids, asks = book.sorted()
        self._expect(as_decimals(pairs(snapshot.bids)) == bids, "bids once, best first")
        self._expect(as_decimals(pairs(snapshot.asks)) == asks, "asks once, best first")
        if snapshot.reason == pb.SNAPSHOT_REASON_PERIODIC and not self.trimmed(snapshot):
            self._expect(book.sorted() == self.book.sorted(), "what the updates already said")
        self.book = book
        self.has_book = True
        self.epoch, self.sequence = epoch, sequence
        self.venue_sequence = snapshot.venue_sequence
        self.snapshots.append(snapshot)
        self.payloads.append(payload)

    @staticmethod
    def trimmed(snapshot: pb.OrderBookSnapshot) -> bool:
        return bool(snapshot.bid_horizon or snapshot.ask_horizon)

    def publish_status(self, status: pb.OrderBookStatus) -> None:
        if self.is_muted():
            return
        self._expect(
            status.epoch == self.epoch or status.state != pb.ORDER_BOOK_STATE_SYNCED,
            f"SYNCED for the epoch whose snapshot came, {self.epoch}, got {status.epoch}",
        )
        self.state = status.state
        self.statuses.append(status)

    def request_snapshot(self, reason: int) -> None:
        self.requests.append(reason)

    @property
    def states(self) -> list[str]:
        """Names of the states told, in order."""
        return [
            pb.OrderBookState.Name(each.state).removeprefix("ORDER_BOOK_STATE_")
            for each in self.statuses
        ]

    @property
    def reasons(self) -> list[str]:
        """Names of the reasons told, in order."""
        return [
            pb.OrderBookReason.Name(each.reason).removeprefix("ORDER_BOOK_REASON_")
            for each in self.statuses
        ]

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.problems.append(f"expected {what}")
