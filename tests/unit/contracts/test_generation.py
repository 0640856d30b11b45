"""Lint, `gen --check` and the breaking check pass now, and fail when they should.

Each failure happens in a copy; the repository itself is only read.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.buf import ROOT

EVENTS = "proto/marketprism/market/v1/events.proto"
LAST_FIELD = "  bool backfilled = 12;"
ADDITION = f"{LAST_FIELD}\n  // New.\n  string a = 13;"


def run(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MARKETPRISM_")}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=root,
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def git(root: Path, *arguments: str) -> None:
    subprocess.run(
        [
            "git",
            "-c",
            "user.name=test",
            "-c",
            "user.email=test@localhost",
            "-c",
            "commit.gpgsign=false",
            *arguments,
        ],
        cwd=root,
        check=True,
        capture_output=True,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of everything that generation reads and writes."""
    for folder in ("proto", "tools", "gen"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    for name in ("buf.yaml", "buf.gen.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def repository(copy: Path) -> Path:
    """The same, committed on main."""
    git(copy, "init", "--quiet", "--initial-branch=main")
    git(copy, "add", "proto", "gen")
    git(copy, "commit", "--quiet", "-m", "base")
    return copy


def change(root: Path, name: str, old: str, new: str) -> None:
    path = root / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_contracts_pass_lint_and_are_formatted() -> None:
    lint = run(ROOT, "tools.buf", "lint")
    assert lint.returncode == 0, lint.stdout + lint.stderr
    layout = run(ROOT, "tools.buf", "format", "--diff", "--exit-code", "proto")
    assert layout.returncode == 0, layout.stdout + layout.stderr


def test_what_is_generated_is_what_the_contracts_give() -> None:
    result = run(ROOT, "tools.gen", "--check")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("  // Venue's id of the trade.\n", "", "non-empty comment"),
        ("string trade_id = 3;", "string TradeId = 3;", "lower_snake_case"),
        ("LONG_SHORT_RATIO_KIND_UNSPECIFIED", "LONG_SHORT_RATIO_KIND_NONE", "_UNSPECIFIED"),
    ],
)
def test_lint_refuses(copy: Path, old: str, new: str, rule: str) -> None:
    change(copy, EVENTS, old, new)
    result = run(copy, "tools.buf", "lint")
    assert result.returncode != 0
    said = result.stdout + result.stderr
    assert "events.proto" in said
    assert rule in said


def test_a_contract_changed_without_generating_is_found(copy: Path) -> None:
    change(
        copy,
        EVENTS,
        "  bool backfilled = 12;",
        "  bool backfilled = 12;\n  // New.\n  string a = 13;",
    )
    result = run(copy, "tools.gen", "--check")
    assert result.returncode == 1
    assert "gen/python/marketprism/market/v1/events_pb2.py: differs" in result.stderr
    assert "gen/descriptors/marketprism.binpb: differs" in result.stderr
    assert "gen/openapi/marketprism.json: differs" in result.stderr
    assert "make gen" in result.stderr


def test_generated_files_changed_by_hand_are_found_and_mended(copy: Path) -> None:
    edited = copy / "gen/python/marketprism/market/v1/events_pb2.pyi"
    edited.write_text(edited.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    missing = copy / "gen/descriptors/marketprism.binpb"
    missing.unlink()
    stale = copy / "gen/python/marketprism/market/v1/old_pb2.py"
    stale.write_text("", encoding="utf-8")

    result = run(copy, "tools.gen", "--check")
    assert result.returncode == 1
    assert "events_pb2.pyi: differs" in result.stderr
    assert "marketprism.binpb: missing" in result.stderr
    assert "old_pb2.py: nothing generates it" in result.stderr

    assert run(copy, "tools.gen").returncode == 0
    assert not stale.exists()
    assert run(copy, "tools.gen", "--check").returncode == 0


def test_a_contract_that_does_not_compile_says_where(copy: Path) -> None:
    change(copy, EVENTS, "string trade_id = 3;", "string trade_id = ;")
    result = run(copy, "tools.gen", "--check")
    assert result.returncode == 1
    assert "events.proto" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("string trade_id = 3;", "string venue_trade_id = 3;"),
        ("string trade_id = 3;", "int64 trade_id = 3;"),
        ("string trade_id = 3;", "string trade_id = 30;"),
        ("  // Venue's id of the trade.\n  string trade_id = 3;\n", ""),
    ],
    ids=["renamed", "retyped", "renumbered", "removed"],
)
def test_a_change_that_breaks_clients_is_refused(repository: Path, old: str, new: str) -> None:
    change(repository, EVENTS, old, new)
    git(repository, "commit", "--quiet", "-a", "-m", "break")
    result = run(repository, "tools.breaking")
    assert result.returncode == 1
    assert "events.proto" in result.stderr
    assert "the previous commit" in result.stderr


def test_an_addition_breaks_nobody(repository: Path) -> None:
    change(
        repository,
        EVENTS,
        "  bool backfilled = 12;",
        "  bool backfilled = 12;\n  // New.\n  string a = 13;",
    )
    git(repository, "commit", "--quiet", "-a", "-m", "add")
    result = run(repository, "tools.breaking")
    assert result.returncode == 0, result.stderr


def test_a_branch_is_compared_with_where_it_left_main(repository: Path) -> None:
    git(repository, "checkout", "--quiet", "-b", "topic")
    change(repository, EVENTS, "string trade_id = 3;", "string venue_trade_id = 3;")
    git(repository, "commit", "--quiet", "-a", "-m", "break")
    git(repository, "commit", "--quiet", "--allow-empty", "-m", "something else")
    result = run(repository, "tools.breaking")
    assert result.returncode == 1
    assert "where this branch left main" in result.stderr


def test_the_base_can_be_named(repository: Path) -> None:
    git(repository, "tag", "released")
    change(repository, EVENTS, "string trade_id = 3;", "string venue_trade_id = 3;")
    git(repository, "commit", "--quiet", "-a", "-m", "break")
    git(repository, "commit", "--quiet", "--allow-empty", "-m", "something else")
    named = run(repository, "tools.breaking", MARKETPRISM_BREAKING_BASE="released")
    assert named.returncode == 1
    unknown = run(repository, "tools.breaking", MARKETPRISM_BREAKING_BASE="nowhere")
    assert unknown.returncode == 1
    assert "'nowhere', which is no commit here" in unknown.stderr


def test_without_a_base_nothing_can_break(repository: Path) -> None:
    result = run(repository, "tools.breaking")
    assert result.returncode == 0
    assert "no earlier commit" in result.stdout
