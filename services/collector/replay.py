"""Does again what a collector did, from its recording alone: the same events, byte for byte.

A recording holds every frame and REST answer, and in `config` records the other inputs (see
`journal`). They are given in their order to the very code that runs live, with the recorded times
in place of the clock, so that epochs, receive times and message ids come out the same too.
"""

from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from prometheus_client import CollectorRegistry, Counter

from services.collector.connection import VenueConnectionTask
from services.collector.feed import InstrumentFeed
from services.collector.leases_group import slot_of
from services.collector.ledger import Ledger
from services.collector.settings import ExchangeSettings
from services.collector.synchroniser import SnapshotPolicy
from services.collector.trade_ledger import Debt
from services.collector.venue import Venue
from services.collector.venues.base import (
    InstrumentSpec,
    MalformedFrameError,
    Poll,
    RestRequest,
    Subscription,
    TradePrint,
    VenueAdapter,
)
from services.collector.venues.registry import adapter_for_exchange
from services.shared.capture import CaptureRecord, read_capture
from services.shared.errors import InvalidArgument

__all__ = ["ReplayedEvent", "replay"]


@dataclass(frozen=True, slots=True)
class ReplayedEvent:
    """One message as the collector published it."""

    subject: str
    """Subject on the broker."""
    message_id: str
    """Id by which the broker knows repetitions."""
    payload: bytes
    """The encoded event."""


class _Events:
    """Stands for the publisher: keeps what is published until it is taken."""

    def __init__(self) -> None:
        self.events: list[ReplayedEvent] = []

    def publish(
        self, subject: str, payload: bytes, message_id: str, *, droppable_key: str | None = None
    ) -> bool:
        self.events.append(ReplayedEvent(subject, message_id, payload))
        return True


class _Started:
    """Stands for a task, which nobody runs."""

    def cancel(self) -> None:
        """Nothing."""

    def add_done_callback(self, callback: object) -> None:
        """Nothing: it does not end."""


def _no_task(work: Coroutine[Any, Any, Any], name: str) -> Any:
    """Start nothing: what would have come of it is in the recording."""
    work.close()
    return _Started()


class _Connection:
    """Stands for a connection, of which only the name and what was noted of its end matter."""

    def __init__(self, name: str) -> None:
        self.connection_id = name
        self.url = ""
        self.controls = 0
        self.malformed = 0
        self.open_time = 0
        self.last_frame_time = 0
        self.last_cause = integrity.INTEGRITY_CAUSE_UNSPECIFIED

    def acknowledge(self, *_: object) -> None:
        """Do nothing: which subscriptions stood, and how connections ended, was noted."""

    refuse = answer = restart = acknowledge


