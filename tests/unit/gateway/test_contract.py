"""What the gateway reads out of the compiled contracts."""

from pathlib import Path

import pytest

from services.gateway.bodies import body_tables
from services.gateway.contract import (
    Binding,
    Method,
    Service,
    allowed_methods,
    guards,
    load_contract,
)
from services.gateway.settings import GatewaySettings
from services.shared.errors import StartupError


def method(*bindings: Binding, streaming: bool = False) -> Method:
    return Method("a.v1.S", "M", False, streaming, bindings)


def exceptions_of(*bindings: Binding) -> dict[str, tuple[str, ...]]:
    service = Service("a.v1.S", "a.v1", (method(*bindings),))
    return {
        regex: group.exceptions for group in allowed_methods([service]) for regex in group.regexes
    }


def verbs_of(*bindings: Binding) -> dict[str, tuple[str, ...]]:
    service = Service("a.v1.S", "a.v1", (method(*bindings),))
    return {regex: group.verbs for group in allowed_methods([service]) for regex in group.regexes}


@pytest.mark.parametrize(
    ("template", "regex"),
    [
        ("/api/v1/tickers", "/api/v1/tickers"),
        ("/api/v1/orderbook/{exchange}/{symbol}", "/api/v1/orderbook/[^/]+/[^/]+"),
        ("/api/v1/orderbook:batchGet", "/api/v1/orderbook:batchGet"),
        ("/api/v1/jobs/{job_id}:run", "/api/v1/jobs/[^/]+:run"),
        ("/v1/{name=files/*/parts/**}", "/v1/files/[^/]+/parts/.+"),
        ("/v1/a.b", r"/v1/a\.b"),
    ],
)
def test_a_path_template_becomes_an_expression(template: str, regex: str) -> None:
    assert Binding("GET", template).regex == regex


def test_paths_are_grouped_by_the_methods_they_take() -> None:
    assert verbs_of(
        Binding("GET", "/v1/jobs"), Binding("POST", "/v1/jobs"), Binding("GET", "/v1/runs")
    ) == {"/v1/jobs": ("GET", "POST"), "/v1/runs": ("GET",)}


def test_nothing_is_said_of_a_request_that_fits_two_paths_with_other_methods() -> None:
    both = (Binding("GET", "/v1/{name}"), Binding("POST", "/v1/all"))
    assert verbs_of(*both) == {"/v1/[^/]+": ("GET",), "/v1/all": ("POST",)}
    assert exceptions_of(*both) == {"/v1/[^/]+": ("/v1/all",), "/v1/all": ("/v1/[^/]+",)}
    apart = (Binding("GET", "/v1/{name}"), Binding("POST", "/v1/{name}/run"))
    assert verbs_of(*apart) == {"/v1/[^/]+": ("GET",), "/v1/[^/]+/run": ("POST",)}
    assert exceptions_of(*apart) == {"/v1/[^/]+": (), "/v1/[^/]+/run": ()}
    same = (Binding("GET", "/v1/{name}"), Binding("GET", "/v1/all"))
    assert exceptions_of(*same) == {"/v1/[^/]+": (), "/v1/all": ()}


@pytest.mark.parametrize(
    ("bindings", "repeatable"),
    [
        ((Binding("GET", "/v1/a"),), True),
        ((Binding("POST", "/v1/a"),), False),
        ((Binding("GET", "/v1/a"), Binding("POST", "/v1/a")), False),
        ((), False),
    ],
)
def test_only_what_rest_carries_as_get_is_repeated(
    bindings: tuple[Binding, ...], repeatable: bool
) -> None:
    assert method(*bindings).repeatable is repeatable


def test_the_repositorys_contracts_name_their_streams() -> None:
    contract = load_contract(GatewaySettings().descriptor_set)
    (service,) = contract.of_packages(["marketprism.market.v1"])
    streams = {each.name for each in service.methods if each.streaming}
    assert {"StreamOrderBook", "StreamTrades", "Subscribe"} <= streams
    assert "GetOrderBook" not in streams
    book = next(each for each in service.methods if each.name == "GetOrderBook")
    assert book.bindings[0] == Binding("GET", "/api/v1/orderbook/{exchange}/{symbol}")
    assert book.path == "/marketprism.market.v1.MarketDataService/GetOrderBook"


@pytest.mark.parametrize("content", [None, b"\xff\xff\xff", b""])
def test_contracts_that_cannot_be_read_are_told_with_what_to_do(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "contracts.binpb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StartupError, match="make gen") as caught:
        load_contract(path)
    assert str(path) in caught.value.message


def test_a_path_s_fields_are_guarded_but_where_a_literal_stands_in_their_place() -> None:
    paths = ("/jobs/{job_id}", "/jobs/watch", "/jobs/{job_id}/runs/{run}")
    service = Service("a.v1.S", "a.v1", (method(*(Binding("GET", path) for path in paths)),))
    found = {guard.names: guard for guard in guards([service])}
    assert set(found) == {("job_id", "jobId"), ("run",)}
    job = found["job_id", "jobId"]
    assert job.regexes == ("/jobs/[^/]+", "/jobs/[^/]+/runs/[^/]+")
    assert job.exceptions == ("/jobs/watch",)
    assert found["run",].exceptions == ()


def test_the_repository_s_bodies_are_told_field_by_field() -> None:
    contract = load_contract(GatewaySettings().descriptor_set)
    tables = body_tables(contract, contract.of_packages(["marketprism.market.v1"]))
    assert '{"POST", "^/api/v1/orderbook:batchGet$", ' in tables
    assert (
        '["marketprism.market.v1.BatchGetOrderBooksRequest"] = '
        '{depth = true, instruments = "marketprism.market.v1.InstrumentKey"}' in tables
    )
