"""What a venue is asked for by REST on behalf of its feeds: books, missed trades, a second look."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from services.collector.backfill import TradeBackfill
from services.collector.connection import backoff
from services.collector.feed import InstrumentFeed
from services.collector.journal import Journal
from services.collector.ledger import Ledger
from services.collector.rest import Priority, RateLimitedError, RestClient, RestError
from services.collector.settings import ExchangeSettings
from services.collector.venues.base import (
    BookSnapshot,
    MalformedFrameError,
    SnapshotSource,
    TradePrint,
    VenueAdapter,
)
from services.shared.decimals import InvalidDecimalError

__all__ = ["FeedRequests"]

_PROBE_DEPTH = 5
_TRADES_LOOKED_AT = 100
_PROBES_AT_ONCE = 2


class FeedRequests:
    """Brings about snapshots and histories, single-flight for each instrument, with backoff.

    `trades` fetches missed trades. Where snapshots come in the stream, `renew(feed)` begins the
    book's subscription anew and tells whether it could. `spawn(coroutine, name)` starts a task that
    the service owns.
    """

    def __init__(
        self,
        exchange: str,
        adapter: VenueAdapter,
        settings: ExchangeSettings,
        rest: RestClient,
        ledger: Ledger,
        spawn: Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]],
        renew: Callable[[InstrumentFeed], bool],
        journal: Journal | None = None,
    ) -> None:
        self._journal = journal
        self._exchange = exchange
        self._adapter = adapter
        self._settings = settings
        self._rest = rest
        self._ledger = ledger
        self._spawn = spawn
        self._renew = renew
        self._from_stream = adapter.snapshot_source is SnapshotSource.STREAM
        self._slots = asyncio.Semaphore(settings.snapshots_at_once)
        self._probes = asyncio.Semaphore(_PROBES_AT_ONCE)
        self._fetching: dict[str, asyncio.Task[Any]] = {}
        self._probing: set[str] = set()
        self._looking: set[str] = set()
        self._others: dict[str, set[asyncio.Task[Any]]] = {}
        self.trades = TradeBackfill(
            adapter, settings, rest, self._start, self._note, self._see_limit
        )

    def snapshot(self, feed: InstrumentFeed, reason: int) -> None:
        """Bring a snapshot about; without a connection it is asked for again when there is one."""
        if not feed.lanes.names:
            return
        attempt = feed.next_attempt(time.time_ns())
        work = self._subscribe_anew if self._from_stream else self._fetch
        name = feed.spec.native_symbol
        self.cancel(name)
        self._fetching[name] = self._spawn(
            work(feed, attempt), f"{self._exchange}: snapshot of {feed.spec.symbol}"
        )

    def cancel(self, native_symbol: str) -> None:
        """Ask for no snapshot any more."""
        task = self._fetching.pop(native_symbol, None)
        if task is not None:
            task.cancel()

    def end(self, native_symbol: str) -> None:
        """Ask for nothing more on behalf of an instrument, and tell of no answer any more."""
        self.cancel(native_symbol)
        for task in self._others.pop(native_symbol, ()):
            task.cancel()
        self._probing.discard(native_symbol)
        self._looking.discard(native_symbol)

    def probe(self, feed: InstrumentFeed, done: Callable[[bool | None], None]) -> None:
        """Compare the id of a silent book with the venue's.

        `done(agree)` is told the outcome, None when there was no answer.
        """
        name = feed.spec.native_symbol
        if name not in self._probing:
            self._probing.add(name)
            self._start(feed, self._look(feed, done), "a look at the book")

    def look_for_trades(self, feed: InstrumentFeed, missed: Callable[[], None]) -> None:
        """See whether trades were made that the stream did not tell; then `missed` is called."""
        name = feed.spec.native_symbol
        if name not in self._looking:
            self._looking.add(name)
            self._start(feed, self._look_for_trades(feed, missed), "a look for trades")

    # What came of it; replay calls these with what was noted.

    def on_snapshot_failed(
        self, feed: InstrumentFeed, detail: str, now: int, *, limited: bool
    ) -> None:
        """Take note that there is no snapshot; `limited` when the venue says we ask too much."""
        self._note("snapshot_failed", feed, now, detail=detail, limited=limited)
        if limited:
            self._record_limited(feed, common_pb2.EVENT_KIND_ORDER_BOOK, detail, now)
        feed.book.on_snapshot_failed(
            pb.ORDER_BOOK_REASON_RATE_LIMITED if limited else pb.ORDER_BOOK_REASON_SNAPSHOT_FAILED,
            detail,
            now,
        )

    def on_limited(
        self,
        feed: InstrumentFeed,
        kind: "common_pb2.EventKind.ValueType",
        detail: str,
        now: int,
    ) -> None:
        """Take note that the venue says we ask too much, of a request that is made again later."""
        self._note("request_limited", feed, now, kind=kind, detail=detail)
        self._record_limited(feed, kind, detail, now)

    def on_no_snapshot(self, feed: InstrumentFeed, seconds: float, now: int) -> None:
        """Take note that a book was subscribed to, and that its snapshot does not come."""
        self._note("no_snapshot", feed, now, seconds=seconds)
        self._ledger.record(
            integrity.INTEGRITY_KIND_SILENT,
            integrity.INTEGRITY_CAUSE_UNSPECIFIED,
            f"no snapshot came within {seconds:g} s; the book is subscribed to anew",
            exchange=self._exchange,
            symbol=feed.spec.symbol,
            now=now,
            event_kind=common_pb2.EVENT_KIND_ORDER_BOOK,
            begin=now - int(seconds * 1e9),
            epoch=feed.book.epoch,
            sequence=feed.book.sequence,
            venue_sequence=feed.book.venue_sequence,
            connection_id=feed.connection_id,
        )

    def on_probe(self, feed: InstrumentFeed, sequence: int, before: int, now: int) -> bool:
        """Take at which id the venue's book stands."""
        self._note("probe", feed, now, sequence=sequence, before=before)
        return feed.on_probe(sequence, before, now)

    def on_trade_found(
        self, feed: InstrumentFeed, trade: TradePrint, before: int, now: int
    ) -> None:
        """Take a trade that the stream did not tell: it shows the hole, and the rest fills it.

        `before` is the last trade that was known at the venue or told by the stream.
        """
        self._note("trade_found", feed, now, trade=trade, before=before)
        if not feed.trades.last_id:
            # Nothing has come yet: what was made since we looked first is missing.
            feed.trades.last_id = before
        feed.on_trade(trade, now)

    def _note(self, what: str, feed: InstrumentFeed, now: int, **data: Any) -> None:
        if self._journal is not None:
            self._journal.note(what, now, native_symbol=feed.spec.native_symbol, **data)

    # Inside

    def _start(self, feed: InstrumentFeed, work: Coroutine[Any, Any, None], what: str) -> None:
        """Start what ends with the instrument."""
        name = feed.spec.native_symbol
        task = self._spawn(work, f"{self._exchange}: {what} of {feed.spec.symbol}")
        self._others.setdefault(name, set()).add(task)
        task.add_done_callback(lambda done: self._ended(name, done))

    def _ended(self, native_symbol: str, task: asyncio.Task[Any]) -> None:
        others = self._others.get(native_symbol, set())
        others.discard(task)
        if not others:
            self._others.pop(native_symbol, None)

    def _record_limited(
        self,
        feed: InstrumentFeed,
        kind: "common_pb2.EventKind.ValueType",
        detail: str,
        now: int,
    ) -> None:
        self._ledger.record(
            integrity.INTEGRITY_KIND_RATE_LIMITED,
            integrity.INTEGRITY_CAUSE_RATE_LIMIT,
            detail,
            exchange=self._exchange,
            symbol=feed.spec.symbol,
            now=now,
            event_kind=kind,
        )

    async def _fetch(self, feed: InstrumentFeed, attempt: int) -> None:
        request = self._adapter.snapshot_request(
            feed.spec.native_symbol, self._settings.snapshot_depth
        )
        if attempt:
            await asyncio.sleep(backoff(self._settings, attempt - 1))
        name = feed.spec.native_symbol
        try:
            async with self._slots:
                body, received = await self._rest.get(request, priority=Priority.SNAPSHOT)
            snapshot = self._adapter.decode_snapshot(body, request)
        except (RestError, MalformedFrameError) as error:
            self._fetching.pop(name, None)
            self.on_snapshot_failed(
                feed, str(error), time.time_ns(), limited=isinstance(error, RateLimitedError)
            )
            return
        # From here on a new request may be made; this one must not be cancelled for it.
        self._fetching.pop(name, None)
        if self._journal is not None:
            self._journal.note("snapshot", received, native_symbol=name, request=request)
        feed.book.on_snapshot(snapshot, received)

    async def _subscribe_anew(self, feed: InstrumentFeed, attempt: int) -> None:
        """Subscribe anew until a snapshot came: each time waits longer."""
        told = False
        while not feed.book.in_step and feed.lanes.names:
            if not feed.expects_snapshot:
                if attempt:
                    await asyncio.sleep(backoff(self._settings, attempt - 1))
                self._renew(feed)
            # Unsubscribing, subscribing and the snapshot take their time.
            seconds = self._settings.acknowledge_seconds
            try:
                async with asyncio.timeout(seconds):
                    await feed.synced.wait()
            except TimeoutError:
                # Once: a venue that is down must not fill the ledger.
                if feed.lanes.names and not told:
                    told = True
                    self.on_no_snapshot(feed, seconds, time.time_ns())
            feed.expects_snapshot = False
            attempt += 1

    async def _look(self, feed: InstrumentFeed, done: Callable[[bool | None], None]) -> None:
        name = feed.spec.native_symbol
        try:
            before = feed.book.venue_sequence
            snapshot = await self._ask(feed)
            if snapshot is None or not snapshot.last:
                done(None)
                return
            if snapshot.last != before:
                # The change may be on its way: look whether it has come by now.
                await asyncio.sleep(min(2.0, self._settings.lag_seconds))
            done(self.on_probe(feed, snapshot.last, before, time.time_ns()))
        finally:
            self._probing.discard(name)

    async def _look_for_trades(self, feed: InstrumentFeed, missed: Callable[[], None]) -> None:
        name = feed.spec.native_symbol
        try:
            before = feed.trades.last_id or feed.oldest_trade
            # Where nothing has come yet, what was traded since the stream was subscribed to is
            # missing as well.
            request = self._adapter.trades_request(
                name, before + 1 if before else 0, 1 if before else _TRADES_LOOKED_AT
            )
            try:
                async with self._probes:
                    body, received = await self._rest.get(request, priority=Priority.POLL)
                trades = self._adapter.decode_trades(body, name)
            except (RestError, MalformedFrameError) as error:
                self._see_limit(feed, common_pb2.EVENT_KIND_TRADE, error)
                return
            if not trades:
                return
            if not before:
                since = feed.trades_since or received
                earlier = [each.trade_id for each in trades if each.exchange_time < since]
                before = earlier[-1] if earlier else trades[0].trade_id - 1
                feed.oldest_trade = before
            if before >= trades[-1].trade_id:
                return
            # They may be on their way: look whether one has come by now.
            await asyncio.sleep(min(2.0, self._settings.lag_seconds))
            if (feed.trades.last_id or feed.oldest_trade) == before:
                missed()
                self.on_trade_found(feed, trades[-1], before, received)
        finally:
            self._looking.discard(name)

    async def _ask(self, feed: InstrumentFeed) -> BookSnapshot | None:
        request = self._adapter.snapshot_request(feed.spec.native_symbol, _PROBE_DEPTH)
        try:
            async with self._probes:
                body, _ = await self._rest.get(request, priority=Priority.POLL)
            return self._adapter.decode_snapshot(body, request)
        except (RestError, MalformedFrameError, InvalidDecimalError) as error:
            self._see_limit(feed, common_pb2.EVENT_KIND_ORDER_BOOK, error)
            return None

    def _see_limit(
        self, feed: InstrumentFeed, kind: "common_pb2.EventKind.ValueType", error: Exception
    ) -> None:
        if isinstance(error, RateLimitedError):
            self.on_limited(feed, kind, str(error), time.time_ns())
