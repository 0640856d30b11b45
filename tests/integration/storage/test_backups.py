"""A backup shows one instant, and what comes back is what was there, or nothing."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.shared.errors import DataLoss, InvalidArgument, MarketPrismError
from services.storage.backups import create, restore
from services.storage.backups.catalog import Catalog
from services.storage.backups.create import CreateOptions, create_backup
from services.storage.backups.errors import (
    BackupIncomplete,
    BackupInUse,
    BackupNotFound,
    ChecksumDiffers,
    KeyMissing,
    KeyWrong,
    ManifestDamaged,
    ManifestNewer,
    ObjectDamaged,
    ObjectMissing,
    RowsExist,
    SchemaUnfit,
)
from services.storage.backups.freeze import scratch_database
from services.storage.backups.keys import Keyring, generate_identity
from services.storage.backups.manifest import BackupManifest, manifest_key
from services.storage.backups.progress import Progress
from services.storage.backups.restore import (
    Existing,
    RestoreOptions,
    restore_backup,
    unfinished_restores,
)
from services.storage.backups.store import Store
from services.storage.backups.targets import FolderTarget
from tests.integration.storage.backup_tools import (
    PARTITIONS,
    PRIVATE,
    events,
    fill,
    make_keyring,
    make_settings,
    open_store,
    put,
    scratch_databases,
    target_below,
    trade,
)

FRONT = Path(__file__).with_name("clickhouse_front.py")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("clickhouse")
    process = subprocess.Popen(
        [sys.executable, FRONT, folder / "data"], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on"), "the HTTP front did not start"
        yield f"http://127.0.0.1:{line.split()[-1]}"
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


async def back_up(store: Store, target: FolderTarget, **options: str) -> BackupManifest:
    return await create_backup(
        store, target, make_settings(), make_keyring(private=""), CreateOptions(**options)
    )


async def bring_back(
    store: Store, target: FolderTarget, backup_id: str, options: RestoreOptions | None = None
) -> restore.Restored:
    return await restore_backup(store, target, make_settings(), make_keyring(), backup_id, options)


async def make_one(folder: Path, trades: int = 500) -> tuple[FolderTarget, BackupManifest]:
    """Make a backup of a store of its own."""
    target = target_below(folder)
    async with open_store(folder / "source") as store:
        await fill(store.engine, trades)
        return target, await back_up(store, target)


def object_of(manifest: BackupManifest, table: str, number: int = 0) -> str:
    return next(p for t, p in manifest.partitions() if t.name == table).chunks[number].key


@pytest.mark.parametrize("place", ["embedded", "server"])
async def test_every_event_comes_back(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Byte for byte, from the embedded engine and over HTTP, in pieces that are loaded by turns."""
    url = request.getfixturevalue("server") if place == "server" else None
    target = target_below(tmp_path)
    states: list[Progress] = []
    async with open_store(tmp_path / "store", url, "before") as store:
        await fill(store.engine, 3000)
        wanted = await events(store)
        manifest = await create_backup(
            store, target, make_settings(), make_keyring(private=""), report=states.append
        )
        assert await scratch_databases(store) == [], "the frozen copies are gone"
    told = {f"{t.name} {p.partition_id}" for t, p in manifest.partitions()}
    assert told == PARTITIONS
    assert manifest.rows == sum(map(len, wanted.values())), "each event counts once"
    assert any(len(p.chunks) > 2 for _, p in manifest.partitions()), "large days are cut"
    last = states[-1]
    assert (last.phase, last.items_done, last.items_total) == ("done", 4, 4)
    assert (last.rows_done, last.bytes_done) == (manifest.rows, manifest.own_bytes)
    async with open_store(tmp_path / "store", url, "after") as store:
        done = await bring_back(store, target, manifest.backup_id)
        assert (done.rows, done.partitions, done.converted) == (manifest.rows, 4, ())
        assert await events(store) == wanted
        assert await scratch_databases(store) == []


