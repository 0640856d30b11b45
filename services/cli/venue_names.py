"""What the instrument of a canonical symbol is called at a venue, and who can have it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["VENUES", "can_match", "native_name"]

_SYMBOL = re.compile(
    r"(?P<base>[A-Z0-9]+)-(?P<quote>[A-Z0-9]+)"
    r"(?:-(?P<perpetual>PERP)|-(?P<date>20[0-9]{6})(?:-(?P<option>[0-9d]+-[CP]))?)?"
)
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_SPOT, _PERPETUAL, _FUTURE, _OPTION = "spot", "perpetual", "future", "option"
_FORMS: Mapping[str, frozenset[str]] = {
    "binance": frozenset({_SPOT}),
    "binance_us": frozenset({_SPOT}),
    "binance_usdm": frozenset({_PERPETUAL, _FUTURE}),
    "binance_coinm": frozenset({_PERPETUAL, _FUTURE}),
    "okx": frozenset({_SPOT, _PERPETUAL, _FUTURE, _OPTION}),
    "deribit": frozenset({_PERPETUAL, _FUTURE, _OPTION}),
}
"""What the instruments of a venue are; Deribit's few spot pairs are left to the configuration."""


VENUES = tuple(_FORMS)
"""Every venue that can be collected."""


@dataclass(frozen=True, slots=True)
class _Name:
    base: str
    quote: str
    form: str
    date: str
    """YYYYMMDD, empty when it does not expire."""
    option: str
    """Strike and right of an option."""


def native_name(exchange: str, symbol: str) -> str | None:
    """Give the venue's own name of a canonical symbol; None for what the venue cannot have.

    That it can have it does not mean that it lists it.
    """
    match = _SYMBOL.fullmatch(symbol)
    write = _WRITERS.get(exchange)
    if match is None or write is None:
        return None
    form = (
        _PERPETUAL
        if match["perpetual"]
        else _OPTION
        if match["option"]
        else _FUTURE
        if match["date"]
        else _SPOT
    )
    if form not in _FORMS[exchange] or not _QUOTES[exchange](match["quote"]):
        return None
    return write(
        _Name(match["base"], match["quote"], form, match["date"] or "", match["option"] or "")
    )


def can_match(exchange: str, pattern: str) -> bool:
    """Tell whether an instrument that the venue can have may match a symbol with `*` in it.

    Only the end of the pattern is looked at: it says what the instruments are.
    """
    if "*" not in pattern:
        return native_name(exchange, pattern) is not None
    end = pattern.rpartition("*")[2].rpartition("-")[2]
    forms = _FORMS.get(exchange, frozenset())
    if not end:
        return True
    if end in ("C", "P"):
        return _OPTION in forms
    if end.isdigit():
        return _FUTURE in forms
    if "PERP".endswith(end):
        return _PERPETUAL in forms
    return _SPOT in forms


def _joined(name: _Name) -> str:
    return name.base + name.quote


def _usd_m(name: _Name) -> str:
    return _joined(name) + (f"_{name.date[2:]}" if name.date else "")


def _coin_m(name: _Name) -> str:
    return f"{_joined(name)}_{name.date[2:] or 'PERP'}"


def _okx(name: _Name) -> str:
    swap = "SWAP" if name.form == _PERPETUAL else ""
    # A strike's point is spelt with a d in a symbol, which is one word of a NATS subject.
    parts = (name.base, name.quote, swap, name.date[2:], name.option.replace("d", "."))
    return "-".join(filter(None, parts))


def _deribit(name: _Name) -> str:
    base = name.base if name.quote == "USD" else f"{name.base}_{name.quote}"
    perpetual = "PERPETUAL" if name.form == _PERPETUAL else ""
    return "-".join(filter(None, (base, perpetual, _deribit_day(name.date), name.option)))


def _deribit_day(date: str) -> str:
    if not date or not 1 <= int(date[4:6]) <= 12:
        return ""
    return f"{int(date[6:])}{_MONTHS[int(date[4:6]) - 1]}{date[2:4]}"


_WRITERS: Mapping[str, Callable[[_Name], str]] = {
    "binance": _joined,
    "binance_us": _joined,
    "binance_usdm": _usd_m,
    "binance_coinm": _coin_m,
    "okx": _okx,
    "deribit": _deribit,
}
_QUOTES: Mapping[str, Callable[[str], bool]] = {
    "binance": lambda quote: True,
    "binance_us": lambda quote: True,
    "binance_usdm": lambda quote: quote != "USD",
    "binance_coinm": lambda quote: quote == "USD",
    "okx": lambda quote: True,
    "deribit": lambda quote: quote in ("USD", "USDC"),
}
"""Whether prices at the venue may be in a currency."""
