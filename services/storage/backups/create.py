"""Makes a backup: freezes the tables, copies what changed, and writes the manifest last."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.shared.log import get_logger
from services.shared.telemetry import package_version
from services.storage.backups.catalog import Catalog
from services.storage.backups.chunks import Piece, pieces_of
from services.storage.backups.freeze import Frozen, frozen
from services.storage.backups.keys import Keyring
from services.storage.backups.manifest import (
    BackupManifest,
    ChunkEntry,
    PartitionEntry,
    TableEntry,
    key_object_key,
    make_backup_id,
    manifest_key,
)
from services.storage.backups.objects import ChunkWriter
from services.storage.backups.progress import Report, Tracker
from services.storage.backups.settings import BackupSettings
from services.storage.backups.store import Store
from services.storage.backups.tables import (
    Content,
    StoredTable,
    content_of,
    partition_sizes,
    positions_of,
    schema_version,
)
from services.storage.backups.targets import Target
from services.storage.backups.threads import all_of, in_thread

__all__ = ["CreateOptions", "create_backup"]


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """What is asked for."""

    description: str = ""
    """For a person."""

    base_backup_id: str = ""
    """Earlier backup that it only adds to; empty for a full one."""

    backup_id: str = ""
    """Its id; empty makes one."""

    keep_for: timedelta | None = None
    """How long it is kept; None without end."""


async def create_backup(
    store: Store,
    target: Target,
    settings: BackupSettings,
    keyring: Keyring,
    options: CreateOptions | None = None,
    report: Report | None = None,
) -> BackupManifest:
    """Make a backup and give its manifest.

    Whatever ends it early leaves no manifest, and its objects are deleted again where that can be.
    Raises what the database and the target do, `KeyMissing`, and for the base `BackupNotFound`,
    `BackupIncomplete` and `ManifestDamaged`.
    """
    options = options or CreateOptions()
    backup_id = options.backup_id or make_backup_id()
    tracker = Tracker(report)
    sealer = await in_thread(keyring.sealer)
    base = None
    if options.base_backup_id:
        catalog = Catalog(target)
        base = await in_thread(catalog.manifest, options.base_backup_id)
        await in_thread(catalog.check_objects, base)
    writer = ChunkWriter(target, sealer, settings.compression_level, settings.read_back)
    try:
        if sealer.key_object is not None:
            await in_thread(target.write, key_object_key(backup_id), sealer.key_object)
        tracker.phase("freeze")
        async with frozen(store, backup_id) as copies:
            copying = _Copying(store, copies, writer, settings, backup_id, base, tracker)
            tables = await copying.run()
            version = await schema_version(store, store.database)
        end = datetime.now(UTC)
        manifest = BackupManifest(
            backup_id=backup_id,
            base_backup_id=options.base_backup_id,
            description=options.description,
            begin_time=copies.time,
            end_time=end,
            expire_time=end + options.keep_for if options.keep_for is not None else None,
            database=store.database,
            schema_version=version,
            program_version=package_version(),
            engine_version=store.version,
            recipients=sealer.recipients,
            has_key_object=sealer.key_object is not None,
            tables=tuple(tables),
        )
        await in_thread(target.write, manifest_key(backup_id), manifest.dump())
    except BaseException:
        await asyncio.shield(_clean(target, backup_id))
        raise
    tracker.phase("done", backup_id)
    return manifest


class _Copying:
    """The copying of one backup."""

    def __init__(
        self,
        store: Store,
        copies: Frozen,
        writer: ChunkWriter,
        settings: BackupSettings,
        backup_id: str,
        base: BackupManifest | None,
        tracker: Tracker,
    ) -> None:
        self._store = store
        self._copies = copies
        self._writer = writer
        self._settings = settings
        self._backup_id = backup_id
        self._tracker = tracker
        # Pieces are held in memory while they are packed: so many at a time.
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._base: dict[tuple[str, str], tuple[TableEntry, PartitionEntry]] = {}
        if base is not None:
            self._base = {(t.name, p.partition_id): (t, p) for t, p in base.partitions()}

    async def run(self) -> list[TableEntry]:
        """Copy all tables and give their entries."""
        sizes = await partition_sizes(self._store, self._copies.database)
        self._tracker.expect(sum(len(found) for found in sizes.values()))
        self._tracker.phase("copy")
        entries = []
        for table in self._copies.tables:
            partitions = []
            for partition, (rows, size) in sizes.get(table.name, {}).items():
                partitions.append(await self._partition(table, partition, rows, size))
            positions = await positions_of(self._store, self._copies.database, table)
            entry = table.entry(positions)
            entries.append(entry.model_copy(update={"partitions": tuple(partitions)}))
        return entries

    async def _partition(
        self, table: StoredTable, partition: str, rows: int, size: int
    ) -> PartitionEntry:
        content = await content_of(
            self._store, self._copies.database, table, partition,
            final=table.final, threads=self._settings.read_threads,
        )  # fmt: skip
        where = f"{table.name} {partition}"
        entry = self._unchanged(table, partition, content)
        if entry is None:
            pieces = await pieces_of(
                self._store, self._copies.database, table, partition,
                rows=rows, size=size, chunk_bytes=self._settings.chunk_bytes,
            )  # fmt: skip
            chunks = await self._copy(table, partition, pieces)
            entry = PartitionEntry(
                partition_id=partition,
                rows=content.rows,
                checksum=content.checksum,
                backup_id=self._backup_id,
                chunks=tuple(chunks),
            )
        self._tracker.add(items=1, rows=entry.rows, detail=where)
        return entry

    def _unchanged(
        self, table: StoredTable, partition: str, content: Content
    ) -> PartitionEntry | None:
        """Give the entry of the base where it has the very same rows of the same columns."""
        known = self._base.get((table.name, partition))
        if known is None:
            return None
        was, entry = known
        same = (entry.rows, entry.checksum) == (content.rows, content.checksum)
        return entry if same and was.columns == table.columns else None

    async def _copy(
        self, table: StoredTable, partition: str, pieces: Sequence[Piece]
    ) -> list[ChunkEntry]:
        entries = await all_of(
            self._piece(table, partition, piece, number) for number, piece in enumerate(pieces)
        )
        return [entry for entry in entries if entry is not None]

    async def _piece(
        self, table: StoredTable, partition: str, piece: Piece, number: int
    ) -> ChunkEntry | None:
        async with self._slots:
            rows = await self._store.read_rows(
                piece.select(self._copies.database, table),
                {"partition": partition, **piece.parameters},
                {
                    "max_threads": self._settings.read_threads,
                    "do_not_merge_across_partitions_select_final": 1,
                },
            )
            if not rows:
                return None
            suffix = "native.zst.age" if self._writer.sealer.encrypts else "native.zst"
            key = f"{self._backup_id}/{table.name}/{partition}/{number:06d}.{suffix}"
            entry = await in_thread(self._writer.write, key, rows)
        self._tracker.add(transferred=entry.bytes)
        return entry


async def _clean(target: Target, backup_id: str) -> None:
    if not await in_thread(Catalog(target).discard, backup_id):
        get_logger().warning("objects of an interrupted backup are left", backup_id=backup_id)
