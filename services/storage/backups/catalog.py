"""The backups of a target: which there are, whether they are whole, and which can go."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.shared.errors import MarketPrismError
from services.storage.backups.errors import (
    BackupIncomplete,
    BackupInUse,
    BackupNotFound,
    ManifestDamaged,
    ManifestNewer,
    ObjectDamaged,
    ObjectMissing,
)
from services.storage.backups.manifest import (
    BackupManifest,
    begun_at,
    is_backup_id,
    manifest_key,
    parse_manifest,
)
from services.storage.backups.targets import Target

__all__ = ["ABANDONED_AFTER", "Catalog", "Found"]

ABANDONED_AFTER = timedelta(hours=24)
"""A backup without a manifest that was begun this long ago was interrupted: pruning removes it."""


@dataclass(frozen=True, slots=True)
class Found:
    """One backup in the target."""

    backup_id: str
    """Its id."""

    manifest: BackupManifest | None
    """Its manifest; None where there is none that can be read."""

    trouble: str = ""
    """Why it cannot be restored; empty when it is whole as far as its manifest tells."""

    interrupted: bool = False
    """Whether it has no manifest: it is being written, or never was finished."""

    @property
    def begun(self) -> datetime:
        """When it was begun, as its id tells."""
        return begun_at(self.backup_id)


class Catalog:
    """Looks into a target; blocks, so it is called from threads. Raises what the target does."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def find(self) -> list[Found]:
        """Give all backups, whole or not, newest first."""
        names = [name for name in self._target.folders() if is_backup_id(name)]
        looked = (self._look(name) for name in sorted(names, reverse=True))
        return [found for found in looked if found is not None]

    def manifest(self, backup_id: str) -> BackupManifest:
        """Give the manifest of one backup.

        Raises `BackupNotFound`, `BackupIncomplete`, `ManifestDamaged` and `ManifestNewer`.
        """
        if not is_backup_id(backup_id):
            raise BackupNotFound(
                f"there is no backup {backup_id!r} in {self._target.name}: ids look like "
                "20261124T163000123Z-1a2b3c",
                metadata={"backup_id": backup_id},
            )
        try:
            data = self._target.read(manifest_key(backup_id))
        except ObjectMissing:
            if self._target.list(backup_id):
                raise BackupIncomplete(
                    f"backup {backup_id} in {self._target.name} has no manifest: it is being "
                    "written, or was interrupted and cannot be used",
                    metadata={"backup_id": backup_id},
                ) from None
            raise BackupNotFound(
                f"there is no backup {backup_id} in {self._target.name}",
                metadata={"backup_id": backup_id},
            ) from None
        return parse_manifest(data, backup_id)

    def check_objects(self, manifest: BackupManifest) -> None:
        """Check that every object is there and has its size, without reading any.

        Raises `ObjectMissing` or `ObjectDamaged` for the first that is not.
        """
        sizes = {
            stored.key: stored.size
            for backup_id in sorted(manifest.needs | {manifest.backup_id})
            for stored in self._target.list(backup_id)
        }
        for table, partition in manifest.partitions():
            where = f"{table.name} {partition.partition_id} of backup {manifest.backup_id}"
            for chunk in partition.chunks:
                metadata = {"object": chunk.key, "target": self._target.name}
                if chunk.key not in sizes:
                    raise ObjectMissing(
                        f"{chunk.key} is not in {self._target.name}, and {where} needs it",
                        metadata=metadata,
                    )
                if sizes[chunk.key] != chunk.bytes:
                    raise ObjectDamaged(
                        f"{chunk.key} is damaged: expected {chunk.bytes} bytes, got "
                        f"{sizes[chunk.key]}; {where} needs it",
                        metadata=metadata,
                    )

    def delete(self, backup_id: str) -> None:
        """Delete a backup, whole or not.

        Raises `BackupNotFound`, and `BackupInUse` where another one refers to its objects.
        """
        found = {each.backup_id: each for each in self.find()}
        if backup_id not in found:
            raise BackupNotFound(
                f"there is no backup {backup_id} in {self._target.name}",
                metadata={"backup_id": backup_id},
            )
        users = [
            each.backup_id
            for each in found.values()
            if each.manifest is not None and backup_id in each.manifest.needs
        ]
        if users:
            raise BackupInUse(
                f"backup {backup_id} cannot be deleted: {', '.join(users)} refers to its objects; "
                "delete that first",
                metadata={"backup_id": backup_id, "needed_by": ",".join(users)},
            )
        unreadable = _unreadable(each for each in found.values() if each.backup_id != backup_id)
        if unreadable:
            raise BackupInUse(
                f"backup {backup_id} cannot be deleted: the manifest of {unreadable} cannot be "
                "read, so it is not known whether that refers to it; delete that first",
                metadata={"backup_id": backup_id, "needed_by": unreadable},
            )
        self._remove(backup_id)

    def prune(
        self, keep: int, *, spare: Iterable[str] = (), now: datetime | None = None
    ) -> list[str]:
        """Delete all but the newest `keep` whole backups and what those refer to; gives the ids.

        0 keeps all. Expired ones go even so, and interrupted ones of a day ago. What is in `spare`
        stays. Nothing is deleted while a manifest cannot be read: what it refers to is not known.
        """
        now = now or datetime.now(UTC)
        found = self.find()
        if _unreadable(found):
            return []
        whole = {each.backup_id: each.manifest for each in found if each.manifest is not None}
        order = sorted(whole, reverse=True)
        kept = {
            backup_id
            for place, backup_id in enumerate(order)
            if (not keep or place < keep) and not _is_expired(whole[backup_id], now)
        }
        kept |= {each for each in spare if each in whole}
        kept |= {needed for backup_id in list(kept) for needed in _needs(whole, backup_id)}
        gone = [backup_id for backup_id in order if backup_id not in kept]
        gone += [
            each.backup_id
            for each in found
            if each.manifest is None
            and each.backup_id not in spare
            and now - each.begun > ABANDONED_AFTER
        ]
        for backup_id in gone:
            self._remove(backup_id)
        return gone

    def _look(self, backup_id: str) -> Found | None:
        try:
            return Found(backup_id, self.manifest(backup_id))
        except BackupNotFound:
            # Some S3 servers list a folder for a while after its last object is gone.
            return None
        except BackupIncomplete as error:
            return Found(backup_id, None, error.message, interrupted=True)
        except (ManifestDamaged, ManifestNewer) as error:
            return Found(backup_id, None, error.message)

    def _remove(self, backup_id: str) -> None:
        keys = [stored.key for stored in self._target.list(backup_id)]
        manifest = manifest_key(backup_id)
        # Without its manifest it does not look whole, whatever happens next.
        self._target.delete([key for key in keys if key == manifest])
        self._target.delete([key for key in keys if key != manifest])

    def discard(self, backup_id: str) -> bool:
        """Delete what an interrupted backup has written; tells whether that worked."""
        try:
            self._remove(backup_id)
        except MarketPrismError:
            return False
        return True


def _needs(whole: Mapping[str, BackupManifest | None], backup_id: str) -> frozenset[str]:
    manifest = whole[backup_id]
    return manifest.needs if manifest is not None else frozenset()


def _unreadable(found: Iterable[Found]) -> str:
    """Name the backups that have a manifest which cannot be read."""
    return ", ".join(
        each.backup_id for each in found if each.manifest is None and not each.interrupted
    )


def _is_expired(manifest: BackupManifest | None, now: datetime) -> bool:
    return manifest is not None and manifest.expire_time is not None and manifest.expire_time <= now
