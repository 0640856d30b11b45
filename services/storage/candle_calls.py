"""ListCandles: the venue's candles or those of the trades held, page by page, holes filled."""
# ruff: noqa: N802 - methods are named as in the contract

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.market.v1.events_pb2 import Candle

from services.shared.parts import Context
from services.storage.candle_reads import LAST_SECOND, CandleReads
from services.storage.candle_sources import (
    CandleSource,
    TradeCandles,
    VenueCandles,
    monday,
)
from services.storage.engine import Engine
from services.storage.gaps import gaps_touching
from services.storage.http_cache import Answers
from services.storage.known import KnownInstruments
from services.storage.paging import bad_token, read_token, write_token
from services.storage.validators import (
    MAX_TIME,
    NANOS,
    TimeRange,
    check_enum,
    check_instrument,
    duration_ns,
    invalid,
    page_size,
    time_range,
)

__all__ = ["SETTLE_SECONDS", "CandleCalls"]

SETTLE_SECONDS: Final = 5
"""A candle of trades is called closed so long after its end, unless trades of that time
wait to be stored."""

# The broker keeps trades for a day: what ended earlier waits for nothing, also while the broker is
# away and cannot say how much it holds.
_BACKLOG_SECONDS: Final = 86_400
_LONGEST: Final = 31 * 86_400
_DEFAULT: Final = 60
_GROWTH: Final = 4


@dataclass(frozen=True, slots=True)
class _Page:
    """Candles in the order asked for, and where the next page begins, seconds; None on the last.

    Ascending that is the first second of the rest, descending the first second that is not of it.
    """

    candles: list[Candle]
    next: int | None


class CandleCalls:
    """Answers HistoryService.ListCandles."""

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

    async def ListCandles(self, request: pb.ListCandlesRequest, context: Context) -> bytes:
        """Answer candles."""
        exchange, symbol = check_instrument(request)
        size = page_size(request.page_size)
        asked = time_range(request, self._now())
        interval = _interval(request)
        check_enum(
            pb.CandleSource.DESCRIPTOR,
            request.source,
            "source",
            unset="the venue's where it has candles of that interval, else those of trades",
        )
        place = _place(request)
        if place is not None and not request.HasField("end_time"):
            # "Now" stays that of the first page.
            asked = TimeRange(asked.start, max(asked.start, place[1]))
        await self._known.check(exchange, symbol)
        source = await self._source(request, exchange, symbol, interval)
        # The last candle changes until its own end.
        end = asked.end + interval * NANOS if request.HasField("end_time") else None
        return await self._answers.cached(
            context,
            request,
            lambda: self._answer(request, source, asked, place, size),
            end_ns=end,
        )

    async def _source(
        self, request: pb.ListCandlesRequest, exchange: str, symbol: str, interval: int
    ) -> CandleSource:
        trades = TradeCandles(self._reads, exchange, symbol, interval, self._settled_until)
        if request.source == pb.CANDLE_SOURCE_TRADES:
            return trades
        found = await VenueCandles.find(self._engine, exchange, symbol, interval)
        if isinstance(found, VenueCandles):
            return found
        if request.source != pb.CANDLE_SOURCE_VENUE:
            return trades
        if found:
            held = ", ".join(f"{seconds} s" for seconds in found)
            raise invalid(
                "interval",
                f"expected one at which candles of the venue are held ({held}), "
                "or CANDLE_SOURCE_TRADES for any",
                f"{interval} s",
            )
        return VenueCandles(self._engine, exchange, symbol, interval, monday(interval))

    def _settled_until(self) -> int:
        now = self._now()
        stored = min(now, self._answers.stored_until()) - SETTLE_SECONDS * NANOS
        return max(stored, now - _BACKLOG_SECONDS * NANOS)

    async def _answer(
        self,
        request: pb.ListCandlesRequest,
        source: CandleSource,
        asked: TimeRange,
        place: tuple[int, int] | None,
        size: int,
    ) -> pb.ListCandlesResponse:
        start, end = _on_grid(source, asked.start), _on_grid(source, asked.end)
        if request.fill_empty:
            # Of what is still to come nobody knows that nothing was traded.
            end = min(end, _on_grid(source, self._now()))
        end = min(end, LAST_SECOND)
        if place is not None and request.descending:
            end = max(start, min(end, place[0]))
        elif place is not None:
            start = max(start, place[0])
        read = _filled if request.fill_empty else _held
        page = await read(source, start, end, size, request.descending)
        if request.fill_empty:
            _finish(page.candles, self._settled_until())
        token = write_token(request, [page.next, asked.end]) if page.next is not None else ""
        covered = _covered(request, asked, place, page)
        gaps = await gaps_touching(
            self._engine, request.exchange, request.symbol, [source.kind], covered.start,
            covered.end,
        )  # fmt: skip
        return pb.ListCandlesResponse(candles=page.candles, next_page_token=token, gaps=gaps)


