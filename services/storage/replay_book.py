"""One book of a replay: which of its stored events live subscribers got, and what else.

The rules are those of `services.marketdata.live_book`, by columns instead of decoded events: an
update has to continue what came before; a snapshot that repeats what the updates said is not sent;
what is missing in the store is told by the same statuses as what was missing on the broker.
"""

from typing import Final

from marketprism.market.v1 import order_book_pb2 as pb

from services.marketdata.book_state import OUT_OF_STEP, BookState
from services.marketdata.levels import BookLevels, MalformedLevelError
from services.marketdata.wire import (
    ORDER_BOOK_SNAPSHOT,
    ORDER_BOOK_STATUS,
    event_item,
    event_payload,
)

__all__ = ["SNAPSHOT", "STATUS", "UPDATE", "BookRow", "ReplayedBook"]

SNAPSHOT: Final = 0
"""Form of a row: an OrderBookSnapshot."""

UPDATE: Final = 1
"""Form of a row: an OrderBookUpdate."""

STATUS: Final = 2
"""Form of a row: an OrderBookStatus."""

BookRow = tuple[int, int, int, int, str, str, int, int, int, int, bytes]
"""Stream's time of creation, stream sequence, form, receive time, exchange, symbol, epoch,
sequence, venue sequence, snapshot reason, `events` item."""

_SYNCED: Final = int(pb.ORDER_BOOK_STATE_SYNCED)
_PERIODIC: Final = int(pb.SNAPSHOT_REASON_PERIODIC)
_SUBSCRIBED: Final = int(pb.SNAPSHOT_REASON_SUBSCRIBED)


class ReplayedBook:
    """The book of one instrument; `time` is where the replay stands, nanoseconds since 1970."""

    __slots__ = (
        "_clock",
        "_epoch",
        "_implied",
        "_known",
        "_sequence",
        "_state",
        "_venue_sequence",
        "levels",
    )

    def __init__(self, exchange: str, symbol: str, time: int) -> None:
        self._clock = time
        self._state = BookState(exchange, symbol, lambda: self._clock)
        self._known = False
        self._epoch = 0
        self._sequence = 0
        self._venue_sequence = 0
        # Only what is published of a book in step says that it is, when its status did not come.
        self._implied = False
        self.levels: BookLevels | None = None
        """Its levels, until `open`."""

    def take(self, row: BookRow) -> list[bytes]:
        """Take a row in the order of the stream; gives the `events` items to send."""
        form = row[2]
        if form == UPDATE:
            if (
                row[7] == self._sequence + 1
                and row[6] == self._epoch
                and self._known
                and not self._implied
                and not self._state.gap
            ):
                # What nearly every row is.
                self._sequence = row[7]
                self._venue_sequence = row[8]
                return [row[10]]
            return self._update(row)
        # Rows are told the time when it matters: whatever is said of them is said then.
        self._clock = max(self._clock, row[3])
        return self._snapshot(row) if form == SNAPSHOT else self._status(row)

    def load(self, row: BookRow) -> None:
        """Take a row of before the begin, and keep levels for `open`."""
        if row[2] == SNAPSHOT:
            self.levels = BookLevels(event_payload(row[10]), 0)
        elif row[2] == UPDATE and self.levels is not None and self._continues(row):
            self.levels.apply(event_payload(row[10]))
        self.take(row)

    def open(self, time: int) -> list[bytes]:
        """Give what a subscriber gets first at `time`: the book, when there is one, and its status.

        Nothing when nothing was heard of it.
        """
        self._clock = time
        levels, self.levels = self.levels, None
        is_open = self._known and not self._state.gap and not self._is_out_of_step()
        items = []
        if is_open and levels is not None:
            try:
                payload = levels.encode(_SUBSCRIBED)
                items.append(event_item(ORDER_BOOK_SNAPSHOT, payload))
            except MalformedLevelError:
                is_open = False
        if self._known or self._state.collector.state:
            items.append(self._told())
        if not is_open:
            # Whoever has no book needs a snapshot, whatever its reason.
            self._known = False
        return items

    # Continuity.

    def _continues(self, row: BookRow) -> bool:
        return self._known and row[6] == self._epoch and row[7] == self._sequence + 1

    def _update(self, row: BookRow) -> list[bytes]:
        self._clock = max(self._clock, row[3])
        epoch, sequence = row[6], row[7]
        if not self._known:
            return []
        items: list[bytes] = []
        if self._continues(row):
            if self._state.gap:
                self._state.gap = ""
                self._refresh(items)
            if self._implied:
                self._imply(items)
            self._sequence = sequence
            self._venue_sequence = row[8]
            items.append(row[10])
        elif not self._state.gap and (epoch, sequence) > (self._epoch, self._sequence):
            expected = f"expected update {self._sequence + 1} of epoch {self._epoch}, "
            if epoch == self._epoch:
                self._miss(f"{expected}update {sequence} came", items)
            else:
                self._miss(f"{expected}one of epoch {epoch} came, and no snapshot of it", items)
        return items

    def _snapshot(self, row: BookRow) -> list[bytes]:
        epoch, sequence = row[6], row[7]
        if self._known and (epoch, sequence) < (self._epoch, self._sequence):
            return []
        items: list[bytes] = []
        begins = not self._known or epoch != self._epoch
        if begins or sequence != self._sequence:
            if not begins:
                missing = f"updates {self._sequence + 1} to {sequence} of epoch {epoch}"
                self._miss(f"{missing} did not come", items)
            self._known = True
            self._epoch, self._sequence = epoch, sequence
            self._venue_sequence = row[8]
            if begins:
                told = self._state.collector
                self._implied = told.state in OUT_OF_STEP and (
                    told.state == 0 or told.epoch < epoch
                )
            items.append(row[10])
        self._state.gap = ""
        if self._implied and row[9] == _PERIODIC:
            self._imply(items)
        self._refresh(items)
        return items

    def _status(self, row: BookRow) -> list[bytes]:
        epoch = row[6]
        if epoch and epoch < self._epoch:
            return []
        payload = event_payload(row[10])
        status = pb.OrderBookStatus.FromString(payload)
        self._state.collector = status
        if status.state == _SYNCED or epoch >= self._epoch:
            self._implied = False
        items: list[bytes] = []
        self._refresh(items, row[10])
        return items

    # What is told.

    def _miss(self, why: str, items: list[bytes]) -> None:
        if not self._state.gap:
            self._state.gap = why
            self._refresh(items)

    def _imply(self, items: list[bytes]) -> None:
        self._implied = False
        self._state.collector = pb.OrderBookStatus(
            epoch=self._epoch,
            state=pb.ORDER_BOOK_STATE_SYNCED,
            reason=pb.ORDER_BOOK_REASON_SYNCHRONISED,
        )
        self._refresh(items)

    def _refresh(self, items: list[bytes], status: bytes = b"") -> None:
        is_told, in_its_words = self._state.settle(has_book=self._known, is_news=bool(status))
        if is_told:
            items.append(status if in_its_words else self._told())

    def _is_out_of_step(self) -> bool:
        return self._state.is_out_of_step and self._state.collector.epoch >= self._epoch

    def _told(self) -> bytes:
        status = self._state.status(self._epoch, self._sequence, self._venue_sequence)
        return event_item(ORDER_BOOK_STATUS, status.SerializeToString())
