"""A connection survives whatever answers at the venue's address, and says what it was."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from marketprism.collector.v1 import collector_service_pb2 as pb
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2
from websockets.asyncio.server import ServerConnection, serve

from services.collector.connection import VenueConnectionTask, backoff
from services.collector.settings import ExchangeSettings
from services.collector.topics import Topic
from services.collector.venues.base import Acknowledgement, Ping, Subscription, VenueFault
from services.collector.venues.binance_spot import BinanceSpot

_BOOK = (common_pb2.EVENT_KIND_ORDER_BOOK,)


@dataclass
class Told:
    """A handler that acknowledges as a venue's owner does, and keeps what it is told."""

    frames: list[bytes | str] = field(default_factory=list)
    opened: int = 0
    sent: list[str] = field(default_factory=list)
    subscribed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    silent: int = 0
    closed: list[str] = field(default_factory=list)

    def on_open(self, connection: VenueConnectionTask, now: int) -> None:
        self.opened += 1

    def on_frame(self, connection: VenueConnectionTask, frame: bytes | str, now: int) -> None:
        self.frames.append(frame)
        with contextlib.suppress(ValueError):
            message = json.loads(frame)
            if "result" in message:
                connection.controls += 1
                connection.acknowledge(Acknowledgement(message["id"]))
            elif "code" in message:
                connection.controls += 1
                connection.refuse(VenueFault(message["id"], message["code"], message["msg"]))
            elif "ping" in message:
                connection.controls += 1
                connection.answer(Ping(message["ping"]))

    def on_sent(self, connection: VenueConnectionTask, frame: str, now: int) -> None:
        self.sent.append(frame)

    def on_subscribed(
        self, connection: VenueConnectionTask, topics: Sequence[Topic], now: int
    ) -> None:
        self.subscribed += [topic.subscription.topic for topic in topics]

    def on_unsubscribed(
        self, connection: VenueConnectionTask, topics: Sequence[Topic], now: int
    ) -> None:
        self.left += [topic.subscription.topic for topic in topics]

    def on_refused(
        self, connection: VenueConnectionTask, topics: Sequence[Topic], now: int
    ) -> None:
        self.refused += [topic.subscription.topic for topic in topics]

    def on_silent(self, connection: VenueConnectionTask, seconds: float, now: int) -> None:
        self.silent += 1

    def on_closed(self, connection: VenueConnectionTask, detail: str, now: int) -> None:
        self.closed.append(detail)


def _settings(url: str, **more: Any) -> ExchangeSettings:
    return ExchangeSettings(
        **{
            "rest_url": "http://127.0.0.1:1",
            "ws_url": url,
            "symbols": ("*",),
            "backoff_seconds": 0.01,
            "backoff_limit_seconds": 0.02,
            "open_seconds": 0.5,
            "subscribe_interval_seconds": 0.01,
            **more,
        }
    )


@contextlib.asynccontextmanager
async def running(
    url: str, topics: Sequence[str] = ("btcusdt@depth@100ms",), **settings: Any
) -> AsyncIterator[tuple[VenueConnectionTask, Told]]:
    told = Told()
    connection = VenueConnectionTask("sim-1", BinanceSpot(), _settings(url, **settings), told)
    connection.add(Subscription(topic, _BOOK) for topic in topics)
    task = asyncio.create_task(connection.run())
    try:
        yield connection, told
        assert not task.done(), "the connection's task lives on"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - there is nothing that could be awaited
            await asyncio.sleep(0.005)


class _Raw(asyncio.Protocol):
    """Answers a request's head with given bytes and hangs up; with None it never answers."""

    def __init__(self, answer: bytes | None, open_ones: set[asyncio.BaseTransport]) -> None:
        self._answer = answer
        self._open_ones = open_ones
        self._transport: asyncio.Transport | None = None
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._open_ones.add(transport)

    def data_received(self, data: bytes) -> None:
        self._head += data
        if self._answer is not None and self._head.endswith(b"\r\n\r\n"):
            assert self._transport is not None
            self._transport.write(self._answer)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        assert self._transport is not None
        self._open_ones.discard(self._transport)


