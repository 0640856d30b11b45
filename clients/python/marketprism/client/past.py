"""What a client's replay of history does, without any I/O: the request, and what comes of it.

A replay carries the same events as a live subscription, and is taken by the same rules.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.client.session import ClientError, Session, kind_number, wish
from marketprism.collector.v1.integrity_event_pb2 import IntegrityEvent
from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.market.v1.market_event_pb2 import MarketEvent, StreamState

__all__ = ["Moment", "Replay", "replay_of"]

Moment = datetime | int
"""An instant: an aware datetime, or nanoseconds since 1970."""

_COMPLETE = "RANGE_COMPLETE"


@dataclass
class Replay:
    """One replay: `take` each message, then `finish`.

    `position` is the receive time up to which everything has come, nanoseconds since 1970. `books`
    of the session are kept as in a live subscription. `on_gap` is called with each entry of the gap
    ledger at its place.
    """

    request: pb.ReplayMarketDataRequest
    session: Session
    on_gap: Callable[[IntegrityEvent], None] | None = None
    position: int = 0
    complete: bool = False
    _ended: list[str] = field(default_factory=list)

    def take(self, response: pb.ReplayMarketDataResponse) -> list[MarketEvent]:
        """Take a message; gives its events, books being applied."""
        self.position = response.position.ToNanoseconds()
        if response.HasField("gap") and self.on_gap is not None:
            self.on_gap(response.gap)
        for event in response.events:
            status = event.stream_status
            if status.state == StreamState.STREAM_STATE_ENDED:
                self.complete = status.reason == _COMPLETE
                self._ended = [status.reason, status.message]
        return self.session.take(response.events)

    def finish(self) -> None:
        """Note that nothing more comes; raises ClientError when the range is not complete."""
        if not self.complete:
            why = ": ".join(self._ended) or "the connection ended"
            raise ClientError(f"the replay is not complete: {why}")


def replay_of(
    instruments: Sequence[str] | str,
    kinds: Sequence[str | int],
    start: Moment,
    end: Moment | None = None,
    *,
    speed: float | Decimal | None = 1,
    longest_pause: float | None = None,
    heartbeat_seconds: float = 5.0,
    on_gap: Callable[[IntegrityEvent], None] | None = None,
) -> Replay:
    """Make a replay.

    `speed` is how many seconds of the past pass in one (0.01 to 10000), None for as fast as it is
    read; `longest_pause` cuts longer pauses, seconds.
    """
    asked = wish(instruments, [kind_number(kind) for kind in kinds])
    request = pb.ReplayMarketDataRequest(
        instruments=asked.instruments,
        kinds=asked.kinds,  # type: ignore[arg-type]
        start_time=_timestamp(start),
        heartbeat_interval=_duration(heartbeat_seconds),
    )
    if end is not None:
        request.end_time.CopyFrom(_timestamp(end))
    if speed is None:
        request.pace = pb.REPLAY_PACE_UNPACED
    elif speed == 1:
        request.pace = pb.REPLAY_PACE_REAL_TIME
    else:
        request.pace = pb.REPLAY_PACE_SCALED
        request.speed = format(Decimal(str(speed)), "f")
    if longest_pause is not None:
        request.longest_pause.CopyFrom(_duration(longest_pause))
    session = Session(wish(instruments, kinds, heartbeat_seconds=heartbeat_seconds))
    return Replay(request, session, on_gap)


def _timestamp(moment: Moment) -> Timestamp:
    time = Timestamp()
    if isinstance(moment, int):
        time.FromNanoseconds(moment)
    elif moment.tzinfo is None:
        raise ValueError(f"expected a time with its zone, such as UTC, got {moment.isoformat()}")
    else:
        time.FromDatetime(moment)
    return time


def _duration(seconds: float) -> Duration:
    length = Duration()
    length.FromNanoseconds(round(seconds * 1e9))
    return length
