"""A clock that stands still until the test moves it, and sleeps that go by it."""

import asyncio
import heapq
import itertools

__all__ = ["FakeTime"]

_TURNS = 40  # of the loop, in which what was woken gets to its next wait


class FakeTime:
    """Monotonic seconds; `sleep` ends when `advance` has moved the clock that far."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + max(seconds, 0.0), next(self._order), future))
        await future

    async def settle(self) -> None:
        """Let everything run that can."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        """Move the clock, waking each sleeper at its time and letting it go to its next wait."""
        end = self.now + seconds
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, future = heapq.heappop(self._sleepers)
            self.now = max(self.now, due)
            if not future.done():
                future.set_result(None)
                await self.settle()
        self.now = end
        await self.settle()
