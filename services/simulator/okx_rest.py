"""OKX REST API v5, public part: `/api/v5/market`, `/api/v5/public`, `/api/v5/rubik`.

Follows "Market Data", "Public Data", "Trading Statistics" and "REST API error codes" of the OKX
API v5 documentation.
"""

import json
import re
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from services.simulator.instrument import InstrumentKind, SymbolSpec
from services.simulator.limits import MessageRate
from services.simulator.market import NotOfferedError, UnknownSymbolError
from services.simulator.okx_candles import BARS, bars
from services.simulator.okx_frames import OkxFrames, dumps, instrument
from services.simulator.okx_listing import INSTRUMENT_TYPES, instrument_type
from services.simulator.okx_settings import OkxSettings
from services.simulator.reference import LongShortKind
from services.simulator.rest_trouble import RestTrouble, TroubleKind, past_trades

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = ["OkxRest"]

_Handler = Callable[[web.Request], Awaitable[object]]
_TYPES = tuple(INSTRUMENT_TYPES.values())
_WINDOW_SECONDS = 2.0
_MOST_RATIOS = 100
_ALL_TRADES = 1_000_000
_RATIO_PERIODS = {
    "5m": 5,
    "15m": 15,
    "30m": 30,
    "1H": 60,
    "2H": 120,
    "4H": 240,
    "6H": 360,
    "12H": 720,
    "1D": 1440,
}
_RATIOS = {
    "long-short-account-ratio-contract": LongShortKind.ALL_ACCOUNTS,
    "long-short-account-ratio-contract-top-trader": LongShortKind.TOP_ACCOUNTS,
    "long-short-position-ratio-contract-top-trader": LongShortKind.TOP_POSITIONS,
}
_NUMBER = re.compile(r"[0-9]{1,6}\Z")


class _Refused(Exception):  # noqa: N818 - an answer, not a failure of ours
    """A request that the venue answers with an error."""

    def __init__(self, code: str, text: str, status: int = 400) -> None:
        self.code = code
        self.text = text
        self.status = status
        super().__init__(text)


