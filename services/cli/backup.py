"""`marketprism backup` and `marketprism restore`: through storage when it runs, else directly."""

import asyncio
import os
import re
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from marketprism.archive.v1 import archive_pb2, archive_service_pb2_grpc
from marketprism.archive.v1 import archive_service_pb2 as pb

from services.cli.backup_meter import Meter, human_bytes
from services.cli.backup_setup import Setup
from services.cli.backup_views import backup_facts
from services.cli.client import connect, run_async
from services.shared.errors import ConfigError, DataLoss, FailedPrecondition, StartupError
from services.storage.backups.catalog import Catalog
from services.storage.backups.create import CreateOptions, create_backup
from services.storage.backups.keys import generate_identity
from services.storage.backups.objects import check_object
from services.storage.backups.progress import Progress, Tracker
from services.storage.backups.restore import (
    Existing,
    Restored,
    RestoreOptions,
    restore_backup,
    unfinished_restores,
)
from services.storage.backups.tables import drop_database

__all__ = [
    "run_create",
    "run_delete",
    "run_discard",
    "run_keygen",
    "run_prune",
    "run_restore",
    "run_verify",
    "run_verify_only",
]

_DAY = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})")
_DAMAGE = ("OBJECT_MISSING", "OBJECT_DAMAGED", "CHECKSUM_DIFFERS", "MANIFEST_DAMAGED")


def run_create(
    setup: Setup, *, base: str, description: str, keep_days: float | None, as_json: bool
) -> None:
    """Make a backup; raises our errors."""
    base_id = setup.resolve(base) if base else ""
    with Meter("backup", as_json=as_json) as meter:
        backup_id, pruned = run_async(
            _create(
                setup,
                CreateOptions(
                    description=description,
                    base_backup_id=base_id,
                    keep_for=timedelta(days=keep_days) if keep_days is not None else None,
                ),
                meter,
            )
        )
    manifest = Catalog(setup.target).manifest(backup_id)
    meter.say("done", pruned=pruned, **backup_facts(manifest))
    if not as_json:
        print(
            f"backup {backup_id}: {manifest.rows:,} rows, {human_bytes(manifest.own_bytes)} "
            f"written to {setup.target.name}" + (f"; pruned {', '.join(pruned)}" if pruned else "")
        )
        if not manifest.recipients:
            print("it is NOT encrypted")


def run_verify(setup: Setup, backup_id: str, *, as_json: bool) -> None:
    """Compare every object with its digest; raises for the first that differs."""
    target = setup.target
    catalog = Catalog(target)
    manifest = catalog.manifest(setup.resolve(backup_id))
    catalog.check_objects(manifest)
    with Meter("verify", as_json=as_json) as meter:
        tracker = Tracker(meter.show)
        partitions = list(manifest.partitions())
        tracker.expect(len(partitions))
        for table, partition in partitions:
            for chunk in partition.chunks:
                check_object(target, chunk)
                tracker.add(transferred=chunk.bytes)
            where = f"{table.name} {partition.partition_id}"
            tracker.add(items=1, rows=partition.rows, detail=where)
    objects = sum(len(partition.chunks) for _, partition in partitions)
    meter.say("done", backup_id=manifest.backup_id, objects=objects, bytes=manifest.total_bytes)
    if not as_json:
        print(
            f"backup {manifest.backup_id}: {objects} objects, {human_bytes(manifest.total_bytes)}, "
            "each with its digest"
        )


def run_delete(setup: Setup, backup_id: str) -> None:
    """Delete a backup; raises `BackupNotFound`, `BackupInUse`, `OperationConflict`."""
    backup_id = setup.resolve(backup_id)
    run_async(_delete(setup, backup_id))
    print(f"deleted {backup_id}")


def run_prune(setup: Setup, keep: int | None) -> None:
    """Delete what need not be kept."""
    gone = Catalog(setup.target).prune(setup.backups.keep if keep is None else keep)
    for backup_id in gone:
        print(f"deleted {backup_id}")
    if not gone:
        print("nothing to delete")


