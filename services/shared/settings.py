"""The settings that every service reads: `config/services.yaml`, and the base for other files."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from services.shared.errors import ConfigError
from services.shared.loading import (
    CONFIG_DIR_VARIABLE,
    ENV_PREFIX,
    SettingsModel,
    config_directory,
    load_settings,
)

__all__ = [
    "CONFIG_DIR_VARIABLE",
    "ENV_PREFIX",
    "ClickHouseSettings",
    "ConfigError",
    "LimitSettings",
    "LogSettings",
    "MeshSettings",
    "NatsSettings",
    "Port",
    "PrometheusSettings",
    "RedisSettings",
    "RegistrySettings",
    "ServiceSettings",
    "SettingsModel",
    "TelemetrySettings",
    "config_directory",
    "load_mesh",
    "load_settings",
    "reachable",
]

Port = Annotated[int, Field(ge=0, le=65535)]
"""A TCP port; 0 takes a free one at start."""

LOOPBACK = "127.0.0.1"


def reachable(host: str) -> str:
    """Give where a server is reached that binds `host`: one on all addresses, on loopback."""
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104 - not bound here


class LogSettings(SettingsModel):
    """What is logged and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""

    format: Literal["console", "json"] = "console"
    """`console` for people, `json` for machines: one object a line."""


class NatsSettings(SettingsModel):
    """Where NATS is, and where the embedded server listens."""

    host: str = LOOPBACK
    """Address that the embedded nats-server binds and that clients connect to."""

    port: Port = 4222
    """Port of NATS clients."""

    monitor_port: Port = 8222
    """HTTP monitoring port of the embedded nats-server."""

    url: str = Field(default_factory=lambda data: f"nats://{data['host']}:{data['port']}")
    """Where services connect; from `host` and `port` when absent (`NATS_URL`)."""


class ServiceSettings(SettingsModel):
    """Where one service listens."""

    grpc_port: Port = 0
    """Port of its gRPC server; 0 takes a free one at start."""

    http_port: Port = 0
    """Port of its `/health` and `/metrics`; 0 takes a free one at start."""


class LimitSettings(SettingsModel):
    """What one gRPC server takes from its clients."""

    max_message_bytes: int = Field(default=16 * 1024 * 1024, ge=1024, le=512 * 1024 * 1024)
    """Largest message received or sent, bytes."""

    unary_deadline_seconds: float = Field(default=10.0, gt=0, le=3600)
    """Time a unary call gets when its client sets no deadline, seconds."""

    max_concurrent_calls: int = Field(default=10_000, ge=1)
    """Calls and streams in progress at once; more are refused with RESOURCE_EXHAUSTED."""


class TelemetrySettings(SettingsModel):
    """OpenTelemetry tracing."""

    enabled: bool = False
    """Record a span for each unary call, continuing the caller's `traceparent`."""

    exporter: Literal["console", "none"] = "console"
    """Where spans go: printed, or nowhere but to an exporter that the program passes in."""


class ClickHouseSettings(SettingsModel):
    """Where ClickHouse is."""

    url: str | None = None
    """`http://user:password@host:8123/database`; absent means the embedded engine
    (`CLICKHOUSE_URL`)."""


class RegistrySettings(SettingsModel):
    """Where services register."""

    url: str | None = None
    """Address of Consul; absent means the local registry below `data_dir`
    (`SERVICE_REGISTRY_URL`)."""


class PrometheusSettings(SettingsModel):
    """Where Prometheus is."""

    url: str | None = None
    """Address of the Prometheus server that monitoring asks (`PROMETHEUS_URL`)."""


class RedisSettings(SettingsModel):
    """Where Redis is."""

    url: str | None = None
    """Address of Redis; absent means in-process caches and counters (`REDIS_URL`)."""


def _default_services() -> dict[str, ServiceSettings]:
    names = (
        "gateway",
        "collector",
        "marketdata",
        "storage",
        "broker",
        "scheduler",
        "archiver",
        "monitoring",
        "registry",
    )
    return {
        name: ServiceSettings(grpc_port=50080 + index, http_port=9180 + index)
        for index, name in enumerate(names)
    }


class MeshSettings(SettingsModel):
    """`config/services.yaml`: what all services of one mesh share."""

    host: str = LOOPBACK
    """Address that every server binds; services of one machine reach each other there."""

    advertise_host: str = Field(default_factory=lambda data: reachable(data["host"]))
    """Name or address under which the rest of the mesh reaches this process's servers, told at
    registration; from `host` when absent. Containers bind all addresses and go by a name."""

    data_dir: Path = Path("var")
    """Where state is kept; a relative path is relative to the current directory at start."""

    shutdown_grace_seconds: float = Field(default=5.0, ge=0, le=8)
    """Time that open calls and streams get to finish at a stop, seconds."""

    log: LogSettings = LogSettings()
    """Logging."""

    limits: LimitSettings = LimitSettings()
    """Limits of every gRPC server."""

    telemetry: TelemetrySettings = TelemetrySettings()
    """Tracing."""

    nats: NatsSettings = NatsSettings()
    """The broker."""

    clickhouse: ClickHouseSettings = ClickHouseSettings()
    """The database."""

    registry: RegistrySettings = RegistrySettings()
    """Service registration."""

    prometheus: PrometheusSettings = PrometheusSettings()
    """The metrics store."""

    redis: RedisSettings = RedisSettings()
    """Caches and rate-limit counters."""

    services: Mapping[str, ServiceSettings] = Field(default_factory=_default_services)
    """Ports by service name. A service left out keeps its usual ports."""

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("services", mode="before")
    @classmethod
    def _with_usual_ports(cls, value: Any) -> Any:
        return {**_default_services(), **value} if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _ports_differ(self) -> "MeshSettings":
        taken: dict[int, str] = {}
        for name, service in self.services.items():
            for key in ("grpc_port", "http_port"):
                port: int = getattr(service, key)
                where = f"services.{name}.{key}"
                if port and port in taken:
                    raise ValueError(
                        f"expected a port of its own for each server, and {taken[port]} and "
                        f"{where} both have {port}"
                    )
                taken[port] = where
        return self

    def service(self, name: str) -> ServiceSettings:
        """Give the ports of one service; raises `ConfigError` when it has none."""
        try:
            return self.services[name]
        except KeyError:
            raise ConfigError(
                f"config/services.yaml: services.{name}: expected grpc_port and http_port of the "
                f"service {name!r}, and it is missing",
                metadata={"service": name},
            ) from None


def load_mesh(
    *, config_dir: Path | str | None = None, environ: Mapping[str, str] = os.environ
) -> MeshSettings:
    """Read `services.yaml`; raises `ConfigError` with every problem."""
    return load_settings(MeshSettings, "services", config_dir=config_dir, environ=environ)
