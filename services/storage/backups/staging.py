"""The database beside the store into which a backup is loaded before it is published."""

from services.storage.backups.errors import SchemaUnfit
from services.storage.backups.manifest import PartitionEntry, TableEntry
from services.storage.backups.store import Store
from services.storage.backups.tables import (
    Content,
    StoredTable,
    column_list,
    content_of,
    create_copy,
)

__all__ = ["Staging"]


class Staging:
    """Tables that rows are loaded into. Methods raise what the database does."""

    def __init__(self, store: Store, database: str, threads: int) -> None:
        self._store = store
        self._threads = threads
        self.database = database
        """Its name."""

    async def exists(self) -> bool:
        """Tell whether an earlier restore has left it."""
        rows = await self._store.query(
            "SELECT count() FROM system.databases WHERE name = {name:String}",
            {"name": self.database},
        )
        return bool(rows[0][0])

    async def make(self) -> None:
        """Make it when it is not there."""
        await self._store.command(f"CREATE DATABASE IF NOT EXISTS {self.database}")

    async def make_table(self, entry: TableEntry, like: StoredTable | None) -> bool:
        """Make a table when it is not there; tells whether its rows must be converted later.

        Where the store's own table has the backup's columns, the new one is like it, so that files
        can be linked. Else it has the columns that the backup tells.
        """
        if like is not None and _fits(entry, like):
            await self._store.command(create_copy(like, self._store.database, self.database))
            return False
        if like is not None and not {column.name for column in entry.columns} & like.has:
            raise SchemaUnfit(
                f"{self._store.database}.{entry.name} has none of the backup's columns"
            )
        columns = ", ".join(f"`{column.name}` {column.type}" for column in entry.columns)
        partition = f" PARTITION BY {entry.partition_key}" if entry.partition_key else ""
        order = f"({entry.sorting_key})" if entry.sorting_key else "tuple()"
        await self._store.command(
            f"CREATE TABLE IF NOT EXISTS {self.database}.{entry.name} ({columns}) "
            f"ENGINE = {entry.engine}{partition} ORDER BY {order}"
        )
        return like is not None

    async def drop(self, entry: TableEntry, partition: PartitionEntry) -> None:
        """Drop what it has of a partition."""
        await self._store.command(
            f"ALTER TABLE {self.database}.{entry.name} DROP PARTITION ID '{partition.partition_id}'"
        )

    async def insert(self, entry: TableEntry, rows: bytes) -> None:
        """Load the rows of one object."""
        await self._store.insert_rows(
            f"{self.database}.{entry.name}", [column.name for column in entry.columns], rows
        )

    async def content(self, database: str, entry: TableEntry, partition: PartitionEntry) -> Content:
        """Compute what a partition holds."""
        return await content_of(
            self._store,
            database,
            entry,
            partition.partition_id,
            final="" if entry.engine.startswith("MergeTree") else "FINAL",
            threads=self._threads,
        )

    async def holds(
        self,
        database: str,
        table: StoredTable | None,
        entry: TableEntry,
        partition: PartitionEntry,
    ) -> bool:
        """Tell whether a database has a partition just as the backup has it.

        `table` is the table there; None means that it has the backup's columns.
        """
        if table is not None and not _fits(entry, table):
            return False
        rows = await self._store.query(
            f"SELECT count() FROM {database}.{entry.name} "
            "WHERE _partition_id = {partition:String}",
            {"partition": partition.partition_id},
        )
        if int(rows[0][0]) < partition.rows:
            return False
        found = await self.content(database, entry, partition)
        return (found.rows, found.checksum) == (partition.rows, partition.checksum)

    async def publish_files(
        self, entry: TableEntry, partition: PartitionEntry, *, replace: bool
    ) -> None:
        """Link a partition's files into the store's table, in place of what it has or beside it."""
        verb = "REPLACE" if replace else "ATTACH"
        id_ = f"ID '{partition.partition_id}'"
        await self._store.command(
            f"ALTER TABLE {self._store.database}.{entry.name} {verb} PARTITION {id_} "
            f"FROM {self.database}.{entry.name}"
        )

    async def publish_rows(
        self, entry: TableEntry, table: StoredTable, partition: PartitionEntry, *, replace: bool
    ) -> None:
        """Insert a partition's rows into a table that has other columns by now.

        Columns that the backup does not have get their defaults; those that the table does not have
        any more are left out.
        """
        target = f"{self._store.database}.{entry.name}"
        if replace:
            await self._store.command(
                f"ALTER TABLE {target} DROP PARTITION ID '{partition.partition_id}'"
            )
        shared = [column for column in entry.columns if column.name in table.has]
        final = "" if entry.engine.startswith("MergeTree") else "FINAL"
        await self._store.command(
            f"INSERT INTO {target} ({column_list(shared)}) SELECT {column_list(shared)} "
            f"FROM {self.database}.{entry.name} {final} "
            f"WHERE _partition_id = '{partition.partition_id}'"
        )


def _fits(entry: TableEntry, table: StoredTable) -> bool:
    return (
        entry.columns == table.columns
        and entry.engine == table.engine
        and entry.partition_key == table.partition_key
        and entry.sorting_key == table.sorting_key
    )
