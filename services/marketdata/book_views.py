"""Makes the views of books, and shares each among all who have the same wish."""

from decimal import Decimal, InvalidOperation
from typing import Final

from marketprism.market.v1 import instrument_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb

from services.marketdata.book_follower import BookFollower
from services.marketdata.catalog import Key
from services.marketdata.conflated_view import ConflatedView
from services.marketdata.event_log import EventLog
from services.marketdata.live_book import LiveBook, Opening
from services.marketdata.market import Market
from services.marketdata.settings import LogBounds
from services.marketdata.shared_view import SharedView
from services.marketdata.top_view import TopView
from services.marketdata.views import BookView, BookWish
from services.shared.errors import MarketPrismError

__all__ = ["MarketBookViews"]

_TOP: Final = int(pb.ORDER_BOOK_MODE_TOP)
# Whoever is further behind than this is better served with the best levels as they are.
_TOP_EVENTS = 256
_MAX_BYTES = 4 * 1024 * 1024


class MarketBookViews:
    """The views of a market's books. Nothing is computed for a wish that nobody has."""

    def __init__(self, market: Market, bounds: LogBounds) -> None:
        self._market = market
        self._bounds = bounds
        self._followers: dict[Key, BookFollower] = {}
        self._views: dict[tuple[Key, BookWish], SharedView] = {}

    def __len__(self) -> int:
        return len(self._views)

    def open(self, key: Key, wish: BookWish) -> BookView:
        """See `BookViews.open`.

        A step that is not above the tick size groups nothing, and is left out.
        """
        book = self._market.book(key)
        wish = self._sensible(key, wish)
        if wish.is_plain:
            return _Plain(book)
        view = self._views.get((key, wish))
        if view is None:
            view = self._views[key, wish] = self._make(key, wish, book)
        view.users += 1
        return view

    def _sensible(self, key: Key, wish: BookWish) -> BookWish:
        tick = self._tick_size(key) if wish.grouping else ""
        try:
            is_grouped = not tick or Decimal(wish.grouping) > Decimal(tick)
        except InvalidOperation:
            is_grouped = True
        if is_grouped:
            return wish
        return BookWish(mode=wish.mode, depth=wish.depth, interval=wish.interval)

    def _tick_size(self, key: Key) -> str:
        try:
            payload = self._market.catalog.payload(key)
        except MarketPrismError:
            return ""
        return instrument_pb2.Instrument.FromString(payload).tick_size

    def _make(self, key: Key, wish: BookWish, book: LiveBook) -> SharedView:
        follower = self._followers.get(key)
        if follower is None:
            follower = self._followers[key] = BookFollower(book)
        bounds = self._bounds
        events = _TOP_EVENTS if wish.mode == _TOP else bounds.max_events
        log = EventLog(min(events, bounds.max_events), min(_MAX_BYTES, bounds.max_bytes))
        make = TopView if wish.mode == _TOP else ConflatedView
        return make(
            follower,
            wish,
            log,
            max_age=bounds.max_age_seconds,
            on_end=lambda: self._end(key, wish, follower),
        )

    def _end(self, key: Key, wish: BookWish, follower: BookFollower) -> None:
        self._views.pop((key, wish), None)
        if not follower.has_views:
            self._followers.pop(key, None)


class _Plain:
    """A `LiveBook` as a view: nobody has to end it."""

    __slots__ = ("_book",)

    def __init__(self, book: LiveBook) -> None:
        self._book = book

    @property
    def log(self) -> EventLog:
        """See `BookView`."""
        return self._book.log

    def open(self, resume: tuple[int, int] | None = None, *, conflated: bool = False) -> Opening:
        """See `BookView`."""
        return self._book.open(resume, conflated=conflated)

    def close(self) -> None:
        """Do nothing."""
