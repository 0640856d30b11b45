"""Deribit's rate limit: a pool of credits that refills at a constant rate.

Follows "Rate limits" of the Deribit documentation.
"""

import time
from collections.abc import Callable

__all__ = ["CreditPool"]


class CreditPool:
    """Credits that requests take; full at first, refilled continuously, never above the most."""

    __slots__ = ("_clock", "_credits", "_most", "_per_second", "_since", "refused")

    def __init__(
        self, most: float, per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.refused = 0
        """Requests for which there was not enough left."""
        self._most = most
        self._per_second = per_second
        self._clock = clock
        self._credits = most
        self._since = clock()

    @property
    def left(self) -> float:
        """Credits that could be taken now."""
        return min(self._most, self._credits + (self._clock() - self._since) * self._per_second)

    def take(self, cost: float) -> bool:
        """Take `cost` credits; False, and nothing taken, when there are fewer."""
        left = self.left
        self._since = self._clock()
        if left < cost:
            self._credits = left
            self.refused += 1
            return False
        self._credits = left - cost
        return True
