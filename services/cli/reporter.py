"""What `marketprism up` shows: its own progress on stdout, the logs of all services on stderr."""

import contextlib
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO, cast

from services.cli.log_view import LogFile, LogStream, LogView, TerminalWriter
from services.shared.log import configure_logging
from services.shared.masking import mask_text
from services.shared.settings import LogSettings

__all__ = ["OWN_NAME", "Reporter", "open_reporter"]

OWN_NAME = "marketprism"
"""Under which the supervisor's own lines appear among those of the services."""


class Reporter:
    """Takes progress and log lines, and shows and keeps them."""

    def __init__(
        self,
        *,
        output: Literal["console", "json"],
        least: str,
        log_dir: Path,
        out: TerminalWriter,
        err: TerminalWriter,
        colour: bool,
    ) -> None:
        """`least` is the least severe level shown; files get everything. Raises OSError."""
        self.log_dir = log_dir
        self._json = output == "json"
        self._view = LogView(output=output, colour=colour, least=least)
        self._out = out
        self._err = err
        self._files: dict[str, LogFile] = {}
        log_dir.mkdir(parents=True, exist_ok=True)

    def say(self, text: str, **facts: Any) -> None:
        """Show a line of progress; with JSON logs it is a log line that carries `facts`."""
        if not self._json:
            self._out.write(text)
            return
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        record = {"service": OWN_NAME, "event": text.strip(), "level": "info", "timestamp": now}
        self.log(OWN_NAME, json.dumps({**record, **facts}, default=str))

    def show(self, text: str, event: str, **facts: Any) -> None:
        """Show several lines for a person; with JSON logs only `event` and `facts`."""
        if self._json:
            self.say(event, **facts)
        else:
            self._out.write(text)

    def log(self, part: str, line: str) -> None:
        """Take one line of a part's log."""
        line = mask_text(line)
        if part not in self._files:
            self._files[part] = LogFile(self.log_dir / f"{part}.log")
        self._files[part].write(line)
        text = self._view.render(part, line)
        if text is not None:
            self._err.write(text)

    def readable(self, part: str, line: str) -> str:
        """Give a log line as it looks for a person, without colours."""
        return LogView().render(part, line) or ""

    def close(self) -> None:
        """Write what is queued and close the files."""
        for file in self._files.values():
            file.close()
        self._out.close()
        self._err.close()


@contextlib.contextmanager
def open_reporter(settings: LogSettings, log_dir: Path, *, quiet: bool) -> Iterator[Reporter]:
    """Make the reporter of a program and send the supervisor's own log through it.

    `quiet` shows only warnings and errors. Raises OSError when `log_dir` cannot be written.
    """
    one_terminal = sys.stdout.isatty() and sys.stderr.isatty()
    out = TerminalWriter(sys.stdout)
    err = out if one_terminal else TerminalWriter(sys.stderr)
    reporter = Reporter(
        output=settings.format,
        least="warning" if quiet else settings.level,
        log_dir=log_dir,
        out=out,
        err=err,
        colour=sys.stderr.isatty(),
    )
    configure_logging(
        LogSettings(level=settings.level, format="json"),
        cast("TextIO", LogStream(lambda line: reporter.log(OWN_NAME, line))),
    )
    try:
        yield reporter
    finally:
        reporter.close()
