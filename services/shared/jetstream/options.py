"""How a publisher behaves, and what it counts."""

from dataclasses import dataclass, field

from services.shared.jetstream.outbox import OutboxLimits

__all__ = ["PublisherCounts", "PublisherOptions"]


@dataclass(frozen=True, slots=True)
class PublisherOptions:
    """How a publisher behaves."""

    limits: OutboxLimits = field(default_factory=OutboxLimits)
    """What may wait while the broker is away or slow."""

    window: int = 4096
    """Messages of one stream that may be sent and not yet acknowledged."""

    window_bytes: int = 16 * 1024 * 1024
    """The same in bytes."""

    acknowledge_every: int = 32
    """Messages that the server acknowledges at once, at most."""

    ack_timeout: float = 5.0
    """Seconds without any acknowledgement while some is due, after which the connection counts as
    broken."""

    tail_check: float = 0.05
    """Seconds after which the stream is asked whether the last message sent has arrived, when too
    few followed it to be acknowledged by themselves."""

    backoff: float = 0.05
    """Seconds before the first retry; doubled with each failure, with jitter."""

    backoff_limit: float = 2.0
    """Longest time between retries, seconds."""

    connect_timeout: float = 3.0
    """Seconds one address has to answer."""


@dataclass(slots=True)
class PublisherCounts:
    """What became of messages since the start; counted by publisher and session alike."""

    acknowledged: int = 0
    """Known to be stored."""

    duplicates: int = 0
    """Found stored after a loss or refusal, and so not sent again."""

    dropped: int = 0
    """Of droppable keys, given up."""

    rejected: int = 0
    """Not taken for want of room."""

    refused: int = 0
    """Can never be stored."""

    reordered: int = 0
    """Stored behind a later one of their subject."""

    reconnects: int = 0
    """Connections lost."""

    last_error: str = ""
    """The last trouble."""
