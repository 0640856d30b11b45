"""Follows what a collector publishes of one venue, knowing nothing but the contracts."""

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2, events_pb2, instrument_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from conformance.followed import FollowedBook, FollowedTrades
from conformance.simulated import SimulatedVenueClient
from conformance.truth import Comparer
from services.shared.jetstream import Message, StartAt, StreamReader

__all__ = ["Entry", "Follower", "until"]

_STREAMS = {
    "MARKET_ORDER_BOOK": "market.order_book_*.{}.>",
    "MARKET_TRADE": "market.trade.{}.>",
    "MARKET_INTEGRITY": "market.integrity.{}.>",
    "MARKET_BEST_BID_OFFER": "market.best_bid_offer.{}.>",
    "MARKET_REFERENCE": "market.*.{}.>",
    "MARKET_INSTRUMENT": "market.instrument.{}.>",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the gap ledger and when it came, by the monotonic clock."""

    at: float
    """When it came."""
    event: integrity.IntegrityEvent
    """What it says."""

    @property
    def kind(self) -> str:
        """Name of the kind without its prefix."""
        return integrity.IntegrityKind.Name(self.event.kind).removeprefix("INTEGRITY_KIND_")

    @property
    def cause(self) -> str:
        """Name of the cause without its prefix."""
        return integrity.IntegrityCause.Name(self.event.cause).removeprefix("INTEGRITY_CAUSE_")

    @property
    def event_kind(self) -> str:
        """Name of the kind of data without its prefix."""
        return common_pb2.EventKind.Name(self.event.event_kind).removeprefix("EVENT_KIND_")


class Follower:
    """Books, trades, ledger, reference data and instruments of one venue.

    Every `compare_every`th update of a book is held against the truth, and every snapshot, while
    the book claims to be in step.
    """

    def __init__(
        self,
        nats_url: str,
        exchange: str,
        venue: SimulatedVenueClient,
        natives: Mapping[str, str],
        *,
        compare_every: int = 1,
        from_begin: bool = True,
    ) -> None:
        """`natives` has the venue's names by canonical symbol; it may grow."""
        self.exchange = exchange
        self.books: dict[str, FollowedBook] = defaultdict(lambda: FollowedBook(""))
        self.trades: dict[str, FollowedTrades] = defaultdict(FollowedTrades)
        self.entries: list[Entry] = []
        self.told: Counter[tuple[str, str]] = Counter()
        """Messages by kind (`ticker`, `mark_price`, ...) and symbol."""
        self.instruments: dict[str, instrument_pb2.Instrument] = {}
        """The newest description by symbol."""
        self.undecodable = 0
        self.comparer = Comparer(venue, natives)
        self._every = compare_every
        handlers: dict[str, Callable[[list[Message]], None]] = {
            "MARKET_ORDER_BOOK": self._on_books,
            "MARKET_TRADE": self._on_trades,
            "MARKET_INTEGRITY": self._on_entries,
            "MARKET_BEST_BID_OFFER": self._on_others,
            "MARKET_REFERENCE": self._on_others,
            "MARKET_INSTRUMENT": self._on_instruments,
        }
        start = StartAt.all() if from_begin else StartAt.new()
        self._readers = [
            StreamReader(
                nats_url,
                stream,
                filter_subjects=[
                    subject.replace("order_book_*", name).format(exchange)
                    for name in (
                        ("order_book_snapshot", "order_book_update", "order_book_status")
                        if "order_book_*" in subject
                        else ("",)
                    )
                ],
                start=StartAt.all() if stream == "MARKET_INSTRUMENT" else start,
                on_batch=handlers[stream],
                name=f"conformance {exchange}",
            )
            for stream, subject in _STREAMS.items()
        ]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Follower"]:
        """Follow until the block ends."""
        comparing = asyncio.create_task(self.comparer.run(), name="comparer")
        try:
            for reader in self._readers:
                await reader.start()
            for reader in self._readers:
                await reader.wait_live(10)
            yield self
        finally:
            for reader in self._readers:
                await reader.stop()
            comparing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await comparing

    def compare(self, book: FollowedBook) -> None:
        """Hold a book against the truth where it stands."""
        if book.has_book and book.state in ("SYNCED", "STALE"):
            self.comparer.hand_in(book.moment())

    def take_breaches(self) -> list[str]:
        """Give what broke the contract since the last time."""
        found = []
        for kept in (self.books, self.trades):
            for symbol, one in kept.items():
                found += [f"{symbol}: {each}" for each in one.breaches]
                one.breaches.clear()
        return found

    # Inside

    def _on_books(self, messages: list[Message]) -> None:
        for message in messages:
            _, kind, _, symbol = message.subject.split(".", 3)
            book = self.books[symbol]
            book.symbol = symbol
            if kind == "order_book_update":
                book.on_update(pb.OrderBookUpdate.FromString(message.payload))
                if book.updates % self._every:
                    continue
            elif kind == "order_book_snapshot":
                book.on_snapshot(pb.OrderBookSnapshot.FromString(message.payload))
            else:
                book.on_status(pb.OrderBookStatus.FromString(message.payload))
                continue
            self.compare(book)

    def _on_trades(self, messages: list[Message]) -> None:
        for message in messages:
            trade = events_pb2.Trade.FromString(message.payload)
            self.trades[trade.symbol].on_trade(trade)

    def _on_entries(self, messages: list[Message]) -> None:
        now = time.monotonic()
        self.entries += [
            Entry(now, integrity.IntegrityEvent.FromString(each.payload)) for each in messages
        ]

    def _on_others(self, messages: list[Message]) -> None:
        for message in messages:
            _, kind, _, symbol = message.subject.split(".", 3)
            self.told[kind, symbol] += 1

    def _on_instruments(self, messages: list[Message]) -> None:
        for message in messages:
            instrument = instrument_pb2.Instrument.FromString(message.payload)
            self.instruments[instrument.symbol] = instrument


async def until(condition: Callable[[], object], seconds: float) -> bool:
    """Wait for a condition; False when it does not come in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True
