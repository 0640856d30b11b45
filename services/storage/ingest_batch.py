"""A batch on its way into a table: its rows as one block, and what of it the table will not take.

An insert is all or nothing, and the database says that a batch is bad, not which message of it. So
a refused batch is halved until the bad ones are alone; what is good of it is stored.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError, Message

from services.shared.wire import varint
from services.storage.errors import StoreRefused
from services.storage.tables import STREAM_CREATED_FIELD, STREAM_SEQUENCE_FIELD

__all__ = ["Refused", "Rows", "frame_rows", "store_good_rows"]

_SEQUENCE_TAG: Final = varint(STREAM_SEQUENCE_FIELD << 3)
_CREATED_TAG: Final = varint(STREAM_CREATED_FIELD << 3)
# Below this many rows a thread costs more than it frees the event loop of.
_ROWS_AT_ONCE: Final = 2000
_MALFORMED: Final = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Messages of one stream that are to become rows."""

    payloads: Sequence[bytes]
    """The events' bytes."""

    sequences: Sequence[int]
    """Stream sequence of each."""

    stream_created: int
    """When their stream was made, nanoseconds since 1970."""

    def __len__(self) -> int:
        return len(self.payloads)

    def part(self, first: int, end: int) -> "Rows":
        """Give the rows from one place to another."""
        return Rows(self.payloads[first:end], self.sequences[first:end], self.stream_created)

    def without(self, sequences: set[int]) -> "Rows":
        """Give the rows whose sequences are not among these."""
        if not sequences:
            return self
        kept = [place for place, each in enumerate(self.sequences) if each not in sequences]
        return Rows(
            [self.payloads[place] for place in kept],
            [self.sequences[place] for place in kept],
            self.stream_created,
        )


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that the table will never take."""

    sequence: int
    """Its stream sequence."""

    reason: str
    """What the database, or the protobuf decoder, says of it."""

    code: int
    """ClickHouse's error code; 0 when it is no message at all."""


def frame_rows(rows: Rows) -> bytes:
    """Give the block of FORMAT Protobuf that inserts these rows: `tables.frame` of each, joined."""
    created = _CREATED_TAG + varint(rows.stream_created)
    tag = _SEQUENCE_TAG
    parts: list[bytes] = []
    add = parts.append
    lengths: dict[int, bytes] = {}
    for payload, sequence in zip(rows.payloads, rows.sequences, strict=True):
        # A varint of the sequence, four bytes of it unrolled: this runs once an event.
        if sequence < 0x200000:
            if sequence < 0x80:
                place = bytes((sequence,))
            elif sequence < 0x4000:
                place = bytes((sequence & 127 | 128, sequence >> 7))
            else:
                place = bytes((sequence & 127 | 128, sequence >> 7 & 127 | 128, sequence >> 14))
        elif sequence < 0x10000000:
            place = bytes((
                sequence & 127 | 128,
                sequence >> 7 & 127 | 128,
                sequence >> 14 & 127 | 128,
                sequence >> 21,
            ))  # fmt: skip
        else:
            place = varint(sequence)
        size = len(payload) + len(place)
        length = lengths.get(size)
        if length is None:
            length = lengths[size] = varint(size + len(tag) + len(created))
        add(length + payload + tag + place + created)
    return b"".join(parts)


async def block_of(rows: Rows) -> bytes:
    """Give the block without holding up the event loop."""
    if len(rows) < _ROWS_AT_ONCE:
        return frame_rows(rows)
    return await asyncio.to_thread(frame_rows, rows)


async def store_good_rows(
    rows: Rows,
    insert: Callable[[bytes], Awaitable[None]],
    message: type[Message],
    on_stored: Callable[[Rows], None],
) -> list[Refused]:
    """Insert all rows that the table takes, and give those that it refuses.

    `insert` raises `StoreRefused` for a block that will never be taken; anything else it raises
    ends this. `on_stored` is told of each part as it is stored, so that nothing is done twice.
    """
    try:
        await insert(await block_of(rows))
    except StoreRefused as error:
        refused = error
    else:
        on_stored(rows)
        return []
    if len(rows) == 1:
        return [Refused(rows.sequences[0], refused.message, refused.code)]
    bad = await asyncio.to_thread(_malformed, rows, message)
    rest = rows.without({each.sequence for each in bad})
    if bad and len(rest):
        return bad + await store_good_rows(rest, insert, message, on_stored)
    if bad:
        return bad
    return await _store_halves(rows, insert, on_stored)


async def _store_halves(
    rows: Rows, insert: Callable[[bytes], Awaitable[None]], on_stored: Callable[[Rows], None]
) -> list[Refused]:
    """Insert two halves of rows that were refused together, each halved again if need be."""
    bad: list[Refused] = []
    waiting = [rows.part(len(rows) // 2, len(rows)), rows.part(0, len(rows) // 2)]
    while waiting:
        part = waiting.pop()
        try:
            await insert(await block_of(part))
        except StoreRefused as error:
            if len(part) == 1:
                bad.append(Refused(part.sequences[0], error.message, error.code))
            else:
                middle = len(part) // 2
                waiting.append(part.part(middle, len(part)))
                waiting.append(part.part(0, middle))
        else:
            on_stored(part)
    return bad


def _malformed(rows: Rows, message: type[Message]) -> list[Refused]:
    """Find what is no message at all, without asking the database for each."""
    found = []
    for payload, sequence in zip(rows.payloads, rows.sequences, strict=True):
        try:
            message.FromString(payload)
        except DecodeError as error:
            found.append(
                Refused(
                    sequence,
                    f"expected a {message.DESCRIPTOR.full_name}, got {len(payload)} bytes that are "
                    f"none: {error}",
                    _MALFORMED,
                )
            )
    return found
