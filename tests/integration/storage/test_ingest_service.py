"""The storage service with the broker's own streams: every kind of event gets into its table."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message
from marketprism.history.v1 import history_service_pb2 as api
from marketprism.history.v1 import history_service_pb2_grpc

from services.broker.server import NatsServer
from services.broker.settings import load_broker_settings
from services.broker.streams import ensure_streams
from services.shared.health import Health
from services.shared.publisher import Publisher
from services.shared.settings import MeshSettings
from services.storage.ingest_settings import IngestSettings
from services.storage.service import StorageService
from services.storage.settings import StorageSettings
from services.storage.tables import TABLES, Table
from tests.integration.nats_tools import connected, nats_server, until
from tests.integration.storage.ingest_tools import stored, until_stored

FREE = {"grpc_port": 0, "http_port": 0}


def event_of(table: Table, number: int) -> Message:
    """Give an event with the least that one of its kind has."""
    event = table.message()
    told = event.DESCRIPTOR.fields_by_name
    event.exchange = "simulated"  # type: ignore[attr-defined]
    event.symbol = "A-USDT"  # type: ignore[attr-defined]
    for name in ("price", "quantity"):
        if name in told:
            setattr(event, name, "1.5")
    for name in {table.time.field, table.time.fallback, "receive_time"} & set(told):
        getattr(event, name).FromNanoseconds(1_795_529_124_000_000_123 + number)
    return event


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats", max_storage=16 * 2**30) as server:
        async with connected(server.url) as connection:
            await ensure_streams(connection, load_broker_settings())
        yield server


async def test_every_kind_of_event_is_stored_and_the_service_tells_how_far(
    nats: NatsServer, tmp_path: Path
) -> None:
    publisher = Publisher(nats.url)
    await publisher.start()
    for number in range(3):
        for name, table in TABLES.items():
            # The stream of instruments keeps the newest of each subject.
            symbol = f"{number}-USDT" if name == "instrument" else "A-USDT"
            event = event_of(table, number)
            event.symbol = symbol  # type: ignore[attr-defined]
            subject = f"market.{name}.simulated.{symbol}"
            assert publisher.publish(subject, event.SerializeToString(), f"{name}/{number}")
    assert await publisher.drain(20)
    mesh = MeshSettings.model_validate(
        {"data_dir": tmp_path, "services": {"storage": FREE}, "nats": {"url": nats.url}}
    )
    settings = StorageSettings(ingest=IngestSettings(batch_seconds=0.05))
    async with StorageService(mesh, settings).running() as service:
        for name in TABLES:
            await until_stored(service.engine, 3, name)
            assert len(set(await stored(service.engine, name))) == 3
        ingest = service.ingest
        assert ingest is not None
        await until(
            lambda: all(each.stored_sequence and not each.pending for each in ingest.streams()),
            "all is acknowledged",
        )
        async with grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
            stub = history_service_pb2_grpc.HistoryServiceStub(channel)
            answer = await stub.GetIngestStatus(api.GetIngestStatusRequest())
        assert answer.writable
        rows = {each.stream: each.rows for each in answer.streams}
        assert sum(rows.values()) == 3 * len(TABLES)
        assert rows["MARKET_ORDER_BOOK"] == 9
        health = service.dependencies()
        assert {health["broker"].status, health["ingest"].status} == {Health.HEALTHY}
        await publisher.stop()
        nats.child.kill()
        await until(
            lambda: service.dependencies()["broker"].status is Health.DEGRADED,
            "health says that the broker is away",
        )
        await until(
            lambda: service.dependencies()["broker"].status is Health.HEALTHY, "it reads again"
        )
