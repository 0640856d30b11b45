"""The database as backups use it: with clients of their own, beside those of ingest and queries.

They read and write the server that inserts go to: frozen and loaded tables are on no other.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from clickhouse_connect.driver.client import Client

from services.storage.engine import Engine, Row
from services.storage.errors import StoreRefused, StoreUnavailable, classify

__all__ = ["Store"]

_T = TypeVar("_T")


class Store:
    """Some clients, each on a thread of its own. Use `Store.opened`.

    Methods raise `StoreUnavailable` and `StoreRefused` as the engine does.
    """

    def __init__(self, engine: Engine, threads: int) -> None:
        self.engine = engine
        """The engine that it belongs to."""
        self.database = ""
        """The database of the tables of events."""
        self.version = ""
        """Version of ClickHouse."""
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="backup")
        self._local = threading.local()
        self._clients: list[Client] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, engine: Engine, threads: int = 2) -> AsyncIterator["Store"]:
        """Connect on entry and close on exit; the engine is open and stays so."""
        store = cls(engine, threads)
        try:
            ((store.database, store.version),) = await store.query(
                "SELECT currentDatabase(), version()"
            )
            yield store
        finally:
            await asyncio.shield(asyncio.to_thread(store._close))

    async def query(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[Row]:
        """Give the rows of an answer."""

        def work(client: Client) -> list[Row]:
            result = client.query(
                sql, parameters=dict(parameters or {}), settings=dict(settings or {})
            )
            return [tuple(row) for row in result.result_rows]

        return await self._run(work, _shortened(sql))

    async def command(self, sql: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Run a statement that changes something."""

        def work(client: Client) -> None:
            client.command(sql, parameters=dict(parameters or {}))

        await self._run(work, _shortened(sql))

    async def read_rows(
        self, sql: str, parameters: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> bytes:
        """Give an answer in the Native format."""
        pairs = ", ".join(f"{key} = {int(value)}" for key, value in settings.items())
        statement = f"{sql} SETTINGS {pairs}" if pairs else sql

        def work(client: Client) -> bytes:
            return bytes(client.raw_query(statement, parameters=dict(parameters), fmt="Native"))

        return await self._run(work, _shortened(sql))

    async def insert_rows(self, table: str, columns: Sequence[str], rows: bytes) -> None:
        """Insert rows in the Native format."""

        def work(client: Client) -> None:
            client.raw_insert(table, column_names=list(columns), insert_block=rows, fmt="Native")

        await self._run(work, f"insert into {table}")

    async def _run(self, work: Callable[[Client], _T], what: str) -> _T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._work, work)
        except (StoreRefused, StoreUnavailable):
            raise
        except Exception as error:
            raise classify(error, what) from error

    def _work(self, work: Callable[[Client], _T]) -> _T:
        client: Client | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = self.engine.connect(writing=True)
            self._clients.append(client)
        return work(client)

    def _close(self) -> None:
        self._threads.shutdown(wait=True)
        for client in self._clients:
            with contextlib.suppress(Exception):
                client.close()


def _shortened(sql: str) -> str:
    return " ".join(sql.split())[:80]
