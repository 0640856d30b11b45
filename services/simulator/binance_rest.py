"""Binance spot REST, public part: `/api/v3`, with its weights, limits and errors.

Follows "Public Rest API for Binance" and "Error codes for Binance" of the spot API documentation.
"""

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import web

from services.simulator.binance_candles import INTERVALS, fold, minutes_of
from services.simulator.binance_http import (
    BinanceHttp,
    Refused,
    check_names,
    json_answer,
    legal_symbol,
    not_found,
    number_of,
    rate_limit,
)
from services.simulator.fixed import SCALE, eight_decimals
from services.simulator.instrument import SymbolSpec
from services.simulator.market import AggregateTrade, BookState, Candle, Ticker, Trade
from services.simulator.rest_trouble import past_trades

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = ["BinanceRest"]

_MOST_LEVELS = 5000
_DEFAULT_LEVELS = 100
_MOST_TRADES = 1000
_DEFAULT_TRADES = 500
_MOST_CANDLES = 1000
_ALL_TRADES = 1_000_000


class BinanceRest(BinanceHttp):
    """The handlers of one simulated venue."""

    def __init__(
        self, venue: "SimulatedVenue", aggregates: Mapping[str, deque[AggregateTrade]]
    ) -> None:
        """Serve `venue`; `aggregates` are its newest aggregate trades by symbol, oldest first."""
        super().__init__(venue)
        self._aggregates = aggregates

    def routes(self) -> list[web.RouteDef]:
        """`/api/v3/...`."""
        return [
            web.get("/api/v3/ping", self.limited(1, self._ping)),
            web.get("/api/v3/time", self.limited(1, self._time)),
            web.get("/api/v3/exchangeInfo", self.limited(20, self._exchange_info)),
            web.get("/api/v3/depth", self.limited(_depth_weight, self._depth)),
            web.get("/api/v3/trades", self.limited(25, self._trades)),
            web.get("/api/v3/historicalTrades", self.limited(25, self._historical)),
            web.get("/api/v3/aggTrades", self.limited(4, self._aggregate_trades)),
            web.get("/api/v3/klines", self.limited(2, self._candles)),
            web.get("/api/v3/ticker/24hr", self.limited(_ticker_weight, self._ticker)),
            web.route("*", "/api/{rest:.*}", self.limited(1, not_found)),
        ]

    async def _ping(self, request: web.Request) -> web.Response:
        check_names(request, ())
        return json_answer({})

    async def _time(self, request: web.Request) -> web.Response:
        check_names(request, ())
        return json_answer({"serverTime": _now(request)})

    async def _depth(self, request: web.Request) -> web.Response:
        check_names(request, ("symbol", "limit"))
        symbol = self.symbol(request)
        limit = min(_limit(request, _DEFAULT_LEVELS), _MOST_LEVELS)
        book = self.venue.rest_book(symbol, limit, request.path)
        return web.Response(body=_book(book), content_type="application/json")

    async def _trades(self, request: web.Request) -> web.Response:
        check_names(request, ("symbol", "limit"))
        symbol = self.symbol(request)
        limit = min(_limit(request, _DEFAULT_TRADES), _MOST_TRADES)
        return self._told_trades(request, symbol, self.market.recent_trades(symbol, limit))

    async def _historical(self, request: web.Request) -> web.Response:
        check_names(request, ("symbol", "limit", "fromId"))
        symbol = self.symbol(request)
        limit = min(_limit(request, _DEFAULT_TRADES), _MOST_TRADES)
        if "fromId" not in request.query:
            return self._told_trades(request, symbol, self.market.recent_trades(symbol, limit))
        first = number_of(request, "fromId", 0)
        known = self.market.recent_trades(symbol, _ALL_TRADES)
        wanted = [trade for trade in known if trade.trade_id >= first][:limit]
        return self._told_trades(request, symbol, wanted)

    def _told_trades(
        self, request: web.Request, symbol: str, trades: Sequence[Trade]
    ) -> web.Response:
        scale = 1 if _microseconds(request) else 1000
        return json_answer(
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
                for trade in past_trades(self.venue, request.path, symbol, trades)
            ]
        )

    async def _aggregate_trades(self, request: web.Request) -> web.Response:
        check_names(request, ("symbol", "fromId", "startTime", "endTime", "limit"))
        symbol = self.symbol(request)
        limit = min(_limit(request, _DEFAULT_TRADES), _MOST_TRADES)
        kept = self._aggregates.get(symbol, ())
        known = past_trades(self.venue, request.path, symbol, kept)
        if "fromId" in request.query:
            first = number_of(request, "fromId", 0)
            known = [trade for trade in known if trade.aggregate_id >= first][:limit]
        elif "startTime" in request.query or "endTime" in request.query:
            begin, end = _span(request)
            known = [trade for trade in known if begin <= trade.time_us // 1000 <= end][:limit]
        scale = 1 if _microseconds(request) else 1000
        return json_answer(
            [
                {
                    "a": trade.aggregate_id,
                    "p": eight_decimals(trade.price),
                    "q": eight_decimals(trade.quantity),
                    "f": trade.first_trade_id,
                    "l": trade.last_trade_id,
                    "T": trade.time_us // scale,
                    "m": trade.buyer_is_maker,
                    "M": True,
                }
                for trade in known[-limit:]
            ]
        )

    async def _candles(self, request: web.Request) -> web.Response:
        check_names(request, ("symbol", "interval", "startTime", "endTime", "timeZone", "limit"))
        symbol = self.symbol(request)
        interval = request.query.get("interval", "")
        if interval not in INTERVALS:
            raise Refused(-1120, "Invalid interval.")
        limit = min(_limit(request, _DEFAULT_TRADES), _MOST_CANDLES)
        begin, end = _span(request)
        minutes = self.market.candles(symbol, limit * minutes_of(interval))
        candles = [
            candle for candle in fold(minutes, interval) if begin <= candle.open_us // 1000 <= end
        ]
        scale = 1 if _microseconds(request) else 1000
        return json_answer([_candle(candle, scale) for candle in candles[-limit:]])

    async def _ticker(self, request: web.Request) -> web.Response:
        check_names(request, ("symbol", "symbols", "type"))
        asked = self._asked_symbols(request)
        names = list(self.market.symbols) if asked is None else asked
        if any(name not in self.market.symbols for name in names):
            raise Refused(-1121, "Invalid symbol.")
        scale = 1 if _microseconds(request) else 1000
        told = [_day(self.market.ticker(name), scale) for name in names]
        return json_answer(told[0] if "symbol" in request.query else told)

    async def _exchange_info(self, request: web.Request) -> web.Response:
        check_names(
            request, ("symbol", "symbols", "permissions", "showPermissionSets", "symbolStatus")
        )
        asked = self._asked_symbols(request)
        captured = self.market.exchange_info()
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
            listing = {name: _listed(spec) for name, spec in self.market.symbols.items()}
        if asked is not None and any(name not in listing for name in asked):
            raise Refused(-1121, "Invalid symbol.")
        info["symbols"] = [
            entry for name, entry in listing.items() if asked is None or name in asked
        ]
        return json_answer(info)

    def _asked_symbols(self, request: web.Request) -> list[str] | None:
        if "symbol" in request.query and "symbols" in request.query:
            raise Refused(-1128, "Combination of optional parameters invalid.")
        if "symbol" in request.query:
            return [legal_symbol(request.query["symbol"])]
        if "symbols" not in request.query:
            return None
        try:
            names = json.loads(request.query["symbols"])
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise Refused(
                -1100,
                "Illegal characters found in parameter 'symbols'; legal range is "
                r"'^\[(\"[A-Z0-9\-_.]{1,50}\"(,\"[A-Z0-9\-_.]{1,50}\"){0,}){0,1}\]$'.",
            )
        return names

    def _rate_limits(self) -> list[dict[str, object]]:
        return [
            rate_limit("REQUEST_WEIGHT", "MINUTE", 1, self.pool.limit),
            rate_limit("ORDERS", "SECOND", 10, 100),
            rate_limit("ORDERS", "DAY", 1, 200_000),
            rate_limit("RAW_REQUESTS", "MINUTE", 5, 61_000),
        ]


def _depth_weight(query: Mapping[str, str]) -> int:
    text = query.get("limit", str(_DEFAULT_LEVELS))
    limit = int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else 0
    for most, weight in ((100, 5), (500, 25), (1000, 50)):
        if limit <= most:
            return weight
    return 250


def _ticker_weight(query: Mapping[str, str]) -> int:
    return 2 if "symbol" in query else 80


def _limit(request: web.Request, default: int) -> int:
    limit = number_of(request, "limit", default)
    if limit == 0:
        raise Refused(-1130, "Data sent for parameter 'limit' is not valid.")
    return limit


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


def _span(request: web.Request) -> tuple[int, int]:
    begin = number_of(request, "startTime", 0)
    end = number_of(request, "endTime", 10**18)
    if begin > end:
        raise Refused(-1023, "Start time is greater than end time.")
    return begin, end


def _candle(candle: Candle, scale: int) -> list[object]:
    return [
        candle.open_us // scale,
        eight_decimals(candle.open),
        eight_decimals(candle.high),
        eight_decimals(candle.low),
        eight_decimals(candle.close),
        eight_decimals(candle.volume),
        candle.close_us // scale,
        eight_decimals(candle.quote_volume),
        candle.trades,
        eight_decimals(candle.taker_volume),
        eight_decimals(candle.taker_quote_volume),
        "0",
    ]


def _day(day: Ticker, scale: int) -> dict[str, object]:
    average = day.quote_volume * SCALE // day.volume if day.volume else 0
    return {
        "symbol": day.symbol,
        "priceChange": eight_decimals(day.last - day.open),
        "priceChangePercent": f"{(day.last - day.open) / day.open * 100:.3f}",
        "weightedAvgPrice": eight_decimals(average),
        "prevClosePrice": eight_decimals(day.previous_close),
        "lastPrice": eight_decimals(day.last),
        "lastQty": eight_decimals(day.last_quantity),
        "bidPrice": eight_decimals(day.bid),
        "bidQty": eight_decimals(day.bid_quantity),
        "askPrice": eight_decimals(day.ask),
        "askQty": eight_decimals(day.ask_quantity),
        "openPrice": eight_decimals(day.open),
        "highPrice": eight_decimals(day.high),
        "lowPrice": eight_decimals(day.low),
        "volume": eight_decimals(day.volume),
        "quoteVolume": eight_decimals(day.quote_volume),
        "openTime": day.open_us // scale,
        "closeTime": day.time_us // scale,
        "firstId": day.first_trade_id,
        "lastId": day.last_trade_id,
        "count": day.trades,
    }


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


def _microseconds(request: web.Request) -> bool:
    return request.headers.get("X-MBX-TIME-UNIT", "").upper() == "MICROSECOND"


def _now(request: web.Request) -> int:
    return time.time_ns() // (1_000 if _microseconds(request) else 1_000_000)
