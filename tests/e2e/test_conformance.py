"""The conformance suite: our collector passes it, and one that serves a wrong book does not."""

import sys
from pathlib import Path

import pytest

from conformance.app import plan, run
from conformance.collectors import PROFILES
from conformance.report import failures, line
from conformance.rig import Attached, own_rig
from conformance.venues import VENUES

pytestmark = pytest.mark.timeout(240)

_LIAR = Path(__file__).with_name("lying_collector.py")


@pytest.mark.parametrize(
    "only",
    [
        ["binance:drop", "binance:stale-snapshot", "okx:drop", "okx:silence-book"],
        ["binance_usdm:sequence-reset", "binance_coinm:cut", "deribit:maintenance"],
        ["okx:checksum", "okx:rollover", "deribit:one-of-two-cut"],
    ],
    ids=["books", "futures", "profiles"],
)
async def test_our_collector_tells_every_fault_and_serves_no_wrong_book(
    only: list[str], tmp_path: Path
) -> None:
    outcomes = await run(plan(only), tmp_path, at_once=2)
    assert len(outcomes) == len(only)
    assert not failures(outcomes), "\n".join(line(each) for each in failures(outcomes))
    assert all(each.compared >= 24 for each in outcomes)


async def test_a_collector_that_runs_already_is_judged_too(tmp_path: Path) -> None:
    async with own_rig(VENUES["okx"], PROFILES["plain"], tmp_path) as rig:
        attached = Attached(rig.collector, rig.nats_url, rig.venue.url)
        outcomes = await run(plan(["okx:drop", "okx:cut"]), tmp_path, attached={"okx": attached})
    assert not failures(outcomes), "\n".join(line(each) for each in failures(outcomes))
    assert [each.detected[0] for each in outcomes] == ["GAP@ORDER_BOOK", "DISCONNECTED"]


async def test_a_collector_that_serves_a_wrong_book_is_found(tmp_path: Path) -> None:
    outcomes = await run(
        plan(["binance:steady", "binance:drop"]),
        tmp_path,
        command=f"{sys.executable} {_LIAR}",
    )
    steady, drop = outcomes
    assert steady.passed, line(steady)
    assert drop.wrong, "the book lacks a frame and claims to be in step"
    assert any("GAP@ORDER_BOOK" in each for each in drop.missed)
