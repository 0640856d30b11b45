"""The part of `config/storage.yaml` that tells how events come into the database."""

from pydantic import Field

from services.shared.settings import SettingsModel

__all__ = ["IngestSettings"]


class IngestSettings(SettingsModel):
    """How events come from the broker into the database."""

    enabled: bool = True
    """Whether this process stores events; without it only answers. One process at a time may, for
    each `consumer`."""

    consumer: str = Field(default="storage", pattern=r"^[A-Za-z0-9_-]{1,32}$")
    """Begin of the names of the durable consumers, one a table: `storage-trade`."""

    batch_rows: int = Field(default=50_000, ge=1, le=1_000_000)
    """Most rows of one insert. Twice as many are held for a table at most."""

    batch_bytes: int = Field(default=8 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """Most bytes of one insert's events."""

    batch_seconds: float = Field(default=1.0, ge=0.01, le=60)
    """Longest time an event waits for its batch to fill, seconds."""

    retry_seconds: float = Field(default=0.25, gt=0, le=60)
    """Time before the first retry when the database is away, seconds; doubled with each."""

    retry_limit_seconds: float = Field(default=5.0, gt=0, le=600)
    """Longest time between two retries, seconds."""

    behind_seconds: float = Field(default=30.0, gt=0)
    """Health says degraded when an event waits for longer to be stored, seconds."""
