"""The collector between a venue that fails in every way and a broker that dies.

Whatever happens, the book in JetStream is the venue's true book or says that it is not, trades are
stored exactly once, the ledger tells what was missed, and the venue is not stormed with requests.
"""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from marketprism.collector.v1 import collector_service_pb2 as collector_pb
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2, instrument_pb2

from services.broker.server import NatsServer
from services.broker.settings import ServerSettings
from services.collector.book import book_digest
from services.collector.service import CollectorService
from services.collector.verify import verify_capture
from services.shared.errors import from_rpc_error
from services.shared.ports import free_port
from services.simulator.server import SimulatedVenue
from tests.integration.collector_fixtures import (
    SYMBOLS,
    Bench,
    Followers,
    bench,
    collector_settings,
    contains_in_order,
    count_requests,
    make_market,
    make_streams,
    mesh_settings,
    stub,
    tasks,
)
from tests.integration.nats_tools import Relay, nats_server, read_all, until

DEPTH = "@depth@100ms"


# In peace.


async def test_what_jetstream_holds_is_the_venues_book_and_trades(tmp_path: Path) -> None:
    begun = time.monotonic()
    async with bench(tmp_path) as mesh:
        assert time.monotonic() - begun < 10, "the first book in step"
        seen = mesh.seen
        await until(lambda: all(b.updates > 60 for b in seen.books.values()), "updates flow")
        await seen.settle()
        await seen.settle_trades()
        assert sum(book.compared for book in seen.books.values()) > 15
        for book in seen.books.values():
            assert len(book.epochs) == 1, "one epoch while nothing goes wrong"
            assert contains_in_order(book.reasons(), ["STARTUP", "SYNCHRONISED"])
        assert seen.kinds()[0] == "COLLECTOR_STARTED"
        assert set(seen.kinds()[1:]) == {"RESYNC_BEGUN", "RESYNC_FINISHED"}
        assert mesh.requests() == len(SYMBOLS), "one snapshot for each book"
        feed = mesh.feed()
        await until(lambda: feed.top_checks > 0, "the book is held against the venue's own top")
        assert feed.top_mismatches == 0
        instruments = await read_all(mesh.nats_url, "MARKET_INSTRUMENT")
        told = instrument_pb2.Instrument.FromString(instruments[0].payload)
        assert (told.exchange, told.status) == ("binance", instrument_pb2.INSTRUMENT_STATUS_TRADING)
        assert {message.subject for message in instruments} == {
            f"market.instrument.binance.{symbol}" for symbol in SYMBOLS.values()
        }


# Faults of the venue's stream.


