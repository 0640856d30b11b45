"""What a publisher holds that is not sent yet: its limits, and what goes when they are reached.

Pure accounting, no I/O. Two classes of message share the room. A message without a key (a trade)
is refused only when nothing else can make room. Messages with a key (the book they belong to) are
worth nothing once one of them is missing, so a full outbox drops whole keys, the largest first,
and the key's owner builds that book anew.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["ENTRY_OVERHEAD", "Entry", "Key", "Outbox", "OutboxLimits"]

ENTRY_OVERHEAD = 400
"""Bytes that a waiting message costs beside its text: the objects that hold it."""

_SWEEP_SHARE = 0.25
_orders = itertools.count()


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """How much may wait for the broker."""

    messages: int = 200_000
    """Messages in all."""

    bytes: int = 256 * 1024 * 1024
    """Bytes in all: payload, subject, id and the objects that hold them."""

    keyed_share: float = 0.75
    """Share of both that messages with a key may take; the rest is kept for those without."""


class Key:
    """What waits under one key; a drop begins a new generation."""

    __slots__ = ("bytes", "generation", "messages", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.generation = 0
        self.messages = 0
        self.bytes = 0


class Entry:
    """One message on its way.

    `size` is what it counts for, bytes; `order` grows with each message, `number` is its place in
    the batch it was sent in, `sent` when that was (monotonic seconds). One that is `withdrawn` is
    on its way, and is not sent again should it turn out not to be stored.
    """

    __slots__ = (
        "generation",
        "key",
        "message_id",
        "number",
        "order",
        "payload",
        "sent",
        "size",
        "subject",
        "withdrawn",
    )

    def __init__(self, subject: str, payload: bytes, message_id: str) -> None:
        self.subject = subject
        self.payload = payload
        self.message_id = message_id
        self.size = len(subject) + len(payload) + len(message_id) + ENTRY_OVERHEAD
        self.order = next(_orders)
        self.key: Key | None = None
        self.generation = 0
        self.number = 0
        self.sent = 0.0
        self.withdrawn = False

    @property
    def is_dropped(self) -> bool:
        """Whether its key was dropped after it was accepted."""
        return self.key is not None and self.key.generation != self.generation


class Outbox:
    """Counts what waits and decides who stays.

    `on_dropped(key, count)` is called for each key that is dropped, after the accounts are true
    again, so that it may publish.
    """

    def __init__(self, limits: OutboxLimits, on_dropped: Callable[[str, int], None]) -> None:
        self._limits = limits
        self._keyed_messages_limit = int(limits.messages * limits.keyed_share)
        self._keyed_bytes_limit = int(limits.bytes * limits.keyed_share)
        self._on_dropped = on_dropped
        self._keys: dict[str, Key] = {}
        self._keyed_messages = 0
        self._keyed_bytes = 0
        self._dead_messages = 0
        self._dead_bytes = 0
        self.messages = 0
        self.bytes = 0

    @property
    def needs_sweep(self) -> bool:
        """Whether dropped entries hold so much memory that the queues should let go of them."""
        return (
            self._dead_bytes > self._limits.bytes * _SWEEP_SHARE
            or self._dead_messages > self._limits.messages * _SWEEP_SHARE
        )

    def swept(self) -> None:
        """Note that no queue holds a dropped entry any more, and forget keys that hold nothing."""
        self._dead_messages = 0
        self._dead_bytes = 0
        self._keys = {name: key for name, key in self._keys.items() if key.messages}

    def add(self, entry: Entry, key_name: str | None) -> bool:
        """Take an entry in, making room as the policy says; False when it is not taken."""
        size = entry.size
        if key_name is None:
            if self.messages < self._limits.messages and self.bytes + size <= self._limits.bytes:
                self.messages += 1
                self.bytes += size
                return True
            return self._add_by_force(entry)
        key = self._keys.get(key_name)
        if key is None:
            key = self._keys[key_name] = Key(key_name)
        if (
            self._keyed_messages < self._keyed_messages_limit
            and self._keyed_bytes + size <= self._keyed_bytes_limit
            and self.messages < self._limits.messages
            and self.bytes + size <= self._limits.bytes
        ):
            self._account_keyed(entry, key)
            return True
        return self._add_keyed_by_force(entry, key)

    def drop(self, key_name: str) -> None:
        """Give up everything that waits under a key, and report it with the message refused."""
        key = self._keys.get(key_name)
        count = 0
        if key is not None:
            count = key.messages
            self._drop(key)
        self._on_dropped(key_name, count + 1)

    def remove(self, entry: Entry) -> None:
        """Note that a live entry left the queues."""
        self.messages -= 1
        self.bytes -= entry.size
        key = entry.key
        if key is not None:
            key.messages -= 1
            key.bytes -= entry.size
            self._keyed_messages -= 1
            self._keyed_bytes -= entry.size

    def remove_dropped(self, entry: Entry) -> None:
        """Note that a queue let go of a dropped entry."""
        self._dead_messages -= 1
        self._dead_bytes -= entry.size

    def _account_keyed(self, entry: Entry, key: Key) -> None:
        entry.key = key
        entry.generation = key.generation
        key.messages += 1
        key.bytes += entry.size
        self._keyed_messages += 1
        self._keyed_bytes += entry.size
        self.messages += 1
        self.bytes += entry.size

    def _add_by_force(self, entry: Entry) -> bool:
        dropped: list[tuple[str, int]] = []
        fits = entry.size <= self._limits.bytes
        while fits and not self._has_room(entry):
            largest = self._drop_largest()
            if largest is None:
                fits = False
            else:
                dropped.append(largest)
        if fits:
            self.messages += 1
            self.bytes += entry.size
        self._report(dropped)
        return fits

    def _add_keyed_by_force(self, entry: Entry, key: Key) -> bool:
        dropped: list[tuple[str, int]] = []
        generation = key.generation
        ever = entry.size <= min(self._keyed_bytes_limit, self._limits.bytes)
        while ever and not (self._has_room(entry) and self._has_keyed_room(entry)):
            largest = self._drop_largest()
            if largest is None:
                break
            dropped.append(largest)
            if key.generation != generation:
                break
        fits = (
            key.generation == generation and self._has_room(entry) and self._has_keyed_room(entry)
        )
        if fits:
            self._account_keyed(entry, key)
        else:
            # What follows a dropped message of the same key is worth nothing either.
            own = sum(count for name, count in dropped if name == key.name)
            own += key.messages
            self._drop(key)
            dropped = [one for one in dropped if one[0] != key.name]
            dropped.append((key.name, own + 1))
        self._report(dropped)
        return fits

    def _has_room(self, entry: Entry) -> bool:
        return (
            self.messages < self._limits.messages and self.bytes + entry.size <= self._limits.bytes
        )

    def _has_keyed_room(self, entry: Entry) -> bool:
        return (
            self._keyed_messages < self._keyed_messages_limit
            and self._keyed_bytes + entry.size <= self._keyed_bytes_limit
        )

    def _drop_largest(self) -> tuple[str, int] | None:
        largest = max(self._keys.values(), key=lambda key: key.bytes, default=None)
        if largest is None or largest.messages == 0:
            return None
        count = largest.messages
        self._drop(largest)
        return largest.name, count

    def _drop(self, key: Key) -> None:
        self._keyed_messages -= key.messages
        self._keyed_bytes -= key.bytes
        self.messages -= key.messages
        self.bytes -= key.bytes
        self._dead_messages += key.messages
        self._dead_bytes += key.bytes
        key.generation += 1
        key.messages = 0
        key.bytes = 0

    def _report(self, dropped: list[tuple[str, int]]) -> None:
        for name, count in dropped:
            self._on_dropped(name, count)
