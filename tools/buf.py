"""Run buf with the contracts' imports in place: `python -m tools.buf lint`.

buf reads Google's API definitions from build/third_party, which is copied here from the installed
`googleapis-common-protos` package: no schema registry is asked and no copy is kept in history.
"""

import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

__all__ = ["ROOT", "THIRD_PARTY", "BufError", "prepare_third_party", "run_buf"]

ROOT = Path(__file__).resolve().parents[1]

# What the contracts import, and the error details that travel inside google.rpc.Status: a gateway
# that turns a status into JSON needs their descriptors although nothing imports them.
THIRD_PARTY = (
    "google/api/annotations.proto",
    "google/api/field_behavior.proto",
    "google/api/http.proto",
    "google/api/httpbody.proto",
    "google/rpc/code.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
)


class BufError(Exception):
    """buf is missing, or refused; the message says what it printed."""


def prepare_third_party(root: Path = ROOT) -> Path:
    """Copy the imported `.proto` files to `<root>/build/third_party` and return that folder.

    Files that are right already are left alone, and others appear whole, so that several
    generations may run at once.
    """
    target = root / "build" / "third_party"
    for name in THIRD_PARTY:
        package, _, rest = name.partition("/")
        wanted = resources.files(package).joinpath(rest).read_bytes()
        path = target / name
        if path.is_file() and path.read_bytes() == wanted:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        partial.write_bytes(wanted)
        partial.replace(path)
    for path in target.rglob("*.proto"):
        if path.relative_to(target).as_posix() not in THIRD_PARTY:
            path.unlink(missing_ok=True)
    return target


def run_buf(*arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run buf in `root`, this interpreter's programs first on the path, and return how it ended.

    Raises BufError when buf is not installed.
    """
    prepare_third_party(root)
    programs = Path(sys.executable).parent
    environment = dict(os.environ)
    environment["PATH"] = f"{programs}{os.pathsep}{environment.get('PATH', '')}"
    environment["PYTHONPATH"] = str(root)
    # Where there is no home directory buf would make its cache in the working directory.
    environment.setdefault("BUF_CACHE_DIR", str(root / "build" / "buf-cache"))
    buf = shutil.which("buf", path=environment["PATH"])
    if buf is None:
        raise BufError(
            f"buf was expected beside {sys.executable} or on PATH and is not there; "
            "install the development packages: make .venv/.dev"
        )
    return subprocess.run(
        [buf, *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def main() -> int:
    """Run buf with the command line's arguments and return its status."""
    try:
        result = run_buf(*sys.argv[1:])
    except BufError as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
