"""The client for ordinary code; see `AsyncClient` for asyncio."""

import time
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Timer
from types import TracebackType
from typing import Any

import grpc
from marketprism.client.book import BrokenBookError, OrderBook
from marketprism.client.past import Moment, Replay, replay_of
from marketprism.client.session import ClientError, Session, metadata_of, wish
from marketprism.history.v1.history_service_pb2_grpc import HistoryServiceStub
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1.events_pb2 import Ticker, Trade
from marketprism.market.v1.instrument_pb2 import Instrument
from marketprism.market.v1.market_data_service_pb2_grpc import MarketDataServiceStub
from marketprism.market.v1.market_event_pb2 import MarketEvent

__all__ = ["Client"]

_PAGE = 1000
_UNARY_SECONDS = 10.0


class Client:
    """Requests and subscriptions over one channel.

    `token` is sent as a bearer token. `credentials` makes the channel secure. Requests raise
    ClientError when the server refuses them, grpc.RpcError for what may pass.
    """

    def __init__(
        self,
        address: str = "localhost:8080",
        *,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        options = [("grpc.max_receive_message_length", 64 * 1024 * 1024)]
        self._channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )
        self._stub = MarketDataServiceStub(self._channel)
        self._history = HistoryServiceStub(self._channel)
        self._metadata = metadata_of(token)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every stream and the channel."""
        self._channel.close()

    # Requests

    def order_book(self, exchange: str, symbol: str, depth: int = 0) -> OrderBook:
        """Give a book as it is now, `depth` levels a side, all of them for 0."""
        request = pb.GetOrderBookRequest(exchange=exchange, symbol=symbol, depth=depth)
        answer = self._call(self._stub.GetOrderBook, request)
        book = OrderBook(exchange, symbol)
        book.apply(MarketEvent(order_book_snapshot=answer.order_book))
        book.apply(MarketEvent(order_book_status=answer.status))
        book.connected = True
        return book

    def instruments(self, exchange: str = "", **filters: Any) -> list[Instrument]:
        """Give all instruments; filters are those of ListInstrumentsRequest: kind, base, quote."""
        request = pb.ListInstrumentsRequest(exchange=exchange, page_size=_PAGE, **filters)
        found: list[Instrument] = self._pages(self._stub.ListInstruments, request, "instruments")
        return found

    def tickers(self, exchange: str = "") -> list[Ticker]:
        """Give the latest tickers."""
        request = pb.ListTickersRequest(exchange=exchange, page_size=_PAGE)
        found: list[Ticker] = self._pages(self._stub.ListTickers, request, "tickers")
        return found

    def recent_trades(self, exchange: str, symbol: str, limit: int = 1000) -> list[Trade]:
        """Give the latest trades, newest first, `limit` of them at the most."""
        request = pb.ListRecentTradesRequest(
            exchange=exchange, symbol=symbol, page_size=min(limit, _PAGE)
        )
        found: list[Trade] = self._pages(self._stub.ListRecentTrades, request, "trades", limit)
        return found

    # Streams

    def subscribe(
        self, instruments: Sequence[str] | str, kinds: Sequence[str | int], **options: Any
    ) -> Iterator[MarketEvent]:
        """Give events without end, connecting again and resuming books as needed.

        `instruments` are "exchange/symbol", "*" matches any run of characters; `kinds` are names
        such as "trade". Options are the fields of `Wish`. Raises ClientError when refused.
        """
        session = Session(wish(instruments, kinds, **options))
        for events in self._messages(session):
            yield from events

    def follow_book(self, exchange: str, symbol: str, **options: Any) -> Iterator[OrderBook]:
        """Give one and the same book after each message that concerns it, and when it is in doubt.

        Look at `is_trusted` before using it.
        """
        session = Session(wish(f"{exchange}/{symbol}", ["order_book"], **options))
        book = session.book(exchange, symbol)
        for _ in self._messages(session):
            yield book

    def replay(
        self,
        instruments: Sequence[str] | str,
        kinds: Sequence[str | int],
        start: Moment,
        end: Moment | None = None,
        **options: Any,
    ) -> Iterator[MarketEvent]:
        """Give the events of a past range as `subscribe` gave them then, and end.

        `start` and `end` are by receive time: aware datetimes, or nanoseconds since 1970; `end` is
        now unless told. Options are those of `replay_of`: speed, longest_pause, on_gap. Raises
        ClientError when refused, and when not everything came.
        """
        for events in self._past(replay_of(instruments, kinds, start, end, **options)):
            yield from events

    def replay_book(
        self, exchange: str, symbol: str, start: Moment, end: Moment | None = None, **options: Any
    ) -> Iterator[OrderBook]:
        """Give one and the same book as `follow_book` did then; options as for `replay`."""
        replay = replay_of(f"{exchange}/{symbol}", ["order_book"], start, end, **options)
        book = replay.session.book(exchange, symbol)
        for _ in self._past(replay):
            yield book

    # Inside

    def _past(self, replay: Replay) -> Iterator[list[MarketEvent]]:
        call = self._history.ReplayMarketData(replay.request, metadata=self._metadata)
        watch = _Watch(replay.session.wish.patience, call.cancel)
        try:
            for response in call:
                watch.heard()
                yield replay.take(response)
        except grpc.RpcError as error:
            if watch.fired:
                raise ClientError("no heartbeat came") from error
            raise ClientError(f"{error.code().name}: {error.details()}") from error
        finally:
            watch.stop()
            call.cancel()
        replay.finish()

    def _messages(self, session: Session) -> Iterator[list[MarketEvent]]:
        while True:
            error: grpc.RpcError | BrokenBookError | TimeoutError | None = None
            sending: SimpleQueue[pb.SubscribeRequest | None] = SimpleQueue()
            for request in session.requests():
                sending.put(request)
            call = self._stub.Subscribe(iter(sending.get, None), metadata=self._metadata)
            watch = _Watch(session.wish.patience, call.cancel)
            try:
                for response in call:
                    watch.heard()
                    yield session.take(response.events)
            except grpc.RpcError as failure:
                error = TimeoutError("no heartbeat came") if watch.fired else failure
            except BrokenBookError as failure:
                error = failure
            finally:
                watch.stop()
                sending.put(None)
                call.cancel()
            wait = session.ended(error)
            # Books are in doubt now, and who follows them should know.
            yield []
            time.sleep(wait)

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, timeout=_UNARY_SECONDS, metadata=self._metadata)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                raise ClientError(f"{error.code().name}: {error.details()}") from error
            raise

    def _pages(self, method: Callable[..., Any], request: Any, field: str, limit: int = 0) -> Any:
        found: list[Any] = []
        while True:
            answer = self._call(method, request)
            found += getattr(answer, field)
            request.page_token = answer.next_page_token
            if not request.page_token or (limit and len(found) >= limit):
                return found[:limit] if limit else found


class _Watch:
    """Cancels a call of which nothing is heard for too long."""

    def __init__(self, seconds: float, cancel: Callable[[], object]) -> None:
        self.fired = False
        self._seconds = seconds
        self._cancel = cancel
        self._heard = time.monotonic()
        self._stopped = False
        self._start(seconds)

    def heard(self) -> None:
        self._heard = time.monotonic()

    def stop(self) -> None:
        self._stopped = True
        self._timer.cancel()

    def _start(self, seconds: float) -> None:
        self._timer = Timer(seconds, self._look)
        self._timer.daemon = True
        self._timer.start()

    def _look(self) -> None:
        left = self._heard + self._seconds - time.monotonic()
        if self._stopped:
            return
        if left > 0:
            self._start(left)
        else:
            self.fired = True
            self._cancel()
