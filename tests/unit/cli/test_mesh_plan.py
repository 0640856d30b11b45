"""What runs and where follows from the options and the configuration, before anything starts."""

from pathlib import Path

import pytest

from services.broker.settings import ServerSettings
from services.cli.mesh_plan import MeshOptions, check_ports, make_plan
from services.cli.panel import ready_panel
from services.cli.parts import MESH, select_services
from services.cli.venue import VenueOptions
from services.shared.errors import ConfigError, StartupError
from services.storage.settings import EngineSettings

PREFIX = "MARKETPRISM__SERVICES__"


def plan_of(tmp_path: Path, environ: dict[str, str] | None = None, **options: object):  # type: ignore[no-untyped-def]
    return make_plan(MeshOptions(data_dir=tmp_path, **options), environ or {})  # type: ignore[arg-type]


def test_microservice_mode_has_a_process_a_service_in_order(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert [part.name for part in plan.parts] == [service.name for service in MESH]
    assert [part.services for part in plan.parts] == [(service.name,) for service in MESH]
    assert plan.parts[0].command[-1] == "services.broker"
    assert plan.source == "live"


def test_the_simulated_venues_come_first_and_the_collector_is_pointed_at_them(
    tmp_path: Path,
) -> None:
    plan = plan_of(tmp_path, simulated=VenueOptions(exchanges=("binance", "okx"), port=9311))
    assert plan.parts[0].name == "simulator"
    assert plan.parts[0].command[-2:] == ["binance=9311", "okx=9314"]
    env = plan.parts[1].env
    head = "MARKETPRISM__COLLECTOR__EXCHANGES__"
    assert env[f"{head}BINANCE__REST_URL"] == "http://127.0.0.1:9311"
    assert env[f"{head}BINANCE__WS_URL"] == "ws://127.0.0.1:9311/stream"
    assert env[f"{head}BINANCE__SYMBOLS"] == '["*"]'
    assert env[f"{head}OKX__WS_URL"] == "ws://127.0.0.1:9314"
    assert env[f"{head}DERIBIT__ENABLED"] == "false"
    assert plan.addresses["simulator.okx"] == "127.0.0.1:9314"
    assert plan.told_source == "simulated venues (binance, okx)"


def test_without_a_collector_nothing_is_told_to_one(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, simulated=VenueOptions(), services=("broker",))
    assert not any("COLLECTOR" in key for key in plan.env)


def test_live_venues_are_chosen_by_name(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, exchanges=("deribit",))
    assert plan.env["MARKETPRISM__COLLECTOR__EXCHANGES__DERIBIT__ENABLED"] == "true"
    assert plan.env["MARKETPRISM__COLLECTOR__EXCHANGES__BINANCE__ENABLED"] == "false"
    with pytest.raises(ConfigError, match=r"--exchanges: .* got 'kraken'"):
        plan_of(tmp_path, exchanges=("kraken",))


def test_a_simulated_market_is_kept_apart_from_live_data(tmp_path: Path) -> None:
    live, simulated = plan_of(tmp_path), plan_of(tmp_path, simulated=VenueOptions())
    key = "MARKETPRISM__BROKER__SERVER__STORE"
    assert key not in live.env
    assert live.passing_stores == ()
    broker, database = simulated.passing_stores
    assert simulated.env[key] == broker.name
    assert broker.name != ServerSettings().store
    assert simulated.env["MARKETPRISM__STORAGE__ENGINE__FOLDER"] == database.name
    assert database.name != EngineSettings().folder


def test_a_simulated_market_has_a_database_of_its_own_on_a_server(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"CLICKHOUSE_URL": "http://127.0.0.1:8123"}, simulated=VenueOptions())
    assert plan.env["MARKETPRISM__STORAGE__ENGINE__DATABASE"] == "marketprism_simulated"


def test_a_mistake_in_any_service_s_configuration_is_told_before_the_start(
    tmp_path: Path,
) -> None:
    environ = {
        "MARKETPRISM__COLLECTOR__NOPE": "1",
        "MARKETPRISM__MARKETDATA__RECENT_TRADES": "-5",
    }
    with pytest.raises(ConfigError) as caught:
        make_plan(MeshOptions(data_dir=tmp_path), environ)
    assert "MARKETPRISM__COLLECTOR__NOPE" in str(caught.value)
    assert "recent_trades" in str(caught.value)


def test_live_symbols_are_an_override_only_when_they_are_given(tmp_path: Path) -> None:
    key = "MARKETPRISM__COLLECTOR__EXCHANGES__BINANCE__SYMBOLS"
    assert key not in plan_of(tmp_path).env
    assert plan_of(tmp_path, symbols=("BTC-USDT", "*-EUR")).env[key] == '["BTC-USDT", "*-EUR"]'


