"""Brings the database to the schema that this version wants: numbered SQL files, each once.

`migrations/NNNN_name.sql` are templates of statements that end with `;` at the end of a line:

- `{{ stored('trade') }}`: the table of the rows: `trade`, in a cluster `trade_local ON CLUSTER`;
- `{{ replacing_merge_tree }}`, `{{ merge_tree }}`: its engine, replicated in a cluster;
- `{{ distributed('trade') }}`: in a cluster the table `trade` over all shards, else nothing;
- `{{ on_cluster }}`: `ON CLUSTER name`, or nothing.

A file is never changed once it was released: its digest is kept with its number, and a store that
was made by other text is refused.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jinja2

from services.shared.errors import StartupError
from services.shared.log import get_logger
from services.storage.engine import Engine

__all__ = ["Migration", "apply_ttl", "known_migrations", "migrate"]

_FOLDER: Final = Path(__file__).parent / "migrations"
_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema."""

    number: int
    """Its place, from 1, without holes."""

    name: str
    """What it does, as in its file's name."""

    text: str
    """The file."""

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def statements(self, cluster: str) -> list[str]:
        """Give the statements for one server, or for a cluster."""
        on_cluster = f"ON CLUSTER {cluster}" if cluster else ""

        def stored(table: str) -> str:
            return f"{table}_local {on_cluster}" if cluster else table

        def distributed(table: str) -> str:
            if not cluster:
                return ""
            return (
                f"CREATE TABLE IF NOT EXISTS {table} {on_cluster} AS {table}_local "
                f"ENGINE = Distributed({cluster}, currentDatabase(), {table}_local, "
                "cityHash64(exchange, symbol));"
            )

        prefix = "Replicated" if cluster else ""
        rendered = (
            jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 - SQL
            .from_string(self.text)
            .render(
                stored=stored,
                distributed=distributed,
                on_cluster=on_cluster,
                replacing_merge_tree=f"{prefix}ReplacingMergeTree",
                merge_tree=f"{prefix}MergeTree",
            )
        )
        found = re.split(r";[ \t]*(?:\n|$)", rendered)
        return [text for part in found if (text := _without_comments(part))]


def _without_comments(statement: str) -> str:
    lines = [line for line in statement.splitlines() if not line.lstrip().startswith("--")]
    return "\n".join(lines).strip()


def known_migrations(folder: Path = _FOLDER) -> list[Migration]:
    """Give the migrations of this version in their order; raises `ValueError` for a hole."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise ValueError(f"{path}: expected a name like 0001_what_it_does.sql")
        found.append(Migration(int(match[1]), match[2], path.read_text(encoding="utf-8")))
    for place, migration in enumerate(found, start=1):
        if migration.number != place:
            raise ValueError(f"{folder}: expected migration {place}, found {migration.number}")
    return found


async def migrate(engine: Engine, migrations: Iterable[Migration] | None = None) -> int:
    """Apply what the database lacks; gives the number of steps taken.

    Every statement can be repeated (IF NOT EXISTS), so a step that was cut short is done again.
    Raises `StartupError` when the database was made by a newer version or by other text.
    """
    wanted = list(migrations) if migrations is not None else known_migrations()
    log = get_logger()
    cluster = engine.cluster
    on_cluster = f" ON CLUSTER {cluster}" if cluster else ""
    kind = "ReplicatedReplacingMergeTree" if cluster else "ReplacingMergeTree"
    await engine.command(
        f"CREATE TABLE IF NOT EXISTS schema_migration{on_cluster} "
        "(number UInt32, name String, digest String, applied DateTime DEFAULT now()) "
        f"ENGINE = {kind} ORDER BY number"
    )
    rows = await engine.query(
        "SELECT number, name, digest FROM schema_migration FINAL ORDER BY number"
    )
    applied = {int(number): (str(name), str(digest)) for number, name, digest in rows}
    known = {migration.number: migration for migration in wanted}
    for number, (name, digest) in applied.items():
        migration = known.get(number)
        if migration is None:
            raise StartupError(
                f"{engine.where} has migration {number} ({name}), this version knows "
                f"{len(wanted)}: expected a store of this version or an older one; "
                "start the newer version",
                reason="STORE_TOO_NEW",
            )
        if migration.digest != digest:
            raise StartupError(
                f"{engine.where}: migration {number} ({name}) was applied with other text than "
                "this version's; a released migration must not be changed",
                reason="STORE_SCHEMA_DIFFERS",
            )
    taken = 0
    for migration in wanted:
        if migration.number in applied:
            continue
        log.info("migrating the store", number=migration.number, name=migration.name)
        for statement in migration.statements(cluster):
            await engine.command(statement)
        await engine.insert_rows(
            "schema_migration",
            ["number", "name", "digest"],
            [(migration.number, migration.name, migration.digest)],
        )
        taken += 1
    return taken


async def apply_ttl(engine: Engine, keep_days: dict[str, float]) -> list[str]:
    """Make each table keep its rows for so many days by `time`; gives the tables that were changed.

    A table that is not named keeps its rows without end.
    """
    on_cluster = f" ON CLUSTER {engine.cluster}" if engine.cluster else ""
    rows = await engine.query(
        "SELECT name, engine_full FROM system.tables WHERE database = currentDatabase() "
        "AND match(engine_full, 'PARTITION BY (toDate|toYYYYMM)\\\\(time\\\\)')"
    )
    changed = []
    for name, engine_full in rows:
        days = keep_days.get(str(name).removesuffix("_local"))
        seconds = round(days * 86_400) if days is not None else 0
        wanted = f"toDateTime(time) + toIntervalSecond({seconds})"
        has = re.search(r" TTL (.+?) SETTINGS", str(engine_full))
        if days is None:
            if has:
                await engine.command(f"ALTER TABLE {name}{on_cluster} REMOVE TTL")
                changed.append(str(name))
        elif not has or has[1] != wanted:
            await engine.command(
                f"ALTER TABLE {name}{on_cluster} MODIFY TTL {wanted}",
                settings={"materialize_ttl_after_modify": 0},
            )
            changed.append(str(name))
    return changed
