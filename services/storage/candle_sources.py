"""The two sources of candles: those of the venue, and those of the trades held."""

from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final, Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.market.v1 import common_pb2
from marketprism.market.v1.events_pb2 import Candle

from services.storage.candle_reads import LAST_SECOND, CandleReads, Statement, limited_query
from services.storage.engine import Engine
from services.storage.rollup_sql import LEVEL_TABLES, candle_from_candles, coarsest_level
from services.storage.tables import TABLES

__all__ = [
    "EXACT",
    "CandleSource",
    "TradeCandles",
    "VenueCandles",
    "decimal_text",
    "is_inverse",
    "monday",
    "rounded",
]

EXACT: Final = Context(prec=200)
"""Arithmetic that rounds nothing that the store can hold."""

_NANOS: Final = 1_000_000_000
_WEEK: Final = 7 * 86_400
_CANDLE: Final = TABLES["candle"]


class CandleSource(Protocol):
    """Candles of one instrument at one interval; times are whole seconds since 1970."""

    kind: int
    """`EventKind` whose gaps are holes in these candles."""

    interval: int
    """Length of a candle, seconds."""

    offset: int
    """Candles begin at multiples of the interval plus this."""

    async def window(self, start: int, end: int, limit: int, *, descending: bool) -> list[Candle]:
        """Give the first candles that begin from `start` to before `end`."""
        ...

    async def first(self, start: int, end: int) -> int | None:
        """Give when the first candle from `start` to before `end` begins, None without one."""
        ...

    async def last(self, start: int, end: int) -> int | None:
        """Give when the last candle from `start` to before `end` begins, None without one."""
        ...


def monday(interval: int) -> int:
    """Give the offset of candles of trades: of 7 days they begin on Mondays."""
    return 4 * 86_400 if interval == _WEEK else 0


