"""Backups through a storage that runs: over gRPC, and from the command line."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from marketprism.archive.v1 import archive_pb2, archive_service_pb2_grpc
from marketprism.archive.v1 import archive_service_pb2 as pb
from marketprism.market.v1 import market_event_pb2

from services.shared.errors import from_rpc_error
from services.shared.settings import MeshSettings, NatsSettings
from services.storage.backups import calls
from services.storage.backups.settings import BackupSettings
from services.storage.backups.store import Store
from services.storage.service import StorageService
from services.storage.settings import StorageSettings
from tests.integration.storage.backup_tools import (
    PRIVATE,
    PUBLIC,
    events,
    fill,
    make_settings,
    open_store,
    put,
    trade,
)

Stub: TypeAlias = "archive_service_pb2_grpc.ArchiveServiceAsyncStub"
FREE = {"grpc_port": 0, "http_port": 0}


@contextlib.asynccontextmanager
async def running(
    folder: Path, backups: BackupSettings
) -> AsyncIterator[tuple[StorageService, Stub]]:
    mesh = MeshSettings.model_validate(
        {"data_dir": folder, "services": {"storage": FREE}, "nats": NatsSettings(port=1)}
    )
    async with (
        StorageService(mesh, StorageSettings(backups=backups)).running() as service,
        grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel,
    ):
        yield service, archive_service_pb2_grpc.ArchiveServiceStub(channel)


async def wait(stub: Stub, operation: archive_pb2.Operation) -> archive_pb2.Operation:
    """Watch an operation to its end; the stream's last message says so."""
    last = None
    request = pb.WatchOperationRequest(operation_id=operation.operation_id)
    async for answer in stub.WatchOperation(request):
        if answer.HasField("operation"):
            operation = answer.operation
        last = answer
    assert last is not None
    assert last.stream_status.state == market_event_pb2.STREAM_STATE_ENDED
    return operation


async def refusal(call: "grpc.aio.UnaryUnaryCall[object, object]") -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return type(error).__name__, error.reason


async def test_a_backup_is_made_listed_restored_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKETPRISM_BACKUP_IDENTITY", PRIVATE)
    async with running(tmp_path, make_settings()) as (service, stub):
        async with Store.opened(service.engine) as store:
            await fill(store.engine)
            wanted = await events(store)
        request = pb.CreateBackupRequest(description="before the move")
        begun = (await stub.CreateBackup(request)).operation
        assert begun.kind == archive_pb2.OPERATION_KIND_BACKUP
        ended = await wait(stub, begun)
        assert ended.state == archive_pb2.OPERATION_STATE_SUCCEEDED, ended.message
        assert ended.items_done == ended.items_total >= 4
        (backup,) = (await stub.ListBackups(pb.ListBackupsRequest())).backups
        assert backup.backup_id == begun.target
        assert backup.state == archive_pb2.BACKUP_STATE_COMPLETE
        assert (backup.encrypted, backup.description) == (True, "before the move")
        request = pb.CreateBackupRequest(base_backup_id=backup.backup_id)
        second = await wait(stub, (await stub.CreateBackup(request)).operation)
        one = pb.GetBackupRequest(backup_id=second.target)
        assert (await stub.GetBackup(one)).backup.base_backup_id == backup.backup_id
        page = await stub.ListBackups(pb.ListBackupsRequest(page_size=1))
        assert [each.backup_id for each in page.backups] == [second.target], "newest first"
        again = pb.ListBackupsRequest(page_size=1, page_token=page.next_page_token)
        page = await stub.ListBackups(again)
        assert [each.backup_id for each in page.backups] == [backup.backup_id]

        await put(service.engine, "trade", [trade(3000, 3)], first=7000)
        restore = pb.RestoreBackupRequest(backup_id=backup.backup_id, confirm=backup.backup_id)
        ended = await wait(stub, (await stub.RestoreBackup(restore)).operation)
        assert ended.state == archive_pb2.OPERATION_STATE_SUCCEEDED, ended.message
        async with Store.opened(service.engine) as store:
            assert await events(store) == wanted, "what the backup has not is gone"

        delete = pb.DeleteBackupRequest(backup_id=backup.backup_id)
        assert await refusal(stub.DeleteBackup(delete)) == ("FailedPrecondition", "BACKUP_IN_USE")
        await stub.DeleteBackup(pb.DeleteBackupRequest(backup_id=second.target))
        await stub.DeleteBackup(delete)
        assert not (await stub.ListBackups(pb.ListBackupsRequest())).backups
        found = (await stub.ListOperations(pb.ListOperationsRequest())).operations
        assert [each.kind for each in found] == [
            archive_pb2.OPERATION_KIND_RESTORE_BACKUP,
            archive_pb2.OPERATION_KIND_BACKUP,
            archive_pb2.OPERATION_KIND_BACKUP,
        ]


