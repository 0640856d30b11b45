"""Everything that the served OpenAPI document allows, and what it does not, asked by Schemathesis.

No answer is outside the document, and none is a fault of ours: a 503 says what is not ready yet.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.integration.rest_tools import RestMesh, rest_mesh

EXAMPLES = int(os.environ.get("MARKETPRISM_SCHEMATHESIS_EXAMPLES", "8"))
READY_REASONS = {
    "STARTING",
    "ORDER_BOOK_NOT_READY",
    "BEST_BID_OFFER_NOT_READY",
    "TICKER_NOT_READY",
}
KNOWN = {"exchange": "deribit", "symbol": "BTC-USD-PERP", "base": "BTC", "quote": "USD"}
CONFORMANCE = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def call(session: requests.Session, url: str, case: Case) -> requests.Response:
    """Send a case; of an endless stream only the first bytes are read."""
    prepared = session.prepare_request(
        requests.Request(**{**case.as_transport_kwargs(base_url=url), "cookies": None})
    )
    answer = session.send(prepared, stream=True, timeout=20, allow_redirects=False)
    endless = case.path.endswith("/stream") and answer.status_code == 200
    answer._content = next(answer.iter_lines(), b"") if endless else answer.content
    answer.close()
    return answer


def check(case: Case, answer: requests.Response, mode: GenerationMode) -> None:
    if answer.status_code == 503:
        reason = answer.json()["error"]["code"]
        assert reason in READY_REASONS, f"{case.method} {answer.url}: {answer.text}"
        case.validate_response(answer, checks=CONFORMANCE)
        return
    checks: list[Any] = [not_a_server_error, *CONFORMANCE]
    if mode is GenerationMode.NEGATIVE:
        checks.append(negative_data_rejection)
    case.validate_response(answer, checks=checks)


def ask(session: requests.Session, url: str, mode: GenerationMode, cases: Any) -> None:
    """Send some cases of one operation."""

    @given(case=cases)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    def each(case: Case) -> None:
        check(case, call(session, url, case), mode)

    each()


def ask_everything(url: str) -> tuple[int, list[Exception]]:
    """Ask for each operation: with what is allowed, with what is not, and of what there is.

    Gives the number of operations, and what was wrong.
    """
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    schema = schemathesis.openapi.from_dict(document)
    count = 0
    wrong: list[Exception] = []
    with requests.Session() as session:
        for found in schema.get_all_operations():
            operation = found.ok()
            count += 1
            names = {each.name for each in operation.path_parameters}
            known = {name: value for name, value in KNOWN.items() if name in names}
            plans: list[tuple[GenerationMode, dict[str, Any]]] = [
                (GenerationMode.POSITIVE, {}),
                (GenerationMode.NEGATIVE, {}),
            ]
            if known:
                plans.append((GenerationMode.POSITIVE, {"path_parameters": known}))
            for mode, more in plans:
                try:
                    ask(session, url, mode, operation.as_strategy(generation_mode=mode, **more))
                except Unsatisfiable:
                    assert mode is GenerationMode.NEGATIVE, "expected a request that is allowed"
                except (Exception, FailureGroup) as error:
                    wrong.append(error)
    return count, wrong


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("schemathesis")


async def test_no_answer_is_a_fault_or_outside_the_document(directory: Path) -> None:
    async with rest_mesh(directory) as mesh:
        count, wrong = await asyncio.to_thread(ask_everything, mesh.url)
        if wrong:
            raise ExceptionGroup("answers that are wrong", wrong)
        assert count > 20
        await still_right(mesh)


async def still_right(mesh: RestMesh) -> None:
    """After all of it, the mesh serves what it served."""
    answer = await mesh.ask("/api/v1/orderbook/deribit/BTC-USD-PERP?depth=1")
    assert answer.status == 200
    health = await mesh.ask("/health")
    assert health.status == 200
