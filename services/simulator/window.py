"""What a client of a book stream holds: the best levels of a book, followed frame by frame.

A stream that tells the best N levels must also tell levels that enter and leave as others move,
and some venues say of a level whether it is new. Both need the book as it was before the frame.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import NamedTuple

from services.simulator.market import BookState, DepthUpdate, Market

__all__ = ["BookWindow", "LevelChange", "WindowChange"]


class LevelChange(NamedTuple):
    """A level within the window: 0 is absent."""

    price: int
    before: int
    """Quantity before the frame."""
    after: int
    """Quantity after the frame."""


class WindowChange(NamedTuple):
    """What one frame changes for who sees only the window. Best first, as the levels of a book."""

    previous_id: int
    """The sequence that the client was told last."""
    last_id: int
    """The sequence after this change."""
    bids: list[LevelChange]
    asks: list[LevelChange]

    @property
    def empty(self) -> bool:
        """Whether nothing changes within the window; then there is nothing to send."""
        return not self.bids and not self.asks


class _Side:
    """The sorted keys of one side with their quantities; a bid's key is its negated price."""

    __slots__ = ("keys", "quantities", "sign")

    def __init__(self, levels: Sequence[tuple[int, int]], sign: int) -> None:
        self.sign = sign
        self.quantities = {sign * price: quantity for price, quantity in levels}
        self.keys = sorted(self.quantities)

    def horizon(self, depth: int | None) -> float:
        """Return the key of the worst level in the window; infinite when all levels are in it."""
        if depth is None or len(self.keys) < depth:
            return math.inf
        return self.keys[depth - 1]

    def change(self, levels: Sequence[tuple[int, int]], depth: int | None) -> list[LevelChange]:
        keys, quantities, sign = self.keys, self.quantities, self.sign
        old_edge = self.horizon(depth)
        before: dict[int, int] = {}
        for price, quantity in levels:
            key = sign * price
            old = quantities.get(key, 0)
            before.setdefault(key, old)
            if quantity:
                if not old:
                    insort(keys, key)
                quantities[key] = quantity
            elif old:
                del keys[bisect_left(keys, key)]
                del quantities[key]
        edge = self.horizon(depth)
        if edge != old_edge:
            # Levels between the old and the new edge enter or leave though they did not change.
            low, high = min(edge, old_edge), max(edge, old_edge)
            for key in keys[bisect_right(keys, low) : bisect_right(keys, high)]:
                before.setdefault(key, quantities[key])
        changes = []
        for key in sorted(before):
            old = before[key] if key <= old_edge else 0
            new = quantities.get(key, 0) if key <= edge else 0
            if old != new:
                changes.append(LevelChange(sign * key, old, new))
        return changes

    def best(self, count: int) -> list[tuple[int, int]]:
        return [(self.sign * key, self.quantities[key]) for key in self.keys[:count]]


class BookWindow:
    """The best `depth` levels of one symbol's book as clients hold them; all levels for None."""

    def __init__(self, symbol: str, depth: int | None = None) -> None:
        self.symbol = symbol
        self.depth = depth
        self.told_id = -1
        """The sequence that was told last."""
        self._reached = -1
        self._bids = _Side((), -1)
        self._asks = _Side((), 1)

    def follow(self, market: Market, event: DepthUpdate) -> WindowChange:
        """Apply a frame and return what it changes in the window.

        An empty change must not be sent; the next one then chains to the one before it. After
        frames that were not followed, the book before this one is taken from the market.

        Raises:
            UpdateIdUnavailableError: when the market no longer knows the book before the frame.

        """
        if self._reached != event.previous_id:
            self._begin(market.book_at(self.symbol, event.previous_id))
        change = WindowChange(
            self.told_id,
            event.last_id,
            self._bids.change(event.bids, self.depth),
            self._asks.change(event.asks, self.depth),
        )
        self._reached = event.last_id
        if not change.empty:
            self.told_id = event.last_id
        return change

    def snapshot(self, market: Market, frame_id: int) -> BookState:
        """Return the window that the next frame continues, under the sequence told last.

        `frame_id` is where the newest frame of the stream ended (`Market.frame_id`).
        """
        if self._reached != frame_id:
            self._begin(market.book_at(self.symbol, frame_id))
        count = len(self._bids.keys) + len(self._asks.keys) if self.depth is None else self.depth
        return BookState(
            self.symbol, self.told_id, tuple(self._bids.best(count)), tuple(self._asks.best(count))
        )

    def best(self, count: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """(bids, asks): the best `count` levels a side, best first."""
        return self._bids.best(count), self._asks.best(count)

    def _begin(self, book: BookState) -> None:
        self._bids = _Side(book.bids, -1)
        self._asks = _Side(book.asks, 1)
        self._reached = self.told_id = book.update_id
