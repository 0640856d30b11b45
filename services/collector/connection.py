"""One WebSocket connection to a venue: opened, subscribed, watched, and opened again."""

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from typing import Protocol

import structlog
from marketprism.collector.v1 import collector_service_pb2 as pb
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from services.collector.settings import ExchangeSettings
from services.collector.venues.base import VenueAdapter

__all__ = ["ConnectionHandler", "VenueConnectionTask", "backoff"]

_MAX_FRAME = 16 * 1024 * 1024
_HEALTHY_SECONDS = 30.0
_NETWORK = integrity.INTEGRITY_CAUSE_NETWORK


class ConnectionHandler(Protocol):
    """Who is told what happens on a connection. Times are nanoseconds since 1970."""

    def on_open(self, connection: "VenueConnectionTask", now: int) -> None:
        """Note that the connection is open; nothing is subscribed yet."""

    def on_frame(self, connection: "VenueConnectionTask", frame: bytes | str, now: int) -> None:
        """Take a frame just read. Must not raise for what the venue sends."""

    def on_subscribed(
        self, connection: "VenueConnectionTask", native_symbols: Sequence[str], now: int
    ) -> None:
        """Note that the venue acknowledged these instruments."""

    def on_silent(self, connection: "VenueConnectionTask", seconds: float, now: int) -> None:
        """Note that no frame has come for so long."""

    def on_closed(self, connection: "VenueConnectionTask", detail: str, now: int) -> None:
        """Note that an open connection has ended, whoever ended it."""


class _RestartError(Exception):
    """We end the connection ourselves, to open it again."""

    def __init__(self, reason: str, cause: "integrity.IntegrityCause.ValueType") -> None:
        super().__init__(reason)
        self.cause = cause


