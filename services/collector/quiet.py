"""Finds subscriptions that were acknowledged and then say nothing, and gets them to speak.

A silent book is compared with the id at which the venue's own book stands, by REST: a quiet market
is left alone, a dead stream is subscribed to anew and its book is STALE. Trades are compared in the
same way, through the venue's history. What tells changes only, and has no longest silence of its
own, is held against the rest: a trade changes tickers and candles, and the best of a book is what
the best bid and offer must have told. Whatever else ought to speak and does not is subscribed to
anew. Where that does not help, the next time comes later, twice as late each time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from marketprism.market.v1 import common_pb2

from services.collector.connection import VenueConnectionTask
from services.collector.feed import InstrumentFeed
from services.collector.settings import ExchangeSettings
from services.collector.topics import Topic, TopicState

__all__ = ["QuietWatch"]

_TRADE_SECONDS = 120.0
_CHANGE_SECONDS = 60.0
_MOST_PATIENCE = 32.0
_BOOK = common_pb2.EVENT_KIND_ORDER_BOOK
_TRADE = common_pb2.EVENT_KIND_TRADE
_TOP = common_pb2.EVENT_KIND_BEST_BID_OFFER
_TRADED = frozenset((common_pb2.EVENT_KIND_TICKER, common_pb2.EVENT_KIND_CANDLE))


@dataclass(slots=True)
class _Watched:
    """What is remembered of one subscription of one connection."""

    since: float
    """When it was acknowledged, monotonic: another time means another subscription."""
    looked_at: float
    """When it was last heard or looked into."""
    patience: float = 1.0
    silent: bool = False
    suspect: bool = False
    """Whether another connection was found to have told more at the last look."""
    trade: int = 0
    """Receive time of the last trade when it was last heard, of what tells changes only."""
    checked_at: float = 0.0
    """When that was last held against what it ought to have told."""


class QuietWatch:
    """Looks at every subscription of a venue now and then.

    `heard(connection, topic)` gives the receive time (nanoseconds) of the last message that a
    subscription brought, 0 for none. `feed_of(native_symbol)` gives the feed. The callbacks
    `probe_book(feed, done)`, `probe_trades(feed)`, `renew(connection, topic)` act. Counters:
    `probes`, `renewals`.
    """

    def __init__(
        self,
        settings: ExchangeSettings,
        heard: Callable[[VenueConnectionTask, Topic], int],
        feed_of: Callable[[str], InstrumentFeed | None],
        probe_book: Callable[[InstrumentFeed, Callable[[bool | None], None]], None],
        probe_trades: Callable[[InstrumentFeed], None],
        on_silent: Callable[[VenueConnectionTask, Topic, float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.probes = 0
        self.renewals = 0
        self._settings = settings
        self._heard = heard
        self._feed_of = feed_of
        self._probe_book = probe_book
        self._probe_trades = probe_trades
        self._on_silent = on_silent
        self._clock = clock
        self._watched: dict[tuple[str, str], _Watched] = {}
        self._told: dict[tuple[str, str], int] = {}

    def look(self, connections: list[VenueConnectionTask]) -> None:
        """Look at every subscription that stands."""
        now = self._clock()
        alive: set[tuple[str, str]] = set()
        for connection in connections:
            for name, topic in connection.topics.topics.items():
                limit = self._limit(topic)
                if not limit:
                    continue
                key = (connection.connection_id, name)
                # Remembered while it is subscribed to anew, for the patience to be had then.
                alive.add(key)
                # What a connection that is down does not bring is told by its end.
                if topic.state is TopicState.ACTIVE and connection.open_time:
                    self._look_at(connection, key, topic, limit, now)
        for key in self._watched.keys() - alive:
            del self._watched[key]
            self._told.pop(key, None)

    def _limit(self, topic: Topic) -> float:
        subscription = topic.subscription
        if _TRADE in subscription.kinds:
            quiet = self._settings.quiet_seconds
            return 4 * quiet if quiet else _TRADE_SECONDS
        if subscription.quiet_seconds:
            return self._settings.quiet_seconds or subscription.quiet_seconds
        if subscription.native_symbol and (_TRADED | {_TOP}).intersection(subscription.kinds):
            return self._settings.quiet_seconds or _CHANGE_SECONDS
        return 0.0

    def _look_at(
        self,
        connection: VenueConnectionTask,
        key: tuple[str, str],
        topic: Topic,
        limit: float,
        now: float,
    ) -> None:
        watched = self._watched.get(key)
        if watched is None or watched.since != topic.since:
            patience = watched.patience if watched is not None and watched.silent else 1.0
            watched = self._watched[key] = _Watched(topic.since, now, patience)
            watched.trade = self._last_trade(topic)
            self._told[key] = self._heard(connection, topic)
            return
        last = self._heard(connection, topic)
        if last != self._told[key]:
            self._told[key] = last
            watched.looked_at = now
            watched.patience = 1.0
            watched.silent = watched.suspect = False
            watched.trade = self._last_trade(topic)
            return
        silent = now - watched.looked_at
        due = silent >= limit * watched.patience
        # Four times at least within the limit, and not at every look: the best of a book is dear.
        if self._tells_changes(topic) and (due or now - watched.checked_at >= limit / 4):
            watched.checked_at = now
            if not self._has_changed(topic, watched):
                watched.looked_at = now
                return
        if not due:
            return
        subscription = topic.subscription
        feed = self._feed_of(subscription.native_symbol) if subscription.native_symbol else None
        book = feed if feed is not None and _BOOK in subscription.kinds else None
        told = book is not None and len(book.lanes.names) > 1 and book.book.receive_time > last
        if told and not watched.suspect:
            # Another connection has told what this one has not: it may be about to.
            watched.suspect = True
            return
        watched.suspect = False
        watched.looked_at = now
        watched.patience = min(2 * watched.patience, _MOST_PATIENCE)
        if told:
            self._renew(connection, topic, watched, silent)
        elif feed is not None and _BOOK in subscription.kinds and feed.book.in_step:
            self.probes += 1

            def done(agree: bool | None, seconds: float = silent) -> None:
                if agree is False and topic.state is TopicState.ACTIVE:
                    self._renew(connection, topic, watched, seconds)

            self._probe_book(feed, done)
        elif feed is not None and _TRADE in subscription.kinds:
            self.probes += 1
            self._probe_trades(feed)
        else:
            self._renew(connection, topic, watched, silent)

    def _tells_changes(self, topic: Topic) -> bool:
        subscription = topic.subscription
        return not subscription.quiet_seconds and _TRADE not in subscription.kinds

    def _last_trade(self, topic: Topic) -> int:
        """When the instrument last traded, for what tells changes only."""
        if not self._tells_changes(topic):
            return 0
        feed = self._feed_of(topic.subscription.native_symbol)
        return feed.last_trade_time if feed is not None else 0

    def _has_changed(self, topic: Topic, watched: _Watched) -> bool:
        """Tell whether there is something that a stream of changes ought to have told by now."""
        feed = self._feed_of(topic.subscription.native_symbol)
        if feed is None:
            return False
        if _TOP not in topic.subscription.kinds:
            return feed.last_trade_time != watched.trade
        book, top = feed.book, feed.last_top
        if not book.in_step:
            return False
        best = book.book.best_bid() or ("", ""), book.book.best_ask() or ("", "")
        return top is None or (tuple(best[0]), tuple(best[1])) != (tuple(top.bid), tuple(top.ask))

    def _renew(
        self, connection: VenueConnectionTask, topic: Topic, watched: _Watched, seconds: float
    ) -> None:
        self.renewals += 1
        watched.silent = True
        self._on_silent(connection, topic, seconds)
        connection.renew(topic.subscription.topic)
