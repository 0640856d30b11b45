"""The few JetStream API calls that publisher, reader and broker share, over one `Connection`.

Reference: https://docs.nats.io/reference/reference-protocols/nats_api_reference
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.shared.errors import MarketPrismError
from services.shared.jetstream.connection import Connection

__all__ = [
    "JetStreamError",
    "StoredMessage",
    "api_request",
    "last_message",
    "list_consumers",
    "list_streams",
    "message_headers",
    "stream_info",
    "subject_matches",
]

NO_MESSAGE_FOUND = 10037
STREAM_NOT_FOUND = 10059
_PAGE_LIMIT = 1000


class JetStreamError(MarketPrismError):
    """JetStream refused a request; `code` is its own error code, `http_code` the class of it."""

    default_reason = "BROKER_REFUSED"

    def __init__(self, what: str, error: Mapping[str, Any]) -> None:
        self.code = int(error.get("err_code", 0))
        self.http_code = int(error.get("code", 500))
        self.description = str(error.get("description", "no description"))
        super().__init__(
            f"{what}: JetStream says: {self.description} (error {self.code})",
            metadata={"jetstream_code": self.code},
        )


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as the stream keeps it."""

    subject: str
    """Its subject."""

    payload: bytes
    """Its bytes, without headers."""

    stream_sequence: int
    """Its place in the stream, from 1."""

    headers: Mapping[str, str]
    """Its headers; `Nats-Msg-Id` is the publisher's message id."""

    time: str
    """When the stream stored it, RFC 3339."""

    @property
    def message_id(self) -> str:
        """The `Nats-Msg-Id` header, empty when there is none."""
        return self.headers.get("Nats-Msg-Id", "")


def message_headers(block: bytes) -> dict[str, str]:
    """Parse a NATS header block (`NATS/1.0`, then `Key: value` lines); the last of a key counts."""
    lines = block.decode(errors="replace").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def subject_matches(pattern: str, subject: str) -> bool:
    """Tell whether a NATS subject pattern (`*` one word, `>` the rest) takes a subject."""
    wanted = pattern.split(".")
    words = subject.split(".")
    for index, word in enumerate(wanted):
        if word == ">":
            return len(words) > index
        if index >= len(words) or word not in ("*", words[index]):
            return False
    return len(wanted) == len(words)


async def api_request(
    connection: Connection,
    verb: str,
    body: Mapping[str, Any] | None = None,
    *,
    timeout: float = 5.0,  # noqa: ASYNC109 - a time-out is part of a request
) -> dict[str, Any]:
    """Call `$JS.API.<verb>`; raises `JetStreamError` when it refuses."""
    payload = json.dumps(body).encode() if body is not None else b""
    _, answer = await connection.request(f"$JS.API.{verb}", payload, timeout=timeout)
    result: dict[str, Any] = json.loads(answer)
    if "error" in result:
        raise JetStreamError(verb, result["error"])
    return result


async def stream_info(connection: Connection, stream: str) -> dict[str, Any] | None:
    """Give JetStream's stream info (`config`, `state`, `created`), None when there is none."""
    try:
        return await api_request(connection, f"STREAM.INFO.{stream}")
    except JetStreamError as error:
        if error.code == STREAM_NOT_FOUND:
            return None
        raise


async def list_streams(connection: Connection, *, subject: str = "") -> list[dict[str, Any]]:
    """Give the info of every stream, or of those that take `subject`, in JetStream's order."""
    wanted = {"subject": subject} if subject else {}
    return await _all_pages(connection, "STREAM.LIST", "streams", wanted)


async def list_consumers(connection: Connection, stream: str) -> list[dict[str, Any]]:
    """Give the info of every consumer of a stream, in JetStream's order."""
    return await _all_pages(connection, f"CONSUMER.LIST.{stream}", "consumers", {})


async def _all_pages(
    connection: Connection, verb: str, key: str, wanted: Mapping[str, Any]
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for _ in range(_PAGE_LIMIT):
        page = await api_request(connection, verb, {**wanted, "offset": len(found)})
        rows = page.get(key) or []
        found.extend(rows)
        if not rows or len(found) >= int(page.get("total", 0)):
            break
    return found


async def last_message(
    connection: Connection,
    stream: str,
    subject: str,
    *,
    timeout: float = 5.0,  # noqa: ASYNC109 - a time-out is part of a request
) -> StoredMessage | None:
    """Give the newest message of a subject, from the stream's leader; None when there is none."""
    try:
        answer = await api_request(
            connection, f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}, timeout=timeout
        )
    except JetStreamError as error:
        if error.code == NO_MESSAGE_FOUND:
            return None
        raise
    message = answer["message"]
    return StoredMessage(
        subject=str(message["subject"]),
        payload=base64.b64decode(message.get("data") or ""),
        stream_sequence=int(message["seq"]),
        headers=message_headers(base64.b64decode(message.get("hdrs") or "")),
        time=str(message.get("time", "")),
    )
