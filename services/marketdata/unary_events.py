"""The latest of what venues tell beside books."""
# ruff: noqa: N802 - methods are named as in the contract

from typing import Final

from marketprism.market.v1 import common_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb

from services.marketdata.live_trades import trades_field
from services.marketdata.market import Market
from services.marketdata.responses import metadata_of, next_page
from services.marketdata.servicer import Context
from services.marketdata.wire import field
from services.shared.errors import Unavailable
from services.shared.paging import page_size, read_token

__all__ = ["EventCalls"]

_BEST_BID_OFFER: Final = int(common_pb2.EVENT_KIND_BEST_BID_OFFER)


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
        key = (request.exchange, request.symbol)
        offers = self._market.latest_payloads(_BEST_BID_OFFER, key)
        if not offers:
            raise Unavailable(
                f"no best bid and offer of {'/'.join(key)} has come yet; try again in a moment",
                reason="BEST_BID_OFFER_NOT_READY",
                metadata=metadata_of(key),
                retry_after=1.0,
            )
        return field(1, offers[0])
