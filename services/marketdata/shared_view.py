"""What all views of a book share: their log, their subscribers, and the interval between items."""

import asyncio
from collections.abc import Callable
from typing import Final

from marketprism.market.v1 import order_book_pb2

from services.marketdata.book_follower import BookFollower
from services.marketdata.event_log import EventLog
from services.marketdata.grouping import GroupedLadder
from services.marketdata.ladder import Changes, Ladder
from services.marketdata.live_book import Opening
from services.marketdata.views import BookWish
from services.marketdata.wire import (
    ORDER_BOOK_SNAPSHOT,
    ORDER_BOOK_STATUS,
    event_item,
    with_reason,
)

__all__ = ["SharedView"]

_SUBSCRIBED: Final = int(order_book_pb2.SNAPSHOT_REASON_SUBSCRIBED)
_CONFLATED: Final = int(order_book_pb2.SNAPSHOT_REASON_CONFLATED)
_TOO_OLD: Final = int(order_book_pb2.SNAPSHOT_REASON_RESUME_TOO_OLD)


class SharedView:
    """One book as one wish has it, for all who share the wish.

    `on_end` is called when the last of them gave it back. Subclasses say what is sent.
    """

    def __init__(
        self,
        follower: BookFollower,
        wish: BookWish,
        log: EventLog,
        *,
        max_age: float,
        on_end: Callable[[], None],
    ) -> None:
        self.log = log
        """What subscribers read."""
        self.wish = wish
        """How the book is wanted."""
        self.grouping = wish.grouping
        """Its price step; empty when it is not grouped."""
        self.epoch = 0
        """Epoch of the book that subscribers have."""
        self.sequence = 0
        """Sequence of the book that subscribers have."""
        self.users = 0
        """Subscribers that have not given it back."""
        self._follower = follower
        self._max_age = max_age
        self._on_end = on_end
        self._owes_snapshot = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._is_ended = False
        self._ladder: Ladder | GroupedLadder = follower.add(self)
        if follower.book.log.closed:
            log.close()
        if follower.has_book:
            self._begin()

    # ---- what subscribers call

    def open(self, resume: tuple[int, int] | None = None, *, conflated: bool = False) -> Opening:
        """See `BookView.open`."""
        follower = self._follower
        follower.sync()
        opening: Opening | None = None
        if follower.is_in_step:

            def make() -> None:
                nonlocal opening
                opening = self._opening(resume, conflated=conflated)

            follower.guarded(make)
        if opening is None:
            self._owes_snapshot = True
            return Opening((self._status_item(self.sequence),), self.log.end)
        return opening

    def close(self) -> None:
        """See `BookView.close`."""
        self.users -= 1
        if self.users == 0 and not self._is_ended:
            self._is_ended = True
            self._cancel_timer()
            self._follower.remove(self)
            self._on_end()

    # ---- what the follower calls

    def touch(self) -> None:
        """See `Follows`."""
        if self._timer is not None:
            return
        if not self.wish.interval:
            self._fire()
            return
        now = self._loop.time()
        if now >= self._due:
            self._fire()
        else:
            self._timer = self._loop.call_at(self._due, self._fire)

    def flush(self) -> None:
        """See `Follows`."""
        self._cancel_timer()
        end = self.log.end
        self._emit()
        if self.log.end != end:
            self._due = self._loop.time() + self.wish.interval

    def on_snapshot(self, snapshot: order_book_pb2.OrderBookSnapshot, item: bytes) -> None:
        """See `Follows`."""
        self._owes_snapshot = False
        self._begin()
        self._replace(snapshot.reason, item)

    def on_status(self, item: bytes) -> None:
        """See `Follows`."""
        if self._owes_snapshot and self._follower.is_in_step:
            self._owes_snapshot = False
            self._follower.guarded(self._pay_snapshot)
        self._append(item)

    def end(self) -> None:
        """See `Follows`."""
        self._cancel_timer()
        self.log.close()

    # ---- what subclasses say

    def on_changes(self, changes: Changes) -> None:
        """See `Follows`."""
        raise NotImplementedError

    def _emit(self) -> None:
        """Send what was not sent yet."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Take the ladder as the book that subscribers have from now on."""
        raise NotImplementedError

    def _replace(self, reason: int, item: bytes) -> None:
        """Send a book that replaces the one before; `item` is the collector's."""
        raise NotImplementedError

    def _resumed(self, epoch: int, sequence: int) -> Opening | None:
        """Continue what a subscriber has; None when that cannot be told."""
        raise NotImplementedError

    def _snapshot(self) -> tuple[bytes, int, int]:
        """Encode a book to begin with; give its sequence, and the place from which to go on."""
        raise NotImplementedError

    # ---- inside

    def _opening(self, resume: tuple[int, int] | None, *, conflated: bool) -> Opening:
        reason = _SUBSCRIBED
        if conflated:
            reason = _CONFLATED
        elif resume is not None:
            resumed = self._resumed(*resume)
            if resumed is not None:
                return resumed
            reason = _TOO_OLD
        payload, sequence, position = self._snapshot()
        item = event_item(ORDER_BOOK_SNAPSHOT, with_reason(payload, reason))
        return Opening((item, self._status_item(sequence)), position)

    def _pay_snapshot(self) -> None:
        """Give the book to those who came while there was none."""
        payload, _, _ = self._snapshot()
        self._append(event_item(ORDER_BOOK_SNAPSHOT, with_reason(payload, _SUBSCRIBED)))

    def _status_item(self, sequence: int) -> bytes:
        status = self._follower.status(sequence)
        return event_item(ORDER_BOOK_STATUS, status.SerializeToString())

    def _append(self, item: bytes) -> None:
        log = self.log
        log.append(item, self.sequence)
        log.trim_to(log.age(self._loop.time(), self._max_age))

    def _fire(self) -> None:
        self._timer = None
        follower = self._follower
        follower.absorb()
        follower.guarded(self.flush)
        # Also where nothing was sent: to find that out again and again would cost as much.
        self._due = self._loop.time() + self.wish.interval

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
