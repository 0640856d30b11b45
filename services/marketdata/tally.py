"""What the hot path counts: plain numbers, handed to the metrics once a second."""

from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """Counts since the start. A counter of the metrics library costs more than an event may."""

    events: dict[str, int] = field(default_factory=dict)
    """Messages from the broker by kind."""

    updates: int = 0
    """Updates that continued their book."""

    snapshots: int = 0
    """Snapshots that were taken."""

    malformed: int = 0
    """Messages that are not what their subject says."""

    duplicates: int = 0
    """Updates and snapshots that were held already."""

    old_epoch: int = 0
    """Updates and statuses of an epoch before the present one."""

    old_epoch_book: str = ""
    """The book that the last of them was of, `exchange/symbol`."""

    gaps: int = 0
    """Times that an update did not continue its book."""

    skipped: int = 0
    """Updates that could not be used, because one before them is missing."""

    unplaced: int = 0
    """Updates that came before any snapshot of their book."""

    ignored: int = 0
    """Messages on subjects that are none of ours, or beyond the limit of instruments."""

    messages: int = 0
    """Messages sent to subscribers."""

    deliveries: int = 0
    """Events sent to subscribers."""

    dropped: int = 0
    """Events left out for subscribers who read too slowly."""

    open_streams: Callable[[], int] = lambda: 0
    """Gives the number of subscribers' streams that are open."""

    put_together: Callable[[float], None] = lambda _seconds: None
    """Called with the seconds that it took to put a book together."""
