"""Lists of stored events by kind, page by page, with the gaps that touch them."""
# ruff: noqa: N802 - methods are named as in the contract

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.market.v1 import events_pb2

from services.shared.parts import Context
from services.shared.wire import field
from services.storage.engine import Engine
from services.storage.gaps import gaps_touching
from services.storage.http_cache import Answers, Encoded
from services.storage.known import KnownInstruments
from services.storage.pages import HOUR, Page, PageQuery, read_page
from services.storage.paging import Keyset, Place, bad_token, read_token, write_token
from services.storage.tables import TABLES
from services.storage.validators import (
    MAX_TIME,
    TimeRange,
    check_enum,
    check_instrument,
    duration_ns,
    page_size,
    time_range,
)
from services.storage.wire import repeated

__all__ = ["EventLists"]

_LONGEST_PERIOD: Final = 366 * 24 * HOUR
_MAX_GAP_BYTES: Final = 3 * 1024**2

# The last rate told before a settlement is known only when what was told after the window, until
# the settlement, is looked at too.
_SETTLED: Final = """\
(funding_time, time, stream_sequence) GLOBAL IN (
  SELECT funding_time, last.1, last.2 FROM (
    SELECT funding_time, max((time, stream_sequence)) AS last FROM funding_rate
    WHERE exchange = {exchange:String} AND symbol = {symbol:String}
    AND time >= fromUnixTimestamp64Nano({window_start:Int64}, 'UTC')
    AND time < greatest(fromUnixTimestamp64Nano({window_end:Int64}, 'UTC'), (
      SELECT max(funding_time) FROM funding_rate
      WHERE exchange = {exchange:String} AND symbol = {symbol:String}
      AND time >= fromUnixTimestamp64Nano({window_start:Int64}, 'UTC')
      AND time < fromUnixTimestamp64Nano({window_end:Int64}, 'UTC')))
    AND time < funding_time AND funding_time <= fromUnixTimestamp64Nano({now:Int64}, 'UTC')
    GROUP BY funding_time))"""
_SETTLED_WINDOW: Final = 30 * 24 * HOUR


@dataclass(frozen=True, slots=True)
class _Filter:
    """What a list narrows its table by, beside instrument and time."""

    condition: str
    parameters: dict[str, Any]
    first_window: int = 0


