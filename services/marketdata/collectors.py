"""Which collectors are alive, by the heartbeats that they send; pure, the clock comes from outside.

A collector says once a second how it is. Its silence means that nobody tells us when a book loses
step, so its books are then STALE, although nothing that they hold is known to be wrong. The same
holds while it speaks and the broker stores nothing of what it has to say.

Several collectors are usual: each has venues of its own, or they share the instruments of all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError
from marketprism.collector.v1 import collector_service_pb2

from services.shared.progress import Progress

__all__ = ["Collectors", "Rivals"]

_KEPT = 1000
_RIVALS_SECONDS = 10.0


@dataclass(slots=True)
class _Collector:
    heard: float
    exchanges: frozenset[str] = frozenset()
    leases: bool = False
    stored: Progress = field(default_factory=Progress)


class Collectors:
    """The collectors that were heard since the start; times are monotonic seconds.

    A book's own collector counts, when the gap ledger named it and it was heard; else those that
    have connections to the venue; else any.
    """

    def __init__(self, silence_seconds: float, now: float) -> None:
        self._limit = silence_seconds
        self._known: dict[str, _Collector] = {}
        self._listening_since: float | None = None
        self._now = now

    @property
    def known(self) -> Mapping[str, float]:
        """Seconds since each collector was heard, as of the last `refresh`."""
        return {name: self._now - each.heard for name, each in self._known.items()}

    def on_heartbeat(self, payload: bytes, now: float) -> bool:
        """Take an encoded GetStatusResponse; False when it is none."""
        try:
            status = collector_service_pb2.GetStatusResponse.FromString(payload)
        except DecodeError:
            return False
        if not status.collector_id:
            return False
        collector = self._known.get(status.collector_id)
        if collector is None:
            if len(self._known) >= _KEPT:
                oldest = min(self._known, key=lambda name: self._known[name].heard)
                del self._known[oldest]
            collector = self._known[status.collector_id] = _Collector(now)
        collector.heard = now
        publisher = status.publisher
        collector.stored.observe(
            publisher.acknowledged,
            waiting=publisher.in_flight + publisher.buffered > 0,
            now=now,
        )
        # A venue that it was told to collect has a budget, also before it has any connection.
        collector.exchanges = frozenset(
            [each.exchange for each in status.connections]
            + [each.exchange for each in status.rest_budgets]
        )
        collector.leases = status.HasField("leases")
        return True

    def listening(self, now: float | None) -> None:
        """Note since when we listen, None while we cannot: then nobody's silence means anything."""
        self._listening_since = now

    def refresh(self, now: float) -> None:
        """Set the time that `silence` speaks of."""
        self._now = now

    def collecting(self, exchange: str) -> dict[str, bool]:
        """Give who collects a venue now, by name; whether each of them shares by leases."""
        return {
            name: each.leases
            for name, each in self._known.items()
            if exchange in each.exchanges and self._now - each.heard <= self._limit
        }

    def missing(self) -> str:
        """Tell which venues nobody collects any more, although others are; empty when none."""
        if self._listening_since is None or self._now - self._listening_since <= self._limit:
            return ""
        last: dict[str, tuple[float, str]] = {}
        for name, each in self._known.items():
            for exchange in each.exchanges:
                last[exchange] = max(last.get(exchange, (0.0, "")), (each.heard, name))
        told = [
            f"{exchange} (collector {name} has been silent for {self._now - heard:.0f} s)"
            for exchange, (heard, name) in sorted(last.items())
            if self._now - heard > self._limit
        ]
        return f"nobody collects {', '.join(told)}" if told else ""

    def silence(self, exchange: str, collector_id: str) -> str:
        """Tell why the collector of a book counts as silent, empty when it does not."""
        if self._listening_since is None or self._now - self._listening_since <= self._limit:
            return ""
        own = self._known.get(collector_id)
        if own is not None:
            concerned = [own]
        else:
            concerned = [c for c in self._known.values() if exchange in c.exchanges]
            concerned = concerned or list(self._known.values())
        if not concerned:
            return "no collector was heard since the start"
        age = self._now - max(each.heard for each in concerned)
        if age > self._limit:
            return f"the collector has been silent for {age:.0f} s"
        stuck = min(each.stored.stuck_seconds(self._now) for each in concerned)
        if stuck > self._limit:
            return f"the broker has stored nothing of the collector's for {stuck:.0f} s"
        return ""


class Rivals:
    """Notices two collectors that publish the same books, by events of earlier epochs.

    The one that began last is followed, so that what is served stays right; but whoever started
    the other should know. A collector that was replaced leaves a few such events, and then none.
    """

    def __init__(self) -> None:
        self._count = 0
        self._since = 0.0
        self._last = float("-inf")
        self._now = 0.0

    def observe(self, old_epoch_events: int, now: float) -> None:
        """Take how many events of earlier epochs came so far; `now` is monotonic seconds."""
        self._now = now
        if old_epoch_events == self._count:
            return
        self._count = old_epoch_events
        if now - self._last > _RIVALS_SECONDS:
            self._since = now
        self._last = now

    @property
    def are_at_work(self) -> bool:
        """Whether such events have kept coming for more than ten seconds."""
        is_recent = self._now - self._last <= _RIVALS_SECONDS
        return is_recent and self._last - self._since > _RIVALS_SECONDS
