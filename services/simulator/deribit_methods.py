"""Deribit's public methods, the same over WebSocket and HTTP.

Follows "Market data" and "Supporting" of the Deribit documentation.
"""

import random
from collections.abc import Callable, Mapping

from services.simulator.deribit_channels import CURRENCIES, KINDS
from services.simulator.deribit_frames import trade_object
from services.simulator.deribit_instruments import instrument
from services.simulator.deribit_numbers import Float, dumps
from services.simulator.deribit_rpc import METHOD_NOT_FOUND, UNAUTHORIZED, RpcError, invalid
from services.simulator.deribit_view import DeribitView
from services.simulator.fixed import SCALE
from services.simulator.market import BookState

__all__ = ["VERSION", "DeribitMethods", "instrument_of", "integer_of", "text_of"]

VERSION = "1.2.26"
"""The version that `public/test` and `public/hello` tell."""

_DEPTHS = (1, 5, 10, 20, 50, 100, 1000, 10_000)
_SORTINGS = ("asc", "desc", "default")
_MOST_TRADES = 1000
_MOST_CANDLES = 1000
_LARGEST = 10**18
_EIGHT_HOURS_MS = 8 * 3600 * 1000
_RESOLUTIONS = {"1": 1, "60": 60, "3600": 3600, "43200": 43_200, "1D": 86_400}

Params = Mapping[str, object]
_Method = Callable[[Params], str]


