"""What is served is described, and nothing else; the page needs nothing from elsewhere."""

import json
import re
from pathlib import Path

import pytest
from openapi_spec_validator import validate

from services.gateway.documentation import documentation_routes, served_document
from services.gateway.settings import GatewaySettings
from services.shared.errors import StartupError

DOCUMENT = GatewaySettings().openapi


def test_only_what_is_deployed_is_described() -> None:
    document = served_document(DOCUMENT, ["marketprism.market.v1"])
    validate(document)
    rpcs = {
        operation["x-grpc-method"].split("/")[0]
        for operations in document["paths"].values()
        for operation in operations.values()
        if "x-grpc-method" in operation
    }
    assert rpcs == {"marketprism.market.v1.MarketDataService"}
    assert [tag["name"] for tag in document["tags"]] == ["MarketDataService", "Health"]
    assert "/health" in document["paths"]
    schemas = set(document["components"]["schemas"])
    assert {"market.v1.Trade", "Error", "Health"} <= schemas
    assert not [name for name in schemas if name.startswith(("archive", "auth", "history"))]


def test_everything_deployed_is_the_whole_document() -> None:
    whole = json.loads(DOCUMENT.read_text())
    packages = {
        operation["x-grpc-method"].rsplit(".", 1)[0]
        for operations in whole["paths"].values()
        for operation in operations.values()
        if "x-grpc-method" in operation
    }
    served = served_document(DOCUMENT, packages)
    assert served["paths"] == whole["paths"]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"paths": 5}'])
def test_a_document_that_is_none_stops_the_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "api.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StartupError, match=r"api\.json.*make gen"):
        served_document(path, ["marketprism.market.v1"])


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = (Path("services") / "gateway" / "docs.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!/openapi\.json)", page)
    assert not re.findall(r"https?://", page)
    assert not re.findall(r"\son\w+=|\sstyle=", page), "the policy allows no inline handlers"
    paths = [route.path for route in documentation_routes({})]
    assert paths == ["/openapi.json", "/docs", "/docs/"]
