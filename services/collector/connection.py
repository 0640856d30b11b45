"""One WebSocket connection to a venue: opened, subscribed, watched, and opened again."""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import structlog
from marketprism.collector.v1 import collector_service_pb2 as pb
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from services.collector.pacing import RateGate
from services.collector.settings import ExchangeSettings
from services.collector.topics import Answer, Topic, TopicBook, TopicState
from services.collector.venues.base import (
    Acknowledgement,
    Ping,
    Subscription,
    VenueAdapter,
    VenueFault,
)

__all__ = ["ConnectionHandler", "VenueConnectionTask", "backoff"]

_MAX_FRAME = 16 * 1024 * 1024
_HEALTHY_SECONDS = 30.0
_RATE_SECONDS = 5.0
_HOUR = 3600.0
_MOST_PATIENCE = 64.0
_NETWORK = integrity.INTEGRITY_CAUSE_NETWORK


class ConnectionHandler(Protocol):
    """Who is told what happens on a connection. Times are nanoseconds since 1970."""

    def on_open(self, connection: "VenueConnectionTask", now: int) -> None:
        """Note that the connection is open; nothing is subscribed yet."""

    def on_sent(self, connection: "VenueConnectionTask", frame: str, now: int) -> None:
        """Note that a request was sent."""

    def on_frame(self, connection: "VenueConnectionTask", frame: bytes | str, now: int) -> None:
        """Take a frame just read. Must not raise for what the venue sends."""

    def on_subscribed(
        self, connection: "VenueConnectionTask", topics: Sequence[Topic], now: int
    ) -> None:
        """Note that the venue acknowledged these subscriptions."""

    def on_unsubscribed(
        self, connection: "VenueConnectionTask", topics: Sequence[Topic], now: int
    ) -> None:
        """Note that these subscriptions have ended; those still wanted are asked for anew."""

    def on_refused(
        self, connection: "VenueConnectionTask", topics: Sequence[Topic], now: int
    ) -> None:
        """Note that the venue refused these subscriptions; `Topic.refusal` says why."""

    def on_silent(self, connection: "VenueConnectionTask", seconds: float, now: int) -> None:
        """Note that no frame has come for so long."""

    def on_exhausted(self, connection: "VenueConnectionTask", seconds: float) -> None:
        """Note that the connection may ask for nothing for so long: its requests are used up."""

    def on_closed(self, connection: "VenueConnectionTask", detail: str, now: int) -> None:
        """Note that an open connection has ended, whoever ended it."""


class _RestartError(Exception):
    """We end the connection ourselves, to open it again."""

    def __init__(self, reason: str, cause: "integrity.IntegrityCause.ValueType") -> None:
        super().__init__(reason)
        self.cause = cause


