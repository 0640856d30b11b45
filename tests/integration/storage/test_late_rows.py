"""An answer that was kept is not given again once rows of its range have come late."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.history.v1 import history_service_pb2_grpc as pb_grpc
from marketprism.market.v1 import events_pb2

from services.broker.settings import load_broker_settings
from services.broker.streams import ensure_streams
from services.shared.publisher import Publisher
from services.shared.settings import MeshSettings, RedisSettings
from services.storage.ingest_settings import IngestSettings
from services.storage.service import StorageService
from services.storage.settings import StorageSettings
from tests.integration.nats_tools import connected, nats_server
from tests.integration.redis_tools import redis_server

DAY = 86_400 * 10**9
FREE = {"grpc_port": 0, "http_port": 0}


def trade(number: int, moment: int, *, backfilled: bool = False) -> events_pb2.Trade:
    made = events_pb2.Trade(exchange="simulated", symbol="A-USDT", price="1", quantity="1")
    made.trade_id = str(number)
    made.backfilled = backfilled
    made.exchange_time.FromNanoseconds(moment)
    made.receive_time.FromNanoseconds(time.time_ns())
    return made


@pytest.mark.parametrize("kept_in", ["memory", "redis"])
async def test_a_trade_fetched_afterwards_is_in_the_next_answer(
    tmp_path: Path, kept_in: str
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        nats = await stack.enter_async_context(
            nats_server(tmp_path / "nats", max_storage=16 * 2**30)
        )
        async with connected(nats.url) as connection:
            await ensure_streams(connection, load_broker_settings())
        redis = RedisSettings()
        if kept_in == "redis":
            server = await stack.enter_async_context(redis_server(tmp_path))
            redis = RedisSettings(url=server.url)
        mesh = MeshSettings.model_validate({
            "data_dir": tmp_path / "var",
            "nats": {"url": nats.url},
            "services": {"storage": FREE},
            "redis": redis.model_dump(),
        })  # fmt: skip
        settings = StorageSettings(ingest=IngestSettings(batch_seconds=0.05))
        service = await stack.enter_async_context(StorageService(mesh, settings).running())
        publisher = Publisher(nats.url)
        await publisher.start()
        stack.push_async_callback(publisher.stop)
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}")
        )
        stub = pb_grpc.HistoryServiceStub(channel)
        begin = time.time_ns() - 3 * DAY
        request = pb.ListTradesRequest(exchange="simulated", symbol="A-USDT")
        request.start_time.FromNanoseconds(begin)
        request.end_time.FromNanoseconds(begin + DAY)

        async def publish(number: int, moment: int, **more: Any) -> None:
            data = trade(number, moment, **more).SerializeToString()
            assert publisher.publish("market.trade.simulated.A-USDT", data, str(number))
            assert await publisher.drain(30)

        async def answers(*ids: str) -> None:
            deadline = time.monotonic() + 20
            found: list[str] = []
            while found != list(ids):
                assert time.monotonic() < deadline, f"expected {ids}, got {found}"
                with contextlib.suppress(grpc.aio.AioRpcError):
                    found = [each.trade_id for each in (await stub.ListTrades(request)).trades]
                await asyncio.sleep(0.02)

        def hits() -> float:
            labels = {"cache": "history", "store": kept_in}
            value = service.metrics.registry.get_sample_value(
                "marketprism_cache_hits_total", labels
            )
            return value or 0.0

        await publish(1, begin + 1)
        await answers("1")
        deadline = time.monotonic() + 20
        before = hits()
        while hits() < before + 20:
            assert time.monotonic() < deadline, "expected that the answer is kept"
            await answers("1")
        # In one batch with a trade of the present, as a collector publishes it.
        await publish(2, time.time_ns())
        await publish(3, begin + 2, backfilled=True)
        await answers("1", "3")
