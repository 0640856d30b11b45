"""What is on its way into one stream, in order.

Messages go as one fast-ingest batch (nats-server 2.14, `allow_batched`): each is stored as it
comes, the server acknowledges every few, and in gap mode `fail` it stores nothing behind a message
that it lost or refused. So what is stored of a batch is always a beginning of it, which plain
publishing with many messages in flight cannot promise: there the second may be stored although
the first was refused. The reply subject carries the batch:
`<inbox>.<batch id>.<acknowledge every>.fail.<number>.<operation>.$FI`.

Design: https://github.com/nats-io/nats-architecture-and-design (ADR-50).
"""

import itertools
import secrets
from collections import deque
from collections.abc import Callable, Iterator

from services.shared.jetstream.outbox import Entry, Outbox

__all__ = ["OPERATION_END", "OPERATION_PING", "Lane"]

_OPERATION_START = 0
_OPERATION_APPEND = 1
OPERATION_END = 3
OPERATION_PING = 4

_ID_OVERHEAD = len(b"NATS/1.0\r\nNats-Msg-Id: \r\n\r\n")
_batch_numbers = itertools.count(1)


class Lane:
    """The queue and the open batch of one stream (or, before a stream is known, of one subject).

    `resend` holds what was sent before and is known not to be stored, `buffer` what was never
    sent; only the latter is counted by the outbox. `ready` says whether it may send: not before
    the connection's first reconciliation, nor while something went wrong.
    """

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.buffer: deque[Entry] = deque()
        self.resend: deque[Entry] = deque()
        self.unacknowledged: deque[Entry] = deque()
        self.unacknowledged_bytes = 0
        self.ready = False
        self.batch = ""
        self.refused: dict[int, tuple[int, str]] = {}
        self.failures = 0
        self.last_progress = 0.0
        self.last_sent = 0.0
        self.next_tail_check = 0.0
        self.tail_misses = 0
        self.max_message_size = -1
        self._prefix = ""
        self._number = 0

    @property
    def number(self) -> int:
        """How many messages the open batch has."""
        return self._number

    @property
    def has_waiting(self) -> bool:
        """Whether there is something to send."""
        return bool(self.resend or self.buffer)

    def waiting(self) -> Iterator[Entry]:
        """Give everything that is not stored as far as is known, in order."""
        return itertools.chain(self.unacknowledged, self.resend, self.buffer)

    def begin(self, inbox: str, acknowledge_every: int) -> str:
        """Start another batch below this inbox and give its id."""
        self.batch = f"{secrets.token_hex(8)}{next(_batch_numbers):x}"
        self._prefix = f"{inbox}.{self.batch}.{acknowledge_every}.fail."
        self._number = 0
        self.refused.clear()
        return self.batch

    def ping_reply(self) -> str:
        """Give the reply subject of a ping, which the server answers after all of the batch."""
        return f"{self._prefix}{max(self._number, 1)}.{OPERATION_PING}.$FI"

    def end_reply(self) -> str:
        """Give the reply subject that ends the batch: the answer counts what it has stored."""
        return f"{self._prefix}{self._number + 1}.{OPERATION_END}.$FI"

    def fill(
        self,
        frames: list[bytes],
        outbox: Outbox,
        refuse: Callable[[Entry], None],
        *,
        window: int,
        window_bytes: int,
        room: int,
        max_payload: int,
        now: float,
    ) -> int:
        """Append the frames of what may be sent now, at most `room` bytes; give the bytes.

        What the server would never take (`max_payload`) is given to `refuse` instead.
        """
        used = 0
        unacknowledged = self.unacknowledged
        number = self._number
        prefix = self._prefix
        if 0 <= self.max_message_size < max_payload:
            max_payload = self.max_message_size
        while used < room and len(unacknowledged) < window:
            if self.unacknowledged_bytes >= window_bytes:
                break
            if self.resend:
                entry = self.resend.popleft()
            elif self.buffer:
                entry = self.buffer.popleft()
                if entry.is_dropped:
                    outbox.remove_dropped(entry)
                    continue
                outbox.remove(entry)
            else:
                break
            payload = entry.payload
            message_id = entry.message_id
            header = _ID_OVERHEAD + (
                len(message_id) if message_id.isascii() else len(message_id.encode())
            )
            total = header + len(payload)
            if total > max_payload:
                refuse(entry)
                continue
            number += 1
            operation = _OPERATION_APPEND if number > 1 else _OPERATION_START
            frames.append(
                f"HPUB {entry.subject} {prefix}{number}.{operation}.$FI {header} {total}\r\n"
                f"NATS/1.0\r\nNats-Msg-Id: {message_id}\r\n\r\n".encode()
            )
            frames.append(payload)
            frames.append(b"\r\n")
            entry.number = number
            entry.sent = now
            unacknowledged.append(entry)
            self.unacknowledged_bytes += entry.size
            used += total + 96
        if number != self._number:
            self._number = number
            self.last_sent = now
        return used

    def acknowledge(self, number: int, now: float) -> int:
        """Take everything up to this number of the batch as stored; give how many that were."""
        if self.refused:
            # The store itself may refuse one message and the batch go on: it is not stored.
            number = min(number, min(self.refused) - 1)
        unacknowledged = self.unacknowledged
        count = 0
        while unacknowledged and unacknowledged[0].number <= number:
            self.unacknowledged_bytes -= unacknowledged.popleft().size
            count += 1
        if count:
            self.last_progress = now
            self.failures = 0
            self.tail_misses = 0
        return count

    def forget_unacknowledged(self) -> None:
        """Empty the list of what is in flight."""
        self.unacknowledged.clear()
        self.unacknowledged_bytes = 0

    def sweep(self, outbox: Outbox) -> None:
        """Let go of dropped entries."""
        alive: deque[Entry] = deque()
        for entry in self.buffer:
            if entry.is_dropped:
                outbox.remove_dropped(entry)
            else:
                alive.append(entry)
        self.buffer = alive

    def discard(self, outbox: Outbox, concerns: Callable[[str], bool]) -> int:
        """Let go of what is not stored to the subjects that `concerns` names; give the count.

        What is on its way cannot be called back, but is not sent another time.
        """
        alive: deque[Entry] = deque()
        count = 0
        for entry in self.buffer:
            if entry.is_dropped:
                outbox.remove_dropped(entry)
            elif concerns(entry.subject):
                outbox.remove(entry)
                count += 1
            else:
                alive.append(entry)
        self.buffer = alive
        again = deque(entry for entry in self.resend if not concerns(entry.subject))
        count += len(self.resend) - len(again)
        self.resend = again
        for entry in self.unacknowledged:
            if not entry.withdrawn and concerns(entry.subject):
                entry.withdrawn = True
                count += 1
        return count
