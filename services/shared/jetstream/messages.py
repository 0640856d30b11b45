"""What a reader gives, where it begins, and what it says of itself."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from services.shared.jetstream.api import message_headers

__all__ = ["Message", "ReaderStatus", "StartAt", "subject_text"]


def subject_text(subject: bytes) -> str:
    """Give a subject as text; what is not UTF-8, which NATS takes from anybody, is escaped."""
    return subject.decode(errors="backslashreplace")


class Message(NamedTuple):
    """A message of the stream."""

    subject: str
    """Its subject."""

    payload: bytes
    """Its bytes."""

    stream_sequence: int
    """Its place in the stream, from 1."""

    header_block: bytes = b""
    """Its headers as they came; see `headers`."""

    @property
    def headers(self) -> dict[str, str]:
        """Its headers, parsed at each call."""
        return message_headers(self.header_block) if self.header_block else {}


@dataclass(frozen=True, slots=True)
class StartAt:
    """Where a reader begins; made by one of its class methods."""

    policy: str
    """JetStream's `deliver_policy`."""

    sequence_number: int = 0
    """For `sequence`."""

    instant: datetime | None = None
    """For `time`."""

    @classmethod
    def sequence(cls, number: int) -> "StartAt":
        """Begin with the first message whose stream sequence is `number` or more."""
        return cls("by_start_sequence", sequence_number=max(number, 1))

    @classmethod
    def time(cls, instant: datetime) -> "StartAt":
        """Begin with the first message stored at `instant` (with a time zone) or later."""
        return cls("by_start_time", instant=instant)

    @classmethod
    def new(cls) -> "StartAt":
        """Begin with what is stored from now on."""
        return cls("new")

    @classmethod
    def all(cls) -> "StartAt":
        """Begin with the oldest message."""
        return cls("all")

    @classmethod
    def last_per_subject(cls) -> "StartAt":
        """Begin with the last message of each subject, then everything stored after."""
        return cls("last_per_subject")


@dataclass(frozen=True, slots=True)
class ReaderStatus:
    """The state of a reader at one instant."""

    live: bool
    """Whether messages flow: connected, consumer made, no interruption."""

    delivered: int
    """Messages handed over since the start."""

    stream_sequence: int
    """Up to where the stream was read; 0 before the first message."""

    pending: int
    """Messages that the stream holds for this reader beyond what came, as last told."""

    waiting: int
    """Messages received and not yet handed over, because the last batch is still being handled."""

    interruptions: int
    """Times the flow broke."""

    missed: int
    """Interruptions after which messages were gone (expired, purged, stream made anew)."""

    last_error: str
    """The last trouble, empty when there was none."""