def run_keygen(out: Path) -> None:
    """Write a private key and print the public one; raises `StartupError`."""
    private, public = generate_identity()
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"# public key: {public}\n{private}\n")
    except FileExistsError:
        raise StartupError(
            f"{out} exists already: a key that is overwritten opens nothing any more"
        ) from None
    except OSError as error:
        raise StartupError(f"cannot write {out}: {error.strerror}") from None
    print(public)


def run_restore(
    setup: Setup,
    backup_id: str,
    tables: Sequence[str],
    days: Sequence[str],
    *,
    existing: str,
    as_json: bool,
) -> None:
    """Restore a backup; raises our errors."""
    options = RestoreOptions(
        tables=tuple(tables),
        partitions=_partitions(days, months=existing != Existing.REPLACE.value),
        existing=Existing(existing),
    )
    backup_id = setup.resolve(backup_id)
    with Meter("restore", as_json=as_json) as meter:
        told = run_async(_restore(setup, backup_id, options, meter))
    if isinstance(told, str):
        meter.say("done", backup_id=backup_id, message=told)
        message = told
    else:
        meter.say("done", **_restored_facts(told))
        message = (
            f"{told.rows:,} rows in {told.partitions} partitions of {told.database}, each with "
            "the checksum that it was backed up with"
        )
        if told.resumed:
            message += f"; {told.resumed} of them had been loaded before"
    if not as_json:
        print(f"restored {backup_id}: {message}")


def run_verify_only(
    setup: Setup, backup_id: str, tables: Sequence[str], days: Sequence[str], *, as_json: bool
) -> None:
    """Prove a backup in a temporary store; raises our errors."""
    options = RestoreOptions(
        tables=tuple(tables), partitions=_partitions(days, months=True), verify_only=True
    )
    backup_id = setup.resolve(backup_id)

    async def prove(folder: Path, meter: Meter) -> Restored:
        async with setup.scratch_store(folder) as store:
            return await restore_backup(
                store, setup.target, setup.backups, setup.keyring, backup_id, options, meter.show
            )

    with (
        tempfile.TemporaryDirectory(prefix="marketprism-verify-") as folder,
        Meter("verify", as_json=as_json) as meter,
    ):
        done = run_async(prove(Path(folder) / "store", meter))
    meter.say("done", **_restored_facts(done))
    if not as_json:
        print(
            f"backup {backup_id} can be restored: {done.rows:,} rows in {done.partitions} "
            "partitions came back, each with the checksum that it was backed up with"
        )


def run_discard(setup: Setup) -> None:
    """Drop what unfinished restores have left beside the store."""

    async def discard() -> list[str]:
        await _refuse_while_running(setup, "--discard")
        async with setup.store(make=False) as store:
            found = await unfinished_restores(store)
            for name in found:
                await drop_database(store, name)
            return found

    for name in run_async(discard()) or ["nothing"]:
        print(f"dropped {name}")


async def _create(setup: Setup, options: CreateOptions, meter: Meter) -> tuple[str, list[str]]:
    address = await setup.storage_address()
    if address is None:
        async with setup.store(make=False) as store:
            made = await create_backup(
                store, setup.target, setup.backups, setup.keyring, options, meter.show
            )
        catalog = Catalog(setup.target)
        pruned = await asyncio.to_thread(catalog.prune, setup.backups.keep)
        return made.backup_id, pruned
    setup.refuse_options()
    keep_for = Duration()
    if options.keep_for is not None:
        keep_for.FromTimedelta(options.keep_for)
    async with connect(address) as channel:
        stub = archive_service_pb2_grpc.ArchiveServiceStub(channel)
        request = pb.CreateBackupRequest(
            description=options.description,
            scope=archive_pb2.BACKUP_SCOPE_DATABASE,
            base_backup_id=options.base_backup_id,
            keep_for=keep_for if options.keep_for is not None else None,
        )
        operation = (await stub.CreateBackup(request)).operation
        await _follow(stub, operation, meter)
        return operation.target, []


