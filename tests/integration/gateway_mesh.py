"""A gateway with the real Envoy in front of test services, and how the tests speak to it."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc

from services.gateway.service import GatewayService
from services.gateway.settings import (
    GatewaySettings,
    HealthCheckSettings,
    ListenerSettings,
    RequestLimitSettings,
    TimeoutSettings,
    UpstreamSettings,
)
from services.shared.service import BaseService
from services.shared.settings import MeshSettings, ServiceSettings
from tests.integration.gateway_upstream import Collector, History, MarketData

PACKAGES = {
    "collector": "marketprism.collector.v1",
    "marketdata": "marketprism.market.v1",
    "storage": "marketprism.history.v1",
    "broker": "marketprism.broker.v1",
}
BODY_LIMIT = 64 * 1024


@dataclass(frozen=True)
class Answer:
    """An answer of REST."""

    status: int
    headers: Mapping[str, str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, Any]:
        """The error of the envelope, which is checked to be whole."""
        body = self.json()
        assert body["success"] is False
        assert set(body) == {"success", "error", "timestamp", "request_id"}
        assert set(body["error"]) == {"code", "message", "details"}
        assert isinstance(body["error"]["details"], list)
        assert body["error"]["message"], "an error says what is wrong"
        assert self.headers["content-type"] == "application/json"
        error: dict[str, Any] = body["error"]
        return error


@dataclass
class Mesh:
    """What runs, and its addresses."""

    gateway: GatewayService
    services: dict[str, BaseService]
    session: aiohttp.ClientSession
    channel: grpc.aio.Channel
    settings: GatewaySettings
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def marketdata(self) -> MarketData:
        service = self.services["marketdata"]
        assert isinstance(service, MarketData)
        return service

    @property
    def collector(self) -> Collector:
        service = self.services["collector"]
        assert isinstance(service, Collector)
        return service

    def address(self, listener: str = "all") -> str:
        return f"127.0.0.1:{self.gateway.ports[listener]}"

    def url(self, path: str, listener: str = "all") -> str:
        return f"http://{self.address(listener)}{path}"

    async def rest(
        self, path: str, *, method: str = "GET", listener: str = "all", **options: Any
    ) -> Answer:
        url = aiohttp.client.URL(self.url(path, listener), encoded=True)
        async with self.session.request(method, url, **options) as answer:
            headers = {key.lower(): value for key, value in answer.headers.items()}
            return Answer(answer.status, headers, await answer.text())

    async def until(self, condition: Callable[[], Any], seconds: float = 10.0) -> None:
        """Wait until a condition holds; it may be a coroutine function."""
        deadline = time.monotonic() + seconds
        while True:
            result = condition()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return
            assert time.monotonic() < deadline, f"not so within {seconds} s"
            await asyncio.sleep(0.02)

    async def serves(self, path: str = "/api/v1/orderbook/venue/ANY", status: int = 200) -> bool:
        try:
            return (await self.rest(path)).status == status
        except aiohttp.ClientError:
            return False


def base_settings(tmp_path: Path) -> MeshSettings:
    free = {name: ServiceSettings() for name in ("gateway", *PACKAGES)}
    return MeshSettings(data_dir=tmp_path / "var", services=free, shutdown_grace_seconds=1.0)


def gateway_settings(services: Mapping[str, BaseService], **more: Any) -> GatewaySettings:
    upstreams = {}
    for name, package in PACKAGES.items():
        service = services.get(name)
        ports = (
            {"grpc_port": service.grpc_port, "http_port": service.http_port}
            if service is not None
            else {}
        )
        upstreams[name] = UpstreamSettings(
            packages=(package,), enabled=service is not None, **ports
        )
    defaults: dict[str, Any] = {
        "listeners": {
            "all": ListenerSettings(port=0),
            "collector": ListenerSettings(port=0, service="collector"),
        },
        "upstreams": upstreams,
        "admin_port": 0,
        "concurrency": 1,
        "timeouts": TimeoutSettings(unary=1.0, connect=0.5),
        "limits": RequestLimitSettings(max_body_bytes=BODY_LIMIT),
        "health_checks": HealthCheckSettings(interval=0.2, unhealthy_interval=0.1),
    }
    return GatewaySettings(**{**defaults, **more})


@contextlib.asynccontextmanager
async def running_mesh(tmp_path: Path, **more: Any) -> AsyncIterator[Mesh]:
    """Run collector, marketdata and storage behind a gateway; broker is not deployed."""
    base = base_settings(tmp_path)
    async with contextlib.AsyncExitStack() as stack:
        services: dict[str, BaseService] = {}
        for kind in (Collector, MarketData, History):
            services[kind.name] = await stack.enter_async_context(kind(base).running())
        settings = gateway_settings(services, **more)
        gateway = GatewayService(base, settings)
        await stack.enter_async_context(gateway.running())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{gateway.ports['all']}")
        )
        mesh = Mesh(gateway, services, session, channel, settings)
        await mesh.until(mesh.serves)
        yield mesh
