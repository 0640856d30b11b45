"""Binance futures statistics, `/futures/data`: long/short ratios and open interest by periods.

Follows "Open Interest Statistics" and the three long/short ratios of the USD-M and COIN-M
documents. They have no weight but a limit of their own.
"""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, cast

from aiohttp import web

from services.simulator.binance_futures_contracts import Contract
from services.simulator.binance_http import (
    Handler,
    Refused,
    json_answer,
    legal_symbol,
    number_of,
)
from services.simulator.fixed import eight_decimals
from services.simulator.limits import MessageRate
from services.simulator.reference import LongShortKind

if TYPE_CHECKING:
    from services.simulator.binance_futures import BinanceFuturesProtocol, FuturesSettings
    from services.simulator.binance_futures_rest import FuturesRest

__all__ = ["FuturesData"]

_MINUTE_MS = 60_000
_PERIODS = {
    "5m": 5,
    "15m": 15,
    "30m": 30,
    "1h": 60,
    "2h": 120,
    "4h": 240,
    "6h": 360,
    "12h": 720,
    "1d": 1440,
}
_MOST = 500
_DEFAULT = 30
_WINDOW_SECONDS = 300
_RATIOS = {
    "topLongShortPositionRatio": LongShortKind.TOP_POSITIONS,
    "topLongShortAccountRatio": LongShortKind.TOP_ACCOUNTS,
    "globalLongShortAccountRatio": LongShortKind.ALL_ACCOUNTS,
}


class FuturesData:
    """The handlers below `/futures/data` of one simulated venue."""

    def __init__(self, rest: "FuturesRest", protocol: "BinanceFuturesProtocol") -> None:
        self._rest = rest
        self._protocol = protocol
        settings = cast("FuturesSettings", rest.venue.settings)
        self._rate = MessageRate(settings.data_requests_per_five_minutes, _WINDOW_SECONDS)

    def routes(self) -> list[web.RouteDef]:
        """`/futures/data/...`."""
        handlers: dict[str, Callable[[web.Request], Awaitable[web.Response]]] = {
            name: partial(self._ratio, kind=kind) for name, kind in _RATIOS.items()
        }
        handlers["openInterestHist"] = self._open_interest
        return [
            web.get(f"/futures/data/{name}", self._rest.limited(0, self._allowed(handler)))
            for name, handler in handlers.items()
        ]

    def _allowed(self, handler: Handler) -> Handler:
        async def allowed(request: web.Request) -> web.Response:
            if self._rate.allow():
                return await handler(request)
            return self._rest.too_many(429, _WINDOW_SECONDS)

        return allowed

    async def _ratio(self, request: web.Request, kind: LongShortKind) -> web.Response:
        contract = self._asked(request)
        minutes, limit = _period(request)
        ratios = self._rest.market.long_short(
            contract.spec.symbol, kind, minutes * _MINUTE_MS * 1000, limit
        )
        what = "Account"
        if contract.inverse and kind is LongShortKind.TOP_POSITIONS:
            what = "Position"
        begin, end = _span(request)
        return json_answer(
            [
                {
                    **self._named(contract),
                    "longShortRatio": _four_decimals(ratio.ratio),
                    f"long{what}": _four_decimals(ratio.long),
                    f"short{what}": _four_decimals(ratio.short),
                    "timestamp": ratio.time_us // 1000,
                }
                for ratio in ratios
                if begin <= ratio.time_us // 1000 <= end
            ]
        )

    async def _open_interest(self, request: web.Request) -> web.Response:
        contract = self._asked(request, with_type=True)
        minutes, _ = _period(request)
        interest = self._rest.market.open_interest(contract.spec.symbol)
        length = minutes * _MINUTE_MS
        at = interest.time_us // 1000 // length * length
        begin, end = _span(request)
        if not begin <= at <= end:
            return json_answer([])
        told = self._named(contract)
        worth = interest.quote
        if contract.inverse:
            told["contractType"] = contract.kind
            worth = interest.base
        told["sumOpenInterest"] = contract.quantity(interest.contracts)
        told["sumOpenInterestValue"] = eight_decimals(worth)
        return json_answer([told | {"timestamp": at}])

    def _named(self, contract: Contract) -> dict[str, object]:
        return {"pair": contract.pair} if contract.inverse else {"symbol": contract.spec.symbol}

    def _asked(self, request: web.Request, *, with_type: bool = False) -> Contract:
        # COIN-M asks by pair, and means all of its contracts: the perpetual stands for them.
        if not self._protocol.inverse:
            return self._protocol.contract(self._rest.symbol(request))
        pair = request.query.get("pair") or request.query.get("symbol")
        if not pair:
            raise Refused(
                -1102, "Mandatory parameter 'pair' was not sent, was empty/null, or malformed."
            )
        found = self._rest.of_pair(legal_symbol(pair, "pair"))
        wanted = request.query.get("contractType") if with_type else "ALL"
        if not wanted:
            raise Refused(
                -1102,
                "Mandatory parameter 'contractType' was not sent, was empty/null, or malformed.",
            )
        for contract in found:
            if wanted == contract.kind or (wanted == "ALL" and contract.perpetual):
                return contract
        if wanted == "ALL":
            return found[0]
        raise Refused(-1130, "Data sent for parameter 'contractType' is not valid.")


def _period(request: web.Request) -> tuple[int, int]:
    minutes = _PERIODS.get(request.query.get("period", ""))
    if minutes is None:
        raise Refused(-1130, "Data sent for parameter 'period' is not valid.")
    limit = number_of(request, "limit", _DEFAULT)
    if not 1 <= limit <= _MOST:
        raise Refused(-1130, "Data sent for parameter 'limit' is not valid.")
    return minutes, limit


def _span(request: web.Request) -> tuple[int, int]:
    now_ms = time.time_ns() // 1_000_000
    return number_of(request, "startTime", 0), number_of(request, "endTime", now_ms)


def _four_decimals(units: int) -> str:
    return f"{(units + 5000) // 10_000 / 10_000:.4f}"