class DeribitMethods:
    """Answers requests with what the market knows; raises `RpcError` for what the venue refuses."""

    def __init__(
        self,
        view: DeribitView,
        book: Callable[[str, int], BookState],
        now_us: Callable[[], int],
    ) -> None:
        """`book` gives an instrument's best levels as the venue answers them."""
        self._view = view
        self._market = view.market
        self._book = book
        self._now_us = now_us
        self._methods: dict[str, _Method] = {
            "public/test": self._test,
            "public/hello": self._hello,
            "public/status": lambda _: '{"locked":"false","locked_indices":[]}',
            "public/get_time": lambda _: str(self._now_us() // 1000),
            "public/get_instruments": self._instruments,
            "public/get_instrument": self._instrument,
            "public/get_order_book": self._order_book,
            "public/get_last_trades_by_instrument": self._trades,
            "public/ticker": self._ticker,
            "public/get_index_price": self._index_price,
            "public/get_volatility_index_data": self._volatility_index,
            "public/get_funding_rate_value": self._funding_rate_value,
        }

    def names(self) -> list[str]:
        """Return the methods that there are."""
        return list(self._methods)

    def call(self, method: str, params: Params) -> bytes:
        """Return the result as JSON.

        Raises:
            RpcError: when the venue would answer with an error.

        """
        found = self._methods.get(method)
        if found is not None:
            return found(params).encode()
        if method.startswith("private/"):
            raise RpcError(UNAUTHORIZED, "unauthorized", {"reason": "invalid_token"})
        raise RpcError(METHOD_NOT_FOUND, "Method not found")

    def _test(self, params: Params) -> str:
        if text_of(params, "expected_result", "") == "exception":
            raise RpcError(11094, "internal_server_error")
        return dumps({"version": VERSION})

    def _hello(self, params: Params) -> str:
        text_of(params, "client_name")
        text_of(params, "client_version")
        return dumps({"version": VERSION})

    def _instruments(self, params: Params) -> str:
        currency = text_of(params, "currency", "any")
        kind = text_of(params, "kind", "any")
        if currency not in CURRENCIES:
            invalid("invalid currency", "currency")
        if kind not in KINDS:
            invalid("invalid kind", "kind")
        if _truth_of(params, "expired"):
            return "[]"
        told = []
        for symbol, spec in self._market.symbols.items():
            listed = instrument(symbol)
            if currency in ("any", listed.settlement) and kind in ("any", listed.kind):
                told.append(listed.describe(spec.tick))
        return dumps(told)

    def _instrument(self, params: Params) -> str:
        symbol = instrument_of(self._market.symbols, params)
        return dumps(instrument(symbol).describe(self._market.symbols[symbol].tick))

    def _order_book(self, params: Params) -> str:
        symbol = instrument_of(self._market.symbols, params)
        depth = integer_of(params, "depth", 5)
        if depth not in _DEPTHS:
            invalid(f"must be one of {', '.join(map(str, _DEPTHS))}", "depth")
        return dumps(self._view.order_book(self._book(symbol, depth)))

    def _trades(self, params: Params) -> str:
        symbol = instrument_of(self._market.symbols, params)
        count = integer_of(params, "count", 10)
        if not 1 <= count <= _MOST_TRADES:
            invalid(f"must be between 1 and {_MOST_TRADES}", "count")
        sorting = text_of(params, "sorting", "default")
        if sorting not in _SORTINGS:
            invalid(f"must be one of {', '.join(_SORTINGS)}", "sorting")
        least = _optional_integer(params, "start_seq")
        most = _optional_integer(params, "end_seq")
        if sorting == "default":
            sorting = "asc" if least is not None else "desc"
        found, more = self._view.trades.between(
            symbol, least, most, count, newest_first=sorting == "desc"
        )
        objects = b",".join(trade_object(trade) for trade in found).decode()
        return f'{{"trades":[{objects}],"has_more":{dumps(more)}}}'

    def _ticker(self, params: Params) -> str:
        return dumps(self._view.ticker(instrument_of(self._market.symbols, params)))

    def _index_price(self, params: Params) -> str:
        try:
            price = Float(self._view.index_of(text_of(params, "index_name")))
        except LookupError:
            invalid("invalid index_name", "index_name")
        return dumps({"estimated_delivery_price": price, "index_price": price})

    def _volatility_index(self, params: Params) -> str:
        currency = text_of(params, "currency")
        resolution = text_of(params, "resolution")
        if resolution not in _RESOLUTIONS:
            invalid(f"must be one of {', '.join(_RESOLUTIONS)}", "resolution")
        start, end = integer_of(params, "start_timestamp"), integer_of(params, "end_timestamp")
        name = f"{currency.lower()}_usd"
        if name not in self._market.indices:
            invalid("invalid currency", "currency")
        step = _RESOLUTIONS[resolution] * 1000
        now_ms = self._now_us() // 1000
        first = max(0, start) // step
        last = min(end, now_ms) // step
        begin = max(first, last - _MOST_CANDLES + 1)
        value = self._market.volatility_index(name).value
        candles = [
            _candle(name, number, step, value if number == now_ms // step else None)
            for number in range(begin, last + 1)
        ]
        more = begin * step - 1 if begin > first else None
        return dumps({"data": candles, "continuation": more})

    def _funding_rate_value(self, params: Params) -> str:
        symbol = instrument_of(self._market.symbols, params)
        if not instrument(symbol).perpetual:
            invalid("instrument is not a perpetual", "instrument_name")
        start, end = integer_of(params, "start_timestamp"), integer_of(params, "end_timestamp")
        if end < start:
            invalid("must not be before start_timestamp", "end_timestamp")
        rate = self._market.funding_rate(symbol).settled_rate
        return dumps(Float(rate * (end - start) // _EIGHT_HOURS_MS))


def _candle(name: str, number: int, step: int, close: int | None) -> list[object]:
    # The past is not kept: a candle is made of its time, and ends where the next one begins.
    point = SCALE // 100
    opened, following = _points(name, number * step), _points(name, (number + 1) * step)
    closed = following * point if close is None else close // point * point
    high = max(opened * point, closed) + 7 * point
    low = min(opened * point, closed) - 6 * point
    return [number * step, *(Float(value) for value in (opened * point, high, low, closed))]


def _points(name: str, at_ms: int) -> int:
    return random.Random(f"volatility {name} {at_ms}").randrange(4800, 5400)  # noqa: S311


def instrument_of(listed: Mapping[str, object], params: Params) -> str:
    """Return the listed instrument that a request names.

    Raises:
        RpcError: when it names none, or one that is not listed.

    """
    name = text_of(params, "instrument_name")
    if name not in listed:
        invalid("instrument not found", "instrument_name")
    return name


def text_of(params: Params, name: str, default: str | None = None) -> str:
    """Return a parameter that is a text.

    Raises:
        RpcError: when it is missing without a default, or no text.

    """
    value = params.get(name, default)
    if value is None:
        invalid("value is required", name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        invalid("wrong format", name)
    return value


def integer_of(params: Params, name: str, default: int | None = None) -> int:
    """Return a parameter that is an integer; over HTTP it comes as digits.

    Raises:
        RpcError: when it is missing without a default, or no integer.

    """
    value = params.get(name, default)
    if value is None:
        invalid("value is required", name)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 18:
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _LARGEST:
        invalid("value must be an integer", name)
    return value


def _optional_integer(params: Params, name: str) -> int | None:
    return None if params.get(name) is None else integer_of(params, name)


def _truth_of(params: Params, name: str) -> bool:
    value = params.get(name, False)
    if value in (True, "true"):
        return True
    if value not in (False, "false"):
        invalid("value must be boolean", name)
    return False
