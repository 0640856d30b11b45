"""Brings a backup back: loads it beside the store, proves it there, and only then publishes it.

Rows are loaded into a database of their own. Each object's digest is checked before it is used and
each partition's checksum after it was loaded; a partition that does not have the checksum it was
backed up with is not published, and neither is anything else. Publishing links files and takes
milliseconds. So the store holds nothing of an unfinished restore, and the database beside it, which
is there until the end, tells of one. The same restore again goes on where it ended.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from services.shared.errors import InvalidArgument
from services.shared.log import get_logger
from services.storage.backups.catalog import Catalog
from services.storage.backups.errors import ChecksumDiffers, RowsExist, SchemaUnfit
from services.storage.backups.freeze import drop_stale, scratch_database
from services.storage.backups.keys import Keyring
from services.storage.backups.manifest import (
    BackupManifest,
    PartitionEntry,
    TableEntry,
    key_object_key,
)
from services.storage.backups.objects import ChunkReader
from services.storage.backups.progress import Report, Tracker
from services.storage.backups.settings import BackupSettings
from services.storage.backups.staging import Staging
from services.storage.backups.store import Store
from services.storage.backups.tables import (
    StoredTable,
    drop_database,
    schema_version,
    stored_tables,
)
from services.storage.backups.targets import Target
from services.storage.backups.threads import all_of, in_thread
from services.storage.engine import Engine

__all__ = [
    "Existing",
    "RestoreOptions",
    "Restored",
    "restore_backup",
    "tidy",
    "unfinished_restores",
]


class Existing(Enum):
    """What to do where the database has rows already."""

    REFUSE = "refuse"
    """Refuse."""

    MERGE = "merge"
    """Add to them: events that are there already are not doubled."""

    REPLACE = "replace"
    """Drop them. Without a choice of tables and days everything goes that the backup has not."""


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """What is asked for."""

    tables: tuple[str, ...] = ()
    """Only these tables; empty means all."""

    partitions: tuple[str, ...] = ()
    """Only these partitions (`20261124` is a day); empty means all."""

    existing: Existing = Existing.REFUSE
    """What to do with rows that are there."""

    verify_only: bool = False
    """Load and prove everything, and publish nothing: each partition is dropped again at once."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done."""

    backup_id: str
    """The backup."""

    database: str
    """Where its rows are now; empty where it was only proved."""

    partitions: int
    """Partitions whose checksum was found equal."""

    rows: int
    """Rows in them."""

    bytes: int
    """Bytes of objects that were read."""

    resumed: int
    """Partitions that an earlier, interrupted restore had loaded."""

    converted: tuple[str, ...] = field(default=())
    """Tables whose columns have changed since: their rows were inserted, not linked."""


async def restore_backup(
    store: Store,
    target: Target,
    settings: BackupSettings,
    keyring: Keyring,
    backup_id: str,
    options: RestoreOptions | None = None,
    report: Report | None = None,
) -> Restored:
    """Restore a backup, or prove it, and tell what was done.

    Raises what the database and the target do; `BackupNotFound`, `BackupIncomplete`,
    `ManifestDamaged`, `ManifestNewer`, `KeyMissing`, `KeyWrong`, `ObjectMissing`, `ObjectDamaged`,
    `ChecksumDiffers`; `RowsExist` and `SchemaUnfit` for the database; `InvalidArgument` for tables
    or partitions that the backup does not have.
    """
    options = options or RestoreOptions()
    tracker = Tracker(report)
    catalog = Catalog(target)
    manifest = await in_thread(catalog.manifest, backup_id)
    chosen = _choose(manifest, options)
    await in_thread(catalog.check_objects, manifest)
    readers = await in_thread(_readers, catalog, target, keyring, manifest)
    restore = _Restore(store, settings, manifest, chosen, options, readers, tracker)
    return await restore.run()


async def unfinished_restores(store: Store) -> list[str]:
    """Give the databases that a restore has left because it was interrupted or failed."""
    rows = await store.query(
        "SELECT name FROM system.databases WHERE startsWith(name, {prefix:String}) ORDER BY name",
        {"prefix": f"{store.database}_restore_"},
    )
    return [str(name) for (name,) in rows]


async def tidy(engine: Engine) -> None:
    """Clear away what backups left that were killed, and tell of unfinished restores.

    For whoever has just opened the store; the tables of events are not touched.
    """
    async with Store.opened(engine, threads=1) as store:
        await drop_stale(store)
        for name in await unfinished_restores(store):
            get_logger().warning(
                "a restore is unfinished: ask for it again, or drop it with "
                "`marketprism restore --discard`",
                database=name,
            )


_Chosen = list[tuple[TableEntry, list[PartitionEntry]]]


