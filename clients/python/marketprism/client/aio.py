"""The client for asyncio; see `Client` for ordinary code."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
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

__all__ = ["AsyncClient"]

_PAGE = 1000
_UNARY_SECONDS = 10.0


class AsyncClient:
    """Requests and subscriptions over one channel; use as `async with AsyncClient(...)`.

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
            grpc.aio.insecure_channel(address, options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options)
        )
        self._stub: Any = MarketDataServiceStub(self._channel)
        self._history: Any = HistoryServiceStub(self._channel)
        self._metadata = metadata_of(token)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End every stream and the channel."""
        await self._channel.close()

    # Requests

    async def order_book(self, exchange: str, symbol: str, depth: int = 0) -> OrderBook:
        """Give a book as it is now, `depth` levels a side, all of them for 0."""
        request = pb.GetOrderBookRequest(exchange=exchange, symbol=symbol, depth=depth)
        answer = await self._call(self._stub.GetOrderBook, request)
        book = OrderBook(exchange, symbol)
        book.apply(MarketEvent(order_book_snapshot=answer.order_book))
        book.apply(MarketEvent(order_book_status=answer.status))
        book.connected = True
        return book

    async def instruments(self, exchange: str = "", **filters: Any) -> list[Instrument]:
        """Give all instruments; filters are those of ListInstrumentsRequest: kind, base, quote."""
        request = pb.ListInstrumentsRequest(exchange=exchange, page_size=_PAGE, **filters)
        found: list[Instrument] = await self._pages(
            self._stub.ListInstruments, request, "instruments"
        )
        return found

    async def tickers(self, exchange: str = "") -> list[Ticker]:
        """Give the latest tickers."""
        request = pb.ListTickersRequest(exchange=exchange, page_size=_PAGE)
        found: list[Ticker] = await self._pages(self._stub.ListTickers, request, "tickers")
        return found

    async def recent_trades(self, exchange: str, symbol: str, limit: int = 1000) -> list[Trade]:
        """Give the latest trades, newest first, `limit` of them at the most."""
        request = pb.ListRecentTradesRequest(
            exchange=exchange, symbol=symbol, page_size=min(limit, _PAGE)
        )
        found: list[Trade] = await self._pages(
            self._stub.ListRecentTrades, request, "trades", limit
        )
        return found

    # Streams

    async def subscribe(
        self, instruments: Sequence[str] | str, kinds: Sequence[str | int], **options: Any
    ) -> AsyncIterator[MarketEvent]:
        """Give events without end, connecting again and resuming books as needed.

        `instruments` are "exchange/symbol", "*" matches any run of characters; `kinds` are names
        such as "trade". Options are the fields of `Wish`. Raises ClientError when refused.
        """
        session = Session(wish(instruments, kinds, **options))
        async for events in self._messages(session):
            for event in events:
                yield event

    async def follow_book(
        self, exchange: str, symbol: str, **options: Any
    ) -> AsyncIterator[OrderBook]:
        """Give one and the same book after each message that concerns it, and when it is in doubt.

        Look at `is_trusted` before using it.
        """
        session = Session(wish(f"{exchange}/{symbol}", ["order_book"], **options))
        book = session.book(exchange, symbol)
        async for _ in self._messages(session):
            yield book

    async def replay(
        self,
        instruments: Sequence[str] | str,
        kinds: Sequence[str | int],
        start: Moment,
        end: Moment | None = None,
        **options: Any,
    ) -> AsyncIterator[MarketEvent]:
        """Give the events of a past range as `subscribe` gave them then, and end.

        `start` and `end` are by receive time: aware datetimes, or nanoseconds since 1970; `end` is
        now unless told. Options are those of `replay_of`: speed, longest_pause, on_gap. Raises
        ClientError when refused, and when not everything came.
        """
        async for events in self._past(replay_of(instruments, kinds, start, end, **options)):
            for event in events:
                yield event

    async def replay_book(
        self, exchange: str, symbol: str, start: Moment, end: Moment | None = None, **options: Any
    ) -> AsyncIterator[OrderBook]:
        """Give one and the same book as `follow_book` did then; options as for `replay`."""
        replay = replay_of(f"{exchange}/{symbol}", ["order_book"], start, end, **options)
        book = replay.session.book(exchange, symbol)
        async for _ in self._past(replay):
            yield book

    # Inside

    async def _past(self, replay: Replay) -> AsyncIterator[list[MarketEvent]]:
        call = self._history.ReplayMarketData(replay.request, metadata=self._metadata)
        try:
            while True:
                async with asyncio.timeout(replay.session.wish.patience):
                    response = await call.read()
                if response is grpc.aio.EOF:
                    break
                yield replay.take(response)
            code = await call.code()
            if code != grpc.StatusCode.OK:
                raise ClientError(f"{code.name}: {await call.details()}")
        except grpc.RpcError as error:
            raise ClientError(f"{error.code().name}: {error.details()}") from error
        except TimeoutError:
            raise ClientError("no heartbeat came") from None
        finally:
            call.cancel()
        replay.finish()

    async def _messages(self, session: Session) -> AsyncIterator[list[MarketEvent]]:
        while True:
            error: grpc.RpcError | BrokenBookError | TimeoutError | None = None
            call = self._stub.Subscribe(metadata=self._metadata)
            try:
                for request in session.requests():
                    await call.write(request)
                while True:
                    async with asyncio.timeout(session.wish.patience):
                        response = await call.read()
                    if response is grpc.aio.EOF:
                        break
                    yield session.take(response.events)
                if await call.code() != grpc.StatusCode.OK:
                    error = grpc.aio.AioRpcError(
                        await call.code(),
                        await call.initial_metadata(),
                        await call.trailing_metadata(),
                        details=await call.details(),
                    )
            except grpc.RpcError as failure:
                error = failure
            except BrokenBookError as failure:
                error = failure
            except TimeoutError:
                error = TimeoutError("no heartbeat came")
            finally:
                call.cancel()
            wait = session.ended(error)
            # Books are in doubt now, and who follows them should know.
            yield []
            await asyncio.sleep(wait)

    async def _call(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return await method(request, timeout=_UNARY_SECONDS, metadata=self._metadata)
        except grpc.RpcError as error:
            code = error.code()
            if code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                raise ClientError(f"{code.name}: {error.details()}") from error
            raise

    async def _pages(
        self, method: Callable[..., Any], request: Any, field: str, limit: int = 0
    ) -> Any:
        found: list[Any] = []
        while True:
            answer = await self._call(method, request)
            found += getattr(answer, field)
            request.page_token = answer.next_page_token
            if not request.page_token or (limit and len(found) >= limit):
                return found[:limit] if limit else found
