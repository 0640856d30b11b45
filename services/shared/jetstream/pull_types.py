"""What a pull consumer is told, what it hands over, and what it says of itself."""

from dataclasses import dataclass

from services.shared.jetstream.pull_connection import Received

__all__ = ["Lost", "PullBatch", "PullOptions", "PullSession", "PullStatus", "reply_place"]


@dataclass(frozen=True, slots=True)
class PullOptions:
    """How much a pull consumer takes at a time, and how patient it is."""

    batch_messages: int = 50_000
    """Most messages of one batch. Twice as many are held at most: one batch is handed over while
    the next one comes."""

    batch_bytes: int = 8 * 1024 * 1024
    """Most bytes of one batch as JetStream counts them: payloads, headers, subjects. One message
    that is larger comes alone."""

    linger: float = 1.0
    """Seconds after its first message at which a batch is handed over although it is not full."""

    expires: float = 30.0
    """Seconds after which a pull that brought nothing is asked anew."""

    heartbeat: float = 5.0
    """Seconds of silence after which the server says that it lives; three silent ones count as an
    interruption."""

    ack_wait: float = 3600.0
    """Seconds after which the server delivers again what is not acknowledged. It may be long: a
    consumer that begins anew takes up what was not acknowledged at once (CONSUMER.RESET)."""

    check: float = 2.0
    """Seconds between two looks at what the stream has dropped."""

    note: float = 10.0
    """Seconds between two notes, kept with the consumer, of up to where it has read: what tells a
    later process that something was lost meanwhile."""

    advance: float = 60.0
    """Seconds between two moves of the ack floor over messages of other subjects, when idle."""

    connect_timeout: float = 3.0
    """Seconds one address has to answer."""

    backoff: float = 0.05
    """Seconds before the first retry; doubled with each failure, with jitter."""

    backoff_limit: float = 2.0
    """Longest time between retries, seconds."""


@dataclass(frozen=True, slots=True)
class PullSession:
    """One unbroken run of deliveries.

    Each begins with the first message behind its ack floor, so that what an earlier one delivered
    and was not acknowledged comes again, in order.
    """

    number: int
    """Grows with each session of this process."""

    stream_created: int
    """When the stream was made, nanoseconds since 1970: sequences of another are others."""

    ack_floor: int
    """Up to this stream sequence everything is acknowledged, or not the consumer's."""

    last_sequence: int
    """Newest sequence of the stream when the session began."""


@dataclass(frozen=True, slots=True)
class PullBatch:
    """Some messages in the order of the stream, not acknowledged yet."""

    session: PullSession
    """What brought them."""

    received: Received
    """The messages; never none."""

    pending: int
    """Messages for this consumer that the stream held behind the last of them."""

    first_stored: int
    """When the stream stored the first of them, nanoseconds since 1970."""

    last_stored: int
    """The same of the last one."""

    @property
    def last_sequence(self) -> int:
        """Stream sequence of the last message."""
        return self.received.sequences[-1]


@dataclass(frozen=True, slots=True)
class Lost:
    """Messages that the stream dropped (age, size) before the consumer had read them.

    A purge is deliberate: JetStream moves the consumer's ack floor over what it takes away.
    """

    first_sequence: int
    """First stream sequence that is gone and may not have been read."""

    last_sequence: int
    """Last one."""

    at_most: int
    """How many messages of the consumer that may be: exactly so many when it takes all of the
    stream's subjects, else at most."""

    stream_created: int
    """Which stream, see `PullSession`."""


@dataclass(frozen=True, slots=True)
class PullStatus:
    """The state of a pull consumer at one instant."""

    live: bool
    """Whether messages flow."""

    acknowledged_sequence: int
    """Everything up to this stream sequence is acknowledged."""

    settled_sequence: int
    """Up to here nothing waits to be acknowledged: like `acknowledged_sequence`, and beyond it over
    what is not the consumer's."""

    unsettled: int
    """Messages received and not acknowledged."""

    oldest_waiting: float
    """When the stream stored the oldest message that is not acknowledged, seconds since 1970; 0
    when none is known to be."""

    read_sequence: int
    """Up to here the stream was read; what is not acknowledged of it is held or being handled."""

    pending: int
    """Messages that the stream holds for the consumer beyond what came, as last told."""

    waiting: int
    """Messages that came and were not handed over yet."""

    waiting_bytes: int
    """Bytes of their payloads."""

    received: int
    """Messages received since the start, those that came again included."""

    repeated: int
    """Messages left out because they came before in the same session."""

    sessions: int
    """Sessions begun since the start."""

    lost: int
    """Messages that were gone before they were read, at most; see `Lost`."""

    last_error: str
    """The last trouble, empty when there was none."""


def reply_place(reply: bytes) -> tuple[int, int, int, int]:
    """Give a delivery's stream sequence, consumer sequence, time stored (ns since 1970), pending.

    Its reply subject ends with these four; see `consumer.places`.
    """
    _, stream_sequence, consumer_sequence, stored, pending = reply.rsplit(b".", 4)
    return int(stream_sequence), int(consumer_sequence), int(stored), int(pending)
