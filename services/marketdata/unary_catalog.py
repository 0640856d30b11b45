"""Which venues, symbols and instruments there are."""
# ruff: noqa: N802 - methods are named as in the contract

from marketprism.market.v1 import market_data_service_pb2 as pb

from services.marketdata.book_state import SYNCED
from services.marketdata.market import Market
from services.marketdata.responses import next_page
from services.marketdata.servicer import Context
from services.marketdata.validators import check_instrument_kind
from services.shared.paging import page_after, page_size, read_token
from services.shared.wire import field

__all__ = ["CatalogCalls"]


class CatalogCalls:
    """Answers what is asked about instruments."""

    def __init__(self, market: Market) -> None:
        self._market = market

    async def ListExchanges(self, request: pb.ListExchangesRequest, _context: Context) -> bytes:
        """Answer the venues, with what is known of each."""
        market = self._market
        market.catalog.check_ready()
        size = page_size(request.page_size)
        scope = ("exchanges",)
        place = read_token(request.page_token, scope)
        names = (((name,), name) for name in market.catalog.exchanges)
        page, next_place = page_after(names, place, size)
        books = [book for book in market.books.values() if book.heard_of]
        exchanges = (
            pb.Exchange(
                exchange=name,
                instruments=market.catalog.count(name),
                books=sum(book.exchange == name for book in books),
                synced=sum(book.exchange == name and book.state == SYNCED for book in books),
                kinds=market.kinds_of(name),  # type: ignore[arg-type]  # the enum's value is an int
            )
            for name in page
        )
        return b"".join(field(1, each.SerializeToString()) for each in exchanges) + next_page(
            scope, next_place
        )

    async def ListSymbols(self, request: pb.ListSymbolsRequest, _context: Context) -> bytes:
        """Answer the symbols of one venue that have a book."""
        market = self._market
        market.catalog.check_exchange(request.exchange)
        size = page_size(request.page_size)
        scope = ("symbols", request.exchange)
        place = read_token(request.page_token, scope)
        found = sorted(
            ((book.symbol,), book.symbol)
            for book in market.books.values()
            if book.exchange == request.exchange and book.heard_of
        )
        page, next_place = page_after(found, place, size)
        return b"".join(field(1, each.encode()) for each in page) + next_page(scope, next_place)

    async def GetInstrument(self, request: pb.GetInstrumentRequest, _context: Context) -> bytes:
        """Answer one instrument."""
        return field(1, self._market.catalog.payload((request.exchange, request.symbol)))

    async def ListInstruments(self, request: pb.ListInstrumentsRequest, _context: Context) -> bytes:
        """Answer the instruments that a filter takes."""
        size = page_size(request.page_size)
        check_instrument_kind(request.kind)
        if request.exchange:
            self._market.catalog.check_exchange(request.exchange)
        self._market.catalog.check_ready()
        scope = ("instruments", request.exchange, request.kind, request.base, request.quote)
        place = read_token(request.page_token, scope)
        found = (
            (key, payload)
            for key, instrument, payload in self._market.catalog.described()
            if request.exchange in ("", instrument.exchange)
            and request.kind in (0, instrument.kind)
            and request.base in ("", instrument.base)
            and request.quote in ("", instrument.quote)
        )
        page, next_place = page_after(found, place, size)
        return b"".join(field(1, payload) for payload in page) + next_page(scope, next_place)
