"""The best levels of a book, again whenever they changed."""

from typing import Any, Final

from marketprism.market.v1 import order_book_pb2

from services.marketdata.ladder import (
    ASKS,
    BIDS,
    Changes,
    OrderedSide,
    encode_best,
    encode_horizons,
    snapshot_head,
)
from services.marketdata.live_book import Opening
from services.marketdata.shared_view import SharedView
from services.marketdata.wire import ORDER_BOOK_SNAPSHOT, event_item

__all__ = ["TopView"]

_TOP_CHANGED: Final = int(order_book_pb2.SNAPSHOT_REASON_TOP_CHANGED)


class TopView(SharedView):
    """The best levels are looked at only when one of them changed, or another one came in.

    What changed is known by price; whether others came in, by comparing the names of the best.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._is_dirty = False
        self._body = b""
        self._best_bids: list[str] = []
        self._best_asks: list[str] = []
        self._bid_names: frozenset[str] = frozenset()
        self._ask_names: frozenset[str] = frozenset()
        super().__init__(*arguments, **options)

    def on_changes(self, changes: Changes) -> None:
        """See `Follows`."""
        if self._is_dirty:
            return
        depth = self.wish.depth
        self._is_dirty = not (
            self._bid_names.isdisjoint(changes.bids)
            and self._ask_names.isdisjoint(changes.asks)
            and (not changes.bids or self._ladder.bids.best(depth) == self._best_bids)
            and (not changes.asks or self._ladder.asks.best(depth) == self._best_asks)
        )

    def _emit(self) -> None:
        if not self._is_dirty or not self._follower.has_book:
            return
        before = self._body
        self._look()
        if self._body != before:
            self._send(_TOP_CHANGED)

    def _begin(self) -> None:
        self._look()
        self.epoch = self._follower.last.epoch
        self.sequence = self._follower.last.sequence

    def _replace(self, reason: int, item: bytes) -> None:
        self._send(reason)

    def _send(self, reason: int) -> None:
        last = self._follower.last
        self.epoch, self.sequence = last.epoch, last.sequence
        self._append(event_item(ORDER_BOOK_SNAPSHOT, self._encode(reason)))

    def _encode(self, reason: int) -> bytes:
        return snapshot_head(self._follower.last, reason) + self._body

    def _snapshot(self) -> tuple[bytes, int, int]:
        self._follower.absorb()
        if self._is_dirty:
            # Those who have the book already are sent the same when it is their time.
            before = self._body
            self._look()
            payload = self._encode(_TOP_CHANGED)
            if self._body != before:
                self._is_dirty, self._body = True, before
        else:
            payload = self._encode(_TOP_CHANGED)
        return payload, self._follower.last.sequence, self.log.end

    def _resumed(self, epoch: int, sequence: int) -> Opening | None:
        """Continue: whatever was missed, the best levels as they are now are all of it."""
        self._follower.absorb()
        last = self._follower.last
        if epoch != last.epoch or sequence > last.sequence:
            return None
        if sequence >= self.sequence and not self._is_dirty:
            return Opening((self._status_item(sequence),), self.log.end, resumed=True)
        payload, place, position = self._snapshot()
        item = event_item(ORDER_BOOK_SNAPSHOT, payload)
        return Opening((item, self._status_item(place)), position, resumed=True)

    def _look(self) -> None:
        """Take the best levels as they are."""
        bids, asks = self._ladder.bids, self._ladder.asks
        depth = self.wish.depth
        self._is_dirty = False
        self._best_bids, self._best_asks = bids.best(depth), asks.best(depth)
        self._bid_names = frozenset(self._best_bids)
        self._ask_names = frozenset(self._best_asks)
        bid_horizon, ask_horizon = self._ladder.horizons()
        self._body = b"".join(
            (
                encode_best(BIDS, self._best_bids, bids.levels),
                encode_best(ASKS, self._best_asks, asks.levels),
                encode_horizons(
                    _horizon(bids, self._best_bids, bid_horizon),
                    _horizon(asks, self._best_asks, ask_horizon),
                ),
            )
        )


def _horizon(side: OrderedSide, best: list[str], horizon: str) -> str:
    """Give the horizon of a side that is cut: beyond the last level that is sent nothing is told.

    A side that is sent whole has the horizon of the book.
    """
    if len(best) == len(side.levels):
        return horizon
    return side.better(best[-1], horizon)
