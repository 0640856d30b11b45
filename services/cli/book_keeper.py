"""Keeps a client's copy of an order book by the continuity rules of the contract.

The rules are those of `marketprism/market/v1/order_book.proto`: a snapshot stands at (epoch,
sequence) and replaces everything; the update that continues it has the same epoch and the next
sequence; anything else means that something is missing, so the book is discarded until the next
snapshot. No input or output happens here.
"""

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from marketprism.market.v1 import market_data_service_pb2 as service_pb
from marketprism.market.v1 import market_event_pb2 as event_pb
from marketprism.market.v1 import order_book_pb2 as pb
from marketprism.market.v1.common_pb2 import PriceLevel

__all__ = ["BookKeeper", "Level", "enum_name", "state_name"]

_NOT_TRUSTED = (pb.ORDER_BOOK_STATE_SYNCING, pb.ORDER_BOOK_STATE_RESYNCING)


@dataclass(frozen=True, slots=True)
class Level:
    """One price of one side."""

    price: Decimal
    """In quote currency."""

    quantity: Decimal
    """In the instrument's quantity unit."""


def enum_name(kind: Any, value: int, prefix: str) -> str:
    """Give the short name of an enum's value; a newer server may know more of them than we do."""
    known = kind.DESCRIPTOR.values_by_number.get(value)
    return known.name.removeprefix(prefix) if known is not None else str(value)


def state_name(state: int) -> str:
    """Give the short name of a book state: `SYNCED`."""
    known = state in pb.OrderBookState.values()
    return enum_name(pb.OrderBookState, state, "ORDER_BOOK_STATE_") if known else f"STATE_{state}"