class _Venue:
    """One venue of the recording."""

    def __init__(self, exchange: str, begin: dict[str, Any], events: _Events, ledger: Ledger):
        settings = ExchangeSettings.model_validate(begin["settings"])
        self.adapter: VenueAdapter = adapter_for_exchange(exchange, settings.option_families)
        policy = SnapshotPolicy(**begin["policy"])
        self.shares: Callable[[str], bool] = lambda symbol: True
        self.venue = Venue(
            exchange, self.adapter, settings, None, events, ledger, policy, _no_task,  # type: ignore[arg-type]
            shares=lambda symbol: self.shares(symbol),
        )  # fmt: skip
        # Connections and polls are what the recording says; subscriptions are not made again.
        self.venue.pool.add = lambda subscriptions: None  # type: ignore[method-assign]
        self.venue.pool.renew = lambda topic: False  # type: ignore[method-assign]
        self.venue.pool.roll_over = lambda connection, reason: None  # type: ignore[method-assign]
        self.connections: dict[str, VenueConnectionTask] = {}
        self.lists = {request.path for request in self.adapter.instrument_requests()}
        self.last_answer = b""

    def connection(self, name: str) -> VenueConnectionTask:
        found = self.connections.get(name)
        if found is None:
            found = self.connections[name] = cast("VenueConnectionTask", _Connection(name))
        return found

    def feed(self, data: dict[str, Any]) -> InstrumentFeed | None:
        return self.venue.feeds.get(data["native_symbol"])

    def symbol(self, subscription: Subscription) -> str:
        feed = self.venue.feeds.get(subscription.native_symbol)
        return feed.spec.symbol if feed is not None else ""

    def answer(self, path: str, body: bytes) -> None:
        self.last_answer = body
        if path in self.lists:
            try:
                # Adapters may learn names from it.
                self.adapter.decode_instruments(body)
            except MalformedFrameError:
                return

    def input(self, what: str, data: dict[str, Any], now: int) -> None:
        """Do again what was noted."""
        handler = getattr(self, f"_on_{what}", None)
        if handler is None:
            raise InvalidArgument(f"the recording has an input {what!r} that is not known")
        handler(data, now)

    # Inputs, by name.

    def _on_shares(self, data: dict[str, Any], now: int) -> None:
        slots, assigned = data["slots"], frozenset(data["assigned"])
        self.shares = lambda symbol: slot_of(symbol, slots) in assigned

    def _on_tick(self, data: dict[str, Any], now: int) -> None:
        self.venue.tick(now, roomy=data["roomy"])

    def _on_open(self, data: dict[str, Any], now: int) -> None:
        self.venue.on_open(self.connection(data["connection"]), now)

    def _on_join(self, data: dict[str, Any], now: int) -> None:
        if (feed := self.feed(data)) is not None:
            self.venue.join(feed, data["lane"], now)

    def _on_pause(self, data: dict[str, Any], now: int) -> None:
        if (feed := self.feed(data)) is not None:
            self.venue.pause(feed, data["lane"], now)

    def _on_silent(self, data: dict[str, Any], now: int) -> None:
        self.venue.on_silent(self.connection(data["connection"]), data["seconds"], now)

    def _on_closed(self, data: dict[str, Any], now: int) -> None:
        connection = self.connection(data["connection"])
        connection.last_cause = data["cause"]
        connection.last_frame_time = data["last_frame_time"]
        self.venue.on_closed(connection, data["detail"], now)

    def _on_rolled_over(self, data: dict[str, Any], now: int) -> None:
        old, new = self.connection(data["old"]), self.connection(data["new"])
        new.open_time = data["open_time"]
        self.venue.on_rolled_over(old, new, data["reason"], now)

    def _on_refused(self, data: dict[str, Any], now: int) -> None:
        subscription = msgspec.convert(data["subscription"], Subscription)
        symbol = self.symbol(subscription)
        self.venue.told.refused(data["connection"], subscription, data["refusal"], symbol, now)

    def _on_quiet(self, data: dict[str, Any], now: int) -> None:
        subscription = msgspec.convert(data["subscription"], Subscription)
        symbol = self.symbol(subscription)
        self.venue.told.quiet(data["connection"], subscription, data["seconds"], symbol, now)

    def _on_announce(self, data: dict[str, Any], now: int) -> None:
        self.venue.roster.announce(_spec(data), now, delisted=data["delisted"])

    def _on_start(self, data: dict[str, Any], now: int) -> None:
        self.venue.roster.start(
            _spec(data), data["epoch"], data["trade_id"], now, taken_over=data["taken_over"],
            trade_time=data.get("trade_time", 0),
            debts=msgspec.convert(data.get("debts", []), list[Debt]),
        )  # fmt: skip

    def _on_change(self, data: dict[str, Any], now: int) -> None:
        spec = _spec(data)
        if (feed := self.venue.feeds.get(spec.native_symbol)) is not None:
            self.venue.roster.change(feed, spec, now)

    def _on_retire(self, data: dict[str, Any], now: int) -> None:
        spec = _spec(data)
        if spec.native_symbol in self.venue.feeds:
            self.venue.roster.retire(spec, now, listed=data["listed"], told=data["told"])

    def _on_snapshot(self, data: dict[str, Any], now: int) -> None:
        request = msgspec.convert(data["request"], RestRequest)
        if (feed := self.feed(data)) is not None:
            feed.book.on_snapshot(self.adapter.decode_snapshot(self.last_answer, request), now)

    def _on_snapshot_failed(self, data: dict[str, Any], now: int) -> None:
        if (feed := self.feed(data)) is not None:
            self.venue.requests.on_snapshot_failed(
                feed, data["detail"], now, limited=data["limited"]
            )

    def _on_request_limited(self, data: dict[str, Any], now: int) -> None:
        if (feed := self.feed(data)) is not None:
            self.venue.requests.on_limited(feed, data["kind"], data["detail"], now)

    def _on_no_snapshot(self, data: dict[str, Any], now: int) -> None:
        if (feed := self.feed(data)) is not None:
            self.venue.requests.on_no_snapshot(feed, data["seconds"], now)

    def _on_history_page(self, data: dict[str, Any], now: int) -> None:
        trades = msgspec.convert(data["trades"], list[TradePrint])
        if (feed := self.feed(data)) is not None:
            self.venue.requests.trades.on_page(
                feed, data["first"], data["last"], trades, data["skipped"], now
            )

    def _on_wait_over(self, data: dict[str, Any], now: int) -> None:
        if (feed := self.feed(data)) is not None:
            self.venue.requests.trades.on_wait_over(feed, data["first"], now)

    def _on_history_end(self, data: dict[str, Any], now: int) -> None:
        if (feed := self.feed(data)) is not None:
            self.venue.requests.trades.on_end(
                feed, data["first"], data["last"], data["detail"], now, told=data["told"]
            )

    def _on_probe(self, data: dict[str, Any], now: int) -> None:
        if (feed := self.feed(data)) is not None:
            self.venue.requests.on_probe(feed, data["sequence"], data["before"], now)

    def _on_trade_found(self, data: dict[str, Any], now: int) -> None:
        trade = msgspec.convert(data["trade"], TradePrint)
        if (feed := self.feed(data)) is not None:
            self.venue.requests.on_trade_found(feed, trade, data["before"], now)

    def _on_poll(self, data: dict[str, Any], now: int) -> None:
        try:
            self.venue.on_answer(msgspec.convert(data["poll"], Poll), self.last_answer, now)
        except MalformedFrameError:
            # It was as malformed then, and counted as a failure of the poll.
            return

    def _on_rate_limited(self, data: dict[str, Any], now: int) -> None:
        self.venue.told.rate_limited(data["kind"], data["detail"], now)

    def _on_rebuild(self, data: dict[str, Any], now: int) -> None:
        if (feed := self.feed(data)) is not None:
            self.venue.rebuild(feed, data["detail"], now)

    def _on_broker(self, data: dict[str, Any], now: int) -> None:
        self.venue.on_broker(data["connected"], now)

    def _on_dropped(self, data: dict[str, Any], now: int) -> None:
        self.venue.on_dropped(data["key"], data["count"], now)

    def _on_rejected(self, data: dict[str, Any], now: int) -> None:
        self.venue.on_rejected(data["subject"], data["message_id"], now)

    def _on_lifetime(self, data: dict[str, Any], now: int) -> None:
        self.venue.on_lifetime(data["kind"], now)


