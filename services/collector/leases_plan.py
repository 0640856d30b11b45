"""What one collector does about its leases: decisions from what it saw and its own clock, no I/O.

The shared record (`leases_group`) is read and changed by compare-and-set; nothing here compares
the clocks of two machines.

- A member proves its life by changing the record: each of its writes raises its `beat`.
- It may collect and publish for its slots until `HOLD_SHARE` of the lease after it *sent* the last
  write that was stored. After that it is *suspended*: it keeps what it has, and lets nothing out.
- Another removes it after it saw the same beat for the whole lease, counted from when it *read*
  that beat first, which was after it was stored, which was after it was sent. The removal is a
  compare-and-set of a record with that very beat: one more renewal, and it fails.

So whatever delays there are, a member has been silent for a whole lease of the other's clock when
it loses its slots, and stopped after 0.6 of it by its own: both can be wrong by a factor of 1.6
against each other before two hold the same slot. What is suspended and not removed can be resumed
by one renewal, because a removal and a renewal of the same record exclude each other; after a
restart of the broker nothing moves.

Silence only counts while the observer looked on: who was away or stopped itself starts counting
anew, so that the first one back does not remove everybody else.

When the record is gone (a wiped disk) or older than what was seen (a disk that forgot), the next
member makes another one, of a new *era*, with what it still holds, and the others enter what they
still hold. Nothing is claimed until the era has been seen for a whole lease: by then everything
held under the old one was entered or has run out.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from services.collector.leases_group import (
    DIED,
    FORMAT,
    FREE,
    Group,
    Member,
    Slots,
    desired_owners,
)

__all__ = ["HOLD_SHARE", "LeaseMember", "Write"]

HOLD_SHARE = 0.6
"""Share of the lease for which a member may go on after its last stored renewal was sent."""

_BLIND_SHARE = 0.5
_LIVES = 16
_NEVER = float("-inf")
_NONE: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Write:
    """A change of the record that the caller has to try."""

    group: Group
    """What to store."""

    expected: int
    """Revision that the record must have; 0 when there must be none."""

    beat: int
    """Beat of this member in it."""

    sent: float
    """When it was made, on the member's clock, seconds."""

    removed: frozenset[str]
    """Members that it removes because they are silent or have ended."""


@dataclass(slots=True)
class _Seen:
    incarnation: str
    beat: int
    since: float