@pytest.mark.parametrize(
    ("options", "reasons", "kinds"),
    [
        ({"kind": "drop"}, ["VENUE_GAP"], ["GAP", "RESYNC_BEGUN"]),
        ({"kind": "reorder"}, ["VENUE_GAP"], ["GAP", "RESYNC_BEGUN"]),
        ({"kind": "corrupt", "mode": "json"}, ["MALFORMED_FRAME"], ["MALFORMED_FRAME"]),
        ({"kind": "corrupt", "mode": "truncate"}, ["MALFORMED_FRAME"], ["MALFORMED_FRAME"]),
        ({"kind": "corrupt", "mode": "types"}, ["MALFORMED_FRAME"], ["MALFORMED_FRAME"]),
        ({"kind": "corrupt", "mode": "utf8"}, ["MALFORMED_FRAME"], ["MALFORMED_FRAME"]),
        ({"kind": "corrupt", "mode": "binary"}, ["VENUE_GAP"], ["MALFORMED_FRAME", "GAP"]),
        ({"kind": "corrupt", "mode": "empty"}, ["VENUE_GAP"], ["MALFORMED_FRAME", "GAP"]),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
async def test_a_frame_of_the_book_that_fails_is_told_and_mended(
    tmp_path: Path, options: dict[str, str], reasons: list[str], kinds: list[str]
) -> None:
    async with bench(tmp_path) as mesh:
        seen = mesh.seen
        await mesh.fault(symbol="BTCUSDT", stream=f"btcusdt{DEPTH}", **options)
        book = seen.books["BTC-USDT"]
        wanted = [*reasons, "SYNCHRONISED"]
        await until(lambda: contains_in_order(book.reasons()[2:], wanted), f"told: {wanted}")
        await seen.settle()
        await seen.settle_trades()
        kinds = [*kinds, "RESYNC_FINISHED"]
        await until(lambda: contains_in_order(seen.kinds(), kinds), f"the ledger tells {kinds}")
        assert len(book.epochs) == 2, "rebuilt once"
        assert len(seen.books["ETH-USDT"].epochs) == 1, "the other book is left alone"
        assert mesh.requests() <= len(SYMBOLS) + 3


async def test_a_repeated_frame_changes_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as mesh:
        for kind in (DEPTH, "@trade", "@bookTicker"):
            await mesh.fault("duplicate", stream=f"btcusdt{kind}")
        feed = mesh.feed()
        await until(
            lambda: feed.book.duplicates and feed.trades.duplicates, "the repetitions are noticed"
        )
        await mesh.seen.settle()
        await mesh.seen.settle_trades()
        assert all(len(book.epochs) == 1 for book in mesh.seen.books.values())
        assert mesh.requests() == len(SYMBOLS)


@pytest.mark.parametrize("kind", ["drop", "reorder", "corrupt", "duplicate"])
async def test_trades_that_fail_on_the_way_are_fetched_and_stored_once(
    tmp_path: Path, kind: str
) -> None:
    async with bench(tmp_path, market={"trade_rate": 30}) as mesh:
        seen = mesh.seen
        await seen.settle_trades()
        await mesh.fault(kind, stream="btcusdt@trade", count=2, skip=1)
        if kind in ("drop", "corrupt"):
            await until(lambda: seen.of_kind("BACKFILLED"), "the ledger tells what was fetched")
            told = seen.of_kind("BACKFILLED")[0]
            assert (told.symbol, told.event_kind) == ("BTC-USDT", common_pb2.EVENT_KIND_TRADE)
        await seen.settle_trades()
        await seen.settle()
        assert all(len(book.epochs) == 1 for book in seen.books.values()), "books are left alone"
        if kind in ("drop", "corrupt"):
            assert any(trade.backfilled for trade in seen.trades["BTC-USDT"])
        assert not seen.of_kind("GAP")


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"kind": "cut"}, integrity.INTEGRITY_CAUSE_VENUE_CLOSED),
        ({"kind": "cut", "abort": True}, integrity.INTEGRITY_CAUSE_NETWORK),
    ],
    ids=["close", "abort"],
)
async def test_a_connection_that_ends_is_opened_again(
    tmp_path: Path, options: dict[str, Any], cause: int
) -> None:
    async with bench(tmp_path) as mesh:
        seen = mesh.seen
        await mesh.fault(**options)
        for book in seen.books.values():
            await until(
                lambda b=book: contains_in_order(
                    b.reasons(), ["VENUE_DISCONNECTED", "SYNCHRONISED"]
                ),
                "the cut and its end are told in-band",
            )
        await seen.settle()
        await seen.settle_trades()
        await until(lambda: seen.of_kind("CONNECTED"), "the ledger tells the new connection")
        gone, back = seen.of_kind("DISCONNECTED")[0], seen.of_kind("CONNECTED")[0]
        assert gone.cause == cause
        assert back.previous_event_id == gone.event_id
        assert back.begin_time.ToNanoseconds() == gone.begin_time.ToNanoseconds() > 0
        assert all(len(book.epochs) == 2 for book in seen.books.values())
        assert mesh.requests() == 2 * len(SYMBOLS)


