"""One venue while it is collected: its instruments, connections, snapshots and history."""

import asyncio
import fnmatch
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog
from google.protobuf.message import DecodeError
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import events_pb2, instrument_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from services.collector.connection import VenueConnectionTask, backoff
from services.collector.feed import InstrumentFeed
from services.collector.ledger import Ledger
from services.collector.recording import Recorder
from services.collector.rest import RateLimitedError, RestClient, RestError
from services.collector.settings import ExchangeSettings
from services.collector.synchroniser import SnapshotPolicy
from services.collector.venues.base import (
    Acknowledgement,
    BookHeartbeat,
    BookSnapshot,
    Goodbye,
    Ignored,
    InstrumentSpec,
    MalformedFrameError,
    Several,
    TopOfBook,
    TradePrint,
    VenueAdapter,
    VenueFault,
    VenueMessage,
)
from services.shared.decimals import InvalidDecimalError
from services.shared.publisher import Publisher

__all__ = ["Venue"]

_INSTRUMENT_REFRESH = 3600.0
_FLOORS_AT_ONCE = 32
_HISTORY_ATTEMPTS = 6
_MALFORMED_TOLD = 20  # malformed frames between two ticks that the ledger tells one by one
# A symbol is one word of a subject, whatever the venue calls its currencies.
_SYMBOL = re.compile(r"[^\s.*>]{1,100}")