class BookKeeper:
    """One book, built from the events of a `StreamOrderBook` call.

    Feed every event to `apply` in order. `in_step` says whether the levels may be trusted, `why`
    why not. When `needs_snapshot` is set, the stream cannot repair the book: `reset` it and
    subscribe anew, without a resume point.
    """

    def __init__(self) -> None:
        self.epoch = 0
        """Epoch of the book held; 0 while there is none."""
        self.sequence = 0
        """Sequence of the last snapshot or update applied."""
        self.venue_sequence = 0
        """The venue's own id of the last change applied."""
        self.state: pb.OrderBookState.ValueType = pb.ORDER_BOOK_STATE_UNSPECIFIED
        """State that the server last told, or that a snapshot of a new epoch implies."""
        self.why = "no snapshot yet"
        """One sentence for a person while the book is not in step; else empty."""
        self.needs_snapshot = False
        """The stream broke the rules of continuity: only a new subscription helps."""
        self.bid_horizon = ""
        """Below this price the bids are unknown; empty when the whole side is known."""
        self.ask_horizon = ""
        """Above this price the asks are unknown; empty when the whole side is known."""
        self.exchange_time_ns = 0
        """Venue's time of the last change applied, Unix nanoseconds; 0 when unknown."""
        self.receive_time_ns = 0
        """When its frame was read from the venue's socket, Unix nanoseconds; 0 when unknown."""
        self.counts: Counter[str] = Counter()
        """Events by what became of them: snapshots, updates, statuses, skipped, breaks."""
        self._bids: dict[Decimal, Decimal] = {}
        self._asks: dict[Decimal, Decimal] = {}
        self._held = False
        self._horizon_moves = (False, False)
        self._status_epoch = 0

    @property
    def has_book(self) -> bool:
        """Whether a snapshot was applied and every update since then continues it."""
        return self._held

    @property
    def in_step(self) -> bool:
        """Whether the levels equal the venue's book at `venue_sequence`, by all that was told."""
        return self._held and self.state == pb.ORDER_BOOK_STATE_SYNCED

    @property
    def resume_point(self) -> service_pb.ResumePoint | None:
        """Where a new stream may go on; None when there is nothing to go on from."""
        if not self._held:
            return None
        return service_pb.ResumePoint(epoch=self.epoch, sequence=self.sequence)

    def reset(self) -> None:
        """Forget the book; counts stay."""
        self._discard("no snapshot yet")
        self.needs_snapshot = False
        self.epoch = self.sequence = self._status_epoch = 0
        self.state = pb.ORDER_BOOK_STATE_UNSPECIFIED

    def apply(self, event: event_pb.MarketEvent) -> bool:
        """Apply one event of the stream; tells whether levels changed."""
        kind = event.WhichOneof("event")
        if kind == "order_book_update":
            return self._update(event.order_book_update)
        if kind == "order_book_snapshot":
            return self._snapshot(event.order_book_snapshot)
        if kind == "order_book_status":
            self._status(event.order_book_status)
        elif kind != "stream_status":
            self.counts["foreign"] += 1
        return False

    def bids(self, depth: int) -> list[Level]:
        """Give the best bids, highest first."""
        best = heapq.nlargest(depth, self._bids.items())
        return [Level(price, quantity) for price, quantity in best]

    def asks(self, depth: int) -> list[Level]:
        """Give the best asks, lowest first."""
        best = heapq.nsmallest(depth, self._asks.items())
        return [Level(price, quantity) for price, quantity in best]

    def known(self) -> tuple[str, str]:
        """Give the prices beyond which bids and asks are unknown; empty for a side known whole.

        A venue that keeps the best so many levels up takes the worst away when better ones come,
        so nothing is known beyond the worst level held, where that was the horizon itself.
        """
        bid, ask = self.bid_horizon, self.ask_horizon
        if bid and self._horizon_moves[0]:
            edge = Decimal(bid)
            bid = f"{min((price for price in self._bids if price >= edge), default=edge):f}"
        if ask and self._horizon_moves[1]:
            edge = Decimal(ask)
            ask = f"{max((price for price in self._asks if price <= edge), default=edge):f}"
        return bid, ask

    @property
    def level_counts(self) -> tuple[int, int]:
        """Number of bid and of ask levels held."""
        return len(self._bids), len(self._asks)

    # ---- the three kinds of event

    def _snapshot(self, snapshot: pb.OrderBookSnapshot) -> bool:
        if self._held and (snapshot.epoch, snapshot.sequence) < (self.epoch, self.sequence):
            return self._broken(
                f"a snapshot at {snapshot.epoch}/{snapshot.sequence} came after "
                f"{self.epoch}/{self.sequence}: books never go back"
            )
        bids: dict[Decimal, Decimal] = {}
        asks: dict[Decimal, Decimal] = {}
        try:
            _set_levels(bids, snapshot.bids)
            _set_levels(asks, snapshot.asks)
        except ValueError as error:
            return self._broken(f"the snapshot is malformed: {error}")
        self._bids, self._asks = bids, asks
        self._held = True
        self.needs_snapshot = False
        self.epoch, self.sequence = snapshot.epoch, snapshot.sequence
        self.bid_horizon, self.ask_horizon = snapshot.bid_horizon, snapshot.ask_horizon
        self._horizon_moves = (
            bool(snapshot.bids) and snapshot.bids[-1].price == snapshot.bid_horizon,
            bool(snapshot.asks) and snapshot.asks[-1].price == snapshot.ask_horizon,
        )
        self._stamp(snapshot)
        self.counts["snapshots"] += 1
        told_of_this_epoch = self._status_epoch == snapshot.epoch
        if not (told_of_this_epoch and self.state != pb.ORDER_BOOK_STATE_UNSPECIFIED):
            # An epoch begins with a book that is in step; a status of an older one is history.
            self.state = pb.ORDER_BOOK_STATE_SYNCED
            self._status_epoch = snapshot.epoch
        if self.state == pb.ORDER_BOOK_STATE_SYNCED:
            self.why = ""
        return True

    def _update(self, update: pb.OrderBookUpdate) -> bool:
        if not self._held:
            self.counts["skipped"] += 1
            return False
        if update.epoch != self.epoch or update.sequence != self.sequence + 1:
            return self._broken(
                f"expected update {self.epoch}/{self.sequence + 1}, got "
                f"{update.epoch}/{update.sequence}: something is missing"
            )
        try:
            changed_bids = _parse(update.bids)
            changed_asks = _parse(update.asks)
        except ValueError as error:
            return self._broken(f"update {update.epoch}/{update.sequence} is malformed: {error}")
        _set(self._bids, changed_bids)
        _set(self._asks, changed_asks)
        self.sequence = update.sequence
        self._stamp(update)
        self.counts["updates"] += 1
        return True

    def _status(self, status: pb.OrderBookStatus) -> None:
        self.counts["statuses"] += 1
        if status.epoch and status.epoch < self.epoch:
            return
        self.state = status.state
        self._status_epoch = status.epoch
        if status.state == pb.ORDER_BOOK_STATE_SYNCED:
            if self._held:
                self.why = ""
            return
        reason = ""
        if status.reason:
            reason = enum_name(pb.OrderBookReason, status.reason, "ORDER_BOOK_REASON_")
        said = status.detail or reason.lower().replace("_", " ")
        self.why = said or state_name(status.state).lower()
        if status.state in _NOT_TRUSTED:
            # The levels stay for whoever wants to look at them; `in_step` says what they are.
            self.counts["rebuilds"] += 1

    # ---- helpers

    def _stamp(self, event: pb.OrderBookSnapshot | pb.OrderBookUpdate) -> None:
        self.venue_sequence = event.venue_sequence
        self.exchange_time_ns = event.exchange_time.ToNanoseconds()
        self.receive_time_ns = event.receive_time.ToNanoseconds()

    def _broken(self, why: str) -> bool:
        self.counts["breaks"] += 1
        self._discard(why)
        self.needs_snapshot = True
        return True

    def _discard(self, why: str) -> None:
        self._bids, self._asks = {}, {}
        self._held = False
        self.why = why


def _parse(levels: Iterable[PriceLevel]) -> list[tuple[Decimal, Decimal]]:
    parsed = []
    for level in levels:
        try:
            price, quantity = Decimal(level.price), Decimal(level.quantity)
        except InvalidOperation:
            raise ValueError(
                f"expected decimal numbers, got {level.price!r} and {level.quantity!r}"
            ) from None
        if not (price.is_finite() and quantity.is_finite() and quantity >= 0):
            raise ValueError(
                f"expected a finite price and a quantity of 0 or more, got {level.price!r} and "
                f"{level.quantity!r}"
            )
        parsed.append((price, quantity))
    return parsed


def _set(side: dict[Decimal, Decimal], levels: Iterable[tuple[Decimal, Decimal]]) -> None:
    for price, quantity in levels:
        if quantity:
            side[price] = quantity
        else:
            side.pop(price, None)


def _set_levels(side: dict[Decimal, Decimal], levels: Iterable[PriceLevel]) -> None:
    _set(side, _parse(levels))
