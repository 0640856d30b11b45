"""What unary answers share."""

from services.marketdata.catalog import Key
from services.shared.paging import write_token
from services.shared.wire import field

__all__ = ["metadata_of", "next_page"]


def metadata_of(key: Key) -> dict[str, str]:
    """Give what the ErrorInfo of an error about an instrument carries."""
    return {"exchange": key[0], "symbol": key[1]}


def next_page(scope: object, place: object) -> bytes:
    """Encode next_page_token, field 2 of every list's response; nothing on the last page."""
    return b"" if place is None else field(2, write_token(scope, place).encode())
