"""What Envoy shall do, worked out from settings and contracts; the templates only write it down."""

import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.gateway.bodies import body_tables
from services.gateway.contract import Contract, Guard, MethodSet, Service, allowed_methods, guards
from services.gateway.settings import GatewaySettings, ListenerSettings, UpstreamSettings
from services.shared.errors import ConfigError
from services.shared.settings import MeshSettings, reachable

__all__ = ["Address", "Cluster", "EnvoyPlan", "Listener", "Ports", "Route", "make_plan"]

GATEWAY = "gateway"
"""Name of the gateway's own service, for reflection, health and `/health`."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where something listens."""

    host: str
    """Address or host name."""

    port: int
    """TCP port."""

    @property
    def is_ip(self) -> bool:
        """Whether `host` is an address, which needs no DNS."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Ports:
    """Real ports, where the settings may say 0."""

    listeners: Mapping[str, int]
    """Envoy's listeners by name."""

    admin: int
    """Envoy's admin interface."""

    gateway_grpc: int
    """The gateway's own gRPC server."""

    gateway_http: int
    """The gateway's own `/health`."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """One upstream of Envoy."""

    name: str
    """`marketdata`, or `marketdata_http` for the HTTP side."""

    address: Address
    """Where it is at the start."""

    grpc: bool
    """Whether it speaks gRPC over HTTP/2, else HTTP/1.1."""

    checked: bool
    """Whether its health is checked; the gateway's own servers live and die with Envoy."""

    endpoints_file: Path | None
    """File that its endpoints are read from whenever it is replaced; `None` means DNS."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests of a gRPC path go."""

    path: str
    """Full path of a method, or `/service/` for the rest of a service."""

    cluster: str | None
    """Upstream; `None` where the service is not deployed."""

    streaming: bool = False
    """No time limit and no envelope."""

    repeatable: bool = False
    """May be tried again even when the service may have seen it."""

    slow: bool = False
    """May take longer than other unary methods."""

    @property
    def match(self) -> str:
        """Envoy's way to match it: a whole service by prefix, a method exactly."""
        return "prefix" if self.path.endswith("/") else "path"


@dataclass(frozen=True, slots=True)
class Listener:
    """One port of Envoy and what is reached through it."""

    name: str
    """Its name in the settings."""

    port: int
    """TCP port."""

    transcoded: tuple[str, ...]
    """Services with REST paths here."""

    routes: tuple[Route, ...]
    """gRPC paths, the more specific first."""

    methods: tuple[MethodSet, ...]
    """REST paths by the HTTP methods they take, to answer 405."""

    guards: tuple[Guard, ...]
    """Fields that a query must not have, because the path has them."""

    bodies: str
    """Lua tables of the fields that bodies may have."""

    health: str
    """Cluster that `/health` goes to."""

    infrastructure: str
    """Cluster of reflection and gRPC health."""

    @property
    def documented(self) -> bool:
        """Whether the REST document and its page are served here: where everything is."""
        return self.infrastructure == GATEWAY


@dataclass(frozen=True, slots=True)
class EnvoyPlan:
    """Everything that the templates write down."""

    host: str
    """Address of the listeners."""

    admin_port: int
    """Port of the admin interface."""

    listeners: tuple[Listener, ...]
    """Ports of Envoy."""

    clusters: tuple[Cluster, ...]
    """Upstreams."""

    services: tuple[Service, ...]
    """Services reached through it, for statistics by method."""

    log_limit_file: Path
    """File of the limit on the access log's lines."""


