"""Where a cache keeps its bytes."""

from collections.abc import Sequence
from typing import Protocol

from services.shared.health import DependencyStatus

__all__ = ["Store"]


class Store(Protocol):
    """Bytes by key, each with an expiry. No method raises because of the store's own trouble."""

    kind: str
    """What it is, for metrics: `memory`, `redis`."""

    evictions: int
    """Values that were pushed out before their time, to keep within bounds."""

    errors: int
    """Reads and writes that the store could not do."""

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """Give the value of each key, None for what is not kept, is too old, or cannot be had."""
        ...

    async def write(
        self, key: str, value: bytes, seconds: float, *, only_if_absent: bool = False
    ) -> bool:
        """Keep a value for so many seconds; tells whether that was done."""
        ...

    def bytes_kept(self) -> int:
        """Give the bytes kept in this process, keys included."""
        ...

    def entries_kept(self) -> int:
        """Give the number of values kept in this process."""
        ...

    def status(self) -> DependencyStatus:
        """Tell how well it works."""
        ...
