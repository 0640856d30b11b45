"""Where services say that they are there: behind one protocol, a folder of files by default."""

import asyncio
import json
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import psutil

__all__ = ["LocalRegistrar", "Registrar", "Registration"]


@dataclass(frozen=True, slots=True)
class Registration:
    """One running instance of a service."""

    service: str
    """Name of the service: `collector`."""

    instance_id: str
    """Unique among all instances: the service's name and a random part."""

    host: str
    """Name or address under which its servers are reached."""

    grpc_port: int
    """Real port of its gRPC server."""

    http_port: int
    """Real port of its `/health` and `/metrics`."""

    pid: int
    """Its process."""

    version: str
    """Version of MarketPrism that it runs."""

    started: str
    """When it was ready, RFC 3339 in UTC."""

    @classmethod
    def of_this_process(
        cls, service: str, *, host: str, grpc_port: int, http_port: int, version: str
    ) -> "Registration":
        """Make the record of a service that has just become ready in this process."""
        return cls(
            service=service,
            instance_id=f"{service}-{uuid.uuid4().hex[:12]}",
            host=host,
            grpc_port=grpc_port,
            http_port=http_port,
            pid=os.getpid(),
            version=version,
            started=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        )


class Registrar(Protocol):
    """Keeps the list of running instances."""

    async def register(self, registration: Registration) -> None:
        """Add or replace one instance."""

    async def deregister(self, registration: Registration) -> None:
        """Remove one instance; it is no error when it is gone already."""

    async def list(self, service: str | None = None) -> Sequence[Registration]:
        """Give the live instances, of one service or of all, by service and start."""


class LocalRegistrar:
    """A JSON file an instance in one directory: for one machine, without any server.

    A file is written beside its place and renamed, so a reader sees all of it or none. A process
    that was killed leaves its file behind: a listing drops and removes what no live process owns.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @classmethod
    def below(cls, data_dir: Path) -> "LocalRegistrar":
        """Make the registrar of a mesh from its `data_dir`."""
        return cls(data_dir / "registry")

    async def register(self, registration: Registration) -> None:
        """Write the instance's file; raises OSError when the directory cannot be written."""
        await asyncio.to_thread(self._write, registration)

    async def deregister(self, registration: Registration) -> None:
        """Remove the instance's file."""
        self._path(registration.instance_id).unlink(missing_ok=True)

    async def list(self, service: str | None = None) -> Sequence[Registration]:
        """Give the instances whose process lives."""
        found = await asyncio.to_thread(self._read_all)
        return sorted(
            (r for r in found if service in (None, r.service)),
            key=lambda r: (r.service, r.started),
        )

    def _path(self, instance_id: str) -> Path:
        return self._directory / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', instance_id)}.json"

    def _write(self, registration: Registration) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._path(registration.instance_id)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps(asdict(registration), indent=2) + "\n", encoding="utf-8")
        scratch.replace(path)

    def _read_all(self) -> Sequence[Registration]:
        found: list[Registration] = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                registration = Registration(**record)
            except (OSError, ValueError, TypeError):
                # Removed meanwhile, or no file of ours.
                continue
            if _lives(registration):
                found.append(registration)
            else:
                path.unlink(missing_ok=True)
        return found


def _lives(registration: Registration) -> bool:
    """Tell whether the process lives, and is not a later one that was given the same pid."""
    try:
        process = psutil.Process(registration.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        started = datetime.fromisoformat(registration.started).timestamp()
        # A process older than its registration can own it; the clocks agree to about a second.
        return process.create_time() <= started + 2.0
    except (psutil.Error, ValueError):
        return False
