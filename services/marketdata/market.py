"""All live state: takes what the broker's streams bring, and hands out books, trades, offers.

Pure: no I/O. The feed calls in with whole batches, the servicer reads.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from google.protobuf.message import DecodeError
from marketprism.collector.v1 import integrity_event_pb2
from marketprism.market.v1 import common_pb2, events_pb2

from services.marketdata.catalog import Catalog, Key
from services.marketdata.event_log import EventLog
from services.marketdata.live_book import BookLimits, LiveBook
from services.marketdata.live_kinds import INDEX_KINDS, KIND_OF_SUBJECT, KINDS, LiveKinds
from services.marketdata.live_trades import BROKER, COLLECTOR, LiveTrades, concerns_trades
from services.marketdata.settings import MarketDataSettings
from services.marketdata.tally import Tally
from services.marketdata.wire import event_item, nanoseconds
from services.shared.log import get_logger

__all__ = ["Market", "StreamMessage"]

_SAMPLE_EVERY = 64
_NANOS = 1_000_000_000
_WHOLE_VENUE = "_"
_TRADE: Final = int(common_pb2.EVENT_KIND_TRADE)
_ORDER_BOOK: Final = int(common_pb2.EVENT_KIND_ORDER_BOOK)
_BEST_BID_OFFER: Final = int(common_pb2.EVENT_KIND_BEST_BID_OFFER)
_BOOK_EVENTS: Final[dict[str, Callable[[LiveBook], Callable[[bytes], None]]]] = {
    "order_book_update": lambda book: book.on_update,
    "order_book_snapshot": lambda book: book.on_snapshot,
    "order_book_status": lambda book: book.on_status,
}


class StreamMessage(Protocol):
    """What is needed of a message of a JetStream stream."""

    @property
    def subject(self) -> str:
        """`market.<kind>.<exchange>.<symbol>`."""

    @property
    def payload(self) -> bytes:
        """The encoded event."""

    @property
    def stream_sequence(self) -> int:
        """Its place in the stream."""


class Market:
    """The live state of every instrument."""

    def __init__(
        self,
        settings: MarketDataSettings,
        *,
        tally: Tally | None = None,
        clock: Callable[[], int] = time.time_ns,
        observe_lag: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._observe_lag = observe_lag
        self._log = get_logger()
        self._routes: dict[str, Callable[[bytes], None] | None] = {}
        self._begin_at: dict[Key, int] = {}
        self._known: dict[int, dict[Key, None]] = {}
        self._kinds_of: dict[str, set[int]] = {}
        self._listeners: list[Callable[[int, Key], None]] = []
        self._on_trouble: list[Callable[[str, str, str], None]] = []
        self._on_close: list[Callable[[], None]] = []
        self._silent: dict[str, str] = {}
        self._broker_lost = ""
        self._trades_lost = ""
        self._silence: Callable[[str, str], str] = lambda _exchange, _collector_id: ""
        self._unsampled = 0
        self._closed = False
        self._swept = 0.0
        self.start_time = clock()
        """When it was made, nanoseconds since 1970."""
        self.tally = tally or Tally()
        """What was counted."""
        self.catalog = Catalog(settings.max_instruments)
        """Which instruments there are."""
        self.books: dict[Key, LiveBook] = {}
        """Books that something came of, or that somebody waits for."""
        self.trades: dict[Key, LiveTrades] = {}
        """Trades that something came of, or that somebody waits for."""
        self.kinds = LiveKinds(settings.event_log, self.tally)
        """Every other kind of event."""

    # ---- what the streams bring

    def begin_books_at(self, places: dict[Key, int]) -> None:
        """Ignore what the stream holds of each book before its last snapshot, at these places."""
        self._begin_at = places

    def on_order_book(self, messages: Iterable[StreamMessage]) -> None:
        """Take a batch of the order book stream."""
        routes = self._routes
        begin_at = self._begin_at
        count = 0
        payload = b""
        for message in messages:
            count += 1
            subject = message.subject
            payload = message.payload
            if begin_at and self._is_before_begin(subject, message.stream_sequence):
                continue
            try:
                route = routes[subject]
            except KeyError:
                route = self._route(subject)
            if route is not None:
                self._take(route, subject, payload)
        self._count("order_book", count)
        self._sample(count, payload)

    def on_trade(self, messages: Iterable[StreamMessage]) -> None:
        """Take a batch of the trade stream."""
        self._dispatch("trade", messages)

    def on_best_bid_offer(self, messages: Iterable[StreamMessage]) -> None:
        """Take a batch of the best bid and offer stream."""
        self._dispatch("best_bid_offer", messages)

    def on_reference(self, messages: Iterable[StreamMessage]) -> None:
        """Take a batch of the stream of all kinds that are told less often."""
        self._dispatch("reference", messages)

    def on_instrument(self, messages: Iterable[StreamMessage]) -> None:
        """Take a batch of the instrument stream."""
        self._dispatch("instrument", messages)

    def on_integrity(self, messages: Iterable[StreamMessage]) -> None:
        """Take a batch of the gap ledger's entries."""
        self._dispatch("integrity", messages)

    # ---- what happens to the streams and the collectors

    def on_books_lost(self, why: str) -> None:
        """Note that the order book stream is interrupted."""
        self._broker_lost = why
        self._tell_trouble("", "BROKER_DISCONNECTED", why)
        for book in self.books.values():
            book.set_broker_lost(why)

    def on_books_back(self) -> None:
        """Note that the order book stream was read up to its end again."""
        self._broker_lost = ""
        self._tell_trouble("", "BROKER_DISCONNECTED", "")
        for book in self.books.values():
            book.set_broker_lost("")

    def on_books_missed(self, why: str) -> None:
        """Note that messages of the order book stream are gone for good."""
        # The stream may have been made anew: its places mean nothing any more.
        self._begin_at = {}
        for book in self.books.values():
            book.on_missed(why)

    def on_trades_lost(self, why: str) -> None:
        """Note that the trade stream is interrupted."""
        self._trades_lost = why
        for trades in self.trades.values():
            trades.interrupt(BROKER, "BROKER_DISCONNECTED", why)

    def on_trades_back(self, missed: str) -> None:
        """Note that the trade stream goes on; `missed` tells, when not empty, what is gone."""
        self._trades_lost = ""
        for trades in self.trades.values():
            if missed:
                trades.lose("DELIVERY_GAP", missed)
            trades.resume(BROKER, "" if missed else "the broker is back, nothing was missed")

    def on_collectors(self, silence: Callable[[str, str], str]) -> None:
        """Take what is known of collectors: (exchange, collector id) to why it is silent, or ""."""
        answers: dict[Key, str] = {}

        def remembered(exchange: str, collector_id: str) -> str:
            key = (exchange, collector_id)
            if key not in answers:
                answers[key] = silence(exchange, collector_id)
            return answers[key]

        self._silence = remembered
        for exchange in self.catalog.exchanges:
            why = remembered(exchange, "")
            if bool(why) != bool(self._silent.get(exchange)):
                self._silent[exchange] = why
                self._tell_trouble(exchange, "COLLECTOR_SILENT", why)
        for book in self.books.values():
            book.set_silent(remembered(book.exchange, book.collector_id))
        for trades in self.trades.values():
            self._set_trades_silent(trades)

    # ---- what is asked for

    def book(self, key: Key) -> LiveBook:
        """Give the book of a known instrument, an empty one when nothing came of it yet.

        Raises `NotFound`, or `Unavailable` while nothing is known yet.
        """
        found = self.books.get(key)
        if found is None or not (found.heard_of and self.catalog.ready):
            self.catalog.check(key)
        return found or self._make_book(key)

    def trades_of(self, key: Key) -> LiveTrades:
        """Give the trades of a known instrument; raises as `book` does."""
        found = self.trades.get(key)
        if found is None or not (found.heard_of and self.catalog.ready):
            self.catalog.check(key)
        return found or self._make_trades(key)

    def kind_log(self, kind: int, key: Key) -> EventLog:
        """Give the log of one kind's events, of a known instrument or index.

        `kind` is an EventKind other than ORDER_BOOK, whose log is `book(key).log`. Its items are
        ready `events` items. Hold on to the log: one that nobody holds is let go. Raises as `book`
        does.
        """
        if kind == _TRADE:
            return self.trades_of(key).log
        self._check_kind(kind, key)
        return self.kinds.log(kind, key)

    def latest(self, kind: int, key: Key) -> list[bytes]:
        """Give the latest of one kind as `events` items, none when nothing came.

        `kind` is an EventKind other than ORDER_BOOK. Candles come one an interval, ratios one a
        kind of them. Raises as `book` does.
        """
        if kind == _TRADE:
            return self.trades_of(key).recent(1, None)[0]
        return [event_item(KINDS[kind].field, each) for each in self.latest_payloads(kind, key)]

    def latest_payloads(self, kind: int, key: Key) -> list[bytes]:
        """Give what `latest` gives, of a kind other than TRADE, as the events' own bytes."""
        self._check_kind(kind, key)
        return self.kinds.latest(kind, key)

    def keys(self, kind: int) -> Iterable[Key]:
        """Give the instruments and indices that anything of an EventKind came of."""
        return list(self._known.get(kind, ()))

    def now(self) -> int:
        """Give the time by its clock, nanoseconds since 1970."""
        return self._clock()

    def kinds_of(self, exchange: str) -> list[int]:
        """Give the EventKinds that anything of a venue came of, in order."""
        return sorted(self._kinds_of.get(exchange, ()))

    def on_new(self, callback: Callable[[int, Key], None]) -> Callable[[], None]:
        """Call `callback(kind, key)` when the first event of a kind comes of an instrument.

        It is called before the event is taken, so that no event is missed by who takes the log
        there and then. Gives what ends it. The callback must not raise.
        """
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def on_trouble(self, callback: Callable[[str, str, str], None]) -> None:
        """Call `callback(exchange, reason, why)` when events may be missing; `why` ends empty.

        `exchange` is empty when all venues are concerned. Books and trades are told beside that, in
        their own logs.
        """
        self._on_trouble.append(callback)

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back at `close`."""
        self._on_close.append(callback)

    def tick(self, now: float) -> None:
        """Let old events go; call it about once a second, `now` is monotonic seconds."""
        settings = self._settings
        for book in self.books.values():
            book.trim_to(book.log.age(now, settings.order_book_log.max_age_seconds))
        for trades in self.trades.values():
            trades.log.trim_to(trades.log.age(now, settings.trade_log.max_age_seconds))
        self.kinds.tick(now)
        if now - self._swept >= settings.levels_idle_seconds:
            self._swept = now
            for book in self.books.values():
                book.forget_levels_if_unused()

    def close(self) -> None:
        """End every subscriber's stream."""
        self._closed = True
        for callback in self._on_close:
            callback()
        for book in self.books.values():
            book.log.close()
        for trades in self.trades.values():
            trades.log.close()
        self.kinds.close()

    # ---- dispatch

    def _dispatch(self, kind: str, messages: Iterable[StreamMessage]) -> None:
        routes = self._routes
        count = 0
        payload = b""
        for message in messages:
            count += 1
            subject = message.subject
            payload = message.payload
            try:
                route = routes[subject]
            except KeyError:
                route = self._route(subject)
            if route is not None:
                self._take(route, subject, payload)
        self._count(kind, count)
        if kind == "trade":
            self._sample(count, payload)

    def _take(self, route: Callable[[bytes], None], subject: str, payload: bytes) -> None:
        try:
            route(payload)
        except Exception:
            # What the routes expect they handle; one event must not cost the others.
            self.tally.malformed += 1
            self._log.exception("an event could not be taken", subject=subject, size=len(payload))

    def _route(self, subject: str) -> Callable[[bytes], None] | None:
        """Find who takes a subject's messages, None when nobody does, and remember it."""
        parts = subject.split(".", 3)
        route: Callable[[bytes], None] | None = None
        if len(parts) == 4 and parts[0] == "market":
            kind, key = parts[1], (parts[2], parts[3])
            if kind == "integrity":
                # Not remembered: there may be any number of them, and few messages of each.
                return self._on_integrity
            if kind == "instrument":
                return lambda payload: self._on_instrument(key, payload)
            route = self._route_of_kind(kind, key)
        if route is None:
            self.tally.ignored += 1
            return None
        self._routes[subject] = route
        return route

    def _route_of_kind(self, name: str, key: Key) -> Callable[[bytes], None] | None:
        kind = _ORDER_BOOK if name in _BOOK_EVENTS else KIND_OF_SUBJECT.get(name)
        if kind is None:
            return None
        add = self.catalog.add_index if kind in INDEX_KINDS else self.catalog.add
        if not add(key):
            return None
        route: Callable[[bytes], None]
        if kind == _TRADE:
            route = (self.trades.get(key) or self._make_trades(key)).on_trade
        elif kind == _ORDER_BOOK:
            route = _BOOK_EVENTS[name](self.books.get(key) or self._make_book(key))
        else:
            route = self.kinds.taker(kind, key)
        known = self._known.setdefault(kind, {})
        if key not in known:
            known[key] = None
            self._kinds_of.setdefault(key[0], set()).add(kind)
            for listener in list(self._listeners):
                listener(kind, key)
        return route

    def _check_kind(self, kind: int, key: Key) -> None:
        if key not in self._known.get(kind, ()) or not self.catalog.ready:
            self.catalog.check_named(key)

    def _is_before_begin(self, subject: str, place: int) -> bool:
        kind, _, rest = subject.removeprefix("market.").partition(".")
        exchange, _, symbol = rest.partition(".")
        key = (exchange, symbol)
        begin = self._begin_at.get(key)
        if begin is None:
            return False
        if place >= begin:
            del self._begin_at[key]
            return False
        return kind != "order_book_status"

    def _on_instrument(self, key: Key, payload: bytes) -> None:
        if not self.catalog.describe(key, payload):
            self.tally.malformed += 1

    def _on_integrity(self, payload: bytes) -> None:
        try:
            event = integrity_event_pb2.IntegrityEvent.FromString(payload)
        except DecodeError:
            self.tally.malformed += 1
            return
        key = (event.exchange, event.symbol)
        if event.symbol and event.symbol != _WHOLE_VENUE:
            book = self.books.get(key)
            # A collector that was replaced may still tell of its end: the book is another's then.
            is_present = book is not None and (not book.collector_id or event.epoch >= book.epoch)
            if book is not None and is_present and event.collector_id != book.collector_id:
                book.collector_id = event.collector_id
                book.set_silent(self._silence(book.exchange, book.collector_id))
        if not concerns_trades(event):
            return
        for trades in self._trades_concerned(key):
            trades.on_integrity(event)

    def _trades_concerned(self, key: Key) -> Iterator[LiveTrades]:
        exchange, symbol = key
        if symbol and symbol != _WHOLE_VENUE:
            found = self.trades.get(key)
            if found is not None:
                yield found
        else:
            yield from (t for t in list(self.trades.values()) if t.exchange == exchange)

    def _tell_trouble(self, exchange: str, reason: str, why: str) -> None:
        for callback in self._on_trouble:
            callback(exchange, reason, why)

    # ---- what is made

    def _make_book(self, key: Key) -> LiveBook:
        bounds = self._settings.order_book_log
        book = LiveBook(
            *key,
            limits=BookLimits(bounds.max_events, bounds.max_bytes),
            tally=self.tally,
            clock=self._clock,
        )
        if self._closed:
            book.log.close()
        book.set_broker_lost(self._broker_lost)
        book.set_silent(self._silence(book.exchange, ""))
        self.books[key] = book
        return book

    def _make_trades(self, key: Key) -> LiveTrades:
        bounds = self._settings.trade_log
        trades = LiveTrades(
            *key,
            max_events=bounds.max_events,
            max_bytes=bounds.max_bytes,
            recent_limit=self._settings.recent_trades,
            tally=self.tally,
            clock=self._clock,
        )
        if self._closed:
            trades.log.close()
        if self._trades_lost:
            trades.interrupt(BROKER, "BROKER_DISCONNECTED", self._trades_lost)
        self._set_trades_silent(trades)
        self.trades[key] = trades
        return trades

    def _set_trades_silent(self, trades: LiveTrades) -> None:
        book = self.books.get((trades.exchange, trades.symbol))
        silent = self._silence(trades.exchange, book.collector_id if book else "")
        if not silent:
            trades.resume(COLLECTOR, "the collector speaks again")
        elif not trades.is_interrupted_by(COLLECTOR):
            trades.interrupt(COLLECTOR, "COLLECTOR_SILENT", silent)

    # ---- what is counted

    def _count(self, kind: str, count: int) -> None:
        events = self.tally.events
        events[kind] = events.get(kind, 0) + count

    def _sample(self, count: int, payload: bytes) -> None:
        """Observe the lag of one event in many: from the socket read to here."""
        self._unsampled += count
        if self._unsampled < _SAMPLE_EVERY or not payload:
            return
        self._unsampled = 0
        try:
            # Receive time is field 6 of every kind of event but a status.
            event = events_pb2.Trade.FromString(payload)
        except DecodeError:
            return
        if event.HasField("receive_time"):
            self._observe_lag(max(0, self._clock() - nanoseconds(event.receive_time)) / _NANOS)
