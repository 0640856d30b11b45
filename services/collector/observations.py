"""Publishes what a venue tells beside books, trades and tops: tickers, candles, funding, greeks...

The same observation can come twice: over two connections, from a stream and from a poll, after a
restart. Here each is published once, and with the same message id wherever it came from, so that
JetStream drops what another process published already.

What counts as the same:

- *States* (a ticker, a mark price): the newest of each (kind, symbol, key) counts. One whose
  exchange_time is older than the last one's is a duplicate, and so is one that says the very same.
  Where the venue tells no time, only what it says decides.
- *Candles* are states of each interval by itself, by their open_time: a closed candle that comes
  after the next one has begun is not late. Once a candle is closed, only another closed one may
  follow it.
- *Happenings* (what has an event_id, and any liquidation): the same id is the same happening,
  however late it comes. A liquidation without an id is told apart by all that it says.

A venue's clock may step back. Less than a minute is waited out. After that, observations that are
older than the last one, but go forward among themselves, are the venue's new time, and are followed
from the third on. They are not followed at once, because answers to polls may come out of an old
cache, and a second connection may be behind the first.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from marketprism.market.v1 import common_pb2

from services.collector.contracts import ContractSize
from services.collector.venues.base import Observation
from services.shared.decimals import InvalidDecimalError

__all__ = ["KindTold", "ObservationTape", "Publish", "kind_name"]

_CANDLE = common_pb2.EVENT_KIND_CANDLE
_LIQUIDATION = common_pb2.EVENT_KIND_LIQUIDATION

_IDS_KEPT = 256  # of happenings, an instrument and kind
_SERIES_KEPT = 32  # an instrument and kind: candles take two an interval
_EQUAL_TIMES_KEPT = 16  # contents with one exchange_time
_SYMBOLS_KEPT = 50_000
_STEP_SECONDS = 60
_STEP_OBSERVATIONS = 3
# A symbol is one word of a subject.
_SYMBOL = re.compile(r"[^\s.*>]{1,100}")


class Publish(Protocol):
    """`Publisher.publish`: takes an encoded event, gives False when it was not taken."""

    def __call__(
        self, subject: str, payload: bytes, message_id: str, *, droppable_key: str | None = None
    ) -> bool:
        """See `services.shared.publisher`."""


class KindTold(NamedTuple):
    """What came of one kind and instrument."""

    kind: "common_pb2.EventKind.ValueType"
    """The kind."""
    events: int
    """Events published."""
    last_receive_time: int
    """When the last observation was read, a duplicate or not; nanoseconds since 1970."""


def kind_name(kind: "common_pb2.EventKind.ValueType") -> str:
    """Name of a kind in subjects, ids and metrics: "funding_rate"."""
    return common_pb2.EventKind.Name(kind).removeprefix("EVENT_KIND_").lower()


class _Series:
    """The newest of one (kind, symbol, key), candles also by open_time.

    What comes without a time of the venue counts as if it had the last one's.
    """

    __slots__ = (
        "_older",
        "_older_time",
        "_receive_time",
        "_same_time",
        "_steps",
        "_time",
        "closed",
        "content",
    )

    def __init__(self) -> None:
        self.content = ""
        self.closed = False
        self._time = 0
        self._receive_time = 0
        self._older = 0
        self._older_time = 0
        self._steps = 0
        self._same_time: dict[str, int] | None = None

    def is_known(self, time: int, content: str, receive_time: int) -> bool:
        if not time or time == self._time:
            return content == self.content
        if time > self._time:
            return False
        if time != self._older_time:
            self._older = self._older + 1 if time > self._older_time else 1
            self._older_time = time
        waited = receive_time - self._receive_time >= _STEP_SECONDS * 1_000_000_000
        return not (waited and self._older >= _STEP_OBSERVATIONS)

    def suffix(self, time: int, content: str) -> str:
        """Tell this from the same told before, once the state has left it and come back."""
        repeats = 0
        if self._same_time is not None and time == self._time:
            repeats = self._same_time.get(content, 0)
        steps = self._steps + (time < self._time)
        return f".{steps}.{repeats}" if steps or repeats else ""

    def accept(self, time: int, content: str, receive_time: int, *, closed: bool) -> None:
        time = time or self._time
        if time != self._time:
            self._steps += time < self._time
            self._same_time = None
        elif time:
            if self._same_time is None or len(self._same_time) >= _EQUAL_TIMES_KEPT:
                self._same_time = {self.content: 1}
            self._same_time[content] = self._same_time.get(content, 0) + 1
        self._time = time
        self._receive_time = receive_time
        self._older = self._older_time = 0
        self.content = content
        self.closed = closed


class _Kind:
    """One kind of one instrument."""

    __slots__ = (
        "droppable_key",
        "events",
        "ids",
        "kind",
        "last_receive_time",
        "message_id",
        "name",
        "series",
        "subject",
    )

    def __init__(self, kind: "common_pb2.EventKind.ValueType", exchange: str, symbol: str) -> None:
        self.kind = kind
        self.name = kind_name(kind)
        self.subject = f"market.{self.name}.{exchange}.{symbol}"
        # One stream holds all instruments and several kinds.
        self.message_id = f"{exchange}.{symbol}.{self.name}."
        self.droppable_key = f"{self.name}:{exchange}/{symbol}"
        self.events = 0
        self.last_receive_time = 0
        self.ids: dict[str, None] = {}
        self.series: dict[tuple[str, int], _Series] = {}

    def series_of(self, key: str, open_time: int) -> _Series:
        """Give the series, and let go of the one that was longest without any."""
        place = (key, open_time)
        series = self.series.pop(place, None)
        if series is None:
            if len(self.series) >= _SERIES_KEPT:
                del self.series[next(iter(self.series))]
            series = _Series()
        self.series[place] = series
        return series

    def remember(self, event_id: str) -> None:
        if len(self.ids) >= _IDS_KEPT:
            del self.ids[next(iter(self.ids))]
        self.ids[event_id] = None


class ObservationTape:
    """Publishes the observations of one venue, each once, on `market.<kind>.<exchange>.<symbol>`.

    `resolve(native_symbol)` gives the canonical symbol and the contract size of an instrument that
    is collected, None of any other. Counters, by kind name: `published`; `duplicates`;
    `unresolved`, of instruments that are not collected; `malformed`, whose contracts do not
    multiply to a number that can be told; `dropped`, which the broker's buffer had no room for.

    Under backpressure states may be given up, for a newer one follows; happenings and closed
    candles are not. The droppable key of a state is "<kind>:<exchange>/<symbol>".
    """

    def __init__(
        self,
        exchange: str,
        publish: Publish,
        resolve: Callable[[str], tuple[str, ContractSize] | None],
    ) -> None:
        self.published: Counter[str] = Counter()
        self.duplicates: Counter[str] = Counter()
        self.unresolved: Counter[str] = Counter()
        self.malformed: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._exchange = exchange
        self._publish = publish
        self._resolve = resolve
        self._symbols: dict[str, dict[int, _Kind]] = {}
        self._last_of_kind: dict[int, int] = {}

    def on_observation(self, observation: Observation, receive_time_ns: int) -> bool:
        """Take an observation; True when it was published.

        `receive_time_ns` is when it was read, nanoseconds since 1970. The message of the
        observation is completed in place, and so must not be used again.
        """
        self.heard(observation.kind, receive_time_ns)
        message: Any = observation.message
        symbol = observation.symbol
        if not symbol:
            resolved = self._resolve(observation.native_symbol)
            if resolved is None:
                self.unresolved[kind_name(observation.kind)] += 1
                return False
            symbol, size = resolved
            if observation.contracts and not size.is_one:
                try:
                    for name in observation.contracts:
                        if text := getattr(message, name):
                            setattr(message, name, size.sizes[text])
                except InvalidDecimalError:
                    self.malformed[kind_name(observation.kind)] += 1
                    return False
        told = self._kind(observation.kind, symbol)
        if told is None:
            self.unresolved[kind_name(observation.kind)] += 1
            return False
        told.last_receive_time = receive_time_ns
        message.exchange = self._exchange
        message.symbol = symbol
        message.ClearField("receive_time")
        if observation.event_id or observation.kind == _LIQUIDATION:
            return self._on_happening(told, observation, receive_time_ns)
        return self._on_state(told, observation, receive_time_ns)

    def heard(self, kind: "common_pb2.EventKind.ValueType", receive_time_ns: int) -> None:
        """Take note that a kind was told of something, ours or not: its streams speak."""
        self._last_of_kind[kind] = receive_time_ns

    def on_dropped(self, key: str, count: int) -> bool:
        """Take note that everything unsent under a droppable key was given up.

        What is told next is published, also when it is the same again. Gives False, and does
        nothing, when the key is none of this tape's.
        """
        name, _, instrument = key.partition(":")
        exchange, _, symbol = instrument.partition("/")
        if exchange != self._exchange:
            return False
        for told in self._symbols.get(symbol, {}).values():
            if told.name == name:
                self.dropped[name] += count
                for series in told.series.values():
                    if not series.closed:
                        series.content = ""
                return True
        return False

    def states(self, symbol: str) -> list[KindTold]:
        """Tell what came of an instrument, by kind."""
        kinds = self._symbols.get(symbol, {})
        return [
            KindTold(told.kind, told.events, told.last_receive_time)
            for _, told in sorted(kinds.items())
        ]

    def last_receive_time(self, kind: "common_pb2.EventKind.ValueType", symbol: str) -> int:
        """Tell when the last observation was read, a duplicate or not; 0 when none ever was."""
        told = self._symbols.get(symbol, {}).get(kind)
        return told.last_receive_time if told is not None else 0

    def last_of_kind(self, kind: "common_pb2.EventKind.ValueType") -> int:
        """Tell when the last observation of a kind was read, of whatever; 0 when none ever was."""
        return self._last_of_kind.get(kind, 0)

    def forget(self, symbol: str) -> None:
        """Let go of everything about an instrument or index that is no longer collected."""
        self._symbols.pop(symbol, None)

    # Inside

    def _kind(self, kind: "common_pb2.EventKind.ValueType", symbol: str) -> _Kind | None:
        kinds = self._symbols.get(symbol)
        if kinds is None:
            # Names of indices are the venue's own words.
            if (
                len(self._symbols) >= _SYMBOLS_KEPT
                or _SYMBOL.fullmatch(symbol) is None
                or not symbol.isprintable()
            ):
                return None
            kinds = self._symbols[symbol] = {}
        told = kinds.get(kind)
        if told is None:
            told = kinds[kind] = _Kind(kind, self._exchange, symbol)
        return told

    def _on_happening(self, told: _Kind, observation: Observation, receive_time: int) -> bool:
        event_id = observation.event_id
        if not event_id or len(event_id) > 100 or not event_id.isprintable() or " " in event_id:
            event_id = _digest(event_id, observation.message.SerializeToString())
        if event_id in told.ids:
            self.duplicates[told.name] += 1
            return False
        if not self._send(told, observation.message, receive_time, event_id, droppable=False):
            return False
        told.remember(event_id)
        return True

    def _on_state(self, told: _Kind, observation: Observation, receive_time: int) -> bool:
        message: Any = observation.message
        time = _nanoseconds(message.exchange_time)
        open_time = 0
        closed = False
        if told.kind == _CANDLE:
            open_time = _nanoseconds(message.open_time)
            closed = message.closed
        if closed:
            # A closed candle says the same whenever it is told.
            stamp = message.exchange_time.SerializeToString()
            message.ClearField("exchange_time")
            content = _digest(observation.key, message.SerializeToString())
            if time:
                message.exchange_time.ParseFromString(stamp)
        else:
            content = _digest(observation.key, message.SerializeToString())
        series = told.series_of(observation.key, open_time)
        if closed:
            known = series.closed and content == series.content
        else:
            known = series.closed or series.is_known(time, content, receive_time)
        if known:
            self.duplicates[told.name] += 1
            return False
        if closed:
            name = content
        elif time:
            name = content + series.suffix(time, content)
        else:
            # The venue may go back to what it said before: only our time tells the two apart.
            name = f"{content}.{receive_time}"
        if not self._send(told, message, receive_time, name, droppable=not closed):
            return False
        series.accept(time, content, receive_time, closed=closed)
        return True

    def _send(
        self, told: _Kind, message: Any, receive_time: int, name: str, *, droppable: bool
    ) -> bool:
        message.receive_time.FromNanoseconds(receive_time)
        taken = self._publish(
            told.subject,
            message.SerializeToString(),
            told.message_id + name,
            droppable_key=told.droppable_key if droppable else None,
        )
        if taken:
            told.events += 1
            self.published[told.name] += 1
        elif not droppable:
            self.dropped[told.name] += 1  # states: told by `on_dropped`
        return taken


def _nanoseconds(timestamp: Any) -> int:
    return int(timestamp.seconds) * 1_000_000_000 + int(timestamp.nanos)


def _digest(key: str, content: bytes) -> str:
    return hashlib.blake2b(
        key.encode(errors="replace") + b"\0" + content, digest_size=12
    ).hexdigest()
