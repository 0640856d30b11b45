"""A simulated venue, a broker, the collector under test, and a follower of what it publishes."""

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import grpc
from marketprism.collector.v1 import collector_service_pb2 as pb
from marketprism.collector.v1 import collector_service_pb2_grpc as pb_grpc
from marketprism.market.v1 import instrument_pb2
from marketprism.market.v1 import order_book_pb2 as book_pb

from conformance.collectors import PROFILES, CollectorPlan, Profile, collector_process, into
from conformance.follower import Follower, until
from conformance.simulated import SimulatedVenueClient
from conformance.venues import VenueFacts
from services.broker.server import NatsServer
from services.broker.settings import ServerSettings, load_broker_settings
from services.broker.streams import ensure_streams
from services.shared.jetstream import Connection
from services.shared.ports import free_port
from services.shared.probes import http_ready
from services.shared.process import ChildProcess
from services.simulator.venues import VENUES as SIMULATED

__all__ = ["Attached", "Rig", "RigError", "attached_rig", "own_rig"]

_ROOT = Path(__file__).resolve().parents[1]
_READY_SECONDS = 60.0
_TRADE_SECONDS = 20.0


class RigError(Exception):
    """What is to be tested did not come into step; the text says what was waited for."""


@dataclass(frozen=True, slots=True)
class Attached:
    """A collector and a simulated venue that run already."""

    collector: str
    """`HOST:PORT` of its gRPC server."""
    nats_url: str
    """The broker that it publishes to."""
    venue_url: str
    """REST address of the simulated venue that it collects."""


@dataclass
class Rig:
    """What one case after the other is run against."""

    facts: VenueFacts
    profile: Profile
    venue: SimulatedVenueClient
    follower: Follower
    stub: "pb_grpc.CollectorServiceAsyncStub"
    collector: str
    """Address of the collector's gRPC server."""
    nats_url: str
    """The broker."""
    natives: dict[str, str] = field(default_factory=dict)
    """The venue's names by canonical symbol."""
    directory: Path | None = None
    """Where the logs are; None for a rig that was there already."""
    used: set[str] = field(default_factory=set)
    """Names that were listed while running, and are not listed again."""

    async def states(self) -> list[pb.InstrumentState]:
        """Ask the collector for the states of the venue's instruments."""
        request = pb.ListInstrumentStatesRequest(exchange=self.facts.name, page_size=1000)
        answer: pb.ListInstrumentStatesResponse = await self.stub.ListInstrumentStates(
            request, timeout=10
        )
        return list(answer.instruments)

    async def status(self) -> pb.GetStatusResponse:
        """Ask the collector for its whole state."""
        answer: pb.GetStatusResponse = await self.stub.GetStatus(pb.GetStatusRequest(), timeout=10)
        return answer

    async def learn(self) -> None:
        """Take the names of the instruments that are listed and collected."""
        listed = await self.venue.instruments()
        found = {state.symbol: state.native_symbol for state in await self.states()}
        self.natives.clear()
        self.natives.update({s: native for s, native in found.items() if native in listed})

    @property
    def symbols(self) -> list[str]:
        """Canonical symbols that are listed, in order."""
        return sorted(self.natives)

    @property
    def derivatives(self) -> list[str]:
        """Those of them that are no spot."""
        spot = instrument_pb2.INSTRUMENT_KIND_SPOT
        told = self.follower.instruments
        return [each for each in self.symbols if each in told and told[each].kind != spot]


async def _in_step(rig: Rig, expected: int) -> None:
    deadline = asyncio.get_running_loop().time() + _READY_SECONDS
    told = "no answer"
    while asyncio.get_running_loop().time() < deadline:
        try:
            states = await rig.states()
        except grpc.aio.AioRpcError as error:
            told = f"{error.code().name}: {error.details()}"
        else:
            synced = [s for s in states if s.book.state == book_pb.ORDER_BOOK_STATE_SYNCED]
            told = f"{len(synced)} of {len(states)} books are in step, {expected} are listed"
            if len(synced) == len(states) >= expected:
                break
        await asyncio.sleep(0.1)
    else:
        raise RigError(f"{rig.facts.name}: after {_READY_SECONDS:g} s {told}")
    await rig.learn()
    books = rig.follower.books
    for state in states:
        # Whoever comes late hears no status until it changes.
        if not books[state.symbol].said:
            books[state.symbol].on_status(state.book)
    if not await until(
        lambda: all(books[s].in_step and books[s].updates > 3 for s in rig.natives), 45
    ):
        missing = [s for s in rig.natives if not books[s].in_step]
        raise RigError(f"{rig.facts.name}: nothing is published of {', '.join(missing)}")
    # A trade that is lost before the first one came is missed by nobody. Some trade rarely.
    trades = rig.follower.trades
    await until(lambda: all(trades[symbol].last for symbol in rig.natives), _TRADE_SECONDS)


