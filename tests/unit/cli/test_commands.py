"""Commands answer in sentences and exit statuses, never with a traceback."""

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from services.cli.app import app
from services.cli.completion import complete_exchange, complete_symbol
from services.cli.failures import error_lines
from services.cli.port_plan import find_free_ports
from services.shared.errors import (
    ConfigError,
    FieldViolation,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    StartupError,
    Unavailable,
)

DEPTH = (
    '{{"e":"depthUpdate","E":{t},"s":"BTCUSDT","U":{first},"u":{last},'
    '"b":[["100.00","{q}"]],"a":[["101.00","1.0"]]}}'
)
WS = "wss://stream.binance.com:9443/stream?streams=btcusdt@depth@100ms"
REST = "https://api.binance.com/api/v3/depth?symbol=BTCUSDT&limit=1000"


def capture_file(path: Path, *, gap: bool = False) -> Path:
    """Write a capture of one symbol: three diffs and a snapshot, with a hole when asked for."""

    def diff(first: int, last: int, at: float) -> dict[str, object]:
        data = DEPTH.format(t=int(at * 1000), first=first, last=last, q=last)
        return {"ts": at, "kind": "ws", "url": WS, "conn": "c1", "data": data}

    snapshot = '{"lastUpdateId":11,"bids":[["100.00","5.0"]],"asks":[["101.00","1.0"]]}'
    records = [
        diff(10, 11, 1.0),
        {"ts": 1.5, "kind": "http", "url": REST, "conn": "c1", "data": snapshot},
        diff(12, 13, 2.0),
        diff(16 if gap else 14, 17, 3.0),
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


def test_help_names_every_command(runner: CliRunner) -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    commands = ("up", "status", "book", "trades", "instruments", "verify", "record", "version")
    for command in commands:
        assert re.search(rf"^\W*{command}\s", result.output, re.MULTILINE)
        told = runner.invoke(app, [command, "--help"])
        assert told.exit_code == 0


def test_venues_are_offered_to_the_shell_and_symbols_only_when_somebody_answers() -> None:
    assert complete_exchange("bin") == ["binance", "binance_us", "binance_usdm", "binance_coinm"]
    assert complete_exchange("x") == []
    (port,) = find_free_ports("127.0.0.1", 1)
    context = typer.Context(typer.main.get_command(app))
    context.params = {"exchange": "okx", "address": f"127.0.0.1:{port}"}
    assert complete_symbol(context, "BTC") == []


def test_version_names_the_engines(runner: CliRunner) -> None:
    result = runner.invoke(app, ["version"])
    assert result.exit_code == 0
    assert result.output.startswith("marketprism ")
    assert "Envoy " in result.output
    assert "nats-server " in result.output


def test_verify_prints_a_json_line_a_book(runner: CliRunner, tmp_path: Path) -> None:
    path = capture_file(tmp_path / "good.jsonl")
    result = runner.invoke(app, ["verify", "--json", str(path)])
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    row = json.loads(line)
    assert row["capture"] == "good.jsonl"
    assert (row["connection"], row["native_symbol"], row["symbol"]) == ("c1", "BTCUSDT", "BTC-USDT")
    assert (row["state"], row["venue_sequence"], row["best_bid"]) == ("SYNCED", 17, "100")
    assert len(row["digest"]) == 64


def test_verify_exits_with_1_when_a_book_is_not_in_step(runner: CliRunner, tmp_path: Path) -> None:
    path = capture_file(tmp_path / "gap.jsonl", gap=True)
    result = runner.invoke(app, ["verify", str(path)])
    assert result.exit_code == 1
    assert "RESYNCING" in result.stdout


def test_verify_exits_with_2_for_what_it_cannot_read_and_still_does_the_rest(
    runner: CliRunner, tmp_path: Path
) -> None:
    good = capture_file(tmp_path / "good.jsonl")
    result = runner.invoke(app, ["verify", "--json", str(tmp_path / "absent.jsonl"), str(good)])
    assert result.exit_code == 2
    assert "absent.jsonl" in result.stderr
    assert json.loads(result.stdout)["state"] == "SYNCED"


def test_verify_with_a_venue_that_has_no_adapter_names_those_that_have(
    runner: CliRunner, tmp_path: Path
) -> None:
    path = capture_file(tmp_path / "good.jsonl")
    result = runner.invoke(app, ["verify", "--exchange", "nowhere", str(path)])
    assert result.exit_code == 2
    assert "binance" in result.stderr


def test_up_with_options_that_do_not_fit_starts_nothing(runner: CliRunner, tmp_path: Path) -> None:
    result = runner.invoke(app, ["up", "--speed", "2", "--data-dir", str(tmp_path / "d")])
    assert result.exit_code == 2
    assert "--speed" in result.stderr
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("command", [["book", "--once"], ["book"], ["trades", "--count", "1"]])
def test_a_gateway_that_is_not_there_is_one_sentence_that_says_what_to_start(
    runner: CliRunner, command: list[str]
) -> None:
    (port,) = find_free_ports("127.0.0.1", 1)
    arguments = [command[0], "binance", "BTC-USDT", *command[1:], "-a", f"127.0.0.1:{port}"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1
    (sentence,) = result.stderr.splitlines()
    assert f"nothing answers at 127.0.0.1:{port}" in sentence
    assert "marketprism up" in sentence


def test_status_without_a_mesh_says_so_and_exits_with_1(runner: CliRunner, tmp_path: Path) -> None:
    result = runner.invoke(app, ["status", "--data-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "no mesh runs on" in result.stdout
    assert "marketprism up" in result.stdout
    told = json.loads(runner.invoke(app, ["status", "--json", "--data-dir", str(tmp_path)]).stdout)
    assert told["healthy"] is False
    assert told["services"] == []


def test_errors_show_the_sentence_the_fields_and_the_reason() -> None:
    error = InvalidArgument(
        "depth is wrong",
        reason="DEPTH_OUT_OF_RANGE",
        metadata={"depth": 99999},
        violations=[FieldViolation("depth", "expected 1 to 10000, got 99999")],
    )
    assert error_lines(error) == [
        "depth is wrong",
        "  depth: expected 1 to 10000, got 99999",
        "  (INVALID_ARGUMENT, DEPTH_OUT_OF_RANGE depth=99999)",
    ]


def test_an_error_that_says_when_to_come_back_is_shown_with_it() -> None:
    lines = error_lines(ResourceExhausted("too many", retry_after=2.5))
    assert lines == ["too many", "  (RESOURCE_EXHAUSTED)", "  try again in 2.5 s"]


def test_unavailable_with_a_reason_is_an_answer_not_a_missing_gateway() -> None:
    lines = error_lines(Unavailable("not ready", reason="ORDER_BOOK_NOT_READY"), address="a:1")
    assert lines == ["not ready", "  (UNAVAILABLE, ORDER_BOOK_NOT_READY)"]
    assert "nothing answers at a:1" in error_lines(Unavailable("refused"), address="a:1")[0]


def test_configuration_problems_are_shown_as_they_are() -> None:
    assert error_lines(ConfigError("2 problems:\n  a\n  b")) == ["2 problems:", "  a", "  b"]
    assert error_lines(StartupError("port 1 is taken")) == ["port 1 is taken"]
    missing = NotFound("no such book", reason="INSTRUMENT_NOT_FOUND", metadata={"exchange": "okx"})
    assert error_lines(missing)[1:] == [
        "  (NOT_FOUND, INSTRUMENT_NOT_FOUND exchange=okx)",
        "  `marketprism instruments okx` lists those that there are",
    ]
