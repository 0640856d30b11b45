"""A collector that does nothing but hold leases, as a process of its own, for tests.

It prints what it is allowed to publish every few milliseconds, as a collector would publish it:
the instants before and after it asked, and the fence of each slot.
"""

import asyncio
import contextlib
import json
import signal
import sys
import time

import structlog

from services.collector.leases import LeaseChange, LeaseManager, LeaseSettings

EXCHANGE = "sim"


async def main(url: str, name: str, settings: LeaseSettings) -> None:
    """Hold leases until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    def on_change(change: LeaseChange) -> None:
        if change.handed_over:
            manager.release_done(change.exchange, change.handed_over)

    manager = LeaseManager(url, name, {EXCHANGE: settings.slots}, settings, on_change)
    symbols = {manager.slot_of(EXCHANGE, f"S{n}"): f"S{n}" for n in range(40 * settings.slots)}
    running = asyncio.create_task(manager.run())
    while not stop.is_set():
        before = time.monotonic_ns()
        fences = {
            slot: manager.fence(EXCHANGE, symbol)
            for slot, symbol in symbols.items()
            if manager.owns(EXCHANGE, symbol)
        }
        after = time.monotonic_ns()
        status = manager.status()
        line = {
            "name": name,
            "before": before,
            "after": after,
            "fences": fences,
            "lost": status.lost,
            "taken_over": status.taken_over,
            "suspended": status.suspended,
        }
        print(json.dumps(line), flush=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await stop.wait()
    await manager.stop()
    await running


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(sys.argv[1], sys.argv[2], LeaseSettings.model_validate_json(sys.argv[3])))
