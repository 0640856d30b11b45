"""The vectors that the books of the example clients are tested with are right and up to date."""

import base64
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from marketprism.market.v1.market_event_pb2 import MarketEvent

from services.collector.book import book_digest
from tools.client_vectors import VECTORS, main, render

ROOT = Path(__file__).parents[3]
GIVEN: dict[str, Any] = json.loads((ROOT / VECTORS).read_text(encoding="utf-8"))


def keep_book() -> ModuleType:
    """Import the example client in Python, which is no package."""
    path = ROOT / "examples" / "python" / "keep_book.py"
    spec = importlib.util.spec_from_file_location("keep_book", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_file_is_what_the_books_give() -> None:
    assert (ROOT / VECTORS).read_text(encoding="utf-8") == render()


def test_a_file_that_differs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"], root=tmp_path) == 1
    assert "python -m tools.client_vectors" in capsys.readouterr().err
    assert main([], root=tmp_path) == 0
    assert main(["--check"], root=tmp_path) == 0


@pytest.mark.parametrize("vector", GIVEN["vectors"], ids=lambda vector: vector["name"])
def test_every_event_is_one_of_the_contract(vector: dict[str, Any]) -> None:
    for step in vector["steps"]:
        if "event" in step:
            encoded = base64.b64decode(step["event"])
            assert MarketEvent.FromString(encoded).SerializeToString() == encoded
        bids, asks = step["expect"]["bids"], step["expect"]["asks"]
        assert step["expect"]["digest"] == book_digest(map(tuple, bids), map(tuple, asks))


@pytest.mark.parametrize("name", ["walk", "deep walk", "order", "digits", "negative", "absent"])
def test_the_client_in_python_holds_the_same_levels(name: str) -> None:
    (vector,) = (each for each in GIVEN["vectors"] if each["name"] == name)
    book = keep_book().OrderBook()
    for step in vector["steps"]:
        book.apply(MarketEvent.FromString(base64.b64decode(step["event"])))
        assert book.bids == dict(step["expect"]["bids"])
        assert book.asks == dict(step["expect"]["asks"])
        assert str(book.sequence) == step["expect"]["sequence"]
