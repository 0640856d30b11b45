"""The command line of a simulated venue, for `python -m services.simulator` and the CLI."""

import argparse
import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop
from pydantic import ValidationError

from services.simulator.capture import CaptureError, CaptureMarket
from services.simulator.market import Market
from services.simulator.protocol import VenueProtocol
from services.simulator.server import SimulatedVenue, VenueSettings
from services.simulator.venues import VENUES, generated_market

__all__ = ["main"]

_PROGRAM = "python -m services.simulator"


def main(arguments: Sequence[str] | None = None, program: str = _PROGRAM) -> int:
    """Run until interrupted; exit status 2 for a bad command line, 1 when it cannot start."""
    parser = _parser(program)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        protocol = VENUES[given.venue]()
        market, settings = _market(given, protocol), _settings(given.set, protocol)
    except (ValidationError, CaptureError, ValueError) as error:
        parser.error(_sentence(error))
    try:
        venue = SimulatedVenue(market, given.host, given.port, settings, protocol)
        uvloop.run(_serve(venue))
    except OSError as error:
        print(
            f"cannot listen on {given.host}:{given.port}: {error.strerror or error}; "
            "stop what holds the port, or choose another with --port (0 is any free one)",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        pass
    return 0


async def _serve(venue: SimulatedVenue) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    # The books are long-lived and hold no cycles: walking them again and again costs a tenth.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    async with venue:
        print(_welcome(venue), flush=True)
        await stop.wait()


def _welcome(venue: SimulatedVenue) -> str:
    protocol, symbols = venue.protocol, list(venue.market.symbols)
    some = ", ".join(symbols[:6]) + (", ..." if len(symbols) > 6 else "")
    lines = [f"simulated {protocol.title or protocol.name}: {len(symbols)} symbols ({some})"]
    addresses = [
        *protocol.addresses(venue),
        ("truth", f"{venue.rest_url}/sim/book?symbol={symbols[0] if symbols else ''}"),
        ("faults", f"{venue.rest_url}/sim/faults"),
        ("counters", f"{venue.rest_url}/sim/stats"),
        ("instruments", f"{venue.rest_url}/sim/instruments"),
    ]
    width = max(len(what) for what, _ in addresses)
    return "\n".join([*lines, *(f"  {what:<{width}}  {where}" for what, where in addresses)])


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="A simulated venue on loopback: the venue's own protocol, and a known truth.",
        epilog="docs/simulator.md tells of channels, REST paths, faults and the truth.",
    )
    parser.add_argument("--venue", choices=sorted(VENUES), default="binance")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9300, help="0 takes a free one")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a limit or timing of the venue: "
        + ", ".join(VenueSettings.model_fields)
        + "; OKX and Deribit have more, which a wrong name tells",
    )
    captured = parser.add_argument_group("a recorded market")
    captured.add_argument("--capture", type=Path, help="play this .jsonl or .jsonl.gz file")
    captured.add_argument(
        "--speed", default="1", help="times the recorded pace, or 'max' (as clients take it)"
    )
    captured.add_argument("--loop", action="store_true", help="begin again at the end")
    made = parser.add_argument_group(
        "a generated market", "Without an option, what is usual at the venue."
    )
    made.add_argument("--symbols", help="the venue's own names, comma-separated")
    made.add_argument("--symbol-count", type=int, help="list this many, made-up ones included")
    made.add_argument("--seed", type=int)
    made.add_argument("--depth-rate", type=float, help="frames/s a symbol")
    made.add_argument("--trade-rate", type=float, help="taker orders/s a symbol")
    made.add_argument("--changes", type=int, help="levels a side and frame")
    made.add_argument("--levels", type=int, help="levels a side")
    return parser


def _market(given: argparse.Namespace, protocol: VenueProtocol) -> Market:
    if given.capture is not None:
        return CaptureMarket(given.capture, protocol, speed=_speed(given.speed), loop=given.loop)
    symbols = tuple(protocol.default_symbols)
    if given.symbols is not None:
        symbols = tuple(name.strip() for name in given.symbols.split(",") if name.strip())
    if given.symbol_count is not None:
        symbols = protocol.more_symbols(given.symbol_count, symbols)
    options = {
        "seed": given.seed,
        "depth_rate": given.depth_rate,
        "trade_rate": given.trade_rate,
        "changes_per_side": given.changes,
        "levels": given.levels,
    }
    chosen = {name: value for name, value in options.items() if value is not None}
    return generated_market(protocol, symbols=symbols, **chosen)


def _settings(assignments: list[str], protocol: VenueProtocol) -> VenueSettings:
    values: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set: expected NAME=VALUE, got {assignment!r}")
        values[name] = value
    known = protocol.settings_type.model_fields
    if unknown := sorted(values.keys() - known.keys()):
        raise ValueError(f"--set {', '.join(unknown)}: expected one of {', '.join(known)}")
    return protocol.settings_type.model_validate(
        {name: None if value == "none" else value for name, value in values.items()}
    )


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--speed: expected a number above 0 or 'max', got {text!r}") from None


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        )
    return str(error)
