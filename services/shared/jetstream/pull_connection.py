"""A connection that collects a pull consumer's messages in lists, not one callback each.

A callback and an object a message cost three times what the parsing does. Here the socket callback
appends to three lists, and what a whole read has in common is looked at once a read.
"""

from services.shared.jetstream.connection import Connection, Handler

__all__ = ["PullConnection", "Received"]

_PLAIN = 77  # MSG subject sid [reply] size
_WITH_HEADERS = 72  # HMSG subject sid [reply] header-size total-size
_LINE_LIMIT = 64 * 1024
_SUBJECTS_KEPT = 50_000


class Received:
    """Messages in the order of the stream, as columns of equal length."""

    __slots__ = (
        "first_reply",
        "last_reply",
        "payload_bytes",
        "payloads",
        "sequences",
        "subjects",
    )

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        """Bodies, without headers."""
        self.sequences: list[int] = []
        """Stream sequences, growing."""
        self.subjects: list[bytes] = []
        """Subjects."""
        self.payload_bytes = 0
        """Bytes of all bodies."""
        self.first_reply = b""
        """Reply subject of the first message."""
        self.last_reply = b""
        """Reply subject of the last message: acknowledges it and all before."""

    def __len__(self) -> int:
        return len(self.payloads)


class PullConnection(Connection):
    """A connection with at most one subscription for a pull consumer's messages.

    `received` is what came and was not taken yet; take it by putting another `Received` there.
    `delivered` counts what the server delivered since `collect`, what was left out for being behind
    `position` included: the server repeats what is not acknowledged for long.
    """

    def __init__(self, name: str, url: str, ping_interval: float) -> None:
        super().__init__(name, url, ping_interval)
        self._pull_sid = b""
        self._known_subjects: dict[bytes, bytes] = {}
        self.received = Received()
        self.delivered = 0
        self.repeated = 0
        self.position = 0
        self.last_reply = b""

    def stop_collecting(self) -> None:
        """End the subscription, so that the server forgets the pulls that are open on it.

        It gives what it has to the oldest open pull that somebody listens to. A consumer that is
        set back while its last pull is open would deliver everything there, where nothing is
        collected any more.
        """
        if self._pull_sid:
            self.unsubscribe(self._pull_sid)
            self._pull_sid = b""

    def collect(self, subject: str, position: int, on_status: Handler) -> None:
        """Collect messages behind the stream sequence `position` that are sent to a subject.

        `on_status` gets what carries no reply subject: the end of a pull, heartbeats.
        """
        self.stop_collecting()
        self.received = Received()
        self.delivered = 0
        self.position = position
        self.last_reply = b""
        self._pull_sid = self.subscribe(subject, on_status)

    def _parse(self, data: bytes) -> tuple[int, int]:
        position = 0
        size = len(data)
        find = data.find
        sid = self._pull_sid
        received = self.received
        payloads, sequences, subjects = received.payloads, received.sequences, received.subjects
        known_subjects = self._known_subjects
        last = self.position
        before = len(payloads)
        delivered = 0
        payload_bytes = 0
        reply = b""
        needed = 0
        while True:
            eol = find(b"\r\n", position)
            if eol < 0:
                if size - position > _LINE_LIMIT:
                    raise ValueError("a control line without an end")
                break
            kind = data[position]
            if kind not in (_WITH_HEADERS, _PLAIN):
                super()._parse(data[position : eol + 2])
                position = eol + 2
                continue
            words = data[position:eol].split(b" ")
            body = eol + 2
            end = body + int(words[-1])
            if end + 2 > size:
                needed = end + 2 - position
                break
            if words[2] != sid or len(words) != (6 if kind == _WITH_HEADERS else 5):
                super()._parse(data[position : end + 2])
                position = end + 2
                continue
            reply = words[3]
            # $JS.ACK.<...>.<stream sequence>.<consumer sequence>.<time>.<pending>
            sequence = int(reply.rsplit(b".", 4)[1])
            delivered += 1
            if sequence > last:
                if not payloads:
                    received.first_reply = reply
                payload = (
                    data[body + int(words[4]) : end] if kind == _WITH_HEADERS else data[body:end]
                )
                payloads.append(payload)
                sequences.append(sequence)
                subjects.append(known_subjects.setdefault(words[1], words[1]))
                payload_bytes += len(payload)
                last = sequence
                received.last_reply = reply
            position = end + 2
        if delivered:
            self.position = last
            self.delivered += delivered
            self.repeated += delivered - (len(payloads) - before)
            self.last_reply = reply
            received.payload_bytes += payload_bytes
            if len(known_subjects) > _SUBJECTS_KEPT:
                known_subjects.clear()
        return position, needed
