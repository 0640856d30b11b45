"""From the venue's units of quantity to ours: exact multiplication with the contract size."""

from collections.abc import Iterable

from services.shared.decimals import InvalidDecimalError, canonical_decimal

__all__ = ["ContractSize"]

_CACHE_LIMIT = 1024
_MOST_DIGITS = 30  # on a side of the point: more is no canonical decimal


class _Sizes(dict[str, str]):
    """From a venue's spelling of a quantity to the quantity; forgets all when it is full."""

    def __init__(self, coefficient: int, decimals: int) -> None:
        super().__init__()
        self._coefficient = coefficient
        self._decimals = decimals

    def __missing__(self, text: str) -> str:
        quantity = self._multiply(text)
        if len(self) >= _CACHE_LIMIT:
            self.clear()
        self[text] = quantity
        return quantity

    def _multiply(self, text: str) -> str:
        canonical = canonical_decimal(text)
        if canonical[0] == "-":
            raise InvalidDecimalError(f"expected a quantity of 0 or more, got {text[:40]!r}")
        if canonical == "0" or (self._coefficient == 1 and not self._decimals):
            return canonical
        whole, _, fraction = canonical.partition(".")
        digits = str(int(whole + fraction) * self._coefficient)
        decimals = self._decimals + len(fraction)
        if decimals:
            digits = digits.zfill(decimals + 1)
            whole, fraction = digits[:-decimals], digits[-decimals:].rstrip("0")
        else:
            whole, fraction = digits, ""
        if len(whole) > _MOST_DIGITS or len(fraction) > _MOST_DIGITS:
            raise InvalidDecimalError(
                f"{text[:40]!r} contracts are a quantity of more than {_MOST_DIGITS} digits on a "
                "side of the point"
            )
        return f"{whole}.{fraction}" if fraction else whole


class ContractSize:
    """What one of a venue's units of quantity stands for, ready to multiply with.

    `size` is a decimal greater than 0 in any spelling, else InvalidDecimalError. `sizes[text]` is
    the quantity that `text` of the venue's units are, exact and canonical. It takes any spelling of
    a number of 0 or more and raises InvalidDecimalError on anything else, and where the result has
    more than 30 digits on a side of the point. `is_one` tells that only the spelling may change.

    Instruments of one size may share an instance: results are remembered, a thousand at the most.
    """

    __slots__ = ("is_one", "size", "sizes")

    def __init__(self, size: str) -> None:
        canonical = canonical_decimal(size)
        if canonical == "0" or canonical[0] == "-":
            raise InvalidDecimalError(f"expected a contract size greater than 0, got {size[:40]!r}")
        whole, _, fraction = canonical.partition(".")
        self.size = canonical
        self.is_one = canonical == "1"
        self.sizes: dict[str, str] = _Sizes(int(whole + fraction), len(fraction))

    def __repr__(self) -> str:
        return f"ContractSize({self.size!r})"

    def levels(self, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Convert the quantities of book levels; prices stay as the venue spells them.

        Raises InvalidDecimalError when one of the quantities is not a number of 0 or more.
        """
        sizes = self.sizes
        return [(price, sizes[quantity]) for price, quantity in pairs]
