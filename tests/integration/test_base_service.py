"""What a service inherits, proved with a service of a few dozen lines (`echo_service`)."""

import asyncio
import contextlib
import io
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import structlog
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.shared.errors import FieldViolation, StartupError, from_rpc_error
from services.shared.health import DependencyStatus
from services.shared.log import configure_logging
from services.shared.ports import bind_socket
from services.shared.registration import LocalRegistrar, Registration
from services.shared.run import serve
from services.shared.settings import (
    LimitSettings,
    LogSettings,
    MeshSettings,
    ServiceSettings,
    TelemetrySettings,
)
from tests.integration.echo_service.contract import NAME, EchoRequest, EchoServiceStub
from tests.integration.echo_service.service import EchoService

REPOSITORY = Path(__file__).resolve().parents[2]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class SecondService(EchoService):
    name = "second"


def mesh_settings(tmp_path: Path, **more: Any) -> MeshSettings:
    ports = {"echo": ServiceSettings(), "second": ServiceSettings()}
    return MeshSettings(**{"data_dir": tmp_path / "var", "services": ports, **more})


@pytest.fixture
def mesh(tmp_path: Path) -> MeshSettings:
    return mesh_settings(tmp_path)


@pytest.fixture(autouse=True)
def log_lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    stream = io.StringIO()
    configure_logging(LogSettings(format="json", level="debug"), stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    root.handlers[:], root.level = before


@contextlib.asynccontextmanager
async def connected(service: EchoService) -> AsyncIterator[EchoServiceStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        yield EchoServiceStub(channel)


async def get(service: EchoService, path: str, **headers: str) -> tuple[int, str, str]:
    url = f"http://127.0.0.1:{service.http_port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, response.headers["Content-Type"], await response.text()


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)  # between two looks at the condition


async def failing(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    raw = dict(error.trailing_metadata())["grpc-status-details-bin"]
    found = {}
    for packed in status_pb2.Status.FromString(raw).details:
        message = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])()
        assert packed.Unpack(message)
        found[type(message).__name__] = message
    return found


# ---- start and stop


async def test_start_and_stop_are_in_order(mesh: MeshSettings) -> None:
    events: list[str] = []

    class Recorder(LocalRegistrar):
        async def register(self, registration: Registration) -> None:
            events.append(f"registered, serving {await answers()}")
            await super().register(registration)

        async def deregister(self, registration: Registration) -> None:
            events.append(f"deregistered, serving {await answers()}")
            await super().deregister(registration)

    class Ordered(EchoService):
        async def setup(self, stack: contextlib.AsyncExitStack) -> None:
            stack.callback(events.append, "first closed")
            self.spawn(self.work(), "work")
            stack.callback(events.append, "second closed")

        async def work(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                events.append("task ended")

        def register(self, server: grpc.aio.Server) -> None:
            events.append("servicers added")
            super().register(server)

        def dependencies(self) -> Mapping[str, DependencyStatus]:
            return {}

    service = Ordered(mesh, registrar=Recorder(mesh.data_dir / "registry"))

    async def answers() -> bool:
        async with connected(service) as echo:
            return bool((await echo.Echo(EchoRequest(text="x"))).text == "x")

    async with service.running():
        events.append("ready")
    assert events == [
        "servicers added",
        "registered, serving True",
        "ready",
        "deregistered, serving True",
        "second closed",
        "task ended",
        "first closed",
    ]
    assert await service.wait() == 0
    await service.stop()


async def test_ports_are_real_and_registered_while_it_runs(mesh: MeshSettings) -> None:
    service = EchoService(mesh)
    with pytest.raises(RuntimeError, match="before its start"):
        _ = service.grpc_port
    registrar = LocalRegistrar.below(mesh.data_dir)
    async with service.running():
        (record,) = await registrar.list("echo")
        assert record == service.registration
        assert (record.grpc_port, record.http_port) == (service.grpc_port, service.http_port)
        assert 0 not in (record.grpc_port, record.http_port)
        assert record.pid == os.getpid()
    assert list(await registrar.list()) == []


async def test_failed_start_closes_what_it_opened(mesh: MeshSettings) -> None:
    closed: list[str] = []

    class Broken(EchoService):
        async def setup(self, stack: contextlib.AsyncExitStack) -> None:
            stack.callback(closed.append, "opened before")
            raise StartupError("the database is away: start it")

    service = Broken(mesh)
    with pytest.raises(StartupError, match="the database is away"):
        await service.start()
    assert closed == ["opened before"]
    assert await service.wait() == 1


async def test_stop_during_a_slow_start_ends_the_start(mesh: MeshSettings) -> None:
    entered = asyncio.Event()

    class Slow(EchoService):
        async def setup(self, stack: contextlib.AsyncExitStack) -> None:
            entered.set()
            await asyncio.Event().wait()

    service = Slow(mesh)
    start = asyncio.ensure_future(service.start())
    await entered.wait()
    await service.stop()
    with pytest.raises(StartupError, match="stopped while it started"):
        await start
    assert await service.wait() == 0


@pytest.mark.parametrize("setting", ["grpc_port", "http_port"])
async def test_taken_port_is_one_sentence(tmp_path: Path, setting: str) -> None:
    with bind_socket("127.0.0.1", 0, "x") as taken:
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"echo": ServiceSettings(**{setting: port})}
        service = EchoService(mesh_settings(tmp_path, services=ports))
        with pytest.raises(StartupError) as caught:
            await service.start()
    text = str(caught.value)
    assert text.startswith(f"port {port} on 127.0.0.1 is taken by ")
    assert f"(pid {os.getpid()}): stop it, or set services.echo.{setting}" in text
    assert "\n" not in text


