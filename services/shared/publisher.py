"""Publishes encoded events into JetStream: fast, in order, each once, never in the way.

`Publisher.publish` only appends to a bounded queue; a flush once a loop turn writes what the
window allows. What is stored is known exactly at any time: the server acknowledges beginnings of
a batch (see `lane`), and after a lost connection the stream itself is asked for the last message
of each subject before anything is sent again.
"""

import asyncio
import contextlib
import json
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from services.shared.errors import MarketPrismError
from services.shared.jetstream.api import (
    StoredMessage,
    last_message,
    list_streams,
    subject_matches,
)
from services.shared.jetstream.connection import Connection, server_urls
from services.shared.jetstream.lane import OPERATION_PING, Lane
from services.shared.jetstream.outbox import Entry, Outbox, OutboxLimits

__all__ = ["OutboxLimits", "Publisher", "PublisherOptions", "PublisherStatus"]

log = logging.getLogger(__name__)

_SUBJECT = re.compile(r"[^\s.*>\x00-\x1f\x7f-]+(?:[^\s*>\x00-\x1f\x7f]*[^\s.*>\x00-\x1f\x7f])?")
_ACK = b'{"type":"ack","seq":'
_TICK = 0.025
_FLUSH_BYTES = 1024 * 1024
_MESSAGE_TOO_LARGE = {10054, 10097}
_BATCH_UNKNOWN = 10208
_STREAMS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class PublisherOptions:
    """How a publisher behaves."""

    limits: OutboxLimits = field(default_factory=OutboxLimits)
    """What may wait while the broker is away or slow."""

    window: int = 4096
    """Messages of one stream that may be sent and not yet acknowledged."""

    window_bytes: int = 16 * 1024 * 1024
    """The same in bytes."""

    acknowledge_every: int = 32
    """Messages that the server acknowledges at once, at most."""

    ack_timeout: float = 5.0
    """Seconds without any acknowledgement while some is due, after which the connection counts as
    broken."""

    tail_check: float = 0.05
    """Seconds after which the stream is asked whether the last message sent has arrived, when too
    few followed it to be acknowledged by themselves."""

    backoff: float = 0.05
    """Seconds before the first retry; doubled with each failure, with jitter."""

    backoff_limit: float = 2.0
    """Longest time between retries, seconds."""

    connect_timeout: float = 3.0
    """Seconds one address has to answer."""


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
    """Messages that the server reported as stored before."""

    dropped: int
    """Messages of droppable keys that were given up for want of room."""

    rejected: int
    """Messages without a key that were not taken for want of room."""

    refused: int
    """Messages that can never be stored: too large, or with a bad subject or id."""

    reordered: int
    """Messages stored behind a later one of their subject, after a refusal by the store itself."""

    reconnects: int
    """Connections lost and made again."""

    last_error: str
    """The last trouble, empty when there was none."""


