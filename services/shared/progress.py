"""Notices that work waits and nothing of it gets done."""

__all__ = ["Progress"]


class Progress:
    """Takes what was done and whether something waits, now and then; times are monotonic seconds.

    A queue is stuck for as long as something waited and the count of what is done stood still.
    """

    def __init__(self) -> None:
        self._done = -1
        self._moved = float("inf")

    def observe(self, done: int, *, waiting: bool, now: float) -> None:
        """Take the count of what is done, and whether there is more to do."""
        if done != self._done or not waiting:
            self._done = done
            self._moved = now

    def stuck_seconds(self, now: float) -> float:
        """Give how long nothing of what waits has been done; 0 before the first observation."""
        return max(0.0, now - self._moved)
