"""Ephemeral push consumers: how they are made, and the last message of each subject by one."""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

from services.shared.errors import NotFound
from services.shared.jetstream.api import STREAM_NOT_FOUND, JetStreamError, api_request
from services.shared.jetstream.connection import Connection, ConnectionLost, server_urls
from services.shared.jetstream.messages import Message, subject_text

__all__ = ["HEARTBEAT", "consumer_config", "create_consumer", "last_per_subject", "places"]

HEARTBEAT = 1.0
"""Seconds of silence after which a consumer says that it lives."""

_INACTIVE_AFTER = 30.0
_NANOSECONDS = 1_000_000_000


def places(reply: bytes) -> tuple[int, int, int]:
    """Give (stream sequence, consumer sequence, pending) of a delivery's reply subject.

    It is `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`,
    with `<domain>.<account>` before the stream in its longer form.
    """
    words = reply.split(b".")
    first = 5 if len(words) == 9 else 7
    return int(words[first]), int(words[first + 1]), int(words[first + 3])


async def last_per_subject(
    url: str | Sequence[str] | Connection,
    stream: str,
    filter_subjects: str | Sequence[str],
    *,
    timeout: float = 10.0,  # noqa: ASYNC109 - a time-out is part of a request
) -> list[Message]:
    """Give the newest message of every subject that a filter takes, by stream sequence.

    Gives [] when there is none. Raises `NotFound` without such a stream, `ConnectionLost` when
    the broker is away, `TimeoutError` when it does not deliver in time.
    """
    if not isinstance(url, Connection):
        connection = await Connection.open(server_urls(url), name="last per subject")
        try:
            return await last_per_subject(connection, stream, filter_subjects, timeout=timeout)
        finally:
            connection.close("done")
    connection = url
    filters = [filter_subjects] if isinstance(filter_subjects, str) else list(filter_subjects)
    messages: list[Message] = []
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_message(subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        if header.startswith(b"NATS/1.0 "):
            if reply:
                connection.publish(reply.decode())
            return
        messages.append(Message(subject_text(subject), payload, places(reply)[0], header))
        if len(messages) >= wanted and not done.done():
            done.set_result(None)

    wanted = 1 << 62
    deliver = f"{connection.inbox}.l.{secrets.token_hex(4)}"
    sid = connection.subscribe(deliver, on_message)
    try:
        async with asyncio.timeout(timeout):
            config = consumer_config(deliver, filters, {"deliver_policy": "last_per_subject"})
            created = await create_consumer(connection, stream, config)
            delivered = int(created.get("delivered", {}).get("consumer_seq", 0))
            wanted = int(created.get("num_pending", 0)) + delivered
            if len(messages) < wanted:
                ends: set[asyncio.Future[Any]] = {done, connection.closed}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if not done.done():
                    raise ConnectionLost(connection.closed.result())
    finally:
        connection.unsubscribe(sid)
    return messages[:wanted]


def consumer_config(deliver: str, filters: list[str], where: dict[str, Any]) -> dict[str, Any]:
    """Give the configuration of an ordered consumer that delivers to a subject.

    `where` holds `deliver_policy` and what belongs to it; no filters means the whole stream.
    """
    config: dict[str, Any] = {
        "name": f"reader-{secrets.token_hex(8)}",
        "deliver_subject": deliver,
        "ack_policy": "none",
        "max_deliver": 1,
        "flow_control": True,
        "idle_heartbeat": int(HEARTBEAT * _NANOSECONDS),
        "inactive_threshold": int(_INACTIVE_AFTER * _NANOSECONDS),
        "mem_storage": True,
        "num_replicas": 1,
        **where,
    }
    if not filters and where["deliver_policy"] == "last_per_subject":
        # JetStream wants to be told that all subjects are meant.
        filters = [">"]
    if len(filters) == 1:
        config["filter_subject"] = filters[0]
    elif filters:
        config["filter_subjects"] = filters
    return config


async def create_consumer(
    connection: Connection, stream: str, config: dict[str, Any]
) -> dict[str, Any]:
    """Make a consumer and give its info; raises `NotFound` without such a stream."""
    try:
        return await api_request(
            connection,
            f"CONSUMER.CREATE.{stream}.{config['name']}",
            {"stream_name": stream, "config": config, "action": "create"},
        )
    except JetStreamError as error:
        if error.code == STREAM_NOT_FOUND:
            raise NotFound(
                f"stream {stream} does not exist", reason="BROKER_STREAM_NOT_FOUND"
            ) from None
        raise
