"""Each venue's path on one core: a frame as read from the socket to an encoded, published update.

The same market in the words of four venues. Floors and peer in the same run, in turn: the venue's
decoder alone; the collector's whole path but for the publishing (decode, sequence rules, book,
encoded update); the whole with a real nats-server, on the other core, that acknowledged every
update; and, with `--peer COMMAND`, another collector's driver. `{venue}` in the command becomes
`spot`, `um`, `okx` or `deribit`, the number of frames is appended, and PEER_DATA names the folder
with the very same frames (benchmarks/depth_stream.py). After every measurement the book is held
against the truth.

All are measured in processor time, which a busy machine leaves nearly alone.
"""

import argparse
import asyncio
import json
import os
import shlex
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvloop
from marketprism.market.v1 import common_pb2
from prometheus_client import CollectorRegistry, Counter

from benchmarks.broker import running_broker
from benchmarks.depth_stream import FILES, write_depth_stream
from services.collector.feed import InstrumentFeed
from services.collector.ledger import Ledger
from services.collector.settings import ExchangeSettings
from services.collector.synchroniser import SnapshotPolicy
from services.collector.venue import Venue
from services.collector.venues.base import InstrumentSpec, RestRequest, SnapshotSource
from services.collector.venues.registry import adapter_for_exchange
from services.shared.log import configure_logging
from services.shared.publisher import Publisher
from services.shared.settings import LogSettings

_TURN = 64  # frames handled between two turns of the event loop, as under load
_INSTRUMENTS = {
    "binance": ("BTC-USDT", "BTCUSDT"),
    "binance_usdm": ("BTC-USDT-PERP", "BTCUSDT"),
    "okx": ("BTC-USDT", "BTC-USDT"),
    "deribit": ("BTC-USD-PERP", "BTC-PERPETUAL"),
}
_PEER_NAMES = {"binance": "spot", "binance_usdm": "um", "okx": "okx", "deribit": "deribit"}
_DECODE, _ENCODED, _PUBLISHED, _PEER = (
    "decode alone", "decode, book, encode", "published, acknowledged", "peer",
)  # fmt: skip


class _Nowhere:
    """Stands where the publisher does, and counts."""

    def __init__(self) -> None:
        self.messages = 0
        self.status = SimpleNamespace(connected=True, buffered=0)

    def publish(self, subject: str, payload: bytes, message_id: str, **_: object) -> None:
        self.messages += 1


class _Collected:
    """One instrument of a venue, collected by the collector's own `Venue` without a socket."""

    def __init__(self, exchange: str, publisher: Any) -> None:
        adapter = adapter_for_exchange(exchange)
        counter = Counter("entries", "Entries.", ["exchange", "kind"], registry=CollectorRegistry())
        ledger = Ledger("bench", publisher.publish, counter)
        settings = ExchangeSettings(symbols=("*",), kinds=("order_book",))
        policy = SnapshotPolicy()
        self.venue = Venue(
            exchange,
            adapter,
            settings,
            None,  # type: ignore[arg-type]
            publisher,
            ledger,
            policy,
            _never,
        )
        symbol, native = _INSTRUMENTS[exchange]
        self.feed = InstrumentFeed(
            InstrumentSpec(exchange, symbol, native, "BTC", "USDT"),
            adapter, publisher, ledger, policy,
            lambda feed, reason: None, lambda feed, first, last: None,
        )  # fmt: skip
        self.venue.feeds[native] = self.feed
        subscriptions = adapter.subscriptions(
            self.feed.spec, settings.selection(frozenset({common_pb2.EVENT_KIND_ORDER_BOOK}))
        )
        self.venue.pool.add(subscriptions)
        self.connection = self.venue.connections[0]
        topics = list(self.connection.topics.topics.values())
        self.venue.on_subscribed(self.connection, topics, time.time_ns())

    def begin(self, folder: Path, frames: list[bytes]) -> list[bytes]:
        """Take the snapshot; gives the frames that follow it."""
        adapter = self.venue._adapter
        if adapter.snapshot_source is SnapshotSource.STREAM:
            self.venue.on_frame(self.connection, frames[0], time.time_ns())
            rest = frames[1:]
        else:
            body = (folder / "binance_snap.json").read_bytes()
            request = RestRequest("", 0, {"limit": "1000"})
            self.feed.book.on_snapshot(adapter.decode_snapshot(body, request), time.time_ns())
            rest = frames
        if not self.feed.book.in_step:
            raise SystemExit(f"{self.venue.exchange}: not in step: {self.feed.book.detail}")
        return rest

    def check(self, folder: Path, count: int) -> None:
        """Hold the book against the truth."""
        book = self.feed.book
        if book.applied != count or book.gaps:
            raise SystemExit(
                f"{self.venue.exchange}: {book.applied} of {count} frames applied, "
                f"{book.gaps} gaps: {book.detail}"
            )
        truth = json.loads((folder / "truth.json").read_text())
        for name, levels in (("bids", book.book.bids()), ("asks", book.book.asks())):
            expected = [(Decimal(price), Decimal(size)) for price, size in truth[name]]
            if [(Decimal(price), Decimal(size)) for price, size in levels] != expected:
                raise SystemExit(f"{self.venue.exchange}: the {name} differ from the truth")


def _never(work: Coroutine[Any, Any, Any], name: str) -> Any:
    """Start nothing: there is no socket."""
    work.close()
    return asyncio.get_running_loop().create_future()


def _decode_only(exchange: str, frames: list[bytes]) -> float:
    decode = adapter_for_exchange(exchange).decode
    began = time.process_time()
    for frame in frames:
        decode(frame)
    return time.process_time() - began


