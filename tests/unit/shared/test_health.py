"""Health is the worst of what it depends on; liveness and readiness are two questions."""

import asyncio

import pytest
from grpc_health.v1 import health_pb2

from services.shared.errors import NotFound
from services.shared.health import DependencyStatus, GrpcHealth, Health, worst

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def test_worst_of_several() -> None:
    assert worst([]) is Health.HEALTHY
    assert worst([Health.HEALTHY, Health.DEGRADED]) is Health.DEGRADED
    assert worst([Health.UNHEALTHY, Health.DEGRADED]) is Health.UNHEALTHY


def test_dependency_as_json() -> None:
    status = DependencyStatus.degraded("reconnecting", attempts=3)
    assert status.to_json() == {"status": "degraded", "detail": "reconnecting", "attempts": 3}


async def check(health: GrpcHealth, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return (await health.Check(request, None)).status  # type: ignore[arg-type]


async def test_readiness_follows_dependencies_and_liveness_does_not() -> None:
    health = GrpcHealth(["echo.v1.EchoService"])
    assert await check(health, "") == NOT_SERVING
    health.set_all(live=True, ready=False)
    assert await check(health, "") == SERVING
    assert await check(health, "echo.v1.EchoService") == NOT_SERVING
    health.close()
    health.set_all(live=True, ready=True)
    assert await check(health, "") == NOT_SERVING


async def test_unknown_service_is_not_found() -> None:
    with pytest.raises(NotFound, match=r"unknown service 'x'; known are ''"):
        await check(GrpcHealth([]), "x")


async def test_watch_tells_each_change_and_ends_at_close() -> None:
    health = GrpcHealth(["a"])
    request = health_pb2.HealthCheckRequest(service="a")
    async with asyncio.timeout(5):
        responses = health.Watch(request, None)  # type: ignore[arg-type]
        assert (await anext(responses)).status == NOT_SERVING
        following = asyncio.ensure_future(anext(responses))
        health.set_all(live=True, ready=False)
        health.set_all(live=True, ready=True)
        assert (await following).status == SERVING
        health.close()
        assert [r.status async for r in responses] == [NOT_SERVING]


async def test_watch_of_an_unknown_service_says_so_and_waits() -> None:
    health = GrpcHealth([])
    request = health_pb2.HealthCheckRequest(service="x")
    responses = health.Watch(request, None)  # type: ignore[arg-type]
    assert (await anext(responses)).status == SERVICE_UNKNOWN
    health.close()
    assert [r async for r in responses] == []
