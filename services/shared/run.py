"""Runs services as a program: settings, logs, signals, exit status.

Exit status: 0 after a signal, 1 after a failure (a supervisor restarts), 2 when the configuration
is wrong (a restart would not help).
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import uvloop

from services.shared.errors import ConfigError, MarketPrismError
from services.shared.log import configure_logging, get_logger
from services.shared.pauses import avoid_pauses
from services.shared.service import BaseService
from services.shared.settings import MeshSettings, load_mesh

__all__ = ["EXIT_CONFIG", "EXIT_FAILURE", "EXIT_OK", "run", "run_many", "serve"]

EXIT_OK = 0
"""Stopped on request."""

EXIT_FAILURE = 1
"""Could not start, or failed while running."""

EXIT_CONFIG = 2
"""The configuration is wrong."""

_LAST_RESORT_SECONDS = 12.0


def run(service: type[BaseService]) -> NoReturn:
    """Run one service until SIGINT or SIGTERM, and exit. For its `__main__.py`."""
    run_many((service,))


def run_many(services: Sequence[type[BaseService]], config_dir: Path | None = None) -> NoReturn:
    """Run several services in one process and one event loop, and exit."""
    try:
        mesh = load_mesh(config_dir=config_dir)
        configure_logging(mesh.log)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            status = runner.run(_serve_configured(services, mesh, config_dir))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        status = EXIT_CONFIG
    sys.stderr.flush()
    sys.exit(status)


async def _serve_configured(
    services: Sequence[type[BaseService]], mesh: MeshSettings, config_dir: Path | None
) -> int:
    configured = [service.from_config(mesh, config_dir) for service in services]
    avoid_pauses()
    return await serve(configured)


async def serve(services: Sequence[BaseService]) -> int:
    """Start services in order, wait for a signal or the end of one, and stop all in reverse.

    Gives the exit status. Must run in the main thread, where signals arrive.
    """
    log = get_logger()
    asked = asyncio.Event()
    status = EXIT_OK
    with _stop_signals(asked):
        stop = asyncio.ensure_future(asked.wait())
        try:
            for service in services:
                start = asyncio.ensure_future(service.start())
                await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
                if asked.is_set():
                    start.cancel()
                    await asyncio.wait({start})
                    break
                await start
            else:
                ends = [asyncio.ensure_future(service.wait()) for service in services]
                await asyncio.wait({stop, *ends}, return_when=asyncio.FIRST_COMPLETED)
                for end in ends:
                    end.cancel()
        except ConfigError:
            raise
        except MarketPrismError as error:
            log.error(f"cannot start: {error}", reason=error.reason)
            status = EXIT_FAILURE
        except Exception:
            log.exception("cannot start")
            status = EXIT_FAILURE
        finally:
            stop.cancel()
            for service in reversed(services):
                await service.stop()
    return EXIT_FAILURE if any(service.failure for service in services) else status


@contextlib.contextmanager
def _stop_signals(asked: asyncio.Event) -> Iterator[None]:
    """Set `asked` at SIGINT and SIGTERM, and end the process if nothing else does."""
    loop = asyncio.get_running_loop()
    guards: list[threading.Timer] = []

    def on_signal() -> None:
        asked.set()
        if not guards:
            # Only for code that blocks the event loop or swallows cancellation.
            guard = threading.Timer(_LAST_RESORT_SECONDS, os._exit, (EXIT_FAILURE,))
            guard.daemon = True
            guard.start()
            guards.append(guard)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        for guard in guards:
            guard.cancel()
