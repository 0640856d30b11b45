"""Compare the contracts with those that clients were built from: `python -m tools.breaking`.

The base is the descriptor set committed at MARKETPRISM_BREAKING_BASE, else where this branch left
main, else at the previous commit. Category FILE: nothing that generated code of any language could
name may go, move or change.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.buf import ROOT, BufError, run_buf
from tools.gen import DESCRIPTORS

__all__ = ["BASE_VARIABLE", "find_base", "main"]

# Names the commit, tag or branch to compare with.
BASE_VARIABLE = "MARKETPRISM_BREAKING_BASE"


def _git(root: Path, *arguments: str) -> bytes | None:
    """Return what git prints, or None when it fails."""
    result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    return result.stdout if result.returncode == 0 else None


def _commit(root: Path, name: str) -> str | None:
    found = _git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    return found.decode().strip() if found else None


def find_base(root: Path, wanted: str | None) -> tuple[str, str] | None:
    """Return the commit to compare with and how it was found, or None when there is none.

    Raises ValueError when `wanted` is named and does not exist.
    """
    if wanted:
        commit = _commit(root, wanted)
        if commit is None:
            raise ValueError(
                f"{BASE_VARIABLE} names {wanted!r}, which is no commit here; "
                "name a commit, tag or branch, or fetch it first"
            )
        return commit, wanted
    head = _commit(root, "HEAD")
    if head is None:
        return None
    for branch in ("origin/main", "main"):
        tip = _commit(root, branch)
        if tip is None or tip == head:
            continue
        found = _git(root, "merge-base", tip, head)
        base = found.decode().strip() if found else None
        if base and base != head:
            return base, f"where this branch left {branch}"
    previous = _commit(root, "HEAD~1")
    return (previous, "the previous commit") if previous else None


def main(*, root: Path = ROOT) -> int:
    """Run the comparison; return 0, or 1 when clients would break or it cannot be told."""
    try:
        base = find_base(root, os.environ.get(BASE_VARIABLE))
    except ValueError as error:
        print(f"breaking: {error}", file=sys.stderr)
        return 1
    if base is None:
        print("breaking: there is no earlier commit to compare with; nothing can break")
        return 0
    commit, how = base
    descriptors = _git(root, "show", f"{commit}:{DESCRIPTORS}")
    if descriptors is None:
        print(f"breaking: {commit[:12]} ({how}) has no {DESCRIPTORS}; nothing can break")
        return 0
    with tempfile.TemporaryDirectory(prefix="marketprism-breaking-") as folder:
        against = Path(folder) / "base.binpb"
        against.write_bytes(descriptors)
        current = Path(folder) / "current.binpb"
        try:
            result = run_buf("build", "--output", str(current), root=root)
            if result.returncode != 0:
                sys.stderr.write(result.stdout + result.stderr)
                print("breaking: the contracts do not compile", file=sys.stderr)
                return 1
            result = run_buf(
                "breaking",
                str(current),
                "--against",
                str(against),
                "--path",
                "marketprism",
                "--config",
                '{"version": "v2", "breaking": {"use": ["FILE"]}}',
                root=root,
            )
        except BufError as error:
            print(error, file=sys.stderr)
            return 1
    if result.returncode != 0:
        sys.stderr.write(result.stdout + result.stderr)
        print(
            f"breaking: clients built at {commit[:12]} ({how}) would break; "
            "add instead of changing, see docs/contracts.md",
            file=sys.stderr,
        )
        return 1
    print(f"breaking: clients built at {commit[:12]} ({how}) go on working")
    return 0


if __name__ == "__main__":
    sys.exit(main())
