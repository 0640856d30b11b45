"""A soak: simulated venues that misbehave at random, a collector, and every book held to the truth.

`python -m benchmarks.soak --seconds 600 --venues binance,binance_usdm,okx,deribit --instruments 200
--rate 5000 --seed 1` runs nats-server with the broker's streams, each simulated venue and the
collector in processes of their own. This process follows every book and every trade from NATS by
the published contract, compares books with the venue's true ones at the very same venue sequence,
and disturbs the venues with faults of all kinds. Ctrl-C ends the run early, with its verdict.

Exit status 0: no book was ever wrong, no contract broken, no trade missing without a word, every
book came back in step, and nothing in the collector grew. Else 1.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import uvloop

from benchmarks.soak_books import Trades
from benchmarks.soak_mesh import Soak, running_mesh
from benchmarks.soak_verdict import Verdict, grown, judge
from conformance.venues import VENUES as FACTS
from services.shared.log import configure_logging
from services.shared.settings import LogSettings

__all__ = ["main"]

_START_SECONDS = 120.0
_COMPARERS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and give the exit status."""
    options = _options(arguments)
    configure_logging(LogSettings(level="error"))
    if options.directory is not None:
        directory = options.directory / time.strftime("%Y%m%d-%H%M%S")
        directory.mkdir(parents=True)
        return uvloop.run(_run(options, directory))
    with tempfile.TemporaryDirectory(
        prefix="marketprism-soak-", ignore_cleanup_errors=True
    ) as name:
        return uvloop.run(_run(options, Path(name)))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, kind, default, text in (
        ("seconds", float, 600.0, "time with faults"),
        ("venues", str, "binance,binance_usdm,okx,deribit", "exchange ids, comma-separated"),
        ("instruments", int, 200, "of all venues together"),
        ("rate", float, 5000.0, "frames/s of all venues together, about"),
        ("seed", int, 1, "of markets and faults"),
        ("compare-rate", float, 12.0, "comparisons/s at the most"),
        ("fault-every", float, 4.0, "mean seconds between two incidents of a venue"),
        ("instruments-every", float, 40.0, "the same for listings, expiries, changes; 0: never"),
        ("redundancy", int, 1, "connections for each stream"),
        ("every", float, 10.0, "seconds between two progress lines"),
        ("settle", float, 60.0, "seconds in which everything has to recover at the end"),
        ("longest-outage", float, 90.0, "seconds for which a book may be out of step"),
        ("json", Path, None, "file for the verdict"),
        ("directory", Path, None, "keeps logs and evidence in a folder of this one"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    options = parser.parse_args(arguments)
    options.venues = [name.strip() for name in options.venues.split(",") if name.strip()]
    if unknown := [name for name in options.venues if name not in FACTS]:
        parser.error(f"--venues: expected some of {', '.join(FACTS)}, got {', '.join(unknown)}")
    if options.instruments < len(options.venues):
        parser.error("--instruments: expected at least one for each venue")
    return options


async def _run(options: argparse.Namespace, directory: Path) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with running_mesh(options, directory) as soak:
        began = time.monotonic()
        if not await _until(soak.in_step, _START_SECONDS, stop):
            _say(f"after {time.monotonic() - began:.0f} s not in step: {soak.behind()}")
            return 1
        _say(
            f"{len(soak.follower.expected())} books are in step after "
            f"{time.monotonic() - began:.1f} s; faults begin"
        )
        soak.at_rest.append(await soak.sampler.take())
        await _disturbed(soak, stop)
        # From now on a signal ends everything at once.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        await _settled(soak)
        verdict = judge(soak)
    _print(verdict)
    if options.json is not None:
        options.json.write_text(json.dumps(verdict.described(), indent=2) + "\n")
    return 1 if verdict.problems else 0


async def _disturbed(soak: Soak, stop: asyncio.Event) -> None:
    options = soak.options
    soak.follower.forget_outages()
    await soak.count_frames()
    soak.began = time.monotonic()
    used = {name: _processor_time(process) for name, process in soak.processes.items()}
    tasks = [
        asyncio.create_task(venue.saboteur.run(), name=f"faults of {venue.name}")
        for venue in soak.venues
    ] + [
        asyncio.create_task(soak.comparer.run(options.compare_rate / _COMPARERS), name="comparer")
        for _ in range(_COMPARERS)
    ]
    try:
        end = soak.began + options.seconds
        while not stop.is_set() and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), min(options.every, left))
            await soak.sampler.take()
            await soak.count_frames()
            await soak.comparer.excuse_holes()
            soak.shares_in_step.append(soak.follower.in_step_share())
            _progress(soak)
            if dead := [task for task in tasks if task.done()]:
                soak.problems.append(f"the {dead[0].get_name()} failed: {dead[0].exception()!r}")
                break
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    soak.ended = time.monotonic()
    elapsed = soak.ended - soak.began
    soak.used = {
        name: (_processor_time(process) - used[name]) / elapsed
        for name, process in soak.processes.items()
    }


