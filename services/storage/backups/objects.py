"""One object of a backup: rows, compressed with Zstandard, encrypted, known by their SHA-256."""

import hashlib
from dataclasses import dataclass

from backports import zstd

from services.storage.backups.errors import ObjectDamaged
from services.storage.backups.keys import Opener, Sealer
from services.storage.backups.manifest import ChunkEntry
from services.storage.backups.targets import Target

__all__ = ["ChunkReader", "ChunkWriter", "check_object"]


@dataclass(frozen=True, slots=True)
class ChunkWriter:
    """Writes objects; blocks, so it is called from threads."""

    target: Target
    """Where to."""

    sealer: Sealer
    """Who can open them."""

    level: int
    """Level of Zstandard."""

    read_back: bool
    """Whether each is read again and its digest compared."""

    def write(self, key: str, rows: bytes) -> ChunkEntry:
        """Pack and write one object; raises what the target does, and `ObjectDamaged`."""
        packed = self.sealer.seal(zstd.compress(rows, self.level))
        digest = hashlib.sha256(packed).hexdigest()
        entry = ChunkEntry(key=key, bytes=len(packed), sha256=digest, raw_bytes=len(rows))
        self.target.write(key, packed)
        if self.read_back:
            check_object(self.target, entry)
        return entry


@dataclass(frozen=True, slots=True)
class ChunkReader:
    """Reads objects; blocks, so it is called from threads."""

    target: Target
    """Where from."""

    opener: Opener
    """What decrypts them."""

    def read(self, chunk: ChunkEntry) -> bytes:
        """Give the rows of one object, whose digest is checked before anything else is done.

        Raises what the target does, `ObjectDamaged` and `KeyWrong`.
        """
        packed = self.opener.open(check_object(self.target, chunk), chunk.key)
        try:
            # Damage that the digest does not show is forgery: it shall not fill the memory either.
            unpacker = zstd.ZstdDecompressor()
            rows = unpacker.decompress(packed, max_length=chunk.raw_bytes + 1)
        except zstd.ZstdError as error:
            raise _damaged(chunk, f"expected Zstandard, got: {error}") from None
        if len(rows) != chunk.raw_bytes or not unpacker.eof:
            raise _damaged(chunk, f"expected {chunk.raw_bytes} bytes of rows, got {len(rows)}")
        return rows


def check_object(target: Target, chunk: ChunkEntry) -> bytes:
    """Read an object and give it when it is what was written; raises `ObjectDamaged`."""
    data = target.read(chunk.key)
    if len(data) != chunk.bytes:
        raise _damaged(chunk, f"expected {chunk.bytes} bytes, got {len(data)}")
    if hashlib.sha256(data).hexdigest() != chunk.sha256:
        raise _damaged(chunk, "its SHA-256 is not the one that it was written with")
    return data


def _damaged(chunk: ChunkEntry, what: str) -> ObjectDamaged:
    return ObjectDamaged(f"{chunk.key} is damaged: {what}", metadata={"object": chunk.key})
