"""Rebuilds a book from one stored snapshot, and brings it forward from instant to instant.

The updates of an epoch are applied in the order of their sequence, each from its receive_time on;
one that was received before its predecessor (a clock was set back, diffs were buffered until the
snapshot came) waits for it. So the book is at every instant one that the collector had.
"""

import asyncio
from typing import Final

from marketprism.market.v1 import order_book_pb2

from services.storage.book_levels import BookSide
from services.storage.book_store import (
    PIECE,
    STALE,
    SYNCED,
    BookStore,
    Held,
    Place,
    Status,
    Update,
)
from services.storage.validators import NANOS

__all__ = ["BookWalk"]

_BIDS: Final = 10
_ASKS: Final = 11
# What follows an instant proves that nothing was missing before it; mostly it comes at once.
_AHEAD: Final = 2 * NANOS
_STATUSES_AHEAD: Final = 900 * NANOS
_REQUESTED: Final = order_book_pb2.SNAPSHOT_REASON_REQUESTED


class BookWalk:
    """The book from one base on; `end` is the last instant that it will be moved to."""

    def __init__(self, store: BookStore, base: Place, end: int) -> None:
        self.store = store
        """The rows."""
        self.base = base
        """The snapshot it is rebuilt from."""
        self.bids = BookSide(_BIDS, descending=True)
        self.asks = BookSide(_ASKS, descending=False)
        self.sequence = base.sequence
        """Sequence of the last update contained."""
        self.reached = base.time
        """From when on it is this book: nanoseconds since 1970."""
        self.receive_time = base.time
        """When the last frame contained was received."""
        self.applied = 0
        """Updates applied to the base."""
        self.statuses: list[Status] = []
        """Changes of state that may concern it, as published, some after `end` too."""
        self.other_epochs: list[tuple[int, int]] = []
        """Later epochs that updates are held of until `end`, and when the first of each came."""
        self._end = end
        self._exchange_time = 0
        self._venue_sequence = 0
        self._horizons = "", ""
        self._moves = False, False
        self._ahead: list[Update] = []
        self._index = 0
        self._read_to = base.sequence
        self._following: dict[int, Held | None] = {}

    async def begin(self) -> None:
        """Read the base, and what lies ahead. Call it first; raises as `Engine.query` does."""
        snapshot, _, (self.statuses, self.other_epochs) = await asyncio.gather(
            self.store.snapshot(self.base),
            self._read_ahead(),
            self.store.marks(self.base, self._end, _STATUSES_AHEAD),
        )
        self._exchange_time = snapshot.exchange_time
        self._venue_sequence = snapshot.venue_sequence
        bids, asks = snapshot.bid_prices.split(), snapshot.ask_prices.split()
        self.bids.apply(bids, snapshot.bid_quantities.split())
        self.asks.apply(asks, snapshot.ask_quantities.split())
        self._horizons = snapshot.bid_horizon, snapshot.ask_horizon
        # A horizon beyond the worst level is one that does not move with it.
        self._moves = (
            bool(bids) and bids[-1] == snapshot.bid_horizon,
            bool(asks) and asks[-1] == snapshot.ask_horizon,
        )

    async def move_to(self, at: int) -> None:
        """Apply what was received until an instant, as far as it is held without a hole."""
        while (update := await self._peek()) is not None:
            if update.sequence > self.sequence + 1 or update.time > at:
                return
            self._index += 1
            if update.sequence == self.sequence + 1:
                self._apply(update)

    async def following(self) -> Held | None:
        """Give what is held next of the epoch, however late; None when nothing is."""
        update = await self._peek()
        if update is not None and update.sequence == self.sequence + 1:
            return Held(update.sequence, update.time)
        if self.sequence not in self._following:
            self._following = {
                self.sequence: await self.store.following(
                    self.base.epoch, self.sequence, self.reached
                )
            }
        return self._following[self.sequence]

    def status_at(self, at: int) -> Status | None:
        """Give the collector's last word on this book until an instant; None for a silent one."""
        told = None
        for status in self.statuses:
            if status.time <= at:
                told = status
        if told is None or told.epoch != self.base.epoch or told.state == SYNCED:
            return told
        # What is published of a book in step later says that it is in step again.
        is_over = told.sequence < self.base.sequence
        if is_over or (told.state == STALE and told.sequence < self.sequence):
            return None
        return told

    def encode(self, depth: int) -> bytes:
        """Encode the book as an OrderBookSnapshot, cut to `depth` levels a side; all when 0."""
        head = order_book_pb2.OrderBookSnapshot(
            exchange=self.store.exchange,
            symbol=self.store.symbol,
            epoch=self.base.epoch,
            sequence=self.sequence,
            venue_sequence=self._venue_sequence,
            reason=_REQUESTED,
        )
        head.receive_time.FromNanoseconds(self.receive_time)
        if self._exchange_time:
            head.exchange_time.FromNanoseconds(self._exchange_time)
        bid, ask = self.horizons()
        tail = order_book_pb2.OrderBookSnapshot(bid_horizon=bid, ask_horizon=ask)
        return b"".join(
            (
                head.SerializeToString(),
                self.bids.encode(depth),
                self.asks.encode(depth),
                tail.SerializeToString(),
            )
        )

    def horizons(self) -> tuple[str, str]:
        """Give the prices beyond which bids and asks are unknown; empty where the side is whole.

        The rule of live books: a venue that keeps the best so many levels up takes the worst away
        when better ones come, so that nothing is claimed to be known beyond the worst level that is
        held within the horizon. That may be a little less than the collector claims, never more.
        """
        bid, ask = self._horizons
        bid_moves, ask_moves = self._moves
        return (
            self.bids.worst_within(bid) if bid_moves else bid,
            self.asks.worst_within(ask) if ask_moves else ask,
        )

    def _apply(self, update: Update) -> None:
        self.bids.apply(update.bid_prices.split(), update.bid_quantities.split())
        self.asks.apply(update.ask_prices.split(), update.ask_quantities.split())
        self.sequence = update.sequence
        self.reached = max(self.reached, update.time)
        self.receive_time = update.time
        self._exchange_time = update.exchange_time
        self._venue_sequence = update.venue_sequence
        self.applied += 1

    async def _peek(self) -> Update | None:
        """Give the next update that is held, None behind the last one of the time."""
        if self._index == len(self._ahead) and self.sequence == self._read_to:
            # A whole piece was applied: there may be another.
            await self._read_ahead()
        return self._ahead[self._index] if self._index < len(self._ahead) else None

    async def _read_ahead(self) -> None:
        after = self.sequence
        self._ahead = await self.store.updates(self.base, after, self._end + _AHEAD)
        self._index = 0
        self._read_to = after + PIECE
