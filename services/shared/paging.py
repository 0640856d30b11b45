"""Pages of lists: their size, and tokens that are opaque, bound to the filter, and hold a place."""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from services.shared.errors import FieldViolation, InvalidArgument

__all__ = ["list_page", "page_after", "page_size", "read_token", "write_token"]

_T = TypeVar("_T")
_Key = tuple[str, ...]
_DEFAULT_PAGE = 100
_MAX_PAGE = 1000


def list_page(
    keyed: Iterable[tuple[_Key, _T]], size: int, token: str, scope: object
) -> tuple[list[_T], str]:
    """Give a page of values, and the token of the next page, empty on the last.

    `size` and `token` are the request's page_size and page_token, `scope` is what a token is bound
    to, such as the name of the list and the request's filter. Keys are in rising order, all of one
    length. Raises `InvalidArgument`.
    """
    page, place = page_after(keyed, read_token(token, scope), page_size(size))
    return page, "" if place is None else write_token(scope, place)


def page_size(size: int) -> int:
    """Give the number of items on a page: 1 to 1000, 100 for 0. Raises `InvalidArgument`."""
    if not 0 <= size <= _MAX_PAGE:
        description = f"expected 1 to {_MAX_PAGE}, or 0 for {_DEFAULT_PAGE}, got {size}"
        raise InvalidArgument(
            f"page_size: {description}",
            violations=(FieldViolation("page_size", description, "OUT_OF_RANGE"),),
            metadata={"field": "page_size"},
        )
    return size or _DEFAULT_PAGE


def write_token(scope: object, place: object) -> str:
    """Make the token of a page: `scope` is what it is bound to, `place` where the page begins."""
    text = json.dumps([_fingerprint(scope), place], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_token(token: str, scope: object) -> Any:
    """Give the place in a token, None for an empty one.

    Raises `InvalidArgument` for a token of another request, or for what is none.
    """
    if not token:
        return None
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        fingerprint, place = json.loads(text)
    except (binascii.Error, ValueError, TypeError, RecursionError):
        raise _bad_token("expected next_page_token of an earlier answer, unchanged") from None
    if fingerprint != _fingerprint(scope):
        raise _bad_token("expected a token of the same request: its other fields have changed")
    return place


def page_after(
    keyed: Iterable[tuple[_Key, _T]], place: object, size: int
) -> tuple[list[_T], list[str] | None]:
    """Give the first `size` values whose keys are behind `place`, and the next place.

    Keys are in rising order. Raises `InvalidArgument` for a place that is no key.
    """
    after = _key(place)
    page: list[_T] = []
    last: _Key | None = None
    for key, value in _behind(keyed, after):
        if len(page) == size:
            return page, list(last or key)
        page.append(value)
        last = key
    return page, None


def _behind(keyed: Iterable[tuple[_Key, _T]], after: _Key | None) -> Iterator[tuple[_Key, _T]]:
    for key, value in keyed:
        if after is not None and len(after) != len(key):
            raise _bad_token("expected next_page_token of an earlier answer, unchanged")
        if after is None or key > after:
            yield key, value


def _key(place: object) -> _Key | None:
    if place is None:
        return None
    if isinstance(place, list) and place and all(isinstance(part, str) for part in place):
        return tuple(place)
    raise _bad_token("expected next_page_token of an earlier answer, unchanged")


def _fingerprint(scope: object) -> str:
    return hashlib.blake2s(repr(scope).encode(), digest_size=6).hexdigest()


def _bad_token(description: str) -> InvalidArgument:
    return InvalidArgument(
        f"page_token: {description}",
        reason="PAGE_TOKEN_INVALID",
        metadata={"field": "page_token"},
        violations=[FieldViolation("page_token", description, "PAGE_TOKEN_INVALID")],
    )
