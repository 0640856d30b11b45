"""How a partition is cut into objects: by ranges of time, so that each is read by itself."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.storage.backups.store import Store
from services.storage.backups.tables import StoredTable, column_list

__all__ = ["Piece", "pieces_of"]


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows of one object."""

    condition: str = ""
    """SQL condition beside that on the partition; empty for all of it."""

    parameters: dict[str, int] = field(default_factory=dict)
    """Its parameters."""

    def select(self, database: str, table: StoredTable) -> str:
        """Give the query; its parameter `partition` is the partition's id."""
        more = f" AND {self.condition}" if self.condition else ""
        return (
            f"SELECT {column_list(table.columns)} FROM {database}.{table.name} {table.final} "
            f"WHERE _partition_id = {{partition:String}}{more}"
        )


async def pieces_of(
    store: Store,
    database: str,
    table: StoredTable,
    partition: str,
    *,
    rows: int,
    size: int,
    chunk_bytes: int,
) -> list[Piece]:
    """Cut a partition of so many rows and bytes; pieces have about `chunk_bytes`.

    Rows of one key stay in one piece: the ranges are of a column of the key, or of its hash.
    """
    count = -(-size // chunk_bytes)
    if count <= 1:
        return [Piece()]
    if "time" not in table.has or "time" not in table.sorting_key.split(", "):
        return [
            Piece(
                f"cityHash64({table.sorting_key}) % {{pieces:UInt64}} = {{piece:UInt64}}",
                {"pieces": count, "piece": piece},
            )
            for piece in range(count)
        ]
    seconds = await store.query(
        "SELECT intDiv(toUnixTimestamp64Nano(toDateTime64(time, 9, 'UTC')), 1000000000) AS second, "
        "count() "
        f"FROM {database}.{table.name} WHERE _partition_id = {{partition:String}} "
        "GROUP BY second ORDER BY second",
        {"partition": partition},
    )
    bounds = _bounds(((int(s), int(c)) for s, c in seconds), max(1, rows // count))
    moment = "fromUnixTimestamp64Nano({{{}:Int64}}, 'UTC')".format
    return [
        Piece(
            f"time >= {moment('start')} AND time < {moment('end')}",
            {"start": start * 10**9, "end": end * 10**9},
        )
        for start, end in itertools.pairwise(bounds)
    ]


def _bounds(seconds: Iterable[tuple[int, int]], rows_each: int) -> list[int]:
    """Give the seconds where pieces begin, and the end of the last one."""
    bounds: list[int] = []
    held, last = 0, 0
    for second, rows in seconds:
        if not bounds or held >= rows_each:
            bounds.append(second)
            held = 0
        held += rows
        last = second
    return [*bounds, last + 1]
