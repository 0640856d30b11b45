"""Reads a live book's log once for all views of that book.

Updates are gathered, and decoded together when a view has to send: a run of encoded updates that is
joined decodes as one whose levels are those of all, in order. Whatever is not an update stands
between two runs: every view sends what it has before it, and it goes to all of them at once.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from marketprism.market.v1 import order_book_pb2

from services.marketdata.book_state import OUT_OF_STEP, RESYNCING
from services.marketdata.grouping import GroupedLadder
from services.marketdata.ladder import Changes, Dated, Ladder
from services.marketdata.levels import MalformedLevelError
from services.marketdata.live_book import LiveBook
from services.marketdata.wire import (
    ORDER_BOOK_SNAPSHOT,
    ORDER_BOOK_STATUS,
    ORDER_BOOK_UPDATE,
    event_item,
    event_kind,
    event_payload,
)
from services.shared.log import get_logger

__all__ = ["BookFollower", "Follows", "merged"]

_DECODE_AT = 256  # updates held undecoded
_RETRY_SECONDS = 1.0  # between two looks whether a malformed level is gone
_PERIODIC: Final = int(order_book_pb2.SNAPSHOT_REASON_PERIODIC)
_CONFLATED: Final = int(order_book_pb2.SNAPSHOT_REASON_CONFLATED)


class Follows(Protocol):
    """What a view hears of its book."""

    @property
    def grouping(self) -> str:
        """Its price step; empty when it is not grouped."""

    def on_changes(self, changes: Changes) -> None:
        """Take what the book changed; for a grouped view, what its groups changed."""

    def flush(self) -> None:
        """Send what was not sent yet, whatever the interval."""

    def touch(self) -> None:
        """Note that updates came; they may not be decoded yet."""

    def on_snapshot(self, snapshot: order_book_pb2.OrderBookSnapshot, item: bytes) -> None:
        """Take a book that replaces the one before."""

    def on_status(self, item: bytes) -> None:
        """Take a status of the book."""

    def end(self) -> None:
        """Hear that the server stops."""


class BookFollower:
    """One live book as its views need it; it lives while there are any."""

    def __init__(self, book: LiveBook) -> None:
        self.book = book
        """The live book."""
        self.ladder = Ladder()
        """Its levels, as of the last update that was decoded."""
        self.has_book = False
        """Whether there are levels."""
        self._groups: dict[str, GroupedLadder] = {}
        self._views: dict[Follows, None] = {}
        self._pending: list[bytes] = []
        self._position = 0
        self._last: Dated = order_book_pb2.OrderBookUpdate(
            exchange=book.exchange, symbol=book.symbol
        )
        self._state = 0
        self._malformed = ""
        self._retry_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._turn: asyncio.Handle | None = None
        self._start()
        self.sync()
        self._watch()

    # ---- what views ask

    @property
    def is_in_step(self) -> bool:
        """Whether a newcomer can be given the book."""
        return self.has_book and self._state not in OUT_OF_STEP

    @property
    def last(self) -> Dated:
        """The last event whose levels are contained; only what is beside its levels counts."""
        return self._last

    @property
    def has_views(self) -> bool:
        """Whether anybody listens."""
        return bool(self._views)

    def add(self, view: Follows) -> Ladder | GroupedLadder:
        """Begin to tell a view, and give the levels that it is of."""
        self.sync()
        self.absorb()
        self._views[view] = None
        if not view.grouping:
            return self.ladder
        grouped = self._groups.get(view.grouping)
        if grouped is None:
            grouped = self._groups[view.grouping] = GroupedLadder(self.ladder, view.grouping)
            if self.has_book:
                self.guarded(grouped.load)
        return grouped

    def remove(self, view: Follows) -> None:
        """Tell a view no more."""
        self._views.pop(view, None)
        if all(other.grouping != view.grouping for other in self._views):
            self._groups.pop(view.grouping, None)
        if not self._views:
            self.book.log.unwatch(self)
            if self._turn is not None:
                self._turn.cancel()
                self._turn = None

    def status(self, sequence: int) -> order_book_pb2.OrderBookStatus:
        """Give the status as it is now, for who has the book at `sequence`."""
        status = self.book.status()
        status.sequence = sequence
        if self._malformed:
            status.state = order_book_pb2.ORDER_BOOK_STATE_RESYNCING
            status.reason = order_book_pb2.ORDER_BOOK_REASON_MALFORMED_FRAME
            status.detail = self._malformed
        return status

    def sync(self) -> None:
        """Read the log up to its end; updates at its end may stay undecoded."""
        log = self.book.log
        if self._position < log.first:
            self._restart()
        elif self._malformed and self._views:
            self._recover()
        while self._position < log.end:
            for item in log.items(self._position):
                self._position += 1
                if event_kind(item) == ORDER_BOOK_UPDATE:
                    self._pending.append(item)
                    if len(self._pending) >= _DECODE_AT:
                        self.absorb()
                else:
                    self._interrupt(item)

    def absorb(self) -> None:
        """Decode the updates that were read, and tell the views."""
        items, self._pending = self._pending, []
        if not items or not self.has_book:
            return
        changes = merged(items)
        self._last = changes.last
        self.guarded(lambda: self._tell(changes))

    # ---- what the log calls

    def wake(self) -> None:
        """Note that the log has more; it is read when everything that comes at once has come."""
        if self._turn is None:
            self._turn = self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        try:
            self.sync()
            if self._pending:
                for view in list(self._views):
                    view.touch()
        except Exception:
            # What is expected is handled; one book must not cost the others.
            get_logger().exception(
                "a book's views failed", exchange=self.book.exchange, symbol=self.book.symbol
            )
            self._restart()
        self._watch()

    def _watch(self) -> None:
        log = self.book.log
        if log.closed:
            self.absorb()
            for view in list(self._views):
                self.guarded(view.flush)
                view.end()
        else:
            log.watch(self)

    # ---- inside

    def _start(self) -> None:
        opening = self.book.open()
        for item in opening.items:
            self._interrupt(item)
        self._position = opening.position

    def _restart(self) -> None:
        """Begin again, because what comes next is no longer held."""
        self._pending.clear()
        self.has_book = False
        opening = self.book.open(conflated=True)
        self._position = opening.position
        for item in opening.items:
            self._interrupt(item)

    def _interrupt(self, item: bytes) -> None:
        """Take a snapshot or a status; views send what they have before it."""
        self.absorb()
        for view in list(self._views):
            self.guarded(view.flush)
        payload = event_payload(item)
        kind = event_kind(item)
        if kind == ORDER_BOOK_SNAPSHOT:
            snapshot = order_book_pb2.OrderBookSnapshot.FromString(payload)
            self._malformed = ""
            self.guarded(lambda: self._load(snapshot, item))
        elif kind == ORDER_BOOK_STATUS:
            self._state = order_book_pb2.OrderBookStatus.FromString(payload).state
            for view in list(self._views):
                view.on_status(item)

    def _load(self, snapshot: order_book_pb2.OrderBookSnapshot, item: bytes) -> None:
        self.ladder.load(snapshot)
        self._last = snapshot
        for grouped in self._groups.values():
            grouped.load()
        self.has_book = True
        for view in list(self._views):
            view.on_snapshot(snapshot, item)

    def _tell(self, changes: Changes) -> None:
        # Groups compare with the quantities before.
        grouped = {step: ladder.take(changes) for step, ladder in self._groups.items()}
        changes.note_old(self.ladder.bids.levels, self.ladder.asks.levels)
        self.ladder.take(changes)
        for view in list(self._views):
            view.on_changes(grouped[view.grouping] if view.grouping else changes)

    # ---- levels that are none

    def guarded(self, work: Callable[[], None]) -> None:
        """Do what reads levels; one that is no number ends the book until there is another."""
        try:
            work()
        except MalformedLevelError as error:
            self._on_malformed(error)

    def _on_malformed(self, error: MalformedLevelError) -> None:
        self.has_book = False
        self._pending.clear()
        self._malformed = str(error)
        self._retry_at = self._loop.time() + _RETRY_SECONDS
        self._state = RESYNCING
        item = event_item(ORDER_BOOK_STATUS, self.status(self._last.sequence).SerializeToString())
        for view in list(self._views):
            view.on_status(item)
        # Where the level is still in it, the live book now finds out itself.
        if self.book.has_levels:
            with contextlib.suppress(MalformedLevelError):
                self.book.order_book(1, _PERIODIC)

    def _recover(self) -> None:
        """Begin again with the live book, which may be free of the level by now."""
        if not self.book.has_levels or self._loop.time() < self._retry_at:
            return
        self._retry_at = self._loop.time() + _RETRY_SECONDS
        try:
            payload = self.book.order_book(0, _CONFLATED)
        except MalformedLevelError:
            return
        self._position = self.book.log.end
        why, self._malformed = self._malformed, ""
        snapshot = order_book_pb2.OrderBookSnapshot.FromString(payload)
        try:
            self._load(snapshot, event_item(ORDER_BOOK_SNAPSHOT, payload))
        except MalformedLevelError:
            self.has_book = False
            self._malformed = why
            return
        status = self.book.status().SerializeToString()
        self._interrupt(event_item(ORDER_BOOK_STATUS, status))


def merged(items: Sequence[bytes]) -> Changes:
    """Merge the `events` items of updates in a row, at least one."""
    payloads = [event_payload(item) for item in items]
    last = order_book_pb2.OrderBookUpdate.FromString(payloads[-1])
    first = whole = last
    if len(payloads) > 1:
        first = order_book_pb2.OrderBookUpdate.FromString(payloads[0])
        whole = order_book_pb2.OrderBookUpdate.FromString(b"".join(payloads))
    return Changes(
        {level.price: level.quantity for level in whole.bids},
        {level.price: level.quantity for level in whole.asks},
        first,
        last,
        items[0] if len(items) == 1 else b"",
    )