class VenueConnectionTask:
    """Keeps one connection for a fixed set of instruments until its task is cancelled.

    Public attributes tell its state: `state`, `state_time`, `frames`, `malformed`, `reconnects`,
    `last_frame_time` (nanoseconds), `last_error` and `last_cause`, why it ended last.
    """

    def __init__(
        self,
        connection_id: str,
        adapter: VenueAdapter,
        settings: ExchangeSettings,
        native_symbols: Sequence[str],
        handler: ConnectionHandler,
    ) -> None:
        self.connection_id = connection_id
        self.native_symbols = tuple(native_symbols)
        self.url = settings.ws_url
        self.state: pb.ConnectionState.ValueType = pb.CONNECTION_STATE_CONNECTING
        self.state_time = time.time_ns()
        self.subscriptions = 0
        self.frames = 0
        self.malformed = 0
        self.reconnects = 0
        self.last_frame_time = 0
        self.last_error = ""
        self.last_cause: integrity.IntegrityCause.ValueType = integrity.INTEGRITY_CAUSE_UNSPECIFIED
        self._adapter = adapter
        self._settings = settings
        self._handler = handler
        self._log = structlog.get_logger(connection=connection_id)
        self._pending: dict[int, Sequence[str]] = {}
        self._next_request = 1
        self._restart: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Keep the connection for ever."""
        attempt = 0
        while True:
            opened = time.monotonic()
            try:
                await self._session()
            except (OSError, TimeoutError, WebSocketException, _RestartError) as error:
                self.last_error = _describe(error)
                self.last_cause = _cause(error)
            was_open = self.state == pb.CONNECTION_STATE_CONNECTED
            self._set_state(pb.CONNECTION_STATE_BACKOFF)
            self.subscriptions = 0
            if was_open:
                self._handler.on_closed(self, self.last_error, time.time_ns())
            attempt = 0 if time.monotonic() - opened > _HEALTHY_SECONDS else attempt + 1
            delay = backoff(self._settings, attempt)
            self._log.warning(
                "connection lost" if was_open else "cannot connect",
                url=self.url,
                error=self.last_error,
                retry_seconds=round(delay, 2),
            )
            await asyncio.sleep(delay)
            self.reconnects += 1

    def acknowledge(self, request_id: int) -> None:
        """Take the venue's acknowledgement of a subscription request."""
        symbols = self._pending.pop(request_id, None)
        if symbols is not None:
            self.subscriptions += len(symbols)
            self._handler.on_subscribed(self, symbols, time.time_ns())

    def refuse(self, request_id: int | None, detail: str) -> None:
        """Take the venue's refusal: the connection is opened anew, with backoff."""
        if request_id is None or request_id in self._pending:
            self.restart(
                f"the venue refused a subscription: {detail}",
                integrity.INTEGRITY_CAUSE_VENUE_REFUSED,
            )

    def restart(self, reason: str, cause: "integrity.IntegrityCause.ValueType" = _NETWORK) -> None:
        """End the connection and open it again."""
        if self._restart is not None and not self._restart.done():
            self._restart.set_exception(_RestartError(reason, cause))

    # Inside

    async def _session(self) -> None:
        self._set_state(pb.CONNECTION_STATE_CONNECTING)
        settings = self._settings
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(settings.open_seconds):
                socket = await stack.enter_async_context(
                    connect(
                        self.url,
                        compression=None,
                        max_size=_MAX_FRAME,
                        max_queue=256,
                        open_timeout=None,
                        ping_interval=20,
                        ping_timeout=20,
                        close_timeout=1,
                        proxy=None,
                    )
                )
            self._restart = asyncio.get_running_loop().create_future()
            self._pending.clear()
            self._set_state(pb.CONNECTION_STATE_CONNECTED)
            self.last_frame_time = time.time_ns()
            self._handler.on_open(self, self.last_frame_time)
            parts = [
                asyncio.ensure_future(self._receive(socket)),
                asyncio.ensure_future(self._subscribe(socket)),
                asyncio.ensure_future(self._watch()),
            ]
            waiting = {*parts, self._restart}
            try:
                while True:
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for part in done:
                        part.result()
            finally:
                for part in parts:
                    part.cancel()
                await asyncio.wait(parts)
                for part in parts:
                    if not part.cancelled():
                        part.exception()
                if self._restart.done():
                    self._restart.exception()
                else:
                    self._restart.cancel()

    async def _receive(self, socket: ClientConnection) -> None:
        receive = socket.recv
        on_frame = self._handler.on_frame
        clock = time.time_ns
        while True:
            # Bytes, so that nothing is decoded before the JSON parser looks at it.
            frame = await receive(decode=False)
            now = clock()
            self.frames += 1
            self.last_frame_time = now
            on_frame(self, frame, now)

    async def _subscribe(self, socket: ClientConnection) -> None:
        requests = self._adapter.subscribe_frames(self.native_symbols, self._next_request)
        self._next_request += len(requests)
        for index, (request_id, symbols, frame) in enumerate(requests):
            if index:
                await asyncio.sleep(self._settings.subscribe_interval_seconds)
            self._pending[request_id] = symbols
            await socket.send(frame)
        await asyncio.sleep(self._settings.acknowledge_seconds)
        if self._pending:
            raise _RestartError(
                f"{len(self._pending)} subscription requests were not acknowledged in "
                f"{self._settings.acknowledge_seconds:g} s",
                _NETWORK,
            )

    async def _watch(self) -> None:
        # By a clock that nobody sets: a step of the system's time is not silence.
        limit = self._settings.silence_seconds
        frames, since = self.frames, time.monotonic()
        while True:
            await asyncio.sleep(limit / 4)
            now = time.monotonic()
            if self.frames != frames:
                frames, since = self.frames, now
                continue
            silent = now - since
            if silent >= 2 * limit:
                raise _RestartError(f"no frame for {silent:.1f} s", _NETWORK)
            if silent >= limit:
                self._handler.on_silent(self, silent, time.time_ns())

    def _set_state(self, state: "pb.ConnectionState.ValueType") -> None:
        self.state = state
        self.state_time = time.time_ns()


def _describe(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__.lstrip('_')}: {text}" if text else type(error).__name__


def _cause(error: BaseException) -> "integrity.IntegrityCause.ValueType":
    if isinstance(error, _RestartError):
        return error.cause
    if isinstance(error, ConnectionClosed):
        if error.rcvd is not None:
            return integrity.INTEGRITY_CAUSE_VENUE_CLOSED
        if error.sent is not None and "ping" in error.sent.reason:
            return integrity.INTEGRITY_CAUSE_HEARTBEAT_MISSED
    return _NETWORK


def backoff(settings: ExchangeSettings, attempt: int) -> float:
    """Give the wait before the next attempt, seconds: exponential, with full jitter above half."""
    longest = settings.backoff_limit_seconds
    delay: float = min(settings.backoff_seconds * 2.0 ** min(attempt, 16), longest)
    return delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
