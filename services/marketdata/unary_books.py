"""Books, what state they are in, and how well all of them are."""
# ruff: noqa: N802 - methods are named as in the contract

from collections import Counter
from typing import Final

from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import order_book_pb2

from services.marketdata.book_state import SYNCED
from services.marketdata.catalog import Key
from services.marketdata.levels import MalformedLevelError
from services.marketdata.live_book import LiveBook
from services.marketdata.market import Market
from services.marketdata.responses import metadata_of, next_page
from services.marketdata.servicer import Context
from services.marketdata.validators import check_batch_size, check_depth, check_states
from services.marketdata.wire import timestamp
from services.shared.errors import Unavailable
from services.shared.paging import page_after, page_size, read_token
from services.shared.wire import field, varint

__all__ = ["BookCalls"]

_SHOWN = 3
_REQUESTED: Final = int(order_book_pb2.SNAPSHOT_REASON_REQUESTED)


class BookCalls:
    """Answers what is asked about books."""

    def __init__(self, market: Market) -> None:
        self._market = market

    async def GetOrderBook(self, request: pb.GetOrderBookRequest, _context: Context) -> bytes:
        """Answer one book."""
        check_depth(request.depth)
        return self._order_book((request.exchange, request.symbol), request.depth)

    async def BatchGetOrderBooks(
        self, request: pb.BatchGetOrderBooksRequest, _context: Context
    ) -> bytes:
        """Answer several books, all or none."""
        check_batch_size(len(request.instruments))
        check_depth(request.depth)
        keys = [(key.exchange, key.symbol) for key in request.instruments]
        return b"".join(field(1, self._order_book(key, request.depth)) for key in keys)

    async def GetOrderBookStatus(
        self, request: pb.GetOrderBookStatusRequest, _context: Context
    ) -> bytes:
        """Answer the state of one book."""
        book = self._market.book((request.exchange, request.symbol))
        return field(1, book.status().SerializeToString())

    async def ListOrderBookStatuses(
        self, request: pb.ListOrderBookStatusesRequest, _context: Context
    ) -> bytes:
        """Answer the states of all books that something came of."""
        check_states(request.states)
        if request.exchange:
            self._market.catalog.check_exchange(request.exchange)
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
        return b"".join(field(1, book.status().SerializeToString()) for book in page) + next_page(
            scope, next_place
        )

    async def GetOrderBookStats(
        self, _request: pb.GetOrderBookStatsRequest, _context: Context
    ) -> bytes:
        """Answer what was counted since the start."""
        market = self._market
        tally = market.tally
        states = Counter(book.state for book in market.books.values() if book.heard_of)
        return pb.GetOrderBookStatsResponse(
            books=[
                pb.OrderBookStateCount(state=value.number, count=states[value.number])  # type: ignore[arg-type]  # the enum's value is an int
                for value in order_book_pb2.OrderBookState.DESCRIPTOR.values
                if value.number
            ],
            updates=tally.updates,
            snapshots=tally.snapshots,
            gaps=tally.gaps,
            malformed=tally.malformed,
            streams=tally.open_streams(),
            deliveries=tally.deliveries,
            dropped=tally.dropped,
            start_time=timestamp(market.start_time),
        ).SerializeToString()

    async def GetOrderBookHealth(
        self, _request: pb.GetOrderBookHealthRequest, _context: Context
    ) -> bytes:
        """Answer how well the books of each venue, and of all, are."""
        self._market.catalog.check_ready()
        venues: dict[str, list[LiveBook]] = {}
        for book in self._market.books.values():
            if book.heard_of:
                venues.setdefault(book.exchange, []).append(book)
        exchanges = [_exchange_health(name, venues[name]) for name in sorted(venues)]
        return pb.GetOrderBookHealthResponse(
            health=_health(sum(e.synced for e in exchanges), sum(e.books for e in exchanges)),
            exchanges=exchanges,
            time=timestamp(self._market.now()),
        ).SerializeToString()

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


def _exchange_health(exchange: str, books: list[LiveBook]) -> pb.ExchangeHealth:
    behind = sorted((b for b in books if b.state != SYNCED), key=lambda book: book.symbol)
    detail = ""
    if behind:
        shown = [f"{book.symbol} ({_why(book)})" for book in behind[:_SHOWN]]
        more = f" and {len(behind) - _SHOWN} more" if len(behind) > _SHOWN else ""
        detail = f"{len(behind)} of {len(books)} books are not in step: {', '.join(shown)}{more}"
    synced = len(books) - len(behind)
    return pb.ExchangeHealth(
        exchange=exchange,
        health=_health(synced, len(books)),
        synced=synced,
        books=len(books),
        detail=detail,
    )


def _health(synced: int, books: int) -> pb.OrderBookHealth.ValueType:
    if not synced:
        return pb.ORDER_BOOK_HEALTH_UNHEALTHY
    return pb.ORDER_BOOK_HEALTH_HEALTHY if synced == books else pb.ORDER_BOOK_HEALTH_DEGRADED


def _why(book: LiveBook) -> str:
    status = book.status()
    state = order_book_pb2.OrderBookState.Name(status.state).removeprefix("ORDER_BOOK_STATE_")
    return f"{state}: {status.detail}" if status.detail else state


def _not_ready(book: LiveBook) -> Unavailable:
    status = book.status()
    state = order_book_pb2.OrderBookState.Name(status.state)
    return Unavailable(
        f"the book of {book.exchange}/{book.symbol} is not in step yet ({status.detail}); try "
        "again in a moment",
        reason="ORDER_BOOK_NOT_READY",
        metadata={**metadata_of((book.exchange, book.symbol)), "state": state},
        retry_after=1.0,
    )
