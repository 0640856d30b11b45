"""What one subscriber is sent, from OPEN to ENDED: generators of encoded messages.

A message is the join of `events` items. Who keeps up gets each event in a message of its own; who
is behind gets all that waits, up to a bound. While a client does not read, its generator is
suspended in the write and only its place in the log is held.
"""

import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import market_event_pb2

from services.marketdata.event_log import Cursor
from services.marketdata.market import Market
from services.marketdata.settings import StreamSettings
from services.marketdata.validators import heartbeat_seconds, resume_point
from services.marketdata.wire import stream_status_item
from services.shared.errors import ResourceExhausted, Unavailable

__all__ = ["Streams"]

_OPEN: Final = int(market_event_pb2.STREAM_STATE_OPEN)
_HEARTBEAT: Final = int(market_event_pb2.STREAM_STATE_HEARTBEAT)
_LAGGING: Final = int(market_event_pb2.STREAM_STATE_LAGGING)
_ENDED: Final = int(market_event_pb2.STREAM_STATE_ENDED)


_RECONNECT: Final = "the server is stopping; connect again and resume"


class Streams:
    """The streaming handlers.

    Each call is one generator without another around it, because of what an event may cost.
    """

    def __init__(
        self,
        market: Market,
        settings: StreamSettings,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._market = market
        self._settings = settings
        self._clock = clock

    async def order_book(
        self, request: pb.StreamOrderBookRequest, _context: object
    ) -> AsyncIterator[bytes]:
        """Stream one book.

        A subscriber who falls behind the log is told how many events it did not get, and begins
        again with a snapshot. Ends with ENDED and `Unavailable` at a stop.
        """
        resume = resume_point(request)
        heartbeat = self._heartbeat(request)
        book = self._market.book((request.exchange, request.symbol))
        log = book.log
        max_bytes = self._settings.max_message_bytes
        tally = self._market.tally
        told = _Teller(book.exchange, book.symbol, self._clock)
        opening = book.open(resume)
        cursor = Cursor(log, opening.position, heartbeat)
        try:
            yield told(_OPEN, "RESUMED" if opening.resumed else "SUBSCRIBED") + opening.joined()
            while True:
                position = cursor.position
                if position < log.first:
                    opening = book.open(conflated=True)
                    dropped = opening.position - position
                    cursor.position = opening.position
                    cursor.spoke()
                    tally.dropped += dropped
                    yield told.lagging(dropped, "the book as it is now follows") + opening.joined()
                elif position < log.end:
                    message, cursor.position = log.read(position, max_bytes)
                    tally.messages += 1
                    tally.deliveries += cursor.position - position
                    cursor.spoke()
                    yield message
                elif log.closed:
                    yield told(_ENDED, "SERVER_STOPPING", _RECONNECT)
                    raise Unavailable(_RECONNECT, reason="SERVER_STOPPING", retry_after=1.0)
                elif not await cursor.wait() and not log.closed:
                    cursor.spoke()
                    yield told(_HEARTBEAT, "IDLE")
        finally:
            cursor.close()

    async def trades(
        self, request: pb.StreamTradesRequest, _context: object
    ) -> AsyncIterator[bytes]:
        """Stream one instrument's trades.

        A subscriber who falls behind the log is told how many events it did not get. When that
        happens again and again the stream ends with ENDED and `ResourceExhausted`; at a stop with
        ENDED and `Unavailable`.
        """
        heartbeat = self._heartbeat(request)
        trades = self._market.trades_of((request.exchange, request.symbol))
        log = trades.log
        settings = self._settings
        tally = self._market.tally
        told = _Teller(trades.exchange, trades.symbol, self._clock)
        losses: deque[float] = deque(maxlen=settings.slow_reader_losses)
        cursor = Cursor(log, log.end, heartbeat)
        try:
            yield b"".join(trades.opening())
            while True:
                position = cursor.position
                if position < log.first:
                    dropped = log.first - position
                    cursor.position = log.first
                    cursor.spoke()
                    tally.dropped += dropped
                    losses.append(time.monotonic())
                    enough = len(losses) == settings.slow_reader_losses
                    if enough and losses[-1] - losses[0] <= settings.slow_reader_seconds:
                        why = (
                            f"the client reads too slowly: trades were left out {len(losses)} "
                            f"times within {settings.slow_reader_seconds:g} s; read faster, or "
                            "ask ListRecentTrades"
                        )
                        yield told(_ENDED, "SLOW_READER", why, dropped)
                        raise ResourceExhausted(why, reason="SLOW_READER")
                    yield told.lagging(dropped, "trades go on from here")
                elif position < log.end:
                    message, cursor.position = log.read(position, settings.max_message_bytes)
                    tally.messages += 1
                    tally.deliveries += cursor.position - position
                    cursor.spoke()
                    yield message
                elif log.closed:
                    yield told(_ENDED, "SERVER_STOPPING", _RECONNECT)
                    raise Unavailable(_RECONNECT, reason="SERVER_STOPPING", retry_after=1.0)
                elif not await cursor.wait() and not log.closed:
                    cursor.spoke()
                    yield told(_HEARTBEAT, "IDLE")
        finally:
            cursor.close()

    def _heartbeat(self, request: pb.StreamOrderBookRequest | pb.StreamTradesRequest) -> float:
        asked = request.heartbeat_interval if request.HasField("heartbeat_interval") else None
        return heartbeat_seconds(asked, self._settings.heartbeat_seconds)


class _Teller:
    """Makes the statuses of one stream."""

    def __init__(self, exchange: str, symbol: str, clock: Callable[[], int]) -> None:
        self._exchange = exchange
        self._symbol = symbol
        self._clock = clock

    def __call__(self, state: int, reason: str, message: str = "", dropped: int = 0) -> bytes:
        return stream_status_item(
            state,
            now=self._clock(),
            reason=reason,
            message=message,
            dropped_events=dropped,
            exchange=self._exchange,
            symbol=self._symbol,
        )

    def lagging(self, dropped: int, what_follows: str) -> bytes:
        message = f"the client reads too slowly: {dropped} events were left out; {what_follows}"
        return self(_LAGGING, "SLOW_READER", message, dropped)
