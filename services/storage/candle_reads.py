"""Reads candles of trades exactly as the trades held at this moment give them.

What is rolled up is read from the longest candles that fit. The buckets that newer trades touch
are made of shorter candles, down to the seconds that those trades are in, which are made of the
trades themselves. So an answer lacks nothing while rollups are behind, and costs little when they
are not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.shared.errors import ResourceExhausted
from services.storage.engine import Engine, Row
from services.storage.errors import StoreRefused
from services.storage.places import Places, not_at, without
from services.storage.rollup_marks import SELECT, places_of
from services.storage.rollup_sql import (
    CANDLE_COLUMNS,
    LEVEL_TABLES,
    bucket_sql,
    candle_from_trades,
)
from services.storage.rollups import COARSE, FINE

__all__ = ["LAST_SECOND", "CandleReads", "Pending", "Statement", "limited_query"]

LAST_SECOND: Final = 4_291_747_200
"""2106-01-01 UTC, seconds since 1970: candles end before it."""

_COLUMNS: Final = ", ".join(CANDLE_COLUMNS)
_LIMITS: Final = frozenset({158, 159, 160, 241, 307, 396})


async def limited_query(engine: Engine, sql: str, parameters: Mapping[str, Any]) -> list[Row]:
    """Ask the database; what takes it too long or too much memory is `ResourceExhausted`.

    The reason is QUERY_LIMIT_REACHED. Raises otherwise as `Engine.query` does.
    """
    try:
        return await engine.query(sql, parameters)
    except StoreRefused as error:
        if error.code not in _LIMITS:
            raise
        raise ResourceExhausted(
            f"the answer needs more of the database than one question may: {error.message}; "
            "ask for a shorter range",
            reason="QUERY_LIMIT_REACHED",
            metadata={"code": str(error.code)},
        ) from error


@dataclass(frozen=True, slots=True)
class Pending:
    """What is not rolled up yet of one instrument in a range: the seconds its trades lie in."""

    fine: tuple[int, int] | None
    """First and last second of trades that candles of a minute and less lack."""

    coarse: tuple[int, int] | None
    """The same of longer candles."""

    places_fine: Places
    """What candles of a minute and less are made of."""

    places_coarse: Places
    """What longer candles are made of."""

    def of(self, level: int) -> tuple[tuple[int, int] | None, Places]:
        """Give the seconds that candles of a level lack, and what they are made of."""
        if level <= 60:
            return self.fine, self.places_fine
        return self.coarse, self.places_coarse


class Statement:
    """Parameters of one SQL statement about an instrument."""

    def __init__(self, exchange: str, symbol: str) -> None:
        self.parameters: dict[str, Any] = {"exchange": exchange, "symbol": symbol}
        """Values by name."""

    instrument = "exchange = {exchange:String} AND symbol = {symbol:String}"
    """Condition on the instrument."""

    def nanoseconds(self, value: int) -> str:
        """Give an instant as SQL."""
        return f"fromUnixTimestamp64Nano({self._value(value, 'Int64')}, 'UTC')"

    def second(self, value: int) -> str:
        """Give a whole second as SQL, for columns of candles."""
        return f"toDateTime({self._value(min(max(value, 0), LAST_SECOND), 'UInt32')}, 'UTC')"

    def number(self, value: int) -> str:
        """Give a number as SQL."""
        return self._value(value, "Int64")

    def not_at(self, places: Places) -> str:
        """Give the condition for rows at other places."""
        condition, parameters = not_at(places, f"place{len(self.parameters)}_")
        self.parameters |= parameters
        return condition

    def _value(self, value: int, kind: str) -> str:
        name = f"value{len(self.parameters)}"
        self.parameters[name] = value
        return f"{{{name}:{kind}}}"


class CandleReads:
    """Makes the SQL that gives candles of one instrument."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        """The database."""
        self._in = "GLOBAL IN" if engine.cluster else "IN"

    async def pending(
        self, exchange: str, symbol: str, level: int, start: int, end: int
    ) -> Pending:
        """Look what is not rolled up yet for a level, in seconds from `start` to before `end`."""
        rows = await self.engine.query(SELECT, {"rollups": [FINE, COARSE]})
        fine = places_of(rows, FINE)
        # Longer candles are made of those of a minute, and of nothing that these lack.
        coarse = {
            stream: without(ranges, without(ranges, fine.get(stream, ())))
            for stream, ranges in places_of(rows, COARSE).items()
        }
        ask = Statement(exchange, symbol)
        lacking_fine = ask.not_at(fine)
        lacking = lacking_fine if level <= 60 else ask.not_at(coarse)
        found = await limited_query(
            self.engine,
            "SELECT count(), toUnixTimestamp(min(second)), toUnixTimestamp(max(second)), "
            "countIf(in_fine), toUnixTimestamp(minIf(second, in_fine)), "
            "toUnixTimestamp(maxIf(second, in_fine)) FROM ("
            f"SELECT toDateTime(toStartOfSecond(time), 'UTC') AS second, {lacking_fine} AS in_fine "
            f"FROM trade WHERE {self._of_trades(ask, start, end)} AND {lacking})",
            ask.parameters,
        )
        count, first, last, fine_count, fine_first, fine_last = (int(value) for value in found[0])
        return Pending(
            (fine_first, fine_last) if fine_count else None,
            (first, last) if count else None,
            fine,
            coarse,
        )

    def candles(self, ask: Statement, level: int, start: int, end: int, pending: Pending) -> str:
        """Give a SELECT of time and `CANDLE_COLUMNS` of the level's candles, or pieces of them.

        `start` and `end` are seconds and multiples of the level. Rows do not overlap in time; put
        together by bucket they are the candles.
        """
        parts = []
        condition = self._of_candles(ask, start, end)
        for finer in dict.fromkeys((level, 60, 1)):
            if finer > level:
                continue
            lacking, places = pending.of(finer)
            if lacking is None:
                parts.append(_select(finer, condition))
                break
            within = max(start, lacking[0] // finer * finer), min(end, lacking[1] + 1)
            rows = f"{self._of_trades(ask, *within)} AND {ask.not_at(places)}"
            bucket = f"toDateTime({bucket_sql('time', finer)}, 'UTC')"
            touched = f"(SELECT {bucket} FROM trade WHERE {rows})"
            parts.append(_select(finer, f"{condition} AND time NOT {self._in} {touched}"))
            beyond = within[1] + -within[1] % finer
            of_candle = "time" if finer == 1 else bucket_sql("time", finer)
            condition = (
                f"{self._of_candles(ask, within[0], beyond)} AND {of_candle} {self._in} {touched}"
            )
            if finer == 1:
                parts.append(self._touched_seconds(ask, within, touched, condition))
        return " UNION ALL ".join(parts)

    def trades(self, ask: Statement, start: int, end: int, *, seconds: int = 1) -> str:
        """Give the same of trades from `start` to before `end`, nanoseconds, by so many seconds."""
        condition = (
            f"{Statement.instrument} AND time >= {ask.nanoseconds(start)} "
            f"AND time < {ask.nanoseconds(end)}"
        )
        return _grouped(condition, seconds)

    # How.

    def _touched_seconds(
        self, ask: Statement, within: tuple[int, int], touched: str, condition: str
    ) -> str:
        """Seconds out of trades, but where the retention dropped some the candle is right."""
        second = "toDateTime(toStartOfSecond(time), 'UTC')"
        trades = f"{self._of_trades(ask, *within)} AND {second} {self._in} {touched}"
        return (
            f"SELECT time, {_COLUMNS} FROM ("
            f"SELECT *, 1 AS newer FROM ({_grouped(trades, 1)}) UNION ALL "
            f"SELECT *, 0 AS newer FROM ({_select(1, condition)})) "
            "ORDER BY trades DESC, newer DESC LIMIT 1 BY time"
        )

    @staticmethod
    def _of_candles(ask: Statement, start: int, end: int) -> str:
        return (
            f"{Statement.instrument} AND time >= {ask.second(start)} AND time < {ask.second(end)}"
        )

    @staticmethod
    def _of_trades(ask: Statement, start: int, end: int) -> str:
        begin = max(start, 0) * 1_000_000_000
        beyond = min(end, LAST_SECOND) * 1_000_000_000
        return (
            f"{Statement.instrument} AND time >= {ask.nanoseconds(begin)} "
            f"AND time < {ask.nanoseconds(beyond)}"
        )


def _select(level: int, condition: str) -> str:
    return f"SELECT time, {_COLUMNS} FROM {LEVEL_TABLES[level]} FINAL WHERE {condition}"


def _grouped(condition: str, seconds: int) -> str:
    bucket = bucket_sql("t.time", seconds)
    return (
        f"SELECT bucket AS time, {_COLUMNS} FROM ("
        f"SELECT toDateTime({bucket}, 'UTC') AS bucket, {candle_from_trades()} "
        f"FROM trade AS t FINAL WHERE {condition} GROUP BY bucket)"
    )