async def test_open_stream_is_told_of_the_stop(mesh: MeshSettings) -> None:
    service = EchoService(mesh)
    await service.start()
    async with connected(service) as echo:
        stream = echo.StreamEcho(EchoRequest(text="x", count=1, fail="open"))
        assert (await stream.read()).text == "x"
        began = time.monotonic()
        await service.stop()
        assert (await stream.read()).text == "stopping"
        assert await stream.read() is grpc.aio.EOF
    assert time.monotonic() - began < 2


async def test_deaf_stream_is_cut_after_the_grace(tmp_path: Path) -> None:
    service = EchoService(mesh_settings(tmp_path, shutdown_grace_seconds=0.3))
    await service.start()
    async with connected(service) as echo:
        stream = echo.StreamEcho(EchoRequest(text="x", count=1, fail="deaf"))
        await stream.read()
        began = time.monotonic()
        await service.stop()
        assert 0.25 < time.monotonic() - began < 2
        assert (await failing(stream.read())).code() is grpc.StatusCode.UNAVAILABLE


async def test_watch_of_health_does_not_hold_up_the_stop(mesh: MeshSettings) -> None:
    service = EchoService(mesh)
    await service.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=NAME)
        )
        assert (await watch.read()).status == SERVING
        began = time.monotonic()
        await service.stop()
        assert time.monotonic() - began < 2
        assert (await watch.read()).status == NOT_SERVING


