"""Where backups are kept: a folder, or a bucket of an S3 server, behind one protocol.

An object is written whole or not at all, and is durable when `write` returns.
"""

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from services.storage.backups.errors import (
    ObjectMissing,
    TargetFull,
    TargetRefused,
    TargetUnavailable,
)
from services.storage.backups.settings import BackupSettings

__all__ = ["FolderTarget", "Stored", "Target", "check_key", "open_target"]

_KEY: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.=-]*)*")
_SCRATCH = ".tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Stored:
    """One object in a target."""

    key: str
    """Its name, with `/` between folders."""

    size: int
    """Its bytes."""


class Target(Protocol):
    """A place for objects. Methods block: they are called from threads, several at once.

    All raise `TargetUnavailable` and `TargetRefused`, which name the place and the object.
    """

    @property
    def name(self) -> str:
        """The place for a person, without secrets."""

    def write(self, key: str, data: bytes) -> None:
        """Write or replace an object; raises `TargetFull` too."""

    def read(self, key: str) -> bytes:
        """Give an object; raises `ObjectMissing` too."""

    def folders(self) -> list[str]:
        """Give the names of the folders at the top, in order."""

    def list(self, folder: str) -> list[Stored]:
        """Give all objects below a folder, by key; none where there is no such folder."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; what is gone already is no error."""


def open_target(settings: BackupSettings, data_dir: Path) -> Target:
    """Give the target that the settings name; nothing is opened or made yet.

    Raises `KeyMissing` and `KeyUnsafe` for what the S3 keys are read from.
    """
    if settings.target.startswith("s3://"):
        from services.storage.backups.s3 import S3Target

        bucket, _, prefix = settings.target.removeprefix("s3://").partition("/")
        return S3Target(bucket, prefix.strip("/"), settings.s3)
    return FolderTarget(data_dir / Path(settings.target).expanduser())


def check_key(key: str) -> str:
    """Give the key back; raises ValueError for one that could lead out of the target."""
    if not _KEY.fullmatch(key) or len(key) > 900:
        raise ValueError(f"expected names of letters, digits, '_', '.', '=' and '-', got {key!r}")
    return key


class FolderTarget:
    """Objects as files below a folder, which is made with the first object."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def name(self) -> str:
        """The folder."""
        return str(self._folder)

    def write(self, key: str, data: bytes) -> None:
        """Write beside the place, flush to the disk, rename."""
        path = self._path(key)
        scratch = path.with_name(f"{path.name}{_SCRATCH}-{uuid.uuid4().hex[:8]}")
        try:
            self._make_folder(path.parent)
            try:
                with scratch.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                scratch.replace(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    scratch.unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)
        except OSError as error:
            raise self._trouble("write", key, error) from error

    def read(self, key: str) -> bytes:
        """Read the file."""
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ObjectMissing(
                f"{key} is not in {self.name}", metadata={"object": key, "target": self.name}
            ) from None
        except OSError as error:
            raise self._trouble("read", key, error) from error

    def folders(self) -> list[str]:
        """Give the names of the folders in the folder."""
        try:
            return sorted(
                entry.name
                for entry in os.scandir(self._folder)
                if entry.is_dir(follow_symlinks=False)
            )
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._trouble("list", "", error) from error

    def list(self, folder: str) -> list[Stored]:
        """Walk through the folder; files that were never finished are not told of."""
        try:
            return sorted(self._walk(self._path(folder)), key=lambda stored: stored.key)
        except OSError as error:
            raise self._trouble("list", folder, error) from error

    def delete(self, keys: Sequence[str]) -> None:
        """Delete the files, and the folders that are empty then."""
        for key in keys:
            path = self._path(key)
            try:
                path.unlink(missing_ok=True)
                if path.parent.is_dir():
                    for scratch in path.parent.glob(f"*{_SCRATCH}-*"):
                        scratch.unlink(missing_ok=True)
            except OSError as error:
                raise self._trouble("delete", key, error) from error
            for parent in path.parents:
                if parent == self._folder:
                    break
                try:
                    parent.rmdir()
                except OSError:
                    break

    def _path(self, key: str) -> Path:
        return self._folder / check_key(key)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        # Each new folder is an entry of its parent, and as durable as that is.
        missing = [folder]
        while not missing[-1].parent.is_dir():
            missing.append(missing[-1].parent)
        folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            _sync_folder(made.parent)

    def _walk(self, folder: Path) -> Iterator[Stored]:
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path))
            elif f"{_SCRATCH}-" not in entry.name:
                key = Path(entry.path).relative_to(self._folder).as_posix()
                yield Stored(key, entry.stat().st_size)

    def _trouble(
        self, verb: str, key: str, error: OSError
    ) -> TargetFull | TargetRefused | TargetUnavailable:
        place = f"{self.name}/{key}" if key else self.name
        metadata = {"target": self.name, "object": key}
        if error.errno in _FULL:
            return TargetFull(
                f"cannot {verb} {place}: the disk is full ({error.strerror}); make room, or name "
                "another folder in backups.target",
                metadata=metadata,
            )
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            return TargetRefused(
                f"cannot {verb} {place}: {error.strerror}; expected a folder that this user can "
                "read and write",
                metadata=metadata,
            )
        return TargetUnavailable(
            f"cannot {verb} {place}: {error.strerror or error}", metadata=metadata
        )


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
