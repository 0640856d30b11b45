"""What one collector tells of itself: over gRPC, and in its heartbeat."""

import time
from collections import Counter

from marketprism.collector.v1 import collector_service_pb2 as pb

from services.collector.connection import VenueConnectionTask
from services.collector.venue import Venue
from services.shared.publisher import Publisher

__all__ = ["status_message"]


def status_message(
    collector_id: str, start_time: int, venues: list[Venue], publisher: Publisher
) -> pb.GetStatusResponse:
    """Build the whole state of this collector."""
    status = publisher.status
    message = pb.GetStatusResponse(
        collector_id=collector_id,
        connections=[_connection(venue, each) for venue in venues for each in venue.connections],
        rest_budgets=[_budget(venue) for venue in venues],
        publisher=pb.PublisherStatus(
            connected=status.connected,
            acknowledged=status.acknowledged,
            in_flight=status.in_flight,
            buffered=status.buffered,
            buffered_bytes=status.buffered_bytes,
            duplicates=status.duplicates,
            dropped=status.dropped + status.rejected,
            reconnects=status.reconnects,
        ),
    )
    message.start_time.FromNanoseconds(start_time)
    states = Counter(feed.book.state for venue in venues for feed in venue.feeds.values())
    for state, count in sorted(states.items()):
        message.book_states.add(state=state, count=count)
    return message


def _connection(venue: Venue, connection: VenueConnectionTask) -> pb.VenueConnection:
    message = pb.VenueConnection(
        connection_id=connection.connection_id,
        exchange=venue.exchange,
        url=connection.url,
        state=connection.state,
        subscriptions=connection.subscriptions,
        frames=connection.frames,
        malformed_frames=connection.malformed,
        reconnects=connection.reconnects,
        last_error=connection.last_error,
    )
    message.state_time.FromNanoseconds(connection.state_time)
    if connection.last_frame_time:
        message.last_frame_time.FromNanoseconds(connection.last_frame_time)
    return message


def _budget(venue: Venue) -> pb.RestBudget:
    budget = venue.rest.budget
    message = pb.RestBudget(
        exchange=venue.exchange,
        limit=budget.limit,
        used=budget.used,
        requests=budget.requests,
        rate_limited=budget.rate_limited,
    )
    if budget.blocked_until > time.time():
        message.blocked_until.FromNanoseconds(int(budget.blocked_until * 1e9))
    return message
