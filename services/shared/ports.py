"""Ports: a free one, who holds one, and a socket that is bound or a sentence why not."""

import errno
import socket

import psutil

from services.shared.errors import StartupError

__all__ = ["bind_socket", "free_port", "port_owner", "port_taken"]


def free_port(host: str = "127.0.0.1") -> int:
    """Give a port that is free now; another process may take it before it is used."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def port_owner(port: int) -> str | None:
    """Name the process that listens on a TCP port, such as `nats-server (pid 4711)`.

    None when nobody listens, or when the system does not tell (a process of another user).
    """
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return None
    for connection in connections:
        listening = connection.status == psutil.CONN_LISTEN
        if listening and connection.laddr and connection.laddr.port == port and connection.pid:
            try:
                process = psutil.Process(connection.pid)
                return f"{_process_name(process)} (pid {connection.pid})"
            except psutil.Error:
                return f"pid {connection.pid}"
    return None


def port_taken(host: str, port: int, key: str) -> StartupError:
    """Make the error that says in one sentence which port is taken, by whom, and what to do."""
    owner = port_owner(port)
    holder = f"by {owner}" if owner else "by another process"
    return StartupError(
        f"port {port} on {host} is taken {holder}: stop it, or set {key} to another port "
        "(0 takes a free one)",
        reason="PORT_TAKEN",
        metadata={"host": host, "port": port, "setting": key, "owner": owner or ""},
    )


def bind_socket(host: str, port: int, key: str) -> socket.socket:
    """Bind a TCP socket; `key` is the setting that a `StartupError` tells to change."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise StartupError(
            f"{host!r} is no address of this machine ({error.strerror}): set host to one, such "
            "as 127.0.0.1",
            reason="BAD_HOST",
            metadata={"host": host},
        ) from None
    bound = socket.socket(family, kind, proto)
    try:
        # A socket of a stopped predecessor lingers in TIME_WAIT; that is no other listener.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise port_taken(host, port, key) from None
        raise StartupError(
            f"cannot listen on {host}:{port} ({error.strerror}): set host and {key} to an address "
            "and port of this machine that you may use",
            reason="CANNOT_LISTEN",
            metadata={"host": host, "port": port, "setting": key},
        ) from None
    return bound


def _process_name(process: psutil.Process) -> str:
    try:
        command = process.cmdline()
    except psutil.Error:
        command = []
    if len(command) > 2 and command[1] == "-m":
        return f"python -m {command[2]}"
    return process.name()