class Publisher:
    """Publishes into JetStream for one service.

    Order: messages of one stream are stored in the order of `publish`, whatever breaks.
    Once: a message is stored once; after an outage of any length the stream is asked what it has,
    so that this does not rest on the stream's duplicate window. One subject must have one
    publisher at a time.

    Callbacks run in the event loop, must not block, and may call `publish`:

    - `on_connection(connected, detail)` when the broker comes and goes;
    - `on_dropped(key, count)` when everything unsent of a droppable key was given up, the message
      being published included: what follows for that key is worth nothing until it starts anew;
    - `on_rejected(subject, message_id, reason)` when a message was not taken, or can never be
      stored (`reason`: `BUFFER_FULL`, `TOO_LARGE`, `INVALID_SUBJECT`, `INVALID_MESSAGE_ID`).

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
    ) -> None:
        self._urls = server_urls(url)
        self._name = name
        self._options = options or PublisherOptions()
        self._on_connection = on_connection
        self._on_dropped = on_dropped
        self._on_rejected = on_rejected
        self._outbox = Outbox(self._options.limits, self._dropped_key)
        self._subjects: dict[str, Lane] = {}
        self._lanes: dict[str, Lane] = {}
        self._unrouted: dict[str, Lane] = {}
        self._batches: dict[bytes, Lane] = {}
        self._barriers: dict[str, asyncio.Future[None]] = {}
        self._routes: list[tuple[str, str]] = []
        self._connection: Connection | None = None
        self._owner: asyncio.Task[None] | None = None
        self._work: set[asyncio.Task[None]] = set()
        self._routing: asyncio.Task[None] | None = None
        self._flush_handle: asyncio.Handle | None = None
        self._tick_handle: asyncio.TimerHandle | None = None
        self._connected = asyncio.Event()
        self._settled = asyncio.Event()
        self._draining = 0
        self._count: Counter[str] = Counter()
        self._last_error = ""

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
        self._draining += 1
        try:
            async with asyncio.timeout(timeout):
                while self._outbox.messages or self._in_flight():
                    self._settled.clear()
                    self._arm_tick()
                    await self._settled.wait()
        except TimeoutError:
            return False
        finally:
            self._draining -= 1
        return True

    def publish(
        self, subject: str, payload: bytes, message_id: str, *, droppable_key: str | None = None
    ) -> bool:
        """Queue a message; never waits and never raises for what the broker does.

        `message_id` becomes `Nats-Msg-Id` and must be unique within the subject. Messages with a
        `droppable_key` may be given up together when the room is full (see `on_dropped`). Gives
        False when this message was not taken, which the callbacks told already.
        """
        lane = self._subjects.get(subject)
        if lane is None:
            if _SUBJECT.fullmatch(subject) is None or ".." in subject:
                return self._refuse(subject, message_id, "INVALID_SUBJECT", droppable_key)
            lane = self._lane_for(subject)
        if not (message_id and message_id.isascii() and message_id.isprintable()):
            return self._refuse(subject, message_id, "INVALID_MESSAGE_ID", droppable_key)
        entry = Entry(subject, payload, message_id)
        if not self._outbox.add(entry, droppable_key):
            self._after_drop()
            if droppable_key is None:
                self._count["rejected"] += 1
                self._reject(subject, message_id, "BUFFER_FULL")
            return False
        lane.buffer.append(entry)
        if lane.ready and self._flush_handle is None:
            self._schedule()
        if self._outbox.needs_sweep:
            self._after_drop()
        return True

    def tell(self, subject: str, payload: bytes) -> bool:
        """Send to whoever listens right now, unstored and unbuffered; False while unconnected."""
        connection = self._connection
        if connection is None or connection.is_closed or not self._connected.is_set():
            return False
        connection.publish(subject, payload)
        return True

    async def last_message(self, subject: str) -> StoredMessage | None:
        """Give the newest stored message of a subject, None when the streams hold none.

        Raises `ConnectionLost` or `NoResponders` when the broker does not answer.
        """
        connection = self._connection
        if connection is None:
            async with asyncio.timeout(self._options.connect_timeout):
                await self._connected.wait()
            connection = self._connection
            assert connection is not None
        stream = self._route(subject)
        if stream is None:
            await self._load_routes(connection)
            stream = self._route(subject)
        return await last_message(connection, stream, subject) if stream else None

    @property
    def status(self) -> PublisherStatus:
        """The state now."""
        count = self._count
        return PublisherStatus(
            connected=self._connected.is_set(),
            acknowledged=count["acknowledged"],
            in_flight=self._in_flight(),
            buffered=self._outbox.messages,
            buffered_bytes=self._outbox.bytes,
            duplicates=count["duplicates"],
            dropped=count["dropped"],
            rejected=count["rejected"],
            refused=count["refused"],
            reordered=count["reordered"],
            reconnects=count["reconnects"],
            last_error=self._last_error,
        )

    def collect(self) -> Iterable[Metric]:
        """Give the Prometheus metrics."""
        status = self.status
        messages = CounterMetricFamily(
            "marketprism_publisher_messages",
            "Messages by what became of them.",
            labels=["publisher", "outcome"],
        )
        for outcome in (
            "acknowledged",
            "duplicates",
            "dropped",
            "rejected",
            "refused",
            "reordered",
        ):
            messages.add_metric([self._name, outcome], getattr(status, outcome))
        yield messages
        reconnects = CounterMetricFamily(
            "marketprism_publisher_reconnects",
            "Connections to the broker lost and made again.",
            labels=["publisher"],
        )
        reconnects.add_metric([self._name], status.reconnects)
        yield reconnects
        for name, documentation, value in (
            ("connected", "1 when the broker and JetStream answer.", int(status.connected)),
            ("in_flight", "Messages sent and not yet acknowledged.", status.in_flight),
            ("buffered", "Messages that wait to be sent.", status.buffered),
            ("buffered_bytes", "What they take, bytes.", status.buffered_bytes),
        ):
            gauge = GaugeMetricFamily(
                f"marketprism_publisher_{name}", documentation, labels=["publisher"]
            )
            gauge.add_metric([self._name], value)
            yield gauge

    # Routing: which stream takes a subject.

    def _route(self, subject: str) -> str | None:
        return next((s for pattern, s in self._routes if subject_matches(pattern, subject)), None)

    def _lane_for(self, subject: str) -> Lane:
        stream = self._route(subject)
        if stream is None:
            lane = self._unrouted.setdefault(subject, Lane(""))
            if self._connection is not None:
                self._start_routing(self._connection)
        else:
            lane = self._lane_of_stream(stream)
        self._subjects[subject] = lane
        return lane

    def _lane_of_stream(self, stream: str) -> Lane:
        lane = self._lanes.get(stream)
        if lane is None:
            lane = self._lanes[stream] = Lane(stream)
            if self._connected.is_set() and self._connection is not None:
                self._begin(lane, self._connection)
                lane.ready = True
        return lane

    async def _load_routes(self, connection: Connection) -> None:
        streams = await list_streams(connection)
        self._routes = [
            (pattern, str(info["config"]["name"]))
            for info in streams
            for pattern in info["config"].get("subjects") or ()
        ]

    def _start_routing(self, connection: Connection) -> None:
        if self._routing is None or self._routing.done():
            self._routing = self._spawn(self._route_waiting(connection), "routing")

    async def _route_waiting(self, connection: Connection) -> None:
        delay = self._options.backoff
        while self._unrouted and not connection.is_closed:
            await self._load_routes(connection)
            if self._adopt_routed():
                delay = self._options.backoff
            if self._unrouted:
                subject = next(iter(self._unrouted))
                self._last_error = (
                    f"no stream takes {len(self._unrouted)} subjects such as {subject}; "
                    f"their messages wait"
                )
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311
                delay = min(delay * 2, self._options.backoff_limit)

    def _adopt_routed(self) -> int:
        adopted = 0
        for subject, waiting in list(self._unrouted.items()):
            stream = self._route(subject)
            if stream is not None:
                lane = self._lane_of_stream(stream)
                lane.resend.extend(waiting.resend)
                lane.buffer.extend(waiting.buffer)
                self._subjects[subject] = lane
                del self._unrouted[subject]
                adopted += 1
        if adopted:
            self._schedule()
        return adopted

    # Sending.

    def _begin(self, lane: Lane, connection: Connection) -> None:
        self._batches.pop(lane.batch.encode(), None)
        batch = lane.begin(f"{connection.inbox}.p", self._options.acknowledge_every)
        self._batches[batch.encode()] = lane

    def _schedule(self) -> None:
        connection = self._connection
        if connection is not None and connection.writable and self._flush_handle is None:
            self._flush_handle = asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_handle = None
        connection = self._connection
        if connection is None or connection.is_closed:
            return
        frames: list[bytes] = []
        too_large: list[Entry] = []
        room = _FLUSH_BYTES
        now = time.monotonic()
        more = False
        for lane in self._lanes.values():
            if not lane.ready or not lane.has_waiting:
                continue
            if not lane.unacknowledged and lane.number and now - lane.last_sent > 2.0:
                # The server forgets a batch that is silent for some seconds.
                self._begin(lane, connection)
            room -= lane.fill(
                frames,
                self._outbox,
                too_large,
                window=self._options.window,
                window_bytes=self._options.window_bytes,
                room=room,
                max_payload=connection.max_payload,
                now=now,
            )
            more = more or room <= 0
            if room <= 0:
                break
        if frames:
            connection.write(b"".join(frames))
            self._arm_tick()
        for entry in too_large:
            self._give_up(entry, "TOO_LARGE")
        if more:
            self._schedule()

    # Acknowledgements.

    def _on_reply(self, subject: bytes, _reply: bytes, header: bytes, payload: bytes) -> None:
        words = subject.split(b".")
        lane = self._batches.get(words[3])
        if lane is None:
            return
        if payload.startswith(_ACK):
            number = int(payload[len(_ACK) : payload.index(b",", len(_ACK))])
            self._acknowledged(lane, lane.acknowledge(number, time.monotonic()))
        else:
            self._on_trouble(lane, int(words[6]), header, payload)
        if int(words[7]) == OPERATION_PING:
            barrier = self._barriers.get(lane.batch)
            if barrier is not None and not barrier.done():
                barrier.set_result(None)

    def _acknowledged(self, lane: Lane, count: int) -> None:
        if not count:
            return
        self._count["acknowledged"] += count
        if lane.has_waiting and lane.ready:
            self._schedule()
        if self._draining:
            self._settled.set()

    def _on_trouble(self, lane: Lane, number: int, header: bytes, payload: bytes) -> None:
        if header.startswith(b"NATS/1.0 503"):
            self._break(lane, f"no stream takes the messages of {lane.stream}")
            return
        answer = json.loads(payload) if payload else {}
        error = answer.get("error")
        if error:
            code = int(error.get("err_code", 0))
            text = f"{error.get('description', 'refused')} (error {code})"
            lane.refused[number] = (code, text)
            if code != _BATCH_UNKNOWN or lane.ready:
                self._break(lane, f"stream {lane.stream}: {text}")
            return
        if answer.get("type") == "gap":
            self._break(lane, f"stream {lane.stream} missed messages")
        elif "batch" in answer and lane.ready:
            # The end of a batch that was not asked for: everything up to count is stored.
            self._acknowledged(lane, lane.acknowledge(int(answer["count"]), time.monotonic()))
            if answer.get("duplicate"):
                self._count["duplicates"] += 1
                self._break(lane, "")
            else:
                self._break(lane, f"stream {lane.stream} ended a batch")

    def _arm_tick(self) -> None:
        if self._tick_handle is None:
            self._tick_handle = asyncio.get_running_loop().call_later(_TICK, self._tick)

    def _tick(self) -> None:
        self._tick_handle = None
        connection = self._connection
        if connection is None:
            return
        now = time.monotonic()
        wait = 0.0 if self._draining else self._options.tail_check
        busy = False
        for lane in self._lanes.values():
            if not lane.unacknowledged:
                continue
            busy = True
            if not lane.ready:
                continue
            oldest = lane.unacknowledged[0].sent
            due = max(lane.last_progress, oldest) + self._options.ack_timeout
            if now > due:
                connection.close(
                    f"no acknowledgement for {self._options.ack_timeout:g} s from {lane.stream}"
                )
                return
            if now - oldest >= wait and now >= lane.next_tail_check:
                lane.next_tail_check = now + max(self._options.tail_check, _TICK)
                self._spawn(self._check_tail(lane, connection), "tail")
        if busy:
            self._arm_tick()

    async def _check_tail(self, lane: Lane, connection: Connection) -> None:
        batch = lane.batch
        newest = lane.unacknowledged[-1]
        found = await last_message(connection, lane.stream, newest.subject)
        if found is None or lane.batch != batch or not lane.ready:
            return
        stored = 0
        for entry in lane.unacknowledged:
            if entry.message_id == found.message_id and entry.subject == newest.subject:
                stored = entry.number
        self._acknowledged(lane, lane.acknowledge(stored, time.monotonic()))

    # Trouble.

    def _break(self, lane: Lane, reason: str) -> None:
        if not lane.ready:
            return
        lane.ready = False
        if reason:
            lane.failures += 1
            self._last_error = reason
            log.warning("%s: %s; finding out what is stored", self._name, reason)
        connection = self._connection
        if connection is not None:
            self._spawn(self._recover(lane, connection, barrier=True), "recovery")

    async def _recover(self, lane: Lane, connection: Connection, *, barrier: bool) -> None:
        """Find out what of a lane is stored, put the rest in order, and let the lane send again."""
        if lane.failures:
            await asyncio.sleep(self._backoff(lane.failures))
        if barrier and lane.unacknowledged:
            await self._pass_barrier(lane, connection)
        await self._load_routes(connection)
        entries = lane.take_unacknowledged()
        try:
            stored = await self._find_stored(entries, connection)
        except BaseException:
            lane.unacknowledged.extend(entries)
            lane.unacknowledged_bytes = sum(entry.size for entry in entries)
            raise
        lost: list[Entry] = []
        for entry in entries:
            code, text = lane.refused.get(entry.number, (0, ""))
            if code in _MESSAGE_TOO_LARGE or "too large" in text:
                self._give_up(entry, "TOO_LARGE")
            elif entry.number in lane.refused:
                if entry in stored:
                    self._count["reordered"] += 1
                lost.append(entry)
            elif entry in stored:
                self._count["acknowledged"] += 1
                lane.failures = 0
            else:
                lost.append(entry)
        lane.resend.extendleft(reversed(lost))
        self._rehome(lane)
        self._begin(lane, connection)
        lane.last_progress = time.monotonic()
        lane.ready = True
        self._schedule()
        if self._draining:
            self._settled.set()

    async def _pass_barrier(self, lane: Lane, connection: Connection) -> None:
        """Wait until the server has handled everything that was sent of the broken batch."""
        barrier: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._barriers[lane.batch] = barrier
        try:
            connection.publish(lane.unacknowledged[-1].subject, b"", lane.ping_reply())
            async with asyncio.timeout(self._options.ack_timeout):
                await barrier
        except TimeoutError:
            connection.close(f"no answer from {lane.stream} after it refused messages")
            raise
        finally:
            self._barriers.pop(lane.batch, None)

    async def _find_stored(self, entries: list[Entry], connection: Connection) -> set[Entry]:
        """Tell which of these are in their streams, by the last message of each subject."""
        subjects: dict[str, list[Entry]] = {}
        for entry in entries:
            subjects.setdefault(entry.subject, []).append(entry)
        stored: set[Entry] = set()
        limit = asyncio.Semaphore(_STREAMS_AT_ONCE)

        async def ask(subject: str, own: list[Entry]) -> None:
            stream = self._route(subject)
            if stream is None:
                return
            async with limit:
                newest = await last_message(connection, stream, subject)
            if newest is not None:
                last = max(
                    (i for i, e in enumerate(own) if e.message_id == newest.message_id), default=-1
                )
                stored.update(own[: last + 1])

        async with asyncio.TaskGroup() as group:
            for subject, own in subjects.items():
                group.create_task(ask(subject, own))
        return stored

    def _rehome(self, lane: Lane) -> None:
        """Move what another stream takes now, or none, out of a lane."""
        homes = {entry.subject: self._route(entry.subject) for entry in lane.waiting()}
        moved = {subject: home for subject, home in homes.items() if home != lane.stream}
        if not moved:
            return
        targets = {}
        for subject, home in moved.items():
            self._subjects.pop(subject, None)
            targets[subject] = (
                self._lane_of_stream(home) if home else self._unrouted.setdefault(subject, Lane(""))
            )
            self._subjects[subject] = targets[subject]
        for name in ("resend", "buffer"):
            stays: list[Entry] = []
            for entry in getattr(lane, name):
                target = targets.get(entry.subject)
                (stays if target is None else getattr(target, name)).append(entry)
            getattr(lane, name).clear()
            getattr(lane, name).extend(stays)
        if self._unrouted and self._connection is not None:
            self._start_routing(self._connection)

    def _backoff(self, failures: int) -> float:
        longest = min(
            self._options.backoff * 2.0 ** min(failures - 1, 16), self._options.backoff_limit
        )
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter needs no secret

    # The connection.

    async def _own_connection(self) -> None:
        failures = 0
        try:
            while True:
                try:
                    connection = await self._connect()
                except (MarketPrismError, OSError, TimeoutError) as error:
                    failures += 1
                    if failures == 1 or str(error) != self._last_error:
                        log.warning("%s: %s", self._name, error)
                    self._last_error = str(error)
                    await asyncio.sleep(self._backoff(failures))
                    continue
                failures = 0
                reason = await connection.closed
                self._on_lost(reason)
        finally:
            if self._connection is not None:
                self._connection.close("stopped")
                self._on_lost("stopped")
            for task in list(self._work):
                task.cancel()
            await asyncio.gather(*self._work, return_exceptions=True)

    async def _connect(self) -> Connection:
        connection = await Connection.open(
            self._urls, name=self._name, timeout=self._options.connect_timeout
        )
        try:
            connection.subscribe(f"{connection.inbox}.p.>", self._on_reply)
            connection.on_writable = self._schedule
            await self._load_routes(connection)
        except BaseException:
            connection.close("JetStream does not answer")
            raise
        self._connection = connection
        self._connected.set()
        self._tell_connection(True, f"connected to NATS at {connection.address}")
        self._adopt_routed()
        for lane in list(self._lanes.values()):
            if not lane.ready:
                self._spawn(self._recover(lane, connection, barrier=False), "recovery")
        if self._unrouted:
            self._start_routing(connection)
        return connection

    def _on_lost(self, reason: str) -> None:
        self._connection = None
        self._connected.clear()
        self._batches.clear()
        for task in list(self._work):
            task.cancel()
        for lane in self._lanes.values():
            lane.ready = False
            lane.failures = 0
        for handle in (self._flush_handle, self._tick_handle):
            if handle is not None:
                handle.cancel()
        self._flush_handle = self._tick_handle = None
        if self._owner is not None:
            self._count["reconnects"] += 1
            self._last_error = reason
            log.warning("%s: %s", self._name, reason)
        self._tell_connection(False, reason)

    def _spawn(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._guard(work, what))
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    async def _guard(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Run background work; whatever fails ends the connection, and the next begins anew."""
        connection = self._connection
        try:
            await work
        except (MarketPrismError, OSError, TimeoutError) as error:
            if connection is not None:
                connection.close(f"{what}: {error or 'no answer in time'}")
        except Exception as error:
            log.exception("%s: %s failed", self._name, what)
            if connection is not None:
                connection.close(f"{what}: {error!r}")

    # Giving up.

    def _in_flight(self) -> int:
        lanes = (*self._lanes.values(), *self._unrouted.values())
        return sum(len(lane.unacknowledged) + len(lane.resend) for lane in lanes)

    def _give_up(self, entry: Entry, reason: str) -> None:
        key = entry.key.name if entry.key is not None else None
        self._refuse(entry.subject, entry.message_id, reason, key)
        if self._draining:
            self._settled.set()

    def _refuse(self, subject: str, message_id: str, reason: str, key: str | None) -> bool:
        self._count["refused"] += 1
        self._last_error = f"{subject}: a message was refused: {reason}"
        self._reject(subject, message_id, reason)
        if key is not None:
            self._outbox.drop(key)
            self._after_drop()
        return False

    def _reject(self, subject: str, message_id: str, reason: str) -> None:
        if self._on_rejected is not None:
            try:
                self._on_rejected(subject, message_id, reason)
            except Exception:
                log.exception("%s: on_rejected failed", self._name)

    def _dropped_key(self, key: str, count: int) -> None:
        self._count["dropped"] += count
        if self._on_dropped is not None:
            try:
                self._on_dropped(key, count)
            except Exception:
                log.exception("%s: on_dropped failed", self._name)

    def _after_drop(self) -> None:
        if self._outbox.needs_sweep:
            for lane in (*self._lanes.values(), *self._unrouted.values()):
                lane.sweep(self._outbox)
            self._outbox.swept()
        if self._draining:
            self._settled.set()

    def _tell_connection(self, connected: bool, detail: str) -> None:
        if self._on_connection is not None:
            try:
                self._on_connection(connected, detail)
            except Exception:
                log.exception("%s: on_connection failed", self._name)
