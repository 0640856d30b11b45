"""One live book: the rule of continuity, and what subscribers are told when it is broken.

Pure: bytes and the clock come from outside. The collector publishes a snapshot at each rebuild,
its status, then updates numbered 1, 2, ...; snapshots in between repeat what the updates say. Here
every update must have the sequence that follows; what has not is a repeat, or shows that updates
are missing, and the book is then out of step until a snapshot or the missing update comes.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError
from marketprism.market.v1 import order_book_pb2

from services.marketdata.book_state import OUT_OF_STEP, SYNCED, BookState
from services.marketdata.event_log import EventLog
from services.marketdata.levels import BookLevels, MalformedLevelError
from services.marketdata.tally import Tally
from services.marketdata.wire import (
    ORDER_BOOK_SNAPSHOT,
    ORDER_BOOK_STATUS,
    ORDER_BOOK_UPDATE,
    event_item,
    event_kind,
    event_payload,
    nanoseconds,
    with_reason,
)

__all__ = ["BookLimits", "LiveBook", "Opening"]

_S: Final = order_book_pb2
_NANOS_OF_MILLI = 1_000_000
_ENCODED_KEPT = 8


@dataclass(frozen=True, slots=True)
class BookLimits:
    """How much one book holds for subscribers who are behind or come back."""

    max_events: int = 8192
    """Events in its log."""

    max_bytes: int = 16 * 1024 * 1024
    """Bytes in its log."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What a subscriber of a book gets first, and where it goes on."""

    items: tuple[bytes, ...]
    """`events` items to send, in order."""

    position: int
    """Place in the log from which to go on."""

    resumed: bool = False
    """Whether it continues what the subscriber has."""

    def joined(self) -> bytes:
        """Give the items as one message."""
        return b"".join(self.items)


@dataclass(slots=True)
class _Base:
    """An encoded snapshot, and the place in the log of the first event after it."""

    payload: bytes
    sequence: int
    position: int


