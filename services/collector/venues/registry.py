"""Which adapter speaks for which venue."""

import re
from collections.abc import Callable
from urllib.parse import urlsplit

from services.collector.venues.base import VenueAdapter
from services.collector.venues.binance_spot import BinanceSpot
from services.shared.errors import InvalidArgument

__all__ = ["adapter_for_exchange", "exchange_for_url", "exchanges", "url_host"]

_ADAPTERS: dict[str, Callable[[], VenueAdapter]] = {
    "binance": lambda: BinanceSpot("binance"),
    "binance_us": lambda: BinanceSpot("binance_us"),
}

_HOSTS = (
    (re.compile(r"(?:data-)?(?:stream|api)(?:[0-9]|-gcp)?\.binance\.(?:com|vision)"), "binance"),
    (re.compile(r"(?:stream|api)\.binance\.us"), "binance_us"),
)


def exchanges() -> list[str]:
    """Ids of the venues that have an adapter."""
    return sorted(_ADAPTERS)


def adapter_for_exchange(exchange: str) -> VenueAdapter:
    """Make the adapter of a venue id. Raises InvalidArgument when there is none."""
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
    return next((exchange for pattern, exchange in _HOSTS if pattern.fullmatch(host)), None)
