"""A capture file, read item by item: what can be played, in its order.

A line that cannot be used is skipped, counted, and the first ones are kept for people to look at.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from services.shared.capture import read_numbered
from services.shared.errors import InvalidArgument
from services.simulator.captured import (
    CapturedDepth,
    CapturedFrame,
    CapturedInfo,
    CapturedSnapshot,
    CapturedTrade,
    CaptureItem,
    CaptureParser,
)
from services.simulator.captured_binance import binance_item

__all__ = [
    "CaptureError",
    "CaptureItem",
    "CaptureReader",
    "CapturedDepth",
    "CapturedFrame",
    "CapturedInfo",
    "CapturedSnapshot",
    "CapturedTrade",
]

_KEPT_COMPLAINTS = 10
_TAKEOVER_SECONDS = 5.0


class CaptureError(ValueError):
    """A capture file that cannot be played at all."""


@dataclass(slots=True)
class _Carrier:
    """The connection whose frames of a stream are played."""

    connection: str | None
    last_id: int
    time: float


def _binance() -> CaptureParser:
    return binance_item


@dataclass(slots=True)
class CaptureReader:
    """Iterates over what can be played in a capture, in its order.

    Where several connections carried the same stream, each event is played once: from whichever
    had it first where events have ids, else from one connection as long as it goes on.
    """

    path: Path
    parser: Callable[[], CaptureParser] = _binance
    """Makes what reads the lines of one pass."""
    malformed: int = 0
    """Lines which could not be used."""
    complaints: list[str] = field(default_factory=list)
    """What was wrong with the first of them: line, what was expected, what came."""
    repeated: int = 0
    """Frames which another connection had carried too."""

    def __iter__(self) -> Iterator[CaptureItem]:
        self.malformed = self.repeated = 0
        self.complaints = []
        parse = self.parser()
        carriers: dict[str, _Carrier] = {}
        try:
            for number, record in read_numbered(self.path, self._complain):
                try:
                    item = parse(record)
                except (msgspec.MsgspecError, ValueError, LookupError, RecursionError) as error:
                    self._complain(number, str(error))
                    continue
                if item is None:
                    continue
                if isinstance(item, CapturedFrame) and _repeats(item, record.conn, carriers):
                    self.repeated += 1
                    continue
                yield item
        except InvalidArgument as error:
            raise CaptureError(str(error)) from error

    def _complain(self, number: int, error: str) -> None:
        self.malformed += 1
        if len(self.complaints) < _KEPT_COMPLAINTS:
            self.complaints.append(f"{self.path.name}:{number}: {error}")


def _repeats(frame: CapturedFrame, connection: str | None, carriers: dict[str, _Carrier]) -> bool:
    time = frame.time or 0.0
    carrier = carriers.get(frame.stream)
    if carrier is None:
        carriers[frame.stream] = _Carrier(connection, frame.event_id, time)
        return False
    if carrier.connection != connection:
        newer = frame.event_id > carrier.last_id >= 0
        if not newer and time <= carrier.time + _TAKEOVER_SECONDS:
            return True
        carrier.connection = connection
    carrier.last_id = frame.event_id
    carrier.time = time
    return False
