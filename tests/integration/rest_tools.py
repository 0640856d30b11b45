"""A whole mesh in one process: simulated venue, broker, collector, and what serves it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from services.gateway.service import GatewayService
from services.gateway.settings import (
    GatewaySettings,
    HealthCheckSettings,
    ListenerSettings,
    UpstreamSettings,
)
from services.marketdata.service import MarketDataService
from services.marketdata.settings import MarketDataSettings
from services.shared.settings import MeshSettings, NatsSettings, ServiceSettings
from services.storage.service import StorageService
from services.storage.settings import StorageSettings
from tests.integration.collector_fixtures import Bench, bench
from tests.integration.gateway_mesh import Answer
from tests.integration.nats_tools import until

PACKAGES = {
    "collector": "marketprism.collector.v1",
    "marketdata": "marketprism.market.v1",
    "storage": "marketprism.history.v1",
}


@dataclass
class RestMesh:
    """What runs, and how a client of REST speaks to it."""

    bench: Bench
    marketdata: MarketDataService
    gateway: GatewayService
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.ports['all']}"

    async def ask(
        self, path: str, *, method: str = "GET", json: object = None, **headers: str
    ) -> Answer:
        """Send one request; the path goes out as it is written."""
        url = aiohttp.client.URL(self.url + path, encoded=True)
        async with self.session.request(method, url, json=json, headers=headers) as answer:
            named = {key.lower(): value for key, value in answer.headers.items()}
            return Answer(answer.status, named, await answer.text())


async def eventually(
    condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 20.0
) -> None:
    """Ask again and again until it is so, with a deadline."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"within {seconds:g} s: expected that {what}"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def rest_mesh(directory: Path, *, of: str = "deribit") -> AsyncIterator[RestMesh]:
    """Run it, and give it when every book is in step and served through Envoy."""
    async with contextlib.AsyncExitStack() as stack:
        collected = await stack.enter_async_context(bench(directory, of=of, everything=True))
        names = ("gateway", "marketdata", "storage")
        mesh = MeshSettings(
            data_dir=directory / "var",
            nats=NatsSettings(url=collected.nats_url),
            services={name: ServiceSettings() for name in names},
            shutdown_grace_seconds=1,
        )
        service = MarketDataService(mesh, MarketDataSettings())
        await stack.enter_async_context(service.running())
        storage = StorageService(mesh, StorageSettings())
        await stack.enter_async_context(storage.running())
        upstreams = {
            each.name: UpstreamSettings(
                packages=(PACKAGES[each.name],),
                grpc_port=each.grpc_port,
                http_port=each.http_port,
            )
            for each in (collected.service, service, storage)
        }
        gateway = GatewayService(
            mesh,
            GatewaySettings(
                listeners={"all": ListenerSettings(port=0)},
                upstreams=upstreams,
                admin_port=0,
                concurrency=1,
                # Everything is in one process here, and it may have no time to answer at once.
                health_checks=HealthCheckSettings(interval=1, timeout=10, unhealthy_threshold=5),
            ),
        )
        await stack.enter_async_context(gateway.running())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        running = RestMesh(collected, service, gateway, session)

        async def served() -> bool:
            answer = await running.ask("/api/v1/orderbook/health")
            return answer.status == 200 and answer.json()["data"]["exchanges"] != []

        await eventually(served, "books are served over REST")

        async def stored() -> bool:
            answer = await running.ask("/api/v1/history/trades/deribit/BTC-USD-PERP?page_size=1")
            return answer.status == 200 and answer.json()["data"]["trades"] != []

        await eventually(stored, "history is served over REST")
        await until(lambda: service.health()[0] == 200, "marketdata is ready")
        yield running
