"""How much an administrator's SQL may take."""

from pydantic import Field

from services.shared.settings import SettingsModel

__all__ = ["SqlSettings"]


class SqlSettings(SettingsModel):
    """RunQuery: read-only SQL for administrators."""

    enabled: bool = False
    """Whether it is answered. Whoever reaches the gateway can ask; keep it off unless only
    administrators do."""

    max_memory_bytes: int = Field(default=1024**3, ge=16 * 1024**2)
    """Most memory of one statement, bytes."""

    max_rows_read: int = Field(default=1_000_000_000, ge=1000)
    """Most rows that one statement reads."""

    max_result_bytes: int = Field(default=8 * 1024**2, ge=64 * 1024, le=12 * 1024**2)
    """Largest result, bytes of its text; more is an error, and not cut."""

    max_threads: int = Field(default=2, ge=1, le=64)
    """Threads of the database for one statement."""

    max_concurrent: int = Field(default=2, ge=1, le=64)
    """Statements at work at a time; further ones are refused."""
