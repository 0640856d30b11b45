"""The commands of `marketprism`: their options and what they mean. The work is done elsewhere."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from services.cli.backup_app import backup_app, restore
from services.cli.completion import complete_exchange, complete_symbol
from services.cli.failures import EXIT_FAILURE, readable_errors
from services.cli.options import ConfigDir

__all__ = ["app", "run"]

app = typer.Typer(
    name="marketprism",
    help="A gRPC-first service mesh for crypto market data: bring it up, look into it, replay "
    "what it recorded.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(backup_app, name="backup", rich_help_panel="Store")
app.command(rich_help_panel="Store")(restore)

_SOURCE, _PORTS, _SHOWN, _MARKET = "Where data comes from", "Ports", "Output", "Simulated markets"

DataDir = Annotated[
    Path | None,
    typer.Option(help="Directory of the state: JetStream, logs, registrations. Default: var."),
]
Symbols = Annotated[
    list[str] | None,
    typer.Option(
        "--symbols",
        "-s",
        help="Canonical symbols such as BTC-USDT or BTC-USDT-PERP, comma-separated or repeated; "
        "'*' matches any run of characters. Venues that can have none of them are left out.",
        rich_help_panel=_SOURCE,
    ),
]
Exchanges = Annotated[
    list[str] | None,
    typer.Option(
        "--exchanges",
        "-e",
        help="Venues, comma-separated or repeated. Default: those that config/collector.yaml "
        "enables; simulated: binance, binance_usdm, binance_coinm, okx, deribit.",
        rich_help_panel=_SOURCE,
    ),
]


Simulated = Annotated[
    bool,
    typer.Option(
        "--simulated",
        help="Collect from simulated venues instead of the live ones.",
        rich_help_panel=_SOURCE,
    ),
]
Capture = Annotated[
    Path | None,
    typer.Option(
        help="Collect from a recorded market: this .jsonl or .jsonl.gz file.",
        rich_help_panel=_SOURCE,
    ),
]
Speed = Annotated[
    str | None,
    typer.Option(
        help="Pace of the recording: a factor (1 is its own), or 'max'.",
        rich_help_panel=_SOURCE,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Exchange = Annotated[
    str,
    typer.Argument(help="Venue id, such as binance or okx.", autocompletion=complete_exchange),
]
Symbol = Annotated[
    str,
    typer.Argument(
        help="Canonical symbol: BTC-USDT, BTC-USDT-PERP, BTC-USD-20261225, "
        "BTC-USD-20261225-60000-C.",
        autocompletion=complete_symbol,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        "-a",
        help="Gateway, host:port. Default: that of the mesh on the data directory, else the "
        "configured one (localhost:8080).",
        envvar="MARKETPRISM_ADDRESS",
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
    simulated: Simulated = False,
    capture: Capture = None,
    speed: Speed = None,
    loop: Annotated[
        bool,
        typer.Option(
            "--loop", help="Begin the recording again at its end.", rich_help_panel=_SOURCE
        ),
    ] = False,
    exchanges: Exchanges = None,
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
            help="Port of the simulated binance; binance_usdm, binance_coinm, okx, deribit and "
            "binance_us follow it. 0 takes free ones.",
            envvar="MARKETPRISM_SIMULATOR_PORT",
            min=0,
            max=65535,
            rich_help_panel=_PORTS,
        ),
    ] = 9300,
    symbol_count: Annotated[
        int | None,
        typer.Option(
            help="List this many instruments at each venue, made-up ones included.",
            min=1,
            max=5000,
            rich_help_panel=_MARKET,
        ),
    ] = None,
    depth_rate: Annotated[
        float | None,
        typer.Option(help="Depth frames a second and instrument.", rich_help_panel=_MARKET),
    ] = None,
    trade_rate: Annotated[
        float | None,
        typer.Option(help="Taker orders a second and instrument.", rich_help_panel=_MARKET),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same markets.", rich_help_panel=_MARKET)
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
            exchanges=_split(exchanges),
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
            exchanges=_split(exchanges),
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


@app.command(rich_help_panel="Look")
def status(
    as_json: AsJson = False,
    address: Annotated[
        str | None,
        typer.Option(help="Gateway to ask for the books; by default that of the mesh itself."),
    ] = None,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
) -> None:
    """Show the services that run, their health, and the state of every book.

    Exit status 1 when a service is not healthy or a book not in step.
    """
    from services.cli.client import data_directory, run_async
    from services.cli.status import collect_status, print_status, status_json

    with readable_errors():
        found = run_async(collect_status(data_directory(data_dir, config_dir), address))
        if as_json:
            print(status_json(found))
        else:
            print_status(found)
    raise typer.Exit(0 if found.healthy else EXIT_FAILURE)


@app.command(rich_help_panel="Look")
def book(
    exchange: Exchange,
    symbol: Symbol,
    depth: Annotated[int, typer.Option(help="Levels a side.", min=1, max=1000)] = 10,
    once: Annotated[
        bool, typer.Option("--once", help="Print the book as it is now, and end.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --once: the answer as JSON.")
    ] = False,
    address: Address = None,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
) -> None:
    """Watch one order book move, until Ctrl-C; into a pipe, one line a second."""
    from services.cli.book import print_book, watch_book
    from services.cli.client import gateway_address, run_async

    with readable_errors():
        where = gateway_address(address, data_dir, config_dir)
    with readable_errors(where), contextlib.suppress(KeyboardInterrupt):
        if once or as_json:
            run_async(print_book(where, exchange, symbol, depth, as_json=as_json))
        else:
            run_async(watch_book(where, exchange, symbol, depth))


@app.command(rich_help_panel="Look")
def top(
    instruments: Annotated[
        list[str] | None,
        typer.Argument(help='Instruments as "exchange/symbol"; "*" matches any characters.'),
    ] = None,
    limit: Annotated[int, typer.Option(help="Most instruments shown.", min=1, max=1000)] = 40,
    once: Annotated[bool, typer.Option("--once", help="One table after two seconds.")] = False,
    address: Address = None,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
) -> None:
    """Show many instruments at once: tops, spreads, rates, states, latency; until Ctrl-C."""
    from services.cli.client import gateway_address, run_async
    from services.cli.top import top as show

    with readable_errors():
        where = gateway_address(address, data_dir, config_dir)
    with readable_errors(where), contextlib.suppress(KeyboardInterrupt):
        run_async(show(where, instruments or ["*/*"], limit=limit, once=once))


@app.command(rich_help_panel="Look")
def watch(
    instruments: Annotated[
        list[str] | None,
        typer.Argument(help='Instruments as "exchange/symbol"; "*" matches any characters.'),
    ] = None,
    kinds: Annotated[
        str, typer.Option(help="Kinds of event, comma-separated, such as trade,funding_rate.")
    ] = "trade",
    as_json: AsJson = False,
    count: Annotated[
        int | None, typer.Option("--count", "-n", help="End after so many events.", min=1)
    ] = None,
    address: Address = None,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
) -> None:
    """Print every event of any mix of instruments and kinds, a line each, until Ctrl-C."""
    from services.cli.client import gateway_address, run_async
    from services.cli.watch import watch as follow

    with readable_errors():
        where = gateway_address(address, data_dir, config_dir)
    with readable_errors(where), contextlib.suppress(KeyboardInterrupt):
        run_async(
            follow(where, instruments or ["*/*"], _split([kinds]), as_json=as_json, count=count)
        )


@app.command(rich_help_panel="Look")
def trades(
    exchange: Exchange,
    symbol: Symbol,
    as_json: AsJson = False,
    count: Annotated[
        int | None, typer.Option("--count", "-n", help="End after so many trades.", min=1)
    ] = None,
    address: Address = None,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
) -> None:
    """Print the trades of one instrument as they happen, until Ctrl-C."""
    from services.cli.book import print_trades
    from services.cli.client import gateway_address, run_async

    with readable_errors():
        where = gateway_address(address, data_dir, config_dir)
    with readable_errors(where), contextlib.suppress(KeyboardInterrupt):
        run_async(print_trades(where, exchange, symbol, as_json=as_json, count=count))


@app.command(rich_help_panel="Look")
def instruments(
    exchange: Annotated[
        str,
        typer.Argument(
            help="Only this venue.", show_default=False, autocompletion=complete_exchange
        ),
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line and instrument.")
    ] = False,
    address: Address = None,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
) -> None:
    """List what is collected: symbols, the venues' own names, units, steps, expiries."""
    from services.cli.client import gateway_address, run_async
    from services.cli.instruments import print_instruments

    with readable_errors():
        where = gateway_address(address, data_dir, config_dir)
    with readable_errors(where):
        count = run_async(print_instruments(where, exchange, as_json=as_json))
    raise typer.Exit(0 if count else EXIT_FAILURE)


