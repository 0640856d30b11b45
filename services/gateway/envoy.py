"""Envoy as a child process: its command, its readiness, its logs, its graceful end."""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from services.gateway.admin import AdminClient
from services.gateway.settings import GatewaySettings
from services.shared.errors import StartupError
from services.shared.log import get_logger
from services.shared.ports import bind_socket
from services.shared.process import ChildProcess, RestartPolicy, find_binary
from services.shared.telemetry import Metrics

__all__ = ["EnvoyProcess", "validate_config"]

_READY_SECONDS = 15.0
_POLL_SECONDS = 0.05

# Fields of a line of Envoy's own log; %j is its message, escaped for JSON.
_LOG_FORMAT = '{"envoy_log":"%n","level":"%l","message":"%j"}'
# Envoy sorts the keys of its access log, and this is the first.
_ACCESS_LINE = '{"bytes_received"'
_EXPECTED = "caught ENVOY_SIGTERM"
_LEVELS = {"trace": "debug", "critical": "error", "off": "debug"}


async def validate_config(config_file: Path, concurrency: int = 1) -> str:
    """Let Envoy itself check a configuration; raises `StartupError` with what it says.

    Gives what Envoy printed.
    """
    process = await asyncio.create_subprocess_exec(
        str(find_binary("envoy")),
        "--mode",
        "validate",
        "--config-path",
        str(config_file),
        "--concurrency",
        str(concurrency),
        "--log-level",
        "warning",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    text = output.decode("utf-8", errors="replace").strip()
    if process.returncode != 0:
        raise StartupError(
            f"Envoy refuses its configuration {config_file}:\n{text}",
            reason="ENVOY_CONFIG_INVALID",
            metadata={"path": config_file},
        )
    return text


class EnvoyProcess:
    """One supervised Envoy: started when its ports are free, restarted when it dies, drained."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        config_file: Path,
        host: str,
        listener_ports: Mapping[str, int],
        admin_port: int,
        log_format: str = "console",
        metrics: Metrics | None = None,
    ) -> None:
        """Describe it; nothing runs before `start`.

        `config_file` is the rendered bootstrap, `host` the address of its listeners. With
        `log_format` json, lines of the access log, which are JSON already, pass as they are.
        """
        self._host = host
        self._listener_ports = dict(listener_ports)
        self._admin_port = admin_port
        self._raw = log_format == "json"
        self._log = get_logger(service="envoy")
        self._admin: AdminClient | None = None
        self.child = ChildProcess(
            "envoy",
            [
                find_binary("envoy"),
                "--config-path",
                config_file,
                "--concurrency",
                str(settings.concurrency),
                "--use-dynamic-base-id",
                "--log-level",
                settings.envoy_log_level,
                "--log-format",
                _LOG_FORMAT,
                # Connections are asked to leave at once, not spread over minutes.
                "--drain-time-s",
                "1",
                "--drain-strategy",
                "immediate",
                "--file-flush-interval-msec",
                "200",
            ],
            ready=self._is_ready,
            ready_seconds=_READY_SECONDS,
            stop_seconds=3.0,
            restart=RestartPolicy(),
            on_line=self._on_line,
            metrics=metrics,
        )

    @property
    def admin(self) -> AdminClient:
        """Its admin interface; there from `start` to `stop`."""
        if self._admin is None:
            raise RuntimeError("Envoy's admin interface is not there before the start")
        return self._admin

    async def start(self) -> None:
        """Start it and return when it takes traffic.

        Raises `StartupError`: a port that is taken in one sentence, else Envoy's own last lines.
        """
        self._check_ports()
        self._admin = AdminClient(self._admin_port)
        try:
            await self.child.start()
        except BaseException:
            await self._admin.close()
            raise

    async def drain(self, seconds: float) -> None:
        """Take no new work, and return when all requests and streams ended or time is up."""
        deadline = time.monotonic() + seconds
        try:
            await self.admin.drain()
            # The count is in another process: there is no event to await.
            while (  # noqa: ASYNC110
                await self.admin.active_requests() > 0 and time.monotonic() < deadline
            ):
                await asyncio.sleep(_POLL_SECONDS)
        except OSError as error:
            # It is dead or dying; there is nothing left to wait for.
            self._log.debug("not drained", error=str(error))

    async def stop(self) -> None:
        """End it; what is still in progress is cut."""
        await self.child.stop()
        if self._admin is not None:
            await self._admin.close()

    def _check_ports(self) -> None:
        """Say who holds a port before Envoy says only that it cannot bind."""
        for name, port in self._listener_ports.items():
            bind_socket(self._host, port, f"listeners.{name}.port in config/gateway.yaml").close()
        bind_socket("127.0.0.1", self._admin_port, "admin_port in config/gateway.yaml").close()

    async def _is_ready(self) -> bool:
        return await self.admin.ready()

    def _on_line(self, line: str) -> None:
        if self._raw and line.startswith(_ACCESS_LINE):
            # The access log is JSON of our own making, and there may be thousands a second.
            sys.stderr.write(line + "\n")
            return
        try:
            fields: dict[str, Any] = json.loads(line)
        except ValueError:
            self._log.warning(line)
            return
        level = str(fields.pop("level", "info"))
        if "envoy_log" in fields:
            level = _LEVELS.get(level, level)
            if str(fields.get("message", "")).startswith(_EXPECTED):
                level = "debug"
            write: Callable[..., Any] = getattr(self._log, level, self._log.info)
            write(fields.get("message", line), logger=fields["envoy_log"])
            return
        fields.pop("timestamp", None)
        fields.pop("service", None)
        self._log.info(
            fields.pop("event", "request"),
            **{key: value for key, value in fields.items() if value not in (None, "-")},
        )
