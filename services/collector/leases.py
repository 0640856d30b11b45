"""Leases: several collectors divide the instruments of an exchange among themselves.

`LeaseManager` keeps this collector's membership in the shared record in NATS KV, claims the slots
that are its own, gives back those that became another's, and takes over from those that died. Why
that is safe is told in `leases_plan`, for operators in docs/sharing.md.

What the collector has to heed:

- Collect what is `assigned`; `on_change` tells each change of it.
- Let nothing out for an instrument that it does not `own` at that instant, also not what was
  queued before; `on_suspended(True)` tells that this holds for all of them. While suspended the
  slots stay assigned: connections and books are kept, and after `on_suspended(False)` everything
  goes on. What was held back may then go out: nobody else had the slots.
- For the slots in `LeaseChange.handed_over` stop publishing, then call `release_done`: only then
  may another take them. What is `lost` is somebody else's already, or will be: drop it.
"""

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic import Field, model_validator

from services.collector.leases_group import decode_group, encode_group, slot_of
from services.collector.leases_kv import RecordChanged, RecordStore
from services.collector.leases_plan import HOLD_SHARE, LeaseMember
from services.collector.leases_process import has_ended, this_process
from services.shared.errors import MarketPrismError
from services.shared.jetstream import server_urls
from services.shared.loading import SettingsModel
from services.shared.log import get_logger

__all__ = ["LeaseChange", "LeaseManager", "LeaseSettings", "LeaseStatus", "LeaseStore"]

_BACKOFF = 0.05
_BACKOFF_LIMIT = 0.5
_LEAVE_SECONDS = 2.0
_HINT_SECONDS = 0.02
_RENEWALS_IN_HOLD = 2
_NONE: frozenset[int] = frozenset()