@app.command(rich_help_panel="Store")
def replay(
    instruments: Annotated[
        list[str] | None,
        typer.Argument(help='Instruments as "exchange/symbol"; "*" matches any characters.'),
    ] = None,
    kinds: Annotated[
        str, typer.Option(help="Kinds of event, comma-separated, such as trade,order_book.")
    ] = "trade",
    start: Annotated[
        str, typer.Option("--from", help="Begin, by receive time, such as 2026-11-24T16:00:00Z.")
    ] = "",
    end: Annotated[str, typer.Option("--to", help="End; now by default.")] = "",
    speed: Annotated[
        str, typer.Option(help="Seconds of the past that pass in one, 0.01 to 10000.")
    ] = "1",
    unpaced: Annotated[bool, typer.Option("--unpaced", help="As fast as it is read.")] = False,
    longest_pause: Annotated[
        float | None, typer.Option(help="Pauses are cut to so many seconds.", min=0)
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    address: Address = None,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
) -> None:
    """Print stored history as it came live: at its own pace, faster, or as fast as possible."""
    from services.cli.client import gateway_address, run_async
    from services.cli.replay import moment, print_replay, speed_of
    from services.shared.errors import InvalidArgument

    with readable_errors():
        if not start:
            raise InvalidArgument("--from: expected a time such as 2026-11-24T16:00:00Z, got none")
        begin, until = moment(start), moment(end) if end else None
        pace = speed_of(speed, unpaced=unpaced)
        where = gateway_address(address, data_dir, config_dir)
    with readable_errors(where), contextlib.suppress(KeyboardInterrupt):
        run_async(
            print_replay(
                where,
                instruments or ["*/*"],
                _split([kinds]),
                begin,
                until,
                speed=pace,
                longest_pause=longest_pause,
                as_json=as_json,
                quiet=quiet,
            )
        )


@app.command(rich_help_panel="Store")
def integrity(
    exchange: Annotated[
        str,
        typer.Argument(
            help="Only this venue.", show_default=False, autocompletion=complete_exchange
        ),
    ] = "",
    symbol: Annotated[
        str,
        typer.Argument(
            help="Only this symbol of it.", show_default=False, autocompletion=complete_symbol
        ),
    ] = "",
    day: Annotated[
        str, typer.Option(help="UTC day such as 2026-11-24, or a range of them, A..B.")
    ] = "today",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, day and kind.")
    ] = False,
    address: Address = None,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
) -> None:
    """Tell how whole each stored day is: coverage, gaps, what is missing, and why.

    Exit status 1 when a day is not whole, or nothing is stored of it.
    """
    from datetime import UTC, datetime

    from services.cli.client import gateway_address, run_async
    from services.cli.integrity import days_of, print_integrity

    with readable_errors():
        first, last = days_of(day, datetime.now(UTC).date())
        where = gateway_address(address, data_dir, config_dir)
    with readable_errors(where):
        whole = run_async(print_integrity(where, exchange, symbol, first, last, as_json=as_json))
    raise typer.Exit(0 if whole else EXIT_FAILURE)


