"""One venue while it is collected: frames in, each to the feed that it is for."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import structlog
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from services.collector.candles import CandleCloser
from services.collector.connection import VenueConnectionTask
from services.collector.contracts import ContractSize
from services.collector.feed import InstrumentFeed
from services.collector.journal import Journal
from services.collector.ledger import Ledger
from services.collector.observations import ObservationTape
from services.collector.polling import Poller
from services.collector.pool import ConnectionPool
from services.collector.quiet import QuietWatch
from services.collector.recall import Recall
from services.collector.recording import Recorder
from services.collector.rest import Priority, RateLimitedError, RestClient
from services.collector.roster import Roster
from services.collector.settings import ExchangeSettings
from services.collector.snapshots import FeedRequests
from services.collector.synchroniser import SnapshotPolicy
from services.collector.topics import Topic
from services.collector.venue_ledger import VenueLedger
from services.collector.venues.base import (
    Acknowledgement,
    BookHeartbeat,
    BookSnapshot,
    Goodbye,
    Ignored,
    InstrumentsChanged,
    InstrumentSpec,
    MalformedFrameError,
    Observation,
    Ping,
    Poll,
    RestRequest,
    Several,
    SkippedTrade,
    TopOfBook,
    TradePrint,
    VenueAdapter,
    VenueFault,
    VenueMessage,
)
from services.shared.decimals import InvalidDecimalError
from services.shared.publisher import Publisher

__all__ = ["Venue"]

_TICK_SECONDS = 0.5
_ROOMY = 1000  # messages that may wait for the broker while books begin anew
_RATE_SECONDS = 5.0
_ONE = ContractSize("1")
_BOOK = common_pb2.EVENT_KIND_ORDER_BOOK
_TRADE = common_pb2.EVENT_KIND_TRADE
_TOP = common_pb2.EVENT_KIND_BEST_BID_OFFER


class Venue:
    """Collects one venue. It is the `PoolHandler` of its connections.

    `feeds` has the instruments by native symbol, `by_symbol` by canonical symbol. `shares(symbol)`
    tells whether this collector collects an instrument; all of them when there is no other.
    `recall` knows what an earlier collector left undone.
    `spawn(coroutine, name)` starts a task that the service owns. `run` does everything and ends
    only with its task. `told` writes what concerns all of it to the ledger, `rates` are depth
    frames a second by native symbol. Counters: `ignored` (frames of kinds that nobody asked for).
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
        shares: Callable[[str], bool] = lambda _: True,
        recall: Recall | None = None,
    ) -> None:
        journal = Journal(recorder, exchange) if recorder is not None else None
        self.exchange = exchange
        self.settings = settings
        self.rest = rest
        self.ignored = 0
        self.rates: dict[str, float] = {}
        self._counted: tuple[float, dict[str, int]] = (time.monotonic(), {})
        self._adapter = adapter
        self._publisher = publisher
        self._spawn = spawn
        self._recorder = recorder
        self._shares = shares
        self._policy = policy
        self._log = structlog.get_logger(exchange=exchange)
        self.told = VenueLedger(exchange, ledger, journal)
        self._note = self.told.note
        self.pool = ConnectionPool(exchange, adapter, settings, self, spawn)
        self.requests = FeedRequests(
            exchange, adapter, settings, rest, ledger, spawn, self._renew_book, journal
        )
        self.roster = Roster(
            exchange, adapter, settings, rest, publisher, ledger, policy, self.pool, self.requests,
            shares, journal, recall,
        )  # fmt: skip
        self.feeds = self.roster.feeds
        self.by_symbol = self.roster.by_symbol
        self.tape = ObservationTape(exchange, publisher.publish, self._resolve)
        self.poller = Poller(self._ask, self._on_poll, self._on_poll_failed)
        self.roster.on_polls = self.poller.set_polls
        self.roster.on_retired = self._on_retired
        self._closer = None if adapter.closes_candles else CandleCloser()
        self._handlers: dict[type, Callable[[VenueConnectionTask, Any, int], None]] = {
            TopOfBook: self._on_top,
            TradePrint: self._on_trade,
            SkippedTrade: self._on_trade,
            Observation: self._on_observation,
            BookSnapshot: self._on_book_message,
            BookHeartbeat: self._on_book_message,
            Several: self._on_several,
            Acknowledgement: self._on_control,
            VenueFault: self._on_control,
            Ping: self._on_control,
            InstrumentsChanged: self._on_control,
            Goodbye: self._on_control,
            Ignored: self._on_control,
        }
        self.quiet = QuietWatch(
            settings,
            self._heard,
            self.feeds.get,
            self.requests.probe,
            self._probe_trades,
            self._on_quiet,
        )

    # Life

    @property
    def connections(self) -> list[VenueConnectionTask]:
        """Its connections."""
        return self.pool.connections

    @property
    def ready(self) -> bool:
        """Whether the list of instruments was read and everything is subscribed to."""
        return self.roster.ready

    @property
    def detail(self) -> str:
        """What it waits for while it is not ready."""
        return self.roster.detail

    def note_begin(self, collector_id: str, now: int, *, first: bool) -> None:
        """Write into the recording how this venue is collected; `first` for the first venue."""
        self._note(
            "begin",
            now,
            collector_id=collector_id,
            first=first,
            settings=self.settings.model_dump(mode="json"),
            policy=self._policy.as_dict(),
        )

    def note_shares(self, slots: int, assigned: Iterable[int], now: int) -> None:
        """Write into the recording which slots, of so many, this collector has from now on."""
        self._note("shares", now, slots=slots, assigned=sorted(assigned))

    async def run(self) -> None:
        """Collect until cancelled."""
        self.roster.detail = "waiting for the broker"
        await self._publisher.wait_connected()
        for work, name in (
            (self.roster.run(), "instruments"),
            (self.pool.run(), "connections"),
            (self.poller.run(), "polls"),
        ):
            self._spawn(work, f"{self.exchange}: {name}")
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            status = self._publisher.status
            self.tick(time.time_ns(), roomy=status.connected and status.buffered < _ROOMY)

    def tick(self, now: int, *, roomy: bool = True) -> None:
        """Look after what time alone brings; `roomy` when the broker takes what it is given."""
        self._note("tick", now, roomy=roomy)
        self.told.turn(now)
        # Books that came in step together are due together: a few at a time keep frames moving.
        allowed = max(2, len(self.feeds) // 40)
        for feed in self.feeds.values():
            book = feed.book
            if roomy:
                feed.report_drops(now)
                if book.muted:
                    book.unmute(now)
            feed.lanes.tick(now)
            if allowed and book.tick(now):
                allowed -= 1
            self._look_behind(feed, now)
        self.quiet.look(self.connections)
        self._rate(time.monotonic())

    def _rate(self, now: float) -> None:
        since, before = self._counted
        if (seconds := now - since) < _RATE_SECONDS:
            return
        counts = {name: feed.book.frames for name, feed in self.feeds.items()}
        self.rates = {
            name: (count - before[name]) / seconds
            for name, count in counts.items()
            if name in before
        }
        self._counted = (now, counts)

    def _look_behind(self, feed: InstrumentFeed, now: int) -> None:
        """Act when the venue's own best bid and offer has gone on without the book."""
        book, limit = feed.book, self.settings.lag_seconds
        behind = feed.lag_behind_top(now)
        if behind <= 0:
            feed.revivals = 0
        if behind > limit and book.in_step:
            book.on_silence(
                f"for {behind:.1f} s the venue's best bid and offer has been ahead of the "
                f"book, which has had no update since {book.venue_sequence}",
                now,
            )
        if behind > 2 * limit and book.state in (
            pb.ORDER_BOOK_STATE_STALE,
            pb.ORDER_BOOK_STATE_SYNCED,
        ):
            if feed.revivals < 1:
                feed.revivals += 1
                self._renew_book(feed)
            elif behind > 4 * limit:
                feed.revivals = 0
                self._restart_connections(feed, "the book's stream is silent")

    def _restart_connections(self, feed: InstrumentFeed, reason: str) -> None:
        for connection in self.connections:
            if connection.connection_id in feed.lanes.names:
                connection.restart(f"{feed.spec.symbol}: {reason}")

    # PoolHandler

    def on_open(self, connection: VenueConnectionTask, now: int) -> None:
        """Tell the ledger, when the connection was open before."""
        if self._recorder is not None:
            self._recorder.record("ws_open", connection.url, connection.connection_id, "", now)
        self.told.opened(connection, now)

    def on_sent(self, connection: VenueConnectionTask, frame: str, now: int) -> None:
        """Record what was asked."""
        if self._recorder is not None:
            self._recorder.record("ws_send", connection.url, connection.connection_id, frame, now)

    def on_frame(self, connection: VenueConnectionTask, frame: bytes | str, now: int) -> None:
        """Decode a frame and hand it to its instrument."""
        if self._recorder is not None:
            self._recorder.record("ws", connection.url, connection.connection_id, frame, now)
        try:
            message = self._adapter.decode(frame)
            self._dispatch(connection, message, now)
        except MalformedFrameError as error:
            self._on_malformed(connection, error, now)
        except InvalidDecimalError as error:
            # A quantity that is too long once it is converted; books see to theirs themselves.
            malformed = MalformedFrameError(str(error), concerns_book=False)
            self._on_malformed(connection, malformed, now)
        except Exception as error:
            # A fault of ours, but no frame may end the collection of everything else. Whose book it
            # was is not known: all that the connection carries are built anew.
            self._log.exception(
                "a frame could not be handled",
                connection=connection.connection_id,
                frame=bytes(frame[:400]) if isinstance(frame, bytes) else frame[:400],
            )
            self._on_malformed(connection, MalformedFrameError(repr(error)[:200]), now)
            connection.restart(
                f"a frame could not be handled: {error!r}"[:300],
                integrity.INTEGRITY_CAUSE_UNDECODABLE,
            )

    def _dispatch(self, connection: VenueConnectionTask, message: VenueMessage, now: int) -> None:
        # By type, and what is none of these is a change of a book: by far the most frequent.
        handler = self._handlers.get(type(message))
        if handler is not None:
            handler(connection, message, now)
            return
        feed = self.feeds.get(message.native_symbol)  # type: ignore[union-attr]
        if feed is not None:
            feed.on_diff(connection.connection_id, message, now)  # type: ignore[arg-type]

    def _on_several(self, connection: VenueConnectionTask, message: Several, now: int) -> None:
        for each in message.messages:
            self._dispatch(connection, each, now)

    def _on_top(self, connection: VenueConnectionTask, message: TopOfBook, now: int) -> None:
        feed = self.feeds.get(message.native_symbol)
        if feed is not None:
            feed.on_top(message, now)

    def _on_trade(
        self, connection: VenueConnectionTask, message: TradePrint | SkippedTrade, now: int
    ) -> None:
        feed = self.feeds.get(message.native_symbol)
        if feed is not None:
            feed.on_trade(message, now)

    def _on_observation(
        self, connection: VenueConnectionTask, message: Observation, now: int
    ) -> None:
        if message.symbol and not self._shares(message.symbol):
            # Another collector tells it; that it came shows that the stream speaks.
            self.tape.heard(message.kind, now)
            return
        if self._closer is None or message.kind != common_pb2.EVENT_KIND_CANDLE:
            self.tape.on_observation(message, now)
            return
        for each in self._closer.observe(message):
            self.tape.on_observation(each, now)

    def _on_book_message(
        self, connection: VenueConnectionTask, message: BookSnapshot | BookHeartbeat, now: int
    ) -> None:
        feed = self.feeds.get(message.native_symbol)
        if feed is None:
            return
        lane = connection.connection_id
        if isinstance(message, BookSnapshot) and lane not in feed.lanes.names:
            # It came before the acknowledgement, which must not begin anew then.
            feed.early.add(lane)
            feed.expects_snapshot = True
            feed.lanes.join(lane, now)
        feed.on_book_message(lane, message, now)

    def _on_control(self, connection: VenueConnectionTask, message: VenueMessage, now: int) -> None:
        """Take what is about the connection itself."""
        connection.controls += 1
        if isinstance(message, Acknowledgement):
            connection.acknowledge(message)
        elif isinstance(message, VenueFault):
            self._log.warning(
                "the venue refused",
                code=message.code,
                reason=message.message,
                topic=message.topic or None,
            )
            connection.refuse(message)
        elif isinstance(message, Ping):
            connection.answer(message)
        elif isinstance(message, InstrumentsChanged):
            self.roster.refresh_soon(message.what)
        elif isinstance(message, Goodbye):
            self.pool.roll_over(connection, f"the venue ends it: {message.message}")
        else:
            self.ignored += 1

    def on_subscribed(
        self, connection: VenueConnectionTask, topics: Sequence[Topic], now: int
    ) -> None:
        """Begin to build the books whose diffs flow now."""
        for topic in topics:
            subscription = topic.subscription
            feed = self.feeds.get(subscription.native_symbol)
            if feed is None:
                continue
            for kind in subscription.kinds:
                feed.refusals.pop(kind, None)
            if _TRADE in subscription.kinds:
                feed.trades_since = feed.trades_since or now
            if _BOOK in subscription.kinds:
                self.join(feed, connection.connection_id, now)

    def join(self, feed: InstrumentFeed, lane: str, now: int) -> None:
        """Begin to take a book from a connection."""
        if lane in feed.early:
            feed.early.discard(lane)
            return
        self._note("join", now, native_symbol=feed.spec.native_symbol, lane=lane)
        feed.expects_snapshot = not feed.book.in_step
        feed.lanes.join(lane, now)

    def on_unsubscribed(
        self, connection: VenueConnectionTask, topics: Sequence[Topic], now: int
    ) -> None:
        """Let the connection's part in these books go: nothing of them comes for now."""
        for topic in topics:
            feed = self.feeds.get(topic.subscription.native_symbol)
            if feed is not None and _BOOK in topic.subscription.kinds:
                self.pause(feed, connection.connection_id, now)

    def pause(self, feed: InstrumentFeed, lane: str, now: int) -> None:
        """Take a book no more from a connection until it joins again."""
        self._note("pause", now, native_symbol=feed.spec.native_symbol, lane=lane)
        feed.lanes.pause(lane, now)

    def on_refused(
        self, connection: VenueConnectionTask, topics: Sequence[Topic], now: int
    ) -> None:
        """Tell the ledger what will not come, and why."""
        for topic in topics:
            subscription = topic.subscription
            feed = self.feeds.get(subscription.native_symbol)
            if feed is not None:
                feed.refusals |= dict.fromkeys(subscription.kinds, topic.refusal)
            if topic.refusals == 1:
                symbol = feed.spec.symbol if feed is not None else ""
                self.told.refused(
                    connection.connection_id, subscription, topic.refusal, symbol, now
                )

    def on_silent(self, connection: VenueConnectionTask, seconds: float, now: int) -> None:
        """Tell in-band that the books of a silent connection are stale."""
        self._note("silent", now, connection=connection.connection_id, seconds=seconds)
        for feed in self._carried(connection):
            if feed.lanes.names == [connection.connection_id]:
                feed.book.on_silence(f"no frame on the connection for {seconds:.1f} s", now)

    def on_exhausted(self, connection: VenueConnectionTask, seconds: float) -> None:
        """Replace a connection that may ask for nothing more by one that may."""
        self.pool.roll_over(
            connection, f"it may make no request for {seconds:.0f} s: the hour's are used up"
        )

    def on_closed(self, connection: VenueConnectionTask, detail: str, now: int) -> None:
        """Tell the ledger and every book that nothing continues it."""
        self.told.closed(connection, detail, now)
        if self._closer is not None:
            self._closer.interrupt()
        for feed in self._carried(connection):
            if feed.lanes.names == [connection.connection_id]:
                self.requests.cancel(feed.spec.native_symbol)
            feed.on_disconnected(connection.connection_id, detail, now)

    def is_aligned(self, connection: VenueConnectionTask) -> bool:
        """Tell whether every book goes on from this connection as well as from the other one."""
        return all(
            feed.lanes.is_aligned(connection.connection_id) for feed in self._carried(connection)
        )

    def on_rolled_over(
        self, old: VenueConnectionTask, new: VenueConnectionTask, reason: str, now: int
    ) -> None:
        """Let the old connection's part in every book go."""
        self._note(
            "rolled_over",
            now,
            old=old.connection_id,
            new=new.connection_id,
            open_time=new.open_time,
            reason=reason,
        )
        for feed in self._carried(old):
            feed.on_disconnected(old.connection_id, f"replaced by {new.connection_id}", now)
        self.told.rolled_over(old, new, reason, now)

    def _carried(self, connection: VenueConnectionTask) -> list[InstrumentFeed]:
        name = connection.connection_id
        return [feed for feed in self.feeds.values() if name in feed.lanes.names]

    # Malformed frames

    def _on_malformed(
        self, connection: VenueConnectionTask, error: MalformedFrameError, now: int
    ) -> None:
        connection.malformed += 1
        feed = self.feeds.get(error.native_symbol)
        if self.told.is_flooded():
            if feed is not None and error.concerns_book:
                feed.lanes.on_malformed(connection.connection_id, str(error), now)
            return
        self._log.warning("malformed frame", connection=connection.connection_id, error=str(error))
        if feed is not None:
            feed.on_malformed(
                connection.connection_id, str(error), now, concerns_book=error.concerns_book
            )
        else:
            # Whose frame it was cannot be told; what it held is missed by the next id of its kind.
            self.told.malformed(str(error), 1, now, connection.connection_id)

    # Silence

    def _heard(self, connection: VenueConnectionTask, topic: Topic) -> int:
        subscription = topic.subscription
        native = subscription.native_symbol
        feed = self.feeds.get(native) if native else None
        last = 0
        for kind in subscription.kinds:
            if feed is None:
                last = max(last, self.tape.last_of_kind(kind))
            elif kind == _BOOK:
                last = max(last, feed.lanes.heard(connection.connection_id))
            elif kind == _TRADE:
                last = max(last, feed.last_trade_time)
            elif kind == _TOP:
                last = max(last, feed.last_top_time)
            else:
                last = max(last, self.tape.last_receive_time(kind, feed.spec.symbol))
        return last

    def _on_quiet(self, connection: VenueConnectionTask, topic: Topic, seconds: float) -> None:
        self._log.warning(
            "a subscription is silent",
            topic=topic.subscription.topic,
            connection=connection.connection_id,
            seconds=round(seconds, 1),
        )
        feed = self.feeds.get(topic.subscription.native_symbol)
        self.told.quiet(
            connection.connection_id,
            topic.subscription,
            seconds,
            feed.spec.symbol if feed is not None else "",
            time.time_ns(),
        )

    def _renew_book(self, feed: InstrumentFeed) -> bool:
        return any(
            self.pool.renew(each.topic)
            for each in self.roster.subscriptions_of(feed.spec.native_symbol)
            if _BOOK in each.kinds
        )

    def _probe_trades(self, feed: InstrumentFeed) -> None:
        self.requests.look_for_trades(feed, lambda: self._renew_trades(feed))

    def _renew_trades(self, feed: InstrumentFeed) -> None:
        for each in self.roster.subscriptions_of(feed.spec.native_symbol):
            if _TRADE in each.kinds:
                for connection in self.pool.connections_of(each.topic):
                    topic = connection.topics.topics.get(each.topic)
                    since = topic.since if topic is not None else 0.0
                    if topic is not None and connection.renew(each.topic):
                        self._on_quiet(connection, topic, time.monotonic() - since)

    # Kinds beside books, trades and tops

    def _resolve(self, native_symbol: str) -> tuple[str, ContractSize] | None:
        feed = self.feeds.get(native_symbol)
        return None if feed is None else (feed.spec.symbol, feed.sizes or _ONE)

    async def _ask(self, request: RestRequest) -> tuple[bytes, int]:
        return await self.rest.get(request, priority=Priority.POLL)

    def _on_poll(self, poll: Poll, body: bytes, received: int) -> None:
        self._note("poll", received, poll=poll)
        self.on_answer(poll, body, received)

    def on_answer(self, poll: Poll, body: bytes, received: int) -> None:
        """Take the answer to a poll."""
        for observation in self._adapter.decode_poll(body, poll):
            if not observation.symbol or self._shares(observation.symbol):
                self.tape.on_observation(observation, received)

    def _on_poll_failed(self, poll: Poll, error: Exception) -> None:
        if isinstance(error, RateLimitedError):
            self.told.rate_limited(poll.kind, str(error), time.time_ns())

    # What the service and its callers ask for

    def rebuild(self, feed: InstrumentFeed, detail: str, now: int) -> None:
        """Rebuild a book because somebody asked for it."""
        self._note("rebuild", now, native_symbol=feed.spec.native_symbol, detail=detail)
        feed.book.rebuild(pb.ORDER_BOOK_REASON_REQUESTED, detail, now)

    def on_broker(self, connected: bool, now: int) -> None:
        """Take note that the broker came or went."""
        self._note("broker", now, connected=connected)
        for feed in self.feeds.values():
            feed.on_broker(connected, now)

    def on_dropped(self, key: str, count: int, now: int) -> bool:
        """Take note that the broker's buffer gave up what was unsent; False when not of ours."""
        if self.tape.on_dropped(key, count):
            self._note("dropped", now, key=key, count=count)
            return True
        exchange, _, symbol = key.removeprefix("top:").partition("/")
        feed = self.by_symbol.get(symbol) if exchange == self.exchange else None
        if feed is None:
            return False
        self._note("dropped", now, key=key, count=count)
        feed.on_dropped(key, count)
        return True

    def on_rejected(self, subject: str, message_id: str, now: int) -> bool:
        """Take note that the broker's buffer had no room for a message; False when not of ours."""
        _, _, exchange, symbol = (*subject.split(".", 3), "", "", "")[:4]
        feed = self.by_symbol.get(symbol) if exchange == self.exchange else None
        if feed is None:
            return False
        self._note("rejected", now, subject=subject, message_id=message_id)
        feed.on_rejected(subject, message_id)
        return True

    def on_lifetime(self, kind: "integrity.IntegrityKind.ValueType", now: int) -> None:
        """Tell the ledger that the collector started, or stopped; then books are STALE."""
        self.told.lifetime(kind, now)
        if kind == integrity.INTEGRITY_KIND_COLLECTOR_STOPPED:
            for feed in self.feeds.values():
                feed.book.on_silence(
                    "the collector stopped", now, pb.ORDER_BOOK_REASON_COLLECTOR_SILENT
                )

    def _on_retired(self, spec: InstrumentSpec) -> None:
        self.tape.forget(spec.symbol)
        if self._closer is not None:
            self._closer.forget(spec.native_symbol)
