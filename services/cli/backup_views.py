"""Backups as tables and as JSON."""

import json

from rich.table import Table

from services.cli.backup_meter import human_bytes
from services.cli.backup_setup import Setup
from services.cli.console import wide_console
from services.storage.backups.catalog import Catalog, Found
from services.storage.backups.manifest import BackupManifest

__all__ = ["backup_facts", "print_backup", "print_backups"]


def print_backups(setup: Setup, *, as_json: bool) -> None:
    """List what is in the target; raises what the target does."""
    target = setup.target
    found = Catalog(target).find()
    if as_json:
        for each in found:
            print(json.dumps(_found_facts(each), default=str))
        return
    if not found:
        print(f"no backups in {target.name}")
        return
    table = Table(box=None, pad_edge=False, title=f"backups in {target.name}", title_justify="left")
    for name in ("backup", "state", "adds to", "rows", "written", "restore reads", "encrypted", ""):
        table.add_column(name, justify="right" if name in ("rows", "written") else "left")
    for each in found:
        manifest = each.manifest
        if manifest is None:
            state = "unfinished" if each.interrupted else "damaged"
            told = "" if each.interrupted else each.trouble
            table.add_row(each.backup_id, state, "", "", "", "", "", told)
            continue
        table.add_row(
            each.backup_id,
            "complete",
            manifest.base_backup_id or "-",
            f"{manifest.rows:,}",
            human_bytes(manifest.own_bytes),
            human_bytes(manifest.total_bytes),
            "yes" if manifest.recipients else "NO",
            manifest.description,
        )
    wide_console().print(table)


def print_backup(setup: Setup, backup_id: str, *, as_json: bool) -> None:
    """Show one backup; raises what the target does, and for the backup as `Catalog.manifest`."""
    manifest = Catalog(setup.target).manifest(setup.resolve(backup_id))
    if as_json:
        print(manifest.model_dump_json(indent=2))
        return
    console = wide_console()
    facts = backup_facts(manifest)
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(f"{name:<{width}}  {value}", markup=False)
    table = Table(box=None, pad_edge=False)
    for name in ("table", "partition", "rows", "bytes", "objects", "checksum", "objects of"):
        table.add_column(name, justify="right" if name in ("rows", "bytes", "objects") else "left")
    for entry, partition in manifest.partitions():
        own = partition.backup_id == manifest.backup_id
        table.add_row(
            entry.name,
            partition.partition_id,
            f"{partition.rows:,}",
            human_bytes(sum(chunk.bytes for chunk in partition.chunks)),
            str(len(partition.chunks)),
            partition.checksum,
            "-" if own else partition.backup_id,
        )
    console.print(table)


def backup_facts(manifest: BackupManifest) -> dict[str, object]:
    """Give what is told of a backup."""
    return {
        "backup_id": manifest.backup_id,
        "description": manifest.description,
        "base_backup_id": manifest.base_backup_id,
        "begin_time": manifest.begin_time.isoformat(),
        "end_time": manifest.end_time.isoformat(),
        "expire_time": manifest.expire_time.isoformat() if manifest.expire_time else None,
        "rows": manifest.rows,
        "bytes": manifest.own_bytes,
        "total_bytes": manifest.total_bytes,
        "schema_version": manifest.schema_version,
        "recipients": list(manifest.recipients),
        "sha256": manifest.digest,
    }


def _found_facts(found: Found) -> dict[str, object]:
    if found.manifest is not None:
        return {"state": "complete", **backup_facts(found.manifest)}
    state = "unfinished" if found.interrupted else "damaged"
    return {"state": state, "backup_id": found.backup_id, "detail": found.trouble}
