"""The simulated venues beside the mesh: which, how they are started, and where they listen."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.cli.port_plan import PortUse
from services.cli.venue_names import native_name
from services.shared.capture import read_numbered
from services.shared.errors import ConfigError, InvalidArgument
from services.shared.process import http_ready

__all__ = [
    "DEMO_EXCHANGES",
    "SIMULATOR_PORT",
    "VenueOptions",
    "are_ready",
    "captured_exchanges",
    "choose_venue",
    "simulated_urls",
]

SIMULATOR_PORT = 9300
"""Where the first simulated venue listens unless told otherwise; the others follow."""

DEMO_EXCHANGES = ("binance", "binance_usdm", "binance_coinm", "okx", "deribit")
"""What is simulated unless venues are named."""

_PLACES = (*DEMO_EXCHANGES, "binance_us")
"""Every venue that can be simulated: its place is what is added to the first port."""

_WS_PATHS = {
    "binance": "/stream",
    "binance_us": "/stream",
    "binance_coinm": "/stream",
    "deribit": "/ws/api/v2",
}
"""What follows host and port in the WebSocket address that a collector is given; the rest of the
venues have routes, which it appends by itself."""

_LINES_LOOKED_AT = 20_000


@dataclass(frozen=True, slots=True)
class VenueOptions:
    """What the simulated venues play."""

    exchanges: tuple[str, ...] = DEMO_EXCHANGES
    """Which venues; a recording has one."""

    capture: Path | None = None
    """A recording; None means generated markets."""

    speed: str = "1"
    """Times the recorded pace, or `max`."""

    loop: bool = False
    """Begin the recording again at its end."""

    symbols: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What generated markets list, by exchange and by the venue's own names; a venue that is not
    here lists what is usual."""

    symbol_count: int | None = None
    """List this many instruments at each venue, made-up ones included."""

    depth_rate: float | None = None
    """Depth frames a second and instrument."""

    trade_rate: float | None = None
    """Taker orders a second and instrument."""

    seed: int | None = None
    """Same seed, same markets."""

    port: int = SIMULATOR_PORT
    """Where the first venue listens; 0 takes free ports for all."""

    host: str = "127.0.0.1"
    """Address they listen on."""

    def port_uses(self) -> list[PortUse]:
        """Give their ports, for the plan."""
        return [
            PortUse(
                "simulator",
                f"the simulated {exchange}",
                "",
                "--simulator-port",
                self.host,
                self.port + _PLACES.index(exchange) if self.port else 0,
                exchange,
            )
            for exchange in self.exchanges
        ]

    def command(self, ports: Mapping[str, int]) -> list[str]:
        """Give the command line of their process."""
        command = [sys.executable, "-P", "-m", "services.cli.simulators", "--host", self.host]
        if self.capture is not None:
            command += ["--capture", str(self.capture), "--speed", self.speed]
            command += ["--loop"] if self.loop else []
        for exchange, names in self.symbols.items():
            command += ["--symbols", f"{exchange}={','.join(names)}"]
        for option, value in (
            ("--symbol-count", self.symbol_count),
            ("--depth-rate", self.depth_rate),
            ("--trade-rate", self.trade_rate),
            ("--seed", self.seed),
        ):
            if value is not None:
                command += [option, str(value)]
        return command + [f"{exchange}={ports[exchange]}" for exchange in self.exchanges]

    @property
    def told(self) -> str:
        """What they play, for a person."""
        if self.capture is None:
            return "a generated market each" if len(self.exchanges) > 1 else "a generated market"
        pace = "as fast as possible" if self.speed == "max" else f"at {self.speed} times its pace"
        return f"{self.capture.name} {pace}"


