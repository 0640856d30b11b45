"""Ingestion: every kind of events from the broker into its table, and how that goes.

Each table has a durable consumer, a batch and a retry of its own, so that one that stands still
(a dead letter that nobody takes, a table that is damaged) holds up no other. What waits stays in
the broker: no more than two batches a table are held here.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Final

from marketprism.history.v1 import store_pb2

from services.shared.health import DependencyStatus
from services.shared.telemetry import Metrics
from services.storage.dead_letters import DeadLetters
from services.storage.engine import Engine
from services.storage.ingest_batch import Rows
from services.storage.ingest_settings import IngestSettings
from services.storage.ingest_table import TableIngest
from services.storage.tables import TABLES, Table

__all__ = ["Ingest"]

_REMEMBER_LOSS_SECONDS: Final = 600.0
_INSERT_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_OUTCOMES: Final = ("held", "rejected", "replaced", "lost")


class Ingest:
    """The ways into all tables."""

    def __init__(
        self,
        url: str,
        engine: Engine,
        settings: IngestSettings,
        metrics: Metrics,
        tables: Iterable[Table] = TABLES.values(),
        *,
        on_stored: Callable[[Table, Rows], None] | None = None,
    ) -> None:
        """Store what comes of these tables; `on_stored` is told of rows that can be read now."""
        self._settings = settings
        self._dead_letters = DeadLetters(url)
        self._rows = metrics.counter("ingest_rows", "Events stored.", ["table"])
        self._bytes = metrics.counter("ingest_bytes", "Bytes of events stored.", ["table"])
        self._inserts = metrics.histogram(
            "ingest_insert_seconds",
            "Time of one batch on its way into the database, dead letters included.",
            ["table"],
            _INSERT_BUCKETS,
        )
        self.tables = {
            table.name: TableIngest(
                url,
                table,
                engine,
                settings,
                self._dead_letters,
                on_batch=self._count,
                on_stored=on_stored,
            )
            for table in tables
        }
        """The way into each table, by its name."""
        self._allowed = asyncio.Event()
        self._allowed.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._end = asyncio.Event()
        self._watch(metrics)

    async def run(self, ready: asyncio.Event, stopping: asyncio.Event) -> None:
        """Store events from when the schema is there until `stopping` is set."""
        ending = asyncio.ensure_future(self._end_with(stopping))
        try:
            while await _first_of(ready, stopping) and await _first_of(self._allowed, stopping):
                self._end.clear()
                self._idle.clear()
                try:
                    async with asyncio.TaskGroup() as group:
                        for name, table in self.tables.items():
                            group.create_task(table.run(self._end), name=f"ingest {name}")
                finally:
                    self._idle.set()
        finally:
            ending.cancel()
            await self._dead_letters.close()

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Store nothing meanwhile; then compare all that the broker holds with the tables.

        So a restore of a backup gets back what came since then and is still in the broker.
        """
        self._allowed.clear()
        self._end.set()
        await self._idle.wait()
        try:
            yield
        finally:
            for table in self.tables.values():
                table.read_again()
            self._allowed.set()

    async def _end_with(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._end.set()

    @property
    def writable(self) -> bool:
        """Whether the database took the last batch of every table."""
        return not any(each.state.store_failed for each in self.tables.values())

    def dependencies(self) -> Mapping[str, DependencyStatus]:
        """Tell the state of the broker, and of ingestion."""
        return {"broker": self._broker_health(), "ingest": self._ingest_health()}

    def streams(self) -> list[store_pb2.IngestStream]:
        """Tell how far each stream of the broker is stored: as far as the last of its tables."""
        by_stream: dict[str, list[TableIngest]] = {}
        for each in self.tables.values():
            by_stream.setdefault(each.table.stream, []).append(each)
        return [_stream_status(stream, those) for stream, those in by_stream.items()]

    def _broker_health(self) -> DependencyStatus:
        away = {n: t for n, t in self.tables.items() if not t.consumer.status.live}
        if not away:
            return DependencyStatus.healthy()
        table = next(iter(away.values()))
        why = table.consumer.status.last_error or "connecting"
        return DependencyStatus.degraded(
            f"{why}; what is stored is served, and {_these(away)} are read on when it is there",
            tables_not_read=list(away),
        )

    def _ingest_health(self) -> DependencyStatus:
        states = {name: each.state for name, each in self.tables.items()}
        facts: dict[str, Any] = {
            "rows": sum(state.rows for state in states.values()),
            "pending": sum(each.consumer.status.pending for each in self.tables.values()),
            "rejected": sum(state.rejected for state in states.values()),
            "lost": sum(state.lost for state in states.values()),
        }
        waiting = {n: s for n, s in states.items() if s.failing_since is not None}
        if waiting:
            name = min(waiting, key=lambda each: waiting[each].failing_since or 0.0)
            state = waiting[name]
            since = time.monotonic() - (state.failing_since or 0.0)
            return DependencyStatus.degraded(
                f"{_these(waiting)} have stored nothing for {since:.0f} s: {state.last_error}; "
                "events wait in the broker",
                waiting_seconds=round(since, 1),
                **facts,
            )
        lost = {
            n: s
            for n, s in states.items()
            if s.last_loss and time.monotonic() < s.last_loss + _REMEMBER_LOSS_SECONDS
        }
        if lost:
            return DependencyStatus.degraded(
                f"the broker dropped up to {sum(s.lost for s in lost.values())} events of "
                f"{_these(lost)} before they were stored; give its streams more room "
                "(config/broker.yaml), or keep the database up",
                **facts,
            )
        behind = {n: each for n in self.tables if (each := self._wait_seconds(n)) > 0.0}
        late = {n: each for n, each in behind.items() if each > self._settings.behind_seconds}
        if late:
            return DependencyStatus.degraded(
                f"{_these(late)} are {max(late.values()):.0f} s behind the broker",
                behind_seconds=round(max(late.values()), 1),
                **facts,
            )
        return DependencyStatus.healthy(**facts)

    def _wait_seconds(self, name: str) -> float:
        """For how long the oldest event that is not stored waits in the broker, seconds."""
        oldest = self.tables[name].consumer.status.oldest_waiting
        return max(0.0, time.time() - oldest) if oldest else 0.0

    def _count(self, table: Table, rows: int, size: int, seconds: float) -> None:
        self._rows.labels(table.name).inc(rows)
        self._bytes.labels(table.name).inc(size)
        self._inserts.labels(table.name).observe(seconds)

    def _watch(self, metrics: Metrics) -> None:
        messages = metrics.gauge(
            "ingest_messages",
            "Messages since the start that became no new row: held already, rejected (dead "
            "letters), replaced by the broker, lost before they were stored.",
            ["table", "outcome"],
        )
        pending = metrics.gauge("ingest_pending", "Messages in the broker, not read.", ["table"])
        waiting = metrics.gauge("ingest_waiting", "Messages read and not handled.", ["table"])
        behind = metrics.gauge(
            "ingest_behind_seconds", "Age of the oldest event that is not stored.", ["table"]
        )
        failing = metrics.gauge(
            "ingest_failing", "1 while a batch waits for the database or the broker.", ["table"]
        )
        for name, each in self.tables.items():
            state, consumer = each.state, each.consumer
            for outcome in _OUTCOMES:
                messages.labels(name, outcome).set_function(
                    lambda s=state, o=outcome: float(getattr(s, o))  # type: ignore[misc]
                )
            pending.labels(name).set_function(
                lambda c=consumer: float(c.status.pending)  # type: ignore[misc]
            )
            waiting.labels(name).set_function(
                lambda c=consumer: float(c.status.waiting)  # type: ignore[misc]
            )
            behind.labels(name).set_function(
                lambda n=name: self._wait_seconds(n)  # type: ignore[misc]
            )
            failing.labels(name).set_function(
                lambda s=state: float(s.failing_since is not None)  # type: ignore[misc]
            )


async def _first_of(wanted: asyncio.Event, stopping: asyncio.Event) -> bool:
    """Wait for one or the other; False when it is time to stop."""
    waits = [asyncio.ensure_future(each.wait()) for each in (wanted, stopping)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            each.cancel()
    return not stopping.is_set()


def _these(tables: Iterable[str]) -> str:
    names = list(tables)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _stream_status(stream: str, tables: list[TableIngest]) -> store_pb2.IngestStream:
    statuses = [each.consumer.status for each in tables]
    states = [each.state for each in tables]
    known = store_pb2.IngestStream(
        stream=stream,
        stored_sequence=min(each.settled_sequence for each in statuses),
        pending=sum(each.pending + each.unsettled for each in statuses),
        rows=sum(each.rows for each in states),
        rejected=sum(each.rejected for each in states),
        last_error=next((each.last_error for each in states if each.last_error), ""),
    )
    newest = max(each.newest_event for each in states)
    if newest:
        known.lag.FromMilliseconds(max(0, round((time.time() - newest) * 1000)))
    written = max(each.last_write for each in states)
    if written:
        known.last_write_time.FromMilliseconds(round(written * 1000))
    return known
