"""Which stream takes which subject, and with it which lane a message waits in."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.shared.jetstream.api import subject_matches
from services.shared.jetstream.lane import Lane
from services.shared.jetstream.outbox import Entry, Outbox

__all__ = ["Routes"]


@dataclass(frozen=True, slots=True)
class _Stream:
    name: str
    subjects: tuple[str, ...]
    max_message_size: int


class Routes:
    """The lanes of a publisher: one a stream, and one a subject that no stream takes yet.

    Outlives connections. Lanes that it makes are not `ready`; a session makes them so.
    """

    def __init__(self) -> None:
        self._streams: tuple[_Stream, ...] = ()
        self._by_subject: dict[str, Lane] = {}
        self.lanes: dict[str, Lane] = {}
        """Lanes by stream."""
        self.unrouted: dict[str, Lane] = {}
        """Lanes by subject, of subjects without a stream."""

    def __iter__(self) -> Iterator[Lane]:
        yield from self.lanes.values()
        yield from self.unrouted.values()

    @property
    def in_flight(self) -> int:
        """Messages that were sent and are not known to be stored."""
        return sum(len(lane.unacknowledged) + len(lane.resend) for lane in self)

    def learn(self, streams: Iterable[Mapping[str, Any]]) -> None:
        """Take over what JetStream says of its streams."""
        self._streams = tuple(
            _Stream(
                str(info["config"]["name"]),
                tuple(info["config"].get("subjects") or ()),
                int(info["config"].get("max_msg_size") or -1),
            )
            for info in streams
        )
        for stream in self._streams:
            lane = self.lanes.get(stream.name)
            if lane is not None:
                lane.max_message_size = stream.max_message_size

    def stream_of(self, subject: str) -> str | None:
        """Give the stream that takes a subject, None when none is known."""
        for stream in self._streams:
            if any(subject_matches(pattern, subject) for pattern in stream.subjects):
                return stream.name
        return None

    def known_lane(self, subject: str) -> Lane | None:
        """Give the lane that a subject has already."""
        return self._by_subject.get(subject)

    def lane_for(self, subject: str) -> Lane:
        """Give the lane of a subject, a new one when need be."""
        stream = self.stream_of(subject)
        if stream is None:
            lane = self.unrouted.setdefault(subject, Lane(""))
        else:
            lane = self._lane_of_stream(stream)
        self._by_subject[subject] = lane
        return lane

    def adopt(self) -> int:
        """Move what waits without a stream into the lanes of streams; give how many subjects."""
        found = [subject for subject in self.unrouted if self.stream_of(subject) is not None]
        moved = [self.unrouted.pop(subject) for subject in found]
        self._move(
            [entry for lane in moved for entry in lane.resend],
            [entry for lane in moved for entry in lane.buffer],
            {subject: self.lane_for(subject) for subject in found},
        )
        return len(found)

    def rehome(self, lane: Lane) -> None:
        """Move what another stream takes now, or none, out of a lane with nothing in flight."""
        homes = {entry.subject: self.stream_of(entry.subject) for entry in lane.waiting()}
        away = [subject for subject, home in homes.items() if home != lane.stream]
        if away:
            resend, buffer = list(lane.resend), list(lane.buffer)
            lane.resend.clear()
            lane.buffer.clear()
            targets = dict.fromkeys(homes, lane)
            self._move(resend, buffer, targets | {each: self.lane_for(each) for each in away})

    def _move(self, resend: list[Entry], buffer: list[Entry], targets: Mapping[str, Lane]) -> None:
        """Put entries into the lanes of their subjects, which stay in the order of publishing."""
        for entry in resend:
            targets[entry.subject].resend.append(entry)
        for entry in buffer:
            targets[entry.subject].buffer.append(entry)
        for lane in {id(lane): lane for lane in targets.values()}.values():
            lane.resend = deque(sorted(lane.resend, key=_order))
            lane.buffer = deque(sorted(lane.buffer, key=_order))

    def sweep(self, outbox: Outbox) -> None:
        """Let go of dropped entries everywhere."""
        for lane in self:
            lane.sweep(outbox)
        outbox.swept()

    def _lane_of_stream(self, stream: str) -> Lane:
        lane = self.lanes.get(stream)
        if lane is None:
            lane = self.lanes[stream] = Lane(stream)
            for known in self._streams:
                if known.name == stream:
                    lane.max_message_size = known.max_message_size
        return lane


def _order(entry: Entry) -> int:
    return entry.order
