"""Make stubs for other languages and build the example clients: `make clients`.

    python -m tools.clients                  every language whose toolchain is here
    python -m tools.clients go rust          these, or fail
    python -m tools.clients --require-all    all, or fail

Each language generates from the same contracts with its own generator, compiles what was made of
all of them, runs the unit tests of its example and builds it. Generators and packages come from the
language's own registry, by exact versions. Nothing that is made here is committed: docs/clients.md
says why, and how to get the stubs into a project of one's own.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tools.buf import ROOT, BufError, run_buf

__all__ = ["CLIENTS", "Client", "ClientError", "build", "main", "missing_program"]

# Where gRPC's generator for Java is when the machine has it; else Maven fetches it.
_GRPC_JAVA_PLUGIN = "grpc_java_plugin"


class ClientError(Exception):
    """A step of a build failed, or a program is not there; the message says what it printed."""


@dataclass(frozen=True, slots=True)
class Client:
    """The example client of one language, and how it is made."""

    language: str
    """Its name on the command line: `go`."""

    programs: Mapping[str, str]
    """Programs that have to be on the path, each with how to get it."""

    stubs: str
    """Where the generated code is afterwards, below the repository's root."""

    command: tuple[str, ...]
    """How to run the client once it is built, in the repository's root."""

    steps: Callable[[Path], None]
    """Generates, compiles, tests and builds, given the repository's root; raises ClientError."""


def missing_program(client: Client) -> tuple[str, str] | None:
    """Give the first program that a language wants and that is not here, with how to get it."""
    for program, hint in client.programs.items():
        if shutil.which(program) is None:
            return program, hint
    return None


def build(client: Client, root: Path = ROOT) -> None:
    """Generate the stubs of a language, and build and test its example. Raises ClientError."""
    missing = missing_program(client)
    if missing is not None:
        program, hint = missing
        raise ClientError(
            f"{client.language} needs the program {program}, which is not on the path; "
            f"get it with: {hint}"
        )
    client.steps(root)


def _run(folder: Path, *command: str, **environment: str) -> None:
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise ClientError(
            f"`{' '.join(command)}` in {folder} ended with status {result.returncode}:\n"
            f"{(result.stdout + result.stderr)[-6000:]}"
        )


def _generate(root: Path, template: str) -> None:
    try:
        result = run_buf("generate", "--template", template, root=root)
    except BufError as error:
        raise ClientError(str(error)) from None
    if result.returncode != 0:
        raise ClientError(
            f"buf generate --template {template} ended with status {result.returncode}:\n"
            f"{(result.stdout + result.stderr)[-6000:]}"
        )


def _go(root: Path) -> None:
    stubs, example = root / "gen" / "go", root / "examples" / "go"
    _generate(root, "gen/go/buf.gen.yaml")
    _run(stubs, "go", "build", "./...")
    _run(example, "go", "vet", "./...")
    _run(example, "go", "test", "./...")
    _run(example, "go", "build", "-o", str(root / "build" / "clients" / "go" / "keepbook"), ".")


def _typescript(root: Path) -> None:
    example = root / "examples" / "typescript"
    installed = example / "node_modules" / ".package-lock.json"
    lock = example / "package-lock.json"
    if not installed.is_file() or installed.stat().st_mtime < lock.stat().st_mtime:
        _run(example, "npm", "ci", "--no-audit", "--no-fund")
    _generate(root, "examples/typescript/buf.gen.yaml")
    _run(example, "npm", "run", "build")
    _run(example, "npm", "test")


def _java(root: Path) -> None:
    example = root / "examples" / "java"
    command = ["mvn", "--batch-mode", "--no-transfer-progress", "--quiet"]
    plugin = shutil.which(_GRPC_JAVA_PLUGIN)
    if plugin is not None:
        command.append(f"-Dgrpc.java.plugin={plugin}")
    _run(example, *command, "package")


def _rust(root: Path) -> None:
    example = root / "examples" / "rust"
    target = str(root / "build" / "clients" / "rust")
    _run(example, "cargo", "test", "--quiet", CARGO_TARGET_DIR=target)
    _run(example, "cargo", "build", "--quiet", CARGO_TARGET_DIR=target)


CLIENTS: Mapping[str, Client] = MappingProxyType(
    {
        client.language: client
        for client in (
            Client(
                language="go",
                programs={"go": "the Go toolchain, 1.26 or newer"},
                stubs="gen/go",
                command=("build/clients/go/keepbook",),
                steps=_go,
            ),
            Client(
                language="typescript",
                programs={
                    "node": "Node 20.3 or newer (Debian: apt-get install nodejs)",
                    "npm": "npm (Debian: apt-get install npm)",
                },
                stubs="examples/typescript/src/gen",
                command=("node", "examples/typescript/dist/main.js"),
                steps=_typescript,
            ),
            Client(
                language="java",
                programs={
                    "java": "a JDK, 17 or newer (Debian: apt-get install openjdk-17-jdk-headless)",
                    "mvn": "Maven 3.8 or newer (Debian: apt-get install maven)",
                },
                stubs="examples/java/target/generated-sources/protobuf",
                command=("java", "-jar", "examples/java/target/keepbook.jar"),
                steps=_java,
            ),
            Client(
                language="rust",
                programs={"cargo": "the Rust toolchain, 1.88 or newer"},
                stubs="build/clients/rust (cargo's OUT_DIR)",
                command=("build/clients/rust/debug/keepbook",),
                steps=_rust,
            ),
        )
    }
)
"""The languages there are examples of, by name."""


def main(arguments: list[str] | None = None, *, root: Path = ROOT) -> int:
    """Build the languages asked for; return 0, or 1 when one of them could not be built."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.clients",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("languages", nargs="*", choices=[[], *CLIENTS], metavar="LANGUAGE")
    parser.add_argument(
        "--require-all", action="store_true", help="fail when a toolchain is not here"
    )
    options = parser.parse_args(arguments)
    is_strict = options.require_all or bool(options.languages)
    failed = False
    for language in options.languages or CLIENTS:
        client = CLIENTS[language]
        missing = missing_program(client)
        if missing is not None and not is_strict:
            program, hint = missing
            print(f"{language}: left out, {program} is not here; get it with: {hint}")
            continue
        print(f"{language}: generating, compiling, testing", flush=True)
        began = time.monotonic()
        try:
            build(client, root)
        except ClientError as error:
            failed = True
            print(f"{language}: {error}", file=sys.stderr)
            continue
        seconds = time.monotonic() - began
        print(f"{language}: ready after {seconds:.0f} s; stubs in {client.stubs}")
        print(f"{language}: run {' '.join(client.command)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