async def test_a_backup_shows_the_instant_when_it_was_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later inserts are not in it, not even those that replace an event; merges change nothing."""
    target = target_below(tmp_path)
    async with open_store(tmp_path / "source") as store:
        await fill(store.engine)
        wanted = await events(store)
        plain = create.partition_sizes

        async def meanwhile(store: Store, database: str) -> dict[str, dict[str, tuple[int, int]]]:
            await put(store.engine, "trade", [trade(n) for n in range(400, 700)], first=90_000)
            await store.command("OPTIMIZE TABLE trade FINAL")
            await store.command("ALTER TABLE order_book_update DROP PARTITION ID '20261123'")
            return await plain(store, database)

        monkeypatch.setattr(create, "partition_sizes", meanwhile)
        manifest = await back_up(store, target)
        assert await events(store) != wanted
    positions = {t.name: [p.stream_sequence for p in t.positions] for t in manifest.tables}
    assert positions["trade"] == [1020]
    async with open_store(tmp_path / "other") as store:
        await bring_back(store, target, manifest.backup_id)
        assert await events(store) == wanted


async def test_ingest_goes_on_while_a_backup_is_made(tmp_path: Path) -> None:
    """What is inserted meanwhile is in the store, and the backup is equal to what it says."""
    target = target_below(tmp_path)
    async with open_store(tmp_path / "source") as store:
        await fill(store.engine, 2000)
        inserted = 0
        making = asyncio.ensure_future(back_up(store, target))
        while not making.done():
            await put(
                store.engine, "trade", [trade(50_000 + inserted, 1)], first=100_000 + inserted
            )
            inserted += 1
        manifest = await making
        assert inserted > 1
        count = await store.query("SELECT count() FROM trade FINAL")
        assert count == [(4000 + inserted,)]
    async with open_store(tmp_path / "other") as store:
        await bring_back(store, target, manifest.backup_id)


async def test_a_later_backup_only_adds_what_changed(tmp_path: Path) -> None:
    target = target_below(tmp_path)
    async with open_store(tmp_path / "source") as store:
        await fill(store.engine)
        first = await back_up(store, target)
        same = await back_up(store, target, base_backup_id=first.backup_id)
        assert same.own_bytes == 0
        assert same.needs == {first.backup_id}
        # The same events again change no day, merged or not.
        await put(store.engine, "trade", [trade(n) for n in range(20)], first=1001)
        await put(store.engine, "trade", [trade(900, 1)], first=5000)
        third = await back_up(store, target, base_backup_id=same.backup_id)
        wanted = await events(store)
    written = {p.partition_id for t, p in third.partitions() if p.backup_id == third.backup_id}
    assert written == {"20261124"}
    assert third.needs == {first.backup_id}, "it refers to where the objects are"
    catalog = Catalog(target)
    with pytest.raises(BackupInUse, match=third.backup_id):
        catalog.delete(first.backup_id)
    assert catalog.prune(1) == [same.backup_id], "what the newest needs stays"
    async with open_store(tmp_path / "other") as store:
        await bring_back(store, target, third.backup_id)
        assert await events(store) == wanted


async def test_rows_are_not_mixed_unless_that_is_asked_for(tmp_path: Path) -> None:
    target, manifest = await make_one(tmp_path)
    async with open_store(tmp_path / "other") as store:
        await put(store.engine, "trade", [trade(n, 0) for n in range(490, 520)])
        await put(store.engine, "trade", [trade(1, 30)], first=900)
        before = await events(store)
        with pytest.raises(RowsExist, match=r"trade has 30 rows in partition 20261123"):
            await bring_back(store, target, manifest.backup_id)
        assert await events(store) == before
        assert await scratch_databases(store) == [], "refused before anything was loaded"
        await bring_back(store, target, manifest.backup_id, RestoreOptions(existing=Existing.MERGE))
        merged = await events(store)
        assert len(merged["trade"]) == 500 + 20 + 500 + 1, "events are not doubled"
        await bring_back(
            store, target, manifest.backup_id, RestoreOptions(existing=Existing.REPLACE)
        )
        replaced = await events(store)
        assert len(replaced["trade"]) == 1000, "what the backup has not is gone"


async def test_tables_and_days_can_be_chosen(tmp_path: Path) -> None:
    target, manifest = await make_one(tmp_path)
    async with open_store(tmp_path / "other") as store:
        await put(store.engine, "trade", [trade(1, 1)])
        chosen = RestoreOptions(tables=("trade",), partitions=("20261123",))
        done = await bring_back(store, target, manifest.backup_id, chosen)
        assert (done.partitions, done.rows) == (1, 500)
        found = await events(store)
        assert {name: len(rows) for name, rows in found.items() if rows} == {"trade": 501}
        with pytest.raises(InvalidArgument, match="has no table 'trades'"):
            await bring_back(store, target, manifest.backup_id, RestoreOptions(tables=("trades",)))
        with pytest.raises(InvalidArgument, match="20261123, 20261124, all"):
            await bring_back(
                store, target, manifest.backup_id, RestoreOptions(partitions=("20200101",))
            )


async def test_a_restore_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is unfinished the store holds nothing of it; the second try loads the rest only."""
    target, manifest = await make_one(tmp_path)
    reads: list[str] = []
    plain = target.read

    def read(key: str) -> bytes:
        reads.append(key)
        if len(reads) == 4:
            raise RuntimeError("the machine fell over")
        return plain(key)

    async with open_store(tmp_path / "other") as store:
        monkeypatch.setattr(target, "read", read)
        with pytest.raises(RuntimeError):
            await bring_back(store, target, manifest.backup_id)
        assert not any((await events(store)).values())
        assert await unfinished_restores(store) == [
            scratch_database("marketprism", "restore", manifest.backup_id)
        ]
        loaded = {key for key in reads[:3] if "manifest" not in key}
        reads[:] = []
        monkeypatch.setattr(target, "read", plain)
        done = await bring_back(store, target, manifest.backup_id)
        assert done.resumed == len(loaded)
        assert done.partitions == 4
        assert sum(map(len, (await events(store)).values())) == manifest.rows
        assert await unfinished_restores(store) == []


