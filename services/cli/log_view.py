"""Shows the merged logs of all services: parses their JSON lines and writes them for people.

Services write JSON while the supervisor runs them, whatever is shown in the end; so one place
decides how a line looks, and `log.format: json` passes lines through as they came.
"""

import contextlib
import io
import json
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TextIO

__all__ = ["LogFile", "LogLine", "LogStream", "LogView", "TerminalWriter", "parse_line"]

_LEVEL_CODES = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}
_RANK = {"debug": 0, "info": 1, "warning": 2, "error": 3, "critical": 4}
_SERVICE_CODES = ("36", "35", "34", "32", "33", "96", "95", "94", "92", "93")
_KNOWN_KEYS = ("event", "level", "timestamp", "service", "exception")


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line that a service wrote."""

    service: str
    """Who wrote it."""

    event: str
    """What it says."""

    level: str = "info"
    """How severe it is."""

    time: str = ""
    """When, RFC 3339; empty when the line does not tell."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    """Everything else it tells."""

    exception: str = ""
    """A traceback, several lines."""


def parse_line(service: str, text: str) -> LogLine:
    """Parse what a child wrote; a line that is not a log object is taken as it is.

    `service` is who wrote it unless the line names a service itself.
    """
    if text.startswith("{"):
        try:
            record = json.loads(text)
        except ValueError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("event"), str):
            return LogLine(
                service=str(record.get("service") or service),
                event=record["event"],
                level=str(record.get("level") or "info"),
                time=str(record.get("timestamp") or ""),
                fields={k: v for k, v in record.items() if k not in _KNOWN_KEYS},
                exception=str(record.get("exception") or ""),
            )
    return LogLine(service=service, event=text)


class LogView:
    """Turns lines into text for a terminal, a pipe or a program."""

    def __init__(
        self,
        *,
        output: Literal["console", "json"] = "console",
        colour: bool = False,
        least: str = "debug",
    ) -> None:
        """`least` is the least severe level that is shown."""
        self._output = output
        self._colour = colour
        self._least = _RANK.get(least, 0)
        self._codes: dict[str, str] = {}

    def render(self, service: str, text: str) -> str | None:
        """Give the text of one line, None when it is not to be shown."""
        line = parse_line(service, text)
        if _RANK.get(line.level, 1) < self._least:
            return None
        if self._output == "json":
            return self._json(line, text)
        return self._console(line)

    def _json(self, line: LogLine, text: str) -> str:
        if line.time and '"service"' in text:
            return text
        record = {
            "service": line.service,
            "event": line.event,
            "level": line.level,
            "timestamp": line.time or _now(),
            **line.fields,
        }
        if line.exception:
            record["exception"] = line.exception
        return json.dumps(record, default=str)

    def _console(self, line: LogLine) -> str:
        time = _clock(line.time)
        service = self._paint(self._service_code(line.service), f"{line.service:<11}")
        level = self._paint(_LEVEL_CODES.get(line.level, ""), f"{line.level:<7}")
        fields = "".join(
            f" {self._paint('2', f'{key}=')}{_shown(value)}" for key, value in line.fields.items()
        )
        text = f"{self._paint('2', time)} {service} {level} {line.event}{fields}"
        if line.exception:
            text += "".join(f"\n    {row}" for row in line.exception.splitlines())
        return text

    def _service_code(self, service: str) -> str:
        return self._codes.setdefault(service, _SERVICE_CODES[len(self._codes) % 10])

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and code else text


class TerminalWriter:
    """Writes lines from a thread of its own, so that a paused terminal holds nobody up.

    At most `most` lines wait; beyond that lines are left out and counted, and the count is told
    in their place. A reader that went away silences it.
    """

    def __init__(self, stream: TextIO, most: int = 10_000) -> None:
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(most)
        self._left_out = 0
        self._thread = threading.Thread(target=self._run, name="terminal writer", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue one line (or several, separated by newlines)."""
        if self._left_out:
            told = f"... {self._left_out} lines are not shown: the terminal was too slow"
            with contextlib.suppress(queue.Full):
                self._lines.put_nowait(told)
                self._left_out = 0
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._left_out += 1

    def close(self, seconds: float = 1.0) -> None:
        """Write what is queued, for at most this long."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=seconds)
        self._thread.join(seconds)

    def _run(self) -> None:
        broken = False
        while (line := self._lines.get()) is not None:
            if broken:
                continue
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):
                broken = True


class LogFile:
    """A log file that is renamed to `<name>.1` when it is full; the one before that is dropped."""

    def __init__(self, path: Path, most_bytes: int = 16 * 1024 * 1024) -> None:
        """Open it for appending; raises OSError."""
        self.path = path
        self._most = most_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", errors="replace", buffering=1)
        self._size = self._file.tell()
        self.lost = 0
        """Lines that could not be written, such as on a full disk."""

    def write(self, line: str) -> None:
        """Append one line."""
        try:
            if self._size > self._most:
                self._file.close()
                self.path.replace(self.path.with_name(self.path.name + ".1"))
                self._file = self.path.open("w", encoding="utf-8", errors="replace", buffering=1)
                self._size = 0
            self._size += self._file.write(line + "\n")
        except (OSError, ValueError):
            self.lost += 1

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            self._file.close()


class LogStream(io.TextIOBase):
    """A text stream for `configure_logging` that hands whole lines to a function."""

    def __init__(self, sink: Any) -> None:
        """`sink` is called with each line, without its newline."""
        super().__init__()
        self._sink = sink
        self._rest = ""

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def write(self, text: str) -> int:
        """Take text; whole lines go on."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line:
                self._sink(line)
        return len(text)


def _clock(time: str) -> str:
    """Give the local wall-clock time of an RFC 3339 instant, to the millisecond."""
    try:
        moment = datetime.fromisoformat(time).astimezone() if time else datetime.now().astimezone()
    except ValueError:
        moment = datetime.now().astimezone()
    return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d}"


def _now() -> str:
    return datetime.now().astimezone().isoformat()


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value if value and " " not in value and "\n" not in value else repr(value)
    return json.dumps(value, default=str)
