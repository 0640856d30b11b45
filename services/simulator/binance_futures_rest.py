"""Binance futures REST, public part: `/fapi/v1` and `/dapi/v1`, with weights, limits and errors.

Follows "Market Data Endpoints" of the USD-M and COIN-M documents.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import web

from services.simulator.binance_candles import INTERVALS, fold, minutes_of
from services.simulator.binance_futures_contracts import Contract
from services.simulator.binance_futures_data import FuturesData
from services.simulator.binance_futures_depth import next_first_id
from services.simulator.binance_futures_info import exchange_info
from services.simulator.binance_http import (
    BinanceHttp,
    Refused,
    check_names,
    json_answer,
    legal_symbol,
    not_found,
    number_of,
)
from services.simulator.fixed import SCALE, eight_decimals
from services.simulator.market import BookState, Candle, Ticker, UpdateIdUnavailableError
from services.simulator.rest_trouble import past_trades

if TYPE_CHECKING:
    from services.simulator.binance_futures import BinanceFuturesProtocol
    from services.simulator.server import SimulatedVenue

__all__ = ["FuturesRest"]

_DEPTH_WEIGHTS = {5: 2, 10: 2, 20: 2, 50: 2, 100: 5, 500: 10, 1000: 20}
_DEFAULT_LEVELS = 500
_MOST_TRADES = 1000
_DEFAULT_TRADES = 500
_MOST_HISTORY = 500
_DEFAULT_HISTORY = 100
_MOST_CANDLES = 1500


class FuturesRest(BinanceHttp):
    """The handlers of one simulated futures venue."""

    def __init__(self, venue: "SimulatedVenue", protocol: "BinanceFuturesProtocol") -> None:
        super().__init__(venue)
        self._protocol = protocol
        self._inverse = protocol.inverse
        self._data = FuturesData(self, protocol)
        self._books = 0

    def routes(self) -> list[web.RouteDef]:
        """`/fapi/v1/...` or `/dapi/v1/...`, `/futures/data/...`, and 404 for everything else."""
        inverse = self._inverse
        handlers: list[tuple[str, Any, Any]] = [
            ("ping", 1, self._ping),
            ("time", 1, self._time),
            ("exchangeInfo", 1, self._exchange_info),
            ("depth", _depth_weight, self._depth),
            ("trades", 5, self._trades),
            ("historicalTrades", 20, self._historical),
            ("aggTrades", 20, self._aggregates),
            ("klines", _candles_weight, self._candles),
            ("premiumIndex", 10 if inverse else _by_symbol(1, 10), self._premium_index),
            ("fundingRate", 1, self._funding_rate),
            ("fundingInfo", 0, self._funding_info),
            ("openInterest", 1, self._open_interest),
            ("ticker/24hr", _by_symbol(1, 40), self._ticker),
        ]
        unknown = self.limited(1, not_found)
        return [
            *(
                web.get(f"{self._protocol.prefix}/{name}", self.limited(weight, handler))
                for name, weight, handler in handlers
            ),
            *self._data.routes(),
            web.route("*", self._protocol.prefix.partition("/v1")[0] + "/{rest:.*}", unknown),
        ]

    async def _ping(self, request: web.Request) -> web.Response:
        check_names(request, ())
        return json_answer({})

    async def _time(self, request: web.Request) -> web.Response:
        check_names(request, ())
        return json_answer({"serverTime": _now_ms()})

    async def _exchange_info(self, request: web.Request) -> web.Response:
        check_names(request, ())
        captured = self.market.exchange_info()
        if captured is not None:
            return web.Response(body=captured, content_type="application/json")
        return json_answer(
            exchange_info(
                self._protocol.contracts(),
                inverse=self._inverse,
                now_ms=_now_ms(),
                weight_limit=self.pool.limit,
                gone=self._protocol.gone(),
            )
        )

    # Books and trades

    async def _depth(self, request: web.Request) -> web.Response:
        check_names(request, ("symbol", "limit"))
        contract = self._contract(request)
        limit = number_of(request, "limit", _DEFAULT_LEVELS)
        if limit not in _DEPTH_WEIGHTS:
            raise Refused(-4021, f"'{request.query['limit']}' is not valid depth limit.")
        symbol = contract.spec.symbol
        newest = self.market.update_id(symbol)
        book = self.venue.rest_book(symbol, limit, request.path)
        if book.update_id == newest:
            book = self._as_told(symbol, book, limit)
        body = self._protocol.frames.book(contract, book, self.market.time_us)
        return web.Response(body=body, content_type="application/json")

    def _as_told(self, symbol: str, book: BookState, limit: int) -> BookState:
        # Two answers in three are where a frame ended, as the venue's often are: then the next
        # frame's `pu` is the book's id and its `U` may be above it.
        self._books += 1
        frame_id = self.market.frame_id(symbol)
        if self._books % 3 == 0 and book.update_id >= next_first_id(frame_id):
            return book
        try:
            return self.market.book_at(symbol, frame_id, limit)
        except UpdateIdUnavailableError:
            return book

    async def _trades(self, request: web.Request) -> web.Response:
        check_names(request, ("symbol", "limit"))
        contract = self._contract(request)
        limit = _at_most(number_of(request, "limit", _DEFAULT_TRADES), _MOST_TRADES)
        return self._told_trades(request.path, contract, limit)

    async def _historical(self, request: web.Request) -> web.Response:
        check_names(request, ("symbol", "limit", "fromId"))
        if not request.headers.get("X-MBX-APIKEY"):
            raise Refused(-2014, "API-key format invalid.", 401)
        contract = self._contract(request)
        limit = _at_most(number_of(request, "limit", _DEFAULT_HISTORY), _MOST_HISTORY)
        first = number_of(request, "fromId", -1) if "fromId" in request.query else None
        return self._told_trades(request.path, contract, limit, first)

    def _told_trades(
        self, path: str, contract: Contract, limit: int, first_id: int | None = None
    ) -> web.Response:
        symbol = contract.spec.symbol
        if first_id is None:
            trades = self.market.recent_trades(symbol, limit)
        else:
            known = self.market.recent_trades(symbol, 1_000_000)
            trades = [trade for trade in known if trade.trade_id >= first_id][:limit]
        told = []
        for trade in past_trades(self.venue, path, symbol, trades):
            value = contract.other_volume(trade.quantity, trade.price * trade.quantity // SCALE)
            told.append(
                {
                    "id": trade.trade_id,
                    "price": contract.price(trade.price),
                    "qty": contract.quantity(trade.quantity),
                    ("baseQty" if self._inverse else "quoteQty"): contract.amount(value),
                    "time": trade.time_us // 1000,
                    "isBuyerMaker": trade.buyer_is_maker,
                }
                | ({} if self._inverse else {"isRPITrade": False})
            )
        return json_answer(told)

    async def _aggregates(self, request: web.Request) -> web.Response:
        check_names(request, ("symbol", "fromId", "startTime", "endTime", "limit"))
        contract = self._contract(request)
        limit = _at_most(number_of(request, "limit", _DEFAULT_TRADES), _MOST_TRADES)
        symbol = contract.spec.symbol
        kept = self._protocol.aggregates.get(symbol, ())
        known = past_trades(self.venue, request.path, symbol, kept)
        if "fromId" in request.query:
            first = number_of(request, "fromId", 0)
            known = [trade for trade in known if trade.aggregate_id >= first][:limit]
        elif "startTime" in request.query:
            begin, end = _span(request)
            known = [trade for trade in known if begin <= trade.time_us // 1000 <= end][:limit]
        return json_answer(
            [
                {
                    "a": trade.aggregate_id,
                    "p": contract.price(trade.price),
                    "q": contract.quantity(trade.quantity),
                    **({} if self._inverse else {"nq": contract.quantity(trade.quantity)}),
                    "f": trade.first_trade_id,
                    "l": trade.last_trade_id,
                    "T": trade.time_us // 1000,
                    "m": trade.buyer_is_maker,
                }
                for trade in known[-limit:]
            ]
        )

    # Candles and statistics

    async def _candles(self, request: web.Request) -> web.Response:
        check_names(request, ("symbol", "interval", "startTime", "endTime", "limit"))
        contract = self._contract(request)
        interval = request.query.get("interval", "")
        if interval not in INTERVALS:
            raise Refused(-1120, "Invalid interval.")
        limit = _at_most(number_of(request, "limit", _DEFAULT_TRADES), _MOST_CANDLES)
        begin, end = _span(request)
        minutes = self.market.candles(contract.spec.symbol, limit * minutes_of(interval))
        candles = [
            candle for candle in fold(minutes, interval) if begin <= candle.open_us // 1000 <= end
        ]
        return json_answer([_candle(contract, candle) for candle in candles[-limit:]])

    async def _ticker(self, request: web.Request) -> web.Response:
        contracts, one = self._contracts(request)
        told = [
            self._day(contract, self.market.ticker(contract.spec.symbol)) for contract in contracts
        ]
        return json_answer(told[0] if one else told)

    def _day(self, contract: Contract, day: Ticker) -> dict[str, object]:
        other = contract.other_volume(day.volume, day.quote_volume)
        average = day.quote_volume * SCALE // day.volume if day.volume else 0
        return {
            "symbol": day.symbol,
            **({"pair": contract.pair} if self._inverse else {}),
            "priceChange": contract.price(day.last - day.open),
            "priceChangePercent": f"{(day.last - day.open) / day.open * 100:.3f}",
            "weightedAvgPrice": eight_decimals(average),
            "lastPrice": contract.price(day.last),
            "lastQty": contract.quantity(day.last_quantity),
            "openPrice": contract.price(day.open),
            "highPrice": contract.price(day.high),
            "lowPrice": contract.price(day.low),
            "volume": contract.quantity(day.volume),
            ("baseVolume" if self._inverse else "quoteVolume"): contract.amount(other),
            "openTime": day.open_us // 1000,
            "closeTime": day.time_us // 1000,
            "firstId": day.first_trade_id,
            "lastId": day.last_trade_id,
            "count": day.trades,
        }

    # Marks, funding, open interest

    async def _premium_index(self, request: web.Request) -> web.Response:
        contracts, one = self._contracts(request)
        told = [self._premium(contract) for contract in contracts]
        return json_answer(told[0] if one else told)

    def _premium(self, contract: Contract) -> dict[str, object]:
        mark = self.market.mark_price(contract.spec.symbol)
        rate, interest, due = "", "", 0
        if contract.perpetual:
            funding = self.market.funding_rate(contract.spec.symbol)
            rate, interest = eight_decimals(funding.rate), eight_decimals(funding.interest)
            due = funding.funding_us // 1000
        return {
            "symbol": contract.spec.symbol,
            **({"pair": contract.pair} if self._inverse else {}),
            "markPrice": eight_decimals(mark.mark),
            "indexPrice": eight_decimals(mark.index_price),
            "estimatedSettlePrice": eight_decimals(mark.settlement),
            "lastFundingRate": rate,
            "interestRate": interest,
            "nextFundingTime": due,
            "time": mark.time_us // 1000,
        }

    async def _funding_rate(self, request: web.Request) -> web.Response:
        check_names(request, ("symbol", "startTime", "endTime", "limit"))
        _at_most(number_of(request, "limit", 100), _MOST_TRADES)
        begin, end = _span(request)
        contracts = (
            [self._contract(request)] if "symbol" in request.query else self._protocol.contracts()
        )
        told = []
        for contract in contracts:
            if not contract.perpetual:
                continue
            funding = self.market.funding_rate(contract.spec.symbol)
            settled_ms = (funding.funding_us - funding.interval_us) // 1000
            if begin <= settled_ms <= end:
                told.append(
                    {
                        "symbol": contract.spec.symbol,
                        "fundingTime": settled_ms,
                        "fundingRate": eight_decimals(funding.settled_rate),
                        "markPrice": eight_decimals(
                            self.market.mark_price(contract.spec.symbol).mark
                        ),
                    }
                )
        return json_answer(told)

    async def _funding_info(self, request: web.Request) -> web.Response:
        check_names(request, ())
        return json_answer(
            [
                {
                    "symbol": contract.spec.symbol,
                    "adjustedFundingRateCap": "0.02000000",
                    "adjustedFundingRateFloor": "-0.02000000",
                    "fundingIntervalHours": self.market.funding_rate(
                        contract.spec.symbol
                    ).interval_us
                    // 3_600_000_000,
                    "disclaimer": False,
                }
                for contract in self._protocol.contracts()
                if contract.perpetual
            ]
        )

    async def _open_interest(self, request: web.Request) -> web.Response:
        check_names(request, ("symbol",))
        contract = self._contract(request)
        interest = self.market.open_interest(contract.spec.symbol)
        told: dict[str, object] = {"symbol": contract.spec.symbol}
        if self._inverse:
            told["pair"] = contract.pair
        told["openInterest"] = contract.quantity(interest.contracts)
        if self._inverse:
            told["contractType"] = contract.kind
        return json_answer(told | {"time": interest.time_us // 1000})

    # What is asked for

    def _contract(self, request: web.Request) -> Contract:
        return self._protocol.contract(self.symbol(request))

    def _contracts(self, request: web.Request) -> tuple[Sequence[Contract], bool]:
        # The contracts asked for; whether it is one, and answered without a list around it.
        check_names(request, ("symbol", "pair") if self._inverse else ("symbol",))
        if "symbol" in request.query and "pair" in request.query:
            raise Refused(-1128, "Combination of optional parameters invalid.")
        if "symbol" in request.query:
            return [self._contract(request)], not self._inverse
        if "pair" in request.query:
            return self.of_pair(legal_symbol(request.query["pair"], "pair")), False
        return self._protocol.contracts(), False

    def of_pair(self, pair: str) -> list[Contract]:
        """Return the contracts of a pair.

        Raises:
            Refused: when there is none.

        """
        found = [contract for contract in self._protocol.contracts() if contract.pair == pair]
        if not found:
            raise Refused(-1121, "Invalid symbol.")
        return found


def _depth_weight(query: Mapping[str, str]) -> int:
    text = query.get("limit", str(_DEFAULT_LEVELS))
    return _DEPTH_WEIGHTS.get(int(text), 20) if text.isdecimal() and len(text) < 9 else 20


def _candles_weight(query: Mapping[str, str]) -> int:
    text = query.get("limit", str(_DEFAULT_TRADES))
    limit = int(text) if text.isdecimal() and len(text) < 9 else _MOST_CANDLES
    for most, weight in ((99, 1), (499, 2), (1000, 5)):
        if limit <= most:
            return weight
    return 10


def _by_symbol(one: int, several: int) -> Callable[[Mapping[str, str]], int]:
    return lambda query: one if "symbol" in query else several


def _at_most(number: int, most: int) -> int:
    if number == 0:
        raise Refused(-1130, "Data sent for parameter 'limit' is not valid.")
    return min(number, most)


def _span(request: web.Request) -> tuple[int, int]:
    begin = number_of(request, "startTime", 0)
    end = number_of(request, "endTime", 10**18)
    if begin > end:
        raise Refused(-1023, "Start time is greater than end time.")
    return begin, end


def _candle(contract: Contract, candle: Candle) -> list[object]:
    value = contract.other_volume(candle.volume, candle.quote_volume)
    taken = contract.other_volume(candle.taker_volume, candle.taker_quote_volume)
    return [
        candle.open_us // 1000,
        contract.price(candle.open),
        contract.price(candle.high),
        contract.price(candle.low),
        contract.price(candle.close),
        contract.quantity(candle.volume),
        candle.close_us // 1000,
        contract.amount(value),
        candle.trades,
        contract.quantity(candle.taker_volume),
        contract.amount(taken),
        "0",
    ]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
