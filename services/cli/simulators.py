"""`python -m services.cli.simulators binance=9300 okx=9303 ...`: several simulated venues at once.

Each venue of a demo has a port and a market of its own, and all of them share this process: their
interpreters would cost more than the venues do. Who develops against one venue runs that one with
`marketprism simulate`.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import signal
import sys
from collections.abc import Mapping, Sequence

import uvloop
from pydantic import ValidationError

from services.simulator.capture import CaptureError, CaptureMarket
from services.simulator.market import Market
from services.simulator.protocol import VenueProtocol
from services.simulator.server import SimulatedVenue
from services.simulator.venues import VENUES, generated_market

__all__ = ["main"]

_SHARED_WEIGHT = ("binance_usdm", "binance_coinm")
"""Venues which count the requests of an address together."""


_HISTORY = 20_000
"""Level changes kept of each book, to tell what it was a minute ago: a demo is to be light."""

_LISTINGS = (
    ("/exchangeInfo", "symbols", "symbol"),
    ("/instruments", "data", "instId"),
    ("/get_instruments", "result", "instrument_name"),
)
"""Lists of instruments: end of the path, key of the list, key of the venue's name in an entry."""


class _Recording(CaptureMarket):
    """A recording that lists only what it can play, for a collector takes all that is listed."""

    def exchange_info(self) -> bytes | None:
        """Return the recorded listing of Binance without what was not recorded."""
        return self._only_recorded(super().exchange_info(), "symbols", "symbol")

    def captured_answer(self, path: str, query: Mapping[str, str]) -> bytes | None:
        """Return a recorded answer, a list of instruments without what was not recorded."""
        body = super().captured_answer(path, query)
        for end, key, name in _LISTINGS:
            if path.endswith(end):
                return self._only_recorded(body, key, name)
        return body

    def _only_recorded(self, body: bytes | None, key: str, name: str) -> bytes | None:
        if body is None:
            return None
        try:
            told = json.loads(body)
            told[key] = [each for each in told[key] if each[name] in self.symbols]
        except (ValueError, KeyError, TypeError):
            return None  # the venue then writes one of its own
        return json.dumps(told).encode() if told[key] else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal; exit status 2 for a bad command line, 1 when a port cannot be had."""
    parser = _parser()
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        venues = _venues(given)
    except (ValidationError, CaptureError, ValueError) as error:
        parser.error(str(error))
    try:
        uvloop.run(_serve(venues))
    except OSError as error:
        print(f"a simulated venue cannot listen: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


async def _serve(venues: Sequence[SimulatedVenue]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    # The books are long-lived and hold no cycles: walking them again and again costs a tenth.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    async with contextlib.AsyncExitStack() as stack:
        for venue in venues:
            await stack.enter_async_context(venue)
            symbols = list(venue.market.symbols)
            title = venue.protocol.title or venue.protocol.name
            print(f"simulated {title} at {venue.rest_url}: {len(symbols)} symbols", flush=True)
        await stop.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.cli.simulators",
        description="Several simulated venues in one process, each on a port of its own.",
    )
    parser.add_argument("venues", nargs="+", metavar="VENUE=PORT", help=", ".join(VENUES))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--capture", help="play this recording, of the one venue that is named")
    parser.add_argument("--speed", default="1", help="times the recorded pace, or 'max'")
    parser.add_argument("--loop", action="store_true", help="begin the recording again at its end")
    parser.add_argument(
        "--symbols",
        action="append",
        default=[],
        metavar="VENUE=NAME,...",
        help="what a venue lists, by its own names; without this what is usual",
    )
    parser.add_argument("--symbol-count", type=int, help="list this many at each venue")
    parser.add_argument("--depth-rate", type=float, help="frames a second and symbol")
    parser.add_argument("--trade-rate", type=float, help="taker orders a second and symbol")
    parser.add_argument("--seed", type=int)
    return parser


def _venues(given: argparse.Namespace) -> list[SimulatedVenue]:
    ports = {name: int(port) for name, port in map(_pair, given.venues)}
    symbols = {name: tuple(names.split(",")) for name, names in map(_pair, given.symbols)}
    if given.capture is not None and len(ports) != 1:
        raise ValueError(f"--capture: expected one venue to play it, got {', '.join(ports)}")
    venues: dict[str, SimulatedVenue] = {}
    for name, port in ports.items():
        protocol = VENUES[name]()
        pool = next((venues[each].weights for each in _SHARED_WEIGHT if each in venues), None)
        venues[name] = SimulatedVenue(
            _market(given, protocol, symbols.get(name)),
            given.host,
            port,
            protocol.settings_type(),
            protocol,
            pool if name in _SHARED_WEIGHT else None,
        )
    return list(venues.values())


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if name not in VENUES or not equals or not value:
        raise ValueError(f"expected VENUE=..., VENUE one of {', '.join(VENUES)}, got {text!r}")
    return name, value


def _market(
    given: argparse.Namespace, protocol: VenueProtocol, symbols: tuple[str, ...] | None
) -> Market:
    if given.capture is not None:
        speed = None if given.speed == "max" else float(given.speed)
        return _Recording(given.capture, protocol, speed=speed, loop=given.loop)
    names = symbols or tuple(protocol.default_symbols)
    if given.symbol_count is not None:
        names = protocol.more_symbols(given.symbol_count, names)
    options = {
        "history": _HISTORY,
        "seed": given.seed,
        "depth_rate": given.depth_rate,
        "trade_rate": given.trade_rate,
    }
    chosen = {name: value for name, value in options.items() if value is not None}
    return generated_market(protocol, symbols=names, **chosen)


if __name__ == "__main__":
    sys.exit(main())
