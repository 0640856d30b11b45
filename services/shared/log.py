"""Structured logs: one line an event, secrets masked, the request id and service name in each.

Nothing is configured at import: a program calls `configure_logging` once. Until then structlog's
own defaults apply, which is what tests see.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from services.shared.masking import mask_text, mask_value
from services.shared.settings import LogSettings

__all__ = ["configure_logging", "get_logger", "mask_secrets"]

_FOREIGN_LEVELS = {
    # Both write a line a request or a reconnect at levels that tell an operator nothing.
    "aiohttp.access": logging.WARNING,
    "asyncio": logging.WARNING,
    "websockets": logging.WARNING,
    "grpc._cython.cygrpc": logging.ERROR,
}


def get_logger(**bound: Any) -> FilteringBoundLogger:
    """Give a logger; keyword arguments are bound to every line it writes."""
    return cast("FilteringBoundLogger", structlog.get_logger(**bound))


def mask_secrets(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Structlog processor: mask what a secret's name or a URL's user part holds."""
    for key, value in event.items():
        if key in ("event", "exception") and isinstance(value, str):
            event[key] = mask_text(value)
        elif not key.startswith("_"):
            event[key] = mask_value(key, value)
    return event


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's logs to `stream` (stderr) in one format."""
    target = stream or sys.stderr
    level = getattr(logging, settings.level.upper())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # A traceback becomes text before masking, so that masking reaches into it.
    shared += [structlog.processors.format_exc_info, mask_secrets]
    renderer: Processor
    if settings.format == "json":
        renderer = structlog.processors.JSONRenderer(default=str)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=target.isatty(),
            pad_event_to=0,
            exception_formatter=structlog.dev.plain_traceback,
        )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(target),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), _name_logger, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, least in _FOREIGN_LEVELS.items():
        logging.getLogger(name).setLevel(max(level, least))


def _name_logger(_logger: Any, _method: str, event: EventDict) -> EventDict:
    record: logging.LogRecord | None = event.get("_record")
    if record is not None:
        event["logger"] = record.name
    return event