class OkxRest:
    """The handlers of one simulated venue."""

    def __init__(self, venue: "SimulatedVenue", frames: OkxFrames) -> None:
        self._venue = venue
        self._market = venue.market
        self._frames = frames
        self._rates: dict[str, MessageRate] = {}

    def routes(self) -> list[web.RouteDef]:
        """`/api/v5/...`, each with the requests that may be made in two seconds."""
        return [
            self._route("/api/v5/public/time", 10, self._time),
            self._route("/api/v5/public/instruments", 20, self._instruments),
            self._route("/api/v5/public/underlying", 20, self._underlying),
            self._route("/api/v5/public/funding-rate", 10, self._funding),
            self._route("/api/v5/public/open-interest", 20, self._open_interest),
            self._route("/api/v5/public/mark-price", 10, self._mark),
            self._route("/api/v5/public/opt-summary", 20, self._option_summary),
            self._route("/api/v5/market/books", 40, self._books),
            self._route("/api/v5/market/trades", 100, self._trades),
            self._route("/api/v5/market/history-trades", 20, self._past_trades),
            self._route("/api/v5/market/candles", 40, self._candles),
            self._route("/api/v5/market/ticker", 20, self._ticker),
            self._route("/api/v5/market/tickers", 20, self._tickers),
            self._route("/api/v5/market/index-tickers", 20, self._index),
            *(
                self._route(f"/api/v5/rubik/stat/contracts/{name}", 5, self._ratio)
                for name in _RATIOS
            ),
            web.route("*", "/api/{rest:.*}", self._unknown),
        ]

    def _route(self, path: str, limit: int, handler: _Handler) -> web.RouteDef:
        settings = self._venue.settings
        if isinstance(settings, OkxSettings) and settings.rest_limits:
            self._rates[path] = MessageRate(limit, _WINDOW_SECONDS)

        async def limited(request: web.Request) -> web.Response:
            self._venue.count_rest(request.path)
            rate = self._rates.get(path)
            if rate is not None and not rate.allow():
                return _too_many(429, 0)
            trouble = await self._venue.rest_trouble(request.path, request.query.get("instId"))
            if trouble is not None:
                return _troubled(trouble)
            try:
                data = await handler(request)
            except _Refused as refused:
                return _json(
                    {"code": refused.code, "data": [], "msg": refused.text}, refused.status
                )
            except (NotOfferedError, UnknownSymbolError):
                return _json({"code": "51001", "data": [], "msg": "Instrument ID does not exist"})
            if path.startswith("/api/v5/market"):
                return _json({"code": "0", "msg": "", "data": data})
            return _json({"code": "0", "data": data, "msg": ""})

        return web.get(path, limited)

    async def _time(self, _: web.Request) -> object:
        return [{"ts": str(time.time_ns() // 1_000_000)}]

    async def _instruments(self, request: web.Request) -> object:
        captured = self._market.captured_answer(request.path, request.query)
        if captured is not None:
            return json.loads(captured)["data"]
        return [instrument(spec) for spec in self._of_type(request, family_needed=True)]

    async def _underlying(self, request: web.Request) -> object:
        named = _type(request)
        families = {
            spec.underlying
            for spec in self._market.symbols.values()
            if instrument_type(spec) == named and spec.underlying
        }
        return [sorted(families)]

    async def _funding(self, request: web.Request) -> object:
        if request.query.get("instId") == "ANY":
            specs = [
                spec
                for spec in self._market.symbols.values()
                if spec.kind is InstrumentKind.PERPETUAL
            ]
        else:
            specs = [self._spec(request)]
        return [
            self._frames.funding(spec, self._market.funding_rate(spec.symbol)) for spec in specs
        ]

    async def _open_interest(self, request: web.Request) -> object:
        return [
            self._frames.open_interest(spec, self._market.open_interest(spec.symbol))
            for spec in self._of_type(request, family_needed=True)
        ]

    async def _mark(self, request: web.Request) -> object:
        return [
            self._frames.mark(spec, self._market.mark_price(spec.symbol))
            for spec in self._of_type(request)
        ]

    async def _option_summary(self, request: web.Request) -> object:
        family = request.query.get("instFamily") or request.query.get("uly")
        if not family:
            raise _Refused("50015", "Either parameter uly or instFamily is required")
        return [
            self._frames.greeks(spec, self._market.greeks(spec.symbol))
            for spec in self._market.symbols.values()
            if spec.family == family and spec.kind is InstrumentKind.OPTION
        ]

    async def _books(self, request: web.Request) -> object:
        symbol = self._spec(request).symbol
        depth = _integer(request, "sz", 1, 400)
        book = self._venue.rest_book(symbol, depth, request.path)
        return [
            {
                "asks": _rows(self._frames.levels(book.asks)),
                "bids": _rows(self._frames.levels(book.bids)),
                "ts": str(self._market.time_us // 1000),
                "seqId": book.update_id,
            }
        ]

    async def _trades(self, request: web.Request) -> object:
        symbol = self._spec(request).symbol
        latest = self._market.recent_trades(symbol, _integer(request, "limit", 100, 500))
        trades = past_trades(self._venue, request.path, symbol, latest)
        return [self._frames.trade_row(trade) for trade in reversed(trades)]

    async def _past_trades(self, request: web.Request) -> object:
        # Pages by trade id (`type` 1), which is how it is asked for unless it says otherwise.
        if request.query.get("type", "1") != "1":
            raise _Refused("51000", "Parameter type error")
        symbol = self._spec(request).symbol
        after = request.query.get("after") or str(2**63)
        before = request.query.get("before") or "0"
        if not (after.isdecimal() and before.isdecimal()):
            raise _Refused("51000", "Parameter after error")
        all_kept = self._market.recent_trades(symbol, _ALL_TRADES)
        kept = past_trades(self._venue, request.path, symbol, all_kept)
        told = [trade for trade in kept if int(before) < trade.trade_id < int(after)]
        limit = _integer(request, "limit", 100, 100)
        return [self._frames.trade_row(trade) for trade in reversed(told[-limit:])]

    async def _candles(self, request: web.Request) -> object:
        spec = self._spec(request)
        bar = request.query.get("bar", "1m")
        if bar not in BARS:
            raise _Refused("51000", "Parameter bar error")
        count = _integer(request, "limit", 100, 300)
        told = bars(self._market, spec.symbol, bar, count)
        return _rows(",".join(self._frames.candle_row(spec, each) for each in told))

    async def _ticker(self, request: web.Request) -> object:
        spec = self._spec(request)
        return [self._frames.ticker(spec, self._market.ticker(spec.symbol))]

    async def _tickers(self, request: web.Request) -> object:
        return [
            self._frames.ticker(spec, self._market.ticker(spec.symbol))
            for spec in self._of_type(request)
        ]

    async def _index(self, request: web.Request) -> object:
        name = request.query.get("instId")
        if not name:
            raise _Refused("50014", "Parameter instId can not be empty.")
        return [self._frames.index(self._market.index_price(name))]

    async def _ratio(self, request: web.Request) -> object:
        minutes = _RATIO_PERIODS.get(request.query.get("period", "5m"))
        if minutes is None:
            raise _Refused("51000", "Parameter period error")
        kind = _RATIOS[request.path.rpartition("/")[2]]
        count = _integer(request, "limit", _MOST_RATIOS, _MOST_RATIOS)
        told = self._market.long_short(
            self._spec(request).symbol, kind, minutes * 60_000_000, count
        )
        return [[str(each.time_us // 1000), _four(each.ratio)] for each in reversed(told)]

    async def _unknown(self, request: web.Request) -> web.Response:
        self._venue.count_rest(request.path)
        return _json({"msg": "Invalid path", "code": "404", "data": []}, 404)

    def _spec(self, request: web.Request) -> SymbolSpec:
        symbol = request.query.get("instId")
        if not symbol:
            raise _Refused("50014", "Parameter instId can not be empty.")
        spec = self._market.symbols.get(symbol)
        if spec is None:
            raise _Refused("51001", "Instrument ID does not exist", 200)
        return spec

    def _of_type(self, request: web.Request, *, family_needed: bool = False) -> list[SymbolSpec]:
        named = _type(request)
        family = request.query.get("instFamily") or request.query.get("uly")
        symbol = request.query.get("instId")
        if named == "OPTION" and family_needed and not (family or symbol):
            raise _Refused("50015", "Either parameter uly or instFamily is required")
        return [
            spec
            for spec in self._market.symbols.values()
            if instrument_type(spec) == named
            and (not family or spec.family == family)
            and (not symbol or spec.symbol == symbol)
        ]


def _type(request: web.Request) -> str:
    named = request.query.get("instType", "")
    if not named:
        raise _Refused("50014", "Parameter instType can not be empty.")
    if named not in (*_TYPES, "MARGIN"):
        raise _Refused("51000", "Parameter instType error")
    return named


def _integer(request: web.Request, name: str, default: int, most: int) -> int:
    text = request.query.get(name)
    if text is None or text == "":
        return default
    if not _NUMBER.match(text) or int(text) < 1:
        raise _Refused("51000", f"Parameter {name} error")
    return min(int(text), most)


def _four(units: int) -> str:
    return f"{units // 10**8}.{units % 10**8 // 10**4:04d}"


def _rows(text: str) -> list[list[str]]:
    rows: list[list[str]] = json.loads(f"[{text}]")
    return rows


def _troubled(trouble: RestTrouble) -> web.Response:
    if trouble.kind in (TroubleKind.LIMITED, TroubleKind.BANNED):
        return _too_many(trouble.status, trouble.retry_after)
    if trouble.status == 503:
        text = "Service temporarily unavailable. Please try again later"
        return _json({"code": "50001", "data": [], "msg": text}, 503)
    text = "System error. Please try again later"
    return _json({"code": "50026", "data": [], "msg": text}, trouble.status)


def _too_many(status: int, retry_after: int) -> web.Response:
    response = _json({"msg": "Too Many Requests", "code": "50011"}, status)
    if retry_after:
        response.headers["Retry-After"] = str(retry_after)
    return response


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(status=status, body=dumps(body), content_type="application/json")
