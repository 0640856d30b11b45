"""What a client may send on a Binance WebSocket: SUBSCRIBE and its kin, for spot and futures alike.

Follows "Live Subscribing/Unsubscribing to streams" of Binance's documents.
"""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from services.simulator.connection import Connection

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = ["answer"]


_METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")


def answer(
    venue: "SimulatedVenue",
    connection: Connection,
    text: str,
    subscribe: Callable[[str], None],
) -> bytes:
    """Perform a client's request and return the reply's text; never raises for bad input.

    `subscribe` begins one stream on that connection.
    """
    try:
        message = json.loads(text)
    except ValueError as error:
        where = f"line {getattr(error, 'lineno', 1)} column {getattr(error, 'colno', 1)}"
        return _error(3, f"Invalid JSON: expected value at {where}", None)
    except RecursionError:
        return _error(3, "Invalid JSON: recursion limit exceeded", None)
    if not isinstance(message, dict):
        return _error(2, "Invalid request: expected an object", None)
    number = message.get("id")
    if number is not None and (
        not isinstance(number, int | str) or isinstance(number, bool) or _negative(number)
    ):
        return _error(2, "Invalid request: request ID must be an unsigned integer", None)
    if "method" not in message:
        return _error(2, "Invalid request: missing field `method` at line 1 column 1", number)
    method, params = message["method"], message.get("params", [])
    if method not in _METHODS:
        return _error(
            2,
            f"Invalid request: unknown variant `{method}`, expected one of "
            f"{', '.join(f'`{known}`' for known in _METHODS)} at line 1 column 1",
            number,
        )
    if method == "LIST_SUBSCRIPTIONS":
        return _result(list(connection.streams), number)
    if method in ("SET_PROPERTY", "GET_PROPERTY"):
        return _property(connection, method, params, number)
    if not isinstance(params, list) or not all(isinstance(item, str) for item in params):
        return _error(2, "Invalid request: params must be an array of strings", number)
    streams = list(dict.fromkeys(cast("list[str]", params)))
    if method == "UNSUBSCRIBE":
        for stream in streams:
            venue.unsubscribe(connection, stream)
        return _result(None, number)
    limit = venue.settings.max_streams
    if len(connection.streams.keys() | set(streams)) > limit:
        return _error(2, f"Invalid request: more than {limit} streams on one connection", number)
    for stream in streams:
        if venue.subscription_refused(connection, stream):
            return _error(2, f"Invalid request: cannot subscribe to {stream}", number)
    for stream in streams:
        subscribe(stream)
    return _result(None, number)


def _property(
    connection: Connection, method: str, params: object, number: int | str | None
) -> bytes:
    asked: Sequence[object] = params if isinstance(params, list) else []
    # Every Binance protocol has a named tuple with this field for its variant.
    variant: Any = connection.variant
    if not asked or not isinstance(asked[0], str):
        return _error(2, "Invalid request: property name must be a string", number)
    if asked[0] != "combined":
        return _error(0, "Unknown property", number)
    if len(asked) > (2 if method == "SET_PROPERTY" else 1):
        return _error(2, "Invalid request: too many parameters", number)
    if method == "GET_PROPERTY":
        return _result(variant.combined, number)
    if len(asked) < 2 or not isinstance(asked[1], bool):
        return _error(1, "Invalid value type: expected Boolean", number)
    connection.variant = variant._replace(combined=asked[1])
    return _result(None, number)


def _negative(number: int | str) -> bool:
    return isinstance(number, int) and number < 0


def _result(result: object, number: int | str | None) -> bytes:
    return json.dumps({"result": result, "id": number}, separators=(",", ":")).encode()


def _error(code: int, text: str, number: int | str | None) -> bytes:
    told = {"error": {"code": code, "msg": text}, "id": number}
    return json.dumps(told, separators=(",", ":")).encode()
