"""Collectors that share the instruments of a venue whose books come in the stream.

Processes that are killed and stopped, as where everything comes by request: no trade is missing or
told twice, no book is told by two, and who collects an instrument anew begins a new epoch.
"""

import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.collector.leases_group import slot_of
from services.collector.venues.registry import adapter_for_exchange
from services.simulator.server import SimulatedVenue
from services.simulator.venues import VENUES, generated_market
from tests.integration.collector_fixtures import Followers, make_streams
from tests.integration.nats_tools import nats_server, until
from tests.integration.test_leases_collectors import LEASES, Sharing, collectors_of

ONE, OTHER = "one", "other"


@contextlib.asynccontextmanager
async def sharing(directory: Path, of: str) -> AsyncIterator[Sharing]:
    """Run venue, broker, followers and two collectors that share all instruments."""
    protocol = VENUES[of]()
    market = generated_market(protocol, depth_rate=10, trade_rate=6, levels=100, warmup_seconds=0.5)
    infer = adapter_for_exchange(of).infer_instrument
    natives = {native: infer(native).symbol for native in market.symbols}
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(nats_server(directory / "nats"))
        await make_streams(server.url)
        limits = protocol.settings_type.model_validate({"connects_per_five_minutes": 10_000})
        venue = await stack.enter_async_context(
            SimulatedVenue(market, settings=limits, protocol=protocol)
        )
        followers = Followers(server.url, market, natives=natives, exchange=of, everything=True)
        seen = await stack.enter_async_context(followers.running())
        group = Sharing(directory, server, venue, seen, of)
        try:
            await group.start(ONE)
            await group.start(OTHER)
            await group.held_by(ONE, OTHER, seconds=60)
            await seen.settle()
            yield group
            assert seen.problems == []
        finally:
            for name in list(group.processes):
                await group.end(name)


async def owned_by(group: Sharing, name: str) -> set[str]:
    """Give the instruments that a collector has."""
    record = await group.record()
    assert record is not None
    owners = record.exchanges[group.exchange].owners
    return {symbol for symbol in group.seen.books if owners[slot_of(symbol, LEASES.slots)] == name}


@pytest.mark.parametrize("of", ["okx", "deribit"])
async def test_no_trade_is_missing_or_twice_whoever_dies_or_leaves(tmp_path: Path, of: str) -> None:
    async with sharing(tmp_path, of) as group:
        seen = group.seen
        had = await owned_by(group, ONE)
        assert had, "expected each of the two to have some"
        assert had < set(seen.books)
        before = group.epochs()

        await group.end(ONE, signal.SIGKILL)
        await group.held_by(OTHER)
        await until(
            lambda: all(group.epochs()[symbol] > before[symbol] for symbol in had),
            "the books of the killed one have new epochs",
            10,
        )
        await seen.settle()
        await until(
            lambda: had <= set(collectors_of(group, "TAKEN_OVER")), "the ledger tells who took over"
        )
        kept = set(seen.books) - had
        assert {s: group.epochs()[s] for s in kept} == {s: before[s] for s in kept}

        await group.start(ONE)
        await group.held_by(ONE, OTHER, seconds=60)
        await seen.settle()
        assert await group.end(OTHER, signal.SIGTERM) == 0
        await group.held_by(ONE)
        await seen.settle()
        await seen.settle_trades()
        assert not [
            each for each in seen.of_kind("GAP") if each.first_missing_id or each.last_missing_id
        ]
