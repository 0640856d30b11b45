"""The section `backups` of `config/storage.yaml`: where backups go and who can open them."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from services.shared.settings import SettingsModel

__all__ = ["BackupSettings", "EncryptionSettings", "S3Settings"]

_RECIPIENT_PREFIX = "age1"


class EncryptionSettings(SettingsModel):
    """How backups are encrypted: with age (https://age-encryption.org/v1).

    Secrets are never in this file: a passphrase comes from MARKETPRISM_BACKUP_PASSPHRASE or
    `passphrase_file`, an identity from MARKETPRISM_BACKUP_IDENTITY or `identity_file`.
    """

    enabled: bool = True
    """Whether backups are encrypted. On, and without a recipient or a passphrase, a backup is
    refused with KEY_MISSING."""

    recipients: tuple[str, ...] = ()
    """Public keys (`age1...`) of those who can restore. `marketprism backup keygen` makes one."""

    passphrase_file: Path | None = None
    """File whose first line is a passphrase that opens backups too, mode 0600."""

    identity_file: Path | None = None
    """File with the private keys for a restore, mode 0600. Making backups does not need it."""

    @field_validator("recipients")
    @classmethod
    def _are_recipients(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for recipient in value:
            if not recipient.startswith(_RECIPIENT_PREFIX):
                # The text is not repeated: it might be a private key.
                raise ValueError(
                    f"expected public keys of age, which begin with {_RECIPIENT_PREFIX}"
                )
        return value


class S3Settings(SettingsModel):
    """How an S3 server is reached when `target` is `s3://bucket/prefix`.

    Keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, from `credentials_file`, else from
    where the AWS tools look.
    """

    endpoint_url: str | None = None
    """`http://host:port` of a server that speaks S3; absent means Amazon's."""

    region: str | None = None
    """Region of the bucket; absent means the one that the AWS tools find, else us-east-1."""

    credentials_file: Path | None = None
    """File with the lines `access_key_id = ...` and `secret_access_key = ...`, mode 0600."""

    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Whether the bucket is in the path or in the host name of requests."""

    timeout_seconds: float = Field(default=60.0, gt=0, le=3600)
    """Silence of the server after which a request counts as failed, seconds."""

    attempts: int = Field(default=4, ge=1, le=100)
    """How often a request is tried in all."""


class BackupSettings(SettingsModel):
    """Where backups go, and how they are made."""

    target: str = "backups"
    """A folder, relative to `data_dir`, or `s3://bucket/prefix`."""

    s3: S3Settings = S3Settings()
    """How an S3 server is reached."""

    encryption: EncryptionSettings = EncryptionSettings()
    """Who can open backups."""

    keep: int = Field(default=0, ge=0)
    """Complete backups that are kept after a new one, beside those they refer to; 0 keeps all."""

    chunk_bytes: int = Field(default=32 * 1024 * 1024, ge=64 * 1024, le=1024 * 1024 * 1024)
    """Bytes of rows in one object before compression, about; this much is held in memory for each
    of `concurrency`, several times over."""

    compression_level: int = Field(default=3, ge=1, le=19)
    """Level of Zstandard: higher is smaller and slower."""

    concurrency: int = Field(default=2, ge=1, le=64)
    """Objects that are read, packed or written at once."""

    read_threads: int = Field(default=1, ge=1, le=256)
    """Threads of the database that one query of a backup takes, so that ingest keeps its share."""

    read_back: bool = True
    """Whether each object is read again from the target before the backup counts as complete."""

    @field_validator("target")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        if value.startswith("s3://"):
            if not value.removeprefix("s3://").split("/")[0]:
                raise ValueError("expected s3://bucket or s3://bucket/prefix")
        elif "://" in value:
            raise ValueError("expected a folder or s3://bucket/prefix")
        elif not value.strip():
            raise ValueError("expected a folder or s3://bucket/prefix, got nothing")
        return value
