"""Collectors that share instruments: one is killed, frozen, cut off, stopped, and books go on.

Real processes between a simulated venue and a real broker. What the followers rebuild from the
streams equals the venue's books all the time: an update of an older epoch behind a newer one, a
book that does not continue, or one that differs is a failure.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from services.broker.server import NatsServer
from services.collector.leases import LeaseSettings
from services.collector.leases_group import DIED, FREE, Group, decode_group, desired_owners, slot_of
from services.shared.errors import MarketPrismError
from services.shared.jetstream import last_message
from services.simulator.generated import GeneratedMarket
from services.simulator.server import SimulatedVenue, VenueSettings
from tests.integration.collector_fixtures import (
    SYMBOLS,
    Followers,
    collector_settings,
    make_market,
    make_streams,
)
from tests.integration.nats_tools import Relay, connected, nats_server, until

ROOT = Path(__file__).resolve().parents[2]
LEASE = 2.0
LEASES = LeaseSettings(enabled=True, lease_seconds=LEASE, renew_seconds=0.3, local_deaths=False)
TAKEOVER = LEASE + 2.0
"""Seconds in which somebody has every slot again."""


def _names() -> tuple[str, str]:
    """Give names of two collectors of which each gets one of the two instruments."""
    slots = [slot_of(symbol, LEASES.slots) for symbol in SYMBOLS.values()]
    for number in range(100):
        names = (f"left{number}", f"right{number}")
        owners = desired_owners("binance", LEASES.slots, frozenset(names))
        if [owners[slot] for slot in slots] == list(names):
            return names
    raise AssertionError("no such names")


LEFT, RIGHT = _names()


class Sharing:
    """Two collectors, the venue, the broker, and who follows."""

    def __init__(
        self,
        directory: Path,
        server: NatsServer,
        venue: SimulatedVenue,
        seen: Followers,
        exchange: str = "binance",
    ) -> None:
        self.exchange = exchange
        self.directory = directory
        self.server = server
        self.venue = venue
        self.seen = seen
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, name: str, nats_url: str | None = None) -> None:
        config = self.directory / name
        config.mkdir(exist_ok=True)
        mesh = {
            "data_dir": str(self.directory / "var"),
            "nats": {"url": nats_url or self.server.url},
            "services": {"collector": {"grpc_port": 0, "http_port": 0}},
        }
        collector = collector_settings(
            self.venue.rest_url,
            self.venue.ws_url,
            of=self.exchange,
            collector_id=name,
            leases=LEASES.model_dump(),
        ).model_dump(mode="json", exclude_unset=True)
        (config / "services.yaml").write_text(yaml.safe_dump(mesh))
        (config / "collector.yaml").write_text(yaml.safe_dump(collector))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MARKETPRISM_")}
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.collector",
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={
                    **environment,
                    "MARKETPRISM_CONFIG_DIR": str(config),
                    "PYTHONPATH": f"{ROOT}:{ROOT / 'gen/python'}",
                },
            )

    async def end(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        process = self.processes.pop(name)
        if process.returncode is None:
            process.send_signal(number)
        return await process.wait()

    async def record(self) -> Group | None:
        async with connected(self.server.url) as connection:
            message = await last_message(
                connection, f"KV_{LEASES.bucket}", f"$KV.{LEASES.bucket}.{LEASES.group}"
            )
        return decode_group(message.payload) if message is not None and message.payload else None

    async def held_by(self, *names: str, seconds: float = TAKEOVER) -> None:
        """Wait until these have all slots, each some."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            group = None
            with contextlib.suppress(MarketPrismError, TimeoutError):
                group = await self.record()
            owners = set(group.exchanges[self.exchange].owners) if group is not None else set()
            if owners == set(names):
                return
            assert asyncio.get_running_loop().time() < deadline, (
                f"within {seconds:g} s: expected {names} to have all slots, got {owners} "
                f"({FREE!r} is nobody, {DIED!r} the dead)"
            )
            await asyncio.sleep(0.05)

    def epochs(self) -> dict[str, int]:
        return {symbol: book.epoch for symbol, book in self.seen.books.items()}


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[Sharing]:
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(nats_server(tmp_path / "nats"))
        await make_streams(server.url)
        market: GeneratedMarket = make_market()
        venue = await stack.enter_async_context(
            SimulatedVenue(market, settings=VenueSettings(connects_per_five_minutes=10_000))
        )
        seen = await stack.enter_async_context(Followers(server.url, market).running())
        group = Sharing(tmp_path, server, venue, seen)
        try:
            await group.start(LEFT)
            await group.start(RIGHT)
            await group.held_by(LEFT, RIGHT, seconds=60)
            await seen.settle()
            yield group
            for book in seen.books.values():
                assert book.problems == []
        finally:
            for name in list(group.processes):
                await group.end(name)