@app.command(rich_help_panel="Recordings")
def events(
    recordings: Annotated[
        list[Path], typer.Argument(help="Files of a recording, or its folder.", exists=True)
    ],
    kinds: Annotated[
        str | None, typer.Option(help="Only these, comma-separated, such as trade,integrity.")
    ] = None,
) -> None:
    """Print what a collector told, again, from its recording alone: the same events."""
    from services.cli.events import print_events

    with readable_errors(), contextlib.suppress(KeyboardInterrupt):
        print_events(recordings, _split([kinds] if kinds else None))


@app.command(rich_help_panel="Recordings")
def verify(
    captures: Annotated[
        list[Path],
        typer.Argument(help="Capture files (.jsonl or .jsonl.gz).", metavar="CAPTURE..."),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line and book.")
    ] = False,
    exchange: Annotated[
        str | None,
        typer.Option(help="Venue whose protocol it is; by default told by the URLs inside."),
    ] = None,
) -> None:
    """Replay captures offline, through the code that runs live, and tell how each book ended.

    Exit status 1 when a book did not end SYNCED, 2 when a capture cannot be read.
    """
    from services.cli.verify import run_verify

    with readable_errors():
        result = run_verify(captures, exchange, as_json=as_json)
    raise typer.Exit(result)


@app.command(rich_help_panel="Recordings")
def record(
    out: Annotated[Path, typer.Option(help="Directory that the capture files go to.")],
    simulated: Simulated = False,
    capture: Capture = None,
    speed: Speed = None,
    exchanges: Exchanges = None,
    symbols: Symbols = None,
    duration: Annotated[
        float | None, typer.Option(help="End after so many seconds.", min=0.1)
    ] = None,
    config_dir: ConfigDir = None,
) -> None:
    """Record what the venues send, every raw frame and REST answer, until Ctrl-C.

    `marketprism verify` and `marketprism up --capture` replay the files. Of simulated venues one
    at a time is recorded, Binance unless another is named: their addresses do not tell them apart.
    """
    from services.cli.mesh_plan import MeshOptions
    from services.cli.record import check_recordable, run_record
    from services.cli.venue import choose_venue

    with readable_errors():
        wanted, venues = _split(symbols), _split(exchanges)
        if simulated and not venues and not wanted:
            venues = ("binance",)
        venue = choose_venue(
            simulated=simulated, capture=capture, speed=speed, exchanges=venues, symbols=wanted
        )
        check_recordable(venue)
        options = MeshOptions(
            simulated=venue,
            exchanges=venues,
            symbols=() if simulated else wanted,
            config_dir=config_dir,
        )
        result = run_record(options, out, duration)
    raise typer.Exit(result)


@app.command(
    rich_help_panel="Run",
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)
def simulate(context: typer.Context) -> None:
    """Run a simulated venue alone: `--venue okx --port 9310`; `--help` tells all options.

    For who develops against venues offline; docs/simulator.md tells what it can do.
    """
    from services.cli.simulate import run_simulate

    raise typer.Exit(run_simulate(context.args))


@app.command(rich_help_panel="Other")
def version() -> None:
    """Print the versions of MarketPrism and of what it runs on."""
    from services.cli.versions import version_lines

    for line in version_lines():
        print(line)


def _split(values: list[str] | None) -> tuple[str, ...]:
    return tuple(part for value in values or () for part in value.replace(",", " ").split())
