"""Looks at an administrator's statement before the database does.

The database itself is told to read only and to keep its limits. That does not cover what reads
elsewhere than in the tables: `file('/etc/passwd')` is a read, `DESCRIBE url(…)` connects wherever
it is told to, and the embedded engine runs several statements one after the other. So a statement
is taken apart into the same words that the database sees; what could mean something else there
(dollar quotes, typographic quotes) is refused, and comments are left out. https://clickhouse.com/docs/sql-reference/syntax
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from services.shared.errors import FieldViolation, InvalidArgument, PermissionDenied
from services.storage.validators import invalid

__all__ = ["MOST_BYTES", "guarded"]

MOST_BYTES: Final = 64 * 1024
"""Longest statement, bytes."""

_FIRST: Final = ("SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXPLAIN")
_SHOWN: Final = frozenset({
    "TABLES", "DATABASES", "COLUMNS", "FIELDS", "FULL", "EXTENDED", "CREATE", "INDEX", "INDEXES",
    "INDICES", "KEYS", "FUNCTIONS", "TABLE",
})  # fmt: skip
# Words that begin something else than a read, wherever they stand in the way they do here.
_OUTSIDE: Final = frozenset({"OUTFILE", "INFILE"})
# Scalar functions that read elsewhere, under any name they may be passed on by.
_READS_ELSEWHERE: Final = frozenset({
    "catboostevaluate", "file", "getmacro", "getserversetting", "python",
})  # fmt: skip
# Table functions that make their rows up. Every other one is refused.
_HARMLESS: Final = frozenset({
    "format", "generate_series", "generaterandom", "generateseries", "null", "numbers",
    "numbers_mt", "primes", "values", "view", "zeros", "zeros_mt",
})  # fmt: skip
# Tables of `system` that tell of the data and of the dialect, and not of people or machines.
_SYSTEM: Final = frozenset({
    "columns", "contributors", "data_skipping_indices", "data_type_families", "databases",
    "detached_parts", "formats", "functions", "keywords", "licenses", "merges", "mutations",
    "numbers", "numbers_mt", "one", "parts", "parts_columns", "projection_parts", "projections",
    "table_engines", "table_functions", "tables", "time_zones", "zeros", "zeros_mt",
})  # fmt: skip

_TOKEN: Final = re.compile(
    r"""(?P<space>\s+)
    |(?P<comment>--[^\n]*|//[^\n]*|\#[ !][^\n]*|/\*.*?\*/)
    |(?P<text>'(?:[^'\\]|\\.|'')*')
    |(?P<quoted>"(?:[^"\\]|\\.|"")*"|`(?:[^`\\]|\\.|``)*`)
    |(?P<number>\d[\w.]*)
    |(?P<word>[A-Za-z_]\w*)
    |(?P<sign>[-+*/%=<>!|&^~?:,.;()\[\]{}@])""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)


@dataclass(frozen=True, slots=True)
class _Word:
    kind: str
    text: str

    @property
    def name(self) -> str:
        """What it says, as a name: without quotes."""
        return self.text[1:-1] if self.kind == "quoted" else self.text

    @property
    def is_name(self) -> bool:
        return self.kind in ("word", "quoted")


def guarded(sql: str, table_functions: Collection[str]) -> str:
    """Give the statement without comments and the final semicolon, when it only reads tables.

    `table_functions` are those that the database has, in small letters. Raises `InvalidArgument` or
    `PermissionDenied`, both about the field `sql`.
    """
    size = len(sql.encode(errors="replace"))
    if size > MOST_BYTES:
        raise invalid("sql", f"expected at most {MOST_BYTES} bytes", f"{size} bytes")
    pieces = list(_pieces(sql))
    while pieces and (pieces[-1].kind == "space" or pieces[-1].text == ";"):
        pieces.pop()
    words = [piece for piece in pieces if piece.kind != "space"]
    if any(word.text == ";" for word in words):
        raise _wrong("expected one statement, got several")
    _check_kind([word for word in words if word.text != "("])
    _check_names(words, frozenset(table_functions) - _HARMLESS)
    return "".join(piece.text for piece in pieces)


def _pieces(sql: str) -> Iterator[_Word]:
    place = 0
    while place < len(sql):
        match = _TOKEN.match(sql, place)
        if match is None:
            rest = sql[place : place + 20]
            raise _wrong(
                f"cannot read {rest!r} at character {place + 1}: expected words, numbers, texts in "
                "single quotes and names in backticks, all closed, and no other letters than ASCII "
                "outside of quotes"
            )
        place = match.end()
        kind = match.lastgroup or ""
        if kind == "comment":
            yield _Word("space", " ")
        else:
            yield _Word(kind, match.group())


def _check_kind(words: list[_Word]) -> None:
    first = words[0].text.upper() if words else ""
    if first not in _FIRST:
        what = repr(first[:32]) if first else "nothing"
        expected = f"expected a statement that begins with {', '.join(_FIRST)}, got {what}"
        if re.fullmatch(r"[A-Z]+", first):
            raise _denied(f"{expected}: only reading is allowed here")
        raise _wrong(expected)
    second = words[1].text.upper() if len(words) > 1 else ""
    if first == "SHOW" and second not in _SHOWN:
        raise _denied(f"SHOW {second[:32]} tells more than of the tables; expected SHOW TABLES, "
                      "SHOW COLUMNS FROM or SHOW CREATE TABLE")  # fmt: skip


def _check_names(words: list[_Word], refused: Collection[str]) -> None:
    for place, word in enumerate(words):
        following = words[place + 1].text if place + 1 < len(words) else ""
        name = word.name.lower()
        if word.kind == "quoted" and "\\" in word.text:
            raise _wrong(f"expected names without backslashes, got {word.text[:64]}")
        if word.kind == "word" and word.text.upper() in _OUTSIDE:
            raise _denied(f"{word.text.upper()} reads or writes files of the server")
        if word.is_name and name in _READS_ELSEWHERE:
            raise _denied(f"{word.name} reads elsewhere than in the tables")
        if word.is_name and name in refused and following == "(":
            raise _denied(f"the table function {word.name} reads elsewhere than in the tables")
        if word.is_name and name == "system" and following == ".":
            table = words[place + 2].name.lower() if place + 2 < len(words) else ""
            if table not in _SYSTEM:
                raise _denied(
                    f"system.{table[:64]} tells of more than the data; allowed are "
                    f"{', '.join(sorted(_SYSTEM))}"
                )
        if word.text == ":" and following.lower() == "identifier":
            raise _denied("a parameter of type Identifier would name what cannot be looked at")


def _wrong(description: str) -> InvalidArgument:
    return InvalidArgument(
        f"sql: {description}",
        metadata={"field": "sql"},
        violations=[FieldViolation("sql", description, "MALFORMED")],
    )


def _denied(description: str) -> PermissionDenied:
    return PermissionDenied(
        f"sql: {description}", reason="SQL_NOT_ALLOWED", metadata={"field": "sql"}
    )
