"""Missed trades are fetched from the venue's history: at once, or behind what goes on."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeAlias

from marketprism.market.v1 import common_pb2

from services.collector.connection import backoff
from services.collector.feed import InstrumentFeed
from services.collector.histories import HistoryPages, Hole
from services.collector.rest import Priority, RestClient
from services.collector.settings import ExchangeSettings
from services.collector.venues.base import (
    RestRequest,
    SkippedTrade,
    TradePrint,
    VenueAdapter,
)

__all__ = ["TradeBackfill"]

_AT_ONCE = 2
_HOUR = 3_600_000_000_000
_SLACK = 5_000_000_000  # a trade was made so long before it was received, at the most

Start: TypeAlias = Callable[[InstrumentFeed, Coroutine[Any, Any, None], str], None]
Note: TypeAlias = Callable[..., None]
SeeLimit: TypeAlias = Callable[[InstrumentFeed, "common_pb2.EventKind.ValueType", Exception], None]


class TradeBackfill:
    """Fills the holes in the trades of one venue, page by page, within the limits of the settings.

    A fresh hole holds the trades that follow for `trade_wait_seconds` at the most. What comes by
    then is published in its place; what comes later, behind them. `start(feed, work, what)` starts
    what ends with the instrument, `note(what, feed, now, **data)` writes an input into the
    recording, `see_limit(feed, kind, error)` looks whether a failure is a refusal for our rate.
    The `on_` methods take what came of it; replay calls them with what was noted.
    """

    def __init__(
        self,
        adapter: VenueAdapter,
        settings: ExchangeSettings,
        rest: RestClient,
        start: Start,
        note: Note,
        see_limit: SeeLimit,
    ) -> None:
        self._adapter = adapter
        self._settings = settings
        self._rest = rest
        self._start = start
        self._note = note
        self._see_limit = see_limit
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def fetch(self, feed: InstrumentFeed, first: int, last: int) -> None:
        """Fetch the trades of a hole that has just opened, for which others wait."""
        self._start(
            feed, self._fill_in_time(feed, first, last, feed.trades.last_time), "missed trades"
        )

    def fetch_owed(self, feed: InstrumentFeed) -> None:
        """Fetch what an earlier process still owed, for which nothing waits."""
        if feed.debts:
            self._start(feed, self._pay(feed), "owed trades")

    # What came of it

    def on_page(
        self,
        feed: InstrumentFeed,
        first: int,
        last: int,
        trades: Sequence[TradePrint],
        skipped: Sequence[Sequence[int]],
        now: int,
    ) -> None:
        """Take what a page has of first..last; the runs `skipped` are no trades of the market."""
        self._note(
            "history_page", feed, now, first=first, last=last, skipped=skipped, trades=trades
        )
        name = feed.spec.native_symbol
        told: list[TradePrint | SkippedTrade] = [*trades]
        told += [SkippedTrade(name, end, end - begin + 1) for begin, end in skipped]
        feed.on_past_trades(first, last, told, now)

    def on_wait_over(self, feed: InstrumentFeed, first: int, now: int) -> None:
        """Hold trades no longer for the hole that begins with `first`."""
        self._note("wait_over", feed, now, first=first)
        feed.release_trades(first, "they are published before what is missing", now)

    def on_end(
        self, feed: InstrumentFeed, first: int, last: int, detail: str, now: int, *, told: bool
    ) -> None:
        """Take note that nothing more comes of first..last, and why.

        `told` says that the ledger has it from an earlier process what is missing.
        """
        self._note("history_end", feed, now, first=first, last=last, detail=detail, told=told)
        feed.on_history_end(first, last, detail, now, told=told)

    # Inside

    async def _fill_in_time(self, feed: InstrumentFeed, first: int, last: int, since: int) -> None:
        timer = asyncio.get_running_loop().call_later(
            self._settings.trade_wait_seconds, self._end_wait, feed, first
        )
        try:
            await self._fill(feed, first, last, since)
        finally:
            timer.cancel()

    def _end_wait(self, feed: InstrumentFeed, first: int) -> None:
        missing = feed.trades.missing
        if missing is not None and missing[0] == first:
            self.on_wait_over(feed, first, time.time_ns())

    async def _pay(self, feed: InstrumentFeed) -> None:
        # The newest first: venues forget the oldest first, and have most to tell of the newest.
        for debt in sorted(feed.debts, key=lambda each: each.first, reverse=True):
            since = max(debt.since - _SLACK, 0)
            for first, last in reversed(feed.trades.owed.within(debt.first, debt.last)):
                await self._fill(feed, first, last, since, fresh=False)

    async def _fill(
        self, feed: InstrumentFeed, first: int, last: int, since: int, *, fresh: bool = True
    ) -> None:
        settings = self._settings
        hole = Hole(
            feed.spec.native_symbol,
            first,
            last,
            since=since,
            oldest=time.time_ns() - int(settings.trade_history_hours * _HOUR),
            pages=settings.trade_history_pages,
            fresh=fresh,
            sizes=feed.sizes,
        )
        pages = HistoryPages(
            hole,
            self._adapter,
            self._ask,
            self._pause,
            lambda error: self._see_limit(feed, common_pb2.EVENT_KIND_TRADE, error),
        )
        async for page in pages:
            self.on_page(feed, page.first, page.last, page.trades, page.skipped, page.received)
            if not feed.trades.wants(first, last):
                break
        self.on_end(feed, first, last, pages.detail, time.time_ns(), told=not fresh)

    async def _ask(self, request: RestRequest) -> tuple[bytes, int]:
        async with self._slots:
            return await self._rest.get(request, priority=Priority.HISTORY)

    def _pause(self, attempt: int) -> Awaitable[None]:
        return asyncio.sleep(backoff(self._settings, attempt))
