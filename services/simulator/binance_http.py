"""What every Binance REST interface has in common: weights, limits, bans, faults, error answers.

Follows "General Info" and "Error Codes" of Binance's spot and futures documents.
"""

import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from aiohttp import web

from services.simulator.market import NotOfferedError
from services.simulator.rest_trouble import TroubleKind

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = [
    "BinanceHttp",
    "Handler",
    "Refused",
    "Weight",
    "check_names",
    "json_answer",
    "legal_symbol",
    "not_found",
    "number_of",
    "rate_limit",
]

_SYMBOL = re.compile(r"^[\w\-._]{1,50}$")
_SYMBOL_RANGE = r"^[\w\-._&&[^a-z]]{1,50}$"
_NUMBER = re.compile(r"^[0-9]{1,20}$")

Handler = Callable[[web.Request], Awaitable[web.Response]]
"""Answers one request; raises `Refused` for what the venue refuses."""

Weight = Callable[[Mapping[str, str]], int]
"""What a request costs, by its query."""


class Refused(Exception):  # noqa: N818 - an answer, not a failure of ours
    """A request that the venue answers with an error."""

    def __init__(self, code: int, text: str, status: int = 400) -> None:
        self.code = code
        self.text = text
        self.status = status
        super().__init__(text)


class BinanceHttp:
    """The frame around one simulated venue's handlers: each request is weighed, then faulted."""

    def __init__(self, venue: "SimulatedVenue") -> None:
        self.venue = venue
        self.market = venue.market
        self.pool = venue.weights

    def limited(self, weight: Weight | int, handler: Handler) -> Handler:
        """Return the handler behind the weight pool and the faults of the venue."""
        weigh = weight if callable(weight) else lambda _: weight

        async def limited(request: web.Request) -> web.Response:
            self.venue.count_rest(request.path)
            refusal = self.pool.take(weigh(request.query))
            if refusal is not None:
                response = self.too_many(refusal.status, refusal.retry_after)
            else:
                response = await self._answered(request, handler)
            response.headers["X-MBX-USED-WEIGHT"] = str(self.pool.used)
            response.headers["X-MBX-USED-WEIGHT-1M"] = str(self.pool.used)
            return response

        return limited

    async def _answered(self, request: web.Request, handler: Handler) -> web.Response:
        trouble = await self.venue.rest_trouble(request.path, request.query.get("symbol"))
        if trouble is not None:
            if trouble.kind in (TroubleKind.LIMITED, TroubleKind.BANNED):
                return self.too_many(trouble.status, trouble.retry_after)
            return _server_error(trouble.status)
        captured = self.market.captured_answer(request.path, request.query)
        if captured is not None:
            return web.Response(body=captured, content_type="application/json")
        try:
            return await handler(request)
        except Refused as refused:
            return json_answer({"code": refused.code, "msg": refused.text}, refused.status)
        except NotOfferedError as error:
            return json_answer(
                {"code": -1020, "msg": f"This operation is not supported: {error}"}, 400
            )

    def too_many(self, status: int, retry_after: int) -> web.Response:
        """Return the answer to who asked too much: 429, or 418 while banned."""
        if status == 418:
            until = int((time.time() + retry_after) * 1000)
            told = f"Way too much request weight used; IP banned until {until}."
        else:
            told = (
                "Too much request weight used; current limit is "
                f"{self.pool.limit} request weight per 1 MINUTE."
            )
        body = {"code": -1003, "msg": f"{told} Please use WebSocket Streams for live updates."}
        response = json_answer(body, status)
        response.headers["Retry-After"] = str(retry_after)
        return response

    def symbol(self, request: web.Request) -> str:
        """Return the listed symbol that the request names.

        Raises:
            Refused: when it names none, an illegal one, or one that is not listed.

        """
        if not request.query.get("symbol"):
            raise Refused(
                -1102,
                "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed.",
            )
        symbol = legal_symbol(request.query["symbol"])
        if symbol not in self.market.symbols:
            raise Refused(-1121, "Invalid symbol.")
        return symbol


def check_names(request: web.Request, known: tuple[str, ...]) -> None:
    """Refuse parameters that the endpoint does not read, and repeated ones.

    Raises:
        Refused: with the venue's words.

    """
    names = [name for name, _ in request.query.items()]
    if len(set(names)) != len(names):
        raise Refused(-1101, "Duplicate values for a parameter detected.")
    read = sum(name in known for name in names)
    if read != len(names):
        if not known:
            raise Refused(-1101, f"Too many parameters; expected '0' and received '{len(names)}'.")
        raise Refused(
            -1104,
            f"Not all sent parameters were read; read '{read}' parameter(s) but was sent "
            f"'{len(names)}'.",
        )


def legal_symbol(text: str, name: str = "symbol") -> str:
    """Return the text when it could be a symbol: letters of any alphabet, none in lower case.

    Raises:
        Refused: for any other text.

    """
    if not _SYMBOL.match(text) or text != text.upper():
        raise Refused(
            -1100,
            f"Illegal characters found in parameter '{name}'; legal range is '{_SYMBOL_RANGE}'.",
        )
    return text


def number_of(request: web.Request, name: str, default: int) -> int:
    """Return an unsigned number from the query, `default` when it is not there.

    Raises:
        Refused: for anything but 1 to 20 digits.

    """
    text = request.query.get(name)
    if text is None:
        return default
    if not _NUMBER.match(text):
        raise Refused(
            -1100,
            f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.",
        )
    return int(text)


def rate_limit(kind: str, interval: str, number: int, limit: int) -> dict[str, object]:
    """Return one entry of `rateLimits` in exchangeInfo."""
    return {"rateLimitType": kind, "interval": interval, "intervalNum": number, "limit": limit}


def json_answer(body: object, status: int = 200) -> web.Response:
    """Return a JSON answer, as compact as the venue's."""
    return web.Response(
        status=status,
        body=json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode(),
        content_type="application/json",
    )


async def not_found(request: web.Request) -> web.Response:
    """Answer a path that the venue does not have."""
    return web.Response(
        status=404,
        text=f"<html><body><h1>404 Not Found</h1>{request.method} {request.path}</body></html>",
        content_type="text/html",
    )


def _server_error(status: int) -> web.Response:
    if status in (500, 503):
        told = {
            500: (-1000, "An unknown error occurred while processing the request."),
            503: (-1001, "Internal error; unable to process your request. Please try again."),
        }[status]
        return json_answer({"code": told[0], "msg": told[1]}, status)
    return web.Response(
        status=status,
        text=f"<html><body><h1>{status} Server Error</h1></body></html>",
        content_type="text/html",
    )
