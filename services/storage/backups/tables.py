"""The stored tables of a database: what they are made of, what they hold, and their checksums."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.storage.backups.manifest import ColumnEntry, Position, TableEntry
from services.storage.backups.store import Store

__all__ = [
    "Content",
    "StoredTable",
    "column_list",
    "content_of",
    "create_copy",
    "drop_database",
    "partition_sizes",
    "positions_of",
    "schema_version",
    "stored_tables",
]

MIGRATIONS: Final = "schema_migration"
"""Table of the schema's steps; a backup has its newest number, and none of its rows."""

_ENGINE: Final = re.compile(r"(?P<replicated>Replicated)?(?P<name>[A-Za-z]*MergeTree)")


@dataclass(frozen=True, slots=True)
class StoredTable:
    """One table that keeps rows on disk."""

    name: str
    """Its name."""

    engine: str
    """Its engine with arguments, replication left out."""

    partition_key: str
    """Expression of its partitions; empty when it has one."""

    sorting_key: str
    """Columns that its rows are sorted by."""

    primary_key: str
    """Columns of its index, the first ones of the sort key."""

    settings: str
    """Its settings as SQL."""

    columns: tuple[ColumnEntry, ...]
    """Stored columns that can be inserted, in order."""

    @property
    def final(self) -> str:
        """`FINAL` where the engine merges rows of one key, so that each counts once."""
        return "" if self.engine.startswith("MergeTree") else "FINAL"

    @property
    def has(self) -> frozenset[str]:
        """Names of the columns."""
        return frozenset(column.name for column in self.columns)

    def entry(self, positions: Sequence[Position] = ()) -> TableEntry:
        """Give its entry of a manifest, without partitions."""
        return TableEntry(
            name=self.name,
            engine=self.engine,
            partition_key=self.partition_key,
            sorting_key=self.sorting_key,
            columns=self.columns,
            positions=tuple(positions),
            partitions=(),
        )


@dataclass(frozen=True, slots=True)
class Content:
    """What a partition holds, so that two can be compared."""

    rows: int
    """Rows, each key counted once."""

    checksum: str
    """Hexadecimal: the exclusive or and the sum of a hash of each row's values. The order of rows
    does not matter; a row that is missing, changed or there twice does."""


async def stored_tables(store: Store, database: str) -> list[StoredTable]:
    """Give the tables of a database that keep rows, by name; the migrations' table is left out."""
    rows = await store.query(
        "SELECT name, engine_full, partition_key, sorting_key, primary_key FROM system.tables "
        "WHERE database = {database:String} AND engine LIKE '%MergeTree' "
        "AND name != {migrations:String} AND NOT startsWith(name, '.') ORDER BY name",
        {"database": database, "migrations": MIGRATIONS},
    )
    columns = await _columns(store, database)
    return [
        StoredTable(
            name=str(name),
            engine=_plain_engine(str(full)),
            partition_key=str(partition),
            sorting_key=str(sorting),
            primary_key=str(primary),
            settings=str(full).rpartition(" SETTINGS ")[2] if " SETTINGS " in str(full) else "",
            columns=tuple(columns.get(str(name), ())),
        )
        for name, full, partition, sorting, primary in rows
    ]


async def _columns(store: Store, database: str) -> dict[str, list[ColumnEntry]]:
    rows = await store.query(
        "SELECT table, name, type FROM system.columns WHERE database = {database:String} "
        "AND default_kind IN ('', 'DEFAULT') ORDER BY table, position",
        {"database": database},
    )
    found: dict[str, list[ColumnEntry]] = {}
    for table, name, type_ in rows:
        found.setdefault(str(table), []).append(ColumnEntry(name=str(name), type=str(type_)))
    return found


async def schema_version(store: Store, database: str) -> int:
    """Give the newest migration that a database had, 0 for none."""
    there = await store.query(
        "SELECT count() FROM system.tables WHERE database = {d:String} AND name = {t:String}",
        {"d": database, "t": MIGRATIONS},
    )
    if not there[0][0]:
        return 0
    rows = await store.query(f"SELECT max(number) FROM {database}.{MIGRATIONS}")
    return int(rows[0][0])


