"""ReplayMarketData: the past as a live subscriber got it."""

import asyncio
import contextlib
import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.market.v1 import market_event_pb2

from services.marketdata.wire import timestamp
from services.shared.errors import (
    Internal,
    MarketPrismError,
    ResourceExhausted,
    Unavailable,
)
from services.shared.log import get_logger
from services.shared.parts import Context
from services.storage.engine import Engine
from services.storage.known import KnownInstruments
from services.storage.replay_messages import Packer, position_field, status_item
from services.storage.replay_opening import BookBegin, lasting_gaps, latest_states, load_books
from services.storage.replay_order import LiveOrder, LiveRow, open_streams
from services.storage.replay_pace import Clock, Pacer, read_pacer
from services.storage.replay_selection import Selection, read_selection
from services.storage.replay_settings import ReplaySettings
from services.storage.validators import NANOS, TimeRange, duration_ns, time_range

__all__ = ["MarketReplay", "OpenStreams"]

_OPEN: Final = int(market_event_pb2.STREAM_STATE_OPEN)
_HEARTBEAT: Final = int(market_event_pb2.STREAM_STATE_HEARTBEAT)
_SUBSCRIPTION: Final = int(market_event_pb2.STREAM_STATE_SUBSCRIPTION)
_ENDED: Final = int(market_event_pb2.STREAM_STATE_ENDED)
_POSITION: Final = 3
_T = TypeVar("_T")


class OpenStreams:
    """Counts the streams of the past that are at work, and refuses too many."""

    def __init__(self, most: int, stopping: asyncio.Event | None = None) -> None:
        self._most = most
        self.stopping = stopping or asyncio.Event()
        """Set when the server stops: each stream ends with a last message."""
        self.count = 0
        """Streams at work."""

    def check_running(self) -> None:
        """Raise `Unavailable` (SERVER_STOPPING) when the server stops."""
        if self.stopping.is_set():
            raise Unavailable(
                "the server is stopping; go on from where this stream stood",
                reason="SERVER_STOPPING",
                retry_after=1.0,
            )

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place; raises `ResourceExhausted` (TOO_MANY_STREAMS)."""
        if self.count >= self._most:
            raise ResourceExhausted(
                f"{self.count} streams of the past are at work, which is the limit of this server; "
                "retry later",
                reason="TOO_MANY_STREAMS",
                metadata={"limit": self._most},
                retry_after=5.0,
            )
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    async def told(
        self, messages: AsyncGenerator[bytes, None], ended: Callable[[str, str], bytes]
    ) -> AsyncGenerator[bytes, None]:
        """Give the messages, and when they fail the last one, `ended(reason, message)`.

        REST clients see no trailers, so whatever ends a stream is told within it, and then raised.
        """
        try:
            async for message in messages:
                yield message
                self.check_running()
        except Exception as error:
            told = error if isinstance(error, MarketPrismError) else Internal("it failed here")
            if told is not error:
                get_logger().exception("a stream of the past failed")
            yield ended(told.reason, told.message)
            raise told from error
        finally:
            await messages.aclose()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that was read."""

    selection: Selection
    range: TimeRange
    pacer: Pacer
    heartbeat: float


class MarketReplay:
    """Answers ReplayMarketData. `now` gives nanoseconds since 1970, `clock` is what paces."""

    def __init__(
        self,
        engine: Engine,
        known: KnownInstruments,
        settings: ReplaySettings,
        streams: OpenStreams,
        *,
        now: Callable[[], int] = time.time_ns,
        clock: Clock | None = None,
    ) -> None:
        self._engine = engine
        self._known = known
        self._settings = settings
        self._streams = streams
        self._now = now
        self._clock = clock or Clock()

    async def ReplayMarketData(  # noqa: N802 - the name is the contract's
        self, request: pb.ReplayMarketDataRequest, _context: Context
    ) -> AsyncIterator[bytes]:
        """Stream a range of the past; what is wrong with the request ends it before it begins."""
        asked = self._read(request)
        with self._streams.one():
            await asked.selection.check_known(self._engine, self._known)
            run = _Run(self._engine, self._settings, self._clock, asked, self._streams.stopping)
            try:
                async with contextlib.aclosing(
                    self._streams.told(run.messages(), run.ended)
                ) as messages:
                    async for message in messages:
                        yield message
            finally:
                await run.close()

    def _read(self, request: pb.ReplayMarketDataRequest) -> _Asked:
        selection = read_selection(request, self._settings)
        pacer = read_pacer(request)
        heartbeat = self._settings.heartbeat_seconds
        if request.HasField("heartbeat_interval"):
            heartbeat = (
                duration_ns(
                    request.heartbeat_interval,
                    "heartbeat_interval",
                    least=NANOS // 10,
                    most=60 * NANOS,
                    expected="100 ms to 60 s",
                )
                / NANOS
            )
        now = self._now()
        asked = time_range(request, now)
        # What has not happened yet is no history.
        return _Asked(
            selection,
            TimeRange(asked.start, max(asked.start, min(asked.end, now))),
            pacer,
            heartbeat,
        )


