"""From settings and contracts to the text that Envoy reads."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from services.gateway.contract import load_contract
from services.gateway.endpoints import EndpointFiles
from services.gateway.plan import Address, EnvoyPlan, Ports, make_plan
from services.gateway.render import render_endpoints, render_envoy, render_log_limit
from services.gateway.settings import (
    GatewaySettings,
    ListenerSettings,
    TimeoutSettings,
    UpstreamSettings,
)
from services.shared.errors import ConfigError, InvalidArgument, NotFound, StartupError
from services.shared.loading import load_settings
from services.shared.settings import MeshSettings, ServiceSettings

MARKET = "/marketprism.market.v1.MarketDataService/"


def plan_of(settings: GatewaySettings, mesh: MeshSettings | None = None) -> EnvoyPlan:
    ports = Ports(
        listeners={name: 18080 + n for n, name in enumerate(settings.listeners)},
        admin=19901,
        gateway_grpc=15080,
        gateway_http=19180,
    )
    contract = load_contract(settings.descriptor_set)
    return make_plan(settings, mesh or MeshSettings(), contract, ports, Path("/tmp/envoy"))


def rendered(settings: GatewaySettings, mesh: MeshSettings | None = None) -> Any:
    return yaml.safe_load(render_envoy(plan_of(settings, mesh), settings))


def listener(config: Any, name: str = "all") -> Any:
    found = next(each for each in config["static_resources"]["listeners"] if each["name"] == name)
    return found["filter_chains"][0]["filters"][0]["typed_config"]


def routes(config: Any, name: str = "all") -> list[Any]:
    found: list[Any] = listener(config, name)["route_config"]["virtual_hosts"][0]["routes"]
    return found


def route(config: Any, path: str) -> Any:
    for each in routes(config):
        match = each["match"]
        if match.get("path") == path or (match.get("prefix") == path and "headers" not in match):
            return each
    raise AssertionError(f"no route of {path}")


def cluster(config: Any, name: str) -> Any:
    return next(each for each in config["static_resources"]["clusters"] if each["name"] == name)


def test_streams_have_no_time_limit_and_calls_have_the_setting() -> None:
    config = rendered(GatewaySettings(timeouts=TimeoutSettings(unary=7)))
    stream = route(config, f"{MARKET}StreamOrderBook")
    assert (stream["route"]["timeout"], stream["route"]["idle_timeout"]) == ("0s", "0s")
    assert stream["typed_per_filter_config"]["envoy.filters.http.lua"]["name"] == "stream"
    assert route(config, MARKET)["route"]["timeout"] == "7.000s"


def test_a_call_that_says_how_long_it_may_take_has_a_limit_of_its_own() -> None:
    config = rendered(GatewaySettings(timeouts=TimeoutSettings(slow=90)))
    query = route(config, "/marketprism.history.v1.HistoryService/RunQuery")
    assert (query["route"]["timeout"], query["route"]["idle_timeout"]) == ("90.000s", "95.000s")
    header = query["request_headers_to_add"][0]
    assert header["header"] == {"key": "grpc-timeout", "value": "90000m"}
    assert header["append_action"] == "ADD_IF_ABSENT"


@pytest.mark.parametrize("name", ["StreamEvents", "ReplayMarketData", "ExportEvents"])
def test_streams_of_history_have_no_time_limit_and_no_envelope(name: str) -> None:
    config = rendered(GatewaySettings())
    found = route(config, f"/marketprism.history.v1.HistoryService/{name}")
    assert (found["route"]["timeout"], found["route"]["idle_timeout"]) == ("0s", "0s")
    assert found["typed_per_filter_config"]["envoy.filters.http.lua"]["name"] == "stream"


def test_the_bidirectional_stream_has_no_time_limit() -> None:
    assert route(rendered(GatewaySettings()), f"{MARKET}Subscribe")["route"]["timeout"] == "0s"


def test_what_changes_something_is_tried_again_only_when_it_never_arrived() -> None:
    config = rendered(GatewaySettings())
    resync = route(config, "/marketprism.collector.v1.CollectorService/Resync")
    assert resync["route"]["retry_policy"]["retry_on"] == "connect-failure,refused-stream"
    assert "unavailable" in route(config, MARKET)["route"]["retry_policy"]["retry_on"]


def test_services_that_are_not_deployed_have_no_cluster() -> None:
    config = rendered(GatewaySettings())
    names = {each["name"] for each in config["static_resources"]["clusters"]}
    assert {"gateway", "collector", "marketdata", "broker"} <= names
    assert not names & {"scheduler", "monitoring"}
    answers = [
        each["direct_response"]["status"]
        for each in routes(config)
        if each["match"].get("prefix") == "/marketprism.scheduler.v1.SchedulerService/"
    ]
    assert answers == [501, 404], "REST is told 501, gRPC 404, which it reads as UNIMPLEMENTED"


def test_a_services_own_listener_is_there_only_when_it_is_deployed() -> None:
    config = rendered(GatewaySettings())
    names = [each["name"] for each in config["static_resources"]["listeners"]]
    assert names == ["all", "collector", "storage"]


def test_a_services_own_listener_transcodes_that_service_only() -> None:
    filters = listener(rendered(GatewaySettings()), "collector")["http_filters"]
    transcoder = next(each for each in filters if "transcoder" in each["name"])
    names = transcoder["typed_config"]["services"]
    assert names
    assert all(name.startswith("marketprism.collector.v1.") for name in names)


def test_an_address_comes_from_a_file_and_a_name_from_dns() -> None:
    upstreams = dict(GatewaySettings().upstreams)
    upstreams["collector"] = UpstreamSettings(
        packages=("marketprism.collector.v1",), host="collector.internal", grpc_port=1234
    )
    config = rendered(GatewaySettings(upstreams=upstreams))
    assert cluster(config, "marketdata")["type"] == "EDS"
    by_name = cluster(config, "collector")
    assert by_name["cluster_type"]["name"] == "envoy.clusters.dns"
    endpoint = by_name["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    assert endpoint["address"]["socket_address"] == {
        "address": "collector.internal",
        "port_value": 1234,
    }


def test_the_admin_interface_is_on_loopback_whatever_the_host() -> None:
    config = rendered(GatewaySettings(host="0.0.0.0"))
    assert config["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    address = config["static_resources"]["listeners"][0]["address"]["socket_address"]
    assert address["address"] == "0.0.0.0"


def test_a_server_bound_to_all_addresses_is_reached_on_loopback() -> None:
    plan = plan_of(GatewaySettings(), MeshSettings(host="0.0.0.0"))
    assert {each.address.host for each in plan.clusters} == {"127.0.0.1"}


def test_an_upstream_without_a_port_is_told() -> None:
    mesh = MeshSettings(services={"collector": ServiceSettings()})
    with pytest.raises(ConfigError, match=r"upstreams\.collector\.grpc_port"):
        plan_of(GatewaySettings(), mesh)


def test_a_broken_template_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "envelope.lua").write_text("")
    (tmp_path / "body.lua").write_text("")
    (tmp_path / "envoy.yaml.j2").write_text("\n{{ nothing }}")
    settings = GatewaySettings(templates=tmp_path)
    with pytest.raises(StartupError, match="nothing"):
        render_envoy(plan_of(settings), settings)
    (tmp_path / "envoy.yaml.j2").write_text("a: b: c")
    with pytest.raises(StartupError, match="YAML"):
        render_envoy(plan_of(settings), settings)


def test_the_envelope_can_be_left_out_to_measure_it() -> None:
    bare = rendered(GatewaySettings(envelope=False))
    names = [each["name"] for each in listener(bare)["http_filters"]]
    assert "envoy.filters.http.lua" not in names
    assert "envoy.filters.http.grpc_json_transcoder" in names


def test_the_repositorys_configuration_is_what_the_defaults_say() -> None:
    assert load_settings(GatewaySettings, "gateway", environ={}) == GatewaySettings()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"listeners": {"a": {"port": 8080}, "b": {"port": 8080}}}, "8080"),
        ({"listeners": {"a": {"port": 9901}}}, "9901"),
        ({"listeners": {"a": {"port": 1, "service": "nobody"}}}, "nobody"),
        ({"timeouts": {"unary": 60}}, "idle_request"),
        (
            {
                "upstreams": {"a": {"packages": ["x.v1"]}, "b": {"packages": ["x.v1"]}},
                "listeners": {},
            },
            "x.v1",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        GatewaySettings.model_validate(settings)


def test_endpoint_files_are_replaced_by_rename(tmp_path: Path) -> None:
    settings = GatewaySettings(listeners={"all": ListenerSettings(port=1)})
    contract = load_contract(settings.descriptor_set)
    ports = Ports({"all": 1}, 2, 3, 4)
    plan = make_plan(settings, MeshSettings(), contract, ports, tmp_path)
    files = EndpointFiles(plan.clusters)
    path = tmp_path / "endpoints" / "marketdata.yaml"
    before = path.stat().st_ino
    assert files.get("marketdata") == (Address("127.0.0.1", 50082),)
    assert files.set("marketdata", [Address("127.0.0.1", 5), Address("::1", 6)])
    assert path.stat().st_ino != before
    assert path.read_text() == render_endpoints("marketdata", files.get("marketdata"))
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(NotFound, match="marketdata"):
        files.set("nobody", [])
    with pytest.raises(InvalidArgument, match="DNS"):
        files.set("marketdata", [Address("example.internal", 5)])


def test_the_access_log_has_a_limit() -> None:
    text = render_log_limit(GatewaySettings(access_log_rate=7))
    assert yaml.safe_load(text)["resources"][0]["resource"]["max_tokens"] == 7
