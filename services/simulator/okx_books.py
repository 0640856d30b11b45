"""Books on OKX's channels: snapshots, changes that chain, keepalives, checksums.

Follows "Order book channel" of the OKX API v5 documentation.
"""

import time
from typing import TYPE_CHECKING

from services.simulator.market import BookState, DepthUpdate
from services.simulator.okx_frames import OkxFrames
from services.simulator.window import BookWindow, WindowChange

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = ["DEPTH_CHANNELS", "OkxBooks"]

DEPTH_CHANNELS = ("books", "books-l2-tbt", "books50-l2-tbt")
"""Channels that tell a book by its changes; all but the first are only played from captures."""

_LEVELS = 400
_FEW = 5
_BEST = 25


class OkxBooks:
    """What clients were told of the books of one venue."""

    def __init__(self, venue: "SimulatedVenue", frames: OkxFrames, *, checksum: bool) -> None:
        self._venue = venue
        self._frames = frames
        self._with_checksum = checksum
        self._windows: dict[str, BookWindow] = {}
        self._changes: dict[str, tuple[int, WindowChange]] = {}
        self._few: dict[str, object] = {}
        self._sent_at: dict[str, float] = {}

    def sent_at(self, symbol: str) -> float:
        """Monotonic time of the last change told of `books`; 0 when there was none."""
        return self._sent_at.get(symbol, 0.0)

    def update(self, event: DepthUpdate) -> bytes | None:
        """Return what `books` tells of a frame; None when nothing changes in the best 400."""
        change = self._follow(event)
        if change.empty:
            return None
        self._sent_at[event.symbol] = time.monotonic()
        return self._frames.book(
            event.symbol,
            "update",
            [(price, after) for price, _, after in change.bids],
            [(price, after) for price, _, after in change.asks],
            time_us=event.time_us,
            checksum=self._checksum(self._window(event.symbol)),
            sequence=change.last_id,
            previous=change.previous_id,
        )

    def best_five(self, event: DepthUpdate) -> bytes | None:
        """Return what `books5` tells of a frame; None when nothing changes in the best five."""
        self._follow(event)
        bids, asks = self._window(event.symbol).best(_FEW)
        if self._few.get(event.symbol) == (bids, asks):
            return None
        self._few[event.symbol] = (bids, asks)
        return self._frames.few_levels(event.symbol, bids, asks, event.time_us, event.last_id)

    def snapshot(self, channel: str, symbol: str) -> bytes | None:
        """Return the book that the next change continues; None while a capture knows none."""
        book = self._venue.stale_snapshot(symbol) or self._present(symbol)
        if book is None:
            return None
        market = self._venue.market
        book = book.top(_LEVELS)
        # Captures are from when the venue still sent checksums.
        checksum = 0
        if self._with_checksum or market.raw:
            checksum = self._frames.checksum(book.bids[:_BEST], book.asks[:_BEST])
        return self._frames.book(
            symbol,
            "snapshot",
            book.bids,
            book.asks,
            time_us=market.time_us,
            checksum=checksum,
            sequence=book.update_id,
            previous=-1,
            channel=channel,
        )

    def keepalive(self, symbol: str) -> bytes | None:
        """Return an update without levels; None for a book that was never told."""
        market, window = self._venue.market, self._window(symbol)
        if symbol not in market.symbols or window.told_id < 0:
            return None
        return self._frames.book(
            symbol,
            "update",
            (),
            (),
            time_us=market.time_us,
            checksum=self._checksum(window),
            sequence=window.told_id,
            previous=window.told_id,
        )

    def forget(self, symbol: str) -> None:
        """Let go of an instrument that is no longer traded."""
        for kept in (self._windows, self._changes, self._few, self._sent_at):
            kept.pop(symbol, None)

    def _present(self, symbol: str) -> BookState | None:
        market = self._venue.market
        if market.raw:
            return market.stream_book(symbol)
        return self._window(symbol).snapshot(market, market.frame_id(symbol))

    def _window(self, symbol: str) -> BookWindow:
        window = self._windows.get(symbol)
        if window is None:
            window = self._windows[symbol] = BookWindow(symbol, _LEVELS)
        return window

    def _follow(self, event: DepthUpdate) -> WindowChange:
        # `books` and `books5` are told of the same frame one after the other.
        known = self._changes.get(event.symbol)
        if known is not None and known[0] == event.last_id:
            return known[1]
        change = self._window(event.symbol).follow(self._venue.market, event)
        self._changes[event.symbol] = (event.last_id, change)
        return change

    def _checksum(self, window: BookWindow) -> int:
        return self._frames.checksum(*window.best(_BEST)) if self._with_checksum else 0
