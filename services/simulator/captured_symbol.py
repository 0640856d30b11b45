"""One symbol of a capture: what the file tells of it, and its book while the file is played."""

import asyncio
import dataclasses
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.simulator.book import TrueBook
from services.simulator.captured import CapturedDepth, CapturedFrame, CapturedSnapshot
from services.simulator.instrument import SymbolSpec
from services.simulator.market import BookState, Trade, UpdateIdUnavailableError

__all__ = ["CapturedSymbol", "SymbolSeen"]


@dataclass(slots=True)
class SymbolSeen:
    """What one pass over the file tells of a symbol."""

    name: str
    snapshots: list[CapturedSnapshot] = field(default_factory=list)
    """Every REST book of it, in the file's order."""
    streamed: bool = False
    """Whether its book comes whole on the stream, instead of over REST."""
    first_id: int | None = None
    """First update id of the first diff frame."""
    depth_stream: str | None = None
    """The diff stream that its book follows."""
    price_step: int = 0
    """Greatest common divisor of its prices, units of 1e-8."""
    quantity_step: int = 0
    """Greatest common divisor of its quantities, units of 1e-8."""

    def see_snapshot(self, snapshot: CapturedSnapshot) -> None:
        """Take a REST book in."""
        self.snapshots.append(snapshot)
        self._see_levels(snapshot)

    def _see_levels(self, snapshot: CapturedSnapshot) -> None:
        for side in (snapshot.bids, snapshot.asks):
            self.price_step = math.gcd(self.price_step, *side)
            self.quantity_step = math.gcd(self.quantity_step, *side.values())

    def see_frame(self, frame: CapturedFrame) -> None:
        """Take a WebSocket frame in."""
        depth, trade = frame.depth, frame.trade
        if frame.snapshot is not None:
            self._see_levels(frame.snapshot)
            if self.depth_stream is None:
                self.depth_stream = frame.stream
                self.streamed = True
        elif depth is not None:
            faster = frame.stream.endswith("@100ms") and self.depth_stream != frame.stream
            if self.depth_stream is None or faster:
                self.depth_stream = frame.stream
                self.first_id = depth.first_id
            for levels in (depth.bids, depth.asks):
                self.price_step = math.gcd(self.price_step, *(price for price, _ in levels))
                self.quantity_step = math.gcd(self.quantity_step, *(size for _, size in levels))
        elif trade is not None:
            self.price_step = math.gcd(self.price_step, trade.price)
            self.quantity_step = math.gcd(self.quantity_step, trade.quantity)

    def spec(self, like: SymbolSpec, told: Mapping[str, object] | None) -> SymbolSpec:
        """Return the listing: as it was captured, else with the steps of the numbers seen.

        `like` is what the venue makes of the name alone, `told` what the captured listing says.
        """
        if told is not None:
            return dataclasses.replace(like, **dict(told))  # type: ignore[arg-type]
        return dataclasses.replace(
            like,
            tick=_power_of_ten(self.price_step),
            lot=_power_of_ten(self.quantity_step),
        )