async def _restore(
    setup: Setup, backup_id: str, options: RestoreOptions, meter: Meter
) -> Restored | str:
    address = await setup.storage_address()
    if address is None:
        async with setup.store(make=True) as store:
            return await restore_backup(
                store, setup.target, setup.backups, setup.keyring, backup_id, options, meter.show
            )
    if options.tables or options.partitions or options.existing is not Existing.REPLACE:
        raise ConfigError(
            "storage is running, and restores a backup only as a whole, in place of all that it "
            "has: say --existing replace without --table and --day, or stop storage first"
        )
    setup.refuse_options()
    async with connect(address) as channel:
        stub = archive_service_pb2_grpc.ArchiveServiceStub(channel)
        request = pb.RestoreBackupRequest(
            backup_id=backup_id, scope=archive_pb2.BACKUP_SCOPE_DATABASE, confirm=backup_id
        )
        return await _follow(stub, (await stub.RestoreBackup(request)).operation, meter)


async def _delete(setup: Setup, backup_id: str) -> None:
    address = await setup.storage_address()
    if address is None or setup.overridden:
        await asyncio.to_thread(Catalog(setup.target).delete, backup_id)
        return
    async with connect(address) as channel:
        stub = archive_service_pb2_grpc.ArchiveServiceStub(channel)
        await stub.DeleteBackup(pb.DeleteBackupRequest(backup_id=backup_id))


async def _refuse_while_running(setup: Setup, what: str) -> None:
    if await setup.storage_address() is not None:
        raise ConfigError(f"{what}: storage is running and has the store: stop it first")


async def _follow(
    stub: "archive_service_pb2_grpc.ArchiveServiceAsyncStub",
    operation: archive_pb2.Operation,
    meter: Meter,
) -> str:
    """Show an operation until it has ended, and give what was done.

    It goes on when the user leaves.
    """
    meter.say("begun", operation_id=operation.operation_id, target=operation.target)
    request = pb.WatchOperationRequest(operation_id=operation.operation_id)
    async for answer in stub.WatchOperation(request):
        if not answer.HasField("operation"):
            continue
        operation = answer.operation
        if operation.state == archive_pb2.OPERATION_STATE_RUNNING:
            phase, _, detail = operation.message.partition(" ")
            meter.show(
                Progress(
                    phase=phase,
                    detail=detail,
                    items_total=operation.items_total,
                    items_done=operation.items_done,
                    rows_done=operation.rows_done,
                    bytes_done=operation.bytes_done,
                )
            )
    if operation.state == archive_pb2.OPERATION_STATE_SUCCEEDED:
        return operation.message
    kind = DataLoss if operation.reason in _DAMAGE else FailedPrecondition
    raise kind(
        operation.message or "the service stopped before the operation had ended",
        reason=operation.reason or "SERVER_STOPPING",
        metadata={"operation_id": operation.operation_id},
    )


def _partitions(days: Sequence[str], *, months: bool) -> tuple[str, ...]:
    """Give the partitions of days, and with `months` those of derived tables, which are months."""
    found = []
    for day in days:
        match = _DAY.fullmatch(day)
        if match is None:
            raise ConfigError(f"--day: expected a UTC day like 2026-11-24, got {day!r}")
        found.append("".join(match.groups()))
    if months:
        found += sorted({day[:6] for day in found})
    return tuple(found)


def _restored_facts(done: Restored) -> dict[str, object]:
    return {
        "backup_id": done.backup_id,
        "database": done.database,
        "partitions": done.partitions,
        "rows": done.rows,
        "bytes": done.bytes,
        "resumed": done.resumed,
        "converted": list(done.converted),
    }