@contextlib.asynccontextmanager
async def own_rig(
    facts: VenueFacts,
    profile: Profile,
    directory: Path,
    *,
    command: str = "",
    depth_rate: float = 10.0,
    compare_every: int = 1,
) -> AsyncIterator[Rig]:
    """Start everything in processes of its own; ends all of it behind the block."""
    # Nothing else runs yet that this could keep waiting.
    for old in ("nats", "var"):
        shutil.rmtree(directory / old, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            NatsServer(directory / "nats", ServerSettings()).running()
        )
        connection = await Connection.open([server.url], name="conformance")
        try:
            await ensure_streams(connection, load_broker_settings(_ROOT / "config"))
        finally:
            connection.close("streams are made")
        session = await stack.enter_async_context(aiohttp.ClientSession())
        port = free_port()
        await stack.enter_async_context(
            _simulator(facts, profile, port, directory, depth_rate).running()
        )
        address = f"127.0.0.1:{port}"
        venue = SimulatedVenueClient(session, f"http://{address}")
        expected = len(await venue.instruments())
        grpc_port = free_port()
        plan = CollectorPlan(
            directory, server.url, grpc_port, facts, f"http://{address}",
            f"ws://{address}{facts.ws_path}", profile,
        )  # fmt: skip
        await stack.enter_async_context(collector_process(plan, command).running())
        rig = await stack.enter_async_context(
            _rig(
                facts, profile, venue, server.url, f"127.0.0.1:{grpc_port}",
                compare_every=compare_every, from_begin=True,
            )
        )  # fmt: skip
        rig.directory = directory
        await _in_step(rig, expected)
        yield rig


@contextlib.asynccontextmanager
async def attached_rig(
    facts: VenueFacts, attached: Attached, profile: str = "plain", *, compare_every: int = 1
) -> AsyncIterator[Rig]:
    """Use what runs already."""
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        venue = SimulatedVenueClient(session, attached.venue_url)
        await venue.clear()
        rig = await stack.enter_async_context(
            _rig(
                facts, PROFILES[profile], venue, attached.nats_url, attached.collector,
                compare_every=compare_every, from_begin=False,
            )
        )  # fmt: skip
        await _in_step(rig, 1)
        yield rig


@contextlib.asynccontextmanager
async def _rig(
    facts: VenueFacts,
    profile: Profile,
    venue: SimulatedVenueClient,
    nats_url: str,
    collector: str,
    *,
    compare_every: int,
    from_begin: bool,
) -> AsyncIterator[Rig]:
    natives: dict[str, str] = {}
    async with contextlib.AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(collector))
        stub = pb_grpc.CollectorServiceStub(channel)
        follower = Follower(
            nats_url, facts.name, venue, natives,
            compare_every=compare_every, from_begin=from_begin,
        )  # fmt: skip
        await stack.enter_async_context(follower.running())
        yield Rig(facts, profile, venue, follower, stub, collector, nats_url, natives)


def _simulator(
    facts: VenueFacts, profile: Profile, port: int, directory: Path, depth_rate: float
) -> ChildProcess:
    usual = list(SIMULATED[facts.name]().default_symbols)
    symbols = [usual[index] for index in facts.chosen]
    words = [
        sys.executable, "-m", "services.simulator", "--venue", facts.name, "--port", str(port),
        "--symbols", ",".join(symbols), "--levels", "80", "--depth-rate", str(depth_rate),
        "--trade-rate", "5",
    ]  # fmt: skip
    for name, value in profile.simulator.items():
        words += ["--set", f"{name}={value}"]
    paths = [str(_ROOT), str(_ROOT / "gen/python"), os.environ.get("PYTHONPATH", "")]

    return ChildProcess(
        f"simulated {facts.name}",
        words,
        env={"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        ready=lambda: http_ready(f"http://127.0.0.1:{port}/sim/stats"),
        ready_seconds=60,
        restart=None,
        on_line=into(directory / "simulator.log"),
    )