class LeaseMember:
    """One life after another of one collector among others.

    The caller reads the record (`on_read`), tries what `next_write` gives, and tells how it went
    (`on_stored`, `on_refused`); again by `wake_at` at the latest. All times are seconds of one
    clock that never stops nor goes back. `exchanges` gives how many slots each exchange that it
    collects has when it is the one to divide it; `new_id` gives random ids; `is_gone` tells of a
    member's `process` whether it has certainly ended; `first_version` gives where the versions of a
    new era begin, best above those of any earlier one.
    """

    def __init__(
        self,
        name: str,
        exchanges: Mapping[str, int],
        *,
        lease_seconds: float,
        renew_seconds: float,
        new_id: Callable[[], str],
        process: str = "",
        is_gone: Callable[[str], bool] = lambda _: False,
        first_version: Callable[[], int] = lambda: 0,
    ) -> None:
        self.name = name
        self._exchanges = dict(exchanges)
        self._lease = lease_seconds
        self._renew = renew_seconds
        self._new_id = new_id
        self._process = process
        self._is_gone = is_gone
        self._first_version = first_version
        self._incarnation = new_id()
        self._past: deque[str] = deque(maxlen=_LIVES)
        self._joined = False
        self._leaving = False
        # The record: as last read or written, and what of it was taken as true.
        self._group: Group | None = None
        self._revision = 0
        self._fresh = False
        self._reasserting = False
        self._accepted = ("", 0)
        self._known_lease = lease_seconds
        self._version = 0
        # Own life.
        self._beat = 0
        self._stored_beat = 0
        self._sent: dict[int, float] = {}
        self._renewed = _NEVER
        self._valid_until = _NEVER
        # Others' lives.
        self._contact = _NEVER
        self._seen: dict[str, _Seen] = {}
        self._era = ("", _NEVER)
        # What it has: slots by exchange, and of those it gives up, whether nothing comes any more.
        self._counts: dict[str, int] = dict(exchanges)
        self._owned: dict[str, frozenset[int]] = {}
        self._fences: dict[tuple[str, int], int] = {}
        self._yielding: dict[str, dict[int, bool]] = {exchange: {} for exchange in exchanges}
        self._from_dead: set[tuple[str, int]] = set()
        self.taken_over = 0
        """Slots taken over from members that had died."""
        self.handed_over = 0
        """Slots given to another in an orderly way."""
        self.lost = 0
        """Times that everything had to be given up at once: removed by another, or state lost."""
        self.removed = 0
        """Silent members that this one removed."""
        self.problem = ""
        """Why it cannot take part, empty when it does."""

    # What it may do.

    @property
    def joined(self) -> bool:
        """Whether the record names it, as far as it knows."""
        return self._joined

    @property
    def has_left(self) -> bool:
        """Whether it has handed everything over and gone, after `leave`."""
        return self._leaving and not self._joined

    @property
    def needs_read(self) -> bool:
        """Whether the record must be read before it can decide anything."""
        return not self._fresh

    @property
    def group(self) -> Group | None:
        """The record as it knows it."""
        return self._group

    @property
    def valid_until(self) -> float:
        """Until when it may go on without another renewal, on its clock."""
        return self._valid_until if self._joined else _NEVER

    @property
    def lease_seconds(self) -> float:
        """The lease that the group agreed on, seconds."""
        return self._known_lease

    def is_valid(self, now: float) -> bool:
        """Tell whether it may let anything out at this instant."""
        return self._joined and now < self._valid_until

    def slots(self, exchange: str) -> int:
        """Give how many slots an exchange is divided into."""
        return self._counts[exchange]

    def assigned(self, exchange: str) -> frozenset[int]:
        """Give the slots that it has and keeps, suspended or not."""
        return self._owned.get(exchange, _NONE) - self._yielding[exchange].keys()

    def unreleased(self, exchange: str) -> frozenset[int]:
        """Give `assigned` and what it is giving up and has not yet stopped."""
        stopped = {slot for slot, done in self._yielding[exchange].items() if done}
        return self._owned.get(exchange, _NONE) - stopped

    def fence(self, exchange: str, slot: int) -> int:
        """Give the number of the claim by which it has a slot; 0 when it has not."""
        return self._fences.get((exchange, slot), 0)

    def was_taken_over(self, exchange: str, slot: int) -> bool:
        """Tell whether it got a slot because the one who had it died."""
        return (exchange, slot) in self._from_dead

    # What happens.

    def on_read(self, group: Group | None, revision: int, *, asked: float, now: float) -> None:
        """Take the record as it was read; None when there is none, or only a mark of its deletion.

        `asked` is when the read was sent, `revision` 0 when the key never existed.
        """
        if asked - self._contact > self._known_lease * _BLIND_SHARE:
            self._seen.clear()
        self._contact = now
        self._fresh = True
        self._revision = revision
        era, accepted = self._accepted
        if group is not None and group.era == era:
            own = self._own_beat(group)
            if revision < accepted or (own is not None and own < self._stored_beat):
                # The broker forgot what it had acknowledged: as good as no record.
                group = None
        entered = group is not None and self._own_beat(group) in self._sent
        known = group is not None and (group.era == era or entered)
        self._reasserting = self._joined and not known
        if self._reasserting and (
            self._leaving or not self.is_valid(now) or (group is not None and group.settled)
        ):
            self._give_up()
        self._group = group
        if group is None:
            self._seen.clear()
            return
        self._observe(group, now)
        if not self._reasserting:
            self._accept(group)

    def next_write(self, now: float) -> Write | None:
        """Give the change that is due now, None when there is none or a read is needed first."""
        if not self._fresh:
            return None
        if self._reasserting and not self.is_valid(now):
            self._give_up()
            if self._group is not None:
                self._accept(self._group)
        draft = self._draft(now)
        if draft is None:
            return None
        self._fresh = False
        self._sent[self._beat] = now
        before = self._group.members.keys() if self._group is not None else set()
        removed = frozenset(before - draft.members.keys() - {self.name})
        return Write(draft, self._revision, self._beat, now, removed)

    def on_stored(self, write: Write, revision: int, *, now: float) -> None:
        """Take it that a write was stored, as this revision."""
        self._contact = now
        self._fresh = True
        self._revision = revision
        self._group = write.group
        self._reasserting = False
        self.removed += len(write.removed)
        self._observe(write.group, now)
        self._accept(write.group)

    def on_refused(self) -> None:
        """Take it that a write was not stored, or that nobody knows: the record must be read."""
        self._fresh = False

    def release_done(self, exchange: str, slots: Iterable[int]) -> None:
        """Take it that nothing more will come out for slots that are being given up."""
        yielding = self._yielding[exchange]
        for slot in yielding.keys() & set(slots):
            yielding[slot] = True

    def leave(self) -> None:
        """Begin to hand everything over."""
        self._leaving = True
        self._start_yielding()

    def wake_at(self, now: float) -> float:
        """Give when something is due, on the member's clock."""
        if not self._fresh:
            return now
        if self.problem:
            return now + self._renew_every
        due = [(self._renewed if self._joined else now) + self._renew_every]
        due += [
            seen.since + self._known_lease
            for seen in self._seen.values()
            if seen.incarnation != self._incarnation
        ]
        if self._group is not None and not self._group.settled:
            due.append(self._settles_at(self._group))
        return max(now, min(due))

    # What it knows.

    @property
    def _renew_every(self) -> float:
        # A group may have agreed on a shorter lease than this member was configured with.
        return min(self._renew, HOLD_SHARE * self._known_lease / 2)

    def _own_beat(self, group: Group) -> int | None:
        mine = group.members.get(self.name)
        return mine.beat if mine and mine.incarnation == self._incarnation else None

    def _settles_at(self, group: Group) -> float:
        return self._era[1] + max(group.lease_seconds, self._lease)

    def _observe(self, group: Group, now: float) -> None:
        """Note who gave a sign of life."""
        if group.era != self._era[0]:
            self._era = (group.era, now)
            self._seen.clear()
        seen: dict[str, _Seen] = {}
        for name, member in group.members.items():
            last = self._seen.get(name)
            if last is None or (last.incarnation, last.beat) != (member.incarnation, member.beat):
                last = _Seen(member.incarnation, member.beat, now)
            seen[name] = last
        self._seen = seen
        self._version = max(self._version, group.version)

    def _accept(self, group: Group) -> None:
        """Take over from the record what it has, and see what it should give up."""
        self._accepted = (group.era, self._revision)
        self._known_lease = group.lease_seconds
        beat = self._own_beat(group)
        if beat is None and self._joined:
            self._give_up()
        elif beat is not None:
            self._joined = True
            if beat > self._stored_beat:
                self._prove(beat, group.lease_seconds)
        owned: dict[str, frozenset[int]] = {}
        self._fences.clear()
        for exchange, wanted in self._exchanges.items():
            slots = group.exchanges.get(exchange)
            self._counts[exchange] = len(slots.owners) if slots is not None else wanted
            has = slots.owned_by(self.name) if slots is not None and self._joined else _NONE
            owned[exchange] = has
            for slot in has:
                self._fences[exchange, slot] = slots.fences[slot] if slots is not None else 0
            yielding = self._yielding[exchange]
            for slot in yielding.keys() - has:
                del yielding[slot]
                self.handed_over += 1
            for slot in has - self._owned.get(exchange, _NONE):
                self.taken_over += (exchange, slot) in self._from_dead
        self._owned = owned
        self._start_yielding()

    def _prove(self, beat: int, lease_seconds: float) -> None:
        """Take it that the write with this beat was stored."""
        sent = self._sent.get(beat, _NEVER)
        self._stored_beat = beat
        self._renewed = sent
        self._valid_until = sent + HOLD_SHARE * lease_seconds
        self._sent = {key: value for key, value in self._sent.items() if key > beat}

    def _start_yielding(self) -> None:
        if self._group is None or self._reasserting:
            return
        for exchange, owned in self._owned.items():
            desired = self._desired(self._group, exchange)
            for slot in owned:
                if self._leaving or desired[slot] not in (self.name, FREE):
                    self._yielding[exchange].setdefault(slot, False)

    def _give_up(self) -> None:
        """Hold nothing from now on, and come back as somebody else."""
        self.lost += any(self._owned.values())
        self._past.append(self._incarnation)
        self._incarnation = self._new_id()
        self._joined = self._reasserting = False
        self._renewed = self._valid_until = _NEVER
        self._sent.clear()
        self._stored_beat = self._beat
        self._owned = {}
        self._fences.clear()
        self._yielding = {exchange: {} for exchange in self._exchanges}
        self._from_dead.clear()

    # What it wants.

    def _draft(self, now: float) -> Group | None:
        """Give the record as it should be, with a new beat of this member; None to leave it."""
        if self._leaving and not self._joined:
            return None
        base = self._group
        group = base if base is not None else self._new_era()
        for name in self._departed(group, now):
            own = group.members[name].incarnation in self._past
            group = group.without(name, FREE if own else DIED)
        mine = group.members.get(self.name)
        self.problem = ""
        if mine is not None and mine.incarnation != self._incarnation:
            self.problem = (
                f"another collector is called {self.name!r}, or died less than a lease ago: "
                "expected a collector_id of its own for each; this one waits until the name is free"
            )
            return None
        version = max(self._version, group.version) + 1
        group = self._release(self._divide(self._settle(group, now), version))
        me = Member(
            self._incarnation,
            mine.beat if mine is not None else 0,
            tuple(sorted(self._exchanges)),
            self._leaving,
            self._process,
        )
        group = self._claim(
            msgspec.structs.replace(group, members={**group.members, self.name: me}), version
        )
        if self._leaving and not any(s.owned_by(self.name) for s in group.exchanges.values()):
            self._beat += 1
            return msgspec.structs.replace(group.without(self.name, FREE), version=version)
        if group == base:
            if now - self._renewed < self._renew_every:
                return None
            version = group.version
        self._beat += 1
        me = msgspec.structs.replace(me, beat=self._beat)
        return msgspec.structs.replace(
            group, version=version, members={**group.members, self.name: me}
        )

    def _new_era(self) -> Group:
        version = max(self._version, self._first_version())
        return Group(FORMAT, self._new_id(), False, version, self._known_lease, {}, {})

    def _departed(self, group: Group, now: float) -> list[str]:
        """Give the members that are surely not collecting any more."""
        departed = []
        for name, member in group.members.items():
            if member.incarnation == self._incarnation and name == self.name:
                continue
            silent = now - self._seen[name].since >= group.lease_seconds
            ended = bool(member.process) and self._is_gone(member.process)
            if silent or ended or member.incarnation in self._past:
                departed.append(name)
        return departed

    def _settle(self, group: Group, now: float) -> Group:
        if not group.settled:
            if group.era == self._era[0] and now >= self._settles_at(group):
                return msgspec.structs.replace(group, settled=True)
        elif group.lease_seconds != self._lease and not group.members.keys() - {self.name}:
            return msgspec.structs.replace(group, lease_seconds=self._lease)
        return group

    def _divide(self, group: Group, version: int) -> Group:
        """Give the record with slots for each of its exchanges."""
        exchanges = dict(group.exchanges)
        for exchange, wanted in self._exchanges.items():
            count = self._counts[exchange] if self._reasserting else wanted
            slots = exchanges.get(exchange)
            if slots is None or (
                group.settled
                and len(slots.owners) != count
                and all(owner in (FREE, DIED) for owner in slots.owners)
            ):
                exchanges[exchange] = Slots((FREE,) * count, (version,) * count)
        return msgspec.structs.replace(group, exchanges=exchanges)

    def _release(self, group: Group) -> Group:
        """Give the record without what was stopped."""
        exchanges = dict(group.exchanges)
        for exchange, yielding in self._yielding.items():
            slots = exchanges[exchange]
            stopped = [s for s, done in yielding.items() if done and slots.owners[s] == self.name]
            if stopped:
                exchanges[exchange] = slots.with_owner(dict.fromkeys(stopped, FREE))
        return msgspec.structs.replace(group, exchanges=exchanges)

    def _claim(self, group: Group, version: int) -> Group:
        """Give the record with what this member takes."""
        exchanges = dict(group.exchanges)
        for exchange in self._exchanges:
            slots = exchanges[exchange]
            takes: dict[int, str] = {}
            if self._reasserting:
                if len(slots.owners) == self._counts[exchange]:
                    takes = {
                        slot: self.name
                        for slot in self.unreleased(exchange)
                        if slots.owners[slot] == FREE
                    }
            elif group.settled and not self._leaving:
                desired = self._desired(group, exchange)
                for slot, owner in enumerate(slots.owners):
                    if slot in self._yielding[exchange]:
                        continue  # what is given up is given up first, and then taken anew
                    if owner in (FREE, DIED) and desired[slot] == self.name:
                        takes[slot] = self.name
                        if owner == DIED:
                            self._from_dead.add((exchange, slot))
                        else:
                            self._from_dead.discard((exchange, slot))
            if takes:
                exchanges[exchange] = slots.with_owner(takes, version)
        return msgspec.structs.replace(group, exchanges=exchanges)

    def _desired(self, group: Group, exchange: str) -> tuple[str, ...]:
        """Give who should hold each slot."""
        names = set(group.candidates(exchange)) - ({self.name} if self._leaving else set())
        slots = group.exchanges.get(exchange)
        return desired_owners(exchange, len(slots.owners) if slots else 0, frozenset(names))
