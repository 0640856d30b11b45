"""When each event of a replay is due, by a clock that only goes forward."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final

from marketprism.history.v1 import history_service_pb2 as pb

from services.storage.validators import NANOS, check_enum, duration_ns, invalid

__all__ = ["Clock", "Pacer", "read_pacer"]

_LEAST_SPEED: Final = Decimal("0.01")
_MOST_SPEED: Final = Decimal(10000)
_LONGEST_TEXT: Final = 32


@dataclass(frozen=True, slots=True)
class Clock:
    """Time as it passes, replaced in tests."""

    now: Callable[[], float] = time.monotonic
    """Seconds."""

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    """Waits for so many seconds."""


class Pacer:
    """Says when what was received at an instant is due.

    `speed` is how many seconds of the past pass in one; None means that everything is due at once.
    Pauses longer than `longest_pause` seconds are cut to it.
    """

    def __init__(self, speed: float | None, longest_pause: float | None = None) -> None:
        self.speed = speed
        """See above."""
        self._longest = longest_pause
        self._past = 0
        self._due = 0.0

    def begin(self, past: int, now: float) -> None:
        """Begin: the instant `past`, nanoseconds since 1970, is now, in seconds."""
        self._past, self._due = past, now

    def due(self, past: int) -> float:
        """Give when an instant of the past is due, seconds; never one before that of the last."""
        if self.speed is None:
            return self._due
        if past > self._past:
            pause = (past - self._past) / (NANOS * self.speed)
            if self._longest is not None and pause > self._longest:
                pause = self._longest
            self._due += pause
            self._past = past
        return self._due


def read_pacer(request: pb.ReplayMarketDataRequest) -> Pacer:
    """Read how fast a replay is wanted; raises `InvalidArgument` that names the field."""
    check_enum(pb.ReplayPace.DESCRIPTOR, request.pace, "pace", unset="REAL_TIME")
    longest = None
    if request.HasField("longest_pause"):
        longest = duration_ns(
            request.longest_pause,
            "longest_pause",
            least=0,
            most=366 * 86_400 * NANOS,
            expected="0 to 366 days",
        )
    speed: float | None = 1.0
    if request.pace == pb.REPLAY_PACE_SCALED:
        speed = _speed(request.speed)
    elif request.speed:
        raise invalid("speed", "expected none unless pace is SCALED", repr(request.speed[:32]))
    elif request.pace == pb.REPLAY_PACE_UNPACED:
        speed = None
    return Pacer(speed, None if longest is None else longest / NANOS)


def _speed(text: str) -> float:
    try:
        value = Decimal(text) if len(text) <= _LONGEST_TEXT and text.isascii() else Decimal("NaN")
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or not _LEAST_SPEED <= value <= _MOST_SPEED:
        raise invalid(
            "speed",
            'expected how many seconds of the past pass in one, "0.01" to "10000"',
            repr(text[:_LONGEST_TEXT]),
        )
    return float(value)