class _Run:
    """One replay."""

    def __init__(
        self,
        engine: Engine,
        settings: ReplaySettings,
        clock: Clock,
        asked: _Asked,
        stopping: asyncio.Event,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self._asked = asked
        # Everything that was received before it has been sent.
        self._position = asked.range.start
        self._spoke = clock.now()
        self._merged: LiveOrder | None = None
        self._reading: asyncio.Task[Any] | None = None
        self._stopping = asyncio.get_running_loop().create_task(stopping.wait())

    async def messages(self) -> AsyncGenerator[bytes, None]:
        """Give the whole replay."""
        asked, engine = self._asked, self._engine
        selection, start, end = asked.selection, asked.range.start, asked.range.end
        opened = status_item(_OPEN, start, "SUBSCRIBED")
        added = status_item(_SUBSCRIPTION, start, "ADDED", _described(asked.range))
        yield self._message(opened + added)
        reading = self._read(self._begin())
        async for beat in self._beats_until(reading):
            yield beat
        begin, gaps, states = reading.result()
        for gap in gaps:
            yield self._message(gap)
        openings = (b"".join(book.open(start)) for book in begin.books.values())
        packer = Packer([(start, 1, each) for each in (*openings, *states) if each], self._most)
        for items, _ in packer.messages(0, len(packer)):
            yield self._message(items)
        opening = self._read(open_streams(engine, selection, asked.range, begin, self._settings))
        async for beat in self._beats_until(opening):
            yield beat
        self._merged = merged = opening.result()
        asked.pacer.begin(start, self._clock.now())
        while not merged.done:
            more = self._read(merged.more())
            async for beat in self._beats_until(more):
                yield beat
            rows = more.result()
            sending = self._send(rows) if asked.pacer.speed is None else self._send_paced(rows)
            async with contextlib.aclosing(sending):
                async for message in sending:
                    yield message
        async for beat in self._until(asked.pacer.due(end)):
            yield beat
        self._position = end
        yield self.ended("RANGE_COMPLETE", "everything of the range was sent")

    def ended(self, reason: str, message: str) -> bytes:
        """Give the last message."""
        return self._message(status_item(_ENDED, self._position, reason, message))

    async def close(self) -> None:
        """Let go of everything."""
        for task in (self._stopping, self._reading):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
        if self._merged is not None:
            await self._merged.close()

    async def _begin(self) -> tuple[BookBegin, list[bytes], list[bytes]]:
        engine, selection, asked = self._engine, self._asked.selection, self._asked.range
        begin = await load_books(engine, selection, asked)
        gaps = await lasting_gaps(engine, selection, asked.start)
        return begin, gaps, await latest_states(engine, selection, asked.start)

    async def _send(self, rows: Sequence[LiveRow]) -> AsyncGenerator[bytes, None]:
        packer, bounds = Packer(rows, self._most), self._bounds(rows)
        for items, place in packer.messages(0, len(rows)):
            self._position = max(self._position, bounds[place])
            yield self._message(items)

    async def _send_paced(self, rows: Sequence[LiveRow]) -> AsyncGenerator[bytes, None]:
        packer, bounds = Packer(rows, self._most), self._bounds(rows)
        dues = [self._asked.pacer.due(row[0]) for row in rows]
        begin = 0
        while begin < len(rows):
            async for beat in self._until(dues[begin]):
                yield beat
            end = bisect_right(dues, self._clock.now(), begin)
            for items, place in packer.messages(begin, end):
                self._position = max(self._position, bounds[place])
                yield self._message(items)
            begin = end

    def _bounds(self, rows: Sequence[LiveRow]) -> list[int]:
        assert self._merged is not None
        return self._merged.bounds(rows, self._asked.range.end)

    def _read(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        self._reading = reading = asyncio.get_running_loop().create_task(work)
        return reading

    async def _beats_until(self, reading: asyncio.Task[Any]) -> AsyncIterator[bytes]:
        """Wait for what is read; give heartbeats when that is long."""
        while not reading.done():
            left = self._spoke + self._asked.heartbeat - self._clock.now()
            await asyncio.wait(
                (reading, self._stopping),
                timeout=max(0.0, left),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not reading.done():
                # Also when the server stops: the stream ends behind it.
                yield self._beat()

    async def _until(self, due: float) -> AsyncIterator[bytes]:
        """Wait until something is due; give heartbeats when that is long."""
        while (now := self._clock.now()) < due:
            beat = self._spoke + self._asked.heartbeat
            await self._sleep(max(0.0, min(due, beat) - now))
            if self._stopping.done() or (beat < due and self._clock.now() >= beat):
                yield self._beat()

    async def _sleep(self, seconds: float) -> None:
        """Wait, or until the server stops."""
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait((sleeping, self._stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()

    def _beat(self) -> bytes:
        return self._message(status_item(_HEARTBEAT, self._position, "IDLE"))

    def _message(self, items: bytes) -> bytes:
        self._spoke = self._clock.now()
        return items + position_field(_POSITION, self._position)

    @property
    def _most(self) -> int:
        return self._settings.max_message_bytes


def _described(asked: TimeRange) -> str:
    begin, end = (timestamp(each).ToJsonString() for each in (asked.start, asked.end))
    return f"what was received from {begin} until before {end}"
