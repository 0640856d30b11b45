"""A durable consumer of a stream that is pulled from: batches in order, acknowledged when stored.

What was acknowledged lies with the broker, so a process that is killed goes on where its last
acknowledgement was. Every connection begins by resetting the consumer to its ack floor
(`CONSUMER.RESET`, nats-server 2.14): what another process or an earlier connection had been given
and had not acknowledged comes again at once and in order, with consumer sequences from 1. So
nothing waits for `ack_wait`, deliveries are without a hole or the session ends, and one
acknowledgement covers a batch and all before it.

One pull is outstanding while the batch before is handled, and asks for no more than there is room
for: a handler that stands still leaves the messages in the stream.

Design: https://github.com/nats-io/nats-architecture-and-design (ADR-13, ADR-37, ADR-60).
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence

from services.shared.errors import MarketPrismError
from services.shared.jetstream.api import message_headers
from services.shared.jetstream.connection import server_urls
from services.shared.jetstream.pull_connection import PullConnection, Received
from services.shared.jetstream.pull_requests import PullRequests
from services.shared.jetstream.pull_session import Dropped, begin_session, write_note
from services.shared.jetstream.pull_types import (
    Lost,
    PullBatch,
    PullOptions,
    PullSession,
    PullStatus,
    reply_place,
)
from services.shared.log import get_logger

__all__ = ["PullConsumer"]

_NANOSECONDS = 1_000_000_000
_STOP_SECONDS = 2.0
_LOST_LOG_SECONDS = 60.0
_SETTLED_SECONDS = 5.0


class PullConsumer:
    """Gives a durable consumer's messages in batches, across any outage of the broker.

    Two that use one durable at a time disturb each other (each sees a hole and begins anew) and
    deliver twice, but neither acknowledges what it did not get.

    `on_lost(lost)` tells that messages went from the stream before they were read.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        stream: str,
        durable: str,
        *,
        filter_subject: str,
        name: str = "",
        options: PullOptions | None = None,
        on_lost: Callable[[Lost], None] | None = None,
    ) -> None:
        self._urls = server_urls(url)
        self._stream = stream
        self._durable = durable
        self._filter = filter_subject
        self._name = name or durable
        self._options = options or PullOptions()
        self._on_lost = on_lost
        self._log = get_logger(consumer=durable, stream=stream)
        self._owner: asyncio.Task[None] | None = None
        self._connection: PullConnection | None = None
        self._session: PullSession | None = None
        self._broken: asyncio.Future[str] | None = None
        self._changed = asyncio.Event()
        self._requests = PullRequests(stream, durable, self._options)
        self._delivered = 0
        self._first_arrival: float | None = None
        self._handed_over = 0
        self._handed_over_count = 0
        self._oldest_handed_over = 0
        self._acknowledged = 0
        self._acknowledged_time = 0
        self._read = 0
        self._advance_to = 0
        self._from_oldest = False
        self._advanced = 0.0
        self._noted = 0
        self._noted_at = 0.0
        self._dropped = Dropped()
        self._lost_logged = 0.0
        self._pending = 0
        self._received = 0
        self._repeated = 0
        self._sessions = 0
        self._lost = 0
        self._last_error = ""

    async def start(self) -> None:
        """Begin to read, and return at once."""
        if self._owner is None:
            self._owner = asyncio.get_running_loop().create_task(
                self._own_connection(), name=f"{self._name}: pull consumer"
            )

    async def stop(self) -> None:
        """End; what was acknowledged before is sent, what was not comes again another time."""
        owner, self._owner = self._owner, None
        connection = self._connection
        if connection is not None and not connection.is_closed:
            with contextlib.suppress(MarketPrismError, TimeoutError):
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._note(connection)
                    await connection.flush()
        if owner is not None:
            owner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await owner

    async def next_batch(self) -> PullBatch:
        """Wait for messages, and for more until the batch is full or `linger` is over."""
        loop = asyncio.get_running_loop()
        while True:
            limit = None
            if self._session is not None and self._connection is not None:
                received = self._connection.received
                if self._first_arrival is not None:
                    limit = self._first_arrival + self._options.linger
                    if not self._requests.is_open or loop.time() >= limit:
                        return self._take(self._session, received)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(limit):
                    await self._changed.wait()

    def is_current(self, batch: PullBatch) -> bool:
        """Whether a batch can still be acknowledged; else its messages come again."""
        return batch.session is self._session

    def acknowledge(self, batch: PullBatch) -> bool:
        """Acknowledge a batch and all before it; False when its session is over."""
        connection = self._connection
        if batch.session is not self._session or connection is None or connection.is_closed:
            return False
        connection.publish(batch.received.last_reply.decode())
        self._acknowledged = batch.last_sequence
        self._acknowledged_time = batch.last_stored
        self._handed_over_count -= len(batch.received)
        if not self._handed_over_count:
            self._oldest_handed_over = 0
        return True

    def read_again(self) -> None:
        """Begin with the oldest message of the stream once more, when it is next started."""
        self._from_oldest = True

    @property
    def session(self) -> PullSession | None:
        """The session that delivers now; None while interrupted."""
        return self._session

    @property
    def status(self) -> PullStatus:
        """The state now."""
        connection = self._connection
        received = connection.received if connection is not None and self._session else Received()
        unsettled = len(received) + self._handed_over_count
        return PullStatus(
            live=self._session is not None,
            acknowledged_sequence=self._acknowledged,
            settled_sequence=self._acknowledged if unsettled else self._read,
            unsettled=unsettled,
            oldest_waiting=self._oldest_waiting(received),
            read_sequence=self._read,
            pending=self._pending,
            waiting=len(received),
            waiting_bytes=received.payload_bytes,
            received=self._received,
            repeated=self._repeated,
            sessions=self._sessions,
            lost=self._lost,
            last_error=self._last_error,
        )

    def _oldest_waiting(self, received: Received) -> float:
        if self._oldest_handed_over:
            return self._oldest_handed_over / _NANOSECONDS
        if received.first_reply:
            return reply_place(received.first_reply)[2] / _NANOSECONDS
        return 0.0

    # Sessions.

    async def _own_connection(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        try:
            while True:
                try:
                    connection = await self._connect()
                    await self._begin(connection)
                    begun = loop.time()
                    reason = await self._watch(connection)
                    self._end_session(reason)
                    if not reason or loop.time() > begun + _SETTLED_SECONDS:
                        failures = 0
                        continue
                except Exception as error:
                    # Whatever a broker answers, nobody else would ever read on.
                    if isinstance(error, MarketPrismError | OSError | TimeoutError):
                        why = str(error) or "the broker does not answer in time"
                    else:
                        why = f"the broker answers what was not expected: {error!r}"
                    self._end_session(why)
                longest = min(
                    self._options.backoff * 2.0 ** min(failures, 10), self._options.backoff_limit
                )
                failures += 1
                await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311
        finally:
            self._session = None
            if self._connection is not None:
                self._connection.close("stopped")

    async def _connect(self) -> PullConnection:
        connection = self._connection
        if connection is None or connection.is_closed:
            opened = await PullConnection.open(
                self._urls, name=self._name, timeout=self._options.connect_timeout
            )
            assert isinstance(opened, PullConnection)
            connection = self._connection = opened
        return connection

    async def _begin(self, connection: PullConnection) -> None:
        loop = asyncio.get_running_loop()
        connection.stop_collecting()
        try:
            begun = await begin_session(
                connection,
                self._stream,
                self._config(),
                acknowledged=max(self._acknowledged, self._advance_to),
                acknowledged_time=0 if self._advance_to else self._acknowledged_time,
                created=self._dropped.stream_created,
                from_oldest=self._from_oldest,
            )
        except TimeoutError:
            connection.close("JetStream does not answer in time")
            raise
        quiet = bool(self._advance_to)
        self._advance_to = 0
        self._from_oldest = False
        self._advanced = loop.time()
        self._sessions += 1
        self._session = PullSession(
            self._sessions, begun.stream_created, begun.ack_floor, begun.last_sequence
        )
        if begun.trouble:
            self._log.warning("the stream is not what it was", trouble=begun.trouble)
        if begun.ack_floor != self._acknowledged:
            self._acknowledged, self._acknowledged_time = begun.ack_floor, 0
        self._handed_over = self._read = begun.ack_floor
        self._handed_over_count = self._oldest_handed_over = 0
        self._pending = begun.pending
        self._delivered = 0
        self._first_arrival = None
        self._broken = loop.create_future()
        answers = self._requests.begin(connection)
        connection.collect(answers, begun.ack_floor, self._on_status)
        connection.on_readable_end = self._end_of_read
        self._noted = begun.read_sequence
        self._noted_at = loop.time()
        self._tell_lost(self._dropped.begin(begun))
        self._requests.ask()
        if not quiet:
            self._log.info("reading", after=begun.ack_floor, pending=begun.pending)

    async def _watch(self, connection: PullConnection) -> str:
        """Wait until the session is over, and look now and then; give the reason."""
        assert self._broken is not None
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.wait(
                {self._broken, connection.closed},
                timeout=self._options.check,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if connection.is_closed:
                return connection.closed.result()
            if self._broken.done():
                return self._broken.result()
            if silent := self._requests.silence():
                return f"no heartbeat for {silent:.0f} s"
            self._tell_lost(await self._dropped.check(connection, self._stream, self._read))
            if loop.time() > self._noted_at + self._options.note:
                await self._note(connection)
            if self._may_advance() and loop.time() > self._advanced + self._options.advance:
                self._advance_to = self._read
                return ""

    async def _note(self, connection: PullConnection) -> None:
        """Note with the consumer up to where all is settled, for another process to find."""
        settled = self.status.settled_sequence
        self._noted_at = asyncio.get_running_loop().time()
        if settled > self._noted and self._session is not None:
            await write_note(connection, self._stream, self._config(), settled)
            self._noted = settled

    def _may_advance(self) -> bool:
        """Whether the stream was read on over messages of others, and nothing is on its way."""
        connection = self._connection
        return (
            connection is not None
            and not connection.received.payloads
            and self._handed_over == self._acknowledged
            and self._read > self._acknowledged
        )

    def _break(self, reason: str) -> None:
        if self._broken is not None and not self._broken.done():
            self._session = None
            self._requests.end()
            self._broken.set_result(reason)

    def _end_session(self, reason: str) -> None:
        self._session = None
        self._requests.end()
        if reason:
            if reason != self._last_error:
                self._log.warning("not reading", reason=reason)
            self._last_error = reason
        if self._connection is not None and self._connection.is_closed:
            self._connection = None

    def _config(self) -> dict[str, object]:
        options = self._options
        return {
            "name": self._durable,
            "durable_name": self._durable,
            "filter_subject": self._filter,
            "ack_policy": "all",
            "deliver_policy": "all",
            "replay_policy": "instant",
            "ack_wait": round(options.ack_wait * _NANOSECONDS),
            "max_deliver": -1,
            # What is held, what is handed over, and as much again for the sake of a session
            # whose deliveries the server still counts.
            "max_ack_pending": options.batch_messages * 4,
        }

    # What comes.

    def _take(self, session: PullSession, received: Received) -> PullBatch:
        connection = self._connection
        assert connection is not None
        connection.received = Received()
        self._first_arrival = None
        _, _, first_stored, _ = reply_place(received.first_reply)
        sequence, _, last_stored, pending = reply_place(received.last_reply)
        self._handed_over = sequence
        self._handed_over_count += len(received)
        if not self._oldest_handed_over:
            self._oldest_handed_over = first_stored
        self._requests.ask()
        return PullBatch(session, received, pending, first_stored, last_stored)

    def _end_of_read(self) -> None:
        connection = self._connection
        if connection is None or self._session is None:
            return
        count = connection.delivered - self._delivered
        if not count:
            return
        self._requests.heard()
        sequence, consumer_sequence, _, self._pending = reply_place(connection.last_reply)
        if consumer_sequence != connection.delivered:
            self._break(
                f"expected message {connection.delivered} of the consumer, got "
                f"{consumer_sequence}: does another process use {self._durable}?"
            )
            return
        self._delivered = connection.delivered
        self._received += count
        self._repeated, connection.repeated = self._repeated + connection.repeated, 0
        self._dropped.came(self._read, connection.position, count)
        self._read = max(self._read, sequence, connection.position)
        self._requests.came(count)
        if self._first_arrival is None and connection.received.payloads:
            self._first_arrival = asyncio.get_running_loop().time()
            self._changed.set()
        if not self._requests.is_open:
            self._changed.set()

    def _on_status(self, subject: bytes, _reply: bytes, header: bytes, _payload: bytes) -> None:
        self._requests.heard()
        if header.startswith(b"NATS/1.0 100"):
            self._on_heartbeat(message_headers(header))
            return
        over = self._requests.is_over(subject, header)
        if over:
            # Not from within the parser: what this read brought is not counted yet.
            asyncio.get_running_loop().call_soon(self._after_pull)
        elif over is None:
            status = header[9:].partition(b"\r\n")[0].decode(errors="replace")
            self._break(f"the consumer ended: {status}")

    def _after_pull(self) -> None:
        self._requests.ask()
        self._changed.set()

    def _on_heartbeat(self, headers: dict[str, str]) -> None:
        connection = self._connection
        if connection is None or self._session is None:
            return
        last = int(headers.get("Nats-Last-Consumer", -1))
        if last == connection.delivered:
            self._read = max(self._read, int(headers.get("Nats-Last-Stream", 0)))
        else:
            self._break(
                f"the consumer sent {last} messages, {connection.delivered} came: was it reset, or "
                f"does another process use {self._durable}?"
            )

    def _tell_lost(self, lost: Lost | None) -> None:
        if lost is None:
            return
        self._lost += lost.at_most
        now = asyncio.get_running_loop().time()
        if not self._lost_logged or now > self._lost_logged + _LOST_LOG_SECONDS:
            self._lost_logged = now
            self._log.error(
                "lost before stored: the stream dropped messages that were not read yet",
                first_sequence=lost.first_sequence,
                last_sequence=lost.last_sequence,
                at_most=lost.at_most,
                since_start=self._lost,
            )
        if self._on_lost is not None:
            try:
                self._on_lost(lost)
            except Exception:
                self._log.exception("on_lost failed")
