"""Pages of stored events: tokens that hold a place in a table's order, and the SQL to go on there.

A place is the sort key of the last event of a page, after exchange and symbol. Going on from a key
instead of a count gives every event once, also when others are inserted between two pages.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.message import Message

from services.shared.errors import FieldViolation, InvalidArgument
from services.storage.tables import Table

__all__ = ["Keyset", "Place", "bad_token", "read_token", "write_token"]

Place = list[int | str]
"""Values of a place; what they mean is up to the list."""

_DIGEST: Final = 6
_NOT_PART_OF_REQUEST: Final = ("page_token", "page_size", "resume_token")
_EXPECTED: Final = "expected next_page_token of an earlier answer, unchanged"


def write_token(request: Message, place: Sequence[int | str]) -> str:
    """Make the token by which the same request goes on at `place`.

    It is bound to the kind of the request and every field but the token and page_size.
    """
    text = json.dumps(list(place), separators=(",", ":")).encode()
    bound = _fingerprint(request)
    return _spelt(bound + _checksum(bound, text) + text)


def read_token(request: Message, *, field: str = "page_token") -> Place | None:
    """Give the place in a request's token, None for an empty one.

    Raises `InvalidArgument`, reason PAGE_TOKEN_INVALID, for a token of another request and for what
    is none. The checksum is against mistakes, not against people: a place that somebody made up
    gives nothing that the range would not.
    """
    token: str = getattr(request, field)
    if not token:
        return None
    try:
        held = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        if _spelt(held) != token:
            raise ValueError("not as it was written")
        bound, checksum, text = held[:_DIGEST], held[_DIGEST : 2 * _DIGEST], held[2 * _DIGEST :]
        if checksum != _checksum(bound, text):
            raise ValueError("checksum differs")
        place = json.loads(text)
    except (binascii.Error, ValueError, RecursionError):
        raise bad_token(_EXPECTED, field) from None
    if bound != _fingerprint(request):
        raise bad_token(
            "expected a token of the same request: its other fields have changed", field
        )
    if not isinstance(place, list) or not all(type(value) in (int, str) for value in place):
        raise bad_token(_EXPECTED, field)
    return place


def bad_token(description: str = _EXPECTED, field: str = "page_token") -> InvalidArgument:
    """Make the error about a token."""
    return InvalidArgument(
        f"{field}: {description}",
        reason="PAGE_TOKEN_INVALID",
        metadata={"field": field},
        violations=[FieldViolation(field, description, "PAGE_TOKEN_INVALID")],
    )


def _spelt(held: bytes) -> str:
    return base64.urlsafe_b64encode(held).decode().rstrip("=")


def _fingerprint(request: Message) -> bytes:
    copy = type(request)()
    copy.CopyFrom(request)
    for name in _NOT_PART_OF_REQUEST:
        if name in request.DESCRIPTOR.fields_by_name:
            copy.ClearField(name)
    text = request.DESCRIPTOR.full_name.encode() + b"\n"
    text += copy.SerializeToString(deterministic=True)
    return hashlib.blake2s(text, digest_size=_DIGEST).digest()


def _checksum(bound: bytes, text: bytes) -> bytes:
    return hashlib.blake2s(bound + text, digest_size=_DIGEST).digest()


_INTEGER_RANGES: Final = {"Int8": (-(2**7), 2**7), "Int64": (-(2**63), 2**63), "UInt64": (0, 2**64)}


class Keyset:
    """The places of one table's order, and how SQL goes on from them."""

    def __init__(self, table: Table) -> None:
        self.columns: tuple[str, ...] = table.identity
        """Columns of a place: the sort key after exchange and symbol."""
        types = {column.name: column.definition for column in table.columns}
        self._parts = [_part(name, types[name]) for name in self.columns]

    @property
    def select(self) -> str:
        """SQL expressions that give an event's place."""
        return ", ".join(expression for expression, _, _ in self._parts)

    def order_by(self, *, descending: bool) -> str:
        """Give the columns of ORDER BY, exchange and symbol in front so that it is the sort key."""
        direction = " DESC" if descending else ""
        return ", ".join(f"{name}{direction}" for name in ("exchange", "symbol", *self.columns))

    def behind(self, place: Place, *, descending: bool) -> tuple[str, dict[str, Any]]:
        """Give the SQL condition for what comes after a place, and its parameters.

        Raises `InvalidArgument` for a place that is none of this table.
        """
        if len(place) != len(self._parts):
            raise bad_token()
        parameters: dict[str, Any] = {}
        values = []
        for index, ((_, kind, value_sql), value) in enumerate(zip(self._parts, place, strict=True)):
            if kind == "String":
                fits = isinstance(value, str)
            else:
                least, beyond = _INTEGER_RANGES[kind]
                fits = isinstance(value, int) and least <= value < beyond
            if not fits:
                raise bad_token()
            parameters[f"place_{index}"] = value
            values.append(value_sql.format(f"{{place_{index}:{kind}}}"))
        sign = "<" if descending else ">"
        columns = ", ".join(self.columns)
        # The index knows the first column's bound better when it is told by itself.
        first = f"{self.columns[0]} {sign}= {values[0]}"
        return f"({first} AND ({columns}) {sign} ({', '.join(values)}))", parameters


def _part(name: str, definition: str) -> tuple[str, str, str]:
    """Give a column's expression as JSON has it, its parameter's type, and that as the column's."""
    kind = definition.split("(")[0].split(" ")[0]
    if kind == "DateTime64":
        return f"toUnixTimestamp64Nano({name})", "Int64", "fromUnixTimestamp64Nano({}, 'UTC')"
    if kind == "Enum8":
        enum = definition[: definition.index(")") + 1]
        return f"CAST({name} AS Int8)", "Int8", f"CAST({{}} AS {enum})"
    if kind in _INTEGER_RANGES or kind == "String":
        return name, kind, "{}"
    raise TypeError(f"{name}: no place is made of a {kind}")