def replay(paths: Iterable[Path]) -> Iterator[ReplayedEvent]:
    """Give every event of a recording again, in the order of publishing.

    `paths` are the files of one collector in the order of their writing (their names sort so). What
    the broker's full buffer made the collector give up is given too. Raises InvalidArgument when a
    file cannot be read, or holds no recording of a collector: captures of others can be verified,
    or played by a simulated venue.
    """
    events = _Events()
    venues: dict[str, _Venue] = {}
    by_connection: dict[str, _Venue] = {}
    ledger: Ledger | None = None
    count = 0
    for path in paths:
        for record in read_capture(path):
            count += 1
            if record.kind == "config":
                name, what, data = _input(path, record)
                if what == "begin":
                    # A collector that was started again goes on in the same folder.
                    if ledger is None or data["first"]:
                        ledger = _ledger(data["collector_id"], events)
                        venues.clear()
                        by_connection.clear()
                    venues[name] = _Venue(name, data, events, ledger)
                elif name in venues:
                    if what == "open":
                        by_connection[data["connection"]] = venues[name]
                    venues[name].input(what, data, record.receive_time)
            elif record.kind == "ws" and (found := by_connection.get(record.conn or "")):
                connection = found.connection(record.conn or "")
                found.venue.on_frame(connection, record.payload(), record.receive_time)
            elif record.kind == "http":
                _answer(venues, record)
            yield from events.events
            events.events.clear()
    if ledger is None:
        raise InvalidArgument(
            f"no recording of a collector: {count} records, and none says how it began; "
            "use verify for captures of another origin"
        )


def _answer(venues: dict[str, _Venue], record: CaptureRecord) -> None:
    exchange = (record.conn or "").partition(".")[0]
    if exchange in venues:
        venues[exchange].answer(urlsplit(record.url or "").path, record.payload())


def _input(path: Path, record: CaptureRecord) -> tuple[str, str, dict[str, Any]]:
    try:
        data = msgspec.json.decode(record.data)
        return record.conn or "", data.pop("input"), data
    except (msgspec.DecodeError, KeyError, AttributeError) as error:
        raise InvalidArgument(
            f"{path}: expected an input of a collector, got {record.data[:80]!r}"
        ) from error


def _ledger(collector_id: str, events: _Events) -> Ledger:
    counter = Counter("events", "Entries.", ["exchange", "kind"], registry=CollectorRegistry())
    return Ledger(collector_id, events.publish, counter)


def _spec(data: dict[str, Any]) -> InstrumentSpec:
    return msgspec.convert(data["spec"], InstrumentSpec)
