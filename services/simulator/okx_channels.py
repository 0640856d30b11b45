"""What clients of OKX may ask for on a WebSocket, and how it is refused.

Follows "Subscribe" and "WebSocket error codes" of the OKX API v5 documentation.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from services.simulator.okx_candles import BAR_CHANNELS

__all__ = [
    "CHANNELS",
    "OkxArgument",
    "OkxChannel",
    "OkxRefusalError",
    "OkxRequest",
    "read_argument",
    "read_request",
]

_TYPES = ("SPOT", "SWAP", "FUTURES", "OPTION", "MARGIN")
_LOGIN = ("books-l2-tbt", "books50-l2-tbt")
_MOST_SHOWN = 200


class OkxRefusalError(ValueError):
    """A request that is answered with an error event."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        self.text = text
        super().__init__(f"{code} {text}")


@dataclass(frozen=True, slots=True)
class OkxChannel:
    """One channel."""

    key: str
    """What its argument names: `instId`, `instType` or `instFamily`."""
    path: str = "public"
    """The WebSocket that carries it: `public` or `business`."""
    index: bool = False
    """Whether its `instId` is an index."""
    reference: bool = False
    """Whether it tells anything but books, trades, tickers and candles."""


CHANNELS: Mapping[str, OkxChannel] = {
    "books": OkxChannel("instId"),
    "books5": OkxChannel("instId"),
    "bbo-tbt": OkxChannel("instId"),
    "trades": OkxChannel("instId"),
    "trades-all": OkxChannel("instId", "business"),
    "tickers": OkxChannel("instId"),
    "mark-price": OkxChannel("instId", reference=True),
    "funding-rate": OkxChannel("instId", reference=True),
    "open-interest": OkxChannel("instId", reference=True),
    "index-tickers": OkxChannel("instId", index=True, reference=True),
    "opt-summary": OkxChannel("instFamily", reference=True),
    "liquidation-orders": OkxChannel("instType", reference=True),
    "instruments": OkxChannel("instType", reference=True),
    **{channel: OkxChannel("instId", "business") for channel in BAR_CHANNELS},
}
"""The channels by name."""


@dataclass(frozen=True, slots=True)
class OkxArgument:
    """One argument of a subscription, understood."""

    channel: str
    key: str
    told: Mapping[str, str]
    """As the acknowledgement repeats it: without what the channel does not know."""

    @property
    def stream(self) -> str:
        """The stream's name here."""
        return f"{self.channel}:{self.key}"

    def refused(self) -> OkxRefusalError:
        """Return the error for what does not exist."""
        return _no_such(self.told)


@dataclass(frozen=True, slots=True)
class OkxRequest:
    """A message of a client."""

    operation: str
    arguments: list[object]
    number: str | None
    """Its `id`, which every answer repeats."""


def read_request(text: str) -> OkxRequest:
    """Return the request in a message.

    Raises:
        OkxRefusalError: when the venue would not understand it.

    """
    illegal = OkxRefusalError("60012", f"Illegal request: {text[:_MOST_SHOWN]}")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise illegal from None
    if not isinstance(message, dict):
        raise illegal
    operation, arguments, number = message.get("op"), message.get("args"), message.get("id")
    if operation not in ("subscribe", "unsubscribe") or not isinstance(arguments, list):
        raise illegal
    if not arguments:
        raise OkxRefusalError("60013", "Invalid args")
    if number is not None and not (isinstance(number, str) and number.isalnum()):
        raise OkxRefusalError("60033", "Parameter id error")
    return OkxRequest(operation, arguments, number)


def read_argument(given: object, path: str, *, login: bool = True) -> OkxArgument:
    """Return an argument of a subscription on the WebSocket `path`.

    `login` False takes channels for which the venue wants one.

    Raises:
        OkxRefusalError: when there is no such channel on it, or something is missing.

    """
    if not isinstance(given, dict):
        raise OkxRefusalError("60013", "Invalid args")
    texts = {str(name): value for name, value in given.items() if isinstance(value, str)}
    channel = texts.get("channel", "")
    if channel in _LOGIN and login:
        raise OkxRefusalError("60011", "Please log in")
    known = CHANNELS.get("books" if channel in _LOGIN else channel)
    if known is None or known.path != path:
        raise _no_such(texts)
    # Families were named by their underlying once, and still may be.
    key = texts.get(known.key) or (texts.get("uly") if known.key == "instFamily" else None)
    if not key or (known.key == "instType" and key not in _TYPES):
        raise _no_such(texts)
    return OkxArgument(channel, key, {"channel": channel, known.key: key})


def _no_such(texts: Mapping[str, str]) -> OkxRefusalError:
    named = ",".join(
        text if name == "channel" else f"{name}:{text}" for name, text in texts.items()
    )
    return OkxRefusalError(
        "60018",
        f"Wrong URL or channel:{named} doesn't exist. Please use the correct URL, channel and "
        "parameters referring to API document.",
    )
