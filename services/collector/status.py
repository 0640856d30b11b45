"""What one collector tells of itself: over gRPC, and in its heartbeat."""

from collections import Counter

from marketprism.collector.v1 import collector_service_pb2 as pb
from marketprism.market.v1 import common_pb2

from services.collector.connection import VenueConnectionTask
from services.collector.feed import InstrumentFeed
from services.collector.sharing import Sharing
from services.collector.venue import Venue
from services.shared.publisher import Publisher

__all__ = ["instrument_state", "status_message"]


def status_message(
    collector_id: str,
    start_time: int,
    venues: list[Venue],
    publisher: Publisher,
    sharing: Sharing | None = None,
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
    if sharing is not None:
        message.leases.CopyFrom(sharing.message())
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
        refused=connection.refused,
        frames=connection.frames,
        frames_per_second=round(connection.frames_per_second, 1),
        malformed_frames=connection.malformed,
        reconnects=connection.reconnects,
        last_error=connection.last_error,
    )
    for field, nanoseconds in (
        (message.state_time, connection.state_time),
        (message.last_frame_time, connection.last_frame_time),
        (message.open_time, connection.open_time),
        (message.rollover_time, venue.pool.rollover_time(connection)),
    ):
        if nanoseconds:
            field.FromNanoseconds(nanoseconds)
    return message


def _budget(venue: Venue) -> pb.RestBudget:
    budget = venue.rest.budget
    message = pb.RestBudget(
        exchange=venue.exchange,
        pool=budget.name,
        limit=budget.limit,
        used=budget.used,
        waiting=budget.waiting,
        requests=budget.requests,
        rate_limited=budget.rate_limited,
    )
    message.window.FromNanoseconds(int(budget.window_seconds * 1e9))
    if blocked := budget.blocked_until:
        message.blocked_until.FromNanoseconds(int(blocked * 1e9))
    return message


def instrument_state(venue: Venue, feed: InstrumentFeed, now: int) -> pb.InstrumentState:
    """Build what the collector knows of one instrument."""
    book = feed.book
    lag = 0
    if book.exchange_time and book.receive_time:
        lag = (book.receive_time - book.exchange_time) // 1_000_000
    failed = book.checksums_bad + feed.top_mismatches + feed.probe_mismatches
    message = pb.InstrumentState(
        exchange=feed.spec.exchange,
        symbol=feed.spec.symbol,
        native_symbol=feed.spec.native_symbol,
        book=book.status(now),
        frames=book.frames,
        frames_per_second=round(venue.rates.get(feed.spec.native_symbol, 0.0), 1),
        applied=book.applied,
        duplicates=book.duplicates + feed.lanes.duplicates,
        gaps=book.gaps,
        resyncs=book.resyncs,
        trades=feed.trades.received,
        lag_ms=lag,
        bid_levels=book.book.bid_count,
        ask_levels=book.book.ask_count,
        connection_id=feed.connection_id,
        checks_passed=book.checksums_ok + feed.top_checks + feed.probes - feed.top_mismatches
        - feed.probe_mismatches,
        checks_failed=failed,
    )  # fmt: skip
    kinds: dict[int, tuple[int, int]] = {
        common_pb2.EVENT_KIND_ORDER_BOOK: (book.applied, book.receive_time),
        common_pb2.EVENT_KIND_TRADE: (feed.trades.received, feed.last_trade_time),
        common_pb2.EVENT_KIND_BEST_BID_OFFER: (feed.tops, feed.last_top_time),
    }
    for told in venue.tape.states(feed.spec.symbol):
        kinds[told.kind] = (told.events, told.last_receive_time)
    for kind in sorted(kinds.keys() | feed.refusals.keys()):
        events, last = kinds.get(kind, (0, 0))
        if events or kind in feed.refusals:
            state = message.kinds.add(kind=kind, events=events, refusal=feed.refusals.get(kind, ""))
            if last:
                state.last_receive_time.FromNanoseconds(last)
    return message
