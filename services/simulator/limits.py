"""The venue's limits: REST weight by minute with its ban, and messages a second on a connection."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["MessageRate", "Refusal", "WeightPool"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A REST request turned away."""

    status: int
    """429, or 418 while banned."""
    retry_after: int
    """Whole seconds until it is worth asking again."""


class WeightPool:
    """Request weight used in the current minute; 429 beyond the limit, 418 for who goes on.

    The minute is the clock's minute, as the venue counts. `ban_after` requests refused with 429
    within one minute bring a ban of `ban_seconds`, doubled at each further ban.
    """

    def __init__(
        self,
        limit: int,
        ban_after: int,
        ban_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.limit = limit
        self.refused = 0
        self.banned = 0
        self._ban_after = ban_after
        self._ban_seconds = ban_seconds
        self._clock = clock
        self._minute = -1
        self._used = 0
        self._refused_in_minute = 0
        self._banned_until = 0.0
        self._bans = 0

    @property
    def used(self) -> int:
        """Weight used in the current minute."""
        self._roll(self._clock())
        return self._used

    @property
    def banned_until(self) -> float:
        """Unix time at which the last ban ends (0 when there was none)."""
        return self._banned_until

    def take(self, weight: int) -> Refusal | None:
        """Use `weight`; the refusal when there is not enough left."""
        now = self._clock()
        if now < self._banned_until:
            self.banned += 1
            return Refusal(418, math.ceil(self._banned_until - now))
        self._roll(now)
        if self._used + weight <= self.limit:
            self._used += weight
            return None
        self.refused += 1
        self._refused_in_minute += 1
        if self._refused_in_minute > self._ban_after:
            length = self._ban_seconds * 2**self._bans
            self._bans += 1
            self._banned_until = now + length
            self._refused_in_minute = 0
            self.banned += 1
            return Refusal(418, math.ceil(length))
        return Refusal(429, max(1, math.ceil(60 - now % 60)))

    def _roll(self, now: float) -> None:
        minute = int(now // 60)
        if minute != self._minute:
            self._minute = minute
            self._used = 0
            self._refused_in_minute = 0


class MessageRate:
    """At most `limit` occurrences in any window of `seconds`."""

    def __init__(
        self, limit: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._times: deque[float] = deque()

    def allow(self) -> bool:
        """Count one more; False when it is one too many."""
        now = self._clock()
        while self._times and self._times[0] <= now - self._seconds:
            self._times.popleft()
        if len(self._times) >= self._limit:
            return False
        self._times.append(now)
        return True
