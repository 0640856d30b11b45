"""The commands of `marketprism`: their options and what they mean. The work is done elsewhere."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from services.cli.failures import readable_errors

__all__ = ["app", "run"]

app = typer.Typer(
    name="marketprism",
    help="A gRPC-first service mesh for crypto market data: bring it up, look into it, replay "
    "what it recorded.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_SOURCE, _PORTS, _SHOWN, _MARKET = "Where data comes from", "Ports", "Output", "Simulated market"

ConfigDir = Annotated[
    Path | None,
    typer.Option(
        help="Directory of the configuration files.",
        envvar="MARKETPRISM_CONFIG_DIR",
        exists=True,
        file_okay=False,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Directory of the state: JetStream, logs, registrations. Default: var."),
]
Symbols = Annotated[
    list[str] | None,
    typer.Option(
        "--symbols",
        "-s",
        help="Canonical symbols such as BTC-USDT, comma-separated or repeated; '*' matches any "
        "run of characters.",
        rich_help_panel=_SOURCE,
    ),
]


def run() -> None:
    """Run the command line of this process and exit."""
    # What the C core of gRPC writes at this level is for its authors, not for our users.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        app()
    except BrokenPipeError:
        # The reader of our output went away, as `head` does. Python would complain at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@app.command(rich_help_panel="Run")
def up(
    simulated: Annotated[
        bool,
        typer.Option(
            "--simulated",
            help="Collect from a simulated venue instead of the live ones.",
            rich_help_panel=_SOURCE,
        ),
    ] = False,
    capture: Annotated[
        Path | None,
        typer.Option(
            help="Collect from a recorded market: this .jsonl or .jsonl.gz file.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    speed: Annotated[
        str | None,
        typer.Option(
            help="Pace of the recording: a factor (1 is its own), or 'max'.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    loop: Annotated[
        bool,
        typer.Option(
            "--loop", help="Begin the recording again at its end.", rich_help_panel=_SOURCE
        ),
    ] = False,
    symbols: Symbols = None,
    mode: Annotated[
        Literal["microservice", "full"],
        typer.Option(help="One process a service, or all services in one process."),
    ] = "microservice",
    services: Annotated[
        list[str] | None,
        typer.Option(help="Run only these services, comma-separated or repeated."),
    ] = None,
    config_dir: ConfigDir = None,
    data_dir: DataDir = None,
    ready_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds that each process gets to become ready.", min=0.1),
    ] = None,
    port_offset: Annotated[
        int,
        typer.Option(
            help="Add this to every port: a second mesh beside the first.",
            rich_help_panel=_PORTS,
        ),
    ] = 0,
    free_ports: Annotated[
        bool,
        typer.Option(
            "--free-ports",
            help="Take free ports for everything and say which.",
            rich_help_panel=_PORTS,
        ),
    ] = False,
    simulator_port: Annotated[
        int,
        typer.Option(
            help="Port of the simulated venue; 0 takes a free one.",
            envvar="MARKETPRISM_SIMULATOR_PORT",
            min=0,
            max=65535,
            rich_help_panel=_PORTS,
        ),
    ] = 9300,
    symbol_count: Annotated[
        int | None,
        typer.Option(
            help="List this many symbols, made-up ones included.",
            min=1,
            max=5000,
            rich_help_panel=_MARKET,
        ),
    ] = None,
    depth_rate: Annotated[
        float | None,
        typer.Option(help="Depth frames a second and symbol.", rich_help_panel=_MARKET),
    ] = None,
    trade_rate: Annotated[
        float | None,
        typer.Option(help="Taker orders a second and symbol.", rich_help_panel=_MARKET),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same market.", rich_help_panel=_MARKET)
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(help="Least severe level that is logged.", rich_help_panel=_SHOWN),
    ] = None,
    log_format: Annotated[
        Literal["console", "json"] | None,
        typer.Option(
            help="For people, or one JSON object a line on stderr.", rich_help_panel=_SHOWN
        ),
    ] = None,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="Show only warnings and errors of the services; the log files have everything.",
            rich_help_panel=_SHOWN,
        ),
    ] = False,
) -> None:
    """Bring up the mesh and supervise it until Ctrl-C.

    Starts the processes in order, waits until each is ready, merges their logs, restarts what
    dies, and stops everything in reverse order. Collects from the live venues unless --simulated
    or --capture says otherwise.
    """
    from services.cli.mesh_plan import MeshOptions
    from services.cli.up import run_mesh
    from services.cli.venue import choose_venue

    with readable_errors():
        venue = choose_venue(
            simulated=simulated,
            capture=capture,
            speed=speed,
            loop=loop,
            symbols=_split(symbols),
            symbol_count=symbol_count,
            depth_rate=depth_rate,
            trade_rate=trade_rate,
            seed=seed,
            port=simulator_port,
        )
        made = venue is not None and venue.capture is None
        options = MeshOptions(
            mode=mode,
            simulated=venue,
            # A generated market lists just what was asked for, and all of that is collected.
            symbols=() if made else _split(symbols),
            services=_split(services) or None,
            config_dir=config_dir,
            data_dir=data_dir,
            port_offset=port_offset,
            free_ports=free_ports,
            log_level=log_level,
            log_format=log_format,
            ready_seconds=ready_timeout,
        )
        status = run_mesh(options, quiet=quiet)
    raise typer.Exit(status)


@app.command(rich_help_panel="Other")
def version() -> None:
    """Print the versions of MarketPrism and of what it runs on."""
    from services.cli.versions import version_lines

    for line in version_lines():
        print(line)


def _split(values: list[str] | None) -> tuple[str, ...]:
    return tuple(part for value in values or () for part in value.replace(",", " ").split())
