"""One Deribit connection's heartbeats, and when the venue ends it.

Follows `public/set_heartbeat` of the Deribit documentation: the server sends `test_request`, the
client answers with `public/test`, or the server closes with code 4000.
"""

import math

from services.simulator.connection import Connection
from services.simulator.deribit_frames import heartbeat

__all__ = ["DeribitSession"]

_UNANSWERED = (4000, "heartbeat close")
_TOO_MANY = (1008, "too_many_requests")
_BURST = 5


class DeribitSession:
    """What the venue keeps of a connection. Times are those of `time.monotonic`."""

    def __init__(self, opened_at: float, answer_seconds: float, idle_seconds: float) -> None:
        """`idle_seconds`: how long a connection may live that neither asks nor subscribes."""
        self.interval: float | None = None
        """Seconds between two requests for a sign of life; None without heartbeats."""
        self._opened_at = opened_at
        self._answer_seconds = answer_seconds
        self._idle_seconds = idle_seconds
        self._asks_at = math.inf
        self._ends_at = math.inf
        self._refusing = False
        self._closing: tuple[int, str] | None = None
        self._frames = 0

    def set_heartbeat(self, interval: float, now: float) -> None:
        """Begin to ask for signs of life every `interval` seconds."""
        self.interval = interval
        self._asks_at = now + interval
        self._ends_at = math.inf

    def disable_heartbeat(self) -> None:
        """Ask for no more signs of life."""
        self.interval = None
        self._asks_at = self._ends_at = math.inf

    def tested(self) -> bool:
        """Take note of the client's `public/test`; whether it is to be answered."""
        if self._refusing:
            return False
        self._ends_at = math.inf
        self._frames += 1  # the answer, after which the connection is as quiet as it was
        return True

    def too_many_requests(self) -> None:
        """End the connection once its error was sent."""
        self._closing = _TOO_MANY

    def due(self, connection: Connection, now: float, *, refuse: bool) -> list[bytes]:
        """Return what is to be sent now, or end the connection.

        With `refuse` the server asks several times at once and takes no answer.
        """
        if self._closing is None and now >= self._ends_at:
            self._closing = _UNANSWERED
        if self._closing is not None:
            connection.close(*self._closing)
            return []
        if not connection.streams and now >= self._idle_at(connection):
            connection.abort("idle: no request and no subscription")
            return []
        if self.interval is None or now < self._asks_at:
            return []
        self._asks_at = now + self.interval
        if self._ends_at == math.inf:
            self._ends_at = now + self._answer_seconds
        quiet = connection.frames == self._frames
        frames = [heartbeat("test_request")]
        if refuse:
            self._refusing = True
            frames *= _BURST
        elif quiet:
            # The venue sends a heartbeat of its own only where nothing else was sent meanwhile.
            frames.insert(0, heartbeat("heartbeat"))
        self._frames = connection.frames + len(frames)
        return frames

    def asks(self, now: float) -> bool:
        """Whether a request for a sign of life is due."""
        return self.interval is not None and now >= self._asks_at

    def next_at(self, connection: Connection) -> float:
        """Return when something will be due."""
        if self._closing is not None:
            return 0.0
        idle = math.inf if connection.streams else self._idle_at(connection)
        return min(self._asks_at, self._ends_at, idle)

    def _idle_at(self, connection: Connection) -> float:
        return max(self._opened_at, connection.heard_at) + self._idle_seconds
