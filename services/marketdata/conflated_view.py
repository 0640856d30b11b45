"""A book by increments: the updates of each interval merged into one, and grouped if wanted."""

from typing import Any, Final

from marketprism.market.v1 import order_book_pb2

from services.marketdata.book_follower import merged
from services.marketdata.ladder import (
    ASKS,
    BIDS,
    Changes,
    Dated,
    encode_horizons,
    encode_levels,
    snapshot_head,
)
from services.marketdata.live_book import Opening
from services.marketdata.shared_view import SharedView
from services.marketdata.wire import ORDER_BOOK_SNAPSHOT, ORDER_BOOK_UPDATE, event_item, event_kind
from services.shared.wire import varint

__all__ = ["ConflatedView", "encode_update"]

_PERIODIC: Final = int(order_book_pb2.SNAPSHOT_REASON_PERIODIC)
_FIRST_SEQUENCE: Final = b"\x60"  # field 12, a varint


class ConflatedView(SharedView):
    """Newcomers are given the book as of the last update sent, as everybody else has it.

    So the next merged update continues the book of all of them. That book is what the ladder has,
    with what was not sent yet undone.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._dated: Dated = order_book_pb2.OrderBookUpdate()
        # What was not sent yet, and what was there before.
        self._new_bids: dict[str, str] = {}
        self._new_asks: dict[str, str] = {}
        self._old_bids: dict[str, str] = {}
        self._old_asks: dict[str, str] = {}
        self._first: order_book_pb2.OrderBookUpdate | None = None
        self._last = order_book_pb2.OrderBookUpdate()
        self._item = b""
        # Where the epoch, or the view, began: place in the log, and sequence.
        self._origin = 0, 0
        self._base: tuple[bytes, int, int] | None = None
        self._told_at = -1
        super().__init__(*arguments, **options)

    def on_changes(self, changes: Changes) -> None:
        """See `Follows`."""
        if self._first is None:
            self._first = changes.first
            self._item = changes.item
        else:
            self._item = b""
        self._new_bids.update(changes.bids)
        self._new_asks.update(changes.asks)
        self._old_bids = changes.old_bids | self._old_bids
        self._old_asks = changes.old_asks | self._old_asks
        self._last = changes.last

    def _emit(self) -> None:
        first = self._first
        if first is None:
            return
        last = self._dated = self._last
        item = self._item or event_item(
            ORDER_BOOK_UPDATE, encode_update(first, last, self._new_bids, self._new_asks)
        )
        self._forget_new()
        self.sequence = last.sequence
        self._append(item)

    def on_status(self, item: bytes) -> None:
        """See `Follows`."""
        super().on_status(item)
        self._told_at = self.log.end - 1

    def _begin(self) -> None:
        self._forget_new()
        self._dated = self._follower.last
        self.epoch, self.sequence = self._dated.epoch, self._dated.sequence
        self._origin = self.log.end, self.sequence
        self._base = None
        self._told_at = -1

    def _forget_new(self) -> None:
        self._new_bids, self._new_asks = {}, {}
        self._old_bids, self._old_asks = {}, {}
        self._first = None
        self._item = b""

    def _replace(self, reason: int, item: bytes) -> None:
        if self.grouping:
            item = event_item(ORDER_BOOK_SNAPSHOT, self._encode(reason))
        self._append(item)

    # ---- newcomers, and who comes back

    def _snapshot(self) -> tuple[bytes, int, int]:
        base = self._base
        log = self.log
        if base is not None:
            payload, _, position = base
            # Reused while the updates after it weigh less, as `LiveBook` does.
            if (
                position >= log.first
                and self._told_at < position
                and log.bytes_from(position) <= len(payload)
            ):
                return base
        base = self._base = self._encode(_PERIODIC), self.sequence, log.end
        return base

    def _encode(self, reason: int) -> bytes:
        bid_horizon, ask_horizon = self._ladder.horizons()
        return b"".join(
            (
                snapshot_head(self._dated, reason),
                encode_levels(BIDS, self._ladder.bids.before(self._old_bids)),
                encode_levels(ASKS, self._ladder.asks.before(self._old_asks)),
                encode_horizons(bid_horizon, ask_horizon),
            )
        )

    def _resumed(self, epoch: int, sequence: int) -> Opening | None:
        if epoch != self.epoch or sequence > self.sequence:
            return None
        log = self.log
        origin, began_at = self._origin
        position = log.after_mark(sequence, max(origin, log.first))
        if position == origin:
            before = began_at
        else:
            before = log.floor if position == log.first else log.mark(position - 1)
        if before == sequence:
            # A status behind this place is sent from there.
            told = self._told_at >= position
            items = () if told else (self._status_item(sequence),)
            return Opening(items, position, resumed=True)
        return None if self.grouping else self._resumed_by_book(epoch, sequence)

    def _resumed_by_book(self, epoch: int, sequence: int) -> Opening | None:
        """Merge what a subscriber missed who was not sent the same updates as others were."""
        book = self._follower.book
        opening = book.open((epoch, sequence))
        if not opening.resumed or opening.position < book.log.first:
            return None
        missed: list[bytes] = []
        for item in book.log.items(opening.position):
            if len(missed) == self.sequence - sequence:
                break
            kind = event_kind(item)
            if kind == ORDER_BOOK_SNAPSHOT:
                return None
            if kind == ORDER_BOOK_UPDATE:
                missed.append(item)
        if not missed or len(missed) < self.sequence - sequence:
            return None
        changes = merged(missed)
        update = event_item(
            ORDER_BOOK_UPDATE,
            encode_update(changes.first, changes.last, changes.bids, changes.asks),
        )
        return Opening((update, self._status_item(self.sequence)), self.log.end, resumed=True)


def encode_update(
    first: order_book_pb2.OrderBookUpdate,
    last: order_book_pb2.OrderBookUpdate,
    bids: dict[str, str],
    asks: dict[str, str],
) -> bytes:
    """Encode the OrderBookUpdate that does what all from `first` to `last` do."""
    head = order_book_pb2.OrderBookUpdate(
        exchange=last.exchange,
        symbol=last.symbol,
        epoch=last.epoch,
        sequence=last.sequence,
        exchange_time=last.exchange_time if last.HasField("exchange_time") else None,
        receive_time=last.receive_time if last.HasField("receive_time") else None,
        venue_sequence=last.venue_sequence,
        first_venue_sequence=first.first_venue_sequence,
        previous_venue_sequence=first.previous_venue_sequence,
    )
    begins = first.first_sequence or first.sequence
    return b"".join(
        (
            head.SerializeToString(),
            encode_levels(BIDS, bids.items()),
            encode_levels(ASKS, asks.items()),
            _FIRST_SEQUENCE + varint(begins) if begins != last.sequence else b"",
        )
    )
