"""Tells the gap ledger what went wrong between the venue and us, as integrity events."""

from collections.abc import Callable

from marketprism.collector.v1 import integrity_event_pb2 as pb
from marketprism.market.v1 import common_pb2
from marketprism.market.v1 import order_book_pb2 as book_pb
from prometheus_client import Counter

__all__ = ["CAUSE_OF_REASON", "Ledger"]

CAUSE_OF_REASON: dict[int, "pb.IntegrityCause.ValueType"] = {
    book_pb.ORDER_BOOK_REASON_STARTUP: pb.INTEGRITY_CAUSE_PROCESS,
    book_pb.ORDER_BOOK_REASON_VENUE_GAP: pb.INTEGRITY_CAUSE_VENUE_SEQUENCE,
    book_pb.ORDER_BOOK_REASON_VENUE_DISCONNECTED: pb.INTEGRITY_CAUSE_VENUE_CLOSED,
    book_pb.ORDER_BOOK_REASON_SNAPSHOT_STALE: pb.INTEGRITY_CAUSE_SNAPSHOT_UNUSABLE,
    book_pb.ORDER_BOOK_REASON_SNAPSHOT_FAILED: pb.INTEGRITY_CAUSE_SNAPSHOT_UNUSABLE,
    book_pb.ORDER_BOOK_REASON_RATE_LIMITED: pb.INTEGRITY_CAUSE_RATE_LIMIT,
    book_pb.ORDER_BOOK_REASON_MALFORMED_FRAME: pb.INTEGRITY_CAUSE_UNDECODABLE,
    book_pb.ORDER_BOOK_REASON_CHECKSUM_MISMATCH: pb.INTEGRITY_CAUSE_CHECKSUM_MISMATCH,
    book_pb.ORDER_BOOK_REASON_CROSSED: pb.INTEGRITY_CAUSE_CROSSED_BOOK,
    book_pb.ORDER_BOOK_REASON_FEED_SILENT: pb.INTEGRITY_CAUSE_NETWORK,
    book_pb.ORDER_BOOK_REASON_HORIZON_REACHED: pb.INTEGRITY_CAUSE_HORIZON_REACHED,
    book_pb.ORDER_BOOK_REASON_BROKER_BACKPRESSURE: pb.INTEGRITY_CAUSE_BROKER_BACKPRESSURE,
    book_pb.ORDER_BOOK_REASON_COLLECTOR_SILENT: pb.INTEGRITY_CAUSE_PROCESS,
    book_pb.ORDER_BOOK_REASON_REQUESTED: pb.INTEGRITY_CAUSE_REQUESTED,
    book_pb.ORDER_BOOK_REASON_VENUE_RESET: pb.INTEGRITY_CAUSE_VENUE_MAINTENANCE,
    book_pb.ORDER_BOOK_REASON_INSTRUMENT_CHANGED: pb.INTEGRITY_CAUSE_INSTRUMENT_CHANGED,
}
"""What the ledger calls the reason of a book's status."""


class Ledger:
    """Writes integrity events to `market.integrity.<exchange>.<symbol>`.

    `publish(subject, payload, message_id)` is the publisher's, `events` counts by kind.
    """

    def __init__(
        self,
        collector_id: str,
        publish: Callable[[str, bytes, str], object],
        events: Counter,
    ) -> None:
        self._collector_id = collector_id
        self._publish = publish
        self._events = events
        self._last = 0

    def record(
        self,
        kind: "pb.IntegrityKind.ValueType",
        cause: "pb.IntegrityCause.ValueType",
        detail: str,
        *,
        exchange: str,
        now: int,
        symbol: str = "",
        event_kind: "common_pb2.EventKind.ValueType" = common_pb2.EVENT_KIND_UNSPECIFIED,
        begin: int = 0,
        end: int = 0,
        first_missing_id: int = 0,
        last_missing_id: int = 0,
        count: int = 0,
        epoch: int = 0,
        sequence: int = 0,
        venue_sequence: int = 0,
        connection_id: str = "",
        previous_event_id: str = "",
    ) -> str:
        """Write one entry and give its id. Times are nanoseconds since 1970, 0 when unknown."""
        # The id sorts by time and is never given twice, also when the clock stands still.
        self._last = max(now, self._last + 1)
        event_id = f"{self._collector_id}-{self._last}"
        event = pb.IntegrityEvent(
            exchange=exchange,
            symbol=symbol,
            event_id=event_id,
            kind=kind,
            event_kind=event_kind,
            first_missing_id=first_missing_id,
            last_missing_id=last_missing_id,
            count=count,
            cause=cause,
            detail=detail[:500],
            epoch=epoch,
            sequence=sequence,
            venue_sequence=venue_sequence,
            connection_id=connection_id,
            collector_id=self._collector_id,
            previous_event_id=previous_event_id,
        )
        event.receive_time.FromNanoseconds(now)
        if begin:
            event.begin_time.FromNanoseconds(begin)
        if end:
            event.end_time.FromNanoseconds(end)
        name = pb.IntegrityKind.Name(kind).removeprefix("INTEGRITY_KIND_").lower()
        self._events.labels(exchange, name).inc()
        self._publish(
            f"market.integrity.{exchange}.{symbol or '_'}", event.SerializeToString(), event_id
        )
        return event_id
