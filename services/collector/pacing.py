"""Lets through no more of something than a venue allows in a time: connects, requests."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

__all__ = ["CombinedGate", "Gate", "RateGate"]

_SHORTEST_SLEEP = 0.001  # a sleep may end a little early by the clock that is asked


class Gate(Protocol):
    """What is passed before something that a venue limits."""

    async def pass_(self) -> None:
        """Wait for the turn, then count it."""

    def wait_seconds(self) -> float:
        """Seconds until the next pass is allowed, not counting others who wait; 0 when it is."""


class RateGate:
    """At most `count` passes within any `seconds`, in the order of asking.

    Without limit when `count` or `seconds` is 0. `clock` gives monotonic seconds, `sleep` waits by
    it. A waiter that is cancelled was never there.
    """

    def __init__(
        self,
        count: int,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if count < 0 or not seconds >= 0:
            raise ValueError(f"expected a count and seconds of 0 or more, got {count}, {seconds}")
        self.passes = 0
        self._seconds = seconds if count else 0.0
        self._clock = clock
        self._sleep = sleep
        self._times: deque[float] = deque(maxlen=count or 1)
        self._turn = asyncio.Lock()

    async def pass_(self) -> None:
        """Wait for the turn, then count it."""
        async with self._turn:
            while (seconds := self.wait_seconds()) > 0:
                await self._sleep(max(seconds, _SHORTEST_SLEEP))
            self.note()

    def wait_seconds(self) -> float:
        """Seconds until the next pass is allowed, not counting others who wait; 0 when it is."""
        times = self._times
        if not self._seconds or len(times) < (times.maxlen or 1):
            return 0.0
        return max(times[0] + self._seconds - self._clock(), 0.0)

    def note(self) -> None:
        """Count a pass that happened without asking, now."""
        self.passes += 1
        self._times.append(self._clock())


class CombinedGate:
    """Several gates, each of which has to be open: passes them all at one moment, or none.

    The gates may be passed by others too, which this then waits for; only among those who wait here
    is the order that of asking.
    """

    def __init__(
        self, *gates: RateGate, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._gates = gates
        self._sleep = sleep
        self._turn = asyncio.Lock()

    async def pass_(self) -> None:
        """Wait for the turn, then count it in every gate."""
        async with self._turn:
            while (seconds := self.wait_seconds()) > 0:
                await self._sleep(max(seconds, _SHORTEST_SLEEP))
            for gate in self._gates:
                gate.note()

    def wait_seconds(self) -> float:
        """Seconds until all gates are open, not counting others who wait; 0 when they are."""
        return max((gate.wait_seconds() for gate in self._gates), default=0.0)
