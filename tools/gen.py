"""Make `gen/` from the contracts: `python -m tools.gen`, or `--check` to compare only.

Everything comes from installed PyPI packages of pinned versions, so the same contracts give the
same bytes on every machine; CI proves it with `--check`.
"""

import argparse
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

# The extensions must be known before a descriptor set is read, or it keeps them as unknown bytes.
from google.api import annotations_pb2, field_behavior_pb2  # type: ignore[import-untyped] # noqa: F401
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tools.buf import ROOT, BufError, run_buf
from tools.openapi import make_document, render

__all__ = ["DESCRIPTORS", "OPENAPI", "differences", "generate", "main"]

# The descriptor set that Envoy's transcoder, server reflection and the breaking check read.
DESCRIPTORS = "gen/descriptors/marketprism.binpb"

# The REST surface as an OpenAPI document.
OPENAPI = "gen/openapi/marketprism.json"

# Folders below gen/ that are wholly generated: what is in them and not generated is removed.
GENERATED = ("gen/python", "gen/descriptors", "gen/openapi")


def _buf(root: Path, *arguments: str) -> None:
    result = run_buf(*arguments, root=root)
    if result.returncode != 0:
        raise BufError(
            f"buf {' '.join(arguments)} failed with status {result.returncode}:\n"
            f"{result.stdout}{result.stderr}"
        )


def generate(out: Path, *, root: Path = ROOT) -> None:
    """Write everything generated below `out`, which stands for the repository's root.

    Raises BufError when the contracts do not compile.
    """
    descriptors = out / DESCRIPTORS
    descriptors.parent.mkdir(parents=True, exist_ok=True)
    print("gen: descriptor set")
    _buf(
        root,
        "build",
        "--as-file-descriptor-set",
        "--exclude-source-info",
        "--output",
        str(descriptors),
    )
    print("gen: Python messages, services and type stubs")
    _buf(root, "generate", "--output", str(out))
    for stub in (out / "gen" / "python").rglob("*_pb2_grpc.pyi"):
        # mypy-protobuf writes an empty stub for files without a service, which have no module.
        if not stub.with_suffix(".py").exists():
            stub.unlink()
    print("gen: OpenAPI document")
    with tempfile.TemporaryDirectory(prefix="marketprism-gen-") as folder:
        commented = Path(folder) / "commented.binpb"
        _buf(root, "build", "--as-file-descriptor-set", "--output", str(commented))
        files = FileDescriptorSet.FromString(commented.read_bytes())
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    document = out / OPENAPI
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(render(make_document(files, project["version"])), encoding="utf-8")


def _files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for folder in GENERATED
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def differences(fresh: Path, kept: Path) -> list[str]:
    """Say, a line each, which generated files of `kept` are not what `fresh` has."""
    expected, found = _files(fresh), _files(kept)
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            lines.append(f"{name}: missing")
        elif name not in expected:
            lines.append(f"{name}: nothing generates it")
        elif expected[name] != found[name]:
            lines.append(f"{name}: differs from what the contracts give")
    return lines


def _install(fresh: Path, root: Path) -> list[str]:
    """Bring `root` to what `fresh` has, touching only files that differ."""
    expected, found = _files(fresh), _files(root)
    changed = []
    for name in found.keys() - expected.keys():
        (root / name).unlink()
        changed.append(name)
    for name, content in expected.items():
        if found.get(name) != content:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".part")
            partial.write_bytes(content)
            shutil.copymode(fresh / name, partial)
            partial.replace(path)
            changed.append(name)
    return sorted(changed)


def main(arguments: list[str] | None = None, *, root: Path = ROOT) -> int:
    """Generate, or with --check compare; return 0, or 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.gen", description=__doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="change nothing: generate elsewhere and compare with gen/ byte for byte",
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="marketprism-gen-") as folder:
        fresh = Path(folder)
        try:
            generate(fresh, root=root)
        except BufError as error:
            print(error, file=sys.stderr)
            return 1
        if options.check:
            lines = differences(fresh, root)
            for line in lines:
                print(line, file=sys.stderr)
            if lines:
                print(
                    f"gen: {len(lines)} generated files are not what proto/ gives: "
                    "run `make gen` and commit the result",
                    file=sys.stderr,
                )
                return 1
            print("gen: gen/ is what the contracts give")
            return 0
        changed = _install(fresh, root)
        for name in changed:
            print(f"gen: wrote {name}" if (root / name).exists() else f"gen: removed {name}")
        print(f"gen: {len(changed)} files changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
