"""The limit that a venue puts on REST requests, and who may use it first."""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from enum import IntEnum

from services.collector.venues.base import RestPool
from services.shared.log import get_logger

__all__ = ["BudgetPools", "Priority", "RequestBudget"]

_WINDOW = 60.0
_WORTH_TELLING = 1.0
_STEP_SECONDS = 1.0
_SLEW = 0.001  # a clock that is being corrected runs faster or slower by at most this


class Priority(IntEnum):
    """What a request is for, the most urgent first."""

    SNAPSHOT = 0
    """A book cannot be served without it, nor a start go on without the list of instruments."""
    HISTORY = 1
    """Fills a hole that is told already."""
    POLL = 2
    """Comes again anyway."""


class _Waiter:
    """A request that waits for its turn."""

    __slots__ = ("future", "order", "priority", "weight")

    def __init__(self, priority: int, order: int, weight: int) -> None:
        self.priority = priority
        self.order = order
        self.weight = weight
        self.future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def __lt__(self, other: "_Waiter") -> bool:
        return (self.priority, self.order) < (other.priority, other.order)


class RequestBudget:
    """Request weight of one pool of a venue's and one IP address, counted a window at a time.

    `limit` is what we allow ourselves in a window of `window_seconds`, `used` the larger of our
    count and the venue's own in the running one. Polls may use `share` of the limit, missed trades
    and polls together `repair_share`, so that there is always something left for a snapshot: a
    venue that comes back after an outage leaves a hole in every instrument's trades. Who waits is
    served by priority, and within one in the order of asking; nobody passes somebody more urgent,
    however cheap the request. A request dearer than all there is goes alone.

    Two clocks. `clock` is the system's, seconds since 1970: venues begin their windows with the
    minute of theirs, and both are kept right by time servers. `monotonic` measures what has to pass
    (a refusal, a window), so that nothing is allowed earlier, or later, because the system's clock
    was set: a step of it moves the begin of our windows and gives back no weight. `monotonic` is
    `clock` when only that is given.
    """

    def __init__(
        self,
        limit: int,
        clock: Callable[[], float] | None = None,
        *,
        name: str = "",
        window_seconds: float = _WINDOW,
        share: float = 0.5,
        repair_share: float = 0.7,
        monotonic: Callable[[], float] | None = None,
    ) -> None:
        self.limit = limit
        self.name = name
        self.window_seconds = window_seconds
        self.share = share
        self.repair_share = repair_share
        self.requests = 0
        self.rate_limited = 0
        self._clock = clock or time.time
        self._monotonic = monotonic or clock or time.monotonic
        self._blocked_until = 0.0
        self._window = int(self._clock() // window_seconds)
        self._window_begin = self._seen_monotonic = self._monotonic()
        self._seen_clock = self._clock()
        self._stepped = False
        self._used = 0
        self._used_by_polls = 0
        self._used_by_history = 0
        self._waiters: list[_Waiter] = []
        self._orders = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._log = get_logger()

    @property
    def used(self) -> int:
        """Weight used in the running window."""
        self._roll()
        return self._used

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._waiters)

    @property
    def blocked_seconds(self) -> float:
        """Seconds that the venue wants us to make no request; 0 when it does not."""
        return max(self._blocked_until - self._monotonic(), 0.0)

    @property
    def blocked_until(self) -> float:
        """When that ends by the system's clock, seconds since 1970; 0 when requests are allowed."""
        seconds = self.blocked_seconds
        return self._clock() + seconds if seconds else 0.0

    def wait_seconds(self, weight: int, priority: Priority = Priority.SNAPSHOT) -> float:
        """Seconds until a request of this weight may be made; 0 when it may now.

        Others who wait are not counted in.
        """
        self._roll()
        if seconds := self.blocked_seconds:
            return seconds
        if (self._used and self._used + weight > self.limit) or self._beyond_share(
            weight, priority
        ):
            return self._window_seconds_left()
        return 0.0

    @property
    def waits(self) -> str:
        """Why requests wait now, and for how long; empty while none does.

        Polls that wait for their share are as they should be, and not told.
        """
        if not any(
            waiter.priority < Priority.POLL or self.blocked_seconds for waiter in self._waiters
        ):
            return ""
        if seconds := self.blocked_seconds:
            return f"requests wait {seconds:.0f} s more, as the venue demanded"
        self._roll()
        window = "minute" if self.window_seconds == _WINDOW else f"{self.window_seconds:g} s"
        return (
            f"requests wait {self._window_seconds_left():.0f} s more for the next {window}'s "
            f"request weight, {self._used} of {self.limit} are used"
        )

    async def take(self, weight: int, priority: Priority = Priority.SNAPSHOT) -> None:
        """Wait until a request of this weight may be made, and count it."""
        waiter = _Waiter(priority, next(self._orders), weight)
        heapq.heappush(self._waiters, waiter)
        self._serve()
        if not waiter.future.done():
            seconds = self.wait_seconds(weight, priority)
            if self.waiting == 1 and seconds > _WORTH_TELLING and (why := self.waits):
                self._log.info("requests wait", why=why, pool=self.name)
        try:
            await waiter.future
        except asyncio.CancelledError:
            if not waiter.future.cancelled():
                self._give_back(waiter)
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
                heapq.heapify(self._waiters)
            self._serve()
            raise

    def note_used(self, used: int) -> None:
        """Take over the venue's own count, which includes others on our address."""
        self._roll()
        self._used = max(self._used, used)

    def block(self, seconds: float) -> None:
        """Make no request for so long: the venue said so."""
        self.rate_limited += 1
        self._blocked_until = max(self._blocked_until, self._monotonic() + seconds)

    # Inside

    def _beyond_share(self, weight: int, priority: Priority) -> bool:
        if priority == Priority.SNAPSHOT:
            return False
        polls, repairs = self._used_by_polls, self._used_by_polls + self._used_by_history
        if repairs and repairs + weight > self.limit * self.repair_share:
            return True
        return bool(
            priority == Priority.POLL and polls and polls + weight > self.limit * self.share
        )

    def _count(self, priority: int, weight: int) -> None:
        self._used = max(self._used + weight, 0)
        if priority == Priority.POLL:
            self._used_by_polls = max(self._used_by_polls + weight, 0)
        elif priority == Priority.HISTORY:
            self._used_by_history = max(self._used_by_history + weight, 0)

    def _serve(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiters:
            waiter = self._waiters[0]
            if waiter.future.cancelled():
                heapq.heappop(self._waiters)
                continue
            seconds = self.wait_seconds(waiter.weight, Priority(waiter.priority))
            if seconds > 0:
                self._timer = asyncio.get_running_loop().call_later(seconds, self._serve)
                return
            heapq.heappop(self._waiters)
            self.requests += 1
            self._count(waiter.priority, waiter.weight)
            waiter.future.set_result(self._window)

    def _give_back(self, waiter: _Waiter) -> None:
        """Take back what was counted for a request that will not be made."""
        self.requests -= 1
        self._roll()
        if waiter.future.result() == self._window:
            self._count(waiter.priority, -waiter.weight)

    def _window_seconds_left(self) -> float:
        return (self._window + 1) * self.window_seconds - self._seen_clock

    def _roll(self) -> None:
        now, passed = self._clock(), self._monotonic()
        elapsed = passed - self._seen_monotonic
        if abs(now - self._seen_clock - elapsed) > _STEP_SECONDS + elapsed * _SLEW:
            self._stepped = True
        self._seen_clock, self._seen_monotonic = now, passed
        window = int(now // self.window_seconds)
        if window == self._window:
            return
        self._window = window
        if self._stepped and passed - self._window_begin < self.window_seconds:
            # The venue has not heard of our clock: its window goes on.
            return
        self._stepped = False
        self._window_begin = passed
        self._used = self._used_by_polls = self._used_by_history = 0


class BudgetPools:
    """The budgets of one process: venues that name the same pool share one."""

    def __init__(self) -> None:
        self.budgets: dict[str, RequestBudget] = {}

    def budget(self, pool: RestPool, limit: int = 0) -> RequestBudget:
        """Give the budget of a pool; `limit` is what the settings allow, 0 when the pool's own.

        Where venues that share a pool are allowed different limits, the least counts.
        """
        allowed = limit or pool.limit
        budget = self.budgets.get(pool.name)
        if budget is None:
            budget = self.budgets[pool.name] = RequestBudget(
                allowed, name=pool.name, window_seconds=pool.window_seconds
            )
        budget.limit = min(budget.limit, allowed)
        return budget
