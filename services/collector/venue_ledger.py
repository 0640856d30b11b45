"""What goes wrong with a venue as a whole, written to the gap ledger, and noted for replay."""

from typing import Any

import structlog
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2

from services.collector.connection import VenueConnectionTask
from services.collector.journal import Journal
from services.collector.ledger import Ledger
from services.collector.venues.base import Subscription

__all__ = ["VenueLedger"]

_MALFORMED_TOLD = 20  # malformed frames between two ticks that are told one by one


class VenueLedger:
    """The entries of one venue that are not about one book. Times are nanoseconds since 1970."""

    def __init__(self, exchange: str, ledger: Ledger, journal: Journal | None) -> None:
        self._exchange = exchange
        self._ledger = ledger
        self._journal = journal
        self._log = structlog.get_logger(exchange=exchange)
        self._disconnections: dict[str, tuple[str, int]] = {}
        self._told = 0
        self._untold = 0

    def note(self, what: str, now: int, **data: Any) -> None:
        """Write an input into the recording, when there is one."""
        if self._journal is not None:
            self._journal.note(what, now, **data)

    # Connections

    def opened(self, connection: VenueConnectionTask, now: int) -> None:
        """Tell that a connection is up again, when it was before."""
        self.note("open", now, connection=connection.connection_id)
        ended = self._disconnections.pop(connection.connection_id, None)
        if ended is not None:
            event, since = ended
            self._record(
                integrity.INTEGRITY_KIND_CONNECTED,
                integrity.INTEGRITY_CAUSE_UNSPECIFIED,
                "connected again",
                now,
                begin=since,
                end=now,
                connection_id=connection.connection_id,
                previous_event_id=event,
            )

    def closed(self, connection: VenueConnectionTask, detail: str, now: int) -> None:
        """Tell that a connection ended."""
        self.note(
            "closed",
            now,
            connection=connection.connection_id,
            detail=detail,
            cause=connection.last_cause,
            last_frame_time=connection.last_frame_time,
        )
        event = self._record(
            integrity.INTEGRITY_KIND_DISCONNECTED,
            connection.last_cause,
            detail,
            now,
            begin=connection.last_frame_time,
            connection_id=connection.connection_id,
        )
        self._disconnections[connection.connection_id] = (event, connection.last_frame_time)

    def rolled_over(
        self, old: VenueConnectionTask, new: VenueConnectionTask, reason: str, now: int
    ) -> None:
        """Tell that a connection was replaced while both were open."""
        self._disconnections.pop(old.connection_id, None)
        self._log.info(
            "connection was replaced",
            old=old.connection_id,
            new=new.connection_id,
            reason=reason,
        )
        self._record(
            integrity.INTEGRITY_KIND_ROLLED_OVER,
            integrity.INTEGRITY_CAUSE_CONNECTION_AGE,
            f"{old.connection_id} was replaced by {new.connection_id}: {reason}",
            now,
            begin=new.open_time,
            end=now,
            connection_id=new.connection_id,
        )

    # Subscriptions

    def refused(
        self, connection_id: str, subscription: Subscription, refusal: str, symbol: str, now: int
    ) -> None:
        """Tell that the venue refused a subscription."""
        self.note(
            "refused", now, connection=connection_id, subscription=subscription, refusal=refusal
        )
        for kind in subscription.kinds:
            self._record(
                integrity.INTEGRITY_KIND_SUBSCRIPTION_REFUSED,
                integrity.INTEGRITY_CAUSE_VENUE_REFUSED,
                f"{subscription.topic}: {refusal}; asked for again after a while",
                now,
                symbol=symbol,
                event_kind=kind,
                connection_id=connection_id,
            )

    def quiet(
        self, connection_id: str, subscription: Subscription, seconds: float, symbol: str, now: int
    ) -> None:
        """Tell that a subscription says nothing though it was acknowledged."""
        self.note(
            "quiet", now, connection=connection_id, subscription=subscription, seconds=seconds
        )
        for kind in subscription.kinds[:1]:
            self._record(
                integrity.INTEGRITY_KIND_SILENT,
                integrity.INTEGRITY_CAUSE_UNSPECIFIED,
                f"{subscription.topic} was acknowledged and has said nothing for {seconds:.1f} s; "
                "it is subscribed to anew",
                now,
                symbol=symbol,
                event_kind=kind,
                begin=now - int(seconds * 1e9),
                connection_id=connection_id,
            )

    # The rest

    def rate_limited(self, kind: "common_pb2.EventKind.ValueType", detail: str, now: int) -> None:
        """Tell that the venue refused a poll for its limits."""
        self.note("rate_limited", now, kind=kind, detail=detail)
        self._record(
            integrity.INTEGRITY_KIND_RATE_LIMITED,
            integrity.INTEGRITY_CAUSE_RATE_LIMIT,
            detail,
            now,
            event_kind=kind,
        )

    def lifetime(self, kind: "integrity.IntegrityKind.ValueType", now: int) -> None:
        """Tell that the collector started, or stopped."""
        self.note("lifetime", now, kind=kind)
        started = kind == integrity.INTEGRITY_KIND_COLLECTOR_STARTED
        self._record(
            kind,
            integrity.INTEGRITY_CAUSE_PROCESS,
            f"the collector {'started' if started else 'stopped'}",
            now,
        )

    def is_flooded(self) -> bool:
        """Count a malformed frame; tells whether so many came that it is told with the others.

        A venue that sends nothing else must not fill the ledger, nor the way to the broker.
        """
        if self._told >= _MALFORMED_TOLD:
            self._untold += 1
            return True
        self._told += 1
        return False

    def malformed(self, detail: str, count: int, now: int, connection_id: str = "") -> None:
        """Tell of frames whose instrument cannot be told."""
        self._record(
            integrity.INTEGRITY_KIND_MALFORMED_FRAME,
            integrity.INTEGRITY_CAUSE_UNDECODABLE,
            detail,
            now,
            count=count,
            connection_id=connection_id,
        )

    def turn(self, now: int) -> None:
        """Tell of the malformed frames that were not told one by one; call it at every tick."""
        if count := self._untold:
            self._log.warning("more malformed frames", count=count)
            self.malformed(f"{count} more frames could not be read", count, now)
        self._told = self._untold = 0

    def _record(
        self,
        kind: "integrity.IntegrityKind.ValueType",
        cause: "integrity.IntegrityCause.ValueType",
        detail: str,
        now: int,
        **more: Any,
    ) -> str:
        return self._ledger.record(kind, cause, detail, exchange=self._exchange, now=now, **more)
