"""`marketprism up`: brings up a mesh, says where everything is, and supervises it."""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable

import aiohttp
import uvloop

from services.cli.client import reachable
from services.cli.mesh_plan import MeshOptions, MeshPlan, check_ports, make_plan
from services.cli.mesh_state import DataDirLock
from services.cli.panel import ready_panel
from services.cli.reporter import Reporter, open_reporter
from services.cli.supervisor import Supervisor, SupervisorFacts
from services.shared.errors import StartupError

__all__ = ["run_mesh"]

_BOOKS_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_EXAMPLE_SECONDS = 1.0
_EXAMPLES = {
    "binance": "BTC-USDT",
    "okx": "BTC-USDT-PERP",
    "deribit": "BTC-USD-PERP",
    "binance_usdm": "BTC-USDT-PERP",
    "binance_coinm": "BTC-USD-PERP",
    "binance_us": "BTC-USDT",
}
"""What is named for people to try, if it is collected."""

OnReady = Callable[[MeshPlan, Reporter, float, Callable[[], None]], Awaitable[None]]
"""What happens when a mesh is ready. Gets the plan, where to tell it, the seconds that the start
took, and a function that stops the mesh; is cancelled when it stops."""


def run_mesh(options: MeshOptions, *, quiet: bool = False, on_ready: OnReady | None = None) -> int:
    """Run a mesh until a signal; gives the exit status.

    Nothing is started when a port is taken or another mesh has the data directory. Raises
    `ConfigError` and `StartupError` for what is known before anything is started.
    """
    plan = make_plan(options, os.environ)
    mesh = plan.configuration.mesh
    with DataDirLock(mesh.data_dir):
        check_ports(plan)
        for store in plan.passing_stores:
            shutil.rmtree(store, ignore_errors=True)
        try:
            with open_reporter(mesh.log, mesh.data_dir / "logs", quiet=quiet) as reporter:
                return _supervise(plan, reporter, on_ready or tell_ready)
        except OSError as error:
            raise StartupError(
                f"cannot write logs below {mesh.data_dir}: {error.strerror or error}",
                reason="CANNOT_LOG",
            ) from error


def _supervise(plan: MeshPlan, reporter: Reporter, on_ready: OnReady) -> int:
    data_dir = plan.configuration.mesh.data_dir
    reporter.say(
        f"starting a mesh on {plan.told_source}, {plan.options.mode} mode, data in {data_dir}",
        mode=plan.options.mode,
        source=plan.source,
        data_dir=str(data_dir),
    )
    supervisor = Supervisor(
        plan.parts,
        SupervisorFacts(
            pid=os.getpid(),
            mode=plan.options.mode,
            source=plan.source,
            addresses=plan.addresses,
        ),
        data_dir,
        reporter,
        on_ready=lambda seconds: on_ready(plan, reporter, seconds, supervisor.request_stop),
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(supervisor.run())
    reporter.say("stopped" if status == 0 else "stopped, because it could not start", status=status)
    return status


async def tell_ready(
    plan: MeshPlan, reporter: Reporter, seconds: float, _stop: Callable[[], None]
) -> None:
    """Show the panel with addresses and commands to try, then when the books are in step."""
    began = time.monotonic() - seconds
    exchange, symbol = await _example(plan)
    reporter.show(
        ready_panel(plan, seconds, exchange, symbol, colour=sys.stdout.isatty()),
        "the mesh is ready",
        seconds=round(seconds, 3),
        addresses=plan.addresses,
        ports={use.key: use.port for use in plan.uses},
        data_dir=str(plan.configuration.mesh.data_dir),
        log_dir=str(reporter.log_dir),
    )
    if "all" in plan.addresses:
        await _tell_books(f"http://{reachable(plan.addresses['all'])}", reporter, began)


async def _example(plan: MeshPlan) -> tuple[str, str]:
    """Give the exchange and symbol of an instrument that is collected, for commands to try."""
    options = plan.options.simulated
    if options is not None and options.capture is None and not options.symbols:
        return options.exchanges[0], _EXAMPLES[options.exchanges[0]]
    listed: list[tuple[str, str]] = []
    deadline = time.monotonic() + _EXAMPLE_SECONDS
    if "all" in plan.addresses:
        url = f"http://{reachable(plan.addresses['all'])}/api/v1/instruments?page_size=1000"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1.0)) as session:
            while not listed and time.monotonic() < deadline:
                listed = await _instruments(session, url)
                if not listed:
                    await asyncio.sleep(_FIRST_PAUSE)
    usual = [each for each in _EXAMPLES.items() if each in listed]
    return (*usual, *listed, *_EXAMPLES.items())[0]


async def _instruments(session: aiohttp.ClientSession, url: str) -> list[tuple[str, str]]:
    try:
        async with session.get(url) as answer:
            body = await answer.json()
        return [
            (str(each["exchange"]), str(each["symbol"])) for each in body["data"]["instruments"]
        ]
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        # The panel is a help; which instrument it shows is not worth a failure.
        return []


async def _tell_books(gateway: str, reporter: Reporter, began: float) -> None:
    """Wait for the first moment at which all books are in step, and tell it."""
    # REST, because a process that starts others again and again had better not run gRPC.
    url = f"{gateway}/api/v1/orderbook/status?page_size=1000"
    total = in_step = 0
    pause = _FIRST_PAUSE
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as session:
        deadline = time.monotonic() + _BOOKS_SECONDS
        while time.monotonic() < deadline:
            states = await _book_states(session, url)
            total, in_step = len(states), states.count("ORDER_BOOK_STATE_SYNCED")
            if total and in_step == total:
                seconds = time.monotonic() - began
                what = "1 book is" if total == 1 else f"{total} books are"
                reporter.say(
                    f"{what} in step after {seconds:.1f} s",
                    books=total,
                    seconds=round(seconds, 3),
                )
                return
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 1.5)
    reporter.say(
        f"{in_step} of {total} books are in step after {_BOOKS_SECONDS:g} s; `marketprism status` "
        "tells why not all",
        books=total,
        in_step=in_step,
    )


async def _book_states(session: aiohttp.ClientSession, url: str) -> list[str]:
    try:
        async with session.get(url) as answer:
            body = await answer.json()
        return [str(status["state"]) for status in body["data"]["statuses"]]
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        # A moment later it may answer; what is wrong is told by whoever does not.
        return []
