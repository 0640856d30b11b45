"""JSON-RPC 2.0 as Deribit speaks it, over WebSocket and over HTTP.

Follows "JSON-RPC" and "RPC error codes" of the Deribit documentation.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

__all__ = [
    "BAD_REQUEST",
    "INVALID_PARAMS",
    "METHOD_NOT_FOUND",
    "MUST_BE_WEBSOCKET",
    "RAW_UNAUTHORIZED",
    "TOO_MANY_REQUESTS",
    "UNAUTHORIZED",
    "RpcError",
    "RpcRequest",
    "error_reply",
    "invalid",
    "parse_request",
    "result_reply",
]

METHOD_NOT_FOUND = -32601
"""There is no such method."""
INVALID_PARAMS = -32602
"""A parameter is missing or wrong; the data names it."""
TOO_MANY_REQUESTS = 10028
"""The credits are used up; the venue ends the session."""
MUST_BE_WEBSOCKET = 10030
"""The method needs a WebSocket."""
BAD_REQUEST = 11050
"""The request could not be read."""
UNAUTHORIZED = 13009
"""A private method without a token."""
RAW_UNAUTHORIZED = 13778
"""A `.raw` channel without authentication."""

_LONGEST_ID = 256


class RpcError(Exception):
    """A request that the venue answers with an error."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        self.code = code
        self.message = message
        self.data = data
        super().__init__(f"{code} {message}")


@dataclass(frozen=True, slots=True)
class RpcRequest:
    """A request as it was read."""

    number: object
    """The `id` to echo; None when the request carried none."""
    method: str
    """With its scope, such as `public/subscribe`."""
    params: Mapping[str, object]
    """The named parameters."""


def invalid(reason: str, parameter: str) -> NoReturn:
    """Refuse a parameter in the venue's words.

    Raises:
        RpcError: always, with code -32602.

    """
    raise RpcError(INVALID_PARAMS, "Invalid params", {"reason": reason, "param": parameter})


def parse_request(text: str | bytes) -> RpcRequest:
    """Read a request's text.

    Raises:
        RpcError: when it is not a request; its `data` says why, as the venue's does.

    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise RpcError(BAD_REQUEST, "bad_request", "invalid json") from None
    if not isinstance(message, dict):
        raise RpcError(BAD_REQUEST, "bad_request", "expected an object")
    number, method, params = message.get("id"), message.get("method"), message.get("params")
    if not isinstance(method, str):
        raise RpcError(BAD_REQUEST, "bad_request", "method is required")
    if isinstance(number, list | dict | bool | float) or len(str(number)) > _LONGEST_ID:
        raise RpcError(BAD_REQUEST, "bad_request", "id must be an integer or a string")
    if params is None:
        params = {}
    if not isinstance(params, dict):
        raise RpcError(INVALID_PARAMS, "Invalid params", {"reason": "params must be an object"})
    return RpcRequest(number, method.removeprefix("/api/v2/").strip("/"), params)


def result_reply(number: object, result: bytes, arrived_us: int) -> bytes:
    """Return the reply to a request, `result` being JSON already; no `id` where None was sent."""
    return _envelope(number, b'"result":' + result, arrived_us)


def error_reply(number: object, error: RpcError, arrived_us: int) -> bytes:
    """Return the error reply to a request."""
    told: dict[str, object] = {"code": error.code}
    if error.data is not None:
        told["data"] = error.data
    told["message"] = error.message
    return _envelope(number, b'"error":' + _json(told), arrived_us)


def _envelope(number: object, body: bytes, arrived_us: int) -> bytes:
    now_us = max(arrived_us, time.time_ns() // 1000)
    identity = b"" if number is None else b'"id":%b,' % _json(number)
    return b'{"jsonrpc":"2.0",%b%b,"usIn":%d,"usOut":%d,"usDiff":%d,"testnet":false}' % (
        identity,
        body,
        arrived_us,
        now_us,
        now_us - arrived_us,
    )


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
