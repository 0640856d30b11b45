"""The gateway: Envoy in front of all services, and what it answers in their name."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc
from aiohttp import web

from services.gateway.admin import UpstreamState
from services.gateway.contract import Contract, load_contract
from services.gateway.documentation import documentation_routes, served_document
from services.gateway.endpoints import EndpointFiles
from services.gateway.envoy import EnvoyProcess
from services.gateway.infrastructure import MeshHealth, add_mesh_reflection, make_pool
from services.gateway.plan import EnvoyPlan, Ports, make_plan
from services.gateway.render import render_envoy, render_log_limit
from services.gateway.settings import GatewaySettings
from services.shared.health import DependencyStatus
from services.shared.loading import load_settings
from services.shared.ports import free_port
from services.shared.service import BaseService
from services.shared.settings import MeshSettings, ServiceSettings

__all__ = ["GatewayService", "Rendered", "render_gateway"]

_WATCH_SECONDS = 1.0
# Before its end Envoy must have time to die, within the ten seconds that a stop may take.
_LONGEST_DRAIN_SECONDS = 5.0


class Rendered:
    """A configuration of Envoy that is written to disk, and what it was made from."""

    def __init__(
        self, settings: GatewaySettings, mesh: MeshSettings, contract: Contract, directory: Path
    ) -> None:
        """Work the configuration out and write it below `directory`.

        Port 0 of a listener or the admin interface becomes a free one. Raises `ConfigError` and
        `StartupError`.
        """
        own = mesh.service("gateway")
        self.settings = settings
        self.ports = Ports(
            listeners={name: _real(item.port) for name, item in settings.listeners.items()},
            admin=_real(settings.admin_port),
            gateway_grpc=_real(own.grpc_port),
            gateway_http=_real(own.http_port),
        )
        self.plan: EnvoyPlan = make_plan(settings, mesh, contract, self.ports, directory)
        self.text = render_envoy(self.plan, settings)
        directory.mkdir(parents=True, exist_ok=True)
        self.plan.log_limit_file.write_text(render_log_limit(settings), encoding="utf-8")
        self.endpoints = EndpointFiles(self.plan.clusters)
        self.file = directory / "envoy.yaml"
        self.file.write_text(self.text, encoding="utf-8")


def render_gateway(mesh: MeshSettings, settings: GatewaySettings, directory: Path) -> Rendered:
    """Write Envoy's configuration below `directory`; raises `ConfigError` and `StartupError`."""
    return Rendered(settings, mesh, load_contract(settings.descriptor_set), directory)


