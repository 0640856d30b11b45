"""Binance spot REST, public part: `/api/v3`, with its weights, limits and errors.

Follows "Public Rest API for Binance" and "Error codes for Binance" of the spot API documentation.
"""

import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from services.simulator.fixed import SCALE, eight_decimals
from services.simulator.instrument import SymbolSpec
from services.simulator.market import BookState
from services.simulator.rest_trouble import rest_trouble

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = ["BinanceRest"]

_MOST_LEVELS = 5000
_DEFAULT_LEVELS = 100
_MOST_TRADES = 1000
_DEFAULT_TRADES = 500
_SYMBOL = re.compile(r"^[\w\-._]{1,50}$", re.ASCII)
_SYMBOL_RANGE = r"^[\w\-._&&[^a-z]]{1,50}$"
_LIMIT = re.compile(r"^[0-9]{1,20}$")

_Handler = Callable[[web.Request], Awaitable[web.Response]]


class _Refused(Exception):  # noqa: N818 - an answer, not a failure of ours
    """A request that the venue answers with an error."""

    def __init__(self, code: int, text: str, status: int = 400) -> None:
        self.code = code
        self.text = text
        self.status = status
        super().__init__(text)


class BinanceRest:
    """The handlers of one simulated venue."""

    def __init__(self, venue: "SimulatedVenue") -> None:
        self._venue = venue
        self._market = venue.market
        self._pool = venue.weights
        self._snapshots = 0

    def routes(self) -> list[web.RouteDef]:
        """`/api/v3/...`."""
        return [
            web.get("/api/v3/ping", self._limited(lambda _: 1, self._ping)),
            web.get("/api/v3/time", self._limited(lambda _: 1, self._time)),
            web.get("/api/v3/exchangeInfo", self._limited(lambda _: 20, self._exchange_info)),
            web.get("/api/v3/depth", self._limited(_depth_weight, self._depth)),
            web.get("/api/v3/trades", self._limited(lambda _: 25, self._trades)),
            web.route("*", "/api/{rest:.*}", self._limited(lambda _: 1, self._unknown)),
        ]

    def _limited(self, weight: Callable[[Mapping[str, str]], int], handler: _Handler) -> _Handler:
        async def limited(request: web.Request) -> web.Response:
            self._venue.count_rest(request.path)
            refusal = self._pool.take(weight(request.query))
            if refusal is not None:
                response = self._too_many(refusal.status, refusal.retry_after)
            else:
                response = await self._faulted(request, handler)
            response.headers["X-MBX-USED-WEIGHT"] = str(self._pool.used)
            response.headers["X-MBX-USED-WEIGHT-1M"] = str(self._pool.used)
            return response

        return limited

    async def _faulted(self, request: web.Request, handler: _Handler) -> web.Response:
        trouble = await rest_trouble(self._venue, request.path, request.query.get("symbol"))
        if trouble is not None and trouble.status in (418, 429):
            return self._too_many(trouble.status, trouble.retry_after)
        if trouble is not None:
            return _server_error(trouble.status)
        try:
            return await handler(request)
        except _Refused as refused:
            return _json({"code": refused.code, "msg": refused.text}, refused.status)

    def _too_many(self, status: int, retry_after: int) -> web.Response:
        if status == 418:
            until = int((time.time() + retry_after) * 1000)
            told = f"Way too much request weight used; IP banned until {until}."
        else:
            told = (
                "Too much request weight used; current limit is "
                f"{self._pool.limit} request weight per 1 MINUTE."
            )
        body = {"code": -1003, "msg": f"{told} Please use WebSocket Streams for live updates."}
        response = _json(body, status)
        response.headers["Retry-After"] = str(retry_after)
        return response

    async def _ping(self, request: web.Request) -> web.Response:
        _only(request, ())
        return _json({})

    async def _time(self, request: web.Request) -> web.Response:
        _only(request, ())
        return _json({"serverTime": _now(request)})

    async def _unknown(self, request: web.Request) -> web.Response:
        return web.Response(
            status=404,
            text=f"<html><body><h1>404 Not Found</h1>{request.method} {request.path}</body></html>",
            content_type="text/html",
        )

    async def _depth(self, request: web.Request) -> web.Response:
        _only(request, ("symbol", "limit"))
        symbol = self._symbol(request)
        limit = min(_limit(request, _DEFAULT_LEVELS), _MOST_LEVELS)
        self._market.snapshot_requested(symbol)
        book = self._venue.rest_book(symbol, limit, request.path)
        return web.Response(body=_book(book), content_type="application/json")

    async def _trades(self, request: web.Request) -> web.Response:
        _only(request, ("symbol", "limit"))
        symbol = self._symbol(request)
        limit = min(_limit(request, _DEFAULT_TRADES), _MOST_TRADES)
        scale = 1 if _microseconds(request) else 1000
        return _json(
            [
                {
                    "id": trade.trade_id,
                    "price": eight_decimals(trade.price),
                    "qty": eight_decimals(trade.quantity),
                    "quoteQty": eight_decimals(trade.price * trade.quantity // SCALE),
                    "time": trade.time_us // scale,
                    "isBuyerMaker": trade.buyer_is_maker,
                    "isBestMatch": True,
                }
                for trade in self._market.recent_trades(symbol, limit)
            ]
        )

    async def _exchange_info(self, request: web.Request) -> web.Response:
        _only(request, ("symbol", "symbols", "permissions", "showPermissionSets", "symbolStatus"))
        asked = self._asked_symbols(request)
        captured = self._market.exchange_info()
        if captured is not None and asked is None:
            return web.Response(body=captured, content_type="application/json")
        if captured is not None:
            info: dict[str, Any] = json.loads(captured)
            listing = {entry["symbol"]: entry for entry in info["symbols"]}
        else:
            info = {
                "timezone": "UTC",
                "serverTime": _now(request),
                "rateLimits": self._rate_limits(),
                "exchangeFilters": [],
            }
            listing = {name: _listed(spec) for name, spec in self._market.symbols.items()}
        if asked is not None and any(name not in listing for name in asked):
            raise _Refused(-1121, "Invalid symbol.")
        info["symbols"] = [
            entry for name, entry in listing.items() if asked is None or name in asked
        ]
        return _json(info)

    def _asked_symbols(self, request: web.Request) -> list[str] | None:
        if "symbol" in request.query and "symbols" in request.query:
            raise _Refused(-1128, "Combination of optional parameters invalid.")
        if "symbol" in request.query:
            return [_legal_symbol(request.query["symbol"])]
        if "symbols" not in request.query:
            return None
        try:
            names = json.loads(request.query["symbols"])
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _Refused(
                -1100,
                "Illegal characters found in parameter 'symbols'; legal range is "
                r"'^\[(\"[A-Z0-9\-_.]{1,50}\"(,\"[A-Z0-9\-_.]{1,50}\"){0,}){0,1}\]$'.",
            )
        return names

    def _rate_limits(self) -> list[dict[str, object]]:
        return [
            _rate("REQUEST_WEIGHT", "MINUTE", 1, self._pool.limit),
            _rate("ORDERS", "SECOND", 10, 100),
            _rate("ORDERS", "DAY", 1, 200_000),
            _rate("RAW_REQUESTS", "MINUTE", 5, 61_000),
        ]

    def _symbol(self, request: web.Request) -> str:
        if not request.query.get("symbol"):
            raise _Refused(
                -1102,
                "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed.",
            )
        symbol = _legal_symbol(request.query["symbol"])
        if symbol not in self._market.symbols:
            raise _Refused(-1121, "Invalid symbol.")
        return symbol


def _depth_weight(query: Mapping[str, str]) -> int:
    text = query.get("limit", str(_DEFAULT_LEVELS))
    limit = int(text) if _LIMIT.match(text) else 0
    for most, weight in ((100, 5), (500, 25), (1000, 50)):
        if limit <= most:
            return weight
    return 250


def _only(request: web.Request, known: tuple[str, ...]) -> None:
    names = [name for name, _ in request.query.items()]
    if len(set(names)) != len(names):
        raise _Refused(-1101, "Duplicate values for a parameter detected.")
    read = sum(name in known for name in names)
    if read != len(names):
        if not known:
            raise _Refused(-1101, f"Too many parameters; expected '0' and received '{len(names)}'.")
        raise _Refused(
            -1104,
            f"Not all sent parameters were read; read '{read}' parameter(s) but was sent "
            f"'{len(names)}'.",
        )


def _legal_symbol(text: str) -> str:
    if not _SYMBOL.match(text) or text != text.upper():
        raise _Refused(
            -1100,
            f"Illegal characters found in parameter 'symbol'; legal range is '{_SYMBOL_RANGE}'.",
        )
    return text


def _limit(request: web.Request, default: int) -> int:
    text = request.query.get("limit")
    if text is None:
        return default
    if not _LIMIT.match(text):
        raise _Refused(
            -1100,
            "Illegal characters found in parameter 'limit'; legal range is '^[0-9]{1,20}$'.",
        )
    if int(text) == 0:
        raise _Refused(-1130, "Data sent for parameter 'limit' is not valid.")
    return int(text)


def _book(book: BookState) -> bytes:
    return b'{"lastUpdateId":%d,"bids":[%b],"asks":[%b]}' % (
        book.update_id,
        _levels(book.bids),
        _levels(book.asks),
    )


def _levels(levels: tuple[tuple[int, int], ...]) -> bytes:
    return ",".join(
        f'["{eight_decimals(price)}","{eight_decimals(quantity)}"]' for price, quantity in levels
    ).encode()


def _listed(spec: SymbolSpec) -> dict[str, Any]:
    tick, lot = eight_decimals(spec.tick), eight_decimals(spec.lot)
    return {
        "symbol": spec.symbol,
        "status": "TRADING",
        "baseAsset": spec.base,
        "baseAssetPrecision": 8,
        "quoteAsset": spec.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "baseCommissionPrecision": 8,
        "quoteCommissionPrecision": 8,
        "orderTypes": [
            "LIMIT",
            "LIMIT_MAKER",
            "MARKET",
            "STOP_LOSS",
            "STOP_LOSS_LIMIT",
            "TAKE_PROFIT",
            "TAKE_PROFIT_LIMIT",
        ],
        "icebergAllowed": True,
        "ocoAllowed": True,
        "otoAllowed": True,
        "quoteOrderQtyMarketAllowed": True,
        "allowTrailingStop": True,
        "cancelReplaceAllowed": True,
        "amendAllowed": True,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": tick,
                "maxPrice": "1000000.00000000",
                "tickSize": tick,
            },
            {
                "filterType": "LOT_SIZE",
                "minQty": lot,
                "maxQty": "9000000.00000000",
                "stepSize": lot,
            },
            {"filterType": "ICEBERG_PARTS", "limit": 10},
            {
                "filterType": "NOTIONAL",
                "minNotional": "5.00000000",
                "applyMinToMarket": True,
                "maxNotional": "9000000.00000000",
                "applyMaxToMarket": False,
                "avgPriceMins": 5,
            },
            {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": 200},
        ],
        "permissions": [],
        "permissionSets": [["SPOT"]],
        "defaultSelfTradePreventionMode": "EXPIRE_MAKER",
        "allowedSelfTradePreventionModes": ["EXPIRE_TAKER", "EXPIRE_MAKER", "EXPIRE_BOTH"],
    }


def _rate(kind: str, interval: str, number: int, limit: int) -> dict[str, object]:
    return {"rateLimitType": kind, "interval": interval, "intervalNum": number, "limit": limit}


def _microseconds(request: web.Request) -> bool:
    return request.headers.get("X-MBX-TIME-UNIT", "").upper() == "MICROSECOND"


def _now(request: web.Request) -> int:
    return time.time_ns() // (1_000 if _microseconds(request) else 1_000_000)


def _server_error(status: int) -> web.Response:
    if status in (500, 503):
        told = {
            500: (-1000, "An unknown error occurred while processing the request."),
            503: (-1001, "Internal error; unable to process your request. Please try again."),
        }[status]
        return _json({"code": told[0], "msg": told[1]}, status)
    return web.Response(
        status=status,
        text=f"<html><body><h1>{status} Server Error</h1></body></html>",
        content_type="text/html",
    )


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=json.dumps(body, separators=(",", ":")).encode(),
        content_type="application/json",
    )
