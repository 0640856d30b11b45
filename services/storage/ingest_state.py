"""How ingestion of one table goes: counts and times, read by metrics, health and status."""

from dataclasses import dataclass

__all__ = ["IngestState"]


@dataclass(slots=True)
class IngestState:
    """What became of the messages of one table since the start."""

    rows: int = 0
    """Rows stored."""

    bytes: int = 0
    """Bytes of the events of finished batches."""

    batches: int = 0
    """Batches finished."""

    held: int = 0
    """Messages that came again and were in the table already."""

    replaced: int = 0
    """Messages at a place where the table holds another: the broker had lost its newest ones."""

    rejected: int = 0
    """Messages set aside as dead letters."""

    last_rejection: str = ""
    """Why the last one was."""

    lost: int = 0
    """Messages that the broker dropped before they were stored, at most."""

    last_loss: float = 0.0
    """When the last of them was noticed, by the monotonic clock; 0 when none was."""

    retries: int = 0
    """Attempts that failed and were or are made again."""

    failing_since: float | None = None
    """Since when a batch waits for the database or the broker, by the monotonic clock."""

    store_failed: bool = False
    """Whether the last attempt failed because of the database."""

    last_error: str = ""
    """Why the last attempt failed; empty when it did not."""

    last_write: float = 0.0
    """When a batch was last finished, seconds since 1970; 0 when none was."""

    newest_event: float = 0.0
    """Receive time of the event stored last, seconds since 1970; 0 when none was."""
