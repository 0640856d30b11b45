"""What a service says of itself and of what it depends on, over HTTP and gRPC alike."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.shared.errors import NotFound

__all__ = ["DependencyStatus", "GrpcHealth", "Health", "worst"]


class Health(StrEnum):
    """How well something does its work."""

    HEALTHY = "healthy"
    """It does all of its work."""

    DEGRADED = "degraded"
    """It answers, with less than usual: stale data, a slower path, a feature less."""

    UNHEALTHY = "unhealthy"
    """It cannot do its work; nothing should be sent to it."""


_SEVERITY = {Health.HEALTHY: 0, Health.DEGRADED: 1, Health.UNHEALTHY: 2}


@dataclass(frozen=True, slots=True)
class DependencyStatus:
    """The real state of one dependency at this moment."""

    status: Health
    """How well the dependency serves this service."""

    detail: str = ""
    """One sentence for a person: what is wrong, since when, what is being done."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further JSON-able facts, such as counts, addresses and ages in seconds."""

    @classmethod
    def healthy(cls, detail: str = "", **facts: Any) -> "DependencyStatus":
        """Say that all is well."""
        return cls(Health.HEALTHY, detail, facts)

    @classmethod
    def degraded(cls, detail: str, **facts: Any) -> "DependencyStatus":
        """Say that the service still answers, without this dependency's full help."""
        return cls(Health.DEGRADED, detail, facts)

    @classmethod
    def unhealthy(cls, detail: str, **facts: Any) -> "DependencyStatus":
        """Say that the service cannot answer without it."""
        return cls(Health.UNHEALTHY, detail, facts)

    def to_json(self) -> dict[str, Any]:
        """Give the entry of `/health`."""
        return {"status": self.status.value, "detail": self.detail, **self.facts}


def worst(statuses: Iterable[Health]) -> Health:
    """Give the worst of several; healthy when there is none."""
    return max(statuses, key=_SEVERITY.__getitem__, default=Health.HEALTHY)


_Context: TypeAlias = (
    "grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]"
)
_Serving: TypeAlias = "health_pb2.HealthCheckResponse.ServingStatus"


class GrpcHealth(health_pb2_grpc.HealthServicer):
    """The gRPC health protocol: `""` is liveness, a service's full name is its readiness.

    Liveness is SERVING from start to stop. Readiness is NOT_SERVING while a dependency is
    unhealthy, so that a balancer takes the instance out and nothing restarts it. Unlike grpcio's
    own servicer, watchers are told of a stop and then ended, so that they never hold it up.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._status: dict[str, _Serving] = dict.fromkeys(
            ("", *services), health_pb2.HealthCheckResponse.NOT_SERVING
        )
        self._closed = False
        self._changed = asyncio.Event()

    def set_all(self, *, live: bool, ready: bool) -> None:
        """Set liveness and the readiness of every service."""
        if self._closed:
            return
        statuses = {
            name: health_pb2.HealthCheckResponse.SERVING
            if (ready if name else live)
            else health_pb2.HealthCheckResponse.NOT_SERVING
            for name in self._status
        }
        if statuses != self._status:
            self._status = statuses
            self._wake()

    def close(self) -> None:
        """Say NOT_SERVING for good and end every watch."""
        self.set_all(live=False, ready=False)
        self._closed = True
        self._wake()

    async def Check(  # noqa: N802 - the name is the contract's
        self,
        request: health_pb2.HealthCheckRequest,
        context: _Context,
    ) -> health_pb2.HealthCheckResponse:
        """Answer the present status of one service."""
        status = self._status.get(request.service)
        if status is None:
            raise NotFound(
                f"unknown service {request.service!r}; known are "
                + ", ".join(repr(name) for name in self._status),
                reason="SERVICE_UNKNOWN",
                metadata={"service": request.service},
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802 - the name is the contract's
        self,
        request: health_pb2.HealthCheckRequest,
        context: _Context,
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Stream the status of one service: now, and whenever it changes."""
        last: _Serving | None = None
        while True:
            changed = self._changed
            status = self._status.get(
                request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            )
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            elif self._closed:
                return
            else:
                await changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
