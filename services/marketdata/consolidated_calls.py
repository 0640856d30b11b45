"""GetConsolidatedOrderBook and StreamConsolidatedOrderBook."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import market_event_pb2

from services.marketdata.consolidated import ConsolidatedBooks, Pair, Put
from services.marketdata.event_log import Cursor, EventLog
from services.marketdata.market import Market
from services.marketdata.servicer import Context
from services.marketdata.settings import StreamSettings
from services.marketdata.validators import MAX_DEPTH
from services.marketdata.wire import timestamp
from services.shared.errors import FieldViolation, InvalidArgument, Unavailable
from services.shared.log import get_logger
from services.shared.wire import field

__all__ = ["ConsolidatedCalls"]

_USUAL_DEPTH = 50
_USUAL_INTERVAL = 0.1
_MIN_INTERVAL = 0.01
_MAX_INTERVAL = 60.0
_MAX_EXCHANGES = 100
_LOOK_SECONDS = 0.1  # between two looks at a pair, where its interval is longer
_OPEN: Final = int(market_event_pb2.STREAM_STATE_OPEN)
_HEARTBEAT: Final = int(market_event_pb2.STREAM_STATE_HEARTBEAT)
_ENDED: Final = int(market_event_pb2.STREAM_STATE_ENDED)
_RECONNECT: Final = "the server is stopping; connect again"


class ConsolidatedCalls:
    """Answers for pairs; a book that several stream is put together once for all of them."""

    def __init__(self, market: Market, settings: StreamSettings, max_age: float) -> None:
        self._market = market
        self._settings = settings
        self._books = ConsolidatedBooks(market, max_age, time.monotonic)
        self._shared: dict[tuple[Pair, float], _Shared] = {}
        market.on_close(self._end)
        self._is_ended = False

    async def GetConsolidatedOrderBook(  # noqa: N802 - the name is the contract's
        self, request: pb.GetConsolidatedOrderBookRequest, _context: Context
    ) -> bytes:
        """Answer the book of a pair as it is now."""
        pair = _pair(request)
        self._books.check(pair)
        return field(1, self._books.put(pair).encoded)

    async def StreamConsolidatedOrderBook(  # noqa: N802
        self, request: pb.StreamConsolidatedOrderBookRequest, _context: Context
    ) -> AsyncIterator[bytes]:
        """Stream the book of a pair, the whole of it whenever it changed.

        Who reads slowly gets the latest. Ends with ENDED and `Unavailable` at a stop.
        """
        pair = _pair(request)
        interval = _interval(request.interval if request.HasField("interval") else None)
        self._books.check(pair)
        shared = self._shared.get((pair, interval))
        if shared is None:
            shared = self._shared[pair, interval] = _Shared(self._books, pair, interval)
            if self._is_ended:
                shared.log.close()
        shared.users += 1
        log = shared.log
        tally = self._market.tally
        cursor = Cursor(log, log.end - 1, self._settings.heartbeat_seconds)
        try:
            yield self._status(_OPEN, "SUBSCRIBED")
            while True:
                if cursor.position < log.end:
                    cursor.position = log.end
                    tally.messages += 1
                    tally.deliveries += 1
                    cursor.spoke()
                    yield log.read(log.end - 1, 0)[0]
                elif log.closed:
                    yield self._status(_ENDED, "SERVER_STOPPING", _RECONNECT)
                    raise Unavailable(_RECONNECT, reason="SERVER_STOPPING", retry_after=1.0)
                elif not await cursor.wait() and not log.closed:
                    cursor.spoke()
                    yield self._status(_HEARTBEAT, "IDLE")
        finally:
            cursor.close()
            shared.users -= 1
            if not shared.users:
                shared.close()
                self._shared.pop((pair, interval), None)

    def _status(self, state: int, reason: str, message: str = "") -> bytes:
        return pb.StreamConsolidatedOrderBookResponse(
            stream_status=market_event_pb2.StreamStatus(
                state=state,  # type: ignore[arg-type]  # the enum's value is an int
                reason=reason,
                message=message,
                time=timestamp(self._market.now()),
            )
        ).SerializeToString()

    def _end(self) -> None:
        self._is_ended = True
        for shared in self._shared.values():
            shared.log.close()


class _Shared:
    """One pair's book, again whenever it changed; it lives while somebody streams it.

    The log holds the latest response and nothing else.
    """

    def __init__(self, books: ConsolidatedBooks, pair: Pair, interval: float) -> None:
        self.log = EventLog(1, 1)
        self.users = 0
        self._books = books
        self._pair = pair
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._state = books.state(pair)
        self._content: tuple[object, ...] = ()
        self._due = self._loop.time() + interval
        self._send(books.put(pair))
        self._timer = self._loop.call_later(min(interval, _LOOK_SECONDS), self._look)

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        period = min(self._interval, _LOOK_SECONDS)
        self._timer = self._loop.call_at(max(self._timer.when() + period, now), self._look)
        if now < self._due or self.log.closed:
            return
        try:
            state = self._books.state(self._pair)
            if state != self._state:
                self._state = state
                put = self._books.put(self._pair)
                if put.content != self._content:
                    self._due = now + self._interval
                    self._send(put)
        except Exception:
            # The next look may do better, and other pairs are not concerned.
            get_logger().exception(
                "a consolidated book failed", base=self._pair.base, quote=self._pair.quote
            )

    def _send(self, put: Put) -> None:
        self._content = put.content
        self.log.append(field(1, put.encoded))


def _pair(
    request: pb.GetConsolidatedOrderBookRequest | pb.StreamConsolidatedOrderBookRequest,
) -> Pair:
    """Read which book is asked for; raises `InvalidArgument` that names the field."""
    if not 0 <= request.depth <= MAX_DEPTH:
        raise _invalid(
            "depth",
            f"expected 1 to {MAX_DEPTH} levels a side, or 0 for {_USUAL_DEPTH}",
            request.depth,
        )
    return Pair(
        request.base,
        request.quote,
        request.depth or _USUAL_DEPTH,
        _exchanges(request.exchanges),
    )


def _exchanges(exchanges: Sequence[str]) -> frozenset[str]:
    if len(exchanges) > _MAX_EXCHANGES:
        raise _invalid("exchanges", f"expected at most {_MAX_EXCHANGES} venues", len(exchanges))
    for index, exchange in enumerate(exchanges):
        if not exchange:
            raise _invalid(f"exchanges[{index}]", "expected a venue id", "none")
    return frozenset(exchanges)


def _interval(asked: Duration | None) -> float:
    if asked is None:
        return _USUAL_INTERVAL
    seconds = asked.seconds + asked.nanos / 1e9
    if not _MIN_INTERVAL <= seconds <= _MAX_INTERVAL:
        raise _invalid("interval", "expected 10 ms to 60 s, or unset for 100 ms", f"{seconds:g} s")
    return seconds


def _invalid(path: str, expected: str, got: object) -> InvalidArgument:
    description = f"{expected}, got {got}"
    return InvalidArgument(
        f"{path}: {description}",
        metadata={"field": path},
        violations=[FieldViolation(path, description, "OUT_OF_RANGE")],
    )
