"""`config/gateway.yaml`: where Envoy listens, which services are behind it, and its limits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from services.shared.loading import SettingsModel
from services.shared.settings import Port

__all__ = [
    "CircuitBreakerSettings",
    "CorsSettings",
    "GatewaySettings",
    "HealthCheckSettings",
    "ListenerSettings",
    "RequestLimitSettings",
    "RetrySettings",
    "TimeoutSettings",
    "UpstreamSettings",
]

Seconds = Annotated[float, Field(gt=0, le=3600)]

_REPOSITORY = Path(__file__).resolve().parents[2]


class ListenerSettings(SettingsModel):
    """One port that Envoy listens on."""

    port: Port
    """TCP port; 0 takes a free one at start."""

    service: str | None = None
    """The only service to be reached here; absent means all that are enabled."""


class UpstreamSettings(SettingsModel):
    """One service of the mesh, as the gateway sees it."""

    packages: tuple[str, ...]
    """Protobuf packages whose services it implements, such as `marketprism.market.v1`."""

    enabled: bool = True
    """Whether it is deployed. The methods of one that is not answer UNIMPLEMENTED (501)."""

    host: str | None = None
    """Address or host name; absent means the mesh's host. A name is resolved by DNS, an address
    comes from the endpoint file, which may be changed while Envoy runs."""

    grpc_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of its gRPC server; absent means that of `services.yaml`."""

    http_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of its `/health`; absent means that of `services.yaml`."""


class TimeoutSettings(SettingsModel):
    """How long things may take, seconds."""

    unary: Seconds = 10.0
    """Time from the complete request to the complete answer; then 504. Streams have no limit."""

    slow: Seconds = 65.0
    """The same for the methods of `slow_methods`, whose requests say how long they may take."""

    connect: Seconds = 1.0
    """Time to open a connection to an upstream."""

    request_headers: Seconds = 10.0
    """Time a client may take to send the headers of a request."""

    idle_request: Seconds = 30.0
    """Time a unary request may stand still in either direction."""

    idle_connection: Seconds = 300.0
    """Time after which a connection without requests is closed."""


class RetrySettings(SettingsModel):
    """When a call is tried again at the upstream.

    A call that never reached the service is always tried again; one that the service may have
    seen only where its method is safe to repeat (an RPC that REST carries as GET).
    """

    attempts: int = Field(default=2, ge=0, le=10)
    """Most retries of one call."""

    backoff_seconds: Seconds = 0.025
    """Base of the exponential back-off between them, with jitter."""

    budget_percent: float = Field(default=20.0, ge=0, le=100)
    """Most retries in flight, in percent of the calls in flight to that upstream."""


class CircuitBreakerSettings(SettingsModel):
    """Most of everything towards one upstream; more answers 503."""

    max_connections: int = Field(default=64, ge=1)
    """Connections."""

    max_pending_requests: int = Field(default=1024, ge=1)
    """Requests that wait for a connection."""

    max_requests: int = Field(default=10_000, ge=1)
    """Calls and streams in progress."""

    max_streams_per_connection: int = Field(default=1000, ge=1, le=1_000_000)
    """Calls and streams in progress on one HTTP/2 connection; then another one is opened."""


class HealthCheckSettings(SettingsModel):
    """How upstreams are watched."""

    interval: Seconds = 2.0
    """Time between two `grpc.health.v1` checks of a healthy upstream, seconds."""

    unhealthy_interval: Seconds = 0.5
    """The same while it is unhealthy, seconds."""

    timeout: Seconds = 1.0
    """Time it has to answer one, seconds."""

    unhealthy_threshold: int = Field(default=2, ge=1)
    """Failures in a row that take it out."""

    consecutive_errors: int = Field(default=10, ge=1)
    """Connection failures or gateway errors of calls in a row that take one endpoint of several
    out for a while (outlier detection)."""


class RequestLimitSettings(SettingsModel):
    """Most of everything that clients may send or hold."""

    max_connections: int = Field(default=5_000, ge=1)
    """Client connections of all listeners."""

    max_streams_per_connection: int = Field(default=1000, ge=1, le=1_000_000)
    """Requests in progress on one HTTP/2 connection."""

    max_headers: int = Field(default=100, ge=1)
    """Headers of one request; then 431."""

    max_headers_kib: int = Field(default=32, ge=1, le=8192)
    """Size of all headers of one request, KiB; then 431."""

    max_body_bytes: int = Field(default=1024 * 1024, ge=1024)
    """Size of a REST request's body, bytes; then 413."""

    max_response_bytes: int = Field(default=16 * 1024 * 1024, ge=64 * 1024)
    """Size of a transcoded answer, and of what a stream may hold for a slow reader, bytes. A
    stream that holds more is reset."""


