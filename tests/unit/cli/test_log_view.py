"""Logs of all services are merged into lines that people, or programs, can read."""

import io
import json
import threading
from pathlib import Path
from typing import Any

from services.cli.log_view import LogFile, LogStream, LogView, TerminalWriter, parse_line

LINE = json.dumps(
    {
        "service": "collector",
        "event": "ready",
        "level": "warning",
        "timestamp": "2026-01-31T10:11:12.345678Z",
        "port": 50081,
        "why": "two words",
    }
)


def test_a_json_line_names_its_service_level_and_fields() -> None:
    line = parse_line("services", LINE)
    assert (line.service, line.event, line.level) == ("collector", "ready", "warning")
    assert line.fields == {"port": 50081, "why": "two words"}


def test_a_line_that_is_no_log_object_is_taken_as_it_is() -> None:
    for text in ("plain text", "{broken", '{"no": "event"}', "[1]", ""):
        line = parse_line("envoy", text)
        assert (line.service, line.event, line.level) == ("envoy", text, "info")


def test_console_lines_carry_service_level_event_and_fields_without_colour() -> None:
    shown = LogView().render("services", LINE)
    assert shown is not None
    assert "collector   warning ready port=50081 why='two words'" in shown
    assert "\x1b" not in shown


def test_colour_is_added_for_a_terminal_only() -> None:
    shown = LogView(colour=True).render("services", LINE)
    assert shown is not None
    assert "\x1b[" in shown


def test_a_traceback_is_shown_below_its_line() -> None:
    text = json.dumps({"event": "failed", "level": "error", "exception": "Traceback:\n  boom"})
    shown = LogView().render("collector", text)
    assert shown is not None
    assert shown.splitlines()[1:] == ["    Traceback:", "      boom"]


def test_json_lines_pass_through_unchanged() -> None:
    assert LogView(output="json").render("services", LINE) == LINE


def test_with_json_every_line_is_an_object_that_names_its_service() -> None:
    shown = LogView(output="json").render("nats", "plain text")
    assert shown is not None
    record = json.loads(shown)
    assert (record["service"], record["event"]) == ("nats", "plain text")
    assert record["timestamp"]


def test_less_severe_lines_than_asked_for_are_not_shown() -> None:
    view = LogView(least="warning")
    assert view.render("x", json.dumps({"event": "a", "level": "info"})) is None
    assert view.render("x", json.dumps({"event": "a", "level": "error"})) is not None


def test_a_log_file_is_bounded_and_keeps_the_part_before(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "logs" / "x.log", most_bytes=100)
    for index in range(40):
        file.write(f"line {index}")
    file.close()
    now = (tmp_path / "logs" / "x.log").read_text()
    before = (tmp_path / "logs" / "x.log.1").read_text()
    assert now.splitlines()[-1] == "line 39"
    assert len(now) <= 120
    assert len(before) <= 120


def test_a_log_file_that_cannot_be_written_counts_what_is_lost(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "x.log")
    file.close()
    file.write("late")
    assert file.lost == 1


def test_a_log_stream_hands_on_whole_lines() -> None:
    lines: list[str] = []
    stream = LogStream(lines.append)
    stream.write("one\ntw")
    stream.write("o\n\n")
    assert lines == ["one", "two"]


class _Blocked(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.entered = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        assert self.go.wait(10)
        return super().write(text)


def test_a_terminal_that_stands_still_holds_nobody_up_and_is_told_what_it_missed() -> None:
    stream = _Blocked()
    writer = TerminalWriter(stream, most=3)
    writer.write("first")
    assert stream.entered.wait(10)
    for index in range(10):
        writer.write(f"line {index}")
    stream.go.set()
    writer.close(5)
    shown = stream.getvalue().splitlines()
    assert shown == ["first", "line 0", "line 1", "line 2"]


def test_what_was_left_out_is_counted_in_its_place() -> None:
    stream = _Blocked()
    writer = TerminalWriter(stream, most=2)
    writer.write("first")
    assert stream.entered.wait(10)
    for index in range(5):
        writer.write(f"line {index}")
    stream.go.set()
    deadline = threading.Event()
    while "line 1" not in stream.getvalue():
        assert not deadline.wait(0.01)
    writer.write("after")
    writer.close(5)
    assert stream.getvalue().splitlines() == [
        "first",
        "line 0",
        "line 1",
        "... 3 lines are not shown: the terminal was too slow",
        "after",
    ]


class _Gone(io.StringIO):
    def write(self, _text: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_went_away_is_no_error() -> None:
    writer = TerminalWriter(_Gone())
    for _ in range(5):
        writer.write("x")
    writer.close(5)


def test_values_are_written_so_that_their_ends_are_seen() -> None:
    fields: dict[str, Any] = {"event": "e", "a": "", "b": "x y", "c": [1], "d": None}
    shown = LogView().render("s", json.dumps(fields))
    assert shown is not None
    assert shown.endswith("e a='' b='x y' c=[1] d=null")
