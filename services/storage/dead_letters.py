"""Sets messages aside that the database will never take, into the broker's stream DEAD_LETTER.

A letter's body is the message's as it came. Its headers tell why it was refused and where it was,
its subject is the message's with `dead_letter` for `market`, and its id is the message's place, so
that the same message is not set aside twice when its batch comes again.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Final

from services.shared.errors import FailedPrecondition, Unavailable
from services.shared.jetstream import Connection, NoResponders, server_urls
from services.shared.log import get_logger
from services.storage.ingest_batch import Refused

__all__ = ["DEAD_LETTER_STREAM", "DeadLetters"]

DEAD_LETTER_STREAM: Final = "DEAD_LETTER"
"""The stream that takes `dead_letter.>`."""

_TIMEOUT: Final = 5.0
_REASON_LIMIT: Final = 1000
_HEADER_ROOM: Final = 8192


class DeadLetters:
    """Publishes dead letters, each known to be stored when `put` returns."""

    def __init__(self, url: str) -> None:
        self._urls = server_urls(url)
        self._connection: Connection | None = None
        self._opening = asyncio.Lock()
        self._log = get_logger()

    async def put(
        self, stream: str, stream_created: int, subject: bytes, payload: bytes, refused: Refused
    ) -> None:
        """Set a message aside; raises `Unavailable` when the broker does not take it now."""
        connection = await self._connect()
        headers = {
            "Nats-Msg-Id": f"{stream}/{stream_created}/{refused.sequence}",
            "Marketprism-Reason": _one_line(refused.reason)[:_REASON_LIMIT],
            "Marketprism-Error-Code": str(refused.code),
            "Marketprism-Stream": stream,
            "Marketprism-Stream-Created": str(stream_created),
            "Marketprism-Stream-Sequence": str(refused.sequence),
            "Marketprism-Subject": _one_line(subject.decode(errors="backslashreplace")),
        }
        if len(payload) > connection.max_payload - _HEADER_ROOM:
            headers["Marketprism-Payload-Omitted"] = str(len(payload))
            payload = b""
        _, separator, rest = subject.partition(b".")
        try:
            answer = await _publish(connection, b"dead_letter" + separator + rest, payload, headers)
        except TimeoutError:
            connection.close("no acknowledgement of a dead letter")
            raise Unavailable(
                f"the broker did not acknowledge a dead letter within {_TIMEOUT:g} s",
                reason="BROKER_UNAVAILABLE",
            ) from None
        except NoResponders:
            raise Unavailable(
                f"no stream takes dead letters: the broker lacks {DEAD_LETTER_STREAM}, see "
                "config/broker.yaml",
                reason="BROKER_STREAM_NOT_FOUND",
            ) from None
        error = answer.get("error")
        if error:
            raise FailedPrecondition(
                f"the broker refuses a dead letter: {error}", reason="DEAD_LETTER_REFUSED"
            )
        if not answer.get("duplicate"):
            self._log.warning(
                "a message was set aside",
                subject=headers["Marketprism-Subject"],
                stream=stream,
                sequence=refused.sequence,
                code=refused.code,
                reason=headers["Marketprism-Reason"],
            )

    async def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close("stopped")

    async def _connect(self) -> Connection:
        async with self._opening:
            if self._connection is None or self._connection.is_closed:
                self._connection = await Connection.open(self._urls, name="dead letters")
            return self._connection


async def _publish(
    connection: Connection, subject: bytes, payload: bytes, headers: Mapping[str, str]
) -> dict[str, object]:
    """Publish with headers and give JetStream's acknowledgement."""
    done: asyncio.Future[tuple[bytes, bytes]] = asyncio.get_running_loop().create_future()

    def on_answer(_subject: bytes, _reply: bytes, header: bytes, body: bytes) -> None:
        if not done.done():
            done.set_result((header, body))

    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    block = f"NATS/1.0\r\n{lines}\r\n".encode()
    reply = f"{connection.inbox}.dead.{headers['Nats-Msg-Id'].replace('/', '.')}"
    sid = connection.subscribe(reply, on_answer)
    try:
        connection.write(
            b"HPUB %b %b %d %d\r\n%b%b\r\n"
            % (subject, reply.encode(), len(block), len(block) + len(payload), block, payload)
        )
        async with asyncio.timeout(_TIMEOUT):
            header, body = await done
    finally:
        connection.unsubscribe(sid)
    if header.startswith(b"NATS/1.0 503"):
        raise NoResponders("nobody takes dead letters")
    answer: dict[str, object] = json.loads(body)
    return answer


def _one_line(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text).strip()
