"""The RPCs of ArchiveService about backups and operations; the others are not served yet."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.archive.v1 import archive_pb2, archive_service_pb2
from marketprism.archive.v1 import archive_service_pb2 as pb
from marketprism.market.v1 import market_event_pb2

from services.shared.errors import FieldViolation, InvalidArgument, Unimplemented
from services.shared.paging import list_page
from services.shared.parts import Context
from services.storage.backups.catalog import Catalog, Found
from services.storage.backups.create import CreateOptions, create_backup
from services.storage.backups.errors import (
    BackupNotFound,
    OperationConflict,
)
from services.storage.backups.keys import Keyring
from services.storage.backups.manifest import make_backup_id
from services.storage.backups.operations import Operations, Spawn
from services.storage.backups.progress import Report
from services.storage.backups.restore import Existing, RestoreOptions, restore_backup
from services.storage.backups.settings import BackupSettings
from services.storage.backups.store import Store
from services.storage.backups.targets import Target, open_target
from services.storage.backups.threads import in_thread
from services.storage.engine import Engine

__all__ = ["SERVICE", "BackupCalls"]

SERVICE: Final = archive_service_pb2.DESCRIPTOR.services_by_name["ArchiveService"]
"""Descriptor of ArchiveService."""

_DEFAULT_HEARTBEAT = 15.0
_MIN_HEARTBEAT, _MAX_HEARTBEAT = 0.1, 60.0
# Ids sort by time, and lists give the newest first while their pages go by rising keys.
_NEWEST_FIRST = str.maketrans("0123456789abcdef", "fedcba9876543210")
_OURS = (
    archive_pb2.BACKUP_SCOPE_UNSPECIFIED,
    archive_pb2.BACKUP_SCOPE_ALL,
    archive_pb2.BACKUP_SCOPE_DATABASE,
)


class BackupCalls:
    """Backups of the database, for one service.

    Its methods have the names of RPCs. `spawn` runs a task that the service owns and ends before it
    closes the engine; `stopping` is set when the service begins to stop. A restore is done
    inside `around_restore`, where the service keeps its own hands off the rows.
    """

    def __init__(
        self,
        engine: Engine,
        settings: BackupSettings,
        data_dir: Path,
        spawn: Spawn,
        stopping: asyncio.Event,
        around_restore: Callable[[], contextlib.AbstractAsyncContextManager[None]] = (
            contextlib.nullcontext
        ),
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._data_dir = data_dir
        self._stopping = stopping
        self._around_restore = around_restore
        self.operations = Operations(spawn, stopping)
        """What is being done and was done since the start."""

    async def ListBackups(  # noqa: N802 - the contract's name
        self, request: pb.ListBackupsRequest, _context: Context
    ) -> pb.ListBackupsResponse:
        """Give the backups of the target, newest first."""
        found = await in_thread(self._catalog().find)
        keyed = (((each.backup_id.translate(_NEWEST_FIRST),), each) for each in found)
        page, token = list_page(keyed, request.page_size, request.page_token, "ListBackups")
        return pb.ListBackupsResponse(
            backups=[self._backup(each) for each in page], next_page_token=token
        )

    async def GetBackup(  # noqa: N802 - the contract's name
        self, request: pb.GetBackupRequest, _context: Context
    ) -> pb.GetBackupResponse:
        """Give one backup, whole or not."""
        found = await in_thread(self._catalog().find)
        for each in found:
            if each.backup_id == request.backup_id:
                return pb.GetBackupResponse(backup=self._backup(each))
        raise BackupNotFound(
            f"there is no backup {request.backup_id!r}",
            metadata={"backup_id": request.backup_id},
        )

    async def CreateBackup(  # noqa: N802 - the contract's name
        self, request: pb.CreateBackupRequest, _context: Context
    ) -> pb.CreateBackupResponse:
        """Begin a backup. It is encrypted unless the configuration turned that off."""
        _check_scope(request.scope)
        keep_for = _keep_for(request)
        keyring = await in_thread(self._keyring, request.encrypt)
        keyring.check_can_seal()
        target = self._target()
        if request.base_backup_id:
            await in_thread(Catalog(target).manifest, request.base_backup_id)
        options = CreateOptions(
            description=request.description,
            base_backup_id=request.base_backup_id,
            backup_id=make_backup_id(),
            keep_for=keep_for,
        )

        async def work(report: Report) -> str:
            async with Store.opened(self._engine, self._settings.concurrency) as store:
                made = await create_backup(store, target, self._settings, keyring, options, report)
            gone = await in_thread(Catalog(target).prune, self._settings.keep)
            pruned = f"; pruned {', '.join(gone)}" if gone else ""
            return f"{made.rows} rows in {made.own_bytes} bytes to {target.name}{pruned}"

        return pb.CreateBackupResponse(
            operation=self.operations.begin(
                archive_pb2.OPERATION_KIND_BACKUP, options.backup_id, work
            )
        )

    async def RestoreBackup(  # noqa: N802 - the contract's name
        self, request: pb.RestoreBackupRequest, _context: Context
    ) -> pb.RestoreBackupResponse:
        """Begin to bring a backup back, in place of what the database has."""
        _check_scope(request.scope)
        if request.confirm != request.backup_id:
            raise _invalid("confirm", "expected the same text as backup_id, as a safeguard")
        target = self._target()
        await in_thread(Catalog(target).manifest, request.backup_id)
        keyring = await in_thread(self._keyring, False)
        options = RestoreOptions(existing=Existing.REPLACE)

        async def work(report: Report) -> str:
            async with (
                self._around_restore(),
                Store.opened(self._engine, self._settings.concurrency) as store,
            ):
                done = await restore_backup(
                    store, target, self._settings, keyring, request.backup_id, options, report
                )
            return (
                f"{done.rows} rows in {done.partitions} partitions, each with the checksum that "
                "it was backed up with"
            )

        return pb.RestoreBackupResponse(
            operation=self.operations.begin(
                archive_pb2.OPERATION_KIND_RESTORE_BACKUP, request.backup_id, work
            )
        )

    async def DeleteBackup(  # noqa: N802 - the contract's name
        self, request: pb.DeleteBackupRequest, _context: Context
    ) -> pb.DeleteBackupResponse:
        """Delete a backup that no other refers to."""
        running = self.operations.running
        if running is not None:
            raise OperationConflict(
                f"operation {running.operation_id} is being done: wait for its end",
                metadata={"operation_id": running.operation_id},
            )
        await in_thread(self._catalog().delete, request.backup_id)
        return pb.DeleteBackupResponse()

    async def ListOperations(  # noqa: N802 - the contract's name
        self, request: pb.ListOperationsRequest, _context: Context
    ) -> pb.ListOperationsResponse:
        """Give the operations since the start, newest first."""
        _check_enum("kind", request.kind, archive_pb2.OperationKind.DESCRIPTOR.values_by_number)
        states = archive_pb2.OperationState.DESCRIPTOR.values_by_number
        for index, state in enumerate(request.states):
            _check_enum(f"states[{index}]", state, set(states) - {0})
        keyed = (
            ((each.operation_id.translate(_NEWEST_FIRST),), each)
            for each in self.operations.all()
            if request.kind in (0, each.kind)
            and (not request.states or each.state in request.states)
        )
        scope = ("ListOperations", sorted(request.states), request.kind)
        page, token = list_page(keyed, request.page_size, request.page_token, scope)
        return pb.ListOperationsResponse(operations=page, next_page_token=token)

    async def GetOperation(  # noqa: N802 - the contract's name
        self, request: pb.GetOperationRequest, _context: Context
    ) -> pb.GetOperationResponse:
        """Give one operation."""
        return pb.GetOperationResponse(operation=self.operations.get(request.operation_id))

    async def CancelOperation(  # noqa: N802 - the contract's name
        self, request: pb.CancelOperationRequest, _context: Context
    ) -> pb.CancelOperationResponse:
        """End an operation; what it has written goes, what it has loaded stays for the next try."""
        return pb.CancelOperationResponse(operation=self.operations.cancel(request.operation_id))

    async def WatchOperation(  # noqa: N802 - the contract's name
        self, request: pb.WatchOperationRequest, _context: Context
    ) -> AsyncIterator[pb.WatchOperationResponse]:
        """Give an operation, and again when it changes, until it has ended."""
        heartbeat = _heartbeat(request)
        async for operation in self.operations.watch(request.operation_id, heartbeat):
            if operation is None:
                yield _status(market_event_pb2.STREAM_STATE_HEARTBEAT, "", "")
            else:
                yield pb.WatchOperationResponse(operation=operation)
        if self._stopping.is_set():
            reason, message = "SERVER_STOPPING", "the service stops, and the operation with it"
        else:
            reason, message = "OPERATION_ENDED", "the operation has ended"
        yield _status(market_event_pb2.STREAM_STATE_ENDED, reason, message)

    def _target(self) -> Target:
        return open_target(self._settings, self._data_dir)

    def _catalog(self) -> Catalog:
        return Catalog(self._target())

    def _keyring(self, encrypt: bool) -> Keyring:
        settings = self._settings.encryption
        if encrypt and not settings.enabled:
            settings = settings.model_copy(update={"enabled": True})
        return Keyring.load(settings)

    def _backup(self, found: Found) -> archive_pb2.Backup:
        backup = archive_pb2.Backup(
            backup_id=found.backup_id,
            scope=archive_pb2.BACKUP_SCOPE_DATABASE,
            state=archive_pb2.BACKUP_STATE_FAILED,
            location=found.backup_id,
        )
        manifest = found.manifest
        if manifest is None:
            running = self.operations.running
            if found.interrupted and running is not None and running.target == found.backup_id:
                backup.state = archive_pb2.BACKUP_STATE_WRITING
            backup.create_time.FromDatetime(found.begun)
            backup.description = found.trouble
            return backup
        backup.state = archive_pb2.BACKUP_STATE_COMPLETE
        backup.description = manifest.description
        backup.base_backup_id = manifest.base_backup_id
        backup.bytes = manifest.own_bytes
        backup.sha256 = manifest.digest
        backup.encrypted = bool(manifest.recipients)
        backup.create_time.FromDatetime(manifest.begin_time)
        if manifest.expire_time is not None:
            backup.expire_time.FromDatetime(manifest.expire_time)
        return backup


def _check_scope(scope: int) -> None:
    names = archive_pb2.BackupScope.DESCRIPTOR.values_by_number
    if scope not in names:
        raise _invalid("scope", f"expected a scope that the contract has, got {scope}")
    if scope not in _OURS:
        raise Unimplemented(
            f"{names[scope].name} is in the contract and not served yet: backups hold the database",
            reason="NOT_IMPLEMENTED",
        )


def _check_enum(field: str, value: int, known: Iterable[int]) -> None:
    if value not in known:
        raise _invalid(field, f"expected a value that the contract has, got {value}")


def _keep_for(request: pb.CreateBackupRequest) -> timedelta | None:
    if not request.HasField("keep_for"):
        return None
    seconds = _seconds(request.keep_for)
    if not 1 <= seconds <= 100 * 366 * 86_400:
        raise _invalid("keep_for", f"expected 1 s to 100 years, or nothing, got {seconds:g} s")
    return timedelta(seconds=seconds)


def _heartbeat(request: pb.WatchOperationRequest) -> float:
    if not request.HasField("heartbeat_interval"):
        return _DEFAULT_HEARTBEAT
    seconds = _seconds(request.heartbeat_interval)
    if not _MIN_HEARTBEAT <= seconds <= _MAX_HEARTBEAT:
        raise _invalid("heartbeat_interval", f"expected 0.1 s to 60 s, got {seconds:g} s")
    return seconds


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _status(state: int, reason: str, message: str) -> pb.WatchOperationResponse:
    now = Timestamp()
    now.FromNanoseconds(time.time_ns())
    status = market_event_pb2.StreamStatus(
        state=state,  # type: ignore[arg-type]  # a number of the enum
        reason=reason,
        message=message,
        time=now,
    )
    return pb.WatchOperationResponse(stream_status=status)


def _invalid(field: str, description: str) -> InvalidArgument:
    return InvalidArgument(
        f"{field}: {description}",
        violations=[FieldViolation(field, description, "OUT_OF_RANGE")],
        metadata={"field": field},
    )
