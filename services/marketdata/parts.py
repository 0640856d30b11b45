"""The parts that answer MarketDataService, each a few RPCs over the live state."""

from services.marketdata.book_views import MarketBookViews
from services.marketdata.consolidated_calls import ConsolidatedCalls
from services.marketdata.market import Market
from services.marketdata.sessions import Sessions
from services.marketdata.settings import MarketDataSettings
from services.marketdata.sources import MarketSources
from services.marketdata.streams import Streams
from services.marketdata.subscribe import SubscriptionCalls
from services.marketdata.unary_books import BookCalls
from services.marketdata.unary_catalog import CatalogCalls
from services.marketdata.unary_events import EventCalls

__all__ = ["make_parts"]


def make_parts(market: Market, settings: MarketDataSettings) -> list[object]:
    """Give one object for each group of RPCs."""
    limits = settings.subscriptions
    sources = MarketSources(market, MarketBookViews(market, settings.order_book_log))
    sessions = Sessions(sources, limits, settings.stream, market.tally)
    return [
        BookCalls(market),
        EventCalls(market),
        CatalogCalls(market),
        _Streams(Streams(market, settings.stream)),
        SubscriptionCalls(sessions, limits, settings.stream),
        ConsolidatedCalls(market, settings.stream, settings.consolidated_max_age_seconds),
    ]


class _Streams:
    """The streams of one instrument, by the names of the contract."""

    def __init__(self, streams: Streams) -> None:
        self.StreamOrderBook = streams.order_book
        self.StreamTrades = streams.trades