class CorsSettings(SettingsModel):
    """Which web pages may call."""

    allow_origin_regexes: tuple[str, ...] = (r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?",)
    """Origins that may, as RE2 expressions that match the whole origin; empty means none."""

    max_age_seconds: int = Field(default=3600, ge=0, le=86400)
    """How long browsers keep the answer of a preflight."""


def _default_listeners() -> dict[str, ListenerSettings]:
    return {
        "all": ListenerSettings(port=8080),
        "collector": ListenerSettings(port=8081, service="collector"),
        "storage": ListenerSettings(port=8083, service="storage"),
        "scheduler": ListenerSettings(port=8085, service="scheduler"),
    }


def _default_upstreams() -> dict[str, UpstreamSettings]:
    def upstream(*names: str, enabled: bool = True) -> UpstreamSettings:
        packages = tuple(f"marketprism.{name}.v1" for name in names)
        return UpstreamSettings(packages=packages, enabled=enabled)

    return {
        "collector": upstream("collector"),
        "marketdata": upstream("market"),
        "broker": upstream("broker"),
        "storage": upstream("history"),
        "scheduler": upstream("scheduler", enabled=False),
        # Storage serves its backups; whoever may restore one is not asked here who they are.
        "archiver": upstream("archive", enabled=False),
        "monitoring": upstream("monitoring", enabled=False),
        "registry": upstream("registry", enabled=False),
    }


class GatewaySettings(SettingsModel):
    """`config/gateway.yaml`: everything of the gateway but what the whole mesh shares."""

    host: str | None = None
    """Address that Envoy's listeners bind; absent means the mesh's host."""

    listeners: Mapping[str, ListenerSettings] = Field(default_factory=_default_listeners)
    """Ports of Envoy by name."""

    upstreams: Mapping[str, UpstreamSettings] = Field(default_factory=_default_upstreams)
    """Services behind the gateway, by the names of `services.yaml`."""

    admin_port: Port = 9901
    """Port of Envoy's admin interface, always on 127.0.0.1; 0 takes a free one at start."""

    concurrency: int = Field(default=2, ge=1, le=256)
    """Worker threads of Envoy."""

    envoy_log_level: Literal["trace", "debug", "info", "warning", "error"] = "warning"
    """Least severe level of Envoy's own log."""

    access_log: Literal["all", "errors", "off"] = "all"
    """Which requests are logged: all, those with status 400 and above, or none."""

    access_log_rate: int = Field(default=100, ge=1, le=1_000_000)
    """Most lines of the access log a second; Envoy's statistics count the others
    (`access_log.process_ratelimit.denied`)."""

    server_header: str = "marketprism"
    """Value of the `server` response header."""

    trusted_proxies: int = Field(default=0, ge=0, le=16)
    """Proxies before this one whose `x-forwarded-for` is believed."""

    descriptor_set: Path = _REPOSITORY / "gen" / "descriptors" / "marketprism.binpb"
    """Compiled contracts with their imports, for transcoding and reflection."""

    openapi: Path = _REPOSITORY / "gen" / "openapi" / "marketprism.json"
    """OpenAPI document of the contracts; `/openapi.json` has the part of it that is deployed."""

    templates: Path = _REPOSITORY / "envoy"
    """Directory of `envoy.yaml.j2` and what it includes."""

    slow_methods: tuple[str, ...] = ("marketprism.history.v1.HistoryService/RunQuery",)
    """Unary methods that may take `timeouts.slow`."""

    envelope: bool = True
    """Wrap unary REST answers in the response envelope. Off only to measure what it costs."""

    timeouts: TimeoutSettings = TimeoutSettings()
    """Time limits."""

    retries: RetrySettings = RetrySettings()
    """Retries."""

    circuit_breakers: CircuitBreakerSettings = CircuitBreakerSettings()
    """Limits towards each upstream."""

    health_checks: HealthCheckSettings = HealthCheckSettings()
    """How upstreams are watched."""

    limits: RequestLimitSettings = RequestLimitSettings()
    """Limits towards clients."""

    cors: CorsSettings = CorsSettings()
    """Cross-origin requests."""

    @model_validator(mode="after")
    def _consistent(self) -> "GatewaySettings":
        for name, listener in self.listeners.items():
            if listener.service is not None and listener.service not in self.upstreams:
                raise ValueError(
                    f"expected listeners.{name}.service to be one of upstreams "
                    f"({', '.join(self.upstreams)}), and it is {listener.service!r}"
                )
        ports = [item.port for item in self.listeners.values() if item.port]
        ports += [self.admin_port] if self.admin_port else []
        double = {port for port in ports if ports.count(port) > 1}
        if double:
            raise ValueError(
                f"expected a port of its own for each listener and the admin interface, and "
                f"several have {', '.join(map(str, sorted(double)))}"
            )
        if self.timeouts.idle_request <= self.timeouts.unary:
            raise ValueError(
                f"expected timeouts.idle_request to be longer than timeouts.unary "
                f"({self.timeouts.unary:g} s), and it is {self.timeouts.idle_request:g} s"
            )
        owners: dict[str, str] = {}
        for name, upstream in self.upstreams.items():
            for package in upstream.packages:
                if package in owners:
                    raise ValueError(
                        f"expected each package at one upstream, and {package} is at "
                        f"{owners[package]} and {name}"
                    )
                owners[package] = name
        return self
