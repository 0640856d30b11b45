"""How commands reach a mesh: its address, a channel to it, and its services."""

import contextlib
import os
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import grpc
import uvloop

from services.cli.mesh_state import MeshRecord, read_mesh_record
from services.cli.parts import load_configuration
from services.shared.settings import ENV_PREFIX

__all__ = [
    "connect",
    "data_directory",
    "gateway_address",
    "mesh_record",
    "reachable",
    "run_async",
]

_R = TypeVar("_R")
_LARGEST_MESSAGE = 64 * 1024 * 1024


def run_async(work: Coroutine[Any, Any, _R]) -> _R:
    """Run a coroutine in this thread; Ctrl-C cancels it and raises KeyboardInterrupt."""
    return uvloop.run(work)


def data_directory(data_dir: Path | None, config_dir: Path | None = None) -> Path:
    """Give the data directory that was asked for, or the configured one; raises `ConfigError`."""
    environ = dict(os.environ)
    if data_dir is not None:
        environ[f"{ENV_PREFIX}SERVICES__DATA_DIR"] = str(data_dir.expanduser().absolute())
    return load_configuration(config_dir, environ).mesh.data_dir


def mesh_record(data_dir: Path) -> MeshRecord | None:
    """Give what the supervisor on this data directory tells, None when none runs."""
    return read_mesh_record(data_dir)


def gateway_address(
    address: str | None, data_dir: Path | None = None, config_dir: Path | None = None
) -> str:
    """Give the address of the gateway.

    The one asked for; else that of the mesh which runs on the data directory; else the
    configured one. Raises `ConfigError`.
    """
    if address:
        return address
    record = mesh_record(data_directory(data_dir, config_dir))
    if record is not None and "all" in record.addresses:
        return reachable(record.addresses["all"])
    configuration = load_configuration(config_dir)
    host = configuration.gateway.host or configuration.mesh.host
    return reachable(f"{host}:{configuration.gateway.listeners['all'].port}")


def reachable(address: str) -> str:
    """Give the address under which this machine reaches a server that listens everywhere."""
    host, _, port = address.rpartition(":")
    return f"{ {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}"  # noqa: S104 - compared only


@contextlib.asynccontextmanager
async def connect(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel; it connects with the first call."""
    channel = grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
            # A command that waits for a mesh to come back shall notice soon when it does.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
            # Commands that talk to different meshes in one process share nothing.
            ("grpc.use_local_subchannel_pool", 1),
            # A proxy of the environment is for the web, not for a mesh.
            ("grpc.enable_http_proxy", 0),
        ],
    )
    try:
        yield channel
    finally:
        await channel.close(None)