def _interval(request: pb.ListCandlesRequest) -> int:
    if not request.HasField("interval"):
        return _DEFAULT
    expected = "whole seconds from 1 s to 31 days"
    length = duration_ns(
        request.interval, "interval", least=NANOS, most=_LONGEST * NANOS, expected=expected
    )
    if length % NANOS:
        raise invalid("interval", f"expected {expected}", f"{length / NANOS:.9g} s")
    return length // NANOS


def _place(request: pb.ListCandlesRequest) -> tuple[int, int] | None:
    held = read_token(request)
    if held is None:
        return None
    if len(held) != 2:
        raise bad_token()
    begin, end = held
    if not isinstance(begin, int) or not isinstance(end, int):
        raise bad_token()
    if not 0 <= begin <= LAST_SECOND or not 0 <= end <= MAX_TIME:
        raise bad_token()
    return begin, end


def _on_grid(source: CandleSource, nanoseconds: int) -> int:
    """Give the first begin of a candle at or after an instant, seconds."""
    length = source.interval
    seconds = -(-nanoseconds // NANOS) - source.offset
    return -(-seconds // length) * length + source.offset


async def _held(source: CandleSource, start: int, end: int, size: int, descending: bool) -> _Page:
    """Read candles by windows of time that grow until the page is full."""
    found: list[Candle] = []
    window = (size + 1) * source.interval
    while len(found) <= size and start < end:
        if descending:
            edge = await source.last(start, end)
            if edge is None:
                break
            # The edge may be a candle of the venue off the grid.
            beyond = min(end, edge + source.interval)
            begin = max(start, beyond - window)
            end = begin
        else:
            edge = await source.first(start, end)
            if edge is None:
                break
            begin = max(start, edge)
            beyond = min(end, begin + window)
            start = beyond
        limit = size + 1 - len(found)
        found += await source.window(begin, beyond, limit, descending=descending)
        window *= _GROWTH
    if len(found) <= size:
        return _Page(found, None)
    kept = found[:size]
    return _Page(kept, kept[-1].open_time.seconds if descending else found[size].open_time.seconds)


async def _filled(source: CandleSource, start: int, end: int, size: int, descending: bool) -> _Page:
    """Read a page's worth of intervals and fill those without a trade."""
    if descending:
        begin, beyond = max(start, end - size * source.interval), end
    else:
        begin, beyond = start, min(end, start + size * source.interval)
    before = await source.last(0, begin)
    if before is None:
        # Nothing is known before the first trade.
        first = await source.first(begin, end)
        if first is None:
            return _Page([], None)
        begin = max(begin, first)
        if not descending:
            beyond = min(end, begin + size * source.interval)
    count = (beyond - begin) // source.interval + 1
    found = await source.window(begin, beyond, count, descending=False)
    price, template = "", found[0] if found else None
    if before is not None:
        previous = await source.window(before, before + source.interval, 1, descending=False)
        template = template or previous[-1]
        price = previous[-1].close_price
    candles = _flat(source, found, begin, beyond, price, template) if template else []
    if descending:
        candles.reverse()
        more = before is not None and begin > start
        return _Page(candles, begin if more else None)
    return _Page(candles, beyond if beyond < end else None)


def _flat(
    source: CandleSource,
    found: Sequence[Candle],
    begin: int,
    end: int,
    price: str,
    template: Candle,
) -> list[Candle]:
    """Put flat candles where none was found, from the first one or the price before it."""
    candles = []
    ahead = list(reversed(found))
    for time_ in range(begin, end, source.interval):
        within = []
        while ahead and ahead[-1].open_time.seconds < time_ + source.interval:
            within.append(ahead.pop())
        if within:
            candles += within
            price = within[-1].close_price
        elif price:
            candles.append(
                Candle(
                    exchange=template.exchange,
                    symbol=template.symbol,
                    interval=Duration(seconds=source.interval),
                    open_time=Timestamp(seconds=time_),
                    close_time=Timestamp(seconds=time_ + source.interval),
                    open_price=price,
                    high_price=price,
                    low_price=price,
                    close_price=price,
                    base_volume="0",
                    quote_volume="0",
                    taker_buy_base_volume="0",
                    taker_buy_quote_volume="0",
                )
            )
    return candles


def _finish(candles: Sequence[Candle], settled_until: int) -> None:
    """Close flat candles whose end is past; the others know it."""
    for candle in candles:
        if not candle.HasField("receive_time") and candle.close_time.ToNanoseconds() <= (
            settled_until
        ):
            candle.closed = True


def _covered(
    request: pb.ListCandlesRequest,
    asked: TimeRange,
    place: tuple[int, int] | None,
    page: _Page,
) -> TimeRange:
    """Give the time that a page speaks of: what is missing between two pages is of one of them."""
    if not page.candles:
        return asked
    ends = (page.candles[0], page.candles[-1])
    start = min(each.open_time.ToNanoseconds() for each in ends)
    end = max(each.close_time.ToNanoseconds() for each in ends)
    if place is not None:
        start, end = min(start, place[0] * NANOS), max(end, place[0] * NANOS)
    is_first, is_last = place is None, page.next is None
    if (is_last if request.descending else is_first) and asked.start:
        start = min(start, asked.start)
    if is_first if request.descending else is_last:
        end = max(end, asked.end)
    return TimeRange(start, end)