async def test_a_connection_that_the_venue_will_end_is_replaced_without_a_gap(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as mesh:
        seen = mesh.seen
        await mesh.fault("server_shutdown", seconds=5)
        await until(lambda: seen.of_kind("ROLLED_OVER"), "the ledger tells the new connection")
        await until(lambda: mesh.venue.stats()["connections"] == 1, "the old connection is let go")
        await seen.settle()
        await seen.settle_trades()
        assert all(len(book.epochs) == 1 for book in seen.books.values()), "the epoch goes on"
        assert not seen.of_kind("DISCONNECTED")
        assert not seen.of_kind("GAP")
        assert mesh.requests() == len(SYMBOLS), "no book was fetched again"


async def test_a_connection_is_replaced_before_it_is_too_old(tmp_path: Path) -> None:
    async with bench(tmp_path, exchange={"rollover_seconds": 1.5}) as mesh:
        seen = mesh.seen
        await until(lambda: len(seen.of_kind("ROLLED_OVER")) >= 3, "it is renewed again and again")
        await seen.settle()
        await seen.settle_trades()
        assert all(len(book.epochs) == 1 for book in seen.books.values()), "the epoch goes on"
        assert not seen.of_kind("DISCONNECTED")
        assert mesh.requests() == len(SYMBOLS)


async def test_with_two_connections_the_loss_of_one_loses_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path, exchange={"redundancy": 2}) as mesh:
        seen = mesh.seen
        venue = mesh.service.venues[0]
        await until(lambda: all(c.settled for c in venue.connections), "both are subscribed")
        assert len(venue.connections) == 2
        await until(
            lambda: all(feed.lanes.duplicates > 3 for feed in venue.feeds.values()),
            "both tell the same",
        )
        for name in list(mesh.venue.hub.connections):
            opened = mesh.venue.counters["connections opened"]
            await mesh.fault("cut", abort=True, connection=name)
            await until(
                lambda n=opened: (
                    mesh.venue.counters["connections opened"] > n
                    and all(c.settled for c in venue.connections)
                    and all(venue.is_aligned(c) for c in venue.connections)
                ),
                "it is opened again",
            )
        await seen.settle()
        await seen.settle_trades()
        assert all(len(book.epochs) == 1 for book in seen.books.values()), "the epoch goes on"
        assert len(seen.of_kind("DISCONNECTED")) == 2
        assert not seen.of_kind("GAP")
        assert mesh.requests() == len(SYMBOLS)


async def test_refused_connections_are_tried_again_with_patience(tmp_path: Path) -> None:
    async with bench(tmp_path) as mesh:
        refusal = mesh.venue.fault("refuse_connections", count=4)
        await mesh.fault("cut", abort=True)
        await until(lambda: refusal.exhausted, "every refusal was tried")
        await mesh.seen.settle()
        await mesh.seen.settle_trades()
        assert mesh.venue.counters["connections refused"] == 4
        assert mesh.venue.counters["connections opened"] == 2
        assert mesh.requests() == 2 * len(SYMBOLS), "nothing is asked for while nothing flows"


async def test_a_subscription_that_stays_silent_is_noticed_and_opened_anew(tmp_path: Path) -> None:
    async with bench(tmp_path, exchange={"silence_seconds": 0.4}) as mesh:
        seen = mesh.seen
        silence = mesh.venue.fault("silence", count=None)
        await mesh.fault("cut")
        await until(lambda: mesh.venue.counters["connections opened"] >= 3, "it is opened anew")
        mesh.venue.faults.remove(silence.id)
        await seen.settle()
        await seen.settle_trades()
        assert "FEED_SILENT" in seen.reasons()
        assert seen.of_kind("SILENT")
        assert mesh.venue.counters["connections opened"] <= 6


async def test_one_silent_book_among_tops_that_flow_is_noticed(tmp_path: Path) -> None:
    async with bench(tmp_path, exchange={"lag_seconds": 0.5}) as mesh:
        seen = mesh.seen
        silence = mesh.venue.fault("silence", stream=f"btcusdt{DEPTH}", count=1)
        await mesh.fault("cut")
        book = seen.books["BTC-USDT"]
        await until(lambda: "FEED_SILENT" in book.reasons(), "the silent book is STALE")
        assert silence.exhausted
        await seen.settle()
        await seen.settle_trades()
        assert mesh.venue.counters["connections opened"] == 2, "only the stream is renewed"
        assert "FEED_SILENT" not in seen.books["ETH-USDT"].reasons()


# Faults of the venue's REST interface, each met while a connection is opened anew.


