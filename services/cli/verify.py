"""`marketprism verify`: replays captures offline and tells how each book ended."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from services.cli.console import wide_console
from services.cli.failures import EXIT_FAILURE, EXIT_USAGE
from services.collector.verify import CaptureReport, verify_capture
from services.shared.errors import MarketPrismError

__all__ = ["run_verify"]

_COLUMNS = (
    "capture",
    "connection",
    "native_symbol",
    "state",
    "frames",
    "applied",
    "gaps",
    "resyncs",
    "checksum_ok",
    "checksum_bad",
    "best_bid",
    "best_ask",
    "venue_sequence",
)
_HEADINGS = {"native_symbol": "symbol", "venue_sequence": "venue id", "checksum_ok": "sums ok"}


def run_verify(paths: Sequence[Path], exchange: str | None, *, as_json: bool) -> int:
    """Replay captures and print a row a book.

    Exit status: 0 when every book ended in step, 1 when one did not, 2 when a capture cannot be
    read. A capture that cannot be read does not keep the others from being replayed.
    """
    status = 0
    rows: list[dict[str, Any]] = []
    with _Progress(sys.stderr) as progress:
        for path in paths:
            try:
                report = verify_capture(path, exchange, progress.of(path))
            except MarketPrismError as error:
                progress.clear()
                print(error.message, file=sys.stderr)
                status = EXIT_USAGE
                continue
            progress.clear()
            if as_json:
                for row in report.books:
                    print(json.dumps(row), flush=True)
            rows += report.books
            _tell_problems(report)
            if any(row["state"] != "SYNCED" for row in report.books) and not status:
                status = EXIT_FAILURE
    if rows and not as_json:
        _print_table(rows)
    return status


def _tell_problems(report: CaptureReport) -> None:
    if report.problems:
        print(
            f"{report.capture}: {len(report.problems)} lines or frames could not be read, the "
            f"first: {report.problems[0]}",
            file=sys.stderr,
        )
    if report.tops_different:
        print(
            f"{report.capture}: the venue's own best bid and offer differ from the book in "
            f"{report.tops_different} of {report.tops_compared} comparisons",
            file=sys.stderr,
        )


def _print_table(rows: Iterable[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in _COLUMNS:
        left = column in ("capture", "connection", "native_symbol", "state")
        heading = _HEADINGS.get(column, column.replace("_", " "))
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        style = "" if row["state"] == "SYNCED" else "bold red"
        cells = ["" if row[column] is None else str(row[column]) for column in _COLUMNS]
        table.add_row(*cells, style=style)
    wide_console().print(table)


class _Progress:
    """One line that is written over, on a terminal; nothing elsewhere."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._shown = False
        self._live = bool(stream.isatty())

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def of(self, path: Path) -> Callable[[int], None] | None:
        """Give what is told of the progress of one capture."""
        if not self._live:
            return None
        self._show(f"{path.name}: reading")
        return lambda lines: self._show(f"{path.name}: {lines:,} lines")

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()
            self._shown = False

    def _show(self, text: str) -> None:
        self._stream.write(f"\r\x1b[2K{text}")
        self._stream.flush()
        self._shown = True