class LiveBook:
    """The live state of one instrument's book."""

    def __init__(
        self,
        exchange: str,
        symbol: str,
        *,
        limits: BookLimits,
        tally: Tally,
        clock: Callable[[], int],
    ) -> None:
        self.exchange = exchange
        self.symbol = symbol
        self.log = EventLog(limits.max_events, limits.max_bytes)
        """What subscribers read: updates, statuses, and the snapshots that replace the book."""
        self.collector_id = ""
        """Who builds it, as the gap ledger told; empty when it did not."""
        self._tally = tally
        self._clock = clock
        self._epoch = 0
        self._sequence = 0
        self._venue_sequence = 0
        self._receive_time = 0
        self._base: _Base | None = None
        self._epoch_position = 0
        self._levels: BookLevels | None = None
        self._levels_used = False
        self._encoded: dict[tuple[int, int], bytes] = {}
        self._subscribed = b""
        self._synced_is_implied = False
        self._state = BookState(exchange, symbol, clock)
        # Where in the log the state was told last.
        self._told_at = -1
        self._owes_snapshot = False

    # ---- what is known

    @property
    def heard_of(self) -> bool:
        """Whether anything of this book ever came."""
        return self._base is not None or self._state.collector.state != 0

    @property
    def has_levels(self) -> bool:
        """Whether there is a book: it was in step once."""
        return self._base is not None

    @property
    def holds_levels(self) -> bool:
        """Whether its levels are put together at present."""
        return self._levels is not None

    @property
    def state(self) -> int:
        """Its OrderBookState."""
        return self._state.state

    @property
    def epoch(self) -> int:
        """Its epoch, 0 while there was none."""
        return self._epoch

    @property
    def sequence(self) -> int:
        """Last sequence that continues its epoch."""
        return self._sequence

    def age_ms(self) -> int:
        """Give the time since the last frame that changed it was read, in milliseconds."""
        return max(0, self._clock() - self._receive_time) // _NANOS_OF_MILLI

    def status(self) -> order_book_pb2.OrderBookStatus:
        """Give its status as it is now."""
        return self._state.status(self._epoch, self._sequence, self._venue_sequence)

    # ---- what comes from the collector

    def on_update(self, payload: bytes) -> None:
        """Take an encoded OrderBookUpdate; never raises for what it holds."""
        try:
            # Also keeps what no client could decode out of every client's stream.
            update = order_book_pb2.OrderBookUpdate.FromString(payload)
        except DecodeError:
            update = None
        if update is None or update.symbol != self.symbol or update.exchange != self.exchange:
            self._tally.malformed += 1
            if self._base is not None:
                self._begin_gap(f"the update after {self._sequence} could not be decoded")
            return
        if self._base is None:
            self._tally.unplaced += 1
            return
        sequence = update.sequence
        if update.epoch != self._epoch or sequence != self._sequence + 1:
            self._on_unexpected(update.epoch, sequence)
            return
        if self._state.gap:
            self._end_gap()
        if self._synced_is_implied:
            self._imply_synced()
        self._tally.updates += 1
        self._sequence = sequence
        self._venue_sequence = update.venue_sequence
        self._receive_time = nanoseconds(update.receive_time)
        if self._encoded:
            self._encoded.clear()
        self._append(event_item(ORDER_BOOK_UPDATE, payload))

    def on_snapshot(self, payload: bytes) -> None:
        """Take an encoded OrderBookSnapshot; never raises for what it holds."""
        try:
            snapshot = order_book_pb2.OrderBookSnapshot.FromString(payload)
        except DecodeError:
            snapshot = None
        if snapshot is None or snapshot.symbol != self.symbol or snapshot.exchange != self.exchange:
            self._tally.malformed += 1
            return
        known = self._base is not None
        if known and (snapshot.epoch, snapshot.sequence) < (self._epoch, self._sequence):
            self._tally.duplicates += 1
            return
        self._tally.snapshots += 1
        begins = not known or snapshot.epoch != self._epoch
        if begins or snapshot.sequence != self._sequence:
            if not begins:
                self._tally.gaps += 1
                self._begin_gap(
                    f"updates {self._sequence + 1} to {snapshot.sequence} of epoch {self._epoch} "
                    "did not come"
                )
            self._replace(snapshot, payload, begins=begins)
        # Else subscribers who are in step know all of it already.
        self._rebase(payload, snapshot.sequence)
        self._state.gap = ""
        if self._synced_is_implied and snapshot.reason == _S.SNAPSHOT_REASON_PERIODIC:
            self._imply_synced()
        self._refresh()

    def on_status(self, payload: bytes) -> None:
        """Take an encoded OrderBookStatus; never raises for what it holds."""
        try:
            status = order_book_pb2.OrderBookStatus.FromString(payload)
        except DecodeError:
            status = None
        if status is None or status.symbol != self.symbol or status.exchange != self.exchange:
            self._tally.malformed += 1
            return
        if status.epoch and status.epoch < self._epoch:
            self._note_old_epoch()
            return
        self._state.collector = status
        if status.state == SYNCED or status.epoch >= self._epoch:
            self._synced_is_implied = False
        self._refresh(payload)

    # ---- what comes between the collector and us

    def set_broker_lost(self, why: str) -> None:
        """Note that the broker is away, or (empty) is back."""
        if why != self._state.broker_lost:
            self._state.broker_lost = why
            self._refresh()

    def set_silent(self, why: str) -> None:
        """Note that the collector is silent, or (empty) that it is not."""
        if bool(why) != bool(self._state.silent):
            self._state.silent = why
            self._refresh()

    def on_missed(self, why: str) -> None:
        """Note that messages are gone from the broker, and perhaps some of this book."""
        if self._base is not None:
            self._begin_gap(why)

    # ---- what subscribers and callers get

    def open(self, resume: tuple[int, int] | None = None, *, conflated: bool = False) -> Opening:
        """Give what a subscriber gets first; `resume` is the (epoch, sequence) that it has.

        `conflated` says that it fell behind and is given a new beginning.
        """
        if resume is not None:
            position = self._resume_position(*resume)
            if position is not None:
                # A status behind this place is in the log, and is sent from there.
                told = self._told_at >= position
                items = () if told else (self._status_item(resume[1]),)
                return Opening(items, position, resumed=True)
        if not self._is_open_to_newcomers():
            self._owes_snapshot = self._owes_snapshot or self._base is not None
            return Opening((self._status_item(self._sequence),), self.log.end)
        reason = _S.SNAPSHOT_REASON_SUBSCRIBED
        if conflated:
            reason = _S.SNAPSHOT_REASON_CONFLATED
        elif resume is not None:
            reason = _S.SNAPSHOT_REASON_RESUME_TOO_OLD
        try:
            base = self._recent_base()
        except MalformedLevelError:
            return Opening((self._status_item(self._sequence),), self.log.end)
        if reason != _S.SNAPSHOT_REASON_SUBSCRIBED:
            item = event_item(ORDER_BOOK_SNAPSHOT, with_reason(base.payload, reason))
        else:
            if not self._subscribed:
                self._subscribed = event_item(
                    ORDER_BOOK_SNAPSHOT, with_reason(base.payload, reason)
                )
            item = self._subscribed
        return Opening((item, self._status_item(base.sequence)), base.position)

    def order_book(self, depth: int, reason: int) -> bytes:
        """Encode the book as it is now, cut to `depth` levels a side (0: all), as a snapshot.

        Raises `MalformedLevelError` when a level that came is none. There must be a book.
        """
        self._levels_used = True
        key = (depth, reason)
        known = self._encoded.get(key)
        if known is None:
            known = self._encode(reason, depth)
            if len(self._encoded) >= _ENCODED_KEPT:
                self._encoded.clear()
            self._encoded[key] = known
        return known

    def trim_to(self, position: int) -> None:
        """Let what came before `position` go, but nothing that the book is put together from."""
        if self._base is not None:
            position = min(position, self._base.position)
        self.log.trim_to(position)

    def forget_levels_if_unused(self) -> None:
        """Let go of what was put together when nobody asked since the last call."""
        if not self._levels_used:
            self._forget_levels()
        self._levels_used = False

    # ---- continuity

    def _on_unexpected(self, epoch: int, sequence: int) -> None:
        if epoch < self._epoch:
            self._note_old_epoch()
        elif epoch == self._epoch and sequence <= self._sequence:
            self._tally.duplicates += 1
        elif self._state.gap:
            self._tally.skipped += 1
        else:
            self._tally.gaps += 1
            self._tally.skipped += 1
            expected = f"expected update {self._sequence + 1} of epoch {self._epoch}, "
            if epoch == self._epoch:
                self._begin_gap(expected + f"update {sequence} came")
            else:
                self._begin_gap(expected + f"one of epoch {epoch} came, and no snapshot of it")

    def _note_old_epoch(self) -> None:
        self._tally.old_epoch += 1
        self._tally.old_epoch_book = f"{self.exchange}/{self.symbol}"

    def _begin_gap(self, why: str) -> None:
        if not self._state.gap:
            self._state.gap = why
            self._refresh()

    def _end_gap(self) -> None:
        if self._state.gap:
            self._state.gap = ""
            self._refresh()

    def _replace(
        self, snapshot: order_book_pb2.OrderBookSnapshot, payload: bytes, *, begins: bool
    ) -> None:
        """Begin again from a snapshot, and give it to the subscribers."""
        # The old base stands at a place that this snapshot may push out of the log.
        self._base = None
        self._epoch = snapshot.epoch
        self._sequence = snapshot.sequence
        self._venue_sequence = snapshot.venue_sequence
        self._receive_time = nanoseconds(snapshot.receive_time)
        if begins:
            self._epoch_position = self.log.end
            told = self._state.collector
            self._synced_is_implied = told.state in OUT_OF_STEP and (
                told.state == 0 or told.epoch < snapshot.epoch
            )
        self._owes_snapshot = False
        self.log.append(event_item(ORDER_BOOK_SNAPSHOT, payload), self._sequence)

    def _imply_synced(self) -> None:
        """Take what is only published of a book in step for the status that did not come."""
        self._synced_is_implied = False
        self._state.collector = order_book_pb2.OrderBookStatus(
            epoch=self._epoch,
            state=_S.ORDER_BOOK_STATE_SYNCED,
            reason=_S.ORDER_BOOK_REASON_SYNCHRONISED,
        )
        self._refresh()

    def _resume_position(self, epoch: int, sequence: int) -> int | None:
        log = self.log
        if self._base is None or epoch != self._epoch or sequence > self._sequence:
            return None
        since = self._epoch_position
        oldest = log.mark(since) if since >= log.first else log.floor
        return log.after_mark(sequence, since) if sequence >= oldest else None

    # ---- the state

    def _is_open_to_newcomers(self) -> bool:
        """Tell whether a newcomer is given a snapshot now, or only told to wait for one."""
        if self._base is None or self._state.gap:
            return False
        return not self._state.is_out_of_step or self._state.collector.epoch < self._epoch

    def _refresh(self, payload: bytes = b"") -> None:
        """Tell the state when it changed; `payload` is the collector's status that just came."""
        state = self._state
        is_told, in_its_words = state.settle(has_book=self._base is not None, is_news=bool(payload))
        if not is_told:
            return
        if self._owes_snapshot and self._is_open_to_newcomers():
            self._pay_snapshot()
        position = self.log.end
        item = event_item(ORDER_BOOK_STATUS, payload) if in_its_words else None
        self._append(item or self._status_item(self._sequence))
        base = self._base
        if base is not None and base.position == position:
            # A status changes no level: a newcomer need not hear it again.
            base.position = self.log.end
            if self._levels is not None:
                # What is before the base may go, also from under the levels.
                self._levels.position = max(self._levels.position, base.position)
        self._told_at = position

    def _pay_snapshot(self) -> None:
        """Give a snapshot to those who came while there was none to be given."""
        self._owes_snapshot = False
        with contextlib.suppress(MalformedLevelError):
            payload = self._encode(_S.SNAPSHOT_REASON_SUBSCRIBED, 0)
            self._append(event_item(ORDER_BOOK_SNAPSHOT, payload))
            self._rebase(payload, self._sequence)

    def _status_item(self, sequence: int) -> bytes:
        status = self._state.status(self._epoch, sequence, self._venue_sequence)
        return event_item(ORDER_BOOK_STATUS, status.SerializeToString())

    # ---- the log and what is put together from it

    def _append(self, item: bytes) -> None:
        log = self.log
        base = self._base
        if base is not None and (
            log.end - base.position >= log.max_events - 1
            or log.bytes_from(base.position) + len(item) > log.max_bytes
        ):
            # The collector's next snapshot is late: make one before the log forgets its updates.
            with contextlib.suppress(MalformedLevelError):
                self._move_base()
        log.append(item, self._sequence)

    def _rebase(self, payload: bytes, sequence: int) -> None:
        self._base = _Base(payload, sequence, self.log.end)
        self._subscribed = b""
        self._forget_levels()

    def _move_base(self) -> _Base:
        """Make the book as it is now the base, and keep what was put together for it."""
        payload = self._encode(_S.SNAPSHOT_REASON_PERIODIC, 0)
        levels = self._levels
        self._rebase(payload, self._sequence)
        self._levels = levels
        assert self._base is not None
        return self._base

    def _recent_base(self) -> _Base:
        """Give a snapshot so recent that the updates after it weigh less than another one."""
        base = self._base
        assert base is not None
        tail = self.log.bytes_from(base.position)
        if tail and (self._told_at >= base.position or tail > len(base.payload)):
            return self._move_base()
        return base

    def _forget_levels(self) -> None:
        self._levels = None
        self._encoded.clear()

    def _encode(self, reason: int, depth: int) -> bytes:
        base = self._base
        assert base is not None
        began = time.perf_counter()
        levels = self._levels
        try:
            if levels is None:
                levels = self._levels = BookLevels(base.payload, base.position)
            for item in self.log.items(levels.position):
                if event_kind(item) == ORDER_BOOK_UPDATE:
                    levels.apply(event_payload(item))
            levels.position = self.log.end
            encoded = levels.encode(reason, depth)
        except MalformedLevelError as error:
            self._tally.malformed += 1
            self._forget_levels()
            self._base = None
            self._state.gap = ""
            self._state.collector = order_book_pb2.OrderBookStatus(
                state=_S.ORDER_BOOK_STATE_RESYNCING,
                reason=_S.ORDER_BOOK_REASON_MALFORMED_FRAME,
                detail=str(error),
            )
            self._refresh()
            raise
        self._tally.put_together(time.perf_counter() - began)
        return encoded