async def test_stale_snapshots_are_refused_until_one_reaches_the_stream(tmp_path: Path) -> None:
    async with bench(tmp_path) as mesh:
        stale = mesh.venue.fault("stale_snapshot", count=4)
        await mesh.fault("cut")
        await until(lambda: stale.exhausted, "every stale answer was given")
        await mesh.seen.settle()
        assert "SNAPSHOT_STALE" in mesh.seen.reasons()
        assert mesh.requests() <= 2 * len(SYMBOLS) + 6


@pytest.mark.parametrize("kind", ["rest_429", "rest_418"])
async def test_a_refusal_for_the_rate_is_obeyed_to_the_second(tmp_path: Path, kind: str) -> None:
    async with bench(tmp_path) as mesh:
        seen = mesh.seen
        limit = mesh.venue.fault(kind, retry_after=2, count=1, path="/api/v3/depth")
        before = len(mesh.rest_times)
        await mesh.fault("cut")
        await until(lambda: limit.exhausted, "the venue refused")
        refused = time.monotonic()
        await seen.settle()
        asked = [moment - refused for moment, _ in mesh.rest_times[before:]]
        # A snapshot and the missed trades of each may have been on their way already.
        assert sum(after < 0.5 for after in asked) <= 2 * len(SYMBOLS), "at most what was asked"
        assert min(after for after in asked if after >= 0.5) >= 1.9, (
            "no request before Retry-After is over"
        )
        assert "RATE_LIMITED" in seen.reasons()
        await until(lambda: seen.of_kind("RATE_LIMITED"), "the ledger tells it")
        await seen.settle_trades()


async def test_the_venues_own_limit_is_never_reached(tmp_path: Path) -> None:
    # A feed full of holes: without a budget and patience this is hundreds of snapshots.
    async with bench(
        tmp_path,
        market={"depth_rate": 60},
        venue={"weight_limit": 1500},
        exchange={"weight_per_minute": 1000},
    ) as mesh:
        holes = mesh.venue.fault("drop", stream=DEPTH, probability=0.5, count=None)
        await until(lambda: holes.hits > 150, "frames are dropped")
        mesh.venue.faults.remove(holes.id)
        assert mesh.venue.weights.refused == 0
        assert mesh.requests() <= 20
        assert mesh.service.failure is None


@pytest.mark.parametrize("status", [500, 503, 502])
async def test_an_answer_that_is_an_error_is_asked_for_again(tmp_path: Path, status: int) -> None:
    async with bench(tmp_path) as mesh:
        errors = mesh.venue.fault("rest_5xx", status=status, count=5, path="/api/v3/depth")
        await mesh.fault("cut")
        await until(lambda: errors.exhausted, "every error was given")
        await mesh.seen.settle()
        await mesh.seen.settle_trades()
        assert "SNAPSHOT_FAILED" in mesh.seen.reasons()
        assert mesh.requests() <= 2 * len(SYMBOLS) + 5


async def test_a_slow_answer_finds_its_diffs_buffered(tmp_path: Path) -> None:
    async with bench(tmp_path) as mesh:
        slow = mesh.venue.fault("rest_slow", seconds=1.0, count=2, path="/api/v3/depth")
        await mesh.fault("cut")
        await until(lambda: slow.exhausted, "the answers are slow")
        await mesh.seen.settle()
        assert "SNAPSHOT_STALE" not in mesh.seen.reasons()
        assert mesh.requests() == 2 * len(SYMBOLS)


async def test_no_answer_in_time_is_asked_for_again(tmp_path: Path) -> None:
    async with bench(tmp_path, exchange={"rest_seconds": 0.3}) as mesh:
        slow = mesh.venue.fault("rest_slow", seconds=2.0, count=2, path="/api/v3/depth")
        await mesh.fault("cut")
        await until(lambda: slow.exhausted, "no answer comes")
        await mesh.seen.settle()
        assert "SNAPSHOT_FAILED" in mesh.seen.reasons()


async def test_a_cut_while_the_snapshot_is_on_its_way_starts_over(tmp_path: Path) -> None:
    async with bench(tmp_path) as mesh:
        slow = mesh.venue.fault("rest_slow", seconds=0.7, count=2, path="/api/v3/depth")
        await mesh.fault("cut")
        await until(lambda: slow.exhausted, "the answers are on their way")
        await mesh.fault("cut", abort=True)
        await mesh.seen.settle()
        await mesh.seen.settle_trades()


