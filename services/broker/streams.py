"""Brings the streams of a JetStream into the form that the configuration wants."""

from collections.abc import Iterable, Mapping
from typing import Any

from services.broker.settings import (
    BUCKET_STREAM,
    BrokerSettings,
    BucketSettings,
    StreamSettings,
)
from services.shared.errors import FailedPrecondition
from services.shared.jetstream import Connection, JetStreamError, stream_info
from services.shared.jetstream.api import api_request

__all__ = ["StreamConflict", "bucket_config", "ensure_streams", "stream_config"]

SUBJECTS_OVERLAP = 10065
_NANOSECONDS = 1_000_000_000
_UNCHANGEABLE = ("storage", "retention")


class StreamConflict(FailedPrecondition):
    """A stream exists and cannot be given the form that the configuration wants."""

    default_reason = "STREAM_NOT_CHANGEABLE"


def stream_config(name: str, stream: StreamSettings, replicas: int) -> dict[str, Any]:
    """Give JetStream's configuration of a stream.

    Batched publishing is on because the publisher's order rests on it, direct reads because they
    cost the leader nothing.
    """
    return {
        "name": name,
        "subjects": list(stream.subjects),
        "description": stream.description,
        "retention": "limits",
        "storage": stream.storage,
        "discard": stream.discard,
        "max_age": round(stream.max_age * _NANOSECONDS),
        "max_bytes": stream.max_bytes or -1,
        "max_msgs": stream.max_messages or -1,
        "max_msgs_per_subject": stream.max_messages_per_subject or -1,
        "max_msg_size": stream.max_message_size or -1,
        "duplicate_window": round(stream.duplicate_window * _NANOSECONDS),
        "num_replicas": stream.replicas or replicas,
        "allow_direct": True,
        "allow_batched": True,
    }


def bucket_config(name: str, bucket: BucketSettings, replicas: int) -> dict[str, Any]:
    """Give JetStream's configuration of a bucket's stream, as every NATS client expects it.

    Design: https://github.com/nats-io/nats-architecture-and-design (ADR-8).
    """
    return {
        "name": BUCKET_STREAM + name,
        "subjects": [f"$KV.{name}.>"],
        "description": bucket.description,
        "retention": "limits",
        "storage": bucket.storage,
        "discard": "new",
        "max_age": 0,
        "max_bytes": bucket.max_bytes,
        "max_msgs": -1,
        "max_msgs_per_subject": bucket.history,
        "max_msg_size": bucket.max_value_size,
        "duplicate_window": 120 * _NANOSECONDS,
        "num_replicas": bucket.replicas or replicas,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
    }


async def ensure_streams(connection: Connection, settings: BrokerSettings) -> Mapping[str, str]:
    """Create what is missing and change what differs; give what was done by stream name.

    Buckets count by the names of their streams. What was done is `created`, `updated` or
    `unchanged`. Messages stay. Raises `StreamConflict` when a stream cannot be changed so,
    `ConnectionLost` or `TimeoutError` when the broker does not answer.
    """
    done: dict[str, str] = {}
    waiting = {
        name: stream_config(name, stream, settings.replicas)
        for name, stream in settings.streams.items()
    }
    for name, bucket in settings.buckets.items():
        waiting[BUCKET_STREAM + name] = bucket_config(name, bucket, settings.replicas)
    while waiting:
        overlapping: dict[str, JetStreamError] = {}
        for name, wanted in waiting.items():
            try:
                done[name] = await _ensure(connection, name, wanted)
            except JetStreamError as error:
                if error.code != SUBJECTS_OVERLAP:
                    raise _conflict(name, error.description) from error
                # Another stream may give the subject up in this very round.
                overlapping[name] = error
        if len(overlapping) == len(waiting):
            name, refusal = next(iter(overlapping.items()))
            raise _conflict(
                name, f"{refusal.description}: {', '.join(waiting[name]['subjects'])}"
            ) from refusal
        waiting = {name: waiting[name] for name in overlapping}
    return done


async def _ensure(connection: Connection, name: str, wanted: Mapping[str, Any]) -> str:
    info = await stream_info(connection, name)
    if info is None:
        await api_request(connection, f"STREAM.CREATE.{name}", wanted)
        return "created"
    actual: dict[str, Any] = info["config"]
    differing = [key for key in wanted if not _same(key, actual.get(key), wanted[key])]
    if not differing:
        return "unchanged"
    for key in _UNCHANGEABLE:
        if key in differing:
            raise _conflict(
                name, f"{key} is {actual.get(key)!r} and cannot be changed to {wanted[key]!r}"
            )
    await api_request(connection, f"STREAM.UPDATE.{name}", {**actual, **wanted})
    return "updated"


def _same(key: str, actual: Any, wanted: Any) -> bool:
    if key == "subjects":
        return _sorted(actual or ()) == _sorted(wanted)
    # JetStream leaves out what is off, and says 0 or -1 for "no limit" as it pleases.
    nothing = (None, 0, -1, "", False)
    return actual == wanted or (actual in nothing and wanted in nothing)


def _sorted(subjects: Iterable[str]) -> list[str]:
    return sorted(subjects)


def _conflict(name: str, what: str) -> StreamConflict:
    return StreamConflict(
        f"stream {name} cannot be brought into the form of config/broker.yaml: {what}; change the "
        "configuration, or delete the stream (its messages go with it)",
        metadata={"stream": name},
    )