class VenueConnectionTask:
    """Keeps one connection and its subscriptions until its task is cancelled.

    Public attributes tell its state: `state`, `state_time`, `frames`, `controls` (frames that are
    no market data; the handler counts them), `malformed`, `reconnects`, `last_frame_time`,
    `open_time` (nanoseconds, 0 while not open), `frames_per_second`, `last_error` and `last_cause`,
    why it ended last. `connects` is the gate that all connections to the venue pass.
    """

    def __init__(
        self,
        connection_id: str,
        adapter: VenueAdapter,
        settings: ExchangeSettings,
        handler: ConnectionHandler,
        *,
        route: str = "",
        connects: RateGate | None = None,
    ) -> None:
        self.connection_id = connection_id
        self.route = route
        self.url = adapter.route_url(settings.ws_url or adapter.default_ws_url, route)
        self.topics = TopicBook(adapter)
        self.state: pb.ConnectionState.ValueType = pb.CONNECTION_STATE_CONNECTING
        self.state_time = time.time_ns()
        self.frames = 0
        self.controls = 0
        self.malformed = 0
        self.reconnects = 0
        self.last_frame_time = 0
        self.open_time = 0
        self.last_error = ""
        self.last_cause: integrity.IntegrityCause.ValueType = integrity.INTEGRITY_CAUSE_UNSPECIFIED
        self.frames_per_second = 0.0
        self._adapter = adapter
        self._settings = settings
        self._handler = handler
        self._rules = adapter.connection_rules
        self._connects = connects
        self._log = structlog.get_logger(connection=connection_id)
        self._work = asyncio.Event()
        self._replies: list[str] = []
        self._restart: asyncio.Future[None] | None = None
        self._opened_at = 0.0
        self._rated = (time.monotonic(), 0)
        self._patience = 1.0

    # What is subscribed

    @property
    def is_open(self) -> bool:
        """Whether the connection is up."""
        return self.state == pb.CONNECTION_STATE_CONNECTED

    @property
    def age(self) -> float:
        """Seconds since it was opened; 0 while it is not open."""
        return time.monotonic() - self._opened_at if self.is_open else 0.0

    @property
    def subscriptions(self) -> int:
        """Subscriptions that the venue acknowledged."""
        if not self.is_open:
            return 0
        return sum(1 for t in self.topics.topics.values() if t.state is TopicState.ACTIVE)

    @property
    def refused(self) -> int:
        """Subscriptions that the venue refused."""
        return sum(1 for t in self.topics.topics.values() if t.state is TopicState.REFUSED)

    @property
    def settled(self) -> bool:
        """Whether the venue answered every subscription that is wanted."""
        return self.is_open and all(
            topic.state in (TopicState.ACTIVE, TopicState.REFUSED)
            for topic in self.topics.topics.values()
        )

    def add(self, subscriptions: Iterable[Subscription]) -> None:
        """Subscribe to these too."""
        self.topics.add(subscriptions, time.monotonic())
        self._work.set()

    def remove(self, topics: Iterable[str]) -> None:
        """End these subscriptions."""
        self.topics.remove(topics, time.monotonic())
        self._work.set()

    def renew(self, topic: str) -> bool:
        """End a subscription and begin it again; False when it does not stand."""
        self._work.set()
        return self.is_open and self.topics.renew(topic, time.monotonic())

    def is_active(self, topic: str) -> bool:
        """Tell whether a subscription stands."""
        found = self.topics.topics.get(topic)
        return found is not None and found.state is TopicState.ACTIVE

    # Answers of the venue, given back by the handler once decoded

    def acknowledge(self, answer: Acknowledgement) -> None:
        """Take the venue's acknowledgement."""
        self._tell(self.topics.acknowledge(answer, time.monotonic()))

    def refuse(self, fault: VenueFault) -> None:
        """Take the venue's refusal; one that is about nothing we asked opens the connection anew.

        What a venue complains of without naming a request may be anything that is outstanding.
        """
        answer = self.topics.refuse(fault, time.monotonic())
        if answer.known:
            self._tell(answer)
        elif self.topics.overdue(time.monotonic(), 0):
            self.restart(
                f"the venue refused a request: {fault.code} {fault.message}",
                integrity.INTEGRITY_CAUSE_VENUE_REFUSED,
            )

    def answer(self, ping: Ping) -> None:
        """Send the answer that the venue wants."""
        self._replies.append(ping.reply)
        self._work.set()

    def restart(self, reason: str, cause: "integrity.IntegrityCause.ValueType" = _NETWORK) -> None:
        """End the connection and open it again."""
        if self._restart is not None and not self._restart.done():
            self._restart.set_exception(_RestartError(reason, cause))

    # Life

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
            except Exception as error:
                # Whatever a venue answers, nobody else would ever connect again.
                self._log.exception("the connection ended in an unexpected way")
                self.last_error, self.last_cause = _describe(error), _NETWORK
            was_open = self.is_open
            self._set_state(pb.CONNECTION_STATE_BACKOFF)
            self.open_time = 0
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

    # Inside

    async def _session(self) -> None:
        self._set_state(pb.CONNECTION_STATE_CONNECTING)
        settings = self._settings
        if self._connects is not None:
            await self._connects.pass_()
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
            self._replies.clear()
            self._opened_at = time.monotonic()
            self._set_state(pb.CONNECTION_STATE_CONNECTED)
            self.open_time = self.last_frame_time = time.time_ns()
            self._handler.on_open(self, self.last_frame_time)
            parts = [
                asyncio.ensure_future(self._receive(socket)),
                asyncio.ensure_future(self._request(socket)),
                asyncio.ensure_future(self._watch()),
            ]
            if self._rules.keepalive_frame:
                parts.append(asyncio.ensure_future(self._keep_alive(socket)))
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

    async def _request(self, socket: ClientConnection) -> None:
        """Send what is due, as fast as the venue's rules allow, and see that it is answered."""
        rules, settings = self._rules, self._settings
        pace = settings.subscribe_interval_seconds or rules.request_seconds
        spacing = RateGate(1, pace) if pace > 0 else None
        hourly = RateGate(rules.requests_per_hour, _HOUR) if rules.requests_per_hour else None
        waiting = list(self.topics.opened(time.monotonic()))
        while True:
            self._work.clear()
            now = time.monotonic()
            while self._replies:
                await self._send(socket, self._replies.pop(0))
            if hourly is not None and not waiting and self.topics.has_due(now):
                wait = hourly.wait_seconds()
                if wait > settings.acknowledge_seconds:
                    # Another connection may ask at once; this one goes on with what it has.
                    self._handler.on_exhausted(self, wait)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait):
                            await self._work.wait()
                    continue
            request = waiting.pop(0) if waiting else self.topics.due(now)
            if request is not None:
                for gate in (spacing, hourly):
                    if gate is not None:
                        await self._pass(gate, socket)
                await self._send(socket, request.frame)
                self.topics.sent(request.request_id, time.monotonic())
                continue
            unanswered = self.topics.give_up(now, settings.acknowledge_seconds)
            if unanswered.refused or unanswered.left:
                self._tell(unanswered)
                continue
            if late := self.topics.overdue(now, settings.acknowledge_seconds):
                raise _RestartError(
                    f"{late} requests were not answered in {settings.acknowledge_seconds:g} s",
                    _NETWORK,
                )
            retry = self.topics.next_due(now)
            limit = settings.acknowledge_seconds / 4 if self.topics.overdue(now, 0) else 60.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit if retry is None else min(limit, retry + 0.01)):
                    await self._work.wait()

    async def _pass(self, gate: RateGate, socket: ClientConnection) -> None:
        """Wait for the gate; what the venue wants answered does not wait."""
        passing = asyncio.ensure_future(gate.pass_())
        try:
            while not passing.done():
                working = asyncio.ensure_future(self._work.wait())
                try:
                    await asyncio.wait({passing, working}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    working.cancel()
                self._work.clear()
                while self._replies:
                    await self._send(socket, self._replies.pop(0))
            await passing
        finally:
            passing.cancel()

    async def _keep_alive(self, socket: ClientConnection) -> None:
        rules = self._rules
        while True:
            await asyncio.sleep(rules.keepalive_seconds)
            await socket.send(rules.keepalive_frame)

    async def _send(self, socket: ClientConnection, frame: str) -> None:
        await socket.send(frame)
        self._handler.on_sent(self, frame, time.time_ns())

    async def _watch(self) -> None:
        """See that the connection speaks: a quiet market and a dead feed look alike at first.

        Only what a market says counts, not answers and heartbeats. Where opening anew did not help
        the market is quiet, and the next time more patience is had.
        """
        # By a clock that nobody sets: a step of the system's time is not silence.
        limit = self._settings.silence_seconds
        said, since = self.frames - self.controls, time.monotonic()
        while True:
            await asyncio.sleep(limit / 4)
            now = time.monotonic()
            self._rate(now)
            if self.frames - self.controls != said or not self.subscriptions:
                said, since = self.frames - self.controls, now
                if self.frames_per_second > 1:
                    self._patience = 1.0
                continue
            silent = now - since
            if silent >= 2 * limit * self._patience:
                self._patience = min(2 * self._patience, _MOST_PATIENCE)
                raise _RestartError(f"no market data for {silent:.1f} s", _NETWORK)
            if silent >= limit * self._patience:
                self._handler.on_silent(self, silent, time.time_ns())

    def _rate(self, now: float) -> None:
        since, frames = self._rated
        if now - since >= _RATE_SECONDS:
            self.frames_per_second = (self.frames - frames) / (now - since)
            self._rated = (now, self.frames)

    def _tell(self, answer: Answer) -> None:
        now = time.time_ns()
        if answer.active:
            self._handler.on_subscribed(self, answer.active, now)
        if answer.left:
            self._handler.on_unsubscribed(self, answer.left, now)
        if answer.refused:
            self._log.warning(
                "the venue refused subscriptions",
                topics=[topic.subscription.topic for topic in answer.refused[:5]],
                count=len(answer.refused),
                reason=answer.refused[0].refusal,
            )
            self._handler.on_refused(self, answer.refused, now)
        self._work.set()

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