class VenueCandles:
    """The last state that the venue published of each candle."""

    kind: int = common_pb2.EVENT_KIND_CANDLE

    def __init__(
        self, engine: Engine, exchange: str, symbol: str, interval: int, offset: int
    ) -> None:
        self._engine = engine
        self._instrument = (exchange, symbol)
        self.interval = interval
        self.offset = offset

    @classmethod
    async def find(
        cls, engine: Engine, exchange: str, symbol: str, interval: int
    ) -> "VenueCandles | list[int]":
        """Give them, or the intervals that are held, seconds, when this one is not."""
        ask = Statement(exchange, symbol)
        rows = await engine.query(
            f"SELECT toUnixTimestamp64Nano(time) FROM candle WHERE {Statement.instrument} "
            f"AND interval = {ask.number(interval * _NANOS)} LIMIT 1",
            ask.parameters,
        )
        if rows:
            offset = int(rows[0][0]) // _NANOS % interval
            return cls(engine, exchange, symbol, interval, offset)
        held = await engine.query(
            f"SELECT DISTINCT interval FROM candle WHERE {Statement.instrument} ORDER BY interval",
            Statement(exchange, symbol).parameters,
        )
        return [int(length) // _NANOS for (length,) in held]

    async def window(self, start: int, end: int, limit: int, *, descending: bool) -> list[Candle]:
        """See `CandleSource`."""
        ask = Statement(*self._instrument)
        stored = ", ".join(column.name for column in _CANDLE.columns if column.stored)
        order = "time DESC" if descending else "time"
        rows = await self._engine.query(
            # The order of states: as they were received, then as they were published.
            f"SELECT {_CANDLE.event_sql()} AS event FROM ("
            f"SELECT {stored}, time AS open_time FROM candle FINAL "
            f"WHERE {self._range(ask, start, end)} "
            f"ORDER BY {order}, receive_time DESC, stream_created DESC, stream_sequence DESC "
            f"LIMIT 1 BY time LIMIT {ask.number(limit)}) ORDER BY {order}",
            ask.parameters,
            events_of=_CANDLE,
        )
        return [Candle.FromString(event) for (event,) in rows]

    async def first(self, start: int, end: int) -> int | None:
        """See `CandleSource`."""
        return await self._edge(start, end, "time")

    async def last(self, start: int, end: int) -> int | None:
        """See `CandleSource`."""
        return await self._edge(start, end, "time DESC")

    async def _edge(self, start: int, end: int, order: str) -> int | None:
        ask = Statement(*self._instrument)
        rows = await self._engine.query(
            f"SELECT toUnixTimestamp64Nano(time) FROM candle "
            f"WHERE {self._range(ask, start, end)} ORDER BY {order} LIMIT 1",
            ask.parameters,
        )
        return int(rows[0][0]) // _NANOS if rows else None

    def _range(self, ask: Statement, start: int, end: int) -> str:
        return (
            f"{Statement.instrument} AND interval = {ask.number(self.interval * _NANOS)} "
            f"AND time >= {ask.nanoseconds(start * _NANOS)} "
            f"AND time < {ask.nanoseconds(end * _NANOS)}"
        )


class TradeCandles:
    """Candles made of the trades held at this moment."""

    kind: int = common_pb2.EVENT_KIND_TRADE

    def __init__(
        self,
        reads: CandleReads,
        exchange: str,
        symbol: str,
        interval: int,
        settled_until: Callable[[], int],
    ) -> None:
        """`settled_until` gives the instant up to which trades have come, nanoseconds."""
        self._reads = reads
        self._exchange = exchange
        self._symbol = symbol
        self._level = coarsest_level(interval)
        self._settled_until = settled_until
        self._inverse: bool | None = None
        self.interval = interval
        self.offset = monday(interval)

    async def window(self, start: int, end: int, limit: int, *, descending: bool) -> list[Candle]:
        """See `CandleSource`; both bounds are on the grid."""
        if self._inverse is None:
            self._inverse = await is_inverse(self._reads.engine, self._exchange, self._symbol)
        start, end = max(start, 0), min(end, LAST_SECOND)
        pending = await self._reads.pending(self._exchange, self._symbol, self._level, start, end)
        ask = Statement(self._exchange, self._symbol)
        rows_sql = self._reads.candles(ask, self._level, start, end, pending)
        base, quote = (
            ("volume_over_price", "volume") if self._inverse else ("volume", "volume_times_price")
        )
        rows = await limited_query(
            self._reads.engine,
            f"SELECT bucket, open_price, high_price, low_price, close_price, {base}, {quote}, "
            f"taker_buy_{base}, taker_buy_{quote}, trade_count, sideless_trades, "
            "if(last_time_told, toUnixTimestamp64Nano(last_time), 0), "
            "toUnixTimestamp64Nano(last_receive_time) FROM ("
            f"SELECT {self._bucket(ask)} AS bucket, {candle_from_candles()} "
            f"FROM ({rows_sql}) AS c GROUP BY bucket) "
            f"ORDER BY bucket {'DESC' if descending else ''} LIMIT {ask.number(limit)}",
            ask.parameters,
        )
        return [self._candle(*row) for row in rows]

    async def first(self, start: int, end: int) -> int | None:
        """See `CandleSource`."""
        return await self._edge(start, end, last=False)

    async def last(self, start: int, end: int) -> int | None:
        """See `CandleSource`."""
        return await self._edge(start, end, last=True)

    async def _edge(self, start: int, end: int, *, last: bool) -> int | None:
        start, end = max(start, 0), min(end, LAST_SECOND)
        if start >= end:
            return None
        pending = await self._reads.pending(self._exchange, self._symbol, self._level, start, end)
        ask = Statement(self._exchange, self._symbol)
        rows = await self._reads.engine.query(
            f"SELECT toUnixTimestamp(time) FROM {LEVEL_TABLES[self._level]} "
            f"WHERE {Statement.instrument} AND time >= {ask.second(start)} "
            f"AND time < {ask.second(end)} ORDER BY time {'DESC' if last else ''} LIMIT 1",
            ask.parameters,
        )
        found = [int(rows[0][0])] if rows else []
        lacking, _ = pending.of(self._level)
        if lacking is not None:
            found.append(lacking[1] if last else lacking[0])
        if not found:
            return None
        time = max(found) if last else min(found)
        return (time - self.offset) // self.interval * self.interval + self.offset

    def _bucket(self, ask: Statement) -> str:
        length, offset = ask.number(self.interval), self.offset
        # Divisions cut towards zero, so the sum must not be negative.
        ahead = -offset % self.interval
        return f"intDiv(toInt64(toUnixTimestamp(c.time)) + {ahead}, {length}) * {length} - {ahead}"

    def _candle(
        self,
        begin: int,
        open_price: Decimal,
        high_price: Decimal,
        low_price: Decimal,
        close_price: Decimal,
        base: Decimal,
        quote: Decimal,
        bought_base: Decimal,
        bought_quote: Decimal,
        trade_count: int,
        sideless: int,
        exchange_time: int,
        receive_time: int,
    ) -> Candle:
        if self._inverse:
            base, bought_base = rounded(base, 18), rounded(bought_base, 18)
        candle = Candle(
            exchange=self._exchange,
            symbol=self._symbol,
            interval=Duration(seconds=self.interval),
            open_time=Timestamp(seconds=begin),
            close_time=Timestamp(seconds=begin + self.interval),
            open_price=decimal_text(open_price),
            high_price=decimal_text(high_price),
            low_price=decimal_text(low_price),
            close_price=decimal_text(close_price),
            base_volume=decimal_text(base),
            quote_volume=decimal_text(quote),
            # Of trades whose side is not told, nobody knows who bought.
            taker_buy_base_volume="" if sideless else decimal_text(bought_base),
            taker_buy_quote_volume="" if sideless else decimal_text(bought_quote),
            trade_count=trade_count,
            closed=(begin + self.interval) * _NANOS <= self._settled_until(),
        )
        if exchange_time:
            candle.exchange_time.FromNanoseconds(exchange_time)
        candle.receive_time.FromNanoseconds(receive_time)
        return candle


async def is_inverse(engine: Engine, exchange: str, symbol: str) -> bool:
    """Tell whether quantities of an instrument are in quote currency."""
    rows = await engine.query(
        f"SELECT quantity_unit = 'QUANTITY_UNIT_QUOTE' FROM instrument FINAL "
        f"WHERE {Statement.instrument}",
        Statement(exchange, symbol).parameters,
    )
    return bool(rows and rows[0][0])


def rounded(value: Decimal, digits: int) -> Decimal:
    """Round to so many digits after the point, a half to the even neighbour."""
    return value.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN, EXACT)


def decimal_text(value: Decimal) -> str:
    """Give the canonical text of a number: no exponent, no trailing zeros."""
    text = f"{value:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
