"""The embedded nats-server: its configuration file, its process, its readiness."""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from services.broker.settings import ServerSettings
from services.broker.write_guard import WriteGuard
from services.shared.errors import MarketPrismError, StartupError
from services.shared.health import DependencyStatus
from services.shared.jetstream import Connection
from services.shared.jetstream.api import api_request
from services.shared.log import get_logger
from services.shared.ports import bind_socket, free_port
from services.shared.process import ChildProcess, RestartPolicy, find_binary
from services.shared.telemetry import Metrics

__all__ = ["NatsServer"]

# [pid] 2026/01/31 10:11:12.131415 [INF] text
_LOG_LINE = re.compile(r"\[\d+\] \S+ \S+ \[(?P<level>\w{3})\] ?(?P<text>.*)")
_LEVELS = {"INF": "debug", "WRN": "warning", "ERR": "error", "FTL": "critical"}
_RESTART = RestartPolicy(initial_seconds=0.1, max_seconds=2.0)


class NatsServer:
    """A supervised nats-server with JetStream on disk below `directory`.

    `port` and `monitor_port` 0 take free ports, which stay the same across restarts.
    """

    def __init__(
        self,
        directory: Path,
        settings: ServerSettings,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        monitor_port: int = 0,
        metrics: Metrics | None = None,
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._host = host
        self._wanted_port = port
        self._wanted_monitor_port = monitor_port
        self._metrics = metrics
        self._log = get_logger(child="nats-server")
        self._child: ChildProcess | None = None
        self.guard = WriteGuard(directory, lambda: self.child.kill())
        """What starts it again after it gave up writing; somebody has to run it."""
        self.port = port
        """Port of clients, the real one once started."""
        self.monitor_port = monitor_port
        """HTTP monitoring port, the real one once started."""

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://{self._address(self.port)}"

    @property
    def monitor_url(self) -> str:
        """Where its monitoring answers."""
        return f"http://{self._address(self.monitor_port)}"

    @property
    def child(self) -> ChildProcess:
        """The process; raises `RuntimeError` before the start."""
        if self._child is None:
            raise RuntimeError("nats-server was not started")
        return self._child

    @property
    def restarts(self) -> int:
        """How often it died and was started again."""
        return self._child.restarts if self._child is not None else 0

    def status(self) -> DependencyStatus:
        """Give the state of the process."""
        if self._child is None:
            return DependencyStatus.unhealthy("nats-server was not started")
        if self.guard.problem:
            return DependencyStatus.unhealthy(self.guard.problem, restarts=self.restarts)
        return self._child.status()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["NatsServer"]:
        """Start on entry, stop on exit.

        Raises `StartupError` when the binary is missing, a port or the store is taken by another,
        or the server does not become ready.
        """
        binary = find_binary("nats-server")
        with self._own_store():
            self.port = self._free(self._wanted_port, "nats.port")
            self.monitor_port = self._free(self._wanted_monitor_port, "nats.monitor_port")
            self._child = ChildProcess(
                "nats-server",
                [binary, "-c", self._config_file],
                env={
                    "GOMEMLIMIT": os.environ.get("GOMEMLIMIT", str(self._settings.process_memory))
                },
                # Whoever deletes the store deletes the configuration with it.
                prepare=self._write_config,
                ready=self._is_ready,
                ready_seconds=self._settings.ready_seconds,
                restart=_RESTART,
                on_line=self._on_line,
                metrics=self._metrics,
            )
            async with self._child.running():
                yield self

    def config_text(self) -> str:
        """Give the configuration file's content."""
        settings = self._settings
        lines = [
            "# Written at each start; change config/broker.yaml instead.",
            f"server_name: {settings.name}",
            f"listen: {json.dumps(self._address(self.port))}",
            f"http: {json.dumps(self._address(self.monitor_port))}",
            f"max_payload: {settings.max_payload}",
            f"max_pending: {settings.max_pending}",
            "jetstream {",
            f"  store_dir: {json.dumps(str(self._directory))}",
            f"  max_file_store: {settings.max_storage}",
            f"  max_memory_store: {settings.max_memory}",
            f'  sync_interval: "{round(settings.sync_interval * 1000)}ms"',
            "}",
        ]
        return "\n".join(lines) + "\n"

    def _address(self, port: int) -> str:
        return f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"

    def _free(self, wanted: int, key: str) -> int:
        if wanted == 0:
            return free_port(self._host)
        bind_socket(self._host, wanted, key).close()
        return wanted

    @property
    def _config_file(self) -> Path:
        return self._directory / "nats-server.conf"

    def _write_config(self) -> None:
        text = self.config_text()
        # On a full disk writing it again would only empty it.
        with contextlib.suppress(OSError):
            if self._config_file.read_text(encoding="utf-8") == text:
                return
        self._directory.mkdir(parents=True, exist_ok=True)
        self._config_file.write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def _own_store(self) -> Iterator[None]:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(
                self._directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise StartupError(
                f"cannot use {self._directory} for the broker's store: {error.strerror}; "
                "set data_dir to a folder that can be written",
                reason="CANNOT_STORE",
            ) from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StartupError(
                    f"another broker uses the store {self._directory}: stop it, or set data_dir "
                    "to another folder",
                    reason="STORE_TAKEN",
                ) from None
            yield
        finally:
            os.close(handle)

    async def _is_ready(self) -> bool:
        try:
            connection = await Connection.open([self.url], name="readiness", timeout=1.0)
        except MarketPrismError:
            return False
        try:
            await api_request(connection, "INFO", timeout=1.0)
        except (MarketPrismError, TimeoutError):
            return False
        finally:
            connection.close("probe done")
        return True

    def _on_line(self, line: str) -> None:
        match = _LOG_LINE.fullmatch(line)
        if match and not match["text"]:
            return
        level = _LEVELS.get(match["level"], "debug") if match else "info"
        text = match["text"] if match else line
        getattr(self._log, level)(text)
        self.guard.on_line(text)
