"""Faults that must cost nothing: a disk without room, a server that is away, wrong clocks."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.history.v1 import history_service_pb2 as api
from marketprism.history.v1.history_service_pb2_grpc import HistoryServiceStub

from services.broker.server import NatsServer
from services.shared.health import Health
from services.shared.ports import free_port
from services.shared.publisher import Publisher
from services.shared.settings import MeshSettings
from services.storage.errors import StoreUnavailable
from services.storage.ingest_settings import IngestSettings
from services.storage.service import StorageService
from services.storage.settings import EngineSettings, StorageSettings
from services.storage.tables import TABLES
from tests.integration.nats_tools import call, make_stream, nats_server, read_all, until
from tests.integration.storage.ingest_tools import (
    TRADE,
    each_once,
    ingesting,
    make_streams,
    publish,
    stored,
    trade,
    until_stored,
)
from tests.integration.storage.store_tools import open_store
from tests.integration.storage.test_ingest_server import Front

SECRET = "not-for-logs"


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats", max_storage=16 * 2**30) as server:
        await make_streams(server.url)
        for stream in {table.stream for table in TABLES.values()} - {
            "MARKET_TRADE",
            "MARKET_BEST_BID_OFFER",
        }:
            kinds = [t.subject for t in TABLES.values() if t.stream == stream]
            await make_stream(server.url, stream, *kinds)
        yield server


@pytest.fixture
async def publisher(nats: NatsServer) -> AsyncIterator[Publisher]:
    publisher = Publisher(nats.url)
    await publisher.start()
    yield publisher
    await publisher.stop()


async def test_a_server_that_comes_after_the_service_and_goes_meanwhile_costs_nothing(
    nats: NatsServer, publisher: Publisher, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    front = Front(folder)
    mesh = MeshSettings.model_validate(
        {
            "data_dir": tmp_path,
            "services": {"storage": {"grpc_port": 0, "http_port": 0}},
            "nats": {"url": nats.url},
            "clickhouse": {"url": front.url.replace("//", f"//someone:{SECRET}@")},
        }
    )
    settings = StorageSettings(
        engine=EngineSettings(readers=2),
        ingest=IngestSettings(batch_seconds=0.05, retry_seconds=0.05, retry_limit_seconds=0.2),
    )
    told = []
    try:
        async with StorageService(mesh, settings).running() as service:

            def detail(name: str) -> str:
                found = service.dependencies()[name]
                told.append(found.detail)
                return found.detail if found.status is not Health.HEALTHY else ""

            await publish(publisher, range(300))
            await until(lambda: "refused" in detail("database"), "it says that it is away")
            with pytest.raises(StoreUnavailable):
                await asyncio.wait_for(service.engine.query("SELECT 1"), 5)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
                stub = HistoryServiceStub(channel)
                request = api.ListTradesRequest(exchange="simulated", symbol="A-USDT")
                with pytest.raises(grpc.RpcError) as refused:
                    await stub.ListTrades(request, timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            said = str(refused.value.details())
            assert "retry later" in said
            assert str(front.port) not in said
            assert "SELECT" not in said
            await front.start()
            await asyncio.wait_for(service.store_ready.wait(), 30)
            await until_stored(service.engine, 300)
            await front.kill()
            await publish(publisher, range(300, 600))
            await until(lambda: "wait in the broker" in detail("ingest"), "it says that it waits")
            await front.start()
            await until_stored(service.engine, 600)
            await until(
                lambda: not detail("ingest") and not detail("database"), "all is well again"
            )
            each_once(await stored(service.engine), 600)
    finally:
        await front.kill()
    written = capfd.readouterr()
    assert SECRET not in "".join((*told, written.out, written.err))


POISON_TIMES = {
    "after 2262": Timestamp(seconds=9_300_000_000),
    "year 9999": Timestamp(seconds=253_402_300_799),
    "year 1": Timestamp(seconds=-62_135_596_800),
    "before 1970": Timestamp(seconds=-1),
    "zero": Timestamp(),
    "no such nanos": Timestamp(seconds=1_795_529_124, nanos=2_000_000_000),
    "nanos below zero": Timestamp(seconds=1_795_529_124, nanos=-5),
    "no such second": Timestamp(seconds=2**62),
    "no second before": Timestamp(seconds=-(2**63)),
    "two years ahead": Timestamp(seconds=1_858_601_124),
}


async def test_times_of_a_broken_clock_hold_up_nobody_also_when_they_come_again(
    nats: NatsServer, publisher: Publisher, tmp_path: Path
) -> None:
    async with open_store(tmp_path / "store") as engine:
        place = 0
        for name, time in POISON_TIMES.items():
            for which in (("exchange_time",), ("receive_time",), ("exchange_time", "receive_time")):
                event = trade(5000 + place)
                for field in which:
                    getattr(event, field).CopyFrom(time)
                payload = event.SerializeToString()
                assert publisher.publish(TRADE.format("A-USDT"), payload, f"{name} {which}")
                await publish(publisher, [place])
                place += 1
        for _ in range(2):
            async with ingesting(nats.url, engine) as ingest:
                table = ingest.tables["trade"]
                await until(
                    lambda table=table: table.consumer.status.settled_sequence == 2 * place,  # type: ignore[misc]
                    "everything is settled",
                )
                assert ingest.dependencies()["ingest"].status is Health.HEALTHY
            await call(nats.url, "CONSUMER.RESET.MARKET_TRADE.storage-trade", {"seq": 1})
        each_once(await stored(engine), 2 * place)


async def _acknowledged(url: str) -> int:
    info = await call(url, "CONSUMER.INFO.MARKET_TRADE.storage-trade")
    return int(info["ack_floor"]["stream_seq"])


def _health(port: int) -> dict[str, Any]:
    url = f"http://127.0.0.1:{port}/health"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        text = error.read()
    body = json.loads(text)
    found: dict[str, Any] = body.get("data", body)
    return found


async def test_a_disk_that_takes_nothing_is_told_and_costs_nothing(
    nats: NatsServer, publisher: Publisher, tmp_path: Path
) -> None:
    """No file of the process may have a byte: what a full disk is, without a mount."""
    grpc_port, http_port = free_port(), free_port()
    ports = f"{{grpc_port: {grpc_port}, http_port: {http_port}}}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.storage",
        env={
            **os.environ,
            "NATS_URL": nats.url,
            "MARKETPRISM__SERVICES__DATA_DIR": str(tmp_path),
            "MARKETPRISM__SERVICES__SERVICES__STORAGE": ports,
        },
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:

        async def until_told(*statuses: str) -> str:
            async with asyncio.timeout(30):
                while True:
                    with contextlib.suppress(OSError):
                        health = await asyncio.to_thread(_health, http_port)
                        ingest = health["dependencies"].get("ingest", {})
                        if ingest.get("status") in statuses:
                            return str(ingest.get("detail", ""))
                    await asyncio.sleep(0.05)

        await until_told("healthy")
        await publish(publisher, range(200))
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, hard))
        await publish(publisher, range(200, 1200))
        detail = await until_told("degraded")
        assert "wait in the broker" in detail
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        await until_told("healthy")
        async with asyncio.timeout(30):
            while await _acknowledged(nats.url) < 1200:  # noqa: ASYNC110 - the broker is asked
                await asyncio.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    async with open_store(tmp_path) as engine:
        each_once(await stored(engine), 1200)
    assert not await read_all(nats.url, "DEAD_LETTER")
