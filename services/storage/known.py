"""Which instruments the store knows, so that a wrong name is not taken for an empty history."""

import difflib
import time
from collections.abc import Callable, Iterable
from typing import Final

from services.shared.errors import NotFound
from services.storage.engine import Engine
from services.storage.tables import TABLES

__all__ = ["KnownInstruments"]

_EVENT_TABLES: Final = tuple(name for name in TABLES if name not in ("instrument", "integrity"))
_KNOWN_SECONDS: Final = 60.0
_UNKNOWN_SECONDS: Final = 2.0
_MOST_KEPT: Final = 20_000
_NAMES: Final = 20_000
_LISTED: Final = 20


class KnownInstruments:
    """Tells whether something was ever stored of an instrument or a venue.

    An instrument is known when it is described, or when any table has an event of it. The answer is
    a look-up by primary key in each table, kept for a minute, and for two seconds when it is no.
    """

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._kept: dict[tuple[str, str], tuple[bool, float]] = {}

    async def check(self, exchange: str, symbol: str) -> None:
        """Raise `NotFound`, EXCHANGE_NOT_FOUND or INSTRUMENT_NOT_FOUND, for an unknown one."""
        if await self._is_known(exchange, symbol):
            return
        await self.check_exchange(exchange, symbol)
        names = await self._names("symbol", exchange)
        raise NotFound(
            f"{exchange} has no instrument {symbol!r} in the store"
            + (_suggested(symbol, names) or "; ListCoverage tells what is held"),
            reason="INSTRUMENT_NOT_FOUND",
            metadata={"exchange": exchange, "symbol": symbol},
        )

    async def check_exchange(self, exchange: str, symbol: str = "") -> None:
        """Raise `NotFound`, EXCHANGE_NOT_FOUND, for a venue that nothing is stored of."""
        if await self._is_known(exchange, ""):
            return
        names = await self._names("exchange", "")
        held = f"there is {', '.join(names[:_LISTED])}" if names else "the store is empty"
        raise NotFound(
            f"nothing of an exchange {exchange!r} is stored; {held}{_suggested(exchange, names)}",
            reason="EXCHANGE_NOT_FOUND",
            metadata={"exchange": exchange, "symbol": symbol},
        )

    async def _is_known(self, exchange: str, symbol: str) -> bool:
        now = self._clock()
        kept = self._kept.get((exchange, symbol))
        if kept is not None and now < kept[1]:
            return kept[0]
        known = await self._is_held(("instrument",), exchange, symbol) or await self._is_held(
            _EVENT_TABLES, exchange, symbol
        )
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[exchange, symbol] = (
            known,
            now + (_KNOWN_SECONDS if known else _UNKNOWN_SECONDS),
        )
        return known

    async def _is_held(self, tables: Iterable[str], exchange: str, symbol: str) -> bool:
        condition = "exchange = {exchange:String}"
        if symbol:
            condition += " AND symbol = {symbol:String}"
        each = " UNION ALL ".join(
            f"SELECT 1 FROM {table} WHERE {condition} LIMIT 1" for table in tables
        )
        parameters = {"exchange": exchange, **({"symbol": symbol} if symbol else {})}
        return bool(await self._engine.query(f"SELECT * FROM ({each}) LIMIT 1", parameters))

    async def _names(self, column: str, exchange: str) -> list[str]:
        """Give what is described, for the words of an error."""
        condition = "WHERE exchange = {exchange:String}" if exchange else ""
        rows = await self._engine.query(
            f"SELECT DISTINCT {column} FROM instrument {condition} "
            f"ORDER BY {column} LIMIT {_NAMES}",
            {"exchange": exchange} if exchange else {},
        )
        return [str(name) for (name,) in rows]


def _suggested(name: str, names: Iterable[str]) -> str:
    wanted = name.upper()
    by_shape = {each.upper(): each for each in names if each[:1].upper() == wanted[:1]}
    close = difflib.get_close_matches(wanted, list(by_shape)[:2000], n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(by_shape[each] for each in close)}?" if close else ""
