"""`BrokerService`: nats-server, its streams, and the gRPC view of them."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import urlsplit

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from marketprism.broker.v1 import broker_service_pb2, broker_service_pb2_grpc

from services.broker.keeper import StreamKeeper
from services.broker.monitor import Monitor
from services.broker.rpc import BrokerServicer
from services.broker.server import NatsServer
from services.broker.settings import BrokerSettings, load_broker_settings
from services.shared.errors import MarketPrismError, StartupError
from services.shared.health import DependencyStatus
from services.shared.registration import Registrar
from services.shared.service import BaseService
from services.shared.settings import MeshSettings

__all__ = ["BrokerService"]


class BrokerService(BaseService):
    """Runs the mesh's nats-server and keeps its streams as `config/broker.yaml` says.

    When `nats.url` names another server than `nats.host` and `nats.port`, none is started and
    the streams are kept there.
    """

    name: ClassVar[str] = "broker"
    grpc_services: ClassVar[tuple[ServiceDescriptor, ...]] = (
        broker_service_pb2.DESCRIPTOR.services_by_name["BrokerService"],
    )

    def __init__(
        self,
        mesh: MeshSettings,
        settings: BrokerSettings,
        *,
        registrar: Registrar | None = None,
    ) -> None:
        super().__init__(mesh, registrar=registrar)
        self.settings = settings
        nats = mesh.nats
        self.server: NatsServer | None = None
        """The embedded server; None with an external one."""
        if nats.url == f"nats://{nats.host}:{nats.port}":
            self.server = NatsServer(
                mesh.data_dir / settings.server.store,
                settings.server,
                host=nats.host,
                port=nats.port,
                monitor_port=nats.monitor_port,
                metrics=self.metrics,
            )
        self.keeper = StreamKeeper(lambda: self.nats_url, settings)
        self.monitor = Monitor(self._monitor_url, settings.monitor_seconds)
        self._watched = self.server is not None or settings.monitor_url is not None
        if self._watched:
            self.metrics.registry.register(self.monitor)

    @classmethod
    def from_config(cls, mesh: MeshSettings, config_dir: Path | None = None) -> Self:
        """Make it from `broker.yaml`."""
        return cls(mesh, load_broker_settings(config_dir))

    @property
    def nats_url(self) -> str:
        """Where services connect; with port 0 known once started."""
        return self.server.url if self.server is not None else self.mesh.nats.url

    async def setup(self, stack: contextlib.AsyncExitStack) -> None:
        """Start the server, connect, ensure the streams."""
        if self.server is not None:
            await stack.enter_async_context(self.server.running())
            self.spawn(self.server.guard.run(), "write guard")
        stack.callback(self.keeper.close)
        try:
            await self.keeper.connect()
        except TimeoutError as error:
            raise StartupError(
                f"JetStream at {self._shown_url()} does not answer; is it enabled there?",
                reason="BROKER_UNAVAILABLE",
            ) from error
        except MarketPrismError as error:
            raise StartupError(str(error), reason=error.reason) from error
        self.spawn(self.keeper.run(), "streams")
        if self._watched:
            self.spawn(self.monitor.run(), "monitor")

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        broker_service_pb2_grpc.add_BrokerServiceServicer_to_server(
            BrokerServicer(self.keeper, self.monitor, self.settings), server
        )

    def dependencies(self) -> Mapping[str, DependencyStatus]:
        """Tell the state of the server and of the streams."""
        restarts = self.server.restarts if self.server is not None else None
        reading = self.monitor.reading
        facts: dict[str, object] = {
            "url": self._shown_url(),
            "connected": not self.keeper.problem,
            "streams": len(self.settings.stream_names),
            "seconds_in_state": round(time.monotonic() - self.keeper.since, 1),
        }
        if restarts is not None:
            facts["restarts"] = restarts
        if reading is not None:
            facts["streams"] = int(reading.jsz.get("streams", 0))
            facts["bytes_used"] = int(reading.jsz.get("storage", 0))
            facts["bytes_limit"] = int(reading.jsz.get("config", {}).get("max_storage", 0))
        if self.keeper.problem:
            broker = DependencyStatus.unhealthy(self.keeper.problem, **facts)
        else:
            broker = DependencyStatus.healthy("connected, JetStream answers", **facts)
        states = {"nats": broker}
        if self.server is not None:
            states["nats_server"] = self.server.status()
        return states

    def _monitor_url(self) -> str:
        if self.server is not None:
            return self.server.monitor_url
        return (self.settings.monitor_url or "").rstrip("/")

    def _shown_url(self) -> str:
        parts = [urlsplit(url) for url in self.nats_url.split(",")]
        return ",".join(f"{part.scheme}://{part.hostname}:{part.port or 4222}" for part in parts)