class _Restore:
    """The restoring of one backup."""

    def __init__(
        self,
        store: Store,
        settings: BackupSettings,
        manifest: BackupManifest,
        chosen: _Chosen,
        options: RestoreOptions,
        readers: dict[str, ChunkReader],
        tracker: Tracker,
    ) -> None:
        self._store = store
        self._settings = settings
        self._manifest = manifest
        self._chosen = chosen
        self._options = options
        self._readers = readers
        self._tracker = tracker
        purpose = "verify" if options.verify_only else "restore"
        self._staging = Staging(
            store,
            scratch_database(store.database, purpose, manifest.backup_id),
            settings.read_threads,
        )
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._resumed = 0
        self._published: set[tuple[str, str]] = set()

    async def run(self) -> Restored:
        """Load, prove, publish."""
        self._tracker.expect(sum(len(partitions) for _, partitions in self._chosen))
        present = {}
        if self._options.verify_only:
            await drop_database(self._store, self._staging.database)
        else:
            found = await stored_tables(self._store, self._store.database)
            present = {table.name: table for table in found}
            await self._check_schema(present)
            resuming = await self._staging.exists()
            await self._check_rows(present, resuming=resuming)
        converted = await self._load(present)
        if not self._options.verify_only:
            await self._publish(present, converted)
        await drop_database(self._store, self._staging.database)
        self._tracker.phase("done", self._manifest.backup_id)
        state = self._tracker.state
        return Restored(
            backup_id=self._manifest.backup_id,
            database="" if self._options.verify_only else self._store.database,
            partitions=state.items_done,
            rows=state.rows_done,
            bytes=state.bytes_done,
            resumed=self._resumed,
            converted=tuple(sorted(converted)),
        )

    # Before anything is changed.

    async def _check_schema(self, present: dict[str, StoredTable]) -> None:
        if self._store.engine.cluster:
            raise SchemaUnfit("a backup cannot be restored into the tables of a cluster")
        version = await schema_version(self._store, self._store.database)
        if self._manifest.schema_version > version:
            raise SchemaUnfit(
                f"backup {self._manifest.backup_id} has the schema of migration "
                f"{self._manifest.schema_version} and {self._store.database} has {version}: "
                "expected the same one or a later one; restore with a newer version"
            )
        for table, _ in self._chosen:
            if table.name not in present:
                raise SchemaUnfit(
                    f"{self._store.database} has no table {table.name}: expected one, for the "
                    "backup has rows of it"
                )

    async def _check_rows(self, present: dict[str, StoredTable], *, resuming: bool) -> None:
        """Refuse to mix; what an interrupted restore has published already counts as done."""
        whole = not self._options.tables and not self._options.partitions
        for entry, partitions in self._chosen:
            table = present[entry.name]
            for partition in partitions if resuming else ():
                if await self._staging.holds(self._store.database, table, entry, partition):
                    self._published.add((entry.name, partition.partition_id))
            if self._options.existing is Existing.REPLACE:
                continue
            if self._options.existing is Existing.MERGE and table.final:
                continue
            held = await self._store.query(
                f"SELECT _partition_id, count() FROM {self._store.database}.{entry.name} "
                "GROUP BY _partition_id ORDER BY _partition_id"
            )
            wanted = {partition.partition_id for partition in partitions}
            for partition_id, count in held:
                fresh = (entry.name, str(partition_id)) not in self._published
                if fresh and (whole or str(partition_id) in wanted):
                    raise RowsExist(
                        f"{self._store.database}.{entry.name} has {count} rows in partition "
                        f"{partition_id}: expected none; restore into a database of its own, or "
                        "say that rows are to be merged or replaced",
                        metadata={"table": entry.name, "partition": partition_id, "rows": count},
                    )

    # Loading.

    async def _load(self, present: dict[str, StoredTable]) -> set[str]:
        self._tracker.phase("load")
        await self._staging.make()
        converted = set()
        for entry, partitions in self._chosen:
            if await self._staging.make_table(entry, present.get(entry.name)):
                converted.add(entry.name)
            for partition in partitions:
                await self._load_partition(entry, partition)
        return converted

    async def _load_partition(self, entry: TableEntry, partition: PartitionEntry) -> None:
        where = f"{entry.name} {partition.partition_id}"
        staging = self._staging
        published = (entry.name, partition.partition_id) in self._published
        if published or await staging.holds(staging.database, None, entry, partition):
            self._resumed += 1
        else:
            await staging.drop(entry, partition)
            reader = self._readers[partition.backup_id]

            async def load(number: int) -> None:
                async with self._slots:
                    chunk = partition.chunks[number]
                    rows = await in_thread(reader.read, chunk)
                    await staging.insert(entry, rows)
                    self._tracker.add(transferred=chunk.bytes)

            await all_of(load(number) for number in range(len(partition.chunks)))
            found = await staging.content(staging.database, entry, partition)
            if (found.rows, found.checksum) != (partition.rows, partition.checksum):
                raise ChecksumDiffers(
                    f"{where} of backup {self._manifest.backup_id}: expected {partition.rows} rows "
                    f"with checksum {partition.checksum}, got {found.rows} with {found.checksum} "
                    "after loading; nothing was published",
                    metadata={"table": entry.name, "partition": partition.partition_id},
                )
            if self._options.verify_only:
                await staging.drop(entry, partition)
        self._tracker.add(items=1, rows=partition.rows, detail=where)

    # Publishing.

    async def _publish(self, present: dict[str, StoredTable], converted: set[str]) -> None:
        self._tracker.phase("publish")
        replace = self._options.existing is Existing.REPLACE
        if replace and not self._options.tables and not self._options.partitions:
            await self._drop_others(present)
        for entry, partitions in self._chosen:
            table = present[entry.name]
            for partition in partitions:
                if (entry.name, partition.partition_id) in self._published:
                    continue
                if entry.name in converted:
                    await self._staging.publish_rows(entry, table, partition, replace=replace)
                else:
                    await self._staging.publish_files(entry, partition, replace=replace)
        self._tracker.phase("check")
        if self._options.existing is not Existing.MERGE:
            for entry, partitions in self._chosen:
                if entry.name not in converted:
                    await self._check_published(entry, partitions)

    async def _drop_others(self, present: dict[str, StoredTable]) -> None:
        wanted = {(t.name, p.partition_id) for t, some in self._chosen for p in some}
        for name in present:
            rows = await self._store.query(
                "SELECT DISTINCT partition_id FROM system.parts WHERE active AND "
                "database = {d:String} AND table = {t:String}",
                {"d": self._store.database, "t": name},
            )
            for (partition_id,) in rows:
                if (name, str(partition_id)) not in wanted:
                    await self._store.command(
                        f"ALTER TABLE {self._store.database}.{name} "
                        f"DROP PARTITION ID '{partition_id}'"
                    )

    async def _check_published(
        self, entry: TableEntry, partitions: Iterable[PartitionEntry]
    ) -> None:
        """See that the rows are there; their checksum was proved on the very files."""
        rows = await self._store.query(
            f"SELECT _partition_id, count() FROM {self._store.database}.{entry.name} "
            "GROUP BY _partition_id"
        )
        counts = {str(partition): int(count) for partition, count in rows}
        for partition in partitions:
            found = counts.get(partition.partition_id, 0)
            # A mesh that runs may have added some meanwhile.
            if found < partition.rows:
                raise ChecksumDiffers(
                    f"{self._store.database}.{entry.name}: expected {partition.rows} rows in "
                    f"partition {partition.partition_id}, found {found} after publishing",
                    metadata={"table": entry.name, "partition": partition.partition_id},
                )


