"""ClickHouse from asyncio: the embedded engine or a server, by the same code.

The driver is synchronous. One client inserts, some others read, each on a thread of its own, so
that the event loop never waits for the engine, a long query holds up no insert, and no more than
`readers` queries are at work at once. The embedded engine (chDB) takes one process a folder; its
clients run in parallel. https://clickhouse.com/docs/integrations/python
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client

from services.shared.log import get_logger
from services.storage.errors import StoreRefused, StoreUnavailable, classify
from services.storage.settings import EngineSettings
from services.storage.tables import TABLES, Table

__all__ = ["Engine", "Row"]

Row = tuple[Any, ...]
"""A row of an answer: DateTime64 loses its nanoseconds in Python, so ask for
`toUnixTimestamp64Nano(time)`; decimals are `decimal.Decimal`, `toString(price)` is their canonical
text."""

_T = TypeVar("_T")
# Blocks of one insert: all of it, so that it is in the table whole or not at all.
_ONE_BLOCK: Final = {
    "max_insert_block_size": "10000000",
    "min_insert_block_size_rows": "10000000",
    "min_insert_block_size_bytes": str(4 * 1024**3),
    "input_format_parallel_parsing": "0",
    # A wrong clock must not hold up ingestion.
    "max_partitions_per_insert_block": "0",
}


class Engine:
    """The database. Open it before use; every method may be called from any task of the loop.

    All raise `StoreUnavailable` when the database is away, full or overloaded, and `StoreRefused`
    when it will never take the statement or the data.
    """

    def __init__(self, settings: EngineSettings, folder: Path, url: str | None = None) -> None:
        self._settings = settings
        self._write_url = settings.write_url or url
        self._read_url = settings.read_url or self._write_url
        self._folder = folder.absolute()
        self._schemas = self._folder.with_name(f"{self._folder.name}_schemas")
        self._log = get_logger()
        self._writer: _Worker | None = None
        self._readers: asyncio.Queue[_Worker] = asyncio.Queue()
        self._all: list[_Worker] = []
        self.last_error = ""
        """Why the last call failed as unavailable; empty when it did not."""

    @property
    def is_embedded(self) -> bool:
        """Whether the engine is in this process."""
        return self._write_url is None

    @property
    def cluster(self) -> str:
        """Name of the cluster that tables are spread over; empty on one server."""
        return self._settings.cluster

    @property
    def where(self) -> str:
        """Where the data lies, without secrets."""
        if self._write_url is None:
            return f"embedded engine in {self._folder}"
        return f"server {urlsplit(self._write_url).netloc.rpartition('@')[2]}"

    async def open(self) -> None:
        """Connect, and make the database when it is not there."""
        if self.is_embedded:
            await asyncio.to_thread(self._write_schemas)
        self._writer = _Worker(functools.partial(self._connect, writing=True), "store writer")
        readers = [
            _Worker(functools.partial(self._connect, writing=False), f"store reader {number}")
            for number in range(self._settings.readers)
        ]
        self._all = [self._writer, *readers]
        self._readers = asyncio.Queue()
        for reader in readers:
            self._readers.put_nowait(reader)
        await self.command("SELECT 1")

    async def close(self) -> None:
        """End; calls at work are waited for."""
        workers, self._all = self._all, []
        await asyncio.gather(*(worker.close() for worker in workers))
        self._writer = None

    # Writing.

    async def insert(self, table: Table, block: bytes) -> None:
        """Insert rows made by `tables.frame`, joined: all of them or none, in each partition."""

        def run(client: Client) -> None:
            client.raw_insert(
                table.name,
                column_names=table.insert_columns,
                insert_block=block,
                fmt="Protobuf",
                settings={**self._schema_settings(table), **_ONE_BLOCK},
            )

        await self._do(self._writing, run, f"insert into {table.name}", inserting=True)

    async def insert_rows(self, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Insert values, for small tables of our own."""
        await self._do(
            self._writing,
            lambda client: client.insert(table, list(rows), column_names=list(columns)),
            f"insert into {table}",
            inserting=True,
        )

    async def insert_raw(
        self, table: str, block: bytes, fmt: str, columns: Sequence[str] | None = None
    ) -> None:
        """Insert a file's worth of rows in one of ClickHouse's formats."""
        await self._do(
            self._writing,
            lambda client: client.raw_insert(
                table, column_names=columns, insert_block=block, fmt=fmt, settings=dict(_ONE_BLOCK)
            ),
            f"insert into {table}",
            inserting=True,
        )

    async def command(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Run a statement that writes or changes something."""
        await self._do(
            self._writing,
            lambda client: client.command(
                sql, parameters=dict(parameters or {}), settings=dict(settings or {})
            ),
            sql[:80],
        )

    async def exclusively(self, run: Callable[[Client], _T], what: str) -> _T:
        """Give `run` the inserting client on its thread: meanwhile nothing is inserted by us."""
        return await self._do(self._writing, run, what)

    # Reading.

    async def query(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        *,
        events_of: Table | None = None,
    ) -> list[Row]:
        """Give all rows of an answer; bounded by its LIMIT, please.

        `{name:Type}` in the statement is the parameter of that name. `events_of` is the table whose
        `event_sql()` the statement holds; a column named `event` is then bytes.
        """
        wanted = self._read_settings(settings, events_of)

        def run(client: Client) -> list[Row]:
            result = client.query(
                sql,
                parameters=dict(parameters or {}),
                settings=wanted,
                column_formats={"event": "bytes"} if events_of is not None else None,
            )
            return [tuple(row) for row in result.result_rows]

        async with self._reader() as reader:
            return await self._do(reader, run, f"query {' '.join(sql.split())[:80]}")

    async def raw(
        self,
        sql: str,
        fmt: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Give an answer in one of ClickHouse's formats, all of it."""
        clause = _settings_clause(self._read_settings(settings, None))
        async with self._reader() as reader:
            return await self._do(
                reader,
                lambda client: bytes(
                    client.raw_query(f"{sql}{clause}", parameters=dict(parameters or {}), fmt=fmt)
                ),
                f"query {' '.join(sql.split())[:80]}",
            )

    async def stream(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        *,
        events_of: Table | None = None,
    ) -> AsyncIterator[list[Row]]:
        """Give the rows of a large answer block by block, as fast as they are taken.

        Holds a reader until it is closed: use `contextlib.aclosing`. An answer that is not bounded
        in time should be asked for in pieces instead.
        """
        wanted = self._read_settings(settings, events_of)
        what = f"query {' '.join(sql.split())[:80]}"

        def begin(client: Client) -> tuple[Any, Iterator[Sequence[Row]]]:
            context = client.query_row_block_stream(
                sql,
                parameters=dict(parameters or {}),
                settings=wanted,
                column_formats={"event": "bytes"} if events_of is not None else None,
            )
            return context, iter(context.__enter__())  # type: ignore[no-untyped-call]

        async with self._reader() as reader:
            context, blocks = await self._do(reader, begin, what)
            try:
                while True:
                    block = await self._do(reader, lambda _: next(blocks, None), what)
                    if block is None:
                        return
                    yield list(block)
            finally:
                await reader.run(lambda _: context.__exit__(None, None, None))

    async def ping(self) -> None:
        """Ask the database whether it is there."""
        async with self._reader() as reader:
            await self._do(reader, lambda client: client.command("SELECT 1"), "ping")

    def connect(self, *, writing: bool = False) -> Client:
        """Make a client of one's own, for a thread of one's own; close it."""
        return self._connect(writing=writing)

    # How.

    def _connect(self, *, writing: bool) -> Client:
        settings = self._settings
        url = self._write_url if writing else self._read_url
        if url is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            client = clickhouse_connect.get_client(interface="chdb", path=str(self._folder))
            client.command(f"CREATE DATABASE IF NOT EXISTS {settings.database}")
            client.command(f"USE {settings.database}")
            client.database = settings.database
        else:
            client = clickhouse_connect.get_client(
                dsn=url,
                database="default" if writing else settings.database,
                connect_timeout=settings.connect_seconds,
                send_receive_timeout=settings.request_seconds,
                query_retries=0,
                autogenerate_session_id=False,
            )
            if writing:
                on_cluster = f" ON CLUSTER {settings.cluster}" if settings.cluster else ""
                client.command(f"CREATE DATABASE IF NOT EXISTS {settings.database}{on_cluster}")
                client.database = settings.database
        if writing and settings.cluster:
            client.set_client_setting("distributed_foreground_insert", "1")
        return client

    def _schema_settings(self, table: Table) -> dict[str, str]:
        """Tell ClickHouse a message: a server gets its text, so that it needs no file of ours.

        The embedded engine would leave a copy of the text in the current directory.
        """
        message = str(table.descriptor.name)
        if self.is_embedded:
            return {"format_schema": f"{self._schemas / message}.proto:{message}"}
        return {
            "format_schema_source": "string",
            "format_schema": table.schema_text,
            "format_schema_message_name": message,
        }

    def _write_schemas(self) -> None:
        self._schemas.mkdir(parents=True, exist_ok=True)
        for table in TABLES.values():
            path = self._schemas / f"{table.descriptor.name}.proto"
            path.write_text(table.schema_text, encoding="utf-8")

    def _read_settings(
        self, settings: Mapping[str, Any] | None, events_of: Table | None
    ) -> dict[str, Any]:
        wanted: dict[str, Any] = {
            "max_execution_time": self._settings.query_seconds,
            "max_memory_usage": self._settings.query_bytes,
            "do_not_merge_across_partitions_select_final": 1,
        }
        if events_of is not None:
            wanted.update(self._schema_settings(events_of))
        wanted.update(settings or {})
        return wanted

    @property
    def _writing(self) -> "_Worker":
        if self._writer is None:
            raise StoreUnavailable("the database is not open yet; retry later")
        return self._writer

    @contextlib.asynccontextmanager
    async def _reader(self) -> AsyncIterator["_Worker"]:
        if self._writer is None:
            raise StoreUnavailable("the database is not open yet; retry later")
        # An engine that is opened anew has other readers.
        readers = self._readers
        reader = await readers.get()
        try:
            yield reader
        finally:
            readers.put_nowait(reader)

    async def _do(
        self, worker: "_Worker", run: Callable[[Client], _T], what: str, *, inserting: bool = False
    ) -> _T:
        try:
            result = await worker.run(run)
        except (StoreRefused, StoreUnavailable):
            raise
        except Exception as error:
            wrong = classify(error, what, inserting=inserting)
            if isinstance(wrong, StoreUnavailable):
                self.last_error = wrong.message
            raise wrong from error
        self.last_error = ""
        return result


def _settings_clause(settings: Mapping[str, Any]) -> str:
    pairs = ", ".join(f"{key} = {_literal(value)}" for key, value in settings.items())
    return f" SETTINGS {pairs}" if pairs else ""


def _literal(value: Any) -> str:
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


class _Worker:
    """A client and the one thread that uses it; it connects when it is first used."""

    def __init__(self, connect: Callable[[], Client], name: str) -> None:
        self._connect = connect
        self._client: Client | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, work: Callable[[Client], _T]) -> _T:
        """Run `work` on the thread.

        It is finished also when the caller is cancelled, and whoever comes next waits for it.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._work, work)

    def _work(self, work: Callable[[Client], _T]) -> _T:
        if self._client is None:
            self._client = self._connect()
        return work(self._client)

    async def close(self) -> None:
        """Close the client and end the thread."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._end)
        self._thread.shutdown(wait=False)

    def _end(self) -> None:
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.close()
            self._client = None
