"""What goes wrong with requests on behalf of a feed is told in the ledger, whatever they are."""

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2
from prometheus_client import CollectorRegistry, Counter

from services.collector.ledger import Ledger
from services.collector.rest import RateLimitedError, RestError
from services.collector.settings import ExchangeSettings
from services.collector.snapshots import FeedRequests
from services.collector.venues.base import RestRequest, SkippedTrade, SnapshotSource, TradePrint
from tests.integration.nats_tools import until

_LIMITED = RateLimitedError("too many requests", 0.01)


class Bench:
    """Requests of one venue whose REST answers what the test says, failures first."""

    def __init__(
        self, *failures: Exception, source: SnapshotSource = SnapshotSource.STREAM
    ) -> None:
        self.failures = list(failures)
        self.events: list[integrity.IntegrityEvent] = []
        self.pages: list[list[Any]] = []
        self.ends: list[str] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.renewals = 0
        counter = Counter("events", "Entries.", ["exchange", "kind"], registry=CollectorRegistry())
        request = RestRequest("/trades", 1)
        adapter = SimpleNamespace(
            snapshot_source=source,
            trades_request=lambda *_: request,
            decode_trades=lambda *_: [TradePrint("X", 7, 1, "1", "1", False)],
            history_skips=False,
            history_page=1000,
            older_trades_request=lambda *_: None,
            later_trades_request=lambda *_: None,
            snapshot_request=lambda *_: request,
        )
        self.feed = SimpleNamespace(
            spec=SimpleNamespace(native_symbol="X", symbol="X-USD"),
            sizes=None,
            trades=SimpleNamespace(
                missing=None, last_id=3, last_time=0, wants=lambda first, last: True
            ),
            oldest_trade=0,
            book=SimpleNamespace(in_step=False, epoch=5, sequence=6, venue_sequence=7),
            lanes=SimpleNamespace(names=["c"]),
            synced=asyncio.Event(),
            expects_snapshot=True,
            connection_id="c",
            next_attempt=lambda now: 0,
            on_past_trades=lambda first, last, trades, now: self.pages.append(trades),
            on_history_end=lambda first, last, detail, now, told: self.ends.append(detail),
        )
        self.requests: Any = FeedRequests(
            "venue",
            adapter,  # type: ignore[arg-type]
            ExchangeSettings(
                symbols=("*",), backoff_seconds=0.01, acknowledge_seconds=0.05, lag_seconds=0.01
            ),
            SimpleNamespace(get=self._get),  # type: ignore[arg-type]
            Ledger("test", self._publish, counter),
            self._spawn,
            self._renew,
        )

    async def _get(self, *_: object, **__: object) -> tuple[bytes, int]:
        if self.failures:
            raise self.failures.pop(0)
        return b"", 1

    def _publish(self, subject: str, payload: bytes, message_id: str) -> None:
        self.events.append(integrity.IntegrityEvent.FromString(payload))

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        self.tasks.append(asyncio.get_running_loop().create_task(work))
        return self.tasks[-1]

    def _renew(self, feed: object) -> bool:
        self.renewals += 1
        return True

    def told(self) -> list[tuple[int, int, str]]:
        return [(event.kind, event.event_kind, event.symbol) for event in self.events]

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


_TOLD = (
    integrity.INTEGRITY_KIND_RATE_LIMITED,
    common_pb2.EVENT_KIND_TRADE,
    "X-USD",
)


async def test_a_history_refused_for_its_rate_is_told_and_asked_for_again() -> None:
    bench = Bench(_LIMITED)
    bench.requests.trades.fetch(bench.feed, 4, 7)
    await until(lambda: bench.ends, "the history came to its end")
    assert bench.told() == [_TOLD]
    await bench.end()


@pytest.mark.parametrize(("skips", "skipped"), [(True, [(6, 2)]), (False, [])])
async def test_what_a_history_leaves_out_between_its_trades_was_no_trade(
    skips: bool, skipped: list[tuple[int, int]]
) -> None:
    bench = Bench()
    adapter = bench.requests._adapter
    adapter.history_skips = skips
    adapter.decode_trades = lambda *_: [
        TradePrint("X", number, 1, "1", "1", False) for number in (4, 7)
    ]
    bench.requests.trades.fetch(bench.feed, 4, 7)
    await until(lambda: bench.ends, "the history came to its end")
    (told,) = bench.pages
    runs = [each for each in told if isinstance(each, SkippedTrade)]
    assert [(each.trade_id, each.count) for each in runs] == skipped
    await bench.end()


async def test_a_failure_of_another_sort_is_no_rate_limit() -> None:
    bench = Bench(RestError("HTTP 503"))
    bench.requests.trades.fetch(bench.feed, 4, 7)
    await until(lambda: bench.ends, "the history came to its end")
    assert bench.told() == []
    await bench.end()


async def test_a_look_for_trades_refused_for_its_rate_is_told() -> None:
    bench = Bench(_LIMITED)
    bench.requests.look_for_trades(bench.feed, lambda: pytest.fail("nothing is known"))
    await asyncio.gather(*bench.tasks)
    assert bench.told() == [_TOLD]


async def test_a_look_at_a_book_refused_for_its_rate_is_told() -> None:
    bench = Bench(_LIMITED)
    outcomes: list[bool | None] = []
    bench.requests.probe(bench.feed, outcomes.append)
    await asyncio.gather(*bench.tasks)
    assert outcomes == [None]
    assert bench.told() == [(_TOLD[0], common_pb2.EVENT_KIND_ORDER_BOOK, "X-USD")]


async def test_a_book_subscribed_to_without_a_snapshot_is_told_once_and_subscribed_to_anew() -> (
    None
):
    bench = Bench()
    bench.requests.snapshot(bench.feed, 0)
    await until(lambda: bench.renewals >= 3, "it was subscribed to anew three times")
    silent = (integrity.INTEGRITY_KIND_SILENT, common_pb2.EVENT_KIND_ORDER_BOOK, "X-USD")
    assert bench.told() == [silent]
    event = bench.events[0]
    assert (event.epoch, event.sequence, event.connection_id) == (5, 6, "c")
    await bench.end()


async def test_a_book_whose_connection_has_ended_is_not_called_silent() -> None:
    bench = Bench()
    bench.requests.snapshot(bench.feed, 0)
    await asyncio.sleep(0)
    bench.feed.lanes.names.clear()
    await asyncio.gather(*bench.tasks)
    assert bench.told() == []
