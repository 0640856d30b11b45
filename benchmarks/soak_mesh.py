"""The processes of a soak: nats-server, simulated venues and a collector, each one of its own."""

import argparse
import contextlib
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks.soak_books import Comparer, Follower
from benchmarks.soak_faults import Saboteur
from benchmarks.soak_figures import Sample, Sampler
from conformance.simulated import SimulatedVenueClient
from conformance.venues import VENUES as FACTS
from services.broker.server import NatsServer
from services.broker.settings import ServerSettings, load_broker_settings
from services.broker.streams import ensure_streams
from services.shared.jetstream import Connection
from services.shared.ports import free_port
from services.shared.process import ChildProcess, http_ready
from services.simulator.venues import VENUES

__all__ = ["Soak", "Venue", "running_mesh", "shares"]

_ROOT = Path(__file__).resolve().parents[1]
_LEVELS = 600
_SPARE = 500
_STREAM_BYTES = 384 * 1024 * 1024


@dataclass
class Venue:
    """A simulated venue while it runs."""

    name: str
    process: ChildProcess
    port: int
    client: SimulatedVenueClient
    spare: list[str]
    """Names that can be listed beside those that are."""
    saboteur: Saboteur = field(init=False)


@dataclass
class Soak:
    """Everything of one run."""

    options: argparse.Namespace
    session: aiohttp.ClientSession
    venues: list[Venue]
    follower: Follower
    comparer: Comparer
    sampler: Sampler
    processes: dict[str, psutil.Process]
    at_rest: list[Sample] = field(default_factory=list)
    """Before the first fault, and after everything that followed from the last one."""
    used: dict[str, float] = field(default_factory=dict)
    """What each process took of a core while faults happened."""
    shares_in_step: list[float] = field(default_factory=list)
    """Shares of the books in step, at each progress line."""
    began: float = 0.0
    """When the faults began, monotonic."""
    ended: float = 0.0
    """When they ended, monotonic."""
    frames: list[tuple[float, int]] = field(default_factory=list)
    """Frames that the venues have sent, with the monotonic time of the count."""
    problems: list[str] = field(default_factory=list)
    """What is wrong, for people."""

    def in_step(self) -> bool:
        """Whether as many books as there are instruments are known and every one is in step."""
        counts = shares(self.options.instruments, len(self.options.venues))
        return all(
            len(books := self.follower.expected(name)) >= count and all(b.in_step for b in books)
            for name, count in zip(self.options.venues, counts, strict=True)
        )

    async def count_frames(self) -> None:
        """Ask the venues how many frames they have sent."""
        count = 0
        for venue in self.venues:
            async with self.session.get(f"{venue.client.url}/sim/stats") as answer:
                count += (await answer.json())["deliveries"]
        self.frames.append((time.monotonic(), count))

    def frame_rate(self, count: int = 2) -> float:
        """Give the frames that the venues sent a second, between the last counts."""
        (first, before), (last, now) = self.frames[-count:][0], self.frames[-1]
        return (now - before) / (last - first) if last > first else 0.0

    def behind(self) -> str:
        """Tell which books are not in step."""
        told = []
        for venue in self.venues:
            books = self.follower.expected(venue.name)
            late = [book for book in books if not book.in_step]
            told.append(f"{venue.name} {len(late)} of {len(books)}")
            told += [
                f"{book.symbol} ({book.last[-1] if book.last else 'nothing was said'})"
                for book in late[:3]
            ]
        return ", ".join(told)


@contextlib.asynccontextmanager
async def running_mesh(options: argparse.Namespace, directory: Path) -> AsyncIterator[Soak]:
    """Start everything, and end it behind the block; logs and evidence go to `directory`."""
    rng = random.Random(f"soak {options.seed}")
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        server = await stack.enter_async_context(
            NatsServer(directory / "nats", ServerSettings()).running()
        )
        await _make_streams(server.url)
        follower = Follower(server.url)
        await follower.start()
        stack.push_async_callback(follower.stop)
        clients: dict[str, SimulatedVenueClient] = {}
        comparer = Comparer(follower, clients, directory, random.Random(rng.random()))
        note = _writer(directory / "incidents.log")
        venues = []
        counts = shares(options.instruments, len(options.venues))
        for name, count in zip(options.venues, counts, strict=True):
            venue = _venue(options, directory, name, count, session)
            clients[name] = venue.client
            venue.saboteur = Saboteur(
                name,
                venue.client,
                follower,
                random.Random(rng.random()),
                venue.spare,
                every=options.fault_every,
                instruments_every=options.instruments_every,
                note=lambda text: note(f"{time.strftime('%H:%M:%S')} {text}"),
                before_expiry=comparer.before_expiry,
            )
            await stack.enter_async_context(venue.process.running())
            venues.append(venue)
        http_port = free_port()
        collector = _collector(options, directory, server.url, http_port, venues)
        await stack.enter_async_context(collector.running())
        processes = {
            "collector": collector.pid,
            "nats-server": server.child.pid,
            **{f"simulated {venue.name}": venue.process.pid for venue in venues},
            "follower": None,
        }
        yield Soak(
            options,
            session,
            venues,
            follower,
            comparer,
            Sampler(collector.pid or 0, f"http://127.0.0.1:{http_port}/metrics", session),
            {name: psutil.Process(pid) for name, pid in processes.items()},
        )


