"""Where one stream gets the events of one kind of one instrument: a log, and a place in it.

A source is always in exactly one of three places: with its log, which wakes it at the next item; in
its session's queue of those that have something to send; or closed. So an event costs only the
sessions that have read everything before it, and a client that does not read costs nothing.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from marketprism.market.v1 import common_pb2, market_event_pb2

from services.marketdata.catalog import Key
from services.marketdata.event_log import EventLog
from services.marketdata.live_trades import LiveTrades
from services.marketdata.market import Market
from services.marketdata.subscriptions import Subscription
from services.marketdata.views import BookView, BookViews, BookWish
from services.marketdata.wire import stream_status_item

__all__ = ["BookSource", "KindSource", "LiveSources", "MarketSources", "Opened", "Source"]

_SUBSCRIPTION: Final = int(market_event_pb2.STREAM_STATE_SUBSCRIPTION)
_LAGGING: Final = int(market_event_pb2.STREAM_STATE_LAGGING)
_TRADE: Final = int(common_pb2.EVENT_KIND_TRADE)
_EVERY_ONE_COUNTS: Final = (_TRADE, int(common_pb2.EVENT_KIND_LIQUIDATION))
_NEW: Final = -1
_CLOSED: Final = -2
_PREFIX: Final = "EVENT_KIND_"


class LiveSources(Protocol):
    """What is asked of the live state."""

    def check_ready(self) -> None:
        """Raise `Unavailable` while what the broker held at the start is still being read."""

    def knows(self, key: Key) -> bool:
        """Tell whether a name is an instrument or an index."""

    def check(self, key: Key) -> None:
        """Raise `NotFound` for neither instrument nor index, `Unavailable` while none is known."""

    def keys(self, kind: int) -> Iterable[Key]:
        """Give the instruments that anything of a kind came of."""

    def on_new(self, callback: Callable[[int, Key], None]) -> Callable[[], None]:
        """Call back before the first event of a kind of an instrument is taken."""

    def on_trouble(self, callback: Callable[[str, str, str], None]) -> None:
        """Call back with venue, reason and why when events may be missing; why ends empty."""

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back when the server stops."""

    def book(self, key: Key, wish: BookWish) -> BookView:
        """Give the view of a book, to be closed."""

    def log(self, kind: int, key: Key) -> EventLog:
        """Give the log of a kind other than ORDER_BOOK."""

    def latest(self, kind: int, key: Key) -> Sequence[bytes]:
        """Give the present state as `events` items, none of a kind that has no state."""

    def interruptions(self, kind: int, key: Key) -> Sequence[bytes]:
        """Give what interrupts at present as `events` items."""


class MarketSources:
    """The live state of `Market`; `views` makes the books that are not plain."""

    def __init__(self, market: Market, views: BookViews) -> None:
        self._market = market
        self._views = views

    def check_ready(self) -> None:
        """See `LiveSources`."""
        self._market.catalog.check_ready()

    def knows(self, key: Key) -> bool:
        """See `LiveSources`."""
        return key in self._market.catalog or self._market.catalog.is_index(key)

    def check(self, key: Key) -> None:
        """See `LiveSources`."""
        self._market.catalog.check_named(key)

    def keys(self, kind: int) -> Iterable[Key]:
        """See `LiveSources`."""
        return self._market.keys(kind)

    def on_new(self, callback: Callable[[int, Key], None]) -> Callable[[], None]:
        """See `LiveSources`."""
        return self._market.on_new(callback)

    def on_trouble(self, callback: Callable[[str, str, str], None]) -> None:
        """See `LiveSources`."""
        self._market.on_trouble(callback)

    def on_close(self, callback: Callable[[], None]) -> None:
        """See `LiveSources`."""
        self._market.on_close(callback)

    def book(self, key: Key, wish: BookWish) -> BookView:
        """See `LiveSources`."""
        return self._views.open(key, wish)

    def log(self, kind: int, key: Key) -> EventLog:
        """See `LiveSources`."""
        return self._market.kind_log(kind, key)

    def latest(self, kind: int, key: Key) -> Sequence[bytes]:
        """See `LiveSources`."""
        return () if kind in _EVERY_ONE_COUNTS else self._market.latest(kind, key)

    def interruptions(self, kind: int, key: Key) -> Sequence[bytes]:
        """See `LiveSources`."""
        if kind != _TRADE:
            return ()
        trades: LiveTrades = self._market.trades_of(key)
        # The first one says that the stream is open, which it is for a while.
        return trades.opening()[1:]


@dataclass(slots=True)
class Opened:
    """What a source sends when it begins, and when it begins again."""

    items: bytes
    """`events` items."""

    dropped: int = 0
    """Events that were left out before them."""

    is_loss: bool = False
    """Whether those cannot be made good by what follows."""


class _Session(Protocol):
    """What a source needs of the session that it belongs to."""

    def on_ready(self, source: "Source") -> None:
        """Note that a source has something to send."""