class EventLists:
    """Answers the lists of HistoryService that give events as they were published."""

    def __init__(
        self,
        engine: Engine,
        known: KnownInstruments,
        answers: Answers,
        *,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        """Read from `engine`, answer through `answers`; `now` gives nanoseconds since 1970."""
        self._engine = engine
        self._answers = answers
        self._known = known
        self._now = now

    async def ListTrades(self, request: pb.ListTradesRequest, context: Context) -> bytes:
        """Answer trades."""
        return await self._list("trade", request, context)

    async def ListTickers(self, request: pb.ListTickersRequest, context: Context) -> bytes:
        """Answer the venue's rolling statistics."""
        return await self._list("ticker", request, context)

    async def ListBestBidOffers(
        self, request: pb.ListBestBidOffersRequest, context: Context
    ) -> bytes:
        """Answer best bids and offers."""
        return await self._list("best_bid_offer", request, context)

    async def ListFundingRates(
        self, request: pb.ListFundingRatesRequest, context: Context
    ) -> bytes:
        """Answer funding rates as they were told, or the one that was paid at each settlement."""
        narrowed = None
        if request.settled_only:
            narrowed = _Filter(_SETTLED, {"now": self._now()}, _SETTLED_WINDOW)
        return await self._list("funding_rate", request, context, narrowed)

    async def ListMarkPrices(self, request: pb.ListMarkPricesRequest, context: Context) -> bytes:
        """Answer mark prices."""
        return await self._list("mark_price", request, context)

    async def ListIndexPrices(self, request: pb.ListIndexPricesRequest, context: Context) -> bytes:
        """Answer prices of an index."""
        return await self._list("index_price", request, context)

    async def ListOpenInterests(
        self, request: pb.ListOpenInterestsRequest, context: Context
    ) -> bytes:
        """Answer open interest."""
        return await self._list("open_interest", request, context)

    async def ListLiquidations(
        self, request: pb.ListLiquidationsRequest, context: Context
    ) -> bytes:
        """Answer liquidations."""
        return await self._list("liquidation", request, context)

    async def ListLongShortRatios(
        self, request: pb.ListLongShortRatiosRequest, context: Context
    ) -> bytes:
        """Answer ratios of longs to shorts, of one kind or period, or of all."""
        kinds = events_pb2.LongShortRatioKind.DESCRIPTOR
        check_enum(kinds, request.kind, "kind", unset="all")
        conditions: list[str] = []
        parameters: dict[str, Any] = {}
        if request.kind:
            conditions.append("CAST(kind AS Int8) = {kind:Int8}")
            parameters["kind"] = int(request.kind)
        if request.HasField("period"):
            conditions.append("period = {period:Int64}")
            parameters["period"] = duration_ns(
                request.period,
                "period",
                least=1,
                most=_LONGEST_PERIOD,
                expected="more than 0 and at most 366 days",
            )
        narrowed = _Filter(" AND ".join(conditions), parameters) if conditions else None
        return await self._list("long_short_ratio", request, context, narrowed)

    async def ListVolatilityIndexes(
        self, request: pb.ListVolatilityIndexesRequest, context: Context
    ) -> bytes:
        """Answer values of a volatility index."""
        return await self._list("volatility_index", request, context)

    async def ListOptionGreeks(
        self, request: pb.ListOptionGreeksRequest, context: Context
    ) -> bytes:
        """Answer greeks and implied volatilities of an option."""
        return await self._list("option_greeks", request, context)

    async def _list(
        self, name: str, request: Any, context: Context, narrowed: _Filter | None = None
    ) -> bytes:
        """Check a request and answer it; `request` is any of those above."""
        exchange, symbol = check_instrument(request)
        size = page_size(request.page_size)
        asked = time_range(request, self._now())
        after, asked = _begin(request, asked)
        table = TABLES[name]
        query = PageQuery(
            table,
            exchange,
            symbol,
            asked,
            request.descending,
            size,
            after,
            narrowed.condition if narrowed else "",
            narrowed.parameters if narrowed else {},
            narrowed.first_window if narrowed else 0,
        )
        keyset = Keyset(table)
        if after is not None:
            keyset.behind(after, descending=query.descending)
        await self._known.check(exchange, symbol)
        return await self._answers.cached(
            context, request, lambda: self._answer(request, keyset, query)
        )

    async def _answer(self, request: Any, keyset: Keyset, query: PageQuery) -> Encoded:
        page = await read_page(self._engine, keyset, query)
        token = write_token(request, [*page.places[-1], query.range.end]) if page.more else ""
        gaps = await self._gaps(query, _covered(query, page, keyset.columns.index("time")))
        next_page = field(2, token.encode()) if token else b""
        return Encoded(repeated(1, page.events) + next_page + repeated(3, gaps), whole=not gaps)

    async def _gaps(self, query: PageQuery, covered: TimeRange) -> list[bytes]:
        entries = await gaps_touching(
            self._engine,
            query.exchange,
            query.symbol,
            [query.table.kind],
            covered.start,
            covered.end,
        )
        encoded = [entry.SerializeToString() for entry in entries]
        sizes = itertools.accumulate(len(each) for each in encoded)
        return [each for each, size in zip(encoded, sizes, strict=True) if size <= _MAX_GAP_BYTES]


def _begin(request: Any, asked: TimeRange) -> tuple[Place | None, TimeRange]:
    """Give the place that a request goes on from, and its range, which has the walk's own end.

    An end that is unset was "now" at the first page, and stays that until the last.
    """
    held = read_token(request)
    if held is None:
        return None, asked
    place, end = held[:-1], held[-1] if held else ""
    if not isinstance(end, int) or not 0 <= end <= MAX_TIME:
        raise bad_token()
    if not request.HasField("end_time"):
        asked = TimeRange(asked.start, max(asked.start, end))
    return place, asked


def _covered(query: PageQuery, page: Page, time_index: int) -> TimeRange:
    """Give the time that a page speaks of.

    From its first to its last event; beyond the first until the page before or the range's bound,
    and beyond the last until the range's bound when no page follows: what is missing between two
    pages, or before the first event or after the last one, is missing from the answer too. Of a
    begin that is unset, the first event is the begin.
    """
    if not page.places:
        return query.range
    times = [int(place[time_index]) for place in (page.places[0], page.places[-1])]
    if query.after is not None:
        times.append(int(query.after[time_index]))
    start, end = min(times), max(times) + 1
    is_first, is_last = query.after is None, not page.more
    reaches_start = is_last if query.descending else is_first
    reaches_end = is_first if query.descending else is_last
    if reaches_start and query.range.start:
        start = min(start, query.range.start)
    if reaches_end:
        end = max(end, query.range.end)
    return TimeRange(start, end)
