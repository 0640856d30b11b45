"""`BaseService`: what every service inherits. A subclass says what it opens and what it serves.

One task owns a service from start to stop. What it opens goes on one exit stack, in this order:
dependencies (`setup`), gRPC, HTTP, registration, readiness; a stop is the same stack unwound.
Nothing is global, so several services live in one process and one event loop.
"""

import abc
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Self

import grpc
import structlog
from aiohttp import web
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry.sdk.trace.export import SpanExporter

from services.shared.errors import StartupError
from services.shared.health import DependencyStatus, GrpcHealth, Health, worst
from services.shared.http import serve_http
from services.shared.interceptors import CallInterceptor
from services.shared.log import get_logger
from services.shared.ports import bind_socket, port_taken
from services.shared.registration import LocalRegistrar, Registrar, Registration
from services.shared.settings import MeshSettings
from services.shared.telemetry import Metrics, make_tracer_provider, package_version

__all__ = ["BaseService"]

_STOP_SECONDS = 10.0
_HEALTH_INTERVAL = 1.0
_HEALTH_VALUE = {Health.HEALTHY: 1.0, Health.DEGRADED: 0.5, Health.UNHEALTHY: 0.0}


class BaseService(abc.ABC):
    """One service of the mesh: its settings, its servers, its tasks, its health.

    A subclass names itself, opens its dependencies in `setup`, adds its servicers in `register`
    and tells the state of its dependencies in `dependencies`. Its `__main__.py` calls `run`.
    Streaming handlers watch `stopping` and end with a last message when it is set.
    """

    name: ClassVar[str]
    """Name of the service: its folder, its key below `services` in config/services.yaml."""

    grpc_services: ClassVar[tuple[ServiceDescriptor, ...]] = ()
    """Descriptors of the gRPC services it serves, for reflection and health."""

    interceptors: tuple[grpc.aio.ServerInterceptor, ...] = ()
    """Further gRPC interceptors, run inside the shared one, in this order."""

    def __init__(
        self,
        mesh: MeshSettings,
        *,
        registrar: Registrar | None = None,
        span_exporter: SpanExporter | None = None,
    ) -> None:
        self.mesh = mesh
        self.version = package_version()
        self.log = get_logger(service=self.name)
        self.metrics = Metrics(self.name, self.version)
        self.stopping = asyncio.Event()
        """Set when the service begins to stop: streams end, loops finish."""
        self.failure: BaseException | None = None
        """Why the service failed, when it did."""
        self._ports = mesh.service(self.name)
        self._registrar = registrar or LocalRegistrar.below(mesh.data_dir)
        self._span_exporter = span_exporter
        self._health = GrpcHealth(service.full_name for service in self.grpc_services)
        self._dependency_health = self.metrics.gauge(
            "dependency_health", "1 healthy, 0.5 degraded, 0 unhealthy.", ["dependency"]
        )
        self._began = time.monotonic()
        self._grpc_port: int | None = None
        self._http_port: int | None = None
        self._registration: Registration | None = None
        self._life: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._stop_requested = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._setup_stack: contextlib.AsyncExitStack | None = None

    # ---- what a subclass gives

    @classmethod
    def from_config(cls, mesh: MeshSettings, config_dir: Path | None = None) -> Self:
        """Make the service for a program; override it to read a configuration file of its own.

        Raises `ConfigError`.
        """
        return cls(mesh)

    async def setup(  # noqa: B027 - a service without dependencies opens none
        self, stack: contextlib.AsyncExitStack
    ) -> None:
        """Open dependencies on `stack`; they are closed in reverse order at the stop.

        Raise `StartupError` to say in one sentence why the service cannot start.
        """

    @abc.abstractmethod
    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicers to the server."""

    def http_routes(self) -> Sequence[web.RouteDef]:
        """Give what the service serves over HTTP beside `/health` and `/metrics`."""
        return ()

    def dependencies(self) -> Mapping[str, DependencyStatus]:
        """Give the present, true state of each dependency; called every second, so cheap."""
        return {}

    # ---- what a subclass uses

    @property
    def grpc_port(self) -> int:
        """The real port of the gRPC server."""
        if self._grpc_port is None:
            raise RuntimeError(f"{self.name} has no gRPC port before its start")
        return self._grpc_port

    @property
    def http_port(self) -> int:
        """The real port of `/health` and `/metrics`."""
        if self._http_port is None:
            raise RuntimeError(f"{self.name} has no HTTP port before its start")
        return self._http_port

    @property
    def registration(self) -> Registration | None:
        """The record under which the service is registered, None when it is not."""
        return self._registration

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a background task that the service owns.

        It is cancelled and awaited at the stop, before anything that `setup` opened ahead of it
        is closed. If it raises, the service is unhealthy and stops with exit status 1.
        """
        task = asyncio.get_running_loop().create_task(coro, name=f"{self.name}: {name}")
        task.add_done_callback(self._task_done)
        if self._setup_stack is not None:
            self._setup_stack.push_async_callback(_end_tasks, {task})
        else:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return task

    def health(self) -> tuple[int, dict[str, Any]]:
        """Give the HTTP status and the body of `/health`."""
        dependencies = self._dependencies()
        status = worst(each.status for each in dependencies.values())
        body: dict[str, Any] = {
            "status": status.value,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "uptime_seconds": round(time.monotonic() - self._began, 3),
            "version": self.version,
            "service": self.name,
            "dependencies": {name: each.to_json() for name, each in dependencies.items()},
        }
        if self.failure is not None or self._stop_requested.is_set():
            status = Health.UNHEALTHY
            why = f"failed: {type(self.failure).__name__}" if self.failure else "stopping"
            body |= {"status": status.value, "detail": why}
        return (503 if status is Health.UNHEALTHY else 200), body

    # ---- start and stop

    async def start(self) -> None:
        """Start and return when the service is ready; raises what kept it from starting."""
        if self._life is not None:
            raise RuntimeError(f"{self.name} was started already; make a new instance")
        self._life = asyncio.get_running_loop().create_task(self._run(), name=self.name)
        ready = asyncio.get_running_loop().create_task(self._ready.wait())
        try:
            await asyncio.wait({self._life, ready}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.stop()
            raise
        finally:
            ready.cancel()
        if not self._ready.is_set():
            if self.failure is not None:
                raise self.failure
            raise StartupError(f"{self.name} was stopped while it started")

    async def stop(self) -> None:
        """Stop and return when everything is closed, within ten seconds; may be called again."""
        self.request_stop()
        if self._life is not None:
            await asyncio.wait({self._life}, timeout=_STOP_SECONDS + 1)

    def request_stop(self) -> None:
        """Begin to stop and return at once; `wait` tells when it is done."""
        if self._stop_requested.is_set():
            return
        self._stop_requested.set()
        if self._life is None or self._life.done():
            return
        if not self._ready.is_set():
            self._life.cancel()
        overdue = asyncio.get_running_loop().call_later(_STOP_SECONDS, self._stop_overdue)
        self._life.add_done_callback(lambda _: overdue.cancel())

    async def wait(self) -> int:
        """Wait until the service has stopped; gives the exit status, 1 when it failed."""
        if self._life is not None:
            await asyncio.wait({self._life})
        return 1 if self.failure is not None else 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Start on entry and stop on exit."""
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    # ---- the one task that owns everything

    async def _run(self) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(service=self.name)
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._open(stack)
                self._ready.set()
                self.log.info(
                    "ready",
                    host=self.mesh.host,
                    grpc_port=self._grpc_port,
                    http_port=self._http_port,
                    seconds=round(time.monotonic() - self._began, 3),
                )
                while not self._stop_requested.is_set():
                    self._refresh_health()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stop_requested.wait(), _HEALTH_INTERVAL)
                self.log.info("stopping")
        except asyncio.CancelledError as error:
            # Either a stop came first, or something that setup opened cancelled this task.
            if not self._stop_requested.is_set():
                self._failed(error, "the service's task was cancelled")
        except Exception as error:
            self._failed(error, "the service failed" if self._ready.is_set() else "")
        finally:
            self._stop_requested.set()
            self.stopping.set()
            if self._ready.is_set():
                self.log.info("stopped")

    async def _open(self, stack: contextlib.AsyncExitStack) -> None:
        provider = make_tracer_provider(
            self.mesh.telemetry, self.name, self.version, self._span_exporter
        )
        if provider is not None:
            stack.push_async_callback(asyncio.to_thread, provider.shutdown)
        self._setup_stack = stack
        try:
            await self.setup(stack)
        finally:
            self._setup_stack = None
        stack.push_async_callback(_end_tasks, self._tasks)

        self.metrics.watch_tasks(asyncio.get_running_loop())
        limits = self.mesh.limits
        shared = CallInterceptor(
            self.metrics,
            self.log,
            unary_deadline=limits.unary_deadline_seconds,
            max_concurrent_calls=limits.max_concurrent_calls,
            tracer=provider.get_tracer("marketprism") if provider is not None else None,
        )
        server = grpc.aio.server(
            interceptors=(shared, *self.interceptors),
            options=_server_options(limits.max_message_bytes),
        )
        stack.push_async_callback(server.stop, None)
        self.register(server)
        health_pb2_grpc.add_HealthServicer_to_server(  # type: ignore[no-untyped-call]
            self._health, server
        )
        self._add_reflection(server)
        self._grpc_port = self._bind(server)
        await server.start()
        self._http_port = await stack.enter_async_context(
            serve_http(
                host=self.mesh.host,
                port=self._ports.http_port,
                setting=f"services.{self.name}.http_port",
                health=self.health,
                registry=self.metrics.registry,
                more=self.http_routes(),
            )
        )
        stack.push_async_callback(self._drain, server)
        await self._announce()

    async def _announce(self) -> None:
        registration = Registration.of_this_process(
            self.name,
            host=self.mesh.advertise_host,
            grpc_port=self.grpc_port,
            http_port=self.http_port,
            version=self.version,
        )
        try:
            await self._registrar.register(registration)
        except OSError as error:
            raise StartupError(
                f"cannot register {self.name}: {error}; check data_dir ({self.mesh.data_dir})",
                reason="CANNOT_REGISTER",
            ) from error
        self._registration = registration

    async def _drain(self, server: grpc.aio.Server) -> None:
        """Take the service out of use while its servers still answer."""
        self._stop_requested.set()
        self._health.close()
        self.stopping.set()
        if self._registration is not None:
            try:
                await self._registrar.deregister(self._registration)
            except Exception as error:
                self.log.warning("could not deregister", error=str(error))
            self._registration = None
        await server.stop(self.mesh.shutdown_grace_seconds)

    def _add_reflection(self, server: grpc.aio.Server) -> None:
        names = [service.full_name for service in self.grpc_services]
        names.append(health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        pool = self.grpc_services[0].file.pool if self.grpc_services else None
        reflection.enable_server_reflection(  # type: ignore[no-untyped-call]
            (*names, reflection.SERVICE_NAME), server, pool
        )

    def _bind(self, server: grpc.aio.Server) -> int:
        host, port = self.mesh.host, self._ports.grpc_port
        setting = f"services.{self.name}.grpc_port"
        # A socket of our own tells why a port cannot be had; grpc only that it cannot.
        bind_socket(host, port, setting).close()
        try:
            bound = server.add_insecure_port(
                f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            )
        except RuntimeError:
            raise port_taken(host, port, setting) from None
        return int(bound)

    # ---- health and failure

    def _dependencies(self) -> Mapping[str, DependencyStatus]:
        try:
            return self.dependencies()
        except Exception as error:
            self.log.error("dependencies() failed", exc_info=True)
            detail = f"its state cannot be told: {type(error).__name__}"
            return {self.name: DependencyStatus.unhealthy(detail)}

    def _refresh_health(self) -> None:
        dependencies = self._dependencies()
        for name, each in dependencies.items():
            self._dependency_health.labels(name).set(_HEALTH_VALUE[each.status])
        status = worst(each.status for each in dependencies.values())
        self._health.set_all(live=True, ready=status is not Health.UNHEALTHY)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        error: BaseException | None
        if task.cancelled():
            if self._stop_requested.is_set() or task.cancelling():
                return
            error = asyncio.CancelledError("cancelled by what it awaited")
        else:
            error = task.exception()
        if error is None:
            return
        if self._stop_requested.is_set():
            self.log.warning("task failed at the stop", task=task.get_name(), error=repr(error))
            return
        self._failed(error, f"task {task.get_name()} died")
        self.request_stop()

    def _failed(self, error: BaseException, what: str) -> None:
        if self.failure is None:
            self.failure = error
        self._health.set_all(live=False, ready=False)
        if what:
            self.log.error(what, exc_info=error)

    def _stop_overdue(self) -> None:
        if self._life is not None and not self._life.done():
            frames = [f"{f.f_code.co_filename}:{f.f_lineno}" for f in self._life.get_stack()]
            self.log.error("not stopped in time", seconds=_STOP_SECONDS, waits_at=frames)
            self._life.cancel()


async def _end_tasks(tasks: set[asyncio.Task[Any]]) -> None:
    pending = set(tasks)
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending)


def _server_options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        # A second server must fail, not share the port.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # A long stream of a quiet instrument sends nothing: pings tell a dead peer from it.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ]