def shares(total: int, parts: int) -> list[int]:
    """Divide a number into parts that differ by one at the most."""
    return [total // parts + (1 if index < total % parts else 0) for index in range(parts)]


async def _make_streams(url: str) -> None:
    settings = load_broker_settings(_ROOT / "config")
    streams = {
        name: stream.model_copy(update={"max_bytes": min(stream.max_bytes, _STREAM_BYTES)})
        for name, stream in settings.streams.items()
    }
    connection = await Connection.open([url], name="soak")
    try:
        await ensure_streams(connection, settings.model_copy(update={"streams": streams}))
    finally:
        connection.close("streams are made")


def _venue(
    options: argparse.Namespace,
    directory: Path,
    name: str,
    count: int,
    session: aiohttp.ClientSession,
) -> Venue:
    port = free_port()
    depth_rate, trade_rate = _rates(options.rate / options.instruments)
    protocol = VENUES[name]()
    names = protocol.more_symbols(count + _SPARE, protocol.default_symbols)
    words = [
        sys.executable, "-m", "services.simulator", "--venue", name, "--port", str(port),
        "--symbols", ",".join(names[:count]), "--seed", str(options.seed),
        "--depth-rate", f"{depth_rate:.3f}", "--trade-rate", f"{trade_rate:.3f}",
        "--levels", str(_LEVELS), "--set", f"fault_seed={options.seed}",
    ]  # fmt: skip
    process = ChildProcess(
        f"simulated {name}", words,
        ready=lambda: http_ready(f"http://127.0.0.1:{port}/sim/stats"),
        ready_seconds=60, restart=None, on_line=_writer(directory / f"{name}.log"),
    )  # fmt: skip
    client = SimulatedVenueClient(session, f"http://127.0.0.1:{port}")
    return Venue(name, process, port, client, list(names[count:]))


def _rates(frames: float) -> tuple[float, float]:
    """Give depth frames and taker orders a second that make about so many frames an instrument.

    Measured: beside a depth frame come 1.3 others (best bid and offer, trades), and one or two
    tickers, candles and marks come each second.
    """
    depth = max(0.5, (frames - 2) * 0.43)
    return depth, max(0.2, depth * 0.2)


def _collector(
    options: argparse.Namespace, directory: Path, nats_url: str, http_port: int, venues: list[Venue]
) -> ChildProcess:
    exchanges: dict[str, Any] = {
        venue.name: {
            "rest_url": f"http://127.0.0.1:{venue.port}",
            "ws_url": f"ws://127.0.0.1:{venue.port}{FACTS[venue.name].ws_path}",
            "symbols": ["*"],
            "snapshot_depth": 500,
            "redundancy": options.redundancy,
            "rollover_seconds": min(max(options.seconds / 4, 10.0), 150.0),
            "overlap_seconds": 20.0,
            "instrument_refresh_seconds": 15.0,
            "backoff_seconds": 0.1,
            "backoff_limit_seconds": 5.0,
            "silence_seconds": 6.0,
            "quiet_seconds": 20.0,
            "lag_seconds": 4.0,
            "acknowledge_seconds": 8.0,
            "rest_seconds": 6.0,
        }
        for venue in venues
    }
    prefix = "MARKETPRISM__SERVICES__"
    return ChildProcess(
        "collector", [sys.executable, "-m", "services.collector"],
        env={
            "NATS_URL": nats_url,
            f"{prefix}DATA_DIR": str(directory / "var"),
            f"{prefix}SERVICES__COLLECTOR__GRPC_PORT": "0",
            f"{prefix}SERVICES__COLLECTOR__HTTP_PORT": str(http_port),
            f"{prefix}LOG__FORMAT": "json",
            "MARKETPRISM__COLLECTOR__COLLECTOR_ID": "soak",
            "MARKETPRISM__COLLECTOR__EXCHANGES": json.dumps(exchanges),
        },
        ready=lambda: http_ready(f"http://127.0.0.1:{http_port}/metrics"),
        ready_seconds=60, stop_seconds=15, restart=None,
        on_line=_writer(directory / "collector.log"),
    )  # fmt: skip


def _writer(path: Path) -> Callable[[str], None]:
    file = path.open("a", encoding="utf-8", buffering=1)

    def write(line: str) -> None:
        file.write(line + "\n")

    return write
