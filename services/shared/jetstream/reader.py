"""Reads a JetStream stream in order, live, without acknowledgements, and misses nothing silently.

An ephemeral push consumer sends to a subject of the reader's own connection. The reader checks
that consumer sequences are without a hole, answers flow control only when its messages were
handed over, and after anything that breaks the order makes another consumer that begins behind
the last message handed over.
"""

import asyncio
import contextlib
import random
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC
from typing import Any

from services.shared.errors import MarketPrismError, NotFound
from services.shared.jetstream.api import message_headers, stream_info
from services.shared.jetstream.connection import Connection, server_urls
from services.shared.jetstream.consumer import (
    HEARTBEAT,
    consumer_config,
    create_consumer,
    places,
)
from services.shared.jetstream.messages import Message, ReaderStatus, StartAt, subject_text
from services.shared.log import get_logger

__all__ = ["StreamReader"]

_HEARTBEATS_MISSED = 3
_BACKOFF = 0.05
_BACKOFF_LIMIT = 2.0


class StreamReader:
    """Delivers the messages of a stream in order and each once, across any outage of the broker.

    `on_batch(messages)` gets what one read of the socket brought, at once, in the event loop. It
    may give an awaitable: then the next batch waits for it, the socket is left unread when
    `max_pending_bytes` wait, and the server stops sending. Without `on_batch`, iterate:
    `async for messages in reader:`.

    `on_interruption(reason)` tells that messages stop coming; `on_resumed(missed)` that they go
    on, `missed` when some are gone for good: expired, purged, or the stream was made anew.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        stream: str,
        *,
        filter_subjects: Sequence[str] = (),
        start: StartAt | None = None,
        name: str = "reader",
        on_batch: Callable[[list[Message]], Awaitable[None] | None] | None = None,
        on_interruption: Callable[[str], None] | None = None,
        on_resumed: Callable[[bool], None] | None = None,
        max_pending_bytes: int = 16 * 1024 * 1024,
        connect_timeout: float = 3.0,
    ) -> None:
        self._urls = server_urls(url)
        self._stream = stream
        self._filters = list(filter_subjects)
        self._start_at = start or StartAt.new()
        self._name = name
        self._log = get_logger(reader=name, stream=stream)
        self._on_batch = on_batch
        self._on_interruption = on_interruption
        self._on_resumed = on_resumed
        self._max_pending_bytes = max_pending_bytes
        self._connect_timeout = connect_timeout
        self._owner: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._sid = b""
        self._live = asyncio.Event()
        self._started = False
        self._told_interrupted = False
        self._broken: asyncio.Future[str] | None = None
        self._created = ""
        self._position = 0
        self._consumer_sequence = 0
        self._watchdog: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._batch: list[Message] = []
        self._batch_bytes = 0
        self._replies: list[str] = []
        self._waiting: deque[tuple[list[Message], int, list[str]]] = deque()
        self._waiting_bytes = 0
        self._handling: asyncio.Task[None] | None = None
        self._iterated: asyncio.Event | None = None
        self._delivered = 0
        self._pending = 0
        self._interruptions = 0
        self._missed = 0
        self._last_error = ""

    async def start(self) -> None:
        """Begin to read, and return at once."""
        if self._owner is None:
            self._owner = asyncio.get_running_loop().create_task(
                self._own_connection(), name=f"{self._name}: reader"
            )

    async def stop(self) -> None:
        """End; nothing is handed over after it returns."""
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await owner
        if self._iterated is not None:
            self._iterated.set()

    async def wait_live(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Wait until messages flow; False when they do not in `timeout` s."""
        try:
            async with asyncio.timeout(timeout):
                await self._live.wait()
        except TimeoutError:
            return False
        return True

    @property
    def status(self) -> ReaderStatus:
        """The state now."""
        return ReaderStatus(
            live=self._live.is_set(),
            delivered=self._delivered,
            stream_sequence=self._position,
            pending=self._pending,
            waiting=sum(len(messages) for messages, _, _ in self._waiting),
            interruptions=self._interruptions,
            missed=self._missed,
            last_error=self._last_error,
        )

    async def __aiter__(self) -> AsyncIterator[list[Message]]:
        """Give batches as they come; ends with `stop`."""
        if self._on_batch is not None:
            raise TypeError("a reader with on_batch hands its messages there")
        ready = self._iterated = asyncio.Event()
        while True:
            while self._waiting:
                messages, size, replies = self._waiting.popleft()
                yield messages
                self._handed_over(len(messages), size, replies)
            if self._owner is None:
                return
            ready.clear()
            await ready.wait()

    # The connection and its consumer.

    async def _own_connection(self) -> None:
        failures = 0
        try:
            while True:
                try:
                    connection = await self._connect_and_consume()
                    failures = 0
                    assert self._broken is not None
                    broken = self._broken
                    await asyncio.wait(
                        {broken, connection.closed}, return_when=asyncio.FIRST_COMPLETED
                    )
                    if connection.is_closed:
                        self._interrupt(connection.closed.result())
                    else:
                        self._interrupt(broken.result())
                except Exception as error:
                    # Whatever a broker answers, nobody else would ever read on.
                    failures += 1
                    if isinstance(error, MarketPrismError | OSError):
                        why = str(error) or "the broker does not answer in time"
                    else:
                        why = f"the broker answers what was not expected: {error!r}"
                    self._interrupt(why)
                    longest = min(_BACKOFF * 2.0 ** min(failures, 10), _BACKOFF_LIMIT)
                    await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311
        finally:
            self._live.clear()
            if self._watchdog is not None:
                self._watchdog.cancel()
            if self._connection is not None:
                self._connection.close("stopped")
            if self._handling is not None:
                self._handling.cancel()
                await asyncio.gather(self._handling, return_exceptions=True)
            self._waiting.clear()

    async def _connect_and_consume(self) -> Connection:
        connection = self._connection
        if connection is None or connection.is_closed:
            connection = await Connection.open(
                self._urls, name=self._name, timeout=self._connect_timeout
            )
            self._connection = connection
        try:
            await self._consume(connection)
        except TimeoutError:
            connection.close("JetStream does not answer in time")
            raise
        return connection

    async def _consume(self, connection: Connection) -> None:
        info = await stream_info(connection, self._stream)
        if info is None:
            raise NotFound(
                f"stream {self._stream} does not exist", reason="BROKER_STREAM_NOT_FOUND"
            )
        missed = self._find_position(info)
        if self._sid:
            connection.unsubscribe(self._sid)
        deliver = f"{connection.inbox}.d.{secrets.token_hex(4)}"
        self._batch, self._batch_bytes, self._replies = [], 0, []
        self._consumer_sequence = 0
        self._broken = asyncio.get_running_loop().create_future()
        self._sid = connection.subscribe(deliver, self._on_message)
        connection.on_readable_end = self._end_of_read
        self._heard = asyncio.get_running_loop().time()
        created = await create_consumer(
            connection, self._stream, consumer_config(deliver, self._filters, self._where())
        )
        self._pending = int(created.get("num_pending", 0))
        self._arm_watchdog()
        self._throttle()
        self._live.set()
        if missed:
            self._missed += 1
        if self._started and self._told_interrupted and self._on_resumed is not None:
            self._guarded(self._on_resumed, missed)
        self._log.info("reading", after=self._position, missed=missed)
        self._told_interrupted = False
        self._started = True

    def _find_position(self, info: dict[str, Any]) -> bool:
        """Decide where to go on; True when messages are gone that were not handed over."""
        state = info["state"]
        first, last = int(state["first_seq"]), int(state["last_seq"])
        created = str(info["created"])
        made_anew = self._created not in ("", created)
        self._created = created
        if made_anew:
            self._position = 0
            self._start_at = StartAt.all()
            return True
        if self._position == 0:
            if self._start_at.policy == "new":
                # A number, so that an interruption before the first message loses none.
                self._position = last
                self._start_at = StartAt.sequence(last + 1)
            return False
        if last < self._position:
            self._position = last
            return True
        if first > self._position + 1:
            self._position = first - 1
            return True
        return False

    def _where(self) -> dict[str, Any]:
        start = self._start_at
        if self._position:
            return {
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": self._position + 1,
            }
        if start.policy == "by_start_sequence":
            return {"deliver_policy": start.policy, "opt_start_seq": start.sequence_number}
        if start.policy == "by_start_time":
            assert start.instant is not None
            return {
                "deliver_policy": start.policy,
                "opt_start_time": start.instant.astimezone(UTC).isoformat(),
            }
        return {"deliver_policy": start.policy}

    # What comes.

    def _on_message(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        if header and header.startswith(b"NATS/1.0 "):
            self._on_status(reply, header)
            return
        position, consumer_sequence, self._pending = places(reply)
        if consumer_sequence != self._consumer_sequence + 1:
            self._break(
                f"expected message {self._consumer_sequence + 1} of the consumer, "
                f"got {consumer_sequence}"
            )
            return
        self._consumer_sequence = consumer_sequence
        self._position = position
        self._batch.append(Message(subject_text(subject), payload, position, header))
        self._batch_bytes += len(payload) + len(header) + 200

    def _on_status(self, reply: bytes, header: bytes) -> None:
        self._heard = asyncio.get_running_loop().time()
        if not header.startswith(b"NATS/1.0 100"):
            status = header[9:].partition(b"\r\n")[0].decode(errors="replace")
            self._break(f"the consumer ended: {status}")
            return
        if reply:
            self._replies.append(reply.decode())
            return
        headers = message_headers(header)
        stalled = headers.get("Nats-Consumer-Stalled")
        if stalled:
            self._replies.append(stalled)
        last_consumer = int(headers.get("Nats-Last-Consumer", self._consumer_sequence))
        if last_consumer != self._consumer_sequence:
            self._break(
                f"the consumer sent {last_consumer} messages, {self._consumer_sequence} came"
            )
        elif self._consumer_sequence:
            self._position = max(self._position, int(headers.get("Nats-Last-Stream", 0)))

    def _end_of_read(self) -> None:
        if not self._batch and not self._replies:
            return
        self._heard = asyncio.get_running_loop().time()
        messages, size, replies = self._batch, self._batch_bytes, self._replies
        self._batch, self._batch_bytes, self._replies = [], 0, []
        if self._on_batch is None or self._handling is not None:
            self._waiting.append((messages, size, replies))
            self._waiting_bytes += size
            self._throttle()
            if self._iterated is not None:
                self._iterated.set()
            return
        result = self._guarded(self._on_batch, messages) if messages else None
        if result is None:
            self._delivered += len(messages)
            self._answer(replies)
        else:
            self._waiting_bytes += size
            self._handling = asyncio.get_running_loop().create_task(
                self._handle(result, messages, size, replies)
            )

    async def _handle(
        self, result: Awaitable[None], messages: list[Message], size: int, replies: list[str]
    ) -> None:
        assert self._on_batch is not None
        current: Awaitable[None] | None = result
        while True:
            if current is not None:
                try:
                    await current
                except Exception:
                    self._log.exception("on_batch failed")
            self._handed_over(len(messages), size, replies)
            if not self._waiting:
                self._handling = None
                return
            messages, size, replies = self._waiting.popleft()
            current = self._guarded(self._on_batch, messages) if messages else None

    def _handed_over(self, count: int, size: int, replies: list[str]) -> None:
        self._delivered += count
        self._waiting_bytes -= size
        self._answer(replies)
        self._throttle()

    def _answer(self, replies: list[str]) -> None:
        connection = self._connection
        if connection is not None:
            for reply in replies:
                connection.publish(reply)

    def _throttle(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if self._waiting_bytes >= self._max_pending_bytes:
            connection.pause_reading()
        elif self._waiting_bytes <= self._max_pending_bytes // 2:
            connection.resume_reading()

    # Trouble.

    def _break(self, reason: str) -> None:
        if self._broken is not None and not self._broken.done():
            self._broken.set_result(reason)
            if self._connection is not None and self._sid:
                self._connection.unsubscribe(self._sid)
                self._sid = b""

    def _interrupt(self, reason: str) -> None:
        self._live.clear()
        if reason != self._last_error:
            self._log.warning("not reading", reason=reason)
        self._last_error = reason
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self._connection is not None and self._connection.is_closed:
            self._connection = None
            self._sid = b""
        if self._started and not self._told_interrupted:
            self._told_interrupted = True
            self._interruptions += 1
            if self._on_interruption is not None:
                self._guarded(self._on_interruption, reason)

    def _arm_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._watchdog = asyncio.get_running_loop().call_later(HEARTBEAT, self._watch)

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._watchdog = loop.call_later(HEARTBEAT, self._watch)
        if self._waiting_bytes >= self._max_pending_bytes // 2:
            self._heard = loop.time()
        elif loop.time() - self._heard > HEARTBEAT * _HEARTBEATS_MISSED:
            self._break(f"no heartbeat for {HEARTBEAT * _HEARTBEATS_MISSED:g} s")

    def _guarded(self, callback: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return callback(*arguments)
        except Exception:
            self._log.exception("a callback failed")
            return None
