"""A recording gives the same events again, byte for byte, whatever went wrong while it was made."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.cli.events import print_events
from services.collector.leases import LeaseChange, LeaseManager, LeaseSettings
from services.collector.replay import ReplayedEvent, replay
from services.collector.service import CollectorService
from services.collector.settings import CollectorSettings
from services.shared.errors import InvalidArgument
from services.simulator.server import SimulatedVenue
from services.simulator.venues import VENUES, generated_market
from tests.integration.collector_fixtures import make_streams, mesh_settings
from tests.integration.nats_tools import nats_server, until

_WS_PATHS = {"binance": "/stream", "binance_coinm": "/stream", "deribit": "/ws/api/v2"}
_FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "drop", "count": 3},
    {"kind": "duplicate", "count": 3},
    {"kind": "corrupt", "count": 2},
    {"kind": "cut", "abort": True},
    {"kind": "server_shutdown", "seconds": 3},
)


@contextlib.asynccontextmanager
async def recording(
    directory: Path, exchange: str, **more: Any
) -> AsyncIterator[tuple[CollectorService, SimulatedVenue, list[ReplayedEvent]]]:
    """Run a collector that records, and note what it publishes."""
    protocol = VENUES[exchange]()
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(nats_server(directory / "nats"))
        await make_streams(server.url)
        venue = await stack.enter_async_context(
            SimulatedVenue(
                generated_market(protocol),
                settings=protocol.settings_type.model_validate({"connects_per_five_minutes": 9999}),
                protocol=protocol,
            )
        )
        service = CollectorService(
            mesh_settings(directory, server.url),
            CollectorSettings.model_validate(
                {
                    "collector_id": "test",
                    "exchanges": {
                        exchange: {
                            "rest_url": venue.rest_url,
                            "ws_url": venue.ws_url + _WS_PATHS.get(exchange, ""),
                            "symbols": ["*"],
                            "backoff_seconds": 0.05,
                            "backoff_limit_seconds": 0.3,
                        }
                    },
                    "books": {"snapshot_every_updates": 40, "snapshot_every_seconds": 1},
                    "recording": {"directory": str(directory / "recording")},
                    **more,
                }
            ),
        )
        published: list[ReplayedEvent] = []
        publish = service.publisher.publish

        def noted(
            subject: str, payload: bytes, message_id: str, *, droppable_key: str | None = None
        ) -> bool:
            published.append(ReplayedEvent(subject, message_id, payload))
            return publish(subject, payload, message_id, droppable_key=droppable_key)

        service.publisher.publish = noted  # type: ignore[method-assign]
        service._ledger._publish = noted
        async with service.running():
            yield service, venue, published
        assert service.failure is None


@pytest.mark.parametrize("exchange", ["binance", "binance_usdm", "binance_coinm", "okx", "deribit"])
async def test_a_recording_gives_the_same_events_again(tmp_path: Path, exchange: str) -> None:
    async with recording(tmp_path, exchange) as (service, venue, published):
        collected = service.venues[0]

        def in_step() -> bool:
            return collected.ready and all(
                feed.book.in_step and feed.book.sequence > 5 for feed in collected.feeds.values()
            )

        await until(in_step, "every book is in step")
        for options in _FAULTS:
            fault = venue.fault(**options)
            await until(lambda f=fault: f.hits > 0, f"the fault {options['kind']} happens")
            await until(in_step, f"every book is in step after {options['kind']}")
        feed = next(iter(collected.feeds.values()))
        collected.rebuild(feed, "a rebuild was asked for", feed.book.receive_time)
        await until(in_step, "the book is rebuilt")
        count = len(published)
        await until(lambda: len(published) > count + 200, "more is told")
    replays(tmp_path, published)
    assert print_events([tmp_path / "recording"], ["trade"]) == sum(
        event.subject.startswith("market.trade.") for event in published
    )
    kinds = {event.subject.split(".")[1] for event in published}
    assert {"order_book_update", "trade", "best_bid_offer", "integrity", "ticker"} <= kinds


async def test_a_recording_of_one_of_several_collectors_gives_its_own_events_again(
    tmp_path: Path,
) -> None:
    """What another one collects at the time is not told by the replay either."""
    leases = {"enabled": True, "slots": 16, "lease_seconds": 2.0, "renew_seconds": 0.2}
    async with recording(tmp_path, "okx", leases=leases) as (service, venue, published):
        collected = service.venues[0]
        everything = len(venue.market.symbols)
        await until(
            lambda: (
                len(collected.feeds) == everything
                and all(feed.book.in_step for feed in collected.feeds.values())
            ),
            "it has everything",
        )
        released: list[LeaseChange] = []
        other = LeaseManager(
            service.mesh.nats.url,
            "other",
            {"okx": 16},
            LeaseSettings.model_validate(leases),
            released.append,
            lambda suspended: None,
        )
        running = asyncio.create_task(other.run())
        try:
            await until(lambda: 0 < len(collected.feeds) < everything, "some are handed over")
            count = len(published)
            await until(lambda: len(published) > count + 100, "more is told")
        finally:
            await other.stop()
            await running
        await until(lambda: len(collected.feeds) == everything, "it has everything again")
        await until(
            lambda: all(feed.book.in_step for feed in collected.feeds.values()), "all in step"
        )
    replays(tmp_path, published)
    assert any(event.subject.startswith("market.index_price.") for event in published)


def replays(directory: Path, published: list[ReplayedEvent]) -> None:
    """See that the recording gives just what was published."""
    again = list(replay(sorted((directory / "recording").iterdir())))
    for index, (live, replayed) in enumerate(zip(published, again, strict=False)):
        assert replayed == live, f"event {index} of {len(published)}: {live.subject}"
    assert len(again) == len(published) > 300


def test_a_capture_of_another_origin_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"kind":"ws","data":"{}","url":"wss://x","conn":"1","ts":1.0}\n')
    with pytest.raises(InvalidArgument, match="use verify for captures of another origin"):
        list(replay([path]))
