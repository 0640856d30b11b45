"""The latest of what venues tell beside books."""
# ruff: noqa: N802 - methods are named as in the contract

import contextlib
from typing import Final

from marketprism.market.v1 import common_pb2, order_book_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb

from services.marketdata.catalog import Key
from services.marketdata.levels import MalformedLevelError
from services.marketdata.live_kinds import INDEX_KINDS, KINDS
from services.marketdata.live_trades import trades_field
from services.marketdata.market import Market
from services.marketdata.responses import metadata_of, next_page
from services.marketdata.servicer import Context
from services.marketdata.validators import check_event_kinds
from services.marketdata.wire import ORDER_BOOK_SNAPSHOT, event_item
from services.shared.errors import Unavailable
from services.shared.paging import page_after, page_size, read_token
from services.shared.wire import field

__all__ = ["EventCalls"]

_BEST_BID_OFFER: Final = int(common_pb2.EVENT_KIND_BEST_BID_OFFER)
_TICKER: Final = int(common_pb2.EVENT_KIND_TICKER)
_ORDER_BOOK: Final = int(common_pb2.EVENT_KIND_ORDER_BOOK)
_REQUESTED: Final = int(order_book_pb2.SNAPSHOT_REASON_REQUESTED)


class EventCalls:
    """Answers what is asked about trades, offers, tickers and every other kind."""

    def __init__(self, market: Market) -> None:
        self._market = market

    async def ListRecentTrades(
        self, request: pb.ListRecentTradesRequest, _context: Context
    ) -> bytes:
        """Answer the latest trades, newest first."""
        size = page_size(request.page_size)
        scope = ("trades", request.exchange, request.symbol)
        place = read_token(request.page_token, scope)
        trades = self._market.trades_of((request.exchange, request.symbol))
        before = place if isinstance(place, int) and place >= 0 else None
        items, next_place = trades.recent(size, before)
        return trades_field(items) + next_page(scope, next_place)

    async def GetBestBidOffer(self, request: pb.GetBestBidOfferRequest, _context: Context) -> bytes:
        """Answer the latest best bid and offer."""
        return field(1, self._only(_BEST_BID_OFFER, (request.exchange, request.symbol)))

    async def GetTicker(self, request: pb.GetTickerRequest, _context: Context) -> bytes:
        """Answer the latest ticker of one instrument."""
        return field(1, self._only(_TICKER, (request.exchange, request.symbol)))

    async def ListTickers(self, request: pb.ListTickersRequest, _context: Context) -> bytes:
        """Answer the latest tickers of a venue, or of all."""
        market = self._market
        if request.exchange:
            market.catalog.check_exchange(request.exchange)
        market.catalog.check_ready()
        size = page_size(request.page_size)
        scope = ("tickers", request.exchange)
        place = read_token(request.page_token, scope)
        keys = sorted(k for k in market.keys(_TICKER) if request.exchange in ("", k[0]))
        # What came of the subject may have been malformed, and nothing else yet.
        found = ((key, each) for key in keys for each in market.latest_payloads(_TICKER, key))
        page, next_place = page_after(found, place, size)
        return b"".join(field(1, each) for each in page) + next_page(scope, next_place)

    async def GetLatestEvents(self, request: pb.GetLatestEventsRequest, _context: Context) -> bytes:
        """Answer the latest event of each kind, in the order of the kinds.

        A book is given when it is asked for, as a snapshot.
        """
        check_event_kinds(request.kinds)
        market = self._market
        key = (request.exchange, request.symbol)
        market.catalog.check_named(key)
        kinds = sorted(set(request.kinds) or KINDS)
        if not market.catalog.is_instrument(key):
            kinds = [kind for kind in kinds if kind in INDEX_KINDS]
        items = (market.latest(k, key) if k != _ORDER_BOOK else self._book(key) for k in kinds)
        return b"".join(item for each in items for item in each)

    def _book(self, key: Key) -> list[bytes]:
        book = self._market.book(key)
        if not book.has_levels:
            return []
        with contextlib.suppress(MalformedLevelError):
            return [event_item(ORDER_BOOK_SNAPSHOT, book.order_book(0, _REQUESTED))]
        return []

    def _only(self, kind: int, key: Key) -> bytes:
        """Give the latest of a kind that an instrument has one of."""
        self._market.catalog.check(key)
        found = self._market.latest_payloads(kind, key)
        if found:
            return found[0]
        name = KINDS[kind].name
        raise Unavailable(
            f"no {name} of {'/'.join(key)} has come yet; try again in a moment, or see "
            "ListExchanges for the kinds that are collected",
            reason=f"{name.upper()}_NOT_READY",
            metadata=metadata_of(key),
            retry_after=1.0,
        )
