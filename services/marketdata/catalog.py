"""Which instruments there are, and what is said about one that is not."""

import difflib
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from google.protobuf.message import DecodeError
from marketprism.market.v1 import instrument_pb2

from services.shared.errors import MarketPrismError, NotFound, Unavailable

__all__ = ["Catalog", "Key"]

Key: TypeAlias = tuple[str, str]
"""(exchange, symbol)."""

_NO_COLLECTOR = "no collector has told of any instrument yet"
_STILL_READING = "what the broker holds is still being read"
_SHOWN = 8
_COMPARED = 500
_LENGTHS_APART = 3


class Catalog:
    """The instruments of all venues.

    An instrument is known when it was described, or when anything of it came. `ready` is set by
    the owner when everything that the broker held was read.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._instruments: dict[Key, bytes] = {}
        self._parsed: dict[Key, instrument_pb2.Instrument] = {}
        self._symbols: dict[str, set[str]] = {}
        self._indices: dict[str, set[str]] = {}
        self._index_count = 0
        self._count = 0
        self._order: list[Key] | None = None
        self.ready = False
        """Whether what the broker held at the start was read."""

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: Key) -> bool:
        return key[1] in self._symbols.get(key[0], ())

    def add(self, key: Key) -> bool:
        """Note that an instrument exists; False when there are too many to keep another."""
        if key in self:
            return True
        if self._count >= self._limit:
            return False
        self._symbols.setdefault(key[0], set()).add(key[1])
        self._count += 1
        return True

    def add_index(self, key: Key) -> bool:
        """Note that an index exists; False when there are too many to keep another."""
        indices = self._indices.get(key[0], ())
        if key[1] in indices:
            return True
        if self._index_count >= self._limit:
            return False
        self._indices.setdefault(key[0], set()).add(key[1])
        self._index_count += 1
        return True

    def is_instrument(self, key: Key) -> bool:
        """Tell whether a name is an instrument of its venue."""
        return key in self

    def is_index(self, key: Key) -> bool:
        """Tell whether a name is an index of its venue; an instrument may have the same name."""
        return key[1] in self._indices.get(key[0], ())

    def describe(self, key: Key, payload: bytes) -> bool:
        """Take an encoded Instrument; False when it is malformed, or one too many."""
        try:
            instrument = instrument_pb2.Instrument.FromString(payload)
        except DecodeError:
            return False
        if (instrument.exchange, instrument.symbol) != key or not self.add(key):
            return False
        if key not in self._instruments:
            self._order = None
        self._instruments[key] = payload
        self._parsed[key] = instrument
        return True

    def payload(self, key: Key) -> bytes:
        """Give the encoded Instrument; raises `NotFound` or `Unavailable`."""
        found = self._instruments.get(key)
        if found is None or not self.ready:
            raise self.not_found(key)
        return found

    def check(self, key: Key) -> None:
        """Raise `NotFound`, or `Unavailable` while nothing is known yet, for an unknown one."""
        if not self.ready or key not in self:
            raise self.not_found(key)

    def check_named(self, key: Key) -> None:
        """Raise as `check` does unless it is an instrument or an index."""
        if not self.ready or not self.is_index(key):
            self.check(key)

    def check_exchange(self, exchange: str) -> None:
        """Raise `NotFound`, or `Unavailable` while nothing is known yet, for an unknown venue."""
        if not self.ready or (exchange not in self._symbols and exchange not in self._indices):
            raise self.not_found((exchange, ""))

    @property
    def exchanges(self) -> list[str]:
        """Every venue that something is known of, in order."""
        return sorted({*self._symbols, *self._indices})

    def count(self, exchange: str) -> int:
        """Give the number of instruments known of a venue."""
        return len(self._symbols.get(exchange, ()))

    def check_ready(self) -> None:
        """Raise `Unavailable` while what the broker held at the start is still being read."""
        if not self.ready:
            raise _starting(_STILL_READING, {})

    def described(self) -> Iterator[tuple[Key, instrument_pb2.Instrument, bytes]]:
        """Give every instrument that was described, by exchange and then symbol."""
        if self._order is None:
            self._order = sorted(self._instruments)
        for key in self._order:
            yield key, self._parsed[key], self._instruments[key]

    def not_found(self, key: Key) -> MarketPrismError:
        """Make the error about an instrument that is not known."""
        exchange, symbol = key
        metadata = {"exchange": exchange, "symbol": symbol}
        if not self.ready or not self.exchanges:
            if not self.ready:
                return _starting(_STILL_READING, metadata)
            return _starting(f"{exchange}/{symbol} is not known, and {_NO_COLLECTOR}", metadata)
        symbols = self._symbols.get(exchange, set())
        if not symbols and exchange not in self._indices:
            return NotFound(
                f"no exchange {exchange!r} is collected; there is {_listed(self.exchanges)}"
                + _suggested(exchange, self.exchanges),
                reason="EXCHANGE_NOT_FOUND",
                metadata=metadata,
            )
        if key in self._instruments or symbol in symbols:
            # Something of it comes, only its description did not.
            return NotFound(
                f"{exchange}/{symbol} is collected, but nothing describes it yet",
                reason="INSTRUMENT_NOT_FOUND",
                metadata=metadata,
            )
        if self.is_index(key):
            return NotFound(
                f"{exchange}/{symbol} is an index, not an instrument: it has a price and no book "
                "or trades; ask GetLatestEvents",
                reason="INSTRUMENT_NOT_FOUND",
                metadata=metadata,
            )
        names = (*symbols, *self._indices.get(exchange, ()))
        hint = _suggested(symbol, names) or f"; it has {len(symbols)}, see ListInstruments"
        return NotFound(
            f"{exchange} has no instrument {symbol!r}{hint}",
            reason="INSTRUMENT_NOT_FOUND",
            metadata=metadata,
        )


def _starting(why: str, metadata: dict[str, str]) -> Unavailable:
    return Unavailable(
        f"{why}; try again in a moment", reason="STARTING", metadata=metadata, retry_after=1.0
    )


def _suggested(name: str, names: Iterable[str]) -> str:
    wanted = _shape(name)
    by_shape: dict[str, str] = {}
    for each in names:
        shape = _shape(each)
        # Comparing is dear, and a venue lists thousands.
        if shape[:1] == wanted[:1] and abs(len(shape) - len(wanted)) <= _LENGTHS_APART:
            by_shape[shape] = each
            if len(by_shape) >= _COMPARED:
                break
    close = difflib.get_close_matches(wanted, by_shape, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(by_shape[each] for each in close)}?" if close else ""


def _shape(name: str) -> str:
    """Reduce a name to what people get right: BTCUSDT, btc-usdt and BTC_USDT are one."""
    return "".join(c for c in name.lower() if c.isalnum())


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
