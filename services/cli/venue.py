"""The simulated venue beside the mesh: how it is started, and what it lists."""

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from services.cli.port_plan import PortUse
from services.shared.errors import ConfigError, StartupError
from services.shared.process import http_ready

__all__ = [
    "SIMULATOR_PORT",
    "VenueOptions",
    "choose_venue",
    "collector_environment",
    "is_ready",
    "listed_symbols",
]

SIMULATOR_PORT = 9300
"""Where the simulated venue listens unless told otherwise."""

_SYMBOL = re.compile(r"[A-Z0-9]{1,12}-[A-Z0-9]{1,12}")
_COLLECTOR = "MARKETPRISM__COLLECTOR__EXCHANGES__BINANCE__"


@dataclass(frozen=True, slots=True)
class VenueOptions:
    """What the simulated venue plays."""

    capture: Path | None = None
    """A recording; None means a generated market."""

    speed: str = "1"
    """Times the recorded pace, or `max`."""

    loop: bool = False
    """Begin the recording again at its end."""

    symbols: tuple[str, ...] = ()
    """Canonical symbols of the generated market; empty means the usual five."""

    symbol_count: int | None = None
    """List this many symbols, made-up ones included."""

    depth_rate: float | None = None
    """Depth frames a second and symbol."""

    trade_rate: float | None = None
    """Taker orders a second and symbol."""

    seed: int | None = None
    """Same seed, same market."""

    port: int = SIMULATOR_PORT
    """Where it listens; 0 takes a free one."""

    host: str = "127.0.0.1"
    """Address it listens on."""

    def port_use(self) -> PortUse:
        """Give its port, for the plan."""
        return PortUse(
            "simulator", "the simulated venue", "", "--simulator-port", self.host, self.port
        )

    def command(self, port: int) -> list[str]:
        """Give the command line of its process."""
        command = [sys.executable, "-P", "-m", "services.simulator"]
        command += ["--host", self.host, "--port", str(port)]
        if self.capture is not None:
            command += ["--capture", str(self.capture), "--speed", self.speed]
            return command + (["--loop"] if self.loop else [])
        if self.symbols:
            command += ["--symbols", ",".join(native_symbol(each) for each in self.symbols)]
        for option, value in (
            ("--symbol-count", self.symbol_count),
            ("--depth-rate", self.depth_rate),
            ("--trade-rate", self.trade_rate),
            ("--seed", self.seed),
        ):
            if value is not None:
                command += [option, str(value)]
        return command

    @property
    def told(self) -> str:
        """What it plays, for a person."""
        if self.capture is None:
            return "a generated market"
        pace = "as fast as possible" if self.speed == "max" else f"at {self.speed} times its pace"
        return f"{self.capture.name} {pace}"


def choose_venue(
    *,
    simulated: bool = False,
    capture: Path | None = None,
    speed: str | None = None,
    loop: bool = False,
    symbols: Sequence[str] = (),
    symbol_count: int | None = None,
    depth_rate: float | None = None,
    trade_rate: float | None = None,
    seed: int | None = None,
    port: int = SIMULATOR_PORT,
) -> VenueOptions | None:
    """Give the simulated venue that these options ask for, None for the live venues.

    Raises `ConfigError` for options that do not go together.
    """
    if simulated and capture is not None:
        raise ConfigError(
            "--simulated and --capture: expected one of them, a generated market or a recorded one"
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
    if capture is not None:
        _check_capture(capture)
    for symbol in symbols if simulated else ():
        if not _SYMBOL.fullmatch(symbol.upper()):
            raise ConfigError(
                f"--symbols: expected spot symbols such as BTC-USDT for a generated market, got "
                f"{symbol!r}"
            )
    return VenueOptions(
        capture=capture.expanduser().absolute() if capture is not None else None,
        speed=_speed(speed),
        loop=loop,
        symbols=tuple(symbols) if simulated else (),
        symbol_count=symbol_count,
        depth_rate=depth_rate,
        trade_rate=trade_rate,
        seed=seed,
        port=port,
    )


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


def _check_capture(path: Path) -> None:
    try:
        with path.expanduser().open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"--capture: cannot read {path}: {error.strerror}") from None


def native_symbol(symbol: str) -> str:
    """Give the venue's own name of a spot symbol: `BTC-USDT` is `BTCUSDT`."""
    return symbol.replace("-", "").upper()


async def is_ready(rest_url: str) -> bool:
    """Readiness probe of the simulated venue."""
    return await http_ready(f"{rest_url}/sim/symbols")


async def listed_symbols(rest_url: str) -> list[str]:
    """Ask the venue for the canonical symbols that it lists; raises `StartupError`."""
    url = f"{rest_url}/api/v3/exchangeInfo"
    try:
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
            answer.raise_for_status()
            body: dict[str, Any] = json.loads(await answer.read())
        symbols = [f"{each['baseAsset']}-{each['quoteAsset']}" for each in body["symbols"]]
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        raise StartupError(
            f"expected the simulated venue's symbols at {url}, got: "
            f"{type(error).__name__}: {error}",
            reason="SIMULATOR_NOT_READY",
        ) from error
    if not symbols:
        raise StartupError(
            f"expected the simulated venue at {url} to list symbols, and it lists none",
            reason="SIMULATOR_NOT_READY",
        )
    return symbols


def collector_environment(
    *,
    rest_url: str | None = None,
    ws_url: str | None = None,
    symbols: Sequence[str] = (),
) -> dict[str, str]:
    """Give the environment that points the collector at a venue and at symbols."""
    environment = {}
    if rest_url is not None:
        environment[f"{_COLLECTOR}REST_URL"] = rest_url
    if ws_url is not None:
        environment[f"{_COLLECTOR}WS_URL"] = ws_url
    if symbols:
        environment[f"{_COLLECTOR}SYMBOLS"] = json.dumps(list(symbols))
    return environment
