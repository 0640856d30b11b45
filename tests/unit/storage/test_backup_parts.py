"""The parts of backups that need no database: keys, manifests, objects, folders, pruning."""

import errno
import hashlib
import itertools
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.shared.errors import ConfigError, MarketPrismError
from services.shared.loading import load_settings
from services.storage.backups import chunks
from services.storage.backups.catalog import Catalog
from services.storage.backups.errors import (
    BackupInUse,
    KeyMissing,
    KeyUnsafe,
    KeyWrong,
    ManifestDamaged,
    ManifestNewer,
    ObjectDamaged,
    ObjectMissing,
    TargetFull,
    TargetRefused,
)
from services.storage.backups.keys import Keyring, generate_identity, read_secret_file
from services.storage.backups.manifest import (
    BackupManifest,
    ChunkEntry,
    ColumnEntry,
    PartitionEntry,
    TableEntry,
    begun_at,
    is_backup_id,
    make_backup_id,
    manifest_key,
    parse_manifest,
)
from services.storage.backups.objects import ChunkReader, ChunkWriter
from services.storage.backups.settings import BackupSettings, EncryptionSettings
from services.storage.backups.tables import _plain_engine
from services.storage.backups.targets import FolderTarget, check_key

NOW = datetime(2026, 11, 24, 16, 30, tzinfo=UTC)
PRIVATE, PUBLIC = generate_identity()


def manifest(
    backup_id: str, *, refers_to: str | None = None, expires: datetime | None = None
) -> BackupManifest:
    owner = refers_to or backup_id
    chunk = ChunkEntry(
        key=f"{owner}/trade/20261124/000000.native.zst", bytes=4,
        sha256=hashlib.sha256(b"rows").hexdigest(), raw_bytes=4,
    )  # fmt: skip
    partition = PartitionEntry(
        partition_id="20261124", rows=1, checksum="0" * 32, backup_id=owner, chunks=(chunk,)
    )
    table = TableEntry(
        name="trade", engine="ReplacingMergeTree", partition_key="toDate(time)",
        sorting_key="time", columns=(ColumnEntry(name="time", type="DateTime"),), positions=(),
        partitions=(partition,),
    )  # fmt: skip
    return BackupManifest(
        backup_id=backup_id, begin_time=NOW, end_time=NOW, expire_time=expires, database="d",
        schema_version=1, program_version="0", engine_version="0", recipients=(), tables=(table,),
    )  # fmt: skip


def put(target: FolderTarget, made: BackupManifest) -> str:
    for _, partition in made.partitions():
        if partition.backup_id == made.backup_id:
            target.write(partition.chunks[0].key, b"rows")
    target.write(manifest_key(made.backup_id), made.dump())
    return made.backup_id


def make_id(hours_ago: float) -> str:
    return make_backup_id(NOW - timedelta(hours=hours_ago))


# ---- keys


def test_a_file_with_a_secret_must_be_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"# mine\n{PRIVATE}\n")
    settings = EncryptionSettings(identity_file=file)
    for mode in (0o640, 0o604, 0o660, 0o666):
        file.chmod(mode)
        with pytest.raises(KeyUnsafe, match="chmod 600") as caught:
            Keyring.load(settings, {})
        assert PRIVATE not in str(caught.value)
    file.chmod(0o600)
    assert PRIVATE not in repr(Keyring.load(settings, {}))
    with pytest.raises(KeyMissing, match="No such file"):
        read_secret_file(tmp_path / "nothing", "the key")


@pytest.mark.parametrize("text", ["", "# only a comment", PRIVATE[:-1], f"{PRIVATE}\nnonsense"])
def test_what_is_no_key_is_told_without_being_repeated(text: str) -> None:
    with pytest.raises(KeyMissing, match="MARKETPRISM_BACKUP_IDENTITY") as caught:
        Keyring.load(EncryptionSettings(), {"MARKETPRISM_BACKUP_IDENTITY": text or " "})
    assert PRIVATE[:-1] not in str(caught.value)


def test_recipients_must_be_public_keys() -> None:
    """A private key in the configuration is refused, and not repeated."""
    with pytest.raises(ValueError, match="public keys") as caught:
        EncryptionSettings(recipients=(PRIVATE,))
    assert PRIVATE not in str(caught.value)
    with pytest.raises(MarketPrismError, match="age1nonsense"):
        Keyring.load(EncryptionSettings(recipients=("age1nonsense",)), {}).sealer()


