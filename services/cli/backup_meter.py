"""The progress of a backup or a restore: bars on stderr, or JSON lines on stdout."""

import json
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from services.storage.backups import progress as work

__all__ = ["Meter", "human_bytes"]

_PAUSE_SECONDS = 0.2


class Meter:
    """Shows each state of the work. Use it as a context manager."""

    def __init__(self, title: str, *, as_json: bool) -> None:
        self._as_json = as_json
        self._told = 0.0
        self._phase = ""
        self._task: TaskID | None = None
        self._bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} partitions"),
            TextColumn("{task.fields[rows]} rows, {task.fields[size]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[detail]}"),
            console=Console(stderr=True),
        )
        self._title = title

    def __enter__(self) -> Self:
        """Begin to show."""
        if not self._as_json:
            self._bars.start()
            self._task = self._bars.add_task(
                self._title, total=1, completed=0, rows="0", size="0 B", detail=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen."""
        if not self._as_json:
            self._bars.stop()

    def show(self, state: work.Progress) -> None:
        """Show a state: phases always, figures a few times a second."""
        now = time.monotonic()
        is_last = state.items_total and state.items_done == state.items_total
        if state.phase == self._phase and now - self._told < _PAUSE_SECONDS and not is_last:
            return
        self._phase, self._told = state.phase, now
        if self._as_json:
            self.say(
                "progress",
                phase=state.phase,
                detail=state.detail,
                items_total=state.items_total,
                items_done=state.items_done,
                rows_done=state.rows_done,
                bytes_done=state.bytes_done,
            )
        elif self._task is not None:
            self._bars.update(
                self._task,
                total=max(1, state.items_total),
                completed=state.items_done,
                rows=f"{state.rows_done:,}",
                size=human_bytes(state.bytes_done),
                detail=f"{state.phase} {state.detail}".strip(),
            )

    def say(self, event: str, **facts: Any) -> None:
        """Print an event as a JSON line; nothing for people."""
        if self._as_json:
            print(json.dumps({"event": event, **facts}, default=str), flush=True)


def human_bytes(count: int) -> str:
    """Give a number of bytes as people read it."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
