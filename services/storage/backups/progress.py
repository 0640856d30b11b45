"""How far a backup or a restore is, for whoever watches it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

__all__ = ["Progress", "Report", "Tracker"]


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of the work."""

    phase: str = "begin"
    """What is being done: `freeze`, `copy`, `check`, `load`, `publish`, `done`."""

    detail: str = ""
    """Table and partition that were dealt with last."""

    items_total: int = 0
    """Partitions to be dealt with; 0 while not known."""

    items_done: int = 0
    """Partitions dealt with."""

    rows_done: int = 0
    """Rows dealt with."""

    bytes_done: int = 0
    """Bytes read from or written to the target."""


Report: TypeAlias = Callable[[Progress], None]
"""Takes each state; called from the event loop, so it must return at once."""


class Tracker:
    """Counts, and tells each change."""

    def __init__(self, report: Report | None = None) -> None:
        self._report = report
        self.state = Progress()
        """The state now."""

    def phase(self, phase: str, detail: str = "") -> None:
        """Begin another kind of work."""
        self._set(replace(self.state, phase=phase, detail=detail))

    def expect(self, items: int) -> None:
        """Tell how many partitions there are."""
        self._set(replace(self.state, items_total=items))

    def add(
        self, *, items: int = 0, rows: int = 0, transferred: int = 0, detail: str | None = None
    ) -> None:
        """Count what was dealt with."""
        now = self.state
        self._set(
            replace(
                now,
                detail=now.detail if detail is None else detail,
                items_done=now.items_done + items,
                rows_done=now.rows_done + rows,
                bytes_done=now.bytes_done + transferred,
            )
        )

    def _set(self, state: Progress) -> None:
        self.state = state
        if self._report is not None:
            self._report(state)
