"""Reads the broker's streams into the live state, and tells it when they are interrupted.

One reader a stream, because order matters only within one. Order books begin with the oldest of
the books' last snapshots; trades with the newest few; everything else with the last of each
subject. So a start needs nobody's memory but the broker's.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from services.marketdata.catalog import Key
from services.marketdata.collectors import Collectors
from services.marketdata.market import Market
from services.marketdata.settings import MarketDataSettings
from services.shared.errors import MarketPrismError, NotFound
from services.shared.jetstream import (
    Connection,
    Message,
    StartAt,
    StreamReader,
    last_per_subject,
    server_urls,
    stream_info,
)
from services.shared.log import get_logger

__all__ = ["Feed", "Source"]

_T = TypeVar("_T")
_RETRY_SECONDS = 0.25
_RETRY_LIMIT = 2.0
_SNAPSHOTS = "market.order_book_snapshot.>"
_STATUSES = "market.order_book_status.>"
_RATIOS = "market.long_short_ratio.>"
_CANDLES = "market.candle.>"


class Source:
    """One stream on its way into the live state, and how far it is.

    `on_back(missed)` is called when everything that the interruption held up was taken.
    """

    def __init__(
        self,
        stream: str,
        take: Callable[[list[Message]], None],
        *,
        on_lost: Callable[[str], None] = lambda _why: None,
        on_back: Callable[[bool], None] = lambda _missed: None,
    ) -> None:
        self.stream = stream
        self.reader: StreamReader | None = None
        """Its reader, None while the start is being found."""
        self.caught_up = asyncio.Event()
        """Set when everything that the stream held at the start was taken."""
        self.trouble = "not read yet"
        """What keeps it from being read, empty when nothing does."""
        self._take = take
        self._on_lost = on_lost
        self._on_back = on_back
        self._left = 0
        self._pending: int | None = None
        self._missed = False
        self._is_lost = False

    def open(
        self, urls: Sequence[str], start: StartAt, filter_subjects: Sequence[str] = ()
    ) -> StreamReader:
        """Make the reader."""
        self.reader = StreamReader(
            urls,
            self.stream,
            filter_subjects=filter_subjects,
            start=start,
            name=f"marketdata {self.stream}",
            on_batch=self._on_batch,
            on_interruption=self._on_interruption,
            on_resumed=self._on_resumed,
        )
        return self.reader

    def begin_to_count(self) -> None:
        """Count what the stream holds from here on, to tell when all of it was taken."""
        assert self.reader is not None
        # Messages may have come before the number of those that wait.
        left = self.reader.status.pending if self._pending is None else self._pending
        self._left = left
        self._count_down(0)

    def _on_batch(self, messages: list[Message]) -> None:
        self._take(messages)
        if self._is_lost or not self.caught_up.is_set():
            assert self.reader is not None
            self._pending = self.reader.status.pending
            self._count_down(len(messages))

    def _on_interruption(self, why: str) -> None:
        self.trouble = why
        self._is_lost = True
        self._pending = None
        self._on_lost(why)

    def _on_resumed(self, missed: bool) -> None:
        self.trouble = ""
        self._missed = self._missed or missed
        self.begin_to_count()

    def _count_down(self, taken: int) -> None:
        self._left -= taken
        if self._left > 0 or self.trouble:
            return
        self.caught_up.set()
        if self._is_lost:
            self._is_lost = False
            missed, self._missed = self._missed, False
            self._on_back(missed)


class Feed:
    """Everything that comes from the broker. `tasks()` are run by the service until its stop."""

    def __init__(self, url: str, market: Market, settings: MarketDataSettings) -> None:
        self._urls = server_urls(url)
        self._market = market
        self._settings = settings
        self._log = get_logger()
        self._heartbeats: Connection | None = None
        names = settings.streams
        self.collectors = Collectors(settings.collector_silence_seconds, time.monotonic())
        """Which collectors are alive."""
        self.order_books = Source(
            names.order_book,
            market.on_order_book,
            on_lost=market.on_books_lost,
            on_back=self._on_books_back,
        )
        """The order book stream."""
        self.trades = Source(
            names.trade,
            market.on_trade,
            on_lost=market.on_trades_lost,
            on_back=lambda missed: market.on_trades_back(_MISSED if missed else ""),
        )
        """The trade stream."""
        self.offers = Source(names.best_bid_offer, market.on_best_bid_offer)
        """The stream of best bids and offers."""
        self.reference = Source(names.reference, market.on_reference)
        """The stream of every other kind of event."""
        self.instruments = Source(names.instrument, market.on_instrument)
        """The stream of instruments."""
        self.integrity = Source(names.integrity, market.on_integrity)
        """The gap ledger's stream."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """All streams."""
        return (
            self.order_books,
            self.trades,
            self.offers,
            self.reference,
            self.instruments,
            self.integrity,
        )

    @property
    def caught_up(self) -> bool:
        """Whether everything that the broker held at the start was taken."""
        return all(source.caught_up.is_set() for source in self.sources)

    def tasks(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """Give what is to be run, by name."""
        last = StartAt.last_per_subject()
        return [
            ("order books", self._read_order_books()),
            ("trades", self._read_trades()),
            ("best bids and offers", self._read(self.offers, last)),
            ("reference data", self._read_reference()),
            ("instruments", self._read(self.instruments, last)),
            ("gap ledger", self._read(self.integrity, last)),
            ("heartbeats", self._listen()),
            ("catalog", self._mark_ready()),
        ]

    async def _read_order_books(self) -> None:
        stream = self._settings.streams.order_book
        statuses = await self._insist(
            self.order_books, lambda: last_per_subject(self._urls, stream, _STATUSES)
        )
        places = await self._places_of_snapshots(stream)
        first = min(places.values(), default=1)
        # The reader begins behind these.
        self._market.on_order_book([m for m in statuses if m.stream_sequence < first])
        self._market.begin_books_at(places)
        await self._read(self.order_books, StartAt.sequence(first))

    async def _places_of_snapshots(self, stream: str) -> dict[Key, int]:
        """Find where each book's last snapshot is, without keeping all of them at once."""
        places: dict[Key, int] = {}

        def note(messages: list[Message]) -> None:
            for message in messages:
                parts = message.subject.split(".", 3)
                if len(parts) == 4:
                    places[parts[2], parts[3]] = message.stream_sequence

        await self._read_once(Source(stream, note), StartAt.last_per_subject(), (_SNAPSHOTS,))
        return places

    async def _read_once(self, search: Source, start: StartAt, subjects: Sequence[str]) -> None:
        """Read up to what the stream holds now."""
        task = asyncio.ensure_future(self._read(search, start, subjects))
        try:
            await search.caught_up.wait()
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _read_reference(self) -> None:
        stream = self._settings.streams.reference
        # The last of a subject is one of those that stand side by side: one interval, one ratio.
        for subject, seconds in (
            (_RATIOS, self._settings.preload_ratios_seconds),
            (_CANDLES, self._settings.preload_candles_seconds),
        ):
            since = datetime.now(UTC) - timedelta(seconds=seconds)
            search = Source(stream, self._market.on_reference)
            await self._read_once(search, StartAt.time(since), (subject,))
        await self._read(self.reference, StartAt.last_per_subject())

    async def _read_trades(self) -> None:
        async def newest() -> int:
            connection = await Connection.open(self._urls, name="marketdata trades")
            try:
                info = await stream_info(connection, self._settings.streams.trade)
            finally:
                connection.close("done")
            if info is None:
                raise NotFound(f"stream {self._settings.streams.trade} does not exist")
            return int(info["state"]["last_seq"])

        last = await self._insist(self.trades, newest)
        start = StartAt.sequence(last + 1 - self._settings.preload_trades)
        await self._read(self.trades, start)

    async def _read(
        self, source: Source, start: StartAt, filter_subjects: Sequence[str] = ()
    ) -> None:
        reader = source.open(self._urls, start, filter_subjects)
        await reader.start()
        try:
            while not await reader.wait_live(_RETRY_LIMIT):
                source.trouble = reader.status.last_error or "the broker does not answer"
            source.trouble = ""
            source.begin_to_count()
            await asyncio.Event().wait()
        finally:
            await reader.stop()

    async def _insist(self, source: Source, ask: Callable[[], Awaitable[_T]]) -> _T:
        delay = _RETRY_SECONDS
        while True:
            try:
                return await ask()
            except (MarketPrismError, OSError, TimeoutError) as error:
                source.trouble = str(error) or "the broker does not answer in time"
            await asyncio.sleep(delay)
            delay = min(delay * 2, _RETRY_LIMIT)

    async def _mark_ready(self) -> None:
        for source in self.sources:
            await source.caught_up.wait()
        self._market.catalog.ready = True
        self._log.info(
            "caught up",
            instruments=len(self._market.catalog),
            books=sum(book.heard_of for book in self._market.books.values()),
        )

    async def _listen(self) -> None:
        """Keep listening for the collectors' heartbeats; core NATS keeps none for later."""
        while True:
            with contextlib.suppress(MarketPrismError, OSError, TimeoutError):
                connection = await Connection.open(self._urls, name="marketdata heartbeats")
                try:
                    connection.subscribe(self._settings.heartbeat_subject, self._on_heartbeat)
                    self.collectors.listening(time.monotonic())
                    await asyncio.wait({connection.closed})
                finally:
                    self.collectors.listening(None)
                    connection.close("done")
            await asyncio.sleep(_RETRY_SECONDS)

    def _on_heartbeat(self, _subject: bytes, _reply: bytes, _header: bytes, payload: bytes) -> None:
        if not self.collectors.on_heartbeat(payload, time.monotonic()):
            self._market.tally.malformed += 1

    def _on_books_back(self, missed: bool) -> None:
        if missed:
            self._market.on_books_missed(_MISSED)
        self._market.on_books_back()


_MISSED = "the broker lost messages, or let them go, before they were read here"
