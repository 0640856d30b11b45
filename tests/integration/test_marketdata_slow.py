"""A client that does not read harms nobody but itself."""

from pathlib import Path

import psutil
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import (
    market_event_pb2,
    order_book_pb2,
)

from services.broker.server import NatsServer
from services.marketdata.settings import LogBounds
from tests.integration.marketdata_tools import (
    KEY,
    SMALL_WINDOW,
    Stalled,
    Venue,
    client,
    marketdata,
    ready,
    sequence_of,
    subscribed,
)
from tests.integration.nats_tools import until
from tests.unit.marketdata.truth import ClientBook, Collected

S = order_book_pb2


async def test_a_stalled_client_holds_no_memory_delays_nobody_and_gets_a_fresh_snapshot(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected()
    await venue.begin(book)
    log = LogBounds(max_events=500, max_bytes=1024 * 1024)
    async with (
        marketdata(nats, tmp_path, order_book_log=log) as service,
        client(service) as stub,
        client(service, **SMALL_WINDOW) as stalled_stub,
    ):
        await ready(service)
        request = pb.StreamOrderBookRequest(**KEY)
        stalled = Stalled(stalled_stub.StreamOrderBook(request))
        await stalled.read(lambda: len(stalled.events) >= 3)
        async with subscribed(stub) as subscriber:
            await subscriber.at(book)
            process_ = psutil.Process()
            used: list[int] = []
            for _ in range(6):
                for _ in range(25):
                    # Small steps, so that the one who reads is never behind the small log.
                    await venue.update_wide(book, 40)
                    await until(
                        lambda: subscriber.book.sequence == book.sequence, "the reader keeps up"
                    )
                used.append(process_.memory_info().rss)
            await subscriber.at(book)
            assert subscriber.book.snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED]
            sent = sum(used[-1:]) - used[0]
            assert sent < 12 * 1024 * 1024, f"memory grew by {sent} bytes while a client stalled"
            kept = ClientBook()
            await stalled.read(
                lambda: market_event_pb2.STREAM_STATE_LAGGING in stalled.stream_states()
            )
            await venue.update(book, 1)
            await stalled.read(lambda: sequence_of(stalled.events[-1]) == book.sequence)
            lagging = next(
                n
                for n, event in enumerate(stalled.events)
                if event.stream_status.state == market_event_pb2.STREAM_STATE_LAGGING
            )
            assert stalled.events[lagging].stream_status.dropped_events > 1000
            snapshot = stalled.events[lagging + 1].order_book_snapshot
            assert snapshot.reason == S.SNAPSHOT_REASON_CONFLATED
            kept.take(stalled.events[lagging:])
            assert kept.best() == book.best()
            assert service.market.tally.dropped > 1000
        stalled.call.cancel()