async def test_a_restore_that_died_while_it_published_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, manifest = await make_one(tmp_path)
    plain = restore.Staging.publish_files
    count = 0

    async def publish(self: restore.Staging, *args: object, **more: object) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise RuntimeError("the machine fell over")
        await plain(self, *args, **more)  # type: ignore[arg-type]

    async with open_store(tmp_path / "other") as store:
        monkeypatch.setattr(restore.Staging, "publish_files", publish)
        with pytest.raises(RuntimeError):
            await bring_back(store, target, manifest.backup_id)
        assert await unfinished_restores(store), "what is there does not look whole"
        monkeypatch.setattr(restore.Staging, "publish_files", plain)
        done = await bring_back(store, target, manifest.backup_id)
        assert done.resumed == 4
        assert sum(map(len, (await events(store)).values())) == manifest.rows


async def test_an_interrupted_backup_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = target_below(tmp_path)
    plain = target.write

    def write(key: str, data: bytes) -> None:
        if "trade" in key:
            raise RuntimeError("the machine fell over")
        plain(key, data)

    async with open_store(tmp_path / "source") as store:
        await fill(store.engine)
        monkeypatch.setattr(target, "write", write)
        with pytest.raises(RuntimeError):
            await back_up(store, target)
        assert await scratch_databases(store) == []
        assert target.folders() == [], "its objects are cleared away"
        # A process that is killed clears nothing away.
        monkeypatch.setattr(Catalog, "discard", lambda *_: True)
        with pytest.raises(RuntimeError):
            await back_up(store, target)
    (backup_id,) = target.folders()
    (found,) = Catalog(target).find()
    assert found.manifest is None
    assert found.interrupted
    async with open_store(tmp_path / "other") as store:
        with pytest.raises(BackupIncomplete, match="no manifest"):
            await bring_back(store, target, backup_id)
        with pytest.raises(BackupNotFound):
            await bring_back(store, target, "20200101T000000000Z-000000")
        with pytest.raises(BackupNotFound, match="ids look like"):
            await bring_back(store, target, "../../etc/passwd")


async def test_copies_of_a_backup_that_was_killed_are_dropped_by_who_comes_next(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "source") as store:
        await fill(store.engine)
        left = scratch_database("marketprism", "backup", "20261101T000000000Z-abcdef")
        await store.command(f"CREATE DATABASE {left}")
        await store.command("CREATE DATABASE marketprism_backup_of_mine")
        await restore.tidy(store.engine)
        assert await scratch_databases(store) == ["marketprism_backup_of_mine"]
        await store.command(f"CREATE DATABASE {left}")
        await back_up(store, target_below(tmp_path))
        assert await scratch_databases(store) == ["marketprism_backup_of_mine"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "error"),
    [(flip, ObjectDamaged), (cut, ObjectDamaged), (Path.unlink, ObjectMissing)],
    ids=["flipped", "truncated", "missing"],
)
async def test_a_damaged_object_is_named_and_nothing_is_restored(
    damage: Callable[[Path], None], error: type[MarketPrismError], tmp_path: Path
) -> None:
    target, manifest = await make_one(tmp_path)
    key = object_of(manifest, "trade")
    damage(tmp_path / "backups" / key)
    async with open_store(tmp_path / "other") as store:
        with pytest.raises(error, match=key):
            await bring_back(store, target, manifest.backup_id)
        assert not any((await events(store)).values())
        with pytest.raises(error, match=key):
            await bring_back(store, target, manifest.backup_id, RestoreOptions(verify_only=True))