class Venue:
    """Collects one venue. It is the `ConnectionHandler` of its connections.

    `feeds` has the instruments by native symbol, `by_symbol` by canonical symbol.
    `spawn(coroutine, name)` starts a task that the service owns. `run` does everything and ends
    only with its task.
    """

    def __init__(
        self,
        exchange: str,
        adapter: VenueAdapter,
        settings: ExchangeSettings,
        rest: RestClient,
        publisher: Publisher,
        ledger: Ledger,
        policy: SnapshotPolicy,
        spawn: Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]],
        recorder: Recorder | None = None,
    ) -> None:
        self.exchange = exchange
        self.settings = settings
        self.rest = rest
        self.feeds: dict[str, InstrumentFeed] = {}
        self.by_symbol: dict[str, InstrumentFeed] = {}
        self.connections: list[VenueConnectionTask] = []
        self.detail = "starting"
        self.ready = False
        self._adapter = adapter
        self._publisher = publisher
        self._ledger = ledger
        self._policy = policy
        self._spawn = spawn
        self._recorder = recorder
        self._log = structlog.get_logger(exchange=exchange)
        self._snapshot_slots = asyncio.Semaphore(settings.snapshots_at_once)
        self._fetching: dict[str, asyncio.Task[Any]] = {}
        self._disconnections: dict[str, tuple[str, int]] = {}
        self._subscribed: set[str] = set()
        self._unexpected = 0
        self._malformed_told = 0
        self._malformed_untold = 0

    # Life

    async def run(self) -> None:
        """Collect until cancelled."""
        self.detail = "waiting for the broker"
        await self._publisher.wait_connected()
        self.detail = "reading the list of instruments"
        specs = await self._load_instruments()
        self.detail = "reading where an earlier collector stopped"
        await self._make_feeds(specs)
        self._open_connections()
        self.ready = True
        self.detail = ""
        refreshed = time.monotonic()
        while True:
            await asyncio.sleep(0.5)
            self._tick(time.time_ns())
            if time.monotonic() - refreshed > _INSTRUMENT_REFRESH:
                refreshed = time.monotonic()
                self._spawn(self._refresh_instruments(), f"{self.exchange} instruments")

    async def _load_instruments(self) -> list[InstrumentSpec]:
        attempt = 0
        while True:
            try:
                body, _ = await self.rest.get(self._adapter.instruments_request())
                chosen = self._choose(self._adapter.decode_instruments(body))
                if chosen:
                    return chosen
                self.detail = f"no instrument that trades matches {list(self.settings.symbols)}"
            except (RestError, MalformedFrameError) as error:
                self.detail = f"cannot read the list of instruments: {error}"
            attempt += 1
            delay = backoff(self.settings, attempt)
            self._log.warning(self.detail, retry_seconds=round(delay, 2))
            await asyncio.sleep(delay)

    def _choose(self, specs: Sequence[InstrumentSpec]) -> list[InstrumentSpec]:
        known: dict[str, InstrumentSpec] = {}
        for spec in specs:
            if not spec.trading or not any(
                fnmatch.fnmatchcase(spec.symbol, wanted) for wanted in self.settings.symbols
            ):
                continue
            if _SYMBOL.fullmatch(spec.symbol) is None or not spec.symbol.isprintable():
                self._log.error(
                    "not collected: expected a symbol without spaces, dots, * and >",
                    symbol=repr(spec.symbol)[:200],
                )
            elif spec.symbol in known:
                self._log.error(
                    "not collected: another instrument has this symbol",
                    symbol=spec.symbol,
                    native_symbol=spec.native_symbol,
                    other=known[spec.symbol].native_symbol,
                )
            else:
                known[spec.symbol] = spec
        for wanted in self.settings.symbols:
            if not any(sign in wanted for sign in "*?[") and wanted not in known:
                self._log.warning("no such instrument trades at the venue", symbol=wanted)
        return [known[symbol] for symbol in sorted(known)]

    async def _make_feeds(self, specs: Sequence[InstrumentSpec]) -> None:
        now = time.time_ns()
        slots = asyncio.Semaphore(_FLOORS_AT_ONCE)

        async def make(spec: InstrumentSpec) -> None:
            async with slots:
                epoch, trade_id = await self._floors(spec)
            feed = InstrumentFeed(
                spec,
                self._adapter,
                self._publisher,
                self._ledger,
                self._policy,
                self._fetch_snapshot,
                self._fetch_trades,
                epoch_floor=epoch,
                last_trade_id=trade_id,
            )
            self.feeds[spec.native_symbol] = feed
            self.by_symbol[spec.symbol] = feed
            self._publish_instrument(spec, now)

        async with asyncio.TaskGroup() as group:
            for spec in specs:
                group.create_task(make(spec))
        self._log.info("instruments", count=len(self.feeds))

    async def _floors(self, spec: InstrumentSpec) -> tuple[int, int]:
        """Epoch and trade id that an earlier collector reached, 0 where there is none."""
        name = f"{self.exchange}.{spec.symbol}"
        attempt = 0
        while True:
            try:
                trade = await self._publisher.last_message(f"market.trade.{name}")
                status = await self._publisher.last_message(f"market.order_book_status.{name}")
                snapshot = await self._publisher.last_message(f"market.order_book_snapshot.{name}")
                break
            except Exception as error:  # the broker went away again: wait for it
                attempt += 1
                self._log.warning("cannot read from the broker", error=str(error))
                await asyncio.sleep(backoff(self.settings, attempt))
        epoch = trade_id = 0
        try:
            if trade is not None:
                text = events_pb2.Trade.FromString(trade.payload).trade_id
                trade_id = int(text) if text.isdecimal() and text.isascii() else 0
            if snapshot is not None:
                epoch = pb.OrderBookSnapshot.FromString(snapshot.payload).epoch
            if status is not None:
                epoch = max(epoch, pb.OrderBookStatus.FromString(status.payload).epoch)
        except DecodeError as error:
            self._log.error("somebody else published there", symbol=spec.symbol, error=str(error))
        return epoch, trade_id

    def _open_connections(self) -> None:
        names = list(self.feeds)
        size = self.settings.instruments_per_connection
        for index, start in enumerate(range(0, len(names), size), 1):
            connection = VenueConnectionTask(
                f"{self.exchange}-{index}",
                self._adapter,
                self.settings,
                names[start : start + size],
                self,
            )
            for name in connection.native_symbols:
                self.feeds[name].connection_id = connection.connection_id
            self.connections.append(connection)
            self._spawn(connection.run(), connection.connection_id)

    async def _refresh_instruments(self) -> None:
        try:
            body, _ = await self.rest.get(self._adapter.instruments_request())
            specs = self._adapter.decode_instruments(body)
        except (RestError, MalformedFrameError) as error:
            self._log.warning("cannot refresh the list of instruments", error=str(error))
            return
        now = time.time_ns()
        for spec in specs:
            feed = self.feeds.get(spec.native_symbol)
            if feed is not None and feed.spec != spec:
                self._log.info("instrument changed", symbol=spec.symbol)
                feed.spec = spec
                self._publish_instrument(spec, now)

    def _publish_instrument(self, spec: InstrumentSpec, now: int) -> None:
        message = instrument_pb2.Instrument(
            exchange=spec.exchange,
            symbol=spec.symbol,
            native_symbol=spec.native_symbol,
            kind=instrument_pb2.INSTRUMENT_KIND_SPOT,
            status=instrument_pb2.INSTRUMENT_STATUS_TRADING
            if spec.trading
            else instrument_pb2.INSTRUMENT_STATUS_HALTED,
            base=spec.base,
            quote=spec.quote,
            tick_size=spec.tick_size,
            lot_size=spec.lot_size,
            min_quantity=spec.min_quantity,
            min_notional=spec.min_notional,
            contract_size="1",
            quantity_unit=instrument_pb2.QUANTITY_UNIT_BASE,
        )
        message.update_time.FromNanoseconds(now)
        self._publisher.publish(
            f"market.instrument.{spec.exchange}.{spec.symbol}",
            message.SerializeToString(),
            f"{spec.exchange}.{spec.symbol}.{now}",
        )

    def _tick(self, now: int) -> None:
        if count := self._malformed_untold:
            self._log.warning("more malformed frames", count=count)
            self._record_malformed(f"{count} more frames could not be read", count, now)
        self._malformed_told = self._malformed_untold = 0
        status = self._publisher.status
        roomy = status.connected and status.buffered < 1000
        # Books that came in step together are due together: a few at a time keep frames moving.
        allowed = max(2, len(self.feeds) // 40)
        for feed in self.feeds.values():
            book = feed.book
            if roomy:
                feed.report_drops(now)
                if book.muted:
                    book.unmute(now)
            if allowed and book.tick(now):
                allowed -= 1
            behind = feed.lag_behind_top(now)
            if behind > self.settings.lag_seconds and book.in_step:
                book.on_silence(
                    f"for {behind:.1f} s the venue's best bid and offer has been ahead of the "
                    f"book, which has had no update since {book.venue_sequence}",
                    now,
                )
                if behind > 2 * self.settings.lag_seconds:
                    self._restart_connection(feed, "the book's stream is silent")
            elif behind > 2 * self.settings.lag_seconds and book.state == pb.ORDER_BOOK_STATE_STALE:
                self._restart_connection(feed, "the book's stream is silent")

    def _restart_connection(self, feed: InstrumentFeed, reason: str) -> None:
        for connection in self.connections:
            if connection.connection_id == feed.connection_id:
                connection.restart(f"{feed.spec.symbol}: {reason}")

    # ConnectionHandler

    def on_open(self, connection: VenueConnectionTask, now: int) -> None:
        """Tell the ledger, when the connection was open before."""
        if self._recorder is not None:
            self._recorder.record("ws_open", connection.url, connection.connection_id, "", now)
        ended = self._disconnections.pop(connection.connection_id, None)
        if ended is not None:
            event, since = ended
            self._ledger.record(
                integrity.INTEGRITY_KIND_CONNECTED,
                integrity.INTEGRITY_CAUSE_UNSPECIFIED,
                "connected again; books are rebuilt from fresh snapshots",
                exchange=self.exchange,
                now=now,
                begin=since,
                end=now,
                connection_id=connection.connection_id,
                previous_event_id=event,
            )

    def on_frame(self, connection: VenueConnectionTask, frame: bytes | str, now: int) -> None:
        """Decode a frame and hand it to its instrument."""
        if self._recorder is not None:
            self._recorder.record("ws", connection.url, connection.connection_id, frame, now)
        try:
            message = self._adapter.decode(frame)
        except MalformedFrameError as error:
            self._on_malformed(connection, error, now)
            return
        self._dispatch(connection, message, now)

    def _dispatch(self, connection: VenueConnectionTask, message: VenueMessage, now: int) -> None:
        if isinstance(message, TopOfBook):
            feed = self.feeds.get(message.native_symbol)
            if feed is not None:
                feed.on_top(message, now)
        elif isinstance(message, TradePrint):
            feed = self.feeds.get(message.native_symbol)
            if feed is not None:
                feed.on_trade(message, now)
        elif isinstance(message, Acknowledgement):
            connection.acknowledge(message.request_id)
        elif isinstance(message, VenueFault):
            self._log.warning("the venue refused", code=message.code, reason=message.message)
            connection.refuse(message.request_id, f"{message.code} {message.message}")
        elif isinstance(message, Goodbye):
            connection.restart(
                f"the venue ends the connection: {message.message}",
                integrity.INTEGRITY_CAUSE_VENUE_MAINTENANCE,
            )
        elif isinstance(message, Ignored):
            self._unexpected += 1
        elif isinstance(message, BookSnapshot | BookHeartbeat):
            feed = self.feeds.get(message.native_symbol)
            if feed is not None:
                feed.on_book_message(message, now)
        elif isinstance(message, Several):
            for each in message.messages:
                self._dispatch(connection, each, now)
        else:
            feed = self.feeds.get(message.native_symbol)
            if feed is not None:
                feed.on_diff(message, now)

    def on_subscribed(
        self, connection: VenueConnectionTask, native_symbols: Sequence[str], now: int
    ) -> None:
        """Begin to build the books whose diffs flow now."""
        for name in native_symbols:
            self._subscribed.add(name)
            self.feeds[name].book.begin(now)

    def on_silent(self, connection: VenueConnectionTask, seconds: float, now: int) -> None:
        """Tell in-band that the books of a silent connection are stale."""
        for name in connection.native_symbols:
            self.feeds[name].book.on_silence(f"no frame on the connection for {seconds:.1f} s", now)

    def on_closed(self, connection: VenueConnectionTask, detail: str, now: int) -> None:
        """Tell the ledger and every book that nothing continues it."""
        event = self._ledger.record(
            integrity.INTEGRITY_KIND_DISCONNECTED,
            connection.last_cause,
            detail,
            exchange=self.exchange,
            now=now,
            begin=connection.last_frame_time,
            connection_id=connection.connection_id,
        )
        self._disconnections[connection.connection_id] = (event, connection.last_frame_time)
        for name in connection.native_symbols:
            self._subscribed.discard(name)
            task = self._fetching.pop(name, None)
            if task is not None:
                task.cancel()
            self.feeds[name].on_disconnected(detail, now)

    def _on_malformed(
        self, connection: VenueConnectionTask, error: MalformedFrameError, now: int
    ) -> None:
        connection.malformed += 1
        feed = self.feeds.get(error.native_symbol)
        if self._malformed_told >= _MALFORMED_TOLD:
            # A venue that sends nothing else must not fill the ledger, nor the way to the broker.
            self._malformed_untold += 1
            if feed is not None and error.concerns_book:
                feed.book.on_malformed(str(error), now)
            return
        self._malformed_told += 1
        self._log.warning("malformed frame", connection=connection.connection_id, error=str(error))
        if feed is not None:
            feed.on_malformed(str(error), now, concerns_book=error.concerns_book)
        else:
            # Whose frame it was cannot be told; what it held is missed by the next id of its kind.
            self._record_malformed(str(error), 1, now, connection.connection_id)

    def _record_malformed(self, detail: str, count: int, now: int, connection_id: str = "") -> None:
        self._ledger.record(
            integrity.INTEGRITY_KIND_MALFORMED_FRAME,
            integrity.INTEGRITY_CAUSE_UNDECODABLE,
            detail,
            exchange=self.exchange,
            now=now,
            count=count,
            connection_id=connection_id,
        )

    # REST

    def _fetch_snapshot(self, feed: InstrumentFeed, reason: int) -> None:
        name = feed.spec.native_symbol
        if name not in self._subscribed:
            # Asked for again when its diffs flow.
            return
        attempt = feed.next_attempt(time.time_ns())
        task = self._spawn(self._snapshot(feed, attempt), f"snapshot of {feed.spec.symbol}")
        self._fetching[name] = task

    async def _snapshot(self, feed: InstrumentFeed, attempt: int) -> None:
        request = self._adapter.snapshot_request(
            feed.spec.native_symbol, self.settings.snapshot_depth
        )
        if attempt:
            await asyncio.sleep(backoff(self.settings, attempt - 1))
        failed = pb.ORDER_BOOK_REASON_SNAPSHOT_FAILED
        try:
            async with self._snapshot_slots:
                body, received = await self.rest.get(request)
            feed.book.on_snapshot(self._adapter.decode_snapshot(body, request), received)
        except RateLimitedError as error:
            self._ledger.record(
                integrity.INTEGRITY_KIND_RATE_LIMITED,
                integrity.INTEGRITY_CAUSE_RATE_LIMIT,
                str(error),
                exchange=self.exchange,
                symbol=feed.spec.symbol,
                now=time.time_ns(),
            )
            feed.book.on_snapshot_failed(
                pb.ORDER_BOOK_REASON_RATE_LIMITED, str(error), time.time_ns()
            )
        except (RestError, MalformedFrameError, InvalidDecimalError) as error:
            feed.book.on_snapshot_failed(failed, str(error), time.time_ns())

    def _fetch_trades(self, feed: InstrumentFeed, first: int, last: int) -> None:
        self._spawn(self._trades(feed, first, last), f"missed trades of {feed.spec.symbol}")

    async def _trades(self, feed: InstrumentFeed, first: int, last: int) -> None:
        name = feed.spec.native_symbol
        request = self._adapter.trades_request(name, first, last - first + 1)
        received = 0
        detail = ""
        trades: list[TradePrint] = []
        for attempt in range(_HISTORY_ATTEMPTS):
            if attempt:
                await asyncio.sleep(backoff(self.settings, attempt - 1))
            try:
                body, received = await self.rest.get(request)
                trades = self._adapter.decode_trades(body, name)
            except (RestError, MalformedFrameError) as error:
                detail = str(error)
                continue
            if trades and trades[-1].trade_id >= last:
                detail = f"the venue's history begins at {trades[0].trade_id}"
                break
            # REST may be a little behind the stream that showed the hole.
            detail = "the venue's history does not reach so far"
        feed.on_history(first, trades, detail, received or time.time_ns())
