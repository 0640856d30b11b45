"""`python -m benchmarks [NAME [OPTION ...]]`: runs all benchmarks, or one with its options."""

import subprocess
import sys

_ALL = ("collector", "fanout", "rest", "end_to_end")


def main() -> int:
    """Run what was named and return the exit status."""
    name, *options = sys.argv[1:] or [""]
    if name and name not in _ALL:
        print(f"no benchmark {name!r}; there are: {', '.join(_ALL)}", file=sys.stderr)
        return 2
    status = 0
    for each in (name,) if name else _ALL:
        print(f"=== {each}", flush=True)
        status |= subprocess.call([sys.executable, "-m", f"benchmarks.{each}", *options])
    return status


if __name__ == "__main__":
    sys.exit(main())
