"""The collectors' record in NATS KV: read it, change it by compare-and-set, hear of changes.

A KV bucket is a stream `KV_<bucket>` that keeps the newest message of each subject
`$KV.<bucket>.<key>`; a value's revision is its place in the stream. Reads go to the stream's
leader, because a replica may be behind.

Reference: https://github.com/nats-io/nats-architecture-and-design (ADR-8)
"""

import asyncio
import contextlib
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from services.broker.settings import BucketSettings
from services.broker.streams import bucket_config
from services.shared.errors import Aborted, Unknown
from services.shared.jetstream import (
    Connection,
    ConnectionLost,
    JetStreamError,
    NoResponders,
    last_message,
    stream_info,
)
from services.shared.jetstream.api import api_request

__all__ = ["RecordChanged", "RecordStore"]

_WRONG_LAST_SEQUENCE = (10071, 10164)
_DELETED = ("DEL", "PURGE")


class RecordChanged(Aborted):
    """The record has another revision than the write expected."""

    default_reason = "LEASES_CHANGED"


class RecordStore:
    """One key of a KV bucket over one connection, which is lost with it.

    `on_hint(payload)` is called with what somebody writes, maybe before it can be read and maybe
    not at all: a reason to read soon, nothing more.
    """

    def __init__(
        self,
        urls: Sequence[str],
        bucket: str,
        key: str,
        *,
        name: str,
        timeout: float,
        on_hint: Callable[[bytes], None],
    ) -> None:
        self._urls = urls
        self._bucket = bucket
        self._stream = f"KV_{bucket}"
        self._subject = f"$KV.{bucket}.{key}"
        self._name = name
        self._timeout = timeout
        self._on_hint = on_hint
        self._connection: Connection | None = None
        self._answers: dict[bytes, asyncio.Future[bytes]] = {}
        self._inbox = ""
        self._number = 0

    @property
    def connection(self) -> Connection:
        """The live connection; raises `ConnectionLost` when there is none."""
        if self._connection is None or self._connection.is_closed:
            raise ConnectionLost("the connection to NATS is closed")
        return self._connection

    async def open(self) -> None:
        """Connect, and make the bucket when there is none.

        Raises `ConnectionLost`, `TimeoutError`, or `JetStreamError` when the bucket is refused.
        """
        connection = await Connection.open(self._urls, name=self._name, timeout=self._timeout)
        self._connection = connection
        self._inbox = f"{connection.inbox}.w.{secrets.token_hex(4)}"
        connection.subscribe(f"{self._inbox}.*", self._on_answer)
        connection.subscribe(self._subject, self._on_change)
        with _as_documented():
            await self._ensure_bucket()

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close("done with the leases")

    async def read(self) -> tuple[bytes | None, int]:
        """Give the record and its revision; None when there is none or it was deleted.

        Raises `ConnectionLost`, `NoResponders`, `TimeoutError` or `JetStreamError`.
        """
        with _as_documented():
            message = await last_message(
                self.connection, self._stream, self._subject, timeout=self._timeout
            )
        if message is None:
            return None, 0
        deleted = message.headers.get("KV-Operation") in _DELETED
        return (None if deleted else message.payload), message.stream_sequence

    async def write(self, payload: bytes, expected: int) -> int:
        """Store the record if its revision is still the expected one, and give the new one.

        Raises `RecordChanged` when it is not: nothing was stored. After `ConnectionLost` or
        `TimeoutError` nobody knows whether it was, or still will be.
        """
        connection = self.connection
        self._number += 1
        reply = f"{self._inbox}.{self._number:x}"
        header = f"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: {expected}\r\n\r\n".encode()
        sizes = f"{len(header)} {len(header) + len(payload)}"
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answers[reply.encode()] = answer
        try:
            connection.write(
                b"HPUB %b %b %b\r\n%b%b\r\n"
                % (self._subject.encode(), reply.encode(), sizes.encode(), header, payload)
            )
            async with asyncio.timeout(self._timeout):
                ends: set[asyncio.Future[Any]] = {answer, connection.closed}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ConnectionLost(connection.closed.result())
            return _stored_as(answer.result())
        finally:
            self._answers.pop(reply.encode(), None)

    async def _ensure_bucket(self) -> None:
        connection = self.connection
        if await stream_info(connection, self._stream) is not None:
            return
        try:
            await api_request(
                connection,
                f"STREAM.CREATE.{self._stream}",
                bucket_config(self._bucket, BucketSettings(), 1),
                timeout=self._timeout,
            )
        except JetStreamError:
            # The broker service or another collector may have been faster, with its own form.
            if await stream_info(connection, self._stream) is None:
                raise

    def _on_answer(self, subject: bytes, _reply: bytes, header: bytes, payload: bytes) -> None:
        answer = self._answers.get(subject)
        if answer is not None and not answer.done():
            if header.startswith(b"NATS/1.0 503"):
                answer.set_exception(NoResponders("nobody keeps the leases: the bucket is gone"))
            else:
                answer.set_result(payload)

    def _on_change(self, _subject: bytes, _reply: bytes, _header: bytes, payload: bytes) -> None:
        self._on_hint(payload)


@contextlib.contextmanager
def _as_documented() -> Iterator[None]:
    """Turn what an answer is not into an error that says so."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unknown(f"JetStream answers what was not expected: {error!r}") from error


def _stored_as(answer: bytes) -> int:
    with _as_documented():
        result = json.loads(answer)
        error = result.get("error")
        if error is None:
            return int(result["seq"])
    refusal = JetStreamError("the leases cannot be stored", error)
    if refusal.code in _WRONG_LAST_SEQUENCE:
        raise RecordChanged(refusal.description) from refusal
    raise refusal
