"""`marketprism up`: brings up a mesh, says where everything is, and supervises it."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

import uvloop

from services.cli import venue
from services.cli.mesh_plan import MeshOptions, MeshPlan, check_ports, make_plan
from services.cli.mesh_state import DataDirLock
from services.cli.panel import ready_panel
from services.cli.reporter import Reporter, open_reporter
from services.cli.supervisor import Supervisor, SupervisorFacts
from services.shared.errors import MarketPrismError, StartupError

__all__ = ["run_mesh"]

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
    what = {"live": "live venues", "simulated": "a simulated venue"}.get(plan.source, plan.source)
    reporter.say(
        f"starting a mesh on {what}, {plan.options.mode} mode, data in {data_dir}",
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
    """Show the panel with addresses and commands to try."""
    symbol = "BTC-USDT"
    if plan.options.simulated is not None:
        try:
            listed = await venue.listed_symbols(f"http://{plan.addresses['simulator']}")
            symbol = listed[0]
        except MarketPrismError:
            # The panel is a help; which symbol it shows is not worth a failure.
            pass
    elif plan.options.symbols and "*" not in plan.options.symbols[0]:
        symbol = plan.options.symbols[0]
    reporter.show(
        ready_panel(plan, seconds, symbol, colour=sys.stdout.isatty()),
        "the mesh is ready",
        seconds=round(seconds, 3),
        addresses=plan.addresses,
        ports={use.key: use.port for use in plan.uses},
        data_dir=str(plan.configuration.mesh.data_dir),
        log_dir=str(reporter.log_dir),
    )
