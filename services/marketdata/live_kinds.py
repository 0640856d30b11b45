"""The live state of every kind of event beside books and trades: the latest, and who listens.

An event is decoded once, so that nothing reaches a client that it could not decode, and its bytes
are kept. Kinds that stand side by side (candles by interval, ratios by whose) are kept one each.
A log of events is made when somebody asks for it and lives as long as somebody holds it, so that
what nobody listens to costs no more than its latest event.
"""

import weakref
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from marketprism.market.v1 import common_pb2, events_pb2, market_event_pb2

from services.marketdata.catalog import Key
from services.marketdata.event_log import EventLog
from services.marketdata.settings import LogBounds
from services.marketdata.tally import Tally
from services.marketdata.wire import event_item

__all__ = ["INDEX_KINDS", "KINDS", "KIND_OF_SUBJECT", "Kind", "LiveKinds"]

_PREFIX = "EVENT_KIND_"
_FIELDS = market_event_pb2.MarketEvent.DESCRIPTOR.fields_by_name
_BESIDE = (common_pb2.EVENT_KIND_UNSPECIFIED, common_pb2.EVENT_KIND_ORDER_BOOK)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of event."""

    number: int
    """Its EventKind."""

    name: str
    """Its name in subjects, and of its field of MarketEvent: `funding_rate`."""

    field: int
    """Number of its field of MarketEvent."""

    message: type[Message]
    """What it is encoded as."""


def _kinds() -> dict[int, Kind]:
    found = {}
    for value in common_pb2.EventKind.DESCRIPTOR.values:
        if value.number not in _BESIDE:
            name = value.name.removeprefix(_PREFIX).lower()
            descriptor = _FIELDS[name]
            assert descriptor.message_type is not None
            message = GetMessageClass(descriptor.message_type)
            found[value.number] = Kind(value.number, name, descriptor.number, message)
    return found


KINDS: Final[dict[int, Kind]] = _kinds()
"""Every kind that is one message, by its EventKind: all but ORDER_BOOK."""

KIND_OF_SUBJECT: Final[dict[str, int]] = {kind.name: kind.number for kind in KINDS.values()}
"""EventKind by the second part of a subject, `market.<kind>.<exchange>.<symbol>`."""

INDEX_KINDS: Final[frozenset[int]] = frozenset(
    {common_pb2.EVENT_KIND_INDEX_PRICE, common_pb2.EVENT_KIND_VOLATILITY_INDEX}
)
"""Kinds that speak of an index, which is no instrument: nobody trades it, and it has no book."""


def _one(_event: Any) -> Hashable:
    return None


def _interval(candle: events_pb2.Candle) -> Hashable:
    return candle.interval.seconds, candle.interval.nanos


def _whose(ratio: events_pb2.LongShortRatio) -> Hashable:
    return ratio.kind, ratio.period.seconds


_SIDE_BY_SIDE: Final[dict[int, Callable[[Any], Hashable]]] = {
    common_pb2.EVENT_KIND_CANDLE: _interval,
    common_pb2.EVENT_KIND_LONG_SHORT_RATIO: _whose,
}
_MOST_SIDE_BY_SIDE = 64


class _KindLog(EventLog):
    """A log that is gone when the last of its readers is."""

    __slots__ = ("__weakref__",)


class _LiveKind:
    """One kind of one instrument."""

    __slots__ = ("_kind", "_side_by_side", "_tally", "key", "latest", "log")

    def __init__(self, kind: Kind, key: Key, tally: Tally) -> None:
        self.key = key
        self.latest: dict[Hashable, bytes] = {}
        self.log: weakref.ref[_KindLog] | None = None
        self._kind = kind
        self._side_by_side = _SIDE_BY_SIDE.get(kind.number, _one)
        self._tally = tally

    def on_event(self, payload: bytes) -> None:
        """Take an encoded event; never raises for what it holds."""
        kind = self._kind
        try:
            event: Any = kind.message.FromString(payload)
        except DecodeError:
            event = None
        if event is None or (event.exchange, event.symbol) != self.key:
            self._tally.malformed += 1
            return
        place = self._side_by_side(event)
        if place not in self.latest and len(self.latest) >= _MOST_SIDE_BY_SIDE:
            del self.latest[next(iter(self.latest))]
        self.latest[place] = payload
        if self.log is not None:
            log = self.log()
            if log is None:
                self.log = None
            else:
                log.append(event_item(kind.field, payload))


class LiveKinds:
    """Every kind of every instrument but its book and its trades."""

    def __init__(self, bounds: LogBounds, tally: Tally) -> None:
        self._bounds = bounds
        self._tally = tally
        self._kinds: dict[int, dict[Key, _LiveKind]] = {}
        self._logs: weakref.WeakSet[_KindLog] = weakref.WeakSet()
        self._closed = False

    def taker(self, kind: int, key: Key) -> Callable[[bytes], None]:
        """Give what takes the encoded events of one kind and instrument."""
        return self._live(kind, key).on_event

    def latest(self, kind: int, key: Key) -> list[bytes]:
        """Give the latest encoded events, none when nothing came."""
        found = self._kinds.get(kind, {}).get(key)
        return list(found.latest.values()) if found is not None else []

    def keys(self, kind: int) -> Iterable[Key]:
        """Give the instruments that something of this kind came of."""
        return [key for key, live in self._kinds.get(kind, {}).items() if live.latest]

    def log(self, kind: int, key: Key) -> EventLog:
        """Give the log of what comes from now on. Hold it: it is gone when nobody does."""
        live = self._live(kind, key)
        log = live.log() if live.log is not None else None
        if log is None:
            log = _KindLog(self._bounds.max_events, self._bounds.max_bytes)
            live.log = weakref.ref(log)
            self._logs.add(log)
            if self._closed:
                log.close()
        return log

    @property
    def log_bytes(self) -> int:
        """Bytes of the events held in logs."""
        return sum(log.size for log in list(self._logs))

    def tick(self, now: float) -> None:
        """Let old events go; `now` is monotonic seconds."""
        for log in list(self._logs):
            log.trim_to(log.age(now, self._bounds.max_age_seconds))

    def close(self) -> None:
        """End every reader's stream."""
        self._closed = True
        for log in list(self._logs):
            log.close()

    def _live(self, kind: int, key: Key) -> _LiveKind:
        of_kind = self._kinds.setdefault(kind, {})
        found = of_kind.get(key)
        if found is None:
            found = of_kind[key] = _LiveKind(KINDS[kind], key, self._tally)
        return found
