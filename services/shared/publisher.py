"""Publishes encoded events into JetStream: fast, in order, each once, never in the way.

`Publisher.publish` only appends to a bounded queue; a flush once a loop turn writes what the
window allows. What is stored is known exactly at any time: the server acknowledges beginnings of
a batch (see `jetstream.lane`), and after a lost connection the stream itself is asked for the last
message of each subject before anything is sent again (`jetstream.session`).
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from services.shared.errors import MarketPrismError
from services.shared.jetstream.api import StoredMessage, last_message, list_streams
from services.shared.jetstream.connection import Connection, ConnectionLost, server_urls
from services.shared.jetstream.options import PublisherCounts, PublisherOptions
from services.shared.jetstream.outbox import Entry, Outbox, OutboxLimits
from services.shared.jetstream.routes import Routes
from services.shared.jetstream.session import PublishSession, backoff_delay
from services.shared.log import get_logger

__all__ = ["OutboxLimits", "Publisher", "PublisherOptions", "PublisherStatus"]

_SUBJECT = re.compile(r"[^\s.*>\x00-\x1f\x7f]+(?:\.[^\s.*>\x00-\x1f\x7f]+)*")
_MAX_SUBJECT = 1024
_MAX_MESSAGE_ID = 1024
_OUTCOMES = ("acknowledged", "duplicates", "dropped", "rejected", "refused", "reordered")


@dataclass(frozen=True, slots=True)
class PublisherStatus:
    """The state of a publisher at one instant."""

    connected: bool
    """Whether the broker and JetStream answer."""

    acknowledged: int
    """Messages known to be stored since the start."""

    in_flight: int
    """Messages sent of which it is not yet known whether they are stored."""

    buffered: int
    """Messages that wait to be sent."""

    buffered_bytes: int
    """What they take, bytes, objects included."""

    duplicates: int
    """Messages of unknown fate that were found stored after an outage, and so not sent again; among
    the acknowledged."""

    dropped: int
    """Messages of droppable keys that were given up for want of room."""

    rejected: int
    """Messages without a key that were not taken for want of room."""

    refused: int
    """Messages that can never be stored: too large, or with a bad subject or id."""

    reordered: int
    """Messages stored behind a later one of their subject, after the store itself refused them."""

    reconnects: int
    """Connections lost."""

    last_error: str
    """The last trouble, empty when there was none."""


class Publisher:
    """Publishes into JetStream for one service.

    Order: messages of one stream are stored in the order of `publish`, whatever breaks. Once: a
    message is stored once; after an outage of any length the stream is asked what it has, so that
    this does not rest on the stream's duplicate window. One subject must have one publisher at a
    time, and streams must allow batched publishing (`allow_batched`, nats-server 2.14).

    Callbacks run in the event loop, must not block, and may call `publish`:

    - `on_connection(connected, detail)` when the broker comes and goes;
    - `on_dropped(key, count)` when everything unsent of a droppable key was given up, the message
      being published included: what follows for that key is worth nothing until it starts anew;
    - `on_rejected(subject, message_id, reason)` when a message was not taken or can never be
      stored; `reason` is `BUFFER_FULL`, `TOO_LARGE`, `INVALID_SUBJECT` or `INVALID_MESSAGE_ID`.

    `may_send()` is asked before anything is sent: while it is false messages wait as they do for a
    broker that is away. Who makes it true again calls `resume`.

    It is a Prometheus collector too: `registry.register(publisher)`.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        name: str = "publisher",
        options: PublisherOptions | None = None,
        on_connection: Callable[[bool, str], None] | None = None,
        on_dropped: Callable[[str, int], None] | None = None,
        on_rejected: Callable[[str, str, str], None] | None = None,
        may_send: Callable[[], bool] | None = None,
    ) -> None:
        self._urls = server_urls(url)
        self._name = name
        self._options = options or PublisherOptions()
        self._on_connection = on_connection
        self._on_dropped = on_dropped
        self._on_rejected = on_rejected
        self._may_send = may_send
        self._log = get_logger(publisher=name)
        self._outbox = Outbox(self._options.limits, self._key_dropped)
        self._routes = Routes()
        self._lane_of = self._routes.known_lane
        self._counts = PublisherCounts()
        self._session: PublishSession | None = None
        self._owner: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._settled = asyncio.Event()
        self._draining = 0

    async def start(self) -> None:
        """Begin to connect, and return at once; messages published meanwhile wait."""
        if self._owner is None:
            self._owner = asyncio.get_running_loop().create_task(
                self._own_connection(), name=f"{self._name}: connection"
            )

    async def stop(self) -> None:
        """End now. What is not stored is lost: call `drain` before."""
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await owner

    async def wait_connected(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Wait until the broker and JetStream answer; False when they do not in `timeout` s."""
        try:
            async with asyncio.timeout(timeout):
                await self._connected.wait()
        except TimeoutError:
            return False
        return True

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109
        """Wait until everything published is stored; False when that is not so in `timeout` s."""
        return await self._wait_until(
            lambda: not (self._outbox.messages or self._routes.in_flight), timeout
        )

    async def settle(self, timeout: float) -> bool:  # noqa: ASYNC109
        """Wait until all that was published before now is stored; False when not in `timeout` s."""
        last = Entry("", b"", "").order

        def stored() -> bool:
            return all(entry.order > last for lane in self._routes for entry in lane.waiting())

        return await self._wait_until(stored, timeout)

    async def _wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        self._draining += 1
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._settled.clear()
                    if self._session is not None:
                        self._session.urgent = True
                        self._session.watch()
                    await self._settled.wait()
        except TimeoutError:
            return False
        finally:
            self._draining -= 1
            if self._session is not None:
                self._session.urgent = bool(self._draining)
        return True

    def publish(
        self, subject: str, payload: bytes, message_id: str, *, droppable_key: str | None = None
    ) -> bool:
        """Queue a message; never waits and never raises for what the broker does.

        `message_id` becomes `Nats-Msg-Id`: printable, and unique within the stream. Messages with a
        `droppable_key` may be given up together when the room is full (see `on_dropped`). Gives
        False when this message was not taken, which the callbacks told already.
        """
        lane = self._lane_of(subject)
        if lane is None:
            if len(subject) > _MAX_SUBJECT or _SUBJECT.fullmatch(subject) is None:
                self._refuse(subject, message_id, "INVALID_SUBJECT", droppable_key)
                return False
            lane = self._routes.lane_for(subject)
            if self._session is not None:
                self._session.prepare(lane)
        if not (
            # Ids hold symbols, and venues list some that are not ASCII.
            0 < len(message_id) <= _MAX_MESSAGE_ID
            and message_id.isprintable()
            and message_id == message_id.strip()
        ):
            self._refuse(subject, message_id, "INVALID_MESSAGE_ID", droppable_key)
            return False
        entry = Entry(subject, payload, message_id)
        taken = self._outbox.add(entry, droppable_key)
        if taken:
            lane.buffer.append(entry)
            if lane.ready and self._session is not None:
                self._session.schedule()
        elif droppable_key is None:
            self._counts.rejected += 1
            self._reject(subject, message_id, "BUFFER_FULL")
        if self._outbox.needs_sweep:
            self._routes.sweep(self._outbox)
        return taken

    def resume(self) -> None:
        """Send what waits: `may_send` is true again."""
        if self._session is not None:
            self._session.schedule()

    def discard(self, concerns: Callable[[str], bool]) -> int:
        """Let go of what is not stored to the subjects that `concerns` names; give the count.

        What is on its way may be stored nevertheless, but is not sent again.
        """
        count = sum(lane.discard(self._outbox, concerns) for lane in self._routes)
        self._stored()
        return count

    def tell(self, subject: str, payload: bytes) -> bool:
        """Send to whoever listens right now, unstored and unbuffered; False while unconnected."""
        session = self._session
        if session is None or session.connection.is_closed:
            return False
        session.connection.publish(subject, payload)
        return True

    async def last_message(self, subject: str, *, timeout: float = 5.0) -> StoredMessage | None:  # noqa: ASYNC109
        """Give the newest stored message of a subject, None when no stream holds one.

        Raises `ConnectionLost` when the broker cannot be reached in `timeout` s.
        """
        if not await self.wait_connected(timeout) or self._session is None:
            raise ConnectionLost(f"NATS does not answer within {timeout:g} s: {self._last_error}")
        connection = self._session.connection
        stream = self._routes.stream_of(subject)
        if stream is None:
            self._routes.learn(await list_streams(connection))
            stream = self._routes.stream_of(subject)
        return await last_message(connection, stream, subject, timeout=timeout) if stream else None

    @property
    def status(self) -> PublisherStatus:
        """The state now."""
        counts = self._counts
        return PublisherStatus(
            connected=self._connected.is_set(),
            acknowledged=counts.acknowledged,
            in_flight=self._routes.in_flight,
            buffered=self._outbox.messages,
            buffered_bytes=self._outbox.bytes,
            duplicates=counts.duplicates,
            dropped=counts.dropped,
            rejected=counts.rejected,
            refused=counts.refused,
            reordered=counts.reordered,
            reconnects=counts.reconnects,
            last_error=counts.last_error,
        )

    def collect(self) -> Iterable[Metric]:
        """Give the Prometheus metrics."""
        status = self.status
        messages = CounterMetricFamily(
            "marketprism_publisher_messages",
            "Messages by what became of them.",
            labels=["publisher", "outcome"],
        )
        for outcome in _OUTCOMES:
            messages.add_metric([self._name, outcome], getattr(status, outcome))
        yield messages
        reconnects = CounterMetricFamily(
            "marketprism_publisher_reconnects",
            "Connections to the broker that were lost.",
            labels=["publisher"],
        )
        reconnects.add_metric([self._name], status.reconnects)
        yield reconnects
        for name, documentation in (
            ("connected", "1 when the broker and JetStream answer."),
            ("in_flight", "Messages sent and not yet acknowledged."),
            ("buffered", "Messages that wait to be sent."),
            ("buffered_bytes", "What they take, bytes."),
        ):
            gauge = GaugeMetricFamily(
                f"marketprism_publisher_{name}", documentation, labels=["publisher"]
            )
            gauge.add_metric([self._name], float(getattr(status, name)))
            yield gauge

    # The connection.

    @property
    def _last_error(self) -> str:
        return self._counts.last_error or "no connection yet"

    async def _own_connection(self) -> None:
        failures = 0
        while True:
            try:
                session = await self._open_session()
            except Exception as error:
                # Whatever a broker answers, nobody else would ever connect again.
                failures += 1
                if isinstance(error, MarketPrismError | OSError):
                    problem = str(error) or "JetStream does not answer"
                else:
                    problem = f"JetStream answers what was not expected: {error!r}"
                if problem != self._counts.last_error:
                    self._log.warning("not connected", error=problem)
                self._counts.last_error = problem
                await asyncio.sleep(backoff_delay(failures, self._options))
                continue
            failures = 0
            try:
                reason = await asyncio.shield(session.connection.closed)
                self._counts.reconnects += 1
                self._counts.last_error = reason
                self._log.warning("connection lost", reason=reason)
            except asyncio.CancelledError:
                reason = "stopped"
                raise
            finally:
                self._session = None
                self._connected.clear()
                session.connection.close("stopped")
                await session.close()
                self._tell_connection(False, reason)

    async def _open_session(self) -> PublishSession:
        connection = await Connection.open(
            self._urls, name=self._name, timeout=self._options.connect_timeout
        )
        session = PublishSession(
            connection,
            self._routes,
            self._outbox,
            self._options,
            self._counts,
            name=self._name,
            on_stored=self._stored,
            on_refused=self._entry_refused,
            may_send=self._may_send,
        )
        try:
            await session.open()
        except BaseException:
            connection.close("JetStream does not answer")
            await session.close()
            raise
        session.urgent = bool(self._draining)
        self._session = session
        self._connected.set()
        self._log.info("connected", address=connection.address)
        self._tell_connection(True, f"connected to NATS at {connection.address}")
        return session

    # What becomes of messages.

    def _stored(self) -> None:
        if self._draining:
            self._settled.set()

    def _entry_refused(self, entry: Entry) -> None:
        key = entry.key.name if entry.key is not None else None
        self._refuse(entry.subject, entry.message_id, "TOO_LARGE", key)
        self._stored()

    def _refuse(self, subject: str, message_id: str, reason: str, key: str | None) -> None:
        self._counts.refused += 1
        self._counts.last_error = f"{subject[:200]}: a message was refused: {reason}"
        self._reject(subject, message_id, reason)
        if key is not None:
            self._outbox.drop(key)

    def _reject(self, subject: str, message_id: str, reason: str) -> None:
        if self._on_rejected is not None:
            self._guarded(self._on_rejected, subject, message_id, reason)

    def _key_dropped(self, key: str, count: int) -> None:
        self._counts.dropped += count
        if self._on_dropped is not None:
            self._guarded(self._on_dropped, key, count)
        self._stored()

    def _tell_connection(self, connected: bool, detail: str) -> None:
        if self._on_connection is not None:
            self._guarded(self._on_connection, connected, detail)

    def _guarded(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            self._log.exception("a callback failed")