@pytest.mark.parametrize("unencrypted", [False, True])
async def test_rows_that_are_not_those_of_the_backup_are_found_by_their_checksum(
    tmp_path: Path, unencrypted: bool
) -> None:
    """Even where every object has its digest: here one is named twice, and another not at all."""
    target = target_below(tmp_path)
    settings = make_settings()
    if unencrypted:
        encryption = settings.encryption.model_copy(update={"enabled": False})
        settings = settings.model_copy(update={"encryption": encryption})
    keyring = Keyring.load(settings.encryption, {})
    async with open_store(tmp_path / "source") as store:
        await fill(store.engine, 3000)
        manifest = await create_backup(store, target, settings, keyring)
    tables = []
    for table in manifest.tables:
        partitions = [
            p.model_copy(update={"chunks": (p.chunks[0], *p.chunks[:-1])})
            if len(p.chunks) > 1
            else p
            for p in table.partitions
        ]
        tables.append(table.model_copy(update={"partitions": tuple(partitions)}))
    wrong = manifest.model_copy(update={"tables": tuple(tables)})
    target.write(manifest_key(manifest.backup_id), wrong.dump())
    async with open_store(tmp_path / "other") as store:
        with pytest.raises(ChecksumDiffers, match="nothing was published"):
            await restore_backup(store, target, settings, make_keyring(), manifest.backup_id)
        assert not any((await events(store)).values())


async def test_only_the_right_key_opens_a_backup(tmp_path: Path) -> None:
    target, manifest = await make_one(tmp_path)
    raw = b"".join(p.read_bytes() for p in (tmp_path / "backups").rglob("*.age"))
    assert b"age-encryption.org/v1" in raw
    async with open_store(tmp_path / "other") as store:
        for keyring, error in (
            (make_keyring(private=""), KeyMissing),
            (make_keyring(private=generate_identity()[0]), KeyWrong),
            (make_keyring(private="", passphrase="wrong"), KeyWrong),
        ):
            with pytest.raises(error):
                await restore_backup(store, target, make_settings(), keyring, manifest.backup_id)
        assert not any((await events(store)).values())


async def test_a_passphrase_opens_a_backup(tmp_path: Path) -> None:
    target = target_below(tmp_path)
    keyring = make_keyring(private="", passphrase="open sesame", recipients=False)
    async with open_store(tmp_path / "source") as store:
        await fill(store.engine)
        wanted = await events(store)
        manifest = await create_backup(store, target, make_settings(), keyring)
    assert manifest.has_key_object
    async with open_store(tmp_path / "other") as store:
        wrong = make_keyring(private="", passphrase="open says me", recipients=False)
        with pytest.raises(KeyWrong, match="passphrase does not open"):
            await restore_backup(store, target, make_settings(), wrong, manifest.backup_id)
        await restore_backup(store, target, make_settings(), keyring, manifest.backup_id)
        assert await events(store) == wanted
    everything = b"".join(p.read_bytes() for p in (tmp_path / "backups").rglob("*.*"))
    assert b"open sesame" not in everything
    assert b"AGE-SECRET" not in everything


async def test_an_encrypted_backup_without_a_key_is_refused(tmp_path: Path) -> None:
    target = target_below(tmp_path)
    keyring = make_keyring(private="", recipients=False)
    async with open_store(tmp_path / "source") as store:
        with pytest.raises(KeyMissing, match="keygen"):
            await create_backup(store, target, make_settings(), keyring)
    assert target.folders() == []