async def test_task_that_dies_stops_the_service_with_status_1(
    mesh: MeshSettings, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    service = EchoService(mesh)
    await service.start()
    broken = asyncio.Event()

    async def work() -> None:
        await broken.wait()
        raise RuntimeError("token=hunter2")

    service.spawn(work(), "work")
    broken.set()
    assert await service.wait() == 1
    assert isinstance(service.failure, RuntimeError)
    assert service.health()[0] == 503
    (line,) = [line for line in log_lines() if line["event"] == "task echo: work died"]
    assert "Traceback" in line["exception"]
    assert "hunter2" not in json.dumps(log_lines())
    await service.stop()


async def test_task_that_ends_or_is_cancelled_by_its_owner_is_no_failure(
    mesh: MeshSettings,
) -> None:
    service = EchoService(mesh)
    async with service.running():
        await service.spawn(asyncio.sleep(0), "short")
        task = service.spawn(asyncio.sleep(60), "long")
        task.cancel()
        await asyncio.wait({task})
    assert service.failure is None


async def test_task_group_of_setup_may_fail(mesh: MeshSettings) -> None:
    broken = asyncio.Event()

    class Grouped(EchoService):
        async def setup(self, stack: contextlib.AsyncExitStack) -> None:
            self.heartbeat = time.monotonic()
            group = await stack.enter_async_context(asyncio.TaskGroup())
            group.create_task(self.work())

        async def work(self) -> None:
            await broken.wait()
            raise RuntimeError("lost")

    service = Grouped(mesh)
    await service.start()
    broken.set()
    assert await service.wait() == 1


async def test_two_services_in_one_process_share_nothing(tmp_path: Path) -> None:
    mesh = mesh_settings(tmp_path)
    async with EchoService(mesh).running() as one, SecondService(mesh).running() as two:
        async with connected(one) as echo:
            await echo.Echo(EchoRequest(text="x"))
        count = "marketprism_grpc_requests_started_total"
        labels = {"grpc_service": NAME, "grpc_method": "Echo", "grpc_type": "unary_unary"}
        assert one.metrics.registry.get_sample_value(count, labels) == 1
        assert two.metrics.registry.get_sample_value(count, labels) is None
        assert one.grpc_port != two.grpc_port
        await one.stop()
        async with connected(two) as echo:
            await echo.Echo(EchoRequest(text="x"))
        assert json.loads((await get(two, "/health"))[2])["service"] == "second"


async def test_end_of_one_of_several_services_ends_all(tmp_path: Path) -> None:
    mesh = mesh_settings(tmp_path)
    one, two = EchoService(mesh), SecondService(mesh)
    served = asyncio.ensure_future(serve([one, two]))
    await until(lambda: two.registration is not None)

    async def work() -> None:
        raise RuntimeError("lost")

    two.spawn(work(), "work")
    assert await served == 1
    assert one.registration is None
    assert one.failure is None


# ---- errors


async def test_error_becomes_a_rich_status(mesh: MeshSettings) -> None:
    async with EchoService(mesh).running() as service, connected(service) as echo:
        error = await failing(echo.Echo(EchoRequest(text="X", fail="argument")))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "expected text in lower case"
        found = details(error)
        assert found["ErrorInfo"] == error_details_pb2.ErrorInfo(
            reason="TEXT_NOT_LOWER", domain="marketprism", metadata={"text": "X"}
        )
        (violation,) = found["BadRequest"].field_violations
        assert (violation.field, violation.reason) == ("text", "CASE")
        assert found["RequestInfo"].request_id == dict(error.trailing_metadata())["x-request-id"]
        rebuilt = from_rpc_error(error)
        assert rebuilt.violations == (FieldViolation("text", "expected lower case", "CASE"),)


@pytest.mark.parametrize("method", ["Echo", "StreamEcho"])
async def test_bug_tells_the_client_nothing_and_the_log_everything(
    mesh: MeshSettings, method: str, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    async with EchoService(mesh).running() as service, connected(service) as echo:
        call = getattr(echo, method)(
            EchoRequest(text="x", fail="bug"), metadata=(("x-request-id", "find-me"),)
        )
        error = await failing(call.read() if method == "StreamEcho" else call)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert details(error)["ErrorInfo"].reason == "INTERNAL"
    assert details(error)["RequestInfo"].request_id == "find-me"
    assert "hunter2" not in str(error)
    (line,) = [line for line in log_lines() if line["event"] == "rpc failed by a bug"]
    assert (line["request_id"], line["service"]) == ("find-me", "echo")
    assert "Traceback" in line["exception"]
    assert "ValueError" in line["exception"]
    assert "password=hunter2" not in line["exception"]


async def test_abort_by_hand_passes(mesh: MeshSettings) -> None:
    async with EchoService(mesh).running() as service, connected(service) as echo:
        error = await failing(echo.Echo(EchoRequest(text="x", fail="abort")))
        assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "by hand")
        labels = {
            "grpc_service": NAME,
            "grpc_method": "Echo",
            "grpc_type": "unary_unary",
            "grpc_code": "DATA_LOSS",
        }
        handled = service.metrics.registry.get_sample_value(
            "marketprism_grpc_requests_handled_total", labels
        )
        assert handled == 1


async def test_unknown_method_is_unimplemented_and_counted(mesh: MeshSettings) -> None:
    async with EchoService(mesh).running() as service:
        target = f"127.0.0.1:{service.grpc_port}"
        async with grpc.aio.insecure_channel(target) as channel:
            for call in (channel.unary_unary(f"/{NAME}/Nope"), channel.unary_unary("/no.Such/M")):
                error = await failing(call(b""))
                assert error.code() is grpc.StatusCode.UNIMPLEMENTED
                assert details(error)["ErrorInfo"].reason == "METHOD_UNKNOWN"
        count = "marketprism_grpc_unknown_methods_total"
        assert service.metrics.registry.get_sample_value(count) == 2


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe"], ids=["wire", "utf8"])
@pytest.mark.parametrize("method", ["Echo", "StreamEcho", "Collect", "Chat"])
async def test_request_that_cannot_be_decoded_is_the_callers_mistake(
    mesh: MeshSettings, method: str, raw: bytes
) -> None:
    async with EchoService(mesh).running() as service:
        target = f"127.0.0.1:{service.grpc_port}"
        async with grpc.aio.insecure_channel(target) as channel:
            path = f"/{NAME}/{method}"
            if method == "Echo":
                error = await failing(channel.unary_unary(path)(raw))
            elif method == "Collect":
                error = await failing(channel.stream_unary(path)(iter([raw])))
            elif method == "StreamEcho":
                error = await failing(channel.unary_stream(path)(raw).read())
            else:
                error = await failing(channel.stream_stream(path)(iter([raw])).read())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(error)["ErrorInfo"].reason == "REQUEST_MALFORMED"
    assert "<class" not in (error.details() or "")


@pytest.mark.parametrize("method", ["Echo", "StreamEcho", "Collect", "Chat"])
async def test_required_field_is_enforced_in_every_kind_of_call(
    mesh: MeshSettings, method: str
) -> None:
    async with EchoService(mesh).running() as service, connected(service) as echo:

        async def requests() -> AsyncIterator[Any]:
            # A stream's later messages are checked like its first.
            yield EchoRequest(text="ok")
            yield EchoRequest()

        streaming = method in ("Collect", "Chat")
        call = getattr(echo, method)(requests() if streaming else EchoRequest())

        async def drain() -> None:
            async for _ in call:
                pass

        error = await failing(drain() if method in ("StreamEcho", "Chat") else call)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        found = details(error)
        assert found["ErrorInfo"].reason == "REQUIRED_FIELD_MISSING"
        assert [v.field for v in found["BadRequest"].field_violations] == ["text"]


async def test_calls_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    mesh = mesh_settings(tmp_path, limits=LimitSettings(max_concurrent_calls=1))
    async with EchoService(mesh).running() as service, connected(service) as echo:
        stream = echo.StreamEcho(EchoRequest(text="x", count=1, fail="open"))
        await stream.read()
        error = await failing(echo.Echo(EchoRequest(text="x")))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details(error)["ErrorInfo"].reason == "TOO_MANY_CALLS"
        assert details(error)["RetryInfo"].retry_delay.seconds == 1
        stream.cancel()
        labels = {"grpc_service": NAME, "grpc_method": "StreamEcho", "grpc_type": "unary_stream"}
        value = service.metrics.registry.get_sample_value
        await until(lambda: value("marketprism_grpc_streams_open", labels) == 0)
        await echo.Echo(EchoRequest(text="x"))


# ---- request ids, deadlines, spans


async def test_request_id_of_the_client_comes_back_and_is_logged(
    mesh: MeshSettings, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    async with EchoService(mesh).running() as service, connected(service) as echo:
        sent = (("x-request-id", "abc-123"),)
        unary = echo.Echo(EchoRequest(text="x"), metadata=sent)
        await unary
        assert dict(await unary.trailing_metadata())["x-request-id"] == "abc-123"
        stream = echo.StreamEcho(EchoRequest(text="x"), metadata=sent)
        async for _ in stream:
            pass
        assert dict(await stream.trailing_metadata())["x-request-id"] == "abc-123"
    (line,) = [line for line in log_lines() if line["event"] == "echo"]
    assert line["request_id"] == "abc-123"


@pytest.mark.parametrize("bad", ["", "x" * 129])
async def test_missing_or_bad_request_id_is_replaced(mesh: MeshSettings, bad: str) -> None:
    async with EchoService(mesh).running() as service, connected(service) as echo:
        call = echo.Echo(EchoRequest(text="x"), metadata=(("x-request-id", bad),) if bad else ())
        await call
        made = dict(await call.trailing_metadata())["x-request-id"]
        assert len(made) == 32
        assert made.isalnum()


async def test_unary_call_without_deadline_gets_the_default_one(tmp_path: Path) -> None:
    mesh = mesh_settings(tmp_path, limits=LimitSettings(unary_deadline_seconds=0.1))
    async with EchoService(mesh).running() as service, connected(service) as echo:
        error = await failing(echo.Echo(EchoRequest(text="x", fail="hang")))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert details(error)["ErrorInfo"].metadata["deadline_seconds"] == "0.1"
        # A deadline of the client's own replaces it.
        began = time.monotonic()
        error = await failing(echo.Echo(EchoRequest(text="x", fail="hang"), timeout=0.5))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - began > 0.4


async def test_stream_has_no_default_deadline(tmp_path: Path) -> None:
    mesh = mesh_settings(tmp_path, limits=LimitSettings(unary_deadline_seconds=0.05))
    async with EchoService(mesh).running() as service, connected(service) as echo:
        stream = echo.StreamEcho(EchoRequest(text="x", count=1, fail="open"))
        await stream.read()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await stream.read()


async def test_handler_ends_when_its_client_goes_away(mesh: MeshSettings) -> None:
    ended = asyncio.Event()

    class Watched(EchoService):
        async def StreamEcho(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
            try:
                async for response in super().StreamEcho(request, context):
                    yield response
            finally:
                ended.set()

    async with Watched(mesh).running() as service:
        # One client leaves while the handler waits, one while it writes what nobody reads.
        for request in (
            EchoRequest(text="x", count=1, fail="open"),
            EchoRequest(text="x" * 100_000, count=1_000_000),
        ):
            ended.clear()
            async with connected(service) as echo:
                stream = echo.StreamEcho(request)
                await stream.read()
                stream.cancel()
            async with asyncio.timeout(5):
                await ended.wait()


async def test_span_continues_the_callers_trace_when_tracing_is_on(tmp_path: Path) -> None:
    spans = InMemorySpanExporter()
    mesh = mesh_settings(tmp_path, telemetry=TelemetrySettings(enabled=True))
    service = EchoService(mesh, span_exporter=spans)
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with service.running(), connected(service) as echo:
        metadata = (("traceparent", f"00-{trace_id}-{parent}-01"),)
        await echo.Echo(EchoRequest(text="x"), metadata=metadata)
        await failing(echo.Echo(EchoRequest(text="x", fail="argument")))
    first, second = spans.get_finished_spans()
    assert first.name == f"{NAME}/Echo"
    assert first.context is not None
    assert first.parent is not None
    assert f"{first.context.trace_id:032x}" == trace_id
    assert f"{first.parent.span_id:016x}" == parent
    assert second.parent is None
    assert second.status.description == "TEXT_NOT_LOWER"
    assert (second.attributes or {})["rpc.grpc.status_code"] == 3


# ---- reflection, health, metrics


async def test_reflection_lists_services_and_describes_them(mesh: MeshSettings) -> None:
    async with EchoService(mesh).running() as service:
        target = f"127.0.0.1:{service.grpc_port}"
        async with grpc.aio.insecure_channel(target) as channel:
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                iter(
                    [
                        reflection_pb2.ServerReflectionRequest(list_services=""),
                        reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAME),
                    ]
                )
            )
            listed, described = [response async for response in call]
    assert [s.name for s in listed.list_services_response.service] == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        NAME,
    ]
    assert described.file_descriptor_response.file_descriptor_proto