def _choose(manifest: BackupManifest, options: RestoreOptions) -> _Chosen:
    names = {table.name for table in manifest.tables}
    for name in options.tables:
        if name not in names:
            raise InvalidArgument(
                f"backup {manifest.backup_id} has no table {name!r}; it has "
                f"{', '.join(sorted(names))}",
                reason="TABLE_UNKNOWN",
            )
    chosen: _Chosen = []
    for table in manifest.tables:
        if options.tables and table.name not in options.tables:
            continue
        partitions = [
            partition
            for partition in table.partitions
            if not options.partitions or partition.partition_id in options.partitions
        ]
        if partitions:
            chosen.append((table, partitions))
    if not chosen and (options.tables or options.partitions):
        ids = sorted({partition.partition_id for _, partition in manifest.partitions()})
        raise InvalidArgument(
            f"backup {manifest.backup_id} has nothing of what was chosen; its partitions are "
            f"{', '.join(ids) or 'none'}",
            reason="NOTHING_CHOSEN",
        )
    return chosen


def _readers(
    catalog: Catalog, target: Target, keyring: Keyring, manifest: BackupManifest
) -> dict[str, ChunkReader]:
    """Give what reads the objects of each backup that this one refers to, and of itself."""
    readers = {}
    for backup_id in sorted(manifest.needs | {manifest.backup_id}):
        of = manifest if backup_id == manifest.backup_id else catalog.manifest(backup_id)

        def key_object(of: BackupManifest = of) -> bytes | None:
            return target.read(key_object_key(of.backup_id)) if of.has_key_object else None

        readers[backup_id] = ChunkReader(target, keyring.opener(of.recipients, key_object))
    return readers