async def test_a_manifest_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    target, manifest = await make_one(tmp_path)
    path = tmp_path / "backups" / manifest_key(manifest.backup_id)
    good = path.read_bytes()
    record = json.loads(good)
    for text, error in (
        (good[:-10], ManifestDamaged),
        (good.replace(b'"rows": 500', b'"rows": 501', 1), ManifestDamaged),
        (b"", ManifestDamaged),
        (json.dumps({**record, "format": 2}).encode(), ManifestNewer),
    ):
        path.write_bytes(text)
        async with open_store(tmp_path / "other") as store:
            with pytest.raises(error, match=r"manifest\.json"):
                await bring_back(store, target, manifest.backup_id)
        (found,) = Catalog(target).find()
        assert found.manifest is None
        assert found.trouble
        assert Catalog(target).prune(1) == [], "nothing is deleted while it cannot be read"


async def test_a_backup_of_a_later_schema_is_refused(tmp_path: Path) -> None:
    target, manifest = await make_one(tmp_path)
    later = manifest.model_copy(update={"schema_version": 9999})
    target.write(manifest_key(manifest.backup_id), later.dump())
    async with open_store(tmp_path / "other") as store:
        with pytest.raises(SchemaUnfit, match="migration 9999"):
            await bring_back(store, target, manifest.backup_id)


async def test_a_backup_comes_back_into_tables_that_have_changed_since(tmp_path: Path) -> None:
    """Columns that were added have their defaults, and the rows were proved before they changed."""
    target, manifest = await make_one(tmp_path)
    async with open_store(tmp_path / "other") as store:
        await store.command("ALTER TABLE trade ADD COLUMN venue_note String DEFAULT 'none'")
        done = await bring_back(store, target, manifest.backup_id)
        assert done.converted == ("trade",)
        rows = await store.query("SELECT venue_note, count() FROM trade FINAL GROUP BY venue_note")
        assert rows == [("none", 1000)]
        assert sum(map(len, (await events(store)).values())) == manifest.rows


async def test_verifying_changes_nothing(tmp_path: Path) -> None:
    target, manifest = await make_one(tmp_path)
    async with open_store(tmp_path / "other") as store:
        done = await bring_back(store, target, manifest.backup_id, RestoreOptions(verify_only=True))
        assert (done.rows, done.partitions) == (manifest.rows, 4)
        assert not any((await events(store)).values())
        assert await scratch_databases(store) == []


async def test_damage_is_told_apart_from_trouble(tmp_path: Path) -> None:
    """A program can go by the kind: data that is lost is DATA_LOSS."""
    for error in (ObjectDamaged, ObjectMissing, ManifestDamaged, ChecksumDiffers):
        assert issubclass(error, DataLoss)


def run_until(count: int, *arguments: str | Path) -> list[str]:
    """Run the worker until it has told its progress so many times, and kill it; gives the lines."""
    command = [
        sys.executable,
        "-m",
        "tests.integration.storage.backup_worker",
        *map(str, arguments),
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = []
        try:
            while len(lines) < count:
                line = process.stdout.readline()
                assert line, "the worker ended by itself"
                if not line[0].isdigit():
                    lines.append(line.strip())
                if len(lines) < count:
                    process.stdin.write("\n")
                    process.stdin.flush()
        finally:
            process.kill()
    return lines


async def test_killed_at_any_point_nothing_looks_whole_and_the_next_try_works(
    tmp_path: Path,
) -> None:
    """`kill -9` of the process that backs up, and of the one that restores."""
    target = target_below(tmp_path)
    async with open_store(tmp_path / "source") as store:
        await fill(store.engine)
        wanted = await events(store)
    for count in (2, 5, 8):
        run_until(count, "backup", tmp_path / "source", tmp_path / "backups", PRIVATE, "")
    assert all(found.manifest is None for found in Catalog(target).find())
    async with open_store(tmp_path / "source") as store:
        manifest = await back_up(store, target)
        assert await scratch_databases(store) == []
        assert await events(store) == wanted
    where = (tmp_path / "other", tmp_path / "backups", PRIVATE, manifest.backup_id)
    for count in (4, 6, 7):
        lines = run_until(count, "restore", *where)
        async with open_store(tmp_path / "other") as store:
            assert await unfinished_restores(store), lines
            assert not any((await events(store)).values()), lines
    async with open_store(tmp_path / "other") as store:
        done = await bring_back(store, target, manifest.backup_id)
        assert done.resumed > 0
        assert await events(store) == wanted
        assert await unfinished_restores(store) == []
