"""The real redis-server on a port of its own."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

from services.shared.ports import free_port
from services.shared.probes import tcp_ready
from tests.requirements_helper import require_tool

__all__ = ["RedisServer", "redis_server"]


class RedisServer:
    """One redis-server, which can be stopped, frozen and started again at the same port."""

    def __init__(self, program: Path, directory: Path) -> None:
        self._program = program
        self._directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        self._spawn()
        deadline = time.monotonic() + 10
        while not await tcp_ready("127.0.0.1", self.port):
            assert time.monotonic() < deadline, "redis-server did not listen within 10 s"
            await asyncio.sleep(0.01)

    def _spawn(self) -> None:
        assert self._process is None
        self._process = subprocess.Popen(
            [
                str(self._program),
                *("--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
                *("--dir", str(self._directory), "--daemonize", "no"),
                *("--maxmemory", "32mb", "--maxmemory-policy", "allkeys-lru"),
            ],
            stdout=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def redis_server(directory: Path) -> AsyncIterator[RedisServer]:
    """Run one; skips the test where the program is not installed."""
    server = RedisServer(require_tool("redis-server", "apt-get install redis-server"), directory)
    await server.start()
    try:
        yield server
    finally:
        server.kill()