class GatewayService(BaseService):
    """Envoy, supervised, with reflection, health and `/health` of the mesh behind it."""

    name = "gateway"

    def __init__(self, mesh: MeshSettings, settings: GatewaySettings, **options: Any) -> None:
        super().__init__(_with_real_ports(mesh), **options)
        self.settings = settings
        self.contract = load_contract(settings.descriptor_set)
        self.rendered: Rendered | None = None
        """The configuration that Envoy runs with; there from the start."""
        self.envoy: EnvoyProcess | None = None
        """Envoy itself; there from the start."""
        self._upstreams: Mapping[str, UpstreamState] = {}
        self._owners = {
            service.name: name
            for name, upstream in settings.upstreams.items()
            if upstream.enabled
            for service in self.contract.of_packages(upstream.packages)
        }
        self._health = MeshHealth(self._owners, lambda name: self._is_up(self._owners[name]))

    @classmethod
    def from_config(cls, mesh: MeshSettings, config_dir: Path | None = None) -> Self:
        """Make the gateway of `config/gateway.yaml`; raises `ConfigError`."""
        return cls(mesh, load_settings(GatewaySettings, "gateway", config_dir=config_dir))

    @property
    def ports(self) -> Mapping[str, int]:
        """Real ports of Envoy's listeners by name; there from the start."""
        return self._rendered.ports.listeners

    @property
    def endpoints(self) -> EndpointFiles:
        """Where upstreams are; setting it moves them without a restart."""
        return self._rendered.endpoints

    async def setup(self, stack: contextlib.AsyncExitStack) -> None:
        """Write Envoy's configuration, start Envoy, and begin to watch it."""
        directory = self.mesh.data_dir / "gateway"
        self.rendered = Rendered(self.settings, self.mesh, self.contract, directory)
        plan = self.rendered.plan
        envoy = EnvoyProcess(
            self.settings,
            config_file=self.rendered.file,
            host=plan.host,
            listener_ports={listener.name: listener.port for listener in plan.listeners},
            admin_port=plan.admin_port,
            log_format=self.mesh.log.format,
            metrics=self.metrics,
        )
        await envoy.start()
        self.envoy = envoy
        stack.push_async_callback(envoy.stop)
        draining = asyncio.create_task(self._drain_at_stop(envoy), name="gateway: drain")
        stack.push_async_callback(_finish, draining, self.stopping)
        await self._look(envoy)
        self.spawn(self._watch(envoy), "watch upstreams")
        self.log.info(
            "envoy listens",
            host=plan.host,
            admin_port=plan.admin_port,
            **{listener.name: listener.port for listener in plan.listeners},
        )

    def register(self, server: grpc.aio.Server) -> None:
        """Add nothing: what the gateway serves itself is reflection and health."""

    def http_routes(self) -> Sequence[web.RouteDef]:
        """Serve the OpenAPI document of what is deployed, and the page to read it."""
        deployed = [
            package
            for upstream in self.settings.upstreams.values()
            if upstream.enabled
            for package in upstream.packages
        ]
        return documentation_routes(served_document(self.settings.openapi, deployed))

    def dependencies(self) -> Mapping[str, DependencyStatus]:
        """Envoy, without which nothing works, and every upstream, without which a part does."""
        found: dict[str, DependencyStatus] = {}
        if self.envoy is not None:
            found["envoy"] = self.envoy.child.status()
        for name, upstream in self.settings.upstreams.items():
            if upstream.enabled:
                found[name] = self._upstream_status(name)
        return found

    def _upstream_status(self, name: str) -> DependencyStatus:
        state = self._upstreams.get(name)
        if state is None:
            return DependencyStatus.degraded("Envoy has not told its state yet")
        facts = {"endpoints": state.endpoints, "healthy_endpoints": state.healthy}
        if state.healthy == 0:
            return DependencyStatus.degraded(
                "no endpoint of it answers; its paths answer 503 until one does", **facts
            )
        if state.healthy < state.endpoints:
            return DependencyStatus.degraded("some of its endpoints do not answer", **facts)
        return DependencyStatus.healthy("", **facts)

    def _is_up(self, name: str) -> bool:
        state = self._upstreams.get(name)
        return state is not None and state.healthy > 0

    def _add_reflection(self, server: grpc.aio.Server) -> None:
        add_mesh_reflection(server, make_pool(self.contract.files), self._owners)

    async def _watch(self, envoy: EnvoyProcess) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            await self._look(envoy)

    async def _look(self, envoy: EnvoyProcess) -> None:
        try:
            self._upstreams = await envoy.admin.upstreams()
        except OSError:
            # While Envoy is away nothing is reached through it.
            self._upstreams = {}

    async def _drain_at_stop(self, envoy: EnvoyProcess) -> None:
        await self.stopping.wait()
        await envoy.drain(min(self.mesh.shutdown_grace_seconds, _LONGEST_DRAIN_SECONDS))

    @property
    def _rendered(self) -> Rendered:
        if self.rendered is None:
            raise RuntimeError("the gateway has no configuration before its start")
        return self.rendered


async def _finish(task: asyncio.Task[None], stopping: asyncio.Event) -> None:
    """Await the drain of a stop; at a failed start there is nothing to drain."""
    if not stopping.is_set():
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _real(port: int) -> int:
    return port or free_port()


def _with_real_ports(mesh: MeshSettings) -> MeshSettings:
    """Settle the gateway's own ports now: Envoy is told them before its servers are opened."""
    own = mesh.service("gateway")
    real = ServiceSettings(grpc_port=_real(own.grpc_port), http_port=_real(own.http_port))
    return mesh.model_copy(update={"services": {**mesh.services, "gateway": real}})