async def _without_publishing(exchange: str, folder: Path, frames: list[bytes]) -> float:
    collected = _Collected(exchange, _Nowhere())
    rest = collected.begin(folder, frames)
    on_frame, connection, clock = collected.venue.on_frame, collected.connection, time.time_ns
    began = time.process_time()
    for frame in rest:
        on_frame(connection, frame, clock())
    seconds = time.process_time() - began
    collected.check(folder, len(rest))
    return seconds


async def _published(exchange: str, folder: Path, frames: list[bytes], url: str) -> float:
    publisher = Publisher(url)
    await publisher.start()
    if not await publisher.wait_connected(10):
        raise SystemExit("the broker does not answer")
    collected = _Collected(exchange, publisher)
    rest = collected.begin(folder, frames)
    on_frame, connection, clock = collected.venue.on_frame, collected.connection, time.time_ns
    before = publisher.status
    began = time.process_time()
    for start in range(0, len(rest), _TURN):
        for frame in rest[start : start + _TURN]:
            on_frame(connection, frame, clock())
        await asyncio.sleep(0)
        while publisher.status.buffered > 20_000:  # noqa: ASYNC110 - a benchmark may poll
            await asyncio.sleep(0.001)
    if not await publisher.drain(60):
        raise SystemExit("not everything was acknowledged")
    seconds = time.process_time() - began
    after = publisher.status
    if after.dropped or after.rejected or after.acknowledged - before.acknowledged < len(rest):
        raise SystemExit(f"not everything was stored: {after}")
    collected.check(folder, len(rest))
    await publisher.stop()
    return seconds


class _Peer:
    """Another collector's driver, run as a child and measured in processor time like ours."""

    def __init__(self, command: str, folder: Path) -> None:
        self._command = command
        self._folder = folder
        self._begins: dict[str, float] = {}

    def rate(self, exchange: str, count: int) -> tuple[float, str]:
        """Give frames/s, the driver's start and imports left out, and its own last line."""
        if exchange not in self._begins:
            self._begins[exchange], _ = self._run(exchange, 1)
        seconds, told = self._run(exchange, count)
        return (count - 1) / max(seconds - self._begins[exchange], 1e-9), told

    def _run(self, exchange: str, count: int) -> tuple[float, str]:
        words = shlex.split(self._command.replace("{venue}", _PEER_NAMES[exchange]))
        before = os.times()
        result = subprocess.run(
            [*words, str(count)],
            env={**os.environ, "PEER_DATA": str(self._folder)},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        after = os.times()
        text = (result.stdout or result.stderr).strip()
        if result.returncode:
            raise SystemExit(f"the peer failed with {result.returncode}: {text[-2000:]}")
        seconds = after.children_user + after.children_system
        seconds -= before.children_user + before.children_system
        return seconds, text.splitlines()[-1] if text else "nothing printed"


def main(arguments: list[str] | None = None) -> None:
    """Run and print."""
    configure_logging(LogSettings(level="error"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venues", default=",".join(FILES), help="comma-separated")
    parser.add_argument("--frames", type=int, default=40_000)
    parser.add_argument("--changes", type=int, default=20, help="levels a side and frame")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", help="command of a peer's driver, with {venue}")
    options = parser.parse_args(arguments)
    venues = options.venues.split(",")
    if unknown := [name for name in venues if name not in FILES]:
        parser.error(f"--venues: expected some of {', '.join(FILES)}, got {', '.join(unknown)}")
    with tempfile.TemporaryDirectory(prefix="marketprism-bench-") as name:
        folder = Path(name)
        print(f"writing {options.frames} frames with 2 x {options.changes} levels", flush=True)
        write_depth_stream(folder, options.frames, options.changes)
        peer = _Peer(options.peer, folder) if options.peer else None
        results: dict[tuple[str, str], list[float]] = {}

        def measure(venue: str, what: str, run: Callable[[], float]) -> None:
            rate = options.frames / run()
            results.setdefault((venue, what), []).append(rate)
            print(f"  {venue:14} {what:26} {rate:>10,.0f} frames/s", flush=True)

        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}")
            for venue in venues:
                frames = (folder / FILES[venue]).read_bytes().splitlines()
                measure(venue, _DECODE, lambda v=venue, f=frames: _decode_only(v, f))  # type: ignore[misc]
                measure(
                    venue,
                    _ENCODED,
                    lambda v=venue, f=frames: uvloop.run(_without_publishing(v, folder, f)),  # type: ignore[misc]
                )
                with running_broker(folder / f"broker-{number}-{venue}") as url:
                    measure(
                        venue,
                        _PUBLISHED,
                        lambda v=venue, f=frames, u=url: uvloop.run(_published(v, folder, f, u)),  # type: ignore[misc]
                    )
                if peer is not None:
                    rate, told = peer.rate(venue, options.frames)
                    results.setdefault((venue, _PEER), []).append(rate)
                    print(f"  {venue:14} {_PEER:26} {rate:>10,.0f} frames/s  ({told})", flush=True)
        print(f"\nmedian of {options.rounds} rounds, frames/s of one core:")
        kinds = [_DECODE, _ENCODED, _PUBLISHED, *([_PEER] if options.peer else [])]
        print(f"  {'':14}" + "".join(f"{kind:>26}" for kind in kinds))
        for venue in venues:
            rates = [statistics.median(results[venue, kind]) for kind in kinds]
            print(f"  {venue:14}" + "".join(f"{rate:>26,.0f}" for rate in rates))


if __name__ == "__main__":
    main()