async def test_missed_trades_are_fetched_though_rest_fails_for_a_while(tmp_path: Path) -> None:
    async with bench(tmp_path, market={"trade_rate": 20}) as mesh:
        await mesh.seen.settle_trades()
        errors = mesh.venue.fault("rest_5xx", count=3, path="/api/v3/trades")
        await mesh.fault("cut", abort=True)
        await until(lambda: errors.exhausted, "the history was asked for in vain")
        await mesh.seen.settle_trades()
        assert not mesh.seen.of_kind("GAP")


async def test_trades_that_history_no_longer_has_are_in_the_ledger(tmp_path: Path) -> None:
    async with bench(tmp_path, market={"trade_rate": 40, "trades_kept": 5}) as mesh:
        seen = mesh.seen
        await until(lambda: mesh.feed().trades.last_id, "a first trade came")
        await mesh.fault("drop", stream="btcusdt@trade", count=30)
        await until(lambda: seen.of_kind("GAP"), "the ledger tells what is missing for good")
        stored = seen.trades["BTC-USDT"]
        last = max(entry.last_missing_id for entry in seen.of_kind("GAP"))
        await until(lambda: int(stored[-1].trade_id) > last, "trades go on")
        have = {int(trade.trade_id) for trade in stored}
        missing = set(range(min(have), max(have) + 1)) - have
        told = {
            number
            for entry in seen.of_kind("GAP")
            for number in range(entry.first_missing_id, entry.last_missing_id + 1)
        }
        assert missing == told
        assert sum(entry.count for entry in seen.of_kind("GAP")) == len(missing) > 0


# The broker.


def _kill(server: NatsServer) -> None:
    assert server.child.pid is not None
    os.kill(server.child.pid, signal.SIGKILL)


async def test_killing_the_broker_under_load_loses_nothing(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "nats") as server:
        await make_streams(server.url)
        async with bench(
            tmp_path, nats_url=server.url, market={"depth_rate": 60, "trade_rate": 40}
        ) as mesh:
            for restarts in (1, 2):
                _kill(server)
                await until(lambda n=restarts: server.restarts >= n, "it is started again")
                await mesh.seen.settle()
                await mesh.seen.settle_trades()
            assert all(len(book.epochs) == 1 for book in mesh.seen.books.values()), (
                "the buffer lasted: nothing was missed, nothing begins anew"
            )
            assert not mesh.seen.of_kind("DROPPED")


async def test_a_broker_away_for_longer_than_the_buffer_lasts(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "nats") as server, Relay(server.port).running() as relay:
        await make_streams(server.url)
        async with bench(
            tmp_path,
            nats_url=relay.url,
            market={"depth_rate": 150, "trade_rate": 20},
            buffer={"messages": 1000, "megabytes": 8},
        ) as mesh:
            seen = mesh.seen
            epochs = {symbol: book.epoch for symbol, book in seen.books.items()}
            relay.refuse()
            _kill(server)
            away = time.time_ns()
            feeds = [mesh.feed(symbol) for symbol in SYMBOLS.values()]
            await until(lambda: all(feed.book.muted for feed in feeds), "the buffer is full")
            await until(lambda: all(feed.book.unpublished > 50 for feed in feeds), "time passes")
            status = mesh.service.publisher.status
            assert status.buffered <= 1000
            assert status.buffered_bytes <= 8 * 1024 * 1024
            assert mesh.service.health()[1]["dependencies"]["broker"]["status"] == "degraded"
            relay.let_through()
            await seen.settle()
            for symbol, book in seen.books.items():
                assert book.epoch > epochs[symbol], "what was dropped cannot be continued"
                assert "BROKER_BACKPRESSURE" in book.reasons(), "and who follows it is told"
            await seen.settle_trades()
            await until(lambda: len(seen.of_kind("DROPPED")) >= 2, "the ledger tells the drop")
            drops = [
                entry for entry in seen.of_kind("DROPPED")
                if entry.event_kind == common_pb2.EVENT_KIND_ORDER_BOOK
            ]  # fmt: skip
            assert {entry.symbol for entry in drops} == set(SYMBOLS.values())
            assert all(entry.count > 50 for entry in drops)
            assert all(entry.begin_time.ToNanoseconds() <= away + 500_000_000 for entry in drops)
            assert {entry.cause for entry in drops} == {
                integrity.INTEGRITY_CAUSE_BROKER_BACKPRESSURE
            }


