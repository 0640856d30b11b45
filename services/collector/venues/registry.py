"""Which adapter speaks for which venue."""

import re
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from services.collector.venues.base import VenueAdapter
from services.collector.venues.binance_futures import COINM, USDM, BinanceFutures
from services.collector.venues.binance_spot import BINANCE, BINANCE_US, BinanceSpot
from services.collector.venues.deribit import Deribit
from services.collector.venues.okx import Okx
from services.shared.errors import InvalidArgument

__all__ = [
    "adapter_for_exchange",
    "exchange_for_url",
    "exchanges",
    "url_host",
]


_ADAPTERS: dict[str, Callable[[], VenueAdapter]] = {
    "binance": lambda: BinanceSpot(BINANCE),
    "binance_us": lambda: BinanceSpot(BINANCE_US),
    "binance_usdm": lambda: BinanceFutures(USDM),
    "binance_coinm": lambda: BinanceFutures(COINM),
    "okx": Okx,
    "deribit": Deribit,
}

_HOSTS = (
    # Sites that speak the protocol of Binance spot: .com with its hosts for data and tests, and
    # those of Jersey, Singapore, Uganda, Türkiye, Thailand and Bahrain.
    (
        re.compile(
            r"(?:data-|demo-)?(?:stream|api)(?:[0-9]|-gcp|-cloud|-tr|-th)?(?:\.testnet)?"
            r"\.(?:tr)?binance\.(?:com|vision|je|sg|co\.ug|tr|me|th|bh)"
        ),
        "binance",
    ),
    (re.compile(r"(?:testnet|data)\.binance\.(?:vision|com)"), "binance"),
    (re.compile(r"(?:www\.)?(?:tr)?binance\.(?:tr|me|je|sg)|www\.trbinance\.com"), "binance"),
    (re.compile(r"stream-(?:tr|th)\.2meta\.app"), "binance"),
    (re.compile(r"(?:stream|api)[0-9]?\.binance\.us"), "binance_us"),
    (
        re.compile(r"(?:demo-)?(?:fstream|fapi)(?:-[a-z]+|[0-9])?\.binance(?:\.com|future\.com)"),
        "binance_usdm",
    ),
    (re.compile(r"(?:stream|testnet)\.binancefuture\.com"), "binance_usdm"),
    (
        re.compile(r"(?:demo-)?(?:dstream|dapi)(?:-[a-z]+|[0-9])?\.binance(?:\.com|future\.com)"),
        "binance_coinm",
    ),
    (
        re.compile(
            r"(?:(?:ws(?:aws|eea|us)?(?:pap)?|real|awspush|www|aws|eea|us|app|my|tr)\.)?oke?x\.com"
        ),
        "okx",
    ),
    (re.compile(r"(?:(?:www|streams?|test|history)\.)?deribit\.com"), "deribit"),
)
# Hosts that serve two venues, told apart by the beginning of the path.
_PATHS = (("testnet.binancefuture.com", "/dapi/", "binance_coinm"),)


def exchanges() -> list[str]:
    """Ids of the venues that have an adapter."""
    return sorted(_ADAPTERS)


def adapter_for_exchange(exchange: str, option_families: Sequence[str] = ()) -> VenueAdapter:
    """Make the adapter of a venue id; `option_families` are those listed by OKX, if not the usual.

    Raises InvalidArgument when there is no such venue.
    """
    if exchange == "okx" and option_families:
        return Okx(option_families=tuple(option_families))
    try:
        return _ADAPTERS[exchange]()
    except KeyError:
        raise InvalidArgument(
            f"no adapter for exchange {exchange!r}; expected one of {', '.join(exchanges())}",
            reason="EXCHANGE_NOT_SUPPORTED",
        ) from None


def url_host(url: str | None) -> str:
    """Host of a URL; empty when it names none or is not a URL."""
    try:
        return urlsplit(url or "").hostname or ""
    except ValueError:
        return ""


def exchange_for_url(url: str | None) -> str | None:
    """Venue id of a WebSocket or REST URL, None when no adapter speaks that venue's protocol."""
    host = url_host(url)
    for name, path, exchange in _PATHS:
        if host == name and urlsplit(url or "").path.startswith(path):
            return exchange
    return next((exchange for pattern, exchange in _HOSTS if pattern.fullmatch(host)), None)