async def test_health_follows_the_dependencies(mesh: MeshSettings) -> None:
    class Dependent(EchoService):
        status = DependencyStatus.healthy()

        def dependencies(self) -> Mapping[str, DependencyStatus]:
            return {"broker": self.status}

    service = Dependent(mesh)
    async with service.running():
        target = f"127.0.0.1:{service.grpc_port}"
        async with grpc.aio.insecure_channel(target) as channel:
            health = health_pb2_grpc.HealthStub(channel)

            async def ready() -> int:
                request = health_pb2.HealthCheckRequest(service=NAME)
                return int((await health.Check(request)).status)

            for status, http, serving in (
                (DependencyStatus.healthy(), 200, SERVING),
                (DependencyStatus.degraded("slow", lag_seconds=3), 200, SERVING),
                (DependencyStatus.unhealthy("away since 12:00"), 503, NOT_SERVING),
                (DependencyStatus.healthy(), 200, SERVING),
            ):
                service.status = status
                code, _, body = await get(service, "/health")
                assert code == http
                assert json.loads(body)["status"] == status.status
                assert json.loads(body)["dependencies"] == {"broker": status.to_json()}
                async with asyncio.timeout(5):
                    while await ready() != serving:  # noqa: ASYNC110 - another process's state
                        await asyncio.sleep(0.02)
                # The process is alive whatever it depends on.
                assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING


