"""Ports are checked before anything starts, and another mesh can have its own."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cli import port_plan
from services.cli.port_plan import (
    PortUse,
    assign_free_ports,
    env_overrides,
    find_conflicts,
    find_free_ports,
    shift_ports,
)
from services.shared.errors import ConfigError, StartupError


def use(port: int, key: str = "nats.port", host: str = "127.0.0.1") -> PortUse:
    return PortUse("broker", "NATS clients", "services", key, host, port)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield held


def test_a_taken_port_is_told_in_one_sentence(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    (sentence,) = find_conflicts([use(port)])
    assert f"port {port}" in sentence
    assert "broker" in sentence
    assert "NATS clients" in sentence
    assert "(pid " in sentence
    assert "nats.port in config/services.yaml" in sentence
    assert "MARKETPRISM__SERVICES__NATS__PORT" in sentence
    assert "--free-ports" in sentence
    assert "\n" not in sentence


def test_a_port_taken_by_an_outgoing_connection_is_told_as_such(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname()) as client:
        port = client.getsockname()[1]
        (sentence,) = find_conflicts([use(port)])
    target = "{}:{}".format(*listener.getsockname())
    assert f"an outgoing connection of pid {os.getpid()} to {target} (established)" in sentence


def test_free_ports_and_zero_are_no_conflict() -> None:
    (free,) = find_free_ports("127.0.0.1", 1)
    assert find_conflicts([use(free), use(0, "a"), use(0, "b")]) == []


def test_two_parts_that_want_the_same_port_are_told() -> None:
    (free,) = find_free_ports("127.0.0.1", 1)
    (sentence,) = find_conflicts([use(free), use(free, "nats.monitor_port")])
    assert "nats.monitor_port" in sentence


def test_an_address_that_is_not_ours_is_told_as_such() -> None:
    (sentence,) = find_conflicts([use(4222, host="203.0.113.7")])
    assert "cannot listen on 203.0.113.7:4222" in sentence
    assert "host in config/services.yaml" in sentence


def test_an_offset_moves_every_port_but_zero() -> None:
    assert [u.port for u in shift_ports([use(4222), use(0)], 100)] == [4322, 0]


@pytest.mark.parametrize("offset", [65535, -5000])
def test_an_offset_out_of_range_is_an_error_that_names_the_port(offset: int) -> None:
    with pytest.raises(ConfigError, match=r"nats\.port \(4222\) would be"):
        shift_ports([use(4222)], offset)


def test_only_zeros_are_assigned_unless_every_port_is_asked_for() -> None:
    uses = [use(4222), use(0, "nats.monitor_port")]
    first, second = assign_free_ports(uses)
    assert first.port == 4222
    assert second.port > 0
    every = assign_free_ports(uses, every=True)
    assert 4222 not in [u.port for u in every]
    assert len({u.port for u in every}) == 2


def test_free_ports_are_distinct_free_and_outside_the_range_of_outgoing_connections() -> None:
    ports = find_free_ports("127.0.0.1", 30)
    assert len(set(ports)) == 30
    start = port_plan._ephemeral_start()
    assert all(port < start for port in ports) or start <= 11_000
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_a_port_that_is_taken_is_never_given(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = listener.getsockname()[1]
    monkeypatch.setattr(port_plan.random, "randint", lambda *_: port)
    with pytest.raises(StartupError, match="found only 0 of 1 free ports"):
        find_free_ports("127.0.0.1", 1)


def test_the_range_of_outgoing_connections_has_a_usual_value_where_it_is_not_told(
    tmp_path: Path,
) -> None:
    assert port_plan._ephemeral_start(tmp_path / "absent") == 32_768


def test_overrides_are_environment_variables_of_the_settings() -> None:
    option = PortUse("simulator", "venue", "", "--simulator-port", "127.0.0.1", 9300)
    listener = PortUse("gateway", "clients", "gateway", "listeners.all.port", "127.0.0.1", 18080)
    assert env_overrides([use(4333), option, listener]) == {
        "MARKETPRISM__SERVICES__NATS__PORT": "4333",
        "MARKETPRISM__GATEWAY__LISTENERS__ALL__PORT": "18080",
    }
