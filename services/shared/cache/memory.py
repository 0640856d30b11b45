"""The default store: a dictionary in this process, bounded in bytes."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from services.shared.health import DependencyStatus

__all__ = ["MemoryStore"]

# What CPython takes for an entry beside its bytes: key object, value object, tuple, table row.
_ENTRY_OVERHEAD = 300


class MemoryStore:
    """Keeps what was used latest; safe within one event loop."""

    kind = "memory"

    def __init__(self, max_bytes: int, *, now: Callable[[], float] = time.monotonic) -> None:
        """Keep at most so many bytes; `now` gives seconds that never go back."""
        self.evictions = 0
        self.errors = 0
        self._max_bytes = max_bytes
        self._now = now
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._bytes = 0

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """Give the value of each key, None for what is not kept or is too old."""
        return [self._get(key) for key in keys]

    async def write(
        self, key: str, value: bytes, seconds: float, *, only_if_absent: bool = False
    ) -> bool:
        """Keep a value, pushing out what was used least lately; False when it is kept already."""
        if only_if_absent and self._get(key) is not None:
            return False
        self._drop(key)
        size = _size(key, value)
        if seconds <= 0 or size > self._max_bytes:
            return False
        while self._bytes + size > self._max_bytes:
            oldest, (_, expires) = next(iter(self._entries.items()))
            self.evictions += expires > self._now()
            self._drop(oldest)
        self._entries[key] = (value, self._now() + seconds)
        self._bytes += size
        return True

    def bytes_kept(self) -> int:
        """Give the bytes kept, keys and bookkeeping included."""
        return self._bytes

    def entries_kept(self) -> int:
        """Give the number of values kept."""
        return len(self._entries)

    def status(self) -> DependencyStatus:
        """Say that all is well: it cannot be away."""
        return DependencyStatus.healthy("in this process", bytes=self._bytes)

    def _get(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, expires = entry
        if expires <= self._now():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= _size(key, entry[0])


def _size(key: str, value: bytes) -> int:
    return len(key) + len(value) + _ENTRY_OVERHEAD
