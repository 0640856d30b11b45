"""Faults happen as often, and where, as asked; requests that make no sense are explained."""

import json

import pytest

from services.simulator.faults import (
    FaultError,
    FaultKind,
    FaultSet,
    FaultSpec,
    corrupted,
    in_scope,
)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (None, "expected a JSON object"),
        ([], "expected a JSON object"),
        ({}, "kind"),
        ({"kind": "explode"}, "kind"),
        ({"kind": "drop", "count": 0}, "count"),
        ({"kind": "drop", "probability": 2}, "probability"),
        ({"kind": "drop", "mode": "json"}, "mode does not apply to drop"),
        ({"kind": "rest_429", "stream": "a@b"}, "stream does not apply to rest_429"),
        ({"kind": "rest_5xx", "status": 404}, "500 to 599"),
        ({"kind": "corrupt", "mode": "shred"}, "mode"),
        ({"kind": "cut", "code": 12}, "code"),
        ({"kind": "delay", "seconds": "soon"}, "seconds"),
        ({"kind": "drop", "colour": "red"}, "colour"),
    ],
)
def test_a_bad_request_says_what_was_expected(request_: object, told: str) -> None:
    with pytest.raises(FaultError, match=told):
        FaultSet().parse(request_)


def test_skip_count_and_hits_are_kept() -> None:
    faults = FaultSet()
    fault = faults.add(FaultSpec(kind=FaultKind.DROP, skip=2, count=3))
    assert [faults.fires(fault) for _ in range(8)] == [False, False] + [True] * 3 + [False] * 3
    assert fault.exhausted
    assert fault.hits == 3
    assert faults.totals["drop"] == 3
    assert faults.on_frames == []


def test_probability_is_seeded_and_about_right() -> None:
    def happened(seed: int) -> list[bool]:
        faults = FaultSet(seed)
        fault = faults.add(FaultSpec(kind=FaultKind.DROP, probability=0.2, count=None))
        return [faults.fires(fault) for _ in range(5000)]

    assert happened(1) == happened(1)
    assert happened(1) != happened(2)
    assert sum(happened(1)) == pytest.approx(1000, rel=0.15)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({}, True),
        ({"symbol": "BTCUSDT"}, True),
        ({"symbol": "ETHUSDT"}, False),
        ({"stream": "btcusdt@depth@100ms"}, True),
        ({"stream": "@depth@100ms"}, True),
        ({"stream": "@depth"}, False),
        ({"stream": "@trade"}, False),
        ({"symbol": "BTCUSDT", "stream": "@trade"}, False),
    ],
)
def test_scope_is_all_that_is_named(scope: dict[str, str], expected: bool) -> None:
    spec = FaultSpec(kind=FaultKind.DROP, **scope)
    assert in_scope(spec, "BTCUSDT", "btcusdt@depth@100ms") is expected


def test_removing_keeps_the_totals() -> None:
    faults = FaultSet()
    fault = faults.add(FaultSpec(kind=FaultKind.DUPLICATE, count=None))
    assert faults.fires(fault)
    assert faults.remove(fault.id) is fault
    assert faults.remove(fault.id) is None
    assert faults.totals["duplicate"] == 1
    faults.add(FaultSpec(kind=FaultKind.DROP))
    assert faults.clear() == 1
    assert faults.all() == []


_FRAME = (
    b'{"stream":"a@depth","data":{"e":"depthUpdate","E":1,"s":"A","U":1,"u":2,"b":[["1","2"]]}}'
)


@pytest.mark.parametrize("mode", ["json", "truncate", "utf8", "empty", "binary"])
def test_these_damages_leave_no_json(mode: str) -> None:
    payload, opcode = corrupted(_FRAME, mode)
    assert opcode == (2 if mode == "binary" else 1)
    with pytest.raises(ValueError):  # noqa: PT011 - JSON and UTF-8 errors share this base
        json.loads(payload)


def test_wrong_types_are_still_json() -> None:
    payload, _ = corrupted(_FRAME, "types")
    data = json.loads(payload)["data"]
    assert data["e"] == "depthUpdate"
    assert not isinstance(data["u"], int)
    assert not isinstance(data["b"], list)
