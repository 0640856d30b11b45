"""Which ports a mesh needs, whether they are free, and other ones when they are not wanted."""

import errno
import random
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from services.shared.errors import ConfigError, StartupError
from services.shared.ports import port_owner
from services.shared.settings import ENV_PREFIX

__all__ = [
    "PortUse",
    "assign_free_ports",
    "env_overrides",
    "find_conflicts",
    "find_free_ports",
    "shift_ports",
]

_LOWEST, _HIGHEST = 10_000, 60_999
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_ATTEMPTS = 500


@dataclass(frozen=True, slots=True)
class PortUse:
    """One port that a part of the mesh listens on."""

    part: str
    """Who listens: `broker`."""

    purpose: str
    """What for: `NATS clients`."""

    file: str
    """Configuration file that sets it, without its ending: `services`. Empty: an option does."""

    key: str
    """Dotted key in that file (`nats.port`), or the option (`--simulator-port`)."""

    host: str
    """Address it listens on."""

    port: int
    """The port; 0 means any free one."""

    venue: str = ""
    """Exchange that is simulated there; empty for everything else."""

    @property
    def variable(self) -> str:
        """Environment variable that overrides the setting; empty for an option."""
        if not self.file:
            return ""
        return ENV_PREFIX + "__".join((self.file, *self.key.split("."))).upper()

    @property
    def setting(self) -> str:
        """Where to change it, for a person."""
        if not self.file:
            return self.key
        return f"{self.key} in config/{self.file}.yaml (or {self.variable})"


def env_overrides(uses: Iterable[PortUse]) -> dict[str, str]:
    """Give the environment variables that make the services listen where the plan says."""
    return {use.variable: str(use.port) for use in uses if use.file}


def shift_ports(uses: Sequence[PortUse], offset: int) -> list[PortUse]:
    """Add an offset to every port that is not 0; raises `ConfigError` when one leaves 1..65535."""
    shifted = []
    for use in uses:
        port = use.port + offset if use.port else 0
        if use.port and not 1 <= port <= 65535:
            raise ConfigError(
                f"--port-offset {offset}: expected ports from 1 to 65535, and {use.key} "
                f"({use.port}) would be {port}"
            )
        shifted.append(replace(use, port=port))
    return shifted


def assign_free_ports(uses: Sequence[PortUse], *, every: bool = False) -> list[PortUse]:
    """Replace 0 (or, with `every`, all) by ports that are free now."""
    open_uses = [use for use in uses if every or not use.port]
    taken = {use.port for use in uses if use.port and not every}
    by_host: dict[str, list[int]] = {}
    for host in {use.host for use in open_uses}:
        count = sum(use.host == host for use in open_uses)
        by_host[host] = find_free_ports(host, count, avoid=taken)
        taken.update(by_host[host])
    return [
        replace(use, port=by_host[use.host].pop()) if every or not use.port else use for use in uses
    ]


def find_free_ports(host: str, count: int, avoid: Iterable[int] = ()) -> list[int]:
    """Find ports that nobody listens on, outside the range of outgoing connections.

    A client that reconnects to a port inside that range can be given the very port as its own
    end, and then the restarted server finds it taken.
    """
    refused = set(avoid)
    low, high = _LOWEST, _ephemeral_start() - 1
    if high - low < 1000:
        low, high = _LOWEST, _HIGHEST
    found: list[int] = []
    for _ in range(_ATTEMPTS + count):
        if len(found) == count:
            return found
        port = random.randint(low, high)  # noqa: S311 - no secret depends on it
        if port not in refused and _refusal(host, port) is None:
            refused.add(port)
            found.append(port)
    raise StartupError(
        f"found only {len(found)} of {count} free ports on {host} between {low} and {high}: "
        "set the ports in the configuration",
        reason="NO_FREE_PORTS",
    )


def find_conflicts(uses: Sequence[PortUse]) -> list[str]:
    """Give one sentence for each port that cannot be had: which, for what, who has it, what to do.

    Ports 0 are not looked at.
    """
    sentences = []
    first: dict[int, PortUse] = {}
    for use in uses:
        if not use.port:
            continue
        other = first.setdefault(use.port, use)
        if other is not use:
            sentences.append(
                f"port {use.port} is wanted by {other.part} ({other.purpose}) and by {use.part} "
                f"({use.purpose}): change {use.setting}"
            )
        elif (refusal := _refusal(use.host, use.port)) is not None:
            if refusal.errno == errno.EADDRINUSE:
                sentences.append(
                    f"port {use.port}, which {use.part} needs for {use.purpose}, is taken by "
                    f"{_holder(use.port)}, or change {use.setting}, or start with --free-ports"
                )
            else:
                sentences.append(
                    f"{use.part} cannot listen on {use.host}:{use.port} for {use.purpose} "
                    f"({refusal.strerror}): change host in config/services.yaml, or {use.setting}"
                )
    return sentences


def _holder(port: int) -> str:
    """Say who has a port and what to do about that."""
    owner = port_owner(port)
    if owner is not None:
        return f"{owner}: stop that"
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        connections = []
    # One that a process holds says more than one that only waits for its end to be forgotten.
    for connection in sorted(connections, key=lambda each: each.pid is None):
        if connection.laddr and connection.laddr.port == port and connection.raddr:
            # Ports of this range are given to outgoing connections, too.
            peer = f"{connection.raddr.ip}:{connection.raddr.port}"
            state = connection.status.replace("_", " ").lower()
            who = f" of pid {connection.pid}" if connection.pid else ""
            return f"an outgoing connection{who} to {peer} ({state}): try again when it is over"
    return "another process: stop that"


def _refusal(host: str, port: int) -> OSError | None:
    """Give why a port cannot be listened on, None when it can."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, proto) as probe:
            # A socket of a stopped predecessor lingers in TIME_WAIT; that is no other listener.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None


def _ephemeral_start(path: Path = _EPHEMERAL_RANGE) -> int:
    try:
        return int(path.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768
