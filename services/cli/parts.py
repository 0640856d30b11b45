"""The parts of a mesh: which processes there are, what each needs, and where it listens."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from services.broker.settings import BrokerSettings
from services.cli.port_plan import PortUse
from services.collector.settings import CollectorSettings
from services.gateway.settings import GatewaySettings
from services.marketdata.settings import MarketDataSettings
from services.shared.errors import ConfigError
from services.shared.loading import SettingsModel
from services.shared.settings import MeshSettings, load_mesh, load_settings
from services.storage.settings import StorageSettings

__all__ = [
    "MESH",
    "SIMULATOR",
    "Configuration",
    "Service",
    "check_settings",
    "idle_port_uses",
    "load_configuration",
    "port_uses",
    "select_services",
]

SIMULATOR = "simulator"
"""Name of the process of the simulated venues among the parts; it is no service of the mesh."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the supervisor must know of the configuration files, overrides applied."""

    mesh: MeshSettings
    """`services.yaml`."""

    gateway: GatewaySettings
    """`gateway.yaml`."""


_Uses: TypeAlias = Callable[[Configuration], Sequence[PortUse]]


@dataclass(frozen=True, slots=True)
class Service:
    """One service of the mesh, as the supervisor sees it."""

    name: str
    """Its folder, and its key below `services` in config/services.yaml."""

    after: tuple[str, ...]
    """Parts that must be ready before it is started, where they are started at all."""

    own_ports: _Uses
    """Ports beside its gRPC and HTTP ports: those of a child process it owns."""

    settings: type[SettingsModel]
    """What its configuration file, named like it, must be."""

    ready_seconds: float = 60.0
    """Time it may take from its start until its `/health` answers."""

    @property
    def command(self) -> list[str]:
        """Command line of its own process."""
        return [sys.executable, "-P", "-m", f"services.{self.name}"]


def _no_ports(_: Configuration) -> Sequence[PortUse]:
    return ()


def _broker_ports(configuration: Configuration) -> Sequence[PortUse]:
    nats = configuration.mesh.nats
    if nats.url != f"nats://{nats.host}:{nats.port}":
        # The broker starts no server of its own then.
        return ()
    return (
        PortUse("broker", "NATS clients", "services", "nats.port", nats.host, nats.port),
        PortUse(
            "broker", "NATS monitoring", "services", "nats.monitor_port", nats.host,
            nats.monitor_port,
        ),
    )  # fmt: skip


def _gateway_ports(configuration: Configuration) -> Sequence[PortUse]:
    settings = configuration.gateway
    host = settings.host or configuration.mesh.host
    uses = []
    for name, listener in settings.listeners.items():
        upstream = settings.upstreams.get(listener.service or "")
        if upstream is not None and not upstream.enabled:
            continue
        of = f"{listener.service} REST" if listener.service else "clients"
        uses.append(
            PortUse("gateway", of, "gateway", f"listeners.{name}.port", host, listener.port)
        )
    uses.append(
        PortUse(
            "gateway", "Envoy's admin interface", "gateway", "admin_port", "127.0.0.1",
            settings.admin_port,
        )
    )  # fmt: skip
    return uses


MESH: tuple[Service, ...] = (
    Service("broker", (), _broker_ports, BrokerSettings),
    Service("collector", ("broker", SIMULATOR), _no_ports, CollectorSettings),
    Service("marketdata", ("broker",), _no_ports, MarketDataSettings),
    Service("storage", ("broker",), _no_ports, StorageSettings),
    Service("gateway", ("collector", "marketdata"), _gateway_ports, GatewaySettings),
)
"""Services in the order of their start."""


def select_services(names: Sequence[str] | None) -> tuple[Service, ...]:
    """Give the services of these names, in the order of their start; all when None.

    Raises `ConfigError` for a name that is none.
    """
    if names is None:
        return MESH
    known = [service.name for service in MESH]
    for name in names:
        if name not in known:
            raise ConfigError(f"--services: expected names of {', '.join(known)}, got {name!r}")
    return tuple(service for service in MESH if service.name in names)


def port_uses(services: Sequence[Service], configuration: Configuration) -> list[PortUse]:
    """Give every port that these services listen on."""
    uses: list[PortUse] = []
    for service in services:
        host = configuration.mesh.host
        own = configuration.mesh.service(service.name)
        uses += service.own_ports(configuration)
        for key, purpose, port in (
            ("grpc_port", "gRPC", own.grpc_port),
            ("http_port", "/health and /metrics", own.http_port),
        ):
            uses.append(
                PortUse(
                    service.name, purpose, "services", f"services.{service.name}.{key}", host, port
                )
            )
    return uses


def idle_port_uses(services: Sequence[Service], configuration: Configuration) -> list[PortUse]:
    """Give the ports that the configuration has for what does not run.

    Nobody listens there; but a configuration has no port twice, so they move with the others.
    """
    mesh, host = configuration.mesh, configuration.mesh.host
    running = {service.name for service in services}
    uses = [
        PortUse(name, key, "services", f"services.{name}.{key}", host, getattr(ports, key))
        for name, ports in mesh.services.items()
        if name not in running
        for key in ("grpc_port", "http_port")
    ]
    listening = {use.key for use in _gateway_ports(configuration)}
    for name, listener in configuration.gateway.listeners.items():
        key = f"listeners.{name}.port"
        if key not in listening or "gateway" not in running:
            uses.append(PortUse("gateway", name, "gateway", key, host, listener.port))
    return uses


def load_configuration(
    config_dir: Path | None = None, environ: Mapping[str, str] = os.environ
) -> Configuration:
    """Read the configuration files; raises `ConfigError` with every problem of the first bad."""
    return Configuration(
        mesh=load_mesh(config_dir=config_dir, environ=environ),
        gateway=load_settings(GatewaySettings, "gateway", config_dir=config_dir, environ=environ),
    )


def check_settings(
    services: Sequence[Service], config_dir: Path | None, environ: Mapping[str, str]
) -> None:
    """Read what each service will read; raises `ConfigError` with every problem of all of them."""
    problems = []
    for service in services:
        try:
            load_settings(service.settings, service.name, config_dir=config_dir, environ=environ)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
