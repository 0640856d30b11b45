"""How a pull consumer's session begins, and what the stream dropped meanwhile."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.shared.errors import FailedPrecondition, NotFound
from services.shared.jetstream.api import (
    NO_MESSAGE_FOUND,
    STREAM_NOT_FOUND,
    JetStreamError,
    api_request,
    stream_info,
    subject_matches,
)
from services.shared.jetstream.connection import Connection
from services.shared.jetstream.pull_types import Lost

__all__ = ["Begun", "Dropped", "begin_session", "nanoseconds", "write_note"]

_CONSUMER_UPDATE_REFUSED = 10012
_CONSUMER_NOT_FOUND = 10014
_NOTE = "marketprism.read"
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True)
class Begun:
    """What a session begins with."""

    stream_created: int
    """When the stream was made, nanoseconds since 1970."""

    ack_floor: int
    """The next message is the first one of the consumer behind this sequence."""

    read_sequence: int
    """Up to here the stream was read before; 0 when it never was."""

    first_sequence: int
    """Oldest sequence of the stream."""

    last_sequence: int
    """Newest sequence of the stream."""

    pending: int
    """Messages that wait for the consumer."""

    takes_all: bool
    """Whether the consumer takes every subject of the stream."""

    replaces: bool
    """Whether the stream replaces messages by newer ones of their subject: what is gone is not
    lost then."""

    trouble: str
    """What is odd, for a person; empty when nothing is."""


def nanoseconds(time: str) -> int:
    """Give an RFC 3339 time, such as JetStream writes, in nanoseconds since 1970."""
    match = _TIME.fullmatch(time)
    if match is None:
        raise ValueError(f"expected an RFC 3339 time, got {time[:60]!r}")
    whole, fraction, zone = match.groups()
    seconds = datetime.fromisoformat(whole + ("+00:00" if zone == "Z" else zone)).timestamp()
    return int(seconds) * 1_000_000_000 + int((fraction or "").ljust(9, "0"))


async def begin_session(
    connection: Connection,
    stream: str,
    config: Mapping[str, Any],
    *,
    acknowledged: int,
    acknowledged_time: int,
    created: int,
    from_oldest: bool = False,
) -> Begun:
    """Make or change the durable consumer, and set it back to what is not acknowledged.

    `acknowledged` is up to where this process acknowledged the stream that was made at `created`
    (the broker may not have got it), and `acknowledged_time` when the stream had stored that
    message, 0 when not known. `from_oldest` takes back every acknowledgement. Raises `NotFound`
    without such a stream.
    """
    info = await stream_info(connection, stream)
    if info is None:
        raise NotFound(f"stream {stream} does not exist", reason="BROKER_STREAM_NOT_FOUND")
    state = info["state"]
    first, last = int(state["first_seq"]), int(state["last_seq"])
    stream_created = nanoseconds(str(info["created"]))
    durable = str(config["durable_name"])
    noted = await read_note(connection, stream, durable)
    floor = await write_note(connection, stream, config, noted)
    trouble = ""
    seek = 0
    if created and created != stream_created:
        trouble = "it was made anew: what was left of the old one is gone"
    elif from_oldest:
        seek = 1
    elif created == stream_created and acknowledged:
        if await _is_another(connection, stream, acknowledged, acknowledged_time):
            # The broker lost its newest messages, and gave their sequences to others. How many is
            # not known, so all is read again, and left out where it is stored.
            trouble = f"message {acknowledged} is not the one that was stored: reading all again"
            seek = 1
        elif acknowledged > floor:
            seek = acknowledged + 1
    if not trouble and seek != 1 and max(floor, seek - 1) > last:
        trouble = f"it ends at {last}, behind what is stored: the broker lost its newest messages"
        seek = last + 1
    # JetStream may move a floor over what it drops; then the note tells what was read.
    read = noted if noted and floor == first - 1 else max(floor, noted)
    body = {"seq": seek} if seek else None
    reset = await api_request(connection, f"CONSUMER.RESET.{stream}.{config['durable_name']}", body)
    subjects = info["config"].get("subjects") or [">"]
    wanted = str(config["filter_subject"])
    return Begun(
        stream_created=stream_created,
        ack_floor=int(reset["ack_floor"]["stream_seq"]),
        read_sequence=read,
        first_sequence=first,
        last_sequence=last,
        pending=int(reset.get("num_pending", 0)),
        takes_all=all(
            subject == wanted or subject_matches(wanted, subject) for subject in subjects
        ),
        replaces=int(info["config"].get("max_msgs_per_subject", -1)) > 0,
        trouble=trouble,
    )


async def read_note(connection: Connection, stream: str, durable: str) -> int:
    """Give up to where a consumer had read when that was last noted; 0 when it never was."""
    try:
        consumer = await api_request(connection, f"CONSUMER.INFO.{stream}.{durable}")
    except JetStreamError as error:
        if error.code == _CONSUMER_NOT_FOUND:
            return 0
        raise
    noted = str((consumer["config"].get("metadata") or {}).get(_NOTE, ""))
    return int(noted) if noted.isdecimal() else 0


async def write_note(
    connection: Connection, stream: str, config: Mapping[str, Any], read: int
) -> int:
    """Make or change the durable consumer, noting up to where it has read; give its ack floor."""
    durable = config["durable_name"]
    try:
        consumer = await api_request(
            connection,
            f"CONSUMER.CREATE.{stream}.{durable}",
            {
                "stream_name": stream,
                "config": {**config, "metadata": {_NOTE: str(read)}},
                "action": "",
            },
        )
    except JetStreamError as error:
        if error.code == STREAM_NOT_FOUND:
            raise NotFound(
                f"stream {stream} does not exist", reason="BROKER_STREAM_NOT_FOUND"
            ) from None
        if error.code == _CONSUMER_UPDATE_REFUSED:
            raise FailedPrecondition(
                f"consumer {durable} of stream {stream} exists and cannot be changed into a pull "
                f"consumer that acknowledges all before: {error.description}; delete it, or name "
                "another",
                reason="CONSUMER_NOT_CHANGEABLE",
            ) from error
        raise
    return int(consumer["ack_floor"]["stream_seq"])


async def _is_another(connection: Connection, stream: str, sequence: int, time: int) -> bool:
    """Tell whether the stream has another message at a sequence than the one stored at `time`."""
    if not time:
        return False
    try:
        found = await api_request(connection, f"STREAM.MSG.GET.{stream}", {"seq": sequence})
    except JetStreamError as error:
        if error.code == NO_MESSAGE_FOUND:
            return False
        raise
    return nanoseconds(str(found["message"]["time"])) != time


class Dropped:
    """Finds out what a stream dropped before its consumer had read it.

    Sequences of other subjects lie between the consumer's, so a hole alone says nothing. What says
    something is that the stream's first message lies behind what had been read a look ago.
    """

    def __init__(self) -> None:
        self.stream_created = 0
        self._accounted = 0
        self._whole = True
        self._replaces = False
        self._came: list[tuple[int, int, int]] = []

    def begin(self, begun: Begun) -> Lost | None:
        """Take note of a new session; gives what is gone."""
        created = begun.stream_created
        self._replaces = begun.replaces
        self._whole = begun.takes_all
        self._came.clear()
        before = self._accounted if created == self.stream_created else 0
        self.stream_created = created
        self._accounted = max(before, begun.read_sequence)
        if not self._accounted:
            # A consumer that never acknowledged anything: what went before is not its loss.
            self._accounted = max(begun.first_sequence - 1, 0)
        return self._gone(begun.first_sequence)

    def came(self, after: int, last: int, count: int) -> None:
        """Take note of messages that came: so many behind `after`, up to `last`."""
        if count:
            self._came.append((after, last, count))

    async def check(self, connection: Connection, stream: str, read: int) -> Lost | None:
        """Look whether messages went unread; `read` is up to where the stream was read."""
        info = await stream_info(connection, stream)
        if info is None:
            return None
        lost = self._gone(int(info["state"]["first_seq"]))
        self._accounted = max(self._accounted, read)
        self._came = [entry for entry in self._came if entry[1] > read]
        return lost

    def _gone(self, first_sequence: int) -> Lost | None:
        if first_sequence <= self._accounted + 1:
            return None
        for after, until, count in self._came:
            if after <= self._accounted < until == after + count:
                self._accounted = until
        first, last = self._accounted + 1, first_sequence - 1
        if first > last:
            return None
        self._accounted = last
        if self._replaces:
            return None
        came = 0
        for after, until, count in self._came:
            if until < first:
                continue
            if until <= last:
                came += count
            elif after < last:
                # The read went over the edge; of a whole stream exactly the tail lies behind it.
                came += max(0, count - (until - last)) if self._whole else 0
        at_most = last - first + 1 - came
        if at_most <= 0:
            return None
        return Lost(first, last, at_most, self.stream_created)
