"""Every line is structured, names its service and request, and holds no secret."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from services.shared.log import configure_logging, get_logger
from services.shared.settings import LogSettings


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:], root.level = before


def configured(**settings: Any) -> io.StringIO:
    stream = io.StringIO()
    configure_logging(LogSettings(**{"format": "json", **settings}), stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_line_has_time_level_event_and_what_is_bound() -> None:
    stream = configured()
    structlog.contextvars.bind_contextvars(service="echo", request_id="abc")
    get_logger(exchange="binance").info("connected", streams=3)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "connected",
        "level": "info",
        "service": "echo",
        "request_id": "abc",
        "exchange": "binance",
        "streams": 3,
    }


def test_standard_library_logs_come_in_the_same_form() -> None:
    stream = configured()
    structlog.contextvars.bind_contextvars(request_id="abc")
    logging.getLogger("nats").warning("lost %s", "nats://u:hunter2@h")
    (line,) = lines(stream)
    assert (line["logger"], line["level"], line["request_id"]) == ("nats", "warning", "abc")
    assert line["event"] == "lost nats://u:********@h" or "hunter2" not in line["event"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_is_written(form: str) -> None:
    stream = configured(format=form)
    log = get_logger()
    log.info("login", password="hunter2", headers={"Authorization": "hunter2"})
    log.info("url nats://u:hunter2@host", nested=[{"api_key": "hunter2"}])
    try:
        raise ValueError("token=hunter2")
    except ValueError:
        log.exception("failed")
        logging.getLogger("grpc").exception("failed")
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count("ValueError") >= 2


def test_level_is_the_least_severe_that_is_written() -> None:
    stream = configured(level="warning")
    get_logger().info("no")
    logging.getLogger("x").info("no")
    get_logger().warning("yes")
    assert [line["event"] for line in lines(stream)] == ["yes"]


def test_value_that_json_does_not_know_is_written_as_text() -> None:
    stream = configured()
    get_logger().info("x", value={1, 2}, path=io.BytesIO)
    assert lines(stream)


def test_lines_for_people_are_single_lines() -> None:
    stream = configured(format="console")
    get_logger().info("connected", exchange="binance")
    assert stream.getvalue().count("\n") == 1
    assert "exchange=binance" in stream.getvalue()