# Starts and stops.


async def test_a_collector_started_again_fetches_what_was_traded_meanwhile(tmp_path: Path) -> None:
    async with bench(tmp_path, market={"trade_rate": 40}) as mesh:
        seen = mesh.seen
        await seen.settle_trades()
        epochs = {symbol: book.epoch for symbol, book in seen.books.items()}
        await mesh.service.stop()
        await until(lambda: "COLLECTOR_STOPPED" in seen.kinds(), "the stop is in the ledger")
        assert "COLLECTOR_SILENT" in seen.reasons(), "and in-band"
        last = {native: mesh.market.recent_trades(native, 1)[-1].trade_id for native in SYMBOLS}
        await until(
            lambda: all(
                mesh.market.recent_trades(native, 1)[-1].trade_id > last[native] + 10
                for native in SYMBOLS
            ),
            "trades happen while nobody listens",
        )
        again = CollectorService(mesh.service.mesh, mesh.service.settings)
        async with again.running():
            await seen.settle()
            await seen.settle_trades()
            for symbol, book in seen.books.items():
                assert book.epoch > epochs[symbol]
                assert sum(trade.backfilled for trade in seen.trades[symbol]) >= 10
            assert sum(entry.count for entry in seen.of_kind("BACKFILLED")) >= 20


async def test_a_stop_takes_little_time_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "nats") as server:
        await make_streams(server.url)
        market = make_market()
        async with SimulatedVenue(market) as venue:
            service = CollectorService(
                mesh_settings(tmp_path, server.url),
                collector_settings(venue.rest_url, venue.ws_url),
            )
            before = tasks()
            await service.start()
            async with Followers(server.url, market).running() as seen:
                await seen.settle()
            begun = time.monotonic()
            await service.stop()
            assert time.monotonic() - begun < 3
            assert service.failure is None
            await until(lambda: not venue.hub.connections, "the venue's side is closed too")
            left = {task.get_name() for task in tasks() - before if "handle" not in repr(task)}
            assert not left
            assert service.publisher.status.in_flight == service.publisher.status.buffered == 0


@pytest.mark.parametrize("state", ["nothing", "broker only", "venue only"])
async def test_a_stop_before_anything_could_be_reached(tmp_path: Path, state: str) -> None:
    async with nats_server(tmp_path / "nats") as server, SimulatedVenue(make_market()) as venue:
        await make_streams(server.url)
        closed = f"127.0.0.1:{free_port()}"
        service = CollectorService(
            mesh_settings(tmp_path, server.url if state == "broker only" else f"nats://{closed}"),
            collector_settings(venue.rest_url, venue.ws_url)
            if state == "venue only"
            else collector_settings(f"http://{closed}", f"ws://{closed}"),
        )
        await service.start()
        status, body = service.health()
        assert (status, body["status"]) == (200, "degraded")
        begun = time.monotonic()
        await service.stop()
        assert time.monotonic() - begun < 5
        assert service.failure is None


async def test_a_broker_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    market = make_market()
    async with SimulatedVenue(market) as venue:
        service = CollectorService(
            mesh_settings(tmp_path, f"nats://127.0.0.1:{port}"),
            collector_settings(venue.rest_url, venue.ws_url),
        )
        async with service.running():
            await until(lambda: service.venues[0].detail == "waiting for the broker", "it waits", 5)
            assert service.health()[1]["dependencies"]["broker"]["status"] == "degraded"
            later = NatsServer(tmp_path / "nats", ServerSettings(), port=port)
            async with later.running():
                await make_streams(later.url)
                async with Followers(later.url, market).running() as seen:
                    await seen.settle()
                assert service.failure is None


