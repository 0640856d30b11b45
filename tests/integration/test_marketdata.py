"""marketdata against a real nats-server and real gRPC clients: what subscribers of a book get."""

import asyncio
import os
import sys
from pathlib import Path

from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import (
    market_event_pb2,
    order_book_pb2,
)

from services.broker.server import NatsServer
from tests.integration.marketdata_tools import (
    KEY,
    Subscriber,
    Venue,
    client,
    marketdata,
    ready,
    refused,
    subscribed,
)
from tests.integration.nats_tools import until
from tests.unit.marketdata.truth import Collected, levels_of

S = order_book_pb2


async def test_a_subscriber_gets_a_snapshot_then_every_update(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected()
    await venue.begin(book)
    await venue.put("market.order_book_snapshot.strange", b"nobody's")
    await venue.update(book, 10)
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        async with subscribed(stub) as subscriber:
            await subscriber.at(book)
            kinds = subscriber.book.kinds
            assert kinds[:3] == ["stream_status", "order_book_snapshot", "order_book_status"]
            assert subscriber.book.stream_states[0].state == market_event_pb2.STREAM_STATE_OPEN
            assert subscriber.book.snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED]
            assert subscriber.book.state == S.ORDER_BOOK_STATE_SYNCED
            await venue.update(book, 200)
            await venue.put(book.subject("order_book_snapshot"), book.snapshot())
            await venue.update(book, 5)
            await subscriber.at(book)
            assert subscriber.book.snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED], (
                "expected no periodic snapshot for a subscriber in step"
            )
        answer = await stub.GetOrderBook(pb.GetOrderBookRequest(**KEY, depth=5))
        assert levels_of(answer.order_book) == book.best(5)
        assert answer.order_book.sequence == book.sequence
        assert answer.order_book.reason == S.SNAPSHOT_REASON_REQUESTED
        assert answer.status.state == S.ORDER_BOOK_STATE_SYNCED
        assert 0 <= answer.age_ms < 60_000


async def test_resume_continues_without_a_snapshot(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected()
    await venue.begin(book)
    await venue.update(book, 5)
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        async with subscribed(stub) as first:
            await first.at(book)
        kept = first.book
        await venue.update(book, 50)
        resume = {"epoch": kept.epoch, "sequence": kept.sequence}
        second = Subscriber(stub, resume=resume)
        second.book = kept
        await second.at(book)
        assert kept.snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED]
        assert kept.stream_states[-1].reason == "RESUMED"
        await second.stop()
        async with subscribed(stub, resume={"epoch": 5, "sequence": 1}) as third:
            await third.at(book)
            assert third.book.snapshots == [S.SNAPSHOT_REASON_RESUME_TOO_OLD]


async def test_a_book_out_of_step_is_told_before_its_snapshot_comes(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected()
    await venue.instrument(book)
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        error = await refused(stub.GetOrderBook(pb.GetOrderBookRequest(**KEY)))
        assert (error.reason, error.metadata["state"]) == (
            "ORDER_BOOK_NOT_READY",
            "ORDER_BOOK_STATE_SYNCING",
        )
        async with subscribed(stub) as subscriber:
            await subscriber.told(S.ORDER_BOOK_STATE_SYNCING, S.ORDER_BOOK_REASON_STARTUP)
            await venue.begin(book)
            await venue.update(book, 3)
            await subscriber.at(book)
            await venue.put(book.subject("order_book_status"), book.resyncing())
            await subscriber.told(S.ORDER_BOOK_STATE_RESYNCING, S.ORDER_BOOK_REASON_VENUE_GAP)
            answer = await stub.GetOrderBook(pb.GetOrderBookRequest(**KEY))
            assert levels_of(answer.order_book) == book.best(), "expected what was last right"
            assert answer.status.state == S.ORDER_BOOK_STATE_RESYNCING
            await venue.begin(book)
            await venue.update(book, 3)
            await subscriber.at(book)
            assert subscriber.book.state == S.ORDER_BOOK_STATE_SYNCED
            assert subscriber.book.snapshots[-1] == S.SNAPSHOT_REASON_EPOCH_START


async def test_heartbeats_come_when_nothing_else_does(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    await venue.begin(Collected())
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        async with subscribed(stub, heartbeat_interval={"nanos": 100_000_000}) as subscriber:
            states = subscriber.book.stream_states
            await until(lambda: len(states) >= 4, "three heartbeats came")
            assert {s.state for s in states[1:]} == {market_event_pb2.STREAM_STATE_HEARTBEAT}


async def test_a_stop_is_told_last(nats: NatsServer, venue: Venue, tmp_path: Path) -> None:
    book = Collected()
    await venue.begin(book)
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        async with subscribed(stub) as subscriber:
            await subscriber.at(book)
            await service.stop()
            await asyncio.wait({subscriber.task}, timeout=5)
            last = subscriber.book.stream_states[-1]
            assert (last.state, last.reason) == (
                market_event_pb2.STREAM_STATE_ENDED,
                "SERVER_STOPPING",
            )
            assert subscriber.error is not None
            assert subscriber.error.reason == "SERVER_STOPPING"


async def test_the_example_client_keeps_a_book(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    book = Collected()
    await venue.begin(book)
    example = Path(__file__).parents[2] / "examples" / "python" / "keep_book.py"
    async with marketdata(nats, tmp_path) as service:
        await ready(service)
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            str(example),
            *KEY.values(),
            f"--address=127.0.0.1:{service.grpc_port}",
            "--lines=3",
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(example.parents[2] / "gen" / "python")},
        )
        lines: list[str] = []
        assert child.stdout is not None
        while line := await child.stdout.readline():
            lines.append(line.decode())
            await asyncio.sleep(0.11)
            await venue.update(book, 1)
        assert await child.wait() == 0
        assert len(lines) == 3
        assert all(line.startswith("SYNCED") for line in lines)
        assert f"{book.epoch}/" in lines[-1]
        missing = await asyncio.create_subprocess_exec(
            sys.executable,
            str(example),
            "binance",
            "NO-SUCH",
            f"--address=127.0.0.1:{service.grpc_port}",
            stderr=asyncio.subprocess.PIPE,
        )
        _, error = await missing.communicate()
        assert missing.returncode == 1
        assert b"NOT_FOUND: binance has no instrument 'NO-SUCH'" in error
