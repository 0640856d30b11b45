"""Works out from options and configuration what runs: processes, ports, addresses."""

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from services.cli import venue
from services.cli.collected import live_environment, simulated_environment
from services.cli.health import explain_health
from services.cli.parts import (
    SIMULATOR,
    Configuration,
    Service,
    check_settings,
    idle_port_uses,
    load_configuration,
    port_uses,
    select_services,
)
from services.cli.port_plan import (
    PortUse,
    assign_free_ports,
    env_overrides,
    find_conflicts,
    shift_ports,
)
from services.cli.supervisor import Part
from services.cli.venue import VenueOptions
from services.collector.settings import CollectorSettings
from services.shared.errors import ConfigError, StartupError
from services.shared.process import http_ready
from services.shared.settings import CONFIG_DIR_VARIABLE, ENV_PREFIX, load_settings, reachable

__all__ = ["MeshOptions", "MeshPlan", "Mode", "check_ports", "make_plan"]

Mode = Literal["microservice", "full"]
"""One process a service, or all of them in one."""

ALL_IN_ONE = "mesh"
"""Name of the one process of full mode."""

_SIMULATED_STORE = "nats-simulated"
_SIMULATED_DATABASE = "clickhouse-simulated"


@dataclass(frozen=True, slots=True)
class MeshOptions:
    """What the command line asks for; None and empty leave it to the configuration."""

    mode: Mode = "microservice"
    """One process a service, or all of them in one."""

    simulated: VenueOptions | None = None
    """Simulated venues in place of the live ones."""

    exchanges: tuple[str, ...] = ()
    """Only these of the live venues."""

    symbols: tuple[str, ...] = ()
    """Canonical symbols to collect; `*` matches any run of characters."""

    services: tuple[str, ...] | None = None
    """Only these services."""

    config_dir: Path | None = None
    """Where the configuration files are."""

    data_dir: Path | None = None
    """Where state is kept."""

    port_offset: int = 0
    """Added to every port."""

    free_ports: bool = False
    """Take free ports for everything."""

    log_level: str | None = None
    """Least severe level that is written."""

    log_format: str | None = None
    """`console` or `json`."""

    ready_seconds: float | None = None
    """Time that each process gets to become ready."""

    env: Mapping[str, str] = field(default_factory=dict)
    """Further overrides for the services."""


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """Everything that is known before anything is started."""

    options: MeshOptions
    """What was asked for."""

    configuration: Configuration
    """What the services will read."""

    services: tuple[Service, ...]
    """Services that run, in the order of their start."""

    uses: tuple[PortUse, ...]
    """Every port that is listened on."""

    env: Mapping[str, str]
    """What the services get in their environment."""

    parts: tuple[Part, ...]
    """Processes, in the order of their start."""

    @property
    def source(self) -> str:
        """Where the market data comes from: `live`, `simulated`, or the capture's path."""
        venue_options = self.options.simulated
        if venue_options is None:
            return "live"
        return str(venue_options.capture or "simulated")

    @property
    def told_source(self) -> str:
        """The same for a person."""
        options = self.options.simulated
        if options is None:
            return "live venues"
        if options.capture is None:
            return f"simulated venues ({', '.join(options.exchanges)})"
        return f"{options.capture} ({options.exchanges[0]})"

    @property
    def passing_stores(self) -> tuple[Path, ...]:
        """Where broker and storage keep what a simulated venue tells; empty when they are live.

        They are not the stores of live data, which must never hold trades that nobody made, and
        are worth nothing when the venue begins anew, with other books and the same trade ids.
        """
        if self.options.simulated is None:
            return ()
        data_dir = self.configuration.mesh.data_dir
        return (data_dir / _SIMULATED_STORE, data_dir / _SIMULATED_DATABASE)

    @property
    def addresses(self) -> dict[str, str]:
        """`host:port` by purpose: Envoy's listeners, `admin`, `nats`, `simulator.<exchange>`."""
        found = {}
        for use in self.uses:
            if use.file == "gateway" and use.key.startswith("listeners."):
                found[use.key.split(".")[1]] = _join(use.host, use.port)
            elif use.file == "gateway":
                found["admin"] = _join(use.host, use.port)
            elif use.key == "nats.port":
                found["nats"] = _join(use.host, use.port)
            elif use.venue:
                found[f"{SIMULATOR}.{use.venue}"] = _join(use.host, use.port)
        return found


def make_plan(options: MeshOptions, environ: Mapping[str, str]) -> MeshPlan:
    """Read the configuration under these options and work out the rest.

    Raises `ConfigError` with every problem, `StartupError` when no ports are free.
    """
    env = {**options.env, **_setting_overrides(options)}
    configuration = load_configuration(options.config_dir, {**environ, **env})
    services = select_services(options.services)
    uses = port_uses(services, configuration)
    if options.simulated is not None:
        uses += options.simulated.port_uses()
    if options.port_offset:
        env |= env_overrides(
            shift_ports(idle_port_uses(services, configuration), options.port_offset)
        )
        uses = shift_ports(uses, options.port_offset)
    uses = assign_free_ports(uses, every=options.free_ports)
    env |= env_overrides(uses)
    # nats.url follows nats.port, and so must be worked out anew.
    configuration = load_configuration(options.config_dir, {**environ, **env})
    if any(service.name == "collector" for service in services):
        env |= _venue_overrides(options, uses, {**environ, **env})
    if options.simulated is not None and any(service.name == "broker" for service in services):
        env[f"{ENV_PREFIX}BROKER__SERVER__STORE"] = _SIMULATED_STORE
    if options.simulated is not None and any(service.name == "storage" for service in services):
        env |= _simulated_database({**environ, **env}, configuration)
    check_settings(services, options.config_dir, {**environ, **env})
    plan = MeshPlan(options, configuration, services, tuple(uses), env, ())
    return replace(plan, parts=tuple(_parts(plan)))