def test_only_a_named_recipient_opens_an_object() -> None:
    sealer = Keyring.load(EncryptionSettings(recipients=(PUBLIC,)), {}).sealer()
    sealed = sealer.seal(b"rows")
    keyring = Keyring.load(EncryptionSettings(), {"MARKETPRISM_BACKUP_IDENTITY": PRIVATE})
    assert keyring.opener(sealer.recipients, lambda: None).open(sealed, "o") == b"rows"
    other = Keyring.load(
        EncryptionSettings(), {"MARKETPRISM_BACKUP_IDENTITY": generate_identity()[0]}
    )
    with pytest.raises(KeyWrong, match=PUBLIC):
        other.opener(sealer.recipients, lambda: None)


def test_encryption_is_on_unless_it_is_turned_off() -> None:
    with pytest.raises(KeyMissing):
        Keyring.load(BackupSettings().encryption, {}).sealer()
    assert not Keyring.load(EncryptionSettings(enabled=False), {}).sealer().encrypts


def test_the_configuration_file_is_valid_and_private_keys_are_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(f"encryption: {{recipients: [{PRIVATE}]}}\ntarget: 'ftp://x'")
    with pytest.raises(ConfigError, match="public keys") as caught:
        load_settings(BackupSettings, "b", config_dir=tmp_path, environ={})
    assert PRIVATE not in str(caught.value)
    assert "s3://bucket" in str(caught.value)


# ---- manifests


def test_a_manifest_is_read_as_it_was_written() -> None:
    made = manifest(make_id(1))
    assert parse_manifest(made.dump(), made.backup_id) == made


