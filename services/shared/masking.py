"""Keeps secrets out of logs, metrics and errors: one place says what looks like a secret."""

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["MASK", "is_secret_name", "mask_text", "mask_value"]

MASK = "********"
"""What stands in place of a secret."""

_SECRET_NAMES = frozenset(
    {"key", "auth", "cookie", "set_cookie", "jwt", "bearer", "pwd", "pass", "creds", "signature"}
)
_SECRET_PARTS = (
    "password",
    "passwd",
    "passphrase",
    "token",
    "secret",
    "authorization",
    "api_key",
    "apikey",
    "access_key",
    "private_key",
    "credential",
)
# A token of pagination is a cursor that clients see anyway, and people debug with it.
_HARMLESS_NAMES = frozenset({"page_token", "next_page_token"})

_URL_USERINFO = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/@'\"]+@")
_BEARER = re.compile(r"(?i)\b(?P<kind>bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}")
_ASSIGNMENT = re.compile(
    r"(?i)(?P<name>[\w-]*(?:password|passwd|passphrase|token|secret|api[_-]?key|access[_-]?key"
    r"|private[_-]?key|credential|signature|authorization)\w*)(?P<sep>['\"]?\s*[=:]\s*['\"]?)"
    r"(?P<value>(?!(?:bearer|basic)\s)[^\s&,;'\"}\]]+)"
)
_MAX_DEPTH = 8


def is_secret_name(name: str) -> bool:
    """Tell whether a field, header or key of this name holds a secret (`api_key`, `X-Token`)."""
    folded = name.lower().replace("-", "_")
    if folded in _HARMLESS_NAMES:
        return False
    return folded in _SECRET_NAMES or any(part in folded for part in _SECRET_PARTS)


def mask_text(text: str) -> str:
    """Mask user:password in URLs, bearer tokens and `secret=value` pairs inside free text."""
    if "@" in text:
        text = _URL_USERINFO.sub(rf"\g<scheme>{MASK}@", text)
    if "=" in text or ":" in text:
        text = _ASSIGNMENT.sub(_mask_assignment, text)
    if " " in text:
        text = _BEARER.sub(rf"\g<kind> {MASK}", text)
    return text


def mask_value(name: str, value: Any) -> Any:
    """Mask what `name` holds when it is a secret; otherwise every secret nested in `value`."""
    return _mask(name, value, 0)


def _mask_assignment(match: re.Match[str]) -> str:
    name = match["name"].lower().replace("-", "_")
    if name in _HARMLESS_NAMES:
        return match[0]
    return f"{match['name']}{match['sep']}{MASK}"


def _mask(name: str, value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if is_secret_name(name):
        return MASK
    if isinstance(value, str):
        return mask_text(value)
    if depth >= _MAX_DEPTH:
        return value
    if isinstance(value, Mapping):
        return {key: _mask(str(key), item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_mask(name, item, depth + 1) for item in value]
    return value
