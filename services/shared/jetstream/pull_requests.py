"""The pull that is open: for how much it asked, what came of it, when it is over."""

import asyncio
import json
import secrets

from services.shared.jetstream.pull_connection import PullConnection
from services.shared.jetstream.pull_types import PullOptions

__all__ = ["PullRequests"]

_NANOSECONDS = 1_000_000_000
_HEARTBEATS_MISSED = 3
_TOO_LARGE = b"NATS/1.0 409 Message Size Exceeds MaxBytes"
_OVER = (b"NATS/1.0 408", b"NATS/1.0 404", b"NATS/1.0 409 Batch Completed", _TOO_LARGE)


class PullRequests:
    """Asks for what there is room for, one pull at a time, each with a reply subject of its own."""

    def __init__(self, stream: str, durable: str, options: PullOptions) -> None:
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._options = options
        self._connection: PullConnection | None = None
        self._inbox = ""
        self._number = 0
        self._wanted = 0
        self._single = False
        self._heard = 0.0
        self.is_open = False
        """Whether the server still owes messages, or the word that there are none."""

    def begin(self, connection: PullConnection) -> str:
        """Forget what was asked; give the pattern of subjects that answers come on."""
        self._connection = connection
        self._inbox = f"{connection.inbox}.m.{secrets.token_hex(4)}"
        self._single = self.is_open = False
        return f"{self._inbox}.*"

    def end(self) -> None:
        """Ask nothing any more."""
        self._connection = None
        self.is_open = False

    def ask(self) -> None:
        """Pull for what there is room for, when that is worth it."""
        connection, options = self._connection, self._options
        if connection is None or self.is_open:
            return
        received = connection.received
        room = options.batch_messages - len(received)
        room_bytes = options.batch_bytes - received.payload_bytes
        if self._single and not received.payloads:
            wanted: dict[str, object] = {"batch": 1}
            room = 1
        elif room * 2 < options.batch_messages or room_bytes * 2 < options.batch_bytes:
            return
        else:
            wanted = {"batch": room, "max_bytes": room_bytes}
        self._single = False
        self._number += 1
        self.is_open = True
        self._wanted = room
        self.heard()
        wanted["expires"] = round(options.expires * _NANOSECONDS)
        wanted["idle_heartbeat"] = round(min(options.heartbeat, options.expires / 2) * _NANOSECONDS)
        connection.publish(
            self._subject, json.dumps(wanted).encode(), f"{self._inbox}.{self._number}"
        )

    def came(self, count: int) -> None:
        """Take note of deliveries, and ask anew when these were all."""
        self._wanted -= count
        if self._wanted <= 0:
            self.is_open = False
            self.ask()

    def heard(self) -> None:
        """Take note that the server spoke."""
        self._heard = asyncio.get_running_loop().time()

    def silence(self) -> float:
        """Give the seconds of a silence that is too long; 0 when it is not."""
        silent = asyncio.get_running_loop().time() - self._heard
        limit = self._options.heartbeat * _HEARTBEATS_MISSED
        return silent if self.is_open and silent > limit else 0.0

    def is_over(self, subject: bytes, header: bytes) -> bool | None:
        """Tell whether a status ends the open pull; None when it is no word about a pull."""
        if not header.startswith(_OVER):
            return None
        connection = self._connection
        if connection is None or int(subject.rpartition(b".")[2]) != self._number:
            return False
        # What does not fit into an empty batch is asked for alone, whatever its size.
        self._single = header.startswith(_TOO_LARGE) and not connection.received.payloads
        self.is_open = False
        return True
