"""The events of one instrument, kept once for all subscribers, each of whom holds only a place.

An append costs the same for one subscriber and for ten thousand who are behind; a slow subscriber
holds no memory: its place falls off the end of the bounded log, and it is told.
"""

import asyncio
from bisect import bisect_right
from collections import deque
from typing import Protocol

__all__ = ["Cursor", "EventLog", "Watcher"]

_COMPACT_AT = 512


class Watcher(Protocol):
    """Who reads several logs, and is told of one at a time that it has more."""

    def wake(self) -> None:
        """Note that the log has another item, or is closed; must neither raise nor read it yet."""


class EventLog:
    """A bounded log of encoded `events` items, numbered from 0 without end.

    `max_events` and `max_bytes` bound what is held; the oldest goes first, but the newest item
    always stays. Each item has a mark, a number that its owner chooses: for a book the sequence
    that the book has behind the item.
    """

    __slots__ = (
        "_ages",
        "_closed",
        "_dead",
        "_items",
        "_joined",
        "_joined_from",
        "_joined_to",
        "_marks",
        "_start",
        "_starts",
        "_total",
        "_waiting",
        "_watchers",
        "end",
        "first",
        "floor",
        "max_bytes",
        "max_events",
    )

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self.max_events = max_events
        """Most events held."""
        self.max_bytes = max_bytes
        """Most bytes held."""
        self._items: list[bytes] = []
        self._marks: list[int] = []
        self._starts: list[int] = []
        self._ages: deque[tuple[float, int]] = deque()
        self._total = 0
        self._start = 0
        self._dead = 0
        self._waiting: set[asyncio.Future[bool]] = set()
        # A dict keeps the order in which they came, so that nobody is always the last.
        self._watchers: dict[Watcher, None] = {}
        self._closed = False
        self._joined_from = self._joined_to = -1
        self._joined = b""
        self.first = 0
        """Place of the oldest item held."""
        self.end = 0
        """Place of the next item."""
        self.floor = 0
        """Mark of the last item that went."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called: no item follows."""
        return self._closed

    @property
    def size(self) -> int:
        """Bytes of the items held."""
        return self._total - self._starts[self._dead] if self.end > self.first else 0

    @property
    def waiting(self) -> int:
        """Subscribers that have everything and wait for more."""
        return len(self._waiting) + len(self._watchers)

    def append(self, item: bytes, mark: int = 0) -> None:
        """Add an item, wake who waits, and let the oldest go when the log is over its bounds."""
        self._items.append(item)
        self._marks.append(mark)
        self._starts.append(self._total)
        self._total += len(item)
        self.end += 1
        held = self.end - self.first
        if held > self.max_events or self._total - self._starts[self._dead] > self.max_bytes:
            self._trim_to_bounds()
        if self._waiting:
            self._wake(True)
        if self._watchers:
            self._wake_watchers()

    def trim_to(self, position: int) -> None:
        """Let everything before `position` go."""
        while self.first < position and self.first < self.end:
            self._drop_first()
        self._compact()

    def age(self, now: float, max_age: float) -> int:
        """Note the time, monotonic seconds; give the place up to which items are older."""
        ages = self._ages
        if not ages or ages[-1][1] != self.end:
            ages.append((now, self.end))
        position = self.first
        while ages[0][0] <= now - max_age:
            position = ages.popleft()[1]
            if not ages:
                break
        return position

    def items(self, position: int) -> list[bytes]:
        """Give the items from a place that is held to the end."""
        return self._items[position - self._start :]

    def mark(self, position: int) -> int:
        """Give the mark of one item that is held."""
        return self._marks[position - self._start]

    def after_mark(self, mark: int, since: int) -> int:
        """Give the place, from `since` on, of the first item whose mark is above `mark`.

        The marks from `since` on must not go down.
        """
        low = max(since, self.first) - self._start
        return bisect_right(self._marks, mark, lo=low) + self._start

    def bytes_from(self, position: int) -> int:
        """Give the bytes of the items from a place that is held to the end."""
        return self._total - self._starts[position - self._start] if position < self.end else 0

    def read(self, position: int, max_bytes: int) -> tuple[bytes, int]:
        """Give the items from `position` on, joined, and the place behind them.

        At least one item, however large, then as many as `max_bytes` take. `position` is held.
        """
        end = self.end
        if position == end - 1:
            return self._items[-1], end
        if (
            position == self._joined_from
            and len(self._joined) <= max_bytes
            and (self._joined_to == end or len(self._joined) >= max_bytes // 2)
        ):
            # Subscribers that are behind are mostly behind by the same.
            return self._joined, self._joined_to
        index = position - self._start
        stop = bisect_right(self._starts, self._starts[index] + max_bytes, lo=index) - 1
        if self._total - self._starts[index] <= max_bytes:
            stop = len(self._items)
        stop = max(stop, index + 1)
        joined = b"".join(self._items[index:stop])
        self._joined_from, self._joined_to, self._joined = position, stop + self._start, joined
        return joined, self._joined_to

    def size_at(self, position: int) -> int:
        """Give the bytes of one item that is held."""
        return len(self._items[position - self._start])

    def close(self) -> None:
        """Say that no item follows, and wake who waits."""
        self._closed = True
        self._wake(False)
        self._wake_watchers()

    def watch(self, watcher: Watcher) -> None:
        """Wake `watcher` once, at the next item or at the end; then it has to be given again."""
        self._watchers[watcher] = None

    def unwatch(self, watcher: Watcher) -> None:
        """Wake `watcher` no more."""
        self._watchers.pop(watcher, None)

    def wait(self) -> "asyncio.Future[bool]":
        """Give a future that ends with True at the next item; hand it back with `end_wait`."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        return future

    def end_wait(self, future: "asyncio.Future[bool]") -> None:
        """Take a future back."""
        self._waiting.discard(future)

    def _wake(self, value: bool) -> None:
        # Whoever waits is woken once and then finds all that was appended until it runs.
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(value)

    def _wake_watchers(self) -> None:
        watchers, self._watchers = self._watchers, {}
        for watcher in watchers:
            watcher.wake()

    def _trim_to_bounds(self) -> None:
        while self.end - self.first > 1 and (
            self.end - self.first > self.max_events
            or self._total - self._starts[self._dead] > self.max_bytes
        ):
            self._drop_first()
        self._compact()

    def _drop_first(self) -> None:
        self._items[self._dead] = b""
        self.floor = self._marks[self._dead]
        self._dead += 1
        self.first += 1
        if self._joined_from < self.first:
            self._joined_from, self._joined = -1, b""

    def _compact(self) -> None:
        if self._dead >= _COMPACT_AT and self._dead * 2 >= len(self._items):
            del self._items[: self._dead]
            del self._marks[: self._dead]
            del self._starts[: self._dead]
            self._start += self._dead
            self._dead = 0


class Cursor:
    """One subscriber's place in a log, and its wait for more.

    `heartbeat` is the longest silence, seconds: a wait ends then without an event.
    """

    __slots__ = ("_beat", "_future", "_heartbeat", "_loop", "_spoke", "_timer", "log", "position")

    def __init__(self, log: EventLog, position: int, heartbeat: float) -> None:
        self.log = log
        self.position = position
        self._heartbeat = heartbeat
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[bool] | None = None
        self._spoke = self._loop.time()
        self._beat = False
        self._timer = self._loop.call_later(heartbeat, self._on_timer)

    def close(self) -> None:
        """End the cursor's timer."""
        self._timer.cancel()

    def spoke(self) -> None:
        """Note that something was sent just now."""
        self._spoke = self._loop.time()

    async def wait(self) -> bool:
        """Wait for an item; False when a heartbeat is due or the log is closed."""
        log = self.log
        if self.position < log.end:
            return True
        if log.closed:
            return False
        future = self._future = log.wait()
        try:
            return await future
        finally:
            self._future = None
            log.end_wait(future)

    def _on_timer(self) -> None:
        # One timer a silence, and not one an event.
        left = self._spoke + self._heartbeat - self._loop.time()
        if left <= 0.001:
            left = self._heartbeat
            future = self._future
            if future is not None and not future.done():
                future.set_result(False)
        self._timer = self._loop.call_later(left, self._on_timer)