@given(st.data())
def test_any_damage_of_a_manifest_is_found(data: st.DataObject) -> None:
    made = manifest("20261124T163000000Z-abcdef")
    good = made.dump()
    place = data.draw(st.integers(0, len(good) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    bad = good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :]
    assert read(bad, made.backup_id) in (made, None), "damage that is read is one of spaces"
    # The file's last byte is a line's end.
    assert read(good[: min(place, len(good) - 2)], made.backup_id) is None


def read(data: bytes, backup_id: str) -> BackupManifest | None:
    try:
        return parse_manifest(data, backup_id)
    except (ManifestDamaged, ManifestNewer):
        return None


@pytest.mark.parametrize(
    "change",
    [
        {"key": "../../etc/passwd"},
        {"key": "20200101T000000000Z-000000/x"},
        {"sha256": "x"},
        {"bytes": -1},
        {"more": 1},
    ],
)
def test_a_manifest_that_was_made_by_hand_leads_nowhere(change: dict[str, object]) -> None:
    """Its digest is right, for anybody can compute it; its content is checked all the same."""
    made = manifest(make_id(1))
    body = json.loads(made.dump())["manifest"]
    body["tables"][0]["partitions"][0]["chunks"][0] |= change
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    record = {"format": 1, "sha256": hashlib.sha256(text.encode()).hexdigest(), "manifest": body}
    with pytest.raises(ManifestDamaged, match="it is no manifest"):
        parse_manifest(json.dumps(record).encode(), made.backup_id)
    with pytest.raises(ManifestDamaged, match=made.backup_id):
        parse_manifest(made.dump(), make_id(2))


def test_ids_sort_by_time() -> None:
    ids = [make_id(hours) for hours in (3, 2, 1, 0.999, 0)]
    assert ids == sorted(ids)
    assert all(map(is_backup_id, ids))
    assert begun_at(ids[0]) == NOW - timedelta(hours=3)


# ---- objects


@given(st.binary(max_size=5000))
def test_an_object_gives_the_rows_that_it_was_made_of(rows: bytes) -> None:
    target = Memory()
    sealer = Keyring.load(EncryptionSettings(recipients=(PUBLIC,)), {}).sealer()
    entry = ChunkWriter(target, sealer, 3, True).write("b/t/p/0", rows)
    keyring = Keyring.load(EncryptionSettings(), {"MARKETPRISM_BACKUP_IDENTITY": PRIVATE})
    reader = ChunkReader(target, keyring.opener(sealer.recipients, lambda: None))
    assert reader.read(entry) == rows
    # An object that unpacks to more than the manifest says is not unpacked to its end.
    if rows:
        with pytest.raises(ObjectDamaged, match="bytes of rows"):
            reader.read(entry.model_copy(update={"raw_bytes": len(rows) - 1}))


class Memory(FolderTarget):
    """A target that is a mapping."""

    def __init__(self) -> None:
        super().__init__(Path("memory"))
        self.objects: dict[str, bytes] = {}

    def write(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    def read(self, key: str) -> bytes:
        return self.objects[key]


def test_what_a_target_did_not_keep_is_found_when_it_is_read_back(tmp_path: Path) -> None:
    class Forgetful(FolderTarget):
        def write(self, key: str, data: bytes) -> None:
            super().write(key, data[:-1])

    sealer = Keyring.load(EncryptionSettings(enabled=False), {}).sealer()
    with pytest.raises(ObjectDamaged, match="expected"):
        ChunkWriter(Forgetful(tmp_path), sealer, 3, True).write("b/0", b"rows")


# ---- folders


def test_a_folder_gives_back_what_it_was_given(tmp_path: Path) -> None:
    target = FolderTarget(tmp_path / "far" / "away")
    assert target.folders() == []
    assert target.list("x") == []
    target.write("x/y/one", b"1")
    target.write("x/two", b"22")
    target.write("x/two", b"333")
    assert [(each.key, each.size) for each in target.list("x")] == [("x/two", 3), ("x/y/one", 1)]
    assert target.folders() == ["x"]
    with pytest.raises(ObjectMissing, match="x/three"):
        target.read("x/three")
    target.delete(["x/two", "x/y/one", "x/never"])
    assert target.folders() == [], "no empty folders are left"


@pytest.mark.parametrize(
    "key", ["", "/x", "x/", "../x", "x/../y", "x//y", "x\ny", "x/.hidden", "x y"]
)
def test_no_key_leads_out_of_a_target(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected names"):
        check_key(key)
    with pytest.raises(ValueError, match="expected names"):
        FolderTarget(tmp_path).read(key)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_no_file(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = FolderTarget(tmp_path / "backups")
    target.write("x/first", b"1")

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TargetFull, match=r"backups/x/second.*disk is full"):
        target.write("x/second", b"2")
    assert [path.name for path in (tmp_path / "backups" / "x").iterdir()] == ["first"]


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TargetRefused, match="expected a folder"):
        FolderTarget(tmp_path / "file").write("x/y", b"1")


# ---- pruning


def test_pruning_keeps_the_newest_and_what_they_need(tmp_path: Path) -> None:
    target = FolderTarget(tmp_path)
    catalog = Catalog(target)
    oldest, old, middle, new = (make_id(hours) for hours in (40, 30, 20, 10))
    put(target, manifest(oldest))
    put(target, manifest(old))
    put(target, manifest(middle))
    put(target, manifest(new, refers_to=old))
    begun, abandoned = make_id(1), make_id(50)
    for interrupted in (begun, abandoned):
        target.write(f"{interrupted}/trade/20261124/000000.native.zst", b"rows")
    assert catalog.prune(0, now=NOW) == [abandoned]
    assert catalog.prune(1, now=NOW) == [middle, oldest]
    assert target.folders() == sorted([old, new, begun])
    with pytest.raises(BackupInUse, match=new):
        catalog.delete(old)
    catalog.delete(new)
    catalog.delete(old)
    catalog.delete(begun)
    assert target.folders() == []


def test_expired_backups_go_unless_they_are_needed(tmp_path: Path) -> None:
    target = FolderTarget(tmp_path)
    due, needed, new = (make_id(hours) for hours in (3, 2, 1))
    past = NOW - timedelta(seconds=1)
    put(target, manifest(due, expires=past))
    put(target, manifest(needed, expires=past))
    put(target, manifest(new, refers_to=needed, expires=NOW + timedelta(days=1)))
    assert Catalog(target).prune(0, now=NOW) == [due]


# ---- pieces of partitions


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 5000)), min_size=1, max_size=50),
    st.integers(1, 10_000),
)
def test_pieces_cover_every_second_once(counts: list[tuple[int, int]], rows_each: int) -> None:
    seconds = sorted(dict(counts).items())
    bounds = chunks._bounds(seconds, rows_each)
    assert bounds == sorted(set(bounds))
    assert bounds[0] == seconds[0][0]
    assert bounds[-1] == seconds[-1][0] + 1
    for start, end in itertools.pairwise(bounds[:-1]):
        assert sum(rows for second, rows in seconds if start <= second < end) >= rows_each


# ---- engines


@pytest.mark.parametrize(
    ("full", "plain"),
    [
        ("MergeTree ORDER BY x SETTINGS index_granularity = 8192", "MergeTree"),
        ("ReplacingMergeTree(trades) PARTITION BY toYYYYMM(time)", "ReplacingMergeTree(trades)"),
        ("ReplicatedReplacingMergeTree('/a/{shard}', '{replica}', v) ORDER BY x",
         "ReplacingMergeTree(v)"),
        ("ReplicatedMergeTree('/a,b', 'r') ORDER BY x", "MergeTree"),
        ("SummingMergeTree((a, b)) ORDER BY x", "SummingMergeTree((a, b))"),
    ],
)  # fmt: skip
def test_copies_of_tables_are_not_replicated(full: str, plain: str) -> None:
    assert _plain_engine(full) == plain