def collectors_of(group: Sharing, kind: str) -> dict[str, str]:
    """Give who told an entry of this kind last, by symbol."""
    return {each.symbol: each.collector_id for each in group.seen.of_kind(kind)}


async def test_the_books_of_a_killed_collector_go_on_at_another(group: Sharing) -> None:
    before = group.epochs()
    await group.end(LEFT)
    await group.held_by(RIGHT)
    await until(
        lambda: group.epochs()["BTC-USDT"] > before["BTC-USDT"], "its book has a new epoch", 10
    )
    await group.seen.settle()
    assert group.epochs()["ETH-USDT"] == before["ETH-USDT"], "expected the other book to go on"
    await until(
        lambda: collectors_of(group, "TAKEN_OVER").get("BTC-USDT") == RIGHT,
        "the ledger tells who took over",
    )
    await group.start(LEFT)
    await group.held_by(LEFT, RIGHT, seconds=60)
    await until(
        lambda: collectors_of(group, "HANDED_OVER").get("BTC-USDT") == RIGHT,
        "the ledger tells who handed it back",
    )
    await group.seen.settle()
    assert group.epochs()["ETH-USDT"] == before["ETH-USDT"]


async def test_a_frozen_collector_that_goes_on_disturbs_nobody(group: Sharing) -> None:
    before = group.epochs()
    group.processes[LEFT].send_signal(signal.SIGSTOP)
    await group.held_by(RIGHT)
    await until(
        lambda: group.epochs()["BTC-USDT"] > before["BTC-USDT"], "its book has a new epoch", 10
    )
    await group.seen.settle()
    group.processes[LEFT].send_signal(signal.SIGCONT)
    await group.held_by(LEFT, RIGHT)
    await group.seen.settle()


async def test_a_collector_that_stops_hands_its_books_over(group: Sharing) -> None:
    before = group.epochs()
    assert await group.end(LEFT, signal.SIGTERM) == 0
    await group.held_by(RIGHT, seconds=1.0)
    await until(
        lambda: group.epochs()["BTC-USDT"] > before["BTC-USDT"], "its book has a new epoch", 10
    )
    await group.seen.settle()
    assert group.epochs()["ETH-USDT"] == before["ETH-USDT"]


async def test_a_restart_of_the_broker_gives_no_book_away(group: Sharing) -> None:
    before = group.epochs()
    fences = (await group.record() or pytest.fail("no record")).exchanges["binance"].fences
    group.server.child.kill()
    await until(lambda: group.server.restarts == 1, "the broker is started again")
    await group.held_by(LEFT, RIGHT, seconds=10)
    await group.seen.settle()
    after = (await group.record() or pytest.fail("no record")).exchanges["binance"].fences
    assert after == fences
    assert group.epochs() == before, "expected the books to go on in their epochs"
    await group.seen.settle_trades()


async def test_who_alone_loses_the_broker_is_replaced_and_its_late_events_harm_nobody(
    group: Sharing,
) -> None:
    relay = Relay(group.server.port)
    async with relay.running():
        await group.end(LEFT, signal.SIGTERM)
        await group.start(LEFT, relay.url)
        await group.held_by(LEFT, RIGHT, seconds=60)
        await group.seen.settle()
        before = group.epochs()
        relay.refuse()
        relay.cut()
        await group.held_by(RIGHT)
        await until(
            lambda: group.epochs()["BTC-USDT"] > before["BTC-USDT"], "its book has a new epoch", 10
        )
        await group.seen.settle()
        relay.let_through()
        await group.held_by(LEFT, RIGHT)
        await group.seen.settle()
        await group.end(LEFT)
