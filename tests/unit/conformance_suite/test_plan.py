"""Every fault is driven on every venue that has it; a command line says which and on what."""

import json
from pathlib import Path

import pytest

from conformance.app import main, plan
from conformance.cases import CASES
from conformance.collectors import PROFILES
from conformance.report import failures, line, table
from conformance.runner import Outcome
from conformance.venues import VENUES
from services.simulator.faults import FaultKind
from services.simulator.venues import VENUES as SIMULATED


def names(only: list[str], **more: bool) -> set[str]:
    return {f"{job.facts.name}:{case.name}" for job in plan(only, **more) for case in job.cases}


def test_every_case_runs_once_on_every_venue_that_it_is_for() -> None:
    wanted = {f"{v}:{c.name}" for c in CASES for v in (c.venues or VENUES)}
    assert names([]) == wanted
    assert sum(len(job.cases) for job in plan()) == len(wanted)
    assert all(case.profile in PROFILES for case in CASES)


def test_cases_are_chosen_by_venue_and_by_name() -> None:
    assert names(["okx:drop"]) == {"okx:drop"}
    assert names(["drop"]) == {f"{venue}:drop" for venue in VENUES}
    assert names(["deribit:"]) == names(["deribit"]) != set()
    assert names(["okx:corrupt-*", "binance:steady"]) >= {"okx:corrupt-json", "binance:steady"}
    assert names(["refuse-subscription"], fast=True) == set()


def test_every_venue_has_a_simulated_one_and_streams_of_the_kinds() -> None:
    for name, facts in VENUES.items():
        usual = SIMULATED[name]().default_symbols
        assert all(index < len(usual) for index in facts.chosen)
        assert all(facts.stream(kind) for kind in ("book", "trade", "ticker", "top"))


def test_every_fault_of_the_simulated_venues_is_driven() -> None:
    source = "".join(
        path.read_text(encoding="utf-8")
        for path in Path(__file__).parents[3].joinpath("conformance").glob("case*.py")
    )
    assert [kind.value for kind in FaultKind if f'"{kind.value}"' not in source] == []


def outcome(**more: object) -> Outcome:
    values: dict[str, object] = {"recover_seconds": 0.5, "requests": 2, "weight": 50, **more}
    return Outcome("okx", "drop", "BTC-USDT", "plain", **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["wrong", "missed", "breaches"])
def test_a_run_fails_by_a_wrong_book_a_missed_word_or_a_breach(field: str) -> None:
    good, bad = outcome(), outcome(**{field: ["it differs"]})
    assert failures([good, bad]) == [bad]
    assert "FAIL" in line(bad)
    assert "it differs" in line(bad)
    assert json.loads(json.dumps(bad.as_dict()))["passed"] is False


def test_the_table_tells_the_middle_and_the_longest_recovery() -> None:
    runs = [outcome(recover_seconds=s, detected=["GAP@ORDER_BOOK"]) for s in (0.1, 0.9, 0.4)]
    text = table(runs)
    assert "| fault | OKX |" in text
    assert "GAP@ORDER_BOOK; 0.40 / 0.90 s; 2 REST (50) |" in text
    assert "FAILED" not in text
    assert "**1 of 4 FAILED**" in table([*runs, outcome(wrong=["x"])])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--collector", "h:1"], "--nats"),
        (["--venue", "okx=http://h"], "--collector"),
        (["--collector", "h:1", "--nats", "nats://h", "--venue", "nowhere=x"], "expected NAME=URL"),
        (["--only", "no-such-case"], "no case is left"),
        (["--repeat", "0"], "at least 1"),
    ],
)
def test_a_bad_command_line_says_what_is_expected(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert told in capsys.readouterr().err


def test_the_list_names_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--only", "okx:checksum*"]) == 0
    assert [each.split()[0] for each in capsys.readouterr().out.splitlines()] == [
        "okx:checksum",
        "okx:checksum-drop",
    ]
