"""What one stream sends, put together from the logs' own bytes when the client can take it.

A stream holds places, not events. Sources take turns, each with a share of a message, so that a
busy one does not keep the others waiting. While a client does not read nothing is done for it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from marketprism.market.v1 import market_event_pb2

from services.marketdata.catalog import Key
from services.marketdata.settings import StreamSettings
from services.marketdata.sources import Opened, Source
from services.marketdata.tally import Tally
from services.marketdata.wire import stream_status_item
from services.shared.errors import MarketPrismError, ResourceExhausted, Unavailable

__all__ = ["Outgoing"]

_OPEN: Final = int(market_event_pb2.STREAM_STATE_OPEN)
_HEARTBEAT: Final = int(market_event_pb2.STREAM_STATE_HEARTBEAT)
_INTERRUPTED: Final = int(market_event_pb2.STREAM_STATE_INTERRUPTED)
_ENDED: Final = int(market_event_pb2.STREAM_STATE_ENDED)
_SUBSCRIPTION: Final = int(market_event_pb2.STREAM_STATE_SUBSCRIPTION)
_RECONNECT: Final = "the server is stopping; connect again and resume"
_SHARES: Final = 4
_AT_ONCE: Final = 512  # sources, between two looks at the event loop
_OPENING_SECONDS: Final = 0.002  # putting books together, before others get their turn
_ROOM: Final = 256  # statuses that wait, before requests do


class Outgoing:
    """The messages of one stream. `take` and `wait` are called in turns by the one who writes it.

    `heartbeat` is the longest silence, seconds. `clock` gives nanoseconds since 1970.
    """

    def __init__(
        self,
        settings: StreamSettings,
        tally: Tally,
        *,
        heartbeat: float,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._settings = settings
        self._tally = tally
        self._clock = clock
        self._max_bytes = settings.max_message_bytes
        self._ready: deque[Source] = deque()
        # Statuses, and first of all what found no room in the message before.
        self._outbox: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._heartbeat = heartbeat
        self._beat = False
        self._spoke = self._now()
        self._timer = self._loop.call_later(heartbeat, self._on_timer)
        self.error: MarketPrismError | None = None
        """Why the stream is ended, once ENDED was given by `take`."""
        self._outbox.append(self._status(_OPEN, "SUBSCRIBED"))

    # ---- messages

    def take(self) -> bytes:
        """Give the next message, empty when there is none at present.

        After the one that says ENDED there is none, and `error` says why.
        """
        ready = self._ready
        if len(ready) == 1 and not self._outbox:
            # What nearly every message is: more of one source, for a client that keeps up.
            source = ready[0]
            log, position = source.log, source.position
            if log.first <= position < log.end:
                message, behind = log.read(position, self._max_bytes)
                source.position = behind
                if behind == log.end and not log.closed:
                    ready.popleft()
                    log.watch(source)
                tally = self._tally
                tally.messages += 1
                tally.deliveries += behind - position
                self._spoke = self._now()
                return message
        return self._gather()

    async def wait(self) -> None:
        """Wait until `take` may have something."""
        if self._ready or self._outbox or self._stopping:
            # Others have their turn first.
            await asyncio.sleep(0)
            return
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    async def room(self) -> None:
        """Wait until the client has read most of the statuses that wait for it."""
        while len(self._outbox) > _ROOM:
            self._room = self._loop.create_future()
            await self._room

    @property
    def is_idle(self) -> bool:
        """Whether everything was sent, and the next event is waited for."""
        return not self._ready and not self._outbox

    # ---- what happens

    def on_ready(self, source: Source) -> None:
        """Take a source that has something to send; its log calls this."""
        self._ready.append(source)
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def tell(
        self, reason: str, message: str, subscription_id: str = "", key: Key = ("", "")
    ) -> None:
        """Tell of one item of a subscription."""
        item = self._status(
            _SUBSCRIPTION, reason, message, key=key, subscription_id=subscription_id
        )
        self._push(item)

    def refuse(self, error: MarketPrismError, subscription_id: str = "") -> None:
        """Tell that a request was refused, and why."""
        self.tell(error.reason, f"refused: {error.message}", subscription_id)

    def interrupt(self, reason: str, message: str, exchange: str = "") -> None:
        """Tell that events, of a venue or of all, may be missing from now on."""
        self._push(self._status(_INTERRUPTED, reason, message, key=(exchange, "")))

    def resume(self, message: str, exchange: str = "") -> None:
        """Tell that what was told by `interrupt` is over."""
        self._push(self._status(_OPEN, "RESUMED", message, key=(exchange, "")))

    def set_heartbeat(self, seconds: float) -> None:
        """Send heartbeats at another interval."""
        self._heartbeat = seconds
        self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._on_timer)

    def nudge(self) -> None:
        """Let `wait` return, because something happened beside the stream."""
        self._wake()

    def stop(self) -> None:
        """End the stream once everything was sent, because the server stops."""
        self._stopping = True
        self._wake()

    def close(self) -> None:
        """Let go of everything."""
        self._timer.cancel()
        self._ready.clear()
        self._outbox.clear()

    # ---- inside

    def _gather(self) -> bytes:
        if self.error is not None:
            return b""
        parts: list[bytes] = []
        size = 0
        outbox = self._outbox
        while outbox and size < self._max_bytes:
            parts.append(outbox.popleft())
            size += len(parts[-1])
        if self._room is not None and len(outbox) <= _ROOM:
            room, self._room = self._room, None
            if not room.done():
                room.set_result(None)
        if not outbox:
            self._gather_events(parts, size)
        if not parts and not self._ready:
            if self._stopping:
                error = Unavailable(_RECONNECT, reason="SERVER_STOPPING", retry_after=1.0)
                parts.append(self._end(error))
            elif self._beat:
                parts.append(self._status(_HEARTBEAT, "IDLE"))
        if parts:
            self._beat = False
            self._tally.messages += 1
            self._spoke = self._now()
        return b"".join(parts)

    def _gather_events(self, parts: list[bytes], size: int) -> None:
        """Add events of those that have some, each in its turn, until the message is full."""
        ready = self._ready
        turns = min(len(ready), _AT_ONCE)
        share = self._max_bytes if turns == 1 else self._max_bytes // _SHARES
        until = time.perf_counter() + _OPENING_SECONDS
        for _ in range(turns):
            if size >= self._max_bytes:
                return
            source = ready.popleft()
            if source.is_closed:
                continue
            log, position = source.log, source.position
            if position < log.first:
                opened = source.open(self._clock())
                self._rest(source)
                self._tally.dropped += opened.dropped
                if opened.is_loss and self._is_lost_too_often(source):
                    parts.append(self._end_of_slow_reader(source, opened))
                    return
                if parts and size + len(opened.items) > self._max_bytes:
                    self._outbox.append(opened.items)
                    return
                if opened.items:
                    parts.append(opened.items)
                    size += len(opened.items)
                if time.perf_counter() > until:
                    return
                continue
            if position < log.end:
                room = self._max_bytes - size
                if parts and log.size_at(position) > room:
                    ready.appendleft(source)
                    return
                items, source.position = log.read(position, min(share, room))
                self._tally.deliveries += source.position - position
                parts.append(items)
                size += len(items)
            self._rest(source)

    def _rest(self, source: Source) -> None:
        """Put a source that had its turn where it belongs."""
        log = source.log
        if source.position < log.end:
            self._ready.append(source)
        elif log.closed:
            self._stopping = True
        else:
            log.watch(source)

    def _is_lost_too_often(self, source: Source) -> bool:
        most = self._settings.slow_reader_losses
        losses = source.note_loss(most)
        return len(losses) == most and losses[-1] - losses[0] <= self._settings.slow_reader_seconds

    def _end_of_slow_reader(self, source: Source, opened: Opened) -> bytes:
        settings = self._settings
        exchange, symbol = source.key
        why = (
            f"the client reads too slowly: events of {exchange}/{symbol} were left out "
            f"{settings.slow_reader_losses} times within {settings.slow_reader_seconds:g} s; read "
            "faster, or subscribe to less"
        )
        metadata = {"exchange": exchange, "symbol": symbol}
        error = ResourceExhausted(why, reason="SLOW_READER", metadata=metadata)
        return self._end(error, opened.dropped, source.key)

    def _end(self, error: MarketPrismError, dropped: int = 0, key: Key = ("", "")) -> bytes:
        self.error = error
        # So that `take` looks no further, whatever still comes.
        self._outbox.append(b"")
        return self._status(_ENDED, error.reason, error.message, dropped=dropped, key=key)

    def _status(
        self,
        state: int,
        reason: str,
        message: str = "",
        *,
        dropped: int = 0,
        key: Key = ("", ""),
        subscription_id: str = "",
    ) -> bytes:
        return stream_status_item(
            state,
            now=self._clock(),
            reason=reason,
            message=message,
            dropped_events=dropped,
            exchange=key[0],
            symbol=key[1],
            subscription_id=subscription_id,
        )

    def _push(self, item: bytes) -> None:
        self._outbox.append(item)
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def _on_timer(self) -> None:
        # One timer a silence, and not one an event.
        left = self._spoke + self._heartbeat - self._now()
        if left <= 0.001:
            left = self._heartbeat
            if self._waiter is not None:
                self._beat = True
                self._wake()
        self._timer = self._loop.call_later(left, self._on_timer)
