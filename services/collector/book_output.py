"""Where a book's messages go, and when it repeats itself."""

from typing import Protocol

from marketprism.market.v1 import order_book_pb2 as pb

__all__ = ["BookOutput", "SnapshotPolicy"]


class BookOutput(Protocol):
    """Where a book's messages go. Calls come in the order that subscribers must see."""

    def publish_update(self, payload: bytes, epoch: int, sequence: int) -> None:
        """Take an encoded OrderBookUpdate."""

    def publish_snapshot(self, payload: bytes, epoch: int, sequence: int) -> None:
        """Take an encoded OrderBookSnapshot."""

    def publish_status(self, status: pb.OrderBookStatus) -> None:
        """Take a change of state, also of a book that is muted."""

    def request_snapshot(self, reason: "pb.OrderBookReason.ValueType") -> None:
        """Bring the venue's snapshot about, single-flight and with backoff.

        It is fetched and handed to `on_snapshot`, or subscribed to anew where it comes in the
        stream.
        """


class SnapshotPolicy:
    """When a book repeats itself, and how much it holds.

    `every_updates` and `every_seconds`: a periodic snapshot after that many updates, or after that
    long if anything changed; `refresh_seconds`: even if nothing did, so that a stream's retention
    never leaves a book without one. `max_buffered`: diffs kept while waiting for the venue's
    snapshot. `max_levels`: levels a side kept at the most. `min_levels`: a side that has fewer
    within the published horizon is rebuilt.
    """

    __slots__ = (
        "every_seconds",
        "every_updates",
        "max_buffered",
        "max_levels",
        "min_levels",
        "refresh_seconds",
    )

    def __init__(
        self,
        *,
        every_updates: int = 2000,
        every_seconds: float = 30.0,
        refresh_seconds: float = 240.0,
        max_buffered: int = 5000,
        max_levels: int = 20_000,
        min_levels: int = 20,
    ) -> None:
        self.every_updates = every_updates
        self.every_seconds = every_seconds
        self.refresh_seconds = refresh_seconds
        self.max_buffered = max_buffered
        self.max_levels = max_levels
        self.min_levels = min_levels

    def as_dict(self) -> dict[str, float]:
        """Give the arguments that make the same policy."""
        return {name: getattr(self, name) for name in self.__slots__}
