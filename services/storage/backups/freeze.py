"""An instant of the database that stays readable while ingest goes on.

A backup reads from copies of the tables in a database of their own. Attaching a partition to a
table of the same structure copies nothing: the files are linked (ALTER TABLE ... ATTACH PARTITION
ALL FROM), which takes milliseconds and is one instant for a table. The inserting client does it for
all tables in a row, so that it is the instant between two inserts for all of them. Merges,
deletions by age and later inserts change the original only.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from clickhouse_connect.driver.client import Client

from services.shared.errors import MarketPrismError
from services.shared.log import get_logger
from services.storage.backups.errors import SchemaUnfit
from services.storage.backups.manifest import begun_at, is_backup_id
from services.storage.backups.store import Store
from services.storage.backups.tables import StoredTable, create_copy, drop_database, stored_tables

__all__ = ["Frozen", "drop_stale", "frozen", "scratch_database"]

_STALE_AFTER = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Frozen:
    """The frozen copies."""

    database: str
    """Database that they are in."""

    tables: tuple[StoredTable, ...]
    """The tables, by name."""

    time: datetime
    """The instant."""


def scratch_database(database: str, purpose: str, backup_id: str) -> str:
    """Give the name of a database beside the store's for `backup` or `restore`."""
    return f"{database}_{purpose}_{backup_id.replace('-', '_')}"


@contextlib.asynccontextmanager
async def frozen(store: Store, backup_id: str) -> AsyncIterator[Frozen]:
    """Freeze all tables on entry, and let go on exit, also when the caller is cancelled.

    Raises `SchemaUnfit` where the tables cannot be copied.
    """
    if store.engine.cluster:
        raise SchemaUnfit(
            f"the tables are spread over the cluster {store.engine.cluster}, and a backup is made "
            "of one server: back up the shards with ClickHouse's own BACKUP ... ON CLUSTER",
            metadata={"cluster": store.engine.cluster},
        )
    await drop_stale(store)
    tables = await stored_tables(store, store.database)
    copy = scratch_database(store.database, "backup", backup_id)
    statements = [f"CREATE DATABASE {copy}"]
    statements += [create_copy(table, store.database, copy) for table in tables]
    attach = [
        f"ALTER TABLE {copy}.{table.name} ATTACH PARTITION ALL FROM {store.database}.{table.name}"
        for table in tables
    ]
    try:
        for statement in statements:
            await store.command(statement)
        await _stop_merges(store, copy, tables)

        def link(client: Client) -> datetime:
            now = datetime.now(UTC)
            for statement in attach:
                client.command(statement)
            return now

        time = await store.engine.exclusively(link, f"freeze {store.database}")
        yield Frozen(copy, tuple(tables), time)
    finally:
        await asyncio.shield(_let_go(store, copy))


async def drop_stale(store: Store) -> None:
    """Drop the copies that a backup left behind when its process died.

    In the embedded engine no other process can be at work; on a server those of a day ago go.
    """
    rows = await store.query(
        "SELECT name FROM system.databases WHERE startsWith(name, {prefix:String})",
        {"prefix": f"{store.database}_backup_"},
    )
    for (name,) in rows:
        backup_id = str(name).removeprefix(f"{store.database}_backup_").replace("_", "-")
        if not is_backup_id(backup_id):
            continue
        old = datetime.now(UTC) - begun_at(backup_id) > _STALE_AFTER
        if store.engine.is_embedded or old:
            await drop_database(store, str(name))


async def _stop_merges(store: Store, database: str, tables: list[StoredTable]) -> None:
    # Merging the copies would be work and disk for nothing. It needs a right of its own on a
    # server, and what is read is the same without it.
    with contextlib.suppress(MarketPrismError):
        for table in tables:
            await store.command(f"SYSTEM STOP MERGES {database}.{table.name}")


async def _let_go(store: Store, database: str) -> None:
    try:
        await drop_database(store, database)
    except MarketPrismError as error:
        get_logger().warning("a frozen copy is left behind", database=database, error=error.message)