async def test_health_has_what_the_design_promises(mesh: MeshSettings) -> None:
    async with EchoService(mesh).running() as service:
        code, content_type, body = await get(service, "/health")
    health = json.loads(body)
    assert (code, content_type) == (200, "application/json; charset=utf-8")
    assert set(health) == {
        "status",
        "timestamp",
        "uptime_seconds",
        "version",
        "service",
        "dependencies",
    }
    assert health["timestamp"].endswith("Z")
    assert health["uptime_seconds"] > 0
    assert health["dependencies"]["heart"]["status"] == "healthy"


async def test_dependency_report_that_raises_is_unhealthy(mesh: MeshSettings) -> None:
    class Confused(EchoService):
        def dependencies(self) -> Mapping[str, DependencyStatus]:
            raise KeyError("x")

    async with Confused(mesh).running() as service:
        assert (await get(service, "/health"))[0] == 503


async def test_metrics_count_calls_by_method_and_code(mesh: MeshSettings) -> None:
    async with EchoService(mesh).running() as service, connected(service) as echo:
        await echo.Echo(EchoRequest(text="x"))
        await failing(echo.Echo(EchoRequest()))
        code, content_type, text = await get(service, "/metrics")
        assert code == 200
        assert content_type.startswith("text/plain")
        labels = f'grpc_method="Echo",grpc_service="{NAME}",grpc_type="unary_unary"'
        assert f"marketprism_grpc_requests_started_total{{{labels}}} 2.0" in text
        for status in ("OK", "INVALID_ARGUMENT"):
            handled = 'marketprism_grpc_requests_handled_total{grpc_code="' + status
            assert handled in text
        assert f"marketprism_grpc_request_duration_seconds_count{{{labels}}} 2.0" in text
        assert 'marketprism_service_info{service="echo",version=' in text
        assert 'marketprism_dependency_health{dependency="heart"} 1.0' in text
        assert "process_resident_memory_bytes" in text
        assert re.search(r"^marketprism_asyncio_tasks [1-9]", text, re.MULTILINE)
        accept = "application/openmetrics-text; version=1.0.0"
        _, content_type, text = await get(service, "/metrics", Accept=accept)
        assert content_type.startswith("application/openmetrics-text")
        assert text.endswith("# EOF\n")


