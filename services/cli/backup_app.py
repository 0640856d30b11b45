"""The commands `marketprism backup ...` and `marketprism restore`: their options."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from services.cli.failures import readable_errors
from services.cli.options import ConfigDir

__all__ = ["backup_app", "restore"]

backup_app = typer.Typer(
    help="Back the database up, and look after the backups.",
    invoke_without_command=True,
    no_args_is_help=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

DataDir = Annotated[
    Path | None, typer.Option(help="Directory of the state. Default: that of services.yaml.")
]
PlaceOfBackups = Annotated[
    str | None,
    typer.Option(
        "--target",
        "-t",
        help="Folder, or s3://bucket/prefix. Default: backups.target of storage.yaml.",
    ),
]
Identity = Annotated[
    Path | None,
    typer.Option(
        help="File with the private key, mode 0600. Default: backups.encryption.identity_file of "
        "storage.yaml, or MARKETPRISM_BACKUP_IDENTITY.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON: one object a line while work goes on.")
]
BackupId = Annotated[str, typer.Argument(help="Id of the backup, or `latest`.")]


@backup_app.callback()
def create(
    context: typer.Context,
    base: Annotated[
        str, typer.Option(help="Only add to this backup: an id, or `latest`.", show_default=False)
    ] = "",
    description: Annotated[str, typer.Option("--description", "-m", help="For a person.")] = "",
    keep_days: Annotated[
        float | None, typer.Option(help="Let it be pruned after so many days.", min=0.001)
    ] = None,
    recipients: Annotated[
        list[str] | None,
        typer.Option("--recipient", "-r", help="Public key that can open it, age1...; repeatable."),
    ] = None,
    unencrypted: Annotated[
        bool, typer.Option("--unencrypted", help="Do not encrypt this backup.")
    ] = False,
    target: PlaceOfBackups = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
) -> None:
    """Back the database up, or look after the backups with one of the commands below.

    The service storage makes the backup when it runs, ingest goes on meanwhile. When it does not
    run, the store's folder or the server is read directly.
    """
    if context.invoked_subcommand is not None:
        return
    from services.cli.backup import run_create
    from services.cli.backup_setup import load_setup

    with readable_errors():
        setup = load_setup(
            config_dir,
            data_dir,
            target=target,
            recipients=tuple(recipients or ()),
            unencrypted=unencrypted,
        )
        run_create(setup, base=base, description=description, keep_days=keep_days, as_json=as_json)


@backup_app.command("list")
def list_(
    target: PlaceOfBackups = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
) -> None:
    """List the backups, newest first, whole or not."""
    from services.cli.backup_setup import load_setup
    from services.cli.backup_views import print_backups

    with readable_errors():
        print_backups(load_setup(config_dir, data_dir, target=target), as_json=as_json)


@backup_app.command()
def show(
    backup_id: BackupId,
    target: PlaceOfBackups = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
) -> None:
    """Show what one backup holds, by table and day; with --json its manifest."""
    from services.cli.backup_setup import load_setup
    from services.cli.backup_views import print_backup

    with readable_errors():
        print_backup(load_setup(config_dir, data_dir, target=target), backup_id, as_json=as_json)


@backup_app.command()
def verify(
    backup_id: BackupId,
    target: PlaceOfBackups = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
) -> None:
    """Read every object of a backup and compare its digest. It needs no key.

    `marketprism restore --verify-only` proves more: that the rows come back.
    """
    from services.cli.backup import run_verify
    from services.cli.backup_setup import load_setup

    with readable_errors():
        run_verify(load_setup(config_dir, data_dir, target=target), backup_id, as_json=as_json)


@backup_app.command()
def delete(
    backup_id: BackupId,
    target: PlaceOfBackups = None,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
) -> None:
    """Delete one backup, whole or not, to which no other adds."""
    from services.cli.backup import run_delete
    from services.cli.backup_setup import load_setup

    with readable_errors():
        run_delete(load_setup(config_dir, data_dir, target=target), backup_id)


@backup_app.command()
def prune(
    keep: Annotated[
        int | None,
        typer.Option(
            help="Newest whole backups that stay, with those they add to. Default: backups.keep "
            "of storage.yaml; 0 keeps all.",
            min=0,
        ),
    ] = None,
    target: PlaceOfBackups = None,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
) -> None:
    """Delete old and expired backups, and interrupted ones of more than a day ago."""
    from services.cli.backup import run_prune
    from services.cli.backup_setup import load_setup

    with readable_errors():
        run_prune(load_setup(config_dir, data_dir, target=target), keep)


@backup_app.command()
def keygen(
    out: Annotated[Path, typer.Argument(help="File for the private key; must not exist.")],
) -> None:
    """Make a key pair: the private key goes into a file, the public key is printed.

    Put the public key into backups.encryption.recipients of storage.yaml, and keep the file away
    from the machine that makes backups: without it nobody can read them, you neither.
    """
    from services.cli.backup import run_keygen

    with readable_errors():
        run_keygen(out)


def restore(
    backup_id: BackupId = "latest",
    tables: Annotated[
        list[str] | None, typer.Option("--table", help="Only this table; repeatable.")
    ] = None,
    days: Annotated[
        list[str] | None,
        typer.Option("--day", help="Only this UTC day, as 2026-11-24; repeatable."),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(help="Restore into this database, which is made when it is not there."),
    ] = None,
    existing: Annotated[
        Literal["refuse", "merge", "replace"],
        typer.Option(
            help="Where the database has rows: refuse; merge, events are not doubled; or replace "
            "them, and without --table and --day drop everything that the backup has not."
        ),
    ] = "refuse",
    verify_only: Annotated[
        bool,
        typer.Option(
            "--verify-only",
            help="Prove that the backup can be restored, in a temporary store; change nothing.",
        ),
    ] = False,
    discard: Annotated[
        bool,
        typer.Option("--discard", help="Drop what unfinished restores have loaded, and end."),
    ] = False,
    identity: Identity = None,
    target: PlaceOfBackups = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config_dir: ConfigDir = None,
) -> None:
    """Bring a backup of the database back, proved by its checksums.

    Rows are loaded beside the store and appear in it when all of them are proved. A restore that
    was interrupted goes on where it ended when it is asked for again.
    """
    from services.cli.backup import run_discard, run_restore, run_verify_only
    from services.cli.backup_setup import load_setup

    with readable_errors():
        setup = load_setup(
            config_dir, data_dir, target=target, identity=identity, database=database
        )
        if discard:
            run_discard(setup)
        elif verify_only:
            run_verify_only(setup, backup_id, tables or [], days or [], as_json=as_json)
        else:
            run_restore(
                setup, backup_id, tables or [], days or [], existing=existing, as_json=as_json
            )