@contextlib.asynccontextmanager
async def raw_server(answer: bytes | None) -> AsyncIterator[str]:
    open_ones: set[asyncio.BaseTransport] = set()
    before = asyncio.all_tasks()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Raw(answer, open_ones), "127.0.0.1", 0
    )
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/stream"
    finally:
        # asyncio leaks a connection that it accepts while its server is being closed.
        for _ in range(3):
            await asyncio.sleep(0)
        await _until(lambda: asyncio.all_tasks() <= before and not open_ones)
        server.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"\x00" * 1000,
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 99\r\n\r\nshort",
        b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 301 Moved\r\nLocation: ws://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 301 Moved\r\nLocation: ::::\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: wrong\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 101 \xff\xfe\r\n\r\n",
    ],
    ids=range(13),
)
async def test_an_answer_that_is_no_handshake_is_tried_again(answer: bytes) -> None:
    async with (
        raw_server(answer) as url,
        running(url) as (connection, told),
    ):
        await _until(lambda: connection.reconnects >= 2)
        assert connection.last_error
        assert connection.last_cause == integrity.INTEGRITY_CAUSE_NETWORK
        assert (told.opened, told.closed) == (0, [])


async def test_a_handshake_without_end_is_given_up() -> None:
    async with (
        raw_server(None) as url,
        running(url, open_seconds=0.05) as (connection, _),
    ):
        await _until(lambda: connection.reconnects >= 2)
        assert "Timeout" in connection.last_error


async def test_nobody_who_listens_is_tried_again() -> None:
    async with running("ws://127.0.0.1:1/stream") as (connection, _):
        await _until(lambda: connection.reconnects >= 3)
        assert connection.state in (
            pb.CONNECTION_STATE_BACKOFF,
            pb.CONNECTION_STATE_CONNECTING,
        )


@contextlib.asynccontextmanager
async def ws_server(handler: Callable[[ServerConnection], Awaitable[None]]) -> AsyncIterator[str]:
    async with serve(handler, "127.0.0.1", 0, close_timeout=0.1) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}/stream"
        for _ in range(3):
            await asyncio.sleep(0)


async def _acknowledge(socket: ServerConnection) -> dict[str, Any]:
    request: dict[str, Any] = json.loads(await socket.recv())
    await socket.send(json.dumps({"result": None, "id": request["id"]}))
    return request


async def test_subscriptions_stand_when_the_venue_acknowledged_them() -> None:
    requests: list[dict[str, Any]] = []

    async def handler(socket: ServerConnection) -> None:
        while sum(len(request["params"]) for request in requests) < 240:
            requests.append(await _acknowledge(socket))
        await socket.wait_closed()

    topics = [f"s{number}@depth@100ms" for number in range(240)]
    async with (
        ws_server(handler) as url,
        running(url, topics) as (connection, told),
    ):
        await _until(lambda: connection.subscriptions == 240)
        assert sorted(told.subscribed) == sorted(topics)
        assert len({request["id"] for request in requests}) == len(requests) > 1
        assert connection.state == pb.CONNECTION_STATE_CONNECTED
        assert connection.settled


async def test_subscriptions_come_and_go_while_the_connection_runs() -> None:
    requests: list[dict[str, Any]] = []

    async def handler(socket: ServerConnection) -> None:
        while True:
            requests.append(await _acknowledge(socket))

    async with ws_server(handler) as url, running(url) as (connection, told):
        await _until(lambda: connection.subscriptions == 1)
        connection.add([Subscription("ethusdt@depth@100ms", _BOOK)])
        await _until(lambda: connection.subscriptions == 2)
        connection.remove(["btcusdt@depth@100ms"])
        await _until(lambda: told.left == ["btcusdt@depth@100ms"])
        assert [request["method"] for request in requests] == [
            "SUBSCRIBE", "SUBSCRIBE", "UNSUBSCRIBE",
        ]  # fmt: skip
        assert connection.subscriptions == 1


async def test_a_renewed_subscription_is_left_before_it_is_made_again() -> None:
    requests: list[dict[str, Any]] = []

    async def handler(socket: ServerConnection) -> None:
        while True:
            requests.append(await _acknowledge(socket))

    async with ws_server(handler) as url, running(url) as (connection, told):
        await _until(lambda: connection.subscriptions == 1)
        assert connection.renew("btcusdt@depth@100ms")
        await _until(lambda: len(told.subscribed) == 2)
        assert [request["method"] for request in requests] == [
            "SUBSCRIBE", "UNSUBSCRIBE", "SUBSCRIBE",
        ]  # fmt: skip


async def test_one_topic_that_the_venue_refuses_keeps_no_other_out() -> None:
    bad = "s7@depth@100ms"

    async def handler(socket: ServerConnection) -> None:
        while True:
            request = json.loads(await socket.recv())
            if bad in request["params"]:
                answer = {"code": 2, "msg": "Invalid symbol", "id": request["id"]}
            else:
                answer = {"result": None, "id": request["id"]}
            await socket.send(json.dumps(answer))

    topics = [f"s{number}@depth@100ms" for number in range(20)]
    async with ws_server(handler) as url, running(url, topics) as (connection, told):
        await _until(lambda: connection.settled)
        assert sorted(told.subscribed) == sorted(set(topics) - {bad})
        assert told.refused == [bad]
        assert connection.refused == 1
        assert (told.opened, told.closed) == (1, [])