class LeaseSettings(SettingsModel):
    """How several collectors share the instruments; the same in all of a group."""

    enabled: bool = False
    """Whether instruments are shared. Without it this collector collects all that it is told to."""

    group: str = Field(default="collectors", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Name of the group that shares: its key in the bucket."""

    bucket: str = Field(default="COLLECTOR_LEASES", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Bucket in NATS KV; made when there is none."""

    lease_seconds: float = Field(default=5.0, ge=0.5, le=300)
    """Silence after which a collector counts as dead and others take its slots, seconds. It stops
    by itself after 0.6 of it."""

    renew_seconds: float = Field(default=1.0, ge=0.05, le=60)
    """Time between two signs of life, seconds."""

    slots: int = Field(default=64, ge=1, le=1024)
    """Shares that the instruments of an exchange are divided into; many more than collectors, so
    that these get about the same. Collectors that come later take what the first one chose."""

    local_deaths: bool = True
    """Whether the end of a collector's process on the same machine is noticed at once, without
    waiting for the lease (Linux)."""

    @model_validator(mode="after")
    def _renewals_fit(self) -> "LeaseSettings":
        longest = HOLD_SHARE * self.lease_seconds / _RENEWALS_IN_HOLD
        if self.renew_seconds > longest:
            raise ValueError(
                f"expected renew_seconds of at most {longest:g} ({HOLD_SHARE / _RENEWALS_IN_HOLD:g}"
                f" of lease_seconds), so that one lost sign of life suspends nothing, "
                f"got {self.renew_seconds:g}"
            )
        return self


@dataclass(frozen=True, slots=True)
class LeaseChange:
    """A change of the slots of one exchange that this collector has."""

    exchange: str
    """The exchange."""

    assigned: frozenset[int]
    """All that it has now."""

    gained: frozenset[int]
    """Those that it did not have before."""

    taken_over: frozenset[int]
    """Those of `gained` whose holder died."""

    handed_over: frozenset[int]
    """Those that it is to give to another: stop publishing, then call `release_done`."""

    lost: frozenset[int]
    """Those that it has no more, and could not hand over: stop at once."""


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """The state of the leases at one instant."""

    members: tuple[str, ...]
    """Collectors that are alive, by name."""

    held: int
    """Slots that this one has and keeps."""

    total: int
    """Slots that there are, of all exchanges of the group."""

    taken_over: int
    """Slots taken over from collectors that had died, since the start."""

    handed_over: int
    """Slots handed to another in an orderly way, since the start."""

    lost: int
    """Times that everything had to be given up at once, since the start."""

    removed: int
    """Dead collectors that this one removed, since the start."""

    renew_time: int
    """When it last proved that it lives, Unix nanoseconds; 0 when it never did."""

    suspended: bool
    """Whether the last proof is so old that nothing may be published."""

    problem: str
    """What is wrong now, empty when nothing is."""


class LeaseStore(Protocol):
    """Where the record lies: `RecordStore`, or another for tests."""

    async def open(self) -> None:
        """Connect."""

    def close(self) -> None:
        """Disconnect."""

    async def read(self) -> tuple[bytes | None, int]:
        """Give record and revision."""

    async def write(self, payload: bytes, expected: int) -> int:
        """Compare and set; raises `RecordChanged`."""


def _boot_clock() -> float:
    # The usual monotonic clock stands still while the machine sleeps; a lease does not.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


_clock: Callable[[], float] = _boot_clock if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic


class LeaseManager:
    """Keeps the leases of one collector; see the module for what its owner has to heed.

    `member` is the collector's name, unique in the group; `exchanges` gives for each exchange that
    it collects how many slots it has when this member is the one to divide it. Callbacks run in
    the event loop and must not block. It is a Prometheus collector: `registry.register(manager)`.
    """

    def __init__(
        self,
        nats_url: str | Sequence[str],
        member: str,
        exchanges: Mapping[str, int],
        settings: LeaseSettings,
        on_change: Callable[[LeaseChange], None],
        on_suspended: Callable[[bool], None] | None = None,
        *,
        clock: Callable[[], float] = _clock,
    ) -> None:
        self._urls = server_urls(nats_url)
        self._name = member
        self._exchanges = dict(exchanges)
        self._settings = settings
        self._on_change = on_change
        self._on_suspended = on_suspended
        self._clock = clock
        self._log = get_logger(member=member)
        self._member = LeaseMember(
            member,
            exchanges,
            lease_seconds=settings.lease_seconds,
            renew_seconds=settings.renew_seconds,
            new_id=lambda: secrets.token_hex(8),
            process=this_process() if settings.local_deaths else "",
            is_gone=has_ended if settings.local_deaths else lambda _: False,
            # Only where a lost record begins anew; from there on it counts.
            first_version=lambda: time.time_ns() // 1_000_000,
        )
        self._timeout = min(max(settings.lease_seconds / 5, 0.2), 2.0)
        self._wake = asyncio.Event()
        self._stopped = asyncio.Event()
        self._left = asyncio.Event()
        self._assigned: dict[str, frozenset[int]] = dict.fromkeys(exchanges, _NONE)
        # What the owner was told; the member may know more already.
        self._counts = dict(exchanges)
        self._suspended = False
        self._suspension: asyncio.TimerHandle | None = None
        self._hinted = 0
        self._renew_time = 0
        self._renewed_until = float("-inf")
        self._lease = settings.lease_seconds
        self._problem = "not connected yet"

    # What may be collected and published.

    def slot_of(self, exchange: str, symbol: str) -> int:
        """Give the slot of a canonical symbol; ask anew after each change, the count may change."""
        return slot_of(symbol, self._counts[exchange])

    def assigned(self, exchange: str) -> frozenset[int]:
        """Give the slots to collect now, whether or not anything may be published."""
        return self._assigned[exchange]

    def held(self, exchange: str) -> frozenset[int]:
        """Give the slots to collect and publish at this instant: none while suspended."""
        if not self._member.is_valid(self._clock()):
            return _NONE
        return self._assigned[exchange] & self._member.assigned(exchange)

    def owns(self, exchange: str, symbol: str) -> bool:
        """Tell whether something may be published for an instrument at this instant.

        True also for a slot that is being handed over, until `release_done`.
        """
        member = self._member
        return member.is_valid(self._clock()) and slot_of(
            symbol, member.slots(exchange)
        ) in member.unreleased(exchange)

    def fence(self, exchange: str, symbol: str) -> int:
        """Give the number of the claim by which it has the instrument; 0 when it has not.

        It grows with each change of the holder, also when the record was lost in between, as long
        as the wall clocks of collectors are not further apart than that took.
        """
        return self._member.fence(exchange, self.slot_of(exchange, symbol))

    @property
    def is_confirmed(self) -> bool:
        """Whether anything may be published at this instant."""
        return self._member.is_valid(self._clock())

    @property
    def valid_until(self) -> float:
        """Until when that is so without another renewal, on the clock of `clock`."""
        return self._member.valid_until

    def release_done(self, exchange: str, slots: Iterable[int]) -> None:
        """Say that nothing more will be published for slots that are handed over."""
        self._member.release_done(exchange, slots)
        self._wake.set()

    def status(self) -> LeaseStatus:
        """Give the state now."""
        member = self._member
        group = member.group
        exchanges = group.exchanges if group is not None else {}
        return LeaseStatus(
            members=tuple(sorted(group.members)) if group is not None else (),
            held=sum(map(len, self._assigned.values())),
            total=sum(len(slots.owners) for slots in exchanges.values())
            or sum(self._exchanges.values()),
            taken_over=member.taken_over,
            handed_over=member.handed_over,
            lost=member.lost,
            removed=member.removed,
            renew_time=self._renew_time,
            suspended=self._suspended,
            problem=self._problem,
        )

    def collect(self) -> Iterable[Metric]:
        """Give the Prometheus metrics."""
        status = self.status()
        for name, text, value in (
            ("members", "Collectors that are alive.", len(status.members)),
            ("held", "Slots that this collector has.", status.held),
            ("total", "Slots of all exchanges of the group.", status.total),
            ("suspended", "1 while nothing may be published.", int(status.suspended)),
            ("renew_timestamp_seconds", "When it last proved its life.", status.renew_time / 1e9),
        ):
            yield GaugeMetricFamily(f"marketprism_collector_leases_{name}", text, value=value)
        moves = CounterMetricFamily(
            "marketprism_collector_leases_moves", "Changes of leases by kind.", labels=["kind"]
        )
        for kind in ("taken_over", "handed_over", "lost", "removed"):
            moves.add_metric([kind], getattr(status, kind))
        yield moves

    # Life.

    async def run(self) -> None:
        """Keep the leases until `stop`; trouble with the broker is told by `status`, not raised."""
        failures = 0
        try:
            while not self._left.is_set():
                store = self._new_store()
                try:
                    await store.open()
                    failures = 0
                    await self._keep(store)
                except (MarketPrismError, TimeoutError, OSError) as error:
                    failures += 1
                    self._tell(str(error) or "NATS does not answer in time")
                    self._member.on_refused()
                finally:
                    store.close()
                if self._stopped.is_set():
                    break
                longest = min(_BACKOFF * 2.0 ** min(failures, 10), _BACKOFF_LIMIT)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(longest * random.uniform(0.5, 1.0)):  # noqa: S311
                        await self._stopped.wait()
        finally:
            if self._suspension is not None:
                self._suspension.cancel()
            self._left.set()

    async def stop(self) -> None:
        """Hand everything over and go, within two seconds; call it while `run` runs.

        What is not handed over by then goes to others when the lease ends.
        """
        self._stopped.set()
        self._member.leave()
        self._emit()
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._left.wait()
        self._left.set()
        self._wake.set()

    # Inside.

    def _new_store(self) -> LeaseStore:
        return RecordStore(
            self._urls,
            self._settings.bucket,
            self._settings.group,
            name=f"collector {self._name} leases",
            timeout=self._timeout,
            on_hint=self._on_hint,
        )

    async def _keep(self, store: LeaseStore) -> None:
        member = self._member
        conflicts = 0
        while not self._left.is_set():
            asked = self._clock()
            payload, revision = await store.read()
            group = decode_group(payload) if payload is not None else None
            member.on_read(group, revision, asked=asked, now=self._clock())
            self._settle()
            while (write := member.next_write(self._clock())) is not None:
                self._emit()
                try:
                    revision = await store.write(encode_group(write.group), write.expected)
                except RecordChanged:
                    member.on_refused()
                    conflicts += 1
                    break
                except BaseException:
                    member.on_refused()
                    raise
                conflicts = 0
                member.on_stored(write, revision, now=self._clock())
                self._settle()
            self._tell(member.problem)
            if member.has_left:
                self._left.set()
            elif member.needs_read:
                # Who comes too late again and again meets many others at the same instant.
                await asyncio.sleep(random.uniform(0, 0.005 * min(conflicts, 20)))  # noqa: S311
            else:
                await self._rest(member.wake_at(self._clock()))

    async def _rest(self, until: float) -> None:
        """Wait until something is due, or somebody changed something."""
        group = self._member.group
        if group is not None and self._hinted > group.version:
            # What was heard of is about to be stored.
            until = min(until, self._clock() + _HINT_SECONDS)
            self._hinted = group.version
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(until - self._clock(), 0)):
                await self._wake.wait()
        self._wake.clear()

    def _on_hint(self, payload: bytes) -> None:
        group = self._member.group
        with contextlib.suppress(MarketPrismError):
            version = decode_group(payload).version if payload else 0
            if group is None or version > group.version or not payload:
                self._hinted = version
                self._wake.set()

    def _settle(self) -> None:
        """Take note of what an answer changed."""
        until = self._member.valid_until
        if until > self._renewed_until:
            self._renew_time = time.time_ns()
        self._renewed_until = until
        if self._member.lease_seconds != self._lease:
            self._lease = self._member.lease_seconds
            self._log.warning(
                "the group has another lease than is configured here",
                lease_seconds=self._lease,
                configured=self._settings.lease_seconds,
            )
        self._emit()

    def _emit(self) -> None:
        """Tell the owner what changed."""
        member = self._member
        for exchange in self._exchanges:
            if member.slots(exchange) != self._counts[exchange]:
                # Somebody divided it anew: the old numbers mean nothing any more.
                self._tell_change(exchange, _NONE)
                self._counts[exchange] = member.slots(exchange)
            self._tell_change(exchange, member.assigned(exchange))
        self._watch_validity()

    def _tell_change(self, exchange: str, assigned: frozenset[int]) -> None:
        before = self._assigned[exchange]
        if assigned == before:
            return
        self._assigned[exchange] = assigned
        gone, gained = before - assigned, assigned - before
        member = self._member
        handed = gone & member.unreleased(exchange) - member.assigned(exchange)
        change = LeaseChange(
            exchange,
            assigned,
            gained,
            frozenset(slot for slot in gained if member.was_taken_over(exchange, slot)),
            handed,
            gone - handed,
        )
        self._log.info(
            "leases changed",
            exchange=exchange,
            held=len(assigned),
            gained=len(gained),
            taken_over=len(change.taken_over),
            handed_over=len(handed),
            lost=len(change.lost),
        )
        self._on_change(change)

    def _watch_validity(self) -> None:
        """Tell when the right to publish ends or comes back."""
        member = self._member
        suspended = member.joined and not member.is_valid(self._clock())
        if suspended != self._suspended:
            self._suspended = suspended
            self._log.warning(
                "leases suspended: nothing is published until they are renewed"
                if suspended
                else "leases confirmed again"
            )
            if self._on_suspended is not None:
                self._on_suspended(suspended)
        if self._suspension is not None:
            self._suspension.cancel()
            self._suspension = None
        if member.joined and not suspended:
            delay = max(member.valid_until - self._clock(), 0) + 0.001
            loop = asyncio.get_running_loop()
            self._suspension = loop.call_later(delay, self._watch_validity)

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            if problem:
                self._log.warning("leases are not kept", error=problem)
            self._problem = problem