def check_ports(plan: MeshPlan) -> None:
    """Raise `StartupError` with one sentence for each port that cannot be had."""
    conflicts = find_conflicts(plan.uses)
    if conflicts:
        raise StartupError("\n".join(conflicts), reason="PORT_TAKEN")


def _setting_overrides(options: MeshOptions) -> dict[str, str]:
    given = {
        "DATA_DIR": str(options.data_dir.expanduser().absolute()) if options.data_dir else None,
        "LOG__LEVEL": options.log_level,
        "LOG__FORMAT": options.log_format,
    }
    env = {f"{ENV_PREFIX}SERVICES__{key}": value for key, value in given.items() if value}
    if options.config_dir is not None:
        env[CONFIG_DIR_VARIABLE] = str(options.config_dir.expanduser().absolute())
    return env


def _venue_overrides(
    options: MeshOptions, uses: Sequence[PortUse], environ: Mapping[str, str]
) -> dict[str, str]:
    if options.simulated is None and not options.exchanges and not options.symbols:
        return {}
    try:
        configured = load_settings(
            CollectorSettings, "collector", config_dir=options.config_dir, environ=environ
        )
    except ConfigError:
        # Told in a moment, together with what is wrong in other files.
        return {}
    if options.simulated is None:
        return live_environment(options.exchanges, options.symbols, configured)
    addresses = {use.venue: _join(use.host, use.port) for use in uses if use.venue}
    return simulated_environment(options.simulated, addresses, options.symbols, configured)


def _simulated_database(environ: Mapping[str, str], configuration: Configuration) -> dict[str, str]:
    """Keep simulated events apart: in a folder of their own, on a server in a database."""
    prefix = f"{ENV_PREFIX}STORAGE__ENGINE__"
    env = {f"{prefix}FOLDER": _SIMULATED_DATABASE}
    if configuration.mesh.clickhouse.url is not None and f"{prefix}DATABASE" not in environ:
        env[f"{prefix}DATABASE"] = "marketprism_simulated"
    return env


def _parts(plan: MeshPlan) -> list[Part]:
    # Whatever is shown in the end: one place, the supervisor, decides how a line looks.
    env = {
        **plan.env,
        f"{ENV_PREFIX}SERVICES__LOG__FORMAT": "json",
        "PYTHONUNBUFFERED": "1",
    }
    parts = []
    simulated = plan.options.simulated
    limit = plan.options.ready_seconds
    if simulated is not None:
        ports = {use.venue: use.port for use in plan.uses if use.venue}
        host = reachable(simulated.host)
        rest_urls = [f"http://{_join(host, port)}" for port in ports.values()]
        parts.append(
            Part(
                name=SIMULATOR,
                command=simulated.command(ports),
                ready=lambda: venue.are_ready(rest_urls),
                ready_seconds=limit or 60.0,
                told=f"{simulated.told}: {_told_venues(ports)}",
                env={"PYTHONUNBUFFERED": "1"},
            )
        )
    if plan.options.mode == "full":
        names = tuple(service.name for service in plan.services)
        parts.append(
            Part(
                name=ALL_IN_ONE,
                command=[sys.executable, "-P", "-m", "services.cli.full_mesh", *names],
                ready=_AllReady([_health_url(plan, name) for name in names]),
                explain=_explainer([_health_url(plan, name) for name in names]),
                services=names,
                after=(SIMULATOR,),
                ready_seconds=limit or sum(service.ready_seconds for service in plan.services),
                told=", ".join(names),
                env=env,
            )
        )
        return parts
    parts += [
        Part(
            name=service.name,
            command=service.command,
            ready=_AllReady([_health_url(plan, service.name)]),
            explain=_explainer([_health_url(plan, service.name)]),
            services=(service.name,),
            after=service.after,
            ready_seconds=limit or service.ready_seconds,
            told=_told_ports(plan, service.name),
            env=env,
        )
        for service in plan.services
    ]
    return parts


class _AllReady:
    """Readiness probe of several services: all of them answer."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = list(urls)

    async def __call__(self) -> bool:
        return all([await http_ready(url) for url in self._urls])


def _explainer(urls: Sequence[str]) -> Callable[[], Awaitable[str]]:
    async def explain() -> str:
        told = [await explain_health(url) for url in urls]
        return "; ".join(filter(None, told))

    return explain


def _health_url(plan: MeshPlan, name: str) -> str:
    mesh = plan.configuration.mesh
    return f"http://{_join(reachable(mesh.host), mesh.service(name).http_port)}/health"


def _told_venues(ports: Mapping[str, int]) -> str:
    return ", ".join(f"{exchange} {port}" for exchange, port in ports.items())


def _told_ports(plan: MeshPlan, name: str) -> str:
    short = {"gRPC": "gRPC", "/health and /metrics": "health", "NATS clients": "NATS"}
    told = [
        f"{short[use.purpose]} {use.port}"
        for use in plan.uses
        if use.part == name and use.purpose in short
    ]
    listeners = [str(use.port) for use in plan.uses if use.part == name and use.file == "gateway"]
    if listeners:
        told.append(f"Envoy {' '.join(listeners)}")
    return ", ".join(told)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
