"""What the collectors of a group share in NATS KV: one record, and the rules that need no clock.

Everything that has to be true together stands in one record: who is a member, and who holds which
slot. It changes by compare-and-set on its revision only, so a member and its slots go in the same
step, a slot never has two holders, and whoever reads it sees a state that really was. With a key
for each slot the same would need an order between keys that no read of several keys promises.

A slot is a share of the instruments of an exchange: `slot_of` of the canonical symbol. Who should
hold a slot is rendezvous hashing with bounded loads among the members that collect the exchange: a
member that comes or goes moves little more than the slots that become or were its own.
"""

import functools
import hashlib
from collections.abc import Mapping

import msgspec

from services.shared.errors import FailedPrecondition

__all__ = [
    "DIED",
    "FORMAT",
    "FREE",
    "Group",
    "GroupUnreadable",
    "Member",
    "Slots",
    "decode_group",
    "desired_owners",
    "encode_group",
    "slot_of",
]

FORMAT = 1
"""Version of the record's form."""

FREE = ""
"""Owner of a slot that was never held or was handed back."""

DIED = "!"
"""Owner of a slot whose holder was removed because it was silent: nobody holds it either."""

_FAIR = (11, 10)


class GroupUnreadable(FailedPrecondition):
    """The record is not one of ours, or of a form that this version does not know."""

    default_reason = "LEASES_UNREADABLE"


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One collector, as long as it is alive for the others."""

    incarnation: str
    """Random id of this life of the collector: after it was removed it comes back with another."""

    beat: int
    """Grows with each of its writes: what others watch to tell whether it lives."""

    exchanges: tuple[str, ...]
    """Exchanges that it collects."""

    leaving: bool = False
    """Whether it hands everything over and goes: it gets nothing new."""

    process: str = ""
    """Which process it is, so that another on the same machine can see that it ended; empty when
    that cannot be told."""


class Slots(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The slots of one exchange."""

    owners: tuple[str, ...]
    """Name of each slot's holder, or `FREE`, or `DIED`."""

    fences: tuple[int, ...]
    """Of each slot the group's `version` at its last claim: grows with each change of holder."""

    def with_owner(self, changes: Mapping[int, str], fence: int | None = None) -> "Slots":
        """Give the same with other owners; `fence` when these are claims."""
        owners, fences = list(self.owners), list(self.fences)
        for slot, owner in changes.items():
            owners[slot] = owner
            if fence is not None:
                fences[slot] = fence
        return Slots(tuple(owners), tuple(fences))

    def owned_by(self, name: str) -> frozenset[int]:
        """Give the slots that a member holds."""
        return frozenset(slot for slot, owner in enumerate(self.owners) if owner == name)


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The record."""

    format: int
    """`FORMAT`."""

    era: str
    """Random id given when the record was made: another one means that the state was lost."""

    settled: bool
    """Whether the record is so old that every lease of an earlier era has run out. Before that
    only what is still held may be entered; nothing may be claimed."""

    version: int
    """Grows with each change but the renewals."""

    lease_seconds: float
    """The lease of the whole group, seconds."""

    members: dict[str, Member]
    """Members by name."""

    exchanges: dict[str, Slots]
    """Slots by exchange."""

    def without(self, name: str, mark: str) -> "Group":
        """Give the same without a member; its slots become `mark` (`FREE` or `DIED`)."""
        return msgspec.structs.replace(
            self,
            members={key: value for key, value in self.members.items() if key != name},
            exchanges={
                exchange: slots.with_owner(dict.fromkeys(slots.owned_by(name), mark))
                for exchange, slots in self.exchanges.items()
            },
        )

    def candidates(self, exchange: str) -> list[str]:
        """Give the members that may hold slots of an exchange."""
        return [
            name
            for name, member in self.members.items()
            if exchange in member.exchanges and not member.leaving
        ]


_decoder = msgspec.json.Decoder(Group)
_encoder = msgspec.json.Encoder()


def encode_group(group: Group) -> bytes:
    """Give the record's bytes."""
    return _encoder.encode(group)


def decode_group(payload: bytes) -> Group:
    """Read the record; raises `GroupUnreadable` for anything that is not one."""
    try:
        group = _decoder.decode(payload)
        problem = "" if group.format == FORMAT else f"it has form {group.format}"
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        problem = str(error)
    if not problem:
        problem = _contradiction(group)
    if problem:
        raise GroupUnreadable(
            f"expected the collectors' record in form {FORMAT}, and {problem}: run the same "
            "version everywhere, or delete the record's key"
        )
    return group


def _contradiction(group: Group) -> str:
    if group.lease_seconds <= 0:
        return f"its lease is {group.lease_seconds:g} s"
    for exchange, slots in group.exchanges.items():
        if not slots.owners or len(slots.owners) != len(slots.fences):
            return f"its slots of {exchange} are {len(slots.owners)} and {len(slots.fences)}"
        for owner in set(slots.owners):
            if owner not in (FREE, DIED) and owner not in group.members:
                return f"a slot of {exchange} belongs to {owner[:80]!r}, who is no member"
    return ""


def slot_of(symbol: str, slots: int) -> int:
    """Give the slot of a canonical symbol; the same in every process and version."""
    digest = hashlib.blake2b(symbol.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % slots


@functools.lru_cache(maxsize=256)
def desired_owners(exchange: str, slots: int, names: frozenset[str]) -> tuple[str, ...]:
    """Give who of these should hold each slot, `FREE` for all when there is nobody.

    The highest weights win, and nobody gets more than `_FAIR` of an equal share: without that
    bound one of three members may get half as much again as its share, with it a few slots in a
    thousand move more than need be when a member comes or goes.
    """
    over, under = _FAIR
    most = -(-slots * over // (under * max(len(names), 1)))
    weights = sorted(
        ((_weight(exchange, slot, name), slot, name) for slot in range(slots) for name in names),
        reverse=True,
    )
    owners = [FREE] * slots
    load = dict.fromkeys(names, 0)
    for _, slot, name in weights:
        if owners[slot] == FREE and load[name] < most:
            owners[slot] = name
            load[name] += 1
    return tuple(owners)


def _weight(exchange: str, slot: int, name: str) -> bytes:
    text = f"{exchange}\x00{slot}\x00{name}".encode()
    return hashlib.blake2b(text, digest_size=8).digest()