async def test_a_venue_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "nats") as server:
        await make_streams(server.url)
        port = free_port()
        service = CollectorService(
            mesh_settings(tmp_path, server.url),
            collector_settings(f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}"),
        )
        async with service.running():
            venue_state = service.venues[0]
            await until(lambda: "list of instruments: " in venue_state.detail, "it is told")
            assert service.health()[1]["dependencies"]["binance"]["status"] == "degraded"
            market = make_market()
            async with (
                SimulatedVenue(market, port=port) as venue,
                Followers(server.url, market).running() as seen,
            ):
                times = count_requests(venue)
                await seen.settle()
                assert len(times) <= 1 + len(SYMBOLS)
            assert service.failure is None


# What is asked of it.


async def test_its_state_is_told(tmp_path: Path) -> None:
    async with bench(tmp_path) as mesh, stub(mesh.service) as collector:
        await until(lambda: mesh.service.publisher.status.acknowledged, "something is stored")
        status = await collector.GetStatus(collector_pb.GetStatusRequest())
        (connection,) = status.connections
        assert connection.state == collector_pb.CONNECTION_STATE_CONNECTED
        assert (connection.connection_id, connection.exchange) == ("binance-1", "binance")
        assert connection.subscriptions == 5 * len(SYMBOLS)
        assert connection.frames > 0
        assert connection.malformed_frames == connection.reconnects == 0
        (budget,) = status.rest_budgets
        assert (budget.exchange, budget.requests) == ("binance", 1 + len(SYMBOLS))
        assert budget.used == 20 + 50 * len(SYMBOLS)
        assert status.publisher.connected
        assert status.publisher.acknowledged > 0
        (states,) = status.book_states
        assert states.count == len(SYMBOLS)

        page = await collector.ListInstrumentStates(
            collector_pb.ListInstrumentStatesRequest(page_size=1)
        )
        (first,) = page.instruments
        assert page.next_page_token
        page = await collector.ListInstrumentStates(
            collector_pb.ListInstrumentStatesRequest(page_size=1, page_token=page.next_page_token)
        )
        (second,) = page.instruments
        assert page.next_page_token == ""
        assert [first.symbol, second.symbol] == sorted(SYMBOLS.values())
        assert first.native_symbol == "BTCUSDT"
        assert first.frames >= first.applied > 0
        assert first.bid_levels > 10
        everything = await collector.ListInstrumentStates(
            collector_pb.ListInstrumentStatesRequest(exchange="binance")
        )
        assert len(everything.instruments) == len(SYMBOLS)
        nothing = await collector.ListInstrumentStates(
            collector_pb.ListInstrumentStatesRequest(exchange="okx")
        )
        assert len(nothing.instruments) == 0

        status_code, body = mesh.service.health()
        assert (status_code, body["status"]) == (200, "healthy")
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{mesh.service.http_port}/metrics") as answer,
        ):
            text = await answer.text()
        for line in (
            'marketprism_book_applied_total{exchange="binance",symbol="BTC-USDT"}',
            'marketprism_books{exchange="binance",state="synced"} 2.0',
            'marketprism_venue_rest_requests_total{exchange="binance",outcome="made"} 3.0',
        ):
            assert line in text


async def test_a_rebuild_can_be_asked_for(tmp_path: Path) -> None:
    async with bench(tmp_path) as mesh, stub(mesh.service) as collector:
        seen = mesh.seen
        epoch = seen.books["ETH-USDT"].epoch
        answer = await collector.Resync(
            collector_pb.ResyncRequest(exchange="binance", symbol="ETH-USDT")
        )
        assert answer.status.symbol == "ETH-USDT"
        await until(lambda: seen.books["ETH-USDT"].epoch > epoch, "a new epoch begins")
        await seen.settle()
        assert "REQUESTED" in seen.books["ETH-USDT"].reasons()
        assert "REQUESTED" not in seen.books["BTC-USDT"].reasons()
        causes = {entry.cause for entry in seen.of_kind("RESYNC_BEGUN")}
        assert integrity.INTEGRITY_CAUSE_REQUESTED in causes