def _processor_time(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _progress(soak: Soak) -> None:
    sampler, follower, comparer = soak.sampler, soak.follower, soak.comparer
    now = sampler.samples[-1]
    _say(
        f"{time.monotonic() - soak.began:6.0f} s  {soak.frame_rate():6,.0f} frames/s "
        f"{sampler.rate('messages'):6,.0f} messages/s  in step {follower.in_step_share():6.1%}  "
        f"compared {comparer.compared.total():,} wrong {len(comparer.wrong)} "
        f"breaches {follower.breach_count}  "
        f"incidents {sum(venue.saboteur.done.total() for venue in soak.venues)}  "
        f"{now.waiting} waiting  {now.rss:.0f} MiB {now.tasks} tasks {now.sockets} sockets "
        f"{now.fds} fds "
        f"{sampler.rate('cpu'):.0%} of a core"
    )


async def _settled(soak: Soak) -> None:
    """End all faults; everything has to come back in step, be right, and be at rest."""
    seconds = soak.options.settle
    for venue in soak.venues:
        await venue.client.clear()
    began = time.monotonic()
    if await _until(soak.in_step, seconds):
        _say(f"every book is in step {time.monotonic() - began:.1f} s after the last fault")
    else:
        soak.problems.append(f"{seconds:g} s after the last fault not in step: {soak.behind()}")
    for book in soak.follower.expected():
        if book.in_step:
            await soak.comparer.compare(book)
    await _trades_arrived(soak, seconds)
    # Connections that were replaced and requests of the last repairs end by themselves.
    deadline = time.monotonic() + seconds
    begin = soak.at_rest[0]
    while True:
        now = await soak.sampler.take()
        if not grown(begin, now) or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.5)
    soak.at_rest.append(now)
    await soak.follower.stop()
    await soak.comparer.excuse_holes()


async def _trades_arrived(soak: Soak, seconds: float) -> None:
    """Wait until the newest trades of now are published."""
    clients = {venue.name: venue.client for venue in soak.venues}
    deadline = time.monotonic() + seconds
    for book in soak.follower.expected():
        made = await clients[book.exchange].trades(book.native)
        if not made:
            continue
        tape, newest = soak.follower.trades[book.exchange, book.symbol], made[-1]

        def arrived(tape: Trades = tape, newest: int = newest) -> bool:
            return tape.last >= newest

        if not await _until(arrived, deadline - time.monotonic()):
            soak.problems.append(
                f"{book.exchange}/{book.symbol}: trade {newest} is not published, the last is "
                f"{tape.last or 'none'}"
            )


async def _until(
    condition: Callable[[], bool], seconds: float, stop: asyncio.Event | None = None
) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline or (stop is not None and stop.is_set()):
            return False
        await asyncio.sleep(0.1)
    return True


def _print(verdict: Verdict) -> None:
    for line in verdict.lines():
        _say(line)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