async def partition_sizes(store: Store, database: str) -> dict[str, dict[str, tuple[int, int]]]:
    """Give rows and bytes before compression, by table and partition.

    Both count rows that a merge will drop.
    """
    rows = await store.query(
        "SELECT table, partition_id, sum(rows), sum(data_uncompressed_bytes) FROM system.parts "
        "WHERE database = {database:String} AND active GROUP BY table, partition_id "
        "ORDER BY table, partition_id",
        {"database": database},
    )
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for table, partition, count, size in rows:
        if count:
            found.setdefault(str(table), {})[str(partition)] = (int(count), int(size))
    return found


async def content_of(
    store: Store,
    database: str,
    table: StoredTable | TableEntry,
    partition: str,
    *,
    final: str,
    threads: int,
) -> Content:
    """Compute what a partition holds, over the columns of `table`."""
    # In a tuple a NULL is a value like others; an argument that is NULL makes the whole hash NULL.
    rows = await store.query(
        "SELECT count(), groupBitXor(hash), sum(hash) FROM (SELECT cityHash64(tuple("
        f"{column_list(table.columns)})) AS hash FROM {database}.{table.name} {final} "
        "WHERE _partition_id = {partition:String})",
        {"partition": partition},
        {"max_threads": threads, "do_not_merge_across_partitions_select_final": 1},
    )
    count, mixed, total = (int(value) for value in rows[0])
    return Content(count, f"{mixed:016x}{total & (2**64 - 1):016x}")


async def positions_of(store: Store, database: str, table: StoredTable) -> list[Position]:
    """Give how far a table had read each of the broker's streams."""
    if not {"stream_created", "stream_sequence"} <= table.has:
        return []
    rows = await store.query(
        f"SELECT stream_created, max(stream_sequence) FROM {database}.{table.name} "
        "GROUP BY stream_created ORDER BY stream_created"
    )
    return [
        Position(stream_created=int(created), stream_sequence=int(last)) for created, last in rows
    ]


def create_copy(table: StoredTable, source: str, target: str) -> str:
    """Give the statement that makes an empty table like one of `source` in `target`.

    It has neither replication nor a TTL, and partitions can be attached from one to the other.
    """
    clauses = [f"ENGINE = {table.engine}"]
    if table.partition_key:
        clauses.append(f"PARTITION BY {table.partition_key}")
    if table.primary_key != table.sorting_key:
        clauses.append(f"PRIMARY KEY ({table.primary_key})")
    clauses.append(f"ORDER BY ({table.sorting_key})" if table.sorting_key else "ORDER BY tuple()")
    if table.settings:
        clauses.append(f"SETTINGS {table.settings}")
    return f"CREATE TABLE IF NOT EXISTS {target}.{table.name} AS {source}.{table.name} " + " ".join(
        clauses
    )


async def drop_database(store: Store, database: str) -> None:
    """Drop a database and what it alone keeps on disk, now."""
    await store.command(f"DROP DATABASE IF EXISTS {database} SYNC")


def column_list(columns: Sequence[ColumnEntry]) -> str:
    """Give the columns as SQL."""
    return ", ".join(f"`{column.name}`" for column in columns)


def _plain_engine(full: str) -> str:
    """Give the engine and its arguments: `ReplicatedX('path', 'replica', v)` is `X(v)`."""
    match = _ENGINE.match(full)
    if match is None:
        raise ValueError(f"expected an engine of the MergeTree family, got {full!r}")
    rest = full[match.end() :]
    arguments = _arguments(rest) if rest.startswith("(") else []
    if match["replicated"]:
        arguments = arguments[2:]
    return f"{match['name']}({', '.join(arguments)})" if arguments else match["name"]


def _arguments(text: str) -> list[str]:
    """Split what stands in the first pair of parentheses at its commas."""
    found, depth, quoted, word = [], 0, False, ""
    for char in text:
        if char == "'":
            quoted = not quoted
        elif not quoted and char == "(":
            depth += 1
            if depth == 1:
                continue
        elif not quoted and char == ")":
            depth -= 1
            if depth == 0:
                break
        if char == "," and depth == 1 and not quoted:
            found.append(word.strip())
            word = ""
        else:
            word += char
    return [*found, word.strip()] if word.strip() else found