def test_full_mode_is_one_process_that_holds_all_services(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, mode="full", simulated=VenueOptions())
    assert [part.name for part in plan.parts] == ["simulator", "mesh"]
    names = tuple(service.name for service in MESH)
    assert plan.parts[1].services == names
    assert tuple(plan.parts[1].command[-len(names) :]) == names
    assert plan.parts[1].after == ("simulator",)


def test_an_offset_moves_every_port_and_nats_url_follows(tmp_path: Path) -> None:
    usual, moved = plan_of(tmp_path), plan_of(tmp_path, port_offset=100)
    assert [use.port + 100 for use in usual.uses] == [use.port for use in moved.uses]
    assert moved.configuration.mesh.nats.url.endswith(
        f":{usual.configuration.mesh.nats.port + 100}"
    )
    assert moved.env[f"{PREFIX}NATS__PORT"] == str(usual.configuration.mesh.nats.port + 100)


def test_free_ports_are_all_distinct_and_reach_the_services(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, free_ports=True, simulated=VenueOptions())
    ports = [use.port for use in plan.uses]
    assert len(set(ports)) == len(ports)
    assert 0 not in ports
    port = plan.configuration.mesh.service("collector").grpc_port
    assert plan.env[f"{PREFIX}SERVICES__COLLECTOR__GRPC_PORT"] == str(port)
    assert plan.addresses["all"].endswith(plan.env["MARKETPRISM__GATEWAY__LISTENERS__ALL__PORT"])


def test_a_port_of_zero_in_the_configuration_is_chosen_before_the_start(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {f"{PREFIX}SERVICES__BROKER__GRPC_PORT": "0"})
    assert plan.configuration.mesh.service("broker").grpc_port > 0


def test_with_an_external_nats_no_port_is_needed_for_one(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"NATS_URL": "nats://nats.example:4222"})
    assert "nats" not in plan.addresses
    assert all(use.key != "nats.port" for use in plan.uses)
    assert f"{PREFIX}NATS__PORT" not in plan.env


def test_listeners_of_services_that_are_not_deployed_need_no_port(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"MARKETPRISM__GATEWAY__UPSTREAMS__STORAGE__ENABLED": "false"})
    assert "storage" not in plan.addresses
    assert {"all", "collector", "admin", "nats"} <= set(plan.addresses)


def test_services_log_json_whatever_is_shown(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, log_format="console", log_level="debug")
    assert all(part.env[f"{PREFIX}LOG__FORMAT"] == "json" for part in plan.parts)
    assert plan.parts[0].env[f"{PREFIX}LOG__LEVEL"] == "debug"
    assert plan.configuration.mesh.log.format == "console"


def test_a_subset_of_services_keeps_their_order() -> None:
    names = [service.name for service in select_services(("gateway", "broker"))]
    assert names == ["broker", "gateway"]


def test_an_unknown_service_is_told_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"names of broker, .* got 'brokr'"):
        plan_of(tmp_path, services=("brokr",))


def test_a_wrong_configuration_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MARKETPRISM__SERVICES__NATS__PORT"):
        plan_of(tmp_path, {f"{PREFIX}NATS__PORT": "many"})


def test_all_conflicts_are_told_at_once(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path, {f"{PREFIX}HOST": "203.0.113.7"}, services=("collector",), port_offset=3
    )
    with pytest.raises(StartupError) as caught:
        check_ports(plan)
    assert len(caught.value.message.splitlines()) == 2


def test_the_panel_has_addresses_three_commands_and_places(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, free_ports=True, simulated=VenueOptions())
    port = plan.addresses["all"].rpartition(":")[2]
    text = ready_panel(plan, 2.34, "okx", "ETH-USDT", colour=False)
    assert "ready after 2.3 s" in text
    assert 'grpcurl -plaintext -d \'{"exchange":"okx","symbol":"ETH-USDT"}\'' in text
    assert f"curl 'localhost:{port}/api/v1/orderbook/okx/ETH-USDT?depth=5'" in text
    assert f"marketprism book okx ETH-USDT --address localhost:{port}" in text
    for use in plan.options.simulated.port_uses():
        address = plan.addresses[f"simulator.{use.venue}"].replace("127.0.0.1", "localhost")
        assert f"http://{address}/sim/stats    (simulated {use.venue})" in text
    assert f"http://localhost:{port}/health" in text
    assert plan.addresses["admin"].rpartition(":")[2] in text
    assert str(tmp_path / "logs") in text
    assert "\x1b" not in text
    coloured = ready_panel(plan, 2.34, "okx", "ETH-USDT", colour=True)
    assert "\x1b[" in coloured
