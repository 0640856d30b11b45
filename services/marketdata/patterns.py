"""Which instruments a subscriber names: `exchange/symbol`, with `*` for any run of characters."""

from collections.abc import Iterable, Iterator
from typing import Final

from services.marketdata.catalog import Key
from services.shared.errors import InvalidArgument

__all__ = ["MAX_PATTERN", "Pattern"]

MAX_PATTERN: Final = 128
"""Most characters of a pattern."""

_EXPECTED: Final = (
    'expected "exchange/symbol", for example "binance/BTC-USDT", "binance/*-USDT" or "*/BTC-*"'
)


class Pattern:
    """One pattern. Raises `InvalidArgument`, reason INVALID_PATTERN, when the text is none.

    An exchange has no `*` and no `/` in its name, nor has a symbol. Matching takes time in
    proportion to the name, whatever the pattern: no client can keep the server busy with one.
    """

    __slots__ = ("_exchange", "_symbol", "is_literal", "key", "text")

    def __init__(self, text: str) -> None:
        exchange, slash, symbol = text.partition("/")
        if not (exchange and slash and symbol) or "/" in symbol:
            raise _invalid(text, _EXPECTED)
        if len(text) > MAX_PATTERN:
            raise _invalid(text, f"expected at most {MAX_PATTERN} characters")
        if not (text.isascii() and text.isprintable()) or " " in text:
            raise _invalid(text, f"{_EXPECTED}, of printable ASCII characters without spaces")
        self.text: Final = text
        """As it was given."""
        self.key: Final[Key] = (exchange, symbol)
        """Its two parts: the instrument, when the pattern is literal."""
        self.is_literal: Final = "*" not in text
        """Whether it names one instrument."""
        self._exchange = _Part(exchange)
        self._symbol = _Part(symbol)

    def matches(self, key: Key) -> bool:
        """Tell whether an instrument is meant."""
        if self.is_literal:
            return key == self.key
        return self._exchange.matches(key[0]) and self._symbol.matches(key[1])

    def matching(self, keys: Iterable[Key]) -> Iterator[Key]:
        """Give those of the instruments that are meant."""
        exchange, symbol = self._exchange.matches, self._symbol.matches
        return (key for key in keys if exchange(key[0]) and symbol(key[1]))


class _Part:
    """One part of a pattern: a beginning, an end, and what stands between them in order."""

    __slots__ = ("_begin", "_end", "_middle", "_shortest", "_whole")

    def __init__(self, text: str) -> None:
        begin, *rest = text.split("*")
        self._whole = None if rest else begin
        self._begin = begin
        self._end = rest.pop() if rest else ""
        self._middle = [piece for piece in rest if piece]
        self._shortest = len(text) - text.count("*")

    def matches(self, name: str) -> bool:
        if self._whole is not None:
            return name == self._whole
        if (
            len(name) < self._shortest
            or not name.startswith(self._begin)
            or not name.endswith(self._end)
        ):
            return False
        position = len(self._begin)
        stop = len(name) - len(self._end)
        for piece in self._middle:
            position = name.find(piece, position, stop)
            if position < 0:
                return False
            position += len(piece)
        return True


def _invalid(text: str, expected: str) -> InvalidArgument:
    shown = text if len(text) <= MAX_PATTERN else f"{text[:32]}… ({len(text)} characters)"
    return InvalidArgument(
        f"{expected}, got {shown!r}", reason="INVALID_PATTERN", metadata={"pattern": shown}
    )