def choose_venue(
    *,
    simulated: bool = False,
    capture: Path | None = None,
    speed: str | None = None,
    loop: bool = False,
    exchanges: Sequence[str] = (),
    symbols: Sequence[str] = (),
    symbol_count: int | None = None,
    depth_rate: float | None = None,
    trade_rate: float | None = None,
    seed: int | None = None,
    port: int = SIMULATOR_PORT,
) -> VenueOptions | None:
    """Give the simulated venues that these options ask for, None for the live venues.

    Raises `ConfigError` for options that do not go together.
    """
    if simulated and capture is not None:
        raise ConfigError(
            "--simulated and --capture: expected one of them, generated markets or a recorded one"
        )
    market = {
        "--symbol-count": symbol_count,
        "--depth-rate": depth_rate,
        "--trade-rate": trade_rate,
        "--seed": seed,
    }
    for needed, given, options in (
        ("--simulated", simulated, market),
        ("--capture FILE", capture is not None, {"--speed": speed, "--loop": loop or None}),
    ):
        for name, value in options.items():
            if value is not None and not given:
                raise ConfigError(f"{name}: expected {needed} with it, and it is not there")
    if not simulated and capture is None:
        return None
    for exchange in exchanges:
        if exchange not in _PLACES:
            raise ConfigError(
                f"--exchanges: expected venues that can be simulated, {', '.join(_PLACES)}, got "
                f"{exchange!r}"
            )
    if port and port + len(_PLACES) > 65_536:
        raise ConfigError(
            f"--simulator-port: expected a port that has {len(_PLACES) - 1} others after it, got "
            f"{port}"
        )
    chosen = tuple(dict.fromkeys(exchanges))
    listed: dict[str, tuple[str, ...]] = {}
    if capture is not None:
        capture = capture.expanduser().absolute()
        chosen = (_captured(capture, chosen),)
    elif symbols:
        listed = _listed(symbols, chosen)
        chosen = chosen or tuple(listed)
    return VenueOptions(
        exchanges=chosen or DEMO_EXCHANGES,
        capture=capture,
        speed=_speed(speed),
        loop=loop,
        symbols=listed,
        symbol_count=symbol_count,
        depth_rate=depth_rate,
        trade_rate=trade_rate,
        seed=seed,
        port=port,
    )


def simulated_urls(exchange: str, address: str) -> tuple[str, str]:
    """Give what the collector is told of a simulated venue at `host:port`: REST, WebSocket."""
    return f"http://{address}", f"ws://{address}{_WS_PATHS.get(exchange, '')}"


async def are_ready(rest_urls: Sequence[str]) -> bool:
    """Readiness probe of simulated venues."""
    return all([await http_ready(f"{url}/sim/symbols") for url in rest_urls])


def captured_exchanges(path: Path) -> list[str]:
    """Tell by the URLs in a recording which venues it is of, in the order of their appearance.

    Raises `ConfigError` when it cannot be read.
    """
    # What the collector is made of takes a while to import: only who has a recording waits for it.
    from services.collector.venues.registry import exchange_for_url

    found: dict[str, None] = {}
    seen: set[str] = set()
    try:
        for number, record in read_numbered(path, lambda _line, _why: None):
            if number > _LINES_LOOKED_AT:
                break
            url = record.url or ""
            if url in seen:
                continue
            seen.add(url)
            exchange = exchange_for_url(url)
            if exchange is not None:
                found[exchange] = None
    except InvalidArgument as error:
        raise ConfigError(f"--capture: {error.message}") from None
    return list(found)


def _captured(path: Path, named: Sequence[str]) -> str:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"--capture: cannot read {path}: {error.strerror}") from None
    found = captured_exchanges(path)
    if len(named) > 1:
        raise ConfigError(
            f"--exchanges: expected the one venue that {path.name} is of, got {', '.join(named)}"
        )
    if len(found) > 1:
        raise ConfigError(
            f"--capture: expected a recording of one venue, and {path.name} is of "
            f"{', '.join(found)}: record one at a time with --exchanges"
        )
    if named and found and found[0] != named[0]:
        raise ConfigError(f"--exchanges: the URLs in {path.name} are of {found[0]}, got {named[0]}")
    return (*named, *found, "binance")[0]


def _listed(symbols: Sequence[str], exchanges: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Give what each venue is to list, by its own names; only venues that can have any of it."""
    from services.simulator.venues import VENUES

    found: dict[str, list[str]] = {}
    for symbol in dict.fromkeys(each.upper() for each in symbols):
        placed = False
        for exchange in exchanges or DEMO_EXCHANGES:
            name = native_name(exchange, symbol)
            if name is None:
                continue
            try:
                VENUES[exchange]().listed(name)
            except ValueError:
                continue
            found.setdefault(exchange, []).append(name)
            placed = True
        if not placed:
            raise ConfigError(
                "--symbols: expected symbols that one of "
                f"{', '.join(exchanges or DEMO_EXCHANGES)} can list, such as BTC-USDT or "
                f"BTC-USDT-PERP, without '*' for a generated market, got {symbol!r}"
            )
    for exchange in exchanges:
        if exchange not in found:
            raise ConfigError(
                f"--symbols: expected something for {exchange} among them, which --exchanges "
                f"names, got {', '.join(symbols)}"
            )
    # In the order of the ports.
    return {exchange: tuple(found[exchange]) for exchange in _PLACES if exchange in found}


def _speed(text: str | None) -> str:
    if text is None or text == "max":
        return text or "1"
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not (factor > 0 and math.isfinite(factor)):
        raise ConfigError(f"--speed: expected a number above 0 or 'max', got {text!r}")
    return text
