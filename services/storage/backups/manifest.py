"""The manifest of a backup: what it holds, where, and how that is proved.

It is written last, so a backup without one was interrupted. It tells no secret and is therefore
not encrypted: whoever makes backups can add to one or prune them without a key that opens them. Its
digest finds damage, not forgery: who can write to the target can also replace a backup.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from services.storage.backups.errors import ManifestDamaged, ManifestNewer
from services.storage.backups.targets import check_key

__all__ = [
    "FORMAT",
    "BackupManifest",
    "ChunkEntry",
    "ColumnEntry",
    "PartitionEntry",
    "Position",
    "TableEntry",
    "begun_at",
    "is_backup_id",
    "key_object_key",
    "make_backup_id",
    "manifest_key",
    "parse_manifest",
]

FORMAT: Final = 1
"""Version of the manifest's format that this program writes; it reads this one and older ones."""

_BACKUP_ID: Final = re.compile(r"[0-9]{8}T[0-9]{9}Z-[0-9a-f]{6}")

_BackupId = Annotated[str, StringConstraints(pattern=rf"^{_BACKUP_ID.pattern}$")]
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0)]
_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ColumnEntry(_Entry):
    """One stored column of a table."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")]
    """Its name; `bids.price` is one array of a nested column."""

    type: str
    """Its type as ClickHouse spells it."""


class ChunkEntry(_Entry):
    """One object: rows in ClickHouse's Native format, compressed, then encrypted."""

    key: str
    """Where it lies in the target."""

    bytes: _Count
    """Size of the object."""

    sha256: _Sha256
    """SHA-256 of the object as it is stored, hexadecimal."""

    raw_bytes: _Count
    """Size of the rows before compression."""


class PartitionEntry(_Entry):
    """One partition of a table, which is a UTC day of it where it is partitioned."""

    partition_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
    """ClickHouse's id of the partition: `20261124`, or `all`."""

    rows: _Count
    """Rows in it, each event counted once."""

    checksum: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    """What the database makes of all values of all rows, whatever their order; the same rows in
    another database give the same."""

    backup_id: _BackupId
    """Backup that the objects belong to: this one, or an earlier one that has the same rows."""

    chunks: tuple[ChunkEntry, ...]
    """Its objects; together they are the partition's rows."""


class Position(_Entry):
    """How far a table had read one stream of the broker."""

    stream_created: _Count
    """When the stream was made, Unix nanoseconds: it tells it from one made anew."""

    stream_sequence: _Count
    """Highest place in the stream that the backup has a row of."""


class TableEntry(_Entry):
    """One table."""

    name: _Name
    """Its name."""

    engine: str
    """Its engine with arguments, replication left out: `ReplacingMergeTree`."""

    partition_key: str
    """Expression of its partitions; empty when it has one."""

    sorting_key: str
    """Columns that its rows are sorted by."""

    columns: tuple[ColumnEntry, ...]
    """Its stored columns, in order: those that the objects have."""

    positions: tuple[Position, ...]
    """How far it had read the broker's streams; empty for a table that is not fed by them."""

    partitions: tuple[PartitionEntry, ...]
    """Its partitions by id."""


