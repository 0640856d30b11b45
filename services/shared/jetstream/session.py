"""What a publisher does on one connection: send, count acknowledgements, find out what is stored.

A session ends with its connection and leaves nothing behind but the lanes, whose messages in
flight the next session accounts for first.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

from services.shared.errors import MarketPrismError
from services.shared.jetstream.api import last_message, list_streams
from services.shared.jetstream.connection import Connection
from services.shared.jetstream.lane import OPERATION_END, OPERATION_PING, Lane
from services.shared.jetstream.options import PublisherCounts, PublisherOptions
from services.shared.jetstream.outbox import Entry, Key, Outbox
from services.shared.jetstream.routes import Routes
from services.shared.log import get_logger

__all__ = ["PublishSession", "backoff_delay"]

_ACK = b'{"type":"ack","seq":'
_TICK = 0.025
_FLUSH_BYTES = 1024 * 1024
_FLUSH_BYTES_LEAST = 64 * 1024
_PROBE_WINDOW = 64
_TAIL_MISSES = 5
# The server forgets a batch that is silent for ten seconds.
_BATCH_SILENCE = 2.0
_MESSAGE_TOO_LARGE = {10054, 10097}
_BATCHES_OFF = 10205
_QUERIES_AT_ONCE = 64


class PublishSession:
    """The publisher's work on one live connection.

    `on_stored()` is called after messages became known to be stored, `on_refused(entry)` for one
    that the server will never take. While `may_send()` is false nothing new is sent; who makes it
    true again calls `schedule`.
    """

    def __init__(
        self,
        connection: Connection,
        routes: Routes,
        outbox: Outbox,
        options: PublisherOptions,
        counts: PublisherCounts,
        *,
        name: str,
        on_stored: Callable[[], None],
        on_refused: Callable[[Entry], None],
        may_send: Callable[[], bool] | None = None,
    ) -> None:
        self.connection = connection
        self.urgent = False
        """Whether somebody waits for the last acknowledgements."""
        self._routes = routes
        self._outbox = outbox
        self._options = options
        self._counts = counts
        self._on_stored = on_stored
        self._on_refused = on_refused
        self._may_send = may_send
        self._name = name
        self._log = get_logger(publisher=name)
        self._loop = asyncio.get_running_loop()
        self._batches: dict[bytes, Lane] = {}
        self._answers: dict[str, asyncio.Future[bytes]] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._routing: asyncio.Task[None] | None = None
        self._flush_handle: asyncio.Handle | None = None
        self._tick_handle: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Learn the streams and begin; raises when JetStream does not answer."""
        connection = self.connection
        connection.subscribe(f"{connection.inbox}.p.>", self._on_reply)
        connection.on_writable = self.schedule
        await self._learn_streams()
        self._routes.adopt()
        for lane in list(self._routes.lanes.values()):
            self._spawn(self._recover(lane), "recovery")
        self.route_waiting()

    async def close(self) -> None:
        """End; lanes keep what is not known to be stored."""
        for lane in self._routes:
            lane.ready = False
            lane.failures = 0
        for handle in (self._flush_handle, self._tick_handle):
            if handle is not None:
                handle.cancel()
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        self._batches.clear()

    def prepare(self, lane: Lane) -> None:
        """Let a lane that has nothing in flight send."""
        if not lane.ready and lane.stream and not lane.unacknowledged:
            self._begin(lane)
            lane.ready = True
        if not lane.stream:
            self.route_waiting()

    def schedule(self) -> None:
        """Send what may be sent, in this turn of the event loop."""
        if self._flush_handle is None and self.connection.writable:
            self._flush_handle = self._loop.call_soon(self._flush)

    def watch(self) -> None:
        """Make sure that acknowledgements are looked after."""
        if self._tick_handle is None:
            self._tick_handle = self._loop.call_later(_TICK, self._tick)

    def route_waiting(self) -> None:
        """Make sure that subjects without a stream are looked after."""
        if self._routes.unrouted and (self._routing is None or self._routing.done()):
            self._routing = self._spawn(self._route(), "routing")

    # Sending.

    def _begin(self, lane: Lane) -> None:
        self._batches.pop(lane.batch.encode(), None)
        batch = lane.begin(f"{self.connection.inbox}.p", self._options.acknowledge_every)
        self._batches[batch.encode()] = lane

    def _flush(self) -> None:
        self._flush_handle = None
        connection = self.connection
        if connection.is_closed or (self._may_send is not None and not self._may_send()):
            return
        lanes = [lane for lane in self._routes.lanes.values() if lane.ready and lane.has_waiting]
        if not lanes:
            return
        frames: list[bytes] = []
        room = max(_FLUSH_BYTES // len(lanes), _FLUSH_BYTES_LEAST)
        now = time.monotonic()
        more = False
        for lane in lanes:
            if not lane.unacknowledged and lane.number and now - lane.last_sent > _BATCH_SILENCE:
                self._begin(lane)
            window = self._options.window if not lane.failures else _PROBE_WINDOW
            used = lane.fill(
                frames,
                self._outbox,
                self._on_refused,
                window=window,
                window_bytes=self._options.window_bytes,
                room=room,
                max_payload=connection.max_payload,
                now=now,
            )
            more = more or used >= room
        if frames:
            connection.write(b"".join(frames))
            self.watch()
        if more:
            self.schedule()

    # Acknowledgements.

    def _on_reply(self, subject: bytes, _reply: bytes, header: bytes, payload: bytes) -> None:
        words = subject.split(b".")
        lane = self._batches.get(words[3])
        if lane is None:
            return
        if payload.startswith(_ACK):
            number = int(payload[len(_ACK) : payload.index(b",", len(_ACK))])
            self._acknowledge(lane, number)
        else:
            self._on_trouble(lane, int(words[6]), header, payload)
        if int(words[7]) in (OPERATION_PING, OPERATION_END):
            answer = self._answers.get(lane.batch)
            if answer is not None and not answer.done():
                answer.set_result(payload)

    def _acknowledge(self, lane: Lane, number: int) -> None:
        count = lane.acknowledge(number, time.monotonic())
        if count:
            self._counts.acknowledged += count
            if lane.ready and lane.has_waiting:
                self.schedule()
            self._on_stored()

    def _on_trouble(self, lane: Lane, number: int, header: bytes, payload: bytes) -> None:
        if header.startswith(b"NATS/1.0 503"):
            self._break(lane, f"no stream takes the messages of {lane.stream} any more")
            return
        answer = json.loads(payload) if payload else {}
        error = answer.get("error")
        if error:
            code = int(error.get("err_code", 0))
            text = f"{error.get('description', 'refused')} (error {code})"
            if code == _BATCHES_OFF:
                text += ": set allow_batched on the stream"
            lane.refused.setdefault(number, (code, text))
            self._break(lane, f"stream {lane.stream}: {text}")
        elif answer.get("type") == "gap":
            self._break(lane, f"stream {lane.stream} missed messages")
        elif "batch" in answer and lane.ready:
            # The end of a batch that nobody asked to end: all up to count is stored.
            self._acknowledge(lane, int(answer["count"]))
            self._break(lane, f"stream {lane.stream} ended a batch")

    def _tick(self) -> None:
        self._tick_handle = None
        now = time.monotonic()
        wait = 0.0 if self.urgent else self._options.tail_check
        busy = False
        for lane in self._routes.lanes.values():
            if not lane.unacknowledged:
                continue
            busy = True
            if not lane.ready:
                continue
            oldest = lane.unacknowledged[0].sent
            if now > max(lane.last_progress, oldest) + self._options.ack_timeout:
                self.connection.close(
                    f"no acknowledgement from stream {lane.stream} for "
                    f"{self._options.ack_timeout:g} s"
                )
                return
            if now - oldest >= wait and now >= lane.next_tail_check:
                lane.next_tail_check = now + max(self._options.tail_check, _TICK)
                self._spawn(self._check_tail(lane), "tail")
        if busy:
            self.watch()

    async def _check_tail(self, lane: Lane) -> None:
        """Ask whether the last message sent is stored: then all before it are too."""
        if not lane.unacknowledged:
            # Acknowledged between the tick and the start of this task.
            return
        batch = lane.batch
        newest = lane.unacknowledged[-1]
        found = await last_message(self.connection, lane.stream, newest.subject)
        if lane.batch != batch or not lane.ready:
            return
        stored = 0
        if found is not None:
            for entry in lane.unacknowledged:
                if entry.message_id == found.message_id and entry.subject == newest.subject:
                    stored = entry.number
        if stored:
            self._acknowledge(lane, stored)
            return
        lane.tail_misses += 1
        if lane.tail_misses > _TAIL_MISSES and lane.unacknowledged:
            # It may be stored and gone again already: expired, purged, replaced by another's.
            lane.tail_misses = 0
            lane.ready = False
            answer = json.loads(await self._ask(lane, lane.end_reply()) or b"{}")
            self._acknowledge(lane, int(answer.get("count", 0)))
            await self._recover(lane)

    # Trouble.

    def _break(self, lane: Lane, reason: str) -> None:
        if not lane.ready:
            return
        lane.ready = False
        lane.failures += 1
        self._counts.last_error = reason
        self._log.warning("not all was stored, finding out what", reason=reason)
        self._spawn(self._recover_broken(lane), "recovery")

    async def _recover_broken(self, lane: Lane) -> None:
        await asyncio.sleep(self._backoff(lane.failures))
        if lane.unacknowledged:
            await self._ask(lane, lane.ping_reply())
        await self._learn_streams()
        await self._recover(lane)

    async def _recover(self, lane: Lane) -> None:
        """Find out what of a lane is stored, put the rest in order, and let the lane send."""
        entries = list(lane.unacknowledged)
        stored = await self._find_stored(entries)
        lane.forget_unacknowledged()
        lost: list[Entry] = []
        # What follows a refused message of the same key is worth nothing.
        spoilt: set[Key | None] = set()
        for entry in entries:
            code, text = lane.refused.get(entry.number, (0, ""))
            if code in _MESSAGE_TOO_LARGE or "too large" in text:
                self._on_refused(entry)
                spoilt.add(entry.key)
            elif entry.key is not None and entry.key in spoilt:
                self._on_refused(entry)
            elif entry not in stored:
                if not entry.withdrawn:
                    lost.append(entry)
            elif code:
                # The store refused it and took a later one of its subject.
                if not entry.withdrawn:
                    self._counts.reordered += 1
                    lost.append(entry)
            else:
                self._counts.acknowledged += 1
                self._counts.duplicates += 1
                lane.failures = 0
        lane.resend.extendleft(reversed(lost))
        self._routes.rehome(lane)
        for each in list(self._routes.lanes.values()):
            self.prepare(each)
        self.route_waiting()
        lane.last_progress = time.monotonic()
        self.schedule()
        self._on_stored()

    async def _ask(self, lane: Lane, reply: str) -> bytes:
        """Ask the server something of the open batch; it answers after all that was sent of it."""
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._answers[lane.batch] = answer
        try:
            self.connection.publish(lane.unacknowledged[-1].subject, b"", reply)
            async with asyncio.timeout(self._options.ack_timeout):
                return await answer
        finally:
            self._answers.pop(lane.batch, None)

    async def _find_stored(self, entries: list[Entry]) -> set[Entry]:
        """Tell which of these are in their streams, by the last message of each subject."""
        subjects: dict[str, list[Entry]] = {}
        for entry in entries:
            subjects.setdefault(entry.subject, []).append(entry)
        stored: set[Entry] = set()
        limit = asyncio.Semaphore(_QUERIES_AT_ONCE)

        async def ask(subject: str, own: list[Entry]) -> None:
            stream = self._routes.stream_of(subject)
            if stream is None:
                return
            async with limit:
                newest = await last_message(self.connection, stream, subject)
            if newest is not None:
                last = max(
                    (i for i, e in enumerate(own) if e.message_id == newest.message_id), default=-1
                )
                stored.update(own[: last + 1])

        async with asyncio.TaskGroup() as group:
            for subject, own in subjects.items():
                group.create_task(ask(subject, own))
        return stored

    async def _learn_streams(self) -> None:
        self._routes.learn(await list_streams(self.connection))

    async def _route(self) -> None:
        """Look for streams again and again, until every subject has one."""
        failures = 0
        while self._routes.unrouted:
            await self._learn_streams()
            if self._routes.adopt():
                failures = 0
                for lane in list(self._routes.lanes.values()):
                    self.prepare(lane)
                self.schedule()
            if self._routes.unrouted:
                failures += 1
                subject = next(iter(self._routes.unrouted))
                self._counts.last_error = (
                    f"no stream takes {len(self._routes.unrouted)} subjects such as {subject}: "
                    "their messages wait"
                )
                await asyncio.sleep(self._backoff(failures))

    def _backoff(self, failures: int) -> float:
        return backoff_delay(failures, self._options)

    def _spawn(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        task = self._loop.create_task(self._guard(work, what), name=f"{self._name}: {what}")
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        # A task that is cancelled before its first step never comes to await its work.
        task.add_done_callback(lambda _: work.close())
        return task

    async def _guard(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Run background work; when it fails the connection ends, and the next begins anew."""
        try:
            await work
        except (MarketPrismError, OSError, TimeoutError) as error:
            self.connection.close(f"{what}: {error}" if str(error) else f"{what}: no answer")
        except BaseExceptionGroup as group:
            self.connection.close(f"{what}: {group.exceptions[0]}")
        except Exception as error:
            self._log.exception("background work failed", work=what)
            self.connection.close(f"{what}: {error!r}")


def backoff_delay(failures: int, options: PublisherOptions) -> float:
    """Give the seconds to wait after so many failures in a row, from 1."""
    longest = min(options.backoff * 2.0 ** min(failures - 1, 16), options.backoff_limit)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter needs no secret
