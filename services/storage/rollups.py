"""Keeps candles and spreads in step with the events they are made of, exactly once by repetition.

Which buckets of time new rows touch is asked of the table itself, by the rows' places in their
streams; those buckets are computed anew from all that is stored of them, and only then the places
are marked as done. A kill anywhere leaves work that is done again with the same result. That holds
under what ingestion promises: every row has the place of its delivery, and a row is inserted while
fewer than `HOLES` stretches of places above it are missing.

Why not materialised views of the database: one that an insert triggers writes its part after the
table's, so that a kill between them loses it, and it counts a trade twice that came twice. One that
is refreshed by a timer runs in the embedded engine too, but it cannot mark what it has read, nor
take a backlog in bounded steps, and in a cluster every replica would refresh it.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any, Final, TypeVar

from clickhouse_connect.driver.client import Client

from services.shared.errors import MarketPrismError
from services.shared.health import DependencyStatus
from services.shared.log import get_logger
from services.shared.telemetry import Metrics
from services.storage import places as place_sets
from services.storage.engine import Engine
from services.storage.errors import StoreRefused, StoreUnavailable, classify
from services.storage.places import LAST_SEQUENCE, Ranges
from services.storage.rollup_marks import COLUMNS, SELECT, Marks
from services.storage.rollup_sql import (
    LEVELS,
    Step,
    candle_step,
    spread_step,
    trade_second_step,
)
from services.storage.settings import RollupSettings

__all__ = ["COARSE", "FINE", "HOLES", "SPREADS", "Rollups"]

FINE: Final = "candles"
"""Rollup of the candles of a second and of a minute."""

COARSE: Final = "candles_coarse"
"""Rollup of longer candles."""

SPREADS: Final = "spreads"
"""Rollup of spreads."""

HOLES: Final = 200
"""Missing stretches of places that are waited for in each stream; of more the lowest are given up.
"""

_MOST_ROWS: Final = 200_000
_LEAST_ROWS: Final = 1_000
# Longer candles are made of candles, so a round can take more trades at a time.
_COARSE_SHARE: Final = 50
_T = TypeVar("_T")


class Rollups:
    """The task that makes derived rows. `run` is its life; `step` is one round, for tests."""

    def __init__(
        self,
        engine: Engine,
        settings: RollupSettings | None = None,
        metrics: Metrics | None = None,
        *,
        most_rows: int = _MOST_ROWS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is connected yet. `most_rows` bounds what one step takes at a time."""
        self._settings = settings or RollupSettings()
        self._database = _Database(engine)
        self._fine = _Rollup(
            FINE, [trade_second_step(), candle_step(LEVELS[1], LEVELS[0])], most_rows
        )
        self._coarse = _Rollup(
            COARSE,
            [candle_step(level, finer) for finer, level in pairwise(LEVELS[1:])],
            most_rows * _COARSE_SHARE,
        )
        self._spreads = _Rollup(SPREADS, [spread_step()], most_rows)
        self._clock = clock
        self._log = get_logger()
        self._loaded = False
        self._trouble = ""
        self._complete = dict.fromkeys((FINE, COARSE, SPREADS), clock())
        made = metrics or Metrics("storage")
        self._steps = made.counter("rollup_steps", "Rounds of work done.", ["rollup"])
        self._failures = made.counter("rollup_failures", "Rounds that failed.", ["rollup"])
        self._seconds = made.histogram("rollup_seconds", "Time of a round of work.", ["rollup"])
        behind = made.gauge(
            "rollup_behind_seconds",
            "Since when derived rows may lack events, seconds; a short wait between looks is "
            "normal.",
            ["rollup"],
        )
        for name in self._complete:
            behind.labels(name).set_function(partial(self._behind, name))

    async def run(self, stop: asyncio.Event) -> None:
        """Keep derived rows up to date until `stop` is set; the schema must be there."""
        next_coarse = self._clock()
        try:
            while not stop.is_set():
                await self._attempt(self._fine, self.step_fine)
                more = self._fine.more
                if self._clock() >= next_coarse:
                    await self._attempt(self._coarse, self.step_coarse)
                    await self._attempt(self._spreads, self.step_spreads)
                    if self._coarse.more or self._spreads.more:
                        more = True
                    else:
                        next_coarse = self._clock() + self._settings.coarse_seconds
                if not more:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), self._settings.fine_seconds)
        finally:
            await self.close()

    async def catch_up(self) -> None:
        """Do everything there is to do; raises as the steps do."""
        for step in (self.step_fine, self.step_coarse, self.step_spreads):
            while await step():
                pass

    async def step_fine(self) -> bool:
        """Make candles of a second and a minute for some new trades; False when there are none."""
        return await self._step_new(self._fine)

    async def step_spreads(self) -> bool:
        """Make spreads for some new quotes; False when there are none."""
        return await self._step_new(self._spreads)

    async def step_coarse(self) -> bool:
        """Make longer candles out of those of a minute; False when there is nothing to do."""
        await self._load()
        rollup, began = self._coarse, self._complete[FINE]
        rollup.more = False
        for stream, ready in self._fine.marks.places.items():
            done = rollup.marks.places.get(stream, ())
            whole = place_sets.without(ready, done)
            todo = place_sets.cut(whole, rollup.rows)
            if not todo:
                continue
            condition, parameters = place_sets.at({stream: todo})
            await self._apply(rollup, stream, done, todo, condition, parameters)
            rollup.more = todo != whole or stream != max(self._fine.marks.places)
            if not rollup.more:
                self._complete[rollup.name] = began
            return True
        self._complete[rollup.name] = began
        return False

    async def close(self) -> None:
        """Let go of the database; a statement at work is waited for."""
        self._loaded = False
        await self._database.close()

    def status(self) -> DependencyStatus:
        """Tell whether derived rows are up to date, for the service's `dependencies`."""
        behind = {name: round(self._behind(name), 1) for name in self._complete}
        worst = max(behind.values())
        facts: dict[str, Any] = {"behind_seconds": behind}
        if worst > self._settings.behind_seconds:
            why = self._trouble or "it is catching up"
            return DependencyStatus.degraded(
                f"candles and spreads may lack the last {worst:.0f} s: {why}", **facts
            )
        return DependencyStatus.healthy(**facts)

    # How.

    def _behind(self, name: str) -> float:
        return max(0.0, self._clock() - self._complete[name])

    async def _attempt(self, rollup: "_Rollup", step: Callable[[], Awaitable[bool]]) -> None:
        name, began = rollup.name, self._clock()
        try:
            worked = await step()
        except MarketPrismError as error:
            self._failures.labels(name).inc()
            if self._trouble != error.message:
                self._log.warning("derived rows wait", rollup=name, reason=error.message)
            self._trouble = error.message
            # What went wrong may be that it was too much at once, or the connection.
            rollup.rows = max(_LEAST_ROWS, rollup.rows // 2)
            rollup.more = False
            await self.close()
            return
        if worked:
            self._steps.labels(name).inc()
            self._seconds.labels(name).observe(self._clock() - began)
        self._trouble = ""

    async def _load(self) -> None:
        if self._loaded:
            return
        every = (self._fine, self._coarse, self._spreads)
        rows = await self._database.query(SELECT, {"rollups": [rollup.name for rollup in every]})
        for rollup in every:
            rollup.marks.load(rows)
        self._loaded = True

    async def _step_new(self, rollup: "_Rollup") -> bool:
        await self._load()
        began = self._clock()
        new, parameters = place_sets.not_at(rollup.marks.places)
        streams = await self._database.query(
            "SELECT stream_created, min(stream_sequence), max(stream_sequence) "
            f"FROM {rollup.source} WHERE {new} GROUP BY stream_created ORDER BY stream_created",
            parameters,
        )
        rollup.more = False
        if not streams:
            self._complete[rollup.name] = began
            return False
        stream, first, newest = (int(value) for value in streams[0])
        last = min(first + rollup.rows - 1, LAST_SEQUENCE)
        rows = (
            f"stream_created = {{stream:UInt64}} AND stream_sequence BETWEEN {{first:UInt64}} "
            f"AND {{last:UInt64}} AND {new}"
        )
        parameters |= {"stream": stream, "first": first, "last": last}
        found = await self._database.query(
            "SELECT min(place), max(place) FROM ("
            "SELECT place, place - row_number() OVER (ORDER BY place) AS run FROM ("
            f"SELECT DISTINCT stream_sequence AS place FROM {rollup.source} WHERE {rows})) "
            "GROUP BY run ORDER BY 1",
            parameters,
        )
        seen: Ranges = tuple((int(low), int(high)) for low, high in found)
        # A merge can take a row away in between that another one of its identity replaces.
        if seen:
            done = rollup.marks.places.get(stream, ())
            await self._apply(rollup, stream, done, seen, rows, parameters)
        rollup.more = newest > last or len(streams) > 1
        if not rollup.more:
            self._complete[rollup.name] = began
        return True

    async def _apply(
        self,
        rollup: "_Rollup",
        stream: int,
        done: Ranges,
        more: Ranges,
        rows: str,
        parameters: Mapping[str, Any],
    ) -> None:
        for step in rollup.steps:
            await self._database.command(
                step.sql.replace("{rows}", rows).replace("{IN}", self._database.operator),
                parameters,
            )
        marked = place_sets.closed(place_sets.joined((*done, *more)), HOLES)
        row = rollup.marks.row(stream, marked)
        await self._database.insert("applied_rollup", COLUMNS, [row])
        rollup.marks.wrote(row)
        rollup.rows = min(rollup.most_rows, rollup.rows * 2)


class _Rollup:
    """One rollup: its steps, its marks, how much it takes at a time."""

    def __init__(self, name: str, steps: Sequence[Step], most_rows: int) -> None:
        self.name = name
        self.steps = steps
        self.source = steps[0].source
        self.marks = Marks(name)
        self.most_rows = most_rows
        self.rows = most_rows
        self.more = False
        """Whether the last round left something to do."""


class _Database:
    """A connection of the task's own, so that it neither waits for inserts nor holds them up.

    It writes and also reads where rows are written: a replica that is behind would not have the
    rows whose places were seen elsewhere.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._client: Client | None = None
        self._thread: ThreadPoolExecutor | None = None

    @property
    def operator(self) -> str:
        """IN, as it must be said of tables that are spread over a cluster."""
        return "GLOBAL IN" if self._engine.cluster else "IN"

    async def query(self, sql: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Give the rows of an answer."""
        return await self._run(
            lambda client: [
                tuple(row)
                for row in client.query(
                    sql, parameters=dict(parameters), settings=_READ
                ).result_rows
            ],
            f"query {sql[:80]}",
        )

    async def command(self, sql: str, parameters: Mapping[str, Any]) -> None:
        """Run a statement that inserts what it selects."""
        await self._run(
            lambda client: client.command(sql, parameters=dict(parameters), settings=_WRITE),
            sql[:80],
        )

    async def insert(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Insert values."""
        await self._run(
            lambda client: client.insert(table, list(rows), column_names=list(columns)),
            f"insert into {table}",
        )

    async def close(self) -> None:
        """Disconnect, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._end)
            thread.shutdown(wait=False)

    async def _run(self, work: Callable[[Client], _T], what: str) -> _T:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="store rollups")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._work, work)
        except (StoreRefused, StoreUnavailable):
            raise
        except Exception as error:
            raise classify(error, what) from error

    def _work(self, work: Callable[[Client], _T]) -> _T:
        if self._client is None:
            self._client = self._engine.connect(writing=True)
        return work(self._client)

    def _end(self) -> None:
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.close()
            self._client = None


_READ: Final = {"do_not_merge_across_partitions_select_final": 1}
_WRITE: Final = {
    "do_not_merge_across_partitions_select_final": 1,
    "max_partitions_per_insert_block": 0,
    # The same content again is no mistake here.
    "insert_deduplicate": 0,
}