class Source:
    """One kind of one instrument, as one session gets it."""

    __slots__ = (
        "announced",
        "claims",
        "key",
        "kind",
        "log",
        "losses",
        "position",
        "session",
    )

    def __init__(self, session: _Session, kind: int, key: Key, log: EventLog) -> None:
        self.session = session
        self.kind = kind
        self.key = key
        self.log = log
        self.position = _NEW
        """Place of the next item in the log; below `log.first` when it has to be opened first."""
        self.claims: tuple[Subscription, ...] = ()
        """Subscriptions that it is for."""
        self.announced = True
        """Whether the subscriber knows of it; not one that appeared after the subscription."""
        self.losses: deque[float] | None = None
        """When events were left out that nothing makes good, monotonic seconds."""

    @property
    def is_closed(self) -> bool:
        """Whether nobody wants it any more."""
        return self.position == _CLOSED

    def wake(self) -> None:
        """Note that the log has more."""
        self.session.on_ready(self)

    def open(self, now: int) -> Opened:
        """Begin, or begin again where the log forgot what comes next; `now` is in nanoseconds."""
        raise NotImplementedError

    def close(self) -> None:
        """Hear of nothing any more."""
        # Below any place, so that nothing is read.
        self.position = _CLOSED
        self.log.unwatch(self)

    def note_loss(self, most: int) -> deque[float]:
        """Note that events were left out for good, and give when that happened last."""
        if self.losses is None:
            self.losses = deque(maxlen=most)
        self.losses.append(time.monotonic())
        return self.losses

    def announcement(self, now: int) -> bytes:
        """Tell that an instrument appeared that a subscription asked for."""
        if self.announced:
            return b""
        self.announced = True
        return b"".join(self._told(claim, now, "INSTRUMENT_ADDED") for claim in self.claims)

    def _told(self, claim: Subscription, now: int, reason: str, message: str = "") -> bytes:
        return stream_status_item(
            _SUBSCRIPTION,
            now=now,
            reason=reason,
            message=message or f"{self._name()} of {'/'.join(self.key)} follow",
            exchange=self.key[0],
            symbol=self.key[1],
            subscription_id=claim.id,
        )

    def _lagging(self, now: int, dropped: int, what_follows: str) -> bytes:
        return stream_status_item(
            _LAGGING,
            now=now,
            reason="SLOW_READER",
            message=f"the client reads too slowly: {dropped} events ({self._name()}) were left "
            f"out; {what_follows}",
            dropped_events=dropped,
            exchange=self.key[0],
            symbol=self.key[1],
        )

    def _name(self) -> str:
        return common_pb2.EventKind.Name(self.kind).removeprefix(_PREFIX)  # type: ignore[arg-type]


class KindSource(Source):
    """Events of a kind that is one message.

    What has a state begins with it; of trades and liquidations every one counts, so that they begin
    with the first one after the subscription, and losing one is a loss.
    """

    __slots__ = ("_live", "_since")

    def __init__(self, session: _Session, kind: int, key: Key, live: LiveSources) -> None:
        super().__init__(session, kind, key, live.log(kind, key))
        self._live = live
        self._since = self.log.end

    def open(self, now: int) -> Opened:
        """Begin with the state, or with what interrupts."""
        log, position = self.log, self.position
        if position == _NEW:
            told = self.announcement(now)
            if self.kind in _EVERY_ONE_COUNTS:
                self.position = self._since
                return Opened(told + self._interruptions())
            self.position = log.end
            return Opened(told + self._state())
        if self.kind in _EVERY_ONE_COUNTS:
            self.position = log.first
            dropped = log.first - position
            told = self._lagging(now, dropped, "they go on from here")
            return Opened(told + self._interruptions(), dropped, is_loss=True)
        self.position = log.end
        dropped = log.end - position
        told = self._lagging(now, dropped, "the latest follows")
        return Opened(told + self._state(), dropped)

    def _state(self) -> bytes:
        return b"".join(self._live.latest(self.kind, self.key))

    def _interruptions(self) -> bytes:
        return b"".join(self._live.interruptions(self.kind, self.key))


class BookSource(Source):
    """A book: a snapshot and what continues it. Who falls behind begins with a snapshot again."""

    __slots__ = ("_resume", "_view", "wish")

    def __init__(
        self,
        session: _Session,
        kind: int,
        key: Key,
        view: BookView,
        wish: BookWish,
        resume: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(session, kind, key, view.log)
        self._view = view
        self._resume = resume
        self.wish = wish
        """How it is wanted."""

    def open(self, now: int) -> Opened:
        """Begin with the book as it is now."""
        position = self.position
        if position == _NEW:
            told = self.announcement(now)
            opening = self._view.open(self._resume)
            self._resume = None
            self.position = opening.position
            if opening.resumed and self.claims:
                told += self._told(self.claims[0], now, "RESUMED", "the book goes on")
            return Opened(told + opening.joined())
        opening = self._view.open(conflated=True)
        self.position = opening.position
        dropped = max(0, opening.position - position)
        told = self._lagging(now, dropped, "the book as it is now follows")
        return Opened(told + opening.joined(), dropped)

    def close(self) -> None:
        """Give the view back."""
        if not self.is_closed:
            super().close()
            self._view.close()
