"""Starts nats-server again after it gave up writing.

A stream that could not be written once (the disk was full) refuses every message from then on,
also when there is room again, until the process starts anew (seen with nats-server 2.15.1).
"""

import asyncio
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from services.shared.log import get_logger

__all__ = ["WriteGuard"]

_GAVE_UP = re.compile(r"critical write error|out of \w+ resources, will be disabled", re.IGNORECASE)
_ROOM_MIB = 16
_MIB = 1024 * 1024
_LONGEST_PAUSE = 60.0


class WriteGuard:
    """Watches what nats-server says, and calls `restart` once its store can be written again.

    `pause` is the time between two looks at the disk, seconds; it doubles while restarts do not
    help, so that a disk that is broken and not full costs no endless restarts.
    """

    def __init__(self, directory: Path, restart: Callable[[], None], *, pause: float = 2.0) -> None:
        self._directory = directory
        self._restart = restart
        self._first_pause = self._pause = pause
        self._log = get_logger(child="nats-server")
        self._gave_up = asyncio.Event()
        self._reason = ""

    def on_line(self, text: str) -> None:
        """Take a line of nats-server's log."""
        if not self._gave_up.is_set() and _GAVE_UP.search(text):
            self._reason = text
            self._gave_up.set()

    @property
    def problem(self) -> str:
        """What keeps nats-server from writing and what ends it; empty while it writes."""
        if not self._gave_up.is_set():
            return ""
        return (
            f"nats-server gave up writing ({self._reason}); {self._free_mib()} MiB are free in "
            f"{self._directory}, and it is started again when {_ROOM_MIB} are"
        )

    async def run(self) -> None:
        """Watch until cancelled."""
        restarted = float("-inf")
        while True:
            await self._gave_up.wait()
            if time.monotonic() - restarted > _LONGEST_PAUSE + self._pause:
                self._pause = self._first_pause
            await asyncio.sleep(self._pause)
            free = self._free_mib()
            if free < _ROOM_MIB:
                continue
            self._log.warning("gave up writing, is started again", free_mib=free)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            restarted = time.monotonic()
            self._gave_up.clear()
            self._restart()

    def _free_mib(self) -> int:
        try:
            return shutil.disk_usage(self._directory).free // _MIB
        except OSError:
            return 0