def make_plan(
    settings: GatewaySettings,
    mesh: MeshSettings,
    contract: Contract,
    ports: Ports,
    directory: Path,
) -> EnvoyPlan:
    """Work out listeners, routes and clusters; raises `ConfigError` where the settings do not fit.

    `directory` is where the files are that Envoy reads beside its bootstrap.
    """
    endpoints_dir = directory / "endpoints"
    enabled = {name: item for name, item in settings.upstreams.items() if item.enabled}
    near = reachable(mesh.host)
    clusters: list[Cluster] = [
        _cluster(GATEWAY, Address(near, ports.gateway_grpc), endpoints_dir, grpc=True),
        _cluster(f"{GATEWAY}_http", Address(near, ports.gateway_http), endpoints_dir),
    ]
    for name, upstream in enabled.items():
        grpc_address, http_address = _addresses(name, upstream, mesh)
        clusters.append(_cluster(name, grpc_address, endpoints_dir, grpc=True))
        if any(item.service == name for item in settings.listeners.values()):
            clusters.append(_cluster(f"{name}_http", http_address, endpoints_dir))
    listeners = []
    for name, item in settings.listeners.items():
        if item.service is None or item.service in enabled:
            listeners.append(_listener(name, item, settings, contract, ports.listeners[name]))
    return EnvoyPlan(
        host=settings.host or mesh.host,
        admin_port=ports.admin,
        listeners=tuple(listeners),
        clusters=tuple(clusters),
        services=tuple(
            service for item in enabled.values() for service in contract.of_packages(item.packages)
        ),
        log_limit_file=directory / "access_log_limit.yaml",
    )


def _addresses(
    name: str, upstream: UpstreamSettings, mesh: MeshSettings
) -> tuple[Address, Address]:
    usual = mesh.service(name)
    host = upstream.host or reachable(mesh.host)
    found = []
    for key, port in (
        ("grpc_port", upstream.grpc_port or usual.grpc_port),
        ("http_port", upstream.http_port or usual.http_port),
    ):
        if not port:
            raise ConfigError(
                f"config/gateway.yaml: upstreams.{name}.{key}: expected a port, and neither this "
                f"nor services.{name}.{key} of services.yaml gives one; set it, or "
                f"upstreams.{name}.enabled: false",
                metadata={"service": name},
            )
        found.append(Address(host, port))
    return found[0], found[1]


def _cluster(name: str, address: Address, endpoints_dir: Path, *, grpc: bool = False) -> Cluster:
    file = endpoints_dir / f"{name}.yaml" if address.is_ip else None
    return Cluster(name, address, grpc, grpc and name != GATEWAY, file)


def _listener(
    name: str, item: ListenerSettings, settings: GatewaySettings, contract: Contract, port: int
) -> Listener:
    routes: list[Route] = []
    services: list[Service] = []
    for upstream_name, upstream in settings.upstreams.items():
        if item.service not in (None, upstream_name):
            continue
        cluster = upstream_name if upstream.enabled else None
        for service in contract.of_packages(upstream.packages):
            services.append(service)
            routes += _routes(service, cluster, settings.slow_methods)
    if item.service is None:
        # Services of the contracts that no upstream claims are known, and not deployed.
        claimed = {package for other in settings.upstreams.values() for package in other.packages}
        for service in contract.of_packages(_ours(contract) - claimed):
            services.append(service)
            routes += _routes(service, None)
    owner = GATEWAY if item.service is None else item.service
    return Listener(
        name=name,
        port=port,
        transcoded=tuple(service.name for service in services),
        routes=tuple(routes),
        methods=allowed_methods(services),
        guards=guards(services),
        bodies=body_tables(contract, services),
        health=f"{owner}_http",
        infrastructure=owner,
    )


def _ours(contract: Contract) -> frozenset[str]:
    return frozenset(name for name in contract.packages if name.startswith("marketprism."))


def _routes(
    service: Service, cluster: str | None, slow_methods: Collection[str] = ()
) -> list[Route]:
    """Give the routes of one service: those of single methods first, then that of the others.

    The rest of a service is what most of its methods are: plain, safe to repeat.
    """
    rest = f"/{service.name}/"
    if cluster is None:
        return [Route(rest, None)]
    single = [
        Route(
            method.path,
            cluster,
            streaming=method.streaming,
            repeatable=method.repeatable,
            slow=method.path.removeprefix("/") in slow_methods,
        )
        for method in service.methods
        if method.streaming
        or not method.repeatable
        or method.path.removeprefix("/") in slow_methods
    ]
    return [*single, Route(rest, cluster, repeatable=True)]
