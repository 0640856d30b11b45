"""Brings one kind of events from the broker into its table, each exactly once.

The broker remembers what was acknowledged, and a batch is acknowledged when it is in the table. In
between lies what a crash leaves unclear: an insert that happened and was not acknowledged. So each
row carries its place in the stream, and after a start, or an insert whose outcome is not known, the
table is asked which of the places that come again it holds; those are left out.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import DecodeError

from services.shared.errors import MarketPrismError
from services.shared.jetstream import Lost, PullBatch, PullConsumer, PullOptions, PullSession
from services.shared.log import get_logger
from services.storage.dead_letters import DeadLetters
from services.storage.engine import Engine, Row
from services.storage.errors import StoreRefused, StoreUnavailable, may_be_the_data
from services.storage.ingest_batch import Refused, Rows, store_good_rows
from services.storage.ingest_settings import IngestSettings
from services.storage.ingest_state import IngestState
from services.storage.tables import Table
from services.storage.wire import stored_ns

__all__ = ["TableIngest"]

# JetStream counts what surrounds a payload, and a batch that is full of small events holds more of
# that than of them.
_ENVELOPE: Final = 160
# So often a batch fails with a code that may be for its data before it is taken apart for it.
_ATTEMPTS: Final = 5
# A server's answer to an insert of nothing that it would have taken: NO_DATA_TO_INSERT.
_NO_DATA: Final = "108"


class TableIngest:
    """The way into one table; `state` tells how it goes."""

    def __init__(
        self,
        url: str,
        table: Table,
        engine: Engine,
        settings: IngestSettings,
        dead_letters: DeadLetters,
        *,
        on_batch: Callable[[Table, int, int, float], None] | None = None,
        on_stored: Callable[[Table, Rows], None] | None = None,
    ) -> None:
        self.table = table
        self.state = IngestState()
        """What became of it so far."""
        self.consumer = PullConsumer(
            url,
            table.stream,
            f"{settings.consumer}-{table.name}",
            filter_subject=table.subject,
            name=f"storage {table.name}",
            options=PullOptions(
                batch_messages=settings.batch_rows,
                batch_bytes=settings.batch_bytes + settings.batch_rows * _ENVELOPE,
                linger=settings.batch_seconds,
            ),
            on_lost=self._on_lost,
        )
        """What it reads."""
        self._engine = engine
        self._settings = settings
        self._dead_letters = dead_letters
        self._on_batch = on_batch
        self._on_stored = on_stored
        self._log = get_logger(table=table.name)
        self._session: PullSession | None = None
        self._attempted = (0, 0)
        self._unsure = 0
        self._outcome_is_unknown = False
        told = "receive_time" in table.descriptor.fields_by_name
        self._time_field = "receive_time" if told else table.time.field

    async def run(self, stopping: asyncio.Event) -> None:
        """Store what comes until `stopping` is set; a batch at work is finished before."""
        await self.consumer.start()
        stop = asyncio.ensure_future(stopping.wait())
        try:
            while not stopping.is_set():
                coming = asyncio.ensure_future(self.consumer.next_batch())
                await asyncio.wait({coming, stop}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)
                    return
                await self._store(coming.result(), stop)
        finally:
            stop.cancel()
            await self.consumer.stop()

    def read_again(self) -> None:
        """Compare all that the broker holds with the table, when it is next run."""
        self.consumer.read_again()
        self._session = None
        self._attempted = (0, 0)

    async def _store(self, batch: PullBatch, stop: "asyncio.Future[Any]") -> None:
        """Store a batch however long it takes, unless it comes again anyway."""
        delay = self._settings.retry_seconds
        set_aside: set[int] = set()
        begun = time.monotonic()
        doubts = 0
        while True:
            try:
                await self._attempt(batch, set_aside, in_doubt=doubts >= _ATTEMPTS)
                break
            except MarketPrismError as error:
                self._failed(error, begun)
                if isinstance(error, StoreUnavailable) and may_be_the_data(error):
                    doubts += 1
                else:
                    doubts = 0
            except Exception as error:
                # Whatever it is, giving up would stop this table for good.
                self._log.exception("storing failed")
                self._failed(StoreUnavailable(f"storing failed: {error!r}"), begun)
            if stop.done() or not self.consumer.is_current(batch):
                return
            await asyncio.wait({stop}, timeout=delay)
            delay = min(delay * 2, self._settings.retry_limit_seconds)
            if stop.done():
                return
        self.consumer.acknowledge(batch)
        self._succeeded(batch)

    async def _attempt(
        self, batch: PullBatch, set_aside: set[int], *, in_doubt: bool = False
    ) -> None:
        await self._enter(batch)
        created = batch.session.stream_created
        received = batch.received
        rows = Rows(received.payloads, received.sequences, created)
        if batch.received.sequences[0] <= self._unsure:
            held = await self._held(rows)
            rows = rows.without(held)
            self.state.held += len(held)
        rows = rows.without(set_aside)
        if not len(rows):
            return
        self._attempted = (created, batch.last_sequence)
        begun = time.perf_counter()
        try:
            insert = self._insert
            if in_doubt:
                await self._insert_nothing()
                insert = self._insert_in_doubt
            refused = await store_good_rows(rows, insert, self.table.message, self._stored)
            self._outcome_is_unknown = False
            await self._set_aside(batch, refused, set_aside)
        except BaseException:
            # Parts of it may be in the table: it is asked before anything is inserted again.
            self._unsure = max(self._unsure, batch.last_sequence)
            raise
        finally:
            if self._on_batch is not None:
                size = received.payload_bytes
                self._on_batch(self.table, len(rows), size, time.perf_counter() - begun)

    async def _insert(self, block: bytes) -> None:
        try:
            await self._engine.insert(self.table, block)
        except StoreRefused:
            raise
        except BaseException:
            self._outcome_is_unknown = True
            raise

    async def _insert_nothing(self) -> None:
        """Raise `StoreUnavailable` when the table takes no insert, whatever it is."""
        try:
            await self._engine.insert(self.table, b"")
        except StoreUnavailable as error:
            if error.metadata.get("code") != _NO_DATA:
                raise

    async def _insert_in_doubt(self, block: bytes) -> None:
        """Insert, and take a failure that may be for the data as a refusal."""
        try:
            await self._insert(block)
        except StoreUnavailable as error:
            if not may_be_the_data(error):
                raise
            code = int(error.metadata["code"])
            raise StoreRefused(f"{error.message} ({_ATTEMPTS} times)", code) from error

    def _stored(self, rows: Rows) -> None:
        self.state.rows += len(rows)
        if self._on_stored is not None:
            self._on_stored(self.table, rows)

    # What is not clear.

    async def _enter(self, batch: PullBatch) -> None:
        """Find out, once a session, up to where the table may hold what comes again."""
        session = batch.session
        if self._outcome_is_unknown:
            await self._wait_for_inserts()
            self._outcome_is_unknown = False
        if session is self._session:
            return
        created, attempted = self._attempted
        if created == session.stream_created and attempted <= session.ack_floor:
            self._unsure = 0
        else:
            rows = await self._ask(
                f"SELECT max(stream_sequence) FROM {self.table.name} "
                "WHERE stream_created = {created:UInt64} AND stream_sequence > {floor:UInt64}",
                created=session.stream_created,
                floor=session.ack_floor,
            )
            self._unsure = int(rows[0][0]) if rows else 0
        self._session = session

    async def _held(self, rows: Rows) -> set[int]:
        """Tell which of these rows the table holds.

        A broker that lost its newest messages in a failure of power gives their places to others:
        what lies at a place must have been received at the same time, too.
        """
        column = self._time_field
        found = await self._ask(
            f"SELECT stream_sequence, toUnixTimestamp64Nano({column}) FROM {self.table.name} "
            "WHERE stream_created = {created:UInt64} "
            "AND stream_sequence BETWEEN {first:UInt64} AND {last:UInt64}",
            created=rows.stream_created,
            first=rows.sequences[0],
            last=rows.sequences[-1],
        )
        if not found:
            return set()
        return await asyncio.to_thread(self._same, rows, {(int(s), int(t)) for s, t in found})

    def _same(self, rows: Rows, found: set[tuple[int, int]]) -> set[int]:
        places = {sequence for sequence, _ in found}
        held = set()
        for payload, sequence in zip(rows.payloads, rows.sequences, strict=True):
            if sequence not in places:
                continue
            try:
                event = self.table.message.FromString(payload)
            except DecodeError:
                continue
            if (sequence, stored_ns(getattr(event, self._time_field))) in found:
                held.add(sequence)
            else:
                self.state.replaced += 1
        return held

    async def _wait_for_inserts(self) -> None:
        """Make sure that no insert of ours is still at work on a server that we gave up on."""
        if self._engine.is_embedded:
            return
        cluster = self._engine.cluster
        processes = "system.processes"
        source = f"clusterAllReplicas('{cluster}', {processes})" if cluster else processes
        rows = await self._ask(
            f"SELECT count() FROM {source} WHERE query_kind = 'Insert' "
            "AND match(query, {insert:String})",
            insert=rf"(?i)^\s*INSERT\s+INTO\s+\S*\b{self.table.name}(_local)?\b",
        )
        if rows and int(rows[0][0]):
            raise StoreUnavailable(
                f"an earlier insert into {self.table.name} is still at work: its outcome is "
                "waited for"
            )

    async def _ask(self, sql: str, **parameters: object) -> list[Row]:
        try:
            return await self._engine.query(sql, parameters)
        except StoreRefused as error:
            # Only the data of an insert can be bad; a question that is refused is our trouble.
            raise StoreUnavailable(error.message) from error

    # What becomes of it.

    async def _set_aside(
        self, batch: PullBatch, refused: list[Refused], set_aside: set[int]
    ) -> None:
        if not refused:
            return
        received = batch.received
        places = {sequence: place for place, sequence in enumerate(received.sequences)}
        for each in refused:
            place = places[each.sequence]
            await self._dead_letters.put(
                self.table.stream,
                batch.session.stream_created,
                received.subjects[place],
                received.payloads[place],
                each,
            )
            set_aside.add(each.sequence)
            self.state.rejected += 1
            self.state.last_rejection = each.reason

    def _failed(self, error: MarketPrismError, since: float) -> None:
        state = self.state
        if state.failing_since is None:
            state.failing_since = since
        if state.last_error != error.message:
            self._log.warning("a batch waits", reason=error.message)
        state.last_error = error.message
        state.store_failed = isinstance(error, StoreUnavailable)
        state.retries += 1

    def _succeeded(self, batch: PullBatch) -> None:
        state = self.state
        if state.failing_since is not None:
            waited = time.monotonic() - state.failing_since
            self._log.info("stored again", after_seconds=round(waited, 1))
        state.failing_since = None
        state.last_error = ""
        state.store_failed = False
        state.batches += 1
        state.bytes += batch.received.payload_bytes
        state.last_write = time.time()
        try:
            event = self.table.message.FromString(batch.received.payloads[-1])
        except DecodeError:
            return
        received = stored_ns(getattr(event, self._time_field)) / 1e9
        state.newest_event = received

    def _on_lost(self, lost: Lost) -> None:
        self.state.lost += lost.at_most
        self.state.last_loss = time.monotonic()