class BackupManifest(_Entry):
    """One backup."""

    format: Literal[1] = 1
    """Version of this format."""

    backup_id: _BackupId
    """Its id; sorts by time."""

    base_backup_id: str = ""
    """Earlier backup that it only adds to; empty when it is full."""

    description: str = ""
    """For a person."""

    begin_time: datetime
    """When the tables were frozen: the instant that the backup shows."""

    end_time: datetime
    """When the last object was written."""

    expire_time: datetime | None = None
    """When it may be pruned, whatever is kept otherwise; None for no such time."""

    database: str
    """Name of the database that it was made of."""

    schema_version: _Count
    """Newest migration that the database had."""

    program_version: str
    """Version of MarketPrism that made it."""

    engine_version: str
    """Version of ClickHouse that made it."""

    recipients: tuple[str, ...]
    """Public keys that the objects are encrypted to; empty when they are not encrypted."""

    has_key_object: bool = False
    """Whether a passphrase opens it."""

    compression: Literal["zstd"] = "zstd"
    """How objects are compressed."""

    tables: tuple[TableEntry, ...]
    """Tables by name."""

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(p.rows for _, p in self.partitions())

    @property
    def own_bytes(self) -> int:
        """Bytes of the objects that were written for this backup."""
        own = (p for _, p in self.partitions() if p.backup_id == self.backup_id)
        return sum(chunk.bytes for p in own for chunk in p.chunks)

    @property
    def total_bytes(self) -> int:
        """Bytes of all objects that a restore reads."""
        return sum(chunk.bytes for _, p in self.partitions() for chunk in p.chunks)

    @property
    def needs(self) -> frozenset[str]:
        """Other backups whose objects it refers to."""
        return frozenset(p.backup_id for _, p in self.partitions()) - {self.backup_id}

    def partitions(self) -> Iterator[tuple[TableEntry, PartitionEntry]]:
        """Give every partition with its table."""
        for table in self.tables:
            for partition in table.partitions:
                yield table, partition

    def dump(self) -> bytes:
        """Give the file."""
        body = self.model_dump(mode="json")
        record = {"format": self.format, "sha256": _digest(body), "manifest": body}
        return json.dumps(record, indent=1, sort_keys=True).encode() + b"\n"

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, hexadecimal."""
        return _digest(self.model_dump(mode="json"))


def make_backup_id(now: datetime | None = None) -> str:
    """Make the id of a new backup: the time to the millisecond, and a random part."""
    now = now or datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}Z-{secrets.token_hex(3)}"


def begun_at(backup_id: str) -> datetime:
    """Give when a backup was begun, to the second, as its id tells."""
    return datetime.strptime(backup_id[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)


def is_backup_id(text: str) -> bool:
    """Tell whether a text has the form of a backup's id."""
    return _BACKUP_ID.fullmatch(text) is not None


def manifest_key(backup_id: str) -> str:
    """Give where the manifest of a backup lies."""
    return f"{backup_id}/manifest.json"


def key_object_key(backup_id: str) -> str:
    """Give where the key that a passphrase opens lies."""
    return f"{backup_id}/key.age"


def parse_manifest(data: bytes, backup_id: str) -> BackupManifest:
    """Read a manifest; raises `ManifestDamaged`, and `ManifestNewer` for a later format."""
    place = manifest_key(backup_id)
    try:
        record = json.loads(data)
        told_format, told_digest, body = record["format"], record["sha256"], record["manifest"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(place, "expected JSON with format, sha256 and manifest") from None
    if not isinstance(told_format, int) or told_format < 1:
        raise _damaged(place, "expected a number as its format")
    if told_format > FORMAT:
        raise ManifestNewer(
            f"{place} has format {told_format} and this version of MarketPrism reads formats up "
            f"to {FORMAT}: restore with the version that made it",
            metadata={"backup_id": backup_id, "format": told_format},
        )
    if _digest(body) != told_digest:
        raise _damaged(place, "its digest is not the one that it was written with")
    try:
        manifest = BackupManifest.model_validate_json(json.dumps(body))
        for _, partition in manifest.partitions():
            for chunk in partition.chunks:
                if not check_key(chunk.key).startswith(f"{partition.backup_id}/"):
                    raise ValueError(f"{chunk.key} is not an object of {partition.backup_id}")
    except (ValidationError, ValueError) as error:
        first = error.errors()[0]["loc"] if isinstance(error, ValidationError) else error
        raise _damaged(place, f"it is no manifest ({first})") from None
    if manifest.backup_id != backup_id:
        raise _damaged(place, f"it is the manifest of {manifest.backup_id}")
    return manifest


def _damaged(place: str, what: str) -> ManifestDamaged:
    return ManifestDamaged(f"{place} cannot be used: {what}", metadata={"object": place})


def _digest(body: object) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