async def test_nothing_else_is_served_over_http(mesh: MeshSettings) -> None:
    async with EchoService(mesh).running() as service:
        code, content_type, body = await get(service, "/api/v1/x")
        assert (code, content_type) == (404, "application/json; charset=utf-8")
        assert json.loads(body)["error"]["code"] == "NOT_FOUND"
        url = f"http://127.0.0.1:{service.http_port}/health"
        async with aiohttp.ClientSession() as session, session.post(url) as response:
            assert response.status == 405
            assert (await response.json())["success"] is False


# ---- as a program


class Program:
    """`python -m tests.integration.echo_service` with a configuration of its own."""

    def __init__(self, tmp_path: Path, config: str) -> None:
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "services.yaml").write_text(config)
        self.registrar = LocalRegistrar.below(tmp_path / "var")
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("MARKETPRISM")},
            "MARKETPRISM_CONFIG_DIR": str(tmp_path / "config"),
            "MARKETPRISM__SERVICES__DATA_DIR": str(tmp_path / "var"),
            "MARKETPRISM__SERVICES__LOG__FORMAT": "json",
        }

    async def start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.integration.echo_service",
            cwd=REPOSITORY,
            env=self.environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def registration(self) -> Registration:
        async with asyncio.timeout(20):
            while not (found := await self.registrar.list("echo")):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return found[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_stops_the_program_in_order(tmp_path: Path, number: int) -> None:
    program = Program(tmp_path, "services:\n  echo: {}\n")
    process = await program.start()
    try:
        registration = await program.registration()
        target = f"127.0.0.1:{registration.grpc_port}"
        async with grpc.aio.insecure_channel(target) as channel:
            stream = EchoServiceStub(channel).StreamEcho(
                EchoRequest(text="x", count=1, fail="open")
            )
            assert (await stream.read()).text == "x"
            process.send_signal(number)
            assert (await stream.read()).text == "stopping"
        async with asyncio.timeout(10):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, output.decode()
    events = [json.loads(line)["event"] for line in output.splitlines()]
    assert [e for e in events if e in ("ready", "stopping", "stopped")] == [
        "ready",
        "stopping",
        "stopped",
    ]
    assert list(await program.registrar.list()) == []


async def test_bad_configuration_ends_the_program_with_status_2(tmp_path: Path) -> None:
    program = Program(tmp_path, "services:\n  echo: {grpc_port: many}\nhots: 1\n")
    process = await program.start()
    async with asyncio.timeout(20):
        output, _ = await process.communicate()
    assert process.returncode == 2
    text = output.decode()
    assert "services.yaml:2: services.echo.grpc_port: expected to be a valid integer" in text
    assert "services.yaml:3: hots: unknown key; did you mean 'host'?" in text
    assert "Traceback" not in text


async def test_taken_port_ends_the_program_with_status_1(tmp_path: Path) -> None:
    with bind_socket("127.0.0.1", 0, "x") as taken:
        taken.listen()
        port = taken.getsockname()[1]
        program = Program(tmp_path, f"services:\n  echo: {{grpc_port: {port}}}\n")
        process = await program.start()
        async with asyncio.timeout(20):
            output, _ = await process.communicate()
    assert process.returncode == 1
    (line,) = output.decode().splitlines()
    assert json.loads(line)["event"].startswith(f"cannot start: port {port} on 127.0.0.1 is taken")
