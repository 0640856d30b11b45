"""GetStatistics: trading in a range summed up, exactly of the trades held in it."""
# ruff: noqa: N802 - methods are named as in the contract

import math
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.history.v1.store_pb2 import Statistics
from marketprism.market.v1 import common_pb2

from services.shared.parts import Context
from services.storage.candle_reads import LAST_SECOND, CandleReads, Statement, limited_query
from services.storage.candle_sources import EXACT, decimal_text, is_inverse, rounded
from services.storage.engine import Engine
from services.storage.gaps import touching
from services.storage.http_cache import Answers, Encoded
from services.storage.known import KnownInstruments
from services.storage.rollup_sql import bucket_sql, candle_from_candles
from services.storage.validators import NANOS, TimeRange, check_instrument, time_range

__all__ = ["MINUTES_OF_A_YEAR", "StatisticsCalls"]

MINUTES_OF_A_YEAR: Final = 365 * 1440
"""By which volatility is annualised: markets never close."""

_MINUTE: Final = 60


class StatisticsCalls:
    """Answers HistoryService.GetStatistics."""

    def __init__(
        self,
        engine: Engine,
        known: KnownInstruments,
        answers: Answers,
        *,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        """Read from `engine`; `now` gives nanoseconds since 1970."""
        self._engine = engine
        self._reads = CandleReads(engine)
        self._known = known
        self._answers = answers
        self._now = now

    async def GetStatistics(self, request: pb.GetStatisticsRequest, context: Context) -> bytes:
        """Answer the figures of a range."""
        exchange, symbol = check_instrument(request)
        asked = time_range(request, self._now())
        await self._known.check(exchange, symbol)
        return await self._answers.cached(context, request, lambda: self._answer(request, asked))

    async def _answer(self, request: pb.GetStatisticsRequest, asked: TimeRange) -> Encoded:
        exchange, symbol = request.exchange, request.symbol
        figures = Statistics(
            exchange=exchange,
            symbol=symbol,
            base_volume="0",
            quote_volume="0",
            taker_buy_base_volume="0",
            gaps=await self._gaps(exchange, symbol, asked),
        )
        figures.end_time.FromNanoseconds(asked.end)
        if request.HasField("start_time"):
            figures.start_time.FromNanoseconds(asked.start)
        row = await self._sums(exchange, symbol, asked)
        if row["trades"]:
            inverse = await is_inverse(self._engine, exchange, symbol)
            _fill(figures, row, inverse=inverse)
            if not request.HasField("start_time"):
                figures.start_time.FromNanoseconds(int(row["first_nanoseconds"]))
        response = pb.GetStatisticsResponse(statistics=figures)
        return Encoded(response.SerializeToString(), whole=not figures.gaps)

    async def _sums(self, exchange: str, symbol: str, asked: TimeRange) -> dict[str, Any]:
        ask = Statement(exchange, symbol)
        pieces = " UNION ALL ".join(await self._pieces(ask, exchange, symbol, asked))
        minutes = (
            f"SELECT {bucket_sql('c.time', _MINUTE)} AS minute, {candle_from_candles()} "
            f"FROM ({pieces}) AS c GROUP BY minute"
        )
        # A minute without a trade is a return of nothing: n minutes from the first to the last
        # are n returns, whose sum is that from the first to the last close.
        returns = (
            "SELECT *, log(toFloat64(close_price) / toFloat64(lagInFrame(close_price, 1, "
            "close_price) OVER (ORDER BY minute))) AS log_return "
            f"FROM ({minutes})"
        )
        names = (
            *_SUMMED,
            "first_nanoseconds",
            "minutes",
            "elapsed_minutes",
            "sum_of_returns",
            "sum_of_squares",
        )
        rows = await limited_query(
            self._engine,
            "SELECT argMin(c.open_price, c.minute), max(c.high_price), min(c.low_price), "
            "argMax(c.close_price, c.minute), sum(c.volume), sum(c.volume_times_price), "
            "sum(c.volume_over_price), sum(c.taker_buy_volume), "
            "sum(c.taker_buy_volume_over_price), max(c.largest_quantity), sum(c.trade_count), "
            "sum(c.trades), toUnixTimestamp64Nano(min(c.first_time)), count(), "
            f"intDiv(toUnixTimestamp(max(c.minute)) - toUnixTimestamp(min(c.minute)), {_MINUTE}), "
            "sum(c.log_return), sum(c.log_return * c.log_return) "
            f"FROM ({returns}) AS c",
            ask.parameters,
        )
        return dict(zip(names, rows[0], strict=True))

    async def _pieces(
        self, ask: Statement, exchange: str, symbol: str, asked: TimeRange
    ) -> list[str]:
        """Cut a range: minutes out of candles, what is left of seconds, what is left of trades."""
        start, end = asked.start, min(asked.end, LAST_SECOND * NANOS)
        first, last = -(-start // NANOS), end // NANOS
        if first >= last:
            return [self._reads.trades(ask, start, max(start, end))]
        pending = await self._reads.pending(
            exchange, symbol, _MINUTE, first // _MINUTE * _MINUTE, -(-last // _MINUTE) * _MINUTE
        )
        pieces = []
        if start < first * NANOS:
            pieces.append(self._reads.trades(ask, start, first * NANOS))
        if last * NANOS < end:
            pieces.append(self._reads.trades(ask, last * NANOS, end))
        begin, beyond = -(-first // _MINUTE) * _MINUTE, last // _MINUTE * _MINUTE
        if begin >= beyond:
            begin = beyond = last
        for level, low, high in ((1, first, begin), (_MINUTE, begin, beyond), (1, beyond, last)):
            if low < high:
                pieces.append(self._reads.candles(ask, level, low, high, pending))
        return pieces

    async def _gaps(self, exchange: str, symbol: str, asked: TimeRange) -> int:
        conditions, parameters = touching(
            exchange, symbol, [common_pb2.EVENT_KIND_TRADE], asked.start, asked.end
        )
        rows = await self._engine.query(
            f"SELECT count() FROM integrity FINAL WHERE {' AND '.join(conditions)}", parameters
        )
        return int(rows[0][0])


_SUMMED: Final = (
    "open_price",
    "high_price",
    "low_price",
    "close_price",
    "volume",
    "volume_times_price",
    "volume_over_price",
    "taker_buy_volume",
    "taker_buy_volume_over_price",
    "largest_quantity",
    "trade_count",
    "trades",
)


def _fill(figures: Statistics, row: dict[str, Any], *, inverse: bool) -> None:
    base: Decimal
    quote: Decimal
    if inverse:
        base, quote, bought = (
            row["volume_over_price"],
            row["volume"],
            row["taker_buy_volume_over_price"],
        )
        figures.base_volume = decimal_text(rounded(base, 18))
        figures.taker_buy_base_volume = decimal_text(rounded(bought, 18))
    else:
        base, quote, bought = row["volume"], row["volume_times_price"], row["taker_buy_volume"]
        figures.base_volume = decimal_text(base)
        figures.taker_buy_base_volume = decimal_text(bought)
    figures.quote_volume = decimal_text(quote)
    opened, closed = row["open_price"], row["close_price"]
    figures.trade_count = row["trade_count"]
    figures.open_price = decimal_text(opened)
    figures.high_price = decimal_text(row["high_price"])
    figures.low_price = decimal_text(row["low_price"])
    figures.close_price = decimal_text(closed)
    figures.largest_quantity = decimal_text(row["largest_quantity"])
    if base:
        figures.weighted_average_price = decimal_text(rounded(EXACT.divide(quote, base), 18))
    change = EXACT.subtract(closed, opened)
    figures.price_change = decimal_text(change)
    if opened:
        percent = EXACT.divide(EXACT.multiply(change, Decimal(100)), opened)
        figures.price_change_percent = decimal_text(rounded(percent, 6))
    figures.realised_volatility = _volatility(row)


def _volatility(row: dict[str, Any]) -> str:
    """Give the standard deviation of one-minute returns, annualised, in percent."""
    count = row["elapsed_minutes"]
    if row["minutes"] < 2:
        return ""
    mean = row["sum_of_returns"] / count
    variance = max(0.0, row["sum_of_squares"] / count - mean * mean)
    percent = math.sqrt(variance * MINUTES_OF_A_YEAR) * 100
    return decimal_text(rounded(Decimal(percent), 6)) if math.isfinite(percent) else ""
