"""Deribit over HTTP: `GET /api/v2/public/...` and JSON-RPC by `POST /api/v2`.

Follows "JSON-RPC over HTTP" of the Deribit documentation: errors are HTTP 400 with the JSON-RPC
error in the body.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiohttp import web

from services.simulator.deribit_methods import DeribitMethods
from services.simulator.deribit_rpc import (
    MUST_BE_WEBSOCKET,
    TOO_MANY_REQUESTS,
    RpcError,
    RpcRequest,
    error_reply,
    parse_request,
    result_reply,
)
from services.simulator.rest_trouble import RestTrouble, TroubleKind

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = ["WEBSOCKET_ONLY", "DeribitRest"]

WEBSOCKET_ONLY = (
    "public/subscribe",
    "public/unsubscribe",
    "public/unsubscribe_all",
    "public/set_heartbeat",
    "public/disable_heartbeat",
)
"""Methods that HTTP answers with error 10030."""

_SYSTEM_MAINTENANCE = 11051
_RETRY_SECONDS = 1


class DeribitRest:
    """The HTTP handlers of one simulated venue."""

    def __init__(
        self,
        venue: "SimulatedVenue",
        methods: DeribitMethods,
        affordable: Callable[[str, str], bool],
    ) -> None:
        """`affordable(peer, method)` takes the credits of a request, False when there are none."""
        self._venue = venue
        self._methods = methods
        self._affordable = affordable

    def routes(self) -> list[web.RouteDef]:
        """`/api/v2`."""
        return [
            web.get("/api/v2/{scope:public|private}/{method}", self._get),
            web.post("/api/v2", self._post),
            web.post("/api/v2/", self._post),
            web.get("/api/v2/{unknown:.*}", self._get),
        ]

    async def _get(self, request: web.Request) -> web.Response:
        arrived_us = time.time_ns() // 1000
        method = request.path.removeprefix("/api/v2/").strip("/")
        read = RpcRequest(None, method, dict(request.query))
        return await self._answer(request, read, arrived_us)

    async def _post(self, request: web.Request) -> web.Response:
        arrived_us = time.time_ns() // 1000
        try:
            read = parse_request(await request.read())
        except RpcError as error:
            return _answer(error_reply(None, error, arrived_us), 400)
        return await self._answer(request, read, arrived_us)

    async def _answer(
        self, request: web.Request, read: RpcRequest, arrived_us: int
    ) -> web.Response:
        path = f"/api/v2/{read.method}"
        self._venue.count_rest(path)
        symbol = read.params.get("instrument_name")
        trouble = await self._venue.rest_trouble(path, symbol if isinstance(symbol, str) else None)
        if trouble is not None:
            return _troubled(trouble, read.number, arrived_us)
        try:
            if read.method in WEBSOCKET_ONLY:
                raise RpcError(MUST_BE_WEBSOCKET, "must_be_websocket_request")
            if not self._affordable(request.remote or "", read.method):
                raise RpcError(TOO_MANY_REQUESTS, "too_many_requests")
            result = self._methods.call(read.method, read.params)
        except RpcError as error:
            answer = _answer(
                error_reply(read.number, error, arrived_us),
                429 if error.code == TOO_MANY_REQUESTS else 400,
            )
            if error.code == TOO_MANY_REQUESTS:
                answer.headers["Retry-After"] = str(_RETRY_SECONDS)
            return answer
        return _answer(result_reply(read.number, result, arrived_us), 200)


def _troubled(trouble: RestTrouble, number: object, arrived_us: int) -> web.Response:
    if trouble.kind is TroubleKind.ERROR:
        return web.Response(
            status=trouble.status,
            text=f"<html><body><h1>{trouble.status} Server Error</h1></body></html>",
            content_type="text/html",
        )
    if trouble.kind is TroubleKind.MAINTENANCE:
        error = RpcError(_SYSTEM_MAINTENANCE, "system_maintenance")
    else:
        error = RpcError(TOO_MANY_REQUESTS, "too_many_requests")
    answer = _answer(error_reply(number, error, arrived_us), trouble.status)
    if trouble.retry_after:
        answer.headers["Retry-After"] = str(trouble.retry_after)
    return answer


def _answer(body: bytes, status: int) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")