async def test_a_rebuild_asked_for_while_the_venue_is_away_does_not_hang(tmp_path: Path) -> None:
    async with bench(tmp_path) as mesh, stub(mesh.service) as collector:
        refusal = mesh.venue.fault("refuse_connections", count=None)
        await mesh.fault("cut", abort=True)
        await until(lambda: refusal.hits > 0, "the venue is away")
        await collector.Resync(collector_pb.ResyncRequest(exchange="binance", symbol="BTC-USDT"))
        mesh.venue.faults.remove(refusal.id)
        await mesh.seen.settle()


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason", "text"),
    [
        ("Resync", collector_pb.ResyncRequest(exchange="okx", symbol="BTC-USDT"),
         grpc.StatusCode.NOT_FOUND, "EXCHANGE_NOT_FOUND", "these are: binance"),
        ("Resync", collector_pb.ResyncRequest(exchange="binance", symbol="NO-SUCH"),
         grpc.StatusCode.NOT_FOUND, "INSTRUMENT_NOT_FOUND", "NO-SUCH"),
        ("Resync", collector_pb.ResyncRequest(exchange="binance"),
         grpc.StatusCode.INVALID_ARGUMENT, None, "symbol"),
        ("ListInstrumentStates", collector_pb.ListInstrumentStatesRequest(page_size=1001),
         grpc.StatusCode.INVALID_ARGUMENT, None, "page_size"),
        ("ListInstrumentStates", collector_pb.ListInstrumentStatesRequest(page_size=-1),
         grpc.StatusCode.INVALID_ARGUMENT, None, "page_size"),
        ("ListInstrumentStates", collector_pb.ListInstrumentStatesRequest(page_token="§"),
         grpc.StatusCode.INVALID_ARGUMENT, None, "page_token"),
        ("ListInstrumentStates", collector_pb.ListInstrumentStatesRequest(page_token="/w=="),
         grpc.StatusCode.INVALID_ARGUMENT, None, "page_token"),
    ],
)  # fmt: skip
async def test_bad_requests_are_refused_with_what_was_expected(
    quiet: Bench, method: str, request_: Any, code: grpc.StatusCode, reason: str | None, text: str
) -> None:
    async with stub(quiet.service) as collector:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(collector, method)(request_)
    assert caught.value.code() is code
    assert text in str(caught.value.details())
    error = from_rpc_error(caught.value)
    assert reason is None or error.reason == reason


@pytest.fixture
async def quiet(tmp_path: Path) -> Any:
    async with bench(tmp_path) as mesh:
        yield mesh


# Recording.


async def test_what_is_recorded_verifies(tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    async with bench(tmp_path, recording={"directory": folder}) as mesh:
        await until(lambda: mesh.feed().book.applied > 30, "diffs flow")
        await mesh.service.stop()
        (path,) = folder.iterdir()
        report = await asyncio.to_thread(verify_capture, path, "binance")
        assert report.problems == []
        assert {row["symbol"] for row in report.books} == set(SYMBOLS.values())
        assert report.trades > 0
        assert report.tops_different == 0
        for row in report.books:
            assert (row["state"], row["gaps"]) == ("SYNCED", 0)
            truth = mesh.market.book_at(row["native_symbol"], row["venue_sequence"])
            assert row["digest"] == book_digest(*truth.canonical())


async def test_a_recording_that_cannot_be_written_is_told_and_costs_nothing_else(
    tmp_path: Path,
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    async with bench(tmp_path, recording={"directory": blocked / "inside"}) as mesh:
        await until(
            lambda: mesh.service.health()[1]["dependencies"]["recording"]["status"] == "degraded",
            "health tells it",
        )
        await mesh.seen.settle()
        await mesh.seen.settle_trades()


async def test_many_instruments_share_connections(tmp_path: Path) -> None:
    async with bench(tmp_path, exchange={"topics_per_connection": 5}) as mesh:
        assert len(mesh.service.venues[0].connections) == 2
        await mesh.fault("cut", symbol="BTCUSDT")
        await until(lambda: len(mesh.seen.books["BTC-USDT"].epochs) == 2, "a new epoch begins")
        await mesh.seen.settle()
        assert len(mesh.seen.books["ETH-USDT"].epochs) == 1
        assert mesh.seen.of_kind("DISCONNECTED")[0].connection_id == "binance-1"
