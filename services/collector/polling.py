"""Asks a venue by REST again and again for what it does not stream, spread over time."""

import asyncio
import hashlib
import heapq
import itertools
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from marketprism.market.v1 import common_pb2

from services.collector.observations import kind_name
from services.collector.rest import RateLimitedError
from services.collector.venues.base import Poll, RestRequest
from services.shared.log import get_logger

__all__ = ["PollStatus", "Poller", "PollerStatus"]

_SOON_SECONDS = 0.25  # a poll, for the first requests of new ones
_LEAST_SECONDS = 0.1  # between two requests of a poll, whatever it says
_LONGEST_BACKOFF = 10  # intervals
_CATCH_UP = 2.0  # times the usual pace, after a pause
_LONGEST_GAP = 1.0
_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE = 300.0
_LATE_SECONDS = 5.0

_Key: TypeAlias = tuple[int, str, str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class PollStatus:
    """What came of one poll."""

    kind: "common_pb2.EventKind.ValueType"
    """Kind of event that it brings."""
    path: str
    """What it asks for."""
    native_symbol: str
    """The instrument; empty when the answer tells of several."""
    every_seconds: float
    """Time between two requests."""
    requests: int
    """Requests made."""
    failures: int
    """How many of them got no answer, or one that could not be read."""
    failures_in_a_row: int
    """How many of the last ones; the next request waits the longer."""
    due_seconds: float
    """Time until the next request is due; negative when it is late, 0 while one runs."""
    answered_seconds: float
    """Time since the last answer; infinite before the first."""
    last_error: str
    """Why the last request failed; empty when it did not."""


@dataclass(frozen=True, slots=True)
class PollerStatus:
    """How the polling of a venue goes."""

    polls: int
    """Polls on the schedule."""
    in_flight: int
    """Requests that wait for their answer or for the venue's limit."""
    late: int
    """Polls that are due for more than five seconds and have not begun."""
    failing: int
    """Polls whose last request failed."""
    paused_seconds: float
    """Time until polling goes on after a refusal; 0 when it is not paused."""
    weight_per_second: float
    """What the schedule takes of the venue's limit when all goes well."""
    requests: dict[str, int]
    """Requests made, by kind name."""
    failures: dict[str, int]
    """Requests that failed, by kind name."""
    refusals: int
    """Times that the venue said that it was asked too much."""


class _Item:
    """One poll and where it stands."""

    def __init__(self, poll: Poll) -> None:
        self.due = 0.0
        self.task: asyncio.Task[None] | None = None
        self.gone = False
        self.requests = 0
        self.failures = 0
        self.in_a_row = 0
        self.answered = -math.inf
        self.last_error = ""
        self.set(poll)

    def set(self, poll: Poll) -> None:
        self.poll = poll
        self.every = max(poll.every_seconds, _LEAST_SECONDS)
        query = repr(sorted(poll.request.query.items()))
        digest = hashlib.blake2b(f"{poll.request.path}\n{query}".encode(), digest_size=8).digest()
        self.fraction = int.from_bytes(digest, "big") / 2**64

    def slot(self, least: float, now: float) -> float:
        """Give the first time of this poll's own that is not before `least`, and after `now`."""
        phase = self.fraction * self.every
        slot = math.ceil((least - phase) / self.every) * self.every + phase
        while slot <= now:
            slot += max(self.every, math.floor((now - slot) / self.every) * self.every)
        return slot


class Poller:
    """Keeps the schedule of a venue's polls.

    `fetch(request)` makes the request and gives the body and when it was read; it waits for the
    venue's limit, and leaves room in it for what is more urgent (`RestClient.get` with
    `Priority.POLL`). `on_answer(poll, body, receive_time)` takes an answer; what it raises is a
    failure of the poll like any other. `on_error(poll, error)` is told of each failure, refusals
    included. At most `at_once` requests run at the same time, and none while the one before it of
    the same poll does.

    Each poll has times of its own, one every interval, spread over it by a hash of what it asks
    for: they are the same in every process and do not move when other polls come and go. Only the
    first request comes as soon as the number of new polls allows. A poll that fails leaves out
    times, up to ten in a row, and is never given up. After a refusal (RateLimitedError) nothing is
    asked for as long as the venue says, and longer with each further one; what has become due
    meanwhile is not asked for all at once.

    `clock` gives monotonic seconds, `sleep` waits by it.
    """

    def __init__(
        self,
        fetch: Callable[[RestRequest], Awaitable[tuple[bytes, int]]],
        on_answer: Callable[[Poll, bytes, int], object],
        on_error: Callable[[Poll, Exception], object],
        *,
        at_once: int = 4,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.requests: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.refusals = 0
        self._fetch = fetch
        self._on_answer = on_answer
        self._on_error = on_error
        self._at_once = at_once
        self._clock = clock
        self._sleep = sleep
        self._items: dict[_Key, _Item] = {}
        self._queue: list[tuple[float, int, _Item]] = []
        self._order = itertools.count()
        self._running: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._gap = 0.0
        self._next_start = -math.inf
        self._paused_until = -math.inf
        self._refused_in_a_row = 0
        self._log = get_logger()

    def set_polls(self, polls: Sequence[Poll]) -> None:
        """Replace the schedule. What stays keeps its times; requests of what goes are cancelled."""
        now = self._clock()
        wanted = {_key(poll): poll for poll in polls}
        for key in [key for key in self._items if key not in wanted]:
            item = self._items.pop(key)
            item.gone = True
            if item.task is not None:
                item.task.cancel()
        new = [(key, poll) for key, poll in wanted.items() if key not in self._items]
        for key, poll in wanted.items():
            if (known := self._items.get(key)) is not None and known.poll != poll:
                before = known.every
                known.set(poll)
                if known.every < before and known.task is None:
                    self._plan(known, min(known.due, known.slot(now, now)))
        for key, poll in new:
            item = self._items[key] = _Item(poll)
            soon = min(item.every, len(new) * _SOON_SECONDS)
            self._plan(item, now + item.fraction * soon)
        self._queue = [entry for entry in self._queue if _is_current(entry)]
        heapq.heapify(self._queue)
        rate = sum(1 / item.every for item in self._items.values())
        self._gap = min(1 / (rate * _CATCH_UP), _LONGEST_GAP) if rate else 0.0
        self._changed.set()

    async def run(self) -> None:
        """Poll until cancelled."""
        try:
            while True:
                self._changed.clear()
                await self._wait(self._start_due())
        finally:
            running = list(self._running)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def polls(self) -> list[PollStatus]:
        """Tell what came of each poll, in the order in which they were set."""
        now = self._clock()
        return [
            PollStatus(
                kind=item.poll.kind,
                path=item.poll.request.path,
                native_symbol=item.poll.native_symbol,
                every_seconds=item.poll.every_seconds,
                requests=item.requests,
                failures=item.failures,
                failures_in_a_row=item.in_a_row,
                due_seconds=item.due - now if item.task is None else 0.0,
                answered_seconds=now - item.answered,
                last_error=item.last_error,
            )
            for item in self._items.values()
        ]

    def status(self) -> PollerStatus:
        """Tell how the polling goes."""
        now = self._clock()
        items = self._items.values()
        return PollerStatus(
            polls=len(items),
            in_flight=len(self._running),
            late=sum(item.task is None and now - item.due > _LATE_SECONDS for item in items),
            failing=sum(item.in_a_row > 0 for item in items),
            paused_seconds=max(self._paused_until - now, 0.0),
            weight_per_second=sum(item.poll.request.weight / item.every for item in items),
            requests=dict(self.requests),
            failures=dict(self.failures),
            refusals=self.refusals,
        )

    # Inside

    def _plan(self, item: _Item, due: float) -> None:
        item.due = due
        heapq.heappush(self._queue, (due, next(self._order), item))

    def _start_due(self) -> float | None:
        """Begin what is due; give the seconds until more may be, None when nothing tells."""
        while self._queue:
            if not _is_current(self._queue[0]):
                heapq.heappop(self._queue)
                continue
            if len(self._running) >= self._at_once:
                return None
            now = self._clock()
            start = max(self._queue[0][0], self._next_start, self._paused_until)
            if start > now:
                return start - now
            _, _, item = heapq.heappop(self._queue)
            self._next_start = now + self._gap
            task = asyncio.create_task(self._ask(item), name=f"poll {item.poll.request.path}")
            item.task = task
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            task.add_done_callback(lambda _: self._changed.set())
        return None

    async def _wait(self, seconds: float | None) -> None:
        waits: set[asyncio.Future[Any]] = {asyncio.ensure_future(self._changed.wait())}
        if seconds is not None:
            waits.add(asyncio.ensure_future(self._sleep(seconds)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _ask(self, item: _Item) -> None:
        poll = item.poll
        kind = kind_name(poll.kind)
        started = self._clock()
        item.requests += 1
        self.requests[kind] += 1
        try:
            body, receive_time = await self._fetch(poll.request)
            if not item.gone:
                self._on_answer(poll, body, receive_time)
        except asyncio.CancelledError:
            item.task = None
            if not item.gone:
                self._plan(item, item.slot(started + item.every / 2, self._clock()))
            raise
        except Exception as error:
            # Whatever it was: nobody else would ever ask again.
            item.task = None
            if item.gone:
                return
            item.last_error = str(error) or repr(error)
            if isinstance(error, RateLimitedError):
                self._pause(item, error.retry_after)
            else:
                item.failures += 1
                item.in_a_row += 1
                self.failures[kind] += 1
                left_out = min(2 ** min(item.in_a_row - 1, 10), _LONGEST_BACKOFF) - 0.5
                self._plan(item, item.slot(started + left_out * item.every, self._clock()))
            self._tell(poll, error)
            return
        item.task = None
        if item.gone:
            return
        item.in_a_row = 0
        item.last_error = ""
        item.answered = self._clock()
        self._refused_in_a_row = 0
        self._plan(item, item.slot(started + item.every / 2, item.answered))

    def _pause(self, item: _Item, seconds: float) -> None:
        now = self._clock()
        self.refusals += 1
        if now >= self._paused_until:
            # Several requests that were on their way are refused together: that is once.
            self._refused_in_a_row += 1
        longer = min(_PAUSE_SECONDS * 2 ** min(self._refused_in_a_row - 1, 10), _LONGEST_PAUSE)
        self._paused_until = max(self._paused_until, now + max(seconds, longer))
        self._plan(item, self._paused_until)

    def _tell(self, poll: Poll, error: Exception) -> None:
        try:
            self._on_error(poll, error)
        except Exception as problem:  # a listener's own fault must not end the polling
            self._log.error("cannot tell of a failed poll", error=repr(problem))


def _key(poll: Poll) -> _Key:
    query = tuple(sorted(poll.request.query.items()))
    return (poll.kind, poll.native_symbol, poll.request.path, query)


def _is_current(entry: tuple[float, int, _Item]) -> bool:
    due, _, item = entry
    return not item.gone and item.task is None and item.due == due
