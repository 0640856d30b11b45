"""What a running supervisor tells of itself in its data directory, and the lock that keeps it one.

`supervisor.json` is written beside its place and renamed, so a reader sees all of it or none. The
lock is held by the process and ends with it, however it ends, so a stale file is recognised.
"""

import fcntl
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from services.shared.errors import StartupError

__all__ = ["ChildRecord", "DataDirLock", "MeshRecord", "read_mesh_record", "write_mesh_record"]

_RECORD = "supervisor.json"
_LOCK = "supervisor.lock"


@dataclass(frozen=True, slots=True)
class ChildRecord:
    """One process that the supervisor runs."""

    name: str
    """`collector`, `simulator`, or `mesh` when one process runs all services."""

    services: tuple[str, ...]
    """Services of the mesh inside it."""

    pid: int | None
    """Its process, None while there is none."""

    state: str
    """`starting`, `running`, `backoff`, `failed` or `stopped`."""

    restarts: int
    """How often it was started again."""

    last_exit: int | None
    """Exit status of its last death; negative is a signal's number."""


@dataclass(frozen=True, slots=True)
class MeshRecord:
    """One mesh, as its supervisor tells of it."""

    pid: int
    """The supervisor."""

    started: str
    """When it was started, RFC 3339 in UTC."""

    mode: str
    """`microservice` or `full`."""

    source: str
    """`live`, `simulated` or the capture's path."""

    ready: bool
    """Whether every part has been ready."""

    addresses: Mapping[str, str] = field(default_factory=dict)
    """`host:port` by purpose: `all`, `collector`, `admin`, `nats`, `simulator.<exchange>`."""

    log_dir: str = ""
    """Where the logs of the processes are."""

    children: tuple[ChildRecord, ...] = ()
    """Its processes, in the order of their start."""

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Rebuild it; raises TypeError or KeyError for what is no record."""
        children = tuple(
            ChildRecord(**{**child, "services": tuple(child["services"])})
            for child in record["children"]
        )
        return cls(**{**record, "children": children})


class DataDirLock:
    """Keeps a second mesh away from a data directory. Use as a context manager."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._file: int | None = None

    def __enter__(self) -> Self:
        """Take the lock; raises `StartupError` that says who has it."""
        try:
            self._data_dir.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._data_dir / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StartupError(
                f"cannot write in the data directory {self._data_dir} ({error.strerror}): choose "
                "another one with --data-dir, or data_dir in config/services.yaml",
                reason="DATA_DIR_NOT_WRITABLE",
            ) from error
        if not _acquire(self._file):
            os.close(self._file)
            self._file = None
            record = read_mesh_record(self._data_dir)
            who = f" (pid {record.pid}, since {record.started})" if record else ""
            raise StartupError(
                f"another mesh{who} is running on the data directory {self._data_dir}: stop that "
                "one, or give this one its own with --data-dir (and its own ports with "
                "--free-ports)",
                reason="DATA_DIR_IN_USE",
            )
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what told of the mesh, and release the lock."""
        if self._file is not None:
            (self._data_dir / _RECORD).unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


def write_mesh_record(data_dir: Path, record: MeshRecord) -> None:
    """Replace the record; raises OSError."""
    path = data_dir / _RECORD
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    scratch.replace(path)


def read_mesh_record(data_dir: Path) -> MeshRecord | None:
    """Give the record of the mesh that runs on this directory now, None when there is none."""
    if not _is_locked(data_dir / _LOCK):
        return None
    try:
        return MeshRecord.from_json(json.loads((data_dir / _RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _acquire(file: int) -> bool:
    # A reader that asks whether there is a mesh holds the lock for a moment.
    for pause in (0.02, 0.1, 0.3, None):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if pause is not None:
                time.sleep(pause)
        else:
            return True
    return False


def _is_locked(path: Path) -> bool:
    try:
        probe = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        # A shared lock: several readers asking at once do not take each other for a supervisor.
        fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(probe)
    return False
