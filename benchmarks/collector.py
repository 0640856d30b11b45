"""Collector path on one core: a depth frame as read to an encoded, published update.

Floors and peers in the same run, alternating: typed JSON decode alone; decode, book and encode
without publishing; the whole with a real nats-server (on the other core) that acknowledged every
update; and, with `--peer COMMAND`, any other collector's driver, run with PEER_DATA set to a folder
that holds the very same frames (`binance_spot.jsonl`, `binance_snap.json`, `truth.json`).
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
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import uvloop
from marketprism.market.v1 import order_book_pb2 as pb

from benchmarks.broker import running_broker
from benchmarks.depth_stream import write_depth_stream
from services.collector.synchroniser import BookSynchroniser, SnapshotPolicy
from services.collector.venues.base import RestRequest
from services.collector.venues.binance_spot import BinanceSpot, DepthUpdate
from services.shared.publisher import Publisher

_TURN = 64  # frames handled between two turns of the event loop, as under load


class _Output:
    """Counts, and publishes when it has a publisher."""

    def __init__(self, publisher: Publisher | None = None) -> None:
        self.updates = 0
        self.bytes = 0
        self._publisher = publisher

    def publish_update(self, payload: bytes, epoch: int, sequence: int) -> None:
        self.updates += 1
        self.bytes += len(payload)
        if self._publisher is not None:
            self._publisher.publish(
                "market.order_book_update.binance.BTC-USDT",
                payload,
                f"{epoch}.{sequence}",
                droppable_key="binance/BTC-USDT",
            )

    def publish_snapshot(self, payload: bytes, epoch: int, sequence: int) -> None:
        self.bytes += len(payload)
        if self._publisher is not None:
            self._publisher.publish(
                "market.order_book_snapshot.binance.BTC-USDT",
                payload,
                f"{epoch}.{sequence}.s",
                droppable_key="binance/BTC-USDT",
            )

    def publish_status(self, status: pb.OrderBookStatus) -> None:
        pass

    def request_snapshot(self, reason: int) -> None:
        pass


def _synchroniser(folder: Path, output: _Output) -> BookSynchroniser:
    adapter = BinanceSpot()
    book = BookSynchroniser("binance", "BTC-USDT", adapter, output, SnapshotPolicy())
    book.begin(time.time_ns())
    snapshot = adapter.decode_snapshot(
        (folder / "binance_snap.json").read_bytes(), RestRequest("", 0, {"limit": "1000"})
    )
    book.on_snapshot(snapshot, time.time_ns())
    return book


def _check(book: BookSynchroniser, folder: Path) -> None:
    truth = json.loads((folder / "truth.json").read_text())
    for name, levels in (("bids", book.book.bids()), ("asks", book.book.asks())):
        expected = [(Decimal(price), Decimal(size)) for price, size in truth[name]]
        if [(Decimal(price), Decimal(size)) for price, size in levels] != expected:
            raise SystemExit(f"the final {name} differ from the truth: the figures mean nothing")


def _decode_only(frames: list[bytes]) -> float:
    decode = BinanceSpot().decode
    began = time.perf_counter()
    for frame in frames:
        decode(frame)
    return time.perf_counter() - began


def _without_publishing(frames: list[bytes], folder: Path) -> float:
    adapter = BinanceSpot()
    book = _synchroniser(folder, _Output())
    began = time.perf_counter()
    for frame in frames:
        _handle(adapter, book, frame)
    seconds = time.perf_counter() - began
    _check(book, folder)
    return seconds


def _handle(adapter: BinanceSpot, book: BookSynchroniser, frame: bytes) -> None:
    now = time.time_ns()
    message = adapter.decode(frame)
    assert isinstance(message, DepthUpdate)
    book.on_diff(message, now)


async def _published(frames: list[bytes], folder: Path, url: str) -> float:
    adapter = BinanceSpot()
    publisher = Publisher(url)
    await publisher.start()
    if not await publisher.wait_connected(10):
        raise SystemExit("the broker does not answer")
    output = _Output(publisher)
    book = _synchroniser(folder, output)
    before = publisher.status
    began = time.process_time()
    for start in range(0, len(frames), _TURN):
        for frame in frames[start : start + _TURN]:
            _handle(adapter, book, frame)
        await asyncio.sleep(0)
        while publisher.status.buffered > 20_000:  # noqa: ASYNC110 - a benchmark may poll
            await asyncio.sleep(0.001)
    if not await publisher.drain(60):
        raise SystemExit("not everything was acknowledged")
    # Processor time of this process: what one core would give, whatever the other one does.
    seconds = time.process_time() - began
    after = publisher.status
    if after.dropped or after.rejected or after.acknowledged - before.acknowledged < len(frames):
        raise SystemExit(f"not everything was stored: {after}")
    _check(book, folder)
    await publisher.stop()
    return seconds


def _peer(command: str, folder: Path, count: int) -> str:
    result = subprocess.run(
        [*shlex.split(command), str(count)],
        env={**os.environ, "PEER_DATA": str(folder)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    text = (result.stdout or result.stderr).strip()
    return text.splitlines()[-1] if text else f"nothing printed, exit {result.returncode}"


def main(arguments: list[str] | None = None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=40_000)
    parser.add_argument("--changes", type=int, default=20, help="levels a side and frame")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", help="command of a peer's driver; the frame count is appended")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="marketprism-bench-") as name:
        folder = Path(name)
        print(f"writing {options.frames} frames with 2 x {options.changes} levels", flush=True)
        write_depth_stream(folder, options.frames, options.changes)
        frames = (folder / "binance_spot.jsonl").read_bytes().splitlines()
        results: dict[str, list[float]] = {}

        def measure(what: str, run: Callable[[], float]) -> None:
            seconds = run()
            results.setdefault(what, []).append(len(frames) / seconds)
            print(f"  {what}: {len(frames) / seconds:,.0f} frames/s", flush=True)

        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}")
            measure("typed JSON decode alone", lambda: _decode_only(frames))
            measure("decode, book, encode", lambda: _without_publishing(frames, folder))
            with running_broker(folder / f"broker-{number}") as url:
                measure(
                    "decode, book, encode, publish, acknowledged",
                    lambda: uvloop.run(_published(frames, folder, url)),
                )
            if options.peer:
                print(f"  peer: {_peer(options.peer, folder, len(frames))}", flush=True)
        print(f"\nmedian of {options.rounds} rounds, frames/s of one core:")
        for what, rates in results.items():
            print(f"  {what:45} {statistics.median(rates):>10,.0f}")


if __name__ == "__main__":
    main()
