"""`config/broker.yaml`: the embedded nats-server and the streams, typed and validated."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from services.shared.jetstream import subject_matches
from services.shared.loading import SettingsModel, load_settings

__all__ = [
    "BrokerSettings",
    "BucketSettings",
    "ServerSettings",
    "StreamSettings",
    "load_broker_settings",
]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB)?")
_SIZE_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_AGE_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BUCKET_STREAM = "KV_"
_STREAM_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SUBJECT = re.compile(r"(?:[A-Za-z0-9_-]+|\*)(?:\.(?:[A-Za-z0-9_-]+|\*))*(?:\.>)?")


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"expected bytes or a size such as 512MiB, got {value!r}")
    return int(float(match[1]) * _SIZE_UNITS[match[2] or "B"])


def _seconds(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _AGE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"expected seconds or a time such as 30s, 15m, 24h or 7d, got {value!r}")
    return float(match[1]) * _AGE_UNITS[match[2] or "s"]


Size = Annotated[int, BeforeValidator(_size)]
"""Bytes; a string may carry a unit: `512MiB`."""

Seconds = Annotated[float, BeforeValidator(_seconds)]
"""Seconds; a string may carry a unit: `15m`."""


class ServerSettings(SettingsModel):
    """The embedded nats-server."""

    store: str = Field(default="nats", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Folder of JetStream below `data_dir`."""

    max_payload: Size = Field(default=8 * 2**20, ge=1024, le=64 * 2**20)
    """Largest message, headers included, bytes."""

    max_pending: Size = Field(default=256 * 2**20, ge=2**20)
    """Bytes that may wait for one slow client before the server cuts it off."""

    max_storage: Size = Field(default=16 * 2**30, ge=2**20)
    """Most bytes of JetStream on disk; the `max_bytes` of all streams must fit."""

    max_memory: Size = Field(default=256 * 2**20, ge=0)
    """Most bytes of JetStream in memory."""

    process_memory: Size = Field(default=512 * 2**20, ge=64 * 2**20)
    """Memory at which the server's garbage collector works as hard as it must (Go's GOMEMLIMIT),
    bytes; an environment that sets GOMEMLIMIT itself is left alone."""

    sync_interval: Seconds = Field(default=10.0, ge=0.1, le=3600)
    """Time between two syncs of the store to the disk, seconds: what a failure of power or of the
    operating system may lose. A server that is killed loses nothing."""

    ready_seconds: Seconds = Field(default=30.0, gt=0, le=600)
    """Time the server has to answer after a start, recovery of its store included, seconds."""

    name: str = Field(default="marketprism", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Name of the server, as monitoring and a cluster show it."""


class StreamSettings(SettingsModel):
    """One stream: what it takes and how long it keeps it."""

    subjects: tuple[str, ...] = Field(min_length=1)
    """Subjects it takes, with `*` for one word and `>` for the rest. No two streams overlap."""

    description: str = ""
    """For a person."""

    storage: Literal["file", "memory"] = "file"
    """Where messages lie; cannot be changed later."""

    discard: Literal["old", "new"] = "old"
    """What a full stream does: drop its oldest messages, or refuse new ones."""

    max_age: Seconds = Field(default=0.0, ge=0)
    """Messages older than this go, seconds; 0 means never."""

    max_bytes: Size = Field(default=0, ge=0)
    """Most bytes held; 0 means without limit of its own."""

    max_messages: int = Field(default=0, ge=0)
    """Most messages held; 0 means without limit."""

    max_messages_per_subject: int = Field(default=0, ge=0)
    """Most messages held of one subject; 0 means without limit."""

    max_message_size: Size = Field(default=0, ge=0)
    """Largest message it takes, bytes; 0 means the server's limit."""

    duplicate_window: Seconds = Field(default=120.0, ge=0.1)
    """A message id that comes again within this time is stored once, seconds. At most `max_age`."""

    replicas: int | None = Field(default=None, ge=1, le=5)
    """Copies in a cluster; the common `replicas` when absent."""

    @field_validator("subjects")
    @classmethod
    def _subjects_are_patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for subject in value:
            if _SUBJECT.fullmatch(subject) is None:
                raise ValueError(
                    "expected subjects of words joined by dots, such as market.trade.>, "
                    f"got {subject!r}"
                )
        return value

    @model_validator(mode="after")
    def _window_fits(self) -> "StreamSettings":
        if self.max_age and self.duplicate_window > self.max_age:
            raise ValueError(
                f"expected duplicate_window of at most max_age ({self.max_age:g} s), "
                f"got {self.duplicate_window:g} s"
            )
        return self


class BucketSettings(SettingsModel):
    """One bucket of keys and values: a stream of its own, `KV_<bucket>`."""

    description: str = ""
    """For a person."""

    storage: Literal["file", "memory"] = "file"
    """Where values lie; cannot be changed later. In memory they are gone with the server."""

    history: int = Field(default=1, ge=1, le=64)
    """Newest values kept of each key."""

    max_bytes: Size = Field(default=16 * 2**20, ge=2**16)
    """Most bytes held; a full bucket refuses new values."""

    max_value_size: Size = Field(default=2**20, ge=1024)
    """Largest value, bytes."""

    replicas: int | None = Field(default=None, ge=1, le=5)
    """Copies in a cluster; the common `replicas` when absent."""


class BrokerSettings(SettingsModel):
    """`config/broker.yaml`."""

    server: ServerSettings = ServerSettings()
    """The embedded nats-server."""

    monitor_url: str | None = None
    """HTTP monitoring address of an external nats-server, such as http://nats.example:8222;
    absent means the embedded server's own, and no server metrics for an external one."""

    monitor_seconds: Seconds = Field(default=2.0, ge=0.1, le=3600)
    """Time between two readings of the server's monitoring, seconds."""

    replicas: int = Field(default=1, ge=1, le=5)
    """Copies of each stream in a cluster; a single server can only keep one."""

    streams: Mapping[str, StreamSettings] = Field(min_length=1)
    """The streams by name."""

    buckets: Mapping[str, BucketSettings] = {}
    """Buckets of keys and values by name; the names of their streams begin with `KV_`."""

    @field_validator("streams")
    @classmethod
    def _names_are_usable(cls, value: Mapping[str, StreamSettings]) -> Mapping[str, StreamSettings]:
        for name in value:
            if _STREAM_NAME.fullmatch(name) is None or name.startswith(BUCKET_STREAM):
                raise ValueError(
                    "expected stream names of at most 64 letters, digits, - and _, such as "
                    f"MARKET_TRADE, not beginning with {BUCKET_STREAM}, got {name!r}"
                )
        return value

    @field_validator("buckets")
    @classmethod
    def _bucket_names_are_usable(
        cls, value: Mapping[str, BucketSettings]
    ) -> Mapping[str, BucketSettings]:
        for name in value:
            if _STREAM_NAME.fullmatch(name) is None:
                raise ValueError(
                    "expected bucket names of at most 64 letters, digits, - and _, such as "
                    f"COLLECTOR_LEASES, got {name!r}"
                )
        return value

    @model_validator(mode="after")
    def _streams_fit_together(self) -> "BrokerSettings":
        patterns = [(n, subject) for n, s in self.streams.items() for subject in s.subjects]
        for index, (name, pattern) in enumerate(patterns):
            for other_name, other in patterns[index + 1 :]:
                if _overlap(pattern, other):
                    raise ValueError(
                        f"expected each subject in one stream, and {pattern} of {name} and "
                        f"{other} of {other_name} overlap"
                    )
        kept: list[StreamSettings | BucketSettings] = [
            *self.streams.values(),
            *self.buckets.values(),
        ]
        wanted = sum(each.max_bytes for each in kept if each.storage == "file")
        if wanted > self.server.max_storage:
            raise ValueError(
                f"expected server.max_storage of at least the {wanted} bytes that the streams' "
                f"and buckets' max_bytes add up to, got {self.server.max_storage}"
            )
        return self

    @property
    def stream_names(self) -> frozenset[str]:
        """Names of all streams that are kept so, those of buckets included."""
        return frozenset(self.streams) | {BUCKET_STREAM + name for name in self.buckets}

    def stream_of(self, subject: str) -> str | None:
        """Give the name of the stream that takes a subject, None when none does."""
        for name, stream in self.streams.items():
            if any(subject_matches(pattern, subject) for pattern in stream.subjects):
                return name
        return None


def _overlap(one: str, other: str) -> bool:
    """Tell whether a subject exists that both patterns take."""
    words, other_words = one.split("."), other.split(".")
    for word, other_word in zip(words, other_words, strict=False):
        if word == ">" or other_word == ">":
            return True
        if "*" not in (word, other_word) and word != other_word:
            return False
    return len(words) == len(other_words)


def load_broker_settings(config_dir: Path | None = None) -> BrokerSettings:
    """Read `broker.yaml`; raises `ConfigError` with every problem."""
    return load_settings(BrokerSettings, "broker", config_dir=config_dir)
