"""Page tokens: opaque to clients, bound to the request's filter, holding only a place."""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from services.shared.errors import FieldViolation, InvalidArgument

__all__ = ["page_after", "read_token", "write_token"]

_T = TypeVar("_T")


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
    keyed: Iterable[tuple[tuple[str, str], _T]], place: object, size: int
) -> tuple[list[_T], list[str] | None]:
    """Give the first `size` values whose keys are behind `place`, and the next place.

    Keys are in rising order. Raises `InvalidArgument` for a place that is no key.
    """
    after = _key(place)
    page: list[_T] = []
    last: tuple[str, str] | None = None
    for key, value in _behind(keyed, after):
        if len(page) == size:
            return page, list(last or key)
        page.append(value)
        last = key
    return page, None


def _behind(
    keyed: Iterable[tuple[tuple[str, str], _T]], after: tuple[str, str] | None
) -> Iterator[tuple[tuple[str, str], _T]]:
    for key, value in keyed:
        if after is None or key > after:
            yield key, value


def _key(place: object) -> tuple[str, str] | None:
    if place is None:
        return None
    if isinstance(place, list) and len(place) == 2 and all(isinstance(p, str) for p in place):
        return place[0], place[1]
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