async def test_bad_requests_are_refused(tmp_path: Path) -> None:
    keyless = BackupSettings()
    async with running(tmp_path, keyless) as (_, stub):
        cases = {
            stub.CreateBackup(pb.CreateBackupRequest()): ("FailedPrecondition", "KEY_MISSING"),
            stub.CreateBackup(pb.CreateBackupRequest(scope=archive_pb2.BACKUP_SCOPE_BROKER)): (
                "Unimplemented",
                "NOT_IMPLEMENTED",
            ),
            stub.GetBackup(pb.GetBackupRequest(backup_id="x")): ("NotFound", "BACKUP_NOT_FOUND"),
            stub.DeleteBackup(pb.DeleteBackupRequest(backup_id="x")): (
                "NotFound",
                "BACKUP_NOT_FOUND",
            ),
            stub.RestoreBackup(pb.RestoreBackupRequest(backup_id="x", confirm="y")): (
                "InvalidArgument",
                "INVALID_ARGUMENT",
            ),
            stub.RestoreBackup(pb.RestoreBackupRequest(backup_id="x", confirm="x")): (
                "NotFound",
                "BACKUP_NOT_FOUND",
            ),
            stub.GetOperation(pb.GetOperationRequest(operation_id="x")): (
                "NotFound",
                "OPERATION_NOT_FOUND",
            ),
            stub.ListPolicies(pb.ListPoliciesRequest()): ("Unimplemented", "NOT_IMPLEMENTED"),
        }
        for call, expected in cases.items():
            assert await refusal(call) == expected


async def test_one_operation_at_a_time_and_it_can_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, plain = asyncio.Event(), calls.create_backup

    async def slow(*args: object, **more: object) -> object:
        begun.set()
        await asyncio.sleep(60)
        return await plain(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(calls, "create_backup", slow)
    async with running(tmp_path, make_settings()) as (_, stub):
        first = (await stub.CreateBackup(pb.CreateBackupRequest())).operation
        await asyncio.wait_for(begun.wait(), 10)
        second = stub.CreateBackup(pb.CreateBackupRequest())
        assert await refusal(second) == ("Aborted", "OPERATION_CONFLICT")
        watching = asyncio.ensure_future(wait(stub, first))
        cancel = pb.CancelOperationRequest(operation_id=first.operation_id)
        await stub.CancelOperation(cancel)
        assert (await watching).state == archive_pb2.OPERATION_STATE_CANCELLED
        assert await refusal(stub.CancelOperation(cancel)) == (
            "FailedPrecondition",
            "OPERATION_ENDED",
        )


async def command(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run `marketprism` on a data directory; gives its status, stdout and stderr."""
    environ = {
        **os.environ,
        "MARKETPRISM__STORAGE__BACKUPS__ENCRYPTION__RECIPIENTS": f"[{PUBLIC}]",
        "MARKETPRISM_BACKUP_IDENTITY": PRIVATE,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "services.cli", *arguments, "--data-dir", str(folder),
        env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    assert PRIVATE not in out.decode() + err.decode()
    return process.returncode, out.decode(), err.decode()


async def test_the_command_line_asks_a_storage_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKETPRISM_BACKUP_IDENTITY", PRIVATE)
    async with running(tmp_path, make_settings()) as (service, _):
        await fill(service.engine)
        status, out, err = await command(tmp_path, "backup", "--json")
        assert status == 0, err
        lines = [json.loads(line) for line in out.splitlines()]
        assert {line["event"] for line in lines} >= {"begun", "done"}
        done = lines[-1]
        assert done["rows"] >= 1302
        status, _, err = await command(tmp_path, "restore")
        assert status == 2
        assert "--existing replace" in err
        status, out, err = await command(tmp_path, "restore", "--existing", "replace")
        assert status == 0, err
        assert "each with the checksum" in out
        status, out, err = await command(tmp_path, "restore", "--verify-only")
        assert status == 0, err
        assert done["backup_id"] in out


async def test_the_command_line_opens_a_store_that_nobody_has(tmp_path: Path) -> None:
    async with open_store(tmp_path / "clickhouse") as store:
        await fill(store.engine)
    status, out, err = await command(tmp_path, "backup", "-m", "by hand")
    assert status == 0, err
    assert "1,302 rows" in out
    status, out, err = await command(tmp_path, "backup", "list", "--json")
    assert status == 0, err
    assert json.loads(out)["description"] == "by hand"
    status, out, err = await command(tmp_path, "restore", "--database", "other", "--json")
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])["rows"] == 1302
    status, out, err = await command(tmp_path, "restore")
    assert status == 1
    assert "ROWS_EXIST" in err
    object_ = next((tmp_path / "backups").rglob("*.age"))
    object_.write_bytes(object_.read_bytes()[:-1])
    status, out, err = await command(tmp_path, "restore", "--verify-only")
    assert status == 1
    assert "OBJECT_DAMAGED" in err
    assert object_.name in err
