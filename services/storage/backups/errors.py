"""What can be wrong with a backup, each with the reason that programs go by."""

from services.shared.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)

__all__ = [
    "BackupInUse",
    "BackupIncomplete",
    "BackupNotFound",
    "ChecksumDiffers",
    "KeyMissing",
    "KeyUnsafe",
    "KeyWrong",
    "ManifestDamaged",
    "ManifestNewer",
    "ObjectDamaged",
    "ObjectMissing",
    "OperationConflict",
    "RowsExist",
    "SchemaUnfit",
    "TargetFull",
    "TargetRefused",
    "TargetUnavailable",
]


class BackupNotFound(NotFound):
    """There is no backup of this id in the target."""

    default_reason = "BACKUP_NOT_FOUND"


class BackupIncomplete(FailedPrecondition):
    """The backup was interrupted before its manifest: it cannot be restored."""

    default_reason = "BACKUP_INCOMPLETE"


class BackupInUse(FailedPrecondition):
    """Another backup refers to objects of this one."""

    default_reason = "BACKUP_IN_USE"


class KeyMissing(FailedPrecondition):
    """Encryption needs a key, and none is given."""

    default_reason = "KEY_MISSING"


class KeyUnsafe(FailedPrecondition):
    """A file with a secret can be read by others than its owner."""

    default_reason = "KEY_UNSAFE"


class KeyWrong(FailedPrecondition):
    """The keys at hand open nothing of this backup."""

    default_reason = "KEY_WRONG"


class ManifestDamaged(DataLoss):
    """A manifest cannot be read, or its digest differs."""

    default_reason = "MANIFEST_DAMAGED"


class ManifestNewer(FailedPrecondition):
    """A later version of MarketPrism wrote the manifest."""

    default_reason = "MANIFEST_NEWER"


class ObjectMissing(DataLoss):
    """An object that the manifest names is not in the target."""

    default_reason = "OBJECT_MISSING"


class ObjectDamaged(DataLoss):
    """An object is shorter or longer than the manifest says, or its digest differs."""

    default_reason = "OBJECT_DAMAGED"


class ChecksumDiffers(DataLoss):
    """The rows in the database are not those that the backup was made of."""

    default_reason = "CHECKSUM_DIFFERS"


class OperationConflict(Aborted):
    """Another backup or restore is being done."""

    default_reason = "OPERATION_CONFLICT"


class RowsExist(FailedPrecondition):
    """The database has rows where the backup's would go."""

    default_reason = "ROWS_EXIST"


class SchemaUnfit(FailedPrecondition):
    """The tables of the database cannot take the rows of the backup."""

    default_reason = "SCHEMA_UNFIT"


class TargetUnavailable(Unavailable):
    """The place of the backups does not answer."""

    default_reason = "COLD_STORE_UNAVAILABLE"


class TargetRefused(FailedPrecondition):
    """The place of the backups answers, and refuses."""

    default_reason = "COLD_STORE_REFUSED"


class TargetFull(ResourceExhausted):
    """The place of the backups is full."""

    default_reason = "COLD_STORE_FULL"
