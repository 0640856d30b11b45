"""`make clients` says what it leaves out and why it failed, and never passes over it."""

from pathlib import Path

import pytest

from tools import clients
from tools.clients import CLIENTS, Client, ClientError, build, main, missing_program


def client(language: str, programs: dict[str, str], failure: str = "") -> Client:
    def steps(_root: Path) -> None:
        if failure:
            raise ClientError(failure)

    return Client(
        language=language,
        programs=programs,
        stubs=f"gen/{language}",
        command=(f"build/{language}",),
        steps=steps,
    )


@pytest.fixture
def languages(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "here": client("here", {"python3": "Python"}),
        "absent": client("absent", {"no-such-program": "a shop"}),
        "broken": client("broken", {}, failure="main.x:3 does not compile"),
    }
    monkeypatch.setattr(clients, "CLIENTS", table)


def test_each_example_is_there_with_all_that_it_is_built_from() -> None:
    root = Path(__file__).parents[3]
    assert set(CLIENTS) == {"go", "typescript", "java", "rust"}
    for language in CLIENTS:
        assert (root / "examples" / language / ".gitignore").is_file()


def test_a_missing_program_is_named_with_how_to_get_it() -> None:
    wanted = client("absent", {"no-such-program": "a shop"})
    assert missing_program(wanted) == ("no-such-program", "a shop")
    with pytest.raises(ClientError, match=r"no-such-program.*get it with: a shop"):
        build(wanted)


@pytest.mark.usefixtures("languages")
def test_a_language_without_toolchain_is_left_out_unless_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["here"]) == 0
    assert main(["absent"]) == 1
    assert "a shop" in capsys.readouterr().err


@pytest.mark.usefixtures("languages")
def test_one_failure_does_not_hide_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    told = capsys.readouterr()
    assert "here: ready" in told.out
    assert "absent: left out" in told.out
    assert "broken: main.x:3 does not compile" in told.err
    assert main(["--require-all"]) == 1
    assert "absent needs the program" in capsys.readouterr().err


def test_no_lock_file_names_a_registry() -> None:
    examples = Path(__file__).parents[3] / "examples"
    npm = (examples / "typescript" / "package-lock.json").read_text(encoding="utf-8")
    assert '"resolved"' not in npm
    assert "/Cargo.lock" in (examples / "rust" / ".gitignore").read_text(encoding="utf-8")
