"""What a client's stream does, without any I/O: requests to make, events to hand on, when to stop.

The sync and the async client only move bytes; everything that could be wrong is here.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import grpc
from google.protobuf.duration_pb2 import Duration
from marketprism.client.book import BrokenBookError, OrderBook
from marketprism.market.v1 import common_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1.market_event_pb2 import MarketEvent, StreamState

__all__ = ["ClientError", "Session", "Wish", "kind_number", "metadata_of"]

_ID = "marketprism.client"
_LONGEST_WAIT = 10.0
_FIRST_WAIT = 0.1
_FINAL = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
)
_REFUSED = "refused:"


class ClientError(Exception):
    """The server refuses what was asked for; asking again would not help."""


def kind_number(kind: "str | int") -> int:
    """Give the EventKind of a name such as "trade" or "order_book"."""
    if isinstance(kind, int):
        return kind
    try:
        return common_pb2.EventKind.Value(f"EVENT_KIND_{kind.upper()}")
    except ValueError:
        names = [n.removeprefix("EVENT_KIND_").lower() for n in common_pb2.EventKind.keys()[1:]]
        raise ValueError(f"kind: expected one of {', '.join(names)}, got {kind!r}") from None


def metadata_of(token: str | None) -> tuple[tuple[str, str], ...]:
    """Give the metadata of a call."""
    return (("authorization", f"Bearer {token}"),) if token else ()


@dataclass(frozen=True)
class Wish:
    """What to subscribe to; see `Subscription` of the contract."""

    instruments: tuple[str, ...]
    """Instruments as "exchange/symbol"; "*" matches any run of characters in either part."""
    kinds: tuple[int, ...]
    """EventKinds."""
    depth: int = 0
    """Only the best levels a side, again whenever they changed; 0 for whole books."""
    conflation_seconds: float = 0.0
    """Books are sent at most once in this time; 0 as they come."""
    price_grouping: str = ""
    """Levels are grouped by this price step."""
    heartbeat_seconds: float = 5.0
    """Longest silence of a stream that is alive."""

    @property
    def patience(self) -> float:
        """Silence after which the connection is given up, seconds."""
        return 2.0 * self.heartbeat_seconds + 1.0


@dataclass
class Session:
    """One subscription through any number of connections.

    `books` are kept of every instrument of which book events come. `reconnects` counts connections
    that ended. Who reads the stream calls `requests` for what to send on a new connection, `take`
    for each message, `ended` when the connection is over.
    """

    wish: Wish
    books: dict[tuple[str, str], OrderBook] = field(default_factory=dict)
    reconnects: int = 0
    last_error: str = ""
    _wait: float = _FIRST_WAIT
    _doubts: set[tuple[str, str]] = field(default_factory=set)

    def requests(self) -> list[pb.SubscribeRequest]:
        """Give what to send first on a new connection."""
        wish = self.wish
        heartbeat = Duration()
        heartbeat.FromNanoseconds(int(wish.heartbeat_seconds * 1e9))
        subscription = pb.Subscription(
            subscription_id=_ID,
            instruments=wish.instruments,
            kinds=wish.kinds,  # type: ignore[arg-type]
            price_grouping=wish.price_grouping,
        )
        if wish.depth:
            subscription.order_book_mode = pb.ORDER_BOOK_MODE_TOP
            subscription.depth = wish.depth
        if wish.conflation_seconds:
            subscription.conflation_interval.FromNanoseconds(int(wish.conflation_seconds * 1e9))
        if not wish.depth:
            for (exchange, symbol), book in self.books.items():
                if book.can_resume:
                    resume = subscription.resumes.add()
                    resume.instrument.exchange, resume.instrument.symbol = exchange, symbol
                    resume.resume.epoch, resume.resume.sequence = book.epoch, book.sequence
        return [
            pb.SubscribeRequest(heartbeat_interval=heartbeat),
            pb.SubscribeRequest(add=subscription),
        ]

    def take(self, events: Iterable[MarketEvent]) -> list[MarketEvent]:
        """Take a message's events; gives those to hand on, books being applied.

        Raises ClientError when the server refuses the subscription, BrokenBookError when a book
        lost step: then the connection is to be made anew.
        """
        self._wait = _FIRST_WAIT
        told = []
        for event in events:
            kind = event.WhichOneof("event")
            if kind == "stream_status":
                self._status(event)
            elif kind in ("order_book_snapshot", "order_book_update", "order_book_status"):
                self._book(event, kind)
            told.append(event)
        return told

    def ended(self, error: grpc.RpcError | BrokenBookError | TimeoutError | None) -> float:
        """Note that the connection is over; gives the seconds to wait before the next.

        Raises ClientError when another one would be refused too.
        """
        self.reconnects += 1
        self._doubts.clear()
        for book in self.books.values():
            book.connected = book.doubtful = False
        if isinstance(error, grpc.RpcError):
            code, details = error.code(), error.details()
            self.last_error = f"{code.name}: {details}"
            if code in _FINAL:
                raise ClientError(self.last_error) from error
        else:
            self.last_error = str(error) if error is not None else "the server ended the stream"
        wait = self._wait * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        self._wait = min(2 * self._wait, _LONGEST_WAIT)
        return wait

    def book(self, exchange: str, symbol: str) -> OrderBook:
        """Give the book of an instrument; an empty one before anything came of it."""
        key = (exchange, symbol)
        if key not in self.books:
            self.books[key] = OrderBook(exchange, symbol)
        return self.books[key]

    # Inside

    def _book(self, event: MarketEvent, kind: str) -> None:
        told = getattr(event, kind)
        book = self.book(told.exchange, told.symbol)
        book.connected = True
        book.apply(event)

    def _status(self, event: MarketEvent) -> None:
        status = event.stream_status
        scope = (status.exchange, status.symbol)
        if status.state == StreamState.STREAM_STATE_INTERRUPTED:
            self._doubts.add(scope)
            self._mark()
        elif status.state == StreamState.STREAM_STATE_OPEN and status.reason != "SUBSCRIBED":
            self._doubts.discard(scope)
            self._mark()
        elif status.state == StreamState.STREAM_STATE_SUBSCRIPTION:
            if status.reason == "RESUMED" and scope in self.books:
                self.books[scope].connected = True
            elif status.message.startswith(_REFUSED):
                raise ClientError(f"{status.reason}: {status.message}")

    def _mark(self) -> None:
        for (exchange, symbol), book in self.books.items():
            scopes = {("", ""), (exchange, ""), (exchange, symbol)}
            book.doubtful = not scopes.isdisjoint(self._doubts)


def wish(
    instruments: Sequence[str] | str, kinds: Sequence[str | int], **options: float | str | int
) -> Wish:
    """Make a wish of what callers give."""
    names = (instruments,) if isinstance(instruments, str) else tuple(instruments)
    return Wish(names, tuple(kind_number(kind) for kind in kinds), **options)  # type: ignore[arg-type]