class CapturedSymbol:
    """The book and the trades of a symbol, as far as the capture was played."""

    def __init__(self, seen: SymbolSeen, history: int, trades_kept: int) -> None:
        self.name = seen.name
        self.first_id = seen.first_id
        self.depth_stream = seen.depth_stream
        self.streamed = seen.streamed
        begins = (seen.first_id or 1) - 1
        # Without a snapshot nothing is known of the book but what the diffs will tell.
        self._snapshots = seen.snapshots or [CapturedSnapshot(None, seen.name, begins, {}, {})]
        self._next_snapshot = 0
        self.snapshot = self._snapshots[0]
        self.book = TrueBook(seen.name, begins, history)
        self.trades: deque[Trade] = deque(maxlen=trades_kept)
        self.synchronised = False
        self.requested = asyncio.Event()
        self.last_sent_id = begins
        self.frames = 0
        self.gaps = 0
        self._choose_snapshot(begins + 1)

    def _choose_snapshot(self, first_id: int) -> None:
        # The next snapshot of the file that a frame beginning with `first_id` can continue.
        for index in range(self._next_snapshot, len(self._snapshots)):
            if self._snapshots[index].update_id + 1 >= first_id:
                self.snapshot = self._snapshots[index]
                self._next_snapshot = index
                return

    def begin(self, snapshot: CapturedSnapshot) -> None:
        """Take the whole book that came on the stream."""
        self.snapshot = snapshot
        self.book.reset(snapshot.update_id, dict(snapshot.bids), dict(snapshot.asks))
        self.last_sent_id = snapshot.update_id
        self.synchronised = True
        self.frames += 1

    def follow(self, depth: CapturedDepth) -> None:
        """Apply a diff frame by the venue's rules; after a gap, wait for a later snapshot."""
        self.frames += 1
        if self.frames > 1 and not self._continues(depth):
            self.gaps += 1
            if self.synchronised:
                self.synchronised = False
                self._next_snapshot += 1
        self.last_sent_id = depth.last_id
        if not self.synchronised:
            if self.streamed:
                return
            self._choose_snapshot(depth.first_id)
            start = self.snapshot
            if not _reaches(depth, start.update_id):
                return
            self.book.reset(start.update_id, dict(start.bids), dict(start.asks))
            self.synchronised = True
        if depth.last_id > self.book.update_id:
            self.book.apply(depth.last_id, depth.bids, depth.asks)
        elif self.streamed and depth.last_id < self.book.update_id:
            # Ids begin again after a maintenance.
            self.book.renumber(depth.last_id - 1)
            self.book.apply(depth.last_id, depth.bids, depth.asks)

    def _continues(self, depth: CapturedDepth) -> bool:
        if depth.previous_id is not None:
            return depth.previous_id == self.last_sent_id
        return depth.first_id <= self.last_sent_id + 1

    @property
    def update_id(self) -> int:
        """The id of the book that REST answers with now."""
        known = self.synchronised or self.streamed
        return self.book.update_id if known else self.snapshot.update_id

    def state(self, depth: int | None) -> BookState:
        """Return the snapshot until the diffs reach it, then the book that follows from it."""
        if self.synchronised or self.streamed:
            return self.book.state(depth)
        return _state_of(self.snapshot).top(depth)

    def at(self, update_id: int, depth: int | None) -> BookState:
        """Return the exact book at the snapshot or at the end of a frame played after it.

        Raises:
            UpdateIdUnavailableError: for every other id.

        """
        if update_id == self.snapshot.update_id:
            return _state_of(self.snapshot).top(depth)
        if not self.synchronised:
            raise UpdateIdUnavailableError(
                self.name,
                update_id,
                f"only the snapshot at {self.snapshot.update_id} is known so far",
            )
        return self.book.at(update_id, depth)

    def stale(self, before: int | None, depth: int | None) -> BookState:
        """Return a book below `before`.

        Where the capture knows none, it is the present one with an id from before the capture.
        """
        if self.synchronised and before is not None and self.book.oldest_id < before:
            return self.book.at(self.book.known_before(before), depth)
        book = self.state(depth)
        forged = min(book.update_id, self.first_id or book.update_id) - 2
        return BookState(self.name, max(0, forged), book.bids, book.asks)


def _reaches(depth: CapturedDepth, snapshot_id: int) -> bool:
    # Futures name the id before; their first frame may also end at, or continue, the snapshot.
    if depth.previous_id is not None:
        inside = depth.first_id <= snapshot_id <= depth.last_id
        return inside or depth.previous_id == snapshot_id
    return depth.first_id <= snapshot_id + 1 <= depth.last_id


def _state_of(snapshot: CapturedSnapshot) -> BookState:
    return BookState(
        snapshot.symbol,
        snapshot.update_id,
        tuple(sorted(snapshot.bids.items(), reverse=True)),
        tuple(sorted(snapshot.asks.items())),
    )


def _power_of_ten(step: int) -> int:
    # A step of 30 units seen in few numbers is a tick of 10 rather than one of 30.
    power = 1
    while step and step % (power * 10) == 0:
        power *= 10
    return power