async def test_what_the_venue_wants_answered_is_answered() -> None:
    answered = asyncio.Event()

    async def handler(socket: ServerConnection) -> None:
        await _acknowledge(socket)
        await socket.send(json.dumps({"ping": "pong 1"}))
        assert await socket.recv() == "pong 1"
        answered.set()
        await socket.wait_closed()

    async with ws_server(handler) as url, running(url):
        async with asyncio.timeout(10):
            await answered.wait()


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        ("close", integrity.INTEGRITY_CAUSE_VENUE_CLOSED),
        ("abort", integrity.INTEGRITY_CAUSE_NETWORK),
        ("garbage", integrity.INTEGRITY_CAUSE_NETWORK),
        ("too large", integrity.INTEGRITY_CAUSE_NETWORK),
        ("refuse", integrity.INTEGRITY_CAUSE_VENUE_REFUSED),
    ],
)
async def test_an_end_is_told_once_with_its_cause_and_the_connection_opens_again(
    end: str, cause: int
) -> None:
    async def handler(socket: ServerConnection) -> None:
        if end == "refuse":
            # What is complained of is not named: anything outstanding may be meant.
            await socket.recv()
            await socket.send(json.dumps({"code": 2, "msg": "Invalid", "id": None}))
            await socket.wait_closed()
            return
        await _acknowledge(socket)
        if end == "close":
            await socket.close(1001, "going away")
        elif end == "abort":
            socket.transport.abort()
        elif end == "garbage":
            socket.transport.write(b"\xff" * 100)
            await socket.wait_closed()
        else:
            # The header of a frame of 64 MiB is enough.
            socket.transport.write(b"\x81\x7f" + (64 * 1024 * 1024).to_bytes(8, "big"))
            await socket.wait_closed()

    async with ws_server(handler) as url, running(url) as (connection, told):
        await _until(lambda: told.opened >= 3)
        assert len(told.closed) in (told.opened, told.opened - 1)
        assert connection.last_cause == cause
        assert connection.last_error


async def test_a_subscription_that_is_not_acknowledged_is_made_anew() -> None:
    async def handler(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.wait_closed()

    async with (
        ws_server(handler) as url,
        running(url, acknowledge_seconds=0.05) as (_, told),
    ):
        await _until(lambda: told.opened >= 2)
        assert "not answered" in told.closed[0]


async def test_a_silent_connection_is_told_and_then_opened_anew() -> None:
    async def handler(socket: ServerConnection) -> None:
        await _acknowledge(socket)
        await socket.wait_closed()

    async with (
        ws_server(handler) as url,
        running(url, silence_seconds=0.1) as (_, told),
    ):
        await _until(lambda: told.opened >= 2)
        assert told.silent >= 1
        assert "no market data for" in told.closed[0]


async def test_a_clock_that_is_set_is_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(socket: ServerConnection) -> None:
        await _acknowledge(socket)
        while True:
            await socket.send("{}")
            await asyncio.sleep(0.02)

    async with (
        ws_server(handler) as url,
        running(url, silence_seconds=0.4) as (_, told),
    ):
        await _until(lambda: len(told.frames) > 5)
        now = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: now() + 3600 * 10**9)
        seen = len(told.frames)
        await _until(lambda: len(told.frames) > seen + 30)
        assert (told.silent, told.closed, told.opened) == (0, [], 1)


async def test_an_acknowledgement_of_nothing_or_of_another_connection_means_nothing() -> None:
    async with running("ws://127.0.0.1:1/stream") as (connection, told):
        connection.acknowledge(Acknowledgement(77))
        connection.acknowledge(Acknowledgement(None, ("unknown",), complete=False))
        connection.refuse(VenueFault(77, "1", "unknown"))
        connection.restart("nothing is open")
        assert told.subscribed == []
        assert connection.subscriptions == 0


def test_waits_double_up_to_a_limit_with_jitter() -> None:
    settings = _settings("ws://x", backoff_seconds=0.25, backoff_limit_seconds=30)
    for attempt, longest in [(0, 0.25), (1, 0.5), (4, 4.0), (7, 30.0), (1000, 30.0)]:
        waits = [backoff(settings, attempt) for _ in range(50)]
        assert all(longest / 2 <= wait <= longest for wait in waits)
        assert len(set(waits)) > 10
