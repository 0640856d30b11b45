import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from services.shared.errors import FieldViolation, InvalidArgument
from services.shared.health import DependencyStatus
from services.shared.service import BaseService
from tests.integration.echo_service.contract import (
    ECHO_SERVICE,
    EchoResponse,
    add_EchoServiceServicer_to_server,
)


class EchoService(BaseService):
    """Says back what it hears, and counts the seconds as its only dependency."""

    name = "echo"
    grpc_services = (ECHO_SERVICE,)

    async def setup(self, stack: contextlib.AsyncExitStack) -> None:
        self.heartbeat = time.monotonic()
        self.spawn(self._beat(), "heartbeat")

    def register(self, server: grpc.aio.Server) -> None:
        add_EchoServiceServicer_to_server(self, server)

    def dependencies(self) -> Mapping[str, DependencyStatus]:
        age = time.monotonic() - self.heartbeat
        if age > 10:
            return {"heart": DependencyStatus.degraded(f"no beat for {age:.0f} s")}
        return {"heart": DependencyStatus.healthy(age_seconds=round(age, 3))}

    async def Echo(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.fail == "argument":
            raise InvalidArgument(
                "expected text in lower case",
                reason="TEXT_NOT_LOWER",
                metadata={"text": request.text},
                violations=[FieldViolation("text", "expected lower case", "CASE")],
            )
        if request.fail == "bug":
            raise ValueError("password=hunter2 of nats://user:hunter2@host")
        if request.fail == "abort":
            await context.abort(grpc.StatusCode.DATA_LOSS, "by hand")
        if request.fail == "hang":
            await asyncio.Event().wait()
        self.log.info("echo", text=request.text)
        return EchoResponse(text=request.text)

    async def StreamEcho(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        for _ in range(request.count):
            yield EchoResponse(text=request.text)
        if request.fail == "bug":
            raise ValueError("hunter2")
        if request.fail == "deaf":
            await asyncio.Event().wait()
        if request.fail == "open":
            await self.stopping.wait()
            yield EchoResponse(text="stopping")

    async def Collect(self, requests: AsyncIterator[Any], context: Any) -> Any:  # noqa: N802
        return EchoResponse(text="".join([request.text async for request in requests]))

    async def Chat(  # noqa: N802
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        async for request in requests:
            yield EchoResponse(text=request.text)

    async def _beat(self) -> None:
        while True:
            self.heartbeat = time.monotonic()
            await asyncio.sleep(1)
