"""The HTTP side of every service: `/health`, `/metrics`, and what a service adds of its own."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from services.shared.ports import bind_socket

__all__ = ["serve_http"]


@asynccontextmanager
async def serve_http(
    *,
    host: str,
    port: int,
    setting: str,
    health: Callable[[], tuple[int, dict[str, Any]]],
    registry: CollectorRegistry,
    more: Sequence[web.RouteDef] = (),
) -> AsyncIterator[int]:
    """Serve `/health` and `/metrics`, and give the real port.

    `health` gives the HTTP status and the JSON of `/health`; `setting` names the port's key in
    the configuration, for the error when it is taken (`StartupError`). `more` is what the service
    serves beside.
    """

    async def get_health(_request: web.Request) -> web.Response:
        status, body = health()
        return _json(body, status)

    async def get_metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    app = web.Application(middlewares=[_errors_as_json])
    app.router.add_get("/health", get_health)
    app.router.add_get("/metrics", get_metrics)
    app.router.add_routes(more)
    listening = bind_socket(host, port, setting)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    try:
        await runner.setup()
        await web.SockSite(runner, listening).start()
        real_port: int = listening.getsockname()[1]
        yield real_port
    finally:
        await runner.cleanup()
        listening.close()


def _json(body: dict[str, Any], status: int) -> web.Response:
    return web.json_response(
        body,
        status=status,
        headers={"Cache-Control": "no-store"},
        dumps=lambda value: json.dumps(value, default=str),
    )


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Any]
) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except web.HTTPException as error:
        code = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status, "BAD_REQUEST")
        paths = sorted({r.resource.canonical for r in request.app.router.routes() if r.resource})
        answer = _json(
            {
                "success": False,
                "error": {
                    "code": code,
                    "message": f"{request.method} {request.path} is not here; GET "
                    f"{', '.join(paths)} is",
                    "details": [],
                },
                "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
                "request_id": request.headers.get("x-request-id", ""),
            },
            error.status,
        )
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
