"""The RPCs of MarketDataService: requests in, encoded responses out.

Responses are bytes already, so the handlers are registered without a serializer.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.message_factory import GetMessageClass
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import order_book_pb2

from services.marketdata.catalog import Key
from services.marketdata.levels import MalformedLevelError
from services.marketdata.live_book import LiveBook
from services.marketdata.live_trades import trades_field
from services.marketdata.market import Market
from services.marketdata.settings import StreamSettings
from services.marketdata.streams import Streams
from services.marketdata.validators import (
    check_batch_size,
    check_depth,
    check_instrument_kind,
    check_states,
)
from services.marketdata.wire import field, varint
from services.shared.errors import Unavailable, Unimplemented
from services.shared.paging import page_after, page_size, read_token, write_token

__all__ = ["SERVICE", "MarketDataServicer"]

SERVICE: Final = pb.DESCRIPTOR.services_by_name["MarketDataService"]
"""Descriptor of the service."""

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, bytes]"
_REQUESTED: Final = int(order_book_pb2.SNAPSHOT_REASON_REQUESTED)


class MarketDataServicer:
    """Answers from the live state.

    A method has the name of its RPC; RPCs of the contract without one answer UNIMPLEMENTED with
    reason NOT_IMPLEMENTED.
    """

    def __init__(self, market: Market, settings: StreamSettings) -> None:
        self._market = market
        streams = Streams(market, settings)
        self.StreamOrderBook = streams.order_book
        self.StreamTrades = streams.trades

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register every RPC of the contract."""
        handlers = {}
        for method in SERVICE.methods:
            kind = (
                ("stream" if method.client_streaming else "unary")
                + "_"
                + ("stream" if method.server_streaming else "unary")
            )
            behavior = getattr(self, method.name, None) or _not_implemented(
                method.name, streaming=method.server_streaming
            )
            make: Callable[..., Any] = getattr(grpc, f"{kind}_rpc_method_handler")
            handlers[method.name] = make(
                behavior, request_deserializer=GetMessageClass(method.input_type).FromString
            )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),)
        )

    # ---- books

    async def GetOrderBook(self, request: pb.GetOrderBookRequest, _context: _Context) -> bytes:  # noqa: N802 - the name is the contract's
        """Answer one book."""
        check_depth(request.depth)
        return self._order_book((request.exchange, request.symbol), request.depth)

    async def BatchGetOrderBooks(  # noqa: N802
        self, request: pb.BatchGetOrderBooksRequest, _context: _Context
    ) -> bytes:
        """Answer several books, all or none."""
        check_batch_size(len(request.instruments))
        check_depth(request.depth)
        keys = [(key.exchange, key.symbol) for key in request.instruments]
        return b"".join(field(1, self._order_book(key, request.depth)) for key in keys)

    async def GetOrderBookStatus(  # noqa: N802
        self, request: pb.GetOrderBookStatusRequest, _context: _Context
    ) -> bytes:
        """Answer the state of one book."""
        book = self._market.book((request.exchange, request.symbol))
        return field(1, book.status().SerializeToString())

    async def ListOrderBookStatuses(  # noqa: N802
        self, request: pb.ListOrderBookStatusesRequest, _context: _Context
    ) -> bytes:
        """Answer the states of all books that something came of."""
        check_states(request.states)
        self._market.catalog.check_ready()
        size = page_size(request.page_size)
        states = frozenset(request.states)
        scope = ("statuses", request.exchange, sorted(states))
        place = read_token(request.page_token, scope)
        found = sorted(
            (key, book)
            for key, book in self._market.books.items()
            if book.heard_of
            and request.exchange in ("", book.exchange)
            and (not states or book.state in states)
        )
        page, next_place = page_after(found, place, size)
        return b"".join(field(1, book.status().SerializeToString()) for book in page) + _next(
            scope, next_place
        )

    # ---- trades and offers

    async def ListRecentTrades(  # noqa: N802
        self, request: pb.ListRecentTradesRequest, _context: _Context
    ) -> bytes:
        """Answer the latest trades, newest first."""
        size = page_size(request.page_size)
        scope = ("trades", request.exchange, request.symbol)
        place = read_token(request.page_token, scope)
        trades = self._market.trades_of((request.exchange, request.symbol))
        before = place if isinstance(place, int) and place >= 0 else None
        items, next_place = trades.recent(size, before)
        return trades_field(items) + _next(scope, next_place)

    async def GetBestBidOffer(  # noqa: N802
        self, request: pb.GetBestBidOfferRequest, _context: _Context
    ) -> bytes:
        """Answer the latest best bid and offer."""
        key = (request.exchange, request.symbol)
        offer = self._market.best_bid_offer(key)
        if offer is None:
            raise Unavailable(
                f"no best bid and offer of {'/'.join(key)} has come yet; try again in a moment",
                reason="BEST_BID_OFFER_NOT_READY",
                metadata=_metadata(key),
                retry_after=1.0,
            )
        return field(1, offer)

    # ---- instruments

    async def GetInstrument(  # noqa: N802
        self, request: pb.GetInstrumentRequest, _context: _Context
    ) -> bytes:
        """Answer one instrument."""
        return field(1, self._market.catalog.payload((request.exchange, request.symbol)))

    async def ListInstruments(  # noqa: N802
        self, request: pb.ListInstrumentsRequest, _context: _Context
    ) -> bytes:
        """Answer the instruments that a filter takes."""
        size = page_size(request.page_size)
        check_instrument_kind(request.kind)
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
        return b"".join(field(1, payload) for payload in page) + _next(scope, next_place)

    # ---- inside

    def _order_book(self, key: Key, depth: int) -> bytes:
        book = self._market.book(key)
        if not book.has_levels:
            raise _not_ready(book)
        try:
            snapshot = book.order_book(depth, _REQUESTED)
        except MalformedLevelError:
            raise _not_ready(book) from None
        status = book.status().SerializeToString()
        age = book.age_ms()
        return field(1, snapshot) + field(2, status) + (b"\x18" + varint(age) if age else b"")


def _not_ready(book: LiveBook) -> Unavailable:
    status = book.status()
    state = order_book_pb2.OrderBookState.Name(status.state)
    return Unavailable(
        f"the book of {book.exchange}/{book.symbol} is not in step yet ({status.detail}); try "
        "again in a moment",
        reason="ORDER_BOOK_NOT_READY",
        metadata={**_metadata((book.exchange, book.symbol)), "state": state},
        retry_after=1.0,
    )


def _metadata(key: Key) -> dict[str, str]:
    return {"exchange": key[0], "symbol": key[1]}


def _next(scope: object, place: object) -> bytes:
    """Encode next_page_token, field 2 of every list's response."""
    return b"" if place is None else field(2, write_token(scope, place).encode())


def _not_implemented(name: str, *, streaming: bool) -> Callable[..., Any]:
    error = Unimplemented(
        f"{name} is in the contract and not served yet",
        reason="NOT_IMPLEMENTED",
        metadata={"method": name},
    )

    async def refuse(_request: object, _context: _Context) -> bytes:
        raise error

    async def refuse_stream(_request: object, _context: _Context) -> AsyncIterator[bytes]:
        raise error
        yield b""

    return refuse_stream if streaming else refuse
